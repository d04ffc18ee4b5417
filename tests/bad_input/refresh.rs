//! Refresh tokens that are not good, or not for who shows them, or shown too often.
//!
//! Held elsewhere: 64 refreshes at once, replays within the grace and after it, and tokens two
//! generations old, each to the microsecond, in `service/refresh.rs`; races over several replicas
//! in `cluster/refreshing.rs`; what each role may in `service/callers.rs`.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{clock::Clock, proto::SessionState};
use futures_util::{StreamExt, future::join_all, stream};

use super::field::Field;
use crate::{
    forge::Forge,
    refusal::{Refusal, refused},
    server::{Server, seconds},
};

/// How many wrong tokens are tried for one session.
const GUESSES: usize = 2000;
/// How many sessions have tokens that expire at the same instant, and how many of their clients ask
/// at once.
const STORM: (usize, usize) = (200, 4);
/// Calls under way at once.
const AT_ONCE: usize = 64;

struct Row {
    name: String,
    token: String,
    expected: Refusal,
}

fn invalid() -> Refusal {
    Refusal::unauthenticated("REFRESH_TOKEN_INVALID")
}

/// Everything that somebody makes who does not have the token, though the keys perhaps.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_authentic_is_refused_and_changes_nothing() {
    let field = Field::start().await;
    let server = &field.server;
    let [good, bystander] = [field.sign_in("alice").await, field.sign_in("bob").await];
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
            "of the last generation",
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
        name: "nothing".to_owned(),
        token: String::new(),
        expected: Refusal::field("refresh_token"),
    });

    for Row { name, token, expected } in rows {
        let send = async { refused(field.refresh(&field.admin, &token).await) };
        assert_eq!(field.survives(&name, &[&token], 0, send).await, expected, "{name}");
    }
    let mut viewer = server.client_with(&field.admin);
    let get = countersign::proto::GetSessionRequest { session_id: good.id() };
    assert_eq!(viewer.get_session(get).await.unwrap().into_inner().session.unwrap(), good.session);
    assert!(field.refresh(&field.admin, &good.refresh).await.is_ok(), "it was not used up");
    field.finish().await;
}

/// A session is no easier to guess at the thousandth time, and nobody is signed out by it.
#[tokio::test(flavor = "multi_thread")]
async fn guesses_find_nothing_and_sign_nobody_out() {
    let field = Field::start().await;
    let good = field.sign_in("alice").await;
    let bytes = URL_SAFE_NO_PAD.decode(good.refresh.strip_prefix("cs_rt_").unwrap()).unwrap();
    let guess = |number: usize| {
        let mut bytes = bytes.clone();
        // Of one secret after the other, and of one MAC after the other.
        let at = if number.is_multiple_of(2) { 29 } else { 45 };
        for (byte, add) in bytes[at..].iter_mut().zip((number + 1).to_le_bytes()) {
            *byte ^= add;
        }
        format!("cs_rt_{}", URL_SAFE_NO_PAD.encode(bytes))
    };
    let guesses: Vec<_> = (0..GUESSES).map(guess).collect();
    let send = async {
        let calls = stream::iter(&guesses).map(|guess| field.refresh(&field.admin, guess));
        calls.buffer_unordered(AT_ONCE).map(refused).collect::<Vec<_>>().await
    };
    let secrets: Vec<_> = guesses.iter().map(String::as_str).collect();
    let answers = field.survives("guesses", &secrets, 0, send).await;
    assert!(answers.len() == GUESSES && answers.iter().all(|answer| *answer == invalid()));
    assert!(field.refresh(&field.admin, &good.refresh).await.is_ok());
    field.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_another_caller_and_without_the_right_it_is_good_for_nothing_and_not_used_up() {
    let field = Field::start().await;
    let good = field.sign_in("alice").await;
    let not_allowed = Refusal::of(tonic::Code::PermissionDenied, "CALLER_NOT_ALLOWED");
    for (name, key, expected) in [
        ("a caller of another tenant", &*field.foreign, invalid()),
        ("a caller who may only validate", &field.validator, not_allowed),
        ("nobody", "", Refusal::unauthenticated("CALLER_UNKNOWN")),
        (
            "a stranger",
            "cs_ck_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            Refusal::unauthenticated("CALLER_UNKNOWN"),
        ),
        ("the token as the key", &good.refresh, Refusal::unauthenticated("CALLER_UNKNOWN")),
    ] {
        let send = async { refused(field.refresh(key, &good.refresh).await) };
        assert_eq!(field.survives(name, &[&good.refresh, key], 0, send).await, expected, "{name}");
    }
    assert!(field.refresh(&field.issuer, &good.refresh).await.is_ok());
    field.finish().await;
}

/// Whoever has stolen a token and shows it again and again ends one session once.
#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_token_shown_a_hundred_times_leaves_one_row() {
    let field = Field::start().await;
    let stolen = field.sign_in("alice").await;
    let next = field.refresh(&field.admin, &stolen.refresh).await.unwrap();
    field.server.clock.advance(seconds(31));
    let send = async {
        let calls = (0..100).map(|_| field.refresh(&field.admin, &stolen.refresh));
        join_all(calls).await.into_iter().map(refused).collect::<Vec<_>>()
    };
    let answers = field.survives("a stolen token", &[&stolen.refresh], 1, send).await;
    let [reused, revoked] =
        ["REFRESH_TOKEN_REUSED", "SESSION_REVOKED"].map(Refusal::unauthenticated);
    assert!(answers.iter().all(|answer| *answer == reused || *answer == revoked), "{answers:?}");
    assert!(answers.contains(&reused));
    assert!(!field.is_active(&next.access).await);
    field.finish().await;
}

/// Refreshes, and comes back when it is told that there are too many.
async fn patient(field: &Field, token: &str) -> crate::server::SignedIn {
    loop {
        match field.refresh(&field.admin, token).await {
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                tokio::task::yield_now().await
            }
            answer => return answer.unwrap(),
        }
    }
}

/// Many who signed in at the same time come back at the same time, each with several tabs.
#[tokio::test(flavor = "multi_thread")]
async fn a_storm_at_the_same_expiry_rotates_each_session_once() {
    let field = Field::start().await;
    let (sessions, tabs) = STORM;
    let all: Vec<_> = stream::iter(0..sessions)
        .map(|number| {
            let field = &field;
            async move { field.sign_in(&format!("subject {number}")).await }
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let expiry = all[0].tokens.access_token_expires_at;
    assert!(
        all.iter().all(|session| session.tokens.access_token_expires_at == expiry),
        "the clock stands still"
    );
    field.server.clock.advance(seconds(600));
    assert!(!field.is_active(&all[0].access).await, "{:?}", field.server.clock.now());
    let good = field.sign_in("alice").await;

    let send = async {
        let calls =
            all.iter().flat_map(|session| (0..tabs).map(|_| patient(&field, &session.refresh)));
        join_all(calls).await
    };
    let secrets: Vec<_> = all.iter().map(|session| &*session.refresh).collect();
    let answers = field.survives("a storm", &secrets, 0, send).await;
    for (old, tabs) in all.iter().zip(answers.chunks(tabs)) {
        for tab in tabs {
            assert_eq!((&tab.refresh, tab.id()), (&tabs[0].refresh, old.id()), "one successor");
            assert_eq!(tab.session.state(), SessionState::Live);
        }
        assert!(field.is_active(&tabs[0].access).await);
    }
    assert!(field.is_active(&good.access).await);
    field.finish().await;
}
