//! Calls the service as fast as it answers, with a different body in each call, which `h2load`
//! cannot do.
//!
//! `scripts/bench` runs this program. There are three modes: `create ADDRESS SECONDS IN_FLIGHT
//! POLICY`, with a different subject in each call; `refresh ADDRESS SECONDS IN_FLIGHT SESSIONS`,
//! with the token of the session's last refresh; and `revoke ADDRESS SECONDS IN_FLIGHT SESSIONS`,
//! with a different session in each call. After a second of warm-up, the calls are counted. The
//! program prints the calls per second, and the median, the 99th percentile and the maximum of
//! their latencies in microseconds.
//!
//! Client, service and database share the machine, so an expensive client would distort the
//! figures.
#![allow(clippy::disallowed_methods)] // Measurements need the real clock.

use std::{
    collections::{HashMap, VecDeque},
    env,
    time::{Duration, Instant},
};

use countersign::proto::{
    CreateSessionRequest, CreateSessionResponse, RefreshRequest, RefreshResponse, RevokeRequest,
    RevokeResponse, revoke_request::Target,
};
use countersign_test_support::http2::{Connection, Failure};
use prost::Message;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 4;
/// The calls in flight on each connection while sessions are created for later calls.
const CREATED_AT_ONCE: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> =
        env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (address, seconds, in_flight): (&str, u64, usize) = match arguments.as_slice() {
        [_, address, seconds, in_flight, _] => (address, seconds.parse()?, in_flight.parse()?),
        // `cargo bench` without arguments has nothing to measure here.
        [] => return Ok(()),
        _ => {
            return Err(
                "usage: create ADDRESS SECONDS IN_FLIGHT POLICY | refresh|revoke ADDRESS SECONDS \
                 IN_FLIGHT SESSIONS"
                    .into(),
            );
        }
    };
    let connections = CONNECTIONS.min(in_flight);
    let each = in_flight / connections;
    let timed = |from: Instant| Timed {
        from: from + WARM_UP,
        to: from + WARM_UP + Duration::from_secs(seconds),
    };
    let creations = |count: usize, policy: &str, until: Option<Timed>| {
        let creations = |connection| Creations {
            connection,
            next: 0,
            count,
            policy: policy.to_owned(),
            until,
            created: vec![],
        };
        (0..connections).map(creations).collect::<Vec<_>>()
    };
    let (times, calls) = match arguments[..] {
        ["create", .., policy] => {
            let times = timed(Instant::now());
            (times, drive(address, each, creations(usize::MAX, policy, Some(times))).await?.1)
        }
        ["refresh", .., sessions] => {
            let count = sessions.parse::<usize>()? / connections;
            let (created, _) = drive(address, each, creations(count, "", None)).await?;
            let times = timed(Instant::now());
            let tokens = |(_, token)| token;
            let refreshes = created.into_iter().map(|made| Refreshes {
                tokens: made.created.into_iter().map(tokens).collect(),
                until: times,
            });
            (times, drive(address, each, refreshes.collect()).await?.1)
        }
        ["revoke", .., sessions] => {
            let count = sessions.parse::<usize>()? / connections;
            // Many sessions are created at the same time, so that this takes less time.
            let (created, _) =
                drive(address, CREATED_AT_ONCE, creations(count, "unlimited", None)).await?;
            let times = timed(Instant::now());
            let revocations = created.into_iter().map(|made| Revocations {
                sessions: made.created.into_iter().map(|(session, _)| session).collect(),
                until: times,
            });
            (times, drive(address, each, revocations.collect()).await?.1)
        }
        _ => return Err("unknown mode".into()),
    };
    let counted = calls.into_iter().filter(|call| (times.from..times.to).contains(&call.answered));
    let mut latencies: Vec<Duration> = counted.map(|call| call.answered - call.asked).collect();
    latencies.sort_unstable();
    let part = |of_100: usize| {
        latencies.get((latencies.len() * of_100 / 100).min(latencies.len().saturating_sub(1)))
    };
    let [Some(median), Some(p99), Some(greatest)] = [50, 99, 100].map(part) else {
        return Err("nothing was answered in time".into());
    };
    let rate = latencies.len() as u64 / seconds;
    println!("{rate} {} {} {}", median.as_micros(), p99.as_micros(), greatest.as_micros());
    Ok(())
}

/// The interval whose answers are counted.
#[derive(Clone, Copy)]
struct Timed {
    from: Instant,
    to: Instant,
}

/// The calls of one connection, all of one method.
trait Calls: Send + 'static {
    const PATH: &'static str;
    /// Returns the next request, or `None` if no further call is to be made.
    fn next(&mut self) -> Option<Vec<u8>>;
    /// Processes an answer.
    fn answer(&mut self, message: &[u8]) -> Result<(), Failure>;
}

struct Creations {
    connection: usize,
    next: usize,
    count: usize,
    policy: String,
    until: Option<Timed>,
    /// The created sessions and their refresh tokens. Empty if the creations themselves are
    /// measured.
    created: Vec<(String, String)>,
}

impl Calls for Creations {
    const PATH: &'static str = "/countersign.v1.SessionService/CreateSession";

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.next == self.count || self.until.is_some_and(|until| Instant::now() > until.to) {
            return None;
        }
        self.next += 1;
        let request = CreateSessionRequest {
            subject: format!("user-{}-{}", self.connection, self.next),
            client_id: "web".to_owned(),
            scopes: vec!["read".to_owned(), "write".to_owned()],
            policy: self.policy.clone(),
            ..CreateSessionRequest::default()
        };
        Some(request.encode_to_vec())
    }

    fn answer(&mut self, message: &[u8]) -> Result<(), Failure> {
        if self.until.is_none() {
            let answer = CreateSessionResponse::decode(message)?;
            let session = answer.session.unwrap_or_default().session_id;
            self.created.push((session, answer.tokens.unwrap_or_default().refresh_token));
        }
        Ok(())
    }
}

struct Refreshes {
    /// The refresh tokens of the sessions that are not being refreshed.
    tokens: VecDeque<String>,
    until: Timed,
}

impl Calls for Refreshes {
    const PATH: &'static str = "/countersign.v1.SessionService/Refresh";

    fn next(&mut self) -> Option<Vec<u8>> {
        let refresh_token = self.tokens.pop_front().filter(|_| Instant::now() <= self.until.to)?;
        Some(RefreshRequest { refresh_token, ..RefreshRequest::default() }.encode_to_vec())
    }

    fn answer(&mut self, message: &[u8]) -> Result<(), Failure> {
        let answer = RefreshResponse::decode(message)?;
        if answer.replayed {
            return Err("a token was used twice".into());
        }
        self.tokens.push_back(answer.tokens.unwrap_or_default().refresh_token);
        Ok(())
    }
}

struct Revocations {
    sessions: Vec<String>,
    until: Timed,
}

impl Calls for Revocations {
    const PATH: &'static str = "/countersign.v1.SessionService/Revoke";

    fn next(&mut self) -> Option<Vec<u8>> {
        let session = self.sessions.pop().filter(|_| Instant::now() <= self.until.to)?;
        Some(
            RevokeRequest { target: Some(Target::SessionId(session)), ..RevokeRequest::default() }
                .encode_to_vec(),
        )
    }

    fn answer(&mut self, message: &[u8]) -> Result<(), Failure> {
        match RevokeResponse::decode(message)?.revoked_sessions {
            1 => Ok(()),
            other => Err(format!("{other} sessions were revoked").into()),
        }
    }
}

struct Call {
    asked: Instant,
    answered: Instant,
}

/// Makes all calls. Each element of `all` has a connection of its own, on which up to `in_flight`
/// calls are under way at the same time.
async fn drive<C: Calls>(
    address: &str,
    in_flight: usize,
    all: Vec<C>,
) -> Result<(Vec<C>, Vec<Call>), Failure> {
    let mut tasks = JoinSet::new();
    for calls in all {
        let connection = Connection::open(address, C::PATH, None).await?;
        tasks.spawn(drive_one(connection, in_flight, calls));
    }
    let (mut ended, mut made) = (vec![], vec![]);
    while let Some(joined) = tasks.join_next().await {
        let (calls, done) = joined??;
        ended.push(calls);
        made.extend(done);
    }
    Ok((ended, made))
}

async fn drive_one<C: Calls>(
    mut connection: Connection,
    in_flight: usize,
    mut calls: C,
) -> Result<(C, Vec<Call>), Failure> {
    let (mut made, mut asked) = (vec![], HashMap::new());
    let ask = |connection: &mut Connection, calls: &mut C, asked: &mut HashMap<u32, Instant>| {
        if let Some(message) = calls.next() {
            asked.insert(connection.ask(&message), Instant::now());
        }
    };
    for _ in 0..in_flight {
        ask(&mut connection, &mut calls, &mut asked);
    }
    while connection.under_way() > 0 {
        connection.flush().await?;
        connection.wait().await?;
        for answer in connection.answered()? {
            let asked_at = asked.remove(&answer.stream).ok_or("an answer to nothing")?;
            calls.answer(&answer.message.ok_or("a call has failed")?)?;
            made.push(Call { asked: asked_at, answered: Instant::now() });
            ask(&mut connection, &mut calls, &mut asked);
        }
    }
    Ok((calls, made))
}
