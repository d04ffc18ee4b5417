//! Data of devices. The data for display is only shown to users, so invalid data never makes a call
//! fail: long texts are cut, control characters are replaced, and an invalid IP address is left
//! out. The identifier of a device is no such data, because a changed one would find other sessions.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    session::Device,
    text::{DeviceId, DeviceLabel, IpAddress, UserAgent},
};

impl Device {
    /// Builds a device without an identifier from unchecked data. Valid values stay as they are.
    pub fn from_display_data(user_agent: &str, ip_address: &str, label: &str) -> Self {
        // The cleaned texts are valid, so the defaults are never used for them.
        Self {
            user_agent: printable(user_agent, UserAgent::MAX_BYTES).try_into().unwrap_or_default(),
            ip_address: bare_address(ip_address)
                .and_then(|address| IpAddress::try_from(address).ok())
                .unwrap_or_default(),
            label: printable(label, DeviceLabel::MAX_BYTES).try_into().unwrap_or_default(),
            id: DeviceId::default(),
        }
    }

    /// Returns the device of a session after a caller has described it anew. If the description has
    /// no identifier, the device keeps the one that it has: not every part of a client that
    /// refreshes knows it.
    pub fn described_as(&self, new: &Self) -> Self {
        let id = if new.id.is_empty() { &self.id } else { &new.id };
        Self { id: id.clone(), ..new.clone() }
    }
}

/// Replaces control characters by spaces, and cuts the text at the last character that fits.
fn printable(text: &str, limit: usize) -> String {
    if text.len() <= limit && !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    let replaced: String = text
        .chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    let trimmed = replaced.trim();
    let end = (0..=limit.min(trimmed.len())).rev().find(|end| trimmed.is_char_boundary(*end));
    end.and_then(|end| trimmed.get(..end)).unwrap_or_default().trim_end().to_owned()
}

/// Extracts the IP address from the forms that proxies and frameworks pass on. Of a list, as in
/// `X-Forwarded-For`, the first address is taken. Quotes, brackets, the port (RFC 7239, section 6)
/// and the zone (RFC 4007, section 11) are removed. Returns `None` if there is no address, as in
/// `unknown`.
fn bare_address(text: &str) -> Option<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Some(text.to_owned());
    }
    let first = text.split(',').next().unwrap_or_default().trim().trim_matches('"').trim();
    let host = match first.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            let is_followed_by_port = after.strip_prefix(':').is_some_and(is_port);
            (after.is_empty() || is_followed_by_port).then_some(host)?
        }
        None => match first.split_once(':') {
            Some((host, port)) if is_port(port) && host.parse::<Ipv4Addr>().is_ok() => host,
            _ => first,
        },
    };
    let address = host.split('%').next().unwrap_or_default();
    address.parse::<IpAddr>().ok().map(|address| address.to_string())
}

/// Returns whether a text has the form of a port. Proxies may send an obfuscated port, which has
/// letters (RFC 7239, section 6).
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(address: &str) -> String {
        Device::from_display_data("", address, "").ip_address.into_string()
    }

    #[test]
    fn an_address_is_extracted_from_lists_ports_and_quotes() {
        for (sent, expected) in [
            ("203.0.113.7", "203.0.113.7"),
            ("2001:DB8::1", "2001:DB8::1"),
            ("203.0.113.7:51234", "203.0.113.7"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("203.0.113.7, 10.0.0.6", "203.0.113.7"),
            ("203.0.113.7:51234,10.0.0.6", "203.0.113.7"),
            ("\"[2001:db8::1]:_secret\", 10.0.0.6", "2001:db8::1"),
            (" 203.0.113.7\t", "203.0.113.7"),
            ("fe80::1%eth0", "fe80::1"),
            ("[fe80::1%25eth0]:443", "fe80::1"),
            ("::ffff:203.0.113.7", "::ffff:203.0.113.7"),
        ] {
            assert_eq!(kept(sent), expected, "{sent}");
        }
    }

    #[test]
    fn a_text_without_an_address_is_left_out() {
        for sent in [
            "",
            "unknown",
            "unknown, 203.0.113.7",
            ", 203.0.113.7",
            "localhost:80",
            "203.0.113.256",
            "203.0.113.7:80:90",
            "[2001:db8::1",
            "[2001:db8::1]443",
            "_hidden",
            "\t",
            "203.0.113.7; rm",
        ] {
            assert_eq!(kept(sent), "", "{sent}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let device = |agent: &str, label: &str| Device::from_display_data(agent, "", label);
        let long = device(&"x".repeat(513), &"é".repeat(65));
        assert_eq!(&*long.user_agent, "x".repeat(512));
        assert_eq!(&*long.label, "é".repeat(64));
        assert_eq!(
            &*device("", &format!("x{}", "é".repeat(64))).label,
            format!("x{}", "é".repeat(63))
        );
        let mended = device("\tcurl\t8\n", " Zoë's phone ");
        assert_eq!((&*mended.user_agent, &*mended.label), ("curl 8", " Zoë's phone "));
        assert_eq!(&*device("\0\u{9b}\n", "").user_agent, "");
    }

    proptest! {
        /// A repeated request must yield the same device, and data that has been cleaned must stay
        /// as it is.
        #[test]
        fn cleaning_twice_changes_nothing(
            agent in "(?s).{0,600}",
            address in "(?s).{0,80}",
            label in "(?s).{0,140}",
        ) {
            let once = Device::from_display_data(&agent, &address, &label);
            let again = Device::from_display_data(&once.user_agent, &once.ip_address, &once.label);
            prop_assert_eq!(again, once);
        }
    }
}
