//! Checks an SQLite database.

use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;

use super::{DatabaseFindings, finding::Finding, schema};
use crate::{
    config::Config,
    domain::file_access::{Role, Rule},
    store::sqlite::{
        error::OpenError,
        files,
        open::{Inspection, inspect},
    },
};

const CHECK: &str = "database";
const OTHERWISE: &str = "correct database_url, or restore the file from a backup";

/// Checks the files, the free space and the content of a database.
pub async fn check(path: &Path, config: &Config) -> DatabaseFindings {
    let mut result = DatabaseFindings::default();
    let (finding, file) = check_files(path);
    result.findings.push(finding);
    result.findings.extend(check_space(file.as_deref().unwrap_or(path)));
    let Some(file) = file else { return result };
    if let Some(finding) = check_log(&file) {
        result.findings.push(finding);
        return result;
    }
    let inspected = spawn_blocking(move || inspect(&file)).await;
    let inspection = match inspected {
        Ok(Ok(inspection)) => inspection,
        Ok(Err(error @ OpenError::Newer { .. })) => {
            result.findings.push(Finding::error("schema", &error, OTHERWISE));
            return result;
        }
        Ok(Err(error)) => {
            result.findings.push(Finding::error(CHECK, &error, OTHERWISE));
            return result;
        }
        Err(error) => {
            result.findings.push(Finding::error(CHECK, &error, OTHERWISE));
            return result;
        }
    };
    let Inspection { library_version, pending, is_empty, ring } = inspection;
    result.findings.push(Finding::ok(
        CHECK,
        format!(
            "{} has a sound header and schema (SQLite {library_version}); `countersign database \
             check` reads all of it",
            config.database
        ),
    ));
    let pending: Vec<_> = pending.iter().map(String::as_str).collect();
    result.findings.push(schema::judge(config, &pending, is_empty));
    result.ring = ring;
    result
}

/// Checks who may read and change the files of a database. Returns the path of the database file,
/// if it can be read.
fn check_files(path: &Path) -> (Finding, Option<PathBuf>) {
    const CHECK: &str = "database_files";
    let failed = |error: OpenError| (Finding::error(CHECK, &error, OTHERWISE), None);
    let file = match files::resolve(path) {
        Ok(file) => file,
        Err(error) => return failed(error),
    };
    let shown = file.display();
    let complete =
        files::refuse_unfinished_restore(&file).and_then(|()| files::refuse_log_alone(&file));
    if let Err(error) = complete {
        return failed(error);
    }
    if !file.exists() {
        let finding = format!("{shown} does not exist yet");
        let remedy = "start the service, which makes it, or correct data_dir or database_url";
        return (Finding::warn(CHECK, finding, remedy), None);
    }
    let refused = files::all(&file).find_map(|file| {
        files::check_access(&file, Role::Database, Rule::OthersOnlyRead)
            .and_then(|()| files::require_writable(&file))
            .err()
    });
    let readable = files::all(&file)
        .find_map(|file| files::check_access(&file, Role::Database, Rule::Private).err());
    let finding = match (refused, readable) {
        (Some(error), _) => Finding::error(CHECK, &error, OTHERWISE),
        (None, Some(error)) => Finding::error(CHECK, &error, OTHERWISE).as_warning(),
        (None, None) => {
            Finding::ok(CHECK, format!("{shown} can be written, and is closed to others"))
        }
    };
    (finding, Some(file))
}

/// Checks whether the content can be read without creating a file. To read a database with a
/// write-ahead log, SQLite needs the index in the `-shm` file. A crash leaves that file in place,
/// but a copy may lack it.
fn check_log(file: &Path) -> Option<Finding> {
    let [log, index] = ["-wal", "-shm"].map(|end| files::beside(file, end));
    (log.exists() && !index.exists()).then(|| {
        Finding::warn(
            CHECK,
            format!("{} has a log without its -shm file, so it was not read", file.display()),
            "run `countersign database check`, or start the service: both make the file",
        )
    })
}

/// The free space under which SQLite cannot work: it grows the log before each commit.
const FULL: u64 = 1 << 20;
/// The free space under which there is a warning.
const LOW: u64 = 256 << 20;

/// Checks the free space on the disk of a database; `None` if its folder does not exist.
fn check_space(file: &Path) -> Option<Finding> {
    let folder = files::folder_of(file);
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(judge_space(folder, disk.f_bavail.saturating_mul(disk.f_frsize)))
}

fn judge_space(folder: &Path, free: u64) -> Finding {
    const CHECK: &str = "disk_space";
    const REMEDY: &str = "free space on the disk (`df`), or move the database to a larger one";
    let finding = format!("{} MiB are free for {}", free >> 20, folder.display());
    match free {
        0..FULL => Finding::fail(CHECK, format!("the disk is full: {finding}"), REMEDY),
        FULL..LOW => Finding::warn(CHECK, finding, REMEDY),
        LOW.. => Finding::ok(CHECK, finding),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Status, *};

    #[test]
    fn a_full_disk_fails_and_a_nearly_full_one_is_a_warning() {
        let status = |free| judge_space(Path::new("/data"), free).status;
        assert_eq!([status(0), status((1 << 20) - 1)], [Status::Fail; 2]);
        assert_eq!([status(1 << 20), status((256 << 20) - 1)], [Status::Warn; 2]);
        assert_eq!(status(256 << 20), Status::Ok);
    }
}
