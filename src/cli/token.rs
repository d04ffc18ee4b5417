//! `countersign token validate|refresh|decode`

use std::{io::Read, process::ExitCode, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand};

use super::{
    FAILED, Failure, Outcome,
    client::{Server, duration},
    method::Demand,
    output::{self, line},
};
use crate::{proto, token::refresh};

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Ask whether an access token is active, and exit with 1 if it is not.
    Validate(Validate),
    /// Exchange a refresh token for the next pair of tokens.
    Refresh(Refresh),
    /// Show the content of a token. The token is not checked, and no server is called.
    Decode(Decode),
}

#[derive(Debug, Args)]
pub struct Validate {
    /// The access token; - reads it from standard input, to keep it out of the shell's history.
    token: String,
    /// Require this audience.
    #[arg(long, default_value = "", hide_default_value = true)]
    audience: String,
    /// Require this scope; may be repeated.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Require this acr. If repeated, any one of the values is enough.
    #[arg(long = "acr")]
    acr_values: Vec<String>,
    /// Require that the user has authenticated within this time, like 15m.
    #[arg(long, value_parser = super::parse_span)]
    max_authentication_age: Option<Duration>,
    /// Require this authentication method, as METHOD or METHOD@AGE with the longest time since it
    /// was verified, like hwk@5m. May be repeated.
    #[arg(long, value_name = "METHOD[@AGE]", value_parser = Demand::parse)]
    amr: Vec<Demand>,
    /// Show the metadata of the session too. The service then reads the database.
    #[arg(long)]
    metadata: bool,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Refresh {
    /// The refresh token; - reads it from standard input, to keep it out of the shell's history.
    token: String,
    /// Limit the next access token to this scope; may be repeated.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Decode {
    /// The token; - reads it from standard input, to keep it out of the shell's history.
    token: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Returns the argument, or reads the token from standard input if the argument is `-`.
pub fn read(token: String) -> Result<String, Failure> {
    if token != "-" {
        return Ok(token);
    }
    let mut text = String::new();
    std::io::stdin().take(64 << 10).read_to_string(&mut text).map_err(Failure::failed)?;
    Ok(text.trim().to_owned())
}

impl Token {
    pub async fn run(self) -> Outcome {
        match self {
            Self::Validate(validate) => validate.run().await,
            Self::Refresh(refresh) => refresh.run().await,
            Self::Decode(decode) => decode.run(),
        }
    }
}

impl Validate {
    async fn run(self) -> Outcome {
        let request = proto::ValidateRequest {
            access_token: read(self.token)?,
            audience: self.audience,
            scopes: self.scopes,
            acr_values: self.acr_values,
            max_authentication_age: self.max_authentication_age.map(duration).transpose()?,
            view: proto::ValidateView::Full.into(),
            factors: self.amr.into_iter().map(Demand::message).collect::<Result<_, _>>()?,
            include_metadata: self.metadata,
        };
        let response = self.server.answer(self.server.sessions().await?.validate(request).await)?;
        if self.server.json {
            output::json(&response, "ValidateResponse")?;
        } else if response.active {
            output::pairs(&[
                ("active", "yes".to_owned()),
                ("session", response.session_id.clone()),
                ("subject", response.subject.clone()),
                ("tenant", response.tenant.clone()),
                ("client", response.client_id.clone()),
                ("audience", response.audience.join(" ")),
                ("scopes", response.scopes.join(" ")),
                ("amr", output::methods(&response.amr, &response.amr_verified_at)),
                ("issued", output::instant(response.issued_at.as_ref())),
                ("expires", output::instant(response.expires_at.as_ref())),
                ("metadata", output::object(response.metadata.as_ref())?),
            ]);
        } else {
            let reason = response.inactive_reason().as_str_name().replace("INACTIVE_REASON_", "");
            output::pairs(&[("active", "no".to_owned()), ("reason", reason)]);
        }
        Ok(if response.active { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
    }
}

impl Refresh {
    async fn run(self) -> Outcome {
        let request = proto::RefreshRequest {
            refresh_token: read(self.token)?,
            scopes: self.scopes,
            device: None,
        };
        let response = self.server.answer(self.server.sessions().await?.refresh(request).await)?;
        if self.server.json {
            output::json(&response, "RefreshResponse")?;
        } else {
            if response.replayed {
                line!(
                    "this token had been exchanged a moment ago; the same refresh token follows\n"
                );
            }
            output::tokens(&response.tokens.unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Decode {
    fn run(self) -> Outcome {
        let token = read(self.token)?;
        if token.starts_with(refresh::PREFIX) {
            let (session, generation, key) = refresh::Unverified::parse(&token)
                .map(|token| (token.session_id(), token.generation(), token.key()))
                .map_err(|_| Failure::failed("not a refresh token of this service"))?;
            if self.json {
                let shown = serde_json::json!({
                    "session_id": session.to_string(), "generation": generation,
                    "key": key.to_string(),
                });
                line!("{shown:#}");
                return Ok(ExitCode::SUCCESS);
            }
            line!("a refresh token, not checked:");
            output::pairs(&[
                ("session", session.to_string()),
                ("generation", generation.to_string()),
                ("key", key.to_string()),
            ]);
            return Ok(ExitCode::SUCCESS);
        }
        let parts: Vec<_> = token.split('.').collect();
        let [header, payload, _] = parts.as_slice() else {
            return Err(Failure::failed(
                "not a token: a JWT has three parts, a refresh token starts with cs_rt_",
            ));
        };
        let (header, payload) = (decoded("header", header)?, decoded("payload", payload)?);
        if self.json {
            line!("{:#}", serde_json::json!({ "header": header, "payload": payload }));
            return Ok(ExitCode::SUCCESS);
        }
        line!("an access token, its signature not checked:\n{header:#}\n{payload:#}");
        Ok(ExitCode::SUCCESS)
    }
}

fn decoded(name: &str, part: &str) -> Result<serde_json::Value, Failure> {
    let not_json = || Failure::failed(format!("not a JWT: its {name} is not JSON in base64url"));
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| not_json())?;
    serde_json::from_slice(&bytes).map_err(|_| not_json())
}
