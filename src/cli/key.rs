//! `countersign key list|rotate|revoke|import|reseal`

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::{
    Database, Outcome,
    client::Server,
    output::{self, line},
};
use crate::{
    app::{self, System},
    proto,
};

#[derive(Debug, Subcommand)]
pub enum Key {
    /// List the keys of access tokens and refresh tokens.
    List(List),
    /// Make the pending key the active one, and publish a new pending key.
    ///
    /// A running service does this itself, at the intervals keys.rotation and keys.refresh_rotation
    /// in its configuration.
    Rotate(Rotate),
    /// Revoke a key: when this returns, no replica accepts any token made with it.
    ///
    /// If the key was active, the pending key becomes active. Sessions continue if a key of access
    /// tokens is revoked. Revoking a key of refresh tokens signs out everybody whose refresh token
    /// was made with it.
    Revoke(Revoke),
    /// Import a private key that signs access tokens from the next rotation on.
    ///
    /// The command changes the database itself and needs the master key, so run it where the
    /// service runs. If the database is SQLite, stop the service first. The key is published at
    /// once and becomes active with the next rotation.
    Import(Import),
    /// Encrypt all keys anew under a new master key.
    ///
    /// First give every replica the new master key as keys.master_key_file and the old one as
    /// keys.additional_master_key_file, and restart the replicas. Then run this command once, with
    /// the same configuration. If the database is SQLite, stop the service before you run it.
    /// Afterwards the old master key can be removed. If the command is interrupted, run it again.
    Reseal(Reseal),
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Purpose {
    /// The keys that sign access tokens.
    AccessToken,
    /// The keys that authenticate refresh tokens.
    RefreshToken,
}

#[derive(Debug, Args)]
pub struct Rotate {
    /// Purpose of the key.
    #[arg(long, value_enum, default_value_t = Purpose::AccessToken)]
    purpose: Purpose,
    /// Rotate even if some verifiers may not know the pending key yet.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The key's name, as `countersign key list` shows it.
    // A name may begin with a hyphen.
    #[arg(allow_hyphen_values = true)]
    kid: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Import {
    /// The private key in PEM. It must be for the algorithm that keys.algorithm in the
    /// configuration names: Ed25519, EC on P-256, or RSA of 2048 to 8192 bits with a public
    /// exponent of at least 65537.
    file: PathBuf,
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Reseal {
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Key {
    pub async fn run(self) -> Outcome {
        match self {
            Self::List(list) => list.run().await,
            Self::Rotate(rotate) => rotate.run().await,
            Self::Revoke(revoke) => revoke.run().await,
            Self::Import(import) => import.run().await,
            Self::Reseal(reseal) => reseal.run().await,
        }
    }
}

impl List {
    async fn run(self) -> Outcome {
        let response = self
            .server
            .answer(self.server.keys().await?.list_keys(proto::ListKeysRequest {}).await)?;
        if self.server.json {
            output::json(&response, "ListKeysResponse")?;
            return Ok(ExitCode::SUCCESS);
        }
        output::rows(
            ["KEY", "PURPOSE", "ALGORITHM", "STATE", "CREATED", "ACTIVATED", "RETIRED", "REVOKED"],
            response.keys.iter().map(|key| {
                [
                    key.kid.clone(),
                    output::plain(key.purpose().as_str_name(), "KEY_PURPOSE_"),
                    key.algorithm.clone(),
                    output::plain(key.state().as_str_name(), "KEY_STATE_"),
                    output::instant(key.created_at.as_ref()),
                    output::instant(key.activated_at.as_ref()),
                    output::instant(key.retired_at.as_ref()),
                    output::instant(key.revoked_at.as_ref()),
                ]
            }),
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl Rotate {
    async fn run(self) -> Outcome {
        let purpose = match self.purpose {
            Purpose::AccessToken => proto::KeyPurpose::AccessToken,
            Purpose::RefreshToken => proto::KeyPurpose::RefreshToken,
        };
        let request = proto::RotateKeyRequest { purpose: purpose.into(), force: self.force };
        let response = self.server.answer(self.server.keys().await?.rotate_key(request).await)?;
        if self.server.json {
            output::json(&response, "RotateKeyResponse")?;
        } else {
            let active = response.active.unwrap_or_default();
            line!("{} ({}) makes all tokens now", active.kid, active.algorithm);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Revoke {
    async fn run(self) -> Outcome {
        let request = proto::RevokeKeyRequest { kid: self.kid };
        let response = self.server.answer(self.server.keys().await?.revoke_key(request).await)?;
        if self.server.json {
            output::json(&response, "RevokeKeyResponse")?;
        } else {
            let key = response.revoked.unwrap_or_default();
            line!(
                "revoked {}, effective since {}",
                key.kid,
                output::instant(key.revoked_at.as_ref())
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Import {
    async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let key = app::import_key(&config, &self.file, System::of_this_machine()).await?;
        if self.json {
            let algorithm = key.algorithm.as_str();
            let state = format!("KEY_STATE_{}", key.state().as_str().to_uppercase());
            line!("{:#}", json!({ "kid": key.kid, "algorithm": algorithm, "state": state }));
        } else {
            line!(
                "{} ({}) is published, and becomes active with the next rotation",
                key.kid,
                key.algorithm
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Reseal {
    async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let resealed = app::reseal(&config, System::of_this_machine()).await?;
        if self.json {
            line!("{}", json!({ "resealed": resealed }));
        } else {
            line!("encrypted {resealed} keys anew; all keys are under the present master key");
        }
        Ok(ExitCode::SUCCESS)
    }
}
