//! `countersign replica list`

use std::{process::ExitCode, time::Duration};

use clap::{Args, Subcommand};
use prost_types::Timestamp;
use serde_json::json;

use super::{
    Database, Outcome,
    output::{self, line},
};
use crate::{
    app::{self, FormerState, Member, Register},
    domain::{self, time::brief},
};

#[derive(Debug, Subcommand)]
pub enum Replica {
    /// List the replicas in the register, and how far each has come in the feed of revocations.
    ///
    /// The command reads the database, and connects to no replica. A revocation waits for each live
    /// replica that has not applied it, but at most for the time under WAIT. WATCHERS are processes
    /// that verify tokens themselves; a replica reports a revocation once they have it, too. A replica in the state
    /// "gone" is about to be removed by the other replicas. A replica that has left (it stopped in
    /// good order) or that was removed stays in the list for a day; UNTIL says when it left or was
    /// removed.
    List(List),
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    database: Database,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Replica {
    pub async fn run(self) -> Outcome {
        match self {
            Self::List(list) => list.run().await,
        }
    }
}

impl List {
    async fn run(self) -> Outcome {
        let config = self.database.begin()?;
        let register = app::register(&config).await?;
        match register {
            Some(register) if self.json => print_json(&register),
            Some(register) => print_table(&register),
            None if self.json => {
                line!("{:#}", json!({ "replicas": null, "head": null, "settled": null }))
            }
            None => line!("no replicas: one process at a time serves from SQLite"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

const HEADER: [&str; 12] = [
    "REPLICA", "NAME", "ADDRESS", "VERSION", "STATE", "JOINED", "UNTIL", "RENEWED", "APPLIED",
    "LAG", "WATCHERS", "WAIT",
];

/// The content of a cell that does not apply to a replica.
const NOTHING: &str = "-";

fn print_table(register: &Register) {
    if register.members.is_empty() && register.former.is_empty() {
        line!("no replicas");
    } else {
        let members = register.members.iter().map(|member| {
            [
                member.incarnation.to_string(),
                member.name.clone(),
                address(&member.address),
                member.version.clone(),
                state(member).to_owned(),
                instant(member.joined_at),
                NOTHING.to_owned(),
                format!("{} ago", rounded(member.renewed_ago)),
                member.applied.0.to_string(),
                register.lag(member).to_string(),
                member.watchers.to_string(),
                rounded(member.max_validity),
            ]
        });
        let former = register.former.iter().map(|former| {
            [
                former.incarnation.to_string(),
                former.name.clone(),
                address(&former.address),
                former.version.clone(),
                former.state.as_str().to_owned(),
                instant(former.joined_at),
                instant(former.ended_at),
                NOTHING.to_owned(),
                former.applied.0.to_string(),
                NOTHING.to_owned(),
                NOTHING.to_owned(),
                NOTHING.to_owned(),
            ]
        });
        output::rows(HEADER, members.chain(former));
    }
    let settled = match register.is_settled() {
        true => "all replicas that may answer are listed",
        false => {
            "there was a failover: replicas that may answer may be missing here, and revocations \
             wait for them too"
        }
    };
    line!("head of the feed: {}; {settled}", register.head.seq.0);
}

fn print_json(register: &Register) {
    let members = register.members.iter().map(|member| {
        json!({
            "incarnation": member.incarnation.to_string(),
            "name": member.name,
            "address": member.address,
            "version": member.version,
            "state": if member.is_live() { "REPLICA_STATE_LIVE" } else { "REPLICA_STATE_GONE" },
            "joined_at": instant(member.joined_at),
            "renewed_ago": output::span(member.renewed_ago),
            "applied": member.applied.0,
            "lag": register.lag(member),
            "watchers": member.watchers,
            "wait": output::span(member.max_validity),
        })
    });
    let former = register.former.iter().map(|former| {
        json!({
            "incarnation": former.incarnation.to_string(),
            "name": former.name,
            "address": former.address,
            "version": former.version,
            "state": match former.state {
                FormerState::Left => "REPLICA_STATE_LEFT",
                FormerState::Removed => "REPLICA_STATE_REMOVED",
            },
            "joined_at": instant(former.joined_at),
            "until": instant(former.ended_at),
            "applied": former.applied.0,
        })
    });
    let replicas: Vec<_> = members.chain(former).collect();
    line!(
        "{:#}",
        json!({
            "replicas": replicas,
            "head": register.head.seq.0,
            "settled": register.is_settled(),
        })
    );
}

fn state(member: &Member) -> &'static str {
    if member.is_live() { "live" } else { "gone" }
}

/// Formats the address at which a replica listens. Older versions did not record it, so it may be
/// empty.
fn address(address: &str) -> String {
    if address.is_empty() { NOTHING } else { address }.to_owned()
}

fn instant(at: domain::time::Timestamp) -> String {
    output::instant(Some(&Timestamp { seconds: at.seconds(), nanos: 0 }))
}

/// Formats a span to the millisecond if it is shorter than ten seconds, and otherwise to the
/// second.
fn rounded(span: Duration) -> String {
    match span < Duration::from_secs(10) {
        true => brief(Duration::from_millis(millis(span))),
        false => brief(Duration::from_secs(span.as_secs())),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
