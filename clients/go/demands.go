package countersign

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"countersign.example/client-go/internal/core"
	pb "countersign.example/client-go/proto/countersign/v1"
)

// Demands are the demands that a route makes on the session of a request. Without any, every live
// session passes.
type Demands struct {
	// Audience is the audience that the token must be meant for (`aud`). A service should always
	// demand its own.
	Audience string
	// Scopes are the scopes that the token must all carry.
	Scopes []string
	// ACRValues are the authentication context classes (`acr`), of which the session must have one.
	// A session that lacks it is asked to step up (RFC 9470).
	ACRValues []string
	// MaxAuthenticationAge is the time within which the user must have authenticated. Otherwise the
	// session is asked to step up (RFC 9470). Zero demands nothing; a negative time counts as no
	// time at all.
	MaxAuthenticationAge time.Duration
	// Factors are the authentication methods that the user must all have used.
	Factors []Factor
}

// Factor is a demand for an authentication method.
type Factor struct {
	// Method is the method that the token must name (`amr`, RFC 8176).
	Method string
	// MaxAge is the time within which the method must have been verified. Zero demands nothing; a
	// negative time counts as no time at all.
	MaxAge time.Duration
}

// ShortestAge returns the shortest of the demanded times since an authentication, and whether there
// is one.
func (d Demands) ShortestAge() (time.Duration, bool) {
	var shortest time.Duration
	hasAge := false
	add := func(age time.Duration) {
		if age != 0 && (!hasAge || age < shortest) {
			shortest, hasAge = age, true
		}
	}
	add(d.MaxAuthenticationAge)
	for _, factor := range d.Factors {
		add(factor.MaxAge)
	}
	return max(shortest, 0), hasAge
}

func (d *Demands) core() core.Demands {
	var factors []core.Factor
	if len(d.Factors) > 0 {
		factors = make([]core.Factor, len(d.Factors))
		for index, factor := range d.Factors {
			factors[index] = core.Factor(factor)
		}
	}
	return core.Demands{
		Audience:             d.Audience,
		Scopes:               d.Scopes,
		ACRValues:            d.ACRValues,
		MaxAuthenticationAge: d.MaxAuthenticationAge,
		Factors:              factors,
	}
}

// request asks the service the same.
func (d *Demands) request(token string) *pb.ValidateRequest {
	age := func(age time.Duration) *durationpb.Duration {
		if age == 0 {
			return nil
		}
		return durationpb.New(max(age, 0))
	}
	request := &pb.ValidateRequest{
		AccessToken:          token,
		Audience:             d.Audience,
		Scopes:               d.Scopes,
		AcrValues:            d.ACRValues,
		MaxAuthenticationAge: age(d.MaxAuthenticationAge),
		View:                 pb.ValidateView_VALIDATE_VIEW_FULL,
	}
	for _, factor := range d.Factors {
		request.Factors = append(request.Factors,
			&pb.FactorDemand{Method: factor.Method, MaxAge: age(factor.MaxAge)})
	}
	return request
}
