//! The command line. Each subcommand has a file of its own.

mod audit;
mod backup;
mod caller;
mod client;
mod config;
mod connection;
mod database;
mod doctor;
mod export;
mod health;
mod import;
mod key;
mod method;
mod migrate;
mod output;
mod replica;
mod restore;
mod revoke;
mod search;
mod serve;
mod session;
mod sweep;
mod token;
mod top;
mod usage;

use std::{future::Future, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    app::AppError,
    clock::{Clock, SystemClock},
    config::{Config, Flags, error::ConfigError},
    telemetry,
};

/// A session authority: creates, refreshes, validates and revokes JWT sessions over gRPC.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Start with:  countersign serve\nThen try:    countersign session create \
                  alice\nExit codes:  0 done, 1 failed (or: token inactive, server not serving, a \
                  check failed),\n\u{20}            2 wrong usage, configuration or start, 3 \
                  database not reached in time")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service until SIGTERM or Ctrl-C.
    ///
    /// Settings come from flags, then from COUNTERSIGN_… variables, then from the file, then from
    /// defaults; `countersign config print` shows them. The first signal shuts down gracefully:
    /// health checks answer NOT_SERVING, and calls in flight finish. A second signal stops at once.
    Serve(serve::Serve),
    /// Create, list, show and revoke sessions.
    #[command(subcommand)]
    Session(session::Session),
    /// Validate, refresh and decode tokens.
    #[command(subcommand)]
    Token(token::Token),
    /// List, rotate, revoke and import the keys of access tokens and refresh tokens.
    #[command(subcommand)]
    Key(key::Key),
    /// List records of the audit.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Make credentials for the programs that call the service.
    #[command(subcommand)]
    Caller(caller::CallerCommand),
    /// Bring the schema of the database up to date, and exit.
    ///
    /// `serve` also does this, unless it is given --no-migrate. This command is for installations
    /// in which only a separate database user may change tables.
    Migrate(migrate::Migrate),
    /// Copy the database to a new file, while the service runs. SQLite only.
    ///
    /// The copy shows the database as it was at one instant. The command checks the copy before the
    /// file appears under its name. The copy does not contain the master key. If the database is
    /// PostgreSQL, the command only says which programs to use instead.
    Backup(backup::Backup),
    /// Replace the database with a backup, while no service runs.
    ///
    /// Checks the backup, checks that the master key opens the keys in it, and moves the previous
    /// data aside. The backup lacks all revocations that were made after it. Therefore access
    /// tokens that were issued before the restore are refused, unless --accept-older-tokens is
    /// given. Sessions that ended after the backup are ended again if --revocations-from or
    /// --end-all is given.
    Restore(restore::Restore),
    /// Check the database for damage.
    #[command(subcommand)]
    Database(database::DatabaseCommand),
    /// Delete expired rows now, on a database that no service has open.
    ///
    /// A running service does this itself, on the schedule in its configuration.
    Sweep(sweep::Sweep),
    /// List the processes that serve from one database.
    #[command(subcommand)]
    Replica(replica::Replica),
    /// Ask a server whether it is serving, and exit with 0 if it is. For container probes.
    Health(health::Health),
    /// Check an installation: settings, files, database, keys, certificate, ports and lease.
    ///
    /// Prints one line for each check: OK, WARN or FAIL, what was found, and what to do about it.
    /// The exit code is 1 if a check failed. The command works whether the service runs or not, and
    /// changes nothing. Run it as the user of the service, with the settings of the service.
    Doctor(doctor::Doctor),
    /// Show what a service on this machine does at the moment: calls, lease, queues.
    ///
    /// Reads the metrics of the HTTP port, by the settings of the service. q ends it. If the output
    /// is not a terminal, or with --once, prints what happened within one interval, and exits.
    Top(top::Top),
    /// Check or print the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The flags of the subcommands that open the database.
#[derive(Debug, Args)]
struct Database {
    /// Configuration file in TOML.
    #[arg(long, value_name = "FILE", env = "COUNTERSIGN_CONFIG")]
    config: Option<PathBuf>,
    /// Database: sqlite://PATH or postgres://… [default: countersign.db in the data directory]
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// Folder for the database and the master key [default: countersign-data]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// The flags of the subcommands that read all of the configuration.
#[derive(Debug, Args)]
struct Settings {
    #[command(flatten)]
    database: Database,
    /// Address for gRPC [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address for HTTP: health, metrics, public keys, gateways and OAuth; empty for none [default:
    /// 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<String>,
    /// Allow an address that other machines can reach even if calls are not encrypted, or callers
    /// are not authenticated.
    #[arg(long)]
    insecure: bool,
}

impl Database {
    fn flags(&self) -> Flags {
        Flags {
            database_url: self.database_url.clone(),
            data_dir: self.data_dir.clone(),
            ..Flags::default()
        }
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.config.as_deref(), &self.flags())
    }

    /// Loads the configuration of a subcommand that works on the database, and starts logging.
    fn begin(&self) -> Result<Config, Failure> {
        let config = self.load().map_err(Failure::at_start)?;
        telemetry::start(&config.log).map_err(Failure::at_start)?;
        Ok(config)
    }
}

impl Settings {
    fn flags(&self) -> Flags {
        Flags {
            listen: self.listen.clone(),
            http_listen: self.http_listen.clone(),
            insecure: self.insecure.then_some(true),
            ..self.database.flags()
        }
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.database.config.as_deref(), &self.flags())
    }
}

/// Parses a time span.
fn parse_span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a time span like 10m or 1h 30m".to_owned())
}

/// Parses an instant as in RFC 3339. A time span means the instant that is so long ago.
fn parse_instant(text: &str) -> Result<prost_types::Timestamp, String> {
    let micros = match humantime::parse_duration(text) {
        Ok(span) => SystemClock.now().minus(span).micros(),
        Err(_) => {
            text.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_microsecond).map_err(|_| {
                "not an instant like 2026-01-31T12:00:00Z, nor a time span like 24h".to_owned()
            })?
        }
    };
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or_default();
    Ok(prost_types::Timestamp { seconds: micros.div_euclid(1_000_000), nanos })
}

/// The exit code if a subcommand failed.
const FAILED: u8 = 1;
/// The exit code if a subcommand could not start.
const WRONG_START: u8 = 2;
/// The exit code if the database could not be reached within `database.startup_timeout`.
const NOT_REACHED: u8 = 3;

/// The failure of a subcommand. It is printed as a line of text or as JSON.
#[derive(Debug)]
struct Failure {
    /// The line of text: the message, and the reason in parentheses if there is one.
    line: String,
    /// The message alone, which is printed as JSON.
    message: String,
    /// The reason in the server's response (`ErrorInfo`).
    reason: Option<String>,
    /// The invalid field of the request, as the server names it.
    field: Option<String>,
    code: u8,
}

impl Failure {
    fn failed(error: impl ToString) -> Self {
        let message = error.to_string();
        Self { line: message.clone(), message, reason: None, field: None, code: FAILED }
    }

    fn at_start(error: impl ToString) -> Self {
        Self { code: WRONG_START, ..Self::failed(error) }
    }

    /// Prints the failure to standard error.
    fn print(&self) {
        if usage::wants_json() {
            let Self { message, reason, field, .. } = self;
            let mut error =
                serde_json::Map::from_iter([("message".to_owned(), message.as_str().into())]);
            let details = [("reason", reason), ("field", field)];
            let details =
                details.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
            error.extend(details.map(|(name, value)| (name.to_owned(), value.into())));
            eprintln!("{}", serde_json::json!({ "error": error }));
        } else {
            eprintln!("countersign: {}", self.line);
        }
    }
}

/// Prints a warning to standard error.
fn warn(message: &str) {
    if usage::wants_json() {
        eprintln!("{}", serde_json::json!({ "warning": { "message": message } }));
    } else {
        eprintln!("countersign: warning: {message}");
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        let code = match &error {
            AppError::NotReached { .. } => NOT_REACHED,
            _ if error.is_at_start() => WRONG_START,
            _ => FAILED,
        };
        Self { code, ..Self::failed(error) }
    }
}

type Outcome = Result<ExitCode, Failure>;

/// Parses the command line and runs the subcommand.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return usage::report(&error),
    };
    let outcome = match command {
        Command::Serve(command) => command.run(),
        Command::Session(command) => block_on(command.run()),
        Command::Token(command) => block_on(command.run()),
        Command::Key(command) => block_on(command.run()),
        Command::Audit(command) => block_on(command.run()),
        Command::Caller(command) => command.run(),
        Command::Migrate(command) => block_on(command.run()),
        Command::Backup(command) => block_on(command.run()),
        Command::Restore(command) => block_on(command.run()),
        Command::Database(command) => block_on(command.run()),
        Command::Sweep(command) => block_on(command.run()),
        Command::Replica(command) => block_on(command.run()),
        Command::Health(command) => block_on(command.run()),
        Command::Doctor(command) => block_on(command.run()),
        Command::Top(command) => block_on(command.run()),
        Command::Config(command) => command.run(),
        Command::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "countersign", &mut script);
            output::write(format_args!("{}", String::from_utf8_lossy(&script)));
            Ok(ExitCode::SUCCESS)
        }
    };
    outcome.unwrap_or_else(|failure| {
        failure.print();
        ExitCode::from(failure.code)
    })
}

fn block_on(command: impl Future<Output = Outcome>) -> Outcome {
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::at_start)?;
    let outcome = runtime.block_on(command);
    // Blocking work on other threads gets ten seconds to finish, which is enough to close a
    // database. A check of a large database may be aborted. No commit is left incomplete, because
    // commits are atomic.
    runtime.shutdown_timeout(Duration::from_secs(10));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
