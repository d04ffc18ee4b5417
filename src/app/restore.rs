//! `countersign backup` and `countersign restore`: copies the database, restores a copy, and
//! revokes again what was revoked after the copy was made.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::fmt::strtime;
use tokio::task::spawn_blocking;

use super::{
    AppError, System,
    audit::{CommandAudit, by_command},
    audit_log::{
        self, ENDED_ALL, LogError, LoggedEnd, LoggedRevocation, LoggedSession, RevocationLog,
    },
    database::{self, make_folders},
    keys::{Masters, about_key, open_keeper},
    settings::settings,
};
use crate::{
    config::{Config, database::DatabaseUrl},
    domain::{
        audit::{AuditAction, AuditRecord},
        cut_off::{Basis, CutOff, CutOffKey, CutOffKind},
        ids::SessionId,
        key::{Key, KeyPurpose, SealedKey},
        policy::LONGEST_ACCESS_TOKEN_TTL,
        revocation::{RETENTION_MARGIN, Revocation, RevocationTarget, Revoked},
        rotation::Rotation,
        search::{SessionQuery, SessionSearch},
        session::{EndReason, Ended},
        text::{Note, Subject, Tenant},
        time::Timestamp,
    },
    keys::{generate, sealing::MasterKeys},
    store::{
        RevocationOutcome, Store, StoreError,
        ring::RingChange,
        sqlite::{
            backup::{self, BackupError, Restoration},
            open,
        },
    },
};

/// A backup or a restore was refused, or failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The SQLite file cannot be copied or replaced.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// A PostgreSQL database is backed up by PostgreSQL's own programs.
    #[error(
        "{database} is a PostgreSQL database, which is backed up by its own programs: run \
         `pg_dump --format=custom --file=FILE` with its URL, or archive its log; \
         docs/operations.md has the steps"
    )]
    BackUpByPostgres {
        /// The database.
        database: String,
    },
    /// A PostgreSQL database is restored by PostgreSQL's own programs.
    #[error(
        "{database} is a PostgreSQL database, which is restored by its own programs: run \
         `pg_restore` or restore the server, and then `countersign restore` without a file"
    )]
    RestoreByPostgres {
        /// The database.
        database: String,
    },
    /// A PostgreSQL database is checked by PostgreSQL's own programs.
    #[error(
        "{database} is a PostgreSQL database, which is checked by its own programs: turn on data \
         checksums, and run `pg_amcheck`"
    )]
    CheckByPostgres {
        /// The database.
        database: String,
    },
    /// A replica still serves from the database.
    #[error(
        "replica {name} ({incarnation}) serves from this database: stop all replicas first, and \
         wait until `countersign replica list` shows none that is live"
    )]
    Serving {
        /// The replica's name.
        name: String,
        /// The replica's identifier.
        incarnation: String,
    },
    /// The log cannot be used.
    #[error("log {path} {source}")]
    Log {
        /// The log.
        path: PathBuf,
        /// The reason.
        source: LogError,
    },
}

/// The sessions that count as ended after the backup was made, and are therefore ended again.
#[derive(Clone, Debug)]
pub enum EndedSince {
    /// No sessions, because it is not known which ones ended.
    Unknown,
    /// The sessions that ended according to the audit records in these logs.
    Logs(Vec<PathBuf>),
    /// All sessions.
    All,
}

/// The options of a restore.
#[derive(Clone, Debug)]
pub struct RestoreOrder {
    /// The backup; `None` if the database has been put back already.
    pub backup: Option<PathBuf>,
    /// True if access tokens issued before the restore are accepted.
    pub accepts_older_tokens: bool,
    /// The sessions that are ended again.
    pub ended_since: EndedSince,
}

/// The outcome of a restore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// The path to which the previous database was moved, if there was one.
    pub aside: Option<PathBuf>,
    /// The number of keys that were revoked. Their tokens are not accepted any more.
    pub keys_revoked: usize,
    /// The number of live sessions that were ended.
    pub sessions_ended: i64,
    /// The number of records of the audit in the logs.
    pub records: usize,
    /// The number of records about single access tokens. These tokens cannot be revoked again,
    /// because a record does not contain the token's identifier.
    pub tokens_left: usize,
}

/// Runs work with files on a thread that may block.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, AppError> {
    let done =
        spawn_blocking(work).await.map_err(|error| AppError::TaskStopped(error.to_string()))?;
    Ok(done.map_err(RestoreError::from)?)
}

/// Copies the database to a file, while services may use it.
pub async fn back_up(config: &Config, backup: &Path) -> Result<(), AppError> {
    let DatabaseUrl::Sqlite(path) = &config.database else {
        return Err(RestoreError::BackUpByPostgres { database: config.database.to_string() }.into());
    };
    database::require_database(config)?;
    let (path, backup) = (path.clone(), backup.to_owned());
    run_blocking(move || backup::back_up(&path, &backup)).await
}

/// Checks the whole database for damage, while services may use it.
pub async fn check_database(config: &Config) -> Result<(), AppError> {
    let DatabaseUrl::Sqlite(path) = &config.database else {
        return Err(RestoreError::CheckByPostgres { database: config.database.to_string() }.into());
    };
    database::require_database(config)?;
    let path = path.clone();
    run_blocking(move || Ok(open::check_whole(&path)?)).await
}

/// Puts a backup in the place of the database, if one is given, and revokes again what was revoked
/// after the backup was made, as far as that is known.
///
/// On SQLite the revocations are written to a copy of the backup, which then becomes the database.
/// If anything fails before that, the database is left as it was.
pub async fn restore(
    config: &Config,
    order: &RestoreOrder,
    system: System,
) -> Result<Restored, AppError> {
    let log = read_logs(order)?;
    let Some(backup) = order.backup.clone() else {
        database::require_database(config)?;
        return revoke_again(config, order, log, &system).await;
    };
    let DatabaseUrl::Sqlite(path) = config.database.clone() else {
        return Err(
            RestoreError::RestoreByPostgres { database: config.database.to_string() }.into()
        );
    };
    make_folders(config)?;
    let restoration = run_blocking(move || Restoration::begin(&path, &backup)).await?;
    let mut copy_config = config.clone();
    copy_config.database = DatabaseUrl::Sqlite(restoration.copy().to_owned());
    copy_config.database_options.migrate = true;
    let restored = revoke_again(&copy_config, order, log, &system).await?;
    let aside = aside_suffix(system.clock.now());
    let aside = run_blocking(move || restoration.finish(&aside)).await?;
    Ok(Restored { aside, ..restored })
}

/// Returns the suffix for the names of the previous database's files.
fn aside_suffix(now: Timestamp) -> String {
    let instant = jiff::Timestamp::from_microsecond(now.micros()).unwrap_or_default();
    let instant =
        strtime::format("%Y%m%dT%H%M%SZ", instant).unwrap_or_else(|_| now.seconds().to_string());
    format!(".before-restore-{instant}")
}

fn read_logs(order: &RestoreOrder) -> Result<RevocationLog, RestoreError> {
    let mut all = RevocationLog::default();
    if let EndedSince::Logs(paths) = &order.ended_since {
        // Creations matter only if older access tokens are accepted. A session that was created
        // after the backup is not in the database, so only the log shows which of these sessions a
        // revocation covers.
        let with_creations = order.accepts_older_tokens;
        for path in paths {
            let log = audit_log::read(path, with_creations);
            let log = log.map_err(|source| RestoreError::Log { path: path.clone(), source })?;
            all.records += log.records;
            all.revocations.extend(log.revocations);
            all.created.extend(log.created);
        }
    }
    Ok(all)
}

/// Revokes in a restored database what was revoked after the backup.
async fn revoke_again(
    config: &Config,
    order: &RestoreOrder,
    mut log: RevocationLog,
    system: &System,
) -> Result<Restored, AppError> {
    let masters = Masters::read(config)?;
    // A dump of an older version is migrated when it is opened. Its register can be read only after
    // that.
    let store = database::open_store(config).await?;
    refuse_if_served(config).await?;
    // The clocks of replicas may differ from the database's by the skew, and so from each other by
    // twice as much. It is better to end a session too many than one too few.
    let tolerance = settings(config).max_clock_skew.saturating_mul(2);
    log.revocations.iter_mut().for_each(|revocation| revocation.extend(tolerance));
    let audit = CommandAudit::open(config, system, &store)?;
    let masters = open_keeper(config, masters, &*store, system, audit.log()).await?.into_masters();
    let mut restoring =
        Restoring { config, audit, system, store, masters, now: system.clock.now() };
    let restored = restoring.run(order, log).await;
    // The records are written even if the restore failed, because the changes in them have been
    // made.
    restoring.audit.write().await;
    restored
}

/// Fails if a replica serves from the database, because the changes of a restore would reach it in
/// no defined order. On SQLite, the lock of the file keeps other processes away.
async fn refuse_if_served(config: &Config) -> Result<(), AppError> {
    let Some(register) = super::register(config).await? else { return Ok(()) };
    match register.members.iter().find(|member| member.is_live()) {
        Some(member) => {
            let (name, incarnation) = (member.name.clone(), member.incarnation.to_string());
            Err(RestoreError::Serving { name, incarnation }.into())
        }
        None => Ok(()),
    }
}

impl LoggedRevocation {
    fn key(&self) -> Option<&str> {
        match &self.end {
            LoggedEnd::Key(kid) => Some(kid),
            LoggedEnd::Session(_)
            | LoggedEnd::Reauthenticated { .. }
            | LoggedEnd::Subject { .. }
            | LoggedEnd::Tenant { .. }
            | LoggedEnd::Sessions { .. }
            | LoggedEnd::All { .. }
            | LoggedEnd::Token(_) => None,
        }
    }

    /// Adds the tolerance to the instant up to which sessions are covered, because other replicas
    /// may have created them by clocks that are ahead.
    fn extend(&mut self, tolerance: Duration) {
        match &mut self.end {
            LoggedEnd::Subject { until, .. }
            | LoggedEnd::Tenant { until, .. }
            | LoggedEnd::Sessions { until, .. }
            | LoggedEnd::All { until } => {
                *until = until.plus(tolerance);
            }
            LoggedEnd::Session(_)
            | LoggedEnd::Reauthenticated { .. }
            | LoggedEnd::Key(_)
            | LoggedEnd::Token(_) => {}
        }
    }
}

/// The most sessions that one statement reads or ends.
const BATCH: i64 = 500;
/// The number of revocations that are written concurrently, so that they share commits.
const AT_ONCE: usize = 64;

/// A restored database in which revocations are being repeated.
struct Restoring<'a> {
    config: &'a Config,
    system: &'a System,
    store: Arc<dyn Store>,
    masters: MasterKeys,
    audit: CommandAudit,
    now: Timestamp,
}

impl Restoring<'_> {
    async fn run(
        &mut self,
        order: &RestoreOrder,
        log: RevocationLog,
    ) -> Result<Restored, AppError> {
        let mut restored = Restored { records: log.records, ..Restored::default() };
        let logged_keys: HashSet<&str> =
            log.revocations.iter().filter_map(LoggedRevocation::key).collect();
        // An earlier restore that ended all sessions also revoked the keys of their access tokens.
        let all_until = log.revocations.iter().filter_map(|revocation| match revocation.end {
            LoggedEnd::All { until } => Some(until),
            _ => None,
        });
        let all_until = all_until.max();
        let is_revoked = |key: &Key| {
            let is_signer = key.purpose() == KeyPurpose::AccessToken;
            let is_older = !order.accepts_older_tokens
                || all_until.is_some_and(|until| key.created_at <= until);
            is_signer && is_older || logged_keys.contains(&*key.kid)
        };
        restored.keys_revoked = self.revoke_keys(&is_revoked).await?;
        if order.accepts_older_tokens {
            let is_token =
                |revocation: &&LoggedRevocation| matches!(revocation.end, LoggedEnd::Token(_));
            restored.tokens_left = log.revocations.iter().filter(is_token).count();
        }
        restored.sessions_ended = match &order.ended_since {
            EndedSince::Unknown => 0,
            EndedSince::Logs(_) => {
                let lost = LostSessions::new(order.accepts_older_tokens, log.created);
                self.end_logged(log.revocations, &lost).await?
            }
            EndedSince::All => {
                let note =
                    Note::try_from("countersign restore --end-all".to_owned()).unwrap_or_default();
                let ended = Ended { at: self.now, reason: EndReason::Administrative, note };
                self.end_all(ended, Timestamp::from_micros(i64::MAX)).await?
            }
        };
        self.record(order, &restored).await;
        Ok(restored)
    }

    /// Revokes keys, and generates new keys if an active or a pending key is missing afterwards.
    /// Returns the number of keys that were revoked.
    async fn revoke_keys(&mut self, is_revoked: &dyn Fn(&Key) -> bool) -> Result<usize, AppError> {
        let settings = settings(self.config);
        loop {
            let ring = self.store.ring().await?;
            let (mut put, mut count) = (vec![], 0);
            for rules in [settings.signing_rotation, settings.refresh_rotation] {
                let keys = ring.keys.iter().map(|sealed| &sealed.key);
                let change = Rotation::new(keys, rules)
                    .revoke_all(is_revoked, self.now)
                    .map_err(|error| StoreError::Damaged(error.to_string()))?;
                count += change.revoked.len();
                for key in change.revoked {
                    let sealed = ring.keys.iter().find(|sealed| sealed.key.kid == key.kid);
                    put.extend(
                        sealed.map(|sealed| SealedKey { key, sealed: sealed.sealed.clone() }),
                    );
                }
                let (master, rng) = (&self.masters.current, &*self.system.rng);
                if change.lacks_active {
                    put.push(generate::generate_active(master, rng, rules.algorithm, self.now)?);
                }
                if change.lacks_pending {
                    put.push(generate::generate(master, rng, rules.algorithm, self.now)?);
                }
            }
            if count == 0 {
                return Ok(0);
            }
            let keys: Vec<Key> = put.iter().map(|sealed| sealed.key.clone()).collect();
            let change = RingChange { version: ring.version, put, drop: vec![] };
            if self.store.change_ring(change).await?.is_some() {
                for key in &keys {
                    let action = AuditAction::of_key(key.state());
                    self.audit.record_in_batches(about_key(action, &key.kid, self.now)).await;
                }
                return Ok(count);
            }
        }
    }

    /// Returns whether the restored database has the state of a session after its reauthentication
    /// at this instant.
    async fn knows(&self, session: SessionId, at: Timestamp) -> Result<bool, AppError> {
        let session = self.store.session(session).await?;
        // The record has the instant of the reauthentication to the millisecond.
        Ok(session.is_some_and(|session| {
            session.authentication.id.is_some() && session.refreshed_at.millis() >= at.millis()
        }))
    }

    /// Repeats the revocations of a log. Returns the number of live sessions that they ended.
    async fn end_logged(
        &mut self,
        revocations: Vec<LoggedRevocation>,
        lost: &LostSessions,
    ) -> Result<i64, AppError> {
        let (mut repeated, mut sessions) = (vec![], 0);
        for LoggedRevocation { end, reason, note } in revocations {
            let ended = Ended { at: self.now, reason, note };
            let end = match end {
                LoggedEnd::Reauthenticated { session, at } if self.knows(session, at).await? => {
                    continue;
                }
                LoggedEnd::Reauthenticated { session, .. } => LoggedEnd::Session(session),
                end => end,
            };
            let (targets, created) = match end {
                LoggedEnd::Session(id) if lost.need_entries => (vec![], vec![id]),
                LoggedEnd::Session(id) => (vec![RevocationTarget::Session(id)], vec![]),
                LoggedEnd::Subject { tenant, subject, until } => {
                    let created = lost.of_subject(&tenant, &subject, until);
                    (self.find_targets(tenant, Some(subject), until).await?, created)
                }
                LoggedEnd::Tenant { tenant, until } => {
                    let created = lost.of_tenant(&tenant, until);
                    (self.find_targets(tenant, None, until).await?, created)
                }
                // The entry stops the tokens of sessions that the database lacks, too. The rows are
                // marked as ended once the service has started.
                LoggedEnd::Sessions { key, up_to, until } => {
                    let up_to = Some(up_to.unwrap_or(until));
                    (vec![RevocationTarget::Sessions { key, up_to }], vec![])
                }
                LoggedEnd::All { until } => {
                    sessions += self.end_all(ended.clone(), until).await?;
                    (vec![], lost.of_all(until))
                }
                LoggedEnd::Reauthenticated { .. } | LoggedEnd::Key(_) | LoggedEnd::Token(_) => {
                    continue;
                }
            };
            repeated.extend(targets.into_iter().map(|target| Revocation {
                target,
                ended: ended.clone(),
                room: usize::MAX,
                longest_token: LONGEST_ACCESS_TOKEN_TTL,
                fallback_entry: None,
            }));
            repeated.extend(created.into_iter().map(|id| lost.stop(id, ended.clone())));
        }
        let store = &self.store;
        let mut outcomes = stream::iter(repeated)
            .map(|revocation| async move {
                let (target, ended) = (revocation.target.clone(), revocation.ended.clone());
                Ok::<_, StoreError>((target, ended, store.revoke(revocation).await?))
            })
            .buffered(AT_ONCE);
        while let Some((target, ended, outcome)) = outcomes.try_next().await? {
            sessions += outcome.sessions;
            if outcome.changed {
                record_end(&mut self.audit, target, ended, outcome).await;
            }
        }
        Ok(sessions)
    }

    /// Finds the targets to revoke, so that all sessions of a tenant or subject that were created
    /// up to `until` end. Usually the target is the whole tenant or subject. But if the database
    /// has a session that was created later, the revocation is older than the backup, and each
    /// target is a single session.
    async fn find_targets(
        &self,
        tenant: Tenant,
        subject: Option<Subject>,
        until: Timestamp,
    ) -> Result<Vec<RevocationTarget>, StoreError> {
        let is_covered = |id: SessionId| CutOff::up_to(until).covers_created(id);
        let query = |live, after, limit| SessionQuery {
            search: SessionSearch {
                tenant: tenant.clone(),
                subject: subject.clone(),
                live,
                ..SessionSearch::default()
            },
            now: self.now,
            after,
            limit,
        };
        match self.store.sessions(query(None, None, 1)).await?.found.first() {
            None => return Ok(vec![]),
            Some(newest) if is_covered(newest.id) => {
                return Ok(vec![match subject {
                    Some(subject) => RevocationTarget::Subject { tenant, subject, except: None },
                    None => RevocationTarget::Tenant(tenant),
                }]);
            }
            Some(_) => {}
        }
        let (mut targets, mut after) = (vec![], None);
        loop {
            let page = self.store.sessions(query(Some(true), after, BATCH)).await?;
            let found = page.found.iter().map(|session| session.id);
            targets.extend(found.filter(|id| is_covered(*id)).map(RevocationTarget::Session));
            after = page.last;
            if after.is_none() {
                return Ok(targets);
            }
        }
    }

    /// Ends all sessions that were created up to an instant. The keys that signed their access
    /// tokens have been revoked, so the blacklist needs no entries for them.
    async fn end_all(&self, ended: Ended, until: Timestamp) -> Result<i64, AppError> {
        let (mut after, mut sessions) = (None, 0);
        while let Some(batch) =
            self.store.end_all_sessions(ended.clone(), until, after, BATCH).await?
        {
            after = Some(batch.last);
            sessions += i64::try_from(batch.sessions).unwrap_or(i64::MAX);
        }
        Ok(sessions)
    }

    async fn record(&mut self, order: &RestoreOrder, restored: &Restored) {
        let ended = match &order.ended_since {
            EndedSince::Unknown => "sessions ended since the backup: not known",
            EndedSince::Logs(_) => "sessions ended since the backup: ended again by the log",
            EndedSince::All => ENDED_ALL,
        };
        let tokens = match order.accepts_older_tokens {
            true => "older access tokens: accepted",
            false => "older access tokens: refused",
        };
        let note = Note::try_from(format!("{tokens}; {ended}")).unwrap_or_default();
        let sessions = Some(restored.sessions_ended);
        let record = by_command(AuditAction::DatabaseRestored, self.now);
        self.audit.record_in_batches(AuditRecord { note, sessions, ..record }).await;
    }
}

/// The sessions in the log that the database may not know, because they were created after the
/// backup. The access tokens of such a session are accepted until the blacklist has an entry for
/// it.
struct LostSessions {
    /// True if the access tokens of these sessions would be accepted without blacklist entries. It
    /// is false if the keys that signed the tokens are revoked.
    need_entries: bool,
    by_owner: HashMap<(Tenant, Subject), Vec<SessionId>>,
    owners: HashMap<SessionId, (Tenant, Subject)>,
}

impl LostSessions {
    fn new(need_entries: bool, logged: Vec<LoggedSession>) -> Self {
        let (mut by_owner, mut owners) = (HashMap::<_, Vec<_>>::new(), HashMap::new());
        for LoggedSession { id, tenant, subject } in logged {
            owners.insert(id, (tenant.clone(), subject.clone()));
            by_owner.entry((tenant, subject)).or_default().push(id);
        }
        Self { need_entries, by_owner, owners }
    }

    fn of_subject(&self, tenant: &Tenant, subject: &Subject, until: Timestamp) -> Vec<SessionId> {
        let created = self.by_owner.get(&(tenant.clone(), subject.clone()));
        created
            .into_iter()
            .flatten()
            .copied()
            .filter(|id| CutOff::up_to(until).covers_created(*id))
            .collect()
    }

    fn of_tenant(&self, tenant: &Tenant, until: Timestamp) -> Vec<SessionId> {
        let of_tenant = self.owners.iter().filter(|(_, owner)| owner.0 == *tenant);
        of_tenant.map(|(id, _)| *id).filter(|id| CutOff::up_to(until).covers_created(*id)).collect()
    }

    fn of_all(&self, until: Timestamp) -> Vec<SessionId> {
        self.owners.keys().copied().filter(|id| CutOff::up_to(until).covers_created(*id)).collect()
    }

    /// Returns a revocation that stops the tokens of a session, and ends the session if the
    /// database has it. The session's policy is not known, so the entry lives as long as the
    /// longest token that any configuration allows.
    fn stop(&self, id: SessionId, ended: Ended) -> Revocation {
        let expires_at = ended.at.plus(LONGEST_ACCESS_TOKEN_TTL).plus(RETENTION_MARGIN);
        Revocation::of_lost(Revoked::Session(id), self.owners.get(&id).cloned(), ended, expires_at)
    }
}

/// Completes the record of a revocation by client or time.
fn about_cut_off(record: &mut AuditRecord, key: &CutOffKey, up_to: Option<Timestamp>) {
    record.tenant = key.scope().tenant().cloned();
    record.client_id = key.scope().client_id().cloned();
    let before = up_to.map(|up_to| up_to.plus(Duration::from_micros(1)));
    match key.basis() {
        Basis::Creation => record.created_before = before,
        Basis::Authentication => record.authenticated_before = before,
    }
}

/// Records a repeated revocation in the audit.
async fn record_end(
    audit: &mut CommandAudit,
    target: RevocationTarget,
    ended: Ended,
    outcome: RevocationOutcome,
) {
    let record = by_command(AuditAction::SessionRevoked, ended.at);
    let mut record = AuditRecord {
        reason: Some(ended.reason),
        note: ended.note,
        sessions: Some(outcome.sessions),
        ..record
    };
    match target {
        RevocationTarget::Session(id) | RevocationTarget::Token { session_id: id, .. } => {
            record.session_id = Some(id)
        }
        RevocationTarget::Subject { tenant, subject, .. } => {
            record.action = AuditAction::SubjectRevoked;
            (record.tenant, record.subject) = (Some(tenant), Some(subject));
        }
        RevocationTarget::Tenant(tenant) => {
            record.action = AuditAction::TenantRevoked;
            record.tenant = Some(tenant);
        }
        // A log has one record for each subject.
        RevocationTarget::Subjects { .. } => {}
        RevocationTarget::Sessions { key, up_to } => {
            record.action = AuditAction::SessionsRevoked;
            record.sessions = None;
            about_cut_off(&mut record, &key, up_to);
        }
        RevocationTarget::Lost(entry) => {
            record.action = match &entry.revoked {
                Revoked::Session(_) => AuditAction::SessionRevoked,
                Revoked::Token(_) => AuditAction::TokenRevoked,
                Revoked::Sessions { key, .. } => match key.kind() {
                    CutOffKind::Subject => AuditAction::SubjectRevoked,
                    CutOffKind::Tenant => AuditAction::TenantRevoked,
                    _ => AuditAction::SessionsRevoked,
                },
            };
            record.session_id = entry.session_id;
            (record.tenant, record.subject) = (Some(entry.tenant), entry.subject);
        }
    }
    if let (None, Some((tenant, subject))) = (&record.tenant, outcome.owner) {
        (record.tenant, record.subject) = (Some(tenant), Some(subject));
    }
    audit.record_in_batches(record).await;
}
