package core

// InactiveReason is the reason why a token is inactive. If several apply, the first in the
// following order is returned: form, key and signature, tenant, time, revocation, audience,
// demands.
type InactiveReason uint8

// The reasons. Zero is none of them.
const (
	Malformed InactiveReason = iota + 1
	BadSignature
	UnknownKey
	WrongType
	Expired
	NotYetValid
	WrongIssuer
	WrongAudience
	InsufficientScope
	StepUpRequired
	Revoked
	ForeignTenant
)

// Reasons is the number of reasons.
const Reasons = int(ForeignTenant)
