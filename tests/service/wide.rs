//! Tests of wide revocations: of a client, by a time, of several subjects, and in all tenants.

use std::time::Duration;

use countersign::{
    clock::Clock,
    proto::{
        CreateSessionRequest, InactiveReason, ListRevocationsRequest, Revocation, RevokeRequest,
        RevokeResponse, SessionState, SessionsTarget, SubjectsTarget,
        revocation::Instant as ListedInstant,
        revoke_request::Target,
        sessions_target::{Instant, Where},
    },
};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Home, Server, SignedIn, at, eventually, request, revocation, seconds},
};
use prost_types::Timestamp;
use tonic::Code;

use super::{callers::caller, changes::again};

const REVOKED: Result<(), InactiveReason> = Err(InactiveReason::Revoked);

fn sessions(r#where: Where, client_id: &str, instant: Option<Instant>) -> Target {
    let client_id = client_id.to_owned();
    Target::Sessions(SessionsTarget { r#where: Some(r#where), client_id, instant })
}

/// Returns a request to revoke the sessions that a tenant has with a client.
pub fn client(tenant: &str, client_id: &str) -> RevokeRequest {
    revocation(sessions(Where::Tenant(tenant.to_owned()), client_id, None))
}

/// Returns the target of a revocation in all tenants.
pub fn everywhere(client_id: Option<&str>, instant: Option<Instant>) -> Target {
    sessions(Where::AllTenants(true), client_id.unwrap_or_default(), instant)
}

fn in_acme(instant: Instant) -> RevokeRequest {
    revocation(sessions(Where::Tenant("acme".to_owned()), "", Some(instant)))
}

async fn sign_in(server: &Server, tenant: &str, client_id: &str) -> SignedIn {
    let (tenant, client_id) = (tenant.to_owned(), client_id.to_owned());
    let request = CreateSessionRequest { tenant, client_id, ..request("alice") };
    server.create(request).await.unwrap()
}

/// Returns the current instant, rounded down to a whole second.
fn this_second(server: &Server) -> Timestamp {
    Timestamp { nanos: 0, ..at(server.clock.now()) }
}

async fn revoke(server: &Server, request: RevokeRequest) -> RevokeResponse {
    server.client().revoke(request).await.unwrap().into_inner()
}

/// Makes a dry run, and returns the number of sessions and the confirmation.
async fn dry_run(server: &Server, request: RevokeRequest) -> (i64, String) {
    let response = revoke(server, RevokeRequest { dry_run: true, ..request }).await;
    assert_eq!((response.revoked_sessions, &response.effective_at), (0, &None));
    assert_eq!(response.revocation_ids, [""; 0]);
    let dry_run = response.dry_run.unwrap();
    assert!(!dry_run.is_lower_bound);
    (dry_run.sessions, dry_run.confirmation)
}

async fn listed(server: &Server, ids: &[String]) -> Vec<Revocation> {
    let request = ListRevocationsRequest { revocation_ids: ids.to_vec() };
    server.client().list_revocations(request).await.unwrap().into_inner().revocations
}

/// Waits until the job has ended the sessions of revocations, and returns how many it ended.
async fn ended(server: &Server, ids: &[String]) -> i64 {
    eventually("the sessions are ended", async || {
        let revocations = listed(server, ids).await;
        assert_eq!(revocations.len(), ids.len());
        let is_finished = revocations.iter().all(|revocation| revocation.is_finished);
        is_finished.then(|| revocations.iter().map(|revocation| revocation.ended_sessions).sum())
    })
    .await
}

pub async fn a_client_can_be_revoked_and_its_later_sessions_are_accepted() {
    let server = Server::start().await;
    let theirs = [sign_in(&server, "acme", "web").await, sign_in(&server, "acme", "web").await];
    let others = [
        sign_in(&server, "acme", "app").await,
        sign_in(&server, "acme", "").await,
        sign_in(&server, "globex", "web").await,
    ];
    let response = revoke(&server, client("acme", "web")).await;
    assert_eq!((response.revoked_sessions, response.revocation_ids.len()), (0, 1));
    // The clock stands still, so the new session needs a later identifier.
    let later = sign_in(&server, "acme", "web").await;
    for session in &theirs {
        assert_eq!(server.verdict(&session.access).await, REVOKED);
        let refused = refused(server.refresh(&session.refresh).await.map(drop));
        assert_eq!(refused, Refusal::of(Code::Unauthenticated, "SESSION_REVOKED"));
    }
    for session in others.iter().chain([&later]) {
        assert_eq!(server.verdict(&session.access).await, Ok(()));
        server.refresh(&session.refresh).await.unwrap();
    }
    assert_eq!(ended(&server, &response.revocation_ids).await, 2);
    for session in &theirs {
        assert_eq!(server.session(&session.id()).await.unwrap().state(), SessionState::Ended);
    }
    assert_eq!(
        revoke(&server, client("acme", "web")).await.revocation_ids,
        response.revocation_ids
    );
    assert_eq!(server.verdict(&later.access).await, REVOKED);

    let record = "action = 'sessions_revoked' AND tenant = 'acme' AND client_id = 'web' AND \
                  created_before IS NULL";
    let home = server.stop().await;
    assert_eq!(home.database.count(&format!("audit WHERE {record}")).await, 2);
}

pub async fn sessions_can_be_revoked_by_the_time_of_their_creation() {
    let server = Server::start().await;
    let early = server.sign_in("alice").await;
    server.clock.advance(Duration::from_millis(1));
    let now = server.clock.now();
    let late = server.sign_in("alice").await;
    let elsewhere = sign_in(&server, "globex", "").await;
    let request = in_acme(Instant::CreatedBefore(at(now)));
    assert_eq!(dry_run(&server, request.clone()).await.0, 1);
    let response = revoke(&server, request).await;
    assert_eq!(server.verdict(&early.access).await, REVOKED);
    for session in [&late, &elsewhere] {
        assert_eq!(server.verdict(&session.access).await, Ok(()));
    }
    assert_eq!(ended(&server, &response.revocation_ids).await, 1);
    let listed = &listed(&server, &response.revocation_ids).await[0];
    assert_eq!(listed.instant, Some(ListedInstant::CreatedBefore(at(now))));
}

pub async fn sessions_can_be_revoked_by_the_time_of_their_authentication() {
    let server = Server::start().await;
    let early = server.sign_in("alice").await;
    let also_early = server.sign_in("bob").await;
    server.clock.advance(seconds(2));
    let before = this_second(&server);
    let late = server.sign_in("alice").await;
    // The user of this session authenticates again before the revocation.
    let renewed = server.client().reauthenticate(again(&also_early)).await.unwrap().into_inner();
    let response = revoke(&server, in_acme(Instant::AuthenticatedBefore(before))).await;
    assert_eq!(server.verdict(&early.access).await, REVOKED);
    for token in [&late.access, &renewed.tokens.unwrap().access_token] {
        assert_eq!(server.verdict(token).await, Ok(()));
    }
    let refusal = refused(server.client().reauthenticate(again(&early)).await);
    assert_eq!(refusal, Refusal::of(Code::Unauthenticated, "SESSION_REVOKED"));

    let just_before = Timestamp { seconds: before.seconds - 1, nanos: 999_999_000 };
    for (authenticated_at, is_allowed) in [(just_before, false), (before, true)] {
        let authenticated_at = Some(authenticated_at);
        let created =
            server.create(CreateSessionRequest { authenticated_at, ..request("carol") }).await;
        match is_allowed {
            true => assert_eq!(server.verdict(&created.unwrap().access).await, Ok(())),
            false => {
                assert_eq!(refused(created.map(drop)), Refusal::field("authenticated_at"));
            }
        }
    }
    assert_eq!(ended(&server, &response.revocation_ids).await, 1);
}

pub async fn several_subjects_are_revoked_and_recorded_each() {
    let server = Server::start().await;
    let mut sessions = vec![];
    for subject in ["alice", "bob", "carol"] {
        sessions.push(server.sign_in(subject).await);
    }
    let subjects = ["alice", "bob"].map(str::to_owned).to_vec();
    let target = SubjectsTarget { tenant: "acme".to_owned(), subjects };
    let request = revocation(Target::Subjects(target));
    assert_eq!(dry_run(&server, request.clone()).await.0, 2);
    let response = revoke(&server, request.clone()).await;
    assert_eq!(response.revocation_ids.len(), 2);
    for (session, verdict) in sessions.iter().zip([REVOKED, REVOKED, Ok(())]) {
        assert_eq!(server.verdict(&session.access).await, verdict);
    }
    assert_eq!(ended(&server, &response.revocation_ids).await, 2);
    revoke(&server, request).await;
    let home = server.stop().await;
    for subject in ["alice", "bob"] {
        let record = format!("audit WHERE action = 'subject_revoked' AND subject = '{subject}'");
        assert_eq!(home.database.count(&record).await, 1);
    }
}

pub async fn a_dry_run_counts_and_changes_nothing() {
    let server = Server::start().await;
    let session = sign_in(&server, "acme", "web").await;
    sign_in(&server, "globex", "web").await;
    server.sign_in("bob").await;
    let rows = server.rows().await;
    let everything = revocation(everywhere(None, None));
    let tenant = revocation(Target::Tenant("acme".to_owned()));
    for (request, count, is_everywhere) in [
        (client("acme", "web"), 1, false),
        (revocation(everywhere(Some("web"), None)), 2, true),
        (tenant, 2, false),
        (everything, 3, true),
    ] {
        let (sessions, confirmation) = dry_run(&server, request).await;
        assert_eq!((sessions, confirmation.is_empty()), (count, !is_everywhere));
    }
    assert_eq!(server.rows().await, rows);
    assert_eq!(server.verdict(&session.access).await, Ok(()));
    let request = RevokeRequest { dry_run: true, ..revocation(Target::SessionId(session.id())) };
    assert_eq!(refused(server.client().revoke(request).await), Refusal::field("dry_run"));
}

pub async fn sessions_of_all_tenants_are_revoked_only_with_the_confirmation_of_a_dry_run() {
    let (key, stanza) = caller("operator", "roles = [\"admin\"]");
    let (other_key, other_stanza) = caller("other", "roles = [\"admin\"]");
    let server = Home::new(&(stanza + &other_stanza)).await.start().await;
    let call = async |key: &str, request| {
        server.client_with(key).revoke(request).await.map(tonic::Response::into_inner)
    };
    let created = server.client_with(&key).create_session(request("alice")).await.unwrap();
    let everything = revocation(everywhere(None, None));
    let confirmed = async |request: &RevokeRequest, key: &str| {
        let dry_run = call(key, RevokeRequest { dry_run: true, ..request.clone() }).await.unwrap();
        let confirmation = dry_run.dry_run.unwrap().confirmation;
        RevokeRequest { confirmation, ..request.clone() }
    };
    let with_confirmation = confirmed(&everything, &key).await;
    let of_client = revocation(everywhere(Some("web"), None));
    let of_other = confirmed(&of_client, &key).await.confirmation;
    let wrong = [
        (&key, everything.clone()),
        (&key, RevokeRequest { confirmation: "x".to_owned(), ..everything.clone() }),
        (&key, RevokeRequest { confirmation: of_other, ..everything.clone() }),
        (&other_key, with_confirmation.clone()),
        (&key, RevokeRequest { dry_run: true, ..with_confirmation.clone() }),
        (
            &key,
            RevokeRequest {
                confirmation: with_confirmation.confirmation.clone(),
                ..client("acme", "web")
            },
        ),
    ];
    for (key, request) in wrong {
        assert_eq!(refused(call(key, request).await), Refusal::field("confirmation"));
    }
    server.clock.advance(seconds(600));
    let refusal = refused(call(&key, with_confirmation).await);
    assert_eq!(refusal, Refusal::field("confirmation"), "it has expired");

    let again = confirmed(&everything, &key).await;
    call(&key, again).await.unwrap();
    let refresh_token = created.into_inner().tokens.unwrap().refresh_token;
    let request = countersign::proto::RefreshRequest { refresh_token, ..Default::default() };
    let refusal = refused(server.client_with(&key).refresh(request).await);
    assert_eq!(refusal, Refusal::of(Code::Unauthenticated, "SESSION_REVOKED"));
    let record = "audit WHERE action = 'sessions_revoked' AND tenant IS NULL AND sessions = 1";
    assert_eq!(server.stop().await.database.count(record).await, 1);
}

pub async fn the_progress_of_a_revocation_is_listed_for_those_who_may_see_it() {
    let (key, stanza) = caller("operator", "roles = [\"admin\"]");
    let (limited, limited_stanza) =
        caller("limited", "roles = [\"revoker\"]\ntenants = [\"acme\"]");
    let server = Home::new(&(stanza + &limited_stanza)).await.start().await;
    let mut operator = server.client_with(&key);
    let mut ids = vec![];
    for tenant in ["acme", "globex"] {
        let request = RevokeRequest { note: tenant.to_owned(), ..client(tenant, "web") };
        ids.extend(operator.revoke(request).await.unwrap().into_inner().revocation_ids);
    }
    let everything = revocation(everywhere(Some("web"), None));
    let dry_run = RevokeRequest { dry_run: true, ..everything.clone() };
    let confirmation =
        operator.revoke(dry_run).await.unwrap().into_inner().dry_run.unwrap().confirmation;
    operator.revoke(RevokeRequest { confirmation, ..everything }).await.unwrap();

    let list = async |key: &str, ids: &[String]| {
        let request = ListRevocationsRequest { revocation_ids: ids.to_vec() };
        let answer = server.client_with(key).list_revocations(request).await.unwrap();
        answer.into_inner().revocations
    };
    let all = list(&key, &[]).await;
    let shown: Vec<_> = all
        .iter()
        .map(|one| (one.all_tenants, &*one.tenant, &*one.client_id, &*one.note))
        .collect();
    let newest_first =
        [(true, "", "web", ""), (false, "globex", "web", "globex"), (false, "acme", "web", "acme")];
    assert_eq!(shown, newest_first);
    assert_eq!(list(&key, &ids[1..]).await[0].tenant, "globex");
    let seen = list(&limited, &[]).await;
    assert_eq!(seen.iter().map(|one| &*one.tenant).collect::<Vec<_>>(), ["acme"]);
    assert_eq!(list(&limited, &ids[1..]).await, []);
    let request = ListRevocationsRequest { revocation_ids: vec![String::new(); 1001] };
    let refusal = refused(operator.list_revocations(request).await);
    assert_eq!(refusal, Refusal::field("revocation_ids"));
}

pub async fn a_wrong_wide_target_names_the_field_and_changes_nothing() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    let subjects = |names: Vec<String>| {
        let tenant = "acme".to_owned();
        revocation(Target::Subjects(SubjectsTarget { tenant, subjects: names }))
    };
    let now = at(server.clock.now());
    let later = Timestamp { seconds: now.seconds + 1, nanos: 0 };
    let fraction = Timestamp { seconds: now.seconds - 9, nanos: 500_000 };
    let many = (0..1001).map(|n| format!("subject {n}")).collect();
    let bare = SessionsTarget::default();
    for (request, field) in [
        (subjects(vec![]), "subjects.subjects"),
        (subjects(many), "subjects.subjects"),
        (subjects(vec![String::new()]), "subjects.subjects[0]"),
        (subjects(vec!["alice".to_owned(), "alice".to_owned()]), "subjects.subjects[1]"),
        (revocation(Target::Sessions(bare)), "sessions.where"),
        (revocation(sessions(Where::AllTenants(false), "web", None)), "sessions.all_tenants"),
        (revocation(sessions(Where::Tenant("acme".to_owned()), "", None)), "sessions"),
        (client("a\nb", "web"), "sessions.tenant"),
        (client("acme", &"x".repeat(257)), "sessions.client_id"),
        (in_acme(Instant::CreatedBefore(later)), "sessions.created_before"),
        (in_acme(Instant::CreatedBefore(fraction)), "sessions.created_before"),
        (in_acme(Instant::AuthenticatedBefore(later)), "sessions.authenticated_before"),
        (in_acme(Instant::AuthenticatedBefore(fraction)), "sessions.authenticated_before"),
        (RevokeRequest { confirmation: "x".repeat(257), ..client("acme", "web") }, "confirmation"),
    ] {
        assert_eq!(refused(server.revoke(request).await), Refusal::field(field));
    }
    assert_eq!(server.verdict(&session.access).await, Ok(()));
    assert_eq!(server.rows().await.blacklist, 0);
}
