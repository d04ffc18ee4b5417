//! The application behind a gateway: answers each request with the headers that it had.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, extract::Request};
use serde_json::{Map, Value};
use tokio::net::TcpListener;

use crate::http::Answer;

pub struct Application {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Application {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
        let count = requests.clone();
        let routes = Router::new().fallback(move |request: Request| {
            count.fetch_add(1, Ordering::SeqCst);
            async move { Json(headers(&request)) }
        });
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, requests }
    }

    /// How many requests have reached it.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// The headers that a request had, as applications read them that take an underscore for a hyphen.
    pub fn headers_of(&self, answer: &Answer) -> Map<String, Value> {
        let start = answer.body.find('{').unwrap_or_else(|| panic!("it is not from the application: {answer:?}"));
        let end = answer.body.rfind('}').unwrap();
        serde_json::from_str(&answer.body[start..=end]).unwrap()
    }

    /// What it was told of who sent a request.
    pub fn identity_of(&self, answer: &Answer) -> Map<String, Value> {
        // An empty header says nothing.
        let says = |values: &Value| values != &serde_json::json!([""]);
        self.headers_of(answer)
            .into_iter()
            .filter(|(name, values)| name.starts_with("x-auth-") && says(values))
            .collect()
    }
}

fn headers(request: &Request) -> Map<String, Value> {
    let mut headers = Map::new();
    for (name, value) in request.headers() {
        let values = headers.entry(name.as_str().replace('_', "-")).or_insert_with(|| Value::Array(vec![]));
        values.as_array_mut().unwrap().push(String::from_utf8_lossy(value.as_bytes()).into());
    }
    headers
}
