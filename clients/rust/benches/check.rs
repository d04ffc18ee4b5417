//! Measures a check of a token by a local verifier: of one that was seen before, and of a new one
//! against a bare check of its signature. The bars are 1 µs, and 1.15 times the signature.
//!
//! `cargo bench -p countersign-client` prints the numbers: the best of several rounds, because other
//! processes can only make a round slower.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use countersign_client::{Demands, testing::Authority};

const ROUNDS: usize = 20;
const TOKENS: usize = 2_000;

/// Returns the best time of `run` for each of its steps.
fn best(steps: usize, mut run: impl FnMut()) -> Duration {
    let round = |_| {
        let began = Instant::now();
        run();
        began.elapsed() / u32::try_from(steps).unwrap()
    };
    (0..ROUNDS).map(round).min().unwrap()
}

fn main() {
    // `cargo test --all-targets` runs benchmarks without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let demands = Demands::new().audience(countersign_client::testing::AUDIENCE).scope("read");
    let authority = Authority::new();
    let issue = |number| {
        let token = authority.token(format!("user-{number}")).tenant("acme").client_id("web");
        token.scope("read").scope("write").claim("plan", "gold").issue()
    };
    let tokens: Vec<String> = (0..TOKENS).map(issue).collect();
    let verifier = authority.verifier();
    let check = |token: &String| {
        assert!(black_box(verifier.verify_locally(token, &demands)).is_active());
    };
    tokens[..100].iter().for_each(check);
    let seen = best(TOKENS, || (0..TOKENS).for_each(|number| check(&tokens[number % 100])));

    let mut fresh: Vec<Vec<String>> =
        (0..ROUNDS).map(|_| (0..TOKENS).map(issue).collect()).collect();
    let new = best(TOKENS, || fresh.pop().unwrap().iter().for_each(check));

    let pair = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let message = tokens[0].rsplit_once('.').unwrap().0.as_bytes();
    let signature = pair.sign(message);
    let key = UnparsedPublicKey::new(&ED25519, pair.public_key().as_ref().to_vec());
    let bare = best(TOKENS, || {
        (0..TOKENS).for_each(|_| key.verify(black_box(message), signature.as_ref()).unwrap());
    });
    println!("seen before   {:>8} ns (bar: 1000)", seen.as_nanos());
    println!("new           {:>8} ns", new.as_nanos());
    println!("signature     {:>8} ns", bare.as_nanos());
    println!("new/signature {:>8.3}    (bar: 1.15)", new.as_secs_f64() / bare.as_secs_f64());
}
