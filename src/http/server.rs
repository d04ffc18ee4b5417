//! The HTTP server. It speaks HTTP/1.1 on each connection, enforces the limits of the connection,
//! and closes connections that send no requests.

use std::{convert::Infallible, future::ready, sync::Arc, time::Duration};

use axum::{Router, response::Response};
use futures_util::future::{BoxFuture, Either};
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{io::AsyncWriteExt, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{head, open_request::OpenRequest, requests};
use crate::{
    calls::{CallObserver, ConnectionObserver},
    net::{
        accept::Acceptor,
        connection::{Connection, Peer},
    },
};

/// The maximum size of a request's head in bytes. A gateway sends the head of the client's request,
/// with all its cookies, and gateways themselves accept heads of about this size.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// The maximum number of header lines of a request.
const MAX_HEADERS: usize = 128;
/// The time for which requests may go on after the server has been asked to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// The number of connections in the reserve. If the reserve is full, a new connection displaces the
/// oldest. The reserve is so large that a probe is answered before its connection is displaced.
pub const RESERVED_CONNECTIONS: usize = 64;
/// The longest time that a connection in the reserve may last.
pub const RESERVED_TIME: Duration = Duration::from_secs(2);

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// The time within which the head of the first or next request must arrive.
    pub head: Duration,
    /// The time within which a client must read an answer.
    pub answer: Duration,
}

/// The routes of the port.
#[derive(Clone, Debug)]
pub struct Routes {
    /// The routes for all connections except those in the reserve.
    pub all: Router,
    /// The routes for connections in the reserve.
    pub reserved: Router,
}

/// Serves until `stop` is cancelled, then lets the requests under way finish. Without an acceptor,
/// this only waits for `stop`.
pub async fn serve(
    acceptor: Option<Acceptor>,
    routes: Routes,
    observer: Arc<CallObserver>,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let Some(acceptor) = acceptor else { return stop.cancelled().await };
    let stopping = stop.clone();
    let serve = move |connection, peer: Peer| {
        let observer = ConnectionObserver::new(observer.clone());
        serve_connection(connection, peer, routes.clone(), observer, limits, stopping.clone())
    };
    acceptor.run(stop, serve).await;
}

async fn serve_connection(
    connection: Connection,
    peer: Peer,
    routes: Routes,
    observer: ConnectionObserver,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    let (progress, is_reserved) = (connection.write_progress(), connection.is_reserved());
    let routes = if is_reserved { routes.reserved } else { routes.all };
    let service = ConnectionService {
        routes: TowerToHyperService::new(routes),
        peer: Arc::new(peer),
        observer,
    };
    let mut http1 = http1::Builder::new();
    let http1 = http1
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_header_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .keep_alive(!is_reserved);
    let mut served = http1.serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        ended = &mut served => match ended {
            Ok(()) => {}
            Err(error) if error.is_parse() => {}
            // The client has gone or was too slow, so there is no answer that it could lose.
            Err(_) => return,
        },
        () = progress.stalled(limits.answer) => return,
        () = stop.cancelled() => {
            std::pin::Pin::new(&mut served).graceful_shutdown();
            // Requests that take longer are cut off.
            let _ = timeout(DRAIN, served).await;
            return;
        }
    }
    // The library shuts the connection down, except after CONNECT.
    let mut connection = served.into_parts().io.into_inner();
    tokio::select! {
        _ = connection.shutdown() => {}
        () = stop.cancelled() => {}
    }
}

/// The service of one connection, which adds the peer to each request, and observes it.
struct ConnectionService {
    routes: TowerToHyperService<Router>,
    peer: Arc<Peer>,
    observer: ConnectionObserver,
}

impl Service<Request<Incoming>> for ConnectionService {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let kind = requests::kind(request.uri().path());
        let open = self.observer.begin(kind, requests::cancelled(), request.headers());
        let open = OpenRequest::new(open);
        let answer = match head::check(&request) {
            Err(refusal) => Either::Left(ready(Ok(refusal.answer()))),
            Ok(()) => {
                request.extensions_mut().insert(self.peer.clone());
                request.extensions_mut().insert(open.clone());
                Either::Right(self.routes.call(request))
            }
        };
        Box::pin(async move {
            let mut answer = answer.await?;
            open.end(requests::answered(answer.status()), answer.headers_mut());
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
        time::sleep,
    };

    use super::*;
    use crate::net::{
        accept::{Counts, Limits, Reserve},
        tls::Side,
    };

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const HEAD: Duration = Duration::from_secs(30);
    const ANSWER: Duration = Duration::from_secs(600);
    const RESERVE: Reserve = Reserve { connections: 2, time: RESERVED_TIME };

    /// Starts a server that has room for two connections besides its reserve. It answers 404 on
    /// these two, and answers probes in the reserve.
    async fn start(reserve: Option<Reserve>) -> (SocketAddr, Arc<Counts>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let limits = Limits { connections: 2, reserve, handshake: Duration::from_secs(1) };
        let acceptor =
            Acceptor { listener, tls: None, side: Side::Http, limits, counts: counts.clone() };
        let routes = Routes {
            all: Router::new(),
            reserved: super::super::reserved_routes(Default::default()),
        };
        let limits = ConnectionLimits { head: HEAD, answer: ANSWER };
        tokio::spawn(serve(
            Some(acceptor),
            routes,
            Arc::new(CallObserver::silent(requests::counters())),
            limits,
            CancellationToken::new(),
        ));
        (address, counts)
    }

    async fn answer(stream: &mut TcpStream) -> String {
        let mut answer = vec![0; 1024];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// Sends a request, and reads until the connection is closed.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Opens two connections, and has each of them answered.
    async fn fill(address: SocketAddr) -> [TcpStream; 2] {
        let mut open = [
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        ];
        for stream in &mut open {
            stream.write_all(REQUEST).await.unwrap();
            assert!(answer(stream).await.starts_with("HTTP/1.1 404"));
        }
        open
    }

    /// This test and others pause tokio's clock. The paused clock stands still while a task can
    /// run, and jumps to the next timer when none can.
    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_complete_head_is_closed_even_after_a_request() {
        let (address, _) = start(None).await;
        for sent in [&b""[..], b"GET / HTTP/1.1\r\nhost:"] {
            for requests in [0, 1] {
                let mut stream = TcpStream::connect(address).await.unwrap();
                for _ in 0..requests {
                    stream.write_all(REQUEST).await.unwrap();
                    assert!(answer(&mut stream).await.starts_with("HTTP/1.1 404"));
                }
                stream.write_all(sent).await.unwrap();
                let closed = timeout(2 * HEAD, stream.read_to_end(&mut vec![])).await;
                assert!(closed.is_ok(), "after {requests} requests and {sent:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_arrives_byte_by_byte_has_no_more_time_than_other_heads() {
        let (address, counts) = start(None).await;
        for before in [&b""[..], REQUEST] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(before).await.unwrap();
            let trickling = async {
                while stream.write_all(b"a").await.is_ok() {
                    sleep(HEAD / 10).await;
                }
            };
            assert!(timeout(2 * HEAD, trickling).await.is_ok());
            assert_eq!(counts.open.get(), 0);
        }
    }

    /// Sends requests until the socket accepts no more bytes.
    async fn pipeline(stream: &mut TcpStream) {
        let requests = REQUEST.repeat(1000);
        while let Ok(Ok(_)) = timeout(Duration::from_secs(1), stream.write(&requests)).await {}
    }

    /// Waits until no connection is open, and returns whether that took at most `soon`.
    async fn all_leave(counts: &Counts, soon: Duration) -> bool {
        let leaving = async {
            while counts.open.get() > 0 {
                sleep(Duration::from_secs(1)).await;
            }
        };
        timeout(soon, leaving).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_its_answers_too_slowly_is_disconnected() {
        for is_nibbling in [false, true] {
            let (address, counts) = start(None).await;
            let mut stream = TcpStream::connect(address).await.unwrap();
            pipeline(&mut stream).await;
            assert_eq!(counts.open.get(), 1);
            let nibbling = async {
                let mut byte = [0; 1];
                while !is_nibbling || stream.read(&mut byte).await.is_ok() {
                    sleep(ANSWER / 100).await;
                }
            };
            tokio::select! {
                () = nibbling => assert_eq!(counts.open.get(), 0),
                is_soon = all_leave(&counts, 3 * ANSWER) => {
                    assert!(is_soon, "nibbling: {is_nibbling}");
                }
            }
        }
    }

    #[tokio::test]
    async fn probes_are_answered_while_other_connections_fill_the_port_and_the_reserve() {
        let (address, counts) = start(Some(RESERVE)).await;
        let open = fill(address).await;
        let mut silent = vec![];
        for _ in 0..10 {
            silent.push(TcpStream::connect(address).await.unwrap());
            let probe = ask(address, "GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.to_lowercase();
            assert!(
                probe.starts_with("http/1.1 200") && probe.contains("\r\nconnection: close\r\n"),
                "{probe}"
            );
        }
        // The oldest connection in the reserve was displaced first.
        assert_eq!(silent[0].read_to_end(&mut vec![]).await.unwrap_or(0), 0);
        assert!(counts.reserved_open.get() <= 2 && counts.open.get() <= 4);
        assert_eq!((counts.reserved.get(), counts.refused.get()), (20, 0));
        assert!(counts.displaced.get() >= 8);
        let other = ask(address, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(
            other.starts_with("HTTP/1.1 503") && other.contains("max_http_connections"),
            "{other}"
        );
        let ready = "GET /readyz HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
        assert_eq!(ask(address, &ready).await.matches("HTTP/1.1 ").count(), 1, "one request");
        drop(open);
        while counts.open.get() > counts.reserved_open.get() {
            tokio::task::yield_now().await;
        }
        let _others = fill(address).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_in_the_reserve_is_closed_after_its_time_limit() {
        let (address, counts) = start(Some(RESERVE)).await;
        let _open = fill(address).await;
        for sent in [&b""[..], b"GET /livez HTTP/1.1\r\nhost:"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent).await.unwrap();
            assert!(timeout(2 * RESERVED_TIME, stream.read_to_end(&mut vec![])).await.is_ok());
            assert_eq!((counts.reserved_open.get(), counts.open.get()), (0, 2));
        }
    }

    #[tokio::test]
    async fn new_connections_beyond_the_limit_are_closed_until_an_open_one_ends() {
        let (address, counts) = start(None).await;
        let [first, _second] = fill(address).await;
        let mut third = TcpStream::connect(address).await.unwrap();
        assert_eq!(
            third.read_to_end(&mut vec![]).await.unwrap_or(0),
            0,
            "the third connection is closed without an answer"
        );
        assert_eq!((counts.open.get(), counts.refused.get()), (2, 1));
        drop(first);
        while counts.open.get() == 2 {
            tokio::task::yield_now().await;
        }
        let mut next = TcpStream::connect(address).await.unwrap();
        next.write_all(REQUEST).await.unwrap();
        assert!(answer(&mut next).await.starts_with("HTTP/1.1 404"));
    }
}
