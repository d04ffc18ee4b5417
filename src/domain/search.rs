//! Searches for sessions and for records of the audit: their filters, and the part of a search that
//! one read of the database covers.

use std::{collections::BTreeMap, time::Duration};

use ipnet::IpNet;

use super::{
    audit::{AuditAction, AuditEntry},
    ids::{AuditId, SessionId},
    session::{EndReason, Session},
    text::{ClientId, DeviceId, PolicyName, Subject, Tenant},
    time::Timestamp,
    who::Who,
};

/// The largest number of rows that one read looks at. A search by filters that no index serves goes
/// on in several reads, so that no read takes long, however few rows match.
pub const MOST_READ: i64 = 10_000;

/// A period of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    /// The first instant that belongs to the period; none if it has no beginning.
    pub from: Option<Timestamp>,
    /// The first instant after the period; none if it has no end.
    pub until: Option<Timestamp>,
}

impl Period {
    /// Returns whether the period has no instant, because it ends before it begins.
    pub fn is_empty(&self) -> bool {
        self.from.zip(self.until).is_some_and(|(from, until)| until <= from)
    }

    /// Returns whether the period has neither a beginning nor an end.
    pub const fn is_unlimited(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }
}

/// The order of the sessions of a list. Sessions are ordered by their identifiers, and so by the
/// millisecond of their creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The newest session comes first.
    #[default]
    NewestFirst,
    /// The oldest session comes first.
    OldestFirst,
}

/// The filters that no index serves. A session must pass all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// The OAuth client.
    pub client_id: Option<ClientId>,
    /// The policy.
    pub policy: Option<PolicyName>,
    /// The party that created the session.
    pub created_by: Option<Who>,
    /// The reason for which the session ended.
    pub end_reason: Option<EndReason>,
    /// The period in which the session ended or expired.
    pub ended: Period,
    /// The network that the address of the device belongs to.
    pub network: Option<IpNet>,
}

impl SessionFilter {
    /// Returns whether every session passes.
    pub const fn is_empty(&self) -> bool {
        self.client_id.is_none()
            && self.policy.is_none()
            && self.created_by.is_none()
            && self.network.is_none()
            && !self.concerns_the_end()
    }

    /// Returns whether only sessions that are over can pass.
    pub const fn concerns_the_end(&self) -> bool {
        self.end_reason.is_some() || !self.ended.is_unlimited()
    }
}

/// A search for sessions of one tenant.
#[derive(Clone, Debug, Default)]
pub struct SessionSearch {
    /// The tenant of the sessions.
    pub tenant: Tenant,
    /// The subject of the sessions; none for the sessions of all subjects.
    pub subject: Option<Subject>,
    /// The identifier of the device of the sessions; none for the sessions of all devices.
    pub device_id: Option<DeviceId>,
    /// True for live sessions, false for those that are over, none for both. An expired session
    /// counts as over once its expiry has been recorded.
    pub live: Option<bool>,
    /// The period in which the sessions were created, by the milliseconds of their identifiers.
    pub created: Period,
    /// The filters that no index serves.
    pub filter: SessionFilter,
    /// The order of the sessions.
    pub order: Order,
}

impl SessionSearch {
    /// Returns the device by which an index finds the sessions. The sessions of a subject are found
    /// by the subject, because a quota may limit their number. That of a device has no limit.
    pub fn indexed_device(&self) -> Option<&DeviceId> {
        self.device_id.as_ref().filter(|_| self.subject.is_none())
    }

    /// Returns the device with which each session that an index finds is compared.
    pub fn compared_device(&self) -> Option<&DeviceId> {
        self.device_id.as_ref().filter(|_| self.subject.is_some())
    }

    /// Returns whether sessions that an index finds may fail a condition, apart from those that
    /// have expired but are not marked yet.
    pub fn is_filtered(&self) -> bool {
        !self.filter.is_empty() || self.compared_device().is_some()
    }
}

/// One read of a search for sessions.
#[derive(Clone, Debug)]
pub struct SessionQuery {
    /// The search.
    pub search: SessionSearch,
    /// The instant for which the query asks whether a session is live.
    pub now: Timestamp,
    /// The session after which the search goes on; none to begin.
    pub after: Option<SessionId>,
    /// The largest number of sessions in the answer. A count has no such limit.
    pub limit: i64,
}

impl SessionQuery {
    /// Returns the values of the column `is_over` of the sessions, in the order in which they must
    /// be read. A session that ends between two reads is found twice; in the other order, it might
    /// not be found at all.
    pub const fn is_over(&self) -> &'static [bool] {
        match self.search.live {
            Some(true) => &[false],
            Some(false) => &[true],
            None => &[false, true],
        }
    }

    /// Returns the limits of the identifiers that the rest of the search looks at. The search goes
    /// on behind `self.after`, so one of the limits is that session.
    pub fn range(&self) -> Range {
        let from = self.search.created.from.map(|from| from.minus(Duration::from_millis(1)));
        let after_start = from.map(SessionId::last_of_millisecond);
        let before_end = self.search.created.until.map(SessionId::first_of_millisecond);
        match self.search.order {
            Order::NewestFirst => {
                let below = [before_end, self.after].into_iter().flatten().min();
                Range { above: after_start, below }
            }
            Order::OldestFirst => {
                let above = [after_start, self.after].into_iter().flatten().max();
                Range { above, below: before_end }
            }
        }
    }

    /// Returns the session up to which every list has been read. `ends` has the last session that
    /// was read of each list, or none for a list that was read to its end.
    pub fn read_up_to(
        &self,
        ends: impl IntoIterator<Item = Option<SessionId>>,
    ) -> Option<SessionId> {
        let ends = ends.into_iter().flatten();
        match self.search.order {
            Order::NewestFirst => ends.max(),
            Order::OldestFirst => ends.min(),
        }
    }

    /// Merges lists that were read one after the other, and that hold all matching sessions up to
    /// `end`, or as many as the query asks for. If a session is in several lists, the last one is
    /// kept, because it was read later.
    pub fn part(
        &self,
        lists: Vec<Vec<Session>>,
        end: Option<SessionId>,
    ) -> Part<Vec<Session>, SessionId> {
        let by_id: BTreeMap<SessionId, Session> =
            lists.into_iter().flatten().map(|session| (session.id, session)).collect();
        let limit = usize::try_from(self.limit).unwrap_or_default();
        let found: Vec<_> = match self.search.order {
            Order::NewestFirst => by_id.into_values().rev().take(limit).collect(),
            Order::OldestFirst => by_id.into_values().take(limit).collect(),
        };
        let is_full = found.len() >= limit;
        let last = found.last().filter(|_| is_full).map(|session| session.id).or(end);
        Part { found, last }
    }
}

/// Limits of identifiers of sessions. The limits themselves do not belong to the range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The lower limit, if there is one.
    pub above: Option<SessionId>,
    /// The upper limit, if there is one.
    pub below: Option<SessionId>,
}

/// The part of a search that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Part<Rows, Place> {
    /// The rows that match, or their number.
    pub found: Rows,
    /// The last row that was looked at, if there may be further ones.
    pub last: Option<Place>,
}

/// The place of a record in the audit. Records are ordered by their time, and then by their
/// identifier.
pub type AuditPlace = (Timestamp, AuditId);

/// A search for records of the audit. The newest record comes first.
#[derive(Clone, Debug, Default)]
pub struct AuditSearch {
    /// The tenant of the records; none for the records of all tenants, and those without a tenant.
    pub tenant: Option<Tenant>,
    /// The subject, which belongs to that tenant.
    pub subject: Option<Subject>,
    /// The session.
    pub session_id: Option<SessionId>,
    /// The party that acted.
    pub caller: Option<Who>,
    /// The action.
    pub action: Option<AuditAction>,
    /// The period of the actions.
    pub at: Period,
}

/// One read of a search for records of the audit.
#[derive(Clone, Debug)]
pub struct AuditQuery {
    /// The search.
    pub search: AuditSearch,
    /// The record after which the search goes on; none to begin.
    pub after: Option<AuditPlace>,
    /// The largest number of records in the answer.
    pub limit: i64,
}

impl AuditQuery {
    /// Returns whether the search has filters that no index serves.
    pub const fn is_filtered(&self) -> bool {
        let AuditSearch { tenant, subject, caller, action, .. } = &self.search;
        let is_of_tenant = tenant.is_some() && subject.is_none();
        is_of_tenant || caller.is_some() || action.is_some()
    }

    /// Returns the part of the search that was read up to `end`, or up to as many records as the
    /// query asks for.
    pub fn part(
        &self,
        found: Vec<AuditEntry>,
        end: Option<AuditPlace>,
    ) -> Part<Vec<AuditEntry>, AuditPlace> {
        let is_full = found.len() >= usize::try_from(self.limit).unwrap_or_default();
        let last =
            found.last().filter(|_| is_full).map(|entry| (entry.record.at, entry.id)).or(end);
        Part { found, last }
    }
}
