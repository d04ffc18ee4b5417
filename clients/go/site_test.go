package countersign_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/testserver"
	pb "countersign.example/client-go/proto/countersign/v1"
)

var nothing = countersign.Demands{}

func newClient(t testing.TB, urls []string, options ...countersign.Option) *countersign.Client {
	t.Helper()
	client, err := countersign.NewClient(urls, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func clientOf(
	t testing.TB, site *testserver.Site, options ...countersign.Option,
) *countersign.Client {
	t.Helper()
	return newClient(t, []string{site.URL()}, options...)
}

// watch starts a local verifier, and waits for its first lease.
func watch(
	t testing.TB, client *countersign.Client, options ...countersign.VerifierOption,
) *countersign.Verifier {
	t.Helper()
	verifier := countersign.NewLocalVerifier(client, options...)
	t.Cleanup(verifier.Close)
	ready(t, verifier)
	return verifier
}

var refusing = countersign.WithOnLapse(countersign.LapseRefuses)

// ready waits until a verifier has a lease.
func ready(t testing.TB, verifier *countersign.Verifier) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := verifier.Ready(ctx); err != nil {
		t.Fatal("there is no lease within a minute")
	}
}

// request returns a request for a session with a scope and claims.
func request(t testing.TB, subject string) *pb.CreateSessionRequest {
	t.Helper()
	claims, err := structpb.NewStruct(map[string]any{"plan": "gold", "seats": 3})
	if err != nil {
		t.Fatal(err)
	}
	return &pb.CreateSessionRequest{
		Subject: subject, Scopes: []string{"orders:read"}, Claims: claims,
	}
}

// signIn creates a session, and returns its access token.
func signIn(t testing.TB, client *countersign.Client, subject string) string {
	t.Helper()
	created, err := client.CreateSession(t.Context(), request(t, subject), patiently)
	if err != nil {
		t.Fatal(err)
	}
	return created.GetTokens().GetAccessToken()
}

// patiently is for calls on a busy machine.
var patiently = countersign.Within(30 * time.Second)

func revoke(t testing.TB, client *countersign.Client, token string) {
	t.Helper()
	target := &pb.RevokeRequest_Token{Token: token}
	_, err := client.Revoke(t.Context(), &pb.RevokeRequest{Target: target}, patiently)
	if err != nil {
		t.Fatal(err)
	}
}

// settled checks a token without a call, once there is a lease. On a busy machine a lease may end.
func settled(t testing.TB, verifier *countersign.Verifier, token string) countersign.Answer {
	t.Helper()
	for {
		answer := verifier.VerifyLocally(token, nothing)
		if !errors.Is(answer.Unknown(), countersign.ErrNoLease) {
			return answer
		}
		ready(t, verifier)
	}
}

func hasNoLease(answer countersign.Answer) bool {
	return errors.Is(answer.Unknown(), countersign.ErrNoLease)
}

func expectInactive(t testing.TB, answer countersign.Answer, reason countersign.InactiveReason) {
	t.Helper()
	if answer.InactiveReason() != reason || answer.IsActive() {
		t.Errorf("%v instead of inactive %v", answer, reason)
	}
}

func expectActive(t testing.TB, answer countersign.Answer) {
	t.Helper()
	if !answer.IsActive() {
		t.Errorf("%v instead of active", answer)
	}
}
