//! Finds the token of a request: in `authorization: Bearer` or, without such a header, in a cookie.

use crate::bearer::bearer_token;

/// The place where a token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the header `authorization`.
    Header,
    /// In the cookie.
    Cookie,
}

/// The credential in a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Credential<'a> {
    /// No token. There may be credentials of another scheme.
    None,
    /// A token, which may be empty or malformed.
    Token(&'a str, Found),
    /// More than one token, or a second `authorization` header. The application might use another
    /// token than the one that this service validates (RFC 6750, section 2).
    Several,
    /// Several cookies of the same name with different values, for instance one that the site has
    /// set and one that its parent domain has set.
    ConflictingCookies,
}

/// Omits the token, which is a secret.
impl std::fmt::Debug for Credential<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Token(..) => "Token",
            Self::Several => "Several",
            Self::ConflictingCookies => "ConflictingCookies",
        })
    }
}

/// Finds the token among the values of the headers `authorization` and `cookie`. `cookie` is the
/// name of the cookie that holds the token.
///
/// An `authorization` header with a scheme other than `Bearer` is ignored, because it is meant for
/// the application.
pub fn find<'a>(
    mut authorization: impl Iterator<Item = &'a [u8]>,
    cookies: impl Iterator<Item = &'a [u8]>,
    cookie: Option<&str>,
) -> Credential<'a> {
    let (first, second) = (authorization.next(), authorization.next());
    let in_header = first.and_then(bearer_token).map(str::as_bytes);
    let mut in_cookie = None;
    if let Some(name) = cookie {
        let mut named = cookies.flat_map(|value| cookies_named(value, name.as_bytes()));
        in_cookie = named.next();
        // The application may use any of the cookies of this name, so all must be equal.
        if named.any(|other| Some(other) != in_cookie) {
            return Credential::ConflictingCookies;
        }
    }
    let is_several = second.is_some()
        || in_header.zip(in_cookie).is_some_and(|(in_header, in_cookie)| in_header != in_cookie);
    // Bytes that are not text count as an empty token, which is never valid.
    let token =
        |token, found| Credential::Token(std::str::from_utf8(token).unwrap_or_default(), found);
    match (in_header, in_cookie) {
        _ if is_several => Credential::Several,
        (Some(in_header), _) => token(in_header, Found::Header),
        (None, Some(in_cookie)) => token(in_cookie, Found::Cookie),
        (None, None) => Credential::None,
    }
}

/// Returns the values of the cookies named `name` (RFC 6265, section 4.2.1). Empty values are left
/// out, because applications clear a cookie by setting an empty value.
fn cookies_named<'a>(value: &'a [u8], name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    value.split(|byte| *byte == b';').filter_map(move |pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = (pair.get(..at)?, pair.get(at + 1..)?);
        let value = unquoted(value.trim_ascii());
        (found.trim_ascii() == name && !value.is_empty()).then_some(value)
    })
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// Removes the cookies named `name` from the value of a `cookie` header. Returns the rest of the
/// value, or `None` if no cookie is left.
pub fn without_cookie(value: &[u8], name: &str) -> Option<Vec<u8>> {
    let is_other = |pair: &&[u8]| {
        let found = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
        found.trim_ascii() != name.as_bytes() && !pair.trim_ascii().is_empty()
    };
    let left: Vec<_> =
        value.split(|byte| *byte == b';').filter(is_other).map(<[u8]>::trim_ascii).collect();
    (!left.is_empty()).then(|| left.join(&b"; "[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found<'a>(authorization: &[&'a str], cookies: &[&'a str]) -> Credential<'a> {
        let bytes =
            |values: &[&'a str]| values.iter().map(|value| value.as_bytes()).collect::<Vec<_>>();
        find(bytes(authorization).into_iter(), bytes(cookies).into_iter(), Some("session"))
    }

    #[test]
    fn a_token_is_found_in_a_header_whose_scheme_is_bearer() {
        assert_eq!(found(&["Bearer t"], &[]), Credential::Token("t", Found::Header));
        assert_eq!(found(&["Basic dDp0"], &[]), Credential::None);
        for malformed in ["Bearer", "Bearer t u"] {
            assert_eq!(
                found(&[malformed], &[]),
                Credential::Token("", Found::Header),
                "an empty token: {malformed:?}"
            );
            assert_eq!(found(&[malformed], &["session=t"]), Credential::Several, "{malformed:?}");
        }
    }

    #[test]
    fn the_token_is_read_from_the_cookie_if_no_header_holds_one() {
        for value in [
            "session=t",
            " session = t ",
            "a=b; session=t; c=d",
            "session=\"t\"",
            "sessio=x;session=t;=;;",
        ] {
            assert_eq!(found(&[], &[value]), Credential::Token("t", Found::Cookie), "{value:?}");
        }
        assert_eq!(
            found(&["Basic dDp0"], &["a=b", "session=t"]),
            Credential::Token("t", Found::Cookie)
        );
        for value in ["", "Session=t", "xsession=t", "session", "sessionx=t", "a=session=t"] {
            assert_eq!(found(&[], &[value]), Credential::None, "{value:?}");
        }
        assert_eq!(
            found(&["Bearer t"], &["session=t"]),
            Credential::Token("t", Found::Header),
            "both hold the same token"
        );
        let cookies = [&b"session=t"[..]];
        assert_eq!(
            find([].into_iter(), cookies.into_iter(), None),
            Credential::None,
            "no cookie is configured"
        );
    }

    #[test]
    fn a_request_with_several_tokens_has_no_usable_token() {
        for values in
            [["Bearer t", "Bearer t"], ["Basic dDp0", "Bearer t"], ["Bearer t", "Basic dDp0"]]
        {
            assert_eq!(found(&values, &[]), Credential::Several, "{values:?}");
        }
        assert_eq!(found(&["Bearer t"], &["session=u"]), Credential::Several);
    }

    #[test]
    fn cookies_conflict_unless_all_that_are_not_empty_have_the_same_value() {
        for cookies in [
            &["session=t; session=t"][..],
            &["session=t", "session=t"],
            &["session=t; session=\"t\"", "session = t"],
            &["session=; session=t"],
            &["session=t; session=\"\"", "session="],
        ] {
            assert_eq!(found(&[], cookies), Credential::Token("t", Found::Cookie), "{cookies:?}");
            assert_eq!(
                found(&["Bearer t"], cookies),
                Credential::Token("t", Found::Header),
                "{cookies:?}"
            );
            assert_eq!(found(&["Bearer u"], cookies), Credential::Several, "{cookies:?}");
        }
        for cookies in [&["session="][..], &["session=\"\"; session= "], &["session=", "a=b"]] {
            assert_eq!(found(&[], cookies), Credential::None, "{cookies:?}");
            assert_eq!(
                found(&["Bearer t"], cookies),
                Credential::Token("t", Found::Header),
                "{cookies:?}"
            );
        }
        for cookies in [
            &["session=t; session=u"][..],
            &["session=t", "session=u"],
            &["session=t; session=t; session=u"],
            &["session=u; session=; session=t"],
        ] {
            assert_eq!(found(&[], cookies), Credential::ConflictingCookies, "{cookies:?}");
            assert_eq!(
                found(&["Bearer t"], cookies),
                Credential::ConflictingCookies,
                "{cookies:?}"
            );
        }
    }

    #[test]
    fn bytes_that_are_not_text_yield_an_empty_token() {
        let (authorization, cookies) = ([&b"Bearer a\xff"[..]], [&b"session=a\xff"[..]]);
        assert_eq!(
            find(authorization.into_iter(), [].into_iter(), None),
            Credential::Token("", Found::Header)
        );
        assert_eq!(
            find([].into_iter(), cookies.into_iter(), Some("session")),
            Credential::Token("", Found::Cookie)
        );
    }

    #[test]
    fn only_the_cookies_with_the_name_are_removed() {
        let left = |value: &str| {
            without_cookie(value.as_bytes(), "session").map(|left| String::from_utf8(left).unwrap())
        };
        assert_eq!(left("a=b; session=t;c=d; session=u").as_deref(), Some("a=b; c=d"));
        assert_eq!(left("session=t"), None);
        assert_eq!(left(" session = t ;"), None);
        assert_eq!(left("xsession=t").as_deref(), Some("xsession=t"));
    }
}
