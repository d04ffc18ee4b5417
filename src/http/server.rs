//! The server: HTTP/1.1 within limits, and nobody who keeps a place without asking.

use std::{pin::pin, sync::Arc, time::Duration};

use axum::Router;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::net::{
    accept::Entrance,
    connection::{Connection, Peer},
};

/// Most bytes and most lines of a request's head. Gateways send those of the requests that they ask about, with all their cookies, and
/// accept up to about as much.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 128;
/// How long a client may take for the head of a request, and how long a connection may be idle before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests may take that are under way when the server stops.
const DRAIN: Duration = Duration::from_secs(1);

/// Answers until `stop`, and then what is under way. Without an entrance it only waits.
pub async fn serve(entrance: Option<Entrance>, routes: Router, stop: CancellationToken) {
    let Some(entrance) = entrance else { return stop.cancelled().await };
    let stopping = stop.clone();
    let serve = move |connection, peer: Peer| {
        let (routes, peer, stop) = (routes.clone(), Arc::new(peer), stopping.clone());
        async move {
            let mut served = pin!(http1(connection, OfConnection { routes: TowerToHyperService::new(routes), peer }));
            // How a connection ends is its client's affair.
            tokio::select! {
                _ = served.as_mut() => return,
                () = stop.cancelled() => served.as_mut().graceful_shutdown(),
            }
            // What takes longer is cut off.
            let _ = timeout(DRAIN, served).await;
        }
    };
    entrance.accept(stop, serve).await;
}

/// The routes as one connection has them: each request tells who is at the other end.
struct OfConnection {
    routes: TowerToHyperService<Router>,
    peer: Arc<Peer>,
}

impl Service<Request<Incoming>> for OfConnection {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.routes.call(request)
    }
}

fn http1(connection: Connection, service: OfConnection) -> http1::Connection<TokioIo<Connection>, OfConnection> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(connection), service)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::net::{
        accept::{Counts, Limits},
        tls::Side,
    };

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Where a server without any route listens that has room for two.
    async fn start() -> (std::net::SocketAddr, Arc<Counts>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let limits = Limits { connections: 2, handshake: Duration::from_secs(1) };
        let entrance = Entrance { listener, tls: None, side: Side::Http, limits, counts: counts.clone() };
        tokio::spawn(serve(Some(entrance), Router::new(), CancellationToken::new()));
        (address, counts)
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// The clock stands still while there is something to do, and jumps to the next timer when there is not.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_or_half_of_it_is_closed_also_after_a_request() {
        let (address, _) = start().await;
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

    #[tokio::test]
    async fn beyond_the_most_connections_the_next_is_closed_and_there_is_room_again_when_one_goes() {
        let (address, counts) = start().await;
        let mut open = vec![];
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(REQUEST).await.unwrap();
            assert!(answer(&mut stream).await.starts_with("HTTP/1.1 404"));
            open.push(stream);
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(third.read_to_end(&mut vec![]).await.unwrap_or(0), 0, "it is closed without a word");
        assert_eq!((counts.open.get(), counts.refused.get()), (2, 1));
        drop(open.pop());
        while counts.open.get() == 2 {
            tokio::task::yield_now().await;
        }
        let mut next = TcpStream::connect(address).await.unwrap();
        next.write_all(REQUEST).await.unwrap();
        assert!(answer(&mut next).await.starts_with("HTTP/1.1 404"));
    }
}
