package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/testserver"
	pb "countersign.example/client-go/proto/countersign/v1"
)

func TestItAnswersEachLine(t *testing.T) {
	site := testserver.New(t, "")
	site.Start(t)
	client, err := countersign.NewClient([]string{site.URL()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	created, err := client.CreateSession(t.Context(), &pb.CreateSessionRequest{Subject: "alice"},
		countersign.Within(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	token := created.GetTokens().GetAccessToken()
	questions, input := io.Pipe()
	output, answers := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- run([]string{"127.0.0.1:1", site.Address}, questions, answers) }()
	lines := bufio.NewScanner(output)
	ask := func(batch ...string) []string {
		t.Helper()
		text := strings.Join(batch, "\n") + "\n"
		go func() { _, _ = io.WriteString(input, text) }()
		var all []string
		for range batch {
			if !lines.Scan() {
				t.Fatal("it has ended")
			}
			var number, count, begin, end, lastBegin, lastEnd int64
			var answer, reason string
			_, _ = fmt.Sscan(lines.Text(), &number, &count, &begin, &end, &lastBegin, &lastEnd,
				&answer, &reason)
			if count != 1 || begin <= 0 || end < begin || lastBegin != begin || lastEnd != end {
				t.Error(lines.Text())
			}
			all = append(all, strings.TrimSpace(fmt.Sprintf("%d %s %s", number, answer, reason)))
		}
		return all
	}
	question := "7 " + token
	testserver.Eventually(t, "a lease", func() bool { return ask(question)[0] == "7 active" })
	if all := ask("0 "+token, "0 x"); all[0] != "0 active" || all[1] != "0 inactive MALFORMED" {
		t.Error(all)
	}
	_, _ = io.WriteString(input, "clock 10000000000 0\n")
	testserver.Eventually(t, "no lease", func() bool {
		return ask(question)[0] == "7 unknown NO_LEASE"
	})
	_, _ = io.WriteString(input, "clock 0 0\n")
	testserver.Eventually(t, "a lease", func() bool { return ask(question)[0] == "7 active" })
	target := &pb.RevokeRequest_Token{Token: token}
	_, err = client.Revoke(t.Context(), &pb.RevokeRequest{Target: target})
	if err != nil {
		t.Fatal(err)
	}
	testserver.Eventually(t, "it is revoked", func() bool {
		answer := ask(question)[0]
		if answer == "7 active" {
			t.Error("it is active after Revoke has returned")
		}
		return answer == "7 inactive REVOKED"
	})
	_ = input.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
