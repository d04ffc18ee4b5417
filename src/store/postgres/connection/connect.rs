//! Finds the address of the database, and connects to it.

use std::{
    error::Error as _,
    fmt, fs,
    future::poll_fn,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use diesel::{
    ConnectionError,
    sql_types::{BigInt, Text},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::{AbortHandle, spawn_blocking},
    time::timeout,
};
use tokio_postgres::{
    AsyncMessage, Client, Config, SimpleQueryMessage,
    config::{LoadBalanceHosts, SslMode as Negotiation, SslNegotiation, TargetSessionAttrs},
    error::Severity,
    tls::{MakeTlsConnect, TlsStream},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use super::{
    super::sql::statement,
    coded_stream::{CodedStream, CodedTls},
    hosts::{self, Address, Failure, Server, Transport, first_success, open},
    open_error::OpenError,
    sqlstate::{self, Class},
    tls::{SslMode, Tls},
};
use crate::domain::{revocation::Timeline, time::brief};

/// The time for which a transaction may wait for its next statement. A transaction that writes to
/// the blacklist locks the head of the feed, and all other revocations wait for it. So a process
/// that stops in the middle of a transaction must not keep the lock.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(3);
/// The time after which a connection is closed if the network has become silent.
const SILENCE: Duration = Duration::from_secs(15);

/// The address of the database, and the settings of the connections to it. `Debug` prints the name,
/// which does not contain the password.
#[derive(Clone)]
pub struct Options {
    /// The URL, in the form of libpq:
    /// `postgres://USER:PASSWORD@HOST,HOST/DATABASE?sslmode=verify-full`.
    pub url: String,
    /// The name of the database in messages, without the password.
    pub name: String,
    /// The source of the password, if it is not in the URL.
    pub password: Password,
    /// True if pending migrations are to be run.
    pub migrate: bool,
    /// The largest number of connections in the pool.
    pub max_connections: u32,
    /// The time within which a connection to an address must be usable, unless the URL sets another
    /// time.
    pub connect_timeout: Duration,
    /// The longest wait for a connection. After it, the database counts as unavailable.
    pub acquire_timeout: Duration,
    /// The longest time that the server may work on a statement.
    pub statement_timeout: Duration,
    /// The largest error of a replica's clock.
    pub max_clock_skew: Duration,
}

/// The source of the password.
#[derive(Clone)]
pub enum Password {
    /// The password in the URL, if there is one.
    InUrl,
    /// A password that is given as text.
    Text(String),
    /// The content of this file, which is read again for each new connection.
    File(PathBuf),
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A database to which connections can be made. `Debug` prints the name, which does not contain the
/// password.
#[derive(Clone)]
pub struct Target {
    config: Config,
    /// The servers, in the order of the URL.
    servers: Vec<Server>,
    /// The number of connections that were asked for. It spreads the connections over the servers.
    attempts: Arc<AtomicUsize>,
    tls: Tls,
    connector: MakeRustlsConnect,
    password_file: Option<PathBuf>,
    connect_timeout: Duration,
    statement_timeout: Duration,
    name: String,
    /// True if the database has advisory locks. Without them, concurrent creations may exceed a
    /// quota, and concurrent migrations may fail.
    pub has_locks: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Target {
    /// Reads the URL and the files that it names.
    pub fn new(options: &Options) -> Result<Self, OpenError> {
        let (tls, url) = Tls::take(&options.url).map_err(OpenError::Url)?;
        let mut config: Config = url.parse().map_err(|error| OpenError::Url(chain(&error)))?;
        config.ssl_mode(tls.negotiation());
        if config.get_application_name().is_none() {
            config.application_name("countersign");
        }
        let connect_timeout =
            config.get_connect_timeout().copied().unwrap_or(options.connect_timeout);
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            // A server that accepts writes is asked for, because the former primary may be
            // read-only after a failover.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let servers = hosts::servers(&config).map_err(OpenError::Url)?;
        config.keepalives_idle(SILENCE).tcp_user_timeout(SILENCE);
        let password_file = match &options.password {
            Password::InUrl => None,
            Password::Text(password) => {
                config.password(password);
                None
            }
            Password::File(path) => Some(path.clone()),
        };
        Ok(Self {
            config,
            servers,
            attempts: Arc::default(),
            connector: tls.connector().map_err(OpenError::Url)?,
            tls,
            password_file,
            connect_timeout,
            statement_timeout: options.statement_timeout,
            name: options.name.clone(),
            has_locks: false,
        })
    }

    /// Returns the name of the database, without the password.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Describes what an attacker on the network between this process and the server could do.
    /// Returns none if an attacker could do nothing.
    pub fn exposure(&self) -> Option<&'static str> {
        match self.tls.mode {
            _ if !self.servers.iter().any(Server::is_remote) => None,
            SslMode::Disable => {
                Some("anybody on the way to the database can read and change what is sent")
            }
            SslMode::Prefer | SslMode::Require => {
                Some("anybody on the way to the database can pose as it")
            }
            SslMode::VerifyCa | SslMode::VerifyFull => None,
        }
    }

    /// Reads the URL and the files that it names, on a thread that may block.
    pub async fn load(options: &Options) -> Result<Self, OpenError> {
        let options = options.clone();
        spawn_blocking(move || Self::new(&options))
            .await
            .unwrap_or_else(|error| Err(OpenError::Url(error.to_string())))
    }

    /// Returns the configuration with the current password. The password file is read on a thread
    /// that may block.
    async fn config(&self) -> Result<Config, OpenError> {
        let mut config = self.config.clone();
        if let Some(path) = self.password_file.clone() {
            let reading = path.clone();
            let read = spawn_blocking(move || fs::read_to_string(reading)).await;
            let text = read
                .unwrap_or_else(|error| Err(error.into()))
                .map_err(|source| OpenError::PasswordFile { path, source })?;
            config.password(text.trim_end_matches(['\r', '\n']));
        }
        Ok(config)
    }

    /// Connects to the first server that is suitable. The time `connect_timeout` is for one
    /// address, and covers all steps: the network, TLS, the password, the check that the server
    /// takes writes, and our settings.
    pub async fn connect(&self) -> Result<Connected, OpenError> {
        self.connect_checked(None).await
    }

    /// Connects to a database that already has our tables. If the latest timeline is known, a
    /// server on an earlier timeline is rejected: another server has replaced it, even if it has
    /// not noticed.
    pub async fn connect_in(&self, latest: Option<Timeline>) -> Result<Connected, OpenError> {
        self.connect_checked(Some(Check { latest })).await
    }

    async fn connect_checked(&self, check: Option<Check>) -> Result<Connected, OpenError> {
        let config = self.config().await?;
        let mut servers = self.servers.clone();
        if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            let first = self.attempts.fetch_add(1, Ordering::Relaxed) % servers.len().max(1);
            servers.rotate_left(first);
        }
        let attempt = |server| self.connect_to(server, &config, check);
        first_success(&servers, attempt).await.map_err(|failures| {
            let names = servers.iter().map(ToString::to_string);
            let Failure { problem, is_temporary } = summarize(names.zip(failures));
            OpenError::Connect { database: self.name.clone(), problem, is_temporary }
        })
    }

    /// Resolves the addresses of a server, and tries them.
    async fn connect_to(
        &self,
        server: Server,
        config: &Config,
        check: Option<Check>,
    ) -> Result<Connected, Failure> {
        let resolving = async {
            let unknown = |error| unreachable(&error);
            server.resolve().await.map_err(unknown)
        };
        let addresses = self.in_time(resolving).await?;
        let attempt = |address| self.in_time(self.connect_at(address, &server.name, config, check));
        first_success(&addresses, attempt).await.map_err(|failures| {
            let names = addresses.iter().map(ToString::to_string);
            summarize(names.zip(failures))
        })
    }

    /// Runs a part of an attempt, for at most `connect_timeout`.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        timeout(self.connect_timeout, work).await.unwrap_or_else(|_| {
            let problem = format!("no answer within {}", brief(self.connect_timeout));
            Err(Failure { problem, is_temporary: true })
        })
    }

    async fn connect_at(
        &self,
        address: Address,
        name: &str,
        config: &Config,
        check: Option<Check>,
    ) -> Result<Connected, Failure> {
        let transport = open(&address, config).await.map_err(|error| unreachable(&error))?;
        let is_negotiated = config.get_ssl_mode() != Negotiation::Disable
            && config.get_ssl_negotiation() == SslNegotiation::Postgres;
        let stream = CodedStream::new(transport, is_negotiated);
        let Ok(tls) =
            MakeTlsConnect::<Transport>::make_tls_connect(&mut self.connector.clone(), name);
        let connected = config.connect_raw(stream, CodedTls(tls)).await;
        let (client, driver) = connected.map_err(|error| Failure::from(&error))?;

        let warned = Arc::new(AtomicBool::new(false));
        let (sender, notifications) = mpsc::unbounded_channel();
        // If the attempt is given up, this handle is dropped. That ends the driver, which closes
        // the connection.
        let driver = AbortOnDropHandle::new(tokio::spawn(drive(driver, warned.clone(), sender)));
        check_session(&client, config.get_target_session_attrs()).await?;
        let failed = |error: &diesel::result::Error| Failure {
            problem: error.to_string(),
            is_temporary: Class::of(error).is_temporary(),
        };
        let mut connection =
            AsyncPgConnection::try_from(client).await.map_err(|error| match error {
                ConnectionError::CouldntSetupConfiguration(error) => failed(&error),
                other => Failure { problem: other.to_string(), is_temporary: false },
            })?;
        self.set_up(&mut connection).await.map_err(|error| failed(&error))?;
        let timeline = match check {
            Some(check) => Some(check.timeline(&mut connection).await?),
            None => None,
        };
        let driver = driver.detach().abort_handle();
        Ok(Connected { connection, warned, notifications, driver, timeline })
    }

    /// Changes the settings of the server session that are not as the service needs them. Settings
    /// that the server does not have are left out.
    ///
    /// Nothing that was acknowledged may be lost. So commits wait for the disk and for the
    /// synchronous standbys, even if the server is configured not to wait.
    ///
    /// A statement or a transaction for which no caller waits any more must not keep its locks. So
    /// both have time-outs.
    ///
    /// For each statement there is an index, and the statement must read that index in order, even
    /// if it was planned while the table was empty. So the other plans are disabled. The server
    /// also plans each statement only once. It would otherwise plan again for each batch that looks
    /// smaller than usual, which takes longer than the batch.
    ///
    /// Settings that already have the right value, for example because the role sets them, are not
    /// changed. A pooler can then give the server connection to another client as it is.
    async fn set_up(&self, connection: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
        let statement_timeout =
            i64::try_from(self.statement_timeout.as_millis()).unwrap_or(i64::MAX);
        let _: Vec<String> = statement::<Text>(
            "SELECT set_config(s.name, wanted.setting, false)
            FROM (
                VALUES
                    ('synchronous_commit', 'on'),
                    ('default_transaction_isolation', 'read committed'),
                    ('statement_timeout', ?::bigint::text),
                    ('idle_in_transaction_session_timeout', ?::bigint::text),
                    ('enable_seqscan', 'off'),
                    ('enable_bitmapscan', 'off'),
                    ('enable_hashjoin', 'off'),
                    ('enable_mergejoin', 'off'),
                    ('jit', 'off'),
                    ('plan_cache_mode', 'force_generic_plan')
            ) AS wanted (name, setting)
            JOIN pg_settings AS s ON s.name = wanted.name
            WHERE s.setting <> wanted.setting
                AND NOT (s.name = 'synchronous_commit' AND s.setting = 'remote_apply')",
        )
        .bind::<BigInt, _>(statement_timeout)
        .bind::<BigInt, _>(i64::try_from(IDLE_IN_TRANSACTION.as_millis()).unwrap_or(i64::MAX))
        .load(connection)
        .await?;
        Ok(())
    }
}

/// A connection, and what the server sends on it unasked.
pub struct Connected {
    /// The connection.
    pub connection: AsyncPgConnection,
    /// True if the server has sent a warning since this was last reset. A warning arrives *before*
    /// the answer to its statement.
    pub warned: Arc<AtomicBool>,
    /// The payloads of the notifications that arrive.
    pub notifications: mpsc::UnboundedReceiver<String>,
    /// The task that sends and receives the bytes of the connection. Aborting it closes the
    /// connection, even if the server has yet to answer.
    pub driver: AbortHandle,
    /// The timeline of the server, if it was asked for.
    pub timeline: Option<Timeline>,
}

/// A check of the timeline of the server that a connection leads to.
#[derive(Clone, Copy)]
struct Check {
    /// The latest timeline, if it is known. A server on an earlier timeline is rejected.
    latest: Option<Timeline>,
}

impl Check {
    async fn timeline(self, connection: &mut AsyncPgConnection) -> Result<Timeline, Failure> {
        let read = statement::<BigInt>("SELECT feed_timeline()").get_result(connection).await;
        let timeline = read.map(Timeline).map_err(|error| Failure {
            problem: error.to_string(),
            is_temporary: Class::of(&error).is_temporary(),
        })?;
        match self.latest {
            Some(latest) if timeline.0 < latest.0 => Err(Failure {
                problem: "another server has taken its place".to_owned(),
                is_temporary: true,
            }),
            _ => Ok(timeline),
        }
    }
}

/// Sends and receives the bytes of a connection, until either side closes it.
async fn drive<S, T>(
    mut driver: tokio_postgres::Connection<S, T>,
    warned: Arc<AtomicBool>,
    notifications: mpsc::UnboundedSender<String>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    T: TlsStream + Unpin,
{
    while let Some(message) = poll_fn(|context| driver.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice))
                if notice.parsed_severity() == Some(Severity::Warning) =>
            {
                tracing::debug!(warning = notice.message(), "the database warned");
                warned.store(true, Ordering::SeqCst);
            }
            Ok(AsyncMessage::Notification(notification)) => {
                let _ = notifications.send(notification.payload().to_owned());
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(error = chain(&error), "a connection to the database is lost");
                return;
            }
        }
    }
}

/// The problem of a server that accepts no writes although the service needs them.
pub const NO_WRITES: &str = "database does not allow writes";

/// Checks that the server accepts writes, or is read-only, as the URL asks.
async fn check_session(client: &Client, wanted: TargetSessionAttrs) -> Result<(), Failure> {
    let asked = client.simple_query("SHOW transaction_read_only").await;
    let rows = asked.map_err(|error| Failure::from(&error))?;
    let read_only = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.try_get(0).ok().flatten(),
        _ => None,
    });
    let problem = match (read_only, wanted) {
        (Some("on"), TargetSessionAttrs::ReadWrite) => NO_WRITES,
        (Some("off"), TargetSessionAttrs::ReadOnly) => "database is not read only",
        _ => return Ok(()),
    };
    // The server may be promoted or demoted later.
    Err(Failure { problem: problem.to_owned(), is_temporary: true })
}

/// Creates the failure for an error of the network or the operating system.
fn unreachable(error: &io::Error) -> Failure {
    Failure { problem: format!("error connecting to server: {error}"), is_temporary: true }
}

impl From<&tokio_postgres::Error> for Failure {
    fn from(error: &tokio_postgres::Error) -> Self {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let is_temporary = match error.code() {
            Some(code) => sqlstate::classify(code.code()).is_temporary(),
            // The TLS library reports a certificate that does not fit as invalid data.
            None => {
                error.is_closed()
                    || cause.is_some_and(|cause| cause.kind() != io::ErrorKind::InvalidData)
            }
        };
        Self { problem: chain(error), is_temporary }
    }
}

/// Combines several failures into one. If there are several, the message says where each of them
/// happened. The result is temporary if any of the failures is.
fn summarize(failures: impl Iterator<Item = (String, Failure)>) -> Failure {
    let mut failures: Vec<_> = failures.collect();
    if let [_] = failures.as_slice()
        && let Some((_, failure)) = failures.pop()
    {
        return failure;
    }
    let is_temporary = failures.iter().any(|(_, failure)| failure.is_temporary);
    let problems =
        failures.into_iter().map(|(place, failure)| format!("{place}: {}", failure.problem));
    Failure { problem: problems.collect::<Vec<_>>().join("; "), is_temporary }
}

/// Returns an error with its causes, in one line.
fn chain(error: &tokio_postgres::Error) -> String {
    let mut line = if error.as_db_error().is_some() { String::new() } else { error.to_string() };
    let mut source = error.source();
    while let Some(cause) = source {
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> Options {
        Options {
            url: url.to_owned(),
            name: "postgres://u@h/d".to_owned(),
            password: Password::Text("hidden".to_owned()),
            migrate: true,
            max_connections: 4,
            connect_timeout: Duration::from_secs(1),
            acquire_timeout: Duration::from_secs(1),
            statement_timeout: Duration::from_secs(1),
            max_clock_skew: Duration::from_secs(5),
        }
    }

    #[test]
    fn no_password_is_printed() {
        let options = options("postgres://u:secret@h/d");
        let target = Target::new(&options).unwrap();
        for text in [format!("{options:?}"), format!("{target:?}"), format!("{:?}", target.config)]
        {
            assert!(!text.contains("secret") && !text.contains("hidden"), "{text}");
        }
    }

    #[test]
    fn traffic_over_a_network_is_exposed_unless_the_server_is_verified() {
        for (url, is_exposed) in [
            ("postgres://db.internal/d", true),
            ("postgres://db.internal/d?sslmode=disable", true),
            ("postgres://db.internal/d?sslmode=require", true),
            ("postgres://localhost,db.internal/d", true),
            ("postgres://db.internal/d?sslmode=verify-full", false),
            ("postgres://localhost/d?sslmode=disable", false),
            ("postgres://127.0.0.1/d", false),
            ("postgres://[::1]/d", false),
            ("host=localhost hostaddr=10.0.0.1 dbname=d", true),
            ("host=db.internal hostaddr=127.0.0.1 dbname=d", false),
            ("postgres://u@%2Frun%2Fpostgresql/d", false),
        ] {
            assert_eq!(
                Target::new(&options(url)).unwrap().exposure().is_some(),
                is_exposed,
                "{url}"
            );
        }
    }

    #[test]
    fn a_summary_names_all_failures_and_is_permanent_only_if_all_are() {
        let failure = |problem: &str, is_temporary| {
            ("h:1".to_owned(), Failure { problem: problem.to_owned(), is_temporary })
        };
        let summary = |failures: Vec<_>| {
            let Failure { problem, is_temporary } = summarize(failures.into_iter());
            (problem, is_temporary)
        };
        assert_eq!(summary(vec![failure("no", true)]), ("no".to_owned(), true));
        let both = "h:1: wrong; h:1: no".to_owned();
        assert_eq!(
            summary(vec![failure("wrong", false), failure("no", true)]),
            (both.clone(), true)
        );
        assert_eq!(summary(vec![failure("wrong", false), failure("no", false)]), (both, false));
    }

    #[tokio::test]
    async fn the_password_file_is_read_for_each_connection() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Target::new(&Options {
            password: Password::File(file.path().to_owned()),
            ..options("postgres://u@h/d")
        })
        .unwrap();
        for password in ["first", "sec ond "] {
            fs::write(file.path(), format!("{password}\n")).unwrap();
            assert_eq!(target.config().await.unwrap().get_password(), Some(password.as_bytes()));
        }
        file.close().unwrap();
        let error = target.config().await.unwrap_err().to_string();
        assert!(error.contains("database.password_file"), "{error}");
    }
}
