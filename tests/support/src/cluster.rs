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

use countersign::proto::{CreateSessionRequest, RevokeRequest, revoke_request::Target};
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::{
    ledger::{Account, Client, create, validate},
    postgres_server::number,
    process::{self, Server},
    proxy::Link,
};

/// The number of concurrent checkers of accounts at each replica.
const CHECKERS: usize = 8;
/// The longest wait. Only a hanging test takes this long.
const HANGS: Duration = Duration::from_secs(120);
/// The polling interval for conditions without an event to wait for.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for an event that must happen. Panics if that takes longer than [`HANGS`].
pub async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, event)
        .await
        .unwrap_or_else(|_| panic!("not within {HANGS:?}: {what}"))
}

/// Polls until `look` returns a value, for a condition without an event to wait for. Panics if that
/// takes longer than [`HANGS`].
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

/// One process of a cluster. It connects to the database under an application name of its own.
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
    /// Waits until the replica serves.
    pub async fn await_serving(&mut self) {
        // The replica may connect through a proxy that runs on this thread, so this wait must not
        // block the other tasks of the thread.
        tokio::task::block_in_place(|| self.server.await_serving());
    }

    /// Returns the application name of its connections to the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the resident memory of the process in MiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    /// Returns the query that counts its connections whose state matches this pattern of `LIKE`.
    pub fn connections(&self, state: &str) -> String {
        let name = self.name();
        format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}' AND state \
             LIKE '{state}'"
        )
    }
}

/// The setting that names the rule of the lease protocol to be broken, see `altered.rs`.
pub const RULE: &str = "ALTERED_RULE";
/// The setting for the number of seconds by which the wall clock is ahead.
pub const WALL_CLOCK: &str = "ALTERED_WALL_CLOCK";

/// Returns a command for a replica in a process of this test program, see `altered.rs`.
fn serve_altered(data_dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    process::without_settings(&mut command);
    command.args(["--exact", "altered::serve", "--ignored", "--nocapture"]);
    command.env("COUNTERSIGN_LISTEN", "127.0.0.1:0").env("COUNTERSIGN_DATA_DIR", data_dir);
    command.env(process::GRACE, "0s");
    command
}

/// The folder with the master key, which replicas share besides the database.
pub struct Home(TempDir);

impl Home {
    /// Creates the folder.
    pub fn create() -> Self {
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
            false => process::serve(self.0.path()),
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
    /// The processes.
    pub replicas: Vec<Replica>,
}

impl Cluster {
    /// Creates a cluster without replicas.
    pub fn new(url: &str) -> Self {
        Self { home: Home::create(), url: url.to_owned(), replicas: vec![] }
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

    /// Returns a subcommand that works on the database.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = process::countersign();
        command.args(arguments).arg("--data-dir").arg(self.home.0.path());
        command.env("COUNTERSIGN_DATABASE_URL", &self.url);
        command
    }

    /// Ends a replica as `kill -9` does, and waits until the database has closed its connections.
    pub async fn kill(&mut self, index: usize) {
        self.replicas[index].kill();
        becomes(&self.url, &self.replicas[index].connections("%"), 0).await;
    }

    /// Starts three replicas, each of which reaches this database through a link of its own.
    pub async fn linked(url: &str, settings: &[(&str, &str)]) -> (Self, [Link; 3]) {
        let links = [Link::to(url).await, Link::to(url).await, Link::to(url).await];
        let urls = links.each_ref().map(Link::url);
        let cluster = Self::start_by(urls.iter().map(String::as_str), url, settings).await;
        (cluster, links)
    }

    /// Returns a client of each replica.
    pub async fn clients(&self) -> Vec<Client> {
        join_all(self.replicas.iter().map(|replica| replica.sessions())).await
    }

    /// Waits until no replica has a statement running or a transaction open.
    pub async fn rest(&self) {
        for replica in &self.replicas {
            becomes(&self.url, &replica.connections("idle in %"), 0).await;
            becomes(&self.url, &replica.connections("active"), 0).await;
        }
    }

    /// Checks that the tables are consistent with each other.
    pub async fn assert_consistent(&self) {
        for (what, sql) in [
            (
                "ended sessions without an entry although one of their tokens may be unexpired",
                "SELECT count(*) FROM sessions AS s WHERE s.ended_at + s.access_token_ttl > now() \
                 AND NOT EXISTS (SELECT 1 FROM blacklist AS b WHERE b.kind = 'session' AND b.key \
                 = s.id::text) AND NOT EXISTS (SELECT 1 FROM blacklist AS b WHERE b.kind = \
                 'subject' AND (b.tenant, b.subject) = (s.tenant, s.subject) AND s.ended_at <= \
                 b.up_to)",
            ),
            (
                "live sessions whose tokens are revoked",
                "SELECT count(*) FROM blacklist AS b JOIN sessions AS s ON s.id::text = b.key AND \
                 b.kind = 'session' OR b.kind = 'subject' AND (b.tenant, b.subject) = (s.tenant, \
                 s.subject) AND s.created_at <= b.up_to WHERE s.ended_at IS NULL",
            ),
            (
                "entries after the head of the feed",
                "SELECT count(*) FROM blacklist, feed_head AS h WHERE blacklist.seq > h.seq",
            ),
        ] {
            assert_eq!(number(&self.url, sql).await, 0, "{what}");
        }
    }

    /// Waits until all replicas know all revocations so far. The feed is in the order of commits,
    /// so a replica that knows the last entry knows all.
    pub async fn agree(&self) {
        let mut client = self.replicas[0].sessions().await;
        let request =
            CreateSessionRequest { subject: "the last one".to_owned(), ..Default::default() };
        let token = create(&mut client, request).await.unwrap().tokens.unwrap().access_token;
        let target = Some(Target::Token(token.clone()));
        client.revoke(RevokeRequest { target, ..Default::default() }).await.unwrap();
        for replica in &self.replicas {
            becomes_inactive(&mut replica.sessions().await, &token).await;
        }
    }

    /// Checks at all replicas that everything that was acknowledged holds, and that every other
    /// write was made completely or not at all.
    pub async fn verify(&self, accounts: &mut [Account]) {
        self.agree().await;
        let share = accounts.len().div_ceil(CHECKERS * self.replicas.len()).max(1);
        let mut checks = vec![];
        for (share, replica) in accounts.chunks_mut(share).zip(self.replicas.iter().rev().cycle()) {
            let mut client = replica.sessions().await;
            checks.push(async move {
                for account in share {
                    account.verify(&mut client).await;
                }
            });
        }
        in_time("all accounts are checked", join_all(checks)).await;
        self.assert_consistent().await;
    }
}

/// Waits until a replica knows that a token is revoked.
pub async fn becomes_inactive(client: &mut Client, token: &str) {
    eventually("the revocation arrives", async || {
        (!validate(client, token).await.active).then_some(())
    })
    .await;
}
