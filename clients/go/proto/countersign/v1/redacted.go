// Package countersignv1 has the generated messages and clients of the protocol. The package
// countersign calls the services with deadlines and repetitions, so the generated clients are
// rarely needed. The comments are those of the proto files.
//
// Messages print neither tokens nor claims.
package countersignv1

import (
	"log/slog"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// secret has the messages that have tokens, claims or personal data.
var secret = map[protoreflect.FullName]bool{
	"countersign.v1.Tokens":                true,
	"countersign.v1.CreateSessionRequest":  true,
	"countersign.v1.ImportedSession":       true,
	"countersign.v1.ReauthenticateRequest": true,
	"countersign.v1.RefreshRequest":        true,
	"countersign.v1.RevokeRequest":         true,
	"countersign.v1.Session":               true,
	"countersign.v1.UpdateSessionRequest":  true,
	"countersign.v1.ValidateRequest":       true,
	"countersign.v1.ValidateResponse":      true,
}

const hidden = "[redacted]"

// redacted prints a message without the contents of secret ones.
func redacted(message proto.Message) string {
	reflected := message.ProtoReflect()
	name := reflected.Descriptor().FullName()
	if secret[name] {
		return string(name.Name()) + "{" + hidden + "}"
	}
	if !reflected.IsValid() {
		return "<nil>"
	}
	cloned := proto.Clone(message)
	empty(cloned.ProtoReflect())
	return string(name.Name()) + "{" + prototext.MarshalOptions{}.Format(cloned) + "}"
}

// empty removes the contents of secret messages within a message.
func empty(message protoreflect.Message) {
	if secret[message.Descriptor().FullName()] {
		proto.Reset(message.Interface())
		return
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			if field.MapValue().Message() != nil {
				value.Map().Range(func(_ protoreflect.MapKey, value protoreflect.Value) bool {
					empty(value.Message())
					return true
				})
			}
		case field.Message() == nil:
		case field.IsList():
			for index := range value.List().Len() {
				empty(value.List().Get(index).Message())
			}
		default:
			empty(value.Message())
		}
		return true
	})
}

// String hides the token.
func (*RevokeRequest_Token) String() string { return hidden }

// GoString hides the token.
func (*RevokeRequest_Token) GoString() string { return hidden }

// LogValue hides the token.
func (*RevokeRequest_Token) LogValue() slog.Value { return slog.StringValue(hidden) }

// String hides the token.
func (*ReauthenticateRequest_RefreshToken) String() string { return hidden }

// GoString hides the token.
func (*ReauthenticateRequest_RefreshToken) GoString() string { return hidden }

// LogValue hides the token.
func (*ReauthenticateRequest_RefreshToken) LogValue() slog.Value { return slog.StringValue(hidden) }

// IsSecret returns whether a message has tokens, claims or personal data, so that it is not
// printed.
func IsSecret(message protoreflect.FullName) bool { return secret[message] }
