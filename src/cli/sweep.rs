//! `countersign sweep`

use std::process::ExitCode;

use clap::Args;

use super::{Database, Outcome, output::line};
use crate::app::{self, System};

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
        if self.json {
            line!("{}", serde_json::json!({ "revocations": swept.revocations, "sessions": swept.sessions }));
        } else {
            line!("deleted {} blacklist rows and {} sessions", swept.revocations, swept.sessions);
        }
        Ok(ExitCode::SUCCESS)
    }
}
