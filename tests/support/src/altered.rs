//! A replica in a process of this test program. It runs the same code as the binary, but either its
//! wall clock is wrong, or the requests and answers of its renewals are changed so that it breaks a
//! rule of the lease protocol or of watchers. `cluster.rs` starts such a process for the settings [`WALL_CLOCK`]
//! and [`RULE`].

use std::{
    collections::HashMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use countersign::{
    app::{self, Listeners, System},
    clock::{Clock, SystemClock},
    config::{Config, Flags, server::Listen},
    domain::{ids::Incarnation, revocation::Seq, time::Timestamp},
    rng::SystemRng,
    shutdown::Shutdown,
    store::{
        Store, StoreError,
        replicas::{Answer, Newcomer, RenewalClient, RenewalOutcome, RenewalRequest},
        ring::SealedRing,
    },
    telemetry,
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::{Mutex, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    cluster::{RULE, WALL_CLOCK},
    double::Double,
};

type Result<T> = std::result::Result<T, StoreError>;

/// Serves in this process, as the settings in its environment say, until the process is stopped.
/// Does nothing if neither [`WALL_CLOCK`] nor [`RULE`] is set, because the test that calls
/// it is an ignored one, which `cargo test -- --ignored` runs too.
pub fn serve() {
    let (rule, wall_clock) = (env::var(RULE).ok(), env::var(WALL_CLOCK).ok());
    if rule.is_none() && wall_clock.is_none() {
        return;
    }
    let config = Config::load(None, &Flags::default()).unwrap();
    telemetry::start(&config.log).unwrap();
    let seconds = wall_clock.map_or(0, |text| text.parse().expect("a number of seconds"));
    let clock = Arc::new(AlteredClock { ahead: seconds * 1_000_000, lost: AtomicI64::new(0) });
    let runtime = Runtime::new().unwrap();
    runtime.block_on(serve_altered(&config, rule, clock));
    runtime.shutdown_timeout(Duration::from_secs(10));
}

async fn serve_altered(config: &Config, rule: Option<String>, clock: Arc<AlteredClock>) {
    let bind = async |Listen { address }| TcpListener::bind(address).await.unwrap();
    let http = match config.http_listen {
        Some(listen) => Some(bind(listen).await),
        None => None,
    };
    let listeners = Listeners { grpc: bind(config.listen).await, http };
    let max_validity = config.lease.max_validity();
    let system = System::new(clock.clone(), Arc::new(SystemRng::default()));
    let store = async {
        let real = app::await_store(config).await?;
        let Some(rule) = rule else { return Ok(real) };
        let renewals =
            move |store: &Arc<dyn Store>| renewal_client(&rule, store, clock.clone(), max_validity);
        Ok(Arc::new(Double::with_renewals(real, renewals)) as Arc<dyn Store>)
    };
    let shutdown = Shutdown::on_signals().unwrap();
    app::serve(config, listeners, store, system, shutdown).await.unwrap();
}

/// The clocks of the system, with errors.
struct AlteredClock {
    /// The number of microseconds by which the wall clock is ahead.
    ahead: i64,
    /// The number of microseconds by which both clocks were set back.
    lost: AtomicI64,
}

impl AlteredClock {
    fn set_back(&self, span: Duration) {
        self.lost.fetch_add(span.as_micros().try_into().unwrap(), Ordering::SeqCst);
    }
}

impl Clock for AlteredClock {
    fn now(&self) -> Timestamp {
        let micros = SystemClock.now().micros() + self.ahead;
        Timestamp::from_micros(micros - self.lost.load(Ordering::SeqCst))
    }

    fn uptime(&self) -> Duration {
        let lost = self.lost.load(Ordering::SeqCst).unsigned_abs();
        SystemClock.uptime() - Duration::from_micros(lost)
    }
}

/// Returns the client for the renewals of a replica that breaks a rule.
fn renewal_client(
    rule: &str,
    store: &Arc<dyn Store>,
    clock: Arc<AlteredClock>,
    max_validity: Duration,
) -> Box<dyn RenewalClient> {
    let real = store.renewal_client();
    match rule {
        "deadline-from-reply" => Box::new(DeadlineFromReply { real, clock }),
        "acknowledge-skips-a-member" => Box::new(SkippedMembers { real }),
        "load-before-joining" => {
            let rows = HashMap::new();
            Box::new(LateToJoin { real, store: store.clone(), max_validity, rows })
        }
        "report-without-watchers" => Box::new(ReportsAll { real }),
        "leave-before-leases" => Box::new(EarlyToLeave::new(real, store.clone())),
        "renew-by-read" => Box::new(UncheckedNumber { real, is_always: true }),
        "epoch-not-compared" => Box::new(UncheckedNumber { real, is_always: false }),
        "earlier-renewal-counts" => {
            let real = Arc::new(Mutex::new(real));
            Box::new(EarlierAnswer { real, asking: None, last: None })
        }
        _ => panic!("no rule is called {rule}"),
    }
}

/// Sets the clocks back by the time that an answer took, so that the lease lasts as if it were
/// counted from the answer and not from the request.
struct DeadlineFromReply {
    real: Box<dyn RenewalClient>,
    clock: Arc<AlteredClock>,
}

/// An answer that takes longer than this is late. Quick answers do not set the clocks back, because
/// waits for acknowledgements use the clocks, too.
const LATE: Duration = Duration::from_millis(50);

#[async_trait]
impl RenewalClient for DeadlineFromReply {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        let sent = Instant::now();
        let outcome = self.real.renew(renewal).await?;
        let taken = sent.elapsed();
        if taken > LATE {
            self.clock.set_back(taken);
        }
        Ok(outcome)
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

/// Leaves the other replicas out of each answer, so that no acknowledgement waits for them.
struct SkippedMembers {
    real: Box<dyn RenewalClient>,
}

#[async_trait]
impl RenewalClient for SkippedMembers {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        let mut outcome = self.real.renew(renewal).await?;
        if let RenewalOutcome::Answer(answer) = &mut outcome {
            answer.others.clear();
            answer.settled = answer.head.timeline;
        }
        Ok(outcome)
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

/// Deletes the replica's row once the index is loaded, and joins again only with the next renewal.
/// In between, other replicas do not wait for this replica, as if it had loaded the index before it
/// joined.
struct LateToJoin {
    real: Box<dyn RenewalClient>,
    store: Arc<dyn Store>,
    max_validity: Duration,
    /// The row of each incarnation.
    rows: HashMap<Incarnation, Row>,
}

enum Row {
    /// The row is being deleted.
    Leaving(JoinHandle<Result<()>>),
    /// The row is there, and has not been renewed yet.
    New,
    /// The row has been renewed.
    Renewed,
}

#[async_trait]
impl RenewalClient for LateToJoin {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        let incarnation = renewal.incarnation;
        if let Some(Row::Leaving(leaving)) = self.rows.get_mut(&incarnation) {
            leaving.await.unwrap()?;
            let newcomer = Newcomer {
                incarnation,
                name: "late".to_owned(),
                address: String::new(),
                version: "",
                max_validity: self.max_validity,
            };
            self.real.join(newcomer, renewal.timeout).await?;
            self.rows.insert(incarnation, Row::New);
        }
        let outcome = match self.rows.get(&incarnation) {
            Some(Row::New) => self.real.renew(&unchecked(renewal)).await?,
            _ => self.real.renew(renewal).await?,
        };
        match (&outcome, self.rows.get(&incarnation)) {
            (RenewalOutcome::Answer(answer), None) if is_last(renewal, answer) => {
                let store = self.store.clone();
                let leaving = async move { store.members().unwrap().leave(incarnation).await };
                self.rows.insert(incarnation, Row::Leaving(tokio::spawn(leaving)));
            }
            (RenewalOutcome::Answer(_), Some(_)) => {
                self.rows.insert(incarnation, Row::Renewed);
            }
            _ => {}
        }
        Ok(outcome)
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

/// Reports everything that the replica has applied, without regard to its watchers (decision 34,
/// rule 4).
struct ReportsAll {
    real: Box<dyn RenewalClient>,
}

#[async_trait]
impl RenewalClient for ReportsAll {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        let applied = renewal.applied.max(renewal.after);
        self.real.renew(&RenewalRequest { applied, ..*renewal }).await
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

/// Deletes the replica's row as soon as the process is told to stop, although leases of watchers
/// are not over (decision 34, rule 6). The row is not renewed after that.
struct EarlyToLeave {
    real: Box<dyn RenewalClient>,
    /// The present membership; `None` once the row is deleted.
    membership: watch::Sender<Option<Incarnation>>,
}

impl EarlyToLeave {
    fn new(real: Box<dyn RenewalClient>, store: Arc<dyn Store>) -> Self {
        let membership = watch::Sender::new(Some(Incarnation::from_bytes([0; 16])));
        let leaving = membership.clone();
        tokio::spawn(async move {
            signal(SignalKind::terminate()).unwrap().recv().await;
            if let Some(incarnation) = leaving.send_replace(None) {
                let _ = store.members().unwrap().leave(incarnation).await;
            }
        });
        Self { real, membership }
    }

    fn check(&self) -> Result<()> {
        match *self.membership.borrow() {
            Some(_) => Ok(()),
            None => Err(StoreError::Unavailable("the row is deleted".to_owned())),
        }
    }
}

#[async_trait]
impl RenewalClient for EarlyToLeave {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.check()?;
        self.membership.send_modify(|membership| {
            *membership = membership.and(Some(newcomer.incarnation));
        });
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        self.check()?;
        self.real.renew(renewal).await
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

/// Renews without checking that the row has the number of the last confirmed renewal: always, or
/// only after a checked renewal has returned `Gone`. The replica then does not notice
/// that its database was set back, and no epoch ends.
struct UncheckedNumber {
    real: Box<dyn RenewalClient>,
    is_always: bool,
}

#[async_trait]
impl RenewalClient for UncheckedNumber {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        if !self.is_always {
            let outcome = self.real.renew(renewal).await?;
            if let RenewalOutcome::Answer(_) = outcome {
                return Ok(outcome);
            }
        }
        self.real.renew(&unchecked(renewal)).await
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.ring(timeout).await
    }
}

/// Returns the last answer a second time if the database does not answer within [`LATE`].
struct EarlierAnswer {
    real: Arc<Mutex<Box<dyn RenewalClient>>>,
    /// The renewal that is under way.
    asking: Option<JoinHandle<Result<RenewalOutcome>>>,
    last: Option<Answer>,
}

#[async_trait]
impl RenewalClient for EarlierAnswer {
    async fn join(&mut self, newcomer: Newcomer, timeout: Duration) -> Result<Seq> {
        self.real.lock().await.join(newcomer, timeout).await
    }

    async fn renew(&mut self, renewal: &RenewalRequest) -> Result<RenewalOutcome> {
        let (real, renewal) = (self.real.clone(), *renewal);
        let mut asking = self.asking.take().unwrap_or_else(|| {
            tokio::spawn(async move { real.lock().await.renew(&renewal).await })
        });
        let outcome = match (timeout(LATE, &mut asking).await, &self.last) {
            (Ok(answered), _) => answered.unwrap()?,
            (Err(_), Some(last)) => {
                self.asking = Some(asking);
                return Ok(RenewalOutcome::Answer(last.clone()));
            }
            (Err(_), None) => asking.await.unwrap()?,
        };
        if let RenewalOutcome::Answer(answer) = &outcome {
            self.last = Some(Answer { entries: vec![], ..answer.clone() });
        }
        Ok(outcome)
    }

    async fn ring(&mut self, timeout: Duration) -> Result<SealedRing> {
        self.real.lock().await.ring(timeout).await
    }
}

/// Returns the renewal request without the number of the last confirmed renewal.
fn unchecked(renewal: &RenewalRequest) -> RenewalRequest {
    RenewalRequest { confirmed: 0, ..*renewal }
}

/// Returns whether an answer reaches the end of the feed.
fn is_last(renewal: &RenewalRequest, answer: &Answer) -> bool {
    answer.entries.len() < usize::try_from(renewal.limit).unwrap()
}
