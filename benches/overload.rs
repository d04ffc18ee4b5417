//! Offers more load than the service can process, and measures how the service behaves.
//! `scripts/overload` runs this program.
//!
//! `overload ADDRESS KIND SECONDS` first measures the capacity in a closed loop: each call is sent
//! when an earlier call has ended. Then it sends calls in an open loop, at a rate that does not
//! depend on the answers: half, twice and ten times the capacity, and half again after each
//! overload. The kinds are `create`, each call for another subject; `batch`, BatchValidate of
//! tokens with wrong signatures, each of which must be verified; and `list`, a page of 500
//! sessions.
#![allow(clippy::disallowed_methods)] // Measurements need the real clock.

use std::{
    collections::HashMap,
    env,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::proto::{
    BatchValidateRequest, BatchValidateResponse, CreateSessionRequest, CreateSessionResponse,
    InactiveReason, ListSessionsRequest, ListSessionsResponse, ValidateRequest,
};
use countersign_test_support::http2::{Connection, Failure};
use prost::Message;
use tokio::{task::JoinSet, time::sleep_until};

const CONNECTIONS: usize = 8;
const TICK: Duration = Duration::from_millis(1);
/// The number of tokens in a batch.
const BATCH: usize = 64;
/// The time within which a refusal should come.
const SOON: Duration = Duration::from_millis(10);

#[derive(Clone)]
struct Kind {
    name: String,
    /// A valid token, whose signature is changed for `batch`.
    token: String,
}

impl Kind {
    fn path(&self) -> &'static str {
        match self.name.as_str() {
            "batch" => "/countersign.v1.SessionService/BatchValidate",
            "list" => "/countersign.v1.SessionService/ListSessions",
            _ => "/countersign.v1.SessionService/CreateSession",
        }
    }

    /// Returns the number of calls in flight while the capacity is measured: as many as the service
    /// allows to run at once for a long time.
    fn in_flight(&self) -> usize {
        match self.name.as_str() {
            "create" => 256,
            "list" => 12,
            _ => 8,
        }
    }

    fn request(&self, number: u64) -> Vec<u8> {
        match self.name.as_str() {
            "batch" => {
                let (signed, signature) = self.token.rsplit_once('.').unwrap_or_default();
                let mut signature = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
                let requests = (0..BATCH as u64).map(|index| {
                    signature[8..16]
                        .copy_from_slice(&(number * BATCH as u64 + index).to_be_bytes());
                    let access_token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
                    ValidateRequest { access_token, ..ValidateRequest::default() }
                });
                BatchValidateRequest { requests: requests.collect() }.encode_to_vec()
            }
            "list" => ListSessionsRequest { page_size: 500, ..ListSessionsRequest::default() }
                .encode_to_vec(),
            _ => CreateSessionRequest { subject: format!("user-{number}"), ..Default::default() }
                .encode_to_vec(),
        }
    }

    fn is_right(&self, number: u64, message: &[u8]) -> bool {
        match self.name.as_str() {
            "batch" => BatchValidateResponse::decode(message).is_ok_and(|answer| {
                let bad = |answer: &countersign::proto::ValidateResponse| {
                    !answer.active && answer.inactive_reason() == InactiveReason::BadSignature
                };
                answer.responses.len() == BATCH && answer.responses.iter().all(bad)
            }),
            "list" => ListSessionsResponse::decode(message)
                .is_ok_and(|answer| !answer.sessions.is_empty()),
            _ => CreateSessionResponse::decode(message).is_ok_and(|answer| {
                answer.session.unwrap_or_default().subject == format!("user-{number}")
            }),
        }
    }
}

/// The outcome of the calls of a phase.
#[derive(Default)]
struct Outcome {
    accepted: Vec<Duration>,
    refused: Vec<Duration>,
    wrong: usize,
    /// The calls that were not sent, because the server allows no more on a connection.
    held_back: usize,
    /// The longest delay with which a call was sent.
    late: Duration,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.refused.extend(other.refused);
        self.wrong += other.wrong;
        self.held_back += other.held_back;
        self.late = self.late.max(other.late);
    }
}

/// The part of a load that one connection carries.
struct Part {
    kind: Kind,
    /// The number of the first call of this part.
    first: u64,
    /// Calls per second in an open loop; `None` for a closed loop with `in_flight` calls.
    rate: Option<f64>,
    in_flight: usize,
    span: Duration,
}

impl Part {
    async fn drive(self, mut connection: Connection) -> Result<Outcome, Failure> {
        let (mut outcome, mut asked) = (Outcome::default(), HashMap::new());
        let begun = Instant::now();
        let (mut next, mut sent) = (self.first, 0_u64);
        loop {
            let elapsed = begun.elapsed();
            let is_over = elapsed >= self.span;
            let due = match self.rate {
                Some(rate) => (elapsed.min(self.span).as_secs_f64() * rate) as u64,
                None if is_over => sent,
                None => sent + (self.in_flight - connection.under_way()) as u64,
            };
            while sent < due {
                let request = self.kind.request(next);
                // A client that respects the server's limits holds further calls back.
                if !connection.has_room_for(&request) {
                    if self.rate.is_some() {
                        outcome.held_back += (due - sent) as usize;
                        sent = due;
                    }
                    break;
                }
                if let Some(rate) = self.rate {
                    let should = Duration::from_secs_f64(sent as f64 / rate);
                    outcome.late = outcome
                        .late
                        .max(begun.elapsed().saturating_sub(should).saturating_sub(TICK));
                }
                asked.insert(connection.ask(&request), (next, Instant::now()));
                (next, sent) = (next + 1, sent + 1);
            }
            if is_over && connection.under_way() == 0 {
                return Ok(outcome);
            }
            connection.flush().await?;
            let tick = if is_over { Duration::from_secs(20) } else { TICK };
            tokio::select! {
                came = connection.wait() => came?,
                () = sleep_until((Instant::now() + tick).into()) => {
                    if is_over {
                        return Err("calls were not answered".into());
                    }
                    continue;
                }
            }
            for answer in connection.answered()? {
                let (number, at) = asked.remove(&answer.stream).ok_or("an answer to nothing")?;
                match answer.message {
                    None => outcome.refused.push(at.elapsed()),
                    Some(message) => {
                        outcome.accepted.push(at.elapsed());
                        outcome.wrong += usize::from(!self.kind.is_right(number, &message));
                    }
                }
            }
        }
    }
}

struct Load<'a> {
    address: &'a str,
    kind: Kind,
    next: u64,
}

impl Load<'_> {
    async fn run(&mut self, rate: Option<f64>, span: Duration) -> Result<Outcome, Failure> {
        let mut tasks = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let part = Part {
                kind: self.kind.clone(),
                first: self.next,
                rate: rate.map(|rate| rate / CONNECTIONS as f64),
                in_flight: self.kind.in_flight() / CONNECTIONS,
                span,
            };
            self.next += 100_000_000;
            let connection = Connection::open(self.address, self.kind.path(), None).await?;
            tasks.spawn(part.drive(connection));
        }
        let mut outcome = Outcome::default();
        while let Some(part) = tasks.join_next().await {
            outcome.add(part??);
        }
        outcome.accepted.sort_unstable();
        outcome.refused.sort_unstable();
        Ok(outcome)
    }
}

/// Returns the latency that `of_1000` of 1000 calls do not exceed.
fn part_of(sorted: &[Duration], of_1000: usize) -> Duration {
    sorted
        .get((sorted.len() * of_1000 / 1000).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

fn millis(span: Duration) -> String {
    format!("{:.2}", span.as_secs_f64() * 1000.0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> =
        env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (address, kind, seconds): (&str, &str, u64) = match arguments.as_slice() {
        [address, kind, seconds] => (address, kind, seconds.parse()?),
        // `cargo bench` without arguments has nothing to measure here.
        [] => return Ok(()),
        _ => return Err("usage: ADDRESS create|batch|list SECONDS".into()),
    };
    let span = Duration::from_secs(seconds);
    let token = env::var("TOKEN").unwrap_or_default();
    let mut load = Load { address, kind: Kind { name: kind.to_owned(), token }, next: 0 };
    load.run(None, Duration::from_secs(1)).await?;
    let closed = load.run(None, span).await?;
    if !closed.refused.is_empty() {
        return Err("calls were refused while the capacity was measured".into());
    }
    let capacity = closed.accepted.len() as f64 / span.as_secs_f64();
    println!(
        "| load | offered | accepted | of the capacity | p50 | p99 | p99 of half load | refused | \
         p50 | p99.9 | within 10 ms | held back | sent late |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    println!(
        "| {kind}, {} in flight | | {capacity:.0}/s | 1.00 | {} ms | {} ms | | | | | | | |",
        load.kind.in_flight(),
        millis(part_of(&closed.accepted, 500)),
        millis(part_of(&closed.accepted, 990)),
    );
    let mut half_p99 = None;
    for (name, times, span) in [
        ("half", 0.5, span),
        ("twice", 2.0, span),
        ("half, the next second", 0.5, Duration::from_secs(1)),
        ("ten times", 10.0, span),
        ("half, the next second", 0.5, Duration::from_secs(1)),
    ] {
        let outcome = load.run(Some(capacity * times), span).await?;
        let p99 = part_of(&outcome.accepted, 990);
        let half = *half_p99.get_or_insert(p99);
        let soon = outcome.refused.partition_point(|latency| *latency <= SOON);
        let share = if outcome.refused.is_empty() {
            100.0
        } else {
            soon as f64 * 100.0 / outcome.refused.len() as f64
        };
        let rate = outcome.accepted.len() as f64 / span.as_secs_f64();
        println!(
            "| {name} | {:.0}/s | {rate:.0}/s | {:.2} | {} ms | {} ms | {:.1} | {:.0}/s | {} ms | \
             {} ms | {share:.2} % | {:.0}/s | {} ms |",
            capacity * times,
            rate / capacity,
            millis(part_of(&outcome.accepted, 500)),
            millis(p99),
            p99.as_secs_f64() / half.as_secs_f64(),
            outcome.refused.len() as f64 / span.as_secs_f64(),
            millis(part_of(&outcome.refused, 500)),
            millis(part_of(&outcome.refused, 999)),
            outcome.held_back as f64 / span.as_secs_f64(),
            millis(outcome.late),
        );
        if outcome.wrong > 0 {
            return Err(format!("{} answers were wrong", outcome.wrong).into());
        }
    }
    Ok(())
}
