package countersigntest_test

import (
	"errors"
	"testing"
	"time"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/countersigntest"
)

func TestTokensExpireAreRevokedAndCannotBeCheckedWhileTheAuthorityIsUnavailable(t *testing.T) {
	authority := countersigntest.New()
	verifier := authority.Verifier()
	check := func(token string) countersign.Answer {
		return verifier.VerifyLocally(token, countersign.Demands{})
	}
	described := countersigntest.Token{Tenant: "acme", Claims: map[string]any{"plan": "gold"}}
	token, other := authority.Issue("alice", described), authority.Issue("bob", described)
	session := check(token).Session()
	if session == nil || session.Subject() != "alice" || session.Tenant() != "acme" {
		t.Fatal(session)
	}
	plan, _ := session.Claim("plan")
	if plan != "gold" || session.Audience()[0] != countersigntest.Audience {
		t.Error(plan, session.Audience())
	}
	authority.Revoke(token)
	if answer := check(token); answer.InactiveReason() != countersign.Revoked {
		t.Error(answer)
	}
	if answer := check(other); !answer.IsActive() {
		t.Error(answer)
	}
	authority.SetUnavailable(true)
	if answer := check(other); !errors.Is(answer.Unknown(), countersign.ErrNoLease) {
		t.Error(answer)
	}
	authority.SetUnavailable(false)
	if answer := check(other); !answer.IsActive() {
		t.Error(answer)
	}
	authority.Advance(15 * time.Minute)
	if answer := check(other); answer.InactiveReason() != countersign.Expired {
		t.Error(answer)
	}
	elsewhere := countersigntest.New().Verifier()
	if answer := elsewhere.VerifyLocally(other, countersign.Demands{}); answer.InactiveReason() !=
		countersign.BadSignature {
		t.Error("each authority has a key of its own", answer)
	}
}

func TestATokenOfAnotherAuthorityCannotBeRevoked(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it did not panic")
		}
	}()
	countersigntest.New().Revoke(countersigntest.New().Issue("alice", countersigntest.Token{}))
}
