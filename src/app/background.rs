//! The background tasks, which run for as long as the service does.

use std::sync::Arc;

use croner::Cron;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{System, reload::Reloader};
use crate::{
    authority::{
        Authority,
        audit::{AuditQueue, AuditWriter},
    },
    revocation::renewer::LeaseRenewer,
    store::Store,
    tasks,
};

/// The running tasks. They end when this value is dropped.
pub struct Background(JoinSet<&'static str>);

impl Background {
    /// Starts the tasks that every replica runs.
    pub fn start(
        schedule: watch::Receiver<Cron>,
        store: Arc<dyn Store>,
        renewer: LeaseRenewer,
        authority: Arc<Authority>,
        system: &System,
    ) -> Self {
        let mut tasks = Self(JoinSet::new());
        let wake_ups = renewer.wake_ups();
        let sized = authority.clone();
        tasks.spawn("the renewal of the lease", renewer.run());
        let sweeper = tasks::sweeper::run(authority.clone(), system.clock.clone(), schedule);
        tasks.spawn("the sweeper", sweeper);
        tasks.spawn("the rotation of the keys", tasks::keys::run(authority.clone(), wake_ups.keys));
        tasks.spawn(
            "the task that ends revoked sessions",
            tasks::cut_offs::run(authority, wake_ups.cut_offs),
        );
        tasks.spawn("the reader of sizes", tasks::sizes::run(sized));
        tasks.spawn("the database engine", async move { store.stopped().await });
        tasks
    }

    /// Starts the task that reloads certificates and settings when their files have changed, or when
    /// `asked` is notified.
    pub fn reload(&mut self, reloader: Reloader, asked: Arc<Notify>) {
        self.spawn("the reload of certificates and settings", reloader.run(asked));
    }

    /// Starts the task that writes the records of the audit to its table.
    pub fn write_audit(&mut self, store: Arc<dyn Store>, queue: AuditQueue) {
        self.spawn("the writer of the audit", tasks::audit::run(AuditWriter::new(store, queue)));
    }

    /// Starts a task, which should never end. If it does, [`Self::stopped`] returns its name.
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a task has stopped by itself, which is a failure, and returns its name.
    pub async fn stopped(&mut self) -> String {
        match self.0.join_next().await {
            Some(Ok(name)) => name.to_owned(),
            Some(Err(error)) => format!("a background task ({error})"),
            None => "every background task".to_owned(),
        }
    }

    /// Stops the tasks.
    pub async fn end(mut self) {
        self.0.shutdown().await;
    }
}
