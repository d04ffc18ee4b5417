package countersign

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

var now = time.Unix(1_800_000_000, 0)

const (
	issuer  = "https://auth.test"
	sid     = "01a3185c-50fa-7000-8000-000000000001"
	pastAll = 2 * time.Second
)

func pair(seed byte) ed25519.PrivateKey {
	bytes := make([]byte, ed25519.SeedSize)
	bytes[0] = seed
	return ed25519.NewKeyFromSeed(bytes)
}

// token returns a token of one session, which the pair of this seed has signed.
func token(seed byte) string {
	encode := base64.RawURLEncoding.EncodeToString
	signed := encode([]byte(`{"typ":"at+jwt","alg":"EdDSA","kid":"key"}`)) + "." +
		encode(fmt.Appendf(nil, `{"iss":%q,"sub":"alice","aud":"a","client_id":"","iat":%d,`+
			`"exp":%d,"jti":"3da18d0f-8414-459a-9833-a7678bf679ae","sid":%q,"auth_time":%d}`,
			issuer, now.Unix(), now.Unix()+60, sid, now.Unix()))
	return signed + "." + encode(ed25519.Sign(pair(seed), []byte(signed)))
}

func rulesOf(issuer string) *pb.WatchResponse {
	return &pb.WatchResponse{Event: &pb.WatchResponse_Rules{Rules: &pb.WatchRules{
		Issuer: issuer, MaxLifetime: durationpb.New(time.Hour), Leeway: durationpb.New(0),
		LeaseMargin: durationpb.New(250 * time.Millisecond),
	}}}
}

func keysOf(seed byte) *pb.WatchResponse {
	public := pair(seed).Public().(ed25519.PublicKey)
	jwks := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"key","x":%q}]}`,
		base64.RawURLEncoding.EncodeToString(public))
	return &pb.WatchResponse{Event: &pb.WatchResponse_Keys{Keys: &pb.WatchKeys{Jwks: jwks}}}
}

func revocations(ids ...*pb.RevokedId) *pb.WatchResponse {
	return &pb.WatchResponse{Event: &pb.WatchResponse_Revocations{
		Revocations: &pb.WatchRevocations{Ids: ids},
	}}
}

// revocation returns the revocation of the session of token.
func revocation() *pb.WatchResponse {
	id, _ := core.ParseID(sid)
	expiresAt := timestamppb.New(now.Add(time.Minute))
	return revocations(&pb.RevokedId{Id: id[:], ExpiresAt: expiresAt})
}

var reset = &pb.WatchResponse{Event: &pb.WatchResponse_Reset_{Reset_: &pb.WatchReset{}}}

func (s *site) snapshot(t *testing.T) {
	t.Helper()
	s.hear(t, nil, reset)
	s.hear(t, nil, rulesOf(issuer))
	s.hear(t, nil, keysOf(1))
	s.hear(t, []byte{1}, revocations())
}

func leaseOf(number uint64, expiredUpTo time.Time) *pb.WatchResponse {
	return &pb.WatchResponse{Event: &pb.WatchResponse_Lease{Lease: &pb.WatchLease{
		Number: number, ValidFor: durationpb.New(1700 * time.Millisecond),
		ExpiredUpTo: timestamppb.New(expiredUpTo), Now: timestamppb.New(now),
	}}}
}

// lease renews, and hands the watcher a lease.
func (s *site) lease(t *testing.T) {
	t.Helper()
	s.hear(t, nil, leaseOf(s.renew().GetNumber(), time.Unix(0, 0)))
}

func started(t *testing.T) *site {
	t.Helper()
	site := newSite(t, now)
	site.snapshot(t)
	site.lease(t)
	expect(t, site.local.Copy(), token(1), "active")
	return site
}

// expect checks a token by a copy, which need not be the one in force.
func expect(t *testing.T, copied *core.Copy, token, expected string) {
	t.Helper()
	_, reason, hasLease := copied.Answer(token, &core.Demands{})
	answer := InactiveReason(reason).String()
	switch {
	case !hasLease:
		answer = "unknown"
	case reason == 0:
		answer = "active"
	}
	if answer != expected {
		t.Errorf("%s instead of %s", answer, expected)
	}
}

func TestAfterAResetThereIsNoLeaseAndTheFormerCopyStaysAsItWas(t *testing.T) {
	site := started(t)
	site.hear(t, []byte{2}, revocation())
	former := site.local.Copy()
	number := site.renew().GetNumber()
	site.hear(t, nil, reset)
	expect(t, site.local.Copy(), token(1), "unknown")
	if len(site.watcher.cursor) != 0 {
		t.Error("the cursor belongs to what was dropped")
	}
	// A check that has loaded the former copy finishes by it.
	expect(t, former, token(1), "revoked")
	if _, err := site.watcher.apply(site.state, leaseOf(number, now)); err == nil {
		t.Error("the snapshot is not complete")
	}
	site.snapshot(t)
	site.lease(t)
	expect(t, site.local.Copy(), token(1), "active")
	site.clock.Advance(pastAll)
	site.lease(t)
	expect(t, former, token(1), "unknown")
}

func TestACopyWithEarlierKeysGetsNoLaterLease(t *testing.T) {
	site := started(t)
	former := site.local.Copy()
	site.hear(t, nil, &pb.WatchResponse{Event: &pb.WatchResponse_Keys{Keys: &pb.WatchKeys{
		Jwks: `{"keys":[]}`, Revoked: []string{"key"},
	}}})
	expect(t, site.local.Copy(), token(1), "revoked")
	// Its lease has not ended.
	expect(t, former, token(1), "active")
	site.clock.Advance(pastAll)
	site.lease(t)
	expect(t, site.local.Copy(), token(1), "revoked")
	expect(t, former, token(1), "unknown")
}

func TestVerifiedTokensAreForgottenWithTheirIssuerAndTheirKey(t *testing.T) {
	site := started(t)
	site.hear(t, nil, rulesOf("https://other.test"))
	expect(t, site.local.Copy(), token(1), "wrong_issuer")
	site = started(t)
	site.hear(t, nil, keysOf(2))
	expect(t, site.local.Copy(), token(1), "bad_signature")
	expect(t, site.local.Copy(), token(2), "active")
}

func TestAMessageWithACursorIsConfirmedAtOnce(t *testing.T) {
	site := started(t)
	if isNews, err := site.watcher.apply(site.state, revocation()); isNews || err != nil {
		t.Error(isNews, err)
	}
	response := revocation()
	response.Cursor = []byte{2}
	if isNews, err := site.watcher.apply(site.state, response); !isNews || err != nil {
		t.Error(isNews, err)
	}
	expect(t, site.local.Copy(), token(1), "revoked")
}

func TestOnlyTheRenewalsThatWaitAreAnswered(t *testing.T) {
	site := started(t)
	first := site.renew().GetNumber()
	for range maxAsked {
		site.renew()
	}
	if _, err := site.watcher.apply(site.state, leaseOf(first, now)); err == nil {
		t.Error("a renewal was answered that was forgotten")
	}
	// A renewal that could not be sent has no number.
	before := site.state.number
	site.watcher.renew(site.state, make(chan *pb.WatchRequest))
	if site.state.number != before {
		t.Error("a renewal was counted that was not sent")
	}
}

func TestExpiredRevocationsAreDroppedAndTheirTokensStayExpired(t *testing.T) {
	site := started(t)
	site.hear(t, []byte{2}, revocation())
	expiry := now.Add(time.Minute)
	number := site.renew().GetNumber()
	site.hear(t, nil, leaseOf(number, expiry.Add(-time.Second)))
	expect(t, site.local.Copy(), token(1), "revoked")
	number = site.renew().GetNumber()
	site.hear(t, nil, leaseOf(number, expiry))
	// This is so at once, although the revocation is dropped later.
	expect(t, site.local.Copy(), token(1), "expired")
	for site.local.Copy().Index.Len() > 0 {
		time.Sleep(time.Millisecond)
	}
	expect(t, site.local.Copy(), token(1), "expired")
}

func TestEachResultHasACounterOfItsOwn(t *testing.T) {
	verifier := &Verifier{}
	for reason := Malformed; reason <= ForeignTenant; reason++ {
		verifier.count(Answer{reason: reason})
	}
	verifier.count(Answer{})
	counted := 0
	for name, count := range verifier.Counts() {
		counted++
		if count != 1 != (name == "active") {
			t.Error(name, count)
		}
	}
	if counted != 14 {
		t.Error(counted)
	}
}

func TestAnAnswerThatCannotBeUnderstoodIsNeverActive(t *testing.T) {
	for _, response := range []*pb.ValidateResponse{
		nil, {}, {Active: true}, {InactiveReason: 99}, {InactiveReason: -1},
		{Active: true, SessionId: sid, IssuedAt: timestamppb.Now()},
	} {
		answer := answerOf(response)
		if answer.IsActive() || answer.InactiveReason() != 0 || answer.Unknown() == nil {
			t.Error(answer)
		}
	}
	if answer := (Answer{}); answer.IsActive() || answer.Unknown() == nil {
		t.Error("the zero value must be unknown")
	}
}

func TestTheNumbersOfReasonsAreThoseOfTheProtocol(t *testing.T) {
	for number, name := range pb.InactiveReason_name {
		if number == 0 {
			continue
		}
		answer := answerOf(&pb.ValidateResponse{InactiveReason: pb.InactiveReason(number)})
		if "inactive "+name[len("INACTIVE_REASON_"):] != answer.String() {
			t.Error(name, answer)
		}
	}
}

func TestANegativeAgeIsMetByNoSessionAndZeroDemandsNothing(t *testing.T) {
	site := started(t)
	site.clock.Advance(time.Second)
	for age, isActive := range map[time.Duration]bool{
		0: true, -1: false, time.Second: true, time.Second - 1: false,
	} {
		demands := Demands{MaxAuthenticationAge: age}
		if answer := site.verifier.VerifyLocally(token(1), demands); answer.IsActive() != isActive {
			t.Error(age, answer)
		}
		request := demands.request("x").GetMaxAuthenticationAge()
		if (request == nil) != (age == 0) || request.AsDuration() < 0 {
			t.Error(age, request)
		}
	}
}

func TestAVerifiedTokenIsRefusedOnceItsKeyIsRevoked(t *testing.T) {
	site := started(t)
	response := keysOf(1)
	response.GetKeys().Revoked = []string{"key"}
	site.hear(t, nil, response)
	expect(t, site.local.Copy(), token(1), "revoked")
}

func TestAMessageIsConfirmedAtOnceAndAStreamWithoutALeaseIsGivenUp(t *testing.T) {
	site := newSite(t, now)
	site.snapshot(t)
	// The next renewal by the schedule would be in a quarter of an hour.
	site.watcher.usualLease = time.Hour
	requests := make(chan *pb.WatchRequest, maxAsked)
	responses, failures := make(chan *pb.WatchResponse), make(chan error, 1)
	ended := make(chan error, 1)
	follow := func() {
		ended <- site.watcher.follow(t.Context(), requests, responses, failures, &streamState{})
	}
	go follow()
	news := revocation()
	news.Cursor = []byte{2}
	responses <- news
	select {
	case request := <-requests:
		if applied := request.GetRenewal().GetApplied(); !bytes.Equal(applied, []byte{2}) {
			t.Error(applied)
		}
	case <-time.After(time.Minute):
		t.Fatal("it is not confirmed")
	}
	// What has no cursor cannot be confirmed.
	responses <- revocation()
	failures <- io.EOF
	if err := <-ended; !errors.Is(err, errFinished) || len(requests) != 0 {
		t.Error(err, len(requests))
	}

	site.watcher.usualLease = time.Millisecond
	began := time.Now()
	go follow()
	select {
	case err := <-ended:
		if !errors.Is(err, errNoLease) || time.Since(began) < time.Second {
			t.Error(err, time.Since(began))
		}
	case <-time.After(time.Minute):
		t.Fatal("it is not given up")
	}
	if len(requests) == 0 {
		t.Error("no renewal was sent by the schedule")
	}
}

func TestKeysAreFetchedAgainBeforeTheyMayNoLongerBeUsed(t *testing.T) {
	for _, row := range []struct{ maxAge, validFor, delay time.Duration }{
		{5 * time.Minute, time.Hour, 5 * time.Minute},
		{time.Hour, time.Hour, longestFetchDelay},
		{5 * time.Minute, 30 * time.Second, 15 * time.Second},
		{-time.Second, time.Hour, 0},
	} {
		fetcher := &fetcher{keysValidFor: row.validFor}
		if delay := fetcher.delay(row.maxAge); delay != row.delay {
			t.Error(row, delay)
		}
	}
}

func TestAStreamThatEndsWithoutAnAnswerIsALostConnection(t *testing.T) {
	failed := errorOf(io.EOF, true)
	if failed.Reason() != ReasonUnreachable || !failed.IsTemporary() || failed.IsRefused() {
		t.Error(failed)
	}
}
