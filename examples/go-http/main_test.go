package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/testserver"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// This test starts the authority and the shop as processes, and calls each route with each kind of
// token.

type shop struct {
	t   *testing.T
	url string
}

// reply is an answer of the shop.
type reply struct {
	status          int
	challenge, body string
}

func startShop(t *testing.T, authority string) *shop {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "shop")
	output, err := exec.Command("go", "build", "-p", "1", "-o", binary, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%s%v", output, err)
	}
	command := exec.CommandContext(t.Context(), binary)
	command.Env = append(os.Environ(), "COUNTERSIGN_ENDPOINTS="+authority, "COUNTERSIGN_API_KEY=",
		"LISTEN=127.0.0.1:0")
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Wait() })
	lines := bufio.NewScanner(stdout)
	lines.Scan()
	address, isAddress := strings.CutPrefix(lines.Text(), "listening on ")
	if !isAddress {
		t.Fatal(lines.Text())
	}
	return &shop{t, "http://" + address}
}

func (s *shop) send(method, path string, header http.Header) reply {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header = header
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header.Get("WWW-Authenticate"), string(body)}
}

func (s *shop) call(method, path, token string) reply {
	s.t.Helper()
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", "Bearer "+token)
	}
	return s.send(method, path, header)
}

// expect calls, and checks the status, and a part of the challenge or of the body.
func (s *shop) expect(method, path, token string, status int, part string) {
	s.t.Helper()
	seen := s.call(method, path, token)
	if seen.status != status || !strings.Contains(seen.challenge+"\n"+seen.body, part) {
		s.t.Errorf("%s %s: %v instead of %d %s", method, path, seen, status, part)
	}
}

func create(
	t *testing.T, client *countersign.Client, request *pb.CreateSessionRequest,
) *pb.CreateSessionResponse {
	t.Helper()
	request.Subject = "alice"
	if len(request.Audience) == 0 {
		request.Audience = []string{audience}
	}
	created, err := client.CreateSession(t.Context(), request, countersign.Within(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return created
}

func TestEachRouteLetsTheRightSessionsPass(t *testing.T) {
	site := testserver.New(t, "")
	authority := site.Start(t)
	shop := startShop(t, site.URL())
	client, err := countersign.NewClient([]string{site.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	signIn := func(request *pb.CreateSessionRequest) string {
		t.Helper()
		return create(t, client, request).GetTokens().GetAccessToken()
	}
	brief := durationpb.New(time.Second)
	expiring := signIn(&pb.CreateSessionRequest{AccessTokenTtl: brief})
	good := signIn(&pb.CreateSessionRequest{})
	elsewhere := signIn(&pb.CreateSessionRequest{Audience: []string{"https://other.example"}})
	ordering := signIn(&pb.CreateSessionRequest{Scopes: []string{"orders:write"}})

	shop.expect("GET", "/", "", 200, "welcome")
	shop.expect("GET", "/", good, 200, "welcome back, alice")
	if seen := shop.call("GET", "/me", ""); seen.status != 401 ||
		seen.challenge != `Bearer realm="https://shop.example"` {
		t.Error(seen)
	}
	shop.expect("GET", "/me", "bad", 401, `error="invalid_token"`)
	shop.expect("GET", "/me", good, 200, `"subject":"alice"`)
	cookie := http.Header{"Cookie": {"access_token=" + good}}
	if seen := shop.send("GET", "/me", cookie); seen.status != 200 {
		t.Error(seen)
	}
	cookie.Set("Authorization", "Bearer "+ordering)
	if seen := shop.send("GET", "/me", cookie); seen.status != 400 ||
		!strings.Contains(seen.challenge, "invalid_request") {
		t.Error(seen)
	}
	shop.expect("GET", "/me", elsewhere, 401, "not meant for this resource")
	shop.expect("POST", "/orders", good, 403, `scope="orders:write"`)
	shop.expect("POST", "/orders", ordering, 200, "ordered by alice")

	stepUp(t, client, shop)
	_, err = client.Revoke(t.Context(), &pb.RevokeRequest{
		Target: &pb.RevokeRequest_Token{Token: ordering},
	})
	if err != nil {
		t.Fatal(err)
	}
	shop.expect("GET", "/me", ordering, 401, "has been revoked")
	testserver.Eventually(t, "the token expires", func() bool {
		return strings.Contains(shop.call("GET", "/me", expiring).challenge, "has expired")
	})

	authority.Kill()
	testserver.Eventually(t, "the lease ends", func() bool {
		return shop.call("GET", "/me", good).status == 503
	})
	shop.expect("GET", "/", "", 200, "welcome")
}

// stepUp pays, which needs another authentication.
func stepUp(t *testing.T, client *countersign.Client, shop *shop) {
	t.Helper()
	created := create(t, client, &pb.CreateSessionRequest{})
	token := created.GetTokens().GetAccessToken()
	for _, part := range []string{
		"insufficient_user_authentication", `acr_values="gold"`, `max_age="300"`,
	} {
		shop.expect("POST", "/payments", token, 401, part)
	}
	id := created.GetSession().GetSessionId()
	again, err := client.Reauthenticate(t.Context(), &pb.ReauthenticateRequest{
		Session: &pb.ReauthenticateRequest_SessionId{SessionId: id},
		Acr:     "gold",
	})
	if err != nil {
		t.Fatal(err)
	}
	shop.expect("POST", "/payments", again.GetTokens().GetAccessToken(), 200, "paid by alice")
	// The earlier token rests on the earlier authentication.
	shop.expect("GET", "/me", token, 401, "has been revoked")
}
