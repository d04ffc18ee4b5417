package core

import (
	"time"

	"golang.org/x/sys/unix"
)

// uptime reads CLOCK_BOOTTIME. The monotonic clock of the standard library is CLOCK_MONOTONIC,
// which stands still while the machine is suspended.
func uptime() time.Duration {
	var since unix.Timespec
	// The call fails only for a clock that does not exist.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &since)
	return time.Duration(since.Nano())
}
