//! Fuzzes the configuration. If a text is refused, the error must be a single line. A configuration
//! that is accepted must have the documented properties, and must mean the same when it has been
//! printed and read again.
#![no_main]

use std::{sync::Arc, time::Duration};

use countersign::{
    app::settings::ceilings,
    authority::ready::Ready,
    callers::meter::{ConcurrencyLimits, Meter},
    clock::{Clock, SharedClock, SystemClock},
    config::Config,
    domain::{permission::CostClass, policy::DEFAULT},
    http::health::Readiness,
    revocation::replica::Replica,
};
use countersign_fuzz::routes;
use jiff::{Timestamp, tz::TimeZone};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = str::from_utf8(data) else { return };
    let config = match Config::from_toml(text) {
        Ok(config) => config,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains(char::is_control), "{error:?}");
            assert!(!hides_a_password(text) || !error.contains(PASSWORD), "{error:?}");
            return;
        }
    };
    check_properties(&config);
    if hides_a_password(text) {
        let all = format!("{config:?}{}{}", config.to_toml().unwrap(), config.to_json().unwrap());
        assert!(!all.contains(PASSWORD), "{all}");
    }
    let printed = config.to_toml().expect("what is accepted can be printed");
    let again =
        Config::from_toml(&printed).unwrap_or_else(|error| panic!("{error}, in\n{printed}"));
    assert_eq!(again.to_toml().unwrap(), printed);
    assert_eq!(again.to_json().unwrap(), config.to_json().unwrap());
    assert_eq!(again.policies, config.policies);
    assert_eq!(again.lease, config.lease);
    assert_eq!(again.callers, config.callers);
    assert_eq!(again.tls, config.tls);
    // A password in the URL is not printed.
    assert!(again.differences(&config).keys().all(|name| name == "database_url"));
    assert_eq!(again.database.to_string(), config.database.to_string());
    assert_eq!(
        format!("{:?}{:?}", again.tenants, again.tokens),
        format!("{:?}{:?}", config.tenants, config.tokens)
    );
});

const PASSWORD: &str = "hunter2";

/// Returns whether the password is only where passwords belong. Texts with multi-line strings are
/// left out, because their lines cannot be checked one by one.
fn hides_a_password(text: &str) -> bool {
    let is_fine = |line: &str| match line.split_once(PASSWORD) {
        None => true,
        Some((before, after)) => {
            let in_a_url =
                before.strip_prefix("database_url = \"postgres://").is_some_and(|user| {
                    user.strip_suffix(':')
                        .is_some_and(|user| user.chars().all(char::is_alphanumeric))
                        && after.starts_with('@')
                });
            (in_a_url || before == "key_hashes = [\"cs_ck_") && !after.contains(PASSWORD)
        }
    };
    !text.contains("\"\"\"") && !text.contains("'''") && text.split(['\n', '\r']).all(is_fine)
}

/// Checks the properties that every accepted configuration has.
fn check_properties(config: &Config) {
    assert!(config.policies.contains_key(DEFAULT));
    for policy in config.policies.values() {
        policy.check(config.tokens.max_access_token_ttl).unwrap();
    }
    assert!(config.max_blacklist_entries > 0);
    assert!(config.issuer.len() <= 256);

    // The password of the database's user is not shown.
    let shown = config.database.to_string();
    let user = shown.strip_prefix("postgres://").and_then(|rest| rest.split_once('@'));
    assert!(user.is_none_or(|(user, _)| !user.contains(':')), "{shown}");

    // Each caller may make at least one call.
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    for caller in &config.callers {
        assert!(!caller.keys.is_empty() || !caller.certificate_names.is_empty(), "{caller:?}");
        let meter = Meter::new(
            caller.limits,
            Arc::new(ConcurrencyLimits::new(ceilings(&config.limits), clock.clone())),
            clock.clone(),
        );
        Arc::new(meter).begin(CostClass::Read).expect("the first call");
    }

    // Building the routes below the issuer's path and finding the next sweep must not panic, and
    // finding the next sweep must not take long.
    let replica = Arc::new(Replica::new(
        Arc::new(SharedClock::new(clock.clone())),
        config.lease,
        config.watch,
    ));
    let _ = routes(config, clock, replica, Readiness::new(), Ready::default());
    let now = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
    if let Ok(next) = config.sweeper.schedule.find_next_occurrence(&now, false) {
        assert!(next > now);
    }
    assert!(config.lease.max_validity() < Duration::from_secs(60));
}
