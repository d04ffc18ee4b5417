//! Converts the requests that search for sessions and for records of the audit.

use std::net::IpAddr;

use ipnet::IpNet;
use prost::Message;

use super::{
    common::{end_reason_of, instant},
    requests::{optional, session_id, text},
};
use crate::{
    authority::{
        audit_search::AuditListing, error::AuthorityError, inspect::Listing, page::PageRequest,
    },
    domain::{
        audit::AuditAction,
        search::{AuditSearch, Order, Period, SessionFilter, SessionSearch},
        session::EndReason,
        text::{DeviceId, Tenant},
        who::Who,
    },
    proto,
};

type Result<T> = std::result::Result<T, AuthorityError>;

const DEFAULT_PAGE: u16 = 50;
const LARGEST_PAGE: u16 = 500;

fn page_size(size: i32) -> Result<u16> {
    match u16::try_from(size) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size @ 1..=LARGEST_PAGE) => Ok(size),
        _ => Err(AuthorityError::field(
            "page_size",
            format!("must be from 1 to {LARGEST_PAGE}, or 0 for {DEFAULT_PAGE}"),
        )),
    }
}

/// Converts the two limits of a period. Each is a field and its value.
fn period(
    (from_field, from): (&str, Option<prost_types::Timestamp>),
    (until_field, until): (&str, Option<prost_types::Timestamp>),
) -> Result<Period> {
    let from = from.map(|from| instant(from_field, from)).transpose()?;
    let until = until.map(|until| instant(until_field, until)).transpose()?;
    let period = Period { from, until };
    if period.is_empty() {
        let problem = format!("must be later than {from_field}");
        return Err(AuthorityError::field(until_field, problem));
    }
    Ok(period)
}

fn who(field: &str, name: String) -> Result<Option<Who>> {
    if name.is_empty() {
        return Ok(None);
    }
    Who::from_name(name).map(Some).map_err(|error| AuthorityError::field(field, error))
}

fn end_reason(reason: i32) -> Result<Option<EndReason>> {
    match proto::EndReason::try_from(reason) {
        Ok(proto::EndReason::Unspecified) => Ok(None),
        Ok(reason) => Ok(Some(end_reason_of(reason))),
        Err(_) => Err(AuthorityError::field("filter.end_reason", "is not known")),
    }
}

/// Converts an address, or a network in CIDR notation.
fn network(text: &str) -> Result<Option<IpNet>> {
    if text.is_empty() {
        return Ok(None);
    }
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let problem = "is neither an IP address nor a network like 192.0.2.0/24";
    network
        .map(|network| Some(network.trunc()))
        .map_err(|_| AuthorityError::field("filter.device_network", problem))
}

/// A filter. The conditions that indexes serve are apart from the others.
struct Filter {
    created: Period,
    device_id: Option<DeviceId>,
    others: SessionFilter,
}

fn filter(filter: proto::SessionFilter) -> Result<Filter> {
    let created = period(
        ("filter.created_from", filter.created_from),
        ("filter.created_until", filter.created_until),
    )?;
    let device_id = optional("filter.device_id", filter.device_id)?;
    let others = SessionFilter {
        client_id: optional("filter.client_id", filter.client_id)?,
        policy: optional("filter.policy", filter.policy)?,
        created_by: who("filter.created_by", filter.created_by)?,
        end_reason: end_reason(filter.end_reason)?,
        ended: period(
            ("filter.ended_from", filter.ended_from),
            ("filter.ended_until", filter.ended_until),
        )?,
        network: network(&filter.device_network)?,
    };
    Ok(Filter { created, device_id, others })
}

fn search(
    tenant: String,
    subject: String,
    state: i32,
    asked: Option<proto::SessionFilter>,
) -> Result<SessionSearch> {
    let Filter { created, device_id, others: filter } = filter(asked.unwrap_or_default())?;
    let subject = optional("subject", subject)?;
    let live = match proto::SessionState::try_from(state) {
        Ok(proto::SessionState::Live) if filter.concerns_the_end() => {
            let problem = "must not be LIVE, because filter demands that the session has ended";
            return Err(AuthorityError::field("state", problem));
        }
        Ok(proto::SessionState::Unspecified) if filter.concerns_the_end() => Some(false),
        Ok(proto::SessionState::Unspecified) => None,
        Ok(proto::SessionState::Live) => Some(true),
        Ok(proto::SessionState::Ended) => Some(false),
        Err(_) => return Err(AuthorityError::field("state", "is not known")),
    };
    let has_begin = created.from.is_some() || filter.ended.from.is_some();
    let is_limited = subject.is_some() || device_id.is_some() || has_begin;
    if !filter.is_empty() && !is_limited {
        return Err(AuthorityError::field(
            "filter",
            "has a condition that no index serves: also set created_from, ended_from or device_id, \
             or name a subject",
        ));
    }
    Ok(SessionSearch {
        tenant: text("tenant", tenant)?,
        subject,
        device_id,
        live,
        created,
        filter,
        order: Order::default(),
    })
}

fn order(order_by: &str) -> Result<Order> {
    match order_by {
        "" | "created_at desc" => Ok(Order::NewestFirst),
        "created_at" => Ok(Order::OldestFirst),
        _ => {
            Err(AuthorityError::field("order_by", "must be \"created_at\" or \"created_at desc\""))
        }
    }
}

impl TryFrom<proto::ListSessionsRequest> for Listing {
    type Error = AuthorityError;

    fn try_from(mut request: proto::ListSessionsRequest) -> Result<Self> {
        let (size, token) =
            (page_size(request.page_size)?, std::mem::take(&mut request.page_token));
        request.page_size = 0;
        let page = PageRequest { size, token, request: request.encode_to_vec() };
        let order = order(&request.order_by)?;
        let search = search(request.tenant, request.subject, request.state, request.filter)?;
        Ok(Self { search: SessionSearch { order, ..search }, page })
    }
}

impl TryFrom<proto::CountSessionsRequest> for SessionSearch {
    type Error = AuthorityError;

    fn try_from(request: proto::CountSessionsRequest) -> Result<Self> {
        search(request.tenant, request.subject, request.state, request.filter)
    }
}

impl TryFrom<proto::ListAuditRequest> for AuditListing {
    type Error = AuthorityError;

    fn try_from(mut request: proto::ListAuditRequest) -> Result<Self> {
        let (size, token) =
            (page_size(request.page_size)?, std::mem::take(&mut request.page_token));
        request.page_size = 0;
        let page = PageRequest { size, token, request: request.encode_to_vec() };
        let subject = optional("subject", request.subject)?;
        let tenant = request.tenant.map(|tenant| text::<Tenant>("tenant", tenant)).transpose()?;
        let tenant = match subject {
            Some(_) => Some(tenant.unwrap_or_default()),
            None => tenant,
        };
        let session_id = match request.session_id.as_str() {
            "" => None,
            id => Some(session_id("session_id", id)?),
        };
        let search = AuditSearch {
            tenant,
            subject,
            session_id,
            caller: who("caller", request.caller)?,
            action: action(&request.action)?,
            at: period(("from", request.from), ("until", request.until))?,
        };
        Ok(Self { search, page })
    }
}

fn action(name: &str) -> Result<Option<AuditAction>> {
    if name.is_empty() {
        return Ok(None);
    }
    let known = || {
        let names = AuditAction::ALL.map(AuditAction::as_str);
        AuthorityError::field("action", format!("must be one of {}", names.join(", ")))
    };
    AuditAction::from_name(name).map(Some).ok_or_else(known)
}
