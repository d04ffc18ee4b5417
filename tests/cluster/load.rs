//! Load on all replicas of a cluster, whose callers tell good errors from bad ones and remember
//! what they were told.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use countersign::proto::revoke_request::Target;

use crate::{
    ledger::{Account, Client, Dice, reason},
    replicas::{Cluster, Replica, in_time, question, revoke, sign_in},
};

/// Calls under way at each replica at the same time.
const CALLERS: usize = 6;
/// How often each replica is asked whether a token is good.
const VALIDATIONS: Duration = Duration::from_millis(5);

/// What callers of a replica put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No error at all.
    None,
    /// The database is away: errors that say so, and when to come back.
    Database,
    /// The replica is killed: the end of the connection.
    Death,
}

/// Whether an error says that the database is away or has too much to do, and when to come back.
pub fn is_retriable(status: &Status) -> bool {
    let retry = status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some());
    let is_known = match status.code() {
        Code::Unavailable => {
            ["STORE_UNAVAILABLE", "NOT_CURRENT"].contains(&reason(status).as_str())
        }
        Code::ResourceExhausted => reason(status) == "OVERLOADED",
        _ => false,
    };
    retry && is_known
}

/// Calls that were answered and calls that failed, so far.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    answers: usize,
    failures: usize,
}

/// Callers and validators of one replica.
struct Side {
    count: watch::Receiver<Count>,
    callers: Vec<JoinHandle<Vec<Account>>>,
    validator: Validator,
}

/// Load under way.
pub struct Load {
    sides: Vec<Side>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Starts callers at each replica. `trouble` says what those of which replica put up with.
    pub async fn start(
        cluster: &Cluster,
        name: &str,
        dice: &mut Dice,
        trouble: impl Fn(usize) -> Trouble,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut sides = vec![];
        for (index, replica) in cluster.replicas.iter().enumerate() {
            let (counter, count) = watch::channel(Count::default());
            let trouble = trouble(index);
            let mut callers = vec![];
            for caller in 0..CALLERS {
                let caller = Caller {
                    client: replica.sessions().await,
                    name: format!("{name}/{index}/{caller}"),
                    dice: Dice(dice.roll(usize::MAX).try_into().unwrap()),
                    trouble,
                };
                callers.push(tokio::spawn(caller.drive(counter.clone(), stopped.clone())));
            }
            let validator = Validator::start(replica, trouble).await;
            sides.push(Side { count, callers, validator });
        }
        Self { sides, stop }
    }

    async fn wait(&self, replica: usize, what: &str, is_enough: impl Fn(&Count, &Count) -> bool) {
        let mut count = self.sides[replica].count.clone();
        let before = *count.borrow();
        // If there are no callers left, joining them says why.
        let _ = in_time(what, count.wait_for(|now| is_enough(&before, now))).await;
    }

    /// Waits until a replica has answered this many more writes.
    pub async fn answered(&self, replica: usize, more: usize) {
        self.wait(replica, "writes are answered", |before, now| {
            now.answers >= before.answers + more
        })
        .await;
    }

    /// The same for all replicas.
    pub async fn all_answered(&self, more: usize) {
        join_all((0..self.sides.len()).map(|replica| self.answered(replica, more))).await;
    }

    /// Waits until a call has failed at a replica.
    pub async fn failed(&self, replica: usize) {
        self.wait(replica, "a call fails", |before, now| now.failures > before.failures).await;
    }

    /// The same for all replicas.
    pub async fn all_failed(&self) {
        join_all((0..self.sides.len()).map(|replica| self.failed(replica))).await;
    }

    /// How many calls have failed.
    pub fn failures(&self) -> usize {
        self.sides.iter().map(|side| side.count.borrow().failures).sum()
    }

    /// Lets the calls under way come to their end, and returns what all callers remember.
    pub async fn stop(self) -> Vec<Account> {
        self.stop.send_replace(true);
        let mut accounts = vec![];
        for side in self.sides {
            for caller in in_time("callers come to their end", join_all(side.callers)).await {
                accounts.extend(caller.unwrap());
            }
            side.validator.stop().await;
        }
        accounts
    }
}

/// Somebody who makes one call after the other.
struct Caller {
    client: Client,
    name: String,
    dice: Dice,
    trouble: Trouble,
}

impl Caller {
    /// Makes random calls until it is told to stop or its replica is gone. What a call that failed
    /// was about is put aside: nobody knows what became of it, and the account says what may have.
    async fn drive(
        mut self,
        count: watch::Sender<Count>,
        stop: watch::Receiver<bool>,
    ) -> Vec<Account> {
        let mut open: Vec<Account> = vec![];
        let mut aside = vec![];
        let mut opened = 0;
        while !*stop.borrow() {
            if open.len() < 4 || open.iter().all(Account::is_full) {
                open.push(Account::new(format!("{}/{opened}", self.name)));
                opened += 1;
            }
            let index = open.len() - 1 - self.dice.roll(open.len().min(4));
            match open[index].call(&mut self.client, &mut self.dice).await {
                Ok(()) => count.send_modify(|count| count.answers += 1),
                Err(status) => {
                    let account = open.swap_remove(index);
                    let is_good = match self.trouble {
                        // On a busy machine a lease may lapse at any time.
                        _ if reason(&status) == "NOT_CURRENT" => true,
                        Trouble::None => false,
                        Trouble::Database => is_retriable(&status),
                        Trouble::Death => reason(&status).is_empty(),
                    };
                    assert!(
                        is_good,
                        "{:?} does not excuse {status:?} of {account:?}",
                        self.trouble
                    );
                    count.send_modify(|count| count.failures += 1);
                    aside.push(account);
                    if self.trouble == Trouble::Death && reason(&status).is_empty() {
                        break;
                    }
                }
            }
        }
        open.append(&mut aside);
        open
    }
}

/// Somebody who asks a replica again and again whether a token that is good is, and one that is
/// not, and puts up with no other answer, and with none only if the replica dies.
pub struct Validator {
    stop: watch::Sender<bool>,
    asking: JoinHandle<usize>,
}

impl Validator {
    pub async fn start(replica: &Replica, trouble: Trouble) -> Self {
        let mut client = replica.sessions().await;
        let good = sign_in(&mut client, "good").await.access_token;
        let bad = sign_in(&mut client, "bad").await.access_token;
        revoke(&mut client, Target::Token(bad.clone())).await;
        let (stop, stopped) = watch::channel(false);
        let asking = tokio::spawn(async move {
            let mut times = interval(VALIDATIONS);
            times.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut answers = 0;
            while !*stopped.borrow() {
                times.tick().await;
                for (token, is_good) in [(&good, true), (&bad, false)] {
                    match client.validate(question(token)).await {
                        Ok(answer) => assert_eq!(answer.into_inner().active, is_good),
                        Err(status) if trouble == Trouble::Death && reason(&status).is_empty() => {
                            return answers;
                        }
                        // Without the database there is no lease after a while.
                        Err(status)
                            if trouble == Trouble::Database && reason(&status) == "NOT_CURRENT" =>
                        {
                            continue;
                        }
                        Err(status) => panic!("Validate goes on: {status:?}"),
                    }
                    answers += 1;
                }
            }
            answers
        });
        Self { stop, asking }
    }

    /// Returns how many answers there were.
    pub async fn stop(self) -> usize {
        self.stop.send_replace(true);
        in_time("Validate goes on", self.asking).await.unwrap()
    }
}
