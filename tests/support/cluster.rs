//! A cluster of processes that share a master key and a database, and functions that wait for
//! events.

use std::{
    env,
    fs::{self, Permissions},
    ops::{Deref, DerefMut},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    postgres_server::number,
    support::{self, Server},
};

/// The longest wait. Only a hanging test takes this long.
const HANGS: Duration = Duration::from_secs(120);
/// The polling interval for conditions without an event to wait for.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for an event that must happen, and fails rather than hang.
pub async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, event)
        .await
        .unwrap_or_else(|_| panic!("not within {HANGS:?}: {what}"))
}

/// Polls until a condition holds that has no event to wait for, and fails rather than hang.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    in_time(what, looking).await
}

/// Waits until a query yields the expected number.
pub async fn becomes(url: &str, sql: &str, expected: i64) {
    eventually(&format!("{sql} = {expected}"), async || {
        (number(url, sql).await == expected).then_some(())
    })
    .await;
}

/// One process of a cluster. It connects to the database under a name of its own.
pub struct Replica {
    server: Server,
    name: String,
}

impl Deref for Replica {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for Replica {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

impl Replica {
    /// Waits until it serves.
    pub async fn await_serving(&mut self) {
        // The proxy that it connects through may run on this thread.
        tokio::task::block_in_place(|| self.server.await_serving());
    }

    /// Returns the application name of its connections to the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its resident memory in MiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    /// Returns the query that counts its connections whose state is like this.
    pub fn connections(&self, state: &str) -> String {
        let name = self.name();
        format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND state \
             LIKE '{state}'"
        )
    }
}

/// A setting that breaks a rule of the lease protocol by its name, see `altered.rs`.
pub const RULE: &str = "ALTERED_RULE";
/// A setting that makes the wall clock wrong by a number of seconds.
pub const WALL_CLOCK: &str = "ALTERED_WALL_CLOCK";

/// Returns a command for a replica in a process of this test program, see `altered.rs`.
fn serve_altered(data_dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    support::without_settings(&mut command);
    command.args(["--exact", "altered::serve", "--ignored", "--nocapture"]);
    command.env("COUNTERSIGN_LISTEN", "127.0.0.1:0").env("COUNTERSIGN_DATA_DIR", data_dir);
    command.env(support::GRACE, "0s");
    command
}

/// The folder with the master key, which replicas share besides the database.
pub struct Home(TempDir);

impl Home {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("master.key");
        fs::write(&key, "Y291bnRlcnNpZ24tdGVzdC1tYXN0ZXIta2V5LTMyYiE=\n").unwrap();
        fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
        Self(folder)
    }

    /// Starts a replica that reaches the database by this URL, and does not wait for it. Unless the
    /// settings change it, nothing expires and no grace ends while a test runs.
    pub fn spawn(&self, url: &str, settings: &[(&str, &str)]) -> Replica {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("replica {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut command = match settings.iter().any(|(name, _)| [RULE, WALL_CLOCK].contains(name)) {
            true => serve_altered(self.0.path()),
            false => support::serve(self.0.path()),
        };
        let separator = if url.contains('?') { '&' } else { '?' };
        let parameter = format!("{separator}application_name={}", name.replace(' ', "%20"));
        command.env("COUNTERSIGN_DATABASE_URL", format!("{url}{parameter}"));
        command.envs([
            ("COUNTERSIGN_TOKENS__MAX_ACCESS_TOKEN_TTL", "2d"),
            ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "2d"),
            ("COUNTERSIGN_POLICIES__DEFAULT__REFRESH_GRACE", "1d"),
        ]);
        command.envs(settings.iter().copied());
        Replica { server: Server::spawn(&mut command), name }
    }
}

/// Replicas and their database.
pub struct Cluster {
    home: Home,
    /// The URL of the database without a proxy.
    pub url: String,
    pub replicas: Vec<Replica>,
}

impl Cluster {
    /// Creates a cluster without replicas.
    pub fn new(url: &str) -> Self {
        Self { home: Home::new(), url: url.to_owned(), replicas: vec![] }
    }

    /// Starts three replicas, and waits until they serve.
    pub async fn start(url: &str) -> Self {
        Self::start_by([url; 3], url, &[]).await
    }

    /// Starts replicas that reach the database by these URLs, with these settings, and waits until
    /// they serve.
    pub async fn start_by<'a>(
        urls: impl IntoIterator<Item = &'a str>,
        url: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut cluster = Self::new(url);
        cluster.replicas = urls.into_iter().map(|url| cluster.spawn(url, settings)).collect();
        for replica in &mut cluster.replicas {
            replica.await_serving().await;
        }
        cluster
    }

    /// Starts a replica, and does not wait for it.
    pub fn spawn(&self, url: &str, settings: &[(&str, &str)]) -> Replica {
        self.home.spawn(url, settings)
    }

    /// Returns a command of the CLI that works on the database.
    #[allow(dead_code)] // Not every test binary runs one.
    pub fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = support::countersign();
        command.args(arguments).arg("--data-dir").arg(self.home.0.path());
        command.env("COUNTERSIGN_DATABASE_URL", &self.url);
        command
    }

    /// Ends a replica as `kill -9` does, and waits until the database has closed its connections.
    pub async fn kill(&mut self, index: usize) {
        self.replicas[index].kill();
        becomes(&self.url, &self.replicas[index].connections("%"), 0).await;
    }
}
