//! The syntax of `authorization: Bearer` (RFC 6750, section 2.1), for access tokens and API keys.

/// Reads the token in a value of `authorization` whose scheme is `Bearer`. Returns `None` for
/// another scheme.
///
/// Spaces and one `b64token` must follow the scheme. If anything else follows the scheme, the
/// result is an empty token, which is never valid. Text that can be read in two ways must not be
/// accepted in either.
pub fn bearer_token(value: &[u8]) -> Option<&str> {
    const SCHEME: &[u8] = b"bearer";
    let value = value.trim_ascii();
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    let is_bearer =
        scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(u8::is_ascii_whitespace);
    is_bearer.then(|| token68(rest).unwrap_or_default())
}

/// Reads the spaces and the `token68` that follow the name of an authentication scheme (RFC 9110,
/// section 11.2). Returns `None` if anything else follows the name.
pub fn token68(after_scheme: &[u8]) -> Option<&str> {
    let token = std::str::from_utf8(after_scheme).ok()?.trim_start_matches(' ');
    let is_separate = token.len() < after_scheme.len();
    let unpadded = token.trim_end_matches('=');
    let is_token = !unpadded.is_empty()
        && unpadded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
    (is_separate && is_token).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_bearer_may_be_in_upper_or_lower_case() {
        for value in ["Bearer t", "bearer t", "bearer  t", "BEARER  t ", "BEARER   t ", " Bearer t"]
        {
            assert_eq!(bearer_token(value.as_bytes()), Some("t"), "{value:?}");
        }
        for token in ["cs_ck_1", "a.b-c_d~e+f/0", "t=", "t=="] {
            let value = format!("Bearer {token}");
            assert_eq!(bearer_token(value.as_bytes()), Some(token), "{value:?}");
        }
    }

    #[test]
    fn a_value_with_another_scheme_yields_no_token() {
        for value in [
            "",
            "t",
            "cs_ck_1",
            "Basic",
            "Basic dDp0",
            "Basic cs_ck_1",
            "Digest x",
            "DPoP t",
            "Bearert",
            "Beare",
            "Token t",
        ] {
            assert_eq!(bearer_token(value.as_bytes()), None, "{value:?}");
        }
    }

    #[test]
    fn anything_but_one_token_after_bearer_yields_an_empty_token() {
        for value in [
            "Bearer",
            "Bearer ",
            "Bearer\tt",
            "Bearer \tt",
            "Bearer t u",
            "Bearer t,u",
            "Bearer t, u",
            "Bearer t, Basic dDp0",
            "Bearer t;",
            "Bearer \"t\"",
            "Bearer =",
            "Bearer t=t",
            "Bearer token=t",
            "Bearer \u{e4}",
        ] {
            assert_eq!(bearer_token(value.as_bytes()), Some(""), "{value:?}");
        }
        assert_eq!(bearer_token(b"Bearer a\xff"), Some(""), "bytes that are not text");
    }
}
