// Package countersigntest is an authority within the process, for the tests of an application: it
// issues tokens, revokes them, and can be unavailable. It needs no server.
package countersigntest

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/bridge"
	"countersign.example/client-go/internal/core"
)

const (
	// Issuer is the issuer of the tokens.
	Issuer = "https://authority.test"
	// Audience is the audience of tokens that name no other.
	Audience = "https://api.test"

	keyID           = "testing"
	usualLifetime   = 15 * time.Minute
	longestLifetime = 366 * 24 * time.Hour
)

// Clock is a clock that stands still until it is moved, for [countersign.WithClock].
type Clock = core.SettableClock

// NewClock creates a clock that stands at an instant.
func NewClock(now time.Time) *Clock { return core.NewSettableClock(now) }

// Authority is an authority within the process. Its clock starts at the present time, and moves
// only when [Authority.Advance] is called. It may be used by many goroutines.
type Authority struct {
	key   ed25519.PrivateKey
	clock *Clock
	local *core.Local
}

// New creates an authority with a key of its own.
func New() *Authority {
	// The standard library ends the process if there are no random numbers.
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err)
	}
	clock := NewClock(time.Now())
	local := core.NewLocal(clock, 1<<20)
	jwks := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":%q,"x":%q}]}`,
		keyID, base64.RawURLEncoding.EncodeToString(public))
	keys, _, _ := core.ReadKeySet(jwks, nil)
	local.Replace(keys, &core.Rules{
		Issuer: Issuer, MaxLifetime: longestLifetime, LeaseMargin: core.Forever,
	}, nil)
	authority := &Authority{key: private, clock: clock, local: local}
	authority.SetUnavailable(false)
	return authority
}

// String names the type.
func (*Authority) String() string { return "countersigntest.Authority" }

// GoString names the type.
func (*Authority) GoString() string { return "countersigntest.Authority" }

// Verifier returns a verifier that accepts the tokens of this authority.
func (a *Authority) Verifier() *countersign.Verifier {
	return bridge.NewTestingVerifier(a.local).(*countersign.Verifier)
}

// Revoke revokes the session of a token of this authority. It panics if the token is from
// elsewhere.
func (a *Authority) Revoke(token string) {
	claims, reason := a.local.Authenticate(token)
	if reason != 0 {
		panic("countersigntest: the token is not from this authority")
	}
	a.local.Copy().Index.RevokeID(claims.SessionID, claims.ExpiresAt)
}

// SetUnavailable sets whether the authority is unavailable. Then each answer is unknown.
func (a *Authority) SetUnavailable(isUnavailable bool) {
	if isUnavailable {
		a.local.Copy().Lease.End()
	} else {
		a.local.Take(core.Start{}, core.Forever)
	}
}

// Advance moves the clock forward, for instance until a token has expired.
func (a *Authority) Advance(span time.Duration) { a.clock.Advance(span) }

// Token describes a token of a session of its own. Everything may be left out.
type Token struct {
	// Tenant is the tenant.
	Tenant string
	// ClientID is the OAuth client.
	ClientID string
	// Audience has the audiences; [Audience] if it is empty.
	Audience []string
	// Scopes are the scopes.
	Scopes []string
	// ACR is the authentication context class.
	ACR string
	// AMR has the authentication methods, which were verified when the user authenticated.
	AMR []string
	// AuthenticatedAgo is the time since the authentication.
	AuthenticatedAgo time.Duration
	// Lifetime is the lifetime: 15 minutes if it is zero.
	Lifetime time.Duration
	// Claims are the session's own claims.
	Claims map[string]any
}

// Issue signs a token for this user. It panics if the claims cannot be written as JSON.
func (a *Authority) Issue(subject string, token Token) string {
	now := core.FromTime(a.clock.Now())
	issuedAt := now.Seconds()
	authenticatedAt := issuedAt - int64(token.AuthenticatedAgo/time.Second)
	lifetime := token.Lifetime
	if lifetime == 0 {
		lifetime = usualLifetime
	}
	audience := token.Audience
	if len(audience) == 0 {
		audience = []string{Audience}
	}
	claims := maps.Clone(token.Claims)
	if claims == nil {
		claims = map[string]any{}
	}
	maps.Copy(claims, map[string]any{
		"iss": Issuer, "sub": subject, "aud": audience, "client_id": token.ClientID,
		"iat": issuedAt, "exp": issuedAt + int64(lifetime/time.Second),
		"jti": core.NewRandomID().String(), "sid": core.NewSessionID(now).String(),
		"auth_time": authenticatedAt,
	})
	if token.Tenant != "" {
		claims["tenant"] = token.Tenant
	}
	if len(token.Scopes) > 0 {
		claims["scope"] = strings.Join(token.Scopes, " ")
	}
	if token.ACR != "" {
		claims["acr"] = token.ACR
	}
	if len(token.AMR) > 0 {
		verified := map[string]int64{}
		for _, method := range token.AMR {
			verified[method] = authenticatedAt
		}
		claims["amr"] = slices.Clone(token.AMR)
		claims["countersign_amr_verified_at"] = verified
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(fmt.Sprintf("countersigntest: the claims cannot be written: %v", err))
	}
	header := fmt.Sprintf(`{"typ":%q,"alg":"EdDSA","kid":%q}`, core.TokenType, keyID)
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." +
		base64.RawURLEncoding.EncodeToString(payload)
	signature := ed25519.Sign(a.key, []byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}
