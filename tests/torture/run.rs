//! A run: replicas on a fresh database, watchers, callers and faults, and finally the verdict of the
//! checker.

use std::{fmt, sync::Arc, time::Duration};

use countersign_test_support::{
    cluster::in_time,
    ledger::Dice,
    postgres_server::Server,
    workload::asking::Asker,
    workload::callers::Callers,
    workload::checker::{Revocations, Violation, check},
    workload::finishing::finish,
    workload::history::{Answer, Ask, Call, Fault, History},
    workload::recorder::Recorder,
};
use futures_util::future::join_all;
use tokio::{
    join,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use crate::{
    database::Database,
    faults::schedule,
    fleet::{Fleet, PERMANENT, PLACES},
    profiles::{Profile, Settings},
    watchers::{Plan, Watchers},
};

/// The last faults of watchers begin so long before the end, or they would make the run longer.
const LAST_LOCAL_FAULT: Duration = Duration::from_millis(1200);

/// The result of a run.
pub struct Report {
    pub profile: &'static str,
    /// The longest time that an acknowledgement waits for a replica that does not report.
    pub wait: Duration,
    pub seed: u64,
    pub figures: Figures,
    pub violations: Vec<Violation>,
    pub faults: Vec<Fault>,
    /// The last lines that the replicas and the watchers have logged.
    pub logs: Vec<String>,
}

/// The counts and times of a run.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub calls: usize,
    pub creates: usize,
    pub refreshes: usize,
    pub validations: usize,
    /// The number of calls that were answered.
    pub answered: usize,
    /// The number of answers for tokens whose revocation had been acknowledged before.
    pub checked: usize,
    /// The number of checks by watchers that had a lease.
    pub local_validations: usize,
    /// The number of such checks of tokens whose revocation had been acknowledged before.
    pub local_checked: usize,
    pub revocations: usize,
    /// The times that acknowledgements took, sorted.
    pub acknowledged: Vec<Duration>,
    /// The time from the end of the last fault until every replica had answered for every token.
    pub recovery: Duration,
}

impl Figures {
    fn of(history: &History) -> Self {
        let revocations = Revocations::of(history);
        let mut figures = Self::default();
        for call in &history.calls {
            if call.replica >= PLACES {
                figures.add_local(&revocations, call);
                continue;
            }
            figures.calls += 1;
            figures.answered += usize::from(call.answer.is_known());
            match &call.ask {
                Ask::Create => figures.creates += 1,
                Ask::Refresh { .. } => figures.refreshes += 1,
                Ask::Validate(token) => {
                    figures.validations += 1;
                    let was_revoked = revocations.revoked(*token, call).is_some();
                    figures.checked += usize::from(was_revoked && call.answer.is_known());
                }
                Ask::Revoke(_) => {
                    figures.revocations += 1;
                    if call.answer == Answer::Done {
                        figures.acknowledged.push(call.end - call.begin);
                    }
                }
            }
        }
        figures.acknowledged.sort_unstable();
        figures
    }

    /// Adds equal answers of a watcher.
    fn add_local(&mut self, revocations: &Revocations<'_>, call: &Call) {
        if !call.answer.is_known() {
            return;
        }
        self.local_validations += call.count;
        // If the token is inactive, these are the times of the first check. So all were checks of a
        // revoked token if this one was.
        if let Ask::Validate(token) = &call.ask
            && revocations.revoked(*token, call).is_some()
        {
            self.local_checked += call.count;
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { profile, wait, seed, figures, violations, faults, .. } = self;
        let Figures { creates, refreshes, validations, checked, revocations, acknowledged, .. } =
            figures;
        let median = acknowledged.get(acknowledged.len() / 2).copied().unwrap_or_default();
        let longest = acknowledged.last().copied().unwrap_or_default();
        let waited = acknowledged.iter().filter(|taken| **taken >= *wait).count();
        write!(
            f,
            "seed {seed} ({profile}): {} faults; {creates} creates, {refreshes} refreshes, \
             {validations} validations, {checked} of them of revoked tokens, {revocations} \
             revocations, {} acknowledged in {median:.1?}, at most {longest:.1?}, {waited} after \
             W or more; {} calls failed; {} local validations, {} of revoked tokens; recovered in \
             {:.1?}; {} violations",
            faults.len(),
            acknowledged.len(),
            figures.calls - figures.answered,
            figures.local_validations,
            figures.local_checked,
            figures.recovery,
            violations.len(),
        )
    }
}

/// Makes one run of a profile. `settings` are added to those of the profile, and `sql` is executed
/// on the empty database. `plans` are the watchers.
pub async fn run(
    server: &Arc<Server>,
    profile: &'static Profile,
    seed: u64,
    settings: &Settings,
    sql: &str,
    plans: &[Plan],
) -> Report {
    let database = match profile.has_standby() {
        true => Database::replicated().await,
        false => Database::fresh(server, "torture").await,
    };
    database.alter(sql).await;
    let database = Arc::new(database);
    let mut dice = Dice(seed);
    let recorder = Arc::new(Recorder::new(History {
        tokens_expire: profile.expires,
        skew: profile.skew(),
        ..Default::default()
    }));
    let settings = (0..).map(|place| [profile.settings(place), settings.clone()].concat());
    let settings = settings.take(PLACES).collect();
    let broken: Vec<_> = plans.iter().map(|plan| plan.broken).collect();
    let fleet = Fleet::new(database.clone(), recorder.clone(), settings, &broken).await;
    let fleet = Arc::new(fleet);
    let mut watchers = Watchers::start(&fleet, plans);
    in_time("all replicas serve", join_all((0..PERMANENT).map(|place| fleet.start(place)))).await;

    let asker = Arc::new(Asker {
        fleet: fleet.clone(),
        recorder: recorder.clone(),
        tokens_expire: profile.expires,
    });
    let callers = Callers::start(&asker, &mut dice.split());
    watchers.ask(&mut dice.split()).await;
    let striking = strike(&fleet, &watchers, &database, profile, &mut dice);
    in_time("faults come to an end", striking).await;
    let healed = recorder.now();
    let held = in_time("callers come to their end", callers.stop()).await;
    recorder.set_healed((0..PERMANENT).collect(), watchers.numbers(), fleet.fallen().await);
    let ((), local_logs) = join!(finish(&asker, held, &mut dice), watchers.finish());
    let recovery = recorder.now() - healed;

    let history = recorder.finish();
    let violations = check(&history);
    let logs = [fleet.logs().await, local_logs].concat();
    let figures = Figures { recovery, ..Figures::of(&history) };
    Report {
        profile: profile.name,
        wait: profile.wait(),
        seed,
        figures,
        violations,
        faults: history.faults,
        logs,
    }
}

/// Injects faults, into each place, each watcher and the database independently.
async fn strike(
    fleet: &Arc<Fleet>,
    watchers: &Watchers,
    database: &Arc<Database>,
    profile: &'static Profile,
    dice: &mut Dice,
) {
    let end = Instant::now() + profile.span();
    let mut lanes = JoinSet::new();
    for place in 0..PLACES {
        let (fleet, dice) = (fleet.clone(), dice.split());
        let kinds = if place < PERMANENT { profile.replicas } else { profile.visitor };
        lanes.spawn(async move {
            for fault in schedule(dice, kinds, profile.calm) {
                if timeout_at(end, sleep(fault.calm)).await.is_err() {
                    break;
                }
                let from = fleet.recorder.now();
                fault.strike(&fleet, place).await;
                fleet.recorder.fault(from, format!("replica {place}: {fault:?}"));
            }
        });
    }
    for watcher in watchers.all() {
        let (watcher, dice) = (watcher.clone(), dice.split());
        lanes.spawn(async move {
            for fault in schedule(dice, profile.watchers, profile.calm) {
                if timeout_at(end - LAST_LOCAL_FAULT, sleep(fault.calm)).await.is_err() {
                    break;
                }
                let from = watcher.fleet.recorder.now();
                fault.strike(&watcher).await;
                let what = format!("watcher {}: {fault:?}", watcher.number());
                watcher.fleet.recorder.fault(from, what);
            }
        });
    }
    let (fleet, database, dice) = (fleet.clone(), database.clone(), dice.split());
    lanes.spawn(async move {
        for fault in schedule(dice, profile.database, profile.calm * 2) {
            if timeout_at(end, sleep(fault.calm)).await.is_err() {
                break;
            }
            let from = fleet.recorder.now();
            fault.strike(&fleet, &database).await;
            fleet.recorder.fault(from, format!("database: {fault:?}"));
        }
    });
    // A profile without faults must last as long as the others.
    sleep_until(end).await;
    lanes.join_all().await;
}
