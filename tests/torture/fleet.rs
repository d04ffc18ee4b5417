//! The replicas of a run: places where a process runs, behind a link of its own, dies, and is
//! started again.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, task::block_in_place, time::sleep};
use tonic::transport::{Channel, Endpoint};

use crate::{
    cluster::{Home, Replica},
    database::Database,
    http_client::get,
    ledger::Client,
    profiles::Settings,
    proxy::Link,
    recorder::Recorder,
};

/// Replicas that are always there, but for what happens to them. Behind them is a place for one
/// that comes and goes.
pub const PERMANENT: usize = 3;
/// All places.
pub const PLACES: usize = PERMANENT + 1;

/// Connections to each replica. Each takes so many calls at a time; those to a replica that is
/// paused are to reach it, and wait there.
const CHANNELS: usize = 12;

/// Before a process that could not start is started again.
const AGAIN: Duration = Duration::from_millis(50);
/// So often, at most.
const STARTS: usize = 200;
/// Lines of a log that are kept.
const LOG: usize = 40;

/// A place, and what there is of a process.
struct Place {
    link: Link,
    /// The lock is for the one who does something to the process; it is held while that takes.
    process: tokio::sync::Mutex<Option<Replica>>,
    /// How to reach it; empty if there is nobody.
    channels: Mutex<VecDeque<Channel>>,
    /// Somebody has just sent a revocation there.
    revoking: Notify,
    /// The last lines of processes that have ended.
    log: Mutex<Vec<String>>,
}

/// All of them.
pub struct Fleet {
    home: Home,
    database: Arc<Database>,
    settings: Vec<Settings>,
    places: Vec<Place>,
    pub recorder: Arc<Recorder>,
}

impl Fleet {
    /// Without processes yet; `settings` are those of each place.
    pub async fn new(
        database: Arc<Database>,
        recorder: Arc<Recorder>,
        settings: Vec<Settings>,
    ) -> Self {
        let mut places = vec![];
        let url = database.url();
        for _ in 0..PLACES {
            places.push(Place {
                link: Link::to(&url).await,
                process: tokio::sync::Mutex::default(),
                channels: Mutex::default(),
                revoking: Notify::new(),
                log: Mutex::default(),
            });
        }
        Self { home: Home::new(), database, settings, places, recorder }
    }

    /// The link between a place and the database.
    pub fn link(&self, place: usize) -> &Link {
        &self.places[place].link
    }

    /// A client of the process there, if there is one.
    pub fn client(&self, place: usize) -> Option<Client> {
        let mut channels = self.places[place].channels.lock().unwrap();
        let next = channels.pop_front()?;
        channels.push_back(next.clone());
        Some(Client::new(next))
    }

    /// Tells that a revocation is being sent there.
    pub fn revokes(&self, place: usize) {
        self.places[place].revoking.notify_waiters();
    }

    /// Waits until a revocation is sent there.
    pub async fn revocation(&self, place: usize) {
        self.places[place].revoking.notified().await;
    }

    /// Starts a process and waits until it serves. Calls go there as soon as it listens. One that
    /// cannot start, because the database is away, is started again.
    pub async fn start(&self, index: usize) {
        let place = &self.places[index];
        let mut process = place.process.lock().await;
        self.recorder.goes(index);
        for _ in 0..STARTS {
            let mut replica = self.home.spawn(&place.link.url(), &self.settings[index]);
            let serves = block_in_place(|| {
                replica.listens() && {
                    let endpoint =
                        Endpoint::from_shared(format!("http://{}", replica.address())).unwrap();
                    *place.channels.lock().unwrap() =
                        (0..CHANNELS).map(|_| endpoint.connect_lazy()).collect();
                    replica.comes("serving").is_some()
                }
            });
            if serves {
                *process = Some(replica);
                self.recorder.returns(index);
                return;
            }
            place.bury(&mut replica);
            sleep(AGAIN).await;
        }
        panic!("replica {index} does not start: {:#?}", place.log.lock().unwrap());
    }

    /// Kills the process as `kill -9` does.
    pub async fn kill(&self, index: usize) {
        let place = &self.places[index];
        if let Some(mut replica) = place.process.lock().await.take() {
            self.recorder.goes(index);
            block_in_place(|| replica.kill());
            place.bury(&mut replica);
        }
    }

    /// Stops the process in good order. Calls go there until it has ended.
    pub async fn stop(&self, index: usize) {
        let place = &self.places[index];
        if let Some(mut replica) = place.process.lock().await.take() {
            self.recorder.goes(index);
            block_in_place(|| {
                replica.signal("TERM");
                replica.exit()
            });
            place.bury(&mut replica);
        }
    }

    /// Stops or continues the process, with SIGSTOP or SIGCONT.
    pub async fn signal(&self, index: usize, signal: &str) {
        if let Some(replica) = &*self.places[index].process.lock().await {
            block_in_place(|| replica.signal(signal));
        }
    }

    /// Terminates the connections of the process at the database.
    pub async fn terminate_connections(&self, index: usize) {
        let process = self.places[index].process.lock().await;
        let Some(name) = process.as_ref().map(Replica::name) else { return };
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = \
             '{name}'"
        );
        self.database.try_execute(&sql).await;
    }

    /// The places whose process has ended although nobody ended it.
    pub async fn fallen(&self) -> Vec<usize> {
        let mut fallen = vec![];
        for (index, place) in self.places.iter().enumerate() {
            if place.process.lock().await.as_mut().is_some_and(|replica| replica.has_ended()) {
                fallen.push(index);
            }
        }
        fallen
    }

    /// Waits until every replica has a lease, and whoever has said that revocations were lost has
    /// said that they hold again. A lease that was taken since the database was set back comes
    /// after the first of the two lines.
    pub async fn restored(&self) {
        for place in &self.places[..PERMANENT] {
            let is_restored = async || {
                let mut process = place.process.lock().await;
                let Some(replica) = process.as_mut() else { return true };
                let is_ready = get(replica.http(), "/readyz").await.status == 200;
                let log = replica.log();
                let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
                is_ready
                    && count("the database has lost revocations")
                        == count("the lost revocations hold again")
            };
            while !is_restored().await {
                sleep(AGAIN).await;
            }
        }
    }

    /// The last lines that the processes of each place have logged.
    pub async fn logs(&self) -> Vec<String> {
        let mut lines = vec![];
        for (index, place) in self.places.iter().enumerate() {
            let mut log = place.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(replica) = &mut *place.process.lock().await {
                log.extend_from_slice(replica.log());
            }
            let last = log.len().saturating_sub(LOG);
            lines.extend(log[last..].iter().map(|line| format!("replica {index}: {line}")));
        }
        lines
    }
}

impl Place {
    /// Keeps the last words of a process that has ended. Nobody calls it any more.
    fn bury(&self, replica: &mut Replica) {
        self.channels.lock().unwrap().clear();
        let mut log = self.log.lock().unwrap();
        log.extend_from_slice(replica.log());
        let surplus = log.len().saturating_sub(LOG);
        log.drain(..surplus);
    }
}
