package core

import (
	"sync/atomic"
	"time"
)

// Forever is the length of a lease that does not end.
const Forever time.Duration = 1<<63 - 1

// Lease is the right to answer from a copy for some time.
type Lease struct {
	clock  Clock
	margin time.Duration
	held   atomic.Pointer[held]
}

// held is a lease as it was when a look-up began.
type held struct {
	start    Start
	validFor time.Duration
}

// Start is the instant from which a lease counts, on both clocks.
type Start struct {
	Now    time.Time
	Uptime time.Duration
}

// ReadClocks returns the instant from which a lease counts that is asked for now. It must be called
// before the renewal is sent.
//
// The wall clock must be read first. If the process pauses between the two readings, it then seems
// to a later check that the uptime clock has stood still, so a long pause only makes the lease
// void. In the opposite order, a pause could hide that the uptime clock has stood still.
func ReadClocks(clock Clock) Start {
	now := clock.Now().Round(0)
	return Start{Now: now, Uptime: clock.Uptime()}
}

// Take takes a lease. Its end may already have passed. Everything that the lease rests on must have
// been applied before.
func (l *Lease) Take(start Start, validFor time.Duration) {
	l.held.Store(&held{start, validFor})
}

// End ends the lease.
func (l *Lease) End() { l.held.Store(nil) }

// check returns the time if the lease that was loaded before a look-up is still valid after it. A
// lease is void if the wall clock and the uptime clock have moved apart since it was asked for,
// because the uptime clock may have stood still during a pause.
func (l *Lease) check(lease *held) (Timestamp, bool) {
	if lease == nil {
		return 0, false
	}
	if lease.validFor == Forever {
		return FromTime(l.clock.Now()), true
	}
	elapsed := l.clock.Uptime() - lease.start.Uptime
	now := l.clock.Now().Round(0)
	moved := now.Sub(lease.start.Now) - elapsed
	if elapsed < 0 || elapsed >= lease.validFor || moved.Abs() > l.margin {
		return 0, false
	}
	return FromTime(now), true
}

// Remaining returns the remaining time of the lease: zero if it has ended or is void.
func (l *Lease) Remaining() time.Duration {
	lease := l.held.Load()
	if _, isValid := l.check(lease); !isValid {
		return 0
	}
	if lease.validFor == Forever {
		return Forever
	}
	return max(lease.validFor-(l.clock.Uptime()-lease.start.Uptime), 0)
}
