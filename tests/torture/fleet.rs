//! The replicas of a run. Each has a place, which has its own link to the database. The process in
//! a place may be killed, and another one started there.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use countersign_test_support::{
    cluster::{Home, Replica},
    http_client::get,
    ledger::Client,
    proxy::Link,
    workload::{
        Replicas,
        history::{Moment, TokenNumber},
        recorder::Recorder,
    },
};
use tokio::{sync::Notify, task::block_in_place, time::sleep};
use tonic::transport::{Channel, Endpoint};

use crate::{
    database::Database,
    profiles::Settings,
    watch_routes::{Broken, Route},
};

/// The number of replicas that run from the beginning to the end, except while a fault has stopped
/// them. The place after them is for the visitor, a replica that comes and goes.
pub const PERMANENT: usize = 3;
/// The number of all places.
pub const PLACES: usize = PERMANENT + 1;

/// The number of connections to each replica. A connection carries a limited number of concurrent
/// calls. With this many connections, calls to a paused replica wait at the replica and not at the
/// client.
const CHANNELS: usize = 12;

/// The pause before the next attempt.
const RETRY: Duration = Duration::from_millis(50);
/// The largest number of attempts to start a process.
const STARTS: usize = 200;
/// The number of lines that are kept of each log.
const LOG: usize = 40;

/// A place, and the process in it if there is one.
struct Place {
    link: Link,
    /// The way of each watcher to the process.
    routes: Vec<Route>,
    /// This lock is held for as long as a fault acts on the process.
    process: tokio::sync::Mutex<Option<Replica>>,
    /// The connections to the process. There are none if there is no process.
    channels: Mutex<VecDeque<Channel>>,
    /// Notified when a revocation is sent to the process.
    revoking: Notify,
    /// The last log lines of the processes that have ended in this place.
    log: Mutex<Vec<String>>,
}

/// All places of a run.
pub struct Fleet {
    home: Home,
    database: Arc<Database>,
    settings: Vec<Settings>,
    places: Vec<Place>,
    /// The tokens whose revocations were acknowledged, in this order.
    acknowledged: Mutex<Vec<(Moment, TokenNumber)>>,
    pub recorder: Arc<Recorder>,
}

impl Fleet {
    /// Creates the places, without processes. `settings` has one element for each place, and
    /// `watchers` one for each watcher.
    pub async fn new(
        database: Arc<Database>,
        recorder: Arc<Recorder>,
        settings: Vec<Settings>,
        watchers: &[Option<Broken>],
    ) -> Self {
        let mut places = vec![];
        let url = database.url();
        for _ in 0..PLACES {
            let mut routes = vec![];
            for broken in watchers {
                routes.push(Route::create(*broken).await);
            }
            places.push(Place {
                routes,
                link: Link::to(&url).await,
                process: tokio::sync::Mutex::default(),
                channels: Mutex::default(),
                revoking: Notify::new(),
                log: Mutex::default(),
            });
        }
        let acknowledged = Mutex::default();
        Self { home: Home::create(), database, settings, places, acknowledged, recorder }
    }

    /// Returns the links of a watcher to all places.
    pub fn watch_links(&self, watcher: usize) -> impl Iterator<Item = &Link> {
        self.places.iter().map(move |place| &place.routes[watcher].link)
    }

    /// Returns the addresses at which a watcher reaches the places.
    pub fn watch_addresses(&self, watcher: usize) -> Vec<SocketAddr> {
        self.watch_links(watcher).map(Link::address).collect()
    }

    /// Returns the tokens whose revocations were acknowledged since this time, in this order.
    pub fn acknowledged_since(&self, since: Moment) -> Vec<TokenNumber> {
        let acknowledged = self.acknowledged.lock().unwrap();
        let first = acknowledged.partition_point(|(at, _)| *at < since);
        acknowledged[first..].iter().map(|(_, token)| *token).collect()
    }

    /// Returns the link between a place and the database.
    pub fn link(&self, place: usize) -> &Link {
        &self.places[place].link
    }

    /// Waits until a revocation is sent to this place.
    pub async fn await_revocation(&self, place: usize) {
        self.places[place].revoking.notified().await;
    }

    /// Starts a process and waits until it serves. Callers may call the process as soon as it
    /// listens. If the process cannot start, because the database is down, another one is started.
    pub async fn start(&self, index: usize) {
        let place = &self.places[index];
        let mut process = place.process.lock().await;
        self.recorder.begin_outage(index);
        for _ in 0..STARTS {
            let mut replica = self.home.spawn(&place.link.url(), &self.settings[index]);
            let serves = block_in_place(|| {
                replica.listens() && {
                    let endpoint =
                        Endpoint::from_shared(format!("http://{}", replica.address())).unwrap();
                    *place.channels.lock().unwrap() =
                        (0..CHANNELS).map(|_| endpoint.connect_lazy()).collect();
                    place.lead_watchers_to(Some(replica.address()));
                    replica.comes("serving").is_some()
                }
            });
            if serves {
                *process = Some(replica);
                self.recorder.end_outage(index);
                return;
            }
            place.keep_log(&mut replica);
            sleep(RETRY).await;
        }
        panic!("replica {index} does not start: {:#?}", place.log.lock().unwrap());
    }

    /// Kills the process as `kill -9` does.
    pub async fn kill(&self, index: usize) {
        let place = &self.places[index];
        if let Some(mut replica) = place.process.lock().await.take() {
            self.recorder.begin_outage(index);
            block_in_place(|| replica.kill());
            place.keep_log(&mut replica);
        }
    }

    /// Stops the process with SIGTERM. Callers continue to call the process until it has ended.
    pub async fn stop(&self, index: usize) {
        let place = &self.places[index];
        if let Some(mut replica) = place.process.lock().await.take() {
            self.recorder.begin_outage(index);
            block_in_place(|| {
                replica.signal("TERM");
                replica.exit()
            });
            place.keep_log(&mut replica);
        }
    }

    /// Sends a signal to the process: `STOP` or `CONT`.
    pub async fn signal(&self, index: usize, signal: &str) {
        if let Some(replica) = &*self.places[index].process.lock().await {
            block_in_place(|| replica.signal(signal));
        }
    }

    /// Lets the database terminate the connections of the process.
    pub async fn terminate_connections(&self, index: usize) {
        let process = self.places[index].process.lock().await;
        let Some(name) = process.as_ref().map(Replica::name) else { return };
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = \
             '{name}'"
        );
        self.database.try_execute(&sql).await;
    }

    /// Returns the places whose process has ended although the test did not end it.
    pub async fn fallen(&self) -> Vec<usize> {
        let mut fallen = vec![];
        for (index, place) in self.places.iter().enumerate() {
            if place.process.lock().await.as_mut().is_some_and(|replica| replica.has_ended()) {
                fallen.push(index);
            }
        }
        fallen
    }

    /// Waits until every replica has a lease, and every replica that has logged a loss of
    /// revocations has logged that they hold again. A replica logs the loss before it takes a lease
    /// from the database that was set back, so its log is complete by then.
    pub async fn await_restored(&self) {
        for place in &self.places[..PERMANENT] {
            let is_restored = async || {
                let mut process = place.process.lock().await;
                let Some(replica) = process.as_mut() else { return true };
                let is_ready = get(replica.http(), "/readyz").await.status == 200;
                let log = replica.log();
                let count = |text: &str| log.iter().filter(|line| line.contains(text)).count();
                is_ready
                    && count("the database has lost revocations")
                        == count("the lost revocations are in effect again")
            };
            while !is_restored().await {
                sleep(RETRY).await;
            }
        }
    }

    /// Returns the last lines that the processes of each place have logged.
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

impl Replicas for Fleet {
    fn places(&self) -> usize {
        PLACES
    }

    fn permanent(&self) -> usize {
        PERMANENT
    }

    fn client(&self, place: usize) -> Option<Client> {
        let mut channels = self.places[place].channels.lock().unwrap();
        let next = channels.pop_front()?;
        channels.push_back(next.clone());
        Some(Client::new(next))
    }

    /// Wakes the tasks that wait for a revocation to be sent to this place.
    fn notify_revocation(&self, place: usize) {
        self.places[place].revoking.notify_waiters();
    }

    fn notify_acknowledged(&self, tokens: &[TokenNumber]) {
        let mut acknowledged = self.acknowledged.lock().unwrap();
        let now = self.recorder.now();
        acknowledged.extend(tokens.iter().map(|token| (now, *token)));
    }
}

impl Place {
    fn lead_watchers_to(&self, replica: Option<SocketAddr>) {
        self.routes.iter().for_each(|route| route.lead_to(replica));
    }

    /// Keeps the last log lines of a process that has ended, and drops the connections to it, so
    /// that callers and watchers no longer call it.
    fn keep_log(&self, replica: &mut Replica) {
        self.channels.lock().unwrap().clear();
        self.lead_watchers_to(None);
        let mut log = self.log.lock().unwrap();
        log.extend_from_slice(replica.log());
        let surplus = log.len().saturating_sub(LOG);
        log.drain(..surplus);
    }
}
