//! Tests of searches for sessions: their filters, their order, and the reads that follow each other.

use std::time::Duration;

use countersign::{
    domain::{
        ids::SessionId,
        policy::SessionPolicy,
        search::{MOST_READ, Order, Part, Period, SessionFilter, SessionQuery, SessionSearch},
        session::{Device, EndReason, Session},
        text::Tenant,
        time::Timestamp,
        who::Who,
    },
    store::{Created, Store},
};
use futures_util::future::join_all;

use crate::support::{
    ALL, START, after, create, create_all, ended, ids, list, on_device, query, record_expiries,
    revoke_session, rich_session, search, session, text, unlimited,
};

fn acme() -> Tenant {
    text("acme")
}

pub async fn the_newest_session_is_listed_first(store: &dyn Store) {
    let there = create_all(store, [2, 5, 1, 4, 3].map(rich_session)).await;
    let listed = store.sessions(query(search(&acme()))).await.unwrap();
    assert_eq!(
        listed.found,
        [1, 3, 4, 0, 2].map(|n: usize| there[n].clone()),
        "the list has whole sessions, the newest first"
    );
}

pub async fn a_list_is_filtered_by_tenant_subject_device_and_state(store: &dyn Store) {
    let live = create(store, on_device("phone", session(1))).await;
    let ended = create(store, on_device("phone", session(2))).await;
    let expired = create(store, Session { idle_expires_at: after(10), ..session(3) }).await;
    let bobs = Session { subject: text("bob"), ..session(4) };
    let bobs = create(store, on_device("phone", bobs)).await;
    let elsewhere = Session { tenant: acme(), ..session(5) };
    let elsewhere = create(store, on_device("phone", elsewhere)).await;
    revoke_session(store, &ended, after(6)).await;
    record_expiries(store, after(20)).await;

    let all = SessionSearch::default();
    let alices = SessionSearch { subject: Some(text("alice")), ..all.clone() };
    let by_phone = |search| SessionSearch { device_id: Some(text("phone")), ..search };
    let on_phone = by_phone(all.clone());
    let of = |client: &str| SessionFilter { client_id: Some(text(client)), ..Default::default() };
    let cases = [
        (on_phone.clone(), vec![&bobs, &ended, &live]),
        (SessionSearch { live: Some(true), ..on_phone.clone() }, vec![&bobs, &live]),
        (SessionSearch { live: Some(false), ..on_phone.clone() }, vec![&ended]),
        (by_phone(alices.clone()), vec![&ended, &live]),
        (SessionSearch { live: Some(true), ..by_phone(alices.clone()) }, vec![&live]),
        (by_phone(search(&acme())), vec![&elsewhere]),
        (SessionSearch { filter: of("web"), ..on_phone.clone() }, vec![&bobs, &ended, &live]),
        (SessionSearch { filter: of("mobile"), ..on_phone.clone() }, vec![]),
        (SessionSearch { device_id: Some(text("Phone")), ..on_phone }, vec![]),
        (all.clone(), vec![&bobs, &expired, &ended, &live]),
        (SessionSearch { live: Some(true), ..all.clone() }, vec![&bobs, &live]),
        (SessionSearch { live: Some(false), ..all }, vec![&expired, &ended]),
        (alices.clone(), vec![&expired, &ended, &live]),
        (SessionSearch { live: Some(true), ..alices.clone() }, vec![&live]),
        (SessionSearch { live: Some(false), ..alices }, vec![&expired, &ended]),
        (search(&acme()), vec![&elsewhere]),
        (SessionSearch { subject: Some(text("bob")), ..search(&acme()) }, vec![]),
        (search(&text("nobody")), vec![]),
    ];
    for (search, expected) in cases {
        finds(store, search, after(20), &expected).await;
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
        let search = SessionSearch { live, ..SessionSearch::default() };
        list(store, SessionQuery { now, ..query(search) }).await == [there.id]
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

    let all = SessionSearch::default();
    let alices_only = SessionSearch { subject: Some(text("alice")), ..all.clone() };
    for (search, newest_first) in
        [(alices_only, newest_first(&alices)), (all, newest_first(&everybody))]
    {
        let oldest_first = newest_first.iter().rev().copied().collect();
        for (order, expected) in
            [(Order::NewestFirst, newest_first), (Order::OldestFirst, oldest_first)]
        {
            let search = SessionSearch { order, ..search.clone() };
            for limit in [1, 3, 5, 100] {
                let pages = pages(store, &search, limit).await;
                assert!(pages.iter().all(|page| i64::try_from(page.len()).unwrap() <= limit));
                assert_eq!(pages.concat(), expected, "in pages of {limit}");
            }
        }
    }
}

/// Returns the identifiers of the sessions that a search finds, read by read.
async fn pages(store: &dyn Store, search: &SessionSearch, limit: i64) -> Vec<Vec<SessionId>> {
    let (mut pages, mut after) = (vec![], None);
    loop {
        let query = SessionQuery { after, limit, ..query(search.clone()) };
        let Part { found, last } = store.sessions(query).await.unwrap();
        pages.push(ids(&found));
        if last.is_none() {
            return pages;
        }
        after = last;
    }
}

/// Asserts that a search at an instant finds exactly these sessions, in this order, and that their
/// count is right.
async fn finds(store: &dyn Store, search: SessionSearch, now: Timestamp, expected: &[&Session]) {
    let query = SessionQuery { now, ..query(search) };
    let count = store.count_sessions(query.clone()).await.unwrap();
    let expected_count = i64::try_from(expected.len()).unwrap();
    assert_eq!(count, Part { found: expected_count, last: None }, "{query:?}");
    assert_eq!(list(store, query.clone()).await, ids(expected.iter().copied()), "{query:?}");
}

pub async fn a_search_finds_the_sessions_that_pass_every_filter(store: &dyn Store) {
    let web = create(store, session(1)).await;
    let device = |address: &str| Device { ip_address: text(address), ..Device::default() };
    let mobile = Session {
        client_id: text("mobile"),
        created_by: Some(Who::Named(text("login"))),
        device: device("192.0.2.7"),
        ..session(2)
    };
    let mobile = create(store, mobile).await;
    let strict = Session { device: device("2001:db8::1"), ..session(3) };
    let strict = Session {
        policy: SessionPolicy { name: text("strict"), ..strict.policy.clone() },
        created_by: Some(Who::Anybody),
        ..strict
    };
    let strict = create(store, strict).await;
    let of = |filter: SessionFilter| SessionSearch { filter, ..SessionSearch::default() };
    let any = SessionFilter::default;
    let network = |text: &str| SessionFilter { network: Some(text.parse().unwrap()), ..any() };
    let by = |who| SessionFilter { created_by: Some(who), ..any() };
    let cases = [
        (SessionFilter { client_id: Some(text("web")), ..any() }, vec![&strict, &web]),
        (SessionFilter { client_id: Some(text("mobile")), ..any() }, vec![&mobile]),
        (SessionFilter { policy: Some(text("strict")), ..any() }, vec![&strict]),
        (by(Who::Named(text("login"))), vec![&mobile]),
        (by(Who::Anybody), vec![&strict]),
        (by(Who::Service), vec![]),
        (network("192.0.2.0/24"), vec![&mobile]),
        (network("192.0.2.7/32"), vec![&mobile]),
        (network("192.0.2.8/32"), vec![]),
        (network("0.0.0.0/0"), vec![&mobile]),
        (network("::/0"), vec![&strict]),
        (network("2001:db8::/32"), vec![&strict]),
        (SessionFilter { client_id: Some(text("web")), ..network("2001:db8::/32") }, vec![&strict]),
        (SessionFilter { client_id: Some(text("web")), ..network("192.0.2.0/24") }, vec![]),
    ];
    for (filter, expected) in cases {
        finds(store, of(filter), START, &expected).await;
    }
}

/// Instants of creation are compared by the milliseconds of the identifiers.
pub async fn a_search_finds_the_sessions_that_were_created_in_a_period(store: &dyn Store) {
    let first = create(store, session(1)).await;
    let second = create(store, session(2)).await;
    let tick = Duration::from_millis(1);
    let cases = [
        (Some(after(1)), None, vec![&second, &first]),
        (Some(after(1).plus(tick)), None, vec![&second]),
        (Some(after(2)), None, vec![&second]),
        (Some(after(2).plus(tick)), None, vec![]),
        (None, Some(after(1)), vec![]),
        (None, Some(after(1).plus(tick)), vec![&first]),
        (None, Some(after(2)), vec![&first]),
        (None, Some(after(2).plus(tick)), vec![&second, &first]),
        (Some(after(1)), Some(after(2)), vec![&first]),
    ];
    for (from, until, expected) in cases {
        let created = Period { from, until };
        let newest_first = SessionSearch { created, ..SessionSearch::default() };
        let oldest_first = SessionSearch { order: Order::OldestFirst, ..newest_first.clone() };
        finds(store, newest_first, START, &expected).await;
        let reversed: Vec<_> = expected.into_iter().rev().collect();
        finds(store, oldest_first, START, &reversed).await;
    }
}

pub async fn a_search_finds_the_sessions_that_ended_in_a_period_or_for_a_reason(store: &dyn Store) {
    let live = create(store, session(1)).await;
    let revoked = create(store, session(2)).await;
    let idle = create(store, Session { idle_expires_at: after(10), ..session(3) }).await;
    let absolute = Session { idle_expires_at: after(12), expires_at: after(12), ..session(4) };
    let absolute = create(store, absolute).await;
    revoke_session(store, &revoked, after(6)).await;
    record_expiries(store, after(20)).await;
    let reason = ended(after(6)).reason;
    let of = |filter: SessionFilter| SessionSearch {
        live: Some(false),
        filter,
        ..SessionSearch::default()
    };
    let any = SessionFilter::default;
    let period = |from, until| SessionFilter { ended: Period { from, until }, ..any() };
    let tick = Duration::from_micros(1);
    let cases = [
        (SessionFilter { end_reason: Some(reason), ..any() }, vec![&revoked]),
        (SessionFilter { end_reason: Some(EndReason::ExpiredIdle), ..any() }, vec![&idle]),
        (SessionFilter { end_reason: Some(EndReason::ExpiredAbsolute), ..any() }, vec![&absolute]),
        (SessionFilter { end_reason: Some(EndReason::QuotaEvicted), ..any() }, vec![]),
        (period(Some(after(6)), None), vec![&absolute, &idle, &revoked]),
        (period(Some(after(6).plus(tick)), None), vec![&absolute, &idle]),
        (period(None, Some(after(10))), vec![&revoked]),
        (period(None, Some(after(10).plus(tick))), vec![&idle, &revoked]),
        (period(Some(after(10)), Some(after(12))), vec![&idle]),
    ];
    for (filter, expected) in cases {
        finds(store, of(filter), after(20), &expected).await;
    }
    assert_eq!(list(store, query(SessionSearch::default())).await.last(), Some(&live.id));
}

/// Creates sessions of another client and subject, so that a read looks at as many as it may before
/// it finds the first and the last session of the searched client. It also does so before it finds
/// those of the subject that were on the searched device.
pub async fn a_read_looks_at_a_limited_number_of_sessions_and_the_next_one_goes_on(
    store: &dyn Store,
) {
    let many = u32::try_from(MOST_READ).unwrap();
    let rare = |n| {
        let session = Session { client_id: text("rare"), subject: text("rare"), ..session(n) };
        on_device("rare", session)
    };
    let oldest = create(store, rare(0)).await;
    let edges = [1, many + 1];
    let of_all = |n: u32| {
        let device_id = if edges.contains(&n) { "edge" } else { "middle" };
        on_device(device_id, Session { subject: text("busy"), ..session(n) })
    };
    let others: Vec<u32> = (1..=many + 1).collect();
    for others in others.chunks(500) {
        let creations = others.iter().map(|n| store.create_session(unlimited(of_all(*n))));
        for created in join_all(creations).await {
            assert_eq!(created.unwrap(), Created::New { eviction: None });
        }
    }
    let newest = create(store, rare(many + 2)).await;
    let filter = SessionFilter { client_id: Some(text("rare")), ..SessionFilter::default() };
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let in_order = |mut ids: [SessionId; 2]| {
            if order == Order::NewestFirst {
                ids.reverse();
            }
            ids
        };
        let all = SessionSearch { order, ..SessionSearch::default() };
        let rare = in_order([oldest.id, newest.id]);
        let of_client = SessionSearch { filter: filter.clone(), ..all.clone() };
        let on_edges = SessionSearch {
            subject: Some(text("busy")),
            device_id: Some(text("edge")),
            ..all.clone()
        };
        let at_edges = in_order(edges.map(|n| session(n).id));
        for (search, [first, second]) in [(of_client.clone(), rare), (on_edges, at_edges)] {
            assert_eq!(pages(store, &search, ALL).await, [vec![first], vec![second]], "{search:?}");
            let count = store.count_sessions(query(search.clone())).await.unwrap();
            assert_eq!(count.found, 1, "{search:?}");
            let rest = SessionQuery { after: count.last, ..query(search) };
            let rest = store.count_sessions(rest).await.unwrap();
            assert_eq!(rest, Part { found: 1, last: None });
        }
        let of_subject = SessionSearch { subject: Some(text("rare")), ..of_client.clone() };
        let of_device = SessionSearch { device_id: Some(text("rare")), ..of_client };
        for search in [of_subject, of_device] {
            assert_eq!(pages(store, &search, ALL).await, [rare], "{search:?}");
        }
    }
}

pub async fn subjects_that_look_alike_are_different_subjects(store: &dyn Store) {
    let subjects = ["zoë", "zoe\u{308}", "Zoë", "zoë ", " zoë", "zo%", "zo_"];
    let there =
        (1..).zip(subjects).map(|(n, subject)| Session { subject: text(subject), ..session(n) });
    for session in create_all(store, there).await {
        let search =
            SessionSearch { subject: Some(session.subject.clone()), ..SessionSearch::default() };
        assert_eq!(list(store, query(search)).await, [session.id]);
    }
}
