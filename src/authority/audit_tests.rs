//! Tests which records are written to the log, which to the table, and which to neither.

use std::{
    io,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use futures_util::FutureExt;
use serde_json::Value;
use tracing::{Dispatch, subscriber::NoSubscriber};
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::{
    clock::SettableClock,
    domain::{
        session::{
            EndReason,
            tests::{START, session},
        },
        text::{CallerName, Note},
    },
};

/// A second subscriber. While a process has only one, the first thread that reaches a log statement
/// decides for all threads whether it is enabled. A test that does not capture the log would disable
/// the statement for a test that does.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(NoSubscriber::new()));

/// The lines that the audit logs in this thread.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    /// Returns the lines that `work` logs, as JSON.
    fn of(work: impl FnOnce()) -> Vec<Value> {
        LazyLock::force(&SECOND);
        let lines = Self::default();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(lines.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn audit() -> (Audit, AuditQueue, Arc<SettableClock>) {
    let clock = Arc::new(SettableClock::at(START));
    let (audit, queue) = Audit::with_table(clock.clone(), [7; 6]);
    (audit, queue, clock)
}

fn named(name: &str) -> Who {
    Who::Named(CallerName::try_from(name.to_owned()).unwrap())
}

fn denied(caller: Who) -> AuditRecord {
    AuditRecord::new(AuditAction::CallerDenied, START, caller, None)
}

/// Takes the records that wait for the table.
fn rows(queue: &mut AuditQueue) -> Vec<AuditEntry> {
    std::iter::from_fn(|| queue.entries.try_recv().ok()).collect()
}

#[test]
fn a_record_is_logged_with_its_fields_and_stored_with_the_same_identifier() {
    let (audit, mut queue, _) = audit();
    let session = session();
    let full = AuditRecord {
        kid: Some("key 1".to_owned()),
        reason: Some(EndReason::Compromised),
        note: Note::try_from("\"stolen\" caller=root".to_owned()).unwrap(),
        sessions: Some(3),
        ..AuditRecord::new(
            AuditAction::SessionRevoked,
            START,
            named("helpdesk"),
            Some([192, 0, 2, 7].into()),
        )
        .about(&session)
    };
    let least = AuditRecord::new(AuditAction::KeyRotated, START, Who::Service, None);
    let lines = Lines::of(|| {
        audit.record(full.clone());
        audit.record(least.clone());
    });
    let rows = rows(&mut queue);
    assert_eq!(
        rows.iter().map(|row| (&row.record, row.left_out)).collect::<Vec<_>>(),
        [(&full, 0), (&least, 0)]
    );
    assert!(rows[0].id < rows[1].id);

    let fields = |line: &Value| {
        let mut fields = line.as_object().unwrap().clone();
        fields.remove("timestamp");
        Value::Object(fields)
    };
    let expected = serde_json::json!({
        "level": "INFO", "target": "countersign::audit", "message": "audit",
        "id": rows[0].id.to_string(),
        "action": "session_revoked", "caller": "helpdesk", "peer": "192.0.2.7",
        "tenant": &*session.tenant,
        "subject": &*session.subject, "session_id": session.id.to_string(), "kid": "key 1",
        "reason": "compromised",
        "note": "\"stolen\" caller=root", "sessions": 3,
    });
    assert_eq!(fields(&lines[0]), expected);
    let expected = serde_json::json!({
        "level": "INFO", "target": "countersign::audit", "message": "audit",
        "id": rows[1].id.to_string(),
        "action": "key_rotated", "caller": "countersign",
    });
    assert_eq!(fields(&lines[1]), expected, "empty fields are left out");
}

#[test]
fn records_of_unknown_callers_are_only_logged_and_at_most_ten_a_second() {
    let (audit, mut queue, clock) = audit();
    let lines = Lines::of(|| {
        (0..1000).for_each(|_| audit.record(denied(Who::Unknown)));
        clock.advance(Duration::from_secs(1));
        (0..1000).for_each(|_| audit.record(denied(Who::Unknown)));
        audit.record(AuditRecord::new(AuditAction::RefreshReused, START, Who::Unknown, None));
    });
    assert_eq!(lines.len(), 20);
    assert_eq!((&lines[9]["left_out"], &lines[10]["left_out"]), (&Value::Null, &Value::from(990)));
    assert_eq!(audit.left_out().get(), 2001 - 20);
    assert_eq!((rows(&mut queue), audit.waiting(), audit.dropped().get()), (vec![], 0, 0));
}

#[test]
fn the_records_of_an_often_denied_caller_are_limited_and_those_of_others_are_not() {
    let (audit, mut queue, clock) = audit();
    let minute = || {
        Lines::of(|| {
            for _ in 0..600 {
                audit.record(denied(named("nosy")));
                clock.advance(Duration::from_millis(100));
            }
        })
        .len()
    };
    assert_eq!(minute(), 600);
    let first = rows(&mut queue);
    assert_eq!(first.len(), 19, "ten at once, and then one every six seconds");
    assert_eq!(minute(), 600);
    let second = rows(&mut queue);
    assert_eq!(second.len(), 10);
    let counted: i64 = first.iter().chain(&second).map(|row| row.left_out + 1).sum();
    assert!(
        (1100..=1200).contains(&counted),
        "rows count the records left out before them: {counted}"
    );

    let other = Lines::of(|| audit.record(denied(named("other"))));
    assert_eq!((other.len(), rows(&mut queue).len()), (1, 1));
    let allowed = Lines::of(|| {
        for _ in 0..100 {
            audit.record(AuditRecord::new(AuditAction::SessionCreated, START, named("nosy"), None));
        }
    });
    assert_eq!(
        (allowed.len(), rows(&mut queue).len()),
        (100, 100),
        "allowed actions are not limited"
    );
}

#[tokio::test]
async fn a_record_that_finds_the_queue_full_is_logged_and_counted_as_dropped() {
    let (audit, mut queue, _) = audit();
    let one = AuditRecord::new(AuditAction::SessionCreated, START, Who::Anybody, None);
    for _ in 0..MOST_WAITING + 3 {
        audit.record(one.clone());
    }
    assert_eq!(Lines::of(|| audit.record(one.clone())).len(), 1);
    assert_eq!((audit.dropped().get(), audit.waiting()), (4, MOST_WAITING));
    assert_eq!(rows(&mut queue).len(), MOST_WAITING);

    drop(queue);
    audit.record(one);
    audit.written().await;
    assert_eq!(audit.dropped().get(), 5, "no writer is left");
}

#[tokio::test]
async fn without_a_table_records_are_only_logged_and_none_waits() {
    let audit = Audit::of_log(Arc::new(SettableClock::at(START)), [7; 6]);
    let lines = Lines::of(|| {
        audit.record(AuditRecord::new(AuditAction::KeyRevoked, START, named("admin"), None))
    });
    assert_eq!(lines.len(), 1);
    audit.written().await;
    assert_eq!((audit.waiting(), audit.dropped().get()), (0, 0));
}

/// The table must not lose records because an import makes very many of them.
#[test]
fn there_is_no_room_while_more_than_half_of_the_queue_is_taken() {
    let (audit, mut queue, _) = audit();
    let imported = || AuditRecord::new(AuditAction::SessionImported, START, Who::Anybody, None);
    for _ in 0..=MOST_WAITING / 2 {
        audit.record(imported());
    }
    assert!(audit.has_room().now_or_never().is_none());
    queue.entries.try_recv().unwrap();
    audit.subtract_waiting(1);
    assert!(audit.has_room().now_or_never().is_some());
    audit.record(imported());
    drop(queue);
    assert!(audit.has_room().now_or_never().is_some(), "nothing will be written any more");
}
