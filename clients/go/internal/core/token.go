// Package core decides whether an access token is active. It follows the rules that the service
// follows, which clients/vectors has as data.
package core

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

const (
	// TokenType is the only `typ` that is accepted (RFC 9068, section 2.1).
	TokenType = "at+jwt"
	// RefreshTokenPrefix is the beginning of every refresh token.
	RefreshTokenPrefix = "cs_rt_"
	// MaxTokenBytes is the size of the longest token that is read.
	MaxTokenBytes = 8192
)

var base64URL = base64.RawURLEncoding.Strict()

// decode decodes base64url without padding (RFC 7515, section 2). It refuses unused bits at the end
// that are not zero.
func decode(part string) ([]byte, bool) {
	// The decoder of the standard library would skip line breaks.
	if strings.ContainsAny(part, "\r\n") {
		return nil, false
	}
	decoded, err := base64URL.DecodeString(part)
	return decoded, err == nil
}

// unverified is a token whose header was read, and whose signature was not checked.
type unverified struct {
	keyID     string
	algorithm string
	signed    string
	payload   string
	signature string
}

// parse reads the header of a token, whose size was checked before.
func parse(token string) (unverified, InactiveReason) {
	if strings.HasPrefix(token, RefreshTokenPrefix) {
		return unverified{}, WrongType
	}
	last := strings.LastIndexByte(token, '.')
	if last < 0 {
		return unverified{}, Malformed
	}
	signed, signature := token[:last], token[last+1:]
	encodedHeader, payload, isSplit := strings.Cut(signed, ".")
	if !isSplit || strings.Contains(payload, ".") {
		return unverified{}, Malformed
	}
	text, isDecoded := decode(encodedHeader)
	if !isDecoded || !utf8.Valid(text) {
		return unverified{}, Malformed
	}
	header, err := parseHeader(text)
	if err != nil || header.hasExtension {
		return unverified{}, Malformed
	}
	if header.typ != TokenType {
		return unverified{}, WrongType
	}
	return unverified{header.keyID, header.algorithm, signed, payload, signature}, 0
}

// header is a JOSE header. Members that this library does not know are ignored.
type header struct {
	algorithm, keyID, typ string
	// hasExtension is true if there is an extension that changes the meaning of the token (`crit`
	// or `b64`). None is supported, so such a token is refused (RFC 7515, section 4.1.11).
	hasExtension bool
}

// parseHeader reads a header, whose names must be unique (RFC 7515, section 4).
func parseHeader(text []byte) (header, error) {
	var read header
	names := make(map[string]struct{}, 4)
	parser := parser{text: text}
	err := parser.object(func(name string) error {
		if _, isKnown := names[name]; isKnown {
			return errJSON
		}
		names[name] = struct{}{}
		var err error
		switch name {
		case "alg":
			read.algorithm, err = parser.string()
		case "kid":
			read.keyID, err = parser.string()
		case "typ":
			if parser.peek() == 'n' {
				return parser.literal()
			}
			read.typ, err = parser.string()
		case "crit", "b64":
			read.hasExtension = true
			err = parser.ignore()
		default:
			err = parser.ignore()
		}
		return err
	})
	if err == nil {
		err = parser.end()
	}
	_, hasAlgorithm := names["alg"]
	_, hasKeyID := names["kid"]
	if err == nil && !(hasAlgorithm && hasKeyID) {
		err = errJSON
	}
	return read, err
}

// verify checks the signature, and then reads the claims.
func (u *unverified) verify(key *Key, rules *Rules) (*Claims, InactiveReason) {
	if u.algorithm != key.algorithm {
		return nil, BadSignature
	}
	// A signature that is not base64url makes the token malformed. All other failures mean that the
	// key did not make the signature.
	signature, isDecoded := decode(u.signature)
	if !isDecoded {
		return nil, Malformed
	}
	if !key.verify(u.signed, signature) {
		return nil, BadSignature
	}
	payload, isDecoded := decode(u.payload)
	if !isDecoded {
		return nil, Malformed
	}
	claims, err := parseClaims(payload)
	if err != nil {
		return nil, Malformed
	}
	if claims.Issuer != rules.Issuer {
		return nil, WrongIssuer
	}
	// `iat` and `exp` are equal if the token was issued in the last second of its session.
	if claims.IssuedAt > claims.ExpiresAt || claims.IssuedAt < 0 {
		return nil, Malformed
	}
	if reason := rules.checkLifetime(claims); reason != 0 {
		return nil, reason
	}
	claims.keyID = u.keyID
	return claims, 0
}
