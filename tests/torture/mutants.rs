//! Tests that the torture runs find broken rules of the protocol. If one rule is broken, a few runs
//! of a profile must show a token that is active after its revocation was acknowledged. The same
//! profile passes if no rule is broken.
//!
//! The service itself has no switch that breaks a rule. These tests break rules from outside: they
//! change what the renewals of all replicas request and receive (`altered.rs`), or they alter the
//! database by SQL statements.

use std::env;

use countersign_test_support::{cluster::RULE, workload::checker::Rule};

use crate::{
    profiles::{Profile, Settings},
    run::run,
    runs::{print_violations, server},
};

/// A broken rule.
struct Mutant {
    name: &'static str,
    /// The profile that exercises the rule.
    profile: &'static str,
    /// The settings that break the rule.
    settings: &'static [(&'static str, &'static str)],
    /// The SQL statements that break the rule.
    sql: &'static str,
}

const MUTANTS: [Mutant; 7] = [
    Mutant {
        name: "deadline-from-reply",
        profile: "late answers",
        // The clocks of the replicas fall behind the clock of the database.
        settings: &[(RULE, "deadline-from-reply"), ("COUNTERSIGN_LEASE__MAX_CLOCK_SKEW", "25s")],
        sql: "",
    },
    Mutant {
        name: "acknowledge-skips-a-member",
        profile: "lost replicas",
        settings: &[(RULE, "acknowledge-skips-a-member")],
        sql: "",
    },
    Mutant {
        name: "load-before-joining",
        profile: "newcomers",
        settings: &[(RULE, "load-before-joining")],
        sql: "",
    },
    Mutant {
        name: "feed-by-bigserial",
        profile: "slow commits",
        settings: &[],
        sql: FEED_BY_BIGSERIAL,
    },
    Mutant {
        name: "renew-by-read",
        profile: "replaced primary",
        settings: &[(RULE, "renew-by-read")],
        sql: RENEW_BY_READ,
    },
    Mutant {
        name: "renew-without-standby",
        profile: "replaced primary",
        settings: &[],
        sql: RENEW_WITHOUT_STANDBY,
    },
    Mutant { name: "purge-at-expiry", profile: "clocks", settings: &[], sql: PURGE_AT_EXPIRY },
];

/// Takes the positions of entries from a sequence, which does not keep the order of commits. The
/// head of the feed is then the last visible position.
const FEED_BY_BIGSERIAL: &str = "
    CREATE SEQUENCE positions START 1000 INCREMENT 1000;
    ALTER TABLE feed_head RENAME TO feed_head_row;
    CREATE VIEW feed_head AS
    SELECT
        id, (SELECT coalesce(max(seq), 0) FROM blacklist) AS seq, timeline, database, ring
    FROM feed_head_row;

    CREATE FUNCTION take_position() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.ring = OLD.ring AND NEW.seq <> OLD.seq THEN
            NEW.seq := nextval('positions');
        ELSE
            NEW.seq := OLD.seq;
            UPDATE feed_head_row SET timeline = NEW.timeline, ring = NEW.ring;
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER take_position INSTEAD OF UPDATE ON feed_head
    FOR EACH ROW EXECUTE FUNCTION take_position()";

/// Writes nothing when a replica renews its row.
const RENEW_BY_READ: &str = "
    ALTER TABLE replicas RENAME TO replica_rows;
    CREATE VIEW replicas AS SELECT * FROM replica_rows;
    CREATE FUNCTION write_nothing() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RETURN NEW;
    END $$;
    CREATE TRIGGER write_nothing INSTEAD OF UPDATE ON replicas
    FOR EACH ROW EXECUTE FUNCTION write_nothing()";

/// Makes the commit of a renewal return without a wait for the standby.
const RENEW_WITHOUT_STANDBY: &str = "
    CREATE FUNCTION wait_for_nobody() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM set_config('synchronous_commit', 'local', true);
        RETURN NULL;
    END $$;
    CREATE TRIGGER wait_for_nobody AFTER UPDATE ON replicas
    FOR EACH ROW EXECUTE FUNCTION wait_for_nobody()";

/// Lets entries expire 65 seconds earlier, as if they had no retention margin and the sweeper's
/// clock were ahead by the largest allowed skew.
const PURGE_AT_EXPIRY: &str = "
    CREATE FUNCTION shorten() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.expires_at := NEW.expires_at - interval '65 seconds';
        RETURN NEW;
    END $$;
    CREATE TRIGGER shorten BEFORE INSERT ON blacklist
    FOR EACH ROW EXECUTE FUNCTION shorten()";

/// A mutant must be found within this number of runs.
const RUNS: usize = 12;

#[ignore = "scripts/test runs it by itself, because it takes minutes"]
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_broken_rule_is_found() {
    let server = server().await;
    let only = env::var("COUNTERSIGN_TORTURE_MUTANT").ok();
    let first = env::var("COUNTERSIGN_TORTURE_SEED")
        .map_or(0, |seed| seed.parse().expect("the seed is a number"));
    let mut survivors = vec![];
    for Mutant { name, profile, settings, sql } in MUTANTS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut found = None;
        for seed in (first..).take(RUNS) {
            let settings = Settings::from(settings);
            let report = run(&server, Profile::named(profile), seed, &settings, sql).await;
            println!("{name}: {report}");
            if report.violations.iter().any(|violation| violation.rule == Rule::ActiveAfterRevoked)
            {
                print_violations(&report);
                found = Some(seed - first + 1);
                break;
            }
        }
        match found {
            Some(runs) => println!("{name} is found in run {runs}"),
            None => survivors.push(name),
        }
    }
    assert_eq!(survivors, [""; 0], "not found within {RUNS} runs");
}
