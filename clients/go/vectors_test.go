package countersign

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// These tests run the vectors that all client libraries share (clients/vectors).

func readVectors(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "vectors", file))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// question is a check that a vector describes, with its answer.
type question struct {
	Name    string `json:"name"`
	Token   string `json:"token"`
	Demands struct {
		Audience             string   `json:"audience"`
		Scopes               []string `json:"scopes"`
		ACRValues            []string `json:"acr_values"`
		MaxAuthenticationAge int64    `json:"max_authentication_age"`
		Factors              []struct {
			Method string `json:"method"`
			MaxAge int64  `json:"max_age"`
		} `json:"factors"`
	} `json:"demands"`
	Answer  string         `json:"answer"`
	Session map[string]any `json:"session"`
}

func (q *question) demands() Demands {
	demands := Demands{
		Audience:             q.Demands.Audience,
		Scopes:               q.Demands.Scopes,
		ACRValues:            q.Demands.ACRValues,
		MaxAuthenticationAge: time.Duration(q.Demands.MaxAuthenticationAge) * time.Second,
	}
	for _, factor := range q.Demands.Factors {
		age := time.Duration(factor.MaxAge) * time.Second
		demands.Factors = append(demands.Factors, Factor{factor.Method, age})
	}
	return demands
}

// sessionAsVector returns a session as the vectors have it.
func sessionAsVector(t *testing.T, session *Session) map[string]any {
	t.Helper()
	verified := map[string]int64{}
	for _, method := range session.AMR() {
		if at, isKnown := session.VerifiedAt(method); isKnown {
			verified[method] = at.Unix()
		}
	}
	text, err := json.Marshal(map[string]any{
		"session_id":       session.ID(),
		"subject":          session.Subject(),
		"tenant":           session.Tenant(),
		"client_id":        session.ClientID(),
		"audience":         session.Audience(),
		"scopes":           append([]string{}, session.Scopes()...),
		"issued_at":        session.IssuedAt().Unix(),
		"expires_at":       session.ExpiresAt().Unix(),
		"authenticated_at": session.AuthenticatedAt().Unix(),
		"acr":              session.ACR(),
		"amr":              append([]string{}, session.AMR()...),
		"amr_verified_at":  verified,
		"claims":           session.Claims(),
	})
	if err != nil {
		t.Fatal(err)
	}
	var decoded map[string]any
	if err := json.Unmarshal(text, &decoded); err != nil {
		t.Fatal(err)
	}
	return decoded
}

// site is a watcher that is handed the messages of a feed.
type site struct {
	watcher  *watcher
	state    *streamState
	clock    *core.SettableClock
	local    *core.Local
	verifier *Verifier
}

func newSite(t testing.TB, now time.Time) *site {
	t.Helper()
	client, err := NewClient([]string{"http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	clock := core.NewSettableClock(now)
	local := core.NewLocal(clock, 1<<20)
	return &site{
		watcher:  newWatcher(client, local, client.settings.logger),
		state:    &streamState{},
		clock:    clock,
		local:    local,
		verifier: &Verifier{mode: ModeLocal, local: local, logger: client.settings.logger},
	}
}

func (s *site) receive(message []byte) error {
	response := &pb.WatchResponse{}
	if err := proto.Unmarshal(message, response); err != nil {
		return err
	}
	_, err := s.watcher.apply(s.state, response)
	return err
}

// renew sends a renewal, and returns it.
func (s *site) renew() *pb.WatchRenewal {
	requests := make(chan *pb.WatchRequest, 1)
	s.watcher.renew(s.state, requests)
	return (<-requests).GetRenewal()
}

func (s *site) hear(t *testing.T, cursor []byte, response *pb.WatchResponse) {
	t.Helper()
	response.Cursor = cursor
	if _, err := s.watcher.apply(s.state, response); err != nil {
		t.Fatal(err)
	}
}

// check checks a token. It returns a sentence if the answer is not the one in the vector.
func (s *site) check(t *testing.T, token string, question *question) string {
	t.Helper()
	// The second answer might come from the cache of verified tokens.
	for range 2 {
		answer := s.verifier.VerifyLocally(token, question.demands())
		word := "UNKNOWN"
		switch {
		case answer.IsActive():
			word = "ACTIVE"
		case answer.InactiveReason() != 0:
			word = strings.ToUpper(answer.InactiveReason().String())
		}
		if word != question.Answer {
			return word + " instead of " + question.Answer
		}
		if answer.IsActive() && question.Session != nil {
			read := sessionAsVector(t, answer.Session())
			if !reflect.DeepEqual(read, question.Session) {
				return "another session than in the vector"
			}
		}
	}
	return ""
}

func TestTheVectorsOfTokensHold(t *testing.T) {
	for _, name := range []string{"eddsa", "es256", "rs256", "demands"} {
		var file struct {
			At          int64           `json:"at"`
			Issuer      string          `json:"issuer"`
			MaxLifetime int64           `json:"max_lifetime"`
			Leeway      int64           `json:"leeway"`
			Jwks        json.RawMessage `json:"jwks"`
			Vectors     []question      `json:"vectors"`
		}
		readVectors(t, "tokens-"+name+".json", &file)
		span := func(seconds int64) *durationpb.Duration {
			return &durationpb.Duration{Seconds: seconds}
		}
		site := newSite(t, time.Unix(file.At, 0))
		site.hear(t, nil, &pb.WatchResponse{Event: &pb.WatchResponse_Rules{Rules: &pb.WatchRules{
			Issuer: file.Issuer, MaxLifetime: span(file.MaxLifetime), Leeway: span(file.Leeway),
			LeaseMargin: span(1),
		}}})
		site.hear(t, nil, &pb.WatchResponse{Event: &pb.WatchResponse_Keys{Keys: &pb.WatchKeys{
			Jwks: string(file.Jwks),
		}}})
		site.hear(t, []byte{1}, &pb.WatchResponse{Event: &pb.WatchResponse_Revocations{
			Revocations: &pb.WatchRevocations{},
		}})
		site.renew()
		site.hear(t, nil, &pb.WatchResponse{Event: &pb.WatchResponse_Lease{Lease: &pb.WatchLease{
			Number: 1, ValidFor: span(2), ExpiredUpTo: &timestamppb.Timestamp{},
			Now: &timestamppb.Timestamp{Seconds: file.At},
		}}})
		if len(file.Vectors) <= 30 {
			t.Errorf("%s: there are only %d vectors", name, len(file.Vectors))
		}
		for index := range file.Vectors {
			vector := &file.Vectors[index]
			if problem := site.check(t, vector.Token, vector); problem != "" {
				t.Errorf("%s, %s: %s", name, vector.Name, problem)
			}
		}
	}
}

// step is a step of a feed.
type step struct {
	question
	Step     string `json:"step"`
	Cursor   []byte `json:"cursor"`
	Applied  []byte `json:"applied"`
	Message  []byte `json:"message"`
	WallMs   int64  `json:"wall_ms"`
	UptimeMs int64  `json:"uptime_ms"`
}

// carryOut carries out a step. It returns a sentence if it does not lead to what it should.
func (s *site) carryOut(t *testing.T, tokens map[string]string, step *step) string {
	t.Helper()
	switch step.Step {
	case "open":
		s.state = &streamState{}
		if !bytes.Equal(s.watcher.cursor, step.Cursor) {
			return "another cursor"
		}
	case "receive":
		if err := s.receive(step.Message); err != nil {
			return err.Error()
		}
	case "refuse":
		if s.receive(step.Message) == nil {
			return "it was not refused"
		}
	case "renew":
		if !bytes.Equal(s.renew().GetApplied(), step.Applied) {
			return "another cursor is confirmed"
		}
	case "advance":
		wall := s.clock.Now().Add(time.Duration(step.WallMs) * time.Millisecond)
		s.clock.Advance(time.Duration(step.UptimeMs) * time.Millisecond)
		s.clock.JumpTo(wall)
	case "check":
		token, isKnown := tokens[step.Token]
		if !isKnown {
			return "there is no such token"
		}
		return s.check(t, token, &step.question)
	default:
		return "the kind of the step is unknown"
	}
	return ""
}

func TestTheVectorsOfFeedsHold(t *testing.T) {
	for _, name := range []string{"rules", "recorded"} {
		var file struct {
			Feeds []struct {
				Name   string            `json:"name"`
				WallMs int64             `json:"wall_ms"`
				Tokens map[string]string `json:"tokens"`
				Steps  []step            `json:"steps"`
			} `json:"feeds"`
		}
		readVectors(t, "feeds-"+name+".json", &file)
		if len(file.Feeds) == 0 {
			t.Errorf("%s has no feeds", name)
		}
		for _, feed := range file.Feeds {
			site := newSite(t, time.UnixMilli(feed.WallMs))
			for number := range feed.Steps {
				step := &feed.Steps[number]
				if problem := site.carryOut(t, feed.Tokens, step); problem != "" {
					t.Errorf("%s, step %d, %s: %s", feed.Name, number, step.Step, problem)
				}
			}
		}
	}
}
