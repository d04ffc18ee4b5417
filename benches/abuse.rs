//! Revokes what must not be revoked, as often as it is told, and looks at each answer. `scripts/abuse` runs it.
//!
//! `abuse ADDRESS CALLS PID`, with the variables API_KEY, a revoker's; EXPIRED and FOREIGN, an access token each that is expired,
//! and of a tenant that is not the revoker's. Calls take turns: garbage, forged, expired, foreign. It prints the resident memory
//! of the process on the way.

mod client;

use std::{collections::HashMap, env, fs};

use countersign::proto::{RevokeRequest, RevokeResponse, revoke_request::Target};
use prost::Message;
use tokio::task::JoinSet;

use self::client::{Connection, Failure};

const CONNECTIONS: u64 = 8;
const IN_FLIGHT: u64 = 16;
/// How often the memory is printed.
const LOOKS: u64 = 10;

#[derive(Clone)]
struct Tokens {
    expired: String,
    foreign: String,
}

impl Tokens {
    /// The token of a call, and whether the call is answered.
    fn of(&self, number: u64) -> (String, bool) {
        match number % 4 {
            // As long as a token, so that all of it is looked at.
            0 => (format!("{number:x}.{}", "garbage".repeat(60)), false),
            1 => {
                let (signed, signature) = self.foreign.rsplit_once('.').unwrap_or_default();
                let number = format!("{number:08}");
                (format!("{signed}.{number}{}", signature.get(number.len()..).unwrap_or_default()), false)
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
    let tells = next == 0;
    let mut answered = 0;
    loop {
        while next < end && (connection.under_way() as u64) < IN_FLIGHT {
            let (token, is_answered) = tokens.of(next);
            let request = RevokeRequest { target: Some(Target::Token(token)), ..RevokeRequest::default() };
            asked.insert(connection.ask(&request.encode_to_vec()), is_answered);
            next += 1;
        }
        if connection.under_way() == 0 {
            return Ok(());
        }
        connection.flush().await?;
        connection.wait().await?;
        for answer in connection.answered()? {
            let is_answered = asked.remove(&answer.stream).ok_or("an answer to nothing")?;
            let revoked = answer.message.map(|message| RevokeResponse::decode(message.as_slice())).transpose()?;
            match revoked {
                Some(answer) if is_answered && answer.revoked_sessions == 0 => {}
                None if !is_answered => {}
                other => return Err(format!("a wrong answer: {other:?}").into()),
            }
            answered += 1;
            if tells && (answered == 1 || answered % (total / LOOKS).max(1) == 0) {
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

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (address, calls, pid): (&str, u64, &str) = match arguments.as_slice() {
        [address, calls, pid] => (address, calls.parse()?, pid),
        // `cargo bench` without arguments has nothing to measure here.
        [] => return Ok(()),
        _ => return Err("usage: ADDRESS CALLS PID".into()),
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
