//! Recognizes the environment variables that Kubernetes sets in a container for each service of its
//! namespace, in the form of Docker's links. The variables of a service named `countersign` or
//! `countersign-grpc` begin with the prefix of our settings, and must not be taken for settings.

use std::net::IpAddr;

const TRANSPORTS: [&str; 3] = ["tcp", "udp", "sctp"];

/// The kind of value that the variable of a link has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// An address: `_SERVICE_HOST`, `_PORT_53_UDP_ADDR`.
    Address,
    /// A number: `_SERVICE_PORT`, `_SERVICE_PORT_GRPC`, `_PORT_53_UDP_PORT`.
    Number,
    /// A URL like `tcp://10.0.0.5:8080`: `_PORT_8080_TCP`.
    Url,
    /// A URL like that of `Url`, in a variable whose name may also be that of a setting: `_PORT`.
    PlainPort,
    /// The name of a transport: `_PORT_53_UDP_PROTO`.
    Transport,
}

impl Value {
    fn fits(self, value: &str) -> bool {
        match self {
            Self::Address => value.parse::<IpAddr>().is_ok(),
            Self::Number => value.parse::<u16>().is_ok(),
            Self::Url | Self::PlainPort => {
                value.split_once("://").is_some_and(|(scheme, _)| TRANSPORTS.contains(&scheme))
            }
            Self::Transport => TRANSPORTS.contains(&value),
        }
    }
}

/// Returns whether a variable is part of a service link. `name` is its name without the prefix. If
/// a setting may have the same name, the value decides.
pub fn is_link(name: &str, value: Option<&str>) -> bool {
    let name = name.to_ascii_lowercase();
    let Some(form) = form(&name) else { return false };
    let may_be_setting = form == Value::PlainPort || name.contains("__");
    !may_be_setting || value.is_some_and(|value| form.fits(value))
}

/// Returns the kind of value that a link's variable of this name has. Returns `None` if no link has
/// a variable of this name.
fn form(name: &str) -> Option<Value> {
    // `name` is one of the endings below, or the rest of the name of the service and an ending, as
    // in `grpc_service_host`. With the underscore that is added, the endings match in both cases.
    let name = format!("_{name}");
    if name.ends_with("_service_host") {
        return Some(Value::Address);
    }
    if name.ends_with("_service_port") || name.contains("_service_port_") {
        return Some(Value::Number);
    }
    if name.ends_with("_port") && transport_port(name.trim_end_matches("_port")).is_none() {
        return Some(Value::PlainPort);
    }
    let ends = [("_proto", Value::Transport), ("_port", Value::Number), ("_addr", Value::Address)];
    let end = ends.into_iter().find_map(|(end, value)| Some((name.strip_suffix(end)?, value)));
    let (name, value) = end.unwrap_or((&name, Value::Url));
    transport_port(name).map(|()| value)
}

/// Returns `Some` if the name ends like `_port_8080_tcp`.
fn transport_port(name: &str) -> Option<()> {
    let (name, transport) = name.rsplit_once('_')?;
    let (name, number) = name.rsplit_once('_')?;
    let is_port =
        TRANSPORTS.contains(&transport) && number.parse::<u16>().is_ok() && name.ends_with("_port");
    is_port.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_recognized_by_its_name_and_if_that_is_ambiguous_by_its_value() {
        for (name, value) in [
            ("SERVICE_HOST", "10.0.0.5"),
            ("SERVICE_PORT", "50051"),
            ("SERVICE_PORT_GRPC", "50051"),
            ("PORT", "tcp://10.0.0.5:50051"),
            ("PORT_50051_TCP", "tcp://10.0.0.5:50051"),
            ("GRPC_SERVICE_HOST", "fd00::5"),
            ("GRPC_SERVICE_PORT", "50051"),
            ("GRPC_SERVICE_PORT_GRPC_TLS", "50051"),
            ("HTTP_PORT", "tcp://10.0.0.5:8080"),
            ("HTTP_PORT", "tcp://[fd00::5]:8080"),
            ("DB_PORT_5432_TCP", "tcp://10.0.0.5:5432"),
            ("DB_PORT_5432_TCP_PROTO", "tcp"),
            ("DB_PORT_5432_TCP_PORT", "5432"),
            ("DB_PORT_5432_TCP_ADDR", "10.0.0.5"),
            ("DNS_PORT_53_UDP_ADDR", "10.0.0.5"),
            ("SIGNAL_PORT_9900_SCTP", "sctp://10.0.0.5:9900"),
            ("DB_PRIMARY_PORT_5432_TCP_ADDR", "10.0.0.5"),
            ("DB__PRIMARY_PORT_5432_TCP_ADDR", "10.0.0.5"),
            ("TLS__X_SERVICE_HOST", "10.0.0.5"),
            ("TLS__X_SERVICE_PORT", "443"),
            // No setting has such a name, so its value does not matter.
            ("SERVICE_HOST", "localhost"),
        ] {
            assert!(is_link(name, Some(value)), "{name}={value}");
        }
        for (name, value) in [
            ("PORT", "50051"),
            ("HTTP_PORT", "8080"),
            ("HTTP_PORT", "http://10.0.0.5:8080"),
            ("PORT_50051", "tcp://10.0.0.5:50051"),
            ("DB_PORT_TCP", "tcp://10.0.0.5:5432"),
            ("DB_PORT_99999_TCP", "tcp://10.0.0.5:5432"),
            ("DB_PORT_5432_QUIC", "quic://10.0.0.5:5432"),
            ("DB_PORT_5432_TCP_NAME", "x"),
            ("HTTP_LISTN", "127.0.0.1:1"),
            ("SERVICE", "x"),
            ("TLS__X_SERVICE_HOST", "sub"),
            ("GATEWAY__HEADERS__X_SERVICE_PORT", "sub"),
            ("SUPPORT", "tcp://10.0.0.5:1"),
        ] {
            assert!(!is_link(name, Some(value)), "{name}={value}");
        }
        assert!(!is_link("HTTP_PORT", None));
    }
}
