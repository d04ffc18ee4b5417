package httpauth_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
	"countersign.example/client-go/httpauth"
)

func subject(writer http.ResponseWriter, _ *http.Request, session *countersign.Session) {
	_, _ = io.WriteString(writer, session.Subject())
}

func perhaps(writer http.ResponseWriter, request *http.Request) {
	name := "nobody"
	if session, hasSession := countersign.SessionFromContext(request.Context()); hasSession {
		name = session.Subject()
	}
	_, _ = io.WriteString(writer, name)
}

func site() (*countersigntest.Authority, http.Handler) {
	authority := countersigntest.New()
	ours := countersign.Demands{Audience: countersigntest.Audience}
	stepUp, scope := ours, ours
	stepUp.ACRValues = []string{"gold"}
	stepUp.MaxAuthenticationAge = time.Minute
	scope.Scopes = []string{"orders:write"}
	protection := httpauth.New(authority.Verifier(), ours,
		httpauth.WithCookie("session"), httpauth.WithRealm("shop"))
	mux := http.NewServeMux()
	mux.Handle("/me", protection.Handler(httpauth.WithSession(subject)))
	mux.Handle("/orders", protection.Demanding(scope).Handler(httpauth.WithSession(subject)))
	mux.Handle("/payment", protection.Demanding(stepUp).Handler(httpauth.WithSession(subject)))
	mux.Handle("/forgotten", httpauth.WithSession(subject))
	mux.Handle("/", protection.Optional().HandlerFunc(perhaps))
	return authority, mux
}

type header struct{ name, value string }

func bearer(token string) header { return header{"Authorization", "Bearer " + token} }

func cookie(token string) header { return header{"Cookie", "theme=dark; session=" + token} }

func call(routes http.Handler, path string, headers ...header) (int, string, string) {
	request := httptest.NewRequest(http.MethodGet, path, nil)
	for _, header := range headers {
		request.Header.Add(header.name, header.value)
	}
	recorder := httptest.NewRecorder()
	routes.ServeHTTP(recorder, request)
	answer := recorder.Result()
	if answer.StatusCode != http.StatusOK && answer.StatusCode != http.StatusInternalServerError {
		isRight := answer.Header.Get("Content-Type") == "application/json" &&
			answer.Header.Get("Cache-Control") == "no-store" &&
			(answer.Header.Get("Retry-After") == "1") == (answer.StatusCode == 503)
		if !isRight {
			return 0, "wrong headers", ""
		}
	}
	return answer.StatusCode, answer.Header.Get("WWW-Authenticate"), recorder.Body.String()
}

func TestATokenPassesInTheHeaderAndInTheCookieAndNowhereElse(t *testing.T) {
	authority, routes := site()
	token := authority.Issue("alice", countersigntest.Token{})
	for _, headers := range [][]header{
		{bearer(token)}, {cookie(token)}, {bearer(token), cookie(token)},
		{{"Authorization", "Basic dDp0"}, cookie(token)},
	} {
		for _, path := range []string{"/me", "/"} {
			if status, challenge, body := call(routes, path, headers...); status != 200 ||
				challenge != "" || body != "alice" {
				t.Error(path, status, challenge, body)
			}
		}
	}
	other := authority.Issue("bob", countersigntest.Token{})
	for _, headers := range [][]header{
		{bearer(token), cookie(other)}, {bearer(token), bearer(token)},
		{cookie(token), cookie(other)},
		{{"Cookie", "session=" + token + "; session=" + other}},
	} {
		for _, path := range []string{"/me", "/"} {
			status, challenge, body := call(routes, path, headers...)
			const start = `Bearer realm="shop", error="invalid_request"`
			// RFC 6750, section 3.1.
			if status != 400 || !strings.HasPrefix(challenge, start) ||
				!strings.HasPrefix(body, `{"error":"invalid_request","error_description":"`) {
				t.Error(path, status, challenge, body)
			}
		}
	}
	status, challenge, _ := call(routes, "/me?access_token="+token)
	if status != 401 || challenge != `Bearer realm="shop"` {
		t.Error(status, challenge)
	}
}

func TestOtherRequestsAreChallengedAsRFC6750AndRFC9470Say(t *testing.T) {
	authority, routes := site()
	token := authority.Issue("alice", countersigntest.Token{})
	elsewhere := authority.Issue("alice", countersigntest.Token{
		Audience: []string{"https://other.test"}})
	revoked := authority.Issue("alice", countersigntest.Token{})
	authority.Revoke(revoked)
	old := authority.Issue("alice", countersigntest.Token{
		ACR: "gold", AuthenticatedAgo: 61 * time.Second})
	invalid := func(text string) string {
		return `Bearer realm="shop", error="invalid_token", error_description="` + text + `"`
	}
	const stepUp = `Bearer realm="shop", error="insufficient_user_authentication", ` +
		`error_description="a stronger or more recent authentication is needed", ` +
		`acr_values="gold", max_age="60"`
	const scope = `Bearer realm="shop", error="insufficient_scope", ` +
		`error_description="the access token lacks a scope", scope="orders:write"`
	for _, expected := range []struct {
		path, token string
		status      int
		challenge   string
	}{
		{"/me", "x", 401, invalid("the access token is not valid")},
		{"/me", "", 401, invalid("the access token is not valid")},
		{"/me", revoked, 401, invalid("the access token has been revoked")},
		{"/me", elsewhere, 401, invalid("the access token is not meant for this resource")},
		{"/", revoked, 401, invalid("the access token has been revoked")},
		{"/orders", token, 403, scope},
		{"/payment", token, 401, stepUp},
		{"/payment", old, 401, stepUp},
	} {
		status, challenge, _ := call(routes, expected.path, bearer(expected.token))
		if status != expected.status || challenge != expected.challenge {
			t.Errorf("%s: %d %s", expected.path, status, challenge)
		}
	}
	good := authority.Issue("alice", countersigntest.Token{
		ACR: "gold", Scopes: []string{"orders:write"}})
	for _, path := range []string{"/me", "/orders", "/payment"} {
		if status, _, _ := call(routes, path, bearer(good)); status != 200 {
			t.Error(path, status)
		}
	}
	if _, _, body := call(routes, "/"); body != "nobody" {
		t.Error(body)
	}
	if _, challenge, _ := call(routes, "/orders"); challenge !=
		`Bearer realm="shop", scope="orders:write"` {
		t.Error(challenge)
	}
	authority.Advance(15 * time.Minute)
	if status, challenge, _ := call(routes, "/me", bearer(good)); status != 401 ||
		challenge != invalid("the access token has expired") {
		t.Error(status, challenge)
	}
}

func TestNothingPassesWhileTheAuthorityIsUnavailableOrIfAProtectionIsMissing(t *testing.T) {
	authority, routes := site()
	token := authority.Issue("alice", countersigntest.Token{})
	authority.SetUnavailable(true)
	for _, path := range []string{"/me", "/"} {
		status, challenge, body := call(routes, path, bearer(token))
		if status != 503 || challenge != "" || !strings.Contains(body, "temporarily_unavailable") {
			t.Error(path, status, challenge, body)
		}
	}
	authority.SetUnavailable(false)
	if status, _, _ := call(routes, "/me", bearer(token)); status != 200 {
		t.Error(status)
	}
	if status, _, _ := call(routes, "/forgotten", bearer(token)); status != 500 {
		t.Error(status)
	}
}

func TestADeniedRequestAlwaysGetsAChallenge(t *testing.T) {
	demands := countersign.Demands{Scopes: []string{"a\nb"}}
	routes := httpauth.New(countersigntest.New().Verifier(), demands).HandlerFunc(
		func(http.ResponseWriter, *http.Request) {})
	if status, challenge, _ := call(routes, "/"); status != 401 || challenge != "Bearer" {
		t.Error(status, challenge)
	}
}

func TestAnInnerProtectionReplacesTheSessionOfAnOuterOne(t *testing.T) {
	authority, routes := site()
	session := authority.Verifier().VerifyLocally(
		authority.Issue("mallory", countersigntest.Token{}), countersign.Demands{}).Session()
	request := httptest.NewRequest(http.MethodGet, "/", nil)
	request = request.WithContext(countersign.ContextWithSession(request.Context(), session))
	recorder := httptest.NewRecorder()
	routes.ServeHTTP(recorder, request)
	if body := recorder.Body.String(); body != "nobody" {
		t.Error(body)
	}
}
