//! A witness asks replicas to validate a token while the token is being revoked. It fails if an
//! answer breaks the guarantee.

use std::time::Duration;

use countersign_test_support::ledger::reason;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::replicas::{Replica, in_time, question};

/// The interval at which each replica is asked.
const QUESTIONS: Duration = Duration::from_millis(5);

/// Asks replicas about a token until it is stopped.
pub struct Witness {
    acknowledged: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    asking: Vec<JoinHandle<()>>,
}

impl Witness {
    /// Starts asking each of these replicas about a token.
    pub async fn of(replicas: &[Replica], token: &str) -> Self {
        let (acknowledged, known) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let mut asking = vec![];
        for replica in replicas {
            let mut client = replica.sessions().await;
            let (name, token) = (replica.name().to_owned(), token.to_owned());
            let (known, stopped) = (known.clone(), stopped.clone());
            asking.push(tokio::spawn(async move {
                let mut times = interval(QUESTIONS);
                times.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut asked_since = 0;
                while asked_since == 0 || !*stopped.borrow() {
                    times.tick().await;
                    // The flag is read before the call, because the answer to a call that began
                    // before the acknowledgement may still be `active`.
                    let is_revoked = *known.borrow();
                    match client.validate(question(&token)).await {
                        Ok(answer) => {
                            let is_wrong = is_revoked && answer.into_inner().active;
                            assert!(
                                !is_wrong,
                                "{name} says active after the revocation was acknowledged"
                            );
                        }
                        Err(status) => {
                            assert_eq!(reason(&status), "NOT_CURRENT", "{name}: {status:?}")
                        }
                    }
                    asked_since += usize::from(is_revoked);
                }
            }));
        }
        Self { acknowledged, stop, asking }
    }

    /// Tells the witness that the revocation was acknowledged. Calls that begin afterwards must not
    /// be answered `active`.
    pub fn acknowledged(&self) {
        self.acknowledged.send_replace(true);
    }

    /// Stops asking as soon as each replica has answered a call that began after the
    /// acknowledgement.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for asking in self.asking {
            in_time("replicas answer", asking).await.unwrap();
        }
    }
}
