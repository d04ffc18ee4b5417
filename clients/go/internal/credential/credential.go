// Package credential finds the token of a request: in `authorization: Bearer` or, without such a
// header, in a cookie.
package credential

import (
	"strings"
	"unicode/utf8"
)

// Kind is the kind of credential in a request.
type Kind int

const (
	// None says that there is no token. There may be credentials of another scheme.
	None Kind = iota
	// Token says that there is a token, which may be empty or malformed.
	Token
	// Several says that there is more than one token, or a second `authorization` header. The
	// application might use another token than the one that is checked (RFC 6750, section 2).
	Several
	// ConflictingCookies says that several cookies of the same name have different values.
	ConflictingCookies
)

// Find finds the token among the values of the headers `authorization` and `cookie`. name is the
// name of the cookie that holds the token; empty for none.
//
// An `authorization` header with a scheme other than Bearer is ignored, because it is meant for the
// application.
func Find(authorization, cookies []string, name string) (string, Kind) {
	inHeader, hasHeader := "", false
	if len(authorization) > 0 {
		inHeader, hasHeader = bearer(authorization[0])
	}
	inCookie, hasCookie := "", false
	if name != "" {
		for _, value := range named(cookies, name) {
			// The application may use any of the cookies of this name, so all must be equal.
			if hasCookie && value != inCookie {
				return "", ConflictingCookies
			}
			inCookie, hasCookie = value, true
		}
	}
	switch {
	case len(authorization) > 1 || hasHeader && hasCookie && inHeader != inCookie:
		return "", Several
	case hasHeader:
		return text(inHeader), Token
	case hasCookie:
		return text(inCookie), Token
	default:
		return "", None
	}
}

// text returns an empty token, which is never valid, for bytes that are not text.
func text(token string) string {
	if !utf8.ValidString(token) {
		return ""
	}
	return token
}

const (
	scheme = "bearer"
	spaces = " \t\n\f\r"
)

// bearer reads the token in a value of `authorization` whose scheme is Bearer (RFC 6750, section
// 2.1). It returns false for another scheme. If anything but spaces and one token follows the
// scheme, the token is empty, because text that can be read in two ways must not be accepted in
// either.
func bearer(value string) (string, bool) {
	value = strings.Trim(value, spaces)
	if len(value) < len(scheme) || !strings.EqualFold(value[:len(scheme)], scheme) {
		return "", false
	}
	rest := value[len(scheme):]
	if rest != "" && !strings.ContainsRune(spaces, rune(rest[0])) {
		return "", false
	}
	token := strings.TrimLeft(rest, " ")
	unpadded := strings.TrimRight(token, "=")
	if len(token) == len(rest) || unpadded == "" {
		return "", true
	}
	for _, char := range []byte(unpadded) {
		isTokenChar := char >= '0' && char <= '9' || char >= 'a' && char <= 'z' ||
			char >= 'A' && char <= 'Z' || strings.IndexByte("-._~+/", char) >= 0
		if !isTokenChar {
			return "", true
		}
	}
	return token, true
}

// named returns the values of the cookies of a name (RFC 6265, section 4.2.1). Empty values are
// left out, because applications clear a cookie by setting an empty value.
func named(cookies []string, name string) []string {
	var values []string
	for _, header := range cookies {
		for pair := range strings.SplitSeq(header, ";") {
			found, value, isPair := strings.Cut(pair, "=")
			if !isPair || strings.Trim(found, spaces) != name {
				continue
			}
			value = strings.Trim(value, spaces)
			if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			if value != "" {
				values = append(values, value)
			}
		}
	}
	return values
}
