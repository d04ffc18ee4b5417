//! Tests of refresh tokens that are invalid, that a caller without access presents, or that are
//! presented too often.
//!
//! Tested elsewhere: 64 refreshes at once, replays within the grace and after it, and tokens two
//! generations old, each to the microsecond, in `service/refresh.rs`; races between replicas in
//! `cluster/refreshing.rs`; the permissions of each role in `service/callers.rs`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{clock::Clock, proto::SessionState};
use futures_util::{StreamExt, future::join_all, stream};

use super::harness::Harness;
use countersign_test_support::{
    forge::Forge,
    refusal::{Refusal, refused},
    server::{Server, seconds},
};

/// The number of wrong tokens that are tried for one session.
const GUESSES: usize = 2000;
/// The number of sessions whose tokens expire at the same instant, and the number of clients that
/// refresh each session at once.
const STORM: (usize, usize) = (200, 4);
/// The number of calls under way at once.
const AT_ONCE: usize = 64;

struct Row {
    name: String,
    token: String,
    expected: Refusal,
}

fn invalid() -> Refusal {
    Refusal::unauthenticated("REFRESH_TOKEN_INVALID")
}

/// The rows are tokens that somebody without the session's token can make. Some of them need the
/// refresh key.
pub async fn a_forged_refresh_token_is_refused_and_changes_nothing() {
    let harness = Harness::start().await;
    let server = &harness.server;
    let [good, bystander] = [harness.sign_in("alice").await, harness.sign_in("bob").await];
    let other = Server::start().await.sign_in("alice").await;
    let forge = Forge::of(server).await;
    let secret_of_bob = server.lineage(&bystander.id()).await.secret;
    let bytes = URL_SAFE_NO_PAD.decode(good.refresh.strip_prefix("cs_rt_").unwrap()).unwrap();
    let of_bytes = |bytes: &[u8]| format!("cs_rt_{}", URL_SAFE_NO_PAD.encode(bytes));
    let changed = |at: usize, to: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = to;
        of_bytes(&bytes)
    };
    let last = good.refresh.len() - 1;
    let mut rows: Vec<_> = [
        ("a letter", "x".to_owned()),
        ("NUL", "\0".to_owned()),
        ("the prefix", "cs_rt_".to_owned()),
        ("zeros", format!("cs_rt_{}", "A".repeat(103))),
        ("60 kB", format!("cs_rt_{}", "A".repeat(60_000))),
        ("in capitals", good.refresh.to_uppercase()),
        ("without its last letter", good.refresh[..last].to_owned()),
        ("without its prefix", good.refresh[6..].to_owned()),
        ("with another prefix", good.refresh.replace("cs_rt_", "cs_at_")),
        ("with two prefixes", format!("cs_rt_{}", good.refresh)),
        ("padded", format!("{}=", good.refresh)),
        ("with a letter more", format!("{}A", good.refresh)),
        ("with a line feed", format!("{}\n", good.refresh)),
        ("after a space", format!(" {}", good.refresh)),
        ("with + and /", format!("cs_rt_+/{}", &good.refresh[8..])),
        ("twice", format!("{}{}", good.refresh, good.refresh)),
        ("of another version", changed(0, 2)),
        ("of no version", changed(0, 0)),
        ("of another key", changed(1, bytes[1] ^ 1)),
        ("of another session", changed(9, bytes[9] ^ 1)),
        ("without a MAC", of_bytes(&bytes[..45])),
        ("with a MAC of zeros", of_bytes(&[&bytes[..45], &[0; 32]].concat())),
        ("an access token", good.access.clone()),
        ("of another service", other.refresh),
        ("SQL", "cs_rt_' OR '1'='1".to_owned()),
        (
            "of a generation to come",
            forge.refresh_token(server, &good.id(), |lineage| lineage.generation += 1).await,
        ),
        (
            "of the highest generation",
            forge.refresh_token(server, &good.id(), |lineage| lineage.generation = u32::MAX).await,
        ),
        (
            "of another secret",
            forge.refresh_token(server, &good.id(), |lineage| lineage.secret.0[0] ^= 1).await,
        ),
        (
            "of another session's secret",
            forge.refresh_token(server, &good.id(), |lineage| lineage.secret = secret_of_bob).await,
        ),
    ]
    .into_iter()
    .map(|(name, token)| Row { name: name.to_owned(), token, expected: invalid() })
    .collect();
    for bit in (0..bytes.len() * 8).step_by(3) {
        let token = changed(bit / 8, bytes[bit / 8] ^ (1 << (bit % 8)));
        rows.push(Row { name: format!("bit {bit} flipped"), token, expected: invalid() });
    }
    rows.push(Row {
        name: "empty".to_owned(),
        token: String::new(),
        expected: Refusal::field("refresh_token"),
    });

    for Row { name, token, expected } in rows {
        let send = async { refused(harness.refresh(&harness.admin, &token).await) };
        assert_eq!(harness.survives(&name, &[&token], 0, send).await, expected, "{name}");
    }
    let mut viewer = server.client_with(&harness.admin);
    let get = countersign::proto::GetSessionRequest { session_id: good.id() };
    assert_eq!(viewer.get_session(get).await.unwrap().into_inner().session.unwrap(), good.session);
    assert!(
        harness.refresh(&harness.admin, &good.refresh).await.is_ok(),
        "the good token was not used up"
    );
    harness.finish().await;
}

/// Many wrong guesses of a session's token neither succeed nor end the session.
pub async fn guessed_refresh_tokens_are_refused_and_end_no_session() {
    let harness = Harness::start().await;
    let good = harness.sign_in("alice").await;
    let bytes = URL_SAFE_NO_PAD.decode(good.refresh.strip_prefix("cs_rt_").unwrap()).unwrap();
    let guess = |number: usize| {
        let mut bytes = bytes.clone();
        // Even numbers change the secret, odd ones the MAC.
        let at = if number.is_multiple_of(2) { 29 } else { 45 };
        for (byte, add) in bytes[at..].iter_mut().zip((number + 1).to_le_bytes()) {
            *byte ^= add;
        }
        format!("cs_rt_{}", URL_SAFE_NO_PAD.encode(bytes))
    };
    let guesses: Vec<_> = (0..GUESSES).map(guess).collect();
    let send = async {
        let calls = stream::iter(&guesses).map(|guess| harness.refresh(&harness.admin, guess));
        calls.buffer_unordered(AT_ONCE).map(refused).collect::<Vec<_>>().await
    };
    let secrets: Vec<_> = guesses.iter().map(String::as_str).collect();
    let answers = harness.survives("guesses", &secrets, 0, send).await;
    assert!(answers.len() == GUESSES && answers.iter().all(|answer| *answer == invalid()));
    assert!(harness.refresh(&harness.admin, &good.refresh).await.is_ok());
    harness.finish().await;
}

pub async fn callers_without_access_cannot_refresh_and_do_not_use_up_the_refresh_token() {
    let harness = Harness::start().await;
    let good = harness.sign_in("alice").await;
    let not_allowed = Refusal::of(tonic::Code::PermissionDenied, "CALLER_NOT_ALLOWED");
    for (name, key, expected) in [
        ("a caller of another tenant", &*harness.foreign, invalid()),
        ("a caller who may only validate", &harness.validator, not_allowed),
        ("no key", "", Refusal::unauthenticated("CALLER_UNKNOWN")),
        (
            "an unknown key",
            "cs_ck_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            Refusal::unauthenticated("CALLER_UNKNOWN"),
        ),
        ("the token as the key", &good.refresh, Refusal::unauthenticated("CALLER_UNKNOWN")),
    ] {
        let send = async { refused(harness.refresh(key, &good.refresh).await) };
        assert_eq!(
            harness.survives(name, &[&good.refresh, key], 0, send).await,
            expected,
            "{name}"
        );
    }
    assert!(harness.refresh(&harness.issuer, &good.refresh).await.is_ok());
    harness.finish().await;
}

/// A thief who presents an old token again and again ends its session once.
pub async fn a_hundred_reuses_of_a_refresh_token_leave_one_row() {
    let harness = Harness::start().await;
    let stolen = harness.sign_in("alice").await;
    let next = harness.refresh(&harness.admin, &stolen.refresh).await.unwrap();
    harness.server.clock.advance(seconds(31));
    let send = async {
        let calls = (0..100).map(|_| harness.refresh(&harness.admin, &stolen.refresh));
        join_all(calls).await.into_iter().map(refused).collect::<Vec<_>>()
    };
    let answers = harness.survives("a stolen token", &[&stolen.refresh], 1, send).await;
    let [reused, revoked] =
        ["REFRESH_TOKEN_REUSED", "SESSION_REVOKED"].map(Refusal::unauthenticated);
    assert!(answers.iter().all(|answer| *answer == reused || *answer == revoked), "{answers:?}");
    assert!(answers.contains(&reused));
    assert!(!harness.is_active(&next.access).await);
    harness.finish().await;
}

/// Refreshes, and tries again as long as the service answers that it is overloaded.
async fn refresh_until_admitted(
    harness: &Harness,
    token: &str,
) -> countersign_test_support::server::SignedIn {
    loop {
        match harness.refresh(&harness.admin, token).await {
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                tokio::task::yield_now().await
            }
            answer => return answer.unwrap(),
        }
    }
}

/// Many users signed in at the same time, so their tokens expire at the same time and they refresh
/// at the same time, each from several tabs.
pub async fn a_storm_of_refreshes_at_the_same_expiry_rotates_each_session_once() {
    let harness = Harness::start().await;
    let (sessions, tabs) = STORM;
    let all: Vec<_> = stream::iter(0..sessions)
        .map(|number| {
            let harness = &harness;
            async move { harness.sign_in(&format!("subject {number}")).await }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let expiry = all[0].tokens.access_token_expires_at;
    assert!(
        all.iter().all(|session| session.tokens.access_token_expires_at == expiry),
        "all tokens expire at once, because the clock stands still"
    );
    harness.server.clock.advance(seconds(600));
    assert!(!harness.is_active(&all[0].access).await, "{:?}", harness.server.clock.now());
    let good = harness.sign_in("alice").await;

    let send = async {
        let calls = all.iter().flat_map(|session| {
            (0..tabs).map(|_| refresh_until_admitted(&harness, &session.refresh))
        });
        join_all(calls).await
    };
    let secrets: Vec<_> = all.iter().map(|session| &*session.refresh).collect();
    let answers = harness.survives("a storm", &secrets, 0, send).await;
    for (old, tabs) in all.iter().zip(answers.chunks(tabs)) {
        for tab in tabs {
            assert_eq!((&tab.refresh, tab.id()), (&tabs[0].refresh, old.id()), "one successor");
            assert_eq!(tab.session.state(), SessionState::Live);
        }
        assert!(harness.is_active(&tabs[0].access).await);
    }
    assert!(harness.is_active(&good.access).await);
    harness.finish().await;
}
