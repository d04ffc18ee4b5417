package main

import (
	"context"
	"fmt"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

var systemClock core.SystemClock

// maxErrors is the number of errors that are described.
const maxErrors = 10

// load is an application that works in the background.
type load struct {
	client   *countersign.Client
	verifier *countersign.Verifier
	subject  string
	stop     chan struct{}
	stopped  chan struct{}
	rounds   int
	failed   int
	errors   []string
}

func startLoad(client *countersign.Client, verifier *countersign.Verifier, subject string) *load {
	load := &load{
		client:   client,
		verifier: verifier,
		subject:  subject,
		stop:     make(chan struct{}),
		stopped:  make(chan struct{}),
		errors:   []string{},
	}
	go load.run()
	return load
}

// end waits for the round that is under way, and returns the result.
func (l *load) end() answer {
	close(l.stop)
	<-l.stopped
	return answer{"rounds": l.rounds, "failed": l.failed, "errors": l.errors}
}

func (l *load) run() {
	defer close(l.stopped)
	for {
		select {
		case <-l.stop:
			return
		default:
			l.round()
			l.rounds++
		}
	}
}

// round leaves out what cannot be done after a call that has failed.
func (l *load) round() {
	ctx := context.Background()
	created, err := l.client.CreateSession(ctx, &pb.CreateSessionRequest{Subject: l.subject})
	if err != nil {
		l.fail("CreateSession", err)
		return
	}
	l.expect("created", created.GetTokens().GetAccessToken(), "active")
	request := &pb.RefreshRequest{RefreshToken: created.GetTokens().GetRefreshToken()}
	refreshed, err := l.client.Refresh(ctx, request)
	if err != nil {
		l.fail("Refresh", err)
		return
	}
	token := refreshed.GetTokens().GetAccessToken()
	l.expect("refreshed", token, "active")
	if _, err := l.client.Revoke(ctx, revocation(token)); err != nil {
		l.fail("Revoke", err)
		return
	}
	l.expect("revoked", token, "inactive REVOKED")
}

func (l *load) expect(kind, token, expected string) {
	answer := l.verifier.Verify(context.Background(), token, countersign.Demands{})
	if answer.String() != expected {
		l.fail("a token that was "+kind, fmt.Errorf("it is %s", answer))
	}
}

func (l *load) fail(call string, err error) {
	l.failed++
	if len(l.errors) < maxErrors {
		l.errors = append(l.errors, fmt.Sprintf("%s: %v", call, err))
	}
}
