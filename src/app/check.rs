//! Opens the files that the settings name, to find mistakes before the service is started.

use std::{fs, sync::Arc};

use super::{
    AppError,
    database::{password_file_warning, postgres_options},
    keys::{Masters, require_master_key},
};
use crate::{
    config::{Config, database::DatabaseUrl, keys::MasterKeySource},
    domain::time::Timestamp,
    net::tls::Tls,
    store::postgres::{connect::Target, open_error::OpenError},
    telemetry::collector,
};

/// The findings about the files that the settings name.
#[derive(Debug, Default)]
pub struct FileFindings {
    /// The errors with which `serve` would refuse to start.
    pub errors: Vec<AppError>,
    /// The warnings that `serve` would log.
    pub warnings: Vec<String>,
}

/// Opens the files that the settings name as `serve` does: certificates and keys, authorities, the
/// password file and the master keys. Creates no file, and does not open the database or connect
/// to its server.
pub fn check_files(config: &Config, now: Timestamp) -> FileFindings {
    let mut findings = FileFindings::default();
    let mut note = |result: Result<(), AppError>| findings.errors.extend(result.err());
    note(open_certificate(config, now).map(drop));
    note(read_collector_authorities(config));
    note(read_database_url(config));
    note(read_password_file(config));
    note(require_master_key(config));
    note(require_shared_master_key(config));
    note(Masters::read(config).map(drop));
    findings.warnings.extend(password_file_warning(config));
    findings
}

/// Opens the certificate, its key and the certificate authorities; `None` if nothing is encrypted.
pub(super) fn open_certificate(
    config: &Config,
    now: Timestamp,
) -> Result<Option<Arc<Tls>>, AppError> {
    let Some(tls) = &config.tls else { return Ok(None) };
    Ok(Some(Arc::new(Tls::open(tls.files.clone(), now)?)))
}

/// Reads the certificate authorities of the collector, if its certificate is verified.
fn read_collector_authorities(config: &Config) -> Result<(), AppError> {
    let Some(tls) = config.otlp.as_ref().and_then(|collector| collector.tls.as_ref()) else {
        return Ok(());
    };
    Ok(collector::authorities(tls).map(drop)?)
}

/// Reads the URL of a PostgreSQL database, and the files that it names.
fn read_database_url(config: &Config) -> Result<(), AppError> {
    let DatabaseUrl::Postgres(url) = &config.database else { return Ok(()) };
    Ok(Target::new(&postgres_options(config, url)).map(drop)?)
}

/// Reads the file with the password of a PostgreSQL database, if one is configured.
pub(super) fn read_password_file(config: &Config) -> Result<(), AppError> {
    match &config.database_options.password_file {
        Some(path) if config.database.is_shared() => {
            let failed = |source| OpenError::PasswordFile { path: path.clone(), source };
            Ok(fs::read_to_string(path).map(drop).map_err(failed)?)
        }
        _ => Ok(()),
    }
}

/// Fails if the default file of the master key is missing and cannot be created, because other
/// replicas need the same key.
pub(super) fn require_shared_master_key(config: &Config) -> Result<(), AppError> {
    match &config.keys.master {
        MasterKeySource::DefaultFile(path) if config.database.is_shared() && !path.exists() => {
            Err(AppError::MasterKeyMissing { path: path.clone() })
        }
        _ => Ok(()),
    }
}
