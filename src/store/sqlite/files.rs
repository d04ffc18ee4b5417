//! The files of a database: their names, the rights on them, and the lock that keeps other
//! processes out.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::error::OpenError;
use crate::domain::file_access::{Access, Exposed, Identity, Role, Rule};

/// The suffix of the prepared copy with which a restore replaces the files of the database. As long
/// as a file with this suffix exists, the database cannot be opened.
pub const READY: &str = ".restored";

/// The suffixes of the files that SQLite keeps beside a database, and that are part of it.
pub const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The suffix of the file beside a database whose lock keeps other processes out.
pub const LOCK_FILE: &str = ".lock";

/// The length of a log's header, in bytes. A log that is not longer than its header contains no
/// change.
const LOG_HEADER: u64 = 32;

/// Appends a suffix to the path of a database.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// Returns the folder that contains a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the paths of the database, of its lock file, and of the files that SQLite keeps beside
/// it. SQLite creates the latter with the mode of the database.
pub fn all(path: &Path) -> impl Iterator<Item = PathBuf> {
    ["", LOCK_FILE].into_iter().chain(SIDE_FILES).map(|end| beside(path, end))
}

/// Returns the path of the database file. If `path` is a symbolic link, this is the file to which
/// it leads. Refuses a folder in which other users could replace the file. The caller must use only
/// the returned path afterwards.
pub fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let file = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => match path.canonicalize() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match end_of_links(path) {
                // A restore was interrupted. When it is run again, it puts the file there.
                Some(file) if has_ready_copy(&file) => file,
                _ => {
                    let target = fs::read_link(path).unwrap_or_default();
                    return Err(OpenError::LeadsNowhere { path: path.to_owned(), target });
                }
            },
            Err(error) => return Err(io_error(error)),
        },
        Ok(_) => path.to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(io_error(error)),
    };
    if fs::metadata(&file).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(OpenError::NotAFile(file));
    }
    check_access(folder_of(&file), Role::Folder, Rule::OthersOnlyRead)?;
    Ok(file)
}

/// Follows symbolic links, and returns the path to which they lead, even if there is no file at
/// that path.
fn end_of_links(path: &Path) -> Option<PathBuf> {
    /// The largest number of links that Linux follows.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(_) => return Some(folder_of(&path).canonicalize().ok()?.join(path.file_name()?)),
        }
    }
    None
}

/// Returns whether a restore of the database with this path was interrupted.
pub fn is_restore_unfinished(path: &Path) -> bool {
    end_of_links(path).is_some_and(|file| has_ready_copy(&file))
}

/// Checks which users have rights on a file or folder. A file or folder that does not exist is
/// accepted.
pub fn check_access(path: &Path, role: Role, rule: Rule) -> Result<(), OpenError> {
    // A folder may be a symbolic link. A file may not: the path of the database was resolved
    // before, and SQLite creates no links beside it.
    let metadata =
        if role == Role::Folder { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    if role == Role::Database && !metadata.is_file() {
        return Err(OpenError::NotAFile(path.to_owned()));
    }
    let access = Access::from(&metadata);
    let folder = match role {
        Role::Folder => access,
        Role::Database | Role::Backup | Role::MasterKey => {
            let folder = fs::metadata(folder_of(path));
            Access::from(&folder.map_err(|source| OpenError::Io { path: path.to_owned(), source })?)
        }
    };
    let judged = rule.judge(access, folder, &Identity::of_this_process());
    Ok(judged.map_err(|exposure| Exposed { role, path: path.to_owned(), exposure })?)
}

/// Removes all permissions of other users from the files of a database. Files that were copied or
/// restored from a backup often have such permissions.
pub fn make_private(path: &Path) -> Result<(), OpenError> {
    for file in all(path) {
        let Err(error) = check_access(&file, Role::Database, Rule::Private) else { continue };
        let OpenError::Exposed(Exposed { exposure, .. }) = &error else { return Err(error) };
        let Some(mode) = exposure.mode() else { return Err(error) };
        // Only the owner of a file can change its mode.
        fs::set_permissions(&file, Permissions::from_mode(mode & 0o700)).map_err(|_| error)?;
        tracing::warn!(
            file = %file.display(),
            mode = format!("{mode:04o}"),
            "others could read a file of the database; that right has been taken away from them"
        );
    }
    Ok(())
}

/// Rejects a file that cannot be written. SQLite would open it read-only without an error; the
/// service would seem to work, and each of its writes would fail. The file is not opened here,
/// because closing it would release the locks that connections of this process hold on it
/// (fcntl(2)).
pub fn require_writable(path: &Path) -> Result<(), OpenError> {
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::ReadOnly { path: path.to_owned(), problem: error.to_string() })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes the lock that keeps other processes out of the database. It is released when the file is
/// closed.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    // The canonical path is used, so that a database that has two names has one lock.
    let true_path = match path.canonicalize() {
        Ok(true_path) => true_path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    let lock_path = beside(&true_path, LOCK_FILE);
    let io_error = |source| OpenError::Io { path: lock_path.clone(), source };
    let mut options = OpenOptions::new();
    // If there is a symbolic link at this path, no file must be created at its target.
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&lock_path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

/// Returns whether a database file has no content, or does not exist.
pub fn is_empty(path: &Path) -> bool {
    path.metadata().map_or(true, |file| file.len() == 0)
}

/// Returns whether there is a log with changes beside a database.
pub fn has_log(path: &Path) -> bool {
    beside(path, "-wal").metadata().is_ok_and(|log| log.len() > LOG_HEADER)
}

/// Rejects a log that contains changes, if the file of its database is missing or empty.
pub fn refuse_log_alone(path: &Path) -> Result<(), OpenError> {
    match is_empty(path) && has_log(path) {
        true => Err(OpenError::LogAlone(path.to_owned())),
        false => Ok(()),
    }
}

/// Returns whether an interrupted restore has left its prepared copy beside this database.
fn has_ready_copy(path: &Path) -> bool {
    beside(path, READY).symlink_metadata().is_ok()
}

/// Rejects a database if a restore was interrupted while it replaced the files.
pub fn refuse_unfinished_restore(path: &Path) -> Result<(), OpenError> {
    match has_ready_copy(path) {
        true => {
            let ready = beside(path, READY);
            Err(OpenError::RestoreUnfinished { path: path.to_owned(), ready })
        }
        false => Ok(()),
    }
}
