//! `countersign session list` and `countersign session count`

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use prost_types::Timestamp;

use super::{
    Outcome,
    client::Server,
    output::{self, line},
    parse_instant,
};
use crate::proto;

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    search: Search,
    /// List the oldest session first.
    #[arg(long)]
    oldest_first: bool,
    /// Maximum number of sessions to list.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i32).range(1..=500))]
    page_size: i32,
    /// Page token that was printed with the previous page.
    #[arg(long, default_value = "", hide_default_value = true)]
    page_token: String,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub struct Count {
    #[command(flatten)]
    search: Search,
    #[command(flatten)]
    server: Server,
}

/// The conditions on the sessions. A session must meet all of them.
#[derive(Debug, Args)]
struct Search {
    /// Only sessions of this subject.
    #[arg(long, default_value = "", hide_default_value = true)]
    subject: String,
    /// The subject's tenant; without it, the default tenant.
    #[arg(long, default_value = "", hide_default_value = true)]
    tenant: String,
    /// Only sessions in this state.
    #[arg(long, value_enum, default_value_t = StateFilter::Any)]
    state: StateFilter,
    /// Only sessions of this OAuth client.
    #[arg(long, default_value = "", hide_default_value = true)]
    client_id: String,
    /// Only sessions under this policy.
    #[arg(long, default_value = "", hide_default_value = true)]
    policy: String,
    /// Only sessions that this caller created.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CALLER")]
    created_by: String,
    /// Only sessions that ended for this reason, such as expired-idle.
    #[arg(long, value_name = "REASON", value_parser = parse_end_reason)]
    end_reason: Option<proto::EndReason>,
    /// Only sessions that were created at this instant or later: 2026-01-31T12:00:00Z, or a time
    /// span like 7d, which is so long ago.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    created_from: Option<Timestamp>,
    /// Only sessions that were created before this instant.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    created_until: Option<Timestamp>,
    /// Only sessions that ended at this instant or later.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    ended_from: Option<Timestamp>,
    /// Only sessions that ended before this instant.
    #[arg(long, value_name = "INSTANT", value_parser = parse_instant)]
    ended_until: Option<Timestamp>,
    /// Only sessions of devices with this IP address, or in this network, like 192.0.2.0/24.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NETWORK")]
    device_network: String,
    /// Only sessions of the device to which you gave this identifier.
    #[arg(long, default_value = "", hide_default_value = true)]
    device_id: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateFilter {
    Live,
    Ended,
    Any,
}

/// The prefix of the names of end reasons in the protocol.
const END_REASON: &str = "END_REASON_";

fn parse_end_reason(text: &str) -> Result<proto::EndReason, String> {
    let name = format!("{END_REASON}{}", text.to_uppercase().replace('-', "_"));
    let given = proto::EndReason::from_str_name(&name);
    given.filter(|reason| *reason != proto::EndReason::Unspecified).ok_or_else(|| {
        let known = (1..).map_while(|number| proto::EndReason::try_from(number).ok());
        let names =
            known.map(|reason| output::plain(reason.as_str_name(), END_REASON).replace('_', "-"));
        format!("must be one of {}", names.collect::<Vec<_>>().join(", "))
    })
}

impl Search {
    fn state(&self) -> proto::SessionState {
        match self.state {
            StateFilter::Live => proto::SessionState::Live,
            StateFilter::Ended => proto::SessionState::Ended,
            StateFilter::Any => proto::SessionState::Unspecified,
        }
    }

    fn filter(&self) -> proto::SessionFilter {
        proto::SessionFilter {
            client_id: self.client_id.clone(),
            policy: self.policy.clone(),
            created_by: self.created_by.clone(),
            end_reason: self.end_reason.unwrap_or_default().into(),
            created_from: self.created_from,
            created_until: self.created_until,
            ended_from: self.ended_from,
            ended_until: self.ended_until,
            device_network: self.device_network.clone(),
            device_id: self.device_id.clone(),
        }
    }
}

impl List {
    pub async fn run(self) -> Outcome {
        let mut request = proto::ListSessionsRequest {
            tenant: self.search.tenant.clone(),
            subject: self.search.subject.clone(),
            state: self.search.state().into(),
            filter: Some(self.search.filter()),
            order_by: if self.oldest_first { "created_at" } else { "" }.to_owned(),
            page_size: self.page_size,
            page_token: self.page_token,
        };
        let mut client = self.server.sessions().await?;
        let mut sessions = vec![];
        // A page of a search may be short although there are further pages.
        loop {
            let page = self.server.answer(client.list_sessions(request.clone()).await)?;
            request.page_size -= i32::try_from(page.sessions.len()).unwrap_or(i32::MAX);
            request.page_token = page.next_page_token;
            sessions.extend(page.sessions);
            if request.page_size <= 0 || request.page_token.is_empty() {
                break;
            }
        }
        let next_page_token = request.page_token;
        if self.server.json {
            let response = proto::ListSessionsResponse { sessions, next_page_token };
            output::json(&response, "ListSessionsResponse")?;
            return Ok(ExitCode::SUCCESS);
        }
        if sessions.is_empty() {
            line!("no sessions");
            return Ok(ExitCode::SUCCESS);
        }
        output::rows(
            ["SESSION", "SUBJECT", "STATE", "CREATED", "REFRESHED", "DEVICE"],
            sessions.iter().map(row),
        );
        if !next_page_token.is_empty() {
            line!("\nmore: --page-token {next_page_token}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the row of a session in the table.
fn row(session: &proto::Session) -> [String; 6] {
    let device = session.device.clone().unwrap_or_default();
    let shown = [device.label, device.user_agent_name, device.user_agent, device.ip_address]
        .into_iter()
        .find(|text| !text.is_empty());
    let state = [output::state(session), output::end_reason(session)].join(" ").trim().to_owned();
    [
        session.session_id.clone(),
        session.subject.clone(),
        state,
        output::instant(session.created_at.as_ref()),
        output::instant(session.refreshed_at.as_ref()),
        shown.unwrap_or_default(),
    ]
}

impl Count {
    pub async fn run(self) -> Outcome {
        let request = proto::CountSessionsRequest {
            tenant: self.search.tenant.clone(),
            subject: self.search.subject.clone(),
            state: self.search.state().into(),
            filter: Some(self.search.filter()),
        };
        let response =
            self.server.answer(self.server.sessions().await?.count_sessions(request).await)?;
        if self.server.json {
            output::json(&response, "CountSessionsResponse")?;
        } else if response.may_be_more {
            line!("at least {}", response.sessions);
        } else {
            line!("{}", response.sessions);
        }
        Ok(ExitCode::SUCCESS)
    }
}
