// Package httpauth is middleware for net/http that lets only requests pass whose access token is
// active and meets the demands of the route.
package httpauth

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/challenge"
	"countersign.example/client-go/internal/credential"
)

// Protection lets only requests pass whose access token is active and meets the demands.
//
// The token is in `Authorization: Bearer` or, with [WithCookie], in a cookie. The session is put
// into the context of the request: [countersign.SessionFromContext] returns it. Other requests are
// answered:
//
//	has no token                             401, with a challenge that names the demanded scopes
//	has several tokens                       400, invalid_request (RFC 6750)
//	has an inactive token                    401, invalid_token
//	lacks a scope                            403, insufficient_scope
//	needs a stronger or more recent          401, insufficient_user_authentication (RFC 9470)
//	authentication
//	cannot be checked now                    503, with Retry-After
//
// A request must have exactly one token. If it has two different ones, the application might use
// another one than was checked, so it is denied.
type Protection struct {
	verifier   *countersign.Verifier
	demands    countersign.Demands
	cookie     string
	realm      string
	isOptional bool
}

// Option is a setting of a protection.
type Option func(*Protection)

// WithCookie also takes the token from the cookie of this name. The cookie should be HttpOnly and
// SameSite, because browsers send it with requests that other sites have caused.
func WithCookie(name string) Option { return func(p *Protection) { p.cookie = name } }

// WithRealm sets the realm of challenges (RFC 9110, section 11.5), such as the URL of the service.
func WithRealm(realm string) Option { return func(p *Protection) { p.realm = realm } }

// New creates a protection with these demands.
func New(
	verifier *countersign.Verifier, demands countersign.Demands, options ...Option,
) *Protection {
	protection := &Protection{verifier: verifier, demands: demands}
	for _, option := range options {
		option(protection)
	}
	return protection
}

// Demanding returns the same protection with other demands, for a route that has others.
func (p *Protection) Demanding(demands countersign.Demands) *Protection {
	other := *p
	other.demands = demands
	return &other
}

// Optional returns the same protection, which also lets requests pass that have no token; they have
// no session. A request with a bad token is denied nevertheless.
func (p *Protection) Optional() *Protection {
	other := *p
	other.isOptional = true
	return &other
}

// String names the type.
func (*Protection) String() string { return "httpauth.Protection" }

// Handler returns a handler that runs next for requests that may pass.
func (p *Protection) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		session, denial := p.check(request.Context(), request.Header)
		if denial != nil {
			p.deny(writer, denial)
			return
		}
		// An outer protection may have put a session into the context that was not checked here.
		ctx := countersign.ContextWithSession(request.Context(), session)
		next.ServeHTTP(writer, request.WithContext(ctx))
	})
}

// HandlerFunc is [Protection.Handler] for a function.
func (p *Protection) HandlerFunc(
	next func(http.ResponseWriter, *http.Request),
) http.Handler {
	return p.Handler(http.HandlerFunc(next))
}

// WithSession returns a handler that hands the session to a function. If the request has none,
// because no protection has checked it, this is a mistake of the application: it answers 500.
func WithSession(
	next func(http.ResponseWriter, *http.Request, *countersign.Session),
) http.Handler {
	return http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		session, hasSession := countersign.SessionFromContext(request.Context())
		if !hasSession {
			slog.ErrorContext(request.Context(),
				"the route is not protected, or its protection is optional, so there is no session")
			writer.WriteHeader(http.StatusInternalServerError)
			return
		}
		next(writer, request, session)
	})
}

func (p *Protection) check(
	ctx context.Context, header http.Header,
) (*countersign.Session, *challenge.Denial) {
	authorization, cookies := header.Values("Authorization"), header.Values("Cookie")
	token, kind := credential.Find(authorization, cookies, p.cookie)
	switch kind {
	case credential.Token:
	case credential.Several:
		return nil, &challenge.Denial{Kind: challenge.SeveralTokens}
	case credential.ConflictingCookies:
		return nil, &challenge.Denial{Kind: challenge.ConflictingCookies}
	default:
		if p.isOptional {
			return nil, nil
		}
		return nil, &challenge.Denial{Kind: challenge.NoToken}
	}
	answer := p.verifier.Verify(ctx, token, p.demands)
	if session := answer.Session(); session != nil {
		return session, nil
	}
	return nil, challenge.Of(answer)
}

func (p *Protection) deny(writer http.ResponseWriter, denial *challenge.Denial) {
	header := writer.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	status := http.StatusUnauthorized
	switch {
	case denial.Kind == challenge.Unknown:
		status = http.StatusServiceUnavailable
		header.Set("Retry-After", "1")
	case denial.Kind == challenge.SeveralTokens || denial.Kind == challenge.ConflictingCookies:
		status = http.StatusBadRequest
	case denial.Reason == countersign.InsufficientScope:
		status = http.StatusForbidden
	}
	if status != http.StatusServiceUnavailable {
		value := denial.Challenge(p.realm, p.demands)
		if !isHeaderValue(value) {
			value = "Bearer"
		}
		header.Set("WWW-Authenticate", value)
	}
	writer.WriteHeader(status)
	_, _ = writer.Write(p.body(denial))
}

func (p *Protection) body(denial *challenge.Denial) []byte {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	// Texts can always be encoded.
	_ = encoder.Encode(struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{denial.Code(), denial.Description(p.demands)})
	return bytes.TrimRight(body.Bytes(), "\n")
}

// isHeaderValue returns whether a text may be the value of a header. The demands are the
// application's, and could have other texts.
func isHeaderValue(text string) bool {
	for _, char := range []byte(text) {
		if char < ' ' && char != '\t' || char == 0x7f {
			return false
		}
	}
	return true
}
