//! Checks the order in which hyper accepts calls, hands over their answers to the executor, sends
//! the answers, and polls their bodies. The other files of this module rely on that order, which
//! hyper does not promise. The client's frames are written by hand, so that no other library
//! affects the order.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use hyper::{body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tonic::{Code, Status, body::Body};

use super::{
    activity::Activity,
    answer::Answer,
    connection_driver::ConnectionDriver,
    refusals::take_rest,
    request_body::RequestBody,
    spawner::Spawner,
    unsent::{FREE_BYTES, Reservation, UnsentBytes},
};
use crate::{
    calls::{CallObserver, ConnectionObserver},
    grpc::{call_kinds, methods::Method},
    net::read_budget::ReadBudget,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const HEADER_BYTES: usize = 9;

/// The connection preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2) of zero, so that hyper may send no data.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
/// `:method: POST`, `:scheme: http` and `:path: /` (RFC 7541, appendix A).
const POST: [u8; 3] = [0x83, 0x86, 0x84];

fn frame(kind: u8, flags: u8, stream: usize, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = u32::try_from(stream).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream, payload].concat()
}

/// Returns the two frames of a call: its headers, and its whole message.
fn call(stream: usize) -> Vec<u8> {
    let (head, message) =
        (frame(HEADERS, END_HEADERS, stream, &POST), frame(DATA, END_STREAM, stream, b"asked"));
    [head, message].concat()
}

/// Returns the identifiers of the first streams of a client.
fn streams(calls: usize) -> impl Iterator<Item = usize> {
    (0..calls).map(|index| 2 * index + 1)
}

/// The client's end of a connection.
struct Client(DuplexStream);

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Adds to the window of the first stream.
    async fn allow(&mut self, bytes: u32) {
        self.send(&frame(WINDOW_UPDATE, 0, 1, &bytes.to_be_bytes())).await;
    }

    /// Returns the type, the flags, and the length of the next frame.
    async fn next(&mut self) -> (u8, u8, usize) {
        let mut header = [0; HEADER_BYTES];
        self.0.read_exact(&mut header).await.unwrap();
        let [high, middle, low, kind, flags, ..] = header;
        let length = u32::from_be_bytes([0, high, middle, low]).try_into().unwrap();
        self.0.read_exact(&mut vec![0; length]).await.unwrap();
        (kind, flags, length)
    }

    /// Returns the type, the flags, and the length of the next frame of a call.
    async fn next_of_call(&mut self) -> (u8, u8, usize) {
        loop {
            let frame = self.next().await;
            if [DATA, HEADERS].contains(&frame.0) {
                return frame;
            }
        }
    }
}

/// The server's end of a connection, which counts its writes.
struct Counted {
    stream: DuplexStream,
    writes: Arc<Mutex<usize>>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        *self.writes.lock().unwrap() += 1;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Opens a connection. Its client has sent the preface and a SETTINGS frame with this payload.
async fn connected(settings: &[u8]) -> (Client, DuplexStream) {
    let (client, server) = duplex(1 << 20);
    let mut client = Client(client);
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, settings), &frame(SETTINGS, ACK, 0, &[])].concat();
    client.send(&begin).await;
    (client, server)
}

/// An executor that records when hyper hands over an answer, and runs none of the answers.
#[derive(Clone)]
struct Recorder(Arc<Mutex<Vec<&'static str>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Recorder {
    fn execute(&self, _answering: F) {
        self.0.lock().unwrap().push("handed over");
    }
}

/// `Spawner::run_next_inline` relies on hyper to hand over each answer before it accepts the next
/// call. `ConnectionDriver` relies on hyper to accept all calls in one poll.
#[tokio::test]
async fn one_poll_accepts_all_calls_and_hands_over_each_answer_before_the_next_call() {
    let (mut client, server) = connected(&[]).await;
    let events = Arc::new(Mutex::new(vec![]));
    let accepted = events.clone();
    let service = service_fn(move |_: Request<Incoming>| {
        accepted.lock().unwrap().push("accepted");
        async { Ok::<_, Infallible>(Response::new(Body::default())) }
    });
    let mut served = pin!(
        http2::Builder::new(Recorder(events.clone()))
            .serve_connection(TokioIo::new(server), service)
    );
    assert!((&mut served).now_or_never().is_none(), "the connection begins");
    assert!(events.lock().unwrap().is_empty());
    client.send(&streams(3).flat_map(call).collect::<Vec<_>>()).await;
    assert!((&mut served).now_or_never().is_none(), "the connection goes on");
    assert_eq!(*events.lock().unwrap(), ["accepted", "handed over"].repeat(3));
}

/// `ConnectionDriver` polls the connection a second time to send the refusals. `take_rest` relies
/// on hyper having read each message together with its headers.
#[tokio::test]
async fn the_refusals_of_a_poll_are_sent_by_one_write_in_the_same_poll() {
    const CALLS: usize = 20;
    let (mut client, server) = connected(&[]).await;
    let (spawner, writes) = (Spawner::default(), Arc::new(Mutex::new(0)));
    let refusing = spawner.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        refusing.run_next_inline();
        let mut message = RequestBody::new(request.into_body(), 0);
        async move {
            take_rest(&mut message).await;
            Ok::<_, Infallible>(Response::new(Body::default()))
        }
    });
    let server = Counted { stream: server, writes: writes.clone() };
    let mut served =
        pin!(http2::Builder::new(spawner.clone()).serve_connection(TokioIo::new(server), service));
    let driver = ConnectionDriver { read_budget: ReadBudget::new(), spawner };
    assert!(driver.run(served.as_mut()).now_or_never().is_none(), "the connection begins");
    client.send(&streams(CALLS).flat_map(call).collect::<Vec<_>>()).await;
    *writes.lock().unwrap() = 0;
    assert!(driver.run(served.as_mut()).now_or_never().is_none(), "the connection goes on");
    assert_eq!(*writes.lock().unwrap(), 1);
    for _ in 0..CALLS {
        let answer = client.next_of_call().now_or_never().expect("the answer has been sent");
        assert_eq!((answer.0, answer.1), (HEADERS, END_HEADERS | END_STREAM));
    }
}

/// A body of several parts of equal size, which counts how often hyper polls it.
struct Parts {
    left: usize,
    bytes: usize,
    asked: Arc<Mutex<usize>>,
}

impl http_body::Body for Parts {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        *self.asked.lock().unwrap() += 1;
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        Poll::Ready(Some(Ok(Frame::data(vec![0; self.bytes].into()))))
    }
}

/// `Answer` counts a poll for the next part as progress, and relies on hyper to hold each part
/// until its last byte has been written.
#[tokio::test]
async fn a_part_is_polled_once_a_byte_of_the_previous_part_fits_and_is_held_until_it_is_sent() {
    const BYTES: usize = 2 * FREE_BYTES;
    let rest = u32::try_from(BYTES).unwrap() - 1;
    let (mut client, server) = connected(&NO_WINDOW).await;
    let (activity, asked) = (Arc::new(Activity::default()), Arc::new(Mutex::new(0)));
    // The limit is reached while hyper holds two parts.
    let unsent = Arc::new(UnsentBytes::of_all(2 * BYTES));
    let (calls, counted, parts) = (activity.clone(), unsent.clone(), asked.clone());
    let service = service_fn(move |_: Request<Incoming>| {
        let body = Body::new(Parts { left: 2, bytes: BYTES, asked: parts.clone() });
        let observer = CallObserver::silent(call_kinds::counters());
        let kind = call_kinds::kind(&Method::of("/"));
        let record = ConnectionObserver::new(Arc::new(observer)).begin(
            kind,
            call_kinds::end_code(Code::Cancelled),
            &HeaderMap::new(),
        );
        let answer = Answer::new(body, calls.begin(), record, Reservation::new(counted.clone()));
        async { Ok::<_, Infallible>(Response::new(answer)) }
    });
    tokio::spawn(
        http2::Builder::new(Spawner::default()).serve_connection(TokioIo::new(server), service),
    );
    let asked = || *asked.lock().unwrap();

    client.send(&call(1)).await;
    assert_eq!(client.next_of_call().await.0, HEADERS);
    assert_eq!(asked(), 1, "the first part is polled before the window has room for it");
    assert!(activity.next_interval() && !activity.next_interval(), "the answer is blocked");

    client.allow(1).await;
    assert_eq!(client.next_of_call().await, (DATA, 0, 1));
    assert_eq!(asked(), 2, "the second part is polled once a byte of the first fits");
    assert!(unsent.check().is_err(), "hyper holds both parts");

    client.allow(rest).await;
    assert_eq!(client.next_of_call().await, (DATA, 0, BYTES - 1));
    assert!(unsent.check().is_ok(), "the first part has been sent");
    assert_eq!(asked(), 2, "the second part has no room");

    client.allow(1).await;
    assert_eq!(client.next_of_call().await, (DATA, 0, 1));
    assert_eq!(asked(), 3, "the body has ended");
    assert_eq!(activity.idle_since(), None, "hyper holds the second part");

    client.allow(rest).await;
    assert_eq!(client.next_of_call().await, (DATA, 0, BYTES - 1));
    assert_eq!(client.next_of_call().await, (DATA, END_STREAM, 0));
    assert!(activity.idle_since().is_some(), "everything has been sent");
}
