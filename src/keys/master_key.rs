//! The master key's file: 32 bytes in base64, readable by its owner alone.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::sealing::{MasterKey, SealError};
use crate::rng::{Rng, RngFailed, random};

/// The master key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// It cannot be read or written.
    #[error("master key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than its owner have rights on it.
    #[error("master key file {path} has mode {mode:04o}, so others can read or change it: run `chmod 600 {path}`")]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not 32 bytes in base64.
    #[error(
        "master key file {0} does not hold 32 bytes in base64, so it is damaged: restore it from a backup (a new one \
         would not open the keys in the database)"
    )]
    Damaged(PathBuf),
    /// No randomness for a new one.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// The cryptographic library refused it.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Reads the file; nothing if there is none.
pub fn read(path: &Path) -> Result<Option<MasterKey>, MasterKeyError> {
    let io_error = |source| MasterKeyError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
    };
    let mode = file.metadata().map_err(io_error)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(MasterKeyError::OpenToOthers { path: path.to_owned(), mode });
    }
    let damaged = || MasterKeyError::Damaged(path.to_owned());
    let mut text = Zeroizing::new(String::new());
    // More than any such file has, so that a wrong path does not fill the memory.
    match file.take(1024).read_to_string(&mut text) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged()),
        Err(error) => return Err(io_error(error)),
    }
    let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).map_err(|_| damaged())?);
    let bytes: [u8; 32] = bytes.as_slice().try_into().map_err(|_| damaged())?;
    Ok(Some(MasterKey::new(bytes)?))
}

/// Makes a new key and its file, which must not exist. After a crash there is the whole file or none.
pub fn create(path: &Path, rng: &dyn Rng) -> Result<MasterKey, MasterKeyError> {
    let io_error = |source| MasterKeyError::Io { path: path.to_owned(), source };
    let bytes = Zeroizing::new(random::<32>(rng)?);
    let text = Zeroizing::new(STANDARD.encode(bytes.as_slice()) + "\n");
    let mut half_written = path.as_os_str().to_owned();
    half_written.push(".half-written");
    let half_written = PathBuf::from(half_written);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        // What a crash left behind belongs to no key in any database.
        match fs::remove_file(&half_written) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half_written)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // A link, unlike a rename, never replaces a file.
        fs::hard_link(&half_written, path)?;
        fs::remove_file(&half_written)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(io_error)?;
    Ok(MasterKey::new(*bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            key::{KeyPurpose, SealedKey},
            time::Timestamp,
        },
        rng::SystemRng,
    };

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn what_was_created_is_read_back() {
        let folder = folder();
        let path = folder.path().join("master.key");
        let rng = SystemRng::default();
        assert!(read(&path).unwrap().is_none());
        let created = create(&path, &rng).unwrap();
        let sealed = created.seal(&rng, "k", KeyPurpose::RefreshToken, "HS256", b"x").unwrap();
        let key = SealedKey {
            kid: "k".to_owned(),
            purpose: KeyPurpose::RefreshToken,
            algorithm: "HS256".to_owned(),
            sealed,
            created_at: Timestamp::from_seconds(0),
        };
        assert!(read(&path).unwrap().unwrap().open(&key).is_ok());
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
    fn a_file_open_to_others_or_damaged_is_refused() {
        let folder = folder();
        let path = folder.path().join("master.key");
        create(&path, &SystemRng::default()).unwrap();
        let good = fs::read(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(MasterKeyError::OpenToOthers { .. })));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for content in [&good[..good.len() / 2], b"", &[0xff; 44], &[b'A'; 4000]] {
            fs::write(&path, content).unwrap();
            assert!(matches!(read(&path), Err(MasterKeyError::Damaged(_))));
        }
    }
}
