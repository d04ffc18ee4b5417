//! The checkpoint of an import: how much of the file has been imported. It is kept in a file beside
//! it, so that an import that was interrupted can go on.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{super::Failure, lines::Place};

/// The number of bytes at the beginning of the file by which a changed file is recognized.
const START_BYTES: u64 = 64 << 10;

/// The numbers of the lines that were dealt with, by result.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Totals {
    /// Sessions that were created.
    pub imported: u64,
    /// Sessions that an earlier import had created.
    pub already_imported: u64,
    /// Sessions that have ended.
    pub expired: u64,
    /// Sessions that a revocation covers.
    pub revoked: u64,
    /// Sessions that could be created; only if nothing is written.
    pub valid: u64,
    /// Bad lines.
    pub bad: u64,
}

impl Totals {
    /// Returns the number of sessions of all results.
    pub fn sessions(&self) -> u64 {
        self.imported + self.already_imported + self.expired + self.revoked + self.valid + self.bad
    }
}

/// A checkpoint.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Checkpoint {
    /// The length of the imported file, in bytes.
    file_bytes: u64,
    /// SHA-256 of the beginning of the imported file, in base64.
    file_start: String,
    /// The number of lines that have been dealt with.
    lines: u64,
    /// The number of bytes that have been dealt with.
    offset: u64,
    /// The length of the file of bad lines, in bytes.
    pub bad_bytes: u64,
    /// The results so far.
    pub totals: Totals,
}

impl Checkpoint {
    /// Returns the checkpoint at the beginning of a file.
    pub fn at_start(file: &Path) -> io::Result<Self> {
        let mut start = vec![];
        File::open(file)?.take(START_BYTES).read_to_end(&mut start)?;
        Ok(Self {
            file_bytes: fs::metadata(file)?.len(),
            file_start: STANDARD.encode(digest(&SHA256, &start)),
            lines: 0,
            offset: 0,
            bad_bytes: 0,
            totals: Totals::default(),
        })
    }

    /// Reads the checkpoint of an earlier import of the same file. Returns that of the beginning if
    /// there is none.
    pub fn load(file: &Path, path: &Path) -> Result<Self, Failure> {
        let start = Self::at_start(file).map_err(|error| failed(file, &error))?;
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(start),
            Err(error) => return Err(failed(path, &error)),
        };
        let advice = "delete it to import the file from its beginning, which imports no session \
                      twice";
        let earlier: Self = serde_json::from_slice(&text)
            .map_err(|_| Failure::at_start(format!("{} is damaged: {advice}", path.display())))?;
        if (earlier.file_bytes, &earlier.file_start) != (start.file_bytes, &start.file_start)
            || earlier.offset > earlier.file_bytes
        {
            return Err(Failure::at_start(format!(
                "{} has changed since {} was written: {advice}",
                file.display(),
                path.display()
            )));
        }
        Ok(earlier)
    }

    /// Returns the place up to which the file has been dealt with.
    pub fn place(&self) -> Place {
        Place { line: self.lines, offset: self.offset }
    }

    /// Advances the checkpoint to a place.
    pub fn advance(&mut self, place: Place) {
        (self.lines, self.offset) = (place.line, place.offset);
    }

    /// Returns the length of the imported file, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Writes the checkpoint. It replaces the earlier one as a whole.
    pub fn save(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_vec(self).map_err(Failure::failed)?;
        let next = beside(path, ".next");
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, path))
            .map_err(|error| failed(path, &error))
    }
}

/// Returns the path of a file with another ending after its whole name.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Returns the failure for an error with a file.
pub fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_checkpoint_is_valid_only_for_the_file_that_it_was_made_for() {
        let folder = TempDir::new().unwrap();
        let (file, path) = (folder.path().join("s.ndjson"), folder.path().join("s.progress"));
        fs::write(&file, "one\ntwo\n").unwrap();
        let mut checkpoint = Checkpoint::load(&file, &path).unwrap();
        assert_eq!(checkpoint.place().line, 0);
        checkpoint.advance(Place { line: 1, offset: 4 });
        checkpoint.totals.imported = 1;
        checkpoint.save(&path).unwrap();
        let again = Checkpoint::load(&file, &path).unwrap();
        assert_eq!((again.place().line, again.place().offset), (1, 4));
        assert_eq!(again.totals.imported, 1);
        for changed in ["one\ntwo\nthree\n", "ONE\ntwo\n", ""] {
            fs::write(&file, changed).unwrap();
            assert!(Checkpoint::load(&file, &path).is_err(), "{changed:?}");
        }
        fs::write(&path, "{").unwrap();
        assert!(Checkpoint::load(&file, &path).is_err());
    }
}
