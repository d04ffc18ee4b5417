//go:build !linux

package core

import "time"

var started = time.Now()

// uptime returns the time since the start of the process. The clock may stand still while the
// machine is suspended; then the wall clock, which does not, makes a lease void.
func uptime() time.Duration { return time.Since(started) }
