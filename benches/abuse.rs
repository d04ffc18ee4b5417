//! Tries to revoke tokens that must not be revoked, and checks each answer. `scripts/abuse` runs
//! this program.
//!
//! `abuse ADDRESS CALLS PID` makes this many calls. The variable API_KEY holds the key of a
//! revoker, EXPIRED an expired access token, and FOREIGN an access token of a tenant to which the
//! revoker has no access. The tokens of the calls are garbage, forged, expired and foreign, in
//! turn. The program also prints the resident memory of the process PID.
//!
//! `abuse ADDRESS others` validates a token again and again until its standard input is closed, and
//! prints the latencies. They show how an attack that runs meanwhile affects other clients.

use std::{
    collections::HashMap,
    env, fs,
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use countersign::proto::{
    CreateSessionRequest, CreateSessionResponse, RevokeRequest, RevokeResponse, ValidateRequest,
    ValidateResponse, revoke_request::Target,
};
use countersign_test_support::http2::{Connection, Failure};
use prost::Message;
use tokio::{task::JoinSet, time::Instant};

const CONNECTIONS: u64 = 8;
const IN_FLIGHT: u64 = 16;
/// The number of times that the memory is printed.
const REPORTS: u64 = 10;

#[derive(Clone)]
struct Tokens {
    expired: String,
    foreign: String,
}

impl Tokens {
    /// Returns the token of a call, and whether the call is to succeed.
    fn of(&self, number: u64) -> (String, bool) {
        match number % 4 {
            // The garbage is as long as a token, so that all of it is read.
            0 => (format!("{number:x}.{}", "garbage".repeat(60)), false),
            1 => {
                let (signed, signature) = self.foreign.rsplit_once('.').unwrap_or_default();
                let number = format!("{number:08}");
                (
                    format!(
                        "{signed}.{number}{}",
                        signature.get(number.len()..).unwrap_or_default()
                    ),
                    false,
                )
            }
            2 => (self.expired.clone(), true),
            _ => (self.foreign.clone(), false),
        }
    }
}

async fn drive(
    mut connection: Connection,
    tokens: Tokens,
    mut next: u64,
    end: u64,
    pid: String,
) -> Result<(), Failure> {
    let (mut asked, total) = (HashMap::new(), end - next);
    let reports = next == 0;
    let mut answered = 0;
    loop {
        while next < end && (connection.under_way() as u64) < IN_FLIGHT {
            let (token, must_succeed) = tokens.of(next);
            let request =
                RevokeRequest { target: Some(Target::Token(token)), ..RevokeRequest::default() };
            asked.insert(connection.ask(&request.encode_to_vec()), must_succeed);
            next += 1;
        }
        if connection.under_way() == 0 {
            return Ok(());
        }
        connection.flush().await?;
        connection.wait().await?;
        for answer in connection.answered()? {
            let must_succeed = asked.remove(&answer.stream).ok_or("an answer to nothing")?;
            let revoked = answer
                .message
                .map(|message| RevokeResponse::decode(message.as_slice()))
                .transpose()?;
            match revoked {
                Some(answer) if must_succeed && answer.revoked_sessions == 0 => {}
                None if !must_succeed => {}
                other => return Err(format!("a wrong answer: {other:?}").into()),
            }
            answered += 1;
            if reports && (answered == 1 || answered % (total / REPORTS).max(1) == 0) {
                println!("{:>9} calls, {} kB resident", answered * CONNECTIONS, resident(&pid)?);
            }
        }
    }
}

fn resident(pid: &str) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Makes a call, and waits for its answer.
async fn call<A: Message + Default>(
    connection: &mut Connection,
    request: &impl Message,
) -> Result<A, Failure> {
    connection.ask(&request.encode_to_vec());
    connection.flush().await?;
    loop {
        connection.wait().await?;
        if let Some(answer) = connection.answered()?.pop() {
            return Ok(A::decode(answer.message.ok_or("the call failed")?.as_slice())?);
        }
    }
}

static IS_OVER: AtomicBool = AtomicBool::new(false);

async fn others(address: &str) -> Result<(), Failure> {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut vec![]);
        IS_OVER.store(true, Ordering::Relaxed);
    });
    let mut connection =
        Connection::open(address, "/countersign.v1.SessionService/CreateSession", None).await?;
    let request = CreateSessionRequest { subject: "others".to_owned(), ..Default::default() };
    let created: CreateSessionResponse = call(&mut connection, &request).await?;
    let access_token = created.tokens.unwrap_or_default().access_token;
    let mut connection =
        Connection::open(address, "/countersign.v1.SessionService/Validate", None).await?;
    let request = ValidateRequest { access_token, ..Default::default() };
    let mut latencies: Vec<Duration> = vec![];
    while !IS_OVER.load(Ordering::Relaxed) {
        let began = Instant::now();
        let answer: ValidateResponse = call(&mut connection, &request).await?;
        latencies.push(began.elapsed());
        if !answer.active {
            return Err("a good token is not active".into());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    latencies.sort_unstable();
    let at = |part: f64| {
        latencies.get((latencies.len() as f64 * part) as usize).or(latencies.last()).copied()
    };
    let milliseconds = |part| at(part).unwrap_or_default().as_secs_f64() * 1e3;
    let [p50, p99, most] = [0.5, 0.99, 1.0].map(milliseconds);
    println!("{} calls, p50 {p50:.1} ms, p99 {p99:.1} ms, at most {most:.1} ms", latencies.len());
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> =
        env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (address, calls, pid): (&str, u64, &str) = match arguments.as_slice() {
        [address, what] if what == "others" => return others(address).await,
        [address, calls, pid] => (address, calls.parse()?, pid),
        // `cargo bench` without arguments has nothing to measure here.
        [] => return Ok(()),
        _ => return Err("usage: ADDRESS CALLS PID, or ADDRESS others".into()),
    };
    let tokens = Tokens { expired: env::var("EXPIRED")?, foreign: env::var("FOREIGN")? };
    let key = env::var("API_KEY")?;
    let mut tasks = JoinSet::new();
    for part in 0..CONNECTIONS {
        let path = "/countersign.v1.SessionService/Revoke";
        let connection = Connection::open(address, path, Some(&key)).await?;
        let (first, end) = (calls / CONNECTIONS * part, calls / CONNECTIONS * (part + 1));
        tasks.spawn(drive(connection, tokens.clone(), first, end, pid.to_owned()));
    }
    while let Some(part) = tasks.join_next().await {
        part??;
    }
    Ok(())
}
