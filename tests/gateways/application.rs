//! The application behind a gateway. It answers each request with the request's headers, and keeps
//! the exact bytes of the request target. It uses no HTTP library, because a library would refuse
//! or normalize some targets.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use countersign_test_support::http_client::Answer;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

pub struct Application {
    pub address: SocketAddr,
    targets: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Application {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let targets = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let kept = targets.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(answer(connection, kept.clone()));
            }
        });
        Self { address, targets }
    }

    /// Returns the number of requests that have reached the application.
    pub fn requests(&self) -> usize {
        self.targets.lock().unwrap().len()
    }

    /// Returns the targets of the requests that have reached the application, without the first
    /// `requests` of them.
    pub fn targets_after(&self, requests: usize) -> Vec<Vec<u8>> {
        self.targets.lock().unwrap()[requests..].to_vec()
    }

    /// Returns the headers of the request to which this is the answer. They are read as by an
    /// application that treats an underscore as a hyphen.
    pub fn headers_of(&self, answer: &Answer) -> Map<String, Value> {
        let start = answer
            .body
            .find('{')
            .unwrap_or_else(|| panic!("the answer is not from the application: {answer:?}"));
        let end = answer.body.rfind('}').unwrap();
        serde_json::from_str(&answer.body[start..=end]).unwrap()
    }

    /// Returns those headers of the request to which this is the answer that state the identity of
    /// the client.
    pub fn identity_of(&self, answer: &Answer) -> Map<String, Value> {
        // Some gateways send such a header empty, instead of removing it.
        let is_set = |values: &Value| values != &serde_json::json!([""]);
        self.headers_of(answer)
            .into_iter()
            .filter(|(name, values)| name.starts_with("x-auth-") && is_set(values))
            .collect()
    }
}

/// Reads the head of one request, which has no body, keeps its target and answers it.
async fn answer(mut connection: TcpStream, targets: Arc<Mutex<Vec<Vec<u8>>>>) {
    let mut request = vec![];
    while !request.ends_with(b"\r\n\r\n") {
        match connection.read_buf(&mut request).await {
            Ok(read) if read > 0 => (),
            _ => return,
        }
    }
    let (line, headers) =
        request.split_at(request.windows(2).position(|pair| pair == b"\r\n").unwrap());
    let start = line.iter().position(|byte| *byte == b' ').unwrap() + 1;
    let end = line.iter().rposition(|byte| *byte == b' ').unwrap();
    targets.lock().unwrap().push(line[start..end].to_vec());
    let body = Value::Object(parse(headers)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: \
         close\r\n\r\n",
        body.len()
    );
    let _ = connection.write_all((head + &body).as_bytes()).await;
}

/// Returns the values of each header.
fn parse(lines: &[u8]) -> Map<String, Value> {
    let mut headers = Map::new();
    for line in String::from_utf8_lossy(lines).lines().filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        let values =
            headers.entry(name.to_lowercase().replace('_', "-")).or_insert_with(|| json!([]));
        values.as_array_mut().unwrap().push(value.trim().into());
    }
    headers
}
