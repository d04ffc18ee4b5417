//! Three PostgreSQL servers that Patroni manages with a single etcd, and HAProxy in front of them.
//! All of these programs come from Debian's packages, and run as throw-away processes.

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::{
    http_client::ask,
    ports::free_address,
    postgres_server::{program, try_execute, user},
};

/// The number of servers.
pub const NODES: usize = 3;
/// The longest wait. Only a hanging test takes this long.
const HANGS: Duration = Duration::from_secs(180);
/// The time within which a cluster must start. It usually takes ten seconds.
const STARTED: Duration = Duration::from_secs(90);
/// The most clusters that are started until one is complete.
const STARTS: usize = 3;
/// The number of lines of a log that are printed.
const LOG: usize = 60;
/// The polling interval for conditions without an event to wait for.
const LOOK: Duration = Duration::from_millis(50);

/// The script that runs a command beside the tests. It runs until its standard input is closed,
/// which happens when this process ends in any way. It then ends the command and any postmaster,
/// and deletes the folder.
const KEEPER: &str = r#"
set -u
dir=$1
shift
"$@" >"$dir/log" 2>&1 &
pid=$!
echo "$pid" >"$dir/pid"
while read -r _; do :; done
kill -9 "$pid" 2>/dev/null
if read -r postmaster <"$dir/data/postmaster.pid" 2>/dev/null; then
    kill -CONT "$postmaster" 2>/dev/null
    kill -QUIT "$postmaster" 2>/dev/null &&
        while kill -0 "$postmaster" 2>/dev/null; do sleep 0.1; done
fi
rm -rf "$dir"
"#;

/// A process with a folder of its own.
struct Kept {
    dir: PathBuf,
    keeper: Child,
}

impl Kept {
    /// Runs a process in a new folder. `prepare` may write files into the folder, and returns the
    /// command.
    fn start(prepare: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::Builder::new().prefix("countersign-ha-").tempdir().unwrap().keep();
        let command = prepare(&dir);
        let mut keeper = Command::new("sh");
        keeper
            .args(["-c", KEEPER, "sh"])
            .arg(&dir)
            .args(command)
            .current_dir(&dir)
            .env("HOME", &dir);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        if let Some((uid, gid)) = user() {
            chown(&dir, Some(uid), Some(gid)).unwrap();
            for made in fs::read_dir(&dir).unwrap() {
                chown(made.unwrap().path(), Some(uid), Some(gid)).unwrap();
            }
            keeper.uid(uid).gid(gid);
        }
        Self { dir, keeper: keeper.spawn().unwrap() }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A PostgreSQL server and the Patroni that manages it.
struct Node {
    process: Kept,
    postgres: u16,
    patroni: SocketAddr,
}

/// The processes of a node that a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The postmaster alone.
    Postmaster,
    /// The postmaster and its children.
    Server,
    /// The postmaster, its children and Patroni.
    All,
}

impl Node {
    fn name(index: usize) -> String {
        format!("node{index}")
    }

    /// Returns the process identifiers in the order in which the processes get a signal. Patroni is
    /// first, so that it cannot react to what happens to the server. Then come the postmaster and
    /// its children.
    fn pids(&self, part: Part) -> Vec<String> {
        let first_line = |file: &str| {
            let text = fs::read_to_string(self.process.dir.join(file)).unwrap();
            text.lines().next().unwrap().trim().to_owned()
        };
        let postmaster = first_line("data/postmaster.pid");
        if part == Part::Postmaster {
            return vec![postmaster];
        }
        let children =
            fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).unwrap();
        let mut pids = if part == Part::All { vec![first_line("pid")] } else { vec![] };
        pids.push(postmaster);
        pids.extend(children.split_whitespace().map(str::to_owned));
        pids
    }
}

/// The servers, the etcd by which Patroni elects the leader, and the HAProxy that forwards
/// connections to the leader.
pub struct Patroni {
    nodes: Vec<Node>,
    haproxy: Option<Kept>,
    // etcd is dropped last, because the others depend on it.
    etcd: Kept,
}

fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

impl Patroni {
    /// Starts everything but HAProxy, and waits until the cluster is complete. If that takes too
    /// long, another cluster is started, because these tests do not test the start of a cluster.
    pub async fn start() -> Self {
        for _ in 1..STARTS {
            let cluster = Self::begin();
            if seen(STARTED, async || cluster.complete().await).await.is_some() {
                return cluster;
            }
            println!("a cluster was not complete within {STARTED:?}: {:#?}", cluster.logs());
        }
        let cluster = Self::begin();
        cluster.await_complete().await;
        cluster
    }

    fn begin() -> Self {
        for program in ["patroni", "etcd"] {
            let there = Command::new(program).arg("--version").output().is_ok();
            assert!(
                there,
                "these tests run {program}: install it (Debian: `apt-get install patroni \
                 etcd-server`)"
            );
        }
        let (client, peer) = (free_address().port(), free_address().port());
        let etcd = Kept::start(|dir| {
            let (client, peer) =
                (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            words(&format!(
                "etcd --name one --data-dir {}/data
                 --listen-client-urls {client} --advertise-client-urls {client}
                 --listen-peer-urls {peer} --initial-advertise-peer-urls {peer}
                 --initial-cluster one={peer}",
                dir.display()
            ))
        });
        let mut nodes = vec![];
        for index in 0..NODES {
            let (postgres, patroni) = (free_address().port(), free_address());
            let process = Kept::start(|dir| {
                let file = dir.join("patroni.yml");
                fs::write(&file, configuration(dir, index, client, postgres, patroni)).unwrap();
                vec!["patroni".to_owned(), file.display().to_string()]
            });
            nodes.push(Node { process, postgres, patroni });
        }
        Self { nodes, haproxy: None, etcd }
    }

    /// Starts HAProxy in front of the servers, configured as in `docs/postgresql.md`. Returns the
    /// URL of a database through HAProxy, once HAProxy forwards connections to the leader.
    pub async fn start_haproxy(&mut self, database: &str) -> String {
        let port = free_address().port();
        let process = Kept::start(|dir| {
            let servers = self.nodes.iter().enumerate().map(|(index, node)| {
                let check = node.patroni.port();
                format!(
                    "    server {} 127.0.0.1:{} check port {check}\n",
                    Node::name(index),
                    node.postgres
                )
            });
            let text = format!(
                "defaults\n    mode tcp\n    timeout connect 1s\n    timeout check 1s\n    \
                 timeout client 1h\n    timeout server 1h\nlisten primary\n    bind \
                 127.0.0.1:{port}\n    option httpchk OPTIONS /primary\n    http-check expect \
                 status 200\n    default-server inter 1s fall 2 rise 1 on-marked-down \
                 shutdown-sessions\n{}",
                servers.collect::<String>()
            );
            let file = dir.join("haproxy.cfg");
            fs::write(&file, text).unwrap();
            vec![
                "haproxy".to_owned(),
                "-db".to_owned(),
                "-f".to_owned(),
                file.display().to_string(),
            ]
        });
        self.haproxy = Some(process);
        let url = format!("postgres://postgres@127.0.0.1:{port}/{database}");
        // Before its first checks, HAProxy considers all servers healthy, and forwards connections
        // to each in turn.
        let is_leader =
            "DO $$ BEGIN IF pg_is_in_recovery() THEN RAISE EXCEPTION 'a standby'; END IF; END $$";
        self.wait("HAProxy has found the leader", async || {
            for _ in 0..2 * NODES {
                try_execute(&url, is_leader).await.ok()?;
            }
            Some(())
        })
        .await;
        url
    }

    /// Waits until there are a leader and a synchronous standby, and no member is missing. Returns
    /// the leader.
    pub async fn await_complete(&self) -> usize {
        self.wait("the cluster is complete", async || self.complete().await).await
    }

    async fn complete(&self) -> Option<usize> {
        let mut leader = None;
        let (mut sync, mut running) = (0, 0);
        for member in self.members().await? {
            let is_running = matches!(member["state"].as_str(), Some("running" | "streaming"));
            running += usize::from(is_running);
            sync += usize::from(member["role"] == "sync_standby");
            if member["role"] == "leader" && is_running {
                leader = (0..NODES).find(|index| member["name"] == Node::name(*index));
            }
        }
        leader.filter(|_| sync == 1 && running == NODES)
    }

    async fn wait<T>(&self, what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
        match seen(HANGS, look).await {
            Some(seen) => seen,
            None => panic!("not within {HANGS:?}: {what}: {:#?}", self.logs()),
        }
    }

    /// Returns the last lines that etcd, and each Patroni and its server, have logged, without
    /// indented lines.
    pub fn logs(&self) -> Vec<String> {
        let nodes = self.nodes.iter().enumerate();
        let named = nodes.map(|(index, node)| (Node::name(index), &node.process));
        let mut lines = vec![];
        for (name, process) in named.chain([("etcd".to_owned(), &self.etcd)]) {
            let log = fs::read_to_string(process.dir.join("log")).unwrap_or_default();
            let log: Vec<_> = log.lines().filter(|line| !line.starts_with(' ')).collect();
            let last = log.iter().skip(log.len().saturating_sub(LOG));
            lines.extend(last.map(|line| format!("{name}: {line}")));
        }
        lines
    }

    /// Returns the members of the cluster, as the first Patroni that answers reports them.
    async fn members(&self) -> Option<Vec<Value>> {
        for node in &self.nodes {
            if let Some(text) = request(node.patroni, "GET", "/cluster", "").await {
                let cluster: Value = serde_json::from_str(&text).ok()?;
                return cluster["members"].as_array().cloned();
            }
        }
        None
    }

    /// Returns the URL of a database that names all servers, with the leader at this position.
    pub fn url(&self, leader: usize, position: usize, database: &str) -> String {
        let mut order: Vec<_> = (0..NODES).filter(|index| *index != leader).collect();
        order.insert(position, leader);
        let hosts: Vec<_> = order
            .iter()
            .map(|index| format!("127.0.0.1:{}", self.nodes[*index].postgres))
            .collect();
        format!(
            "postgres://postgres@{}/{database}?target_session_attrs=read-write",
            hosts.join(",")
        )
    }

    /// Returns the URL of a database that names a single server.
    pub fn url_of(&self, index: usize, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.nodes[index].postgres)
    }

    /// Asks Patroni for a switchover to another leader.
    pub async fn switch_over(&self, leader: usize) {
        let body = format!(r#"{{"leader": "{}"}}"#, Node::name(leader));
        // The answer comes when the switchover is complete.
        let _ = request(self.nodes[leader].patroni, "POST", "/switchover", &body).await;
    }

    /// Sends a signal to processes of a node.
    pub fn signal(&self, index: usize, part: Part, signal: &str) {
        let pids = self.nodes[index].pids(part);
        // The later processes may already have ended with the first.
        let _ = Command::new("kill")
            .args(["-s", signal])
            .args(pids)
            .stderr(Stdio::null())
            .status()
            .unwrap();
    }

    /// Waits until some server accepts a commit. A server that wrongly believes itself to be the
    /// leader accepts none.
    pub async fn accepts_a_commit(&self, database: &str) {
        self.wait("a commit is accepted", async || {
            let commits = (0..NODES).map(async |index| {
                let url = self.url_of(index, database);
                let commit =
                    "CREATE TABLE IF NOT EXISTS ha_probe (at timestamptz); INSERT INTO ha_probe \
                     VALUES (now())";
                let commit = timeout(Duration::from_secs(1), try_execute(&url, commit));
                matches!(commit.await, Ok(Ok(())))
            });
            futures_util::future::join_all(commits).await.contains(&true).then_some(())
        })
        .await;
    }
}

/// Polls until `look` returns a value, and returns `None` if that takes longer than the limit.
async fn seen<T>(limit: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let looking = async {
        loop {
            match look().await {
                Some(seen) => return seen,
                None => sleep(LOOK).await,
            }
        }
    };
    timeout(limit, looking).await.ok()
}

/// Makes a request to Patroni. Returns the body of the answer if its status is 200.
async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Option<String> {
    tokio::net::TcpStream::connect(address).await.ok()?;
    let length = body.len();
    let text = format!("{method} {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}");
    let answer = tokio::spawn(async move { ask(address, &text).await });
    // A suspended Patroni accepts connections but does not answer. Neither does a Patroni that is
    // killed during the request.
    let answer = timeout(Duration::from_secs(20), answer).await.ok()?.ok()?;
    (answer.status == 200).then_some(answer.body)
}

fn configuration(
    dir: &Path,
    index: usize,
    etcd: u16,
    postgres: u16,
    patroni: SocketAddr,
) -> String {
    let dir = dir.display();
    let name = Node::name(index);
    let bin = program("postgres");
    let bin = bin.parent().unwrap().display();
    format!(
        r#"
scope: countersign
name: {name}
restapi: {{listen: "{patroni}", connect_address: "{patroni}"}}
etcd3: {{host: "127.0.0.1:{etcd}"}}
bootstrap:
  dcs:
    # The shortest ttl that Patroni accepts, with the longest retry_timeout that this ttl allows.
    ttl: 20
    loop_wait: 1
    retry_timeout: 9
    synchronous_mode: true
    synchronous_mode_strict: true
    synchronous_node_count: 1
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters: {{max_connections: 200, synchronous_commit: "on"}}
  initdb: [encoding: UTF8, locale: C, data-checksums]
  pg_hba:
    - local all all trust
    - host all all 127.0.0.1/32 trust
    - host replication all 127.0.0.1/32 trust
postgresql:
  listen: 127.0.0.1:{postgres}
  connect_address: 127.0.0.1:{postgres}
  bin_dir: {bin}
  data_dir: {dir}/data
  pgpass: {dir}/pgpass
  authentication:
    superuser: {{username: postgres}}
    replication: {{username: replicator}}
  basebackup: {{checkpoint: fast}}
  parameters: {{unix_socket_directories: "{dir}", lc_messages: C}}
"#
    )
}
