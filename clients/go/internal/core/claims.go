package core

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	authenticationIDClaim = "countersign_authentication_id"
	amrVerifiedAtClaim    = "countersign_amr_verified_at"
)

// Claims are the claims of an access token, or what Validate has answered. They are shared by all
// checks of a token, so nobody may change them.
type Claims struct {
	Issuer           string
	SessionID        ID
	TokenID          ID
	AuthenticationID ID
	Subject          string
	Tenant           string
	ClientID         string
	Audience         []string
	Scopes           []string
	IssuedAt         Timestamp
	ExpiresAt        Timestamp
	// NotBefore is IssuedAt if the token has no `nbf`.
	NotBefore       Timestamp
	AuthenticatedAt Timestamp
	ACR             string
	AMR             []string
	AMRVerifiedAt   []VerifiedAt
	// Custom has the session's own claims: each value as JSON.
	Custom map[string]json.RawMessage

	keyID string
}

// VerifiedAt is the time at which an authentication method was verified.
type VerifiedAt struct {
	Method string
	At     Timestamp
}

// parseClaims reads a payload. Every required claim must be present, every claim must have the
// right type, and no name may occur twice.
func parseClaims(payload []byte) (*Claims, error) {
	if !utf8.Valid(payload) {
		return nil, errJSON
	}
	reader := claimsReader{parser: parser{text: payload}}
	if err := reader.parser.object(reader.claim); err != nil {
		return nil, err
	}
	if err := reader.parser.end(); err != nil {
		return nil, err
	}
	if reader.seen&required != required {
		return nil, errJSON
	}
	claims := &reader.claims
	if reader.seen&(1<<claimNotBefore) == 0 {
		claims.NotBefore = claims.IssuedAt
	}
	if reader.seen&(1<<claimAuthenticationID) == 0 {
		claims.AuthenticationID = claims.SessionID.FirstAuthentication()
	}
	return claims, nil
}

// The claims that this library knows, as numbers of bits.
const (
	claimIssuer = iota
	claimSubject
	claimAudience
	claimClientID
	claimIssuedAt
	claimExpiresAt
	claimTokenID
	claimSessionID
	claimAuthenticatedAt
	claimNotBefore
	claimAuthenticationID
	claimTenant
	claimScope
	claimACR
	claimAMR
	claimAMRVerifiedAt

	required = 1<<claimNotBefore - 1
)

type claimsReader struct {
	parser parser
	claims Claims
	seen   uint32
}

// once returns an error if a claim was seen before.
func (r *claimsReader) once(claim uint) error {
	if r.seen&(1<<claim) != 0 {
		return errJSON
	}
	r.seen |= 1 << claim
	return nil
}

func (r *claimsReader) claim(name string) error {
	claims := &r.claims
	switch name {
	case "iss":
		return r.text(claimIssuer, &claims.Issuer)
	case "sub":
		return r.text(claimSubject, &claims.Subject)
	case "aud":
		return r.audience()
	case "client_id":
		return r.text(claimClientID, &claims.ClientID)
	case "iat":
		return r.instant(claimIssuedAt, &claims.IssuedAt)
	case "exp":
		return r.instant(claimExpiresAt, &claims.ExpiresAt)
	case "nbf":
		return r.instant(claimNotBefore, &claims.NotBefore)
	case "auth_time":
		return r.instant(claimAuthenticatedAt, &claims.AuthenticatedAt)
	case "jti":
		return r.id(claimTokenID, &claims.TokenID)
	case "sid":
		return r.id(claimSessionID, &claims.SessionID)
	case authenticationIDClaim:
		return r.id(claimAuthenticationID, &claims.AuthenticationID)
	case "tenant":
		return r.text(claimTenant, &claims.Tenant)
	case "scope":
		var scope string
		if err := r.text(claimScope, &scope); err != nil {
			return err
		}
		for word := range strings.SplitSeq(scope, " ") {
			if word != "" {
				claims.Scopes = append(claims.Scopes, word)
			}
		}
		return nil
	case "acr":
		return r.text(claimACR, &claims.ACR)
	case "amr":
		if err := r.once(claimAMR); err != nil {
			return err
		}
		return r.texts(&claims.AMR)
	case amrVerifiedAtClaim:
		return r.times()
	default:
		return r.custom(name)
	}
}

func (r *claimsReader) text(claim uint, into *string) error {
	err := r.once(claim)
	if err == nil {
		*into, err = r.parser.string()
	}
	return err
}

func (r *claimsReader) instant(claim uint, into *Timestamp) error {
	if err := r.once(claim); err != nil {
		return err
	}
	seconds, err := r.parser.integer()
	*into = FromSeconds(seconds)
	return err
}

func (r *claimsReader) id(claim uint, into *ID) error {
	var text string
	if err := r.text(claim, &text); err != nil {
		return err
	}
	id, isID := ParseID(text)
	if !isID {
		return errJSON
	}
	*into = id
	return nil
}

func (r *claimsReader) texts(into *[]string) error {
	return r.parser.array(func() error {
		text, err := r.parser.string()
		*into = append(*into, text)
		return err
	})
}

func (r *claimsReader) audience() error {
	if err := r.once(claimAudience); err != nil {
		return err
	}
	if r.parser.peek() == '"' {
		audience, err := r.parser.string()
		r.claims.Audience = []string{audience}
		return err
	}
	if err := r.texts(&r.claims.Audience); err != nil {
		return err
	}
	if len(r.claims.Audience) == 0 {
		return errJSON
	}
	return nil
}

func (r *claimsReader) times() error {
	if err := r.once(claimAMRVerifiedAt); err != nil {
		return err
	}
	return r.parser.object(func(method string) error {
		if _, isKnown := r.claims.VerifiedAt(method); isKnown {
			return errJSON
		}
		seconds, err := r.parser.integer()
		verified := VerifiedAt{method, FromSeconds(seconds)}
		r.claims.AMRVerifiedAt = append(r.claims.AMRVerifiedAt, verified)
		return err
	})
}

func (r *claimsReader) custom(name string) error {
	if _, isKnown := r.claims.Custom[name]; isKnown {
		return errJSON
	}
	r.parser.peek()
	start := r.parser.at
	if err := r.parser.value(0); err != nil {
		return err
	}
	if r.claims.Custom == nil {
		r.claims.Custom = map[string]json.RawMessage{}
	}
	// The claims are kept in the cache, and the payload should not be.
	r.claims.Custom[name] = slices.Clone(r.parser.text[start:r.parser.at])
	return nil
}

// VerifiedAt returns the time at which a method was verified, if it is known.
func (c *Claims) VerifiedAt(method string) (Timestamp, bool) {
	for _, verified := range c.AMRVerifiedAt {
		if verified.Method == method {
			return verified.At, true
		}
	}
	return 0, false
}

// HasScope returns whether the token carries a scope.
func (c *Claims) HasScope(scope string) bool { return slices.Contains(c.Scopes, scope) }

// memory estimates the memory that the claims take, in bytes.
func (c *Claims) memory() int {
	const (
		claimsBytes = 416
		textBytes   = 16 + 8
		mapBytes    = 448
	)
	bytes := claimsBytes
	add := func(text string) { bytes += textBytes + len(text) }
	add(c.Issuer)
	add(c.Subject)
	add(c.Tenant)
	add(c.ClientID)
	add(c.ACR)
	for _, list := range [...][]string{c.Audience, c.Scopes, c.AMR} {
		for _, text := range list {
			add(text)
		}
	}
	for _, verified := range c.AMRVerifiedAt {
		add(verified.Method)
		bytes += 8
	}
	if len(c.Custom) > 0 {
		bytes += mapBytes
	}
	for name, value := range c.Custom {
		add(name)
		bytes += 2*textBytes + len(value)
	}
	return bytes
}
