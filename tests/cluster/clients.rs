//! The client libraries lose no call while the replicas are restarted one after the other.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use countersign_test_support::{
    client_programs::client_programs,
    cluster::{Cluster, eventually},
    ports::free_address,
    postgres_server::{new_database, number},
    process::{GRACE, Server},
};
use serde_json::{Value, json};

/// The longest time that a driver may take for a command.
const HANGS: Duration = Duration::from_secs(60);
/// The deadline of calls, in milliseconds. The machine is busy with the load.
const DEADLINE: u32 = 20_000;
/// The number of sessions that each application must create before the next restart.
const BETWEEN_RESTARTS: i64 = 5;

/// A driver of a client library, which `clients/situations/README.md` describes. Dropping this
/// value kills it.
struct Driver {
    name: String,
    child: Child,
    commands: ChildStdin,
    answers: Receiver<String>,
}

impl Driver {
    fn start(name: String, command: &mut Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { name, commands: child.stdin.take().unwrap(), child, answers }
    }

    fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.commands, "{command}").unwrap();
        let answer = tokio::task::block_in_place(|| self.answers.recv_timeout(HANGS));
        let answer = answer.unwrap_or_else(|error| panic!("{}: {command}: {error}", self.name));
        serde_json::from_str(&answer).unwrap()
    }

    /// Lets an application work in the background, with a verifier of this mode.
    fn start_load(&mut self, endpoints: &[String], mode: &str) {
        let connect = json!({
            "do": "connect",
            "endpoints": endpoints,
            "deadline_ms": DEADLINE,
            "revocation_deadline_ms": DEADLINE,
        });
        let name = self.name.clone();
        for (command, answer) in [
            (connect, json!({})),
            (json!({ "do": "verifier", "mode": mode }), json!({})),
            (json!({ "do": "ready", "within_ms": DEADLINE }), json!({ "ready": true })),
            (json!({ "do": "load", "subject": name }), json!({})),
        ] {
            assert_eq!(self.ask(&command), answer, "{name}: {command}");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a replica at an address that does not change.
fn start_replica(cluster: &Cluster, address: SocketAddr) -> Server {
    let mut command = cluster.command(&["serve", "--listen", &address.to_string()]);
    command.env(GRACE, "0s").env("COUNTERSIGN_REPLICA__NAME", address.to_string());
    tokio::task::block_in_place(|| Server::launch(&mut command))
}

/// Waits until each application has created some more sessions.
async fn progress(url: &str, loads: &[Driver]) {
    for load in loads {
        let count = format!("SELECT count(*) FROM sessions WHERE subject = '{}'", load.name);
        let expected = number(url, &count).await + BETWEEN_RESTARTS;
        let what = format!("{} works", load.name);
        let has_more = async || (number(url, &count).await >= expected).then_some(());
        eventually(&what, has_more).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the client libraries must be built: scripts/test runs it after their checks"]
async fn no_call_of_a_client_library_fails_during_a_rolling_restart() {
    let url = new_database().await;
    let cluster = Cluster::new(&url);
    let addresses = [free_address(), free_address(), free_address()];
    let mut replicas = addresses.map(|address| start_replica(&cluster, address));
    let endpoints = addresses.map(|address| format!("http://{address}"));
    let mut loads = vec![];
    for mode in ["remote", "local"] {
        for client in client_programs("clients/situations/drivers.json") {
            let name = format!("{}-{mode}", client.language);
            let mut driver = Driver::start(name, &mut client.command());
            driver.start_load(&endpoints, mode);
            loads.push(driver);
        }
    }
    assert!(!loads.is_empty());
    for (replica, address) in replicas.iter_mut().zip(addresses) {
        progress(&url, &loads).await;
        replica.signal("TERM");
        let status = tokio::task::block_in_place(|| replica.exit());
        assert!(status.success(), "{status}");
        *replica = start_replica(&cluster, address);
    }
    progress(&url, &loads).await;
    let mut failed = vec![];
    for load in &mut loads {
        let result = load.ask(&json!({ "do": "load_end" }));
        assert!(result["rounds"].as_u64().unwrap() > 0, "{}: {result}", load.name);
        println!("{}: {result}", load.name);
        if result["failed"] != 0 {
            failed.push(format!("{}: {result}", load.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
