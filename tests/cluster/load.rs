//! Generates load on all replicas of a cluster. The callers panic on errors that the test does not
//! allow, and keep an account of the writes that were acknowledged to them.

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
use countersign_test_support::ledger::{Account, Client, Dice, reason};

use crate::replicas::{Cluster, Replica, in_time, question, revoke, sign_in};

/// The number of concurrent callers of each replica.
const CALLERS: usize = 6;
/// The interval at which each replica is asked to validate tokens.
const VALIDATIONS: Duration = Duration::from_millis(5);

/// The fault that a replica is exposed to. It determines which errors its callers allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no fault, so no error is allowed.
    None,
    /// The database fails. Errors must say so, and when to retry.
    Database,
    /// The replica is killed, so its connections may end.
    Death,
}

/// Returns whether an error says that the database is unavailable or the service overloaded, and
/// when to retry.
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

/// The numbers of calls that were answered and that failed so far.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    answers: usize,
    failures: usize,
}

/// The callers and the validator of one replica.
struct ReplicaLoad {
    count: watch::Receiver<Count>,
    callers: Vec<JoinHandle<Vec<Account>>>,
    validator: Validator,
}

/// The running load on all replicas.
pub struct Load {
    replicas: Vec<ReplicaLoad>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Starts callers at each replica. `trouble` returns the fault of a replica.
    pub async fn start(
        cluster: &Cluster,
        name: &str,
        dice: &mut Dice,
        trouble: impl Fn(usize) -> Trouble,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut replicas = vec![];
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
            replicas.push(ReplicaLoad { count, callers, validator });
        }
        Self { replicas, stop }
    }

    async fn wait(&self, replica: usize, what: &str, is_enough: impl Fn(&Count, &Count) -> bool) {
        let mut count = self.replicas[replica].count.clone();
        let before = *count.borrow();
        // An error means that all callers have ended. The cause appears when `stop` joins them.
        let _ = in_time(what, count.wait_for(|now| is_enough(&before, now))).await;
    }

    /// Waits until a replica has answered this many more writes.
    pub async fn answered(&self, replica: usize, more: usize) {
        self.wait(replica, "writes are answered", |before, now| {
            now.answers >= before.answers + more
        })
        .await;
    }

    /// Waits until each replica has answered this many more writes.
    pub async fn all_answered(&self, more: usize) {
        join_all((0..self.replicas.len()).map(|replica| self.answered(replica, more))).await;
    }

    /// Waits until a call has failed at a replica.
    pub async fn failed(&self, replica: usize) {
        self.wait(replica, "a call fails", |before, now| now.failures > before.failures).await;
    }

    /// Waits until a call has failed at each replica.
    pub async fn all_failed(&self) {
        join_all((0..self.replicas.len()).map(|replica| self.failed(replica))).await;
    }

    /// Returns the number of calls that have failed.
    pub fn failures(&self) -> usize {
        self.replicas.iter().map(|replica| replica.count.borrow().failures).sum()
    }

    /// Waits for the calls under way, and returns the accounts of all callers.
    pub async fn stop(self) -> Vec<Account> {
        self.stop.send_replace(true);
        let mut accounts = vec![];
        for replica in self.replicas {
            for caller in in_time("callers come to their end", join_all(replica.callers)).await {
                accounts.extend(caller.unwrap());
            }
            replica.validator.stop().await;
        }
        accounts
    }
}

/// A caller that makes one call after the other.
struct Caller {
    client: Client,
    name: String,
    dice: Dice,
    trouble: Trouble,
}

impl Caller {
    /// Makes random calls until it is told to stop or its replica is gone. It sets aside an account
    /// after a failed call, because it does not know whether the call was carried out. That account
    /// records both possibilities.
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
                        // On a busy machine a lease may lapse at any time, so all callers allow it.
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

/// Asks a replica again and again to validate a live token and a revoked one, and fails if an
/// answer is wrong. It allows only errors that the fault of the replica explains.
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
            let (mut answers, mut refusals) = (0, 0);
            while !*stopped.borrow() {
                times.tick().await;
                for (token, is_good) in [(&good, true), (&bad, false)] {
                    match client.validate(question(token)).await {
                        Ok(answer) => assert_eq!(answer.into_inner().active, is_good),
                        Err(status) if trouble == Trouble::Death && reason(&status).is_empty() => {
                            return answers;
                        }
                        // Once the database has been unavailable for some time, leases end. On a
                        // busy machine a lease may lapse at any time.
                        Err(status) if reason(&status) == "NOT_CURRENT" => {
                            refusals += 1;
                            continue;
                        }
                        Err(status) => panic!("Validate fails: {status:?}"),
                    }
                    answers += 1;
                }
            }
            assert!(
                trouble == Trouble::Database || refusals < answers,
                "{refusals} refusals for lack of a lease, {answers} answers"
            );
            answers
        });
        Self { stop, asking }
    }

    /// Stops, and returns the number of answers.
    pub async fn stop(self) -> usize {
        self.stop.send_replace(true);
        in_time("Validate answers", self.asking).await.unwrap()
    }
}
