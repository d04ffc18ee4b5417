package countersign

import (
	"context"
	"log/slog"
	"time"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

const (
	// leastFetchDelay is the least time between two fetches.
	leastFetchDelay = time.Second
	// longestFetchDelay is the time after which keys are fetched again that the service would allow
	// to cache for longer.
	longestFetchDelay = 10 * time.Minute
)

// fetcher is the background task of a verifier without a watch.
type fetcher struct {
	client       *Client
	local        *core.Local
	rules        *core.Rules
	keysValidFor time.Duration
	logger       *slog.Logger
}

// run fetches the keys again and again.
func (f *fetcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		f.local.Connections.Add(1)
		start := core.ReadClocks(f.local.Clock)
		var delay time.Duration
		response, err := f.client.GetJwks(ctx, &pb.GetJwksRequest{})
		if err == nil {
			f.take(response.GetJwks(), start)
			delay = f.delay(response.GetMaxAge().AsDuration())
		} else if ctx.Err() == nil {
			f.logger.Warn("the public keys could not be fetched", "error", err)
		}
		select {
		case <-time.After(leastFetchDelay):
		case <-ctx.Done():
			return
		}
		// A token with a new key may have arrived.
		select {
		case <-f.local.UnknownKey:
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
}

// delay returns the time until keys are fetched again that the service allows to cache for maxAge.
// It must be well before they may no longer be used.
func (f *fetcher) delay(maxAge time.Duration) time.Duration {
	return min(max(maxAge, 0), longestFetchDelay, f.keysValidFor/2)
}

func (f *fetcher) take(jwks string, start core.Start) {
	keys, unusable, isSet := core.ReadKeySet(jwks, nil)
	if !isSet {
		f.logger.Error("the public keys that the service has sent cannot be read")
		return
	}
	warnOfKeys(f.logger, unusable)
	f.local.Replace(keys, f.rules, func(lease *core.Lease) { lease.Take(start, f.keysValidFor) })
	f.local.Take(start, f.keysValidFor)
}

func warnOfKeys(logger *slog.Logger, unusable int) {
	if unusable > 0 {
		logger.Warn("public keys cannot be used: their tokens will be refused", "keys", unusable)
	}
}
