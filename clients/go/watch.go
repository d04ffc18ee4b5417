package countersign

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

const (
	// usualLease is the length of a lease before the first one has told it.
	usualLease = 2 * time.Second
	// longestPause is the longest pause between two streams that the service can ask for.
	longestPause = 30 * time.Second
	// renewalsPerLease is the number of renewals in the time of a lease.
	renewalsPerLease = 4
	// maxAsked is the largest number of renewals that wait for an answer.
	maxAsked = 64
	// largestDifference is the largest difference between the clocks of the service and of this
	// machine under which a lease is taken.
	largestDifference = 5 * time.Second
)

// The reasons for the end of a stream, besides an error of the call.
var (
	errFinished       = errors.New("the service has ended the stream")
	errNoLease        = errors.New("the stream has brought no lease for too long")
	errUnknownMessage = errors.New("the service has sent a message that this version of the " +
		"library does not understand")
	errOtherTenants = errors.New("the tenants of this caller have changed, so the revocations " +
		"must be received anew")
	errUnexpectedLease = errors.New("the service has sent a lease that was not asked for, or too " +
		"early")
)

// watcher is the background task of a local verifier. It calls Watch, applies what it is sent, and
// renews the lease.
type watcher struct {
	client *Client
	local  *core.Local
	logger *slog.Logger
	// copy is the copy in force.
	copy *core.Copy
	// cursor is the cursor that was last applied; empty within a snapshot.
	cursor []byte
	// start and validFor are the last lease of the copy in force, if hasLease is true.
	start    core.Start
	validFor time.Duration
	hasLease bool
	// usualLease is the length of the last lease, which sets the pace of renewals.
	usualLease time.Duration
	// isClockWrong is true if the last lease was not taken, because the clocks differ.
	isClockWrong bool
}

// streamState is what a watcher knows of the present stream.
type streamState struct {
	// number is the number of the last renewal.
	number uint64
	// waiting has the renewals without an answer, with the clocks before they were sent.
	waiting []renewal
	// hasRules and hasKeys are true if rules, and keys, have arrived since the last reset.
	hasRules, hasKeys bool
	// hadLease is true if there was a lease.
	hadLease bool
}

type renewal struct {
	number uint64
	start  core.Start
}

func newWatcher(client *Client, local *core.Local, logger *slog.Logger) *watcher {
	return &watcher{
		client: client, local: local, logger: logger, copy: local.Copy(), usualLease: usualLease,
	}
}

// run watches until the context ends. After the end of a stream another one is opened, if possible
// at another replica. Until then the lease goes on.
func (w *watcher) run(ctx context.Context) {
	newDelays := func() backoffDelays {
		return backoffDelays{shortest: 25 * time.Millisecond, longest: time.Second}
	}
	delays, failures := newDelays(), 0
	for {
		w.local.Connections.Add(1)
		ended, hadLease := w.watch(ctx)
		if ctx.Err() != nil {
			return
		}
		if hadLease {
			delays, failures = newDelays(), 0
		}
		failures++
		delay := delays.next()
		if failed, isStatus := errors.AsType[*Error](ended); isStatus {
			switch failed.reason {
			case ReasonInvalidField, ReasonNotSent:
				// The service does not understand the cursor.
				w.cursor = nil
			}
			// The wait that a replica asks for is for itself, and others may have room.
			if failures >= len(w.client.endpoints.replicas) {
				delay = max(delay, min(failed.retryAfter, longestPause))
			}
		}
		w.logger.Warn("the watch stream has ended: will call again", "error", ended, "delay", delay)
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return
		}
	}
}

// watch watches until the stream ends. It returns the reason, and whether there was a lease.
func (w *watcher) watch(ctx context.Context) (error, bool) {
	stream, end, err := w.client.watch(ctx)
	if err != nil {
		return err, false
	}
	requests := make(chan *pb.WatchRequest, maxAsked)
	responses := make(chan *pb.WatchResponse)
	failures := make(chan error, 1)
	done := make(chan struct{})
	start := &pb.WatchRequest_Start{Start: &pb.WatchStart{Cursor: w.cursor}}
	requests <- &pb.WatchRequest{Message: start}
	go func() {
		for {
			select {
			case request := <-requests:
				// After a failure, Recv returns the reason.
				if stream.Send(request) != nil {
					return
				}
			case <-done:
				return
			}
		}
	}()
	go func() {
		for {
			response, err := stream.Recv()
			if err != nil {
				failures <- err
				return
			}
			select {
			case responses <- response:
			case <-done:
				return
			}
		}
	}()
	state := &streamState{}
	ended := w.follow(ctx, requests, responses, failures, state)
	close(done)
	end(true)
	return ended, state.hadLease
}

// follow handles the messages one after the other, and renews the lease.
func (w *watcher) follow(
	ctx context.Context, requests chan<- *pb.WatchRequest, responses <-chan *pb.WatchResponse,
	failures <-chan error, state *streamState,
) error {
	leased := time.Now()
	renew := time.NewTimer(w.usualLease / renewalsPerLease)
	defer renew.Stop()
	giveUp := time.NewTimer(w.patience())
	defer giveUp.Stop()
	for {
		select {
		case response := <-responses:
			isNews, err := w.apply(state, response)
			if err != nil {
				return err
			}
			// A large snapshot takes a while.
			if response.GetLease() != nil || len(w.cursor) == 0 {
				leased = time.Now()
				giveUp.Reset(w.patience())
			}
			if !isNews {
				continue
			}
		case err := <-failures:
			if errors.Is(err, io.EOF) {
				return errFinished
			}
			return errorOf(err, true)
		case <-renew.C:
		case <-giveUp.C:
			if time.Since(leased) >= w.patience() {
				return errNoLease
			}
			giveUp.Reset(w.patience() - time.Since(leased))
			continue
		case <-ctx.Done():
			return ctx.Err()
		}
		w.renew(state, requests)
		renew.Reset(w.usualLease / renewalsPerLease)
	}
}

// patience is the time after which a stream is given up that has brought no lease.
func (w *watcher) patience() time.Duration { return max(w.usualLease, time.Second) }

// apply applies a message completely. It returns whether to renew the lease at once, because there
// is something new to confirm. After a message that cannot be understood there is no lease.
func (w *watcher) apply(state *streamState, response *pb.WatchResponse) (bool, error) {
	if err := w.tryApply(state, response); err != nil {
		w.endLease()
		return false, err
	}
	if len(response.GetCursor()) == 0 {
		return false, nil
	}
	w.cursor = response.GetCursor()
	return true, nil
}

func (w *watcher) tryApply(state *streamState, response *pb.WatchResponse) error {
	switch event := response.GetEvent().(type) {
	case *pb.WatchResponse_Reset_:
		w.reset(state)
		return nil
	case *pb.WatchResponse_Rules:
		return w.takeRules(state, event.Rules)
	case *pb.WatchResponse_Keys:
		return w.takeKeys(state, event.Keys)
	case *pb.WatchResponse_Revocations:
		return w.applyRevocations(event.Revocations)
	case *pb.WatchResponse_Lease:
		return w.takeLease(state, event.Lease)
	default:
		return errUnknownMessage
	}
}

func (w *watcher) reset(state *streamState) {
	w.copy = w.local.Reset()
	w.local.Resets.Add(1)
	w.cursor = nil
	w.hasLease, state.hasRules, state.hasKeys = false, false, false
}

func (w *watcher) takeRules(state *streamState, message *pb.WatchRules) error {
	lifetime, isLifetime := spanOf(message.GetMaxLifetime())
	leeway, isLeeway := spanOf(message.GetLeeway())
	margin, isMargin := spanOf(message.GetLeaseMargin())
	rules := &core.Rules{
		Issuer:      message.GetIssuer(),
		MaxLifetime: lifetime,
		Leeway:      leeway,
		Tenants:     message.GetTenants(),
		Audiences:   message.GetAudiences(),
		LeaseMargin: margin,
	}
	if !isLifetime || !isLeeway || !isMargin || !rules.AreValid() {
		return errUnknownMessage
	}
	// This process has only the revocations of the tenants that it could accept before.
	if len(w.cursor) > 0 && !slices.Equal(rules.Tenants, w.copy.Rules.Tenants) {
		return errOtherTenants
	}
	w.replace(w.copy.Keys, rules)
	state.hasRules = true
	return nil
}

func (w *watcher) takeKeys(state *streamState, message *pb.WatchKeys) error {
	keys, unusable, isSet := core.ReadKeySet(message.GetJwks(), message.GetRevoked())
	if !isSet {
		return errUnknownMessage
	}
	warnOfKeys(w.logger, unusable)
	w.replace(keys, w.copy.Rules)
	state.hasKeys = true
	return nil
}

// replace replaces the copy. The lease that this process has is good for the new copy too, which
// knows more. No later lease is good for the earlier copy.
func (w *watcher) replace(keys *core.KeySet, rules *core.Rules) {
	w.copy = w.local.Replace(keys, rules, func(lease *core.Lease) {
		if w.hasLease {
			lease.Take(w.start, w.validFor)
		}
	})
}

// applyRevocations applies all revocations of a message. Anything that this version does not
// understand is an error, because it might stop a token.
func (w *watcher) applyRevocations(message *pb.WatchRevocations) error {
	for _, revoked := range message.GetIds() {
		expiresAt, hasExpiry := instantOf(revoked.GetExpiresAt())
		if !hasExpiry || len(revoked.GetId()) != len(core.ID{}) {
			return errUnknownMessage
		}
		w.copy.Index.RevokeID(core.ID(revoked.GetId()), expiresAt)
	}
	for _, revoked := range message.GetSessions() {
		if err := w.revokeSessions(revoked); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) revokeSessions(revoked *pb.RevokedSessions) error {
	scope := core.Scope{Subject: revoked.GetSubject(), ClientID: revoked.GetClientId()}
	switch where := revoked.GetWhere().(type) {
	case *pb.RevokedSessions_Tenant:
		scope.Tenant = where.Tenant
	case *pb.RevokedSessions_AllTenants:
		if !where.AllTenants {
			return errUnknownMessage
		}
		scope.AllTenants = true
	default:
		return errUnknownMessage
	}
	var at *timestamppb.Timestamp
	byAuthentication := false
	switch instant := revoked.GetInstant().(type) {
	case *pb.RevokedSessions_CreatedUpTo:
		at = instant.CreatedUpTo
	case *pb.RevokedSessions_AuthenticatedUpTo:
		at, byAuthentication = instant.AuthenticatedUpTo, true
	default:
		return errUnknownMessage
	}
	upTo, hasInstant := instantOf(at)
	expiresAt, hasExpiry := instantOf(revoked.GetExpiresAt())
	cutOff := core.CutOff{UpTo: upTo}
	isSpared := true
	if revoked.GetSparedSessionId() != "" {
		cutOff.Spared, isSpared = core.ParseID(revoked.GetSparedSessionId())
	}
	key, isKnown := core.NewCutOffKey(scope, byAuthentication)
	if !hasInstant || !hasExpiry || !isSpared || !isKnown {
		return errUnknownMessage
	}
	w.copy.Index.RevokeSessions(key, cutOff, expiresAt)
	return nil
}

func (w *watcher) takeLease(state *streamState, lease *pb.WatchLease) error {
	start, wasAsked := state.answered(lease.GetNumber())
	if !wasAsked || !state.hasRules || !state.hasKeys || len(w.cursor) == 0 {
		return errUnexpectedLease
	}
	validFor, isSpan := spanOf(lease.GetValidFor())
	expiredUpTo, isInstant := instantOf(lease.GetExpiredUpTo())
	now, isNow := instantOf(lease.GetNow())
	if !isSpan || !isInstant || !isNow {
		return errUnknownMessage
	}
	// The tokens that have expired no longer need their revocations, with or without a lease. The
	// instant is raised first.
	if index := w.copy.Index; index.Expire(expiredUpTo) {
		// An index of a million entries takes a while.
		go index.Purge()
	}
	own := core.FromTime(w.local.Clock.Now())
	isClockWrong := max(own.Since(now), now.Since(own)) > largestDifference
	if isClockWrong && !w.isClockWrong {
		w.logger.Error("the clock of this machine, or that of the service, is wrong: no lease is "+
			"taken", "difference_ms", (own-now)/1000)
	}
	w.isClockWrong = isClockWrong
	if isClockWrong {
		return nil
	}
	w.local.Take(start, validFor)
	w.local.LagNanos.Store(int64(w.local.Clock.Uptime() - start.Uptime))
	w.start, w.validFor, w.hasLease = start, validFor, true
	w.usualLease = min(max(validFor, 200*time.Millisecond), 10*usualLease)
	state.hadLease = true
	return nil
}

// renew asks for a lease, and confirms the cursor. The clocks are read first.
func (w *watcher) renew(state *streamState, requests chan<- *pb.WatchRequest) {
	start := core.ReadClocks(w.local.Clock)
	number := state.number + 1
	message := &pb.WatchRequest_Renewal{
		Renewal: &pb.WatchRenewal{Number: number, Applied: w.cursor},
	}
	select {
	case requests <- &pb.WatchRequest{Message: message}:
		state.add(renewal{number, start})
	default:
		// The connection takes no more. The next renewal will confirm the same.
	}
}

// endLease ends the lease, because the service has said something that this process cannot follow.
func (w *watcher) endLease() {
	w.copy.Lease.End()
	w.hasLease = false
	// The next stream begins with a snapshot.
	w.cursor = nil
}

// add keeps the clocks of a renewal.
func (r *streamState) add(sent renewal) {
	r.number = sent.number
	if len(r.waiting) == maxAsked {
		r.waiting = r.waiting[1:]
	}
	r.waiting = append(r.waiting, sent)
}

// answered returns the clocks before this renewal was sent, and forgets it and those before.
func (r *streamState) answered(number uint64) (core.Start, bool) {
	for index, sent := range r.waiting {
		if sent.number == number {
			r.waiting = r.waiting[index+1:]
			return sent.start, true
		}
	}
	return core.Start{}, false
}

// spanOf reads a span, which must not be missing or negative.
func spanOf(span *durationpb.Duration) (time.Duration, bool) {
	read := span.AsDuration()
	return read, span != nil && span.CheckValid() == nil && read >= 0
}

// instantOf reads an instant, which must not be missing. Fractions of a microsecond are dropped.
func instantOf(at *timestamppb.Timestamp) (core.Timestamp, bool) {
	micros := time.Duration(at.GetNanos()) / time.Microsecond * time.Microsecond
	return core.FromSeconds(at.GetSeconds()).Plus(micros), at != nil
}
