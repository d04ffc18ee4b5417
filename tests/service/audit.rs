//! Tests of the audit table: each record is written to the table exactly once, even if the database
//! fails in between, and is deleted after its retention.

use std::{sync::Arc, time::Duration};

use countersign::{
    app,
    authority::audit::{Audit, AuditWriter},
    domain::{
        audit::{AuditAction, AuditEntry, AuditRecord},
        ids::AuditId,
        who::Who,
    },
    proto::{
        CreateSessionRequest, EndReason, RefreshRequest, RevokeExtent, RevokeKeyRequest,
        RevokeRequest, RotateKeyRequest, Session, SubjectTarget,
        key_service_client::KeyServiceClient, revoke_request::Target,
    },
    store::StoreError,
    tasks,
};
use countersign_test_support::{
    double::{AuditFailure, Double},
    forge::header,
    http_client::{Metrics, ask},
    log::{capture, logged},
    server::{
        Home, START, Server, ShowKey, SignedIn, eventually, in_time, of_token, request,
        request_under, revocation, seconds,
    },
};
use tokio::task::JoinHandle;

use crate::callers::caller;

/// The queue of audit records and the task that writes them, without the rest of the service.
struct Auditing {
    home: Home,
    store: Arc<Double>,
    audit: Audit,
    writer: JoinHandle<()>,
}

impl Auditing {
    async fn start() -> Self {
        let home = Home::new("").await;
        let store = Arc::new(Double::of(
            app::open_store(&home.config()).await.unwrap(),
            home.clock.clone(),
        ));
        let (audit, queue) = Audit::with_table(home.clock.clone(), [3; 6]);
        let writer = tokio::spawn(tasks::audit::run(AuditWriter::new(store.clone(), queue)));
        Self { home, store, audit, writer }
    }

    fn record(&self, kid: &str) {
        let record = AuditRecord::new(AuditAction::KeyRevoked, START, Who::Anybody, None);
        self.audit.record(AuditRecord { kid: Some(kid.to_owned()), ..record });
    }

    /// Waits until the writer has tried to write at least `least` batches.
    async fn tries(&self, least: usize) {
        in_time(
            "the batches are tried",
            self.store.audits().wait_for(|sizes| sizes.len() >= least),
        )
        .await
        .unwrap();
    }

    /// Waits until all records are written, and returns the number of rows in the table.
    async fn written(&self) -> i64 {
        in_time("all records are written", self.audit.written()).await;
        self.home.database.count("audit").await
    }
}

impl Drop for Auditing {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

fn failure(error: StoreError) -> AuditFailure {
    AuditFailure { of: |_| true, error, after: false }
}

fn away() -> StoreError {
    StoreError::Unavailable("away".to_owned())
}

pub async fn audit_records_are_written_in_batches_and_within_a_second() {
    let auditing = Auditing::start().await;
    (0..1000).for_each(|n| auditing.record(&n.to_string()));
    assert_eq!(auditing.audit.waiting(), 1000);
    assert_eq!(auditing.written().await, 1000);
    assert_eq!(*auditing.store.audits().borrow(), [512, 488]);
    for n in 0..10 {
        auditing.record(&n.to_string());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let written = tokio::time::timeout(seconds(1), auditing.audit.written()).await;
    assert!(written.is_ok(), "on an idle machine it takes a fifth of that");
    assert_eq!(*auditing.store.audits().borrow(), [512, 488, 10]);
}

/// The writer must wait for further records after each batch, even if some came meanwhile.
/// Otherwise it would send many small batches to a slow database without a pause.
pub async fn a_record_that_arrives_during_a_write_waits_for_others_to_join_its_batch() {
    let auditing = Auditing::start().await;
    let mut has_joined = false;
    for n in 1..=5 {
        auditing.store.audit.shut();
        auditing.record("first");
        let before = auditing.store.audits().borrow().len();
        auditing.tries(before + 1).await;
        auditing.record("second");
        auditing.store.audit.open();
        // On a busy machine this sleep may take longer than the writer waits for further records,
        // but not in every round.
        tokio::time::sleep(Duration::from_millis(40)).await;
        auditing.record("third");
        assert_eq!(auditing.written().await, n * 3);
        has_joined |= auditing.store.audits().borrow()[before..] == [1, 2];
    }
    assert!(has_joined, "{:?}", auditing.store.audits().borrow());
}

pub async fn audit_records_are_kept_while_the_database_is_unavailable() {
    let auditing = Auditing::start().await;
    auditing.store.fail_audit_with(Some(failure(away())));
    (0..20).for_each(|n| auditing.record(&n.to_string()));
    auditing.tries(2).await;
    auditing.store.fail_audit_with(Some(failure(StoreError::Overloaded)));
    (0..600).for_each(|n| auditing.record(&n.to_string()));
    auditing.tries(4).await;
    assert_eq!((auditing.home.database.count("audit").await, auditing.audit.waiting()), (0, 620));
    auditing.store.fail_audit_with(None);
    assert_eq!(auditing.written().await, 620);
    assert_eq!(auditing.audit.dropped().get(), 0);
}

pub async fn records_whose_commit_was_not_confirmed_are_not_written_twice() {
    let auditing = Auditing::start().await;
    auditing.store.fail_audit_with(Some(AuditFailure { after: true, ..failure(away()) }));
    (0..20).for_each(|n| auditing.record(&n.to_string()));
    auditing.tries(2).await;
    (20..30).for_each(|n| auditing.record(&n.to_string()));
    auditing.tries(4).await;
    auditing.store.fail_audit_with(None);
    assert_eq!(auditing.written().await, 30);
}

pub async fn a_record_that_the_database_refuses_does_not_keep_others_from_being_written() {
    let auditing = Auditing::start().await;
    let of = |entry: &AuditEntry| entry.record.kid.as_deref() == Some("bad");
    auditing.store.fail_audit_with(Some(AuditFailure {
        of,
        ..failure(StoreError::Refused("no".to_owned()))
    }));
    ["good", "bad", "good", "bad", "good"].into_iter().for_each(|kid| auditing.record(kid));
    assert_eq!((auditing.written().await, auditing.audit.dropped().get()), (3, 2));
    auditing.record("good");
    assert_eq!((auditing.written().await, auditing.audit.dropped().get()), (4, 2));
}

pub async fn old_audit_records_are_deleted_even_if_the_audit_table_is_disabled() {
    let mut home = Home::new("").await;
    for setting in ["table = true", "table = false"] {
        let small_batches = "[sweeper]\nschedule = '0 0 29 2 *'\nbatch_size = 2";
        home = home.with(&format!("{small_batches}\n[audit]\nretention = '1h'\n{setting}"));
        let store = app::open_store(&home.config()).await.unwrap();
        let entries = (0..).zip([0, 3599, 3600, 3601, 7200, 9000, 9001]).map(|(n, age)| {
            let record = AuditRecord::new(
                AuditAction::KeyRotated,
                START.minus(seconds(age)),
                Who::Service,
                None,
            );
            AuditEntry { id: AuditId::new(record.at, n, [3; 6]), record, left_out: 0 }
        });
        store.append_audit(entries.collect()).await.unwrap();
        drop(store);
        home.database.released().await;
        let swept = app::sweep(&home.config(), home.system(), true).await.unwrap();
        home.database.released().await;
        // A new database also has records of its first keys.
        let left = home.database.count("audit WHERE kid IS NULL").await;
        assert_eq!((swept.audit, left), (4, 3), "{setting}");
    }
}

pub async fn metrics_report_dropped_left_out_and_waiting_audit_records() {
    let server = Server::start().await;
    let metrics = Metrics::of(server.http).await;
    assert_eq!(metrics.get("audit_records_dropped_total"), 0.0);
    assert_eq!(metrics.get("audit_denials_left_out_total"), 0.0);
    assert!(metrics.find("audit_records_waiting").is_some());
    let home = server.stop().await.with("[audit]\ntable = false");
    assert_eq!(Metrics::of(home.start().await.http).await.get("audit_records_waiting"), 0.0);
}

/// Each row names the caller, the action and the owner of the session. Calls that change nothing
/// add no row.
pub async fn every_change_is_recorded_with_caller_action_and_owner_and_other_calls_are_not() {
    let (login, first) = caller("login", "roles = [\"issuer\"]\ntenants = [\"acme\"]");
    let (security, second) = caller("security", "roles = [\"revoker\"]");
    let (operator, third) = caller("operator", "roles = [\"admin\"]");
    let server = Home::new(&[first, second, third].concat()).await.start().await;
    let mut expected = vec![];
    let mut expect = |what: String| expected.push(what);
    let sign_in = async |subject: &str| -> SignedIn {
        let answer =
            server.client_with(&login).create_session(request(subject)).await.unwrap().into_inner();
        (answer.session, answer.tokens).into()
    };
    let [alice, bob, carol, dora, eve] = [
        sign_in("alice").await,
        sign_in("bob").await,
        sign_in("carol").await,
        sign_in("dora").await,
        sign_in("eve").await,
    ];
    for session in [&alice, &bob, &carol, &dora, &eve] {
        expect(format!(
            "action = 'session_created' AND caller = 'login' AND tenant = 'acme' AND subject = \
             '{}' AND peer = '127.0.0.1'",
            session.session.subject
        ));
    }
    let revoke = async |key: &str, target| {
        let reason = EndReason::Compromised.into();
        let request =
            RevokeRequest { reason, note: "laptop lost".to_owned(), ..revocation(target) };
        for _ in 0..3 {
            server.client_with(key).revoke(request.clone()).await.unwrap();
        }
    };
    let about = "caller = 'security' AND reason = 'compromised' AND note = 'laptop lost'";
    revoke(&security, Target::Token(alice.access.clone())).await;
    expect(format!(
        "action = 'session_revoked' AND subject = 'alice' AND tenant = 'acme' AND sessions = 1 \
         AND {about}"
    ));
    revoke(&security, Target::SessionId(bob.id())).await;
    expect(format!(
        "action = 'session_revoked' AND subject = 'bob' AND tenant = 'acme' AND sessions = 1 AND \
         {about}"
    ));
    let only = RevokeRequest {
        extent: RevokeExtent::TokenOnly.into(),
        ..revocation(Target::Token(eve.access.clone()))
    };
    for _ in 0..3 {
        server.client_with(&security).revoke(only.clone()).await.unwrap();
    }
    expect(
        "action = 'token_revoked' AND caller = 'security' AND subject = 'eve' AND sessions = 0"
            .to_owned(),
    );
    let subject = SubjectTarget {
        tenant: "acme".to_owned(),
        subject: "carol".to_owned(),
        ..Default::default()
    };
    revoke(&security, Target::Subject(subject)).await;
    expect(format!(
        "action = 'subject_revoked' AND subject = 'carol' AND sessions = 1 AND {about}"
    ));
    let refresh =
        |token: &str| RefreshRequest { refresh_token: token.to_owned(), ..Default::default() };
    server.client_with(&login).refresh(refresh(&dora.refresh)).await.unwrap();
    server.clock.advance(seconds(60));
    server.client_with(&login).refresh(refresh(&dora.refresh)).await.unwrap_err();
    let reused =
        "action = 'refresh_reused' AND reason = 'refresh_token_reused' AND caller = 'login'";
    expect(format!("{reused} AND subject = 'dora'"));
    server
        .client_with(&operator)
        .revoke(revocation(Target::Tenant("acme".to_owned())))
        .await
        .unwrap();
    expect(
        "action = 'tenant_revoked' AND caller = 'operator' AND tenant = 'acme' AND subject IS NULL"
            .to_owned(),
    );
    let mut keys =
        KeyServiceClient::with_interceptor(server.channel.clone(), ShowKey(operator.clone()));
    let active = keys
        .rotate_key(RotateKeyRequest { force: true, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let kid = active.active.unwrap().kid;
    expect(format!("action = 'key_rotated' AND caller = 'operator' AND kid = '{kid}'"));
    keys.revoke_key(RevokeKeyRequest { kid: kid.clone() }).await.unwrap();
    expect(format!("action = 'key_revoked' AND caller = 'operator' AND kid = '{kid}'"));
    // The next key took the place of the revoked key.
    expect(format!("action = 'key_rotated' AND caller = 'operator' AND kid <> '{kid}'"));
    // The rotation and the revocation each also published a new next key, and the rotation retired
    // the previous key.
    let others = 2;

    // Denials of a known caller add a limited number of rows, and denials of an unknown caller
    // none.
    for _ in 0..50 {
        server.client_with(&security).create_session(request("mallory")).await.unwrap_err();
        server
            .client_with(&login)
            .create_session(CreateSessionRequest {
                subject: "mallory".to_owned(),
                ..Default::default()
            })
            .await
            .unwrap_err();
        server.client_with("cs_ck_nobody").create_session(request("mallory")).await.unwrap_err();
    }

    // Records are written in order, so all are in the table once the last ones are.
    let count = async |rows: &str| server.home.database.count(&format!("audit WHERE {rows}")).await;
    eventually("all records are written", async || {
        (count("action = 'caller_denied'").await == 20).then_some(())
    })
    .await;
    for rows in &expected {
        assert_eq!(count(rows).await, 1, "{rows}");
    }
    assert_eq!(count("action = 'key_published' AND caller = 'operator'").await, others);
    assert_eq!(count("action = 'key_retired' AND caller = 'operator'").await, 1);
    // At its first start, the service made an active key and a next key for each purpose.
    assert_eq!(count("action = 'key_published' AND caller = 'countersign'").await, 2);
    assert_eq!(count("action = 'key_rotated' AND caller = 'countersign'").await, 2);
    let all = expected.len() as i64 + others + 1 + 4;
    assert_eq!(count("action <> 'caller_denied'").await, all, "no other records");
    assert_eq!(count("caller = 'security' AND note = 'CreateSession'").await, 10);
    assert_eq!(count("caller = 'login' AND note LIKE 'tenant is not among%'").await, 10);
}

/// A call that revokes a session, a token, a subject, a tenant or a key.
#[derive(Clone)]
enum Call {
    Revoke(RevokeRequest),
    /// `/oauth2/revoke`, whose answer does not tell whether there was anything to revoke.
    OAuth(String),
    /// A refresh by a token that was used before and is past its grace, which ends the session.
    Refresh(String),
    RevokeKey(String),
}

impl Call {
    async fn make(self, server: &Server) {
        match self {
            Self::Revoke(request) => {
                server.revoke(request).await.unwrap();
            }
            Self::OAuth(token) => {
                let form = format!("token={token}");
                let request = format!(
                    "POST /oauth2/revoke HTTP/1.1\r\nhost: test\r\nconnection: \
                     close\r\ncontent-length: {}\r\ncontent-type: \
                     application/x-www-form-urlencoded\r\n\r\n{form}",
                    form.len()
                );
                assert_eq!(ask(server.http, &request).await.status, 200);
            }
            Self::Refresh(token) => {
                assert!(server.refresh(&token).await.is_err());
            }
            Self::RevokeKey(kid) => {
                let mut keys = KeyServiceClient::new(server.channel.clone());
                keys.revoke_key(RevokeKeyRequest { kid }).await.unwrap();
            }
        }
    }
}

/// Counts the audit lines of an action about one subject, tenant or key in the log, which all tests
/// of this process share.
fn lines_about(action: &str, field: &str, value: &str) -> usize {
    let parts = [
        "countersign::audit".to_owned(),
        format!("action=\"{action}\""),
        format!("{field}=\"{value}\""),
    ];
    logged().lines().filter(|line| parts.iter().all(|part| line.contains(part))).count()
}

/// Each call is made six times: the first is recorded, the others change nothing and are not
/// recorded. Each call has a subject, tenant or key that no other call and no other engine uses, so
/// that its records can be found.
pub async fn a_repeated_revocation_adds_neither_an_audit_row_nor_a_log_line() {
    capture();
    let server = Server::start().await;
    let engine = server.home.database.engine();
    let unique = |name: &str| -> &'static str { format!("{name} on {engine:?}").leak() };
    let sign_in = async |subject: &str| server.sign_in(subject).await;
    let of_subject = |subject: &str, except: &SignedIn| {
        let target = SubjectTarget {
            tenant: "acme".to_owned(),
            subject: subject.to_owned(),
            except_session_id: except.session.session_id.clone(),
        };
        Call::Revoke(revocation(Target::Subject(target)))
    };
    let revoke = |target| Call::Revoke(revocation(target));
    let mut calls = vec![];

    let name = unique("again by access token");
    calls.push((
        "session_revoked",
        "subject",
        name,
        Call::Revoke(of_token(&sign_in(name).await.access)),
    ));
    let name = unique("again by refresh token");
    calls.push((
        "session_revoked",
        "subject",
        name,
        Call::Revoke(of_token(&sign_in(name).await.refresh)),
    ));
    let name = unique("again by an old refresh token");
    let old = sign_in(name).await;
    server.refresh(&old.refresh).await.unwrap();
    calls.push(("session_revoked", "subject", name, Call::Revoke(of_token(&old.refresh))));
    let name = unique("again by identifier");
    calls.push((
        "session_revoked",
        "subject",
        name,
        revoke(Target::SessionId(sign_in(name).await.id())),
    ));
    let name = unique("again by a token of a session that is not there");
    let gone = sign_in(name).await;
    server.home.database.execute(&format!("DELETE FROM sessions WHERE subject = '{name}'")).await;
    calls.push(("session_revoked", "subject", name, Call::Revoke(of_token(&gone.access))));
    let name = unique("again the token only");
    let only = of_token(&sign_in(name).await.access);
    let only = RevokeRequest { extent: RevokeExtent::TokenOnly.into(), ..only };
    calls.push(("token_revoked", "subject", name, Call::Revoke(only)));
    let name = unique("again the subject");
    sign_in(name).await;
    sign_in(name).await;
    let nobody = SignedIn { session: Session::default(), ..sign_in(name).await };
    calls.push(("subject_revoked", "subject", name, of_subject(name, &nobody)));
    let name = unique("again the subject but for one");
    let stays = sign_in(name).await;
    sign_in(name).await;
    calls.push(("subject_revoked", "subject", name, of_subject(name, &stays)));
    let name = unique("again the tenant");
    let theirs = CreateSessionRequest { tenant: name.to_owned(), ..request("carol") };
    let theirs =
        [server.create(theirs.clone()).await.unwrap(), server.create(theirs).await.unwrap()];
    calls.push(("tenant_revoked", "tenant", name, revoke(Target::Tenant(name.to_owned()))));
    let name = unique("again over HTTP by access token");
    calls.push(("session_revoked", "subject", name, Call::OAuth(sign_in(name).await.access)));
    let name = unique("again over HTTP by refresh token");
    calls.push(("session_revoked", "subject", name, Call::OAuth(sign_in(name).await.refresh)));
    let name = unique("again a token that was used before");
    let reused = sign_in(name).await;
    server.refresh(&reused.refresh).await.unwrap();
    server.clock.advance(seconds(60));
    calls.push(("refresh_reused", "subject", name, Call::Refresh(reused.refresh)));
    let kid = header(&sign_in("whoever").await.access)["kid"].as_str().unwrap().to_owned();
    calls.push(("key_revoked", "kid", &*kid, Call::RevokeKey(kid.clone())));

    for (action, field, value, call) in &calls {
        for time in 1..=6 {
            call.clone().make(&server).await;
            assert_eq!(lines_about(action, field, value), 1, "{value}, call {time}");
        }
    }
    // After the tenant has got a new session, revoking it again is recorded.
    assert!(server.verdict(&theirs[0].access).await.is_err());
    let tenant = unique("again the tenant");
    server
        .create(CreateSessionRequest { tenant: tenant.to_owned(), ..request("carol") })
        .await
        .unwrap();
    for time in 1..=6 {
        revoke(Target::Tenant(tenant.to_owned())).make(&server).await;
        assert_eq!(lines_about("tenant_revoked", "tenant", tenant), 2, "call {time}");
    }

    let home = server.stop().await;
    for (action, field, value, _) in &calls {
        let rows = format!("audit WHERE action = '{action}' AND {field} = '{value}'");
        let expected = if *value == tenant { 2 } else { 1 };
        assert_eq!(home.database.count(&rows).await, expected, "{rows}");
    }
    let others = "audit WHERE action NOT IN ('session_created', 'key_rotated', 'key_published')";
    assert_eq!(home.database.count(others).await, calls.len() as i64 + 1, "no other records");
}

/// The caller's second call changes nothing and is not recorded, so the first call must be
/// recorded.
pub async fn a_revocation_whose_caller_goes_away_is_recorded_all_the_same() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.store.committed_revocations.shut();
    let gone = {
        let (mut client, order) = (server.client(), of_token(&session.access));
        tokio::spawn(async move { client.revoke(order).await })
    };
    server.store.committed_revocations.held().await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    // Once another call on the same connection is answered, the server has dropped the aborted
    // call.
    server.session(&session.id()).await.unwrap();
    server.store.committed_revocations.open();
    let rows = "audit WHERE action = 'session_revoked'";
    eventually("the revocation is recorded", async || {
        (server.home.database.count(rows).await == 1).then_some(())
    })
    .await;
    server.revoke(of_token(&session.access)).await.unwrap();
    assert_eq!(server.stop().await.database.count(rows).await, 1);
}

pub async fn the_last_records_are_in_the_table_when_the_service_has_stopped() {
    let server = Server::start().await;
    server.sign_in("alice").await;
    let home = server.stop().await;
    assert_eq!(
        home.database.count("audit WHERE subject = 'alice' AND caller = 'anybody'").await,
        1
    );
}

/// Each session beyond the quota evicts an older one, and each eviction has a record of its own.
pub async fn every_session_that_the_quota_evicts_has_an_audit_record() {
    capture();
    let server = Server::start().await;
    let sign_in = async || server.create(request_under("two", "alice")).await.unwrap().id();
    let mut ids = vec![];
    for _ in 0..4 {
        ids.push(sign_in().await);
        // Sessions that are created within the same millisecond have no order.
        server.clock.advance(seconds(1));
    }
    let count =
        async |rows: String| server.home.database.count(&format!("audit WHERE {rows}")).await;
    let evicted = "action = 'session_evicted' AND reason = 'quota_evicted' AND sessions = 1";
    let evicted =
        format!("{evicted} AND tenant = 'acme' AND subject = 'alice' AND caller = 'anybody'");
    eventually("all records are written", async || {
        (count(evicted.clone()).await == 2).then_some(())
    })
    .await;
    let log = logged();
    let is_logged = |id: &String| {
        // The span of the line has the session that was created.
        let records = log.lines().filter_map(|line| line.split_once("countersign::audit:"));
        records
            .map(|(_, record)| record)
            .any(|record| record.contains("session_evicted") && record.contains(&**id))
    };
    assert_eq!(ids.iter().map(is_logged).collect::<Vec<_>>(), [true, true, false, false]);
}
