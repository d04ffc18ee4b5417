//! Runs the real binary as a process of its own. A test reads the log lines as the process writes
//! them, and can wait for its exit. No process outlives its test.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use countersign::proto::session_service_client::SessionServiceClient;
use serde_json::Value;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// The longest time that a test waits. A test that would otherwise hang fails after this time.
const HANGS: Duration = Duration::from_secs(60);

/// Returns the path of the binary. Cargo builds the binary before the integration tests, into the
/// folder above theirs. It passes the path only to the tests themselves, in a variable at compile
/// time, so this library derives the path from that of the running test.
pub fn executable() -> PathBuf {
    let test = env::current_exe().unwrap();
    let folder = test.ancestors().nth(2).expect("a test is in target/PROFILE/deps");
    let path = folder.join("countersign");
    assert!(path.is_file(), "there is no {}: `cargo build` builds it", path.display());
    path
}

/// Returns a command for the binary, without the settings in the environment of the test.
pub fn countersign() -> Command {
    let mut command = Command::new(executable());
    without_settings(&mut command);
    command
}

/// Removes the settings in the environment of the test from a command, and makes the command use
/// any free port for HTTP, because many processes run at once.
pub fn without_settings(command: &mut Command) {
    for (name, _) in
        env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COUNTERSIGN_"))
    {
        command.env_remove(name);
    }
    command.env("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:0").stdin(Stdio::null());
}

/// Returns a command for `serve` on a free port. The server stops without a grace period, because
/// in tests there is no load balancer that must learn of the stop first.
pub fn serve(data_dir: &Path) -> Command {
    let mut command = countersign();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).env(GRACE, "0s");
    command
}

/// The variable for the time for which a stopping server still accepts calls.
pub const GRACE: &str = "COUNTERSIGN_SHUTDOWN__GRACE";

/// The result of a CLI command that has ended.
#[derive(Debug)]
pub struct Run {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// The standard output.
    pub stdout: String,
    /// The standard error.
    pub stderr: String,
}

impl Run {
    /// Returns the standard output. Panics if the command failed, or if it wrote anything but audit
    /// records to standard error.
    #[track_caller]
    pub fn ok(self) -> String {
        let others =
            self.stderr.lines().filter(|line| !line.contains("countersign::audit")).count();
        assert_eq!((self.code, others), (Some(0), 0), "{self:?}");
        self.stdout
    }

    /// Returns the standard output as JSON. Panics in the same cases as [`Run::ok`].
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("--json prints JSON")
    }

    /// Checks that the command failed with `code`, and returns the only line on standard error that
    /// follows the log lines of the start.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        let is_log = |line: &&str| {
            serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"] == "INFO")
        };
        let lines: Vec<_> = self.stderr.lines().skip_while(is_log).collect();
        assert_eq!(lines.len(), 1, "one line: {self:?}");
        lines[0].strip_prefix("countersign: ").expect("the line begins with the program's name")
    }
}

/// Runs a CLI command to its end.
pub fn run(command: &mut Command) -> Run {
    run_with_input(command, "")
}

/// Runs a CLI command to its end, with this standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Run {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = KilledOnDrop(child.expect("the binary runs"));
    let mut stdin = child.0.stdin.take().unwrap();
    // The command may have ended without reading its input.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let stdout = read_all(child.0.stdout.take().unwrap());
    let stderr = read_all(child.0.stderr.take().unwrap());
    let text =
        |output: Receiver<String>| output.recv_timeout(HANGS).expect("the command ends in time");
    let (stdout, stderr) = (text(stdout), text(stderr));
    Run { code: child.0.wait().unwrap().code(), stdout, stderr }
}

fn read_all(mut output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).expect("output is UTF-8");
        let _ = sender.send(text);
    });
    receiver
}

/// A child process that is killed when it is dropped.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that serves. Dropping this value kills the process as `kill -9` does.
pub struct Server {
    child: KilledOnDrop,
    lines: Receiver<String>,
    seen: Vec<String>,
    address: Option<SocketAddr>,
    http: Option<SocketAddr>,
}

/// If the test fails, prints the last lines of the process, and whether it had ended before.
impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            let last = self.seen.len().saturating_sub(10);
            eprintln!(
                "{:?}: {:?}, {:#?}",
                self.address,
                self.child.0.try_wait(),
                &self.seen[last..]
            );
        }
    }
}

impl Server {
    /// Starts a server with this data directory, and waits until it serves.
    pub fn start(data_dir: &Path) -> Self {
        Self::launch(&mut serve(data_dir))
    }

    /// Starts a server by this command, and waits until it serves.
    pub fn launch(command: &mut Command) -> Self {
        let mut server = Self::spawn(command);
        server.await_serving();
        server
    }

    /// Waits until the server serves.
    #[track_caller]
    pub fn await_serving(&mut self) {
        assert!(
            self.listens() && self.comes("serving").is_some(),
            "the process has ended: {:#?}",
            self.seen
        );
    }

    /// Waits until the server listens. Until it serves, it may refuse calls. Returns false if the
    /// process has ended instead.
    #[track_caller]
    pub fn listens(&mut self) -> bool {
        let starting = self.comes("starting");
        let address =
            |name: &str| starting.as_ref().and_then(|line| line[name].as_str()?.parse().ok());
        (self.address, self.http) = (address("listen"), address("http"));
        self.address.is_some()
    }

    /// Starts a server by this command, and does not wait for it.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = KilledOnDrop(child.expect("the binary runs"));
        let stderr = BufReader::new(child.0.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines, seen: vec![], address: None, http: None }
    }

    /// Waits for the log line with this message, and panics if the process ends without it.
    #[track_caller]
    pub fn line(&mut self, message: &str) -> Value {
        self.comes(message).unwrap_or_else(|| panic!("no line says {message:?}: {:#?}", self.seen))
    }

    /// Waits for the log line with this message. Returns `None` if the process ends without it.
    #[track_caller]
    pub fn comes(&mut self, message: &str) -> Option<Value> {
        let began = Instant::now();
        loop {
            let line = match self.lines.recv_timeout(HANGS.saturating_sub(began.elapsed())) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("no line says {message:?}: {:#?}", self.seen)
                }
            };
            self.seen.push(line.clone());
            let entry: Value = serde_json::from_str(&line).unwrap_or_default();
            if entry["message"] == message {
                return Some(entry);
            }
        }
    }

    /// Waits for the next line of the log.
    #[track_caller]
    pub fn next_line(&mut self) -> String {
        let line = self
            .lines
            .recv_timeout(HANGS)
            .unwrap_or_else(|_| panic!("no more lines: {:#?}", self.seen));
        self.seen.push(line.clone());
        line
    }

    /// Returns all lines that the server has logged so far.
    pub fn log(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// Returns whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_some()
    }

    /// Returns the identifier of the process.
    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends a signal, such as "TERM".
    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// Ends the process as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    /// Waits until the process exits.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            match self.lines.recv_timeout(HANGS.saturating_sub(began.elapsed())) {
                Ok(line) => self.seen.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.child.0.wait().unwrap(),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("the process does not end: {:#?}", self.seen)
                }
            }
        }
    }

    /// Stops the server gracefully, and returns its log lines.
    #[track_caller]
    pub fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        assert_eq!(self.exit().code(), Some(0), "{:#?}", self.seen);
        std::mem::take(&mut self.seen)
    }

    /// Returns the log lines that have been read so far.
    pub fn seen(&self) -> &[String] {
        &self.seen
    }

    /// Returns the address on which the server listens for gRPC.
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// Returns the address on which the server listens for HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http.unwrap()
    }

    /// Opens a new connection.
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address()))
            .unwrap()
            .connect()
            .await
            .expect("the server listens")
    }

    /// Returns a client with a new connection.
    pub async fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel().await)
    }

    /// Returns a subcommand that calls this server.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = countersign();
        command.args(args).env("COUNTERSIGN_SERVER", format!("http://{}", self.address()));
        command
    }

    /// Runs a subcommand that calls this server.
    pub fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Run {
        run(&mut self.command(args))
    }
}
