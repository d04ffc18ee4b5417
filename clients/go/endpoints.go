package countersign

import (
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
)

// avoidedFor is the time for which a replica that could not be reached gets no calls if another one
// can get them.
const avoidedFor = 2 * time.Second

// endpoints are the replicas. Calls go to one after the other.
//
// gRPC can balance calls by itself, but then a repetition may go to the replica that has just
// failed.
type endpoints struct {
	replicas []*replica
	next     atomic.Uint64
	began    time.Time
}

// replica is a replica of the service, with the connection that calls share.
type replica struct {
	target  string
	options []grpc.DialOption
	conn    *grpc.ClientConn
	// avoidedUntil is the time since `began` until which other replicas are preferred.
	avoidedUntil atomic.Int64
}

// choose returns the replica that gets the next call: if possible one that has not failed recently.
func (e *endpoints) choose() *replica {
	count := uint64(len(e.replicas))
	first := e.next.Add(1) - 1
	now := time.Since(e.began)
	for offset := range count {
		replica := e.replicas[(first+offset)%count]
		if replica.avoidedUntil.Load() <= int64(now) {
			return replica
		}
	}
	return e.replicas[first%count]
}

// avoid prefers other replicas for a while, because this one has failed.
func (e *endpoints) avoid(replica *replica) {
	replica.avoidedUntil.Store(int64(time.Since(e.began) + avoidedFor))
}

// trust prefers a replica no less than others, because it has answered.
func (e *endpoints) trust(replica *replica) {
	if replica.avoidedUntil.Load() != 0 {
		replica.avoidedUntil.Store(0)
	}
}

// dial opens a connection of its own to a replica.
func (r *replica) dial() (*grpc.ClientConn, error) { return grpc.NewClient(r.target, r.options...) }
