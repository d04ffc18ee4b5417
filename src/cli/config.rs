//! `countersign config check|print`

use std::process::ExitCode;

use clap::Subcommand;

use super::{Failure, Outcome, Settings, output::line};

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether `serve` would accept these settings; nothing is opened.
    Check {
        #[command(flatten)]
        settings: Settings,
    },
    /// Print all settings in force as TOML, ready to be saved as a file.
    Print {
        #[command(flatten)]
        settings: Settings,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl ConfigCommand {
    pub fn run(self) -> Outcome {
        match self {
            Self::Check { settings } => {
                settings.load().map_err(Failure::at_start)?;
                line!("the configuration is good");
            }
            Self::Print { settings, json: false } => {
                let config = settings.load().map_err(Failure::at_start)?;
                line!("{}", config.to_toml().map_err(Failure::failed)?.trim_end());
            }
            Self::Print { settings, json: true } => {
                let config = settings.load().map_err(Failure::at_start)?;
                line!("{:#}", config.to_json().map_err(Failure::failed)?);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
