package countersign_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
	"countersign.example/client-go/grpcauth"
	"countersign.example/client-go/httpauth"
	"countersign.example/client-go/internal/testserver"
	countersignv1 "countersign.example/client-go/proto/countersign/v1"
)

// The functions of this file have the code of the README and of docs/clients/go.md, word for word.

func protect() (http.Handler, func(), error) {
	client, err := countersign.NewClient(
		strings.Split(os.Getenv("COUNTERSIGN_ENDPOINTS"), ","), // https://sessions-1.example:50051
		countersign.WithAPIKey(os.Getenv("COUNTERSIGN_API_KEY")),
	)
	if err != nil {
		return nil, nil, err
	}
	verifier := countersign.NewLocalVerifier(client)

	// Optional: without it, the first requests cost a call.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = verifier.Ready(ctx)

	protection := httpauth.New(verifier, countersign.Demands{Audience: "https://orders.example"})
	payment := protection.Demanding(countersign.Demands{
		Audience:             "https://orders.example",
		Scopes:               []string{"orders:write"},
		MaxAuthenticationAge: 5 * time.Minute,
	})

	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "public")
	})
	mux.Handle("GET /me", protection.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session, _ := countersign.SessionFromContext(r.Context())
		fmt.Fprintf(w, "hello %s", session.Subject())
	}))
	mux.Handle("POST /payments", payment.HandlerFunc(
		func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "paid") }))
	stop := func() {
		verifier.Close()
		_ = client.Close()
	}
	return mux, stop, nil
}

func signInAndRefresh(ctx context.Context, client *countersign.Client) error {
	created, err := client.CreateSession(ctx, &countersignv1.CreateSessionRequest{
		Subject: "alice",
		Scopes:  []string{"orders:write"},
		Amr:     []string{"pwd"},
	})
	if err != nil {
		return err
	}
	refreshed, err := client.Refresh(ctx, &countersignv1.RefreshRequest{
		RefreshToken: created.GetTokens().GetRefreshToken(),
	})
	var failed *countersign.Error
	switch {
	case err == nil:
		log.Println("until", refreshed.GetSession().GetExpiresAt().AsTime())
	case countersign.ReasonOf(err) == countersign.ReasonRefreshTokenReused:
		log.Println("sign in again")
	case errors.As(err, &failed) && failed.IsTemporary():
		log.Println("refresh the same token again:", err)
	default:
		return err
	}
	return nil
}

func TestOrders(t *testing.T) {
	authority := countersigntest.New()
	verifier := authority.Verifier() // give it to your routes
	token := authority.Issue("alice", countersigntest.Token{Scopes: []string{"orders:write"}})
	if answer := verifier.VerifyLocally(token, countersign.Demands{}); !answer.IsActive() {
		t.Error(answer)
	}
	authority.Revoke(token)
	authority.SetUnavailable(true)
	authority.Advance(time.Hour)
}

func protectCalls(verifier *countersign.Verifier) *grpc.Server {
	protection := grpcauth.New(verifier,
		countersign.Demands{Audience: "https://orders.example"},
		grpcauth.WithMethod("/shop.v1.Orders/Cancel", countersign.Demands{
			Audience: "https://orders.example",
			Scopes:   []string{"orders:write"},
		}),
		grpcauth.WithPublic("/grpc.health.v1.Health/Check"))
	return grpc.NewServer(
		grpc.UnaryInterceptor(protection.Unary), grpc.StreamInterceptor(protection.Stream))
}

func newClientWithTLS() (*countersign.Client, error) {
	read := func(name string) []byte {
		pem, err := os.ReadFile(name)
		if err != nil {
			log.Print(err)
		}
		return pem
	}
	return countersign.NewClient(
		[]string{"https://sessions-1.example:50051", "https://sessions-2.example:50051"},
		countersign.WithCACertificate(read("ca.pem")),
		countersign.WithClientCertificate(read("shop.pem"), read("shop.key")),
	)
}

func TestTheCodeOfTheReadmeWorks(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	t.Setenv("COUNTERSIGN_ENDPOINTS", site.URL())
	t.Setenv("COUNTERSIGN_API_KEY", "")
	routes, stop, err := protect()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	client := clientOf(t, site)
	if err := signInAndRefresh(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	created, err := client.CreateSession(t.Context(), &countersignv1.CreateSessionRequest{
		Subject: "alice", Audience: []string{"https://orders.example"},
		Scopes: []string{"orders:write"},
	}, patiently)
	if err != nil {
		t.Fatal(err)
	}
	token := created.GetTokens().GetAccessToken()
	call := func(method, path, token string) string {
		request := httptest.NewRequest(method, path, nil)
		request.Header.Set("Authorization", "Bearer "+token)
		recorder := httptest.NewRecorder()
		routes.ServeHTTP(recorder, request)
		return fmt.Sprint(recorder.Code, " ", recorder.Body.String())
	}
	for expected, seen := range map[string]string{
		"200 hello alice": call("GET", "/me", token),
		"200 public":      call("GET", "/", ""),
		"200 paid":        call("POST", "/payments", token),
	} {
		if seen != expected {
			t.Error(seen, "instead of", expected)
		}
	}
	if seen := call("POST", "/payments", ""); !strings.HasPrefix(seen, "401") {
		t.Error(seen)
	}
	protectCalls(countersigntest.New().Verifier()).Stop()
	t.Chdir(t.TempDir())
	certificates := testserver.NewCertificates(t)
	certificate, key := certificates.Issue(t, "shop", newTemplate())
	for name, pem := range map[string][]byte{
		"ca.pem": certificates.CA, "shop.pem": certificate, "shop.key": key,
	} {
		if err := os.WriteFile(name, pem, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	encrypted, err := newClientWithTLS()
	if err != nil {
		t.Fatal(err)
	}
	_ = encrypted.Close()
}

// TestTheCodeOfTheReadmeIsTested checks that each line of Go code in the documents is in this file.
func TestTheCodeOfTheReadmeIsTested(t *testing.T) {
	own, err := os.ReadFile("readme_test.go")
	if err != nil {
		t.Fatal(err)
	}
	plain := func(text string) string {
		var lines []string
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "\n")
	}
	tested := plain(string(own))
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```")
	for _, name := range []string{"README.md", "../../docs/clients/go.md"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		found := blocks.FindAllStringSubmatch(string(text), -1)
		if len(found) == 0 {
			t.Errorf("%s has no code", name)
		}
		for _, block := range found {
			if !strings.Contains(tested, plain(block[1])) {
				t.Errorf("this code of %s is not tested:\n%s", name, block[1])
			}
		}
	}
}
