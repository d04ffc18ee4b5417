//! The composition root: creates the parts of the service, runs them, and stops them in order.

mod audit;
mod audit_log;
mod background;
mod check;
mod database;
pub mod doctor;
mod error;
mod keys;
mod ports;
pub mod probe;
mod reload;
mod restore;
pub mod settings;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    authority::{Authority, Dependencies, audit::Audit, ready::Ready},
    callers::Callers,
    clock::{Clock, SharedClock, SystemClock},
    config::{Config, database::DatabaseUrl, log::LevelControl},
    domain::{ids::Incarnation, time::brief},
    http::health::Phase,
    instruments::{Events, traces::DroppedSpans},
    keys::keeper::Keeper,
    revocation::{
        renewer::{IncarnationSource, LeaseRenewer},
        replica::Replica,
    },
    rng::{Rng, SystemRng, random},
    shutdown::Shutdown,
    store::{
        Store,
        observed::{self, ObservedStore},
        postgres::{self, PostgresStore},
        replicas::{Members, Newcomer},
        sqlite,
    },
    telemetry::metrics::{MetricExport, RunningExport},
};

pub use self::{
    check::{FileFindings, check_files},
    database::{await_store, open_store},
    error::AppError,
    keys::{import_key, reseal},
    ports::Listeners,
    restore::{EndedSince, RestoreOrder, Restored, back_up, check_database, restore},
};
pub use crate::{
    authority::sweep::Swept,
    keys::private_file,
    store::replicas::{FormerState, Member, Register},
};

use self::{
    audit::{CommandAudit, open_audit},
    background::Background,
    database::{make_folders, postgres_options, require_database},
    keys::{Masters, open_keeper, require_master_key},
    ports::{Announcer, Ports, ServerState},
    reload::{ReloadedParts, Reloader},
    settings::{ceilings, settings},
};

/// The clock and the source of randomness, which tests replace, and what observes the process.
#[derive(Clone)]
pub struct System {
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub rng: Arc<dyn Rng>,
    /// The control of the level of the log; none if the level cannot be changed.
    pub log_level: Option<Arc<dyn LevelControl>>,
    /// The export of metrics; none if they are only read from the HTTP port.
    pub metric_export: Option<MetricExport>,
    /// The counters of the spans that do not reach the collector.
    pub dropped_spans: Arc<DroppedSpans>,
}

impl System {
    /// Uses this clock and this source of randomness.
    pub fn new(clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        Self { clock, rng, log_level: None, metric_export: None, dropped_spans: Arc::default() }
    }

    /// Returns the system clock and the system's random generator.
    pub fn of_this_machine() -> Self {
        Self::new(Arc::new(SystemClock), Arc::new(SystemRng::default()))
    }
}

/// Brings the schema of the database up to date. Returns the names of the migrations that were
/// applied.
pub async fn migrate(config: &Config) -> Result<Vec<String>, AppError> {
    make_folders(config)?;
    match &config.database {
        DatabaseUrl::Sqlite(path) => Ok(sqlite::migrate(path).await?),
        DatabaseUrl::Postgres(url) => {
            let made = postgres::migrate(&postgres_options(config, url)).await?;
            Ok(made.into_iter().map(str::to_owned).collect())
        }
    }
}

/// Reads the register of the processes that serve from the database, without changing anything.
/// Returns `None` for SQLite, from which only one process can serve.
pub async fn register(config: &Config) -> Result<Option<Register>, AppError> {
    let DatabaseUrl::Postgres(url) = &config.database else { return Ok(None) };
    let options = postgres::connect::Options { migrate: false, ..postgres_options(config, url) };
    let store = PostgresStore::open(&options).await?;
    Ok(Some(store.register().await?))
}

/// A future that opens the database.
pub trait OpeningStore: Future<Output = Result<Arc<dyn Store>, AppError>> + Send {}
impl<F: Future<Output = Result<Arc<dyn Store>, AppError>> + Send> OpeningStore for F {}

/// Opens everything that the use cases need, except the blacklist, which is loaded afterwards.
async fn open(
    config: &Config,
    store: impl OpeningStore,
    system: &System,
    replica: Arc<Replica>,
    audit: Audit,
    store_operations: Arc<Events>,
) -> Result<(Arc<Authority>, Arc<dyn Store>, Arc<Keeper>), AppError> {
    require_master_key(config)?;
    make_folders(config)?;
    let masters = Masters::read(config)?;
    let store: Arc<dyn Store> = Arc::new(ObservedStore::new(store.await?, store_operations));
    let keeper = Arc::new(open_keeper(config, masters, &*store, system, &audit).await?);
    let dependencies = Dependencies {
        store: store.clone(),
        keeper: keeper.clone(),
        replica,
        clock: system.clock.clone(),
        rng: system.rng.clone(),
        audit,
    };
    Ok((Arc::new(Authority::new(dependencies, settings(config))), store, keeper))
}

/// The longest time that a shutdown waits until the last records are in the audit table.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until it is told to stop, or until a part of it fails.
pub async fn serve(
    config: &Config,
    listeners: Listeners,
    store: impl OpeningStore,
    system: System,
    shutdown: Shutdown,
) -> Result<(), AppError> {
    let address = listeners.grpc.local_addr().unwrap_or(config.listen.address);
    let http_address = listeners.http.as_ref().and_then(|listener| listener.local_addr().ok());
    let clock = Arc::new(SharedClock::new(system.clock.clone()));
    let replica = Arc::new(Replica::new(clock.clone(), config.lease, config.watch));
    let system = System { clock, ..system };
    let tls = check::open_certificate(config, system.clock.now())?;
    let ceilings = ceilings(&config.limits);
    let callers = Arc::new(Callers::new(config.callers.clone(), ceilings, system.clock.clone()));
    let (audit, audit_queue) = open_audit(config, &system)?;
    let ready = Ready::default();
    let store_operations = Arc::new(observed::counters());
    // Both ports answer from here on. Until the blacklist is loaded, they report that the service
    // is not ready.
    let state = ServerState {
        ready: ready.clone(),
        replica: replica.clone(),
        callers: callers.clone(),
        tls: tls.clone(),
        audit: audit.clone(),
        store_operations: store_operations.clone(),
        dropped_spans: system.dropped_spans.clone(),
        clock: system.clock.clone(),
    };
    let ports = Ports::open(config, listeners, state).await;
    let metric_export = ports.export_metrics(&system);

    let opening = open(config, store, &system, replica.clone(), audit.clone(), store_operations);
    let opened = tokio::select! {
        opened = opening => opened?,
        () = shutdown.soft.cancelled() => return Ok(()),
    };
    let (authority, store, keeper) = opened;
    log_start(config, (address, http_address), tls.is_some(), &callers, &keeper);
    ready.set(authority.clone());

    let incarnations = incarnations(config, address, &system);
    let mut renewer =
        LeaseRenewer::new(replica.clone(), store.clone(), keeper.clone(), incarnations);
    tokio::select! {
        loaded = renewer.load() => loaded?,
        () = shutdown.soft.cancelled() => {
            leave(&*store, &replica, &shutdown.hard).await;
            return Ok(());
        }
    }
    tracing::info!(blacklist_entries = replica.index().len(), "blacklist loaded");
    let (schedule, of_sweeper) = watch::channel(config.sweeper.schedule.clone());
    let mut background =
        Background::start(of_sweeper, store.clone(), renewer, authority.clone(), &system);
    let log_level = system.log_level.clone();
    let parts = ReloadedParts { callers, authority, ports: ports.settings(), schedule, log_level };
    let (reloader, settings) = Reloader::new(config, parts, tls, system.clock, audit.clone());
    background.reload(reloader, shutdown.reload.clone());
    if let Some(queue) = audit_queue {
        background.write_audit(store.clone(), queue);
    }
    ports.announcer().announce(Phase::Serving).await;
    tracing::info!("serving");
    Running { replica, store, audit, ports, metric_export, background, settings }
        .run(&shutdown)
        .await
}

/// Logs the addresses of both ports and the settings that matter most.
fn log_start(
    config: &Config,
    (address, http_address): (SocketAddr, Option<SocketAddr>),
    is_encrypted: bool,
    callers: &Callers,
    keeper: &Keeper,
) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %address,
        http = http_address.map(tracing::field::display),
        tls = is_encrypted,
        callers = callers.count(),
        database = %config.database,
        issuer = config.issuer,
        signing_key = keeper.ring().signing().map(|key| &*key.kid),
        revocations_hold_within = %brief(config.lease.max_validity()),
        "starting"
    );
    warn_of_risks(address, callers.is_open(), is_encrypted);
}

/// The parts of a process that serves.
struct Running {
    replica: Arc<Replica>,
    store: Arc<dyn Store>,
    audit: Audit,
    ports: Ports,
    metric_export: Option<RunningExport>,
    background: Background,
    /// The configuration in force.
    settings: watch::Receiver<Arc<Config>>,
}

impl Running {
    /// Runs until the process is told to stop or a part of it fails, and then ends all parts.
    async fn run(mut self, shutdown: &Shutdown) -> Result<(), AppError> {
        let failure = self.wait(shutdown).await;
        self.stop(shutdown, failure.is_some()).await;
        if let Some(failure) = failure {
            return Err(failure);
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Waits until the process is told to stop, or until a part of it fails, and returns that
    /// failure. Meanwhile, announces when the lease lapses, and when there is one again.
    async fn wait(&mut self, shutdown: &Shutdown) -> Option<AppError> {
        let reporting = report_lapses(self.replica.clone(), self.ports.announcer().clone());
        let mut reporting = AbortOnDropHandle::new(tokio::spawn(reporting));
        let failure = tokio::select! {
            () = shutdown.soft.cancelled() => None,
            stopped = self.background.stopped() => Some(AppError::TaskStopped(stopped)),
            stopped = self.ports.stopped() => Some(AppError::TaskStopped(stopped.to_owned())),
        };
        reporting.abort();
        // The reporting task must have ended before `Stopping` is announced. Otherwise it could
        // announce `Serving` after that.
        let _ = (&mut reporting).await;
        failure
    }

    /// Lets the calls in flight finish, and ends all parts. After a failure, it does not wait for
    /// `shutdown.grace` first.
    async fn stop(mut self, shutdown: &Shutdown, has_failed: bool) {
        let times = self.settings.borrow().shutdown.clone();
        self.ports.announcer().announce(Phase::Stopping).await;
        // Watchers go to other replicas, and their leases end during the grace.
        self.replica.watchers().stop();
        if !has_failed {
            tokio::select! {
                () = tokio::time::sleep(times.grace) => {}
                () = shutdown.hard.cancelled() => {}
            }
        }
        self.ports.drain(times.drain, &shutdown.hard).await;
        write_audit(&self.audit, shutdown).await;
        self.background.end().await;
        leave(&*self.store, &self.replica, &shutdown.hard).await;
        if let Some(export) = self.metric_export {
            export.end().await;
        }
        self.ports.close().await;
    }
}

/// Logs if callers need no credentials, and if connections are not encrypted.
fn warn_of_risks(address: SocketAddr, is_open: bool, is_encrypted: bool) {
    match (is_open, address.ip().is_loopback()) {
        (false, _) => {}
        (true, true) => {
            tracing::info!("no callers are configured: everybody on this machine may do everything")
        }
        (true, false) => {
            tracing::warn!("no callers are configured: whoever reaches {address} may do everything")
        }
    }
    if !is_encrypted && !address.ip().is_loopback() {
        tracing::warn!(
            "connections to {address} are not encrypted: the setting insecure allows this"
        );
    }
}

/// Returns a function that describes this replica for the register, each time as a new incarnation
/// with a random identifier.
fn incarnations(config: &Config, address: SocketAddr, system: &System) -> IncarnationSource {
    let (name, address) = (config.replica.name.clone(), address.to_string());
    let rng = system.rng.clone();
    let max_validity = config.lease.max_validity();
    Box::new(move || {
        let incarnation = Incarnation::new(random(&*rng)?);
        let (name, address) = (name.clone(), address.clone());
        Ok(Newcomer {
            incarnation,
            name,
            address,
            version: env!("CARGO_PKG_VERSION"),
            max_validity,
        })
    })
}

/// Waits until the audit table has all records, but not for longer than [`AUDIT_TIMEOUT`].
async fn write_audit(audit: &Audit, shutdown: &Shutdown) {
    tokio::select! {
        () = audit.written() => {}
        () = tokio::time::sleep(AUDIT_TIMEOUT) => {}
        () = shutdown.hard.cancelled() => {}
    }
    let records = audit.waiting();
    if records > 0 {
        tracing::warn!(
            records,
            "the table of the audit lacks the last records: they are in the log alone"
        );
    }
}

/// Announces whenever this replica loses its lease, and when it has one again.
async fn report_lapses(replica: Arc<Replica>, announcer: Announcer) {
    loop {
        replica.lapsed().await;
        replica.counts().lapses.inc();
        announcer.announce(Phase::Lapsed).await;
        tracing::warn!("the lease has lapsed: calls to Validate wait for its renewal");
        replica.current().await;
        announcer.announce(Phase::Serving).await;
        tracing::info!("there is a lease again");
    }
}

/// Stops validating, waits until no watcher has a lease, and then removes this replica's row from
/// the register, so that revocations no longer wait for it. If that fails, or if this process has
/// to stop at once, other replicas remove the row once this replica's lease must have ended.
async fn leave(store: &dyn Store, replica: &Replica, hard: &CancellationToken) {
    replica.watchers().stop();
    let incarnation = replica.stop();
    tokio::select! {
        () = replica.watchers().leases_over() => {}
        // As much time by another clock will do, too.
        () = tokio::time::sleep(replica.watchers().longest_validity()) => {}
        () = hard.cancelled() => return,
    }
    if replica.watchers().were_there()
        && let Err(error) = store.end_watching().await
    {
        tracing::debug!(%error, "the end of the leases of watchers could not be recorded");
    }
    if let (Some(incarnation), Some(members)) = (incarnation, store.members())
        && let Err(error) = members.leave(incarnation).await
    {
        tracing::debug!(%error, "this replica's row could not be removed from the register");
    }
}

/// If the clock of this machine is further behind the newest row than this, `sweep` demands that
/// the operator confirms it.
const MAX_BEHIND: Duration = Duration::from_secs(60);
/// The same for a clock that is ahead of the newest row.
const MAX_AHEAD: Duration = Duration::from_secs(86_400);

/// Sweeps once, without serving. A sweep by a clock that is ahead deletes rows that are still
/// needed. So if the database has no clock of its own, and this machine's clock does not fit the
/// newest row, the caller must confirm the clock by `is_clock_right`. With a confirmed clock, the
/// sweep does not use the clock of the database.
pub async fn sweep(
    config: &Config,
    system: System,
    is_clock_right: bool,
) -> Result<Swept, AppError> {
    require_database(config)?;
    let replica = Arc::new(Replica::new(
        Arc::new(SharedClock::new(system.clock.clone())),
        config.lease,
        config.watch,
    ));
    let (audit, queue) = open_audit(config, &system)?;
    let (authority, store, _) = open(
        config,
        open_store(config),
        &system,
        replica,
        audit.clone(),
        Arc::new(observed::counters()),
    )
    .await?;
    if !is_clock_right
        && let Some(newest) = store.newest().await?
        && let now = system.clock.now()
        && (now < newest.minus(MAX_BEHIND) || now > newest.plus(MAX_AHEAD))
    {
        return Err(AppError::DoubtfulClock { now, newest });
    }
    let sweeping =
        if is_clock_right { authority.sweep_by_own_clock().await } else { authority.sweep().await };
    let swept = sweeping.map_err(|error| AppError::Sweep(error.to_string()))?;
    // If the database was new, the records about its first keys have not been written yet.
    CommandAudit::new(audit, queue, &store).write().await;
    Ok(swept)
}
