package core

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/json"
	"math/big"
)

// The sizes of RSA keys that are used, in bits.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// Key is a key that verifies access tokens by one algorithm only.
type Key struct {
	algorithm string
	material  []byte
	verifies  func(message, signature []byte) bool
}

func (k *Key) verify(message string, signature []byte) bool {
	return k.verifies([]byte(message), signature)
}

// KeySet has keys by their names (`kid`).
type KeySet struct {
	keys    map[string]*Key
	revoked map[string]struct{}
}

// ReadKeySet reads a JWK set (RFC 7517, section 5), and the names of revoked keys. A key that this
// library cannot use is left out, so its tokens are refused; the number of those is returned.
func ReadKeySet(jwks string, revoked []string) (set *KeySet, unusable int, isSet bool) {
	var read struct {
		Keys *[]json.RawMessage `json:"keys"`
	}
	if json.Unmarshal([]byte(jwks), &read) != nil || read.Keys == nil {
		return nil, 0, false
	}
	set = &KeySet{keys: map[string]*Key{}, revoked: map[string]struct{}{}}
	for _, text := range *read.Keys {
		if name, key := readKey(text); key != nil {
			set.keys[name] = key
		} else {
			unusable++
		}
	}
	for _, name := range revoked {
		set.revoked[name] = struct{}{}
	}
	return set, unusable, true
}

// find returns the key of a name if its tokens are accepted, or the reason why they are not.
func (s *KeySet) find(name string) (*Key, InactiveReason) {
	if _, isRevoked := s.revoked[name]; isRevoked {
		return nil, Revoked
	}
	if key := s.keys[name]; key != nil {
		return key, 0
	}
	return nil, UnknownKey
}

// includes returns whether the set has all keys of an earlier one. Only then is each signature
// still good that was verified with the earlier keys.
func (s *KeySet) includes(earlier *KeySet) bool {
	for name, other := range earlier.keys {
		key := s.keys[name]
		if key == nil || key.algorithm != other.algorithm ||
			!bytes.Equal(key.material, other.material) {
			return false
		}
	}
	return true
}

func readKey(text json.RawMessage) (string, *Key) {
	var members map[string]any
	if json.Unmarshal(text, &members) != nil {
		return "", nil
	}
	member := func(name string) string {
		value, _ := members[name].(string)
		return value
	}
	name, hasName := members["kid"].(string)
	if !hasName {
		return "", nil
	}
	var key *Key
	switch algorithm := member("alg"); {
	case algorithm == "EdDSA" && member("kty") == "OKP" && member("crv") == "Ed25519":
		key = edwardsKey(member("x"))
	case algorithm == "ES256" && member("kty") == "EC" && member("crv") == "P-256":
		key = ellipticKey(member("x"), member("y"))
	case algorithm == "RS256" && member("kty") == "RSA":
		key = rsaKey(member("n"), member("e"))
	}
	if key == nil {
		return "", nil
	}
	key.algorithm = member("alg")
	return name, key
}

func edwardsKey(x string) *Key {
	point, isDecoded := decode(x)
	if !isDecoded || len(point) != ed25519.PublicKeySize {
		return nil
	}
	return &Key{material: point, verifies: func(message, signature []byte) bool {
		return len(signature) == ed25519.SignatureSize && ed25519.Verify(point, message, signature)
	}}
}

func ellipticKey(x, y string) *Key {
	const size = 32
	first, isFirst := decode(x)
	second, isSecond := decode(y)
	if !isFirst || !isSecond || len(first) != size || len(second) != size {
		return nil
	}
	point := append(append([]byte{4}, first...), second...)
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil
	}
	return &Key{material: point, verifies: func(message, signature []byte) bool {
		// RFC 7518, section 3.4.
		if len(signature) != 2*size {
			return false
		}
		digest := sha256.Sum256(message)
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(public, digest[:], r, s)
	}}
}

func rsaKey(n, e string) *Key {
	modulus, isModulus := decode(n)
	exponent, isExponent := decode(e)
	if !isModulus || !isExponent || len(exponent) > 4 {
		return nil
	}
	number := new(big.Int).SetBytes(exponent).Int64()
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(number)}
	bits := public.N.BitLen()
	if bits < minRSABits || bits > maxRSABits || number < 3 || number%2 == 0 || number > 1<<31-1 {
		return nil
	}
	material := append(append([]byte{}, modulus...), exponent...)
	return &Key{material: material, verifies: func(message, signature []byte) bool {
		digest := sha256.Sum256(message)
		return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature) == nil
	}}
}
