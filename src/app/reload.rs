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
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often it is told that the certificate is about to end.
const TELL_EVERY: Duration = Duration::from_secs(3600);

/// What may change while the service runs.
pub struct Reloading {
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

/// What was told last, so that it is not told at each look.
#[derive(Default)]
struct Told {
    callers: String,
    certificate: String,
    expiry_at: Option<Duration>,
}

impl Reloading {
    /// Looks from time to time, and whenever it is asked for.
    pub async fn run(mut self, wish: Arc<Notify>) {
        let mut told = Told::default();
        loop {
            let wished = tokio::select! {
                () = wish.notified() => true,
                () = sleep(LOOK_EVERY) => false,
            };
            if wished {
                told = Told::default();
                tracing::info!("certificates and callers are read anew");
            }
            self.look_at_callers(&mut told);
            if let Some(tls) = self.tls.clone() {
                self.look_at_certificate(&tls, &mut told);
            }
        }
    }

    fn look_at_callers(&mut self, told: &mut Told) {
        let config = match self.config.read_again() {
            Ok(config) if config.callers.is_empty() && !self.callers.is_open() => {
                let problem = "the configuration names no callers any more; they stay, and only a \
                               restart opens the service";
                return tell_once(&mut told.callers, problem.to_owned());
            }
            Ok(config) => config,
            Err(error) => {
                return tell_once(&mut told.callers, format!("callers stay as they are: {error}"));
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
            return told.callers.clear();
        }
        let settings = differences.join(", ");
        let problem = format!("settings have changed that take effect after a restart: {settings}");
        if told.callers != problem {
            tracing::warn!("{problem}");
            told.callers = problem;
        }
    }

    /// Records that a part of the configuration has been replaced.
    fn record(&self, part: &str) {
        let note = Note::try_from(part.to_owned()).unwrap_or_default();
        let action = AuditAction::ConfigurationReloaded;
        let record = AuditRecord::new(action, self.clock.now(), Who::Service, None);
        self.audit.record(AuditRecord { note, ..record });
    }

    fn look_at_certificate(&self, tls: &Tls, told: &mut Told) {
        let now = self.clock.now();
        let Files { certificate, .. } = tls.files();
        match tls.reload(now) {
            Ok(true) => {
                *told = Told::default();
                tracing::info!(certificate = %certificate.display(), "the certificate has changed");
                self.record("certificate");
            }
            Ok(false) => told.certificate.clear(),
            Err(error) => {
                tell_once(&mut told.certificate, format!("the certificate stays as it is: {error}"))
            }
        }
        let uptime = self.clock.uptime();
        let is_due = told.expiry_at.is_none_or(|at| uptime.saturating_sub(at) >= TELL_EVERY);
        if is_due && tls.expires_soon(now) {
            told.expiry_at = Some(uptime);
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

/// Tells what was not told the last time.
fn tell_once(told: &mut String, problem: String) {
    if *told != problem {
        tracing::error!("{problem}");
        *told = problem;
    }
}
