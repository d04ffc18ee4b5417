//! `countersign sweep`

use std::process::ExitCode;

use clap::Args;

use super::{Database, Outcome, output::line};
use crate::app::{self, Swept, System};

#[derive(Debug, Args)]
pub struct Sweep {
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Sweep {
    pub async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let swept = app::sweep(&config, System::of_this_machine()).await?;
        let Swept { revocations, sessions, audit } = swept;
        if self.json {
            line!("{}", serde_json::json!({ "revocations": revocations, "sessions": sessions, "audit": audit }));
        } else {
            line!("deleted {revocations} blacklist rows, {sessions} sessions and {audit} audit records");
        }
        Ok(ExitCode::SUCCESS)
    }
}
