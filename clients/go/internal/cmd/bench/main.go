// Command bench measures a check of a token by a local verifier, of one that was seen before and of
// a new one, against the verification of the same tokens by golang-jwt, which knows of no
// revocation. The measurements take turns, and the best round of each counts, because other
// processes can only make a round slower.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"time"

	"github.com/golang-jwt/jwt/v5"

	countersign "countersign.example/client-go"
	"countersign.example/client-go/internal/bridge"
	"countersign.example/client-go/internal/core"
)

const (
	rounds   = 30
	tokens   = 300
	issuer   = "https://auth.test"
	audience = "https://api.test"
	keyID    = "key"
)

// signer is a key with its method, and its public key as a JWK.
type signer struct {
	method jwt.SigningMethod
	key    crypto.Signer
	jwk    string
}

func main() {
	fmt.Println("algorithm  seen before       new   golang-jwt   seen/jwt   new/jwt")
	for _, signer := range signers() {
		measure(signer)
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func signers() []signer {
	encode := base64.RawURLEncoding.EncodeToString
	edwards := must(ed25519Key())
	elliptic := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	point := must(elliptic.PublicKey.Bytes())
	rsa := must(rsa.GenerateKey(rand.Reader, 2048))
	return []signer{
		{jwt.SigningMethodEdDSA, edwards, fmt.Sprintf(
			`{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":%q,"x":%q}`, keyID,
			encode(edwards.Public().(ed25519.PublicKey)))},
		{jwt.SigningMethodES256, elliptic, fmt.Sprintf(
			`{"kty":"EC","crv":"P-256","alg":"ES256","kid":%q,"x":%q,"y":%q}`, keyID,
			encode(point[1:33]), encode(point[33:]))},
		{jwt.SigningMethodRS256, rsa, fmt.Sprintf(
			`{"kty":"RSA","alg":"RS256","kid":%q,"n":%q,"e":%q}`, keyID,
			encode(rsa.N.Bytes()), encode(big.NewInt(int64(rsa.E)).Bytes()))},
	}
}

func ed25519Key() (ed25519.PrivateKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

func (s signer) issue() string {
	now := time.Now().Unix()
	token := jwt.NewWithClaims(s.method, jwt.MapClaims{
		"iss": issuer, "sub": "alice", "aud": []string{audience}, "client_id": "web", "iat": now,
		"exp": now + 900, "jti": core.NewRandomID().String(),
		"sid": core.NewSessionID(core.FromSeconds(now)).String(), "auth_time": now,
		"tenant": "acme", "scope": "read write", "plan": "gold",
	})
	token.Header["typ"], token.Header["kid"] = core.TokenType, keyID
	return must(token.SignedString(s.key))
}

func measure(signer signer) {
	local := core.NewLocal(core.SystemClock{}, 64<<20)
	keys, _, _ := core.ReadKeySet(`{"keys":[`+signer.jwk+`]}`, nil)
	local.Replace(keys, &core.Rules{
		Issuer: issuer, MaxLifetime: time.Hour, Leeway: time.Second, LeaseMargin: time.Hour,
	}, nil)
	// A lease as the service gives it costs more than one that does not end.
	local.Take(core.ReadClocks(core.SystemClock{}), time.Hour)
	verifier := bridge.NewTestingVerifier(local).(*countersign.Verifier)
	demands := countersign.Demands{Audience: audience, Scopes: []string{"read"}}
	check := func(token string) {
		if answer := verifier.VerifyLocally(token, demands); !answer.IsActive() {
			panic(answer.String())
		}
	}
	type claims struct {
		jwt.RegisteredClaims
		Scope string `json:"scope"`
	}
	parser := jwt.NewParser(jwt.WithValidMethods([]string{signer.method.Alg()}),
		jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
	public := signer.key.Public()
	byJWT := func(token string) {
		find := func(*jwt.Token) (any, error) { return public, nil }
		if _, err := parser.ParseWithClaims(token, &claims{}, find); err != nil {
			panic(err)
		}
	}
	best := map[string]time.Duration{}
	round := func(name string, batch []string, check func(string)) {
		began := time.Now()
		for _, token := range batch {
			check(token)
		}
		each := time.Since(began) / time.Duration(len(batch))
		if known, isKnown := best[name]; !isKnown || each < known {
			best[name] = each
		}
	}
	for range rounds {
		batch := make([]string, tokens)
		for number := range batch {
			batch[number] = signer.issue()
		}
		round("jwt", batch, byJWT)
		round("new", batch, check)
		round("seen", batch, check)
	}
	ratio := func(name string) float64 { return float64(best[name]) / float64(best["jwt"]) }
	fmt.Printf("%-9s %9d ns %7d ns %9d ns   1/%-6.0f %9.2f\n", signer.method.Alg(),
		best["seen"].Nanoseconds(), best["new"].Nanoseconds(), best["jwt"].Nanoseconds(),
		1/ratio("seen"), ratio("new"))
}
