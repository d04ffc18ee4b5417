package core

import (
	"sync"
	"sync/atomic"
)

// cutOffKind is a kind of revocations of many sessions: the sessions among which it chooses, and
// the time that it compares.
type cutOffKind uint8

const (
	ofTenant cutOffKind = iota
	ofSubject
	ofAll
	ofClient
	ofClientEverywhere
	authenticatedOfTenant
	authenticatedOfAll
	authenticatedOfClient
	authenticatedOfClientEverywhere
	cutOffKinds
)

// CutOffKey is the identity of a revocation of many sessions. There is at most one for each.
type CutOffKey struct {
	kind   cutOffKind
	tenant string
	// name is the subject or the client; empty if the kind has none.
	name string
}

// Scope names the sessions among which a revocation chooses by their time.
type Scope struct {
	AllTenants bool
	Tenant     string
	Subject    string
	ClientID   string
}

// NewCutOffKey returns the key of a revocation, or false if no revocation may be of this kind.
func NewCutOffKey(scope Scope, byAuthentication bool) (CutOffKey, bool) {
	isValid := isText(scope.Tenant, maxTenant) && isText(scope.Subject, maxSubject) &&
		isText(scope.ClientID, maxClientID)
	if !isValid || scope.AllTenants && scope.Tenant != "" {
		return CutOffKey{}, false
	}
	key := CutOffKey{tenant: scope.Tenant, name: scope.Subject + scope.ClientID}
	switch hasSubject, hasClient := scope.Subject != "", scope.ClientID != ""; {
	case hasSubject && (hasClient || scope.AllTenants || byAuthentication):
		return CutOffKey{}, false
	case hasSubject:
		key.kind = ofSubject
	case hasClient && scope.AllTenants:
		key.kind = ofClientEverywhere
	case hasClient:
		key.kind = ofClient
	case scope.AllTenants:
		key.kind = ofAll
	default:
		key.kind = ofTenant
	}
	if byAuthentication {
		switch key.kind {
		case ofClientEverywhere:
			key.kind = authenticatedOfClientEverywhere
		case ofClient:
			key.kind = authenticatedOfClient
		case ofAll:
			key.kind = authenticatedOfAll
		default:
			key.kind = authenticatedOfTenant
		}
	}
	return key, true
}

// keyOf returns the key of the only revocation of a kind that may cover a token.
func keyOf(kind cutOffKind, claims *Claims) CutOffKey {
	switch kind {
	case ofTenant, authenticatedOfTenant:
		return CutOffKey{kind, claims.Tenant, ""}
	case ofSubject:
		return CutOffKey{kind, claims.Tenant, claims.Subject}
	case ofClient, authenticatedOfClient:
		return CutOffKey{kind, claims.Tenant, claims.ClientID}
	case ofClientEverywhere, authenticatedOfClientEverywhere:
		return CutOffKey{kind, "", claims.ClientID}
	default:
		return CutOffKey{kind, "", ""}
	}
}

// CutOff is the instant up to which sessions are covered.
type CutOff struct {
	UpTo Timestamp
	// Spared is a session that is not covered; zero for none.
	Spared ID
}

func (c CutOff) coversCreated(session ID) bool {
	isSpared := c.Spared != ID{} && c.Spared == session
	return session.CreatedMillis() <= c.UpTo.Millis() && !isSpared
}

func (c CutOff) covers(kind cutOffKind, claims *Claims) bool {
	if kind >= authenticatedOfTenant {
		return claims.AuthenticatedAt <= c.UpTo
	}
	return c.coversCreated(claims.SessionID)
}

// union returns the cut-off that covers exactly the sessions that at least one of the two covers.
func (c CutOff) union(other CutOff) CutOff {
	earlier, later := c, other
	if earlier.UpTo > later.UpTo {
		earlier, later = later, earlier
	}
	if earlier.coversCreated(later.Spared) {
		later.Spared = ID{}
	}
	return later
}

type cutOffEntry struct {
	cutOff    CutOff
	expiresAt Timestamp
}

type cutOffs struct {
	mu    sync.RWMutex
	byKey map[CutOffKey]cutOffEntry
	// counts has the number of cut-offs of each kind. While there are none, it saves the look-up.
	counts [cutOffKinds]atomic.Int64
}

func (c *cutOffs) apply(key CutOffKey, cutOff CutOff, expiresAt Timestamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	existing, isKnown := c.byKey[key]
	if isKnown {
		cutOff = existing.cutOff.union(cutOff)
		expiresAt = max(expiresAt, existing.expiresAt)
	}
	c.byKey[key] = cutOffEntry{cutOff, expiresAt}
	if !isKnown {
		c.counts[key.kind].Add(1)
	}
}

// cover returns whether a cut-off covers the session of a token.
func (c *cutOffs) cover(claims *Claims) bool {
	for kind := range cutOffKinds {
		if c.counts[kind].Load() == 0 {
			continue
		}
		c.mu.RLock()
		existing, isKnown := c.byKey[keyOf(kind, claims)]
		c.mu.RUnlock()
		if isKnown && existing.cutOff.covers(kind, claims) {
			return true
		}
	}
	return false
}

func (c *cutOffs) purge(upTo Timestamp) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, entry := range c.byKey {
		if entry.expiresAt <= upTo {
			delete(c.byKey, key)
			c.counts[key.kind].Add(-1)
		}
	}
}

func (c *cutOffs) len() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.byKey)
}
