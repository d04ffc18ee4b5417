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
    app::{self, Member, Register},
    domain::time::brief,
};

#[derive(Debug, Subcommand)]
pub enum Replica {
    /// List the replicas in the register, and how far each has come in the feed of revocations.
    ///
    /// Reads the database, and talks to no replica. One is live as long as the others count on it: a revocation that it has
    /// not applied waits for it, but at most for the time under WAIT. One that is gone is about to be removed by them.
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
            None if self.json => line!("{:#}", json!({ "replicas": null, "head": null, "settled": null })),
            None => line!("no replicas: one process at a time serves from SQLite"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_table(register: &Register) {
    let header = ["REPLICA", "NAME", "VERSION", "STATE", "JOINED", "RENEWED", "APPLIED", "LAG", "WAIT"];
    if register.members.is_empty() {
        line!("no replicas");
    } else {
        let rows = register.members.iter().map(|member| {
            [
                member.incarnation.to_string(),
                member.name.clone(),
                member.version.clone(),
                state(member).to_owned(),
                joined(member),
                format!("{} ago", rounded(member.renewed_ago)),
                member.applied.0.to_string(),
                register.lag(member).to_string(),
                rounded(member.holds_for),
            ]
        });
        output::rows(header, rows);
    }
    let settled = match register.is_settled() {
        true => "all who may answer are listed",
        false => {
            "there was a failover: some who may answer may not be listed yet, and revocations wait for all of them"
        }
    };
    line!("head of the feed: {}; {settled}", register.head.seq.0);
}

fn print_json(register: &Register) {
    let replicas = register.members.iter().map(|member| {
        json!({
            "incarnation": member.incarnation.to_string(),
            "name": member.name,
            "version": member.version,
            "state": if member.is_live() { "REPLICA_STATE_LIVE" } else { "REPLICA_STATE_GONE" },
            "joined_at": joined(member),
            "renewed_ago": output::span(member.renewed_ago),
            "applied": member.applied.0,
            "lag": register.lag(member),
            "wait": output::span(member.holds_for),
        })
    });
    let replicas: Vec<_> = replicas.collect();
    line!("{:#}", json!({ "replicas": replicas, "head": register.head.seq.0, "settled": register.is_settled() }));
}

fn state(member: &Member) -> &'static str {
    if member.is_live() { "live" } else { "gone" }
}

fn joined(member: &Member) -> String {
    output::instant(Some(&Timestamp { seconds: member.joined_at.seconds(), nanos: 0 }))
}

/// A span as exactly as people want it.
fn rounded(span: Duration) -> String {
    match span < Duration::from_secs(10) {
        true => brief(Duration::from_millis(millis(span))),
        false => brief(Duration::from_secs(span.as_secs())),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
