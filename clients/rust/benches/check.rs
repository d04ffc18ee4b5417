//! Measures a check of a token by a local verifier, against references of the same run:
//!
//! - a token that was seen before, against a verification by `jsonwebtoken`
//! - a new token, against a bare check of its signature by the same cryptographic library
//! - the parts of a check of a token that was seen before
//! - the memory of an index of a million revocations
//!
//! `cargo bench -p countersign-client` prints the figures. With the arguments ADDRESS TOKEN it
//! measures calls of Validate at this service instead. What is compared runs in turn, in rounds
//! of at most a tenth of a millisecond, and each figure is the median of the rounds. So it matters
//! little if other processes interrupt, and not at all if the machine drifts.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use std::{
    fs,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        self, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        ParsedPublicKey, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign_client::{
    Client, Demands, Verifier,
    testing::{AUDIENCE, Authority, Clock, ISSUER},
    verifier::OnLapse,
};
use countersign_verification::{
    access::{Expectations, Signer, sign},
    claims::AccessClaims,
    clock::SystemClock,
    counters::Counters,
    cut_off::Coverable,
    ids::{SessionId, TokenId},
    index::Index,
    json_object::JsonObject,
    keys::{Found, VerifyingKey, VerifyingKeys},
    lease::Lease,
    revocation::{FeedEntry, Revoked, Seq},
    time::Timestamp,
    validate::Authenticator,
    verified_cache::{TokenDigest, VerifiedCache},
};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

const ROUNDS: usize = 4_001;
/// The steps of a round of what takes less than a microsecond.
const STEPS: usize = 50;
const SEEN: usize = 100;
/// The number of calls of Validate that are measured.
const CALLS: usize = 20_001;
const REVOCATIONS: u64 = 1_000_000;

/// Something that is measured, with a number of its steps, as it is called with the number of each.
struct Measured<'a> {
    name: &'a str,
    steps: usize,
    step: Box<dyn FnMut(usize) + 'a>,
}

fn measured<'a>(name: &'a str, steps: usize, step: impl FnMut(usize) + 'a) -> Measured<'a> {
    Measured { name, steps, step: Box::new(step) }
}

/// Measures each in turn, and returns the medians for a step, in nanoseconds.
fn medians(mut all: Vec<Measured<'_>>) -> Vec<f64> {
    let mut times = vec![vec![]; all.len()];
    for round in 0..ROUNDS {
        for (measured, times) in all.iter_mut().zip(&mut times) {
            let began = Instant::now();
            for step in 0..measured.steps {
                (measured.step)(round * measured.steps + step);
            }
            times.push(began.elapsed().as_nanos() as f64 / measured.steps as f64);
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    };
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    for (measured, median) in all.iter().zip(&medians) {
        println!("{:<44} {median:>9.0} ns", measured.name);
    }
    medians
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// A key, and everything that signs and verifies with it.
struct Key {
    algorithm: Algorithm,
    name: &'static str,
    sign: Sign,
    decoding: DecodingKey,
    verifying: VerifyingKey,
    bare: ParsedPublicKey,
    unparsed: UnparsedPublicKey<Vec<u8>>,
}

impl VerifyingKeys for Key {
    fn verifying(&self, kid: &str) -> Found<'_> {
        match kid {
            "key" => Found::Good(&self.verifying),
            _ => Found::Unknown,
        }
    }
}

fn key(
    algorithm: Algorithm,
    name: &'static str,
    sign: impl Fn(&[u8]) -> Vec<u8> + 'static,
    decoding: DecodingKey,
    bare: (&'static dyn VerificationAlgorithm, &[u8]),
) -> Key {
    let verifying = VerifyingKey::new(algorithm, &decoding).unwrap();
    let unparsed = UnparsedPublicKey::new(bare.0, bare.1.to_vec());
    let bare = ParsedPublicKey::new(bare.0, bare.1).unwrap();
    Key { algorithm, name, sign: Box::new(sign), decoding, verifying, bare, unparsed }
}

fn keys() -> [Key; 3] {
    let random = || SystemRandom::new();
    let ed = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let public = ed.public_key().as_ref().to_vec();
    let ed = key(
        Algorithm::EdDSA,
        "EdDSA",
        move |message| ed.sign(message).as_ref().to_vec(),
        DecodingKey::from_ed_der(&public),
        (&signature::ED25519, &public),
    );
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let public = ec.public_key().as_ref().to_vec();
    let ec = key(
        Algorithm::ES256,
        "ES256",
        move |message| ec.sign(&random(), message).unwrap().as_ref().to_vec(),
        DecodingKey::from_ec_der(&public),
        (&signature::ECDSA_P256_SHA256_FIXED, &public),
    );
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let components = rsa.public_key();
    let n = components.modulus().big_endian_without_leading_zero().to_vec();
    let e = components.exponent().big_endian_without_leading_zero().to_vec();
    let public = AsDer::as_der(rsa.public_key()).unwrap().as_ref().to_vec();
    let rsa = key(
        Algorithm::RS256,
        "RS256",
        move |message| {
            let mut bytes = vec![0; rsa.public_modulus_len()];
            rsa.sign(&RSA_PKCS1_SHA256, &random(), message, &mut bytes).unwrap();
            bytes
        },
        DecodingKey::from_rsa_raw_components(&n, &e),
        (&signature::RSA_PKCS1_2048_8192_SHA256, &public),
    );
    [ed, ec, rsa]
}

/// Returns a token that looks like those of the service.
fn token(key: &Key, number: usize) -> String {
    let now = SystemClock.now().floor_to_second();
    let number = u64::try_from(number).unwrap();
    let mut id = [0; 16];
    id[8..].copy_from_slice(&number.to_be_bytes());
    let custom = serde_json::json!({ "plan": "gold" });
    let claims = AccessClaims {
        issuer: ISSUER.to_owned(),
        session_id: SessionId::new(now, id[6..].try_into().unwrap()),
        token_id: TokenId::new(id),
        authentication_id: None,
        subject: format!("user-{number}"),
        tenant: "acme".to_owned(),
        client_id: "web".to_owned(),
        audience: vec![AUDIENCE.to_owned()],
        scopes: vec!["read".to_owned(), "write".to_owned()],
        issued_at: now,
        expires_at: now.plus(Duration::from_secs(900)),
        not_before: None,
        authenticated_at: now,
        acr: String::new(),
        amr: vec!["pwd".to_owned()],
        amr_verified_at: vec![],
        custom: JsonObject::from(custom.as_object().unwrap()),
    };
    let sign_bytes = |message: &[u8]| Some((key.sign)(message));
    sign(&claims, Signer { kid: "key", algorithm: key.name, sign: sign_bytes }).unwrap()
}

/// Measures new tokens against bare signatures, and returns the time of `jsonwebtoken`.
fn measure_new(key: &Key) -> f64 {
    let tokens: Vec<String> = (0..ROUNDS).map(|number| token(key, number)).collect();
    let cache = VerifiedCache::with_capacity(32 << 20);
    let expected = Expectations { issuer: ISSUER, max_ttl: Duration::from_secs(3600) };
    let authenticator = Authenticator { expected, keys: key, cache: &cache };
    // Each signature is another one, because the time of a verification depends on it, and the
    // processor would learn its branches.
    let others: Vec<String> = (0..ROUNDS).map(|number| token(key, ROUNDS + number)).collect();
    let signed: Vec<_> = others
        .iter()
        .map(|token| {
            let (message, encoded) = token.rsplit_once('.').unwrap();
            (message.as_bytes(), encoded, URL_SAFE_NO_PAD.decode(encoded).unwrap())
        })
        .collect();
    let mut validation = Validation::new(key.algorithm);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&[ISSUER]);
    let decode = |token: &str| {
        let decoded = jsonwebtoken::decode::<Value>(token, &key.decoding, &validation).unwrap();
        black_box(decoded);
    };
    println!("\n{}, a token of {} bytes", key.name, tokens[0].len());
    let bare = |step: usize| {
        let (message, _, signature) = &signed[step];
        key.bare.verify_sig(black_box(message), signature).unwrap();
    };
    let decoding = &key.decoding;
    let medians = medians(vec![
        // The first one of a round finds the caches cold.
        measured("(the first of a round)", 1, |_| bare(0)),
        measured("bare signature", 1, bare),
        measured("the same, which parses the key", 1, |step| {
            let (message, _, signature) = &signed[step];
            key.unparsed.verify(black_box(message), signature).unwrap();
        }),
        measured("the same by jsonwebtoken", 1, |step| {
            let (message, encoded, _) = &signed[step];
            let is_good = jsonwebtoken::crypto::verify(encoded, message, decoding, key.algorithm);
            assert!(is_good.unwrap());
        }),
        measured("a new token", 1, |step| {
            black_box(authenticator.authenticate(&tokens[step]).unwrap());
        }),
        measured("jsonwebtoken", 1, |step| decode(&tokens[step])),
    ]);
    println!("{:<44} {:>9.3}    (bar: 1.15)", "new/signature", medians[4] / medians[1]);
    println!("{:<44} {:>9.3}", "new/signature, which parses the key", medians[4] / medians[2]);
    println!("{:<44} {:>9.3}", "new/jsonwebtoken", medians[4] / medians[5]);
    medians[5]
}

/// Measures tokens that were seen before, and returns the time.
fn measure_seen() -> f64 {
    let demands = Demands::new().audience(AUDIENCE).scope("read");
    let authority = Authority::with_system_clock();
    let issue = |number| {
        let token = authority.token(format!("user-{number}")).tenant("acme").client_id("web");
        token.scope("read").scope("write").claim("plan", "gold").issue()
    };
    let tokens: Vec<String> = (0..SEEN).map(issue).collect();
    let verifier = authority.verifier();
    println!("\na token that was seen before, of {} bytes", tokens[0].len());
    let check = |step: usize| {
        let answer = black_box(verifier.verify_locally(&tokens[step % SEEN], &demands));
        assert!(answer.is_active());
    };
    medians(vec![measured("a check", STEPS, check)])[0]
}

/// Measures the parts of a check of a token that was seen before, with a full index.
fn measure_parts(index: &Index) {
    let [key, ..] = keys();
    let tokens: Vec<String> = (0..SEEN).map(|number| token(&key, number)).collect();
    let cache = VerifiedCache::with_capacity(32 << 20);
    let expected = Expectations { issuer: ISSUER, max_ttl: Duration::from_secs(3600) };
    let authenticator = Authenticator { expected, keys: &key, cache: &cache };
    let verified: Vec<_> =
        tokens.iter().map(|token| authenticator.authenticate(token).unwrap()).collect();
    let digests: Vec<_> = tokens.iter().map(|token| TokenDigest::of(token)).collect();
    let lease = Lease::new(Arc::new(SystemClock), Duration::from_millis(250));
    lease.take(lease.start(), Duration::from_secs(3600));
    let counters = Counters::new(14);
    println!("\nthe parts of such a check");
    medians(vec![
        measured("digest of the token (SHA-256)", STEPS, |step| {
            black_box(TokenDigest::of(black_box(&tokens[step % SEEN])));
        }),
        measured("look-up among verified tokens", STEPS, |step| {
            black_box(cache.get(&digests[step % SEEN]));
        }),
        measured("look-up among 10^6 revocations", STEPS, |step| {
            let claims = &verified[step % SEEN].claims;
            black_box(index.stops(&Coverable::from(claims), claims.token_id, None));
        }),
        measured("lease: both clocks", STEPS, |_| {
            black_box(lease.check(lease.load()));
        }),
        measured("a counter", STEPS, |_| counters.increment(0)),
    ]);
}

fn resident() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

/// Fills an index with sessions, and prints its memory.
fn filled_index() -> Index {
    let before = resident();
    let index = Index::default();
    // Identifiers of sessions begin with their time, and end with random bytes.
    let mut random = 1_u64;
    for number in 0..REVOCATIONS {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&(random ^ (random >> 29)).to_be_bytes());
        let at = Timestamp::from_micros(1_800_000_000_000_000 + i64::try_from(number).unwrap());
        index.apply(&FeedEntry {
            seq: Seq::default(),
            revoked: Revoked::Session(SessionId::new(at, bytes)),
            tenant: None,
            expires_at: at.plus(Duration::from_secs(960)),
        });
    }
    let bytes = (resident() - before) / index.len() as f64;
    println!("a revocation takes {bytes:.1} bytes (bar: 64), of {} revocations", index.len());
    index
}

/// Measures calls of Validate at a service, one after the other, against checks by a local verifier
/// that watches it. It uses one thread.
async fn measure_remote(address: &str, token: &str) {
    let client = || Client::builder(format!("http://{address}")).build().unwrap();
    let remote = Verifier::remote(client());
    let local = Verifier::local(client()).on_lapse(OnLapse::Refuse).start();
    local.ready().await;
    let demands = Demands::new();
    let (mut remote_times, mut local_times) = (vec![], vec![]);
    for _ in 0..CALLS {
        let began = Instant::now();
        assert!(remote.verify(token, &demands).await.is_active());
        remote_times.push(began.elapsed().as_nanos() as f64);
        let began = Instant::now();
        for _ in 0..STEPS {
            assert!(black_box(local.verify_locally(token, &demands)).is_active());
        }
        local_times.push(began.elapsed().as_nanos() as f64 / STEPS as f64);
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[CALLS / 2]
    };
    let (remote, local) = (median(remote_times), median(local_times));
    println!("{:<44} {remote:>9.0} ns", "a call of Validate");
    println!("{:<44} {local:>9.0} ns", "a check of a token that was seen before");
    println!("{:<44} {:>9.1}    (bar: 100)", "call/check", remote / local);
}

fn main() {
    // `cargo test --all-targets` runs benchmarks without this argument.
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let count = arguments.len();
    arguments.retain(|argument| argument != "--bench");
    if let [address, token] = arguments.as_slice() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.unwrap().block_on(measure_remote(address, token));
    }
    if arguments.len() == count {
        return;
    }
    let index = filled_index();
    let seen = measure_seen();
    measure_parts(&index);
    for key in keys() {
        let reference = measure_new(&key);
        let times = reference / seen;
        println!("{:<44} {times:>9.1}    (bar: 20)", "jsonwebtoken/seen before");
    }
    println!("\na token that was seen before: {seen:.0} ns (bar: 1000)");
}
