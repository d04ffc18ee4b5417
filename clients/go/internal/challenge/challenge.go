// Package challenge describes why a request may not pass, according to RFC 6750 (section 3) and RFC
// 9470 (section 3). The texts are those of the service's answers to gateways.
package challenge

import (
	"fmt"
	"strconv"
	"strings"

	countersign "countersign.example/client-go"
)

// Kind is the kind of reason for which a request may not pass.
type Kind int

const (
	// NoToken says that the request has no token.
	NoToken Kind = iota + 1
	// SeveralTokens says that the request has several tokens.
	SeveralTokens
	// ConflictingCookies says that the request has several cookies for the token, with different
	// values.
	ConflictingCookies
	// Inactive says that the token is inactive, or does not meet the demands.
	Inactive
	// Unknown says that it is not known whether the token is active.
	Unknown
)

// Denial is the reason for which a request may not pass.
type Denial struct {
	Kind   Kind
	Reason countersign.InactiveReason
}

// Of returns the denial of an answer that is not active.
func Of(answer countersign.Answer) *Denial {
	if reason := answer.InactiveReason(); reason != 0 {
		return &Denial{Inactive, reason}
	}
	return &Denial{Kind: Unknown}
}

// Code returns the error code of RFC 6750 or RFC 9470.
func (d *Denial) Code() string {
	switch {
	case d.Kind == NoToken:
		return "unauthorized"
	case d.Kind == SeveralTokens || d.Kind == ConflictingCookies:
		return "invalid_request"
	case d.Kind == Unknown:
		return "temporarily_unavailable"
	case d.Reason == countersign.InsufficientScope:
		return "insufficient_scope"
	case d.Reason == countersign.StepUpRequired:
		return "insufficient_user_authentication"
	default:
		return "invalid_token"
	}
}

// Description describes the problem for the developer of the client.
func (d *Denial) Description(demands countersign.Demands) string {
	switch d.Kind {
	case NoToken:
		return "an access token is needed"
	case SeveralTokens:
		return "more than one access token was sent"
	case ConflictingCookies:
		return "several cookies of the same name were sent with different values: clear the " +
			"cookies of this site and its parent domains, and sign in again"
	case Unknown:
		return "the access token cannot be checked at the moment: try again"
	}
	switch d.Reason {
	case countersign.InsufficientScope:
		return "the access token lacks a scope"
	case countersign.StepUpRequired:
		return stepUp(demands)
	case countersign.Expired:
		return "the access token has expired"
	case countersign.NotYetValid:
		return "the access token is not valid yet"
	case countersign.Revoked:
		return "the access token has been revoked"
	case countersign.WrongAudience, countersign.ForeignTenant:
		return "the access token is not meant for this resource"
	default:
		return "the access token is not valid"
	}
}

// Challenge returns the value of WWW-Authenticate.
func (d *Denial) Challenge(realm string, demands countersign.Demands) string {
	var parameters []string
	add := func(name, value string) {
		parameters = append(parameters, name+`="`+quoted.Replace(value)+`"`)
	}
	if realm != "" {
		add("realm", realm)
	}
	// A request without a token gets no error code (RFC 6750, section 3.1).
	if d.Kind != NoToken {
		add("error", d.Code())
		add("error_description", d.Description(demands))
	}
	if d.Kind == NoToken || d.Reason == countersign.InsufficientScope {
		if len(demands.Scopes) > 0 {
			add("scope", strings.Join(demands.Scopes, " "))
		}
	}
	if d.Reason == countersign.StepUpRequired {
		if len(demands.ACRValues) > 0 {
			add("acr_values", strings.Join(demands.ACRValues, " "))
		}
		if age := MaxAge(demands); age != "" {
			add("max_age", age)
		}
	}
	if len(parameters) == 0 {
		return "Bearer"
	}
	return "Bearer " + strings.Join(parameters, ", ")
}

// MaxAge returns the shortest of the demanded times since an authentication, in seconds; empty if
// there is none.
func MaxAge(demands countersign.Demands) string {
	age, hasAge := demands.ShortestAge()
	if !hasAge {
		return ""
	}
	return strconv.FormatInt(int64(age.Seconds()), 10)
}

// stepUp describes the authentication that a route demands. RFC 9470 has no parameter for methods,
// so the text names them.
func stepUp(demands countersign.Demands) string {
	var text strings.Builder
	text.WriteString("a stronger or more recent authentication is needed")
	for index, factor := range demands.Factors {
		if index == 0 {
			text.WriteString(": the route demands ")
		} else {
			text.WriteString(", ")
		}
		text.WriteString(factor.Method)
		if factor.MaxAge != 0 {
			fmt.Fprintf(&text, " within %d seconds", int64(max(factor.MaxAge, 0).Seconds()))
		}
	}
	return text.String()
}

// quoted escapes a text for a quoted string (RFC 9110, section 5.6.4).
var quoted = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
