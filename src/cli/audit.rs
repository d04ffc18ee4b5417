//! `countersign audit list`

use std::process::ExitCode;

use clap::{Args, Subcommand, builder::PossibleValuesParser};
use prost_types::Timestamp;

use super::{
    Outcome,
    client::Server,
    output::{self, line},
    parse_instant,
};
use crate::{domain::audit::AuditAction, proto};

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List records of the audit, the newest first: who did what to whose sessions, when and why.
    List(List),
}

#[derive(Debug, Args)]
pub struct List {
    /// Only records of this subject, which belongs to the default tenant unless --tenant is given.
    #[arg(long, default_value = "", hide_default_value = true)]
    subject: String,
    /// Only records of this tenant; "" is the default tenant.
    #[arg(long)]
    tenant: Option<String>,
    /// Only records of this session.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "SESSION_ID")]
    session: String,
    /// Only records of actions of this caller.
    #[arg(long, default_value = "", hide_default_value = true)]
    caller: String,
    /// Only records of this action.
    #[arg(long, value_parser = PossibleValuesParser::new(AuditAction::ALL.map(AuditAction::as_str)))]
    action: Option<String>,
    /// Only records of this instant or later: 2026-01-31T12:00:00Z, or a time span like 24h, which
    /// is so long ago.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    from: Option<Timestamp>,
    /// Only records from before this instant.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    until: Option<Timestamp>,
    /// Maximum number of records to list.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=500))]
    page_size: i32,
    /// Page token that was printed with the previous page.
    #[arg(long, default_value = "", hide_default_value = true)]
    page_token: String,
    #[command(flatten)]
    server: Server,
}

impl AuditCommand {
    pub async fn run(self) -> Outcome {
        match self {
            Self::List(list) => list.run().await,
        }
    }
}

impl List {
    async fn run(self) -> Outcome {
        let mut request = proto::ListAuditRequest {
            tenant: self.tenant,
            subject: self.subject,
            session_id: self.session,
            caller: self.caller,
            action: self.action.unwrap_or_default(),
            from: self.from,
            until: self.until,
            page_size: self.page_size,
            page_token: self.page_token,
        };
        let mut client = self.server.audit().await?;
        let mut records = vec![];
        // A page of a search may be short although there are further pages.
        loop {
            let page = self.server.answer(client.list_audit(request.clone()).await)?;
            request.page_size -= i32::try_from(page.records.len()).unwrap_or(i32::MAX);
            request.page_token = page.next_page_token;
            records.extend(page.records);
            if request.page_size <= 0 || request.page_token.is_empty() {
                break;
            }
        }
        let next_page_token = request.page_token;
        if self.server.json {
            let response = proto::ListAuditResponse { records, next_page_token };
            output::json(&response, "ListAuditResponse")?;
            return Ok(ExitCode::SUCCESS);
        }
        if records.is_empty() {
            line!("no records");
            return Ok(ExitCode::SUCCESS);
        }
        output::rows(
            ["TIME", "ACTION", "CALLER", "FROM", "CONCERNS", "REASON", "NOTE"],
            records.iter().map(row),
        );
        if !next_page_token.is_empty() {
            line!("\nmore: --page-token {next_page_token}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the row of a record in the table.
fn row(record: &proto::AuditRecord) -> [String; 7] {
    let tenant = record.tenant.clone().unwrap_or_default();
    let concerned = [&tenant, &record.client_id, &record.subject, &record.session_id, &record.kid];
    let concerned: Vec<_> =
        concerned.into_iter().filter(|text| !text.is_empty()).map(String::as_str).collect();
    [
        output::instant(record.at.as_ref()),
        record.action.clone(),
        record.caller.clone(),
        record.peer.clone(),
        concerned.join(" "),
        output::plain(record.reason().as_str_name(), "END_REASON_"),
        record.note.clone(),
    ]
}
