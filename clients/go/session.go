package countersign

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// Session is the session that an active token belongs to, with the claims of the token. It may be
// used by many goroutines. Printed, it shows neither the token nor the claims, but its identifier.
type Session struct {
	claims *core.Claims
}

// ID returns the identifier of the session (`sid`), a UUID.
func (s *Session) ID() string { return s.claims.SessionID.String() }

// Subject returns the user (`sub`).
func (s *Session) Subject() string { return s.claims.Subject }

// Tenant returns the tenant; empty for the default tenant.
func (s *Session) Tenant() string { return s.claims.Tenant }

// ClientID returns the OAuth client; may be empty.
func (s *Session) ClientID() string { return s.claims.ClientID }

// Audience returns the services that the token is meant for (`aud`).
func (s *Session) Audience() []string { return slices.Clone(s.claims.Audience) }

// Scopes returns the scopes of the token.
func (s *Session) Scopes() []string { return slices.Clone(s.claims.Scopes) }

// HasScope returns whether the token carries a scope.
func (s *Session) HasScope(scope string) bool { return s.claims.HasScope(scope) }

// IssuedAt returns the time at which the token was issued, in whole seconds.
func (s *Session) IssuedAt() time.Time { return s.claims.IssuedAt.Time() }

// ExpiresAt returns the time at which the token expires, in whole seconds.
func (s *Session) ExpiresAt() time.Time { return s.claims.ExpiresAt.Time() }

// AuthenticatedAt returns the time at which the user authenticated (`auth_time`), in whole seconds.
func (s *Session) AuthenticatedAt() time.Time { return s.claims.AuthenticatedAt.Time() }

// ACR returns the authentication context class; may be empty.
func (s *Session) ACR() string { return s.claims.ACR }

// AMR returns the authentication methods (RFC 8176).
func (s *Session) AMR() []string { return slices.Clone(s.claims.AMR) }

// VerifiedAt returns the time at which an authentication method was verified, if it is known.
func (s *Session) VerifiedAt(method string) (time.Time, bool) {
	at, isKnown := s.claims.VerifiedAt(method)
	return at.Time(), isKnown
}

// Claim returns a claim of the session's own, as [json.Unmarshal] decodes it.
func (s *Session) Claim(name string) (any, bool) {
	var value any
	if s.DecodeClaim(name, &value) != nil {
		return nil, false
	}
	return value, true
}

// DecodeClaim decodes a claim of the session's own into target, as [json.Unmarshal] does.
func (s *Session) DecodeClaim(name string, target any) error {
	text, isKnown := s.claims.Custom[name]
	if !isKnown {
		return fmt.Errorf("the session has no claim %q", name)
	}
	return json.Unmarshal(text, target)
}

// Claims returns all claims of the session's own.
func (s *Session) Claims() map[string]any {
	claims := make(map[string]any, len(s.claims.Custom))
	for name := range s.claims.Custom {
		claims[name], _ = s.Claim(name)
	}
	return claims
}

// Format prints the identifier of the session only.
func (s Session) Format(state fmt.State, _ rune) {
	_, _ = fmt.Fprint(state, s.text())
}

// LogValue returns the identifier of the session only.
func (s Session) LogValue() slog.Value { return slog.StringValue(s.text()) }

func (s Session) text() string {
	if s.claims == nil {
		return "Session{}"
	}
	return "Session{" + s.claims.SessionID.String() + "}"
}

// sessionOfAnswer reads the answer of Validate for an active token; nil if it is incomplete.
func sessionOfAnswer(answer *pb.ValidateResponse) *Session {
	id, isID := core.ParseID(answer.GetSessionId())
	isComplete := isID
	timestamp := func(at *timestamppb.Timestamp) core.Timestamp {
		isComplete = isComplete && at != nil
		return core.FromSeconds(at.GetSeconds())
	}
	claims := &core.Claims{
		SessionID:       id,
		Subject:         answer.GetSubject(),
		Tenant:          answer.GetTenant(),
		ClientID:        answer.GetClientId(),
		Audience:        answer.GetAudience(),
		Scopes:          answer.GetScopes(),
		IssuedAt:        timestamp(answer.GetIssuedAt()),
		ExpiresAt:       timestamp(answer.GetExpiresAt()),
		AuthenticatedAt: timestamp(answer.GetAuthenticatedAt()),
		ACR:             answer.GetAcr(),
		AMR:             answer.GetAmr(),
		Custom:          map[string]json.RawMessage{},
	}
	for method, at := range answer.GetAmrVerifiedAt() {
		claims.AMRVerifiedAt = append(claims.AMRVerifiedAt,
			core.VerifiedAt{Method: method, At: timestamp(at)})
	}
	for name, value := range answer.GetClaims().GetFields() {
		text, err := json.Marshal(value.AsInterface())
		isComplete = isComplete && err == nil
		claims.Custom[name] = text
	}
	if !isComplete {
		return nil
	}
	return &Session{claims}
}

type sessionKey struct{}

// ContextWithSession returns a context that has a session. The middleware calls it.
func ContextWithSession(ctx context.Context, session *Session) context.Context {
	return context.WithValue(ctx, sessionKey{}, session)
}

// SessionFromContext returns the session of a request that middleware has let pass, or false if it
// has none.
func SessionFromContext(ctx context.Context) (*Session, bool) {
	session, _ := ctx.Value(sessionKey{}).(*Session)
	return session, session != nil
}
