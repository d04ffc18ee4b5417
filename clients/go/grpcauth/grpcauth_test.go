package grpcauth_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
	"countersign.example/client-go/grpcauth"
)

// seen is the code and the reason of an answer, and its metadata.
type seen struct {
	code     codes.Code
	reason   string
	metadata map[string]string
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

func name(ctx context.Context) string {
	if session, hasSession := countersign.SessionFromContext(ctx); hasSession {
		return session.Subject()
	}
	return "nobody"
}

// call calls a method once by a unary call and once by a stream, which must have the same answer.
func call(t *testing.T, protection *grpcauth.Protection, path string, tokens ...string) seen {
	t.Helper()
	fields := metadata.MD{}
	for _, token := range tokens {
		fields.Append("authorization", "Bearer "+token)
	}
	ctx := metadata.NewIncomingContext(t.Context(), fields)
	subject, err := protection.Unary(ctx, nil, &grpc.UnaryServerInfo{FullMethod: path},
		func(ctx context.Context, _ any) (any, error) { return name(ctx), nil })
	streamed := ""
	streamErr := protection.Stream(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: path},
		func(_ any, stream grpc.ServerStream) error {
			streamed = name(stream.Context())
			return nil
		})
	if status.Code(err) != status.Code(streamErr) || err == nil && subject != streamed {
		t.Errorf("%v %v, but %v %q", err, subject, streamErr, streamed)
	}
	if err == nil {
		return seen{reason: subject.(string)}
	}
	answer := seen{code: status.Code(err)}
	hasRetry := false
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() != "countersign" {
				t.Error(detail.GetDomain())
			}
			answer.reason, answer.metadata = detail.GetReason(), detail.GetMetadata()
		case *errdetails.RetryInfo:
			hasRetry = detail.GetRetryDelay().AsDuration() > 0
		}
	}
	if hasRetry != (answer.code == codes.Unavailable) {
		t.Errorf("%v: RetryInfo is there: %v", answer, hasRetry)
	}
	return answer
}

func TestCallsAreCheckedByTheDemandsOfTheirMethod(t *testing.T) {
	authority := countersigntest.New()
	const list, create, pay = "/shop.Orders/List", "/shop.Orders/Create", "/shop.Orders/Pay"
	const health = "/grpc.health.v1.Health/Check"
	protection := grpcauth.New(authority.Verifier(),
		countersign.Demands{Audience: countersigntest.Audience},
		grpcauth.WithMethod(create, countersign.Demands{Scopes: []string{"orders:write"}}),
		grpcauth.WithMethod(pay, countersign.Demands{
			ACRValues: []string{"gold", "silver"},
			Factors:   []countersign.Factor{{Method: "hwk", MaxAge: time.Minute}},
		}),
		grpcauth.WithPublic(health))
	issue := func(token countersigntest.Token) string { return authority.Issue("alice", token) }
	token := issue(countersigntest.Token{Scopes: []string{"orders:write"}})
	plain := issue(countersigntest.Token{})
	strong := issue(countersigntest.Token{ACR: "gold", AMR: []string{"hwk"}})
	elsewhere := issue(countersigntest.Token{Audience: []string{"x"}})
	revoked := issue(countersigntest.Token{})
	authority.Revoke(revoked)
	for _, expected := range []struct {
		path          string
		tokens        []string
		code          codes.Code
		reason        string
		demand, value string
	}{
		{list, []string{token}, codes.OK, "alice", "", ""},
		{create, []string{token}, codes.OK, "alice", "", ""},
		{pay, []string{strong}, codes.OK, "alice", "", ""},
		{health, nil, codes.OK, "nobody", "", ""},
		{list, nil, codes.Unauthenticated, "NO_TOKEN", "", ""},
		{list, []string{token, token}, codes.Unauthenticated, "SEVERAL_TOKENS", "", ""},
		{list, []string{"x"}, codes.Unauthenticated, "MALFORMED", "", ""},
		{list, []string{revoked}, codes.Unauthenticated, "REVOKED", "", ""},
		{list, []string{elsewhere}, codes.Unauthenticated, "WRONG_AUDIENCE", "", ""},
		{create, []string{plain}, codes.PermissionDenied, "INSUFFICIENT_SCOPE",
			"scope", "orders:write"},
		{pay, []string{token}, codes.Unauthenticated, "STEP_UP_REQUIRED",
			"acr_values", "gold silver"},
		{pay, []string{token}, codes.Unauthenticated, "STEP_UP_REQUIRED", "max_age", "60"},
	} {
		answer := call(t, protection, expected.path, expected.tokens...)
		if answer.code != expected.code || answer.reason != expected.reason ||
			answer.metadata[expected.demand] != expected.value {
			t.Errorf("%s: %v instead of %v", expected.path, answer, expected)
		}
	}
	authority.SetUnavailable(true)
	if answer := call(t, protection, list, token); answer.code != codes.Unavailable ||
		answer.reason != "TOKEN_NOT_CHECKED" {
		t.Error(answer)
	}
	if answer := call(t, protection, health); answer.code != codes.OK {
		t.Error(answer)
	}
}
