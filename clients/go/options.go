package countersign

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// Errors of NewClient.
var (
	// ErrNoEndpoint says that there is no endpoint.
	ErrNoEndpoint = errors.New(
		"no endpoint is given: name at least one, such as http://127.0.0.1:50051")
	// ErrEndpoint says that an endpoint is not a URL.
	ErrEndpoint = errors.New(
		"the endpoint is not a URL such as https://sessions.example:50051")
	// ErrTLS says that a certificate or a private key cannot be used.
	ErrTLS = errors.New("the certificates cannot be used")
	// ErrNotEncrypted says that certificates are set, and that an endpoint is not encrypted.
	ErrNotEncrypted = errors.New(
		"the endpoint is not encrypted, so the certificates would not be used: use https://")
	// ErrAPIKey says that the API key cannot be sent.
	ErrAPIKey = errors.New("the API key has characters that cannot be sent")
)

// The defaults of the settings.
const (
	defaultDeadline           = time.Second
	defaultRevocationDeadline = 5 * time.Second
	defaultConnectTimeout     = 500 * time.Millisecond
	// maxAnswerBytes is the size of the largest answer that is read. The service limits its answers
	// itself (limits.max_answer_bytes, 4 MiB by default).
	maxAnswerBytes = 64 << 20
)

type settings struct {
	apiKey             string
	authorization      string
	authorities        [][]byte
	certificate        []byte
	certificateKey     []byte
	serverName         string
	deadline           time.Duration
	revocationDeadline time.Duration
	connectTimeout     time.Duration
	logger             *slog.Logger
	observer           CallObserver
}

// Option is a setting of a client.
type Option func(*settings)

// WithAPIKey sends this API key with each call. The key is a secret, so the endpoints should begin
// with https://.
func WithAPIKey(key string) Option { return func(s *settings) { s.apiKey = key } }

// WithCACertificate trusts only certificates of these authorities, in PEM. Otherwise those that the
// machine trusts are trusted.
func WithCACertificate(pem []byte) Option {
	return func(s *settings) { s.authorities = append(s.authorities, pem) }
}

// WithClientCertificate identifies as a caller by this client certificate and its private key, in
// PEM.
func WithClientCertificate(pem, key []byte) Option {
	return func(s *settings) { s.certificate, s.certificateKey = pem, key }
}

// WithServerName expects this name in the certificate of the service, instead of the host of the
// endpoint.
func WithServerName(name string) Option { return func(s *settings) { s.serverName = name } }

// WithDeadline sets the longest time that a call may take, with its repetitions: 1 s by default.
func WithDeadline(deadline time.Duration) Option {
	return func(s *settings) { s.deadline = deadline }
}

// WithRevocationDeadline sets the longest time for calls whose purpose is a revocation: Revoke,
// RevokeKey, Reauthenticate and UpdateSession. It is 5 s by default, because such a call waits for
// a replica or a watcher that has died, for up to 2.3 s.
func WithRevocationDeadline(deadline time.Duration) Option {
	return func(s *settings) { s.revocationDeadline = deadline }
}

// WithConnectTimeout sets the longest time that it may take to connect to a replica: 500 ms by
// default.
func WithConnectTimeout(timeout time.Duration) Option {
	return func(s *settings) { s.connectTimeout = timeout }
}

// WithLogger logs to this logger instead of [slog.Default].
func WithLogger(logger *slog.Logger) Option { return func(s *settings) { s.logger = logger } }

// CallObserver is told of each logical call, such as SessionService and Revoke. The call uses the
// context that it returns, and tells it of the end of the call.
type CallObserver func(ctx context.Context, service, method string) (
	context.Context, func(error))

// WithCallObserver observes each call. The package telemetry has an observer.
func WithCallObserver(observer CallObserver) Option {
	return func(s *settings) { s.observer = observer }
}

// CallOption is a setting of one call.
type CallOption func(*call)

// Within sets the longest time that this call may take, with its repetitions. The deadline of the
// context holds, too.
func Within(deadline time.Duration) CallOption {
	return func(c *call) { c.deadline = deadline }
}

// NewClient creates a client of the replicas at these URLs, such as https://sessions.example:50051.
// Calls go to the replicas in turn, and a call that one of them cannot answer is repeated at
// another. The client connects when it is first used.
func NewClient(urls []string, options ...Option) (*Client, error) {
	settings := settings{
		deadline:           defaultDeadline,
		revocationDeadline: defaultRevocationDeadline,
		connectTimeout:     defaultConnectTimeout,
		logger:             slog.Default(),
	}
	for _, option := range options {
		option(&settings)
	}
	if len(urls) == 0 {
		return nil, ErrNoEndpoint
	}
	if settings.apiKey != "" {
		for _, char := range []byte(settings.apiKey) {
			if char < ' ' || char > '~' {
				return nil, ErrAPIKey
			}
		}
		settings.authorization = "Bearer " + settings.apiKey
	}
	client := &Client{settings: settings, endpoints: &endpoints{began: time.Now()}}
	for _, endpoint := range urls {
		replica, err := settings.replica(endpoint)
		if err != nil {
			_ = client.Close()
			return nil, err
		}
		client.endpoints.replicas = append(client.endpoints.replicas, replica)
	}
	return client, nil
}

func (s *settings) replica(endpoint string) (*replica, error) {
	parsed, err := url.Parse(endpoint)
	isURL := err == nil && parsed.Hostname() != "" &&
		(parsed.Scheme == "http" || parsed.Scheme == "https")
	if !isURL {
		return nil, fmt.Errorf("%q: %w", endpoint, ErrEndpoint)
	}
	isEncrypted := parsed.Scheme == "https"
	port := parsed.Port()
	if port == "" {
		port = map[bool]string{true: "443", false: "80"}[isEncrypted]
	}
	transport := insecure.NewCredentials()
	switch {
	case isEncrypted:
		if transport, err = s.tls(); err != nil {
			return nil, err
		}
	case len(s.authorities) > 0 || s.certificate != nil:
		return nil, fmt.Errorf("%q: %w", endpoint, ErrNotEncrypted)
	case s.apiKey != "" && !isLocal(parsed.Hostname()):
		s.logger.Warn("the API key is sent without encryption: use https://", "endpoint", endpoint)
	}
	replica := &replica{
		target:  "dns:///" + net.JoinHostPort(parsed.Hostname(), port),
		options: s.dialOptions(transport),
	}
	if replica.conn, err = replica.dial(); err != nil {
		return nil, fmt.Errorf("%q: %w", endpoint, ErrEndpoint)
	}
	return replica, nil
}

func (s *settings) dialOptions(transport credentials.TransportCredentials) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("countersign-client-go/" + Version),
		grpc.WithDisableServiceConfig(),
		// The calls are repeated by the client, at other replicas.
		grpc.WithDisableRetry(),
		grpc.WithStatsHandler(sentHandler{}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay:  25 * time.Millisecond,
				Multiplier: 2,
				Jitter:     0.2,
				MaxDelay:   500 * time.Millisecond,
			},
			MinConnectTimeout: s.connectTimeout,
		}),
		// The service answers pings at any rate. A connection that has died unnoticed is replaced
		// within 15 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time:                10 * time.Second,
			Timeout:             5 * time.Second,
			PermitWithoutStream: true,
		}),
	}
}

func (s *settings) tls() (credentials.TransportCredentials, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: s.serverName}
	if len(s.authorities) > 0 {
		config.RootCAs = x509.NewCertPool()
		for _, pem := range s.authorities {
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("%w: no authority is in the PEM", ErrTLS)
			}
		}
	}
	if s.certificate != nil {
		pair, err := tls.X509KeyPair(s.certificate, s.certificateKey)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTLS, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config), nil
}

func isLocal(host string) bool {
	address := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || address != nil && address.IsLoopback()
}
