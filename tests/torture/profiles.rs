//! The profiles of runs: which faults happen, how often, and under which settings. The first
//! profile has most faults, and each of the others exercises some rule of the protocol.

use std::time::Duration;

use countersign_test_support::cluster::WALL_CLOCK;

use crate::{
    faults::{Disaster, Kind, WatcherKind},
    fleet::PERMANENT,
};

/// The duration of a lease, and the longest time that an acknowledgement waits for a replica that
/// does not report. Both are short, so that much happens in little time.
pub const LEASE: Duration = Duration::from_millis(600);
pub const WAIT: Duration = Duration::from_millis(701);

/// The margin of leases.
pub const MARGIN: Duration = Duration::from_millis(100);

/// The durations for runs in which replicas must still have their leases when the database is back.
/// They are shorter than the deadlines of most callers.
pub const LONG_LEASE: Duration = Duration::from_secs(2);
pub const LONG_WAIT: Duration = Duration::from_millis(2104);

/// The settings for `LEASE` and `WAIT`.
const LEASES: &[(&str, &str)] = &[
    ("COUNTERSIGN_LEASE__DURATION", "600ms"),
    ("COUNTERSIGN_LEASE__RENEWAL", "150ms"),
    ("COUNTERSIGN_LEASE__MARGIN", "100ms"),
];

/// The settings for `LONG_LEASE` and `LONG_WAIT`.
const LONG_LEASES: &[(&str, &str)] = &[
    ("COUNTERSIGN_LEASE__DURATION", "2s"),
    ("COUNTERSIGN_LEASE__RENEWAL", "500ms"),
    ("COUNTERSIGN_LEASE__MARGIN", "100ms"),
];

/// The settings of all replicas in all runs.
const SETTINGS: &[(&str, &str)] = &[
    // After a lapse all waiting batches are released at once. The machine runs four replicas of a
    // slow build, so they would shed load, which is not under test here.
    ("COUNTERSIGN_LIMITS__MAX_BATCHES", "10000"),
    ("COUNTERSIGN_DATABASE__CONNECT_TIMEOUT", "1s"),
    ("COUNTERSIGN_DATABASE__ACQUIRE_TIMEOUT", "1s"),
    ("COUNTERSIGN_DATABASE__STATEMENT_TIMEOUT", "2s"),
    ("COUNTERSIGN_SHUTDOWN__DRAIN", "1s"),
    ("COUNTERSIGN_POLICIES__DEFAULT__MAX_SESSIONS_PER_SUBJECT", "0"),
    ("COUNTERSIGN_POLICIES__STRICT__REFRESH_GRACE", "0s"),
    ("COUNTERSIGN_POLICIES__SUPERSEDING__ON_REFRESH", "revoke_access_token"),
];

/// Settings by which tokens expire during the run, and the sweeper runs every second.
const EXPIRING: &[(&str, &str)] = &[
    ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "3s"),
    ("COUNTERSIGN_POLICIES__DEFAULT__REFRESH_GRACE", "1s"),
    ("COUNTERSIGN_POLICIES__STRICT__ACCESS_TOKEN_TTL", "5s"),
    ("COUNTERSIGN_SWEEPER__SCHEDULE", "* * * * * *"),
];

/// The number of seconds by which the wall clock of each place is ahead. The service tolerates
/// these differences.
const CLOCKS: [&str; PERMANENT + 1] = ["-2", "2", "0", "1"];

/// The settings of a process.
pub type Settings = Vec<(&'static str, &'static str)>;

/// A kind of run.
#[derive(Debug)]
pub struct Profile {
    pub name: &'static str,
    /// The faults of each permanent replica.
    pub replicas: &'static [Kind],
    /// The faults in the place of the visitor.
    pub visitor: &'static [Kind],
    /// The faults of each watcher.
    pub watchers: &'static [WatcherKind],
    pub database: &'static [Disaster],
    /// The longest time between two faults of a place.
    pub calm: Duration,
    /// True if tokens expire and clocks differ.
    pub expires: bool,
}

const NOBODY: &[Kind] = &[];
/// All faults of watchers.
const WATCHERS: &[WatcherKind] = &[
    WatcherKind::Pause,
    WatcherKind::Stall,
    WatcherKind::Silence,
    WatcherKind::Cut,
    WatcherKind::Isolate,
    WatcherKind::Slow,
    WatcherKind::SlowReplies,
    WatcherKind::Kill,
    WatcherKind::SetClock,
    WatcherKind::LoseTime,
];
/// The faults by which a watcher misses revocations while its process keeps its lease.
const CUT_OFF: &[WatcherKind] = &[
    WatcherKind::Stall,
    WatcherKind::Cut,
    WatcherKind::Cut,
    WatcherKind::Cut,
    WatcherKind::Isolate,
    WatcherKind::Isolate,
    WatcherKind::Isolate,
    WatcherKind::SlowReplies,
];
const NOTHING: &[Disaster] = &[];

/// All profiles, in the order in which runs use them.
pub const PROFILES: &[Profile] = &[
    Profile {
        name: "everything",
        replicas: &[
            Kind::Pause,
            Kind::SlowPause,
            Kind::HoldRequests,
            Kind::HoldReplies,
            Kind::Stall,
            Kind::Silence,
            Kind::Cut,
            Kind::Isolate,
            Kind::Slow,
            Kind::SlowReplies,
            Kind::Terminate,
            Kind::Kill,
            Kind::KillRevoking,
            Kind::Restart,
        ],
        visitor: &[Kind::Visit, Kind::VisitAndDie],
        watchers: WATCHERS,
        database: &[Disaster::Terminate, Disaster::Crash],
        calm: Duration::from_millis(1500),
        expires: false,
    },
    Profile {
        name: "late answers",
        replicas: &[
            Kind::SlowPause,
            Kind::HoldReplies,
            Kind::Slow,
            Kind::SlowReplies,
            Kind::SlowReplies,
        ],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: NOTHING,
        calm: Duration::from_millis(1000),
        expires: false,
    },
    Profile {
        name: "lost replicas",
        replicas: &[Kind::Pause, Kind::Stall, Kind::Silence, Kind::Isolate, Kind::KillRevoking],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: NOTHING,
        calm: Duration::from_millis(1500),
        expires: false,
    },
    Profile {
        name: "newcomers",
        replicas: &[Kind::Restart, Kind::Kill, Kind::Slow],
        visitor: &[Kind::Visit, Kind::VisitAndDie],
        watchers: WATCHERS,
        database: NOTHING,
        calm: Duration::from_millis(300),
        expires: false,
    },
    Profile {
        name: "slow commits",
        replicas: &[Kind::Slow],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: &[Disaster::Terminate],
        calm: Duration::from_millis(800),
        expires: false,
    },
    Profile {
        name: "crashes",
        replicas: &[Kind::Terminate, Kind::Cut, Kind::KillRevoking],
        visitor: &[Kind::Visit],
        watchers: WATCHERS,
        database: &[Disaster::Crash],
        calm: Duration::from_millis(1500),
        expires: false,
    },
    Profile {
        name: "clocks",
        replicas: &[Kind::Slow, Kind::Pause],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: NOTHING,
        calm: Duration::from_millis(3000),
        expires: true,
    },
    Profile {
        name: "failover",
        replicas: &[Kind::Slow, Kind::Terminate, Kind::Kill],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: &[Disaster::Terminate, Disaster::FailOver],
        calm: Duration::from_millis(1500),
        expires: false,
    },
    // No replica is killed here, so that the replica that stays with the old primary keeps running.
    Profile {
        name: "replaced primary",
        replicas: &[Kind::Slow],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: &[Disaster::FailOver],
        calm: Duration::from_millis(3000),
        expires: false,
    },
    // No replica is started or paused here, because the guarantee would be weaker then (decision 9,
    // Limits).
    Profile {
        name: "set back",
        replicas: &[Kind::Slow],
        visitor: NOBODY,
        watchers: WATCHERS,
        database: &[Disaster::RestoreDump, Disaster::PutCopyBack],
        calm: Duration::from_millis(1000),
        expires: false,
    },
];

/// The profile that exercises the rules of decision 34. Replicas have no faults, so that revocations
/// are acknowledged soon.
pub const WATCHED: &Profile = &Profile {
    name: "watched",
    replicas: NOBODY,
    visitor: NOBODY,
    watchers: CUT_OFF,
    database: NOTHING,
    calm: Duration::from_millis(1200),
    expires: false,
};

/// The same with replicas that stop, and leave the register.
pub const LEFT: &Profile = &Profile { name: "left", replicas: &[Kind::Restart], ..*WATCHED };

impl Profile {
    /// Returns the profile of this name.
    pub fn named(name: &str) -> &'static Self {
        PROFILES.iter().chain([WATCHED, LEFT]).find(|profile| profile.name == name).unwrap()
    }

    /// Returns whether the database has a standby.
    pub fn has_standby(&self) -> bool {
        self.database.contains(&Disaster::FailOver)
    }

    /// Returns whether the database is set back in a run.
    pub fn is_set_back(&self) -> bool {
        self.database.contains(&Disaster::RestoreDump)
    }

    /// Returns the time during which new faults begin.
    pub fn span(&self) -> Duration {
        Duration::from_secs(if [WATCHED.name, LEFT.name].contains(&self.name) { 6 } else { 10 })
    }

    /// Returns the longest time that an acknowledgement waits for a replica that does not report.
    pub fn wait(&self) -> Duration {
        if self.is_set_back() { LONG_WAIT } else { WAIT }
    }

    /// Returns the settings of the replica in a place.
    pub fn settings(&self, place: usize) -> Settings {
        let leases = if self.is_set_back() { LONG_LEASES } else { LEASES };
        let mut settings = [SETTINGS, leases].concat();
        if self.expires {
            settings.extend(EXPIRING);
            settings.push((WALL_CLOCK, CLOCKS[place]));
        }
        settings
    }

    /// Returns the largest difference between the clocks of two replicas.
    pub fn skew(&self) -> Duration {
        if self.expires { Duration::from_secs(5) } else { Duration::ZERO }
    }
}
