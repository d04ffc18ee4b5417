//! `countersign sweep`

use std::{process::ExitCode, sync::Arc};

use clap::Args;

use super::{Database, Failure, Outcome, output::line};
use crate::{
    app::{self, System},
    clock::SystemClock,
    rng::SystemRng,
    telemetry,
};

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
        let config = self.database.load().map_err(Failure::at_start)?;
        let system = System { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng::default()) };
        telemetry::start(&config.log).map_err(Failure::at_start)?;
        let swept = app::sweep(&config, system).await?;
        if self.json {
            line!("{}", serde_json::json!({ "revocations": swept.revocations, "sessions": swept.sessions }));
        } else {
            line!("deleted {} blacklist rows and {} sessions", swept.revocations, swept.sessions);
        }
        Ok(ExitCode::SUCCESS)
    }
}
