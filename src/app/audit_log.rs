//! Reads what ended out of a log of the service, so that it can be ended again after a restore.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

use serde::Deserialize;

use crate::domain::{
    audit::{AuditAction, TARGET},
    ids::{AuditId, SessionId},
    session::EndReason,
    text::{Note, Subject, Tenant},
};

/// A log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A line about the audit is not understood.
    #[error(
        "line {line} is a record of the audit that cannot be read ({problem}): give the log as the service wrote it, \
         in the form of log.format = \"json\""
    )]
    Unreadable {
        /// The line's number, from 1.
        line: usize,
        /// The reason.
        problem: String,
    },
    /// There is nothing in it.
    #[error("has no record of the audit: name the log of the service, with the lines of the target {TARGET}")]
    NoRecord,
}

/// Something that was ended, and has to be ended again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedEnd {
    /// A session.
    Session(SessionId),
    /// The sessions of a subject that were created up to this instant.
    Subject {
        /// Its tenant.
        tenant: Tenant,
        /// The subject.
        subject: Subject,
        /// In milliseconds since the epoch.
        until_millis: i64,
    },
    /// The sessions of a tenant that were created up to this instant.
    Tenant {
        /// The tenant.
        tenant: Tenant,
        /// In milliseconds since the epoch.
        until_millis: i64,
    },
    /// A key.
    Key(String),
    /// An access token. The log names its session alone.
    Token(SessionId),
}

/// Something that was ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRevocation {
    /// What was ended.
    pub end: LoggedEnd,
    /// Why.
    pub reason: EndReason,
    /// The note that came with it.
    pub note: Note,
}

/// What a log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevocationLog {
    /// How many records of the audit it has.
    pub records: usize,
    /// What they say was ended, in their order.
    pub revocations: Vec<LoggedRevocation>,
}

/// The fields of a line that matter. Those of other lines may be of other types, so they are read
/// only after the target has been seen.
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
}

/// Reads a log from a file, or from standard input if its name is `-`.
pub fn read(path: &Path) -> Result<RevocationLog, LogError> {
    match path.as_os_str() == "-" {
        true => read_from(io::stdin().lock()),
        false => read_from(BufReader::new(File::open(path)?)),
    }
}

fn read_from(mut reader: impl BufRead) -> Result<RevocationLog, LogError> {
    let (mut log, mut number, mut line) = (RevocationLog::default(), 0, vec![]);
    loop {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        if !text.contains(TARGET) {
            continue;
        }
        let unreadable = |problem: String| LogError::Unreadable { line: number, problem };
        let Some(record) = record_in(&text).map_err(unreadable)? else { continue };
        log.records += 1;
        log.revocations.extend(revocation(record).map_err(unreadable)?);
    }
    if log.records == 0 { Err(LogError::NoRecord) } else { Ok(log) }
}

/// The record in a line, if it is one. Collectors put a prefix of their own in front of lines.
fn record_in(text: &str) -> Result<Option<Line>, String> {
    let json = text.find('{').and_then(|start| text.get(start..)).unwrap_or_default();
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<serde_json::Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(error.to_string()),
        None => return Err("it is not JSON".to_owned()),
    };
    match value.get("target").and_then(serde_json::Value::as_str) {
        Some(TARGET) => serde_json::from_value(value).map(Some).map_err(|error| error.to_string()),
        // Another line that happens to name the target.
        Some(_) => Ok(None),
        None => Err("it has no field `target`".to_owned()),
    }
}

fn revocation(line: Line) -> Result<Option<LoggedRevocation>, String> {
    let lacks = |name: &str| format!("it has no good {name}");
    let session = || line.session_id.as_deref().and_then(|id| id.parse().ok()).ok_or_else(|| lacks("session_id"));
    let tenant = || {
        let tenant = line.tenant.clone().ok_or_else(|| lacks("tenant"))?;
        Tenant::try_from(tenant).map_err(|_| lacks("tenant"))
    };
    let until_millis = || line.id.parse().map(|id: AuditId| id.millis()).map_err(|_| lacks("id"));
    let action = AuditAction::from_name(&line.action)
        .ok_or_else(|| format!("this version does not know the action {:?}", line.action))?;
    let end = match action {
        AuditAction::SessionEvicted | AuditAction::RefreshReused | AuditAction::SessionRevoked => {
            LoggedEnd::Session(session()?)
        }
        AuditAction::TokenRevoked => LoggedEnd::Token(session()?),
        AuditAction::SubjectRevoked => {
            let subject = line.subject.clone().ok_or_else(|| lacks("subject"))?;
            let subject = Subject::try_from(subject).map_err(|_| lacks("subject"))?;
            LoggedEnd::Subject { tenant: tenant()?, subject, until_millis: until_millis()? }
        }
        AuditAction::TenantRevoked => LoggedEnd::Tenant { tenant: tenant()?, until_millis: until_millis()? },
        AuditAction::KeyRevoked => LoggedEnd::Key(line.kid.clone().ok_or_else(|| lacks("kid"))?),
        AuditAction::SessionCreated
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
    let reason = line.reason.as_deref().and_then(EndReason::from_name).unwrap_or(EndReason::Unspecified);
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
        read_from(text.as_bytes())
    }

    #[test]
    fn every_end_is_found_whatever_a_collector_writes_around_it() {
        let session = format!(r#""session_id":"{SESSION}""#);
        let lines = [
            line(&format!(r#""action":"session_revoked",{session},"reason":"compromised","note":"laptop stolen""#)),
            format!("Jan 05 host countersign[7]: {}", line(&format!(r#""action":"session_evicted",{session}"#))),
            r#"{"level":"INFO","message":"{ not countersign::audit","target":"countersign::app"}"#.to_owned(),
            "text of another program".to_owned(),
            line(&format!(r#""action":"refresh_reused",{session}"#)),
            line(r#""action":"session_created","tenant":"","subject":"a""#),
            line(r#""action":"subject_revoked","tenant":"acme","subject":"alice""#),
            line(r#""action":"tenant_revoked","tenant":"acme""#) + " stream=stderr",
            line(r#""action":"key_revoked","kid":"k1""#),
            line(&format!(r#""action":"token_revoked",{session}"#)),
        ];
        let log = read(&lines.join("\n")).unwrap();
        assert_eq!(log.records, 8);
        let tenant = Tenant::try_from("acme".to_owned()).unwrap();
        let subject = Subject::try_from("alice".to_owned()).unwrap();
        let (id, until_millis) = (SESSION.parse().unwrap(), 0x019b_8d2c_5c61);
        let ends: Vec<_> = log.revocations.iter().map(|revocation| revocation.end.clone()).collect();
        assert_eq!(
            ends,
            [
                LoggedEnd::Session(id),
                LoggedEnd::Session(id),
                LoggedEnd::Session(id),
                LoggedEnd::Subject { tenant: tenant.clone(), subject, until_millis },
                LoggedEnd::Tenant { tenant, until_millis },
                LoggedEnd::Key("k1".to_owned()),
                LoggedEnd::Token(id),
            ]
        );
        let first = &log.revocations[0];
        assert_eq!((first.reason, &*first.note), (EndReason::Compromised, "laptop stolen"));
        assert_eq!(log.revocations[1].reason, EndReason::Unspecified);
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
