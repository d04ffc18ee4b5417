//! Certificates and callers are read anew when their files change, and at SIGHUP. What is not good
//! changes nothing.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::sleep};

use crate::{
    authority::audit::Audit,
    callers::Callers,
    clock::Clock,
    config::Config,
    domain::{
        audit::{AuditAction, AuditRecord, Who},
        text::Note,
    },
    net::tls::{Files, Tls},
};

/// How often it is looked whether a file has changed. Files are read, not watched: what is mounted
/// into a container changes in ways that watching misses.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is logged that the certificate is about to end.
const EXPIRY_LOG_INTERVAL: Duration = Duration::from_secs(3600);

/// What may change while the service runs.
pub struct Reloader {
    /// The settings since the start.
    pub config: Config,
    /// Who may call.
    pub callers: Arc<Callers>,
    /// The certificate, if there is one.
    pub tls: Option<Arc<Tls>>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Records what has changed.
    pub audit: Audit,
}

/// What was logged last, so that it is not logged at each look.
#[derive(Default)]
struct LastLogged {
    callers: String,
    certificate: String,
    expiry_at: Option<Duration>,
}

impl Reloader {
    /// Looks from time to time, and whenever it is asked for.
    pub async fn run(mut self, wish: Arc<Notify>) {
        let mut logged = LastLogged::default();
        loop {
            let wished = tokio::select! {
                () = wish.notified() => true,
                () = sleep(POLL_INTERVAL) => false,
            };
            if wished {
                logged = LastLogged::default();
                tracing::info!("certificates and callers are read anew");
            }
            self.reload_callers(&mut logged);
            if let Some(tls) = self.tls.clone() {
                self.reload_certificate(&tls, &mut logged);
            }
        }
    }

    fn reload_callers(&mut self, logged: &mut LastLogged) {
        let config = match self.config.read_again() {
            Ok(config) if config.callers.is_empty() && !self.callers.is_open() => {
                let problem = "the configuration names no callers any more; they stay, and only a \
                               restart opens the service";
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

    /// Records that a part of the configuration has been replaced.
    fn record(&self, part: &str) {
        let note = Note::try_from(part.to_owned()).unwrap_or_default();
        let action = AuditAction::ConfigurationReloaded;
        let record = AuditRecord::new(action, self.clock.now(), Who::Service, None);
        self.audit.record(AuditRecord { note, ..record });
    }

    fn reload_certificate(&self, tls: &Tls, logged: &mut LastLogged) {
        let now = self.clock.now();
        let Files { certificate, .. } = tls.files();
        match tls.reload(now) {
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

/// Tells what was not logged the last time.
fn log_once(logged: &mut String, problem: String) {
    if *logged != problem {
        tracing::error!("{problem}");
        *logged = problem;
    }
}
