//! Describes a User-Agent header for people.

use woothee::parser::{Parser, WootheeResult};

/// The kind of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A desktop or a laptop computer.
    Computer,
    /// A phone or a tablet.
    Mobile,
    /// A game console, a television or the like.
    Appliance,
    /// A crawler, an HTTP library or another program.
    Program,
}

/// A User-Agent header in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// The browser and the operating system, such as `Firefox 128 on Windows`; empty if the header
    /// has no known form.
    pub name: String,
    /// The kind of the device, if the header has a known form.
    pub kind: Option<DeviceKind>,
}

/// Describes a User-Agent header. This takes some microseconds, whatever the header contains,
/// because the parser's regular expressions run in linear time.
pub fn describe(user_agent: &str) -> Description {
    Parser::new().parse(user_agent).map(|parsed| Description::of(&parsed)).unwrap_or_default()
}

/// The parser's word for what it does not know.
const UNKNOWN: &str = "UNKNOWN";

impl Description {
    fn of(parsed: &WootheeResult<'_>) -> Self {
        let system = system(parsed.os);
        let name = match (browser(parsed), system) {
            (Some(browser), Some(system)) => format!("{browser} on {system}"),
            (Some(browser), None) => browser,
            (None, system) => system.unwrap_or_default().to_owned(),
        };
        Self { name, kind: kind(parsed.category) }
    }
}

/// Returns the name of the browser and its major version.
fn browser(parsed: &WootheeResult<'_>) -> Option<String> {
    let name = match (parsed.name, parsed.version) {
        (UNKNOWN | "", _) => return None,
        // The parser says which library it is in the place of the version.
        ("HTTP Library", library) if library != UNKNOWN => return Some(library.to_owned()),
        (name, _) => name,
    };
    let major = parsed.version.split('.').next().unwrap_or_default();
    let is_number = (1..=5).contains(&major.len()) && major.bytes().all(|b| b.is_ascii_digit());
    Some(if is_number { format!("{name} {major}") } else { name.to_owned() })
}

/// Returns the name of the operating system. Browsers no longer tell the versions of current
/// systems: they all say Windows 10, macOS 10.15.7 and Android 10. Users would not recognize their
/// devices by these versions, so they are left out.
fn system(os: &str) -> Option<&str> {
    match os {
        UNKNOWN | "" => None,
        "Windows 10" | "Windows UNKNOWN Ver" => Some("Windows"),
        "Mac OSX" => Some("macOS"),
        os => Some(os),
    }
}

fn kind(category: &str) -> Option<DeviceKind> {
    match category {
        "pc" => Some(DeviceKind::Computer),
        "smartphone" | "mobilephone" => Some(DeviceKind::Mobile),
        "appliance" => Some(DeviceKind::Appliance),
        "crawler" | "misc" => Some(DeviceKind::Program),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{DeviceKind::*, *};

    #[test]
    fn browsers_and_systems_are_named() {
        for (user_agent, name, kind) in [
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:128.0) Gecko/20100101 Firefox/128.0",
                "Firefox 128 on Windows",
                Computer,
            ),
            (
                "Mozilla/5.0 (Windows NT 6.1; rv:115.0) Gecko/20100101 Firefox/115.0",
                "Firefox 115 on Windows 7",
                Computer,
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/126.0.0.0 Safari/537.36 Edg/126.0.2592.87",
                "Edge 126 on Windows",
                Computer,
            ),
            (
                "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like \
                 Gecko) Version/17.5 Safari/605.1.15",
                "Safari 17 on macOS",
                Computer,
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5_1 like Mac OS X) AppleWebKit/605.1.15 \
                 (KHTML, like Gecko) CriOS/126.0.6478.54 Mobile/15E148 Safari/604.1",
                "Chrome 126 on iPhone",
                Mobile,
            ),
            (
                "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/126.0.0.0 Mobile Safari/537.36",
                "Chrome 126 on Android",
                Mobile,
            ),
            ("MyApp/1 CFNetwork/1496.0.7 Darwin/23.5.0", "iOS", Mobile),
            ("curl/8.5.0", "curl", Program),
            (
                "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
                "Googlebot",
                Program,
            ),
        ] {
            let expected = Description { name: name.to_owned(), kind: Some(kind) };
            assert_eq!(describe(user_agent), expected, "{user_agent}");
        }
    }

    #[test]
    fn an_unknown_header_has_no_description() {
        for user_agent in ["", "-", "x", "Mozilla/5.0", "Dart/3.4 (dart:io)", "💣"] {
            assert_eq!(describe(user_agent), Description::default(), "{user_agent}");
        }
    }

    proptest! {
        /// The parser is not ours, and users choose what it reads.
        #[test]
        fn no_header_makes_the_parser_panic(
            parts in proptest::collection::vec(
                prop_oneof![
                    prop_oneof![
                        Just("Mozilla/5.0 ("), Just("Windows NT "), Just("iPhone;"), Just("Version/"),
                        Just("Chrome/"), Just(" like Mac OS X"), Just("CPU OS "), Just("MSIE "),
                        Just("DoCoMo/"), Just("KDDI-"), Just("Android"), Just("CrOS "), Just("bot"),
                    ].prop_map(str::to_owned),
                    "(?s).{0,8}",
                ],
                0..24,
            ),
        ) {
            let user_agent = parts.concat();
            // A name consists of parts of the header, and of words of the parser.
            prop_assert!(describe(&user_agent).name.len() <= user_agent.len() + 64);
        }
    }
}
