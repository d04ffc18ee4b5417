//! Checks the parts of a request's head that the HTTP library does not check: the target, `Host`
//! and `Transfer-Encoding` (RFC 9112, sections 3.2 and 6.1).

use std::net::Ipv6Addr;

use axum::response::Response;
use http::{
    HeaderMap, Method, Request, StatusCode, Uri, Version,
    header::{CONNECTION, HOST, HeaderValue, TRANSFER_ENCODING},
};

use super::callers::error;

/// The reason for which the head of a request is refused.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    problem: &'static str,
}

impl Refusal {
    /// Makes the response, after which the connection is closed.
    pub fn answer(&self) -> Response {
        let mut response = error(self.status, "invalid_request", self.problem, None);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Refuses a request whose target, host or transfer coding is ambiguous or invalid.
pub fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    let refused = |status| move |problem| Refusal { status, problem };
    check_target(request.method(), request.uri()).map_err(refused(StatusCode::BAD_REQUEST))?;
    check_host(request.version(), request.headers()).map_err(refused(StatusCode::BAD_REQUEST))?;
    check_transfer_encoding(request.headers()).map_err(refused(StatusCode::NOT_IMPLEMENTED))
}

/// Accepts a path or an absolute URL. An authority is accepted only for CONNECT, and `*` only for
/// OPTIONS.
fn check_target(method: &Method, target: &Uri) -> Result<(), &'static str> {
    let is_good = match (target.scheme(), target.authority(), target.path()) {
        (Some(_), _, _) => true,
        (None, Some(_), _) => method == Method::CONNECT,
        (None, None, "*") => method == Method::OPTIONS,
        (None, None, path) => path.starts_with('/'),
    };
    if is_good { Ok(()) } else { Err("the target of the request must begin with a slash") }
}

/// Requires exactly one valid `Host`. HTTP/1.0 may omit it.
fn check_host(version: Version, headers: &HeaderMap) -> Result<(), &'static str> {
    let mut values = headers.get_all(HOST).iter();
    match (values.next(), values.next()) {
        (None, _) if version == Version::HTTP_10 => Ok(()),
        (None, _) => Err("the header Host is missing: send one"),
        (Some(_), Some(_)) => Err("the header Host is there twice: send it once"),
        (Some(host), None) if is_host(host.as_bytes()) => Ok(()),
        (Some(_), None) => Err("the header Host is not a host with or without a port"),
    }
}

/// Accepts only a single `chunked`. The HTTP library accepts every list of codings that ends in
/// `chunked`, but decodes only `chunked`, so the content would still be encoded with the others.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut values = headers.get_all(TRANSFER_ENCODING).iter();
    let is_understood = match (values.next(), values.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    };
    if is_understood {
        Ok(())
    } else {
        Err("only one transfer coding is supported: chunked, without others")
    }
}

/// Matches `uri-host [ ":" port ]` (RFC 9110, section 7.2; RFC 3986, section 3.2.2). An empty value
/// is accepted, because a client must send an empty value if the target has no authority.
fn is_host(value: &[u8]) -> bool {
    let Ok(value) = std::str::from_utf8(value) else { return false };
    let (host, port) = match value.strip_prefix('[') {
        Some(literal) => {
            let Some((address, rest)) = literal.split_once(']') else { return false };
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            ("", rest)
        }
        None => value.split_at(value.find(':').unwrap_or(value.len())),
    };
    is_registered_name(host.as_bytes())
        && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// Matches `*( unreserved / pct-encoded / sub-delims )`, which includes IPv4 addresses.
fn is_registered_name(mut name: &[u8]) -> bool {
    while let [first, rest @ ..] = name {
        name = match (first, rest) {
            (b'%', [a, b, rest @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            (byte, rest) if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => {
                rest
            }
            _ => return false,
        };
    }
    true
}

fn is_port(port: &str) -> bool {
    port.is_empty()
        || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for good in [
            "",
            "a",
            "a:",
            "a:80",
            ":80",
            "auth.example.com:8080",
            "a_b",
            "127.0.0.1:1",
            "[::1]",
            "[::1]:8080",
            "%41",
            "a:65535",
            "a:00080",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for wrong in [
            "a b", "a,b c", "a/b", "a?b", "a#b", "user@a", "a:b", "a:+80", "a:65536", "a:80:80",
            "::1", "[::1", "[::1]x", "[a]", "%4", "%zz", "a\"", "<a>", "\u{e4}", "http://a", "a\t",
            "[::1]80", "[[::1]]",
        ] {
            assert!(!is_host(wrong.as_bytes()), "{wrong}");
        }
        assert!(!is_host(b"\xff"));
    }
}
