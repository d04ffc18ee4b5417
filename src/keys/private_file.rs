//! Files with secrets: small, and readable by their owner alone.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use zeroize::Zeroizing;

/// Bytes of the longest file that is read: more than any key has, so that a wrong path does not fill the memory.
const MOST: u64 = 64 << 10;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Others than its owner have rights on it.
    #[error("has mode {0:04o}, so others can read or change it: run `chmod 600` on it")]
    OpenToOthers(u32),
}

/// Reads such a file.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let file = open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(NotRead::OpenToOthers(mode));
    }
    read_all(file)
}

/// Reads a file that a group may share, as one that is mounted into a container is: others may not read it, and the group not
/// change it.
pub fn read_shared(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let file = open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o7777;
    if mode & 0o027 != 0 {
        return Err(NotRead::OpenToOthers(mode));
    }
    read_all(file)
}

/// Reads a file whose rights are the business of whoever gave it to us, as systemd does.
pub fn read_given(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    read_all(open(path)?)
}

/// Opens it without waiting, as one does for somebody who writes to a pipe.
fn open(path: &Path) -> Result<File, NotRead> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(NotRead::Io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))),
    }
}

fn read_all(file: File) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let mut bytes = Zeroizing::new(vec![]);
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}
