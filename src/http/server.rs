//! The server: few connections, small headers, and nobody who keeps a place without asking.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Most connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 256;
/// Most bytes and most lines of a request's head.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long a client may take for the head of a request, and how long a connection may be idle before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests may take that are under way when the server stops.
const DRAIN: Duration = Duration::from_secs(1);
/// How long to wait before accepting again after that failed, as without free file descriptors.
const RETRY: Duration = Duration::from_millis(100);

/// Answers on a listener until `stop`, and then what is under way. Without one it only waits.
pub async fn serve(listener: Option<TcpListener>, routes: Router, stop: CancellationToken) {
    let Some(listener) = listener else { return stop.cancelled().await };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = graceful.watch(connection(stream, routes.clone()));
                connections.spawn(async move {
                    // How a connection ends is the client's affair.
                    let _ = connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection cannot be accepted");
                sleep(RETRY).await;
            }
        }
    }
    drop(listener);
    // What takes longer is cut off.
    let _ = timeout(DRAIN, graceful.shutdown()).await;
}

fn connection(stream: TcpStream, routes: Router) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::Instant,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Where a server without any route listens.
    async fn start() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(Some(listener), Router::new(), CancellationToken::new()));
        address
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// The clock stands still while there is something to do, and jumps to the next timer when there is not.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_or_half_of_it_is_closed_also_after_a_request() {
        let address = start().await;
        for said in [&b""[..], b"GET / HTTP/1.1\r\nhost:"] {
            for requests in [0, 1] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                for _ in 0..requests {
                    stream.write_all(REQUEST).await.unwrap();
                    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 404"));
                }
                stream.write_all(said).await.unwrap();
                let closed = timeout(2 * HEAD_TIMEOUT, stream.read_to_end(&mut vec![])).await;
                assert!(closed.is_ok(), "after {requests} requests and {said:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_most_connections_the_next_waits_for_a_place() {
        let address = start().await;
        let mut idle = vec![];
        for _ in 0..MAX_CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        let answer = timeout(2 * HEAD_TIMEOUT, answer(&mut stream)).await.expect("the others are closed");
        assert!(answer.starts_with("HTTP/1.1 404"));
        assert!(begun.elapsed() >= HEAD_TIMEOUT, "the others had to go first");
    }
}
