//! The composition root: puts the parts together, runs them, and takes them apart again. It reads as a script.

mod database;
mod keys;
mod reload;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    authority::{
        Authority, Settings,
        audit::{Audit, AuditQueue, AuditWriter},
        ready::Ready,
    },
    callers::{Callers, meter::Ceilings},
    clock::{Clock, SystemClock},
    config::{Config, database::DatabaseUrl, keys::Keys, limits::Limits},
    domain::{ids::Incarnation, time::brief},
    gateway::{Gateway, outcomes::Outcomes},
    grpc::{
        health::{self, Health},
        server::{self, ConnectionLimits},
        services::{CallLimits, Services},
    },
    http::{
        self, Door, Gates,
        health::{Phase, Readiness},
    },
    keys::{generate::NotGenerated, keeper::Keeper, master_key::MasterKeyError, ring::RingError},
    metrics::{Connections, Metrics, Observed},
    net::{
        accept::{self, Entrance},
        descriptors,
        tls::{Side, Tls, TlsError},
    },
    revocation::{
        renewing::{Draw, Renewing},
        replica::Replica,
    },
    rng::{Rng, RngFailed, SystemRng, random},
    shutdown::Shutdown,
    store::{
        Store, StoreError,
        postgres::{self, PostgresStore},
        replicas::{Members, Newcomer},
        sqlite,
    },
    tasks,
};

pub use self::{
    database::open_store,
    keys::{import_key, reseal},
};
pub use crate::{
    authority::sweep::Swept,
    store::replicas::{Member, Register},
};

use self::{
    database::{make_folders, postgres_options, require_database},
    keys::{Masters, open_keeper},
    reload::Reloading,
};

/// The service cannot start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory cannot be made or written.
    #[error(
        "data directory {path}: {source}: name another one in data_dir, or give this user the right to write there"
    )]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The database would be in a folder that does not exist.
    #[error("database {path}: the folder {folder} does not exist: make it, or name another file in database_url")]
    NoSuchFolder {
        /// The database.
        path: PathBuf,
        /// The folder.
        folder: PathBuf,
    },
    /// There is no database to work on.
    #[error("database {0} does not exist: name the one that is meant by --data-dir or --database-url")]
    NoDatabase(PathBuf),
    /// The SQLite file cannot be opened.
    #[error(transparent)]
    Sqlite(#[from] sqlite::open::OpenError),
    /// The PostgreSQL database cannot be used.
    #[error(transparent)]
    Postgres(#[from] postgres::open::OpenError),
    /// The database failed while starting.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The master key cannot be used.
    #[error(transparent)]
    MasterKey(#[from] MasterKeyError),
    /// The database has keys, and the file with the master key is gone.
    #[error(
        "master key file {0} does not exist, but the database holds keys that only it opens: restore it from a backup"
    )]
    MasterKeyGone(PathBuf),
    /// A database that others may use too gets no master key that only this machine has.
    #[error(
        "master key file {path} does not exist; everyone who serves from this database needs the same one, so it is not \
         made here: run `openssl rand -base64 32 > {path} && chmod 600 {path}`, and give every replica a copy"
    )]
    MasterKeyMissing {
        /// The file.
        path: PathBuf,
    },
    /// The keys cannot be used.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A key of one's own cannot be used.
    #[error("private key {path}: {problem}")]
    NotImported {
        /// Its file.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The first keys could not be made.
    #[error(transparent)]
    NotGenerated(#[from] NotGenerated),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no randomness.
    #[error(transparent)]
    Rng(#[from] RngFailed),
    /// A sweep stopped early.
    #[error("the sweep stopped early, what is due stays due: {0}")]
    Sweep(String),
    /// A part that must run as long as the service does has stopped.
    #[error("{0} has stopped unexpectedly")]
    TaskStopped(String),
}

impl AppError {
    /// Whether it happened before the service was up.
    pub fn is_at_start(&self) -> bool {
        !matches!(self, Self::Sweep(_) | Self::TaskStopped(_))
    }
}

/// What the service takes from the system. Tests give their own.
#[derive(Clone)]
pub struct System {
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
}

impl System {
    /// That of this machine.
    pub fn of_this_machine() -> Self {
        Self { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng::default()) }
    }
}

/// Brings the schema of the database up to date, and returns the migrations that were made.
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

/// Who serves from the database, as it stands there; none where only one process can. Nothing is changed for that.
pub async fn register(config: &Config) -> Result<Option<Register>, AppError> {
    let DatabaseUrl::Postgres(url) = &config.database else { return Ok(None) };
    let options = postgres::connect::Options { migrate: false, ..postgres_options(config, url) };
    let store = PostgresStore::open(&options).await?;
    Ok(Some(store.register().await?))
}

/// A database that is being opened.
pub trait OpeningStore: Future<Output = Result<Arc<dyn Store>, AppError>> + Send {}
impl<F: Future<Output = Result<Arc<dyn Store>, AppError>> + Send> OpeningStore for F {}

/// Opens everything that the use cases need. They are ready but for the blacklist, which has yet to be loaded.
async fn open(
    config: &Config,
    store: impl OpeningStore,
    system: &System,
    replica: Arc<Replica>,
    audit: Audit,
) -> Result<(Arc<Authority>, Arc<dyn Store>, Arc<Keeper>), AppError> {
    make_folders(config)?;
    let masters = Masters::read(config)?;
    let store = store.await?;
    let keeper = Arc::new(open_keeper(config, masters, &*store, system).await?);
    let (clock, rng) = (system.clock.clone(), system.rng.clone());
    let authority = Authority::new(store.clone(), keeper.clone(), replica, clock, rng, audit, settings(config));
    Ok((Arc::new(authority), store, keeper))
}

fn settings(config: &Config) -> Settings {
    Settings {
        issuer: config.issuer.clone(),
        leeway: config.tokens.leeway,
        max_clock_skew: if config.database.is_shared() { config.lease.max_clock_skew } else { Duration::ZERO },
        max_access_token_ttl: config.tokens.max_access_token_ttl,
        default_audience: config.tokens.default_audience.clone(),
        policies: config.policies.clone().into_iter().collect(),
        tenants: config.tenants.clone().into_iter().collect(),
        max_blacklist_entries: config.max_blacklist_entries,
        sweep_batch: config.sweeper.batch_size,
        session_retention: config.sweeper.session_retention,
        audit_retention: config.audit.retention,
        token_cache_bytes: config.tokens.verified_cache_bytes,
        signing_rotation: config.keys.signing,
        refresh_rotation: config.keys.refresh,
        jwks_max_age: config.keys.jwks_max_age,
    }
}

/// How long the process goes on at its end for the sake of the table of the audit.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);

/// Where the service listens.
pub struct Listeners {
    /// For gRPC.
    pub grpc: TcpListener,
    /// For HTTP, if it is wanted.
    pub http: Option<TcpListener>,
}

/// Says on both ports how far the service has come.
#[derive(Clone)]
struct Announcer {
    grpc: Health,
    http: Readiness,
}

impl Announcer {
    async fn announce(&self, phase: Phase) {
        self.http.set(phase);
        match phase {
            Phase::Serving => self.grpc.serving().await,
            Phase::Starting | Phase::Lapsed | Phase::Stopping => self.grpc.not_serving().await,
        }
    }
}

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
    let replica = Arc::new(Replica::new(system.clock.clone(), config.lease));
    let tls =
        config.tls.as_ref().map(|tls| Tls::open(tls.files.clone(), system.clock.now())).transpose()?.map(Arc::new);
    let Limits { max_calls: calls, max_reads: reads, max_writes: writes, .. } = config.limits;
    let ceilings = Ceilings { calls, reads, writes, batches: config.limits.batches() };
    let callers = Arc::new(Callers::new(config.callers.clone(), ceilings, system.clock.clone()));
    let connections = Connections::default();
    descriptors::take(config.limits.max_connections.saturating_add(config.limits.max_http_connections));
    let (audit, audit_queue) = open_audit(config, &system)?;
    // Both ports answer from here on, and say that the service is not ready until the blacklist is loaded.
    let mut announcer = Announcer { grpc: Health::new().await, http: Readiness::new() };
    let ready = Ready::default();
    let close = CancellationToken::new();
    let grpc = Entrance {
        listener: listeners.grpc,
        tls: tls.clone(),
        side: Side::Grpc,
        limits: entrance_limits(config, config.limits.max_connections),
        counts: connections.grpc.clone(),
    };
    let others = health::routes(&announcer.grpc, config.reflection);
    let outcomes = Arc::<Outcomes>::default();
    let gateway = Arc::new(Gateway::new(config.gateway.clone(), outcomes.clone()));
    let services =
        Services::new(ready.clone(), others, callers.clone(), audit.clone(), gateway.clone(), call_limits(config));
    let server = server::serve(grpc, services, connection_limits(config), close.clone());
    let mut server = AbortOnDropHandle::new(tokio::spawn(server));
    let close_http = CancellationToken::new();
    let observed = Observed {
        replica: replica.clone(),
        callers: callers.clone(),
        connections: connections.clone(),
        tls: tls.clone(),
        audit: audit.clone(),
        outcomes: outcomes.clone(),
    };
    let door = Door { callers: callers.clone(), audit: audit.clone(), is_private: config.http_is_private };
    let patience = config.limits.call_timeout;
    let certificates = config.tls.as_ref().is_some_and(|tls| tls.http && tls.files.client_ca.is_some());
    let gates = Gates { door, ready: ready.clone(), gateway, outcomes, patience, certificates };
    let routes = http::routes(announcer.http.clone(), Arc::new(Metrics::new(observed)), &config.issuer, gates);
    let http = listeners.http.map(|listener| Entrance {
        listener,
        tls: tls.clone().filter(|_| config.tls.as_ref().is_some_and(|tls| tls.http)),
        side: Side::Http,
        limits: entrance_limits(config, config.limits.max_http_connections),
        counts: connections.http.clone(),
    });
    let mut http = AbortOnDropHandle::new(tokio::spawn(http::server::serve(http, routes, close_http.clone())));

    let opened = tokio::select! {
        opened = open(config, store, &system, replica.clone(), audit.clone()) => opened?,
        () = shutdown.soft.cancelled() => return Ok(()),
    };
    let (authority, store, keeper) = opened;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %address,
        http = http_address.map(tracing::field::display),
        tls = tls.is_some(),
        callers = callers.count(),
        database = %config.database,
        issuer = config.issuer,
        signing_key = keeper.ring().signing().map(|key| &*key.kid),
        revocations_hold_within = %brief(config.lease.holds_for()),
        "starting"
    );
    warn_of_risks(address, callers.is_open(), tls.is_some());
    ready.set(authority.clone());

    let mut renewing = Renewing::new(replica.clone(), store.clone(), keeper.clone(), draw(config, &system));
    tokio::select! {
        loaded = renewing.load() => loaded?,
        () = shutdown.soft.cancelled() => {
            leave(&*store, &replica).await;
            return Ok(());
        }
    }
    tracing::info!(blacklist_entries = replica.index().len(), "blacklist loaded");
    let mut tasks = start_tasks(config, store.clone(), renewing, authority, &system);
    let reloading = Reloading { config: config.clone(), callers, tls, clock: system.clock.clone() };
    tasks.spawn(named("the look at certificates and callers", reloading.run(shutdown.reload.clone())));
    if let Some(queue) = audit_queue {
        tasks.spawn(named("the writer of the audit", tasks::audit::run(AuditWriter::new(store.clone(), queue))));
    }
    announcer.announce(Phase::Serving).await;
    tracing::info!("serving");
    let mut reporting = AbortOnDropHandle::new(tokio::spawn(report(replica.clone(), announcer.clone())));

    let failure = tokio::select! {
        () = shutdown.soft.cancelled() => None,
        stopped = tasks.join_next() => Some(AppError::TaskStopped(name_of(stopped))),
        _ = &mut server => Some(AppError::TaskStopped("the gRPC server".to_owned())),
        _ = &mut http => Some(AppError::TaskStopped("the HTTP server".to_owned())),
    };

    reporting.abort();
    // So that it does not speak after us.
    let _ = (&mut reporting).await;
    announcer.announce(Phase::Stopping).await;
    if failure.is_none() {
        tokio::select! {
            () = tokio::time::sleep(config.shutdown.grace) => {}
            () = shutdown.hard.cancelled() => {}
        }
    }
    close.cancel();
    announcer.grpc.end().await;
    if !server.is_finished() {
        tokio::select! {
            _ = &mut server => {}
            () = tokio::time::sleep(config.shutdown.drain) => tracing::warn!("calls were cut off: they took too long"),
            () = shutdown.hard.cancelled() => tracing::warn!("calls were cut off by a second signal"),
        }
    }
    write_audit(&audit, &shutdown).await;
    tasks.shutdown().await;
    leave(&*store, &replica).await;
    close_http.cancel();
    if !http.is_finished() {
        // Only its end is waited for.
        let _ = http.await;
    }
    match failure {
        Some(failure) => Err(failure),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

/// Says what anybody may do, and what anybody may see.
fn warn_of_risks(address: SocketAddr, is_open: bool, is_encrypted: bool) {
    match (is_open, address.ip().is_loopback()) {
        (false, _) => {}
        (true, true) => tracing::info!("no callers are configured: everybody on this machine may do everything"),
        (true, false) => tracing::warn!("no callers are configured: whoever reaches {address} may do everything"),
    }
    if !is_encrypted && !address.ip().is_loopback() {
        tracing::warn!("what is sent to {address} is not encrypted (setting insecure)");
    }
}

fn entrance_limits(config: &Config, connections: usize) -> accept::Limits {
    accept::Limits { connections, handshake: config.limits.handshake_timeout }
}

fn connection_limits(config: &Config) -> ConnectionLimits {
    let limits = &config.limits;
    ConnectionLimits {
        metadata_bytes: limits.max_metadata_bytes,
        streams: limits.max_streams_per_connection,
        handshake: limits.handshake_timeout,
        idle: limits.idle_timeout,
        answer: limits.call_timeout,
        keepalive_interval: limits.keepalive_interval,
        keepalive_timeout: limits.keepalive_timeout,
    }
}

fn call_limits(config: &Config) -> CallLimits {
    let limits = &config.limits;
    CallLimits {
        request_bytes: limits.max_request_bytes,
        batch_bytes: limits.max_batch_bytes,
        time: limits.call_timeout,
    }
}

/// Draws the lives of this replica.
fn draw(config: &Config, system: &System) -> Draw {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let rng = system.rng.clone();
    let holds_for = config.lease.holds_for();
    Box::new(move || {
        let incarnation = Incarnation::new(random(&*rng)?);
        Ok(Newcomer { incarnation, name: name.clone(), version: env!("CARGO_PKG_VERSION"), holds_for })
    })
}

/// The audit, and where its records wait for the table, if there is to be one.
fn open_audit(config: &Config, system: &System) -> Result<(Audit, Option<AuditQueue>), AppError> {
    let salt = random(&*system.rng)?;
    if !config.audit.table {
        return Ok((Audit::of_log(system.clock.clone(), salt), None));
    }
    let (audit, queue) = Audit::with_table(system.clock.clone(), salt);
    Ok((audit, Some(queue)))
}

/// Waits for a while until the table of the audit has what is recorded.
async fn write_audit(audit: &Audit, shutdown: &Shutdown) {
    tokio::select! {
        () = audit.written() => {}
        () = tokio::time::sleep(AUDIT_PATIENCE) => {}
        () = shutdown.hard.cancelled() => {}
    }
    let records = audit.waiting();
    if records > 0 {
        tracing::warn!(records, "the table of the audit lacks the last records: they are in the log alone");
    }
}

/// Says that this replica is not ready while it has no lease.
async fn report(replica: Arc<Replica>, announcer: Announcer) {
    loop {
        replica.lapsed().await;
        replica.counts().lapses.inc();
        announcer.announce(Phase::Lapsed).await;
        tracing::warn!("the lease has lapsed: what is validated waits for its renewal");
        replica.current().await;
        announcer.announce(Phase::Serving).await;
        tracing::info!("there is a lease again");
    }
}

/// Stops answering, and then leaves the register: nobody needs to wait for this replica any more. If this fails, the others
/// find out.
async fn leave(store: &dyn Store, replica: &Replica) {
    if let (Some(incarnation), Some(members)) = (replica.stop(), store.members())
        && let Err(error) = members.leave(incarnation).await
    {
        tracing::debug!(%error, "this replica's row is left behind");
    }
}

type Tasks = JoinSet<&'static str>;

fn start_tasks(
    config: &Config,
    store: Arc<dyn Store>,
    renewing: Renewing,
    authority: Arc<Authority>,
    system: &System,
) -> Tasks {
    let mut tasks = Tasks::new();
    tasks.spawn(named("the database engine", async move { store.stopped().await }));
    tasks.spawn(named("the renewal of the lease", renewing.run()));
    let sweeper = tasks::sweeper::run(authority.clone(), system.clock.clone(), config.sweeper.schedule.clone());
    tasks.spawn(named("the sweeper", sweeper));
    let rotation = tasks::keys::run(authority.clone(), how_often(&config.keys));
    tasks.spawn(named("the rotation of the keys", rotation));
    tasks.spawn(named("the end of revoked tenants' sessions", tasks::tenants::run(authority)));
    tasks
}

/// How often it is looked whether a key is due: often enough for the shortest span that the schedule is made of.
fn how_often(keys: &Keys) -> Duration {
    (keys.signing.publish_ahead / 10).clamp(Duration::from_millis(100), Duration::from_secs(30))
}

/// None of the tasks ends by itself, so its name is its obituary.
async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

fn name_of(stopped: Option<Result<&'static str, tokio::task::JoinError>>) -> String {
    match stopped {
        Some(Ok(name)) => name.to_owned(),
        Some(Err(error)) => format!("a background task ({error})"),
        None => "every background task".to_owned(),
    }
}

/// Sweeps once, without serving.
pub async fn sweep(config: &Config, system: System) -> Result<Swept, AppError> {
    require_database(config)?;
    let replica = Arc::new(Replica::new(system.clock.clone(), config.lease));
    let audit = Audit::of_log(system.clock.clone(), random(&*system.rng)?);
    let (authority, _, _) = open(config, open_store(config), &system, replica, audit).await?;
    authority.sweep().await.map_err(|error| AppError::Sweep(error.to_string()))
}
