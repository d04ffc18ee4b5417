package core

import (
	"sync"
	"time"
)

// Clock is a source of time.
type Clock interface {
	// Now returns the time of the wall clock, which may jump in either direction.
	Now() time.Time
	// Uptime returns the time since some fixed instant. It never goes back, and it should advance
	// while the machine is suspended.
	Uptime() time.Duration
}

// SystemClock has the clocks of the operating system.
type SystemClock struct{}

// Now returns the time of the wall clock.
func (SystemClock) Now() time.Time { return time.Now() }

// Uptime returns the time since the machine, or this process, was started.
func (SystemClock) Uptime() time.Duration { return uptime() }

// SettableClock is a clock for tests, which stands still until it is moved.
type SettableClock struct {
	mu     sync.Mutex
	now    time.Time
	uptime time.Duration
}

// NewSettableClock creates a clock that stands at an instant.
func NewSettableClock(now time.Time) *SettableClock {
	// The wall clock must not carry a reading of the monotonic clock.
	return &SettableClock{now: now.Round(0)}
}

// Now returns the time of the wall clock.
func (c *SettableClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Uptime returns the time by which the clock was advanced.
func (c *SettableClock) Uptime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.uptime
}

// Advance moves the wall clock and the uptime forward.
func (c *SettableClock) Advance(span time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(span)
	c.uptime += span
}

// JumpTo sets the wall clock, as an administrator or NTP would. The uptime does not change.
func (c *SettableClock) JumpTo(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now.Round(0)
}
