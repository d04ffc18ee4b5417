//! The callers of a run. Writers create, refresh and revoke sessions; after each acknowledged
//! revocation, all replicas are asked to validate the revoked tokens, at once and several times
//! later. Readers validate recent tokens all the time, revoked or not.

use std::{sync::Arc, time::Duration};

use countersign::proto::{RevokeExtent, RevokeRequest, revoke_request};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::task::TaskTracker;

use crate::{
    ledger::Dice,
    workload::asking::{Asker, Held, by_client, by_id, by_subject},
    workload::history::{Answer, SessionNumber, Target, TokenNumber},
};

/// The number of callers that create, refresh and revoke.
const WRITERS: usize = 24;
/// The number of sessions that a writer creates before it refreshes or revokes any.
const SESSIONS: usize = 6;
/// The deadline of most calls: longer than most faults last.
const LONG_TIMEOUT: Duration = Duration::from_secs(3);
/// The deadlines from which writers choose. If all of them were long, all writers would soon wait
/// for the same blocked replica, and none would call the others.
const TIMEOUTS: [Duration; 6] = [
    Duration::from_millis(150),
    Duration::from_secs(1),
    Duration::from_secs(1),
    LONG_TIMEOUT,
    LONG_TIMEOUT,
    LONG_TIMEOUT,
];
/// The longest pause of a writer between two calls, in milliseconds.
const MAX_PAUSE: usize = 60;
/// The delays, in milliseconds after a revocation was acknowledged, at which all replicas validate
/// its tokens.
const CHECK_DELAYS: [u64; 7] = [0, 40, 150, 400, 900, 2000, 4000];
/// The interval at which readers ask each replica.
const READ_INTERVAL: Duration = Duration::from_millis(25);
/// The number of most recent tokens among which readers choose.
const LATEST: usize = 400;

/// The running callers.
pub struct Callers {
    stop: watch::Sender<bool>,
    writers: JoinSet<Vec<Held>>,
    readers: JoinSet<()>,
    watchers: TaskTracker,
}

impl Callers {
    /// Starts all callers.
    pub fn start(asker: &Arc<Asker>, dice: &mut Dice) -> Self {
        let (stop, stopped) = watch::channel(false);
        let watchers = TaskTracker::new();
        let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
        for n in 0..WRITERS {
            let writer = Writer {
                asker: asker.clone(),
                dice: dice.split(),
                name: format!("writer {n}"),
                tenants: 0,
                sessions: vec![],
                watchers: watchers.clone(),
                stopped: stopped.clone(),
            };
            writers.spawn(writer.run());
        }
        for place in 0..asker.fleet.places() {
            readers.spawn(read(
                asker.clone(),
                place,
                dice.split(),
                watchers.clone(),
                stopped.clone(),
            ));
        }
        Self { stop, writers, readers, watchers }
    }

    /// Stops all callers, waits for their calls, and returns the sessions that writers still hold.
    pub async fn stop(self) -> Vec<Held> {
        self.stop.send_replace(true);
        let held = self.writers.join_all().await.into_iter().flatten().collect();
        self.readers.join_all().await;
        self.watchers.close();
        self.watchers.wait().await;
        held
    }
}

/// Asks a replica again and again to validate recent tokens, without waiting for its answers.
async fn read(
    asker: Arc<Asker>,
    place: usize,
    mut dice: Dice,
    watchers: TaskTracker,
    stopped: watch::Receiver<bool>,
) {
    let mut times = interval(READ_INTERVAL);
    times.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !*stopped.borrow() {
        times.tick().await;
        let known = asker.recorder.tokens();
        if known == 0 {
            continue;
        }
        let mut some = || TokenNumber(known - 1 - dice.roll(known.min(LATEST)));
        let tokens: Vec<_> = (0..4).map(|_| some()).collect();
        let asker = asker.clone();
        watchers.spawn(async move { asker.validate(place, LONG_TIMEOUT, &tokens).await });
    }
}

/// A caller that creates, refreshes and revokes sessions of its own tenants.
struct Writer {
    asker: Arc<Asker>,
    dice: Dice,
    name: String,
    /// The number of tenants that the writer no longer uses, because it has revoked them.
    tenants: usize,
    sessions: Vec<Held>,
    watchers: TaskTracker,
    stopped: watch::Receiver<bool>,
}

impl Writer {
    fn any_place(&mut self) -> usize {
        self.dice.roll(self.asker.fleet.places())
    }

    async fn run(mut self) -> Vec<Held> {
        while !*self.stopped.borrow() {
            let place = self.any_place();
            let timeout = TIMEOUTS[self.dice.roll(TIMEOUTS.len())];
            match self.dice.roll(10) {
                _ if self.sessions.len() < SESSIONS => self.create(place, timeout).await,
                0..2 => self.create(place, timeout).await,
                2..6 => self.refresh(place, timeout).await,
                _ => {
                    let held = self.sessions[self.dice.roll(self.sessions.len())].clone();
                    self.revoke(held, place, timeout).await;
                }
            }
            sleep(Duration::from_millis(self.dice.roll(MAX_PAUSE).try_into().unwrap())).await;
        }
        self.sessions
    }

    async fn create(&mut self, place: usize, timeout: Duration) {
        let policy = ["default", "default", "strict", "superseding"][self.dice.roll(4)];
        let tenant = format!("tenant {} of {}", self.tenants, self.name);
        let subject = format!("subject {}", self.dice.roll(3));
        if let Some(held) = self.asker.create(place, timeout, policy, &tenant, &subject).await {
            self.sessions.push(held.clone());
            // Sometimes the session is revoked at once, by a replica that may not have seen it yet.
            if self.dice.roll(6) == 0 {
                let place = self.any_place();
                self.revoke(held, place, timeout).await;
            }
        }
    }

    /// Refreshes a session. If the outcome is unknown, the refresh is tried once more, at a newly
    /// chosen replica, and never again: a refresh that was given up may be carried out later, and a
    /// further refresh with the same token would then count as reuse.
    async fn refresh(&mut self, place: usize, timeout: Duration) {
        let index = self.dice.roll(self.sessions.len());
        let held = &mut self.sessions[index];
        if held.is_uncertain {
            return;
        }
        let answer = self.asker.refresh(place, timeout, held).await;
        if held.is_uncertain
            && answer.is_some_and(|answer| !answer.is_known())
            && held.policy != "strict"
        {
            let place = self.dice.roll(self.asker.fleet.places());
            self.asker.refresh(place, timeout, held).await;
        }
    }

    /// Revokes a session, its access token, its subject, its client or its tenant. While the outcome is
    /// unknown, the revocation is usually tried again, at a newly chosen replica.
    async fn revoke(&mut self, held: Held, place: usize, timeout: Duration) {
        let (tenant, subject) = (held.tenant.clone(), held.subject.clone());
        let session = Target::Session(held.number);
        let access_token =
            revoke_request::Target::Token(self.asker.recorder.text(held.access_token));
        let refresh_token = revoke_request::Target::Token(held.refresh_token.clone());
        let (target, by) = match self.dice.roll(13) {
            0..3 => (session, by_id(&held)),
            // An expired access token adds no entry if the row of its session was lost, and then
            // the session's newer tokens stay active.
            3..5 if !self.asker.tokens_expire => (session, access_token),
            3..7 => (session, refresh_token),
            7..9 => (Target::Token(held.access_token), access_token),
            9 => (
                Target::Subject { tenant: tenant.clone(), subject: subject.clone() },
                by_subject(&tenant, &subject),
            ),
            10 => (Target::Tenant(tenant.clone()), revoke_request::Target::Tenant(tenant.clone())),
            11 => (
                Target::Client { tenant: tenant.clone(), client_id: subject.clone() },
                by_client(&tenant, &subject),
            ),
            _ => return self.reuse(place, timeout, &held).await,
        };
        let (ended, kept) =
            std::mem::take(&mut self.sessions).into_iter().partition(|other| match &target {
                Target::Session(session) => other.number == *session,
                Target::Token(_) => false,
                Target::Subject { .. } | Target::Client { .. } => {
                    other.tenant == tenant && other.subject == subject
                }
                Target::Tenant(_) => other.tenant == tenant,
            });
        self.sessions = kept;
        // In one case of four, the writer creates further sessions in the revoked tenant.
        if matches!(target, Target::Tenant(_)) && self.dice.roll(4) > 0 {
            self.tenants += 1;
        }
        let tokens = match target {
            Target::Token(token) => vec![token],
            _ => self.asker.recorder.tokens_of(&numbers(&ended)),
        };
        let extent = match target {
            Target::Token(_) => RevokeExtent::TokenOnly,
            _ => RevokeExtent::Session,
        };
        let message =
            RevokeRequest { target: Some(by), extent: extent.into(), ..Default::default() };
        let mut place = place;
        loop {
            let answer = self.asker.revoke(place, timeout, target.clone(), message.clone()).await;
            match answer {
                Some(Answer::Done) => return self.watch(ended, &tokens).await,
                Some(answer) if answer.is_known() => return,
                _ if self.dice.roll(4) == 0 => return,
                _ => place = self.any_place(),
            }
        }
    }

    /// Uses a refresh token a second time, if its policy allows no grace.
    async fn reuse(&mut self, place: usize, timeout: Duration, held: &Held) {
        if held.policy != "strict" || held.is_uncertain || held.used_refresh_token.is_none() {
            return;
        }
        self.sessions.retain(|other| other.number != held.number);
        let answer = self.asker.reuse(place, timeout, held).await;
        if matches!(answer, Some(Answer::Refused(_))) {
            let tokens = self.asker.recorder.tokens_of(&[held.number]);
            self.watch(vec![held.clone()], &tokens).await;
        }
    }

    /// Asks all replicas to validate revoked tokens, at once and later, and tries to refresh one of
    /// the sessions that have ended.
    async fn watch(&mut self, ended: Vec<Held>, tokens: &[TokenNumber]) {
        self.asker.fleet.notify_acknowledged(tokens);
        for place in 0..self.asker.fleet.places() {
            for after in CHECK_DELAYS {
                let (asker, tokens) = (self.asker.clone(), tokens.to_vec());
                let mut stopped = self.stopped.clone();
                self.watchers.spawn(async move {
                    // There is no need to wait once the run ends: all tokens are validated then.
                    let _ =
                        timeout(Duration::from_millis(after), stopped.wait_for(|stopped| *stopped))
                            .await;
                    asker.validate(place, LONG_TIMEOUT, &tokens).await;
                });
            }
        }
        for mut held in ended.into_iter().filter(|held| !held.is_uncertain).take(1) {
            let place = self.any_place();
            self.asker.refresh(place, LONG_TIMEOUT, &mut held).await;
        }
    }
}

fn numbers(sessions: &[Held]) -> Vec<SessionNumber> {
    sessions.iter().map(|held| held.number).collect()
}
