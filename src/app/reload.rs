//! Reloads certificates and the configuration when their files change, and at SIGHUP. If a file has
//! an error, the values in use stay in force. The configuration itself says which settings can
//! change without a restart ([`Config::reloaded`]).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use croner::Cron;
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::sleep,
};

use super::{ports::PortSettings, settings::settings};
use crate::{
    authority::{Authority, audit::Audit},
    callers::Callers,
    clock::Clock,
    config::{Config, SettingValue, log::LevelControl},
    domain::{
        audit::{AuditAction, AuditRecord},
        text::Note,
        who::Who,
    },
    net::tls::{Files, Tls},
};

/// The interval at which the files are read. They are not watched, because watching misses changes
/// of files that are mounted into a container.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The interval between two warnings that the certificate expires soon.
const EXPIRY_LOG_INTERVAL: Duration = Duration::from_secs(3600);

/// The parts of the service whose settings can change.
pub struct ReloadedParts {
    /// The callers.
    pub callers: Arc<Callers>,
    /// The use cases.
    pub authority: Arc<Authority>,
    /// What the ports share.
    pub ports: PortSettings,
    /// The schedule of the sweeper.
    pub schedule: watch::Sender<Cron>,
    /// The control of the level of the log; none if the level cannot be changed.
    pub log_level: Option<Arc<dyn LevelControl>>,
}

impl ReloadedParts {
    /// Puts a configuration in force. `before` is the one that has been in force until now. Fails
    /// only before anything has changed.
    fn apply(&self, before: &Config, config: &Config) -> Result<(), String> {
        if config.log.level != before.log.level
            && let Some(control) = &self.log_level
        {
            control.set(&config.log)?;
        }
        if config.callers != before.callers {
            self.callers.replace(config.callers.clone());
        }
        self.authority.replace_settings(settings(config));
        self.ports.replace(config);
        self.schedule.send_if_modified(|schedule| {
            let is_modified = *schedule != config.sweeper.schedule;
            schedule.clone_from(&config.sweeper.schedule);
            is_modified
        });
        Ok(())
    }
}

/// Reloads certificates, and the settings that can change while the service runs.
pub struct Reloader {
    /// The configuration in force.
    in_force: watch::Sender<Arc<Config>>,
    parts: ReloadedParts,
    tls: Option<Arc<Tls>>,
    clock: Arc<dyn Clock>,
    /// Records the changes.
    audit: Audit,
}

/// The problems that were logged last. The same problem is not logged again at each reload.
#[derive(Default)]
struct LastLogged {
    settings: String,
    certificate: String,
    expiry_at: Option<Duration>,
}

impl Reloader {
    /// Creates the reloader of a service that was started with this configuration. Also returns the
    /// configuration in force.
    pub fn new(
        config: &Config,
        parts: ReloadedParts,
        tls: Option<Arc<Tls>>,
        clock: Arc<dyn Clock>,
        audit: Audit,
    ) -> (Self, watch::Receiver<Arc<Config>>) {
        let (in_force, settings) = watch::channel(Arc::new(config.clone()));
        (Self { in_force, parts, tls, clock, audit }, settings)
    }

    /// Reloads at an interval, and whenever `requests` is notified.
    pub async fn run(self, requests: Arc<Notify>) {
        let mut logged = LastLogged::default();
        loop {
            let is_requested = tokio::select! {
                () = requests.notified() => true,
                () = sleep(POLL_INTERVAL) => false,
            };
            if is_requested {
                logged = LastLogged::default();
                tracing::info!("certificates and configuration are read anew");
            }
            self.reload_settings(&mut logged).await;
            if let Some(tls) = self.tls.clone() {
                self.reload_certificate(tls, &mut logged).await;
            }
        }
    }

    async fn reload_settings(&self, logged: &mut LastLogged) {
        let before = self.in_force.borrow().clone();
        let (reading, is_open) = (before.clone(), self.parts.callers.is_open());
        let reloaded = off_runtime(move || {
            let read = reading.read_again().map_err(|error| error.to_string())?;
            if read.callers.is_empty() && !is_open {
                return Err(
                    "the configuration names no callers any more, and only a restart opens \
                            the service to everybody"
                        .to_owned(),
                );
            }
            let config = reading.reloaded(&read);
            let config = config.map_err(|error| format!("a restart is needed: {error}"))?;
            Ok((read, config))
        });
        let (read, config) = match reloaded.await {
            Ok(reloaded) => reloaded,
            Err(error) => {
                let problem = format!("settings stay as they are: {error}");
                return log_once(&mut logged.settings, problem);
            }
        };
        let waiting = read.differences(&config);
        let changed = config.differences(&before);
        if !changed.is_empty() {
            if let Err(error) = self.parts.apply(&before, &config) {
                let problem = format!("settings stay as they are: {error}");
                return log_once(&mut logged.settings, problem);
            }
            let settings = listed(&changed);
            tracing::info!(settings, "settings have changed");
            self.record(&settings);
            self.in_force.send_replace(Arc::new(config));
        }
        self.warn_of_restart(&waiting, logged);
    }

    /// Logs the settings that have changed in the file, and are not in force before a restart.
    fn warn_of_restart(&self, settings: &BTreeMap<String, SettingValue>, logged: &mut LastLogged) {
        if settings.is_empty() {
            return logged.settings.clear();
        }
        let settings = settings.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let problem = format!("settings have changed that take effect after a restart: {settings}");
        if logged.settings != problem {
            tracing::warn!("{problem}");
            logged.settings = problem;
        }
    }

    /// Records that a part of the configuration has been replaced.
    fn record(&self, part: &str) {
        // A note that is too long ends at a character's boundary.
        let longest = (0..=Note::MAX_BYTES.min(part.len())).rev().find_map(|end| part.get(..end));
        let note = Note::try_from(longest.unwrap_or_default().to_owned()).unwrap_or_default();
        let action = AuditAction::ConfigurationReloaded;
        let record = AuditRecord::new(action, self.clock.now(), Who::Service, None);
        self.audit.record(AuditRecord { note, ..record });
    }

    async fn reload_certificate(&self, tls: Arc<Tls>, logged: &mut LastLogged) {
        let now = self.clock.now();
        let reloaded = {
            let tls = tls.clone();
            off_runtime(move || tls.reload(now)).await
        };
        let Files { certificate, .. } = tls.files();
        match reloaded {
            Ok(true) => {
                *logged = LastLogged::default();
                tracing::info!(certificate = %certificate.display(), "the certificate has changed");
                self.record("certificate");
            }
            Ok(false) => logged.certificate.clear(),
            Err(error) => log_once(
                &mut logged.certificate,
                format!("the certificate stays as it is: {error}"),
            ),
        }
        let uptime = self.clock.uptime();
        let is_due =
            logged.expiry_at.is_none_or(|at| uptime.saturating_sub(at) >= EXPIRY_LOG_INTERVAL);
        if is_due && tls.expires_soon(now) {
            logged.expiry_at = Some(uptime);
            let left = tls.expires_at().since(now);
            let certificate = certificate.display();
            match left.is_zero() {
                true => tracing::error!(%certificate, "the certificate has expired: renew it"),
                false => {
                    let hours_left = left.as_secs() / 3600;
                    tracing::warn!(%certificate, hours_left, "the certificate expires soon");
                }
            }
        }
    }
}

/// Returns settings with their values in one line.
fn listed(settings: &BTreeMap<String, SettingValue>) -> String {
    let settings = settings.iter().map(|(name, value)| format!("{name}{value}"));
    settings.collect::<Vec<_>>().join(", ")
}

/// Reads files on a thread that may block, outside the async runtime.
async fn off_runtime<T, E>(
    read: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, String>
where
    T: Send + 'static,
    E: ToString + Send + 'static,
{
    match spawn_blocking(read).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Logs a problem unless it was logged the last time.
fn log_once(logged: &mut String, problem: String) {
    if *logged != problem {
        tracing::error!("{problem}");
        *logged = problem;
    }
}
