//! Names in certificates, each with its type: a host, a URI and an e-mail address are three
//! different names even if they have the same text (RFC 5280, section 4.2.1.6).

use std::{fmt, str::FromStr};

/// A name in a certificate that identifies a caller. Hosts are normalized, so that two spellings of
/// the same name are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// A host, in lower case, because hosts are compared case-insensitively (RFC 4343).
    Dns(String),
    /// A URI, such as a SPIFFE ID. URIs are compared byte by byte.
    Uri(String),
    /// An e-mail address. Its host is in lower case; its local part is kept as written.
    Email(String),
}

/// The longest host name, and the longest label in it (RFC 1035, section 2.3.4).
const MAX_HOST_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;
/// The longest URI and the longest e-mail address.
const MAX_BYTES: usize = 2048;

/// The reason why a text is not a name that can identify a caller. The displayed message completes
/// a sentence that starts with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateNameError {
    /// The host is invalid, or a wildcard.
    #[error(
        "is not the whole name of one host, like gw.example or xn--bcher-kva.example: letters, \
         digits, - and _, without * and without a port"
    )]
    Host,
    /// The URI is invalid.
    #[error("is not a URI, like uri:spiffe://example.org/gateway")]
    Uri,
    /// The e-mail address is invalid.
    #[error("is not an e-mail address, like email:ops@example.com")]
    Email,
    /// The type is missing or unknown. The variant holds the name that was probably meant.
    #[error("has no known type: write \"{0}\"")]
    Meant(String),
    /// The type is unknown, and there is nothing to suggest.
    #[error("has no known type: write dns:HOST, uri:URI or email:ADDRESS")]
    Type,
}

use CertificateNameError as Error;

impl CertificateName {
    /// Parses a host name as it stands in a certificate.
    pub fn dns(host: &str) -> Result<Self, Error> {
        is_host(host).then(|| Self::Dns(host.to_ascii_lowercase())).ok_or(Error::Host)
    }

    /// Parses a URI as it stands in a certificate. The URI needs a scheme, and may contain only
    /// characters that RFC 3986 allows.
    pub fn uri(uri: &str) -> Result<Self, Error> {
        let is_uri = uri.len() <= MAX_BYTES
            && uri
                .split_once(':')
                .is_some_and(|(scheme, rest)| is_scheme(scheme) && !rest.is_empty())
            && uri.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte));
        is_uri.then(|| Self::Uri(uri.to_owned())).ok_or(Error::Uri)
    }

    /// Parses an e-mail address as it stands in a certificate. The local part must not be quoted.
    pub fn email(address: &str) -> Result<Self, Error> {
        // The local part is a dot-atom (RFC 5322, section 3.2.3).
        let is_text =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte);
        let is_atom = |atom: &str| !atom.is_empty() && atom.bytes().all(is_text);
        let (local, host) = address.rsplit_once('@').ok_or(Error::Email)?;
        let is_address =
            address.len() <= MAX_BYTES && local.split('.').all(is_atom) && is_host(host);
        is_address
            .then(|| Self::Email(format!("{local}@{}", host.to_ascii_lowercase())))
            .ok_or(Error::Email)
    }
}

/// Returns whether a text is the full name of one host. If the last label is a number, the text is
/// an IP address, not a name.
fn is_host(host: &str) -> bool {
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    host.len() <= MAX_HOST_BYTES
        && host.split('.').all(is_label)
        && !host.rsplit('.').next().is_some_and(is_number)
}

/// Returns whether a text is the scheme of a URI (RFC 3986, section 3.1).
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(host) => write!(f, "dns:{host}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Email(address) => write!(f, "email:{address}"),
        }
    }
}

/// Parses a name from the configuration. A name without a type is a host.
impl FromStr for CertificateName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let typed = |name: &str, rest: &str| match name {
            "dns" => Some(Self::dns(rest)),
            "uri" => Some(Self::uri(rest)),
            "email" => Some(Self::email(rest)),
            _ => None,
        };
        let Some((name, rest)) = text.split_once(':') else {
            return match Self::email(text) {
                Ok(email) => Err(Error::Meant(email.to_string())),
                Err(_) => Self::dns(text),
            };
        };
        if let Some(parsed) = typed(name, rest) {
            return parsed;
        }
        // Suggest the valid name that is closest to the text.
        let meant = typed(&name.to_ascii_lowercase(), rest)
            .or_else(|| rest.starts_with("//").then(|| Self::uri(text)))
            .or_else(|| name.eq_ignore_ascii_case("urn").then(|| Self::uri(text)))
            .or_else(|| rest.contains('@').then(|| Self::email(rest)));
        match meant {
            Some(Ok(meant)) => Err(Error::Meant(meant.to_string())),
            _ => Err(Error::Type),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        text.parse::<CertificateName>()
            .map(|name| name.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn names_are_parsed_by_type_and_normalized_and_a_name_without_a_type_is_a_host() {
        for (text, name) in [
            ("gw.test", "dns:gw.test"),
            ("GW.Test", "dns:gw.test"),
            ("dns:GW.test", "dns:gw.test"),
            ("localhost", "dns:localhost"),
            ("_a.b-c.test", "dns:_a.b-c.test"),
            ("1.2.3.4.test", "dns:1.2.3.4.test"),
            ("xn--bcher-kva.example", "dns:xn--bcher-kva.example"),
            ("uri:spiffe://Test/Gateway", "uri:spiffe://Test/Gateway"),
            ("uri:urn:uuid:0190a5c8", "uri:urn:uuid:0190a5c8"),
            ("email:Ops.Team@Example.COM", "email:Ops.Team@example.com"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(name), "{text}");
            assert_eq!(read(name).as_deref(), Ok(name), "{text}");
        }
        assert_ne!(CertificateName::dns("gw.test"), CertificateName::uri("gw.test"));
    }

    #[test]
    fn an_invalid_name_is_refused_and_the_nearest_valid_name_is_suggested_if_there_is_one() {
        for (text, meant) in [
            ("spiffe://test/gateway", "uri:spiffe://test/gateway"),
            ("https://gw.test/", "uri:https://gw.test/"),
            ("urn:uuid:0190a5c8", "uri:urn:uuid:0190a5c8"),
            ("URI:spiffe://test/gateway", "uri:spiffe://test/gateway"),
            ("DNS:gw.test", "dns:gw.test"),
            ("ops@example.com", "email:ops@example.com"),
            ("mail:ops@example.com", "email:ops@example.com"),
        ] {
            assert_eq!(read(text), Err(format!("has no known type: write \"{meant}\"")), "{text}");
        }
        for text in ["ip:10.0.0.1", "gw.test:443", ":gw.test", "cn:gw", "://", "spiffe://a b"] {
            let refused = read(text).unwrap_err();
            assert_eq!(
                refused, "has no known type: write dns:HOST, uri:URI or email:ADDRESS",
                "{text}"
            );
        }
        let long = format!("{}.test", "a".repeat(64));
        let hosts = [
            "",
            "dns:",
            "*",
            "*.gw.test",
            "dns:*.test",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a b",
            "a\0b",
            &long,
        ];
        let others =
            ["10.0.0.1", "dns:[::1]", "b\u{fc}cher.example", "a/b", "dns:uri:x:y", "@", "a@"];
        for text in hosts.into_iter().chain(others) {
            assert!(
                read(text).unwrap_err().starts_with("is not the whole name of one host"),
                "{text}"
            );
        }
        for text in
            ["uri:", "uri:gw.test", "uri::x", "uri:a:", "uri:1a:x", "uri:s://a b", "uri:s://\u{fc}"]
        {
            assert!(read(text).unwrap_err().starts_with("is not a URI"), "{text}");
        }
        for text in [
            "email:",
            "email:a",
            "email:@b",
            "email:a@",
            "email:a@*.b",
            "email:\"a\"@b",
            "email:a@b@c",
        ] {
            assert!(read(text).unwrap_err().starts_with("is not an e-mail address"), "{text}");
        }
    }
}
