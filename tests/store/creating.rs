//! Tests of creating sessions: they are read back as they were written, and one request creates one
//! session.

use std::time::Duration;

use countersign::{
    domain::{
        claims::{CustomClaims, MAX_CUSTOM_BYTES},
        ids::{SessionId, TokenId},
        key::RefreshKeyId,
        metadata::{Metadata, SessionMetadata},
        policy::{OnQuota, OnRefresh, RefreshMode, Replay, SessionPolicy},
        search::SessionSearch,
        session::{Authentication, Device, Lineage, LineageSecret, RequestFingerprint, Session},
        time::Timestamp,
        who::Who,
    },
    store::{Created, Creation, Store},
};
use futures_util::future::join_all;
use serde_json::json;

use crate::support::{
    after, assert_unchanged, claims, create, create_all, entries, factor_times, list, query, read,
    revoke_session, rich_session, rotate, session, text, texts, unlimited,
};

/// The first and the last instant that a protobuf `Timestamp` can hold.
const YEAR_1: Timestamp = Timestamp::from_seconds(-62_135_596_800);
const YEAR_9999: Timestamp = Timestamp::from_micros(253_402_300_799_999_999);
/// An instant before the last day, which is the latest that the times of methods may have. No time
/// of a method is in the future.
const LATEST_TIME: Timestamp = Timestamp::from_micros(253_402_127_999_999_999);

pub async fn every_field_of_a_session_is_read_back(store: &dyn Store) {
    let written = create(store, rich_session(1)).await;
    assert_unchanged(store, &[written]).await;
}

pub async fn the_smallest_values_of_all_fields_are_read_back(store: &dyn Store) {
    let epoch = Timestamp::from_micros(0);
    let written = Session {
        id: SessionId::from_bytes([0; 16]),
        tenant: text(""),
        subject: text(" "),
        client_id: text(""),
        audience: vec![],
        scopes: vec![],
        claims: CustomClaims::default(),
        metadata: Metadata::default(),
        authentication: Authentication {
            id: None,
            acr: text(""),
            amr: texts(&["pwd"]),
            amr_verified_at: factor_times(&[("pwd", YEAR_1)]),
            at: YEAR_1,
        },
        device: Device::default(),
        policy: SessionPolicy {
            name: text("p"),
            access_token_ttl: Duration::from_micros(1),
            idle_timeout: Duration::ZERO,
            refresh: RefreshMode::Rotate,
            refresh_grace: Duration::ZERO,
            replay: Replay::Grace,
            replay_limit: Duration::ZERO,
            on_refresh: OnRefresh::KeepAccessToken,
            reauthentication_lifetime: None,
        },
        created_at: Timestamp::from_micros(-1),
        created_by: None,
        extended_at: None,
        refreshed_at: epoch,
        idle_expires_at: epoch,
        expires_at: epoch,
        earlier_tokens_expire_at: None,
        lineage: Lineage {
            generation: 0,
            secret: LineageSecret([0; 16]),
            key: RefreshKeyId([0; 8]),
        },
        access_token_id: TokenId::from_bytes([0; 16]),
        request_id: None,
        request_fingerprint: None,
        reauthentication: None,
        ended: None,
        expiry_recorded: false,
        revision: 0,
    };
    create(store, written.clone()).await;
    assert_unchanged(store, &[written]).await;
}

pub async fn the_largest_values_of_all_fields_are_read_back(store: &dyn Store) {
    let hundred_years = Duration::from_secs(36_500 * 86_400);
    // Each of these characters takes four bytes in UTF-8, which some databases do not support. The
    // subject also has a right-to-left override.
    let wide = |bytes: usize| "🦀".repeat(bytes / 4);
    let overhead = json!({ "k": "" }).to_string().len();
    let written = Session {
        id: SessionId::from_bytes([0xff; 16]),
        tenant: text(wide(128)),
        subject: text(wide(252) + "\u{202e}x"),
        client_id: text(wide(256)),
        audience: (0..64).map(|_| text(wide(256))).collect(),
        scopes: (0..64).map(|_| text("\u{7e}".repeat(128))).collect(),
        claims: claims(json!({ "k": "x".repeat(MAX_CUSTOM_BYTES - overhead) })),
        metadata: Metadata::default(),
        authentication: Authentication {
            id: None,
            acr: text(wide(256)),
            amr: vec![text(wide(64)); 64],
            amr_verified_at: factor_times(&[(&wide(64), LATEST_TIME)]),
            at: YEAR_9999,
        },
        device: Device {
            user_agent: text(wide(512)),
            ip_address: text("ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255"),
            label: text(wide(128)),
            id: text(wide(128)),
        },
        policy: SessionPolicy {
            name: text(wide(64)),
            access_token_ttl: hundred_years,
            idle_timeout: hundred_years,
            refresh: RefreshMode::Reuse,
            refresh_grace: hundred_years,
            replay: Replay::UntilUsed,
            replay_limit: hundred_years,
            on_refresh: OnRefresh::RevokeAccessToken,
            reauthentication_lifetime: None,
        },
        created_at: YEAR_9999,
        created_by: Some(Who::Named(text("c".repeat(64)))),
        extended_at: None,
        refreshed_at: YEAR_9999,
        idle_expires_at: YEAR_9999,
        expires_at: YEAR_9999,
        earlier_tokens_expire_at: None,
        lineage: Lineage {
            generation: u32::MAX,
            secret: LineageSecret([0xff; 16]),
            key: RefreshKeyId([0xff; 8]),
        },
        access_token_id: TokenId::from_bytes([0xff; 16]),
        request_id: Some(text(wide(128))),
        request_fingerprint: Some(RequestFingerprint([0xff; 32])),
        reauthentication: None,
        ended: None,
        expiry_recorded: false,
        revision: u32::MAX,
    };
    create(store, written.clone()).await;
    assert_unchanged(store, &[written]).await;
}

/// The protocol transports numbers as doubles. If an engine rounded them, the access tokens of one
/// session would have different claims.
pub async fn numbers_in_claims_are_read_back_to_the_last_digit(store: &dyn Store) {
    let numbers =
        (-30..30).map(|exponent| 1.234_567_890_123_456_7_f64.sqrt() * 10_f64.powi(exponent));
    let numbers: Vec<f64> =
        [0.1 + 0.2, f64::MAX, f64::MIN_POSITIVE, f64::EPSILON].into_iter().chain(numbers).collect();
    let written =
        create(store, Session { claims: claims(json!({ "numbers": numbers })), ..session(1) })
            .await;
    assert_unchanged(store, &[written]).await;
}

pub async fn claims_may_hold_any_text_that_json_can_hold(store: &dyn Store) {
    let awkward = json!({ "": 2, "lines": "a\r\n\tb", "bidi": "\u{202e}", "last": "\u{10ffff}" });
    let written = create(store, Session { claims: claims(awkward), ..session(1) }).await;
    assert_unchanged(store, &[written]).await;
}

pub async fn an_unknown_session_is_read_as_none(store: &dyn Store) {
    create(store, session(1)).await;
    assert_eq!(store.session(session(2).id).await.unwrap(), None);
}

pub async fn metadata_are_read_with_what_shows_that_a_token_was_revoked(store: &dyn Store) {
    let [plain, ended] = [create(store, session(1)).await, create(store, session(2)).await];
    let strict = create(store, rich_session(3)).await;
    revoke_session(store, &ended, after(5)).await;
    let ids = [&strict, &session(4), &ended, &plain].map(|session| session.id);
    let mut read = store.metadata_of(ids.to_vec()).await.unwrap();
    read.sort_by_key(|row| row.session_id);
    let of = |session: &Session| SessionMetadata {
        session_id: session.id,
        metadata: session.metadata.clone(),
        is_ended: false,
        authentication_id: None,
        only_token: None,
    };
    let expected = [
        of(&plain),
        SessionMetadata { is_ended: true, ..of(&ended) },
        SessionMetadata { only_token: Some(strict.access_token_id), ..of(&strict) },
    ];
    assert_eq!(read, expected);
    assert_eq!(store.metadata_of(vec![]).await.unwrap(), []);
}

pub async fn a_repeated_request_returns_the_first_session_and_adds_no_row(store: &dyn Store) {
    let request = |n| Session { request_id: Some(text("r")), ..session(n) };
    let first = create(store, request(1)).await;
    let first = rotate(store, &first, after(2)).await;

    let again = store.create_session(unlimited(request(2))).await.unwrap();
    assert_eq!(again, Created::Repeated(Box::new(first.clone())), "the first session as it now is");
    assert_eq!(store.session(request(2).id).await.unwrap(), None);
    assert_eq!(list(store, query(SessionSearch::default())).await, [first.id]);
    assert_unchanged(store, &[first]).await;
}

/// Returns a session for a request whose id is the same each time.
fn requested(n: u32, fingerprint: Option<u8>) -> Session {
    let request_fingerprint = fingerprint.map(|byte| RequestFingerprint([byte; 32]));
    Session { request_id: Some(text("r")), request_fingerprint, ..session(n) }
}

pub async fn a_different_request_with_the_same_id_is_refused_and_changes_nothing(
    store: &dyn Store,
) {
    let first = create(store, requested(1, Some(7))).await;
    let mut oldest = Creation {
        session: requested(2, Some(8)),
        max_sessions: 1,
        on_quota: OnQuota::EvictOldest,
        legacy_token: None,
    };
    for _ in 0..2 {
        let outcome = store.create_session(oldest.clone()).await.unwrap();
        assert_eq!(outcome, Created::RequestIdReused);
        oldest.on_quota = OnQuota::Refuse;
    }
    assert_eq!(entries(store).await, [], "no session was evicted for it");
    assert_eq!(list(store, query(SessionSearch::default())).await, [first.id]);
    assert_unchanged(store, std::slice::from_ref(&first)).await;

    revoke_session(store, &first, after(3)).await;
    let outcome = store.create_session(unlimited(requested(4, Some(8)))).await.unwrap();
    assert_eq!(outcome, Created::RequestIdReused, "also after the session has ended");
    let again = store.create_session(unlimited(requested(5, Some(7)))).await.unwrap();
    assert_eq!(again, Created::Repeated(Box::new(read(store, &first).await)));

    // The id can be used again once the row of the session is deleted.
    assert_eq!(store.delete_old_sessions(after(100_000), 10).await.unwrap(), 1);
    create(store, requested(6, Some(8))).await;
}

/// Versions without fingerprints wrote such rows, and replicas of those versions still write them
/// during a rolling upgrade.
pub async fn a_row_without_a_fingerprint_is_matched_by_its_subject_and_client(store: &dyn Store) {
    let first = create(store, requested(1, None)).await;
    let again = store.create_session(unlimited(requested(2, Some(7)))).await.unwrap();
    assert_eq!(again, Created::Repeated(Box::new(first.clone())));
    for other in [
        Session { subject: text("bob"), ..requested(3, Some(7)) },
        Session { client_id: text("app"), ..requested(4, Some(7)) },
    ] {
        assert_eq!(store.create_session(unlimited(other)).await.unwrap(), Created::RequestIdReused);
    }
    assert_unchanged(store, &[first]).await;
}

pub async fn the_same_request_id_in_another_tenant_creates_another_session(store: &dyn Store) {
    let first = Session { request_id: Some(text("r")), ..session(1) };
    let other = Session { tenant: text("acme"), request_id: Some(text("r")), ..session(2) };
    let none = [session(3), session(4)];
    let written = create_all(store, [first, other].into_iter().chain(none)).await;
    assert_unchanged(store, &written).await;
}

pub async fn a_repeated_request_returns_its_session_even_if_that_has_ended(store: &dyn Store) {
    let first = create(store, Session { request_id: Some(text("r")), ..session(1) }).await;
    revoke_session(store, &first, after(2)).await;

    let again = Session { request_id: Some(text("r")), ..session(3) };
    let Created::Repeated(repeated) = store.create_session(unlimited(again)).await.unwrap() else {
        panic!("a client that tries again after its session was revoked must not get another one");
    };
    assert!(repeated.ended.is_some());
    assert_eq!(repeated.id, first.id);
}

pub async fn a_duplicate_session_id_is_an_error_and_does_not_affect_concurrent_creations(
    store: &dyn Store,
) {
    let first = create(store, session(0)).await;
    let impostor = Session { subject: text("mallory"), ..session(0) };
    let others: Vec<_> = (1..=40).map(session).collect();
    let (before, behind) = others.split_at(20);
    let in_flight = before.iter().chain([&impostor]).chain(behind).cloned().map(unlimited);
    let outcomes = join_all(in_flight.map(|creation| store.create_session(creation))).await;

    for (n, outcome) in outcomes.iter().enumerate() {
        match n {
            20 => assert!(outcome.is_err(), "{outcome:?}"),
            _ => assert_eq!(outcome.as_ref().unwrap(), &Created::New { eviction: None }),
        }
    }
    assert_unchanged(store, &others).await;
    assert_unchanged(store, &[first]).await;
    assert_eq!(list(store, query(SessionSearch::default())).await.len(), 41);
}
