//! The ways out of trouble with a disk, by what the system and SQLite say of it.

use std::{borrow::Cow, io};

const FREE_SPACE: &str = "free space on its disk (`df`), or raise the quota or the limit on the size of files";
const FAILING: &str =
    "free space on its disk (`df`), and look for errors of the disk in the log of the system (`dmesg`)";
const WRITABLE: &str =
    "give this user the right to write the file and its folder, and mount their file system for writing";

/// Parts of messages of SQLite, each with the way out.
const SQLITE: [(&str, &str); 4] = [
    ("database or disk is full", FREE_SPACE),
    ("disk I/O error", FAILING),
    ("attempt to write a readonly database", WRITABLE),
    ("unable to open database file", WRITABLE),
];

/// Returns the way out of an error of SQLite, if the disk is the reason.
pub fn remedy(message: &str) -> Option<&'static str> {
    SQLITE.iter().find(|(words, _)| message.contains(words)).map(|(_, remedy)| *remedy)
}

/// Adds the way out to a message of SQLite, if the disk is the reason.
pub fn explain(message: &str) -> Cow<'_, str> {
    match remedy(message) {
        Some(remedy) => format!("{message}: {remedy}").into(),
        None => message.into(),
    }
}

/// Returns the way out of an error of the system as the end of its message, empty if it is no
/// matter of the disk.
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
    fn trouble_with_the_disk_is_told_with_its_way_out() {
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
        for (code, words) in [(28, "free space"), (122, "quota"), (27, "size of files"), (30, "for writing")] {
            let error = io::Error::from_raw_os_error(code);
            assert!(io_hint(&error).contains(words), "{error}");
        }
        assert_eq!(io_hint(&io::Error::from_raw_os_error(13)), "");
    }
}
