package core

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
)

// ID is the identifier of a session, a token or an authentication: a UUID.
type ID [16]byte

// ParseID reads a UUID in the canonical lower-case form. Other forms are refused, so that each
// identifier has only one spelling.
func ParseID(text string) (ID, bool) {
	var id ID
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return ID{}, false
	}
	digits := text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
	for _, digit := range []byte(digits) {
		if (digit < '0' || digit > '9') && (digit < 'a' || digit > 'f') {
			return ID{}, false
		}
	}
	if _, err := hex.Decode(id[:], []byte(digits)); err != nil {
		return ID{}, false
	}
	return id, true
}

// String returns the canonical form.
func (id ID) String() string {
	text := hex.EncodeToString(id[:])
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// CreatedMillis returns the time at which a session was created, in milliseconds since 1970, which
// the first 48 bits of its identifier are.
func (id ID) CreatedMillis() int64 {
	return int64(binary.BigEndian.Uint64(id[:8]) >> 16)
}

// FirstAuthentication returns the identifier of the authentication with which a session was
// created: that of the session as a UUID of version 8.
func (id ID) FirstAuthentication() ID {
	id[6] = id[6]&0x0f | 0x80
	return id
}

// NewSessionID creates a UUID of version 7 (RFC 9562, section 5.7).
func NewSessionID(at Timestamp) ID {
	id := NewRandomID()
	var millis [8]byte
	binary.BigEndian.PutUint64(millis[:], uint64(max(at.Millis(), 0)))
	copy(id[:6], millis[2:])
	id[6] = id[6]&0x0f | 0x70
	return id
}

// NewRandomID creates a UUID of version 4 (RFC 9562, section 5.4).
func NewRandomID() ID {
	var id ID
	// The standard library ends the process if there are no random numbers.
	_, _ = rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}
