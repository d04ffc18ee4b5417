package credential

import "testing"

type found struct {
	token string
	kind  Kind
}

func find(authorization []string, cookies ...string) found {
	token, kind := Find(authorization, cookies, "session")
	return found{token, kind}
}

func TestATokenIsFoundInAHeaderWhoseSchemeIsBearer(t *testing.T) {
	for value, expected := range map[string]found{
		"Bearer t": {"t", Token}, "bearer t": {"t", Token}, "BEARER   t ": {"t", Token},
		" Bearer t": {"t", Token}, "Bearer a.b-c_d~e+f/0": {"a.b-c_d~e+f/0", Token},
		"Bearer t==": {"t==", Token},
		"":           {"", None}, "t": {"", None}, "Basic dDp0": {"", None}, "Bearert": {"", None},
		"Beare": {"", None}, "DPoP t": {"", None},
		"Bearer": {"", Token}, "Bearer ": {"", Token}, "Bearer\tt": {"", Token},
		"Bearer \tt": {"", Token}, "Bearer t u": {"", Token}, "Bearer t,u": {"", Token},
		"Bearer t, Basic dDp0": {"", Token}, "Bearer \"t\"": {"", Token}, "Bearer =": {"", Token},
		"Bearer t=t": {"", Token}, "Bearer \u00e4": {"", Token}, "Bearer a\xff": {"", Token},
	} {
		if seen := find([]string{value}); seen != expected {
			t.Errorf("%q: %v instead of %v", value, seen, expected)
		}
	}
}

func TestTheTokenIsReadFromTheCookieIfNoHeaderHoldsOne(t *testing.T) {
	for _, value := range []string{
		"session=t", " session = t ", "a=b; session=t; c=d", "session=\"t\"",
		"sessio=x;session=t;=;;", "session=; session=t",
	} {
		if seen := find(nil, value); seen != (found{"t", Token}) {
			t.Errorf("%q: %v", value, seen)
		}
	}
	for _, value := range []string{
		"", "Session=t", "xsession=t", "session", "sessionx=t", "a=session=t", "session=\"\"",
	} {
		if seen := find(nil, value); seen != (found{"", None}) {
			t.Errorf("%q: %v", value, seen)
		}
	}
	if seen := find([]string{"Basic dDp0"}, "session=t"); seen != (found{"t", Token}) {
		t.Error(seen)
	}
	if token, kind := Find(nil, []string{"session=t"}, ""); token != "" || kind != None {
		t.Error("no cookie is configured")
	}
	if seen := find(nil, "session=a\xff"); seen != (found{"", Token}) {
		t.Error(seen)
	}
}

func TestARequestWithSeveralTokensHasNoUsableToken(t *testing.T) {
	for _, values := range [][]string{
		{"Bearer t", "Bearer t"}, {"Basic dDp0", "Bearer t"}, {"Bearer t", "Basic dDp0"},
	} {
		if seen := find(values); seen.kind != Several {
			t.Error(values, seen)
		}
	}
	if seen := find([]string{"Bearer t"}, "session=u"); seen.kind != Several {
		t.Error(seen)
	}
	if seen := find([]string{"Bearer"}, "session=t"); seen.kind != Several {
		t.Error(seen)
	}
	if seen := find([]string{"Bearer t"}, "session=t"); seen != (found{"t", Token}) {
		t.Error(seen)
	}
	for _, cookies := range [][]string{
		{"session=t; session=u"}, {"session=t", "session=u"}, {"session=u; session=; session=t"},
	} {
		for _, header := range [][]string{nil, {"Bearer t"}} {
			if seen := find(header, cookies...); seen.kind != ConflictingCookies {
				t.Error(cookies, seen)
			}
		}
	}
}
