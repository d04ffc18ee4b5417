package countersign

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// Client is a client of the service. It may be used by many goroutines.
//
// Every call has a deadline. A call that a replica cannot answer is repeated at another replica
// until the deadline, unless it may have taken effect and must not take effect twice. All errors
// are of the type [*Error].
type Client struct {
	settings  settings
	endpoints *endpoints
}

// String names the type, and no secret.
func (*Client) String() string { return "countersign.Client" }

// GoString names the type, and no secret.
func (*Client) GoString() string { return "countersign.Client" }

// Close closes the connections.
func (c *Client) Close() error {
	var all []error
	for _, replica := range c.endpoints.replicas {
		all = append(all, replica.conn.Close())
	}
	return errors.Join(all...)
}

// call is a call, besides its request.
type call struct {
	service, method string
	// isRepeatable is true if the call has the same effect however often it is made. Otherwise it
	// is repeated only if the service has certainly done nothing.
	isRepeatable bool
	deadline     time.Duration
}

const (
	sessionService = "SessionService"
	keyService     = "KeyService"
	auditService   = "AuditService"
)

func (c *Client) usual(service, method string) call {
	return call{service, method, true, c.settings.deadline}
}

func (c *Client) revocation(service, method string) call {
	return call{service, method, true, c.settings.revocationDeadline}
}

func (c call) ifRefused() call {
	c.isRepeatable = false
	return c
}

// send makes a call once.
type send[Q, R any] func(*grpc.ClientConn, context.Context, Q, ...grpc.CallOption) (R, error)

// session makes a method of the generated client of SessionService a function of the connection.
func session[Q, R any](
	method func(pb.SessionServiceClient, context.Context, Q, ...grpc.CallOption) (R, error),
) send[Q, R] {
	return func(conn *grpc.ClientConn, ctx context.Context, request Q, options ...grpc.CallOption) (
		R, error,
	) {
		return method(pb.NewSessionServiceClient(conn), ctx, request, options...)
	}
}

func key[Q, R any](
	method func(pb.KeyServiceClient, context.Context, Q, ...grpc.CallOption) (R, error),
) send[Q, R] {
	return func(conn *grpc.ClientConn, ctx context.Context, request Q, options ...grpc.CallOption) (
		R, error,
	) {
		return method(pb.NewKeyServiceClient(conn), ctx, request, options...)
	}
}

// CreateSession starts a session for a user whom the caller has authenticated.
//
// If the request has no request id, the call gets one, so that a repetition by this method yields
// the same session. To make a later call safe too, set a request id of your own.
func (c *Client) CreateSession(
	ctx context.Context, request *pb.CreateSessionRequest, options ...CallOption,
) (*pb.CreateSessionResponse, error) {
	if request.GetRequestId() == "" {
		request = cloned(request)
		request.RequestId = core.NewRandomID().String()
	}
	return invoke(ctx, c, c.usual(sessionService, "CreateSession"), request,
		session(pb.SessionServiceClient.CreateSession), options)
}

// Refresh exchanges a refresh token for the next pair of tokens.
//
// The call is repeated only if the service has certainly not exchanged the token. After another
// error, exchange the same refresh token again: within the grace of its policy, it yields the same
// tokens.
func (c *Client) Refresh(
	ctx context.Context, request *pb.RefreshRequest, options ...CallOption,
) (*pb.RefreshResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "Refresh").ifRefused(), request,
		session(pb.SessionServiceClient.Refresh), options)
}

// Reauthenticate records that the user of a session has authenticated again. No earlier token of
// the session is accepted any more. The call gets a request id as in [Client.CreateSession].
func (c *Client) Reauthenticate(
	ctx context.Context, request *pb.ReauthenticateRequest, options ...CallOption,
) (*pb.ReauthenticateResponse, error) {
	if request.GetRequestId() == "" {
		request = cloned(request)
		request.RequestId = core.NewRandomID().String()
	}
	return invoke(ctx, c, c.revocation(sessionService, "Reauthenticate"), request,
		session(pb.SessionServiceClient.Reauthenticate), options)
}

// UpdateSession changes data of a live session. The call is not repeated once it may have taken
// effect.
func (c *Client) UpdateSession(
	ctx context.Context, request *pb.UpdateSessionRequest, options ...CallOption,
) (*pb.UpdateSessionResponse, error) {
	return invoke(ctx, c, c.revocation(sessionService, "UpdateSession").ifRefused(), request,
		session(pb.SessionServiceClient.UpdateSession), options)
}

// ImportSessions takes over live sessions of another system.
func (c *Client) ImportSessions(
	ctx context.Context, request *pb.ImportSessionsRequest, options ...CallOption,
) (*pb.ImportSessionsResponse, error) {
	return invoke(ctx, c, c.revocation(sessionService, "ImportSessions"), request,
		session(pb.SessionServiceClient.ImportSessions), options)
}

// Validate checks whether an access token is active. A [Verifier] has a simpler answer, and can do
// it without a call.
func (c *Client) Validate(
	ctx context.Context, request *pb.ValidateRequest, options ...CallOption,
) (*pb.ValidateResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "Validate"), request,
		session(pb.SessionServiceClient.Validate), options)
}

// BatchValidate validates up to 256 tokens in one call.
func (c *Client) BatchValidate(
	ctx context.Context, request *pb.BatchValidateRequest, options ...CallOption,
) (*pb.BatchValidateResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "BatchValidate"), request,
		session(pb.SessionServiceClient.BatchValidate), options)
}

// Revoke ends sessions, or makes a single access token inactive. Once it has returned without an
// error, no replica and no watcher accepts a revoked token any more.
func (c *Client) Revoke(
	ctx context.Context, request *pb.RevokeRequest, options ...CallOption,
) (*pb.RevokeResponse, error) {
	return invoke(ctx, c, c.revocation(sessionService, "Revoke"), request,
		session(pb.SessionServiceClient.Revoke), options)
}

// ListRevocations lists revocations of many sessions.
func (c *Client) ListRevocations(
	ctx context.Context, request *pb.ListRevocationsRequest, options ...CallOption,
) (*pb.ListRevocationsResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "ListRevocations"), request,
		session(pb.SessionServiceClient.ListRevocations), options)
}

// GetSession returns one session.
func (c *Client) GetSession(
	ctx context.Context, request *pb.GetSessionRequest, options ...CallOption,
) (*pb.GetSessionResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "GetSession"), request,
		session(pb.SessionServiceClient.GetSession), options)
}

// ListSessions lists sessions of a tenant.
func (c *Client) ListSessions(
	ctx context.Context, request *pb.ListSessionsRequest, options ...CallOption,
) (*pb.ListSessionsResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "ListSessions"), request,
		session(pb.SessionServiceClient.ListSessions), options)
}

// CountSessions counts sessions of a tenant.
func (c *Client) CountSessions(
	ctx context.Context, request *pb.CountSessionsRequest, options ...CallOption,
) (*pb.CountSessionsResponse, error) {
	return invoke(ctx, c, c.usual(sessionService, "CountSessions"), request,
		session(pb.SessionServiceClient.CountSessions), options)
}

// GetJwks returns the public keys that verify access tokens.
func (c *Client) GetJwks(
	ctx context.Context, request *pb.GetJwksRequest, options ...CallOption,
) (*pb.GetJwksResponse, error) {
	return invoke(ctx, c, c.usual(keyService, "GetJwks"), request,
		key(pb.KeyServiceClient.GetJwks), options)
}

// ListKeys lists all keys.
func (c *Client) ListKeys(
	ctx context.Context, request *pb.ListKeysRequest, options ...CallOption,
) (*pb.ListKeysResponse, error) {
	return invoke(ctx, c, c.usual(keyService, "ListKeys"), request,
		key(pb.KeyServiceClient.ListKeys), options)
}

// RotateKey makes the pending key active. The call is repeated only if the service has certainly
// done nothing.
func (c *Client) RotateKey(
	ctx context.Context, request *pb.RotateKeyRequest, options ...CallOption,
) (*pb.RotateKeyResponse, error) {
	return invoke(ctx, c, c.usual(keyService, "RotateKey").ifRefused(), request,
		key(pb.KeyServiceClient.RotateKey), options)
}

// RevokeKey revokes a key. Once it has returned without an error, no replica and no watcher accepts
// any token of that key.
func (c *Client) RevokeKey(
	ctx context.Context, request *pb.RevokeKeyRequest, options ...CallOption,
) (*pb.RevokeKeyResponse, error) {
	return invoke(ctx, c, c.revocation(keyService, "RevokeKey"), request,
		key(pb.KeyServiceClient.RevokeKey), options)
}

// ListAudit lists records of the audit.
func (c *Client) ListAudit(
	ctx context.Context, request *pb.ListAuditRequest, options ...CallOption,
) (*pb.ListAuditResponse, error) {
	list := func(
		conn *grpc.ClientConn, ctx context.Context, request *pb.ListAuditRequest,
		options ...grpc.CallOption,
	) (*pb.ListAuditResponse, error) {
		return pb.NewAuditServiceClient(conn).ListAudit(ctx, request, options...)
	}
	return invoke(ctx, c, c.usual(auditService, "ListAudit"), request, list, options)
}

// cloned returns a copy of a request, because the caller may use the original again.
func cloned[M interface {
	comparable
	proto.Message
}](request M) M {
	var none M
	if request == none {
		return request.ProtoReflect().New().Interface().(M)
	}
	return proto.CloneOf(request)
}

// invoke makes a call, and repeats it at other replicas until its deadline.
func invoke[Q, R any](
	ctx context.Context, c *Client, call call, request Q, send send[Q, R], options []CallOption,
) (R, error) {
	for _, option := range options {
		option(&call)
	}
	ctx, cancel := context.WithTimeout(ctx, call.deadline)
	defer cancel()
	ended := func(error) {}
	if c.settings.observer != nil {
		ctx, ended = c.settings.observer(ctx, call.service, call.method)
	}
	response, failed := repeat(ctx, c, call, request, send)
	if failed != nil {
		ended(failed)
		var none R
		return none, failed
	}
	ended(nil)
	return response, nil
}

func repeat[Q, R any](
	ctx context.Context, c *Client, call call, request Q, send send[Q, R],
) (R, *Error) {
	delays := backoffDelays{shortest: 10 * time.Millisecond, longest: 500 * time.Millisecond}
	for attempts := 1; ; attempts++ {
		response, failed := attempt(ctx, c, request, send)
		if failed == nil || !mayRepeat(failed, call) {
			return response, failed
		}
		delay := delays.next()
		// Another replica may answer at once. The wait that a replica asks for is for itself,
		// except that an overloaded service must get fewer calls.
		isElsewhere := attempts < len(c.endpoints.replicas) && failed.reason != ReasonOverloaded
		if !isElsewhere {
			delay = max(delay, failed.retryAfter)
		}
		if ends, hasEnd := ctx.Deadline(); hasEnd && time.Until(ends) <= delay {
			return response, failed
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return response, failed
		}
	}
}

func mayRepeat(failed *Error, call call) bool {
	hasEffectOnce := call.isRepeatable || failed.isRefused
	return failed.IsTemporary() && hasEffectOnce && failed.reason != ReasonKeyTooNew
}

func attempt[Q, R any](ctx context.Context, c *Client, request Q, send send[Q, R]) (R, *Error) {
	replica := c.endpoints.choose()
	sent := new(atomic.Bool)
	ctx = context.WithValue(c.outgoing(ctx), sentKey{}, sent)
	response, err := send(replica.conn, ctx, request)
	if err == nil {
		c.endpoints.trust(replica)
		return response, nil
	}
	failed := errorOf(err, sent.Load())
	if failed.reason == ReasonDeadlineExceeded && ctx.Err() != nil {
		failed = deadlineExceeded()
	}
	c.note(replica, failed)
	return response, failed
}

// note keeps in mind that a replica has failed, or that it works.
func (c *Client) note(replica *replica, failed *Error) {
	switch failed.reason {
	case ReasonUnreachable, ReasonNotCurrent, ReasonStoreUnavailable, ReasonOverloaded,
		ReasonDeadlineExceeded:
		c.endpoints.avoid(replica)
	case "":
		// The caller may have given up the call, which says nothing of the replica.
		if failed.Code() != codes.Canceled {
			c.endpoints.trust(replica)
		}
	default:
		c.endpoints.trust(replica)
	}
}

// outgoing adds the credentials of this client to the metadata of a call.
func (c *Client) outgoing(ctx context.Context) context.Context {
	if c.settings.authorization == "" {
		return ctx
	}
	fields, _ := metadata.FromOutgoingContext(ctx)
	fields = fields.Copy()
	if fields == nil {
		fields = metadata.MD{}
	}
	fields.Set("authorization", c.settings.authorization)
	return metadata.NewOutgoingContext(ctx, fields)
}

// watchStream is a stream of Watch.
type watchStream interface {
	Send(*pb.WatchRequest) error
	Recv() (*pb.WatchResponse, error)
}

// watch opens a connection of its own to the next replica, and calls Watch. Such a connection is
// not shared, so that one that has died is given up with the stream. The returned function ends
// both; with a flag that says whether to prefer other replicas for a while.
func (c *Client) watch(ctx context.Context) (watchStream, func(hasFailed bool), error) {
	replica := c.endpoints.choose()
	conn, err := replica.dial()
	if err != nil {
		return nil, nil, errorOf(err, false)
	}
	ctx, cancel := context.WithCancel(ctx)
	timer := time.AfterFunc(c.settings.deadline, cancel)
	stream, err := pb.NewRevocationServiceClient(conn).Watch(c.outgoing(ctx))
	if err != nil || !timer.Stop() {
		cancel()
		_ = conn.Close()
		failed := errorOf(status.Error(codes.Unavailable, "the replica cannot be reached"), false)
		if err != nil && status.Code(err) != codes.Canceled {
			failed = errorOf(err, false)
		}
		c.note(replica, failed)
		return nil, nil, failed
	}
	end := func(hasFailed bool) {
		cancel()
		_ = conn.Close()
		if hasFailed {
			c.endpoints.avoid(replica)
		}
	}
	return stream, end, nil
}

// backoffDelays are delays that grow, and differ from client to client.
type backoffDelays struct {
	shortest, longest, current time.Duration
}

func (b *backoffDelays) next() time.Duration {
	b.current = min(max(2*b.current, b.shortest), b.longest)
	return b.current/2 + rand.N(b.current)
}

// sentKey is the key, in the context of a call, of the flag that says whether it was sent.
type sentKey struct{}

// sentHandler notices that a request leaves this process.
type sentHandler struct{}

// TagRPC does nothing.
func (sentHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC sets the flag of a call whose header is sent.
func (sentHandler) HandleRPC(ctx context.Context, event stats.RPCStats) {
	if _, isHeader := event.(*stats.OutHeader); !isHeader {
		return
	}
	if sent, isCall := ctx.Value(sentKey{}).(*atomic.Bool); isCall {
		sent.Store(true)
	}
}

// TagConn does nothing.
func (sentHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn does nothing.
func (sentHandler) HandleConn(context.Context, stats.ConnStats) {}
