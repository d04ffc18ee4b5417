//! Suggests remedies for disk errors, which it recognizes by the messages of SQLite and by the
//! [`io::ErrorKind`] of I/O errors.

use std::{borrow::Cow, io};

const FREE_SPACE: &str =
    "free space on its disk (`df`), or raise the quota or the limit on the size of files";
const FAILING: &str = "free space on its disk (`df`), and look for errors of the disk in the log \
                       of the system (`dmesg`)";
const WRITABLE: &str = "give this user the right to write the file and its folder, and mount \
                        their file system for writing";

/// Parts of the error messages of SQLite, each with its remedy.
const SQLITE: [(&str, &str); 4] = [
    ("database or disk is full", FREE_SPACE),
    ("disk I/O error", FAILING),
    ("attempt to write a readonly database", WRITABLE),
    ("unable to open database file", WRITABLE),
];

/// Returns the remedy for an error of SQLite, if the disk is the cause.
pub fn remedy(message: &str) -> Option<&'static str> {
    SQLITE.iter().find(|(words, _)| message.contains(words)).map(|(_, remedy)| *remedy)
}

/// Appends the remedy to an error message of SQLite, if the disk is the cause.
pub fn explain(message: &str) -> Cow<'_, str> {
    match remedy(message) {
        Some(remedy) => format!("{message}: {remedy}").into(),
        None => message.into(),
    }
}

/// The result code of SQLite for I/O errors. An extended result code for an I/O error has this code
/// in its lowest byte.
const IOERR: u32 = 10;
/// The extended result codes for I/O errors that a read can cause, with their names
/// (<https://www.sqlite.org/rescode.html>).
const IOERR_NAMES: [(u32, &str); 6] = [
    (266, "SQLITE_IOERR_READ"),
    (522, "SQLITE_IOERR_SHORT_READ"),
    (1802, "SQLITE_IOERR_FSTAT"),
    (3338, "SQLITE_IOERR_ACCESS"),
    (6154, "SQLITE_IOERR_MMAP"),
    (8202, "SQLITE_IOERR_DATA"),
];

/// Returns the I/O error that a finding of SQLite's integrity check reports, if it reports one. The
/// check lists I/O errors among the damage that it finds, although the database itself may be
/// intact. The result begins with "disk I/O error", as the I/O errors of other statements do, so
/// that [`remedy`] recognizes it.
pub fn io_error_in(finding: &str) -> Option<String> {
    finding.match_indices("error code").find_map(|(at, words)| {
        let rest = finding.get(at + words.len()..)?.trim_start_matches(['=', ' ']);
        let code: u32 = rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
        let name = IOERR_NAMES
            .iter()
            .find(|(named, _)| *named == code)
            .map_or("SQLITE_IOERR", |(_, name)| *name);
        (code & 0xff == IOERR).then(|| format!("disk I/O error ({name}, code {code})"))
    })
}

/// Returns the remedy for an I/O error, as a suffix for its message. The suffix is empty if the
/// disk is not the cause.
pub fn io_hint(error: &io::Error) -> String {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => format!(": {FREE_SPACE}"),
        ReadOnlyFilesystem => format!(": {WRITABLE}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integrity_check_finding_with_an_io_error_code_is_reported_as_an_io_error() {
        for (finding, problem) in [
            (
                "Tree 4 page 9: unable to get the page. error code=266",
                Some("disk I/O error (SQLITE_IOERR_READ, code 266)"),
            ),
            (
                "*** in database main ***\nTree 4 page 9 cell 0: btreeInitPage() returns error \
                 code 522",
                Some("SHORT_READ"),
            ),
            ("Page 9: unable to get the page. error code=10", Some("(SQLITE_IOERR, code 10)")),
            ("Tree 4 page 9: btreeInitPage() returns error code 11", None),
            ("Tree 4 page 9: unable to get the page. error code=267", None),
            ("row 3 missing from index a", None),
            ("ok", None),
        ] {
            let found = io_error_in(finding);
            assert_eq!(found.is_some(), problem.is_some(), "{finding}: {found:?}");
            if let (Some(found), Some(problem)) = (&found, problem) {
                assert!(found.contains(problem) && explain(found).contains("`dmesg`"), "{found}");
            }
        }
    }

    #[test]
    fn a_disk_error_is_reported_with_its_remedy() {
        for (message, words) in [
            ("database or disk is full", "free space"),
            ("Failed to run 0001 with: database or disk is full", "free space"),
            ("disk I/O error", "`dmesg`"),
            ("attempt to write a readonly database", "mount their file system for writing"),
            ("unable to open database file", "right to write"),
        ] {
            let explained = explain(message);
            assert!(explained.starts_with(message) && explained.contains(words), "{explained}");
        }
        assert_eq!(explain("database is locked"), "database is locked");
        for (code, words) in
            [(28, "free space"), (122, "quota"), (27, "size of files"), (30, "for writing")]
        {
            let error = io::Error::from_raw_os_error(code);
            assert!(io_hint(&error).contains(words), "{error}");
        }
        assert_eq!(io_hint(&io::Error::from_raw_os_error(13)), "");
    }
}
