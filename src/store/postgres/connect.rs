//! Where the database is, and making a connection to it.

use std::{
    error::Error as _,
    fmt, fs,
    future::poll_fn,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use diesel::{
    result::{DatabaseErrorKind, Error::DatabaseError},
    sql_types::{BigInt, Text},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use tokio::{sync::mpsc, task::AbortHandle, time::timeout};
use tokio_postgres::{
    AsyncMessage, Config, Socket,
    config::{Host, TargetSessionAttrs},
    error::Severity,
    tls::TlsStream,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    open::OpenError,
    sql::statement,
    tls::{SslMode, Tls},
};
use crate::domain::time::brief;

/// How long a transaction may wait for its next statement. One that writes to the blacklist holds the head of the feed, and
/// everybody who revokes waits for it: a process that is stopped in the middle must not keep it.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(3);
/// How long a silent network may keep a connection.
const SILENCE: Duration = Duration::from_secs(15);

/// Where the database is, and what is asked of it. Prints without the password.
#[derive(Clone)]
pub struct Options {
    /// In the form of libpq: `postgres://USER:PASSWORD@HOST,HOST/DATABASE?sslmode=verify-full`.
    pub url: String,
    /// What it is called wherever it is printed.
    pub name: String,
    /// Where the password is, if not in the URL.
    pub password: Password,
    /// Whether pending migrations are made.
    pub migrate: bool,
    /// Most connections.
    pub max_connections: u32,
    /// How long a host may take to answer when it is being connected to, unless the URL says it.
    pub connect_timeout: Duration,
    /// How long to wait for a connection before the database counts as away.
    pub acquire_timeout: Duration,
    /// How long the server works on a statement.
    pub statement_timeout: Duration,
}

/// Where the password is.
#[derive(Clone)]
pub enum Password {
    /// In the URL, or nowhere.
    InUrl,
    /// Here.
    Text(String),
    /// In a file, which may change.
    File(PathBuf),
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A database that connections can be made to. Prints without the password.
#[derive(Clone)]
pub struct Target {
    config: Config,
    tls: Tls,
    connector: MakeRustlsConnect,
    password_file: Option<PathBuf>,
    connect_timeout: Duration,
    statement_timeout: Duration,
    name: String,
    /// Whether there are advisory locks. Where there are none, what they order is ordered less strictly.
    pub has_locks: bool,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Target {
    /// Reads the URL.
    pub fn new(options: &Options) -> Result<Self, OpenError> {
        let (tls, url) = Tls::take(&options.url).map_err(OpenError::Url)?;
        let mut config: Config = url.parse().map_err(|error| OpenError::Url(chain(&error)))?;
        config.ssl_mode(tls.negotiation());
        if config.get_application_name().is_none() {
            config.application_name("countersign");
        }
        let connect_timeout = config.get_connect_timeout().copied().unwrap_or(options.connect_timeout);
        config.connect_timeout(connect_timeout);
        if config.get_target_session_attrs() == TargetSessionAttrs::Any {
            // After a failover the standby of yesterday answers, and the primary of yesterday only reads.
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
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
            connector: tls.connector().map_err(OpenError::Url)?,
            tls,
            password_file,
            connect_timeout,
            statement_timeout: options.statement_timeout,
            name: options.name.clone(),
            has_locks: false,
        })
    }

    /// What the database is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What somebody between us and the server could do, if anything.
    pub fn exposure(&self) -> Option<&'static str> {
        let is_remote = self.config.get_hosts().iter().any(|host| match host {
            Host::Tcp(name) => {
                name != "localhost" && !name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
            }
            Host::Unix(_) => false,
        });
        match self.tls.mode {
            _ if !is_remote => None,
            SslMode::Disable => Some("anybody on the way to the database can read and change what is sent"),
            SslMode::Prefer | SslMode::Require => Some("anybody on the way to the database can pose as it"),
            SslMode::VerifyCa | SslMode::VerifyFull => None,
        }
    }

    /// With the password of today.
    fn config(&self) -> Result<Config, OpenError> {
        let mut config = self.config.clone();
        if let Some(path) = &self.password_file {
            let text =
                fs::read_to_string(path).map_err(|source| OpenError::PasswordFile { path: path.clone(), source })?;
            config.password(text.trim_end_matches(['\r', '\n']));
        }
        Ok(config)
    }

    /// Makes a connection. Each host has its time to accept, and all that follows has it once more: the start-up may get no
    /// answer either.
    pub async fn connect(&self) -> Result<Connected, OpenError> {
        let attempts = u32::try_from(self.config.get_hosts().len()).unwrap_or(u32::MAX).saturating_add(1);
        let patience = self.connect_timeout.saturating_mul(attempts);
        timeout(patience, self.connect_to_any()).await.unwrap_or_else(|_| {
            let problem = format!("no answer within {}", brief(patience));
            Err(OpenError::Connect { database: self.name.clone(), problem, is_temporary: true })
        })
    }

    async fn connect_to_any(&self) -> Result<Connected, OpenError> {
        let failed = |problem, is_temporary| OpenError::Connect { database: self.name.clone(), problem, is_temporary };
        let connected = self.config()?.connect(self.connector.clone()).await;
        let (client, driver) = connected.map_err(|error| failed(chain(&error), is_temporary(&error)))?;
        let warned = Arc::new(AtomicBool::new(false));
        let (sender, notifications) = mpsc::unbounded_channel();
        let driver = tokio::spawn(drive(driver, warned.clone(), sender)).abort_handle();
        let mut connection =
            AsyncPgConnection::try_from(client).await.map_err(|error| failed(error.to_string(), true))?;
        self.set_up(&mut connection).await.map_err(|error| {
            use DatabaseErrorKind::{ClosedConnection, UnableToSendCommand};
            let is_closed = matches!(error, DatabaseError(ClosedConnection | UnableToSendCommand, _));
            failed(error.to_string(), is_closed)
        })?;
        Ok(Connected { connection, warned, notifications, driver })
    }

    /// Sets what differs from how we need it, and what the server knows at all.
    ///
    /// Nothing acknowledged may be lost, so commits wait for the disk, and for the standbys that the server waits for, even
    /// where it is set up not to. A statement or a transaction that nobody waits for any more must not keep its locks. Each
    /// statement has its index, and reads it in order, also where a plan was made while the table was still empty; so it is
    /// planned once, and not anew for each batch that looks smaller than usual, which takes longer than the batch.
    ///
    /// What the role has been given already is left alone, so that a pooler may hand on its connections as they are.
    async fn set_up(&self, connection: &mut AsyncPgConnection) -> diesel::QueryResult<()> {
        let statement_timeout = i64::try_from(self.statement_timeout.as_millis()).unwrap_or(i64::MAX);
        let _: Vec<String> = statement::<Text>(
            "SELECT set_config(s.name, wanted.setting, false) FROM (VALUES \
             ('synchronous_commit', 'on'), ('default_transaction_isolation', 'read committed'), \
             ('statement_timeout', ?::bigint::text), ('idle_in_transaction_session_timeout', ?::bigint::text), \
             ('enable_seqscan', 'off'), ('enable_bitmapscan', 'off'), ('enable_hashjoin', 'off'), \
             ('enable_mergejoin', 'off'), ('jit', 'off'), ('plan_cache_mode', 'force_generic_plan')) AS wanted (name, setting) \
             JOIN pg_settings AS s ON s.name = wanted.name WHERE s.setting <> wanted.setting \
             AND NOT (s.name = 'synchronous_commit' AND s.setting = 'remote_apply')",
        )
        .bind::<BigInt, _>(statement_timeout)
        .bind::<BigInt, _>(i64::try_from(IDLE_IN_TRANSACTION.as_millis()).unwrap_or(i64::MAX))
        .load(connection)
        .await?;
        Ok(())
    }
}

/// A connection, and what the server says on it without being asked.
pub struct Connected {
    /// The connection.
    pub connection: AsyncPgConnection,
    /// Whether the server has warned of something since this was last reset. It does so *before* it answers the statement.
    pub warned: Arc<AtomicBool>,
    /// What others have notified it of.
    pub notifications: mpsc::UnboundedReceiver<String>,
    /// Moves its bytes. Ended, the connection is closed, whatever the server has yet to answer.
    pub driver: AbortHandle,
}

/// Moves the bytes of a connection until it is closed from either side.
async fn drive<T>(
    mut driver: tokio_postgres::Connection<Socket, T>,
    warned: Arc<AtomicBool>,
    notifications: mpsc::UnboundedSender<String>,
) where
    T: TlsStream + Unpin,
{
    while let Some(message) = poll_fn(|context| driver.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notice(notice)) if notice.parsed_severity() == Some(Severity::Warning) => {
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

/// Returns whether the same attempt may succeed later: there is no network yet, no server, or the
/// server is starting, stopping, only a standby, or busy.
fn is_temporary(error: &tokio_postgres::Error) -> bool {
    if let Some(code) = error.code() {
        let code = code.code();
        // The connection failed, there is no free one, or the server starts or stops (PostgreSQL,
        // appendix A). A refused connection and a violated protocol, as poolers report for wrong
        // settings, do not mend themselves.
        let is_passing = ["08", "53", "57P"].iter().any(|class| code.starts_with(class));
        return is_passing && !["08004", "08P01"].contains(&code);
    }
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    // The TLS library reports a certificate that does not fit as invalid data.
    error.is_closed() || cause.is_some_and(|cause| cause.kind() != io::ErrorKind::InvalidData)
}

/// An error in one line, with its causes.
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
        }
    }

    #[test]
    fn what_is_printed_has_no_password() {
        let options = options("postgres://u:secret@h/d");
        let target = Target::new(&options).unwrap();
        for text in [format!("{options:?}"), format!("{target:?}"), format!("{:?}", target.config)] {
            assert!(!text.contains("secret") && !text.contains("hidden"), "{text}");
        }
    }

    #[test]
    fn a_way_that_others_may_be_on_is_exposed_unless_the_server_is_verified() {
        for (url, is_exposed) in [
            ("postgres://db.internal/d", true),
            ("postgres://db.internal/d?sslmode=disable", true),
            ("postgres://db.internal/d?sslmode=require", true),
            ("postgres://localhost,db.internal/d", true),
            ("postgres://db.internal/d?sslmode=verify-full", false),
            ("postgres://localhost/d?sslmode=disable", false),
            ("postgres://127.0.0.1/d", false),
            ("postgres://u@%2Frun%2Fpostgresql/d", false),
        ] {
            assert_eq!(Target::new(&options(url)).unwrap().exposure().is_some(), is_exposed, "{url}");
        }
    }

    #[test]
    fn the_password_of_a_file_is_the_one_of_today() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target =
            Target::new(&Options { password: Password::File(file.path().to_owned()), ..options("postgres://u@h/d") })
                .unwrap();
        for password in ["first", "sec ond "] {
            fs::write(file.path(), format!("{password}\n")).unwrap();
            assert_eq!(target.config().unwrap().get_password(), Some(password.as_bytes()));
        }
        file.close().unwrap();
        let error = target.config().unwrap_err().to_string();
        assert!(error.contains("database.password_file"), "{error}");
    }
}
