package core

import (
	"math"
	"time"
)

// Timestamp is an instant, in microseconds since 1970-01-01T00:00:00Z. Its arithmetic saturates at
// the earliest and latest instants that it can represent.
type Timestamp int64

const (
	earliest Timestamp = math.MinInt64
	latest   Timestamp = math.MaxInt64
)

// FromSeconds returns the instant this many seconds after the epoch.
func FromSeconds(seconds int64) Timestamp {
	if seconds > math.MaxInt64/1_000_000 {
		return latest
	}
	if seconds < math.MinInt64/1_000_000 {
		return earliest
	}
	return Timestamp(seconds * 1_000_000)
}

// FromTime returns an instant of the standard library. Fractions of a microsecond are dropped.
func FromTime(at time.Time) Timestamp {
	return FromSeconds(at.Unix()).addMicros(int64(at.Nanosecond()) / 1_000)
}

// Time returns the instant as the standard library has it.
func (t Timestamp) Time() time.Time { return time.UnixMicro(int64(t)).UTC() }

// Seconds returns the whole seconds since the epoch, rounded down.
func (t Timestamp) Seconds() int64 { return floorDiv(int64(t), 1_000_000) }

// Millis returns the whole milliseconds since the epoch, rounded down.
func (t Timestamp) Millis() int64 { return floorDiv(int64(t), 1_000) }

// Plus returns the instant a span later.
func (t Timestamp) Plus(span time.Duration) Timestamp { return t.addMicros(span.Microseconds()) }

// Since returns the time from an earlier instant to this one, or zero if this one is not later.
func (t Timestamp) Since(earlier Timestamp) time.Duration {
	if t <= earlier {
		return 0
	}
	micros := uint64(t) - uint64(earlier)
	if micros > math.MaxInt64/1_000 {
		return math.MaxInt64
	}
	return time.Duration(micros) * time.Microsecond
}

func (t Timestamp) addMicros(micros int64) Timestamp {
	sum := int64(t) + micros
	switch {
	case micros > 0 && sum < int64(t):
		return latest
	case micros < 0 && sum > int64(t):
		return earliest
	}
	return Timestamp(sum)
}

func floorDiv(number, divisor int64) int64 {
	quotient := number / divisor
	if number%divisor < 0 {
		quotient--
	}
	return quotient
}
