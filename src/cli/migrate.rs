//! `countersign migrate`

use std::process::ExitCode;

use clap::Args;

use super::{Database, Outcome, output::line};
use crate::app;

#[derive(Debug, Args)]
pub struct Migrate {
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Migrate {
    pub async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let made = app::migrate(&config).await?;
        if self.json {
            line!("{}", serde_json::json!({ "migrations": made }));
        } else if made.is_empty() {
            line!("the schema was up to date");
        } else {
            line!("made migration {}", made.join(", "));
        }
        Ok(ExitCode::SUCCESS)
    }
}
