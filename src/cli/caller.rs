//! `countersign caller new`

use std::process::ExitCode;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use serde::Serialize;

use super::{Failure, Outcome, output::line};
use crate::{
    callers::api_key::ApiKey,
    domain::{
        role::Role,
        text::{Audience, CallerName, Tenant},
    },
    rng::SystemRng,
};

#[derive(Debug, Subcommand)]
pub enum CallerCommand {
    /// Make an API key. Print the key, and the section for the configuration file.
    ///
    /// The command stores nothing. The service knows the key by the hash in that section, and loads
    /// the section a few seconds after it has been added to the file.
    New(New),
}

#[derive(Debug, Args)]
pub struct New {
    /// The caller's name, as the log shows it. It may contain letters, digits, and . _ -
    name: String,
    /// A role of the caller; may be repeated.
    #[arg(long = "role", required = true,
        value_parser = PossibleValuesParser::new(Role::ALL.map(Role::as_str)))]
    roles: Vec<String>,
    /// Limit the caller to this tenant; may be repeated. "" is the default tenant.
    #[arg(long = "tenant")]
    tenants: Vec<String>,
    /// Limit the caller to this audience; may be repeated.
    #[arg(long = "audience")]
    audiences: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A caller as a `[[callers]]` section of the configuration file.
#[derive(Debug, Serialize)]
struct Stanza<'a> {
    name: &'a str,
    roles: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tenants: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    audiences: &'a [String],
    key_hashes: [String; 1],
}

#[derive(Debug, Serialize)]
struct Configuration<'a> {
    callers: [Stanza<'a>; 1],
}

impl CallerCommand {
    pub fn run(self) -> Outcome {
        match self {
            Self::New(new) => new.run(),
        }
    }
}

impl New {
    fn run(self) -> Outcome {
        CallerName::try_from(self.name.clone()).map_err(|error| wrong("the name", &error))?;
        for tenant in &self.tenants {
            Tenant::try_from(tenant.clone()).map_err(|error| wrong("a tenant", &error))?;
        }
        for audience in &self.audiences {
            Audience::try_from(audience.clone()).map_err(|error| wrong("an audience", &error))?;
        }
        let key = ApiKey::generate(&SystemRng::default()).map_err(Failure::failed)?;
        let stanza = Stanza {
            name: &self.name,
            roles: &self.roles,
            tenants: &self.tenants,
            audiences: &self.audiences,
            key_hashes: [key.hash().to_string()],
        };
        if self.json {
            line!("{}", serde_json::json!({ "api_key": key.reveal(), "caller": stanza }));
        } else {
            let configuration =
                toml::to_string(&Configuration { callers: [stanza] }).map_err(Failure::failed)?;
            line!("The API key, which is not shown again:\n\n{}\n", key.reveal());
            line!("For the configuration file of the service:\n\n{}", configuration.trim_end());
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn wrong(what: &str, problem: &dyn std::error::Error) -> Failure {
    Failure::at_start(format!("{what} {problem}"))
}
