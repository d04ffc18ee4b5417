//! The references that the service is measured against: a bare gRPC call, a loop of single-row
//! commits, and a signature.
//!
//! `scripts/bench` runs them beside the service and prints ratios. There are three modes: `echo
//! ADDRESS RESPONSE_BYTES`, which serves until the process is killed; `commits FILE SECONDS`, which
//! prints commits per second; and `signatures`, which prints signatures per second.
#![allow(clippy::disallowed_methods)] // Measurements need the real clock.

use std::{convert::Infallible, env, error::Error, hint::black_box, pin::Pin, time::Instant};

use aws_lc_rs::signature::Ed25519KeyPair;
use diesel::{
    Connection, RunQueryDsl, SqliteConnection, connection::SimpleConnection, sql_query, sql_types,
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Context, Poll, Service, http},
    server::{Grpc, NamedService, UnaryService},
    transport::{Server, server::TcpIncoming},
};
use tonic_prost::ProstCodec;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> =
        env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["echo", address, bytes] => {
            tokio::runtime::Runtime::new()?.block_on(echo(address.to_string(), bytes.parse()?))
        }
        ["commits", file, seconds] => commits(file, seconds.parse()?),
        ["signatures"] => signatures(),
        // `cargo bench` without arguments has nothing to measure here.
        [] => Ok(()),
        _ => Err("usage: echo ADDRESS RESPONSE_BYTES | commits FILE SECONDS | signatures".into()),
    }
}

async fn echo(address: String, response_bytes: usize) -> Result<(), Box<dyn Error>> {
    let incoming = TcpIncoming::from(TcpListener::bind(address).await?).with_nodelay(Some(true));
    let echo = Echo { response: vec![b'x'; response_bytes] };
    Ok(Server::builder().add_service(echo).serve_with_incoming(incoming).await?)
}

/// A unary call that receives bytes and answers with bytes, so that it costs only what gRPC costs.
#[derive(Clone)]
struct Echo {
    response: Vec<u8>,
}

impl NamedService for Echo {
    const NAME: &'static str = "reference.Echo";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl UnaryService<Vec<u8>> for Echo {
    type Response = Vec<u8>;
    type Future = BoxFuture<Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, _request: Request<Vec<u8>>) -> Self::Future {
        let response = self.response.clone();
        Box::pin(async move { Ok(Response::new(response)) })
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            Ok(Grpc::new(ProstCodec::<Vec<u8>, Vec<u8>>::default()).unary(echo, request).await)
        })
    }
}

/// Inserts rows of the size of a session, each in a transaction of its own, with the durability
/// that the service promises.
fn commits(file: &str, seconds: u64) -> Result<(), Box<dyn Error>> {
    let mut connection = SqliteConnection::establish(file)?;
    connection.batch_execute(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         CREATE TABLE rows (id BLOB PRIMARY KEY, subject TEXT, body TEXT) WITHOUT ROWID; \
         CREATE INDEX rows_by_subject ON rows (subject, id);",
    )?;
    let body = "x".repeat(500);
    let started = Instant::now();
    let mut count: u64 = 0;
    while started.elapsed().as_secs() < seconds {
        let id = u128::from(count).to_be_bytes().to_vec();
        sql_query("INSERT INTO rows VALUES (?, ?, ?)")
            .bind::<sql_types::Binary, _>(id)
            .bind::<sql_types::Text, _>("alice")
            .bind::<sql_types::Text, _>(&body)
            .execute(&mut connection)?;
        count += 1;
    }
    println!("{:.0}", count as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

/// Signs as many bytes as a token has, with a key that is already in memory.
fn signatures() -> Result<(), Box<dyn Error>> {
    const COUNT: u32 = 20_000;
    let key = Ed25519KeyPair::generate()?;
    let started = Instant::now();
    for _ in 0..COUNT {
        black_box(key.sign(black_box(&[b'x'; 400])));
    }
    println!("{:.0}", f64::from(COUNT) / started.elapsed().as_secs_f64());
    Ok(())
}
