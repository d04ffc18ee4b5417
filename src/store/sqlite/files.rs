//! The files of a database: their names, who may use them, and the lock that keeps other processes
//! away.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::error::OpenError;
use crate::domain::file_access::{Access, Exposed, Identity, Role, Rule};

/// The end of the name of a copy that a restore has prepared, while it exchanges files. No start
/// takes anything for a database while there is a file of this name beside it.
pub const READY: &str = ".restored";

/// The files that SQLite keeps beside a database; they belong to it.
pub const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The file beside a database whose lock keeps other processes away.
pub const LOCK_FILE: &str = ".lock";

/// The file beside a database whose name is that of the database with this end.
pub fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The folder that contains a file.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The database, its lock, and the files that SQLite keeps beside it, which get its mode when they
/// are made.
pub fn all(path: &Path) -> impl Iterator<Item = PathBuf> {
    ["", LOCK_FILE].into_iter().chain(SIDE_FILES).map(|end| beside(path, end))
}

/// Finds the file that a name stands for, through a symbolic link if it is one, and refuses a
/// folder in which others could exchange it. From here on the file is used by the name that is
/// returned.
pub fn resolve(path: &Path) -> Result<PathBuf, OpenError> {
    let io_error = |source| OpenError::Io { path: path.to_owned(), source };
    let file = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => match path.canonicalize() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match end_of_links(path) {
                // A restore was interrupted, and will put the file there again.
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
    judge(folder_of(&file), Role::Folder, Rule::OthersOnlyRead)?;
    Ok(file)
}

/// Follows symbolic links to the file that they lead to, whether there is one or not.
fn end_of_links(path: &Path) -> Option<PathBuf> {
    /// As many as Linux follows.
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

/// Returns whether a restore into the database of this name was interrupted.
pub fn is_restore_unfinished(path: &Path) -> bool {
    end_of_links(path).is_some_and(|file| has_ready_copy(&file))
}

/// Judges who has rights on a file or folder. Nothing is wrong with one that does not exist.
pub fn judge(path: &Path, role: Role, rule: Rule) -> Result<(), OpenError> {
    // Links to the database are resolved by now, and SQLite makes none beside it.
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

/// Takes the right to read away from others, which backups and copies often grant.
pub fn make_private(path: &Path) -> Result<(), OpenError> {
    for file in all(path) {
        let Err(error) = judge(&file, Role::Database, Rule::Private) else { continue };
        let OpenError::Exposed(Exposed { exposure, .. }) = &error else { return Err(error) };
        let Some(mode) = exposure.mode() else { return Err(error) };
        // A user who does not own it cannot change its mode.
        fs::set_permissions(&file, Permissions::from_mode(mode & 0o700)).map_err(|_| error)?;
        tracing::warn!(
            file = %file.display(),
            mode = format!("{mode:04o}"),
            "others could read a file of the database; that right has been taken away from them"
        );
    }
    Ok(())
}

/// Refuses a file that cannot be written. SQLite would open it for reading without a word, and fail
/// each write of a service that says that it serves. It is not opened for that: to close it would
/// end the locks that connections of this process hold on it (fcntl(2)).
pub fn require_writable(path: &Path) -> Result<(), OpenError> {
    match rustix::fs::access(path, rustix::fs::Access::WRITE_OK).map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OpenError::ReadOnly { path: path.to_owned(), problem: error.to_string() })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes the lock that keeps other processes away from the database. It ends with the file's being
/// closed.
pub fn lock(path: &Path) -> Result<File, OpenError> {
    // By its true name, so that two names of one database have one lock.
    let true_path = match path.canonicalize() {
        Ok(true_path) => true_path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(source) => return Err(OpenError::Io { path: path.to_owned(), source }),
    };
    let lock_path = beside(&true_path, LOCK_FILE);
    let io_error = |source| OpenError::Io { path: lock_path.clone(), source };
    let mut options = OpenOptions::new();
    // A link in its place could make a file elsewhere.
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&lock_path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(io_error(source)),
    }
}

/// Returns whether a backup was being put into this database when the process was killed.
fn has_ready_copy(path: &Path) -> bool {
    beside(path, READY).symlink_metadata().is_ok()
}

/// Refuses a database into which a backup was being put when the process was killed.
pub fn refuse_unfinished_restore(path: &Path) -> Result<(), OpenError> {
    match has_ready_copy(path) {
        true => {
            let ready = beside(path, READY);
            Err(OpenError::RestoreUnfinished { path: path.to_owned(), ready })
        }
        false => Ok(()),
    }
}
