package countersign_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
	"countersign.example/client-go/internal/testserver"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// These tests run against the service as a process.

// over is longer than any lease.
const over = 3 * time.Second

func TestARevokedTokenIsInactiveBeforeRevokeReturns(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client := clientOf(t, site)
	verifier := watch(t, client, refusing)
	var revoked sync.Map
	var isDone atomic.Bool
	var checking sync.WaitGroup
	for range 2 {
		checking.Go(func() {
			for !isDone.Load() {
				revoked.Range(func(token, _ any) bool {
					if verifier.VerifyLocally(token.(string), nothing).IsActive() {
						t.Error("a token is active after Revoke has returned")
					}
					return true
				})
				time.Sleep(time.Millisecond)
			}
		})
	}
	const count = 40
	for range count {
		token := signIn(t, client, "alice")
		expectActive(t, settled(t, verifier, token))
		revoke(t, client, token)
		if answer := verifier.VerifyLocally(token, nothing); answer.IsActive() {
			t.Error(answer)
		}
		expectInactive(t, settled(t, verifier, token), countersign.Revoked)
		revoked.Store(token, nil)
	}
	isDone.Store(true)
	checking.Wait()
	if status := verifier.Status(); status.Revocations != count {
		t.Error(status)
	}
}

func TestEachKindOfRevocationReachesTheVerifier(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client := clientOf(t, site)
	verifier := watch(t, client, refusing)
	alice, bob := signIn(t, client, "alice"), signIn(t, client, "bob")
	spared, err := client.CreateSession(t.Context(), request(t, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	session, token := spared.GetSession().GetSessionId(), spared.GetTokens().GetAccessToken()
	revokeAll := func(request *pb.RevokeRequest) {
		t.Helper()
		if _, err := client.Revoke(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	revokeAll(&pb.RevokeRequest{Target: &pb.RevokeRequest_Subject{
		Subject: &pb.SubjectTarget{Subject: "alice", ExceptSessionId: session},
	}})
	expectInactive(t, settled(t, verifier, alice), countersign.Revoked)
	expectActive(t, settled(t, verifier, token))

	// A reauthentication revokes the tokens that rest on the earlier authentication.
	again, err := client.Reauthenticate(t.Context(), &pb.ReauthenticateRequest{
		Session: &pb.ReauthenticateRequest_SessionId{SessionId: session},
	})
	if err != nil {
		t.Fatal(err)
	}
	later := again.GetTokens().GetAccessToken()
	expectInactive(t, settled(t, verifier, token), countersign.Revoked)
	expectActive(t, settled(t, verifier, later))
	expectActive(t, settled(t, verifier, bob))

	// A refresh ends no token.
	refreshed, err := client.Refresh(t.Context(), &pb.RefreshRequest{
		RefreshToken: again.GetTokens().GetRefreshToken(),
	})
	if err != nil {
		t.Fatal(err)
	}
	expectActive(t, settled(t, verifier, refreshed.GetTokens().GetAccessToken()))
	expectActive(t, settled(t, verifier, later))

	revokeAll(&pb.RevokeRequest{Target: &pb.RevokeRequest_Tenant{}})
	for _, token := range []string{bob, later, refreshed.GetTokens().GetAccessToken()} {
		expectInactive(t, settled(t, verifier, token), countersign.Revoked)
	}
}

func TestTheClaimsAreTheSameInBothModes(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client := clientOf(t, site, countersign.WithDeadline(30*time.Second))
	local, remote := watch(t, client), countersign.NewRemoteVerifier(client)
	token := signIn(t, client, "alice")
	type claims struct {
		texts  []string
		lists  [][]string
		times  []time.Time
		claims map[string]any
	}
	var seen []claims
	for _, verifier := range []*countersign.Verifier{local, remote} {
		demands := countersign.Demands{Scopes: []string{"orders:read"}}
		session := verifier.Verify(t.Context(), token, demands).Session()
		if session == nil || session.Subject() != "alice" || !session.HasScope("orders:read") {
			t.Fatal(session)
		}
		var seats int
		if err := session.DecodeClaim("seats", &seats); err != nil || seats != 3 {
			t.Error(seats, err)
		}
		seen = append(seen, claims{
			[]string{session.ID(), session.Tenant(), session.ClientID(), session.ACR()},
			[][]string{session.Audience(), session.Scopes(), session.AMR()},
			[]time.Time{session.IssuedAt(), session.ExpiresAt(), session.AuthenticatedAt()},
			session.Claims(),
		})
	}
	if !reflect.DeepEqual(seen[0], seen[1]) {
		t.Errorf("%v, but %v", seen[0], seen[1])
	}
	for _, verifier := range []*countersign.Verifier{local, remote} {
		for _, expected := range []struct {
			token   string
			demands countersign.Demands
			reason  countersign.InactiveReason
		}{
			{"", nothing, countersign.Malformed},
			{strings.Repeat("a", 100_000), nothing, countersign.Malformed},
			{"a\xffb", nothing, countersign.Malformed},
			{"cs_rt_x", nothing, countersign.WrongType},
			{token, countersign.Demands{Audience: "x"}, countersign.WrongAudience},
			{token, countersign.Demands{Scopes: []string{"x"}}, countersign.InsufficientScope},
			{token, countersign.Demands{Factors: []countersign.Factor{{Method: "hwk"}}},
				countersign.StepUpRequired},
		} {
			answer := verifier.Verify(t.Context(), expected.token, expected.demands)
			expectInactive(t, answer, expected.reason)
		}
	}
}

func TestWithoutALeaseAVerifierKnowsNothingOrAsksTheService(t *testing.T) {
	site := testserver.New(t, "[limits]\nmax_watchers = 1")
	server := site.Start(t)
	client := clientOf(t, site)
	clock := countersigntest.NewClock(time.Now())
	verifier := watch(t, client, refusing, countersign.WithClock(clock))
	token, revoked := signIn(t, client, "alice"), signIn(t, client, "bob")
	revoke(t, client, revoked)

	// There is room for only one watcher.
	asking := countersign.NewLocalVerifier(clientOf(t, site))
	t.Cleanup(asking.Close)
	testserver.Eventually(t, "it has called", func() bool {
		return asking.Status().Connections > 1
	})
	if answer := asking.VerifyLocally(token, nothing); !hasNoLease(answer) {
		t.Error(answer)
	}
	expectActive(t, asking.Verify(t.Context(), token, nothing))
	expectInactive(t, asking.Verify(t.Context(), revoked, nothing), countersign.Revoked)

	server.Suspend(t)
	expectActive(t, verifier.VerifyLocally(token, nothing))
	clock.Advance(over)
	for _, token := range []string{token, revoked} {
		if answer := verifier.Verify(t.Context(), token, nothing); !hasNoLease(answer) {
			t.Error(answer)
		}
	}
	answer := asking.Verify(t.Context(), token, nothing)
	if countersign.ReasonOf(answer.Unknown()) != countersign.ReasonDeadlineExceeded {
		t.Error(answer)
	}
	server.Resume(t)
	ready(t, verifier)
	expectActive(t, verifier.VerifyLocally(token, nothing))
	expectInactive(t, verifier.VerifyLocally(revoked, nothing), countersign.Revoked)
}

func TestAClockThatJumpsVoidsTheLeaseAndAWrongClockNeverGetsOne(t *testing.T) {
	site := testserver.New(t, "")
	server := site.Start(t)
	client := clientOf(t, site)
	clock := countersigntest.NewClock(time.Now())
	verifier := watch(t, client, refusing, countersign.WithClock(clock))
	token := signIn(t, client, "alice")
	expectActive(t, verifier.VerifyLocally(token, nothing))
	server.Suspend(t)
	clock.JumpTo(clock.Now().Add(time.Second))
	if answer := verifier.VerifyLocally(token, nothing); !hasNoLease(answer) {
		t.Error(answer)
	}
	server.Resume(t)
	ready(t, verifier)
	expectActive(t, verifier.VerifyLocally(token, nothing))

	wrong := countersigntest.NewClock(time.Now().Add(time.Minute))
	other := countersign.NewLocalVerifier(client, refusing, countersign.WithClock(wrong))
	t.Cleanup(other.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 800*time.Millisecond)
	defer cancel()
	if other.Ready(ctx) == nil {
		t.Error("a wrong clock has got a lease")
	}
	if other.Status().Resets == 0 {
		t.Error("it should have got everything but a lease")
	}
}

func TestWhenTheServiceIsKilledTheLeaseLapsesAndAfterARestartNoRevokedTokenIsActive(t *testing.T) {
	site := testserver.New(t, "")
	server := site.Start(t)
	client := clientOf(t, site)
	verifier := watch(t, client, refusing)
	token, revoked := signIn(t, client, "alice"), signIn(t, client, "bob")
	revoke(t, client, revoked)
	server.Kill()
	testserver.Eventually(t, "the lease lapses", func() bool {
		return hasNoLease(verifier.Verify(t.Context(), token, nothing))
	})
	var isReady atomic.Bool
	var checking sync.WaitGroup
	checking.Go(func() {
		for !isReady.Load() {
			if verifier.VerifyLocally(revoked, nothing).IsActive() {
				t.Error("a revoked token is active")
			}
			time.Sleep(time.Millisecond)
		}
	})
	site.Start(t)
	testserver.Eventually(t, "it recovers", func() bool {
		status := verifier.Status()
		return status.Resets > 1 && status.Lease > 0
	})
	isReady.Store(true)
	checking.Wait()
	expectActive(t, settled(t, verifier, token))
	expectInactive(t, settled(t, verifier, revoked), countersign.Revoked)
}

// link is a TCP proxy in front of a service, whose connections can be cut.
type link struct {
	address string
	mu      sync.Mutex
	open    []net.Conn
}

func newLink(t *testing.T, target string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	link := &link{address: listener.Addr().String()}
	t.Cleanup(func() {
		_ = listener.Close()
		link.cut()
	})
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				_ = near.Close()
				continue
			}
			link.mu.Lock()
			link.open = append(link.open, near, far)
			link.mu.Unlock()
			go func() { _, _ = io.Copy(near, far) }()
			go func() { _, _ = io.Copy(far, near) }()
		}
	}()
	return link
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.open {
		_ = conn.Close()
	}
	l.open = nil
}

func TestAStreamThatBreaksResumesWithoutASnapshot(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	link := newLink(t, site.Address)
	verifier := watch(t, newClient(t, []string{"http://" + link.address}), refusing)
	client := clientOf(t, site)
	revoked := signIn(t, client, "alice")
	expectActive(t, settled(t, verifier, revoked))
	link.cut()
	revoke(t, client, revoked)
	testserver.Eventually(t, "the revocation arrives", func() bool {
		return verifier.VerifyLocally(revoked, nothing).InactiveReason() == countersign.Revoked
	})
	if status := verifier.Status(); status.Connections < 2 || status.Resets != 1 {
		t.Error(status)
	}
}

func TestARevokedKeyVerifiesNoToken(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client := clientOf(t, site)
	verifier := watch(t, client, refusing)
	token := signIn(t, client, "alice")
	expectActive(t, settled(t, verifier, token))
	text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[0])
	if err != nil {
		t.Fatal(err)
	}
	var header struct{ Kid string }
	if err := json.Unmarshal(text, &header); err != nil {
		t.Fatal(err)
	}
	_, err = client.RevokeKey(t.Context(), &pb.RevokeKeyRequest{Kid: header.Kid})
	if err != nil {
		t.Fatal(err)
	}
	expectInactive(t, settled(t, verifier, token), countersign.Revoked)
	expectActive(t, settled(t, verifier, signIn(t, client, "alice")))
	keys, err := client.GetJwks(t.Context(), &pb.GetJwksRequest{})
	if err != nil || strings.Contains(keys.GetJwks(), header.Kid) {
		t.Error(keys, err)
	}
}

func TestACallerThatIsLimitedToATenantAcceptsNoTokenOfOthers(t *testing.T) {
	shop, shopKey := testserver.Caller(t, "shop", "roles = ['validator']\ntenants = ['globex']")
	admin, adminKey := testserver.Caller(t, "admin", "roles = ['admin']")
	site := testserver.New(t, shop+admin)
	site.Start(t)
	client := clientOf(t, site, countersign.WithAPIKey(adminKey))
	signInTo := func(tenant string) string {
		request := request(t, "alice")
		request.Tenant = tenant
		created, err := client.CreateSession(t.Context(), request, patiently)
		if err != nil {
			t.Fatal(err)
		}
		return created.GetTokens().GetAccessToken()
	}
	ours, gone, theirs := signInTo("globex"), signInTo("globex"), signInTo("acme")
	verifier := watch(t, clientOf(t, site, countersign.WithAPIKey(shopKey)), refusing)
	revoke(t, client, gone)
	revoke(t, client, theirs)
	expectActive(t, settled(t, verifier, ours))
	expectInactive(t, settled(t, verifier, gone), countersign.Revoked)
	expectInactive(t, settled(t, verifier, theirs), countersign.ForeignTenant)
	if status := verifier.Status(); status.Revocations != 1 {
		t.Error(status)
	}
}

func TestAVerifierThatStartsBeforeTheServiceWaitsForIt(t *testing.T) {
	site := testserver.New(t, "")
	client := clientOf(t, site)
	verifiers := []*countersign.Verifier{
		countersign.NewLocalVerifier(client, refusing), countersign.NewLocalVerifier(client),
	}
	for _, verifier := range verifiers {
		t.Cleanup(verifier.Close)
	}
	if answer := verifiers[0].Verify(t.Context(), "a.b.c", nothing); !hasNoLease(answer) {
		t.Error(answer)
	}
	answer := verifiers[1].Verify(t.Context(), "a.b.c", nothing)
	if countersign.ReasonOf(answer.Unknown()) != countersign.ReasonUnreachable {
		t.Error(answer)
	}
	site.Start(t)
	token := ""
	for _, verifier := range verifiers {
		ready(t, verifier)
		if token == "" {
			token = signIn(t, client, "alice")
		}
		expectActive(t, settled(t, verifier, token))
	}
	verifiers[0].Close()
	if answer := verifiers[0].Verify(t.Context(), token, nothing); !hasNoLease(answer) {
		t.Error("a closed verifier has a lease", answer)
	}
}

func TestAnUnwatchedVerifierAcceptsARevokedTokenUntilItExpires(t *testing.T) {
	site := testserver.New(t, "")
	server := site.Start(t)
	client := clientOf(t, site)
	clock := countersigntest.NewClock(time.Now())
	start := func(issuer string, options ...countersign.VerifierOption) *countersign.Verifier {
		options = append(options, countersign.WithClock(clock))
		verifier := countersign.NewUnwatchedVerifier(client, issuer, options...)
		t.Cleanup(verifier.Close)
		ready(t, verifier)
		return verifier
	}
	verifier, other := start(testserver.Issuer), start("https://other.test")
	brief := start(testserver.Issuer, countersign.WithKeysValidFor(30*time.Second))
	token := signIn(t, client, "alice")
	revoke(t, client, token)
	expectActive(t, verifier.Verify(t.Context(), token, nothing))
	expectInactive(t, other.VerifyLocally(token, nothing), countersign.WrongIssuer)

	// After two rotations a token has a key that did not exist before.
	for range 2 {
		_, err := client.RotateKey(t.Context(), &pb.RotateKeyRequest{Force: true}, patiently)
		if err != nil {
			t.Fatal(err)
		}
	}
	later := signIn(t, client, "alice")
	testserver.Eventually(t, "the keys are fetched", func() bool {
		return verifier.VerifyLocally(later, nothing).IsActive()
	})

	server.Kill()
	clock.Advance(29 * time.Second)
	expectActive(t, brief.VerifyLocally(token, nothing))
	clock.Advance(2 * time.Second)
	if answer := brief.VerifyLocally(token, nothing); !hasNoLease(answer) {
		t.Error(answer)
	}
	clock.Advance(3000 * time.Second)
	expectInactive(t, verifier.VerifyLocally(token, nothing), countersign.Expired)
}

// newTemplate returns the contents of a client certificate.
func newTemplate() *x509.Certificate {
	return &x509.Certificate{
		DNSNames:    []string{"shop.test"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func TestCallersIdentifyByAnAPIKeyOrAClientCertificate(t *testing.T) {
	certificates := testserver.NewCertificates(t)
	certificate, key := certificates.Issue(t, "shop", newTemplate())
	login, apiKey := testserver.Caller(t, "login", "roles = ['issuer', 'validator']")
	site := testserver.New(t, login+"[[callers]]\nname = 'shop'\n"+
		"certificate_names = ['dns:shop.test']\nroles = ['validator']\n[tls]\n"+
		"certificate_file = '"+certificates.Path("server.pem")+"'\n"+
		"private_key_file = '"+certificates.Path("server.key")+"'\n"+
		"client_ca_file = '"+certificates.Path("ca.pem")+"'\n")
	site.Start(t)
	urls := []string{strings.Replace(site.URL(), "http://", "https://", 1)}
	trusting := countersign.WithCACertificate(certificates.CA)
	expectReason := func(client *countersign.Client, reason countersign.Reason) {
		t.Helper()
		_, err := client.CreateSession(t.Context(), request(t, "alice"))
		if countersign.ReasonOf(err) != reason {
			t.Error(err)
		}
	}
	expectReason(newClient(t, urls, trusting), countersign.ReasonCallerUnknown)
	token := signIn(t, newClient(t, urls, trusting, countersign.WithAPIKey(apiKey)), "alice")
	shop := newClient(t, urls, trusting, countersign.WithClientCertificate(certificate, key))
	expectReason(shop, countersign.ReasonCallerNotAllowed)
	expectActive(t, settled(t, watch(t, shop), token))
	expectActive(t, countersign.NewRemoteVerifier(shop).Verify(t.Context(), token, nothing))
	// The certificate is not trusted.
	expectReason(newClient(t, urls), countersign.ReasonUnreachable)
	named := countersign.WithServerName("other.test")
	expectReason(newClient(t, urls, trusting, named), countersign.ReasonUnreachable)
}

// lockedBuffer is a buffer that a logger and a test share.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (l *lockedBuffer) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.Write(text)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buffer.String()
}

func TestTheLogHoldsNoToken(t *testing.T) {
	var log lockedBuffer
	options := &slog.HandlerOptions{Level: slog.LevelDebug}
	logger := slog.New(slog.NewJSONHandler(&log, options))
	site := testserver.New(t, "")
	server := site.Start(t)
	const apiKey = "cs_ck_topsecret0123456789"
	client := clientOf(t, site, countersign.WithAPIKey(apiKey), countersign.WithLogger(logger))
	verifier := watch(t, client)
	token := signIn(t, client, "alice")
	server.Kill()
	testserver.Eventually(t, "the lease ends", func() bool { return verifier.Status().Lease == 0 })
	if answer := verifier.Verify(t.Context(), token, nothing); answer.Unknown() == nil {
		t.Error(answer)
	}
	text := log.String()
	for _, sentence := range []string{"the watch stream has ended", "could not be validated"} {
		if !strings.Contains(text, sentence) {
			t.Errorf("the log does not say %q", sentence)
		}
	}
	for _, secret := range append(strings.Split(token, "."), apiKey) {
		if strings.Contains(text, secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}
