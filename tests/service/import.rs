//! Tests of ImportSessions, and of the refresh tokens of the other system.

use std::time::Duration;

use countersign::{
    domain::legacy_token::LegacyTokenHash,
    proto::{
        CreateSessionRequest, Device, EncodedStruct, ImportResult, ImportSessionsRequest,
        ImportStatus, ImportedSession, InactiveReason, ReauthenticateRequest, RefreshRequest,
        SubjectTarget, reauthenticate_request::Session::RefreshToken, revoke_request::Target,
    },
    store::StoreError,
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, START, Server, TICK, at, of_token, request, revocation, seconds},
};
use futures_util::future::join_all;
use prost_types::{Struct, Timestamp};
use tonic::{Code, Status};

use super::callers::caller;

/// Settings under which the refresh tokens of another system are accepted.
pub const ACCEPTING: &str = "[tokens]
    legacy_refresh_tokens = true
    [policies.default]
    idle_timeout = '10m'
    absolute_lifetime = '1h'
    access_token_ttl = '1m'
    refresh_grace = '10s'
    [policies.two]
    max_sessions_per_subject = 2
    [policies.short]
    ";

fn ago(span: Duration) -> Option<Timestamp> {
    Some(at(START.minus(span)))
}

/// Returns a session of tenant `acme` that began 100 seconds before the start. Its refresh token in
/// the other system is `old-` and its identifier there.
pub fn old(legacy_id: &str, subject: &str) -> ImportedSession {
    ImportedSession {
        legacy_id: legacy_id.to_owned(),
        tenant: "acme".to_owned(),
        subject: subject.to_owned(),
        created_at: ago(seconds(100)),
        legacy_refresh_token_hash: hash(&format!("old-{legacy_id}")),
        ..Default::default()
    }
}

fn hash(token: &str) -> Vec<u8> {
    LegacyTokenHash::of(token).bytes().to_vec()
}

async fn send(
    server: &Server,
    request: ImportSessionsRequest,
) -> Result<Vec<ImportResult>, Status> {
    Ok(server.client().import_sessions(request).await?.into_inner().results)
}

async fn import(server: &Server, sessions: Vec<ImportedSession>) -> Vec<ImportResult> {
    send(server, ImportSessionsRequest { sessions, validate_only: false }).await.unwrap()
}

/// Imports one session, and returns its identifier here.
pub async fn imported(server: &Server, session: ImportedSession) -> String {
    let result = import(server, vec![session]).await.remove(0);
    assert_eq!(result.status(), ImportStatus::Imported, "{result:?}");
    result.session_id
}

fn statuses(results: &[ImportResult]) -> Vec<ImportStatus> {
    results.iter().map(ImportResult::status).collect()
}

fn to_struct(name: &str, value: &str) -> Option<EncodedStruct> {
    Some(Struct { fields: [(name.to_owned(), value.to_owned().into())].into() }.into())
}

fn invalid() -> Refusal {
    Refusal::of(Code::Unauthenticated, "REFRESH_TOKEN_INVALID")
}

pub async fn an_imported_session_keeps_its_data_and_its_times() {
    let server = Home::new(ACCEPTING).await.start().await;
    let given = ImportedSession {
        client_id: "web".to_owned(),
        audience: vec!["https://orders.test".to_owned()],
        scopes: vec!["read".to_owned()],
        claims: to_struct("plan", "gold"),
        metadata: to_struct("origin", "old"),
        acr: "mfa".to_owned(),
        amr: vec!["pwd".to_owned()],
        amr_verified_at: [("pwd".to_owned(), ago(seconds(60)).unwrap())].into(),
        authenticated_at: ago(seconds(50)),
        device: Some(Device { label: "phone".to_owned(), ..Default::default() }),
        refreshed_at: ago(seconds(40)),
        expires_at: Some(at(START.plus(seconds(2000)))),
        ..old("s1", "alice")
    };
    let id = imported(&server, given.clone()).await;
    let session = server.session(&id).await.unwrap();
    assert_eq!(
        (session.tenant, session.subject, session.client_id),
        (given.tenant, given.subject, given.client_id)
    );
    assert_eq!((session.audience, session.scopes), (given.audience, given.scopes));
    assert_eq!((session.claims, session.metadata), (given.claims, given.metadata));
    assert_eq!((session.acr, session.amr), (given.acr, given.amr));
    assert_eq!(session.amr_verified_at, given.amr_verified_at);
    assert_eq!(session.device.unwrap().label, "phone");
    assert_eq!(session.authenticated_at, given.authenticated_at);
    assert_eq!((session.created_at, session.refreshed_at), (given.created_at, given.refreshed_at));
    assert_eq!(session.idle_expires_at, Some(at(START.plus(seconds(600 - 40)))));
    assert_eq!(session.expires_at, given.expires_at);
    assert_eq!(session.created_by, "anybody");

    let refreshed = server.refresh("old-s1").await.unwrap().now;
    assert_eq!(refreshed.id(), id);
    assert_eq!(server.verdict(&refreshed.access).await, Ok(()));
    let next = server.refresh(&refreshed.refresh).await.unwrap();
    assert_eq!((next.now.id(), next.replayed), (id, false), "it goes on with our tokens");
}

pub async fn a_repeated_import_creates_nothing_twice() {
    let server = Home::new(ACCEPTING).await.start().await;
    let twice = vec![old("s1", "alice"), old("s2", "bob"), old("s1", "alice")];
    let results = import(&server, twice).await;
    use ImportStatus::{AlreadyImported, Imported, Rejected};
    // The sessions of one request are imported at the same time.
    let [first, other, repeated] = statuses(&results)[..] else { panic!("{results:?}") };
    assert_eq!(other, Imported);
    assert!(
        [(Imported, AlreadyImported), (AlreadyImported, Imported)].contains(&(first, repeated)),
        "{results:?}"
    );
    assert_eq!(results[0].session_id, results[2].session_id);

    server.refresh("old-s2").await.unwrap();
    let newer = ImportedSession { scopes: vec!["more".to_owned()], ..old("s2", "bob") };
    let elsewhere = ImportedSession {
        tenant: "globex".to_owned(),
        legacy_refresh_token_hash: vec![],
        ..old("s1", "alice")
    };
    let again = import(&server, vec![old("s1", "alice"), newer, elsewhere]).await;
    assert_eq!(statuses(&again), [AlreadyImported, AlreadyImported, Imported]);
    assert_eq!(again[1].session_id, results[1].session_id);
    assert_eq!(server.session(&again[1].session_id).await.unwrap().scopes, [""; 0]);

    // The identifier of one session cannot become that of another one.
    let other = import(&server, vec![old("s1", "mallory")]).await.remove(0);
    assert_eq!((other.status(), &*other.field), (Rejected, "legacy_id"));
    let create = CreateSessionRequest { request_id: "s1".to_owned(), ..request("alice") };
    let reused = refused(server.create(create).await);
    assert_eq!((reused.code, &*reused.reason), (Code::InvalidArgument, "REQUEST_ID_REUSED"));
    let create = CreateSessionRequest { request_id: "r".to_owned(), ..request("alice") };
    server.create(create).await.unwrap();
    let other = import(&server, vec![old("r", "alice")]).await.remove(0);
    assert_eq!((other.status(), &*other.field), (Rejected, "legacy_id"));
    assert_eq!(server.rows().await.sessions, 4);
}

pub async fn a_session_that_has_ended_is_not_imported_to_the_microsecond() {
    let server = Home::new(ACCEPTING).await.start().await;
    let (idle, absolute) = (seconds(600), seconds(3600));
    for (n, (session, is_live)) in [
        (ImportedSession { created_at: ago(idle), ..old("", "a") }, false),
        (ImportedSession { created_at: ago(idle - TICK), ..old("", "a") }, true),
        (
            ImportedSession { created_at: ago(absolute), refreshed_at: ago(TICK), ..old("", "a") },
            false,
        ),
        (
            ImportedSession {
                created_at: ago(absolute - TICK),
                refreshed_at: ago(TICK),
                ..old("", "a")
            },
            true,
        ),
        (ImportedSession { expires_at: Some(at(START)), ..old("", "a") }, false),
        (ImportedSession { expires_at: Some(at(START.plus(TICK))), ..old("", "a") }, true),
    ]
    .into_iter()
    .enumerate()
    {
        let session = ImportedSession {
            legacy_id: format!("s{n}"),
            legacy_refresh_token_hash: vec![],
            ..session
        };
        let result = import(&server, vec![session]).await.remove(0);
        let expected = if is_live { ImportStatus::Imported } else { ImportStatus::Expired };
        assert_eq!(result.status(), expected, "{n}");
        assert_eq!(result.session_id.is_empty(), !is_live);
    }
    assert_eq!(server.rows().await.sessions, 3);
}

pub async fn an_import_brings_back_no_session_that_a_revocation_covers() {
    let server = Home::new(ACCEPTING).await.start().await;
    let subject = SubjectTarget {
        tenant: "acme".to_owned(),
        subject: "alice".to_owned(),
        ..Default::default()
    };
    server.revoke(revocation(Target::Subject(subject))).await.unwrap();
    server.revoke(revocation(Target::Tenant("globex".to_owned()))).await.unwrap();
    let globex = ImportedSession { tenant: "globex".to_owned(), ..old("s3", "carol") };
    server.clock.advance(seconds(1));
    let later =
        ImportedSession { created_at: Some(at(START.plus(seconds(1)))), ..old("s4", "alice") };
    let results = import(&server, vec![old("s1", "alice"), old("s2", "bob"), globex, later]).await;
    use ImportStatus::{Imported, Revoked};
    assert_eq!(statuses(&results), [Revoked, Imported, Revoked, Imported]);
    assert_eq!(refused(server.refresh("old-s1").await), invalid());
}

pub async fn each_invalid_field_of_an_imported_session_is_named_and_spoils_no_other_session() {
    let server = Home::new(ACCEPTING).await.start().await;
    let long = || "x".repeat(300);
    let wrong = Some(Timestamp { seconds: 0, nanos: -1 });
    let future = Some(at(START.plus(seconds(5) + TICK)));
    let bad = |change: &dyn Fn(&mut ImportedSession)| {
        let mut session = old("bad", "bad");
        change(&mut session);
        session
    };
    let cases = [
        ("legacy_id", bad(&|session| session.legacy_id.clear())),
        ("legacy_id", bad(&|session| session.legacy_id = long())),
        ("tenant", bad(&|session| session.tenant = long())),
        ("subject", bad(&|session| session.subject.clear())),
        ("client_id", bad(&|session| session.client_id = long())),
        ("audience[0]", bad(&|session| session.audience = vec![long()])),
        ("audience", bad(&|session| session.audience = vec!["a".to_owned(); 17])),
        ("scopes[0]", bad(&|session| session.scopes = vec!["a b".to_owned()])),
        ("claims", bad(&|session| session.claims = to_struct("sub", "x"))),
        ("claims", bad(&|session| session.claims = to_struct("x", &"x".repeat(4096)))),
        ("metadata", bad(&|session| session.metadata = to_struct("x", &"x".repeat(4096)))),
        ("acr", bad(&|session| session.acr = long())),
        ("amr[0]", bad(&|session| session.amr = vec![long()])),
        ("authenticated_at", bad(&|session| session.authenticated_at = wrong)),
        ("authenticated_at", bad(&|session| session.authenticated_at = future)),
        (
            "amr_verified_at",
            bad(&|session| {
                session.amr_verified_at = [("pwd".to_owned(), ago(seconds(100)).unwrap())].into();
            }),
        ),
        (
            "device.device_id",
            bad(&|session| {
                session.device = Some(Device { device_id: long(), ..Default::default() });
            }),
        ),
        ("policy", bad(&|session| session.policy = "none".to_owned())),
        ("created_at", bad(&|session| session.created_at = None)),
        ("created_at", bad(&|session| session.created_at = wrong)),
        ("created_at", bad(&|session| session.created_at = future)),
        ("refreshed_at", bad(&|session| session.refreshed_at = future)),
        ("refreshed_at", bad(&|session| session.refreshed_at = ago(seconds(101)))),
        ("expires_at", bad(&|session| session.expires_at = wrong)),
        (
            "legacy_refresh_token_hash",
            bad(&|session| session.legacy_refresh_token_hash = vec![1; 31]),
        ),
        // The tenant has audiences of its own.
        (
            "audience[0]",
            bad(&|session| {
                session.tenant = "limited".to_owned();
                session.audience = vec!["https://other.test".to_owned()];
            }),
        ),
        // Each field is within its limits, but together they make a token that is too long.
        (
            "claims",
            bad(&|session| {
                session.claims = to_struct("x", &"x".repeat(4000));
                session.audience = (0..16).map(|n| format!("{n:0>250}")).collect();
            }),
        ),
    ];
    let mut sessions = vec![];
    for (n, (_, session)) in cases.iter().enumerate() {
        sessions.extend([session.clone(), old(&format!("good {n}"), "good")]);
    }
    let results = import(&server, sessions).await;
    for (n, (field, _)) in cases.iter().enumerate() {
        let (result, next) = (&results[2 * n], &results[2 * n + 1]);
        assert_eq!((result.status(), &*result.field), (ImportStatus::Rejected, *field), "{n}");
        assert!(!result.problem.is_empty());
        assert_eq!(next.status(), ImportStatus::Imported);
    }
    for count in [0, 501] {
        let request = ImportSessionsRequest {
            sessions: vec![old("s", "alice"); count],
            ..Default::default()
        };
        assert_eq!(refused(send(&server, request).await), Refusal::field("sessions"));
    }
}

/// A full request has more bytes than `limits.max_request_bytes` allows for other calls.
pub async fn an_import_has_up_to_500_sessions_and_the_larger_size_limit() {
    let server = Home::new(ACCEPTING).await.start().await;
    let session = |n| ImportedSession {
        metadata: to_struct("text", &"x".repeat(500)),
        ..old(&format!("s{n}"), &format!("subject {n}"))
    };
    let results = import(&server, (0..500).map(session).collect()).await;
    assert_eq!(statuses(&results), [ImportStatus::Imported; 500]);
    assert_eq!(server.rows().await.sessions, 500);
}

pub async fn an_import_that_only_validates_writes_nothing() {
    let server = Home::new(ACCEPTING).await.start().await;
    let ended = ImportedSession { created_at: ago(seconds(600)), ..old("s2", "bob") };
    let bad = ImportedSession { subject: String::new(), ..old("s3", "") };
    let sessions = vec![old("s1", "alice"), ended, bad];
    let request = ImportSessionsRequest { sessions, validate_only: true };
    use ImportStatus::{Expired, Rejected, Valid};
    assert_eq!(statuses(&send(&server, request).await.unwrap()), [Valid, Expired, Rejected]);
    assert_eq!(server.rows().await.sessions, 0);
    assert_eq!(server.home.database.count("legacy_refresh_tokens").await, 0);
    assert_eq!(refused(server.refresh("old-s1").await), invalid());
}

/// Nobody is signed out by an import, so quotas are enforced only at the next sign-in.
pub async fn an_import_exceeds_quotas_and_the_next_sign_in_enforces_them() {
    let server = Home::new(ACCEPTING).await.start().await;
    let under_two = |n: u64| ImportedSession {
        policy: "two".to_owned(),
        created_at: ago(seconds(100 - n)),
        ..old(&format!("s{n}"), "alice")
    };
    let results = import(&server, (0..4).map(under_two).collect()).await;
    assert_eq!(statuses(&results), [ImportStatus::Imported; 4]);
    let new = CreateSessionRequest { policy: "two".to_owned(), ..request("alice") };
    server.create(new).await.unwrap();
    for (n, is_live) in [(0, false), (1, false), (2, false), (3, true)] {
        assert_eq!(server.refresh(&format!("old-s{n}")).await.is_ok(), is_live, "{n}");
    }
}

pub async fn a_refresh_token_of_the_other_system_belongs_to_one_session_only() {
    let server = Home::new(ACCEPTING).await.start().await;
    let first = imported(&server, old("s1", "alice")).await;
    let same = |legacy_id| ImportedSession {
        legacy_refresh_token_hash: hash("old-s1"),
        ..old(legacy_id, "mallory")
    };
    let fresh = |legacy_id| ImportedSession {
        legacy_refresh_token_hash: hash("old-both"),
        ..old(legacy_id, "mallory")
    };
    let results = import(&server, vec![same("s2"), fresh("s3"), fresh("s4")]).await;
    use ImportStatus::{Imported, Rejected};
    assert_eq!(results[0].status(), Rejected);
    assert_eq!(results[0].field, "legacy_refresh_token_hash");
    let mut both = statuses(&results[1..]);
    both.sort_unstable();
    assert_eq!(both, [Imported, Rejected], "one of the two");
    assert_eq!(server.rows().await.sessions, 2, "a rejected session is not created");
    assert_eq!(server.refresh("old-s1").await.unwrap().now.id(), first);
}

pub async fn a_refresh_token_of_the_other_system_is_replayed_within_the_grace_and_reused_after_it()
{
    let server = Home::new(ACCEPTING).await.start().await;
    imported(&server, old("s1", "alice")).await;
    server.clock.advance(seconds(30));
    let first = server.refresh("old-s1").await.unwrap();
    assert!(!first.replayed);
    server.clock.advance(seconds(10));
    let replay = server.refresh("old-s1").await.unwrap();
    assert!(replay.replayed);
    assert_eq!(replay.now.refresh, first.now.refresh);

    server.clock.advance(TICK);
    let reused = Refusal::of(Code::Unauthenticated, "REFRESH_TOKEN_REUSED");
    assert_eq!(refused(server.refresh("old-s1").await), reused);
    assert_eq!(server.verdict(&first.now.access).await, Err(InactiveReason::Revoked));
    let ended = Refusal::of(Code::Unauthenticated, "SESSION_REVOKED");
    assert_eq!(refused(server.refresh(&first.now.refresh).await), ended);
}

pub async fn an_imported_session_that_is_not_refreshed_in_time_ends() {
    let server = Home::new(ACCEPTING).await.start().await;
    imported(&server, old("s1", "alice")).await;
    imported(&server, old("s2", "bob")).await;
    server.clock.advance(seconds(500) - TICK);
    server.refresh("old-s1").await.unwrap();
    server.clock.advance(TICK);
    let expired = Refusal::of(Code::Unauthenticated, "SESSION_EXPIRED_IDLE");
    assert_eq!(refused(server.refresh("old-s2").await), expired);
}

pub async fn a_refresh_token_of_the_other_system_can_reauthenticate_and_is_invalid_after_it() {
    let server = Home::new(ACCEPTING).await.start().await;
    let id = imported(&server, old("s1", "alice")).await;
    let again = ReauthenticateRequest {
        session: Some(RefreshToken("old-s1".to_owned())),
        acr: "mfa".to_owned(),
        ..Default::default()
    };
    let answer = server.client().reauthenticate(again.clone()).await.unwrap().into_inner();
    assert_eq!(answer.session.unwrap().session_id, id);
    assert_eq!(refused(server.refresh("old-s1").await), invalid());
    assert_eq!(refused(server.client().reauthenticate(again).await), invalid());
    server.refresh(&answer.tokens.unwrap().refresh_token).await.unwrap();
}

pub async fn a_refresh_token_of_the_other_system_revokes_its_session_and_no_other() {
    let server = Home::new(ACCEPTING).await.start().await;
    // Many systems have JWTs as refresh tokens.
    let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";
    let session = ImportedSession { legacy_refresh_token_hash: hash(jwt), ..old("s1", "alice") };
    imported(&server, session).await;
    imported(&server, old("s2", "bob")).await;
    assert_eq!(refused(server.revoke(of_token("old-unknown")).await), Refusal::field("token"));
    assert_eq!(server.revoke(of_token(jwt)).await.unwrap(), 1);
    assert_eq!(server.revoke(of_token(jwt)).await.unwrap(), 0);
    let ended = Refusal::of(Code::Unauthenticated, "SESSION_REVOKED");
    assert_eq!(refused(server.refresh(jwt).await), ended);
    server.refresh("old-s2").await.unwrap();
}

/// Without the setting, a token that this service has not issued costs no access to the database.
pub async fn refresh_tokens_of_the_other_system_are_accepted_only_if_the_settings_say_so() {
    let server = Home::new(ACCEPTING).await.start().await;
    imported(&server, old("s1", "alice")).await;
    let home = server.stop().await;
    let server = home.with("").start().await;
    imported(&server, old("s2", "bob")).await;
    server.store.fail_with(Some(StoreError::Unavailable("gone".to_owned())));
    for token in ["old-s1", "old-s2", "old-unknown"] {
        assert_eq!(refused(server.refresh(token).await), invalid());
        assert_eq!(refused(server.revoke(of_token(token)).await), Refusal::field("token"));
    }
    server.store.fail_with(None);
    let server = server.stop().await.with(ACCEPTING).start().await;
    server.refresh("old-s1").await.unwrap();
    server.refresh("old-s2").await.unwrap();
    let long = "x".repeat(8193);
    server.store.fail_with(Some(StoreError::Unavailable("gone".to_owned())));
    assert_eq!(refused(server.refresh(&long).await), invalid(), "no such token is looked up");
}

pub async fn many_refreshes_at_once_by_a_token_of_the_other_system_leave_one_lineage() {
    let server = Home::new(ACCEPTING).await.start().await;
    imported(&server, old("s1", "alice")).await;
    let refreshes = join_all((0..32).map(|_| server.refresh("old-s1"))).await;
    let refreshed: Vec<_> = refreshes.into_iter().map(Result::unwrap).collect();
    assert_eq!(refreshed.iter().filter(|one| !one.replayed).count(), 1);
    let first = &refreshed[0].now.refresh;
    assert!(refreshed.iter().all(|one| one.now.refresh == *first));
}

pub async fn a_limited_admin_imports_only_what_is_within_its_limits() {
    let (limited, stanza) = caller(
        "limited",
        "roles = ['admin']\ntenants = ['acme']\naudiences = ['https://orders.test']",
    );
    let (issuer, issuing) = caller("issuer", "roles = ['issuer']\ntenants = ['globex']");
    let server = Home::new(&format!("{stanza}{issuing}{ACCEPTING}")).await.start().await;
    let orders = |tenant: &str, audience: &str| ImportedSession {
        tenant: tenant.to_owned(),
        audience: vec![audience.to_owned()],
        ..old(tenant, "alice")
    };
    let sessions = vec![
        orders("acme", "https://orders.test"),
        orders("globex", "https://orders.test"),
        orders("acme", "https://stock.test"),
    ];
    let request = ImportSessionsRequest { sessions, validate_only: false };
    let results =
        server.client_with(&limited).import_sessions(request.clone()).await.unwrap().into_inner();
    let results: Vec<_> =
        results.results.iter().map(|result| (result.status(), &*result.field)).collect();
    use ImportStatus::{Imported, Rejected};
    assert_eq!(results, [(Imported, ""), (Rejected, "tenant"), (Rejected, "audience")]);

    let mut issuer = server.client_with(&issuer);
    let denied = refused(issuer.import_sessions(request).await);
    assert_eq!(denied, Refusal::of(Code::PermissionDenied, "CALLER_NOT_ALLOWED"));
    // The session is one of another tenant than the caller's.
    let refresh = RefreshRequest { refresh_token: "old-acme".to_owned(), ..Default::default() };
    assert_eq!(refused(issuer.refresh(refresh).await), invalid());
}

pub async fn the_sweeper_deletes_refresh_tokens_of_the_other_system_with_their_sessions() {
    let sweeping = format!("{ACCEPTING}\n[sweeper]\nschedule = '* * * * * *'");
    let server = Home::new(&sweeping).await.start().await;
    imported(&server, old("s1", "alice")).await;
    let longer = ImportedSession { created_at: Some(at(START)), ..old("s2", "bob") };
    imported(&server, longer).await;
    let home = server.stop().await;
    // The first session ended a minute ago, by which another clock may be behind.
    home.clock.advance(seconds(3600 - 100 + 60) + TICK);
    let server = home.start().await;
    server.store.whole_sweep().await;
    assert_eq!(server.home.database.count("legacy_refresh_tokens").await, 1);
    assert_eq!(refused(server.refresh("old-s1").await), invalid());
}
