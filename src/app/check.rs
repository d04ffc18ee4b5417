//! Opens the files that the settings name, to find mistakes before the service is started.

use std::fs;

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
    if let Some(tls) = &config.tls {
        note(Tls::open(tls.files.clone(), now).map(drop).map_err(AppError::from));
    }
    if let DatabaseUrl::Postgres(url) = &config.database {
        note(Target::new(&postgres_options(config, url)).map(drop).map_err(AppError::from));
        if let Some(path) = &config.database_options.password_file {
            let read = fs::read_to_string(path).map(drop);
            note(
                read.map_err(|source| {
                    OpenError::PasswordFile { path: path.clone(), source }.into()
                }),
            );
        }
    }
    note(require_master_key(config));
    if let (MasterKeySource::DefaultFile(path), true) =
        (&config.keys.master, config.database.is_shared())
        && !path.exists()
    {
        note(Err(AppError::MasterKeyMissing { path: path.clone() }));
    }
    note(Masters::read(config).map(drop));
    findings.warnings.extend(password_file_warning(config));
    findings
}
