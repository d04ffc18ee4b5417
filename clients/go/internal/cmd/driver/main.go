// Command driver does with the library what it is told, so that all libraries can be put into the
// same situations. clients/situations/README.md describes the commands.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/httpauth"
	pb "countersign.example/client-go/proto/countersign/v1"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// command is a line of the input, with the members of all commands.
type command struct {
	Do                   string      `json:"do"`
	Endpoints            []string    `json:"endpoints"`
	APIKey               string      `json:"api_key"`
	CA                   string      `json:"ca"`
	Certificate          string      `json:"certificate"`
	Key                  string      `json:"key"`
	ServerName           string      `json:"server_name"`
	DeadlineMS           *int64      `json:"deadline_ms"`
	RevocationDeadlineMS *int64      `json:"revocation_deadline_ms"`
	ConnectTimeoutMS     *int64      `json:"connect_timeout_ms"`
	Mode                 string      `json:"mode"`
	Refuse               bool        `json:"refuse"`
	Issuer               string      `json:"issuer"`
	WithinMS             int64       `json:"within_ms"`
	Token                string      `json:"token"`
	Demands              demands     `json:"demands"`
	Headers              [][2]string `json:"headers"`
	Cookie               string      `json:"cookie"`
	Realm                string      `json:"realm"`
	Subject              string      `json:"subject"`
	Scopes               []string    `json:"scopes"`
	Tenant               string      `json:"tenant"`
	Audience             []string    `json:"audience"`
	RefreshToken         string      `json:"refresh_token"`
	WallMS               int64       `json:"wall_ms"`
	UptimeMS             int64       `json:"uptime_ms"`
}

// answer is a line of the output.
type answer map[string]any

// driver has the client and the verifier in force.
type driver struct {
	client   *countersign.Client
	verifier *countersign.Verifier
	clock    movedClock
	load     *load
}

// run answers until the input ends.
func run(input io.Reader, output io.Writer) error {
	driver := &driver{}
	defer driver.close()
	commands, answers := bufio.NewReader(input), json.NewEncoder(output)
	answers.SetEscapeHTML(false)
	for {
		line, err := commands.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var command command
		decoder := json.NewDecoder(strings.NewReader(string(line)))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&command); err != nil {
			return err
		}
		answer, err := driver.do(&command)
		if err != nil {
			return err
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}

func (d *driver) do(command *command) (answer, error) {
	switch command.Do {
	case "connect":
		return d.connect(command)
	case "verifier":
		return d.replaceVerifier(command)
	case "ready":
		span := time.Duration(command.WithinMS) * time.Millisecond
		ctx, cancel := context.WithTimeout(context.Background(), span)
		defer cancel()
		return answer{"ready": d.verifier.Ready(ctx) == nil}, nil
	case "verify":
		return verified(d.verify(command.Token, command.Demands)), nil
	case "guard":
		return d.guard(command), nil
	case "create":
		return d.create(command), nil
	case "refresh":
		return d.refresh(command), nil
	case "revoke":
		return d.revoke(command), nil
	case "validate":
		return d.validate(command), nil
	case "clock":
		d.clock.move(command.WallMS, command.UptimeMS)
		return answer{}, nil
	case "load":
		d.load = startLoad(d.client, d.verifier, command.Subject)
		return answer{}, nil
	case "load_end":
		return d.load.end(), nil
	default:
		return nil, fmt.Errorf("the command %q is unknown", command.Do)
	}
}

func (d *driver) close() {
	if d.verifier != nil {
		d.verifier.Close()
	}
	if d.client != nil {
		_ = d.client.Close()
	}
	d.client, d.verifier = nil, nil
}

func (d *driver) connect(command *command) (answer, error) {
	d.close()
	var options []countersign.Option
	if command.APIKey != "" {
		options = append(options, countersign.WithAPIKey(command.APIKey))
	}
	if command.ServerName != "" {
		options = append(options, countersign.WithServerName(command.ServerName))
	}
	if command.CA != "" {
		pem, err := os.ReadFile(command.CA)
		if err != nil {
			return nil, err
		}
		options = append(options, countersign.WithCACertificate(pem))
	}
	if command.Certificate != "" {
		pem, err := os.ReadFile(command.Certificate)
		if err != nil {
			return nil, err
		}
		key, err := os.ReadFile(command.Key)
		if err != nil {
			return nil, err
		}
		options = append(options, countersign.WithClientCertificate(pem, key))
	}
	options = append(options, command.times()...)
	client, err := countersign.NewClient(command.Endpoints, options...)
	if err != nil {
		return answer{"refused": true}, nil
	}
	d.client = client
	return answer{}, nil
}

func (c *command) times() []countersign.Option {
	var options []countersign.Option
	for _, setting := range []struct {
		millis *int64
		option func(time.Duration) countersign.Option
	}{
		{c.DeadlineMS, countersign.WithDeadline},
		{c.RevocationDeadlineMS, countersign.WithRevocationDeadline},
		{c.ConnectTimeoutMS, countersign.WithConnectTimeout},
	} {
		if setting.millis != nil {
			span := time.Duration(*setting.millis) * time.Millisecond
			options = append(options, setting.option(span))
		}
	}
	return options
}

func (d *driver) replaceVerifier(command *command) (answer, error) {
	if d.verifier != nil {
		d.verifier.Close()
	}
	options := []countersign.VerifierOption{countersign.WithClock(&d.clock)}
	if command.Refuse {
		options = append(options, countersign.WithOnLapse(countersign.LapseRefuses))
	}
	switch command.Mode {
	case "remote":
		d.verifier = countersign.NewRemoteVerifier(d.client)
	case "local":
		d.verifier = countersign.NewLocalVerifier(d.client, options...)
	case "local_unwatched":
		d.verifier = countersign.NewUnwatchedVerifier(d.client, command.Issuer, options...)
	default:
		return nil, fmt.Errorf("the mode %q is unknown", command.Mode)
	}
	return answer{}, nil
}

// demands are the demands as the vectors have them.
type demands struct {
	Audience             string   `json:"audience"`
	Scopes               []string `json:"scopes"`
	ACRValues            []string `json:"acr_values"`
	MaxAuthenticationAge int64    `json:"max_authentication_age"`
	Factors              []struct {
		Method string `json:"method"`
		MaxAge int64  `json:"max_age"`
	} `json:"factors"`
}

func (d demands) read() countersign.Demands {
	read := countersign.Demands{
		Audience:             d.Audience,
		Scopes:               d.Scopes,
		ACRValues:            d.ACRValues,
		MaxAuthenticationAge: time.Duration(d.MaxAuthenticationAge) * time.Second,
	}
	for _, factor := range d.Factors {
		age := time.Duration(factor.MaxAge) * time.Second
		read.Factors = append(read.Factors, countersign.Factor{Method: factor.Method, MaxAge: age})
	}
	return read
}

func (d *driver) verify(token string, demands demands) countersign.Answer {
	return d.verifier.Verify(context.Background(), token, demands.read())
}

func verified(known countersign.Answer) answer {
	switch {
	case known.IsActive():
		return answer{"answer": "ACTIVE", "subject": known.Session().Subject()}
	case known.InactiveReason() != 0:
		reason := strings.ToUpper(known.InactiveReason().String())
		return answer{"answer": "INACTIVE", "reason": reason}
	default:
		return answer{"answer": "UNKNOWN"}
	}
}

// guard sends a request to an application that the middleware protects.
func (d *driver) guard(command *command) answer {
	var options []httpauth.Option
	if command.Cookie != "" {
		options = append(options, httpauth.WithCookie(command.Cookie))
	}
	if command.Realm != "" {
		options = append(options, httpauth.WithRealm(command.Realm))
	}
	var subject *string
	application := httpauth.WithSession(
		func(_ http.ResponseWriter, _ *http.Request, session *countersign.Session) {
			reached := session.Subject()
			subject = &reached
		})
	protection := httpauth.New(d.verifier, command.Demands.read(), options...)
	request := httptest.NewRequest(http.MethodGet, "/", nil)
	for _, header := range command.Headers {
		request.Header.Add(header[0], header[1])
	}
	recorder := httptest.NewRecorder()
	protection.Handler(application).ServeHTTP(recorder, request)
	result := answer{"status": recorder.Code}
	if subject != nil {
		result["subject"] = *subject
	} else if challenge := recorder.Header().Get("WWW-Authenticate"); challenge != "" {
		result["challenge"] = challenge
	}
	return result
}

func (d *driver) create(command *command) answer {
	created, err := d.client.CreateSession(context.Background(), &pb.CreateSessionRequest{
		Subject:  command.Subject,
		Scopes:   command.Scopes,
		Tenant:   command.Tenant,
		Audience: command.Audience,
	})
	if err != nil {
		return failure(err)
	}
	return answer{
		"session_id":    created.GetSession().GetSessionId(),
		"access_token":  created.GetTokens().GetAccessToken(),
		"refresh_token": created.GetTokens().GetRefreshToken(),
	}
}

func (d *driver) refresh(command *command) answer {
	request := &pb.RefreshRequest{RefreshToken: command.RefreshToken}
	refreshed, err := d.client.Refresh(context.Background(), request)
	if err != nil {
		return failure(err)
	}
	return answer{
		"access_token":  refreshed.GetTokens().GetAccessToken(),
		"refresh_token": refreshed.GetTokens().GetRefreshToken(),
	}
}

func revocation(token string) *pb.RevokeRequest {
	return &pb.RevokeRequest{Target: &pb.RevokeRequest_Token{Token: token}}
}

func (d *driver) revoke(command *command) answer {
	if _, err := d.client.Revoke(context.Background(), revocation(command.Token)); err != nil {
		return failure(err)
	}
	return answer{}
}

func (d *driver) validate(command *command) answer {
	request := &pb.ValidateRequest{
		AccessToken: command.Token, View: pb.ValidateView_VALIDATE_VIEW_FULL,
	}
	validated, err := d.client.Validate(context.Background(), request)
	switch {
	case err != nil:
		return failure(err)
	case validated.GetActive():
		return answer{"answer": "ACTIVE", "subject": validated.GetSubject()}
	default:
		name := validated.GetInactiveReason().String()
		reason := strings.TrimPrefix(name, "INACTIVE_REASON_")
		return answer{"answer": "INACTIVE", "reason": reason}
	}
}

// failure returns the answer for an error of a call.
func failure(err error) answer {
	failed, isError := errors.AsType[*countersign.Error](err)
	if !isError {
		return answer{"error": err.Error()}
	}
	reason := string(failed.Reason())
	if reason == "" {
		reason = codeNames[failed.Code()]
	}
	failure := answer{"error": reason}
	if wait, hasWait := failed.RetryAfter(); hasWait {
		failure["retry_after_ms"] = wait.Milliseconds()
	}
	return failure
}

// codeNames are the names of the codes in the protocol.
var codeNames = map[codes.Code]string{
	codes.Canceled:           "CANCELLED",
	codes.Unknown:            "UNKNOWN",
	codes.InvalidArgument:    "INVALID_ARGUMENT",
	codes.NotFound:           "NOT_FOUND",
	codes.AlreadyExists:      "ALREADY_EXISTS",
	codes.PermissionDenied:   "PERMISSION_DENIED",
	codes.ResourceExhausted:  "RESOURCE_EXHAUSTED",
	codes.FailedPrecondition: "FAILED_PRECONDITION",
	codes.Aborted:            "ABORTED",
	codes.OutOfRange:         "OUT_OF_RANGE",
	codes.Unimplemented:      "UNIMPLEMENTED",
	codes.Internal:           "INTERNAL",
	codes.DataLoss:           "DATA_LOSS",
	codes.Unauthenticated:    "UNAUTHENTICATED",
}

// movedClock has the clocks of this machine, moved by commands.
type movedClock struct {
	mu           sync.Mutex
	wall, uptime time.Duration
}

// Now returns the time of the wall clock.
func (c *movedClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Without the reading of the monotonic clock, which does not move.
	return systemClock.Now().Round(0).Add(c.wall)
}

// Uptime returns the time since the machine was started.
func (c *movedClock) Uptime() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return systemClock.Uptime() + c.uptime
}

func (c *movedClock) move(wallMS, uptimeMS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall += time.Duration(wallMS) * time.Millisecond
	c.uptime += time.Duration(uptimeMS) * time.Millisecond
}
