//! Checks the files that the service reads at its start: whether they exist, can be read, and are
//! closed to others.

use std::{io, path::Path};

use rustix::fs::Access;

use super::finding::Finding;
use crate::{
    app::{
        AppError,
        check::{read_password_file, require_shared_master_key},
        database::{check_folder, is_data_dir_used, password_file_warning, require_folder},
        keys::{Masters, require_master_key},
    },
    config::{Config, keys::MasterKeySource},
};

/// Checks the data directory.
pub fn check_data_directory(config: &Config) -> Finding {
    const CHECK: &str = "data_directory";
    let path = &config.data_dir;
    let shown = path.display();
    let otherwise = "name another one in data_dir, or give this user the right to write there";
    if !is_data_dir_used(config) {
        return Finding::ok(CHECK, format!("{shown} contains nothing that must be protected"));
    }
    if let Err(error) = require_folder(config) {
        return Finding::error(CHECK, &error, otherwise);
    }
    // If this user may not search the parent directory, it is not known whether the directory
    // exists. Then the check below fails.
    if path.try_exists().is_ok_and(|exists| !exists) {
        return Finding::warn(
            CHECK,
            format!("{shown} does not exist yet"),
            "start the service, which makes it, or correct data_dir",
        );
    }
    let checked = check_folder(path).and_then(|()| {
        let problem = |source| AppError::DataDir { path: path.clone(), source };
        require_access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).map_err(problem)
    });
    match checked {
        Ok(()) => Finding::ok(CHECK, format!("{shown} is closed to others")),
        Err(error) => Finding::error(CHECK, &error, otherwise),
    }
}

/// Checks by access(2) what this process may do with a file or folder, without opening it.
fn require_access(path: &Path, access: Access) -> io::Result<()> {
    Ok(rustix::fs::access(path, access)?)
}

/// Checks the master keys. Also returns them, if they can be used.
pub fn check_master_key(config: &Config) -> (Finding, Option<Masters>) {
    const CHECK: &str = "master_key";
    let read = require_master_key(config)
        .and_then(|()| require_shared_master_key(config))
        .and_then(|()| Masters::read(config));
    let masters = match read {
        Ok(masters) => masters,
        Err(error) => {
            let otherwise = "restore the file from a backup, or correct the setting (docs/keys.md)";
            return (Finding::error(CHECK, &error, otherwise), None);
        }
    };
    let source = match &config.keys.master {
        MasterKeySource::File(path)
        | MasterKeySource::DefaultFile(path)
        | MasterKeySource::Credential(path) => path.display().to_string(),
        MasterKeySource::Environment(name, _) => format!("the environment variable {name}"),
    };
    let finding = match &config.keys.master {
        MasterKeySource::DefaultFile(path) if !path.exists() => Finding::warn(
            CHECK,
            format!("{source} does not exist yet"),
            "start the service, which makes it for a new database, or restore it from a backup",
        ),
        MasterKeySource::Environment(..) => Finding::ok(CHECK, format!("{source} holds a key")),
        _ => Finding::ok(CHECK, format!("{source} can be read, and is closed to others")),
    };
    (finding, Some(masters))
}

/// Checks the file with the password of the database, if one is configured.
pub fn check_password_file(config: &Config) -> Option<Finding> {
    const CHECK: &str = "password_file";
    let path = config.database_options.password_file.as_ref()?;
    if !config.database.is_shared() {
        return None;
    }
    let checked = match (read_password_file(config), password_file_warning(config)) {
        (Err(error), _) => Finding::error(
            CHECK,
            &error,
            "correct the path, or let the user of the service read the file",
        ),
        (Ok(()), Some(warning)) => {
            Finding::error(CHECK, &warning, "run `chmod 600` on it").as_warning()
        }
        (Ok(()), None) => {
            Finding::ok(CHECK, format!("{} can be read, and is closed to others", path.display()))
        }
    };
    Some(checked)
}
