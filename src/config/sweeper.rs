//! `[sweeper]`: the schedule and the limits of the job that deletes expired rows.

use std::{fmt::Display, str::FromStr, time::Duration};

use croner::Cron;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// The section before it is checked.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawSweeper {
    schedule: String,
    batch_size: u32,
    #[serde(with = "super::span")]
    session_retention: Duration,
}

impl Default for RawSweeper {
    fn default() -> Self {
        Self {
            schedule: "* * * * *".to_owned(),
            batch_size: 1000,
            session_retention: Duration::from_secs(30 * 86_400),
        }
    }
}

/// The section, checked.
#[derive(Clone, Debug)]
pub struct Sweeper {
    /// The times at which the sweeper runs, in UTC.
    pub schedule: Cron,
    /// The most rows that the sweeper deletes in one transaction.
    pub batch_size: i64,
    /// The time for which a session's row is kept after the session is over.
    pub session_retention: Duration,
}

/// The largest batch. With a larger one, other writes would have to wait for a long transaction.
const LARGEST_BATCH: u32 = 100_000;

impl Sweeper {
    /// Checks the section.
    pub fn check(raw: &RawSweeper) -> Result<Self, ConfigError> {
        let wrong = |error: &dyn Display| {
            let problem =
                format!("{:?} is not a cron pattern like \"*/5 * * * *\" ({error})", raw.schedule);
            invalid("sweeper.schedule", problem)
        };
        let schedule = Cron::from_str(&raw.schedule).map_err(|error| wrong(&error))?;
        // The parser accepts a list without elements. The search for the next time would then try
        // every minute of thousands of years.
        if raw.schedule.split_whitespace().any(|field| field.split(',').all(str::is_empty)) {
            return Err(wrong(&"a list is empty"));
        }
        if !(1..=LARGEST_BATCH).contains(&raw.batch_size) {
            return Err(invalid(
                "sweeper.batch_size",
                format!("must be from 1 to {LARGEST_BATCH}"),
            ));
        }
        Ok(Self {
            schedule,
            batch_size: raw.batch_size.into(),
            session_retention: raw.session_retention,
        })
    }
}
