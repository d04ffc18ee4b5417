//! Reloads certificates, callers and the log level when their files change, and at SIGHUP. If a
//! file has an error, the values in use stay in force.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

use crate::{
    authority::audit::Audit,
    callers::Callers,
    clock::Clock,
    config::{Config, log::LevelControl},
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

/// Reloads the parts of the configuration that may change while the service runs.
pub struct Reloader {
    /// The settings in force. The callers are those of the last reload, and all other settings are
    /// those of the start.
    pub config: Config,
    /// The callers.
    pub callers: Arc<Callers>,
    /// The certificate, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Records the changes.
    pub audit: Audit,
    /// The control of the level of the log; none if the level cannot be changed.
    pub log_level: Option<Arc<dyn LevelControl>>,
}

/// The problems that were logged last. The same problem is not logged again at each reload.
#[derive(Default)]
struct LastLogged {
    callers: String,
    certificate: String,
    expiry_at: Option<Duration>,
}

impl Reloader {
    /// Reloads at an interval, and whenever `requests` is notified.
    pub async fn run(mut self, requests: Arc<Notify>) {
        let mut logged = LastLogged::default();
        loop {
            let is_requested = tokio::select! {
                () = requests.notified() => true,
                () = sleep(POLL_INTERVAL) => false,
            };
            if is_requested {
                logged = LastLogged::default();
                tracing::info!("certificates and callers are read anew");
            }
            self.reload_callers(&mut logged).await;
            if let Some(tls) = self.tls.clone() {
                self.reload_certificate(tls, &mut logged).await;
            }
        }
    }

    async fn reload_callers(&mut self, logged: &mut LastLogged) {
        let config = self.config.clone();
        let config = match off_runtime(move || config.read_again()).await {
            Ok(config) if config.callers.is_empty() && !self.callers.is_open() => {
                let problem = "the configuration names no callers any more: they stay as they \
                               are, and only a restart opens the service to everybody";
                return log_once(&mut logged.callers, problem.to_owned());
            }
            Ok(config) => config,
            Err(error) => {
                return log_once(&mut logged.callers, format!("callers stay as they are: {error}"));
            }
        };
        if config.callers != self.config.callers {
            self.callers.replace(config.callers.clone());
            tracing::info!(callers = self.callers.count(), "callers have changed");
            self.record("callers");
        }
        self.reload_log_level(&config);
        let differences: Vec<_> = config.differences(&self.config).into_iter().collect();
        self.config.callers = config.callers;
        if differences.is_empty() {
            return logged.callers.clear();
        }
        let settings = differences.join(", ");
        let problem = format!("settings have changed that take effect after a restart: {settings}");
        if logged.callers != problem {
            tracing::warn!("{problem}");
            logged.callers = problem;
        }
    }

    fn reload_log_level(&mut self, config: &Config) {
        if config.log.level == self.config.log.level {
            return;
        }
        let Some(control) = &self.log_level else { return };
        match control.set(&config.log) {
            Ok(()) => {
                self.config.log.level.clone_from(&config.log.level);
                tracing::info!(level = config.log.level, "the log level has changed");
                self.record("log level");
            }
            Err(problem) => tracing::error!("the log level stays as it is: {problem}"),
        }
    }

    /// Records that a part of the configuration has been replaced.
    fn record(&self, part: &str) {
        let note = Note::try_from(part.to_owned()).unwrap_or_default();
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
