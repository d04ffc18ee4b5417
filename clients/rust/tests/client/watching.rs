//! Tests of the local verifier.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use countersign_client::{
    Answer, Client, Demands, InactiveReason, Reason, Unknown, Verifier,
    proto::{
        CreateSessionRequest, GetJwksRequest, ReauthenticateRequest, RevokeKeyRequest,
        RevokeRequest, SubjectTarget, reauthenticate_request, revoke_request::Target,
    },
    testing::Clock,
    verifier::{OnLapse, Status},
};

use crate::{
    link::Link,
    site::{
        Site, caller, check, eventually, in_time, of_token, request, settled, sign_in, suspend,
    },
};

/// Longer than any lease.
const OVER: Duration = Duration::from_secs(3);

fn reason(answer: &Answer) -> Option<InactiveReason> {
    answer.inactive_reason()
}

fn has_no_lease(answer: &Answer) -> bool {
    matches!(answer, Answer::Unknown(Unknown::NoLease))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_token_is_inactive_before_revoke_returns() {
    let site = Site::new("");
    let _server = site.start();
    let verifier = site.watcher();
    in_time("the first lease", verifier.ready()).await;
    let client = site.client();
    let revoked = Arc::new(Mutex::new(vec![]));
    let is_done = Arc::new(AtomicBool::new(false));
    let checking: Vec<_> = (0..2)
        .map(|_| {
            let (verifier, revoked, is_done) = (verifier.clone(), revoked.clone(), is_done.clone());
            tokio::spawn(async move {
                while !is_done.load(Ordering::SeqCst) {
                    let tokens: Vec<String> = revoked.lock().unwrap().clone();
                    for token in tokens {
                        assert_eq!(
                            reason(&settled(&verifier, &token).await),
                            Some(InactiveReason::Revoked)
                        );
                        tokio::task::yield_now().await;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for number in 0..60 {
        let token = sign_in(&client, &format!("user-{number}")).await;
        assert!(settled(&verifier, &token).await.is_active());
        client.revoke(of_token(&token)).await.unwrap();
        assert!(!check(&verifier, &token).is_active());
        assert_eq!(reason(&settled(&verifier, &token).await), Some(InactiveReason::Revoked));
        revoked.lock().unwrap().push(token);
    }
    is_done.store(true, Ordering::SeqCst);
    for task in checking {
        task.await.unwrap();
    }
    assert_eq!(verifier.status().revocations, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_revocation_reaches_the_verifier() {
    let site = Site::new("");
    let _server = site.start();
    let verifier = site.watcher();
    in_time("the first lease", verifier.ready()).await;
    let client = site.client();
    let [alice, bob, carol] = [
        sign_in(&client, "alice").await,
        sign_in(&client, "bob").await,
        sign_in(&client, "carol").await,
    ];
    let revoke = async |target| {
        client.revoke(RevokeRequest { target: Some(target), ..Default::default() }).await.unwrap();
    };
    let spared = client.create_session(request("alice")).await.unwrap();
    let (session, tokens) = (spared.session.unwrap(), spared.tokens.unwrap());
    revoke(Target::Subject(SubjectTarget {
        subject: "alice".to_owned(),
        except_session_id: session.session_id.clone(),
        ..Default::default()
    }))
    .await;
    assert_eq!(reason(&settled(&verifier, &alice).await), Some(InactiveReason::Revoked));
    assert!(settled(&verifier, &tokens.access_token).await.is_active());

    // A reauthentication revokes the tokens that rest on the earlier authentication.
    let id = reauthenticate_request::Session::SessionId(session.session_id);
    let request = ReauthenticateRequest { session: Some(id), ..Default::default() };
    let again = client.reauthenticate(request).await.unwrap().tokens.unwrap();
    assert_eq!(
        reason(&settled(&verifier, &tokens.access_token).await),
        Some(InactiveReason::Revoked)
    );
    assert!(settled(&verifier, &again.access_token).await.is_active());

    assert!(
        settled(&verifier, &bob).await.is_active() && settled(&verifier, &carol).await.is_active()
    );
    revoke(Target::Tenant(String::new())).await;
    for token in [&bob, &carol, &again.access_token] {
        assert_eq!(reason(&settled(&verifier, token).await), Some(InactiveReason::Revoked));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_claims_are_the_same_in_both_modes() {
    let site = Site::new("");
    let _server = site.start();
    let local = site.watcher();
    in_time("the first lease", local.ready()).await;
    let client = site.client();
    let remote = Verifier::remote(client.clone());
    let token = sign_in(&client, "alice").await;
    let mut seen = vec![];
    for verifier in [&local, &remote] {
        let answer = verifier.verify(&token, &Demands::new().scope("orders:read")).await;
        let session = answer.session().unwrap_or_else(|| panic!("{answer:?}")).clone();
        assert_eq!((session.subject(), session.claim("seats")), ("alice", Some(3.into())));
        seen.push((
            (session.id(), session.audience().to_vec(), session.scopes().to_vec()),
            (session.issued_at(), session.expires_at(), session.authenticated_at()),
            (session.acr().to_owned(), session.amr().to_vec(), session.claims()),
        ));
    }
    assert_eq!(seen[0], seen[1]);
    let long = "a".repeat(100_000);
    let refused = Demands::new().audience("https://other.test");
    for verifier in [&local, &remote] {
        for (token, demands, expected) in [
            ("", &Demands::new(), InactiveReason::Malformed),
            (&*long, &Demands::new(), InactiveReason::Malformed),
            ("cs_rt_x", &Demands::new(), InactiveReason::WrongType),
            (&*token, &refused, InactiveReason::WrongAudience),
            (&*token, &Demands::new().scope("x"), InactiveReason::InsufficientScope),
            (&*token, &Demands::new().factor("hwk"), InactiveReason::StepUpRequired),
        ] {
            let answer = verifier.verify(token, demands).await;
            assert_eq!(reason(&answer), Some(expected), "{verifier:?} {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lease_a_verifier_knows_nothing_or_asks_the_service() {
    let site = Site::new("[limits]\nmax_watchers = 1");
    let server = site.start();
    let (verifier, clock) = site.still_watcher();
    in_time("the first lease", verifier.ready()).await;
    let client = site.client();
    let [token, revoked] = [sign_in(&client, "alice").await, sign_in(&client, "bob").await];
    client.revoke(of_token(&revoked)).await.unwrap();

    // There is room for only one watcher.
    let asking = Verifier::local(site.client()).start();
    eventually("it has called", || asking.status().connections > 1).await;
    assert!(has_no_lease(&check(&asking, &token)));
    assert!(asking.verify(&token, &Demands::new()).await.is_active());
    let answer = asking.verify(&revoked, &Demands::new()).await;
    assert_eq!(reason(&answer), Some(InactiveReason::Revoked));

    suspend(&server).await;
    assert!(check(&verifier, &token).is_active());
    clock.advance(OVER);
    for token in [&token, &revoked] {
        assert!(has_no_lease(&check(&verifier, token)));
        assert!(has_no_lease(&verifier.verify(token, &Demands::new()).await));
    }
    let answer = asking.verify(&token, &Demands::new()).await;
    let Answer::Unknown(Unknown::NotAnswered(error)) = answer else { panic!("{answer:?}") };
    assert_eq!(*error.reason(), Reason::DeadlineExceeded);
    server.signal("CONT");
    in_time("a lease", verifier.ready()).await;
    assert!(check(&verifier, &token).is_active());
    assert_eq!(reason(&check(&verifier, &revoked)), Some(InactiveReason::Revoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_voids_the_lease_and_a_wrong_clock_never_gets_one() {
    let site = Site::new("");
    let server = site.start();
    let (verifier, clock) = site.still_watcher();
    in_time("the first lease", verifier.ready()).await;
    let token = sign_in(&site.client(), "alice").await;
    assert!(check(&verifier, &token).is_active());
    suspend(&server).await;
    clock.jump_to(clock.now().plus(Duration::from_secs(1)));
    assert!(has_no_lease(&check(&verifier, &token)));
    server.signal("CONT");
    in_time("a lease", verifier.ready()).await;
    assert!(check(&verifier, &token).is_active());

    let wrong = crate::site::clock();
    wrong.jump_to(wrong.now().plus(Duration::from_secs(60)));
    let verifier = Verifier::local(site.client()).on_lapse(OnLapse::Refuse).clock(wrong).start();
    tokio::time::timeout(Duration::from_millis(800), verifier.ready()).await.unwrap_err();
    assert!(verifier.status().resets > 0, "it has got everything but a lease");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_the_service_no_revoked_token_is_active() {
    let site = Site::new("");
    let mut server = site.start();
    let verifier = Verifier::local(site.client()).on_lapse(OnLapse::Refuse).start();
    in_time("the first lease", verifier.ready()).await;
    let client = site.client();
    let [token, revoked] = [sign_in(&client, "alice").await, sign_in(&client, "bob").await];
    client.revoke(of_token(&revoked)).await.unwrap();
    server.kill();
    drop(server);
    let watched = {
        let (verifier, revoked) = (verifier.clone(), revoked.clone());
        tokio::spawn(async move {
            while verifier.status().resets < 2 || verifier.status().lease.is_none() {
                assert!(!check(&verifier, &revoked).is_active());
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let server = tokio::task::spawn_blocking(move || (site.start(), site)).await.unwrap();
    in_time("a lease of the new process", watched).await.unwrap();
    assert_eq!(reason(&settled(&verifier, &revoked).await), Some(InactiveReason::Revoked));
    assert!(settled(&verifier, &token).await.is_active());
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_resumes_without_a_snapshot() {
    let site = Site::new("");
    let _server = site.start();
    let link = Link::to(&site.url()).await;
    let client = Client::builder(link.url()).build().unwrap();
    let verifier = Verifier::local(client).on_lapse(OnLapse::Refuse).start();
    in_time("the first lease", verifier.ready()).await;
    let client = site.client();
    let revoked = sign_in(&client, "alice").await;
    assert!(settled(&verifier, &revoked).await.is_active());
    link.cut();
    client.revoke(of_token(&revoked)).await.unwrap();
    // The revocation has waited for the lease, or for the new stream. This clock stands still.
    eventually("the revocation arrives", || {
        reason(&check(&verifier, &revoked)) == Some(InactiveReason::Revoked)
    })
    .await;
    let Status { connections, resets, .. } = verifier.status();
    assert!(connections > 1);
    assert_eq!(resets, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_verifies_no_token() {
    let site = Site::new("");
    let _server = site.start();
    let verifier = site.watcher();
    in_time("the first lease", verifier.ready()).await;
    let client = site.client();
    let token = sign_in(&client, "alice").await;
    assert!(settled(&verifier, &token).await.is_active());
    let header = token.split('.').next().unwrap();
    let header = base64_decode(header);
    let kid = header["kid"].as_str().unwrap().to_owned();
    client.revoke_key(RevokeKeyRequest { kid: kid.clone() }).await.unwrap();
    assert_eq!(reason(&settled(&verifier, &token).await), Some(InactiveReason::Revoked));
    let later = sign_in(&client, "alice").await;
    assert!(settled(&verifier, &later).await.is_active());
    let jwks = client.get_jwks(GetJwksRequest {}).await.unwrap().jwks;
    assert!(!jwks.contains(&kid));
}

fn base64_decode(part: &str) -> serde_json::Value {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_limited_to_a_tenant_accepts_no_token_of_others() {
    let (shop, shop_key) = caller("shop", "roles = ['validator']\ntenants = ['globex']");
    let (admin, admin_key) = caller("admin", "roles = ['admin']");
    let site = Site::new(&format!("{shop}{admin}"));
    let _server = site.start();
    let admin = site.client_with(&admin_key);
    let sign_in = async |tenant: &str| {
        let request = CreateSessionRequest { tenant: tenant.to_owned(), ..request("alice") };
        admin.create_session(request).await.unwrap().tokens.unwrap().access_token
    };
    let [ours, gone, theirs] =
        [sign_in("globex").await, sign_in("globex").await, sign_in("acme").await];
    let verifier = Verifier::local(site.client_with(&shop_key)).on_lapse(OnLapse::Refuse).start();
    in_time("the first lease", verifier.ready()).await;
    for token in [&gone, &theirs] {
        admin.revoke(of_token(token)).await.unwrap();
    }
    assert!(settled(&verifier, &ours).await.is_active());
    assert_eq!(reason(&settled(&verifier, &gone).await), Some(InactiveReason::Revoked));
    assert_eq!(reason(&settled(&verifier, &theirs).await), Some(InactiveReason::ForeignTenant));
    assert_eq!(verifier.status().revocations, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gets_another_tenant_learns_its_earlier_revocations() {
    let (shop, shop_key) = caller("shop", "roles = ['validator']\ntenants = ['globex']");
    let (admin, admin_key) = caller("admin", "roles = ['admin']");
    let site = Site::new(&format!("{shop}{admin}"));
    let server = site.start();
    let admin = site.client_with(&admin_key);
    let acme = CreateSessionRequest { tenant: "acme".to_owned(), ..request("alice") };
    let revoked = admin.create_session(acme.clone()).await.unwrap().tokens.unwrap().access_token;
    let good = admin.create_session(acme).await.unwrap().tokens.unwrap().access_token;
    let verifier = Verifier::local(site.client_with(&shop_key)).on_lapse(OnLapse::Refuse).start();
    in_time("the first lease", verifier.ready()).await;
    admin.revoke(of_token(&revoked)).await.unwrap();
    assert_eq!(reason(&settled(&verifier, &good).await), Some(InactiveReason::ForeignTenant));

    site.change("['globex']", "['acme', 'globex']");
    server.signal("HUP");
    let accepts = || {
        assert!(!check(&verifier, &revoked).is_active());
        check(&verifier, &good).is_active()
    };
    eventually("the tokens of the other tenant are accepted", accepts).await;
    assert_eq!(reason(&settled(&verifier, &revoked).await), Some(InactiveReason::Revoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_that_starts_before_the_service_waits_for_it() {
    let site = Site::new("");
    let refusing = site.watcher();
    let asking = Verifier::local(site.client()).start();
    assert!(has_no_lease(&refusing.verify("a.b.c", &Demands::new()).await));
    let answer = asking.verify("a.b.c", &Demands::new()).await;
    let Answer::Unknown(Unknown::NotAnswered(error)) = answer else { panic!("{answer:?}") };
    assert_eq!(*error.reason(), Reason::Unreachable);
    let _server = site.start();
    in_time("a lease", refusing.ready()).await;
    in_time("a lease", asking.ready()).await;
    let token = sign_in(&site.client(), "alice").await;
    assert!(
        settled(&refusing, &token).await.is_active() && settled(&asking, &token).await.is_active()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_background_tasks_end_with_the_last_clone() {
    let site = Site::new("");
    let _server = site.start();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let verifier = site.watcher();
    let clone = verifier.clone();
    in_time("the first lease", verifier.ready()).await;
    assert!(tasks() > before);
    drop(verifier);
    let token = sign_in(&site.client(), "alice").await;
    assert!(settled(&clone, &token).await.is_active());
    drop(clone);
    eventually("the tasks end", || tasks() == before).await;
}
