package core

import (
	"unicode"
	"unicode/utf8"
)

// The largest lengths of texts in revocations and rules, in bytes.
const (
	maxSubject  = 256
	maxTenant   = 128
	maxClientID = 256
	maxAudience = 256
)

// isText returns whether a text is valid UTF-8 without control characters, and not too long.
func isText(text string, limit int) bool {
	if len(text) > limit || !utf8.ValidString(text) {
		return false
	}
	for _, char := range text {
		if unicode.IsControl(char) {
			return false
		}
	}
	return true
}
