//! Makes HTTP requests over a plain socket, and reads metrics.

use std::{collections::BTreeMap, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Requests a path.
pub async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")).await
}

/// Sends a request as it is, and reads until the connection is closed.
pub async fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![];
    // A server that refuses a request may close the connection before it has read all of it.
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// The metrics of a service, by name with labels.
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Reads the metrics.
    pub async fn of(address: SocketAddr) -> Self {
        let answer = get(address, "/metrics").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        Self(
            lines
                .map(|line| line.rsplit_once(' ').unwrap())
                .map(|(name, v)| (name.to_owned(), v.parse().unwrap()))
                .collect(),
        )
    }

    /// Returns the value of a metric. `name` lacks the prefix that the names of all metrics have.
    #[track_caller]
    pub fn get(&self, name: &str) -> f64 {
        self.find(name).unwrap_or_else(|| panic!("no {name} in {:#?}", self.0))
    }

    /// Returns the value of a metric that may not exist.
    pub fn find(&self, name: &str) -> Option<f64> {
        self.0.get(&format!("countersign_{name}")).copied()
    }

    /// Returns the number of acknowledgements with this outcome.
    pub fn acknowledged(&self, outcome: &str) -> f64 {
        self.get(&format!("acknowledgement_duration_seconds_count{{outcome=\"{outcome}\"}}"))
    }

    /// Returns the number of renewals with this outcome.
    pub fn renewals(&self, outcome: &str) -> f64 {
        self.get(&format!("lease_renewals_total{{outcome=\"{outcome}\"}}"))
    }
}
