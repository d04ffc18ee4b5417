//! Tests that the torture runs find broken rules of the protocol. If one rule is broken, a few runs
//! of a profile must show a token that is active after its revocation was acknowledged. The same
//! profile passes if no rule is broken.
//!
//! The service itself has no switch that breaks a rule. These tests break rules from outside: they
//! change what the renewals of all replicas request and receive (`altered.rs`), they alter the
//! database by SQL statements, or they change what a replica and a watcher send to each other
//! (`watch_routes.rs`). The rules of watchers are broken by the watchers (`watcher/altered.py`).

use std::{env, sync::Arc};

use countersign_test_support::{cluster::RULE, postgres_server::Server, workload::checker::Rule};

use crate::{
    fleet::PLACES,
    profiles::{LEFT, Profile, Settings, WATCHED},
    run::{Report, run},
    runs::{print_violations, server},
    rust_watcher::rust,
    watch_process::python,
    watch_routes::Broken,
    watchers::{Plan, REPEAT, good},
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

const MUTANTS: [Mutant; 9] = [
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
    Mutant {
        name: "report-without-watchers",
        profile: "watched",
        settings: &[(RULE, "report-without-watchers")],
        sql: "",
    },
    Mutant {
        name: "leave-before-leases",
        profile: "left",
        settings: &[(RULE, "leave-before-leases")],
        sql: "",
    },
];

/// A rule that is broken by one watcher, or by the replicas towards one watcher.
struct WatchMutant {
    name: &'static str,
    breach: Breach,
}

enum Breach {
    /// Replicas break a rule towards a watcher in Rust.
    Replicas(Broken),
    /// A watcher in Python breaks this rule.
    Watcher(&'static str),
}

impl WatchMutant {
    fn plan(&self) -> Plan {
        match self.breach {
            Breach::Replicas(broken) => Plan { program: rust(REPEAT), broken: Some(broken) },
            Breach::Watcher(rule) => Plan { program: python(rule), broken: None },
        }
    }
}

const fn by_replicas(name: &'static str, broken: Broken) -> WatchMutant {
    WatchMutant { name, breach: Breach::Replicas(broken) }
}

const fn by_watcher(name: &'static str, rule: &'static str) -> WatchMutant {
    WatchMutant { name, breach: Breach::Watcher(rule) }
}

/// One run has a watcher for each of these.
const WATCH_MUTANTS: [WatchMutant; 9] = [
    by_replicas("watch-entries-after-lease", Broken::LeaseBeforeEntries),
    by_replicas("watch-longer-lease", Broken::LongerLease),
    by_replicas("watch-ended-stream-forgotten", Broken::EndedStreamForgotten),
    by_replicas("watch-gap-after-resume", Broken::Gap),
    by_replicas("watch-foreign-cursor", Broken::ForeignCursor),
    by_watcher("watcher-lease-from-arrival", "lease-from-arrival"),
    by_watcher("watcher-lease-before-entries", "lease-before-entries"),
    by_watcher("watcher-lease-kept-on-reset", "lease-kept-on-reset"),
    by_watcher("watcher-cursor-kept-on-reset", "cursor-kept-on-reset"),
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
    let first = env::var("COUNTERSIGN_TORTURE_SEED")
        .map_or(0, |seed| seed.parse().expect("the seed is a number"));
    let mut survivors = vec![];
    for Mutant { name, profile, settings, sql } in MUTANTS {
        if !is_chosen(name) {
            continue;
        }
        // Only the rules of decision 34 need watchers.
        let is_watched = [WATCHED, LEFT].iter().any(|watched| watched.name == profile);
        let watchers = if is_watched { good(2, REPEAT) } else { vec![] };
        let mut found = None;
        for seed in (first..).take(RUNS) {
            let settings = Settings::from(settings);
            let report =
                run(&server, Profile::named(profile), seed, &settings, sql, &watchers).await;
            println!("{name}: {report}");
            if active_after_revoked(&report).next().is_some() {
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
    survivors.extend(watch_survivors(&server, first).await);
    assert_eq!(survivors, [""; 0], "not found within {RUNS} runs");
}

/// Returns whether a mutant is to be looked for: if the environment names a part of its name, or
/// nothing.
fn is_chosen(name: &str) -> bool {
    env::var("COUNTERSIGN_TORTURE_MUTANT").map_or(true, |part| name.contains(&part))
}

/// Returns the replicas and watchers that found a token active after its revocation was
/// acknowledged.
fn active_after_revoked(report: &Report) -> impl Iterator<Item = usize> {
    let violations = report.violations.iter();
    violations
        .filter(|violation| violation.rule == Rule::ActiveAfterRevoked)
        .filter_map(|violation| violation.replica)
}

/// Makes runs with a watcher for each mutant that was not found yet. The last two watchers break no
/// rule. Returns the mutants that no run finds.
async fn watch_survivors(server: &Arc<Server>, first: u64) -> Vec<&'static str> {
    let mut hidden: Vec<_> =
        WATCH_MUTANTS.into_iter().filter(|mutant| is_chosen(mutant.name)).collect();
    for seed in (first..).take(RUNS) {
        if hidden.is_empty() {
            break;
        }
        let plans = [hidden.iter().map(WatchMutant::plan).collect(), good(2, REPEAT)].concat();
        let report = run(server, WATCHED, seed, &vec![], "", &plans).await;
        println!("{report}");
        let found: Vec<_> = active_after_revoked(&report).collect();
        let mutants = PLACES..PLACES + hidden.len();
        if !found.iter().all(|watcher| mutants.contains(watcher)) {
            print_violations(&report);
            panic!("a watcher without a broken rule accepts what was revoked");
        }
        let mut numbers = mutants;
        hidden.retain(|mutant| {
            let number = numbers.next();
            let times = found.iter().filter(|watcher| Some(**watcher) == number).count();
            println!("{} is found {times} times in run {}", mutant.name, seed - first + 1);
            times == 0
        });
    }
    hidden.into_iter().map(|mutant| mutant.name).collect()
}
