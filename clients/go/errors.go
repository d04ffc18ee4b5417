package countersign

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Reason is the reason of an error, as ErrorInfo.reason names it. A service that is newer than this
// library may send others. It is empty if there is none.
type Reason string

// The reasons.
const (
	// ReasonInvalidField says that a field of the request is not valid. [Error.Fields] names it.
	ReasonInvalidField Reason = "INVALID_FIELD"
	// ReasonRequestIDReused says that the request id belongs to another request, or another caller.
	ReasonRequestIDReused Reason = "REQUEST_ID_REUSED"
	// ReasonCallerUnknown says that the API key or the client certificate is missing or unknown.
	ReasonCallerUnknown Reason = "CALLER_UNKNOWN"
	// ReasonCallerNotAllowed says that the caller lacks the role, or that the tenant or audience is
	// not one of the caller's.
	ReasonCallerNotAllowed Reason = "CALLER_NOT_ALLOWED"
	// ReasonCallerOverLimit says that the caller has too many calls under way, or began too many
	// recently.
	ReasonCallerOverLimit Reason = "CALLER_OVER_LIMIT"
	// ReasonRefreshTokenInvalid says that the refresh token is malformed, forged, or from another
	// service.
	ReasonRefreshTokenInvalid Reason = "REFRESH_TOKEN_INVALID"
	// ReasonRefreshTokenReused says that the refresh token was exchanged before, so two parties
	// have it. The session has ended.
	ReasonRefreshTokenReused Reason = "REFRESH_TOKEN_REUSED"
	// ReasonSessionRevoked says that the session was ended.
	ReasonSessionRevoked Reason = "SESSION_REVOKED"
	// ReasonSessionExpiredIdle says that the session was not refreshed within its idle time-out.
	ReasonSessionExpiredIdle Reason = "SESSION_EXPIRED_IDLE"
	// ReasonSessionExpiredAbsolute says that the session has reached the end of its lifetime.
	ReasonSessionExpiredAbsolute Reason = "SESSION_EXPIRED_ABSOLUTE"
	// ReasonSessionQuotaExceeded says that the subject has as many sessions as its policy allows.
	ReasonSessionQuotaExceeded Reason = "SESSION_QUOTA_EXCEEDED"
	// ReasonEtagMismatch says that the session has changed since it was read.
	ReasonEtagMismatch Reason = "ETAG_MISMATCH"
	// ReasonSessionNotFound says that there is no such session.
	ReasonSessionNotFound Reason = "SESSION_NOT_FOUND"
	// ReasonKeyNotFound says that there is no such key.
	ReasonKeyNotFound Reason = "KEY_NOT_FOUND"
	// ReasonKeyTooNew says that the pending key was published so recently that verifiers may not
	// know it.
	ReasonKeyTooNew Reason = "KEY_TOO_NEW"
	// ReasonTooManyKeys says that there are too many keys.
	ReasonTooManyKeys Reason = "TOO_MANY_KEYS"
	// ReasonBlacklistFull says that the blacklist is full.
	ReasonBlacklistFull Reason = "BLACKLIST_FULL"
	// ReasonTooManyWatchers says that too many watchers are connected to the replica.
	ReasonTooManyWatchers Reason = "TOO_MANY_WATCHERS"
	// ReasonWatcherTooSlow says that the watcher does not read fast enough.
	ReasonWatcherTooSlow Reason = "WATCHER_TOO_SLOW"
	// ReasonNotSent says that the watcher has confirmed something that was not sent.
	ReasonNotSent Reason = "NOT_SENT"
	// ReasonOverloaded says that the service is overloaded, and has done nothing.
	ReasonOverloaded Reason = "OVERLOADED"
	// ReasonStoreUnavailable says that the database is not available. A write may or may not have
	// taken effect.
	ReasonStoreUnavailable Reason = "STORE_UNAVAILABLE"
	// ReasonNotCurrent says that the replica starts, stops, or does not know the latest
	// revocations.
	ReasonNotCurrent Reason = "NOT_CURRENT"
	// ReasonNoActiveKey says that no key is active at the moment.
	ReasonNoActiveKey Reason = "NO_ACTIVE_KEY"
	// ReasonAuditTableOff says that the service keeps no audit in its database.
	ReasonAuditTableOff Reason = "AUDIT_TABLE_OFF"
	// ReasonInternal says that there is a bug of the service, or damaged data. The log of the
	// service has the details.
	ReasonInternal Reason = "INTERNAL"
	// ReasonMalformedRequest says that the service could not read the request.
	ReasonMalformedRequest Reason = "MALFORMED_REQUEST"
	// ReasonUnimplemented says that the service does not have the call; it may be older than this
	// library.
	ReasonUnimplemented Reason = "UNIMPLEMENTED"
	// ReasonDeadlineExceeded says that the deadline of the call has passed. A write may or may not
	// have taken effect.
	ReasonDeadlineExceeded Reason = "DEADLINE_EXCEEDED"
	// ReasonUnreachable says that no replica could be reached, or that the connection was lost
	// during the call.
	ReasonUnreachable Reason = "UNREACHABLE"
)

// FieldViolation is a field of a request that is not valid.
type FieldViolation struct {
	// Field is the path of the field, such as audience[3].
	Field string
	// Description is the problem with it.
	Description string
}

// Error is the error of a call. It holds no token. [errors.As] finds it, and [errors.Is] finds
// [context.Canceled] and [context.DeadlineExceeded].
type Error struct {
	status     *status.Status
	reason     Reason
	retryAfter time.Duration
	hasRetry   bool
	fields     []FieldViolation
	isRefused  bool
}

// ReasonOf returns the reason of an error of a call; empty for other errors.
func ReasonOf(err error) Reason {
	if failed, isError := errors.AsType[*Error](err); isError {
		return failed.reason
	}
	return ""
}

// Error returns the reason, the code and the message.
func (e *Error) Error() string {
	return fmt.Sprintf("%s (%s): %s", e.reason, e.Code(), e.Message())
}

// Code returns the gRPC code.
func (e *Error) Code() codes.Code { return e.status.Code() }

// Reason returns the reason.
func (e *Error) Reason() Reason { return e.reason }

// Message returns the message, which is for people.
func (e *Error) Message() string { return e.status.Message() }

// RetryAfter returns the time after which the call may be repeated (RetryInfo), if the service has
// named one. The library has waited for it already as far as the deadline allowed.
func (e *Error) RetryAfter() (time.Duration, bool) { return e.retryAfter, e.hasRetry }

// Fields returns the fields that are not valid (BadRequest).
func (e *Error) Fields() []FieldViolation { return slices.Clone(e.fields) }

// IsRefused returns whether the call certainly had no effect, because it did not reach the service,
// or because the service refused it before doing anything.
func (e *Error) IsRefused() bool { return e.isRefused }

// IsTemporary returns whether the call may succeed later, without a change of the request.
func (e *Error) IsTemporary() bool { return e.Code() == codes.Unavailable || e.hasRetry }

// GRPCStatus returns the status that the service has sent.
func (e *Error) GRPCStatus() *status.Status { return e.status }

// Unwrap returns the error of the context that has ended the call, if one has.
func (e *Error) Unwrap() error {
	switch e.Code() {
	case codes.Canceled:
		return context.Canceled
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// errorOf reads the error of a call. wasSent is false if the request has certainly not left this
// process.
func errorOf(err error, wasSent bool) *Error {
	read := &Error{status: status.Convert(err)}
	if errors.Is(err, io.EOF) {
		// gRPC returns this if the stream is reset while the request is sent.
		read.status = status.New(codes.Unavailable, "the stream has ended without an answer")
	}
	hasInfo := false
	for _, detail := range read.status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			read.reason, hasInfo = Reason(detail.GetReason()), true
		case *errdetails.RetryInfo:
			if detail.GetRetryDelay() != nil {
				read.retryAfter, read.hasRetry = detail.GetRetryDelay().AsDuration(), true
			}
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				read.fields = append(read.fields,
					FieldViolation{violation.GetField(), violation.GetDescription()})
			}
		}
	}
	if !hasInfo {
		switch read.Code() {
		case codes.DeadlineExceeded:
			read.reason = ReasonDeadlineExceeded
		case codes.Unavailable:
			read.reason = ReasonUnreachable
		}
	}
	switch read.reason {
	case ReasonNotCurrent, ReasonNoActiveKey, ReasonOverloaded, ReasonCallerOverLimit:
		read.isRefused = true
	default:
		read.isRefused = !wasSent
	}
	return read
}

func deadlineExceeded() *Error {
	const text = "no replica has answered within the deadline"
	return errorOf(status.Error(codes.DeadlineExceeded, text), true)
}
