//! A collector of another project that runs as a process, and services that export to it.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use countersign_test_support::{
    certificates::Certificates,
    process::{Server, serve},
};
use serde_json::Value;
use tonic::transport::Channel;

use super::libraries;

/// The longest wait for a span or for metrics.
pub const HANGS: Duration = Duration::from_secs(60);

/// A collector, which is killed when it is dropped.
pub struct Collector {
    child: Child,
    /// The spans that it has received.
    pub spans: Receiver<Value>,
    /// The exports of metrics that it has received.
    pub metrics: Receiver<Value>,
    port: u64,
    scheme: &'static str,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Collector {
    /// Starts a collector on any free port.
    pub fn start(protocol: &str, behaviour: &str) -> Self {
        Self::launch("http", &[protocol, behaviour])
    }

    /// Starts a collector on this port.
    pub fn start_at(port: u16, protocol: &str, behaviour: &str) -> Self {
        Self::launch("http", &[protocol, behaviour, "--port", &port.to_string()])
    }

    /// Starts a collector with the certificate of a server.
    pub fn start_with_tls(protocol: &str, certificates: &Certificates) -> Self {
        let [certificate, key] = ["server.pem", "server.key"].map(|name| certificates.path(name));
        let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
        Self::launch("https", &[protocol, "ok", "--certificate", certificate, "--key", key])
    }

    fn launch(scheme: &'static str, arguments: &[&str]) -> Self {
        let libraries = libraries();
        let mut command = Command::new(libraries.join("venv/bin/python"));
        command.arg("collector.py").args(arguments).current_dir(libraries);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = output.next().unwrap().unwrap().parse().unwrap();
        let (span, spans) = mpsc::channel::<Value>();
        let (export, metrics) = mpsc::channel::<Value>();
        thread::spawn(move || {
            output.map_while(Result::ok).try_for_each(|line| {
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["metrics"].is_null() { span.send(line) } else { export.send(line) }
            })
        });
        Self { child, spans, metrics, port, scheme }
    }

    /// Returns the port of the collector.
    pub fn port(&self) -> u64 {
        self.port
    }

    /// Returns the URL of the collector.
    pub fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// Waits for a span with this name, or of this operation of the store, in a trace. Keeps what
    /// it has received in `seen`.
    #[track_caller]
    pub fn span(&self, seen: &mut Vec<Value>, trace: &str, name: &str) -> Value {
        self.find(seen, |span| {
            span["trace"] == trace
                && (span["name"] == name || span["attributes"]["operation"] == name)
        })
    }

    /// Waits for a span that meets a condition. Keeps what it has received in `seen`.
    #[track_caller]
    pub fn find(&self, seen: &mut Vec<Value>, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            if let Some(span) = seen.iter().find(|span| is_it(span)) {
                return span.clone();
            }
            let next = self.spans.recv_timeout(HANGS);
            seen.push(next.unwrap_or_else(|_| panic!("the span has not come: {seen:#?}")));
        }
    }
}

/// Returns a command for a service that exports to a collector: all traces that clients ask for,
/// and the metrics once a second.
pub fn exporting(home: &Path, endpoint: &str, protocol: &str) -> Command {
    let mut command = serve(home);
    command.env("COUNTERSIGN_OTLP__ENDPOINT", endpoint);
    command.env("COUNTERSIGN_OTLP__PROTOCOL", protocol);
    command.env("COUNTERSIGN_OTLP__SAMPLE_RATIO", "0");
    command.env("COUNTERSIGN_OTLP__METRICS_INTERVAL", "1s");
    // Traces do not depend on the level of the log.
    let level = "info,countersign=warn,countersign::app=info,countersign::telemetry=info";
    command.env("COUNTERSIGN_LOG__LEVEL", level);
    command
}

/// Connects to a service.
pub async fn channel(server: &Server) -> Channel {
    let address = format!("http://{}", server.address());
    Channel::from_shared(address).unwrap().connect().await.unwrap()
}

/// Waits until a service has warned that it drops this kind of data, and returns the line.
#[track_caller]
pub fn warning(server: &mut Server, kind: &str) -> Value {
    let message = format!("{kind} are dropped, because the collector cannot be reached");
    // The first export precedes the line by which a service says that it serves.
    let mut lines =
        server.seen().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let seen = lines.find(|line| line["message"] == message);
    seen.unwrap_or_else(|| server.line(&message))
}

/// Returns how many times a service has warned that it drops this kind of data.
pub fn count_warnings(log: &[String], kind: &str) -> usize {
    log.iter().filter(|line| line.contains(&format!("{kind} are dropped"))).count()
}
