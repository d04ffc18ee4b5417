//! `countersign config check|print`

use std::process::ExitCode;

use clap::Subcommand;

use super::{Failure, Outcome, Settings, output::line, warn};
use crate::{
    app::{self, FileFindings},
    clock::{Clock, SystemClock},
};

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check whether `serve` would accept these settings and the files that they name.
    ///
    /// The command opens certificates, keys, certificate authorities, the password file and the
    /// master key as `serve` does, so run it as the user of the service. It creates no file, and
    /// does not open the database.
    Check {
        #[command(flatten)]
        settings: Settings,
    },
    /// Print all settings in force as TOML, which can be saved as a configuration file.
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
                let config = settings.load().map_err(Failure::at_start)?;
                let FileFindings { errors, warnings } =
                    app::check_files(&config, SystemClock.now());
                for warning in warnings {
                    warn(&warning);
                }
                if !errors.is_empty() {
                    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                    return Err(Failure::at_start(errors.join("; ")));
                }
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
