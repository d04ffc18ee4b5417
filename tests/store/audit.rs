//! Tests of the audit table: each record is added once and unchanged, and is deleted when it is
//! old.

use std::time::Duration;

use countersign::{
    domain::{
        audit::{AuditAction, AuditEntry, AuditRecord},
        call_id::CallId,
        ids::{AuditId, SessionId},
        search::{AuditQuery, AuditSearch, MOST_READ, Part, Period},
        session::{EndReason, Session},
        time::Timestamp,
        who::Who,
    },
    store::Store,
};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    engines::Database,
    support::{
        ALL, START, after, create, create_all, revoke_session, rich_session, rotate, session, text,
    },
};

const TICK: Duration = Duration::from_micros(1);

fn entry(count: u32, record: AuditRecord) -> AuditEntry {
    AuditEntry { id: AuditId::new(record.at, count, [5; 6]), record, left_out: 0 }
}

/// Returns a record that has only the fields that every record has.
pub fn plain(count: u32, at: Timestamp) -> AuditEntry {
    entry(count, AuditRecord::new(AuditAction::KeyRotated, at, Who::Service, None))
}

fn hex(id: impl ToString) -> String {
    id.to_string().replace('-', "")
}

/// Returns the row that the table must have for a record.
fn row(AuditEntry { id, record, left_out }: &AuditEntry) -> Value {
    json!([
        record.at.micros(),
        hex(id),
        record.action.as_str(),
        record.caller.as_str(),
        record.peer.map(|peer| peer.to_string()),
        record.tenant.as_deref(),
        record.subject.as_deref(),
        record.session_id.map(hex).unwrap_or_default(),
        record.kid,
        record.reason.map(EndReason::as_str),
        record.sessions,
        left_out,
        &*record.note,
        record.call.as_ref().map(CallId::as_str),
    ])
}

fn rows<'a>(entries: impl IntoIterator<Item = &'a AuditEntry>) -> Vec<Value> {
    entries.into_iter().map(row).collect()
}

pub async fn every_field_of_a_record_is_kept(store: &dyn Store, database: &Database) {
    let at = START.plus(Duration::from_micros(123_456));
    let full = AuditRecord {
        kid: Some("8Z0x".to_owned()),
        reason: Some(EndReason::Compromised),
        note: text("laptop stolen"),
        sessions: Some(i64::MAX),
        call: CallId::read(b"edge-7f/1"),
        ..AuditRecord::new(
            AuditAction::SubjectRevoked,
            at,
            Who::Named(text("helpdesk")),
            Some("2001:db8::7".parse().unwrap()),
        )
        .about(&rich_session(1))
    };
    let entries = [
        AuditEntry { left_out: 7, ..entry(1, full.clone()) },
        entry(
            2,
            AuditRecord { peer: Some([192, 0, 2, 255].into()), tenant: Some(text("")), ..full },
        ),
        plain(3, at),
    ];
    store.append_audit(entries.to_vec()).await.unwrap();
    assert_eq!(database.audit().await, rows(&entries));
    store.append_audit(vec![]).await.unwrap();
    assert_eq!(database.audit().await, rows(&entries));
}

/// Returns the records that a search finds, read by read.
async fn reads(store: &dyn Store, search: &AuditSearch, limit: i64) -> Vec<Vec<AuditEntry>> {
    let (mut reads, mut after) = (vec![], None);
    loop {
        let query = AuditQuery { search: search.clone(), after, limit };
        let Part { found, last } = store.audit(query).await.unwrap();
        reads.push(found);
        if last.is_none() {
            return reads;
        }
        after = last;
    }
}

pub async fn a_search_finds_the_records_that_meet_every_condition(store: &dyn Store, _: &Database) {
    let of_alice = |count, action, at| {
        let who = Who::Named(text("login"));
        entry(count, AuditRecord::new(action, at, who, None).about(&session(1)))
    };
    let created = AuditEntry { left_out: 7, ..of_alice(1, AuditAction::SessionCreated, START) };
    let revoked = of_alice(2, AuditAction::SessionRevoked, after(1));
    let revoked = AuditEntry {
        record: AuditRecord {
            caller: Who::Named(text("helpdesk")),
            peer: Some("2001:db8::7".parse().unwrap()),
            reason: Some(EndReason::Compromised),
            note: text("laptop stolen"),
            sessions: Some(1),
            call: CallId::read(b"edge-7f/1"),
            client_id: Some(text("web")),
            created_before: Some(after(7).plus(TICK)),
            authenticated_before: Some(after(8)),
            ..revoked.record
        },
        ..revoked
    };
    let elsewhere = AuditRecord::new(AuditAction::SessionCreated, after(2), Who::Anybody, None);
    let elsewhere = entry(3, elsewhere.about(&rich_session(2)));
    let key = plain(4, after(3));
    // Two records of the same instant.
    let twin = plain(5, after(3));
    let all = [&created, &revoked, &elsewhere, &key, &twin].map(Clone::clone);
    store.append_audit(all.to_vec()).await.unwrap();

    let any = AuditSearch::default;
    let subject = || AuditSearch { tenant: Some(text("")), subject: Some(text("alice")), ..any() };
    let at = |from, until| AuditSearch { at: Period { from, until }, ..any() };
    let by = |who| AuditSearch { caller: Some(who), ..any() };
    let of = |action| AuditSearch { action: Some(action), ..any() };
    let cases = [
        (any(), vec![&twin, &key, &elsewhere, &revoked, &created]),
        (subject(), vec![&revoked, &created]),
        (AuditSearch { tenant: Some(text("acme")), ..subject() }, vec![]),
        (AuditSearch { tenant: Some(text("")), ..any() }, vec![&revoked, &created]),
        (AuditSearch { tenant: Some(text("acme")), ..any() }, vec![&elsewhere]),
        (AuditSearch { session_id: Some(session(1).id), ..any() }, vec![&revoked, &created]),
        (AuditSearch { session_id: Some(session(9).id), ..any() }, vec![]),
        (by(Who::Named(text("helpdesk"))), vec![&revoked]),
        (by(Who::Service), vec![&twin, &key]),
        (by(Who::Anybody), vec![&elsewhere]),
        (of(AuditAction::SessionCreated), vec![&elsewhere, &created]),
        (AuditSearch { action: Some(AuditAction::SessionCreated), ..subject() }, vec![&created]),
        (at(Some(after(1)), None), vec![&twin, &key, &elsewhere, &revoked]),
        (at(Some(after(1).plus(TICK)), Some(after(3))), vec![&elsewhere]),
        (at(None, Some(after(1))), vec![&created]),
    ];
    for (search, expected) in cases {
        let expected: Vec<AuditEntry> = expected.into_iter().cloned().collect();
        for limit in [1, 2, 100] {
            assert_eq!(reads(store, &search, limit).await.concat(), expected, "{search:?}");
        }
    }
}

pub async fn a_search_looks_at_a_limited_number_of_records_and_the_next_one_goes_on(
    store: &dyn Store,
    _: &Database,
) {
    let many = u32::try_from(MOST_READ).unwrap();
    let rare = |count| {
        entry(count, AuditRecord::new(AuditAction::KeyDropped, after(1), Who::Service, None))
    };
    let oldest = rare(0);
    let mut all = vec![oldest.clone()];
    all.extend((1..many).map(|count| plain(count, after(1))));
    let newest = rare(many);
    all.push(newest.clone());
    for batch in all.chunks(500) {
        store.append_audit(batch.to_vec()).await.unwrap();
    }
    let search = AuditSearch { action: Some(AuditAction::KeyDropped), ..AuditSearch::default() };
    assert_eq!(reads(store, &search, ALL).await, [vec![newest], vec![oldest]]);
}

pub async fn any_text_is_kept_unchanged(store: &dyn Store, database: &Database) {
    let texts = [
        "O'Brien \"the\" \\ boss",
        "'); DROP TABLE audit; --",
        "NULL",
        "{a,\"b\",NULL}",
        "Zoë 🦀 \u{202e}\u{2028}",
        "? $1 %s",
        " ",
    ];
    let entries: Vec<_> = (0..)
        .zip(texts)
        .map(|(n, any)| {
            let record = AuditRecord::new(
                AuditAction::CallerDenied,
                START,
                Who::Named(text("a.name_of-64")),
                None,
            );
            let (tenant, subject) = (Some(text(any)), Some(text(any)));
            entry(
                n,
                AuditRecord {
                    tenant,
                    subject,
                    kid: Some(any.to_owned()),
                    note: text(any),
                    ..record
                },
            )
        })
        .collect();
    store.append_audit(entries.clone()).await.unwrap();
    assert_eq!(database.audit().await, rows(&entries));
}

/// A writer that got no answer writes its records again, alone or with others.
pub async fn a_record_that_was_already_written_is_not_added_again(
    store: &dyn Store,
    database: &Database,
) {
    let entries = [plain(1, START), plain(2, START), plain(3, START)];
    store.append_audit(entries[..2].to_vec()).await.unwrap();
    store.append_audit(entries.to_vec()).await.unwrap();
    store.append_audit(entries[1..2].to_vec()).await.unwrap();
    assert_eq!(database.audit().await, rows(&entries));
}

pub async fn records_of_many_concurrent_writers_are_all_kept(
    store: &dyn Store,
    database: &Database,
) {
    let entries: Vec<_> = (0..600_u32).map(|n| plain(n, after((n % 7).into()))).collect();
    for written in
        join_all(entries.chunks(100).rev().map(|chunk| store.append_audit(chunk.to_vec()))).await
    {
        written.unwrap();
    }
    let mut sorted = entries;
    sorted.sort_by_key(|entry| (entry.record.at, entry.id));
    assert_eq!(database.audit().await, rows(&sorted));
}

pub async fn records_are_deleted_when_they_are_old_and_no_sooner(
    store: &dyn Store,
    database: &Database,
) {
    let entries = [plain(1, after(1)), plain(2, after(2)), plain(3, after(2)), plain(4, after(3))];
    store.append_audit(entries.to_vec()).await.unwrap();
    assert_eq!(
        store.delete_old_audit(after(1), ALL).await.unwrap(),
        0,
        "no record is from before this instant"
    );
    assert_eq!(store.delete_old_audit(after(2), ALL).await.unwrap(), 1);
    assert_eq!(database.audit().await, rows(&entries[1..]));
    assert_eq!(store.delete_old_audit(after(2).plus(TICK), ALL).await.unwrap(), 2);
    assert_eq!(database.audit().await, rows(&entries[3..]));
    // With a very long retention, the instant is the earliest possible one.
    assert_eq!(store.delete_old_audit(Timestamp::from_micros(i64::MIN), ALL).await.unwrap(), 0);
    assert_eq!(database.audit().await, rows(&entries[3..]));
}

pub async fn one_call_deletes_the_oldest_records_and_no_more_than_the_limit(
    store: &dyn Store,
    database: &Database,
) {
    // Three records of one instant are more than the limit.
    let entries = [after(1), after(2), after(2), after(2), after(3)];
    let entries: Vec<_> = (0..).zip(entries).map(|(n, at)| plain(n, at)).collect();
    store.append_audit(entries.iter().rev().cloned().collect()).await.unwrap();
    for (deleted, left) in [(2, 3), (2, 1), (1, 0), (0, 0)] {
        assert_eq!(store.delete_old_audit(after(9), 2).await.unwrap(), deleted);
        assert_eq!(database.audit().await, rows(&entries[5 - left..]));
    }
}

/// Two replicas may sweep at the same instant.
pub async fn concurrent_sweeps_delete_each_record_once(store: &dyn Store, database: &Database) {
    store
        .append_audit((0..500).map(|n| plain(n, after(u64::from(n) % 7))).collect())
        .await
        .unwrap();
    let mut deleted = 0;
    while !database.audit().await.is_empty() {
        let sweeps = join_all((0..4).map(|_| store.delete_old_audit(after(9), 100))).await;
        deleted += sweeps.into_iter().map(Result::unwrap).sum::<usize>();
    }
    assert_eq!(deleted, 500);
}

/// Records all expiries that are due, batch by batch.
async fn record_expiries(store: &dyn Store, until: Timestamp, limit: i64) -> Vec<AuditEntry> {
    let mut recorded = vec![];
    loop {
        let batch = store.record_expiries(until, limit, true).await.unwrap();
        recorded.extend(batch.entries);
        if batch.is_last {
            return recorded;
        }
    }
}

fn about(entries: &[AuditEntry]) -> Vec<SessionId> {
    entries.iter().map(|entry| entry.record.session_id.unwrap()).collect()
}

pub async fn the_expiry_of_a_session_is_recorded_once_and_never_for_an_ended_session(
    store: &dyn Store,
    database: &Database,
) {
    let idle = create(store, Session { idle_expires_at: after(60), ..rich_session(1) }).await;
    let absolute =
        create(store, Session { idle_expires_at: after(70), expires_at: after(70), ..session(2) })
            .await;
    let ended = create(store, Session { idle_expires_at: after(65), ..session(3) }).await;
    revoke_session(store, &ended, after(50)).await;
    create(store, session(4)).await;

    assert_eq!(record_expiries(store, after(60), ALL).await, []);
    let first = record_expiries(store, after(70), ALL).await;
    let record = &first[0].record;
    assert_eq!(
        (about(&first), record.at, record.reason),
        (vec![idle.id], after(60), Some(EndReason::ExpiredIdle))
    );
    let (tenant, subject) = (record.tenant.as_ref(), record.subject.as_ref());
    assert_eq!(
        (tenant, subject, &record.caller),
        (Some(&idle.tenant), Some(&idle.subject), &Who::Service)
    );
    let second = record_expiries(store, after(70).plus(TICK), ALL).await;
    let record = &second[0].record;
    assert_eq!(
        (about(&second), record.reason),
        (vec![absolute.id], Some(EndReason::ExpiredAbsolute))
    );
    assert_eq!(record_expiries(store, after(500), ALL).await, []);
    assert_eq!(database.audit().await, rows(first.iter().chain(&second)));

    // The records are also returned if they are not written to the table.
    let batch = store.record_expiries(after(9000), ALL, false).await.unwrap();
    assert_eq!((batch.entries.len(), database.audit().await.len()), (1, 2));
}

pub async fn expiries_are_recorded_in_batches_no_larger_than_the_limit(
    store: &dyn Store,
    database: &Database,
) {
    let sessions = (1..=9).map(|n| Session {
        idle_expires_at: after(if n < 6 { 100 } else { 100 + u64::from(n) }),
        ..session(n)
    });
    let sessions = create_all(store, sessions).await;
    let mut largest = 0;
    let mut seen = vec![];
    loop {
        let batch = store.record_expiries(after(1000), 2, true).await.unwrap();
        largest = largest.max(batch.entries.len());
        seen.extend(about(&batch.entries));
        if batch.is_last {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, sessions.iter().map(|session| session.id).collect::<Vec<_>>());
    assert_eq!(
        (largest, database.audit().await.len()),
        (2, 9),
        "even if many expire at one instant"
    );
}

pub async fn the_expiry_of_a_refreshed_session_is_recorded_only_once_it_has_expired(
    store: &dyn Store,
    _: &Database,
) {
    let first = create(store, session(1)).await;
    let refreshed = rotate(store, &first, after(500)).await;
    assert!(refreshed.idle_expires_at > after(1000));
    for until in [after(400), first.idle_expires_at.plus(TICK), refreshed.idle_expires_at] {
        assert_eq!(record_expiries(store, until, 1).await, [], "{until:?}");
    }
    let again = rotate(store, &refreshed, after(1050)).await;
    assert_eq!(record_expiries(store, refreshed.idle_expires_at.plus(TICK), ALL).await, []);
    let recorded = record_expiries(store, again.idle_expires_at.plus(TICK), ALL).await;
    assert_eq!((about(&recorded), recorded[0].record.at), (vec![first.id], again.idle_expires_at));
}

/// Several replicas may sweep at the same instant.
pub async fn concurrent_recorders_record_each_expired_session_once(
    store: &dyn Store,
    database: &Database,
) {
    let sessions =
        (1..=100).map(|n| Session { idle_expires_at: after(100 + u64::from(n) % 7), ..session(n) });
    create_all(store, sessions).await;
    let recorders = join_all((0..4).map(|_| record_expiries(store, after(1000), 10))).await;
    let mut seen: Vec<_> = recorders.iter().flat_map(|recorded| about(recorded)).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!((seen.len(), recorders.iter().map(Vec::len).sum::<usize>()), (100, 100));
    assert_eq!(database.audit().await.len(), 100);
}

pub async fn a_session_that_expires_after_the_clock_was_set_back_is_recorded(
    store: &dyn Store,
    database: &Database,
) {
    assert_eq!(record_expiries(store, after(100_000), ALL).await, []);
    let session = create(store, session(1)).await;
    assert_eq!(record_expiries(store, after(100), ALL).await, []);
    let recorded = record_expiries(store, after(1000), ALL).await;
    assert_eq!((about(&recorded), database.audit().await.len()), (vec![session.id], 1));
}

pub async fn a_session_is_not_deleted_before_its_expiry_is_recorded(
    store: &dyn Store,
    _: &Database,
) {
    let sessions = create_all(store, (1..=3).map(session)).await;
    revoke_session(store, &sessions[2], after(50)).await;
    assert_eq!(
        store.delete_old_sessions(after(9000), ALL).await.unwrap(),
        1,
        "only the session that was ended is deleted"
    );
    assert_eq!(record_expiries(store, after(9000), ALL).await.len(), 2);
    assert_eq!(store.delete_old_sessions(after(9000), ALL).await.unwrap(), 2);
}

pub async fn the_queries_in_the_documentation_can_be_run(store: &dyn Store, database: &Database) {
    store.append_audit(vec![plain(1, START)]).await.unwrap();
    let text = include_str!("../../docs/audit.md");
    let scripts: Vec<_> =
        text.split("```sql\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let [on_postgres, on_sqlite] = scripts.as_slice() else { panic!("{scripts:?}") };
    database.execute(on_postgres, on_sqlite).await;
}
