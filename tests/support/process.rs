//! Runs the real binary as a process of its own: its log lines are read as they come, its end is
//! awaited, and none outlives its test.

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use countersign::proto::session_service_client::SessionServiceClient;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

/// Nothing takes this long unless it hangs: a test that would wait for ever fails instead.
const HANGS: Duration = Duration::from_secs(60);

/// The binary, with none of the settings that the surroundings of the test may have.
pub fn countersign() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_countersign"));
    without_settings(&mut command);
    command
}

/// Takes the settings of the test's surroundings away from a child, and has it take any port for
/// HTTP: many run at once.
pub fn without_settings(command: &mut Command) {
    for (name, _) in
        env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("COUNTERSIGN_"))
    {
        command.env_remove(name);
    }
    command.env("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:0").stdin(Stdio::null());
}

/// `serve` on a free port. It stops without grace, so that tests do not wait for load balancers
/// that are not there.
pub fn serve(data_dir: &Path) -> Command {
    let mut command = countersign();
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).env(GRACE, "0s");
    command
}

/// The variable that says how long a server that stops still takes calls.
pub const GRACE: &str = "COUNTERSIGN_SHUTDOWN__GRACE";

/// What a verb that has come to its end left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Its standard output, if all went well. What it did may be in the audit.
    #[track_caller]
    pub fn ok(self) -> String {
        let others =
            self.stderr.lines().filter(|line| !line.contains("countersign::audit")).count();
        assert_eq!((self.code, others), (Some(0), 0), "{self:?}");
        self.stdout
    }

    /// Its standard output as JSON, if all went well.
    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).expect("--json prints JSON")
    }

    /// The only line that it wrote to standard error when it failed with `code`, log lines of its
    /// start aside.
    #[track_caller]
    pub fn error(&self, code: i32) -> &str {
        assert_eq!(self.code, Some(code), "{self:?}");
        let is_log = |line: &&str| {
            serde_json::from_str::<Value>(line).is_ok_and(|line| line["level"] == "INFO")
        };
        let lines: Vec<_> = self.stderr.lines().skip_while(is_log).collect();
        assert_eq!(lines.len(), 1, "one line: {self:?}");
        lines[0].strip_prefix("countersign: ").expect("it says who speaks")
    }
}

/// Runs a verb to its end.
pub fn run(command: &mut Command) -> Run {
    run_with_input(command, "")
}

/// Runs a verb to its end, with this on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Run {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Mortal(child.expect("the binary runs"));
    let mut stdin = child.0.stdin.take().unwrap();
    // A verb that does not read its input may have gone.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let stdout = read_all(child.0.stdout.take().unwrap());
    let stderr = read_all(child.0.stderr.take().unwrap());
    let text =
        |output: Receiver<String>| output.recv_timeout(HANGS).expect("the verb comes to an end");
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

/// A child that does not outlive its owner.
struct Mortal(Child);

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that serves. Dropping it kills it as `kill -9` does.
pub struct Server {
    child: Mortal,
    lines: Receiver<String>,
    seen: Vec<String>,
    address: Option<SocketAddr>,
    http: Option<SocketAddr>,
}

/// A test that fails tells what the process said last, and whether it had ended before.
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
    /// Serves this directory.
    pub fn start(data_dir: &Path) -> Self {
        Self::launch(&mut serve(data_dir))
    }

    /// Runs a command that serves, and returns once it does.
    pub fn launch(command: &mut Command) -> Self {
        let mut server = Self::spawn(command);
        server.await_serving();
        server
    }

    /// Waits until it serves.
    #[track_caller]
    pub fn await_serving(&mut self) {
        assert!(
            self.listens() && self.comes("serving").is_some(),
            "it has ended: {:#?}",
            self.seen
        );
    }

    /// Waits until it takes calls, which it may refuse as long as it does not serve. False: it has
    /// ended.
    #[track_caller]
    pub fn listens(&mut self) -> bool {
        let starting = self.comes("starting");
        let address =
            |name: &str| starting.as_ref().and_then(|line| line[name].as_str()?.parse().ok());
        (self.address, self.http) = (address("listen"), address("http"));
        self.address.is_some()
    }

    /// Runs a command and waits for nothing.
    pub fn spawn(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child = Mortal(child.expect("the binary runs"));
        let stderr = BufReader::new(child.0.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines, seen: vec![], address: None, http: None }
    }

    /// Waits for the log line with this message.
    #[track_caller]
    pub fn line(&mut self, message: &str) -> Value {
        self.comes(message).unwrap_or_else(|| panic!("no line says {message:?}: {:#?}", self.seen))
    }

    /// Waits for the log line with this message; none if the process ends without it.
    #[track_caller]
    pub fn comes(&mut self, message: &str) -> Option<Value> {
        loop {
            let line = match self.lines.recv_timeout(HANGS) {
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

    /// All that it has said so far.
    pub fn log(&mut self) -> &[String] {
        self.seen.extend(self.lines.try_iter());
        &self.seen
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.0.try_wait().unwrap().is_some()
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.0.id()
    }

    /// Sends a signal, like "TERM".
    pub fn signal(&self, name: &str) {
        let kill = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(kill.unwrap().success());
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.0.kill().unwrap();
        self.child.0.wait().unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        loop {
            match self.lines.recv_timeout(HANGS) {
                Ok(line) => self.seen.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => return self.child.0.wait().unwrap(),
                Err(mpsc::RecvTimeoutError::Timeout) => panic!("it does not end: {:#?}", self.seen),
            }
        }
    }

    /// Stops it in good order.
    #[track_caller]
    pub fn stop(mut self) -> Vec<String> {
        self.signal("TERM");
        assert_eq!(self.exit().code(), Some(0), "{:#?}", self.seen);
        std::mem::take(&mut self.seen)
    }

    /// The lines on its standard error that have been waited for.
    pub fn seen(&self) -> &[String] {
        &self.seen
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// Where it listens for HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http.unwrap()
    }

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address()))
            .unwrap()
            .connect()
            .await
            .expect("it listens")
    }

    /// A client with a connection of its own.
    pub async fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel().await)
    }

    /// A verb that talks to this server.
    pub fn verb<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = countersign();
        command.args(args).env("COUNTERSIGN_SERVER", format!("http://{}", self.address()));
        command
    }

    /// Runs a verb that talks to this server.
    pub fn cli<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Run {
        run(&mut self.verb(args))
    }
}
