//! The file of bad lines of an import. It is created with the first bad line.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
};

use super::{super::Failure, checkpoint::failed, lines::BadLine};

/// The place where bad lines are written.
pub enum BadLines {
    /// A file.
    File {
        /// The path of the file.
        path: PathBuf,
        /// The length of the file, in bytes.
        bytes: u64,
        /// The file, once it is open.
        file: Option<File>,
    },
    /// Standard error.
    Stderr,
}

impl BadLines {
    /// Prepares a file of which an interrupted import has written `bytes` bytes. What it wrote
    /// after its last checkpoint is removed, because those lines are read again.
    pub fn in_file(path: PathBuf, bytes: u64) -> Result<Self, Failure> {
        let prepared = match bytes {
            0 => fs::remove_file(&path),
            _ => OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(bytes)),
        };
        let bytes = match prepared {
            Ok(()) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed(&path, &error)),
        };
        Ok(Self::File { path, bytes, file: None })
    }

    /// Writes bad lines.
    pub fn write(&mut self, bad: &[BadLine]) -> Result<(), Failure> {
        if bad.is_empty() {
            return Ok(());
        }
        let mut text = vec![];
        for line in bad {
            serde_json::to_writer(&mut text, line).map_err(Failure::failed)?;
            text.push(b'\n');
        }
        match self {
            Self::Stderr => io::stderr().write_all(&text).map_err(Failure::failed),
            Self::File { path, bytes, file } => {
                let written = match file {
                    Some(file) => file.write_all(&text),
                    None => OpenOptions::new()
                        .create(true)
                        .append(true)
                        .open(&*path)
                        .and_then(|opened| file.insert(opened).write_all(&text)),
                };
                *bytes += u64::try_from(text.len()).unwrap_or_default();
                written.map_err(|error| failed(path, &error))
            }
        }
    }

    /// Returns the length of the file, in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Stderr => 0,
        }
    }

    /// Returns where the bad lines are, for people.
    pub fn shown(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Stderr => "standard error".to_owned(),
        }
    }
}
