package challenge

import (
	"strings"
	"testing"
	"time"

	countersign "countersign.example/client-go"
)

func TestAChallengeNamesTheErrorAndTheDemandsThatAreNotMet(t *testing.T) {
	demands := countersign.Demands{
		Scopes:               []string{"read", "write"},
		ACRValues:            []string{"gold", "silver"},
		MaxAuthenticationAge: 300 * time.Second,
		Factors:              []countersign.Factor{{Method: "hwk", MaxAge: 60 * time.Second}},
	}
	for expected, challenge := range map[string]string{
		`Bearer realm="a\"b", scope="read write"`: (&Denial{Kind: NoToken}).Challenge(
			`a"b`, demands),
		"Bearer": (&Denial{Kind: NoToken}).Challenge("", countersign.Demands{}),
		`Bearer error="insufficient_scope", error_description="the access token lacks a scope", ` +
			`scope="read write"`: (&Denial{Inactive, countersign.InsufficientScope}).Challenge(
			"", demands),
		`Bearer error="insufficient_user_authentication", error_description="a stronger or more ` +
			`recent authentication is needed: the route demands hwk within 60 seconds", ` +
			`acr_values="gold silver", max_age="60"`: (&Denial{
			Inactive, countersign.StepUpRequired}).Challenge("", demands),
	} {
		if challenge != expected {
			t.Errorf("%s\ninstead of\n%s", challenge, expected)
		}
	}
	for reason := countersign.Malformed; reason <= countersign.ForeignTenant; reason++ {
		challenge := (&Denial{Inactive, reason}).Challenge("", demands)
		if !strings.Contains(challenge, `error="i`) {
			t.Errorf("%v: %s", reason, challenge)
		}
	}
}
