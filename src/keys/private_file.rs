//! Files with secrets: small, and read only if others have no rights on them.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use zeroize::Zeroizing;

use crate::domain::file_access::{Access, Exposure, Rule};

/// Bytes of the longest file that is read: more than any key has, so that a wrong path does not fill the memory.
const MOST: u64 = 64 << 10;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Others have rights on it.
    #[error("{0}: run `{command}` on it", command = .0.command())]
    Exposed(Exposure),
}

impl From<Exposure> for NotRead {
    fn from(exposure: Exposure) -> Self {
        Self::Exposed(exposure)
    }
}

/// Reads such a file.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let file = open(path)?;
    judge(&file, Rule::Private)?;
    read_all(file)
}

/// Reads a file that a group may share, as one that is mounted into a container is: others may not read it, and the group not
/// change it.
pub fn read_shared(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let file = open(path)?;
    judge(&file, Rule::PrivateToGroup)?;
    read_all(file)
}

/// Whether others can read a file with a secret that is read all the same, to be warned of. Who
/// owns it is not judged, because whoever gave it to us may. A pipe or a terminal has no lasting
/// content.
pub fn exposure(path: &Path) -> Option<Exposure> {
    let access = std::fs::metadata(path).ok().filter(Metadata::is_file).map(|metadata| access(&metadata))?;
    Rule::Private.judge(access, access.owner).err()
}

/// The rights on a file.
fn access(metadata: &Metadata) -> Access {
    Access { owner: metadata.uid(), mode: metadata.mode() }
}

/// The number of the user of this process.
fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Judges the file that was opened, and not what may have taken its name since.
fn judge(file: &File, rule: Rule) -> Result<(), NotRead> {
    Ok(rule.judge(access(&file.metadata()?), user())?)
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
