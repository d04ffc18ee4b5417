// Command watcher verifies access tokens for the torture test of the service, by the library in
// local mode, which never asks the service.
//
// Usage: watcher ADDRESS...
//
// It watches the replica at one of these addresses. Each line of its standard input is a number and
// a token. For each it writes a line as ../../../../../tests/torture/watcher/watcher.py describes:
// the number, a 1 for one check, twice the instants at which the check began and ended, by
// CLOCK_MONOTONIC in nanoseconds, and the answer, which is `active`, `inactive REASON` or
// `unknown REASON`. A line `clock AHEAD LOST` sets its clocks: from now on the wall clock is ahead
// by the first number of nanoseconds, and both clocks are behind by the second. It ends when its
// input does.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/core"
)

// settableClock is the clocks of this machine, with errors.
type settableClock struct {
	core.SystemClock
	mu          sync.Mutex
	ahead, lost time.Duration
}

// Now returns the time of the wall clock.
func (c *settableClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.SystemClock.Now().Round(0).Add(c.ahead - c.lost)
}

// Uptime returns the time since the machine was started.
func (c *settableClock) Uptime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.SystemClock.Uptime() - c.lost
}

func (c *settableClock) set(ahead, lost time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.lost = ahead, lost
}

func monotonic() int64 {
	var now unix.Timespec
	// The call fails only for a clock that does not exist.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return now.Nano()
}

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(addresses []string, input io.Reader, output io.Writer) error {
	urls := make([]string, len(addresses))
	for index, address := range addresses {
		urls[index] = "http://" + address
	}
	client, err := countersign.NewClient(urls)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	clock := &settableClock{}
	verifier := countersign.NewLocalVerifier(client, countersign.WithClock(clock),
		countersign.WithOnLapse(countersign.LapseRefuses))
	defer verifier.Close()
	return serve(verifier, clock, bufio.NewReader(input), bufio.NewWriter(output))
}

// serve answers until the input ends. The answers to lines that have arrived together are written
// together.
func serve(
	verifier *countersign.Verifier, clock *settableClock, questions *bufio.Reader,
	answers *bufio.Writer,
) error {
	for {
		line, err := questions.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return answers.Flush()
		}
		if err != nil {
			return err
		}
		words := strings.Fields(line)
		switch {
		case len(words) == 3 && words[0] == "clock":
			ahead, aheadErr := strconv.ParseInt(words[1], 10, 64)
			lost, lostErr := strconv.ParseInt(words[2], 10, 64)
			if err := errors.Join(aheadErr, lostErr); err != nil {
				return err
			}
			clock.set(time.Duration(ahead), time.Duration(lost))
		case len(words) == 2:
			begin := monotonic()
			answer := verifier.VerifyLocally(words[1], countersign.Demands{})
			end := monotonic()
			_, err := fmt.Fprintln(answers, words[0], 1, begin, end, begin, end, describe(answer))
			if err != nil {
				return err
			}
		default:
			return errors.New("a line is neither a number and a token, nor a clock")
		}
		if questions.Buffered() == 0 {
			if err := answers.Flush(); err != nil {
				return err
			}
		}
	}
}

func describe(answer countersign.Answer) string {
	if answer.Unknown() != nil {
		return "unknown NO_LEASE"
	}
	return answer.String()
}
