//! Checks an installation, whether the service runs or not. The checks only read: they create no
//! file, run no migration, take no lock that a service needs, and join no register.

mod access;
mod certificate;
mod files;
mod finding;
mod keys;
mod ports;
mod postgres;
mod replicas;
mod schema;
mod sqlite;

use std::{sync::Arc, time::Duration};

use super::check;
use crate::{
    clock::Clock,
    config::{Config, database::DatabaseUrl, error::ConfigError},
    net::tls::Tls,
    store::{StoreError, replicas::Register, ring::SealedRing},
};

pub use self::finding::{Finding, Status};

/// The longest time that the database or a port may take to answer all questions of a check.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The findings about a database, and what was read from it for further checks.
#[derive(Debug, Default)]
struct DatabaseFindings {
    findings: Vec<Finding>,
    /// The sealed keys; none if they were not read.
    ring: Option<Result<SealedRing, StoreError>>,
    /// The register of the replicas; none if it was not read.
    register: Option<Result<Register, StoreError>>,
}

/// Checks the installation that a configuration describes. If the configuration cannot be used,
/// nothing else is checked.
pub async fn examine(loaded: Result<Config, ConfigError>, clock: Arc<dyn Clock>) -> Vec<Finding> {
    let config = match loaded {
        Ok(config) => config,
        Err(error) => {
            return vec![Finding::error(
                "configuration",
                &error,
                "correct this setting or variable (README.md, Configuration), and check it by \
                 `countersign config check`",
            )];
        }
    };
    let mut findings = vec![
        Finding::ok("configuration", "all settings are valid"),
        access::check(&config),
        files::check_data_directory(&config),
    ];
    let (master_key, masters) = files::check_master_key(&config);
    findings.push(master_key);
    findings.extend(files::check_password_file(&config));
    let tls = check::open_certificate(&config, clock.now());
    findings.extend(certificate::check(&tls, clock.now()));
    let database = match &config.database {
        DatabaseUrl::Sqlite(path) => sqlite::check(path, &config).await,
        DatabaseUrl::Postgres(url) => postgres::check(&config, url, &*clock).await,
    };
    findings.extend(database.findings);
    if let (Some(ring), Some(masters)) = (database.ring, masters) {
        findings.extend(keys::check(&config, masters, ring, clock.now()));
    }
    let tls: Option<Arc<Tls>> = tls.ok().flatten();
    findings.extend(ports::check(&config, tls.as_deref()).await);
    findings.extend(database.register.iter().map(replicas::check));
    findings
}
