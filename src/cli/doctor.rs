//! `countersign doctor`

use std::{process::ExitCode, sync::Arc};

use clap::Args;
use serde_json::json;

use super::{FAILED, Outcome, Settings, output::line};
use crate::{
    app::doctor::{self, Finding, Status},
    clock::SystemClock,
};

#[derive(Debug, Args)]
pub struct Doctor {
    #[command(flatten)]
    settings: Settings,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub async fn run(self) -> Outcome {
        let findings = doctor::examine(self.settings.load(), Arc::new(SystemClock)).await;
        match self.json {
            true => print_json(&findings),
            false => print_lines(&findings),
        }
        Ok(match findings.iter().any(|finding| finding.status == Status::Fail) {
            true => ExitCode::from(FAILED),
            false => ExitCode::SUCCESS,
        })
    }
}

fn print_lines(findings: &[Finding]) {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    for Finding { check, status, finding, remedy } in findings {
        let status = status.as_str();
        match remedy {
            Some(remedy) => line!("{status:<4}  {check:<width$}  {finding}: {remedy}"),
            None => line!("{status:<4}  {check:<width$}  {finding}"),
        }
    }
}

fn print_json(findings: &[Finding]) {
    let findings = findings.iter().map(|Finding { check, status, finding, remedy }| {
        json!({ "check": check, "status": status.as_str(), "finding": finding, "remedy": remedy })
    });
    line!("{:#}", findings.collect::<serde_json::Value>());
}
