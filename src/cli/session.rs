//! `countersign session`, and its subcommands `create|show|reauthenticate|update|revoke`

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{
    Outcome,
    client::{Server, duration},
    export::Export,
    import::Import,
    method::{self, Method},
    output::{self, line},
    revoke::Revoke,
    search::{Count, List},
};
use crate::{domain::stored_object::find_large_integer, proto};

#[derive(Debug, Subcommand)]
pub enum Session {
    /// Create a session for a subject and print its first tokens.
    Create(Box<Create>),
    /// List sessions, the newest first.
    ///
    /// A search by anything but subject, state and time of creation must name a subject, or the
    /// begin of a period: --created-from or --ended-from.
    List(Box<List>),
    /// Count sessions. Beyond 10,000, the number is a lower bound.
    Count(Box<Count>),
    /// Show one session.
    Show(Show),
    /// Record that the user has authenticated again and print the new tokens.
    Reauthenticate(Box<Reauthenticate>),
    /// Change data of a session.
    Update(Box<Update>),
    /// End a session, or all sessions of subjects, a client or a tenant.
    Revoke(Box<Revoke>),
    /// Take over live sessions of another system from a file.
    ///
    /// A session that was imported before is not imported again. After an interruption, the same
    /// command goes on where it stopped, by FILE.progress. Lines that cannot be imported are listed
    /// in FILE.bad.ndjson, by number, and make the exit code 1.
    Import(Box<Import>),
    /// Write the live sessions of a tenant to a file that import reads.
    ///
    /// The oldest session comes first. The file holds no tokens, and no hashes of tokens.
    Export(Box<Export>),
}

#[derive(Debug, Args)]
pub struct Create {
    /// The subject who has signed in.
    subject: String,
    /// The subject's tenant; without it, the default tenant.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Identifier of the OAuth client.
    #[arg(long, default_value = "", hide_default_value = true)]
    client_id: String,
    /// Audience of the access tokens, such as a resource server; may be repeated.
    #[arg(long)]
    audience: Vec<String>,
    /// Scope; may be repeated.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Custom claim as NAME=VALUE. A VALUE that is not JSON is taken as text. May be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = parse_claim)]
    claims: Vec<(String, serde_json::Value)>,
    /// Metadata of the session as NAME=VALUE, which are in no token. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_claim)]
    metadata: Vec<(String, serde_json::Value)>,
    /// Authentication context class reference.
    #[arg(long, default_value = "", hide_default_value = true)]
    acr: String,
    /// Authentication method like pwd or otp, as METHOD or METHOD@TIME with the time at which it was
    /// verified, like hwk@2026-01-01T00:00:00Z. May be repeated.
    #[arg(long, value_name = "METHOD[@TIME]", value_parser = Method::parse)]
    amr: Vec<Method>,
    /// Name of a policy in the server's configuration, or of a preset like nist-aal2.
    #[arg(long, default_value = "", hide_default_value = true)]
    policy: String,
    /// Lifetime of access tokens, if it is to be shorter than in the policy, like 2m.
    #[arg(long, value_parser = super::parse_span)]
    access_token_ttl: Option<Duration>,
    /// Lifetime of the session, if it is to be shorter than in the policy, like 8h.
    #[arg(long, value_parser = super::parse_span)]
    max_lifetime: Option<Duration>,
    /// Idempotency key. A repetition of the command with the same key creates no second session. A
    /// command with the same key and other arguments is refused.
    #[arg(long, default_value = "", hide_default_value = true)]
    request_id: String,
    /// User-Agent of the user's device.
    #[arg(long, default_value = "", hide_default_value = true)]
    user_agent: String,
    /// IP address of the user's device.
    #[arg(long, default_value = "", hide_default_value = true)]
    ip_address: String,
    /// The user's name for the device.
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    /// Your own identifier of the device.
    #[arg(long, default_value = "", hide_default_value = true)]
    device_id: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Show {
    /// The session's identifier.
    session_id: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("session").required(true).args(["session_id", "token"]))]
pub struct Reauthenticate {
    /// The session's identifier.
    session_id: Option<String>,
    /// The session's refresh token; - reads it from standard input.
    #[arg(long)]
    token: Option<String>,
    /// Authentication context class reference.
    #[arg(long, default_value = "", hide_default_value = true)]
    acr: String,
    /// Authentication method like pwd or otp, as METHOD or METHOD@TIME with the time at which it was
    /// verified, like hwk@2026-01-01T00:00:00Z. May be repeated.
    #[arg(long, value_name = "METHOD[@TIME]", value_parser = Method::parse)]
    amr: Vec<Method>,
    /// Custom claim as NAME=VALUE, which replaces all claims of the session. May be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = parse_claim)]
    claims: Vec<(String, serde_json::Value)>,
    /// Scope, which replaces all scopes of the session; may be repeated.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Accept an acr that is weaker than that of the session.
    #[arg(long)]
    allow_weaker: bool,
    /// Idempotency key. A repetition of the command with the same key yields the same tokens.
    #[arg(long, default_value = "", hide_default_value = true)]
    request_id: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Update {
    /// The session's identifier.
    session_id: String,
    /// Metadata as NAME=VALUE, which replace all metadata of the session. May be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_claim)]
    metadata: Vec<(String, serde_json::Value)>,
    /// Remove all metadata.
    #[arg(long, conflicts_with = "metadata")]
    no_metadata: bool,
    /// The user's name for the device; "" removes it.
    #[arg(long)]
    label: Option<String>,
    /// Custom claim as NAME=VALUE, which replaces all claims of the session. May be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = parse_claim)]
    claims: Vec<(String, serde_json::Value)>,
    /// Remove all custom claims.
    #[arg(long, conflicts_with = "claims")]
    no_claims: bool,
    /// Scope that the session keeps; all others are removed. May be repeated.
    #[arg(long = "scope")]
    scopes: Vec<String>,
    /// Remove all scopes.
    #[arg(long, conflicts_with = "scopes")]
    no_scopes: bool,
    /// The etag of the session as it was read. If the session has changed since, nothing changes.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
    /// Make all access tokens of the session inactive, so that the change takes effect at once.
    #[arg(long)]
    revoke_access_tokens: bool,
    #[command(flatten)]
    server: Server,
}

fn parse_claim(text: &str) -> Result<(String, serde_json::Value), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    // The service cannot check this, because a protobuf `Struct` turns each number into a double.
    match find_large_integer(name, &value) {
        None => Ok((name.to_owned(), value)),
        Some(path) => Err(format!(
            "holds an integer beyond 2^53 at {path}, which readers of JSON change to another one: \
             write it as a string, like '{name}=\"9007199254740993\"'"
        )),
    }
}

impl Session {
    pub async fn run(self) -> Outcome {
        match self {
            Self::Create(create) => create.run().await,
            Self::List(list) => list.run().await,
            Self::Count(count) => count.run().await,
            Self::Show(show) => show.run().await,
            Self::Reauthenticate(reauthenticate) => reauthenticate.run().await,
            Self::Update(update) => update.run().await,
            Self::Revoke(revoke) => revoke.run().await,
            Self::Import(import) => import.run().await,
            Self::Export(export) => export.run().await,
        }
    }
}

/// Converts named values to a message.
fn to_struct(
    values: Vec<(String, serde_json::Value)>,
) -> Result<proto::EncodedStruct, super::Failure> {
    output::to_struct(values.into_iter().collect::<serde_json::Map<_, _>>().into())
}

impl Create {
    async fn run(self) -> Outcome {
        let request = proto::CreateSessionRequest {
            subject: self.subject,
            tenant: self.tenant,
            client_id: self.client_id,
            audience: self.audience,
            scopes: self.scopes,
            claims: Some(to_struct(self.claims)?),
            metadata: Some(to_struct(self.metadata)?),
            acr: self.acr,
            amr: method::names(&self.amr),
            amr_verified_at: method::times(&self.amr),
            authenticated_at: None,
            device: Some(proto::Device {
                user_agent: self.user_agent,
                ip_address: self.ip_address,
                label: self.label,
                device_id: self.device_id,
                ..proto::Device::default()
            }),
            policy: self.policy,
            access_token_ttl: self.access_token_ttl.map(duration).transpose()?,
            max_lifetime: self.max_lifetime.map(duration).transpose()?,
            request_id: self.request_id,
        };
        let response =
            self.server.answer(self.server.sessions().await?.create_session(request).await)?;
        if self.server.json {
            output::json(&response, "CreateSessionResponse")?;
        } else {
            output::session(&response.session.unwrap_or_default());
            line!("");
            output::tokens(&response.tokens.unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    async fn run(self) -> Outcome {
        let request = proto::GetSessionRequest { session_id: self.session_id };
        let response =
            self.server.answer(self.server.sessions().await?.get_session(request).await)?;
        if self.server.json {
            output::json(&response, "GetSessionResponse")?;
        } else {
            output::session(&response.session.unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Reauthenticate {
    async fn run(self) -> Outcome {
        use proto::reauthenticate_request::Session::{RefreshToken, SessionId};

        let session = match (self.session_id, self.token) {
            (Some(id), _) => SessionId(id),
            (None, Some(token)) => RefreshToken(super::token::read(token)?),
            (None, None) => SessionId(String::new()),
        };
        let request = proto::ReauthenticateRequest {
            session: Some(session),
            acr: self.acr,
            amr: method::names(&self.amr),
            amr_verified_at: method::times(&self.amr),
            authenticated_at: None,
            claims: match self.claims.is_empty() {
                true => None,
                false => Some(to_struct(self.claims)?),
            },
            scopes: self.scopes,
            device: None,
            allow_weaker: self.allow_weaker,
            request_id: self.request_id,
        };
        let response =
            self.server.answer(self.server.sessions().await?.reauthenticate(request).await)?;
        if self.server.json {
            output::json(&response, "ReauthenticateResponse")?;
        } else {
            output::session(&response.session.unwrap_or_default());
            line!("");
            output::tokens(&response.tokens.unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Update {
    async fn run(self) -> Outcome {
        let fields = [
            ("metadata", !self.metadata.is_empty() || self.no_metadata),
            ("device.label", self.label.is_some()),
            ("claims", !self.claims.is_empty() || self.no_claims),
            ("scopes", !self.scopes.is_empty() || self.no_scopes),
        ];
        let paths = fields.into_iter().filter(|(_, is_given)| *is_given);
        let request = proto::UpdateSessionRequest {
            session_id: self.session_id,
            update_mask: Some(prost_types::FieldMask {
                paths: paths.map(|(path, _)| path.to_owned()).collect(),
            }),
            session: Some(proto::Session {
                metadata: Some(to_struct(self.metadata)?),
                claims: Some(to_struct(self.claims)?),
                scopes: self.scopes,
                device: Some(proto::Device {
                    label: self.label.unwrap_or_default(),
                    ..proto::Device::default()
                }),
                ..proto::Session::default()
            }),
            etag: self.etag,
            revoke_access_tokens: self.revoke_access_tokens,
        };
        let response =
            self.server.answer(self.server.sessions().await?.update_session(request).await)?;
        if self.server.json {
            output::json(&response, "UpdateSessionResponse")?;
        } else {
            output::session(&response.session.unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}
