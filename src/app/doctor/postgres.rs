//! Checks a PostgreSQL database.

use std::time::Duration;

use tokio::time::timeout;

use super::{DatabaseFindings, TIMEOUT, finding::Finding, schema};
use crate::{
    app::database::postgres_options,
    clock::Clock,
    config::{Config, database::PostgresUrl},
    domain::time::Timestamp,
    store::postgres::{
        connect::NO_WRITES,
        inspect::{Inspector, Replication},
        open_error::OpenError,
    },
};

const CHECK: &str = "database";
const OTHERWISE: &str = "start the server, or correct database_url or the password \
                         (docs/postgresql.md)";
const NOT_READ: &str = "give the role of the service the rights in docs/postgresql.md (Roles and \
                        rights), and see the log of the server";

/// Checks the server and the content of a database.
pub async fn check(config: &Config, url: &PostgresUrl, clock: &dyn Clock) -> DatabaseFindings {
    let mut result = DatabaseFindings::default();
    if timeout(TIMEOUT, read(config, url, clock, &mut result)).await.is_err() {
        result.findings.push(Finding::fail(
            CHECK,
            format!("{} does not answer", config.database),
            "find out what the server waits for (pg_stat_activity), or restart it",
        ));
    }
    result
}

async fn read(
    config: &Config,
    url: &PostgresUrl,
    clock: &dyn Clock,
    result: &mut DatabaseFindings,
) {
    let mut inspector = match Inspector::connect(&postgres_options(config, url)).await {
        Ok(inspector) => inspector,
        Err(error) => {
            result.findings.push(unusable(&error));
            return;
        }
    };
    result.findings.push(check_version(config, &mut inspector).await);
    result.findings.push(check_clock(config, &mut inspector, clock).await);
    result.findings.push(check_replication(&mut inspector).await);
    let pending = match inspector.pending().await {
        Ok(pending) => pending,
        Err(error) => {
            result.findings.push(Finding::error("schema", &error, NOT_READ));
            return;
        }
    };
    result.findings.push(schema::judge(config, &pending.versions, pending.is_empty));
    if pending.versions.is_empty() {
        result.ring = Some(inspector.ring().await);
        result.register = Some(inspector.register().await);
    }
}

/// Describes why a database cannot be used.
fn unusable(error: &OpenError) -> Finding {
    match error {
        OpenError::Connect { problem, .. } if problem.contains(NO_WRITES) => Finding::fail(
            CHECK,
            error.to_string(),
            "name the primary in database_url (with the standby or alone), or promote the standby; \
             if the server is the primary, set default_transaction_read_only to off",
        ),
        _ => Finding::error(CHECK, error, OTHERWISE),
    }
}

async fn check_version(config: &Config, inspector: &mut Inspector) -> Finding {
    let version = match inspector.version().await {
        Ok(version) => version,
        Err(error) => return Finding::error(CHECK, &error, OTHERWISE),
    };
    let finding = format!("{} can be reached (PostgreSQL {version})", config.database);
    match inspector.exposure() {
        Some(exposure) => Finding::warn(
            CHECK,
            format!("{finding}, but {exposure}"),
            "use sslmode=verify-full in database_url (docs/postgresql.md)",
        ),
        None => Finding::ok(CHECK, finding),
    }
}

/// Compares the clock of this machine with the clock of the database.
async fn check_clock(config: &Config, inspector: &mut Inspector, clock: &dyn Clock) -> Finding {
    let before = clock.now();
    let database = inspector.now().await;
    let after = clock.now();
    match database {
        Ok(database) => judge_clocks(before, database, after, config.lease.max_clock_skew),
        Err(error) => Finding::error("clock", &error, NOT_READ),
    }
}

/// Compares the clocks. The database read its clock at some instant at which this machine's clock
/// was between `before` and `after`. The service stops validating by the same rule.
fn judge_clocks(
    before: Timestamp,
    database: Timestamp,
    after: Timestamp,
    most: Duration,
) -> Finding {
    const CHECK: &str = "clock";
    let (ahead, behind) = (before.since(database), database.since(after));
    let (difference, side) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let limit = humantime::format_duration(most);
    if difference.is_zero() {
        let finding = format!("the clock agrees with the one of the database (at most {limit})");
        return Finding::ok(CHECK, finding);
    }
    let millis = difference.as_millis();
    let finding = format!("the clock is {millis} ms {side} the one of the database");
    let remedy = "synchronize the clocks of this machine and of the database server (NTP)";
    match () {
        () if difference > most => Finding::fail(
            CHECK,
            format!("{finding}, and lease.max_clock_skew is {limit}: nothing is validated here"),
            remedy,
        ),
        () if difference > most / 2 => Finding::warn(
            CHECK,
            format!("{finding}, which is more than half of lease.max_clock_skew ({limit})"),
            remedy,
        ),
        () => Finding::ok(CHECK, format!("{finding} (at most {limit})")),
    }
}

async fn check_replication(inspector: &mut Inspector) -> Finding {
    match inspector.replication().await {
        Ok(replication) => judge_replication(&replication),
        Err(error) => Finding::error("replication", &error, NOT_READ).as_warning(),
    }
}

/// Judges whether a failover could lose what was acknowledged.
fn judge_replication(replication: &Replication) -> Finding {
    const CHECK: &str = "replication";
    const REMEDY: &str = "configure synchronous standbys if the server can fail over \
                          (docs/guarantees.md#high-availability)";
    let Replication { is_standby, synchronous_names, synchronous, connected } = replication;
    let connected = match connected {
        1 => "1 standby is connected".to_owned(),
        number => format!("{number} standbys are connected"),
    };
    if *is_standby {
        return Finding::warn(CHECK, "the server is a standby", "name the primary in database_url");
    }
    let server = "the server is the primary";
    match synchronous {
        _ if synchronous_names.is_empty() => Finding::warn(
            CHECK,
            format!(
                "{server}, and commits wait for no standby ({connected}): a failover may lose \
                 revocations"
            ),
            REMEDY,
        ),
        Some(0) => Finding::warn(
            CHECK,
            format!(
                "{server}, and no standby that commits wait for is connected \
                 (synchronous_standby_names is {synchronous_names:?}; {connected}): writes may hang"
            ),
            "start the standbys that synchronous_standby_names names \
             (docs/guarantees.md#high-availability)",
        ),
        Some(number) => Finding::ok(
            CHECK,
            format!("{server}, and commits wait for standbys ({connected}, {number} synchronous)"),
        ),
        None => Finding::ok(
            CHECK,
            format!(
                "{server}, and commits wait for standbys ({connected}; this role may not see \
                 which of them are synchronous)"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Status, *};

    #[test]
    fn clocks_may_differ_by_the_configured_skew() {
        let at = |millis: i64| Timestamp::from_micros(1_800_000_000_000_000 + millis * 1000);
        let most = Duration::from_secs(5);
        // The database was asked at 0 ms, and its answer came at 10 ms.
        let judge = |database| judge_clocks(at(0), at(database), at(10), most);
        for (database, status) in [
            (0, Status::Ok),
            (10, Status::Ok),
            (2_510, Status::Ok),
            (2_511, Status::Warn),
            (5_010, Status::Warn),
            (5_011, Status::Fail),
            (-2_500, Status::Ok),
            (-2_501, Status::Warn),
            (-5_001, Status::Fail),
        ] {
            assert_eq!(judge(database).status, status, "{database}");
        }
        assert!(judge(-5_001).finding.contains("5001 ms ahead of"));
        assert!(judge(5_011).finding.contains("5001 ms behind"));
    }

    #[test]
    fn a_primary_without_synchronous_standbys_is_a_warning_that_names_the_guide() {
        let judge = |names: &str, synchronous, connected| {
            judge_replication(&Replication {
                is_standby: false,
                synchronous_names: names.to_owned(),
                synchronous,
                connected,
            })
        };
        for finding in [judge("", Some(0), 0), judge("", None, 2), judge("*", Some(0), 0)] {
            assert_eq!(finding.status, Status::Warn);
            assert!(finding.remedy.unwrap().contains("docs/guarantees.md#high-availability"));
        }
        assert_eq!(judge("*", Some(1), 1).status, Status::Ok);
        assert_eq!(judge("*", None, 1).status, Status::Ok, "the role may not see the standbys");
    }
}
