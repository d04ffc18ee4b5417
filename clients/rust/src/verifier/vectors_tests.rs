//! Runs the vectors that all client libraries share (`clients/vectors`).

use std::{collections::BTreeMap, fs, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use countersign_verification::clock::{Clock, SettableClock};
use prost::Message as _;
use serde_json::{Value, json};

use super::*;
use crate::{Answer, Demands, Session, Verifier, verifier::Mode};

fn read(file: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors");
    serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().map(text)
}

/// Reads demands. A member that is missing demands nothing.
fn demands(value: &Value) -> Demands {
    let mut demands = Demands::new().acr_values(texts(&value["acr_values"]));
    if let Some(audience) = value["audience"].as_str() {
        demands = demands.audience(audience);
    }
    for scope in texts(&value["scopes"]) {
        demands = demands.scope(scope);
    }
    if let Some(age) = value["max_authentication_age"].as_u64() {
        demands = demands.max_authentication_age(Duration::from_secs(age));
    }
    for factor in value["factors"].as_array().into_iter().flatten() {
        let method = text(&factor["method"]);
        demands = match factor["max_age"].as_u64() {
            Some(age) => demands.recent_factor(method, Duration::from_secs(age)),
            None => demands.factor(method),
        };
    }
    demands
}

fn seconds(at: std::time::SystemTime) -> u64 {
    at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Returns a session as the vectors have it.
fn session(session: &Session) -> Value {
    let times = session
        .amr()
        .iter()
        .filter_map(|method| session.verified_at(method).map(|at| (method.clone(), seconds(at))));
    json!({
        "session_id": session.id().to_string(),
        "subject": session.subject(),
        "tenant": session.tenant(),
        "client_id": session.client_id(),
        "audience": session.audience(),
        "scopes": session.scopes(),
        "issued_at": seconds(session.issued_at()),
        "expires_at": seconds(session.expires_at()),
        "authenticated_at": seconds(session.authenticated_at()),
        "acr": session.acr(),
        "amr": session.amr(),
        "amr_verified_at": times.collect::<BTreeMap<_, _>>(),
        "claims": session.claims(),
    })
}

/// A watcher that is handed the messages of a feed.
struct Site {
    watching: Watching,
    stream: StreamState,
    clock: Arc<SettableClock>,
    verifier: Verifier,
}

impl Site {
    fn at(micros: i64) -> Self {
        let clock = Arc::new(SettableClock::at(Timestamp::from_micros(micros)));
        let local = Arc::new(Local::new(clock.clone(), 1 << 20));
        let client = Client::builder("http://127.0.0.1:1").build().unwrap();
        let watching = Watching::new(client, local.clone());
        let verifier = Verifier::new(Mode::Local, Some(local), None, None);
        Self { watching, stream: StreamState::default(), clock, verifier }
    }

    fn receive(&mut self, message: &[u8]) -> Result<bool, Ended> {
        let response = WatchResponse::decode(message).unwrap();
        self.watching.apply(&mut self.stream, response)
    }

    /// Sends a renewal, and returns the cursor that it confirms.
    fn renew(&mut self) -> Vec<u8> {
        let (requests, mut sent) = mpsc::channel(1);
        self.watching.renew(&mut self.stream, &requests);
        match sent.try_recv().unwrap().message {
            Some(Message::Renewal(renewal)) => renewal.applied,
            other => panic!("{other:?}"),
        }
    }

    fn hear(&mut self, cursor: &[u8], event: Event) {
        let response = WatchResponse { cursor: cursor.to_vec(), event: Some(event) };
        self.watching.apply(&mut self.stream, response).unwrap();
    }

    /// Gives the watcher these rules and keys, no revocations, and a lease.
    fn prepare(&mut self, file: &Value) {
        let span =
            |value: &Value| prost_types::Duration { seconds: value.as_i64().unwrap(), nanos: 0 };
        self.hear(
            &[],
            Event::Rules(WatchRules {
                issuer: text(&file["issuer"]).to_owned(),
                max_lifetime: Some(span(&file["max_lifetime"])),
                leeway: Some(span(&file["leeway"])),
                lease_margin: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
                ..Default::default()
            }),
        );
        self.hear(&[], Event::Keys(WatchKeys { jwks: file["jwks"].to_string(), revoked: vec![] }));
        self.hear(&[1], Event::Revocations(WatchRevocations::default()));
        self.renew();
        self.hear(
            &[],
            Event::Lease(WatchLease {
                number: 1,
                valid_for: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
                expired_up_to: Some(prost_types::Timestamp::default()),
                now: Some(prost_types::Timestamp {
                    seconds: file["at"].as_i64().unwrap(),
                    nanos: 0,
                }),
            }),
        );
    }

    /// Checks a token. Returns a sentence if the answer is not the one in the vector.
    fn check(&self, token: &str, vector: &Value) -> Option<String> {
        let demands = demands(&vector["demands"]);
        // The second answer might come from the cache of verified tokens.
        for _ in 0..2 {
            let answer = self.verifier.verify_locally(token, &demands);
            let word = match &answer {
                Answer::Active(_) => "ACTIVE".to_owned(),
                Answer::Inactive(reason) => reason.as_str().to_uppercase(),
                Answer::Unknown(_) => "UNKNOWN".to_owned(),
            };
            if word != text(&vector["answer"]) {
                return Some(format!("{word} instead of {}", vector["answer"]));
            }
            let expected = &vector["session"];
            match answer.session().map(session) {
                Some(session) if !expected.is_null() && session != *expected => {
                    return Some(format!("{session} instead of {expected}"));
                }
                _ => {}
            }
        }
        None
    }

    /// Carries out a step. Returns a sentence if it does not lead to what it should.
    fn step(&mut self, tokens: &Value, step: &Value) -> Option<String> {
        let differs = |is: &[u8], name: &str| {
            (is != bytes(&step[name])).then(|| format!("the {name} is {is:?}"))
        };
        match text(&step["step"]) {
            "open" => {
                self.stream = StreamState::default();
                differs(&self.watching.cursor, "cursor")
            }
            "receive" => {
                let received = self.receive(&bytes(&step["message"]));
                received.err().map(|ended| ended.to_string())
            }
            "refuse" => {
                let received = self.receive(&bytes(&step["message"]));
                received.ok().map(|_| "it was not refused".to_owned())
            }
            "renew" => differs(&self.renew(), "applied"),
            "advance" => {
                let [uptime, wall] =
                    ["uptime_ms", "wall_ms"].map(|name| step[name].as_i64().unwrap());
                let target = self.clock.now().micros() + wall * 1000;
                self.clock.advance(Duration::from_millis(uptime.try_into().unwrap()));
                self.clock.jump_to(Timestamp::from_micros(target));
                None
            }
            "check" => self.check(text(&tokens[text(&step["token"])]), step),
            other => panic!("there is a step of the unknown kind {other}"),
        }
    }
}

#[tokio::test]
async fn the_vectors_of_tokens_hold() {
    let mut wrong = vec![];
    for file in ["eddsa", "es256", "rs256", "demands"] {
        let contents = read(&format!("tokens-{file}.json"));
        let mut site = Site::at(contents["at"].as_i64().unwrap() * 1_000_000);
        site.prepare(&contents);
        let vectors = contents["vectors"].as_array().unwrap();
        assert!(vectors.len() > 30, "{file}");
        for vector in vectors {
            let problem = site.check(text(&vector["token"]), vector);
            wrong.extend(problem.map(|problem| format!("{file}, {}: {problem}", vector["name"])));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_vectors_of_feeds_hold() {
    let mut wrong = vec![];
    for file in ["rules", "recorded"] {
        let contents = read(&format!("feeds-{file}.json"));
        for feed in contents["feeds"].as_array().unwrap() {
            let mut site = Site::at(feed["wall_ms"].as_i64().unwrap() * 1000);
            for (number, step) in feed["steps"].as_array().unwrap().iter().enumerate() {
                let problem = site.step(&feed["tokens"], step);
                wrong.extend(
                    problem.map(|it| format!("{}, step {number} {step}: {it}", feed["name"])),
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
