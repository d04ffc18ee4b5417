//! Files with secrets: small, and judged by one rule ([`Rule::Secret`]).

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use zeroize::Zeroizing;

use crate::domain::file_access::{Access, Exposure, Identity, Rule, secret_hint};

/// Bytes of the longest file that is read: more than any key has, so that a wrong path does not
/// fill the memory.
const MOST: u64 = 64 << 10;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum NotRead {
    /// The file system refused.
    #[error("{0}{hint}", hint = secret_hint(.0))]
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

/// Reads such a file. It is refused if others than the user and the groups of this process have
/// rights on it.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let file = open(path)?;
    // The file that was opened, and not what may have taken its name since.
    judge(path, &file.metadata()?)?;
    read_all(file)
}

/// Judges such a file that is used all the same, so that the user can be warned. A pipe or a
/// terminal has no lasting content.
pub fn exposure(path: &Path) -> Option<Exposure> {
    let metadata = fs::metadata(path).ok().filter(Metadata::is_file)?;
    judge(path, &metadata).err()
}

fn judge(path: &Path, metadata: &Metadata) -> Result<(), Exposure> {
    let file = Access::from(metadata);
    // A mounted secret is a link to a file in another folder.
    let true_path = path.canonicalize();
    let folder = true_path.ok().and_then(|path| fs::metadata(path.parent()?).ok());
    // A folder that cannot be looked at is shared with nobody.
    let folder = folder.as_ref().map_or(Access { mode: 0, ..file }, Access::from);
    Rule::Secret.judge(file, folder, &Identity::of_this_process())
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
        false => Err(NotRead::Io(io::Error::new(ErrorKind::InvalidInput, "not a regular file"))),
    }
}

fn read_all(file: File) -> Result<Zeroizing<Vec<u8>>, NotRead> {
    let mut bytes = Zeroizing::new(vec![]);
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(bytes)
}
