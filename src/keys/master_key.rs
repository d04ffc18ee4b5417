//! Reads and creates the master key: 32 bytes in base64, in a file that only its owner can read, or
//! in the environment.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::{
    private_file::{self, NotRead},
    sealing::{MasterKey, SealError},
};
use crate::{
    domain::{
        disk::io_hint,
        file_access::{Exposed, Role, secret_hint},
    },
    rng::{Rng, RngFailed, random},
};

/// The master key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// The file cannot be read or written.
    #[error("master key file {path}: {source}{}{}", secret_hint(source), io_hint(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Other users have rights on the file.
    #[error(transparent)]
    Exposed(#[from] Exposed),
    /// The file does not hold 32 bytes in base64.
    #[error(
        "master key file {0} does not hold 32 bytes in base64, so it is damaged: restore it from \
         a backup (a new one would not open the keys in the database)"
    )]
    Damaged(PathBuf),
    /// The variable does not hold 32 bytes in base64.
    #[error(
        "the environment variable {0} does not hold 32 bytes in base64: `openssl rand -base64 32` \
         makes such a key"
    )]
    NotInVariable(&'static str),
    /// The random generator failed to make a new key.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The cryptographic library refused the key.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Decodes a master key from the value of an environment variable. The name of the variable is used
/// in errors only.
pub fn from_variable(name: &'static str, text: &str) -> Result<MasterKey, MasterKeyError> {
    Ok(MasterKey::new(parse(text.as_bytes()).ok_or(MasterKeyError::NotInVariable(name))?)?)
}

fn parse(text: &[u8]) -> Option<[u8; 32]> {
    let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).ok()?);
    bytes.as_slice().try_into().ok()
}

/// Reads a master key from a file; `None` if the file does not exist.
pub fn read_file(path: &Path) -> Result<Option<MasterKey>, MasterKeyError> {
    match private_file::read(path) {
        Err(NotRead::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => from_read(path, read).map(Some),
    }
}

/// Reads a master key from a systemd credential. The rights on it are not checked, because systemd
/// sets them.
pub fn read_credential(path: &Path) -> Result<MasterKey, MasterKeyError> {
    from_read(path, private_file::read_given(path))
}

fn from_read(
    path: &Path,
    read: Result<Zeroizing<Vec<u8>>, NotRead>,
) -> Result<MasterKey, MasterKeyError> {
    let path = path.to_owned();
    match read {
        Ok(text) => Ok(MasterKey::new(parse(&text).ok_or(MasterKeyError::Damaged(path))?)?),
        Err(NotRead::Io(source)) => Err(MasterKeyError::Io { path, source }),
        Err(NotRead::Exposed(exposure)) => {
            Err(Exposed { role: Role::MasterKey, path, exposure }.into())
        }
    }
}

/// Creates a new master key and its file, which must not exist yet. A crash never leaves an
/// incomplete file at `path`.
pub fn create(path: &Path, rng: &dyn Rng) -> Result<MasterKey, MasterKeyError> {
    let io_error = |source| MasterKeyError::Io { path: path.to_owned(), source };
    let bytes = Zeroizing::new(random::<32>(rng)?);
    let text = Zeroizing::new(STANDARD.encode(bytes.as_slice()) + "\n");
    let mut half_written = path.as_os_str().to_owned();
    half_written.push(".half-written");
    let half_written = PathBuf::from(half_written);
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        // A file that a crash has left here was never used to seal a key.
        match fs::remove_file(&half_written) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half_written)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Unlike a rename, a hard link never replaces an existing file.
        fs::hard_link(&half_written, path)?;
        fs::remove_file(&half_written)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(io_error)?;
    Ok(MasterKey::new(*bytes)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{
        domain::{
            key::{Key, KeyAlgorithm},
            time::Timestamp,
        },
        rng::SystemRng,
    };

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_created_key_is_read_back() {
        let folder = folder();
        let path = folder.path().join("master.key");
        let rng = SystemRng::default();
        assert!(read_file(&path).unwrap().is_none());
        let created = create(&path, &rng).unwrap();
        let key = Key::new("k".to_owned(), KeyAlgorithm::Hs256, Timestamp::from_seconds(0));
        let key = created.seal(&rng, key, b"x").unwrap();
        assert!(read_file(&path).unwrap().unwrap().open(&key).is_ok());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn an_existing_file_is_never_replaced() {
        let folder = folder();
        let path = folder.path().join("master.key");
        fs::write(&path, "precious").unwrap();
        assert!(create(&path, &SystemRng::default()).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_file_that_is_damaged_or_that_others_have_rights_on_is_refused() {
        let folder = folder();
        let path = folder.path().join("master.key");
        create(&path, &SystemRng::default()).unwrap();
        let good = fs::read(&path).unwrap();
        for mode in [0o644, 0o604, 0o620, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read_file(&path), Err(MasterKeyError::Exposed(_))));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for content in [&good[..good.len() / 2], b"", &[0xff; 44], &[b'A'; 4000]] {
            fs::write(&path, content).unwrap();
            assert!(matches!(read_file(&path), Err(MasterKeyError::Damaged(_))));
        }
    }
}
