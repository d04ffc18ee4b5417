//! `countersign restore`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::json;

use super::{Database, Outcome, output::line};
use crate::app::{self, EndedSince, RestoreOrder, Restored, System};

#[derive(Debug, Args)]
pub struct Restore {
    /// The backup that becomes the database. If no file is given, the command assumes that the
    /// database has already been put back, by `pg_restore` or as the snapshot of a volume.
    file: Option<PathBuf>,
    /// Keep accepting access tokens that were issued before the restore, even if they were revoked
    /// after the backup.
    #[arg(long)]
    accept_older_tokens: bool,
    /// Repeat the revocations in this log of the service, which must be in JSON (`log.format`). If
    /// LOG is -, standard input is read. Give the logs of all replicas, each with an option of its
    /// own.
    #[arg(long, value_name = "LOG", conflicts_with = "end_all")]
    revocations_from: Vec<PathBuf>,
    /// End all sessions: everybody has to sign in again.
    #[arg(long, conflicts_with = "accept_older_tokens")]
    end_all: bool,
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let ended_since = match (self.end_all, self.revocations_from.is_empty()) {
            (true, _) => EndedSince::All,
            (false, false) => EndedSince::Logs(self.revocations_from.clone()),
            (false, true) => EndedSince::Unknown,
        };
        let order = RestoreOrder {
            backup: self.file.clone(),
            accepts_older_tokens: self.accept_older_tokens,
            ended_since,
        };
        let restored = app::restore(&config, &order, System::of_this_machine()).await?;
        let database = config.database.to_string();
        match self.json {
            true => print_json(&database, &order, &restored),
            false => print_text(&database, &order, &restored),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_json(database: &str, order: &RestoreOrder, restored: &Restored) {
    let ended = match order.ended_since {
        EndedSince::Unknown => "unknown",
        EndedSince::Logs(_) => "from_log",
        EndedSince::All => "all",
    };
    line!(
        "{:#}",
        json!({
            "database": database,
            "backup": order.backup,
            "before": restored.aside,
            "older_access_tokens": if order.accepts_older_tokens { "accepted" } else { "refused" },
            "keys_revoked": restored.keys_revoked,
            "ended_since_backup": ended,
            "audit_records": restored.records,
            "sessions_ended": restored.sessions_ended,
            "tokens_not_revoked": restored.tokens_left,
        })
    );
}

fn print_text(database: &str, order: &RestoreOrder, restored: &Restored) {
    match &order.backup {
        Some(file) => line!("restored {database} from {}", file.display()),
        None => line!("{database} is taken to have been put back already"),
    }
    if let Some(aside) = &restored.aside {
        line!("the data before is in {}", aside.display());
    }
    let keys = restored.keys_revoked;
    match order.accepts_older_tokens {
        false => line!("access tokens issued before now are refused (keys revoked: {keys})"),
        true if matches!(order.ended_since, EndedSince::Logs(_)) => line!(
            "access tokens issued before now are accepted, except those of sessions that the log \
             says were ended (keys revoked: {keys})"
        ),
        true => line!(
            "access tokens issued before now are accepted, also those revoked since the backup"
        ),
    }
    let sessions = restored.sessions_ended;
    match &order.ended_since {
        EndedSince::Logs(_) => {
            line!(
                "what the log says was ended has been ended again (live sessions: {sessions}, \
                 records: {})",
                restored.records
            );
            if restored.tokens_left > 0 {
                let tokens = restored.tokens_left;
                line!(
                    "access tokens that were revoked without their sessions are accepted again \
                     (access tokens: {tokens})"
                );
            }
        }
        EndedSince::All => line!("all sessions have been ended (live sessions: {sessions})"),
        EndedSince::Unknown => {
            line!(
                "sessions that ended after the backup live again: to end them, run `countersign \
                 restore` without a"
            );
            line!("file and with --revocations-from LOG or --end-all, before the service starts");
        }
    }
}
