package countersign

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"countersign.example/client-go/internal/bridge"
	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// Mode is the way in which a verifier gets its answers.
type Mode string

// The modes. Their texts are the names in metrics.
const (
	// ModeRemote calls Validate for each token.
	ModeRemote Mode = "remote"
	// ModeLocal verifies tokens by a copy of the keys and the revocations.
	ModeLocal Mode = "local"
	// ModeLocalUnwatched verifies tokens by the public keys only, so it accepts revoked tokens
	// until they expire.
	ModeLocalUnwatched Mode = "local_unwatched"
	// ModeTesting verifies the tokens of an authority of the package countersigntest.
	ModeTesting Mode = "testing"
)

// OnLapse is the behaviour of a local verifier that has no lease: it is starting, or is cut off
// from the service, or was suspended.
type OnLapse int

const (
	// LapseValidates calls Validate for each token, until there is a lease again.
	LapseValidates OnLapse = iota
	// LapseRefuses answers that it is unknown whether the token is active, without a call.
	LapseRefuses
)

// Clock is a source of time, which tests can replace.
type Clock = core.Clock

// cacheBytes is the memory for tokens whose signature was verified.
const cacheBytes = 32 << 20

// Verifier verifies access tokens. It may be used by many goroutines.
type Verifier struct {
	mode  Mode
	local *core.Local
	// fallback is the client that answers where there is no lease.
	fallback *Client
	logger   *slog.Logger
	// counts has the numbers of active answers, of inactive ones by their reasons, and of unknown
	// ones.
	counts   [core.Reasons + 2]atomic.Uint64
	stop     context.CancelFunc
	stopped  <-chan struct{}
	isClosed atomic.Bool
}

const (
	countActive  = 0
	countUnknown = core.Reasons + 1
)

type verifierSettings struct {
	onLapse      OnLapse
	cacheBytes   int
	clock        Clock
	maxLifetime  time.Duration
	leeway       time.Duration
	keysValidFor time.Duration
}

// VerifierOption is a setting of a verifier that verifies locally.
type VerifierOption func(*verifierSettings)

// WithOnLapse sets the behaviour of a local verifier without a lease: [LapseValidates] by default.
func WithOnLapse(onLapse OnLapse) VerifierOption {
	return func(s *verifierSettings) { s.onLapse = onLapse }
}

// WithCacheBytes sets the memory for tokens whose signature was verified: 32 MiB by default, which
// is room for some 15,000 tokens.
func WithCacheBytes(bytes int) VerifierOption {
	return func(s *verifierSettings) { s.cacheBytes = bytes }
}

// WithClock takes the time from this clock, for tests.
func WithClock(clock Clock) VerifierOption {
	return func(s *verifierSettings) { s.clock = clock }
}

// WithMaxLifetime sets the longest time between `iat` and `exp` of a token for an unwatched
// verifier: 1 h by default. It should be the setting tokens.max_access_token_ttl of the service.
func WithMaxLifetime(lifetime time.Duration) VerifierOption {
	return func(s *verifierSettings) { s.maxLifetime = lifetime }
}

// WithLeeway sets the time by which `iat` and `nbf` may be later than the clock for an unwatched
// verifier: 5 s by default.
func WithLeeway(leeway time.Duration) VerifierOption {
	return func(s *verifierSettings) { s.leeway = leeway }
}

// WithKeysValidFor sets the time for which an unwatched verifier uses keys that cannot be fetched
// again: 1 h by default. After that nothing is known, and every answer is unknown.
func WithKeysValidFor(validFor time.Duration) VerifierOption {
	return func(s *verifierSettings) { s.keysValidFor = validFor }
}

func settingsOf(options []VerifierOption) verifierSettings {
	settings := verifierSettings{
		cacheBytes:   cacheBytes,
		clock:        core.SystemClock{},
		maxLifetime:  time.Hour,
		leeway:       5 * time.Second,
		keysValidFor: time.Hour,
	}
	for _, option := range options {
		option(&settings)
	}
	return settings
}

// NewRemoteVerifier creates a verifier that calls Validate for each token. The caller needs the
// role `validator`.
func NewRemoteVerifier(client *Client) *Verifier {
	return &Verifier{mode: ModeRemote, fallback: client, logger: client.settings.logger}
}

// NewLocalVerifier starts a verifier that watches the service, and checks tokens by itself. It
// never accepts a token that was revoked before it was asked. The caller needs the role
// `validator`.
//
// It connects in the background. Wait for [Verifier.Ready] before the first request if it must not
// cost a call. Call [Verifier.Close] if it is needed no more.
func NewLocalVerifier(client *Client, options ...VerifierOption) *Verifier {
	settings := settingsOf(options)
	verifier := &Verifier{
		mode:   ModeLocal,
		local:  core.NewLocal(settings.clock, settings.cacheBytes),
		logger: client.settings.logger,
	}
	if settings.onLapse == LapseValidates {
		verifier.fallback = client
	}
	watcher := newWatcher(client, verifier.local, client.settings.logger)
	verifier.start(watcher.run)
	return verifier
}

// NewUnwatchedVerifier starts a verifier that knows only the public keys. IT ACCEPTS A REVOKED
// TOKEN, AND A TOKEN OF A SESSION THAT HAS ENDED, UNTIL THE TOKEN EXPIRES. Use it only where that
// is acceptable, with access tokens that live for a short time.
//
// The issuer is the `iss` of all tokens (the setting `issuer` of the service). The verifier fetches
// the keys in the background. Wait for [Verifier.Ready] before the first request, and call
// [Verifier.Close] if it is needed no more.
func NewUnwatchedVerifier(client *Client, issuer string, options ...VerifierOption) *Verifier {
	settings := settingsOf(options)
	verifier := &Verifier{
		mode:   ModeLocalUnwatched,
		local:  core.NewLocal(settings.clock, settings.cacheBytes),
		logger: client.settings.logger,
	}
	fetcher := &fetcher{
		client: client,
		local:  verifier.local,
		rules: &core.Rules{
			Issuer:      issuer,
			MaxLifetime: settings.maxLifetime,
			Leeway:      settings.leeway,
			// No clock can break the lease.
			LeaseMargin: core.Forever,
		},
		keysValidFor: settings.keysValidFor,
		logger:       client.settings.logger,
	}
	verifier.start(fetcher.run)
	return verifier
}

func init() {
	bridge.NewTestingVerifier = func(local *core.Local) any {
		return &Verifier{mode: ModeTesting, local: local, logger: slog.Default()}
	}
}

func (v *Verifier) start(run func(context.Context)) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	stopped := make(chan struct{})
	running.Go(func() { run(ctx) })
	go func() {
		running.Wait()
		close(stopped)
	}()
	v.stop, v.stopped = cancel, stopped
}

// Close ends the background task, and the lease. The verifier then behaves as without a lease.
func (v *Verifier) Close() {
	v.isClosed.Store(true)
	if v.stop == nil {
		return
	}
	v.stop()
	<-v.stopped
	v.local.Copy().Lease.End()
}

// Verify checks a token, and whether it meets the demands. In the modes that verify locally it
// calls the service only if there is no lease.
func (v *Verifier) Verify(ctx context.Context, token string, demands Demands) Answer {
	answer, isKnown := v.answerLocally(token, &demands)
	if !isKnown {
		answer = v.fallBack(ctx, token, &demands)
	}
	v.count(answer)
	return answer
}

// VerifyLocally checks a token without ever calling the service. Without a lease the answer is
// unknown, with [ErrNoLease], and so it always is in the mode [ModeRemote].
func (v *Verifier) VerifyLocally(token string, demands Demands) Answer {
	answer, isKnown := v.answerLocally(token, &demands)
	if !isKnown {
		answer = Answer{unknown: ErrNoLease}
	}
	v.count(answer)
	return answer
}

func (v *Verifier) answerLocally(token string, demands *Demands) (Answer, bool) {
	if v.local == nil {
		return Answer{}, false
	}
	asked := demands.core()
	claims, reason, hasLease := v.local.Answer(token, &asked)
	switch {
	case !hasLease:
		return Answer{}, false
	case reason != 0:
		return Answer{reason: InactiveReason(reason)}, true
	default:
		return Answer{session: &Session{claims}}, true
	}
}

func (v *Verifier) fallBack(ctx context.Context, token string, demands *Demands) Answer {
	if v.fallback == nil {
		return Answer{unknown: ErrNoLease}
	}
	// The service would refuse such a request as malformed, which says nothing of the token. Text
	// that is not UTF-8 cannot be sent.
	if token == "" || len(token) > core.MaxTokenBytes || !utf8.ValidString(token) {
		return Answer{reason: Malformed}
	}
	response, err := v.fallback.Validate(ctx, demands.request(token))
	if err == nil {
		return answerOf(response)
	}
	switch ReasonOf(err) {
	case ReasonInvalidField, ReasonCallerUnknown, ReasonCallerNotAllowed:
		v.logger.Error("the service refuses to validate tokens", "error", err)
	default:
		v.logger.Debug("a token could not be validated", "error", err)
	}
	return Answer{unknown: err}
}

// answerOf reads the answer of Validate.
func answerOf(response *pb.ValidateResponse) Answer {
	if response.GetActive() {
		if session := sessionOfAnswer(response); session != nil {
			return Answer{session: session}
		}
		return Answer{unknown: ErrNotUnderstood}
	}
	// The numbers of the reasons are those of the protocol, which a test checks.
	number := response.GetInactiveReason()
	if number < 1 || int(number) > core.Reasons {
		return Answer{unknown: ErrNotUnderstood}
	}
	return Answer{reason: InactiveReason(number)}
}

func (v *Verifier) count(answer Answer) {
	switch {
	case answer.session != nil:
		v.counts[countActive].Add(1)
	case answer.reason != 0:
		v.counts[answer.reason].Add(1)
	default:
		v.counts[countUnknown].Add(1)
	}
}

// Ready waits until the verifier can answer by its own copy. It returns at once in the mode
// [ModeRemote]. It returns the error of the context if that ends before.
func (v *Verifier) Ready(ctx context.Context) error {
	if v.local == nil {
		return nil
	}
	return v.local.Ready(ctx)
}

// Mode returns the mode.
func (v *Verifier) Mode() Mode { return v.mode }

// Status is the state of a verifier, for health checks and metrics.
type Status struct {
	// Lease is the time for which the verifier can answer by its own copy; zero if it cannot, or if
	// it has none.
	Lease time.Duration
	// Revocations is the number of revocations in the copy.
	Revocations int
	// Connections is the number of streams, or fetches of keys, that were begun.
	Connections uint64
	// Resets is the number of times that everything was received anew.
	Resets uint64
	// Lag is the time that the last renewal of the lease took; zero before the first one.
	Lag time.Duration
}

// Status returns the state.
func (v *Verifier) Status() Status {
	if v.local == nil {
		return Status{}
	}
	copied := v.local.Copy()
	return Status{
		Lease:       copied.Lease.Remaining(),
		Revocations: copied.Index.Len(),
		Connections: v.local.Connections.Load(),
		Resets:      v.local.Resets.Load(),
		Lag:         time.Duration(v.local.LagNanos.Load()),
	}
}

// IsClosed returns whether Close was called.
func (v *Verifier) IsClosed() bool { return v.isClosed.Load() }

// Counts returns the number of checks so far with each result: active, the name of an
// [InactiveReason], or unknown.
func (v *Verifier) Counts() iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		for number := range v.counts {
			name := "unknown"
			switch {
			case number == countActive:
				name = "active"
			case number < countUnknown:
				name = reasonNames[number]
			}
			if !yield(name, v.counts[number].Load()) {
				return
			}
		}
	}
}

// String names the mode.
func (v *Verifier) String() string { return fmt.Sprintf("countersign.Verifier{%s}", v.mode) }

// GoString names the mode.
func (v *Verifier) GoString() string { return v.String() }
