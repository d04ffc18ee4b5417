package countersign_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
	"countersign.example/client-go/grpcauth"
	"countersign.example/client-go/httpauth"
	"countersign.example/client-go/internal/testserver"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// replica is a replica in this process, whose answers a test gives.
type replica struct {
	pb.UnimplementedSessionServiceServer
	server *grpc.Server
	url    string
	calls  atomic.Int64
	mu     sync.Mutex
	ids    []string
	answer func(ctx context.Context, number int64) error
}

func newReplica(
	t *testing.T, answer func(ctx context.Context, number int64) error,
) *replica {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	replica := &replica{
		server: grpc.NewServer(), url: "http://" + listener.Addr().String(), answer: answer,
	}
	pb.RegisterSessionServiceServer(replica.server, replica)
	go func() { _ = replica.server.Serve(listener) }()
	t.Cleanup(replica.server.Stop)
	return replica
}

func good(context.Context, int64) error { return nil }

func (r *replica) called(ctx context.Context, id string) error {
	r.mu.Lock()
	r.ids = append(r.ids, id)
	r.mu.Unlock()
	return r.answer(ctx, r.calls.Add(1))
}

func (r *replica) CreateSession(
	ctx context.Context, request *pb.CreateSessionRequest,
) (*pb.CreateSessionResponse, error) {
	return &pb.CreateSessionResponse{}, r.called(ctx, request.GetRequestId())
}

func (r *replica) Reauthenticate(
	ctx context.Context, request *pb.ReauthenticateRequest,
) (*pb.ReauthenticateResponse, error) {
	return &pb.ReauthenticateResponse{}, r.called(ctx, request.GetRequestId())
}

func (r *replica) Refresh(ctx context.Context, _ *pb.RefreshRequest) (*pb.RefreshResponse, error) {
	return &pb.RefreshResponse{}, r.called(ctx, "")
}

func (r *replica) GetSession(
	ctx context.Context, _ *pb.GetSessionRequest,
) (*pb.GetSessionResponse, error) {
	return &pb.GetSessionResponse{}, r.called(ctx, "")
}

func refusal(code codes.Code, reason string, retry time.Duration) error {
	refused := status.New(code, "refused by a test")
	refused, err := refused.WithDetails(
		&errdetails.ErrorInfo{Domain: "countersign", Reason: reason})
	if err == nil && retry > 0 {
		refused, err = refused.WithDetails(
			&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	if err != nil {
		return err
	}
	return refused.Err()
}

// errorOf returns an error of a call.
func errorOf(t *testing.T, err error) *countersign.Error {
	t.Helper()
	failed, isError := errors.AsType[*countersign.Error](err)
	if !isError {
		t.Fatalf("%v is not an error of a call", err)
	}
	return failed
}

func TestARequestIDIsMadeOncePerLogicalCall(t *testing.T) {
	replica := newReplica(t, func(_ context.Context, number int64) error {
		if number < 3 {
			return refusal(codes.Unavailable, "STORE_UNAVAILABLE", 0)
		}
		return nil
	})
	client := newClient(t, []string{replica.url})
	request := request(t, "alice")
	if _, err := client.CreateSession(t.Context(), request, patiently); err != nil {
		t.Fatal(err)
	}
	if request.GetRequestId() != "" {
		t.Error("the request of the caller has changed")
	}
	for _, id := range []string{"", "mine"} {
		request.RequestId = id
		if _, err := client.CreateSession(t.Context(), request, patiently); err != nil {
			t.Fatal(err)
		}
	}
	_, err := client.Reauthenticate(t.Context(), &pb.ReauthenticateRequest{}, patiently)
	if err != nil {
		t.Fatal(err)
	}
	ids := replica.ids
	isOnce := len(ids) == 6 && len(ids[0]) == 36 && ids[0] == ids[1] && ids[1] == ids[2] &&
		ids[3] != ids[0] && len(ids[3]) == 36 && ids[4] == "mine" && len(ids[5]) == 36
	if !isOnce {
		t.Error(ids)
	}
}

func TestARepeatedCreationYieldsOneSession(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client := clientOf(t, site)
	request := request(t, "alice")
	request.RequestId = "one"
	for range 2 {
		if _, err := client.CreateSession(t.Context(), request, patiently); err != nil {
			t.Fatal(err)
		}
	}
	listed, err := client.ListSessions(t.Context(), &pb.ListSessionsRequest{}, patiently)
	if err != nil || len(listed.GetSessions()) != 1 {
		t.Error(listed, err)
	}
}

func TestARefreshIsRepeatedOnlyIfTheServiceHasDoneNothing(t *testing.T) {
	replica := newReplica(t, func(_ context.Context, number int64) error {
		if number == 1 {
			return refusal(codes.Unavailable, "NOT_CURRENT", 0)
		}
		return refusal(codes.Unavailable, "STORE_UNAVAILABLE", 0)
	})
	client := newClient(t, []string{replica.url})
	_, err := client.Refresh(t.Context(), &pb.RefreshRequest{}, patiently)
	failed := errorOf(t, err)
	if failed.Reason() != countersign.ReasonStoreUnavailable || !failed.IsTemporary() ||
		failed.IsRefused() || replica.calls.Load() != 2 {
		t.Error(failed, replica.calls.Load())
	}
	// A connection that is lost during the call leaves it open whether the token was exchanged.
	var lost *grpc.Server
	dying := newReplica(t, func(context.Context, int64) error {
		lost.Stop()
		return nil
	})
	lost = dying.server
	client = newClient(t, []string{dying.url, newReplica(t, good).url})
	_, err = client.Refresh(t.Context(), &pb.RefreshRequest{}, patiently)
	failed = errorOf(t, err)
	if failed.Reason() != countersign.ReasonUnreachable || failed.IsRefused() {
		t.Error(failed)
	}
	// A call that has not left this process is repeated.
	if _, err := client.Refresh(t.Context(), &pb.RefreshRequest{}, patiently); err != nil {
		t.Error(err)
	}
}

func TestAReplicaWithoutItsDatabaseIsAvoided(t *testing.T) {
	failing := newReplica(t, func(context.Context, int64) error {
		return refusal(codes.Unavailable, "STORE_UNAVAILABLE", 0)
	})
	working := newReplica(t, good)
	client := newClient(t, []string{failing.url, working.url})
	request := &pb.GetSessionRequest{}
	for range 4 {
		if _, err := client.GetSession(t.Context(), request, patiently); err != nil {
			t.Fatal(err)
		}
	}
	if working.calls.Load() != 4 || failing.calls.Load() != 1 {
		t.Error(working.calls.Load(), failing.calls.Load())
	}
}

func TestAnotherReplicaAnswersIfOneIsGoneOrNotCurrent(t *testing.T) {
	stopping := newReplica(t, func(context.Context, int64) error {
		return refusal(codes.Unavailable, "NOT_CURRENT", 30*time.Second)
	})
	working := newReplica(t, good)
	client := newClient(t, []string{"http://127.0.0.1:1", stopping.url, working.url})
	for range 6 {
		if _, err := client.Refresh(t.Context(), &pb.RefreshRequest{}, patiently); err != nil {
			t.Fatal(err)
		}
	}
	if working.calls.Load() != 6 || stopping.calls.Load() > 2 {
		t.Error("a replica that fails is avoided", working.calls.Load(), stopping.calls.Load())
	}
}

func TestCallsGoAroundTheReplicas(t *testing.T) {
	replicas := []*replica{newReplica(t, good), newReplica(t, good), newReplica(t, good)}
	client := newClient(t, []string{replicas[0].url, replicas[1].url, replicas[2].url})
	for range 6 {
		_, err := client.GetSession(t.Context(), &pb.GetSessionRequest{}, patiently)
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, replica := range replicas {
		if replica.calls.Load() != 2 {
			t.Error(replica.calls.Load())
		}
	}
}

func TestNoCallFailsWhileAReplicaStopsInGoodOrder(t *testing.T) {
	slowly := func(ctx context.Context, _ int64) error {
		time.Sleep(time.Millisecond)
		return ctx.Err()
	}
	stopping, staying := newReplica(t, slowly), newReplica(t, slowly)
	client := newClient(t, []string{stopping.url, staying.url})
	var calling sync.WaitGroup
	var isStopped atomic.Bool
	for range 4 {
		calling.Go(func() {
			for !isStopped.Load() {
				_, err := client.Refresh(t.Context(), &pb.RefreshRequest{}, patiently)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	testserver.Eventually(t, "calls", func() bool { return stopping.calls.Load() > 10 })
	// This sends GOAWAY, and waits for the calls under way.
	stopping.server.GracefulStop()
	before := staying.calls.Load()
	testserver.Eventually(t, "more calls", func() bool { return staying.calls.Load() > before+50 })
	isStopped.Store(true)
	calling.Wait()
}

func TestTheWaitThatAServiceAsksForIsKept(t *testing.T) {
	const wait = 120 * time.Millisecond
	replica := newReplica(t, func(_ context.Context, number int64) error {
		if number == 1 {
			return refusal(codes.ResourceExhausted, "OVERLOADED", wait)
		}
		return nil
	})
	other := newReplica(t, func(context.Context, int64) error {
		return refusal(codes.ResourceExhausted, "OVERLOADED", time.Minute)
	})
	began := time.Now()
	client := newClient(t, []string{replica.url})
	if _, err := client.Refresh(t.Context(), &pb.RefreshRequest{}, patiently); err != nil {
		t.Fatal(err)
	}
	if time.Since(began) < wait || replica.calls.Load() != 2 {
		t.Error(time.Since(began), replica.calls.Load())
	}
	client = newClient(t, []string{other.url})
	_, err := client.Refresh(t.Context(), &pb.RefreshRequest{})
	failed := errorOf(t, err)
	retry, hasRetry := failed.RetryAfter()
	if !hasRetry || retry != time.Minute || failed.Reason() != countersign.ReasonOverloaded ||
		other.calls.Load() != 1 {
		t.Error(failed, retry, other.calls.Load())
	}
}

func TestACallEndsAtItsDeadline(t *testing.T) {
	// Connections are accepted by the kernel, and never answered.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	hanging := newReplica(t, func(ctx context.Context, _ int64) error {
		<-ctx.Done()
		return ctx.Err()
	})
	const deadline = 200 * time.Millisecond
	silentURL := "http://" + silent.Addr().String()
	for _, url := range []string{silentURL, hanging.url} {
		client := newClient(t, []string{url}, countersign.WithDeadline(deadline))
		began := time.Now()
		_, err := client.GetSession(t.Context(), &pb.GetSessionRequest{})
		failed := errorOf(t, err)
		if failed.Code() != codes.DeadlineExceeded ||
			failed.Reason() != countersign.ReasonDeadlineExceeded ||
			!errors.Is(err, context.DeadlineExceeded) || time.Since(began) < deadline {
			t.Error(url, err, time.Since(began))
		}
	}
	client := newClient(t, []string{hanging.url, newReplica(t, good).url})
	_, err = client.GetSession(t.Context(), &pb.GetSessionRequest{},
		countersign.Within(deadline))
	if countersign.ReasonOf(err) != countersign.ReasonDeadlineExceeded {
		t.Error(err)
	}
	for range 3 {
		_, err := client.GetSession(t.Context(), &pb.GetSessionRequest{}, patiently)
		if err != nil || hanging.calls.Load() != 2 {
			t.Error("a replica that is slow is avoided", err, hanging.calls.Load())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	client = newClient(t, []string{hanging.url})
	_, err = client.GetSession(ctx, &pb.GetSessionRequest{}, patiently)
	if !errors.Is(err, context.Canceled) || errorOf(t, err).IsTemporary() {
		t.Error(err)
	}
	client = newClient(t, []string{"http://127.0.0.1:1"}, countersign.WithDeadline(deadline))
	_, err = client.Refresh(t.Context(), &pb.RefreshRequest{})
	failed := errorOf(t, err)
	if failed.Reason() != countersign.ReasonUnreachable || !failed.IsRefused() {
		t.Error(failed)
	}
}

func TestErrorsHaveTheirReasonAndTheirDetails(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client := clientOf(t, site)
	_, err := client.CreateSession(t.Context(), nil, patiently)
	failed := errorOf(t, err)
	if failed.Code() != codes.InvalidArgument || failed.Fields()[0].Field != "subject" ||
		!strings.HasPrefix(err.Error(), "INVALID_FIELD (InvalidArgument): subject") {
		t.Error(err)
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Error("the error has no status")
	}
	_, err = client.GetSession(t.Context(), &pb.GetSessionRequest{
		SessionId: "0190a5c8-7f3e-7a51-9c44-2f6d0c8a1b22",
	}, patiently)
	failed = errorOf(t, fmt.Errorf("wrapped: %w", err))
	if failed.Reason() != countersign.ReasonSessionNotFound || failed.IsTemporary() {
		t.Error(failed)
	}
	if countersign.ReasonOf(errors.New("other")) != "" {
		t.Error("another error has no reason")
	}
}

func TestEveryReasonOfTheServiceIsKnown(t *testing.T) {
	read := func(path ...string) string {
		text, err := os.ReadFile(filepath.Join(path...))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	service, _, _ := strings.Cut(read("..", "..", "src", "grpc", "status.rs"), "#[cfg(test)]")
	library := read("errors.go")
	reasons := regexp.MustCompile(`"([A-Z_]{5,})"`).FindAllStringSubmatch(service, -1)
	if len(reasons) <= 25 {
		t.Fatal(reasons)
	}
	for _, reason := range reasons {
		if !strings.Contains(library, " Reason = "+reason[0]) {
			t.Error(reason[1])
		}
	}
}

func TestWrongSettingsAreRefused(t *testing.T) {
	for _, expected := range []struct {
		urls   []string
		option countersign.Option
		err    error
	}{
		{nil, nil, countersign.ErrNoEndpoint},
		{[]string{""}, nil, countersign.ErrEndpoint},
		{[]string{"localhost:50051"}, nil, countersign.ErrEndpoint},
		{[]string{"ftp://localhost"}, nil, countersign.ErrEndpoint},
		{[]string{"http://localhost", "http://"}, nil, countersign.ErrEndpoint},
		{[]string{"http://localhost"}, countersign.WithCACertificate([]byte("x")),
			countersign.ErrNotEncrypted},
		{[]string{"https://localhost"}, countersign.WithCACertificate([]byte("x")),
			countersign.ErrTLS},
		{[]string{"https://localhost"}, countersign.WithClientCertificate([]byte("x"), []byte("y")),
			countersign.ErrTLS},
		{[]string{"http://localhost"}, countersign.WithAPIKey("a\nb"), countersign.ErrAPIKey},
	} {
		var options []countersign.Option
		if expected.option != nil {
			options = append(options, expected.option)
		}
		_, err := countersign.NewClient(expected.urls, options...)
		if !errors.Is(err, expected.err) {
			t.Error(expected.urls, err)
		}
	}
}

func TestNothingThatIsPrintedHoldsASecret(t *testing.T) {
	const apiKey = "cs_ck_topsecret0123456789"
	authority := countersigntest.New()
	token := authority.Issue("alice", countersigntest.Token{Claims: map[string]any{"plan": "gold"}})
	verifier := authority.Verifier()
	answer := verifier.VerifyLocally(token, nothing)
	client := newClient(t, []string{"http://127.0.0.1:1"}, countersign.WithAPIKey(apiKey),
		countersign.WithDeadline(10*time.Millisecond))
	unknown := countersign.NewRemoteVerifier(client).Verify(t.Context(), token, nothing)
	if unknown.Unknown() == nil {
		t.Fatal(unknown)
	}
	tokens := &pb.Tokens{AccessToken: token, RefreshToken: token}
	session := &pb.Session{Subject: "alice"}
	signature := token[strings.LastIndexByte(token, '.')+1:]
	for _, value := range []any{
		answer, answer.Session(), *answer.Session(), authority, verifier, client, unknown,
		unknown.Unknown(), httpauth.New(verifier, nothing), grpcauth.New(verifier, nothing),
		tokens, session, request(t, "alice"),
		&pb.ValidateRequest{AccessToken: token}, &pb.RefreshRequest{RefreshToken: token},
		&pb.RevokeRequest_Token{Token: token},
		&pb.RevokeRequest{Target: &pb.RevokeRequest_Token{Token: token}},
		&pb.ReauthenticateRequest_RefreshToken{RefreshToken: token},
		&pb.CreateSessionResponse{Session: session, Tokens: tokens},
		&pb.ListSessionsResponse{Sessions: []*pb.Session{session}},
		&pb.BatchValidateRequest{Requests: []*pb.ValidateRequest{{AccessToken: token}}},
	} {
		var log lockedBuffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("it", "value", value)
		slog.New(slog.NewTextHandler(&log, nil)).Info("it", "value", value)
		output := fmt.Sprintf("%v %+v %#v %s %s", value, value, value, value, log.String())
		for _, secret := range []string{signature, apiKey, "gold", "alice"} {
			if strings.Contains(output, secret) {
				t.Errorf("%s is in the output of %T: %s", secret, value, output)
			}
		}
	}
	if text := (&pb.GetSessionRequest{SessionId: "s"}).String(); !strings.Contains(text, `"s"`) {
		t.Error("what is no secret is printed", text)
	}
}

func TestEveryMessageWithATokenIsSecret(t *testing.T) {
	// The fields that hold tokens, claims or names of users.
	isSecret := regexp.MustCompile(`token$|^subject$|^claims$|^metadata$`)
	// These messages name users or pages, but hold neither a token nor a claim.
	known := map[protoreflect.Name]bool{
		"AuditRecord": true, "CountSessionsRequest": true, "ListAuditRequest": true,
		"ListAuditResponse": true, "ListSessionsRequest": true, "ListSessionsResponse": true,
		"RevokedSessions": true, "Revocation": true, "SubjectTarget": true,
	}
	files := []protoreflect.FileDescriptor{
		pb.File_countersign_v1_session_proto, pb.File_countersign_v1_session_service_proto,
		pb.File_countersign_v1_key_service_proto, pb.File_countersign_v1_audit_service_proto,
		pb.File_countersign_v1_revocation_service_proto,
	}
	for _, file := range files {
		for index := range file.Messages().Len() {
			message := file.Messages().Get(index)
			hasSecret := false
			for number := range message.Fields().Len() {
				name := message.Fields().Get(number).Name()
				hasSecret = hasSecret || isSecret.MatchString(string(name))
			}
			if hasSecret && !known[message.Name()] && !pb.IsSecret(message.FullName()) {
				t.Errorf("%s would be printed", message.Name())
			}
		}
	}
}

func TestAnErrorCanBeWrittenAsJSONWithoutASecret(t *testing.T) {
	site := newReplica(t, func(context.Context, int64) error {
		return refusal(codes.InvalidArgument, "INVALID_FIELD", 0)
	})
	_, err := newClient(t, []string{site.url}).Refresh(t.Context(),
		&pb.RefreshRequest{RefreshToken: "cs_rt_secret"}, patiently)
	text, encodeErr := json.Marshal(map[string]any{"error": err})
	if encodeErr != nil || strings.Contains(string(text), "secret") {
		t.Error(string(text), encodeErr)
	}
}
