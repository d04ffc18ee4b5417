//! Checks whether the ports are protected against clients on other machines.

use super::finding::Finding;
use crate::config::Config;

/// Checks whether callers are known and connections encrypted. Without `insecure`, the
/// configuration itself refuses an unprotected port that other machines can reach.
pub fn check(config: &Config) -> Finding {
    const CHECK: &str = "access";
    let addresses = [Some(config.listen), config.http_listen];
    let is_local = addresses.into_iter().flatten().all(|listen| listen.address.ip().is_loopback());
    let is_open = config.callers.is_empty();
    let is_encrypted = config.tls.is_some();
    let callers = match config.callers.len() {
        0 => "no callers are configured".to_owned(),
        1 => "1 caller is configured".to_owned(),
        callers => format!("{callers} callers are configured"),
    };
    let encryption = match (&config.tls, &config.http_listen) {
        (Some(tls), Some(_)) if !tls.http => "gRPC is encrypted, and HTTP is not",
        (Some(_), _) => "connections are encrypted",
        (None, _) => "connections are not encrypted",
    };
    let finding = format!("{callers}; {encryption}");
    match (is_local, is_open, is_encrypted) {
        (true, true, _) => {
            Finding::ok(CHECK, format!("{finding}; only this machine can reach the ports"))
        }
        (true, false, _) | (false, false, true) => Finding::ok(CHECK, finding),
        (false, true, _) => Finding::warn(
            CHECK,
            format!("{finding}: whoever reaches the ports may do everything (setting insecure)"),
            "configure callers (docs/callers.md), or let only a proxy that authenticates them \
             reach the ports",
        ),
        (false, false, false) => Finding::warn(
            CHECK,
            format!("{finding}: others can read API keys and tokens on the way (setting insecure)"),
            "set tls.certificate_file and tls.private_key_file, or let only a proxy that encrypts \
             reach the ports",
        ),
    }
}
