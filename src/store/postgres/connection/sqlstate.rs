//! The classes of the database's errors, by their SQLSTATE (PostgreSQL manual, appendix A).
//!
//! All decisions about error codes are made in this module. It does not compare messages, because
//! the server writes them in its configured language. Diesel drops the code of most errors, so
//! [`super::coded_stream`] appends the code to the message before Diesel reads it.

use diesel::result::{DatabaseErrorKind, Error};

/// The class of an error, which decides how the service goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// There was a conflict with concurrent transactions. Nothing was written, and the same
    /// statement may succeed at once.
    Retry,
    /// The prepared statements of the connection are no longer valid. Nothing was written, and the
    /// same statement may succeed on a new connection.
    Outdated,
    /// The server cannot run the statement now. Nothing was written, and the same statement may
    /// succeed later.
    Unavailable,
    /// The connection has ended, or leads to a server that cannot run the statement. A commit that
    /// was under way may have taken effect.
    Lost,
    /// Like [`Class::Lost`], but no attempt to connect succeeds until somebody changes a setting.
    Rejected,
    /// The statement is wrong, or the database is not in the state that the service expects. The
    /// same statement would fail again.
    Bug,
}

/// The class of the codes with each prefix. If several prefixes match, the longest one counts. If
/// none matches, the class is [`Class::Bug`].
const CLASSES: &[(&str, Class)] = &[
    // Connection exceptions. Poolers report wrong settings with the code of a protocol violation
    // (08P01).
    ("08", Class::Lost),
    ("08004", Class::Rejected),
    ("08P01", Class::Rejected),
    // "cached plan must not change result type": a migration was run after the statement was
    // prepared.
    ("0A000", Class::Outdated),
    // The server is a standby, or has become one.
    ("25006", Class::Lost),
    // The transaction was idle for too long, or took too long, and the server has closed the
    // connection.
    ("25P03", Class::Lost),
    ("25P04", Class::Lost),
    // A pooler now uses another connection to the server, which has other prepared statements.
    ("26000", Class::Outdated),
    ("42P05", Class::Outdated),
    // Serialization failure, deadlock and other rollbacks, except for a commit whose outcome the
    // server does not know.
    ("40", Class::Retry),
    ("40002", Class::Bug),
    ("40003", Class::Lost),
    // Insufficient resources: disk, memory, connections.
    ("53", Class::Unavailable),
    // Objects that are in use or not ready; 55P03 is lock_timeout.
    ("55", Class::Unavailable),
    // The database does not accept connections, or the server is a standby.
    ("55000", Class::Rejected),
    // Operator intervention. 57014 is statement_timeout or pg_cancel_backend; 57P is a start, a
    // stop or a crash of the server.
    ("57", Class::Unavailable),
    ("57P", Class::Lost),
    // I/O errors outside of PostgreSQL.
    ("58", Class::Unavailable),
    // "snapshot too old", up to PostgreSQL 16.
    ("72", Class::Retry),
];

/// Returns the class of a code.
pub fn classify(code: &str) -> Class {
    let matching = CLASSES.iter().filter(|(prefix, _)| code.starts_with(prefix));
    matching.max_by_key(|(prefix, _)| prefix.len()).map_or(Class::Bug, |(_, class)| *class)
}

impl Class {
    /// Returns the class of an error of Diesel.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::DatabaseError(kind, information) => match (coded(information.message()), kind) {
                (Some((_, code)), _) => classify(code),
                // An error of the driver has no code if the server did not answer.
                (
                    None,
                    DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand,
                ) => Self::Lost,
                (None, _) => Self::Bug,
            },
            _ => Self::Bug,
        }
    }

    /// Returns whether the same attempt to connect may succeed later, although nobody changes
    /// anything.
    pub fn is_temporary(self) -> bool {
        match self {
            Self::Retry | Self::Unavailable | Self::Lost => true,
            Self::Outdated | Self::Rejected | Self::Bug => false,
        }
    }
}

/// The code of the error of a statement that has waited for a lock for longer than `lock_timeout`.
pub const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Returns whether a statement has waited for a lock for longer than `lock_timeout`.
pub fn is_lock_not_available(error: &Error) -> bool {
    let Error::DatabaseError(_, information) = error else { return false };
    coded(information.message()).is_some_and(|(_, code)| code == LOCK_NOT_AVAILABLE)
}

const START: &str = " (SQLSTATE ";
const END: &str = ")";

/// Appends the code to a message.
pub fn with_code(message: &str, code: &str) -> String {
    format!("{message}{START}{code}{END}")
}

/// Splits a message of [`with_code`] into its text and its code.
pub fn coded(message: &str) -> Option<(&str, &str)> {
    message.strip_suffix(END)?.rsplit_once(START)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstate_codes_are_classified() {
        for (code, class) in [
            ("08000", Class::Lost),
            ("08001", Class::Lost),
            ("08003", Class::Lost),
            ("08004", Class::Rejected),
            ("08006", Class::Lost),
            ("08007", Class::Lost),
            ("08P01", Class::Rejected),
            ("0A000", Class::Outdated),
            ("0AZZZ", Class::Bug),
            ("22001", Class::Bug),
            ("22021", Class::Bug),
            ("23502", Class::Bug),
            ("23503", Class::Bug),
            ("23505", Class::Bug),
            ("23514", Class::Bug),
            ("25001", Class::Bug),
            ("25006", Class::Lost),
            ("25P02", Class::Bug),
            ("25P03", Class::Lost),
            ("25P04", Class::Lost),
            ("26000", Class::Outdated),
            ("28000", Class::Bug),
            ("28P01", Class::Bug),
            ("3D000", Class::Bug),
            ("40000", Class::Retry),
            ("40001", Class::Retry),
            ("40002", Class::Bug),
            ("40003", Class::Lost),
            ("40P01", Class::Retry),
            ("42501", Class::Bug),
            ("42601", Class::Bug),
            ("42703", Class::Bug),
            ("42P01", Class::Bug),
            ("42P05", Class::Outdated),
            ("53000", Class::Unavailable),
            ("53100", Class::Unavailable),
            ("53200", Class::Unavailable),
            ("53300", Class::Unavailable),
            ("53400", Class::Unavailable),
            ("54001", Class::Bug),
            ("55000", Class::Rejected),
            ("55006", Class::Unavailable),
            ("55P03", Class::Unavailable),
            ("57000", Class::Unavailable),
            ("57014", Class::Unavailable),
            ("57P01", Class::Lost),
            ("57P02", Class::Lost),
            ("57P03", Class::Lost),
            ("57P04", Class::Lost),
            ("57P05", Class::Lost),
            ("58030", Class::Unavailable),
            ("72000", Class::Retry),
            ("P0001", Class::Bug),
            ("XX000", Class::Bug),
            ("XX001", Class::Bug),
            ("99999", Class::Bug),
        ] {
            assert_eq!(classify(code), class, "{code}");
        }
    }

    #[test]
    fn only_the_code_at_the_end_of_the_message_counts() {
        let error = |kind, message: &str| Error::DatabaseError(kind, Box::new(message.to_owned()));
        for (kind, message, class) in [
            (DatabaseErrorKind::Unknown, with_code("Verklemmung entdeckt", "40P01"), Class::Retry),
            (
                DatabaseErrorKind::Unknown,
                with_code("deadlock (SQLSTATE 40P01)", "42601"),
                Class::Bug,
            ),
            (DatabaseErrorKind::UniqueViolation, with_code("…", "23505"), Class::Bug),
            (DatabaseErrorKind::UnableToSendCommand, "connection closed".to_owned(), Class::Lost),
            (DatabaseErrorKind::Unknown, "deadlock detected".to_owned(), Class::Bug),
        ] {
            assert_eq!(Class::of(&error(kind, &message)), class, "{message}");
        }
        assert_eq!(Class::of(&Error::NotFound), Class::Bug);
    }
}
