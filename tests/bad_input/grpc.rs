//! Tests of input that is broken below the level of a call: messages, headers, frames and
//! connections. The tests send the input over sockets to the real binary, which is configured with
//! low limits and short time-outs. Each row holds the bytes to send and the expected answer. The
//! service must serve other clients meanwhile, and must work as before afterwards
//! ([`Site::survives`]).

use std::{
    convert::Infallible,
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    pin::Pin,
};

use bytes::Bytes;
use countersign::proto::{
    BatchValidateRequest, CreateSessionRequest, ValidateRequest,
    session_service_client::SessionServiceClient,
};
use countersign_test_support::{
    http2::{
        self, ACK, END_HEADERS, END_STREAM, Ended, INITIAL_WINDOW, PREFACE, Raw, code, frame, kind,
        message, ping, reset, stream as number,
    },
    process::{Server as Process, serve},
    server::in_time,
    site::{Site, connect},
};
use futures_util::{
    StreamExt,
    future::{join, join_all},
    stream,
};
use http::{Request, Response};
use http_body::Frame as BodyFrame;
use prost::Message;
use tokio::io::AsyncWriteExt;
use tonic::{
    Code,
    body::Body,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};
use tower::{Service, ServiceExt};

const VALIDATE: &str = "/countersign.v1.SessionService/Validate";
const CREATE: &str = "/countersign.v1.SessionService/CreateSession";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// The answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// The gRPC status of a call.
    Grpc(Code),
    /// An HTTP status without a gRPC status: the request was not treated as a call.
    Http(u16),
    /// The stream or the connection ended without an answer.
    Reset,
}
use Answer::{Grpc, Http};

/// A request to send.
struct Sent {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    /// The DATA frames of the body, in order.
    body: Vec<Vec<u8>>,
    /// True if the body ends; otherwise the stream stays open.
    ends: bool,
}

/// Returns a well-formed call with this body.
fn call(path: &str, body: Vec<u8>) -> Sent {
    let headers =
        vec![("content-type", "application/grpc".to_owned()), ("te", "trailers".to_owned())];
    Sent { method: "POST", path: path.to_owned(), headers, body: vec![body], ends: true }
}

/// Adds a header to a request, or replaces its value.
fn with(mut sent: Sent, name: &'static str, value: &str) -> Sent {
    sent.headers.retain(|(other, _)| *other != name);
    sent.headers.push((name, value.to_owned()));
    sent
}

/// Sends a request on a new connection and returns the answer.
async fn ask(address: SocketAddr, sent: Sent) -> Answer {
    let mut request = Request::builder().method(sent.method).uri(sent.path);
    for (name, value) in sent.headers {
        request = request.header(name, value);
    }
    let frames = stream::iter(sent.body)
        .map(|bytes| Ok::<_, Infallible>(BodyFrame::data(Bytes::from(bytes))));
    let body: Pin<Box<dyn futures_util::Stream<Item = _> + Send>> = match sent.ends {
        true => Box::pin(frames),
        false => Box::pin(frames.chain(stream::pending())),
    };
    let request = request.body(Body::new(Streamed(body))).unwrap();
    // The service may close this connection, so no other request shares it.
    let mut channel = connect(address).await;
    let answer = in_time("an answer", async {
        let answer = channel.ready().await.ok()?.call(request).await.ok()?;
        let status = answer.status().as_u16();
        let (head, mut body): (_, Body) = Response::into_parts(answer);
        let mut trailers = head.headers;
        while let Some(frame) = std::future::poll_fn(|context| {
            http_body::Body::poll_frame(Pin::new(&mut body), context)
        })
        .await
        {
            if let Ok(last) = frame.ok()?.into_trailers() {
                trailers.extend(last);
            }
        }
        let grpc = trailers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
        Some(grpc.filter(|_| status == 200).map_or(Http(status), Grpc))
    });
    answer.await.unwrap_or(Answer::Reset)
}

/// A request body that yields the frames of a stream.
struct Streamed(
    Pin<Box<dyn futures_util::Stream<Item = Result<BodyFrame<Bytes>, Infallible>> + Send>>,
);

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        self.0.poll_next_unpin(context)
    }
}

/// Returns the encoded request to validate a token.
fn question(token: &str) -> Vec<u8> {
    ValidateRequest { access_token: token.to_owned(), ..Default::default() }.encode_to_vec()
}

/// Puts this compression flag and this length before the bytes. They need not match the bytes.
fn framed(flag: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[flag], &length.to_be_bytes()[..], bytes].concat()
}

/// Wraps an encoded `google.protobuf.ListValue` in `depth` further lists.
fn nested(bytes: &[u8], depth: usize) -> Vec<u8> {
    (0..depth).fold(bytes.to_vec(), |inner, _| {
        // 0x32 is the tag of `Value.list_value` (field 6), 0x0a that of `ListValue.values` (1).
        let mut list = vec![0x32];
        prost::encoding::encode_varint(inner.len() as u64, &mut list);
        list.extend(inner);
        let mut value = vec![0x0a];
        prost::encoding::encode_varint(list.len() as u64, &mut value);
        value.extend(list);
        value
    })
}

/// Returns the requests of the table, each with the expected answer.
fn messages(token: &str) -> Vec<(&'static str, Sent, Answer)> {
    let good = question(token);
    let length = u32::try_from(good.len()).unwrap();
    let validate = |body: Vec<u8>| call(VALIDATE, body);
    let plain = |bytes: &[u8]| validate(message(bytes));
    let good_call = || plain(&good);
    let claims = |depth| {
        let mut request =
            CreateSessionRequest { subject: "alice".to_owned(), ..Default::default() }
                .encode_to_vec();
        // The bytes are Struct { fields: { "a": Value { list_value: … } } }, encoded by hand.
        let value =
            [&[0x12][..], &sized(&[&[0x32][..], &sized(&nested(&[], depth))].concat())].concat();
        let entry = [&[0x0a, 1, b'a'][..], &value].concat();
        let fields = [&[0x0a][..], &sized(&entry)].concat();
        let tag = u8::try_from(claims_field() << 3 | 2).unwrap();
        request.extend([&[tag][..], &sized(&fields)].concat());
        call(CREATE, message(&request))
    };
    let mut split = good_call();
    split.body = message(&good).chunks(1).map(<[u8]>::to_vec).collect();
    let batch = |tokens: usize, bytes: usize| {
        let ask = ValidateRequest { access_token: "x".repeat(bytes), ..Default::default() };
        let batch = BatchValidateRequest { requests: vec![ask; tokens] };
        call("/countersign.v1.SessionService/BatchValidate", message(&batch.encode_to_vec()))
    };
    let gzip = {
        // The bytes resemble a megabyte of zeros compressed by gzip. The service must not
        // decompress them.
        let mut bomb = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
        bomb.extend([0xed, 0xc1, 1, 1, 0, 0, 0, 0x80, 0x90, 0xfe, 0xaf, 0xee, 8, 0xa0]);
        bomb
    };
    let compressed = framed(1, u32::try_from(gzip.len()).unwrap(), &gzip);
    let mut rows = vec![
        ("as it should be", good_call(), Grpc(Code::Ok)),
        ("byte by byte", split, Grpc(Code::Ok)),
        (
            "empty frames in between",
            Sent {
                body: [vec![vec![]; 50], vec![message(&good)], vec![vec![]; 50]].concat(),
                ..good_call()
            },
            Grpc(Code::Ok),
        ),
        // Sizes of requests.
        (
            "a request too large",
            plain(&question(&"x".repeat(64 << 10))),
            Grpc(Code::InvalidArgument),
        ),
        (
            "a request much too large",
            plain(&question(&"x".repeat(5 << 20))),
            Grpc(Code::InvalidArgument),
        ),
        ("a batch above the limit of other requests", batch(16, 8000), Grpc(Code::Ok)),
        ("a batch too large", batch(256, 8000), Grpc(Code::InvalidArgument)),
        ("a length of 4 GiB", validate(framed(0, u32::MAX, &good)), Grpc(Code::InvalidArgument)),
        (
            "a length of 4 GiB without a message",
            validate(framed(0, u32::MAX, &[])),
            Grpc(Code::InvalidArgument),
        ),
        (
            "a length longer than the message",
            validate(framed(0, length + 1, &good)),
            Grpc(Code::Internal),
        ),
        (
            "the largest length allowed, and a short message",
            validate(framed(0, 64 << 10, &good)),
            Grpc(Code::Internal),
        ),
        (
            "a length shorter than the message",
            validate(framed(0, length - 1, &good)),
            Grpc(Code::Internal),
        ),
        ("no length", validate(good.clone()), Grpc(Code::Internal)),
        ("half a length", validate(vec![0, 0, 0]), Grpc(Code::Internal)),
        ("an empty body", validate(vec![]), Grpc(Code::Internal)),
        ("an empty message", plain(&[]), Grpc(Code::InvalidArgument)),
        (
            "a byte after the message",
            validate([message(&good), vec![0]].concat()),
            Grpc(Code::Internal),
        ),
        // The service ignores whatever follows the first message.
        (
            "a second length without its message",
            validate([message(&good), vec![0, 0, 0, 0, 9]].concat()),
            Grpc(Code::Ok),
        ),
        ("two messages", validate([message(&good), message(&good)].concat()), Grpc(Code::Ok)),
        ("a thousand messages", validate(message(&good).repeat(1000)), Grpc(Code::Ok)),
        // The service supports no compression.
        ("compressed without grpc-encoding", validate(compressed.clone()), Grpc(Code::Internal)),
        (
            "grpc-encoding without a compressed message",
            with(good_call(), "grpc-encoding", "gzip"),
            Grpc(Code::Unimplemented),
        ),
        (
            "a compression bomb",
            with(validate(compressed.clone()), "grpc-encoding", "gzip"),
            Grpc(Code::Unimplemented),
        ),
        (
            "a compression bomb declared as identity",
            with(validate(compressed.clone()), "grpc-encoding", "identity"),
            Grpc(Code::Internal),
        ),
        ("flag 2", validate(framed(2, length, &good)), Grpc(Code::Internal)),
        ("flag 255", validate(framed(255, length, &good)), Grpc(Code::Internal)),
        (
            "declared as identity, and not compressed",
            with(good_call(), "grpc-encoding", "identity"),
            Grpc(Code::Ok),
        ),
        // Protocol buffers.
        ("a field cut off", plain(&good[..good.len() - 1]), Grpc(Code::Internal)),
        ("a field longer than the message", plain(&[0x0a, 0x7f, b'x']), Grpc(Code::Internal)),
        (
            "a field of 2^63 bytes",
            plain(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            Grpc(Code::Internal),
        ),
        (
            "a varint of more than ten bytes",
            plain(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            Grpc(Code::Internal),
        ),
        ("field 0", plain(&[0x02, 1, b'x']), Grpc(Code::Internal)),
        ("a field of another type", plain(&[0x08, 1]), Grpc(Code::Internal)),
        ("an undefined wire type", plain(&[0x0f, 1]), Grpc(Code::Internal)),
        ("a group without a beginning", plain(&[0x0c]), Grpc(Code::Internal)),
        ("groups without an end", plain(&[0x7b; 3000]), Grpc(Code::Internal)),
        ("a string that is not UTF-8", plain(&[0x0a, 2, 0xff, 0xfe]), Grpc(Code::Internal)),
        (
            "random bytes",
            plain(
                &(0..2000u32)
                    .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
                    .collect::<Vec<_>>(),
            ),
            Grpc(Code::Internal),
        ),
        ("an unknown field", plain(&[&good[..], &[0xfa, 0x7f, 1, b'x']].concat()), Grpc(Code::Ok)),
        (
            "an unknown enum value",
            plain(&[&good[..], &[0x30, 0x63]].concat()),
            Grpc(Code::InvalidArgument),
        ),
        ("claims 2000 deep", claims(2000), Grpc(Code::InvalidArgument)),
        // Headers.
        ("a malformed deadline", with(good_call(), "grpc-timeout", "soon"), Grpc(Code::Ok)),
        ("a very long deadline", with(good_call(), "grpc-timeout", "99999999H"), Grpc(Code::Ok)),
        ("binary metadata that is not base64", with(good_call(), "x-bin", "&&&"), Grpc(Code::Ok)),
        ("too much metadata", with(good_call(), "x", &"x".repeat(5000)), Http(431)),
        (
            "a credential where no callers are configured",
            with(good_call(), "authorization", "Basic x"),
            Grpc(Code::Ok),
        ),
    ];
    for encoding in ["deflate", "zstd", "br", "snappy", "x", "", "GZIP", "gzip, identity"] {
        rows.push((
            "an unsupported encoding",
            with(validate(compressed.clone()), "grpc-encoding", encoding),
            Grpc(Code::Unimplemented),
        ));
    }
    for path in [
        "/",
        "//",
        "/x",
        "/countersign.v1.SessionService",
        "/countersign.v1.SessionService/",
        "/countersign.v1.SessionService/Nothing",
        "/countersign.v1.SessionService/validate",
        "/countersign.v1.SessionService/Validate/",
        "/countersign.v1.SessionService/../SessionService/Validate",
        "/countersign.v1.SessionService/%56alidate",
        "/countersign.v2.SessionService/Validate",
        "/countersign.v1.KeyService/Validate",
        "/countersign.v1.sessionservice/Validate",
        "/grpc.health.v1.Health/Nothing",
        "/livez",
        "/metrics",
    ] {
        rows.push(("an unknown method", call(path, message(&good)), Grpc(Code::Unimplemented)));
    }
    for content in [
        "",
        "text/plain",
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grp",
        "grpc",
    ] {
        rows.push((
            "not the content type of gRPC",
            with(good_call(), "content-type", content),
            Http(415),
        ));
    }
    let mut none = good_call();
    none.headers.retain(|(name, _)| *name != "content-type");
    rows.push(("no content type", none, Http(415)));
    for content in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
        "application/GRPC",
    ] {
        rows.push((
            "a content type of gRPC",
            with(good_call(), "content-type", content),
            Grpc(Code::Ok),
        ));
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "X"] {
        rows.push(("another method than POST", Sent { method, ..good_call() }, Http(405)));
    }
    rows
}

/// Puts the length of the bytes, as a varint, before the bytes.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut sized = vec![];
    prost::encoding::encode_varint(bytes.len() as u64, &mut sized);
    sized.extend(bytes);
    sized
}

/// Returns the field number of `CreateSessionRequest.claims`.
fn claims_field() -> u32 {
    let pool = prost_reflect::DescriptorPool::decode(countersign::proto::DESCRIPTORS).unwrap();
    let request = pool.get_message_by_name("countersign.v1.CreateSessionRequest").unwrap();
    request.get_field_by_name("claims").unwrap().number()
}

pub async fn malformed_requests_and_messages_get_the_expected_answer() {
    let site = Site::start("[limits]\nmax_metadata_bytes = 4096").await;
    let token = site.good().access;
    let mut wrong = vec![];
    for (name, sent, expected) in messages(&token) {
        let what = format!("{name}: {} {} {:?}", sent.method, sent.path, sent.headers);
        let is = site.survives(name, &[&token], ask(site.address, sent)).await;
        if is != expected {
            wrong.push(format!(
                "{}: {is:?}, not {expected:?}",
                what.chars().take(300).collect::<String>()
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    site.finish().await;
}

/// Settings with time-outs that are short, but longer than a good call takes on a busy machine.
const SHORT: &str = "[limits]\ncall_timeout = '3s'\nhandshake_timeout = '3s'\nidle_timeout = \
                     '3s'\nkeepalive_timeout = '1s'\nmax_streams_per_connection = \
                     64\nmax_metadata_bytes = 4096";
/// The maximum number of concurrent streams of a connection under these settings.
const STREAMS: usize = 64;
/// The number of frames in a flood.
const FLOOD: usize = 20_000;
/// The growth of the resident memory that is allowed, in MiB. A flood that the service kept in
/// memory would take more.
const SLACK: u64 = 48;

/// Bytes to send over a socket, and how.
enum Attack {
    /// Sends these bytes as the first bytes of a connection, and waits for the end of the
    /// connection.
    First(Vec<u8>),
    /// Sends these bytes after a valid preface and settings, and waits for the end of the
    /// connection.
    Then(Vec<u8>),
    /// Sends these bytes like `Then`, and checks that the connection stays usable.
    Stays(Vec<u8>),
    /// Sends these bytes like `Then`, waits for the end of the first stream, and checks that the
    /// connection stays usable.
    Stream(Vec<u8>),
    /// Sends these bytes again and again, and reads the answers.
    Endless(Vec<u8>),
    /// Sends these bytes again and again, and reads nothing.
    Unread(Vec<u8>),
    /// Makes this number of calls on streams with a flow-control window of zero, so that no answer
    /// can be sent.
    WithoutWindow(usize),
    /// Makes a call whose body has these frames and never ends.
    Body(Vec<Vec<u8>>),
}

/// A name, what to send, and how the connection or the call must end.
type Row = (&'static str, Attack, &'static str);

fn first(bytes: impl AsRef<[u8]>) -> Attack {
    Attack::First(bytes.as_ref().to_vec())
}

fn then(bytes: impl AsRef<[u8]>) -> Attack {
    Attack::Then(bytes.as_ref().to_vec())
}

fn stream(bytes: impl AsRef<[u8]>) -> Attack {
    Attack::Stream(bytes.as_ref().to_vec())
}

fn stays(bytes: impl AsRef<[u8]>) -> Attack {
    Attack::Stays(bytes.as_ref().to_vec())
}

impl Attack {
    /// Sends the bytes. Returns how the connection or the call has ended.
    async fn run(self, address: SocketAddr) -> String {
        match self {
            Self::First(bytes) => {
                let mut raw = Raw::silent(address).await;
                raw.send(&bytes).await;
                describe(&raw.rest().await)
            }
            Self::Then(bytes) => {
                let mut once = Some(bytes);
                describe(&Raw::open(address).await.flood(|| once.take()).await)
            }
            Self::Stays(bytes) => {
                let mut raw = Raw::open(address).await;
                raw.send(&bytes).await;
                raw.answers().await.map_or_else(|ended| describe(&ended), |_| "stays".to_owned())
            }
            Self::Stream(bytes) => {
                let mut raw = Raw::open(address).await;
                raw.send(&bytes).await;
                let said = loop {
                    let Some(frame) = in_time("the stream ends", raw.read.next()).await else {
                        return "closed".to_owned();
                    };
                    match (frame.stream, frame.kind) {
                        (1, kind::RST_STREAM) => break format!("stream reset: {}", frame.code()),
                        (1, _) if frame.flags & END_STREAM != 0 => break "answered".to_owned(),
                        _ => {}
                    }
                };
                raw.answers().await.map_or_else(|ended| describe(&ended), |_| said)
            }
            Self::Endless(bytes) => {
                describe(&Raw::open(address).await.flood(|| Some(bytes.clone())).await)
            }
            Self::Unread(bytes) => {
                let mut raw = Raw::open(address).await;
                while raw.try_send(&bytes).await.is_ok() {}
                "closed".to_owned()
            }
            Self::WithoutWindow(calls) => {
                let mut raw = Raw::with(address, &[(INITIAL_WINDOW, 0)]).await;
                // GetJwks needs no caller, so no limit of calls per caller applies.
                let call = |n| {
                    let body = frame(kind::DATA, END_STREAM, number(n), &message(&[]));
                    [begin(n, "/countersign.v1.KeyService/GetJwks"), body].concat()
                };
                raw.send(&each(calls, call)).await;
                describe(&raw.rest().await)
            }
            Self::Body(body) => {
                let sent = Sent { ends: false, body, ..call(VALIDATE, vec![]) };
                format!("{:?}", ask(address, sent).await)
            }
        }
    }
}

/// Names the way in which a connection has ended.
fn describe(ended: &Ended) -> String {
    match ended.goaway {
        // A connection that is closed without an error may or may not send GOAWAY first, depending
        // on the timing.
        None | Some(code::NO_ERROR) => "closed".to_owned(),
        Some(code::PROTOCOL_ERROR) => "PROTOCOL_ERROR".to_owned(),
        Some(code::FLOW_CONTROL_ERROR) => "FLOW_CONTROL_ERROR".to_owned(),
        Some(code::FRAME_SIZE_ERROR) => "FRAME_SIZE_ERROR".to_owned(),
        Some(code::ENHANCE_YOUR_CALM) => "ENHANCE_YOUR_CALM".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// Returns the HEADERS frame of a call whose body is still to come.
fn begin(index: usize, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, number(index), &http2::call(path))
}

/// Returns a WINDOW_UPDATE that makes the window of a stream larger than 2^31 - 1, for which the
/// service must reset the stream (RFC 9113, section 6.9.1).
fn overflow_window(stream: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])
}

/// Returns a HEADERS frame that CONTINUATION frames must follow.
fn unfinished() -> Vec<u8> {
    frame(kind::HEADERS, 0, 1, &http2::call(VALIDATE))
}

/// Returns the HEADERS frame of a call with these headers and without a body.
fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &http2::fields(fields))
}

/// The headers of every call.
const USUAL: [(&str, &str); 6] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "test"),
    (":path", VALIDATE),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];

fn usual_and(name: &'static str, value: &'static str) -> Vec<u8> {
    headers(&[&USUAL[..], &[(name, value)]].concat())
}

fn usual_without(name: &str) -> Vec<u8> {
    headers(&USUAL.into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>())
}

/// Returns the frames of `count` streams, one after the other.
fn each(count: usize, frames: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(frames).collect()
}

/// Runs the rows of a table, eight at a time because many of them wait for a time-out.
async fn run_rows(site: &Site, rows: Vec<Row>) {
    let mut wrong = vec![];
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let rows: Vec<_> = rows.by_ref().take(8).collect();
        let names: Vec<_> = rows.iter().map(|(name, ..)| *name).collect();
        // Each row runs in a task of its own, so that no row waits for another.
        let runs: Vec<_> = rows
            .into_iter()
            .map(|(name, attack, expected)| {
                (name, tokio::spawn(attack.run(site.address)), expected)
            })
            .collect();
        let send = join_all(runs.into_iter().map(async |(name, run, expected)| {
            (name, run.await.unwrap_or_else(|error| panic!("{name}: {error}")), expected)
        }));
        for (name, is, expected) in
            site.survives(&names.join(" / "), &[], site.while_others_are_served(send)).await
        {
            if is != expected {
                wrong.push(format!("{name}: {is}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// These clients do not complete the preface of HTTP/2. The handshake time-out must close their
/// connections. The idle time-out is too long here to do so.
pub async fn a_client_that_does_not_complete_the_preface_is_closed() {
    let site = Site::quiet(&SHORT.replace("idle_timeout = '3s'", "idle_timeout = '10m'")).await;
    let rows: Vec<Row> = vec![
        ("nothing", first(b""), "closed"),
        ("a letter", first(b"P"), "closed"),
        ("all but the last of the preface", first(&PREFACE[..23]), "closed"),
    ];
    run_rows(&site, rows).await;
    site.finish().await;
}

/// These clients begin a frame, a call or a connection and do not complete it. The service must end
/// the call or the connection.
pub async fn a_client_that_stops_or_makes_no_progress_is_disconnected() {
    let site = Site::quiet(SHORT).await;
    let rows: Vec<Row> = vec![
        ("the preface", first(PREFACE), "closed"),
        ("the preface and settings", then([]), "closed"),
        ("half the head of a frame", then(&ping(1)[..5]), "closed"),
        ("half a frame", then(&ping(1)[..12]), "closed"),
        (
            "headers whose end does not come",
            then(frame(kind::HEADERS, 0, 1, &http2::call(VALIDATE))),
            "closed",
        ),
        (
            "a body without an end and without a byte",
            Attack::Body(vec![]),
            "Grpc(DeadlineExceeded)",
        ),
        (
            "a body without an end, after its message",
            Attack::Body(vec![message(&question("x"))]),
            "Grpc(DeadlineExceeded)",
        ),
        (
            "a body without an end, in its message",
            Attack::Body(vec![framed(0, 9, b"x")]),
            "Grpc(DeadlineExceeded)",
        ),
        ("an answer without a window", Attack::WithoutWindow(1), "closed"),
        ("answers without a window on all streams", Attack::WithoutWindow(STREAMS), "closed"),
        // The following clients keep sending frames, but no call of theirs makes progress.
        ("pings without end", Attack::Endless(ping(1).repeat(500)), "ENHANCE_YOUR_CALM"),
        (
            "settings without end",
            Attack::Endless(http2::settings(&[]).repeat(500)),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "priorities without end",
            Attack::Endless(frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(500)),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "unknown frames without end",
            Attack::Endless(frame(0xbe, 0, 0, &[0; 100]).repeat(500)),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "window updates without end",
            Attack::Endless(frame(kind::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(500)),
            "ENHANCE_YOUR_CALM",
        ),
        ("pings whose answers are not read", Attack::Unread(ping(1).repeat(500)), "closed"),
        (
            "settings whose answers are not read",
            Attack::Unread(http2::settings(&[]).repeat(500)),
            "closed",
        ),
    ];
    let before = site.resident();
    run_rows(&site, rows).await;
    let after = site.resident();
    assert!(after <= before + SLACK, "{before} MiB, and then {after} MiB");
    site.finish().await;
}

/// Frames and headers that HTTP/2 does not allow.
pub async fn frames_that_http2_does_not_allow_get_the_expected_error() {
    let site = Site::quiet("[limits]\nmax_metadata_bytes = 4096").await;
    let rows: Vec<Row> = vec![
        ("HTTP/1.1", first(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"), "closed"),
        (
            "a TLS handshake",
            first([&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 600]].concat()),
            "closed",
        ),
        ("another preface", first(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n"), "closed"),
        ("zeros", first([0; 4096]), "closed"),
        (
            "a frame longer than any may be",
            then(frame(kind::DATA, 0, 1, &[0; 20_000])),
            "FRAME_SIZE_ERROR",
        ),
        (
            "headers on stream 0",
            then(frame(kind::HEADERS, END_HEADERS, 0, &http2::call(VALIDATE))),
            "PROTOCOL_ERROR",
        ),
        (
            "headers on a stream of the server",
            then(frame(kind::HEADERS, END_HEADERS, 2, &http2::call(VALIDATE))),
            "PROTOCOL_ERROR",
        ),
        ("data on stream 0", then(frame(kind::DATA, 0, 0, b"x")), "PROTOCOL_ERROR"),
        (
            "data of a stream that has not begun",
            then(frame(kind::DATA, 0, 1, b"x")),
            "PROTOCOL_ERROR",
        ),
        ("a reset of a stream that has not begun", then(reset(1)), "PROTOCOL_ERROR"),
        (
            "an older stream",
            then([begin(5, VALIDATE), begin(1, VALIDATE)].concat()),
            "PROTOCOL_ERROR",
        ),
        (
            "a push promise by the client",
            then(
                [begin(0, VALIDATE), frame(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])]
                    .concat(),
            ),
            "PROTOCOL_ERROR",
        ),
        (
            "a continuation without headers before it",
            then(frame(kind::CONTINUATION, END_HEADERS, 1, &[])),
            "PROTOCOL_ERROR",
        ),
        (
            "a ping within headers",
            then([frame(kind::HEADERS, 0, 1, &http2::call(VALIDATE)), ping(1)].concat()),
            "PROTOCOL_ERROR",
        ),
        (
            "padding longer than its frame",
            then([begin(0, VALIDATE), frame(kind::DATA, 8, 1, &[200, 1])].concat()),
            "PROTOCOL_ERROR",
        ),
        ("a ping of 7 bytes", then(frame(kind::PING, 0, 0, &[0; 7])), "PROTOCOL_ERROR"),
        ("a ping of a stream", then(frame(kind::PING, 0, 1, &[0; 8])), "PROTOCOL_ERROR"),
        ("settings of 5 bytes", then(frame(kind::SETTINGS, 0, 0, &[0; 5])), "PROTOCOL_ERROR"),
        ("settings of a stream", then(frame(kind::SETTINGS, 0, 1, &[])), "PROTOCOL_ERROR"),
        (
            "an acknowledgement of settings with a payload",
            then(frame(kind::SETTINGS, ACK, 0, &[0; 6])),
            "PROTOCOL_ERROR",
        ),
        (
            "a window of 2 GiB",
            then(http2::settings(&[(INITIAL_WINDOW, 1 << 31)])),
            "PROTOCOL_ERROR",
        ),
        ("a maximum frame size of 1", then(http2::settings(&[(5, 1)])), "PROTOCOL_ERROR"),
        ("a window update of 0", then(frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])), "PROTOCOL_ERROR"),
        (
            "a window beyond 2^31 - 1",
            then(frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(2)),
            "FLOW_CONTROL_ERROR",
        ),
        (
            "headers by an index that does not exist",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0xff, 0x80, 1])),
            "PROTOCOL_ERROR",
        ),
        (
            "headers by index 0",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0x80])),
            "PROTOCOL_ERROR",
        ),
        (
            "headers that end too soon",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0, 9, b'x'])),
            "PROTOCOL_ERROR",
        ),
        (
            "a header table larger than agreed",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0xff, 0x7f])),
            "PROTOCOL_ERROR",
        ),
        (
            "an invalid Huffman code",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 0])),
            "PROTOCOL_ERROR",
        ),
        // Malformed requests: most of them end only their stream.
        ("capitals in a name", then(usual_and("X-Capital", "x")), "PROTOCOL_ERROR"),
        ("a header of the connection", stream(usual_and("connection", "close")), "stream reset: 1"),
        (
            "a transfer encoding",
            stream(usual_and("transfer-encoding", "chunked")),
            "stream reset: 1",
        ),
        ("a line feed in a value", then(usual_and("x", "a\r\nb: c")), "PROTOCOL_ERROR"),
        ("NUL in a value", then(usual_and("x", "a\0b")), "PROTOCOL_ERROR"),
        ("no method", stream(usual_without(":method")), "stream reset: 1"),
        ("no path", stream(usual_without(":path")), "stream reset: 1"),
        ("two paths", stream(usual_and(":path", "/x")), "stream reset: 1"),
        ("a status in a request", stream(usual_and(":status", "200")), "stream reset: 1"),
        (
            "a window update of 0 on a stream",
            then([begin(0, VALIDATE), frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4])].concat()),
            "PROTOCOL_ERROR",
        ),
        (
            "a window beyond 2^31 - 1 on a stream",
            stream([begin(0, VALIDATE), overflow_window(1)].concat()),
            "stream reset: 3",
        ),
        // HTTP/2 allows the rest.
        ("an unknown kind of frame", stays(frame(0xbe, 0xff, 0, b"x")), "stays"),
        ("an unknown setting", stays(http2::settings(&[(0xbeef, 7)])), "stays"),
        ("a header table of 0 bytes", stays(http2::settings(&[(1, 0)])), "stays"),
        (
            "a body far longer than a request may be, within its window",
            stays([begin(0, VALIDATE), frame(kind::DATA, 0, 1, &[0; 16_384]).repeat(60)].concat()),
            "stays",
        ),
    ];
    run_rows(&site, rows).await;
    site.finish().await;
}

/// Floods of frames that cost a client nothing to send. The service must close the connection of
/// such a client, and must go on serving other clients.
pub async fn a_flood_ends_only_the_connection_of_its_client() {
    let site = Site::quiet(&SHORT.replace("idle_timeout = '3s'", "idle_timeout = '10m'")).await;
    let large = http2::fields(&[("x", &"x".repeat(8000))]);
    // The literal goes into the header table at index 62, and each further byte names that index.
    // So the block is small to send and large when decoded.
    let entry = [&[0x40][..], &http2::fields(&[("x", &"x".repeat(3000))])[1..]].concat();
    let bomb = [http2::call(VALIDATE), entry, vec![0x80 | 62; 8000]].concat();
    let rows: Vec<Row> = vec![
        (
            "calls begun and reset (rapid reset)",
            then(each(FLOOD, |n| [begin(n, VALIDATE), reset(number(n))].concat())),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "the same of a call that is open to everybody",
            then(each(FLOOD, |n| [begin(n, WATCH), reset(number(n))].concat())),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "calls that make the service reset them",
            then(each(FLOOD, |n| [begin(n, VALIDATE), overflow_window(number(n))].concat())),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "calls begun, far more than allowed",
            then(each(FLOOD, |n| begin(n, VALIDATE))),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "empty continuations without end",
            then([unfinished(), frame(kind::CONTINUATION, 0, 1, &[]).repeat(FLOOD)].concat()),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "continuations without end",
            then(
                [unfinished(), frame(kind::CONTINUATION, 0, 1, &large).repeat(FLOOD / 20)].concat(),
            ),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "headers that are large when decoded",
            then(frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &bomb)),
            "ENHANCE_YOUR_CALM",
        ),
        ("pings", then(each(FLOOD, |n| ping(n as u64))), "ENHANCE_YOUR_CALM"),
        ("settings", then(http2::settings(&[]).repeat(FLOOD)), "ENHANCE_YOUR_CALM"),
        (
            "resets of a stream that has ended",
            then([begin(0, VALIDATE), reset(1).repeat(FLOOD)].concat()),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "pings between data that is nothing but padding",
            then(
                [
                    begin(0, VALIDATE),
                    [frame(kind::DATA, 8, 1, &[0]), ping(1).repeat(8)].concat().repeat(FLOOD / 9),
                ]
                .concat(),
            ),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "a body of empty frames",
            then([begin(0, VALIDATE), frame(kind::DATA, 0, 1, &[]).repeat(FLOOD)].concat()),
            "ENHANCE_YOUR_CALM",
        ),
    ];
    let before = site.resident();
    run_rows(&site, rows).await;
    let after = site.resident();
    assert!(after <= before + SLACK, "{before} MiB, and then {after} MiB");

    // Below the limit of frames, each ping and each settings frame is answered by one frame.
    const ALLOWED: usize = 450;
    let (pongs, acks) = site
        .survives("pings and settings", &[], async {
            let mut raw = Raw::open(site.address).await;
            let pings = each(ALLOWED, |n| ping(n as u64));
            let settings = http2::settings(&[]).repeat(ALLOWED);
            let (read, write) = (&mut raw.read, &mut raw.write);
            let send = async { write.write_all(&[pings, settings].concat()).await.unwrap() };
            let count = async {
                let mut seen = (0, 0);
                while seen != (ALLOWED, ALLOWED) {
                    let frame = read.next().await.expect("the connection stays open");
                    seen.0 += usize::from((frame.kind, frame.flags) == (kind::PING, ACK));
                    seen.1 += usize::from((frame.kind, frame.flags) == (kind::SETTINGS, ACK));
                }
                seen
            };
            in_time("all are answered", join(send, count)).await.1
        })
        .await;
    assert_eq!((pongs, acks), (ALLOWED, ALLOWED));

    // The call beyond the limit is refused, and the calls under way go on.
    site.survives("one call too many", &[], async {
        let mut raw = Raw::open(site.address).await;
        raw.send(&each(STREAMS + 1, |n| begin(n, VALIDATE))).await;
        let seen = raw.answers().await.expect("the connection stays open");
        let refused: Vec<_> = seen.iter().filter(|frame| frame.kind == kind::RST_STREAM).collect();
        assert_eq!(refused.len(), 1, "{seen:?}");
        assert_eq!((refused[0].stream, refused[0].code()), (number(STREAMS), code::REFUSED_STREAM));
    })
    .await;
    site.finish().await;
}

/// The TLS port answers only TLS. A client that does not complete its handshake delays no other
/// client.
pub async fn the_tls_port_answers_only_tls_and_a_silent_client_delays_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(path("server.pem"), made.cert.pem()).unwrap();
    fs::write(path("server.key"), made.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(path("server.key"), Permissions::from_mode(0o600)).unwrap();
    let mut command = serve(&path("data"));
    for (name, value) in
        [("CERTIFICATE_FILE", path("server.pem")), ("PRIVATE_KEY_FILE", path("server.key"))]
    {
        command.env(format!("COUNTERSIGN_TLS__{name}"), value);
    }
    command
        .env("COUNTERSIGN_LIMITS__HANDSHAKE_TIMEOUT", "3s")
        .env("COUNTERSIGN_LOG__LEVEL", "trace");
    let server = Process::launch(&mut command);
    let port = server.address().port();
    let certificate = Certificate::from_pem(made.cert.pem());
    let good_call = async || {
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).unwrap();
        let channel = endpoint
            .tls_config(ClientTlsConfig::new().ca_certificate(certificate.clone()))
            .unwrap()
            .connect()
            .await;
        let request = CreateSessionRequest { subject: "alice".to_owned(), ..Default::default() };
        SessionServiceClient::new(channel.unwrap()).create_session(request).await.unwrap();
    };
    let hello: &[u8] = &[0x16, 3, 1, 0, 0xff, 1, 0, 0, 0xfb, 3, 3];
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("half a handshake", hello.to_vec()),
        ("HTTP/2 in the clear", [PREFACE, &http2::settings(&[]), &begin(0, VALIDATE)].concat()),
        ("HTTP/1.1 in the clear", b"GET / HTTP/1.1\r\nhost: test\r\n\r\n".to_vec()),
        ("a handshake of garbage", [hello, &[7; 244]].concat()),
        ("SSL 2", vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10]),
        ("a heartbeat", vec![0x18, 3, 2, 0, 3, 1, 0x40, 0]),
        ("zeros", vec![0; 100_000]),
        (
            "random bytes",
            (0..50_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect(),
        ),
    ];
    let answers = join_all(rows.iter().map(async |(name, bytes)| {
        let mut raw = Raw::silent(server.address()).await;
        let _ = raw.try_send(bytes).await;
        (*name, raw.read.bytes().await)
    }));
    let (answers, ()) = join(answers, good_call()).await;
    for (name, answer) in answers {
        // The answer is empty or an alert (RFC 8446, section 6).
        assert!(
            answer.is_empty() || (answer[0] == 0x15 && answer.len() == 7),
            "{name}: {answer:?}"
        );
    }
    good_call().await;
    server.stop();
}
