//! The whole service in this process. It has a free port, a folder and a database of its own, a
//! clock that stands still until it is moved, and a client that calls it over a socket.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use countersign::{
    app::{self, AppError, Listeners, System},
    clock::{Clock, SettableClock},
    config::{Config, Flags},
    domain::{session::Lineage, time::Timestamp},
    proto::{
        self, InactiveReason, revoke_request::Target, session_service_client::SessionServiceClient,
    },
    rng::SystemRng,
    shutdown::Shutdown,
    store::Store,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Request, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::{database::Database, double::Double};

/// The time at which every test starts. It is not a whole second, so that wrong rounding shows.
pub const START: Timestamp = Timestamp::from_micros(1_800_000_000_250_000);

/// The smallest step of the clock.
pub const TICK: Duration = Duration::from_micros(1);

/// The settings of every test. A section that a test adds replaces the whole section here.
const SETTINGS: &str = r#"
issuer = "https://auth.test"
[policies.short]
access_token_ttl = "60s"
idle_timeout = "300s"
absolute_lifetime = "600s"
[policies.strict]
on_refresh = "revoke_access_token"
[policies.two]
max_sessions_per_subject = 2
[policies.refusing]
max_sessions_per_subject = 2
on_quota = "refuse"
[tenants.limited]
policy = "short"
audiences = ["https://orders.test", "https://stock.test"]
[sweeper]
schedule = "0 0 29 2 *"
[shutdown]
grace = "0s"
drain = "60s"
"#;

/// The folder, the database and the clock of a service, which remain when the service stops.
pub struct Home {
    folder: TempDir,
    /// The database.
    pub database: Database,
    /// The clock.
    pub clock: Arc<SettableClock>,
}

/// The number of rows of each table.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows {
    /// The rows of `sessions`.
    pub sessions: i64,
    /// The rows of `blacklist`.
    pub blacklist: i64,
}

impl Home {
    /// Creates a home with these settings in addition to the usual ones.
    pub async fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::new(&folder.path().join("data")).await;
        Self { folder, database, clock: Arc::new(SettableClock::at(START)) }.with(settings)
    }

    /// Replaces the settings.
    pub fn with(self, settings: &str) -> Self {
        self.configure(settings);
        self
    }

    /// Replaces the file with the settings. A service that runs reads it when it reloads.
    pub fn configure(&self, settings: &str) {
        let mut table: toml::Table = toml::from_str(SETTINGS).unwrap();
        table.extend(toml::from_str::<toml::Table>(settings).unwrap());
        table.insert(
            "data_dir".to_owned(),
            self.folder.path().join("data").display().to_string().into(),
        );
        table.insert("database_url".to_owned(), self.database.url().into());
        fs::write(self.folder.path().join("countersign.toml"), table.to_string()).unwrap();
    }

    /// Reads the settings.
    pub fn config(&self) -> Config {
        Config::load(Some(&self.folder.path().join("countersign.toml")), &Flags::default()).unwrap()
    }

    /// Returns the clock and a generator of random numbers.
    pub fn system(&self) -> System {
        System::new(self.clock.clone(), Arc::new(SystemRng::default()))
    }

    /// Returns the path of the master key.
    pub fn master_key_file(&self) -> PathBuf {
        self.folder.path().join("data/master.key")
    }

    /// Counts the rows without the service.
    pub async fn rows(&self) -> Rows {
        Rows {
            sessions: self.database.count("sessions").await,
            blacklist: self.database.count("blacklist").await,
        }
    }

    /// Starts a service, and waits until it serves.
    pub async fn start(self) -> Server {
        let server = self.launch(|_| ()).await;
        let mut watch = server.watch_health("").await;
        loop {
            match next_status(&mut watch).await {
                Some(ServingStatus::Serving) => return server,
                Some(_) => {}
                None => {
                    let outcome = in_time("the service stops", server.running).await;
                    panic!("the service has not started: {outcome:?}");
                }
            }
        }
    }

    /// Prepares the store, starts a service, and does not wait until it serves.
    pub async fn launch(self, prepare: impl FnOnce(&Double)) -> Server {
        let config = self.config();
        let store =
            Arc::new(Double::of(app::open_store(&config).await.unwrap(), self.clock.clone()));
        prepare(&store);
        let [grpc, http] = [
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        ];
        let [address, http_address] = [&grpc, &http].map(|listener| listener.local_addr().unwrap());
        let listeners = Listeners { grpc, http: Some(http) };
        let shutdown = Shutdown::default();
        let running = {
            let (store, system, shutdown) = (store.clone(), self.system(), shutdown.clone());
            let store: Arc<dyn Store> = store;
            tokio::spawn(async move {
                app::serve(&config, listeners, async { Ok(store) }, system, shutdown).await
            })
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        // A service that refuses to start may already have closed its port.
        let channel = endpoint.connect().await.unwrap_or_else(|_| endpoint.connect_lazy());
        Server {
            clock: self.clock.clone(),
            home: self,
            store,
            channel,
            http: http_address,
            shutdown,
            running,
        }
    }
}

/// A running service and its client.
pub struct Server {
    /// The folder, the database and the clock, which remain when the service stops.
    pub home: Home,
    /// The clock of the service.
    pub clock: Arc<SettableClock>,
    /// The store of the service.
    pub store: Arc<Double>,
    /// A connection to the service.
    pub channel: Channel,
    /// The address on which the service listens for HTTP.
    pub http: SocketAddr,
    /// The handle that stops the service.
    pub shutdown: Shutdown,
    /// The task that runs the service.
    pub running: JoinHandle<Result<(), AppError>>,
}

/// Sends an API key with each call, unless the key is empty.
#[derive(Clone)]
pub struct ShowKey(pub String);

impl Interceptor for ShowKey {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if !self.0.is_empty() {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {}", self.0).parse().unwrap());
        }
        Ok(request)
    }
}

/// A session and its tokens, as an answer returned them.
#[derive(Clone)]
pub struct SignedIn {
    /// The session.
    pub session: proto::Session,
    /// The access token.
    pub access: String,
    /// The refresh token.
    pub refresh: String,
    /// Both tokens and their lifetimes.
    pub tokens: proto::Tokens,
}

impl From<(Option<proto::Session>, Option<proto::Tokens>)> for SignedIn {
    fn from((session, tokens): (Option<proto::Session>, Option<proto::Tokens>)) -> Self {
        let tokens = tokens.unwrap();
        let (access, refresh) = (tokens.access_token.clone(), tokens.refresh_token.clone());
        Self { session: session.unwrap(), access, refresh, tokens }
    }
}

impl SignedIn {
    /// Returns the identifier of the session.
    pub fn id(&self) -> String {
        self.session.session_id.clone()
    }
}

/// The tokens after a refresh, and whether they repeat an answer.
pub struct Exchanged {
    /// The session and its tokens.
    pub now: SignedIn,
    /// True if an earlier answer is repeated.
    pub replayed: bool,
}

/// Returns a request for a session of this subject in tenant `acme`.
pub fn request(subject: &str) -> proto::CreateSessionRequest {
    proto::CreateSessionRequest {
        subject: subject.to_owned(),
        tenant: "acme".to_owned(),
        ..Default::default()
    }
}

/// Returns a request for a session under this policy instead of the default one.
pub fn request_under(policy: &str, subject: &str) -> proto::CreateSessionRequest {
    proto::CreateSessionRequest { policy: policy.to_owned(), ..request(subject) }
}

/// Returns a request to revoke the whole session of a token.
pub fn of_token(token: &str) -> proto::RevokeRequest {
    revocation(Target::Token(token.to_owned()))
}

/// Returns a request to revoke, without a reason and a note.
pub fn revocation(target: Target) -> proto::RevokeRequest {
    proto::RevokeRequest { target: Some(target), ..Default::default() }
}

impl Server {
    /// Starts a service with the usual settings.
    pub async fn start() -> Self {
        Home::new("").await.start().await
    }

    /// Stops the service gracefully, and returns what remains of it.
    pub async fn stop(self) -> Home {
        let Self { home, store, channel, shutdown, running, .. } = self;
        drop(channel);
        shutdown.soft.cancel();
        in_time("the service stops", running).await.unwrap().unwrap();
        drop(store);
        home.database.released().await;
        home
    }

    /// Stops the service gracefully, and starts it again.
    pub async fn restart(self) -> Self {
        self.stop().await.start().await
    }

    /// Replaces the settings while the service runs. They are in force soon after this has returned.
    pub fn reload(&self, settings: &str) {
        self.home.configure(settings);
        self.shutdown.reload.notify_one();
    }

    /// Returns the connection to the service.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Returns a client that sends this API key.
    pub fn client_with(
        &self,
        api_key: &str,
    ) -> SessionServiceClient<InterceptedService<Channel, ShowKey>> {
        SessionServiceClient::with_interceptor(self.channel.clone(), ShowKey(api_key.to_owned()))
    }

    /// Returns a client.
    pub fn client(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    /// Creates a session.
    pub async fn create(&self, request: proto::CreateSessionRequest) -> Result<SignedIn, Status> {
        let answer = self.client().create_session(request).await?.into_inner();
        Ok((answer.session, answer.tokens).into())
    }

    /// Creates a session of this subject.
    pub async fn sign_in(&self, subject: &str) -> SignedIn {
        self.create(request(subject)).await.unwrap()
    }

    /// Exchanges a refresh token.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Exchanged, Status> {
        self.exchange(proto::RefreshRequest {
            refresh_token: refresh_token.to_owned(),
            ..Default::default()
        })
        .await
    }

    /// Refreshes a session.
    pub async fn exchange(&self, request: proto::RefreshRequest) -> Result<Exchanged, Status> {
        let answer = self.client().refresh(request).await?.into_inner();
        Ok(Exchanged { now: (answer.session, answer.tokens).into(), replayed: answer.replayed })
    }

    /// Validates an access token.
    pub async fn validate(
        &self,
        request: proto::ValidateRequest,
    ) -> Result<proto::ValidateResponse, Status> {
        Ok(self.client().validate(request).await?.into_inner())
    }

    /// Validates an access token without demands. Returns the reason if it is inactive.
    pub async fn verdict(&self, token: &str) -> Result<(), InactiveReason> {
        self.demand(proto::ValidateRequest { access_token: token.to_owned(), ..Default::default() })
            .await
    }

    /// Validates an access token with demands. If the token is inactive, checks that the answer has
    /// nothing but the reason and the time of the check, and returns the reason.
    pub async fn demand(&self, request: proto::ValidateRequest) -> Result<(), InactiveReason> {
        let answer = self.validate(request).await.unwrap();
        if answer.active {
            assert_eq!(answer.inactive_reason(), InactiveReason::Unspecified);
            return Ok(());
        }
        let bare = proto::ValidateResponse {
            inactive_reason: answer.inactive_reason,
            checked_at: Some(at(self.clock.now())),
            ..Default::default()
        };
        assert_eq!(answer, bare);
        Err(answer.inactive_reason())
    }

    /// Makes a revocation, and returns the number of sessions that ended.
    pub async fn revoke(&self, request: proto::RevokeRequest) -> Result<i64, Status> {
        Ok(self.client().revoke(request).await?.into_inner().revoked_sessions)
    }

    /// Returns a session.
    pub async fn session(&self, id: &str) -> Result<proto::Session, Status> {
        let request = proto::GetSessionRequest { session_id: id.to_owned() };
        Ok(self.client().get_session(request).await?.into_inner().session.unwrap())
    }

    /// Counts the rows.
    pub async fn rows(&self) -> Rows {
        self.home.rows().await
    }

    /// Returns a client of the health service.
    pub fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel.clone())
    }

    /// Watches the health of a service.
    pub async fn watch_health(&self, service: &str) -> Streaming<HealthCheckResponse> {
        self.health()
            .watch(HealthCheckRequest { service: service.to_owned() })
            .await
            .unwrap()
            .into_inner()
    }

    /// Returns the lineage of a session from its row.
    pub async fn lineage(&self, id: &str) -> Lineage {
        self.store.session(id.parse().unwrap()).await.unwrap().unwrap().lineage
    }
}

/// Returns the next status of a health watch, or `None` once the stream has ended.
pub async fn next_status(watch: &mut Streaming<HealthCheckResponse>) -> Option<ServingStatus> {
    let message = in_time("the next health status", watch.message()).await;
    message.ok().flatten().map(|message| message.status())
}

/// Converts an instant to its form in messages.
pub fn at(instant: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(instant.subsecond_micros() * 1000).unwrap();
    prost_types::Timestamp { seconds: instant.seconds(), nanos }
}

/// Returns an instant after the start, in its form in messages.
pub fn start_plus(span: Duration) -> prost_types::Timestamp {
    at(START.plus(span))
}

/// Returns a span of time.
pub fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Waits for an event that must happen. Panics if that takes more than a minute.
pub async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(seconds(60), event)
        .await
        .unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

/// Polls until `look` returns a value, for a condition without an event to wait for. Panics if that
/// takes more than a minute.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::task::yield_now().await;
        }
    };
    in_time(what, looking).await
}
