//! What a run is made of: which faults come how often, and under which settings. One has
//! everything, and each of the others bears on some rule of the protocol.

use std::time::Duration;

use crate::{
    faults::{Disaster, Kind},
    fleet::PERMANENT,
};

/// How long a lease lasts, and how long an acknowledgement waits for a replica that does not
/// report, at most. Short, so that much happens in little time.
pub const LEASE: Duration = Duration::from_millis(600);
pub const WAIT: Duration = Duration::from_millis(701);

/// The same where replicas are to have their leases still when the database is back. Callers are
/// more patient than that.
pub const LONG_LEASE: Duration = Duration::from_secs(2);
pub const LONG_WAIT: Duration = Duration::from_millis(2104);

/// The settings that say so.
const LEASES: &[(&str, &str)] = &[
    ("COUNTERSIGN_LEASE__DURATION", "600ms"),
    ("COUNTERSIGN_LEASE__RENEWAL", "150ms"),
    ("COUNTERSIGN_LEASE__MARGIN", "100ms"),
];

const LONG_LEASES: &[(&str, &str)] = &[
    ("COUNTERSIGN_LEASE__DURATION", "2s"),
    ("COUNTERSIGN_LEASE__RENEWAL", "500ms"),
    ("COUNTERSIGN_LEASE__MARGIN", "100ms"),
];

/// What all replicas of all runs are told.
const SETTINGS: &[(&str, &str)] = &[
    // After a lapse all batches go on at once, in slow builds of four replicas on a machine: what
    // is too much is not the matter here.
    ("COUNTERSIGN_LIMITS__MAX_BATCHES", "10000"),
    ("COUNTERSIGN_DATABASE__CONNECT_TIMEOUT", "1s"),
    ("COUNTERSIGN_DATABASE__ACQUIRE_TIMEOUT", "1s"),
    ("COUNTERSIGN_DATABASE__STATEMENT_TIMEOUT", "2s"),
    ("COUNTERSIGN_SHUTDOWN__DRAIN", "1s"),
    ("COUNTERSIGN_POLICIES__DEFAULT__MAX_SESSIONS_PER_SUBJECT", "0"),
    ("COUNTERSIGN_POLICIES__STRICT__REFRESH_GRACE", "0s"),
    ("COUNTERSIGN_POLICIES__SUPERSEDING__ON_REFRESH", "revoke_access_token"),
];

/// Tokens that expire while the run lasts, and sweepers that are always at work.
const EXPIRING: &[(&str, &str)] = &[
    ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "3s"),
    ("COUNTERSIGN_POLICIES__DEFAULT__REFRESH_GRACE", "1s"),
    ("COUNTERSIGN_POLICIES__STRICT__ACCESS_TOKEN_TTL", "5s"),
    ("COUNTERSIGN_SWEEPER__SCHEDULE", "* * * * * *"),
];

/// How far the wall clock of each place is from the true time: within what is tolerated.
const CLOCKS: [&str; PERMANENT + 1] = ["-2s", "2s", "0s", "1s"];

/// The settings of a process.
pub type Settings = Vec<(&'static str, &'static str)>;

/// A kind of run.
#[derive(Debug)]
pub struct Profile {
    pub name: &'static str,
    /// What is done to each of the replicas, and to the place of the visitor.
    pub replicas: &'static [Kind],
    pub visitor: &'static [Kind],
    pub database: &'static [Disaster],
    /// Between two faults of a place, at most.
    pub calm: Duration,
    /// Whether tokens expire and clocks differ.
    pub expires: bool,
}

const NOBODY: &[Kind] = &[];
const NOTHING: &[Disaster] = &[];

/// All kinds of runs, in turn.
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
        database: NOTHING,
        calm: Duration::from_millis(1000),
        expires: false,
    },
    Profile {
        name: "lost replicas",
        replicas: &[Kind::Pause, Kind::Stall, Kind::Silence, Kind::Isolate, Kind::KillRevoking],
        visitor: NOBODY,
        database: NOTHING,
        calm: Duration::from_millis(1500),
        expires: false,
    },
    Profile {
        name: "newcomers",
        replicas: &[Kind::Restart, Kind::Kill, Kind::Slow],
        visitor: &[Kind::Visit, Kind::VisitAndDie],
        database: NOTHING,
        calm: Duration::from_millis(300),
        expires: false,
    },
    Profile {
        name: "slow commits",
        replicas: &[Kind::Slow],
        visitor: NOBODY,
        database: &[Disaster::Terminate],
        calm: Duration::from_millis(800),
        expires: false,
    },
    Profile {
        name: "crashes",
        replicas: &[Kind::Terminate, Kind::Cut, Kind::KillRevoking],
        visitor: &[Kind::Visit],
        database: &[Disaster::Crash],
        calm: Duration::from_millis(1500),
        expires: false,
    },
    Profile {
        name: "clocks",
        replicas: &[Kind::Slow, Kind::Pause],
        visitor: NOBODY,
        database: NOTHING,
        calm: Duration::from_millis(3000),
        expires: true,
    },
    Profile {
        name: "failover",
        replicas: &[Kind::Slow, Kind::Terminate, Kind::Kill],
        visitor: NOBODY,
        database: &[Disaster::Terminate, Disaster::FailOver],
        calm: Duration::from_millis(1500),
        expires: false,
    },
    // The replica that stays with it lives on, mostly.
    Profile {
        name: "replaced primary",
        replicas: &[Kind::Slow],
        visitor: NOBODY,
        database: &[Disaster::FailOver],
        calm: Duration::from_millis(3000),
        expires: false,
    },
    // Nobody starts and nobody stands still: what is promised then is less (decision 9, Limits).
    Profile {
        name: "set back",
        replicas: &[Kind::Slow],
        visitor: NOBODY,
        database: &[Disaster::RestoreDump, Disaster::PutCopyBack],
        calm: Duration::from_millis(1000),
        expires: false,
    },
];

impl Profile {
    /// The one of this name.
    #[cfg(feature = "mutants")]
    pub fn named(name: &str) -> &'static Self {
        PROFILES.iter().find(|profile| profile.name == name).unwrap()
    }

    /// Whether the database has a standby.
    pub fn has_standby(&self) -> bool {
        self.database.contains(&Disaster::FailOver)
    }

    /// Returns whether the database is set back.
    pub fn is_set_back(&self) -> bool {
        self.database.contains(&Disaster::RestoreDump)
    }

    /// The most time that an acknowledgement waits for a replica that does not report.
    pub fn wait(&self) -> Duration {
        if self.is_set_back() { LONG_WAIT } else { WAIT }
    }

    /// The settings of a place.
    pub fn settings(&self, place: usize) -> Settings {
        let leases = if self.is_set_back() { LONG_LEASES } else { LEASES };
        let mut settings = [SETTINGS, leases].concat();
        if self.expires {
            settings.extend(EXPIRING);
            if cfg!(feature = "mutants") {
                settings.push(("COUNTERSIGN_WALL_CLOCK_OFFSET", CLOCKS[place]));
            }
        }
        settings
    }

    /// How far the clocks of its replicas differ.
    pub fn skew(&self) -> Duration {
        if self.expires { Duration::from_secs(5) } else { Duration::ZERO }
    }
}
