package core

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
)

// cacheShards is the number of parts of a cache. Each has a lock of its own.
const cacheShards = 32

// entryBytes is the memory that the cache itself needs for a token.
const entryBytes = 128

// Cache has tokens whose signature was verified. Everything that can change (time, revocation, the
// state of the key, demands) is checked after each look-up. It is a clock cache: a token that was
// used since the hand passed it last gets a second chance.
type Cache struct {
	seed   maphash.Seed
	shards [cacheShards]cacheShard
}

type cacheShard struct {
	mu       sync.RWMutex
	tokens   map[string]*cached
	ring     []*cached
	hand     int
	bytes    int
	capacity int
}

type cached struct {
	token  string
	claims *Claims
	bytes  int
	isUsed atomic.Bool
}

// NewCache creates a cache whose tokens take at most about this many bytes.
func NewCache(bytes int) *Cache {
	cache := &Cache{seed: maphash.MakeSeed()}
	for index := range cache.shards {
		cache.shards[index].tokens = map[string]*cached{}
		cache.shards[index].capacity = bytes / cacheShards
	}
	return cache
}

func (c *Cache) shard(token string) *cacheShard {
	// The end of a token is its signature, which is as good as random.
	end := token[max(0, len(token)-24):]
	return &c.shards[maphash.String(c.seed, end)%cacheShards]
}

func (c *Cache) get(token string) *Claims {
	shard := c.shard(token)
	shard.mu.RLock()
	found := shard.tokens[token]
	shard.mu.RUnlock()
	if found == nil {
		return nil
	}
	if !found.isUsed.Load() {
		found.isUsed.Store(true)
	}
	return found.claims
}

func (c *Cache) add(token string, claims *Claims) {
	// The text may be a part of a larger one, which would be kept too.
	entry := &cached{token: strings.Clone(token), claims: claims}
	entry.bytes = entryBytes + len(token) + claims.memory()
	shard := c.shard(token)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.tokens[token] != nil || entry.bytes > shard.capacity {
		return
	}
	for shard.bytes+entry.bytes > shard.capacity {
		shard.evict()
	}
	shard.bytes += entry.bytes
	shard.tokens[entry.token] = entry
	shard.ring = append(shard.ring, entry)
}

// evict drops the first token from the hand on that was not used. The shard must not be empty.
func (s *cacheShard) evict() {
	for {
		s.hand %= len(s.ring)
		entry := s.ring[s.hand]
		if entry.isUsed.Swap(false) {
			s.hand++
			continue
		}
		last := len(s.ring) - 1
		s.ring[s.hand], s.ring[last] = s.ring[last], nil
		s.ring = s.ring[:last]
		s.bytes -= entry.bytes
		delete(s.tokens, entry.token)
		return
	}
}

// len returns the number of tokens.
func (c *Cache) len() int {
	sum := 0
	for index := range c.shards {
		shard := &c.shards[index]
		shard.mu.RLock()
		sum += len(shard.tokens)
		shard.mu.RUnlock()
	}
	return sum
}
