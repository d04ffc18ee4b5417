//! The metrics of the use cases, of what they use, and of the database.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::page::{Page, count};
use crate::{
    authority::{Authority, ready::Ready},
    domain::{
        inactive::InactiveReason,
        key::{KeyPurpose, KeyState},
    },
};

/// Writes these metrics, once there are any.
#[derive(Debug)]
pub struct AuthorityCollector(pub Ready);

impl Collector for AuthorityCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(authority) = self.0.get() else { return Ok(()) };
        let mut page = Page(encoder);
        encode_validations(&mut page, authority)?;
        encode_token_cache(&mut page, authority)?;
        encode_keys(&mut page, authority)?;
        encode_sweeps(&mut page, authority)?;
        encode_cut_offs(&mut page, authority)?;
        encode_sizes(&mut page, authority)?;
        encode_queues(&mut page, authority)?;
        encode_connections(&mut page, authority)
    }
}

fn encode_validations(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let validations = &authority.counts().validations;
    let help = "Tokens that were validated, also for gateways and in batches.";
    let mut family = page.0.encode_descriptor("validations", help, None, MetricType::Counter)?;
    let mut count = |labels: [(&str, &str); 2], count: u64| {
        let mut series = family.encode_family(&labels)?;
        series.encode_counter::<NoLabelSet, _, u64>(&count, None)
    };
    count([("result", "active"), ("reason", "")], validations.active())?;
    InactiveReason::ALL.into_iter().try_for_each(|reason| {
        count([("result", "inactive"), ("reason", reason.as_str())], validations.inactive(reason))
    })
}

fn encode_token_cache(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let cache = authority.verified_tokens().counts();
    page.counter("token_cache_hits", "Tokens whose signature was verified before.", cache.hits)?;
    page.counter("token_cache_misses", "Tokens whose signature had to be verified.", cache.misses)?;
    let help = "Tokens that the cache has dropped to make room for others.";
    page.counter("token_cache_evictions", help, cache.evictions)?;
    page.number("token_cache_tokens", "Tokens in the cache.", count(cache.tokens))?;
    let gauge = ConstGauge::new(cache.bytes);
    page.unit("token_cache", "Memory of the tokens in the cache.", &Unit::Bytes, &gauge)
}

fn encode_keys(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let keys = authority.known_keys();
    let help = "Keys by purpose and state.";
    let mut family = page.0.encode_descriptor("keys", help, None, MetricType::Gauge)?;
    for purpose in KeyPurpose::ALL {
        for state in KeyState::ALL {
            let of_kind =
                keys.iter().filter(|key| key.purpose() == purpose && key.state() == state);
            let labels = [("purpose", purpose.as_str()), ("state", state.as_str())];
            family.encode_family(&labels)?.encode_gauge(&count(of_kind.count()))?;
        }
    }
    let help = "Time at which the active key is to be replaced, in seconds since 1970.";
    let unit = Some(&Unit::Seconds);
    let mut family =
        page.0.encode_descriptor("key_rotation_due_timestamp", help, unit, MetricType::Gauge)?;
    KeyPurpose::ALL.into_iter().try_for_each(|purpose| {
        let Some(due) = authority.next_rotation(purpose) else { return Ok(()) };
        let labels = [("purpose", purpose.as_str())];
        family.encode_family(&labels)?.encode_gauge(&(due.micros() / 1_000_000))
    })
}

fn encode_sweeps(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let sweeps = &authority.counts().sweeps;
    let rows = [
        ("blacklist", &sweeps.revocations),
        ("sessions", &sweeps.sessions),
        ("audit", &sweeps.audit),
    ];
    page.by("table", "swept_rows", "Rows that sweeps of this replica deleted.", None, &rows)?;
    let help = "Refresh tokens of another system that were exchanged, without replays.";
    page.encode("legacy_refresh_tokens", help, &authority.counts().legacy_exchanges)?;
    let help = "Sessions whose expiry was recorded by sweeps of this replica.";
    page.encode("sessions_expired", help, &sweeps.expired)?;
    let help = "End of the last sweep of this replica that did all that was due, in seconds since \
                1970; 0 before the first one.";
    page.unit("sweep_last_success_timestamp", help, &Unit::Seconds, &sweeps.last_success)
}

fn encode_cut_offs(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let cut_offs = &authority.counts().cut_offs;
    let help = "Revocations of many sessions whose sessions this replica is marking as ended.";
    page.encode("revocations_unfinished", help, &cut_offs.unfinished)?;
    let help = "Sessions that this replica has marked as ended after such revocations.";
    page.encode("covered_sessions_ended", help, &cut_offs.ended_sessions)
}

fn encode_sizes(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let Some(sampled) = authority.counts().sizes.load_full() else { return Ok(()) };
    let (sizes, tables) = (&sampled.sizes, || sampled.sizes.tables.iter());
    page.unit("database", "Size of the database.", &Unit::Bytes, &ConstGauge::new(sizes.bytes))?;
    let rows = tables().map(|table| (&*table.table, ConstGauge::new(table.rows)));
    let help = "Rows of a table. PostgreSQL estimates them.";
    page.gauges("table", "table_rows", help, None, rows)?;
    let bytes = tables().filter_map(|table| Some((&*table.table, ConstGauge::new(table.bytes?))));
    page.gauges("table", "table", "Size of a table with its indexes.", Some(&Unit::Bytes), bytes)?;
    let help = "Blacklist rows that have expired and are not deleted yet, at most 100000.";
    page.number("expired_blacklist_rows", help, count(sizes.expired_rows))?;
    let help = "Time since the expiry of the oldest expired blacklist row.";
    page.seconds("expired_blacklist_age", help, sampled.oldest_expired_for)
}

fn encode_queues(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let queues = authority.store_counts().queues;
    let waiting: Vec<_> = queues.iter().map(|queue| (queue.name, &queue.waiting)).collect();
    page.by("queue", "write_queue_depth", "Writes that wait for a batch.", None, &waiting)?;
    let writes: Vec<_> = queues.iter().map(|queue| (queue.name, &queue.writes)).collect();
    page.by("queue", "write_batch_writes", "Writes in a batch.", None, &writes)?;
    let waits = queues.iter().map(|queue| (queue.name, queue.waits.distribution()));
    page.durations("queue", "write_queue_wait", "Time that a write waited for its batch.", waits)?;
    let commits = queues.iter().map(|queue| (queue.name, queue.commits.distribution()));
    let help = "Time that a batch of writes took, with repeated attempts.";
    page.durations("queue", "write_batch_duration", help, commits)
}

fn encode_connections(page: &mut Page<'_>, authority: &Authority) -> fmt::Result {
    let Some(pool) = authority.store_counts().connections else { return Ok(()) };
    let (in_use, idle) = (ConstGauge::new(pool.in_use), ConstGauge::new(pool.idle));
    let help = "Connections to the database by state. SQLite counts those that read.";
    page.by("state", "database_connections", help, None, &[("in_use", &in_use), ("idle", &idle)])?;
    let help = "Operations that wait for a connection to the database.";
    page.number("database_connection_waiting", help, count(pool.waiting))?;
    let help = "How often a connection to the database was asked for.";
    page.counter("database_connection_checkouts", help, pool.checkouts)?;
    let help = "How often an operation waited for a connection to the database, and got one.";
    page.counter("database_connection_waits", help, pool.waits)?;
    let help = "How often an operation got no connection to the database in time.";
    page.counter("database_connection_timeouts", help, pool.timeouts)?;
    let help = "Time that operations have waited for a connection to the database.";
    let counter = ConstCounter::new(pool.waited.as_secs_f64());
    page.unit("database_connection_wait", help, &Unit::Seconds, &counter)
}
