//! A flood: callers with short deadlines that make more writes than a replica can complete.

use std::{collections::BTreeMap, time::Duration};

use countersign::proto::{
    CreateSessionRequest, GetSessionRequest, RefreshRequest, RevokeRequest, Tokens,
    revoke_request::Target,
};
use countersign_test_support::ledger::{Client, Dice, reason};
use futures_util::future::join_all;
use prost_types::{Struct, Value, value::Kind};
use tonic::{Code, Request, Status};

use crate::{
    load::is_retriable,
    replicas::{Replica, in_time, sign_in},
};

/// The number of concurrent callers.
const CALLERS: usize = 128;

/// Clients, and the sessions that all callers refresh and revoke.
pub struct Flood {
    clients: Vec<Client>,
    sessions: Vec<Tokens>,
}

impl Flood {
    pub async fn prepare(replica: &Replica) -> Self {
        let (mut clients, mut sessions) = (vec![], vec![]);
        for n in 0..8 {
            clients.push(replica.sessions().await);
            sessions.push(sign_in(&mut clients[n], "flooded").await);
        }
        Self { clients, sessions }
    }

    /// Makes this many calls that write, none of which may succeed. Returns how often each error
    /// occurred.
    pub async fn run(
        &self,
        attempts: usize,
        timeout: Duration,
        dice: &mut Dice,
    ) -> BTreeMap<String, usize> {
        let callers = (0..CALLERS).map(|caller| {
            let mut client = self.clients[caller % self.clients.len()].clone();
            let sessions = self.sessions.clone();
            let mut dice = Dice(dice.roll(usize::MAX).try_into().unwrap());
            tokio::spawn(async move {
                let mut answers = BTreeMap::<_, usize>::new();
                for _ in 0..attempts.div_ceil(CALLERS) {
                    let tokens = &sessions[dice.roll(sessions.len())];
                    let refused = attempt(&mut client, tokens, timeout, &mut dice)
                        .await
                        .expect_err("nothing is written");
                    *answers.entry(describe(&refused)).or_default() += 1;
                }
                answers
            })
        });
        let mut all = BTreeMap::<_, usize>::new();
        for answers in in_time("all calls come to an end", join_all(callers)).await {
            for (answer, count) in answers.unwrap() {
                *all.entry(answer).or_default() += count;
            }
        }
        all
    }
}

/// Checks that an error is one that a caller may see, and returns its code and reason.
fn describe(status: &Status) -> String {
    // An error has the reason only if the server noticed the deadline.
    let is_deadline = matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
        && matches!(reason(status).as_str(), "" | "DEADLINE_EXCEEDED");
    assert!(is_deadline || is_retriable(status), "{status:?}");
    format!("{:?} {}", status.code(), reason(status))
}

async fn attempt(
    client: &mut Client,
    tokens: &Tokens,
    timeout: Duration,
    dice: &mut Dice,
) -> Result<(), Status> {
    fn within<T>(timeout: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        request
    }
    match dice.roll(6) {
        0..4 => client.create_session(within(timeout, heavy())).await.map(drop),
        4 => {
            let refresh_token = tokens.refresh_token.clone();
            client
                .refresh(within(timeout, RefreshRequest { refresh_token, ..Default::default() }))
                .await
                .map(drop)
        }
        _ => {
            let target = Some(Target::Token(tokens.access_token.clone()));
            client
                .revoke(within(timeout, RevokeRequest { target, ..Default::default() }))
                .await
                .map(drop)
        }
    }
}

/// Returns a request for a session with claims close to the largest that are allowed.
fn heavy() -> CreateSessionRequest {
    let text = Value { kind: Some(Kind::StringValue("x".repeat(4000))) };
    CreateSessionRequest {
        subject: "flooded".to_owned(),
        claims: Some(Struct { fields: [("text".to_owned(), text)].into() }.into()),
        ..Default::default()
    }
}

/// Makes `times` concurrent calls to GetSession for a session that cannot be read, with a deadline
/// of `timeout`.
pub async fn read_and_give_up(client: &Client, session_id: &str, times: usize, timeout: Duration) {
    let reads = (0..times).map(|_| {
        let (mut client, session_id) = (client.clone(), session_id.to_owned());
        async move {
            let mut request = Request::new(GetSessionRequest { session_id });
            request.set_timeout(timeout);
            describe(&client.get_session(request).await.expect_err("nothing is read"))
        }
    });
    in_time("all reads come to an end", join_all(reads)).await;
}
