//! Reads small files with secrets. One rule ([`Rule::Secret`]) says which rights on such a file are
//! acceptable.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use zeroize::Zeroizing;

use crate::domain::file_access::{Access, Exposure, Identity, Rule, secret_hint};

/// The most bytes that are read. No key is longer, and a large file at a wrong path cannot fill the
/// memory.
const MAX_BYTES: u64 = 64 << 10;

/// A file with a secret was not read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// The operating system returned an error.
    #[error("{0}{hint}", hint = secret_hint(.0))]
    Io(#[from] io::Error),
    /// Other users have rights on the file.
    #[error("{0}: run `{command}` on it", command = .0.command())]
    Exposed(Exposure),
}

impl From<Exposure> for NotRead {
    fn from(exposure: Exposure) -> Self {
        Self::Exposed(exposure)
    }
}

/// Reads a file with a secret. The file is refused if anybody but the user and the groups of this
/// process has rights on it.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let file = open(path)?;
    // The metadata is that of the open file, because another file may be at the path by now.
    check_rights(path, &file.metadata()?)?;
    read_all(file)
}

/// Returns the rights that others have on a file with a secret, for a warning about a file that is
/// used nevertheless. A pipe or a terminal is ignored, because it does not store the secret.
pub fn exposure(path: &Path) -> Option<Exposure> {
    let metadata = fs::metadata(path).ok().filter(Metadata::is_file)?;
    check_rights(path, &metadata).err()
}

fn check_rights(path: &Path, metadata: &Metadata) -> Result<(), Exposure> {
    let file = Access::from(metadata);
    // A secret that is mounted into a container is a symbolic link, so the folder of the real file
    // is checked.
    let true_path = path.canonicalize();
    let folder = true_path.ok().and_then(|path| fs::metadata(path.parent()?).ok());
    // If the metadata of the folder cannot be read, nobody is assumed to have rights on the folder.
    let folder = folder.as_ref().map_or(Access { mode: 0, ..file }, Access::from);
    Rule::Secret.judge(file, folder, &Identity::of_this_process())
}

/// Reads a file without checking the rights on it, because another program, such as systemd, is
/// responsible for them.
pub fn read_given(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    read_all(open(path)?)
}

/// Opens a regular file. `O_NONBLOCK` keeps the call from waiting for a writer if the path is a
/// pipe, which is then refused.
fn open(path: &Path) -> Result<File, NotRead> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(NotRead::Io(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))),
    }
}

fn read_all(file: File) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let mut bytes = Zeroizing::new(vec![]);
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}
