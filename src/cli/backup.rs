//! `countersign backup`

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde_json::json;

use super::{Database, Outcome, output::line};
use crate::app;

#[derive(Debug, Args)]
pub struct Backup {
    /// The file to create. It must not exist yet.
    file: PathBuf,
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        app::back_up(&config, &self.file).await?;
        let (database, file) = (config.database.to_string(), self.file.display().to_string());
        if self.json {
            line!("{:#}", json!({ "database": database, "backup": file }));
        } else {
            line!("backed up {database} to {file}, which has been checked");
            line!("the master key is not in it: keep a copy of that too, in another place");
        }
        Ok(ExitCode::SUCCESS)
    }
}
