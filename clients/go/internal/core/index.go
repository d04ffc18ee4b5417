package core

import (
	"math"
	"sync"
	"sync/atomic"
)

// Index has the revocations in force. All checks share it, but there is no lock that every check
// takes.
type Index struct {
	shards  [indexShards]indexShard
	cutOffs cutOffs
	// expiredUpTo is the latest instant up to which revocations may have been dropped.
	expiredUpTo atomic.Int64
}

const indexShards = 64

type indexShard struct {
	mu sync.RWMutex
	// ids has the seconds, since 1970, from which the entries may be dropped.
	ids map[ID]uint32
}

// NewIndex creates an empty index.
func NewIndex() *Index {
	index := &Index{}
	for number := range index.shards {
		index.shards[number].ids = map[ID]uint32{}
	}
	index.cutOffs.byKey = map[CutOffKey]cutOffEntry{}
	index.expiredUpTo.Store(math.MinInt64)
	return index
}

// shard returns the part that has an identifier. Its last byte is random.
func (i *Index) shard(id ID) *indexShard { return &i.shards[id[15]%indexShards] }

// RevokeID adds a revocation of a session, a token or an authentication. The later of two expiries
// is kept.
func (i *Index) RevokeID(id ID, expiresAt Timestamp) {
	// The second is rounded up, so that no entry is dropped too early.
	second := uint32(min(max(expiresAt.addMicros(999_999).Seconds(), 0), math.MaxUint32))
	shard := i.shard(id)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.ids[id] = max(second, shard.ids[id])
}

func (i *Index) hasID(id ID) bool {
	shard := i.shard(id)
	shard.mu.RLock()
	defer shard.mu.RUnlock()
	_, isRevoked := shard.ids[id]
	return isRevoked
}

// RevokeSessions adds a revocation of many sessions.
func (i *Index) RevokeSessions(key CutOffKey, cutOff CutOff, expiresAt Timestamp) {
	i.cutOffs.apply(key, cutOff, expiresAt)
}

// stops returns whether a revocation stops a token.
func (i *Index) stops(claims *Claims) bool {
	return i.hasID(claims.SessionID) || i.hasID(claims.TokenID) ||
		i.hasID(claims.AuthenticationID) || i.cutOffs.cover(claims)
}

// isExpired returns whether a token with this expiry counts as expired, whatever the clock says: a
// revocation that stops it may have been dropped.
func (i *Index) isExpired(expiresAt Timestamp) bool {
	return int64(expiresAt) <= i.expiredUpTo.Load()
}

// Expire raises the instant up to which tokens have expired. It never goes back. Returns whether it
// was raised, so that Purge has something to do.
func (i *Index) Expire(upTo Timestamp) bool {
	for {
		known := i.expiredUpTo.Load()
		if int64(upTo) <= known {
			return false
		}
		if i.expiredUpTo.CompareAndSwap(known, int64(upTo)) {
			return true
		}
	}
}

// Purge drops the revocations whose tokens have all expired.
func (i *Index) Purge() {
	upTo := Timestamp(i.expiredUpTo.Load())
	for number := range i.shards {
		i.shards[number].purge(upTo)
	}
	i.cutOffs.purge(upTo)
}

func (s *indexShard) purge(upTo Timestamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.ids)
	for id, second := range s.ids {
		if FromSeconds(int64(second)) <= upTo {
			delete(s.ids, id)
		}
	}
	// A map never shrinks.
	if before > 1024 && len(s.ids) < before/4 {
		smaller := make(map[ID]uint32, len(s.ids))
		for id, second := range s.ids {
			smaller[id] = second
		}
		s.ids = smaller
	}
}

// Len returns the number of revocations.
func (i *Index) Len() int {
	sum := i.cutOffs.len()
	for number := range i.shards {
		shard := &i.shards[number]
		shard.mu.RLock()
		sum += len(shard.ids)
		shard.mu.RUnlock()
	}
	return sum
}
