// Package grpcauth has interceptors for servers of gRPC that let only calls pass whose access token
// is active and meets the demands of the method.
package grpcauth

import (
	"context"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/challenge"
	"countersign.example/client-go/internal/credential"
)

const (
	// domain is the domain in the ErrorInfo of denied calls.
	domain = "countersign"
	// retryDelay is the time after which a call may be repeated that could not be checked.
	retryDelay = 500 * time.Millisecond
)

// Protection lets only calls pass whose access token is active and meets the demands of the method.
// The token is in the metadata `authorization`, with the scheme Bearer.
//
// The session is put into the context of the call: [countersign.SessionFromContext] returns it. A
// stream is checked when it begins. Other calls are answered, with an ErrorInfo whose domain is
// countersign:
//
//	has no token, or several          UNAUTHENTICATED    NO_TOKEN, SEVERAL_TOKENS
//	has an inactive token             UNAUTHENTICATED    the name of the reason, such as EXPIRED
//	needs a stronger or more recent   UNAUTHENTICATED    STEP_UP_REQUIRED, with acr_values and
//	authentication                                       max_age in the metadata
//	lacks a scope                     PERMISSION_DENIED  INSUFFICIENT_SCOPE, with scope in the
//	                                                     metadata
//	cannot be checked now             UNAVAILABLE        TOKEN_NOT_CHECKED, with RetryInfo
type Protection struct {
	verifier *countersign.Verifier
	demands  countersign.Demands
	// methods has the methods with other demands, or with none (nil), by their paths.
	methods map[string]*countersign.Demands
}

// Option is a setting of a protection.
type Option func(*Protection)

// WithMethod sets other demands on a method, such as /shop.v1.Orders/Cancel.
func WithMethod(path string, demands countersign.Demands) Option {
	return func(p *Protection) { p.methods[path] = &demands }
}

// WithPublic lets all calls of a method pass without a check, such as /grpc.health.v1.Health/Check.
func WithPublic(path string) Option { return func(p *Protection) { p.methods[path] = nil } }

// New creates a protection with these demands on all methods.
func New(
	verifier *countersign.Verifier, demands countersign.Demands, options ...Option,
) *Protection {
	methods := map[string]*countersign.Demands{}
	protection := &Protection{verifier, demands, methods}
	for _, option := range options {
		option(protection)
	}
	return protection
}

// String names the type.
func (*Protection) String() string { return "grpcauth.Protection" }

// Unary is an interceptor for calls with one request and one response.
func (p *Protection) Unary(
	ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler,
) (any, error) {
	ctx, err := p.check(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	return handler(ctx, request)
}

// Stream is an interceptor for streams.
func (p *Protection) Stream(
	server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler,
) error {
	ctx, err := p.check(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handler(server, &checkedStream{stream, ctx})
}

// checkedStream is a stream whose context has the session.
type checkedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context with the session.
func (s *checkedStream) Context() context.Context { return s.ctx }

func (p *Protection) check(ctx context.Context, method string) (context.Context, error) {
	demands := p.demands
	if other, isOther := p.methods[method]; isOther {
		if other == nil {
			return ctx, nil
		}
		demands = *other
	}
	token, kind := credential.Find(metadata.ValueFromIncomingContext(ctx, "authorization"), nil, "")
	switch kind {
	case credential.Token:
	case credential.None:
		return nil, statusOf(&challenge.Denial{Kind: challenge.NoToken}, demands)
	default:
		return nil, statusOf(&challenge.Denial{Kind: challenge.SeveralTokens}, demands)
	}
	answer := p.verifier.Verify(ctx, token, demands)
	session := answer.Session()
	if session == nil {
		return nil, statusOf(challenge.Of(answer), demands)
	}
	return countersign.ContextWithSession(ctx, session), nil
}

func statusOf(denial *challenge.Denial, demands countersign.Demands) error {
	code := codes.Unauthenticated
	info := &errdetails.ErrorInfo{Domain: domain, Metadata: map[string]string{}}
	add := func(name, value string) {
		if value != "" {
			info.Metadata[name] = value
		}
	}
	switch denial.Kind {
	case challenge.NoToken:
		info.Reason = "NO_TOKEN"
	case challenge.SeveralTokens, challenge.ConflictingCookies:
		info.Reason = "SEVERAL_TOKENS"
	case challenge.Inactive:
		info.Reason = strings.ToUpper(denial.Reason.String())
		switch denial.Reason {
		case countersign.InsufficientScope:
			code = codes.PermissionDenied
			add("scope", strings.Join(demands.Scopes, " "))
		case countersign.StepUpRequired:
			add("acr_values", strings.Join(demands.ACRValues, " "))
			add("max_age", challenge.MaxAge(demands))
		}
	default:
		code, info.Reason = codes.Unavailable, "TOKEN_NOT_CHECKED"
	}
	denied := status.New(code, denial.Description(demands))
	detailed, err := denied.WithDetails(info)
	if err == nil && code == codes.Unavailable {
		retry := &errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)}
		detailed, err = detailed.WithDetails(retry)
	}
	if err != nil {
		// The details can always be encoded, and the call is denied in any case.
		return denied.Err()
	}
	return detailed.Err()
}
