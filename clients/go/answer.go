package countersign

import (
	"errors"
	"strings"

	"countersign.example/client-go/internal/core"
)

// InactiveReason is the reason why a token is inactive. If several apply, it is the first in the
// following order: form, key and signature, tenant, time, revocation, audience, demands.
type InactiveReason uint8

// The reasons. Zero is none of them.
const (
	// Malformed says that it is not a JWT of the form that the service issues.
	Malformed = InactiveReason(core.Malformed)
	// BadSignature says that the signature was not made by the key that the token names.
	BadSignature = InactiveReason(core.BadSignature)
	// UnknownKey says that the token names a key that is not known.
	UnknownKey = InactiveReason(core.UnknownKey)
	// WrongType says that it is not an access token.
	WrongType = InactiveReason(core.WrongType)
	// Expired says that the token has expired.
	Expired = InactiveReason(core.Expired)
	// NotYetValid says that the token is not valid yet.
	NotYetValid = InactiveReason(core.NotYetValid)
	// WrongIssuer says that the token is from another issuer.
	WrongIssuer = InactiveReason(core.WrongIssuer)
	// WrongAudience says that the token is not for the demanded audience, or for none of the
	// audiences that the caller is limited to.
	WrongAudience = InactiveReason(core.WrongAudience)
	// InsufficientScope says that the token lacks a demanded scope.
	InsufficientScope = InactiveReason(core.InsufficientScope)
	// StepUpRequired says that the authentication is too weak or too old for the demand.
	StepUpRequired = InactiveReason(core.StepUpRequired)
	// Revoked says that the session, the token, or the key that signed it was revoked.
	Revoked = InactiveReason(core.Revoked)
	// ForeignTenant says that the caller may not see tokens of this tenant.
	ForeignTenant = InactiveReason(core.ForeignTenant)
)

var reasonNames = [core.Reasons + 1]string{
	"", "malformed", "bad_signature", "unknown_key", "wrong_type", "expired", "not_yet_valid",
	"wrong_issuer", "wrong_audience", "insufficient_scope", "step_up_required", "revoked",
	"foreign_tenant",
}

// String returns the name of the reason in metrics, such as wrong_audience. The service and answers
// of gRPC have the same name in capitals.
func (r InactiveReason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return ""
}

// The reasons why it is not known whether a token is active, besides an [*Error] of the service.
var (
	// ErrNoLease says that this process has no lease: it is starting, or is cut off from the
	// service, or was suspended.
	ErrNoLease = errors.New("there is no lease, so it is not known what is revoked")
	// ErrNotUnderstood says that the answer of the service cannot be understood; it may be newer
	// than this library.
	ErrNotUnderstood = errors.New("the answer of the service cannot be understood")
)

// Answer is the answer of a [Verifier]. Only an active one lets a request pass. The zero value is
// unknown.
type Answer struct {
	session *Session
	reason  InactiveReason
	unknown error
}

// IsActive returns whether the token is authentic, its session is live, and all demands are met.
func (a Answer) IsActive() bool { return a.session != nil }

// Session returns the session if the token is active, and nil otherwise.
func (a Answer) Session() *Session { return a.session }

// InactiveReason returns the reason if the token is inactive, and zero otherwise.
func (a Answer) InactiveReason() InactiveReason { return a.reason }

// Unknown returns the reason why it is not known whether the token is active: [ErrNoLease],
// [ErrNotUnderstood], or the [*Error] of the service. Then the request must not pass, and the
// client may try again. It returns nil if the answer is known.
func (a Answer) Unknown() error {
	if a.session == nil && a.reason == 0 && a.unknown == nil {
		return ErrNotUnderstood
	}
	return a.unknown
}

// String names the kind of the answer, and its reason.
func (a Answer) String() string {
	switch {
	case a.session != nil:
		return "active"
	case a.reason != 0:
		return "inactive " + strings.ToUpper(a.reason.String())
	default:
		return "unknown: " + a.Unknown().Error()
	}
}

// GoString is the same as String.
func (a Answer) GoString() string { return a.String() }
