package core

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Rules are the rules for tokens.
type Rules struct {
	Issuer      string
	MaxLifetime time.Duration
	Leeway      time.Duration
	// Tenants and Audiences limit the tokens that are accepted; empty for no limit.
	Tenants     []string
	Audiences   []string
	LeaseMargin time.Duration
}

// AreValid returns whether the names in the limits are valid.
func (r *Rules) AreValid() bool {
	isTenant := func(name string) bool { return isText(name, maxTenant) }
	isAudience := func(name string) bool { return name != "" && isText(name, maxAudience) }
	return !slices.ContainsFunc(r.Tenants, not(isTenant)) &&
		!slices.ContainsFunc(r.Audiences, not(isAudience))
}

func not(holds func(string) bool) func(string) bool {
	return func(text string) bool { return !holds(text) }
}

func (r *Rules) checkLifetime(claims *Claims) InactiveReason {
	if claims.ExpiresAt.Since(claims.IssuedAt) > r.MaxLifetime {
		return Malformed
	}
	return 0
}

// Demands are the demands of a route.
type Demands struct {
	Audience             string
	Scopes               []string
	ACRValues            []string
	MaxAuthenticationAge time.Duration
	Factors              []Factor
}

// Factor is a demand for an authentication method.
type Factor struct {
	Method string
	MaxAge time.Duration
}

// isWithin returns whether an instant is at most an age ago. No age is no demand; a negative one is
// the demand for the present instant.
func isWithin(at, now Timestamp, age time.Duration) bool {
	return age == 0 || now.Since(at) <= max(age, 0)
}

func (d *Demands) check(claims *Claims, now Timestamp) InactiveReason {
	if d.Audience != "" && !slices.Contains(claims.Audience, d.Audience) {
		return WrongAudience
	}
	for _, scope := range d.Scopes {
		if !claims.HasScope(scope) {
			return InsufficientScope
		}
	}
	if len(d.ACRValues) > 0 && !slices.Contains(d.ACRValues, claims.ACR) {
		return StepUpRequired
	}
	if !isWithin(claims.AuthenticatedAt, now, d.MaxAuthenticationAge) {
		return StepUpRequired
	}
	for _, factor := range d.Factors {
		if !slices.Contains(claims.AMR, factor.Method) {
			return StepUpRequired
		}
		if factor.MaxAge == 0 {
			continue
		}
		// A method without a time is never recent.
		at, isKnown := claims.VerifiedAt(factor.Method)
		if !isKnown || !isWithin(at, now, factor.MaxAge) {
			return StepUpRequired
		}
	}
	return 0
}

// Copy is a copy of everything that decides whether a token is active.
//
// Only its index grows, and its lease is extended. When anything else changes, another copy takes
// its place. Each copy has a lease of its own: a check that has loaded a copy with earlier keys
// must not get a lease that rests on the later ones.
type Copy struct {
	Index *Index
	Lease Lease
	Keys  *KeySet
	Rules *Rules
	cache *Cache
}

// Answer answers by this copy; false without a lease.
func (c *Copy) Answer(token string, demands *Demands) (*Claims, InactiveReason, bool) {
	// The lease is loaded before the look-up, and checked after it.
	lease := c.Lease.held.Load()
	claims, reason := c.authenticate(token)
	isRevoked := claims != nil && c.Index.stops(claims)
	// The time is read after the look-up. If a revocation was dropped before the look-up, all its
	// tokens have expired, so the check of the time refuses them.
	now, isValid := c.Lease.check(lease)
	if !isValid {
		return nil, 0, false
	}
	if reason == 0 {
		reason = c.decide(claims, demands, isRevoked, now)
	}
	return claims, reason, true
}

// authenticate checks the form and the signature of a token.
func (c *Copy) authenticate(token string) (*Claims, InactiveReason) {
	if len(token) > MaxTokenBytes {
		return nil, Malformed
	}
	if known := c.cache.get(token); known != nil {
		if _, reason := c.Keys.find(known.keyID); reason != 0 {
			return nil, reason
		}
		// The rules may have changed since the token was verified.
		if reason := c.Rules.checkLifetime(known); reason != 0 {
			return nil, reason
		}
		return known, 0
	}
	parsed, reason := parse(token)
	if reason != 0 {
		return nil, reason
	}
	key, reason := c.Keys.find(parsed.keyID)
	if reason != 0 {
		return nil, reason
	}
	claims, reason := parsed.verify(key, c.Rules)
	if reason != 0 {
		return nil, reason
	}
	c.cache.add(token, claims)
	return claims, 0
}

func (c *Copy) decide(
	claims *Claims, demands *Demands, isRevoked bool, now Timestamp,
) InactiveReason {
	rules := c.Rules
	isAllowed := func(audience string) bool { return slices.Contains(rules.Audiences, audience) }
	switch {
	case len(rules.Tenants) > 0 && !slices.Contains(rules.Tenants, claims.Tenant):
		return ForeignTenant
	case now >= claims.ExpiresAt || c.Index.isExpired(claims.ExpiresAt):
		return Expired
	case max(claims.NotBefore, claims.IssuedAt) > now.Plus(rules.Leeway):
		return NotYetValid
	case isRevoked:
		return Revoked
	case len(rules.Audiences) > 0 && !slices.ContainsFunc(claims.Audience, isAllowed):
		return WrongAudience
	}
	return demands.check(claims, now)
}

// Local has the copy in force, which a background task replaces.
type Local struct {
	Clock Clock
	// UnknownKey gets a value if a token names a key that is not known.
	UnknownKey chan struct{}

	Connections atomic.Uint64
	Resets      atomic.Uint64
	LagNanos    atomic.Int64

	copy       atomic.Pointer[Copy]
	cacheBytes int
	mu         sync.Mutex
	leased     chan struct{}
}

// NewLocal creates a copy that has nothing. Verified tokens are kept in about so many bytes.
func NewLocal(clock Clock, cacheBytes int) *Local {
	local := &Local{
		Clock:      clock,
		UnknownKey: make(chan struct{}, 1),
		cacheBytes: cacheBytes,
		leased:     make(chan struct{}),
	}
	local.put(&Copy{
		Index: NewIndex(), Keys: &KeySet{}, Rules: &Rules{}, cache: NewCache(cacheBytes),
	}, nil)
	return local
}

// Answer answers by the copy in force; false without a lease.
func (l *Local) Answer(token string, demands *Demands) (*Claims, InactiveReason, bool) {
	claims, reason, hasLease := l.copy.Load().Answer(token, demands)
	if reason == UnknownKey {
		select {
		case l.UnknownKey <- struct{}{}:
		default:
		}
	}
	return claims, reason, hasLease
}

// Authenticate checks the form and the signature of a token by the copy in force.
func (l *Local) Authenticate(token string) (*Claims, InactiveReason) {
	return l.copy.Load().authenticate(token)
}

// Copy returns the copy in force.
func (l *Local) Copy() *Copy { return l.copy.Load() }

// Reset puts a copy without revocations and without a lease in force. The lease of the copy before
// remains to the checks that have loaded it. The verified tokens outlive the reset.
func (l *Local) Reset() *Copy {
	former := l.Copy()
	index := NewIndex()
	// A token that has expired stays expired.
	index.expiredUpTo.Store(former.Index.expiredUpTo.Load())
	return l.put(&Copy{
		Index: index, Keys: former.Keys, Rules: former.Rules, cache: former.cache,
	}, nil)
}

// Replace puts a copy with the same revocations and other keys or rules in force. take, unless it
// is nil, takes the lease that is good for the copy too. The copy has it from the beginning, so
// that no check finds none.
func (l *Local) Replace(keys *KeySet, rules *Rules, take func(*Lease)) *Copy {
	former := l.Copy()
	cache := former.cache
	// The cache holds tokens that had the earlier issuer, and a signature of the earlier keys.
	if rules.Issuer != former.Rules.Issuer || !keys.includes(former.Keys) {
		cache = NewCache(l.cacheBytes)
	}
	return l.put(&Copy{Index: former.Index, Keys: keys, Rules: rules, cache: cache}, take)
}

func (l *Local) put(replacement *Copy, take func(*Lease)) *Copy {
	replacement.Lease.clock = l.Clock
	replacement.Lease.margin = replacement.Rules.LeaseMargin
	if take != nil {
		take(&replacement.Lease)
	}
	l.copy.Store(replacement)
	return replacement
}

// Take takes a lease of the copy in force.
func (l *Local) Take(start Start, validFor time.Duration) {
	l.Copy().Lease.Take(start, validFor)
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.leased)
	l.leased = make(chan struct{})
}

// Ready waits until the copy in force has a lease.
func (l *Local) Ready(ctx context.Context) error {
	for {
		l.mu.Lock()
		leased := l.leased
		l.mu.Unlock()
		if l.Copy().Lease.Remaining() > 0 {
			return nil
		}
		select {
		case <-leased:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
