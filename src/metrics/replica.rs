//! The metrics of the replica: its lease, its progress in the feed, and acknowledgements.

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

use super::page::{Page, count};
use crate::revocation::{
    counts,
    replica::{Replica, Standing},
    watchers::Watchers,
};

/// Writes the metrics of the replica.
#[derive(Debug)]
pub struct ReplicaCollector(pub Arc<Replica>);

impl Collector for ReplicaCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (standing, counts) = (self.0.standing(), self.0.counts());
        let mut page = Page(encoder);
        encode_lease(&mut page, &standing, counts)?;
        encode_feed(&mut page, &standing, counts)?;
        encode_register(&mut page, &standing, counts)?;
        encode_acknowledgements(&mut page, &standing, counts)?;
        encode_watchers(&mut page, self.0.watchers())
    }
}

fn encode_lease(page: &mut Page<'_>, standing: &Standing, counts: &counts::Counts) -> fmt::Result {
    page.number(
        "lease_current",
        "1 while there is a lease, so that tokens can be validated here; else 0.",
        u32::from(standing.lease.is_some()),
    )?;
    // The lease of a replica that is alone does not end, and has no remaining time to show.
    let remaining = standing.lease.unwrap_or_default();
    if remaining != Duration::MAX {
        page.seconds("lease_remaining", "Time until the lease ends.", remaining)?;
    }
    if let Some(ago) = standing.renewed_ago {
        page.seconds(
            "lease_renewal_age",
            "Time since a renewal of the lease was last confirmed.",
            ago,
        )?;
    }
    page.by_outcome(
        "lease_renewals",
        "Renewals of the lease.",
        None,
        &[("confirmed", &counts.renewals.confirmed), ("failed", &counts.renewals.failed)],
    )?;
    page.encode(
        "lease_lapses",
        "Times that the lease ended before it was renewed.",
        &counts.lapses,
    )?;
    page.number(
        "lease_waiting_calls",
        "Calls that wait for a renewal, because there is no lease.",
        count(standing.lapsed_calls),
    )
}

fn encode_feed(page: &mut Page<'_>, standing: &Standing, counts: &counts::Counts) -> fmt::Result {
    page.encode(
        "feed_applied_seq",
        "Number of the last revocation in the feed that is known here.",
        &counts.applied,
    )?;
    page.encode(
        "feed_head_seq",
        "Number of the last revocation in the feed, at the last renewal.",
        &counts.head,
    )?;
    page.number(
        "blacklist_entries",
        "Entries of the blacklist in memory.",
        count(standing.blacklist_entries),
    )
}

fn encode_register(
    page: &mut Page<'_>,
    standing: &Standing,
    counts: &counts::Counts,
) -> fmt::Result {
    page.number(
        "other_replicas",
        "Other replicas in the register, at the last renewal.",
        count(standing.others),
    )?;
    page.encode(
        "replicas_removed",
        "Replicas that had stopped without leaving and were removed by this replica.",
        &counts.removals,
    )?;
    page.encode(
        "rejoins",
        "Times that this replica joined again because it had been removed.",
        &counts.rejoins,
    )
}

fn encode_acknowledgements(
    page: &mut Page<'_>,
    standing: &Standing,
    counts: &counts::Counts,
) -> fmt::Result {
    let unacknowledged = count(standing.unacknowledged);
    page.number(
        "unacknowledged_revocations",
        "Revocations that wait until no replica accepts the revoked tokens.",
        unacknowledged,
    )?;
    let outcomes = &counts.acknowledgements;
    let help = "Time from the commit of a revocation until no replica accepts the revoked tokens.";
    page.by_outcome(
        "acknowledgement_duration",
        help,
        Some(&Unit::Seconds),
        &[
            ("everywhere", &outcomes.everywhere),
            ("after_wait", &outcomes.after_wait),
            ("failed", &outcomes.failed),
            ("given_up", &outcomes.given_up),
        ],
    )?;
    let help = "Acknowledged revocations that the database had lost: the guarantee was \
                broken. They were written again.";
    page.encode("guarantee_broken_revocations", help, &counts.lost_revocations)
}

fn encode_watchers(page: &mut Page<'_>, watchers: &Watchers) -> fmt::Result {
    let (open, lag) = watchers.lag();
    page.number(
        "watchers",
        "Processes that verify tokens themselves, connected here.",
        count(open),
    )?;
    page.number(
        "watcher_lag",
        "Feed positions that the slowest watcher has not confirmed yet.",
        count(lag),
    )?;
    let counts = watchers.counts();
    page.encode("watch_leases", "Leases that watchers got.", &counts.leases)?;
    page.encode(
        "watchers_refused",
        "Watchers that were refused, because limits.max_watchers were connected.",
        &counts.refused,
    )?;
    page.encode(
        "watchers_too_slow",
        "Watchers that were disconnected, because they did not keep up.",
        &counts.too_slow,
    )?;
    page.unit(
        "watchers_held_up",
        "Time for which this replica could not report a revocation, because a watcher had not \
         confirmed it.",
        &Unit::Seconds,
        &counts.held_up,
    )
}
