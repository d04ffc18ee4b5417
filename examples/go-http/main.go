// Command go-http is a shop that is protected by Countersign. Its routes show what a route can
// demand: nothing, any session, a scope, or a recent authentication of a certain class.
//
// It has these variables in the environment:
//
//	COUNTERSIGN_ENDPOINTS  the URLs of the replicas, separated by commas
//	COUNTERSIGN_API_KEY    the key of a caller with the role `validator`, if the service has callers
//	LISTEN                 the address to listen on, 127.0.0.1:3000 by default
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/httpauth"
)

// audience is the audience that tokens for this service have.
const audience = "https://shop.example"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	endpoints := os.Getenv("COUNTERSIGN_ENDPOINTS")
	if endpoints == "" {
		return errors.New("COUNTERSIGN_ENDPOINTS must have the URLs of the replicas")
	}
	client, err := countersign.NewClient(strings.Split(endpoints, ","),
		countersign.WithAPIKey(os.Getenv("COUNTERSIGN_API_KEY")))
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	verifier := countersign.NewLocalVerifier(client,
		countersign.WithOnLapse(countersign.LapseRefuses))
	defer verifier.Close()
	// The service also starts without the authority, and then answers 503 until it is there.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	_ = verifier.Ready(ctx)
	cancel()
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("LISTEN"), "127.0.0.1:3000"))
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	server := &http.Server{Handler: routes(verifier), ReadHeaderTimeout: 5 * time.Second}
	return server.Serve(listener)
}

func routes(verifier *countersign.Verifier) http.Handler {
	ours := countersign.Demands{Audience: audience}
	ordering := countersign.Demands{Audience: audience, Scopes: []string{"orders:write"}}
	paying := countersign.Demands{
		Audience: audience, ACRValues: []string{"gold"}, MaxAuthenticationAge: 5 * time.Minute,
	}
	protection := httpauth.New(verifier, ours,
		httpauth.WithCookie("access_token"), httpauth.WithRealm(audience))
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", protection.Optional().HandlerFunc(greet))
	mux.Handle("GET /me", protection.Handler(httpauth.WithSession(showSession)))
	mux.Handle("POST /orders",
		protection.Demanding(ordering).Handler(httpauth.WithSession(order)))
	mux.Handle("POST /payments", protection.Demanding(paying).Handler(httpauth.WithSession(pay)))
	return mux
}

// greet is public: anybody may call it, and a session makes a difference.
func greet(writer http.ResponseWriter, request *http.Request) {
	if session, hasSession := countersign.SessionFromContext(request.Context()); hasSession {
		answer(writer, "welcome back, "+session.Subject())
		return
	}
	answer(writer, "welcome")
}

// showSession needs any session.
func showSession(writer http.ResponseWriter, _ *http.Request, session *countersign.Session) {
	plan, _ := session.Claim("plan")
	writer.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(writer).Encode(map[string]any{
		"session": session.ID(),
		"subject": session.Subject(),
		"scopes":  session.Scopes(),
		"plan":    plan,
	})
}

// order needs the scope orders:write.
func order(writer http.ResponseWriter, _ *http.Request, session *countersign.Session) {
	answer(writer, "ordered by "+session.Subject())
}

// pay needs an authentication of class gold within the last five minutes. A client that gets the
// challenge insufficient_user_authentication sends its user to sign in again (RFC 9470).
func pay(writer http.ResponseWriter, _ *http.Request, session *countersign.Session) {
	answer(writer, "paid by "+session.Subject())
}

func answer(writer http.ResponseWriter, text string) {
	writer.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprint(writer, text)
}
