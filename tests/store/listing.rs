//! Tests of lists of sessions: the newest comes first, and a cursor leads to the next page.

use std::time::Duration;

use countersign::{
    domain::{session::Session, text::Tenant},
    store::{SessionQuery, Store},
};

use crate::support::{
    after, create, create_all, ids, list, query, record_expiries, revoke_session, rich_session,
    session, text,
};

fn acme() -> Tenant {
    text("acme")
}

pub async fn the_newest_session_is_listed_first(store: &dyn Store) {
    let there = create_all(store, [2, 5, 1, 4, 3].map(rich_session)).await;
    let listed = store.sessions(query(&acme())).await.unwrap();
    assert_eq!(
        listed,
        [1, 3, 4, 0, 2].map(|n: usize| there[n].clone()),
        "the list has whole sessions, the newest first"
    );
}

pub async fn a_list_is_filtered_by_tenant_subject_and_state(store: &dyn Store) {
    let live = create(store, session(1)).await;
    let ended = create(store, session(2)).await;
    let expired = create(store, Session { idle_expires_at: after(10), ..session(3) }).await;
    let bobs = create(store, Session { subject: text("bob"), ..session(4) }).await;
    let elsewhere = create(store, Session { tenant: acme(), ..session(5) }).await;
    revoke_session(store, &ended, after(6)).await;
    record_expiries(store, after(20)).await;

    let all = SessionQuery { now: after(20), ..query(&Tenant::default()) };
    let alices = SessionQuery { subject: Some(text("alice")), ..all.clone() };
    let cases = [
        (all.clone(), vec![&bobs, &expired, &ended, &live]),
        (SessionQuery { live: Some(true), ..all.clone() }, vec![&bobs, &live]),
        (SessionQuery { live: Some(false), ..all }, vec![&expired, &ended]),
        (alices.clone(), vec![&expired, &ended, &live]),
        (SessionQuery { live: Some(true), ..alices.clone() }, vec![&live]),
        (SessionQuery { live: Some(false), ..alices }, vec![&expired, &ended]),
        (query(&acme()), vec![&elsewhere]),
        (SessionQuery { subject: Some(text("bob")), ..query(&acme()) }, vec![]),
        (query(&text("nobody")), vec![]),
    ];
    for (query, expected) in cases {
        assert_eq!(list(store, query.clone()).await, ids(expected), "{query:?}");
    }
}

/// The list of sessions that are over is read from a database index. The index contains an expired
/// session only after its expiry was recorded.
pub async fn a_session_is_listed_as_live_until_it_expires_and_as_over_once_that_is_recorded(
    store: &dyn Store,
) {
    let there = create(store, session(1)).await;
    let (edge, tick) = (there.idle_expires_at, Duration::from_micros(1));
    let listed = async |live, now| {
        list(store, SessionQuery { live, now, ..query(&Tenant::default()) }).await == [there.id]
    };
    assert!(listed(Some(true), edge.minus(tick)).await);
    assert!(!listed(Some(true), edge).await);
    assert!(!listed(Some(false), edge).await);
    assert!(listed(None, edge).await, "a query for any state lists the session");
    record_expiries(store, edge.plus(tick)).await;
    assert!(!listed(Some(true), edge).await);
    assert!(listed(Some(false), edge).await);
    assert!(listed(None, edge).await);
}

pub async fn pages_list_every_session_exactly_once(store: &dyn Store) {
    let alices = create_all(store, (1..=10).map(session)).await;
    let others = (1..=10).map(|n| Session { tenant: acme(), ..session(n << 8) });
    create_all(store, others).await;
    let bobs =
        create_all(store, (11..=15).map(|n| Session { subject: text("bob"), ..session(n) })).await;
    let newest_first = |sessions: &[Session]| ids(sessions.iter().rev());
    let everybody: Vec<_> = alices.iter().chain(&bobs).cloned().collect();

    for (subject, expected) in
        [(Some(text("alice")), newest_first(&alices)), (None, newest_first(&everybody))]
    {
        for limit in [1, 3, 5, 100] {
            let mut before = None;
            let mut seen = vec![];
            loop {
                let query = SessionQuery {
                    subject: subject.clone(),
                    before,
                    limit,
                    ..query(&Tenant::default())
                };
                let page = list(store, query).await;
                assert!(i64::try_from(page.len()).unwrap() <= limit);
                let Some(last) = page.last() else { break };
                assert!(before.is_none_or(|before| *last < before), "the cursor must move on");
                before = Some(*last);
                seen.extend(page);
            }
            assert_eq!(seen, expected, "in pages of {limit}");
        }
    }
}

pub async fn subjects_that_look_alike_are_different_subjects(store: &dyn Store) {
    let subjects = ["zoë", "zoe\u{308}", "Zoë", "zoë ", " zoë", "zo%", "zo_"];
    let there =
        (1..).zip(subjects).map(|(n, subject)| Session { subject: text(subject), ..session(n) });
    for session in create_all(store, there).await {
        let query =
            SessionQuery { subject: Some(session.subject.clone()), ..query(&Tenant::default()) };
        assert_eq!(list(store, query).await, [session.id]);
    }
}
