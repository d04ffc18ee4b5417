//! Reads from a log of the service which sessions were ended and which keys were revoked, so that a
//! restore can revoke them again.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use serde::Deserialize;
use serde_json::Value;

use crate::domain::{
    audit::{AuditAction, TARGET},
    cut_off::{CutOffKey, Scope},
    ids::{AuditId, SessionId},
    session::EndReason,
    text::{ClientId, Note, Subject, Tenant},
    time::Timestamp,
};

/// A log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A line with a record of the audit cannot be parsed.
    #[error(
        "line {line} is a record of the audit that cannot be read ({problem}): give the log as \
         the service wrote it, in the form of log.format = \"json\" and without lines being \
         wrapped or cut; if a part of the line is lost for good, delete the line, and after the \
         restore revoke by hand what it names"
    )]
    Unreadable {
        /// The line's number, from 1.
        line: usize,
        /// The reason.
        problem: String,
    },
    /// The log has no record of the audit.
    #[error(
        "has no record of the audit: name the log of the service, with the lines of the target \
         {TARGET}"
    )]
    NoRecord,
}

/// The target of a revocation in the log, which has to be revoked again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedEnd {
    /// A session.
    Session(SessionId),
    /// A session whose user authenticated again. A backup from before that instant has its earlier
    /// refresh token, which must not be accepted again, and lacks the later one.
    Reauthenticated {
        /// The session.
        session: SessionId,
        /// The instant of the reauthentication.
        at: Timestamp,
    },
    /// The sessions of a subject that were created up to this instant.
    Subject {
        /// The tenant of the subject.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// The instant.
        until: Timestamp,
    },
    /// The sessions of a tenant that were created up to this instant.
    Tenant {
        /// The tenant.
        tenant: Tenant,
        /// The instant.
        until: Timestamp,
    },
    /// The sessions that a cut-off covers.
    Sessions {
        /// The sessions among which the cut-off chooses.
        key: CutOffKey,
        /// The latest time that it covers, if the caller gave one.
        up_to: Option<Timestamp>,
        /// The time of the revocation.
        until: Timestamp,
    },
    /// All sessions that were created up to this instant.
    All {
        /// The instant.
        until: Timestamp,
    },
    /// A key.
    Key(String),
    /// An access token, of which the log names only the session.
    Token(SessionId),
}

/// A revocation in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRevocation {
    /// The target that was revoked.
    pub end: LoggedEnd,
    /// The reason in the record.
    pub reason: EndReason,
    /// The note in the record.
    pub note: Note,
}

/// The creation of a session in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedSession {
    /// The session.
    pub id: SessionId,
    /// The tenant.
    pub tenant: Tenant,
    /// The subject.
    pub subject: Subject,
}

/// The text that ends the note in the record ([`AuditAction::DatabaseRestored`]) of a restore that
/// ended all sessions.
pub const ENDED_ALL: &str = "sessions ended since the backup: all sessions were ended";

/// The content of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationLog {
    /// The number of records of the audit in the log.
    pub records: usize,
    /// The revocations among them, in their order.
    pub revocations: Vec<LoggedRevocation>,
    /// The sessions that were created. Empty unless the caller asked for creations.
    pub created: Vec<LoggedSession>,
}

/// The fields of a record that matter here. Other lines of the log may have fields of these names
/// with other types, so a line is deserialized only if its target is the audit's.
#[derive(Deserialize)]
struct Line {
    id: String,
    action: String,
    tenant: Option<String>,
    subject: Option<String>,
    session_id: Option<String>,
    kid: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    note: String,
    client_id: Option<String>,
    created_before: Option<String>,
    authenticated_before: Option<String>,
}

/// Reads a log from a file, or from standard input if the path is `-`. Creations of sessions are
/// read only if `with_creations` is true, because there may be very many.
pub fn read(path: &Path, with_creations: bool) -> Result<RevocationLog, LogError> {
    match path.as_os_str() == "-" {
        true => read_from(io::stdin().lock(), with_creations),
        false => read_from(BufReader::new(File::open(path)?), with_creations),
    }
}

fn read_from(mut reader: impl BufRead, with_creations: bool) -> Result<RevocationLog, LogError> {
    let (mut log, mut number, mut line) = (RevocationLog::default(), 0, vec![]);
    loop {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let unreadable = |problem: String| LogError::Unreadable { line: number, problem };
        for record in records_in(text.trim_end()).map_err(unreadable)? {
            log.records += 1;
            match AuditAction::from_name(&record.action) {
                Some(AuditAction::SessionCreated | AuditAction::SessionImported)
                    if with_creations =>
                {
                    log.created.push(record.created().map_err(unreadable)?);
                }
                _ => log.revocations.extend(revocation(record).map_err(unreadable)?),
            }
        }
    }
    if log.records == 0 { Err(LogError::NoRecord) } else { Ok(log) }
}

/// Texts that show that a line contains a record, even if a part of it was cut off: the target is
/// at the end of a record, and the message near its beginning. The last text is the message of a
/// record that a log collector has put into a JSON string.
const MARKS: [&str; 3] = [TARGET, r#""message":"audit""#, ESCAPED_MARK];
const ESCAPED_MARK: &str = r#"\"message\":\"audit\""#;

fn has_mark(text: &str) -> bool {
    MARKS.iter().any(|mark| text.contains(mark))
}

/// Returns whether a line may be the beginning of a record whose end is missing.
fn may_begin_record(text: &str) -> bool {
    const START: &str = r#"{"timestamp":""#;
    const SHORTEST: usize = r#"{"t"#.len();
    let begins_like_record =
        text.starts_with(START) || text.len() >= SHORTEST && START.starts_with(text);
    let message = text.split_once(r#""message":""#);
    begins_like_record && message.is_none_or(|(_, message)| r#"audit""#.starts_with(message))
}

/// Returns the records in a line. Log collectors may put a prefix in front of each line, join
/// lines, or write an array of records.
fn records_in(text: &str) -> Result<Vec<Line>, String> {
    let mut records = vec![];
    let mut rest = text;
    while let Some(start) = rest.find(['{', '[']) {
        let (before, json) = rest.split_at(start);
        if has_mark(before) {
            break;
        }
        rest = json;
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                let end = values.byte_offset();
                take_records(value, &mut records)?;
                rest = rest.get(end..).unwrap_or_default();
            }
            // The bracket is part of a collector's prefix, or starts an array that continues in the
            // next line.
            _ if rest.starts_with('[') => rest = rest.get(1..).unwrap_or_default(),
            Some(Err(error)) if error.is_eof() && (has_mark(rest) || may_begin_record(rest)) => {
                return Err("its end is missing".to_owned());
            }
            Some(Err(error)) if has_mark(rest) => return Err(error.to_string()),
            // The rest is the text of another program.
            Some(Err(_)) | None => return Ok(records),
        }
    }
    if has_mark(rest) { Err("it is not JSON".to_owned()) } else { Ok(records) }
}

/// Adds the records in a JSON value to `records`.
fn take_records(value: Value, records: &mut Vec<Line>) -> Result<(), String> {
    if let Value::Array(values) = value {
        return values.into_iter().try_for_each(|value| take_records(value, records));
    }
    match value.get("target").and_then(Value::as_str) {
        Some(TARGET) => {
            records.push(serde_json::from_value(value).map_err(|error| error.to_string())?);
            Ok(())
        }
        // The line has another target. Its text may mention the audit's target.
        Some(_) if !value.to_string().contains(ESCAPED_MARK) => Ok(()),
        None if !has_mark(&value.to_string()) => Ok(()),
        Some(_) | None => Err("it is inside another value: take it out of there".to_owned()),
    }
}

impl Line {
    fn session(&self) -> Result<SessionId, String> {
        self.session_id.as_deref().and_then(|id| id.parse().ok()).ok_or_else(|| lacks("session_id"))
    }

    fn tenant(&self) -> Result<Tenant, String> {
        let tenant = self.tenant.clone().ok_or_else(|| lacks("tenant"))?;
        Tenant::try_from(tenant).map_err(|_| lacks("tenant"))
    }

    fn subject(&self) -> Result<Subject, String> {
        let subject = self.subject.clone().ok_or_else(|| lacks("subject"))?;
        Subject::try_from(subject).map_err(|_| lacks("subject"))
    }

    /// Returns the time at which the record was made.
    fn instant(&self) -> Result<Timestamp, String> {
        let id: AuditId = self.id.parse().map_err(|_| lacks("id"))?;
        Ok(Timestamp::from_micros(id.millis().saturating_mul(1000)))
    }

    /// Returns the cut-off of a revocation by client or time. Without a tenant, it is for all.
    fn cut_off(&self) -> Result<LoggedEnd, String> {
        let client_id = self.client_id.clone().map(ClientId::try_from).transpose();
        let client_id = client_id.map_err(|_| lacks("client_id"))?;
        let scope = match (&self.tenant, client_id) {
            (None, None) => Scope::Everywhere,
            (None, Some(client_id)) => Scope::ClientEverywhere(client_id),
            (Some(_), None) => Scope::Tenant(self.tenant()?),
            (Some(_), Some(client_id)) => Scope::Client(self.tenant()?, client_id),
        };
        let key = match &self.authenticated_before {
            None => CutOffKey::created(scope),
            Some(_) => CutOffKey::authenticated(scope).map_err(|problem| problem.to_string())?,
        };
        let last = |name: &str, before: &Option<String>| match before {
            None => Ok(None),
            Some(before) => match before.parse::<jiff::Timestamp>() {
                Ok(before) => Ok(Some(Timestamp::from_micros(before.as_microsecond() - 1))),
                Err(_) => Err(lacks(name)),
            },
        };
        let authenticated = last("authenticated_before", &self.authenticated_before)?;
        let up_to = authenticated.or(last("created_before", &self.created_before)?);
        Ok(LoggedEnd::Sessions { key, up_to, until: self.instant()? })
    }

    fn created(&self) -> Result<LoggedSession, String> {
        Ok(LoggedSession { id: self.session()?, tenant: self.tenant()?, subject: self.subject()? })
    }
}

fn lacks(name: &str) -> String {
    format!("it has no valid {name}")
}

fn revocation(line: Line) -> Result<Option<LoggedRevocation>, String> {
    let action = AuditAction::from_name(&line.action)
        .ok_or_else(|| format!("this version does not know the action {:?}", line.action))?;
    let end = match action {
        AuditAction::SessionEvicted | AuditAction::RefreshReused | AuditAction::SessionRevoked => {
            LoggedEnd::Session(line.session()?)
        }
        AuditAction::SessionReauthenticated => {
            LoggedEnd::Reauthenticated { session: line.session()?, at: line.instant()? }
        }
        AuditAction::TokenRevoked => LoggedEnd::Token(line.session()?),
        AuditAction::SubjectRevoked => LoggedEnd::Subject {
            tenant: line.tenant()?,
            subject: line.subject()?,
            until: line.instant()?,
        },
        AuditAction::TenantRevoked => {
            LoggedEnd::Tenant { tenant: line.tenant()?, until: line.instant()? }
        }
        AuditAction::SessionsRevoked => line.cut_off()?,
        AuditAction::DatabaseRestored if line.note.ends_with(ENDED_ALL) => {
            LoggedEnd::All { until: line.instant()? }
        }
        AuditAction::KeyRevoked => LoggedEnd::Key(line.kid.clone().ok_or_else(|| lacks("kid"))?),
        AuditAction::SessionCreated
        | AuditAction::SessionImported
        | AuditAction::SessionUpdated
        | AuditAction::SessionExpired
        | AuditAction::KeyPublished
        | AuditAction::KeyRetired
        | AuditAction::KeyDropped
        | AuditAction::KeyRotated
        | AuditAction::KeyImported
        | AuditAction::KeyResealed
        | AuditAction::ConfigurationReloaded
        | AuditAction::DatabaseRestored
        | AuditAction::CallerDenied => return Ok(None),
    };
    let reason =
        line.reason.as_deref().and_then(EndReason::from_name).unwrap_or(EndReason::Unspecified);
    let note = Note::try_from(line.note).unwrap_or_default();
    Ok(Some(LoggedRevocation { end, reason, note }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "019b8d1e-07a3-7c1f-9a55-70c8d9b1e6f4";

    fn line(fields: &str) -> String {
        format!(
            r#"{{"timestamp":"2026-01-05T08:11:43.201847Z","level":"INFO","message":"audit","id":"019b8d2c-5c61-7000-8000-3f1c9a42d07e",{fields},"target":"countersign::audit"}}"#
        )
    }

    fn read(text: &str) -> Result<RevocationLog, LogError> {
        read_from(text.as_bytes(), false)
    }

    #[test]
    fn every_revocation_is_found_whatever_a_collector_writes_around_it() {
        let session = format!(r#""session_id":"{SESSION}""#);
        let lines = [
            line(&format!(
                r#""action":"session_revoked",{session},"reason":"compromised","note":"laptop stolen""#
            )),
            format!(
                "Jan 05 host countersign[7]: {}",
                line(&format!(r#""action":"session_evicted",{session}"#))
            ),
            r#"{"level":"INFO","message":"{ not countersign::audit","target":"countersign::app"}"#
                .to_owned(),
            "text of another program".to_owned(),
            line(&format!(r#""action":"refresh_reused",{session}"#)),
            line(&format!(r#""action":"session_reauthenticated",{session}"#)),
            line(r#""action":"session_created","tenant":"","subject":"a""#),
            line(r#""action":"subject_revoked","tenant":"acme","subject":"alice""#),
            line(r#""action":"tenant_revoked","tenant":"acme""#) + " stream=stderr",
            line(&format!(
                r#""action":"database_restored","note":"older access tokens: refused; {ENDED_ALL}""#
            )),
            line(
                r#""action":"database_restored","note":"sessions ended since the backup: not known""#,
            ),
            line(r#""action":"key_revoked","kid":"k1""#),
            line(&format!(r#""action":"token_revoked",{session}"#)),
        ];
        let log = read(&lines.join("\n")).unwrap();
        assert_eq!(log.records, 11);
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        let subject = Subject::try_from("alice".to_owned()).unwrap();
        let (id, until) =
            (SESSION.parse().unwrap(), Timestamp::from_micros(0x019b_8d2c_5c61 * 1000));
        let ends: Vec<_> =
            log.revocations.iter().map(|revocation| revocation.end.clone()).collect();
        assert_eq!(
            ends,
            [
                LoggedEnd::Session(id),
                LoggedEnd::Session(id),
                LoggedEnd::Session(id),
                LoggedEnd::Reauthenticated { session: id, at: until },
                LoggedEnd::Subject { tenant: tenant.clone(), subject, until },
                LoggedEnd::Tenant { tenant, until },
                LoggedEnd::All { until },
                LoggedEnd::Key("k1".to_owned()),
                LoggedEnd::Token(id),
            ]
        );
        let first = &log.revocations[0];
        assert_eq!((first.reason, &*first.note), (EndReason::Compromised, "laptop stolen"));
        assert_eq!(log.revocations[1].reason, EndReason::Unspecified);
    }

    #[test]
    fn records_that_a_collector_has_joined_are_found() {
        let record = |kid: &str| line(&format!(r#""action":"key_revoked","kid":"{kid}""#));
        let [a, b] = ["a", "b"].map(record);
        for text in [
            format!("{a}{b}"),
            format!("<14>1 host[7]: {a} {{\"of\":\"others\"}} {b} stream=stderr"),
            format!("[{a}, {b}]"),
            format!("[\n{a},\n{b}\n]\n"),
            format!("{{\n{a}\n[cut\n{b}"),
        ] {
            let log = read(&text).unwrap();
            let keys: Vec<_> =
                log.revocations.into_iter().map(|revocation| revocation.end).collect();
            assert_eq!(keys, ["a", "b"].map(|kid| LoggedEnd::Key(kid.to_owned())), "{text}");
        }
    }

    #[test]
    fn sessions_that_were_created_are_read_on_demand() {
        let created = line(&format!(
            r#""action":"session_created","tenant":"acme","subject":"alice","session_id":"{SESSION}""#
        ));
        assert_eq!(read(&created).unwrap().created, []);
        let log = read_from(created.as_bytes(), true).unwrap();
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        let subject = Subject::try_from("alice".to_owned()).unwrap();
        assert_eq!(log.created, [LoggedSession { id: SESSION.parse().unwrap(), tenant, subject }]);
        assert_eq!((log.records, log.revocations), (1, vec![]));
    }

    #[test]
    fn a_record_that_was_cut_off_or_wrapped_anywhere_is_never_passed_over() {
        let good = line(r#""action":"key_revoked","kid":"k1""#);
        let record = line(&format!(
            r#""action":"session_revoked","session_id":"{SESSION}","reason":"compromised","note":"laptop [{{ \"stolen""#
        ));
        let escaped = serde_json::json!({ "log": record }).to_string();
        let within = serde_json::json!({ "target": "collector", "log": record }).to_string();
        for whole in [escaped, within] {
            let error = read(&format!("{good}\n{whole}\n")).unwrap_err().to_string();
            assert!(error.starts_with("line 2 is a record"), "{whole}: {error}");
        }
        for at in 3..record.len() {
            let (begin, end) = record.split_at(at);
            // The cut record is at the end of the log, or is followed by another record in the same
            // line.
            for text in [format!("{good}\n{begin}"), format!("{good}\n{begin}{good}")] {
                let error = read(&text).unwrap_err().to_string();
                assert!(error.starts_with("line 2 is a record"), "{begin}: {error}");
            }
            let error = read(&format!("{good}\n{begin}\n{end}\n")).unwrap_err().to_string();
            assert!(
                error.contains("is a record of the audit that cannot be read"),
                "{begin}: {error}"
            );
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_never_passed_over() {
        let good = line(r#""action":"key_revoked","kid":"k1""#);
        for bad in [
            "2026-01-05T08:11:43Z  INFO countersign::audit: audit id=1 action=\"session_revoked\"",
            &line(r#""action":"session_revoked","session_id":"nonsense""#),
            &line(r#""action":"session_revoked""#),
            &line(r#""action":"session_forgotten""#),
            good.get(..good.len() - 1).unwrap(),
            r#"{"log":"{\"target\":\"countersign::audit\"}"}"#,
        ] {
            let error = read(&format!("{good}\n{bad}\n")).unwrap_err().to_string();
            assert!(error.starts_with("line 2 is a record"), "{bad}: {error}");
        }
        assert!(matches!(read("nothing of ours\n"), Err(LogError::NoRecord)));
    }
}
