//! `countersign database …`

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Database, Outcome, output::line};
use crate::app;

#[derive(Debug, Subcommand)]
pub enum DatabaseCommand {
    /// Check a whole SQLite database for damage. A service may be using the database.
    ///
    /// `serve` makes a shorter check when it starts: of every page if it was killed before, and
    /// otherwise only of the header and the schema. This command also compares indexes with their
    /// tables, and takes several seconds per gigabyte. The exit code is 2 if the database is
    /// damaged.
    Check(Check),
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl DatabaseCommand {
    pub async fn run(self) -> Outcome {
        match self {
            Self::Check(check) => check.run().await,
        }
    }
}

impl Check {
    async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        app::check_database(&config).await?;
        let database = config.database.to_string();
        if self.json {
            line!("{}", json!({ "database": database, "damaged": false }));
        } else {
            line!("{database} is in order");
        }
        Ok(ExitCode::SUCCESS)
    }
}
