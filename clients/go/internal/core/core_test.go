package core

import (
	"encoding/base64"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestValuesOfClaimsAreCheckedAtAnyDepth(t *testing.T) {
	nested := func(depth int) string {
		return strings.Repeat("[", depth) + strings.Repeat("]", depth)
	}
	for text, isGood := range map[string]bool{
		"{}": true, "[[],{},null,true,-1,1.5e300,\"\\u0041\"]": true,
		`{"a":{"b":1},"b":[{"b":1},{"b":1}]}`: true, "1e-400": true, "0e999999": true,
		"18446744073709551616": true, `"\ud83e\udd80"`: true, nested(127): true,
		`{"a":1,"a":1}`: false, `[{"a":{"b":1,"\u0062":2}}]`: false, "1e400": false,
		nested(128): false, nested(5000): false, `"\ud800"`: false, `"\ud800\u0041"`: false,
		`"\udc00"`: false, "01": false, "1.": false, ".5": false, "+1": false, "-": false,
		"1e": false, "tru": false, "[1,]": false, `{"a":1,}`: false, "{1:2}": false, "": false,
		"\"\t\"": false, `"\x41"`: false, `"a`: false, "[": false, "NaN": false,
	} {
		parser := parser{text: []byte(text)}
		err := parser.value(0)
		if err == nil {
			err = parser.end()
		}
		if (err == nil) != isGood {
			t.Errorf("%.40s: %v", text, err)
		}
	}
}

func TestIgnoredValuesNeedOnlyBeJSON(t *testing.T) {
	deep := strings.Repeat(`[{"a":`, 3000) + "1" + strings.Repeat("}]", 3000)
	for text, isGood := range map[string]bool{
		"{}": true, "[]": true, `{"a":1,"a":[1,{"b":null}]}`: true, "1e400": true, deep: true,
		`"\ud800"`: true, "[[]]": true, `[{},[],"x"]`: true,
		"[}": false, "{]": false, "[1 2]": false, `{"a"}`: false, `{"a":}`: false, "[,1]": false,
		`"\ud8"`: false, "\"\n\"": false, deep[1:]: false, `{"a":1,}`: false,
	} {
		parser := parser{text: []byte(text)}
		err := parser.ignore()
		if err == nil {
			err = parser.end()
		}
		if (err == nil) != isGood {
			t.Errorf("%.40s: %v", text, err)
		}
	}
}

func TestOnlyTheCanonicalSpellingIsAnID(t *testing.T) {
	id := NewSessionID(FromSeconds(1_700_000_000))
	text := id.String()
	if read, isID := ParseID(text); !isID || read != id {
		t.Error(text)
	}
	if id.CreatedMillis() != 1_700_000_000_000 || text[14] != '7' {
		t.Error(text, id.CreatedMillis())
	}
	if first := id.FirstAuthentication().String(); first != text[:14]+"8"+text[15:] {
		t.Error(text, first)
	}
	for _, wrong := range []string{
		strings.ToUpper(text[:35] + "a"), strings.ReplaceAll(text, "-", ""), "{" + text + "}",
		"urn:uuid:" + text, "", text[:35] + "g", text[:35], strings.ReplaceAll(text, "-", "_"),
	} {
		if _, isID := ParseID(wrong); isID {
			t.Error(wrong)
		}
	}
}

func TestInstantsSaturate(t *testing.T) {
	if FromSeconds(math.MaxInt64) != latest || FromSeconds(math.MinInt64) != earliest ||
		latest.Plus(time.Second) != latest || Timestamp(5).Since(latest) != 0 ||
		latest.Since(earliest) != math.MaxInt64 || Timestamp(-1).Seconds() != -1 {
		t.Error("an instant has wrapped around")
	}
	if at := FromTime(time.Unix(-1, 999_999_999)); at != -1 {
		t.Error(at)
	}
}

const jwks = `{"keys":[
	{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","kid":"good",
	 "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
	{"kty":"OKP","crv":"Ed25519","kid":"no-alg","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
	{"kty":"oct","alg":"HS256","kid":"shared","k":"c2VjcmV0"},
	{"kty":"RSA","alg":"RS256","kid":"short","n":"AQAB","e":"AQAB"},
	{"kty":"EC","crv":"P-256","alg":"ES256","kid":"off-curve",
	 "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
	 "y":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
	{"kty":"AKP","alg":"ML-DSA-44","kid":"future","pub":"AA"}]}`

func TestOnlyKeysWithAKnownAlgorithmAreUsedAndRevokedOnesAreRefused(t *testing.T) {
	keys, unusable, isSet := ReadKeySet(jwks, []string{"bad"})
	if !isSet || unusable != 5 {
		t.Fatal(unusable, isSet)
	}
	for name, reason := range map[string]InactiveReason{
		"good": 0, "bad": Revoked, "no-alg": UnknownKey, "shared": UnknownKey, "short": UnknownKey,
		"off-curve": UnknownKey, "future": UnknownKey, "": UnknownKey,
	} {
		if _, found := keys.find(name); found != reason {
			t.Error(name, found)
		}
	}
	revoked, _, _ := ReadKeySet(jwks, []string{"good"})
	if _, found := revoked.find("good"); found != Revoked {
		t.Error(found)
	}
	for _, text := range []string{"{}", "", "[]", `{"keys":{}}`, `{"keys":null}`} {
		if _, _, isSet := ReadKeySet(text, nil); isSet {
			t.Error(text)
		}
	}
	other, _, _ := ReadKeySet(strings.ReplaceAll(jwks, "11qY", "22qY"), nil)
	none := &KeySet{}
	if !keys.includes(none) || !keys.includes(revoked) || none.includes(keys) ||
		other.includes(keys) {
		t.Error("a set includes another unless a key is missing or different")
	}
}

func TestTheCacheIsBoundedAndKeepsWhatIsUsed(t *testing.T) {
	const bytes = cacheShards * 8000
	cache := NewCache(bytes)
	used := "used." + strings.Repeat("x", 40)
	cache.add(used, &Claims{})
	for number := range 5000 {
		cache.add(fmt.Sprintf("token-%d", number), &Claims{Subject: "alice"})
		if cache.get(used) == nil {
			t.Fatal("a token that is used was dropped")
		}
	}
	sum := 0
	for index := range cache.shards {
		shard := &cache.shards[index]
		if shard.bytes > shard.capacity || len(shard.ring) != len(shard.tokens) {
			t.Error(shard.bytes, shard.capacity, len(shard.ring), len(shard.tokens))
		}
		sum += shard.bytes
	}
	if sum < bytes/2 || cache.len() < 200 || cache.get("token-4999") == nil {
		t.Error(sum, cache.len())
	}
	cache.add(strings.Repeat("x", 8001), &Claims{})
	empty := NewCache(0)
	empty.add("a", &Claims{})
	if empty.len() != 0 {
		t.Error("a cache of no bytes keeps a token")
	}
}

func TestRevocationsAreUnited(t *testing.T) {
	session := NewSessionID(FromSeconds(100))
	claims := &Claims{SessionID: session, Tenant: "acme", Subject: "alice"}
	key, isKnown := NewCutOffKey(Scope{Tenant: "acme", Subject: "alice"}, false)
	if !isKnown {
		t.Fatal("the key is not known")
	}
	covers := func(cutOffs ...CutOff) bool {
		index := NewIndex()
		for _, cutOff := range cutOffs {
			index.RevokeSessions(key, cutOff, latest)
		}
		return index.stops(claims)
	}
	at, later, before := FromSeconds(100), FromSeconds(101), FromSeconds(99)
	spared := CutOff{later, session}
	for _, case_ := range []struct {
		covers  bool
		cutOffs []CutOff
	}{
		{false, nil}, {true, []CutOff{{UpTo: at}}}, {false, []CutOff{{UpTo: before}}},
		{true, []CutOff{{UpTo: at}, {UpTo: before}}}, {true, []CutOff{{UpTo: before}, {UpTo: at}}},
		{false, []CutOff{spared}}, {false, []CutOff{{UpTo: before}, spared}},
		{true, []CutOff{{UpTo: at}, spared}}, {true, []CutOff{spared, {UpTo: at}}},
	} {
		if covers(case_.cutOffs...) != case_.covers {
			t.Error(case_)
		}
	}
	for _, scope := range []Scope{
		{AllTenants: true, Subject: "alice"}, {AllTenants: true, Tenant: "acme"},
		{Subject: "a", ClientID: "b"}, {Subject: "a\nb"}, {Tenant: strings.Repeat("t", 129)},
	} {
		if _, isKnown := NewCutOffKey(scope, false); isKnown {
			t.Error(scope)
		}
	}
	if _, isKnown := NewCutOffKey(Scope{Subject: "alice"}, true); isKnown {
		t.Error("a subject is not revoked by authentication")
	}
}

func TestExpiredRevocationsAreDroppedAndNoOthers(t *testing.T) {
	index := NewIndex()
	key, _ := NewCutOffKey(Scope{Tenant: "acme"}, false)
	var early, late ID
	early[15], late[15] = 1, 2
	index.RevokeID(early, FromSeconds(10))
	index.RevokeID(early, FromSeconds(9))
	index.RevokeID(late, FromSeconds(11).Plus(time.Microsecond))
	index.RevokeSessions(key, CutOff{}, FromSeconds(10))
	if index.Len() != 3 {
		t.Error(index.Len())
	}
	if !index.Expire(FromSeconds(10)-1) || index.isExpired(FromSeconds(10)) {
		t.Error("it has expired too early")
	}
	index.Purge()
	if index.Len() != 3 {
		t.Error("a revocation is dropped too early")
	}
	if !index.Expire(FromSeconds(10)) || index.Expire(FromSeconds(5)) ||
		!index.isExpired(FromSeconds(10)) {
		t.Error("the instant went back")
	}
	index.Purge()
	if index.Len() != 1 || !index.hasID(late) || index.cutOffs.cover(&Claims{Tenant: "acme"}) {
		t.Error(index.Len())
	}
	index.Expire(FromSeconds(11))
	index.Purge()
	if !index.hasID(late) {
		t.Error("the second is not rounded up")
	}
}

func TestTheIndexAndTheCacheCanBeUsedByManyGoroutines(t *testing.T) {
	local := NewLocal(SystemClock{}, 1<<16)
	local.Take(Start{}, Forever)
	var group sync.WaitGroup
	for number := range 4 {
		group.Go(func() {
			for step := range 300 {
				copied := local.Copy()
				id := NewRandomID()
				copied.Index.RevokeID(id, FromSeconds(int64(step)))
				copied.cache.add(id.String(), &Claims{SessionID: id})
				local.Answer(id.String(), &Demands{})
				if number == 0 {
					copied.Index.Expire(FromSeconds(int64(step / 2)))
					copied.Index.Purge()
				}
			}
		})
	}
	group.Wait()
}

func TestTheUptimeDoesNotStandStill(t *testing.T) {
	before := SystemClock{}.Uptime()
	time.Sleep(2 * time.Millisecond)
	if passed := (SystemClock{}).Uptime() - before; passed < time.Millisecond {
		t.Error(passed)
	}
}

func TestALeaseThatIsTakenDuringTheLookUpDoesNotCoverIt(t *testing.T) {
	clock := NewSettableClock(time.Unix(1_800_000_000, 0))
	local := NewLocal(clock, 1<<20)
	encode := base64.RawURLEncoding.EncodeToString
	token := encode([]byte(`{"typ":"at+jwt","alg":"EdDSA","kid":"key"}`)) + "." +
		encode([]byte(`{"iss":"a","sub":"alice","aud":"a","client_id":"","iat":1800000000,`+
			`"exp":1800000060,"jti":"3da18d0f-8414-459a-9833-a7678bf679ae",`+
			`"sid":"01a3185c-50fa-7000-8000-000000000001","auth_time":1800000000}`)) + "."
	key := &Key{algorithm: "EdDSA", verifies: func(_, _ []byte) bool {
		local.Take(ReadClocks(clock), time.Second)
		return true
	}}
	local.Replace(&KeySet{keys: map[string]*Key{"key": key}},
		&Rules{Issuer: "a", MaxLifetime: time.Hour, LeaseMargin: time.Second}, nil)
	if _, _, hasLease := local.Answer(token, &Demands{}); hasLease {
		t.Error("the lease may rest on revocations that the look-up did not see")
	}
	if claims, reason, hasLease := local.Answer(token, &Demands{}); !hasLease || reason != 0 {
		t.Error(claims, reason, hasLease)
	}
}
