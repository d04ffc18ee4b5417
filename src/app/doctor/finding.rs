//! The finding of a check, and the remedy if something is wrong.

use std::fmt;

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// Nothing needs to be done.
    Ok,
    /// Something should be looked at, but the service works, or is not running.
    Warn,
    /// The service does not work, or would not start.
    Fail,
}

impl Status {
    /// Returns the name of the status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The name of the check.
    pub check: &'static str,
    /// The status.
    pub status: Status,
    /// The finding, in one line.
    pub finding: String,
    /// The remedy, in one line; none if the status is [`Status::Ok`].
    pub remedy: Option<String>,
}

impl Finding {
    /// Creates the finding of a check that found nothing wrong.
    pub fn ok(check: &'static str, finding: impl Into<String>) -> Self {
        Self { check, status: Status::Ok, finding: in_one_line(&finding.into()), remedy: None }
    }

    /// Creates a warning.
    pub fn warn(check: &'static str, finding: impl Into<String>, remedy: &str) -> Self {
        Self { status: Status::Warn, remedy: Some(in_one_line(remedy)), ..Self::ok(check, finding) }
    }

    /// Creates the finding of a check that failed.
    pub fn fail(check: &'static str, finding: impl Into<String>, remedy: &str) -> Self {
        Self { status: Status::Fail, ..Self::warn(check, finding, remedy) }
    }

    /// Creates the finding of a check that failed with an error. Most errors end with a remedy;
    /// `otherwise` is the remedy for the others.
    pub fn error(check: &'static str, error: &impl fmt::Display, otherwise: &str) -> Self {
        let message = error.to_string();
        match split_remedy(&message) {
            Some((finding, remedy)) => Self::fail(check, finding, remedy),
            None => Self::fail(check, message, otherwise),
        }
    }

    /// Turns a failure into a warning.
    pub fn as_warning(self) -> Self {
        Self { status: self.status.min(Status::Warn), ..self }
    }
}

/// The words with which remedies begin in the errors of this program.
const IMPERATIVES: [&str; 16] = [
    "correct",
    "configure",
    "free",
    "give",
    "install",
    "let",
    "make",
    "mount",
    "move",
    "name",
    "put",
    "renew",
    "restore",
    "run",
    "start",
    "use",
];

/// Divides an error message at the colon that precedes the remedy; `None` if the message has none.
fn split_remedy(message: &str) -> Option<(&str, &str)> {
    message.match_indices(": ").find_map(|(at, colon)| {
        let remedy = message.get(at + colon.len()..)?;
        let begins =
            |word: &&str| remedy.strip_prefix(*word).is_some_and(|rest| rest.starts_with(' '));
        IMPERATIVES.iter().any(begins).then_some((message.get(..at)?, remedy))
    })
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::{
        app::AppError,
        domain::file_access::{Exposed, Exposure, Role},
        keys::{master_key::MasterKeyError, sealing::SealError},
        store::sqlite::error::OpenError,
    };

    #[test]
    fn the_way_out_in_an_error_is_the_remedy_of_the_finding() {
        let exposed = Exposed {
            role: Role::MasterKey,
            path: "/data/master.key".into(),
            exposure: Exposure::Mode(0o644),
        };
        let newer = OpenError::Newer { path: "a.db".into(), migration: "9999".to_owned() };
        let seal = SealError::DoesNotOpen { kid: "k".to_owned(), purpose: "access_token" };
        let denied = io::Error::from_raw_os_error(13);
        let errors: [(AppError, &str); 5] = [
            (exposed.into(), "run `chmod 600 /data/master.key`"),
            (newer.into(), "run that version or a newer one"),
            (
                crate::keys::ring::RingError::from(seal).into(),
                "restore the master key file that belongs to this database, or the row from a \
                 backup",
            ),
            (
                MasterKeyError::Io { path: "m".into(), source: denied }.into(),
                "let this user own it, or let one of its groups read it (in Kubernetes, set \
                 fsGroup)",
            ),
            (AppError::MasterKeyGone("m".into()), "restore it from a backup"),
        ];
        for (error, remedy) in errors {
            let finding = Finding::error("x", &error, "otherwise");
            assert_eq!(finding.remedy.as_deref(), Some(remedy), "{finding:?}");
            assert_eq!(format!("{}: {remedy}", finding.finding), error.to_string());
        }
    }

    #[test]
    fn an_error_without_a_way_out_gets_the_one_of_the_check() {
        let error = "database d cannot be reached: error connecting to server: Connection refused";
        let finding = Finding::error("x", &error, "start the server");
        assert_eq!(
            (finding.finding.as_str(), finding.remedy.as_deref()),
            (error, Some("start the server"))
        );
    }

    #[test]
    fn a_finding_has_one_line() {
        let finding = Finding::fail("x", "two\n  lines", "a\nb");
        assert_eq!(finding.finding, "two lines");
        assert_eq!(finding.remedy.as_deref(), Some("a b"));
    }
}
