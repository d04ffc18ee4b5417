//! `countersign sweep`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Database, Outcome, output::line};
use crate::app::{self, Swept, System};

#[derive(Debug, Args)]
pub struct Sweep {
    #[command(flatten)]
    database: Database,
    /// Confirm that the clock of this machine is right. The sweep then uses this clock instead of
    /// PostgreSQL's clock, and accepts an SQLite file even if its newest row is more than a day old
    /// or in the future.
    #[arg(long)]
    clock_is_right: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Sweep {
    pub async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let swept = app::sweep(&config, System::of_this_machine(), self.clock_is_right).await?;
        let Swept { revocations, sessions, audit, expired } = swept;
        if self.json {
            let swept = json!({
                "revocations": revocations,
                "sessions": sessions,
                "audit": audit,
                "expired": expired,
            });
            line!("{swept}");
        } else {
            line!(
                "deleted {revocations} blacklist rows, {sessions} sessions and {audit} audit \
                 records; recorded {expired} expired sessions"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
