//! What is bad below the level of calls: messages, headers, frames, connections. It is sent to the
//! real binary by sockets, with ceilings that are low and time-outs that are short. Each row is
//! what is sent and what must come back; meanwhile others are served on their own connections, and
//! afterwards all is as before ([`Site::survives`]).

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

use crate::{
    http2::{
        self, ACK, END_HEADERS, END_STREAM, Ended, INITIAL_WINDOW, PREFACE, Raw, code, frame, kind,
        message, ping, reset, stream as number,
    },
    server::in_time,
    site::{Site, connect},
    support::{Server as Process, serve},
};

const VALIDATE: &str = "/countersign.v1.SessionService/Validate";
const CREATE: &str = "/countersign.v1.SessionService/CreateSession";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Of a call.
    Grpc(Code),
    /// Of HTTP, because it is no call.
    Http(u16),
    /// None: the stream was ended.
    Reset,
}
use Answer::{Grpc, Http};

/// A request as it is sent.
struct Sent {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    /// What comes after each other.
    body: Vec<Vec<u8>>,
    /// Whether the body ends.
    ends: bool,
}

/// A call as it should be, with this body.
fn call(path: &str, body: Vec<u8>) -> Sent {
    let headers =
        vec![("content-type", "application/grpc".to_owned()), ("te", "trailers".to_owned())];
    Sent { method: "POST", path: path.to_owned(), headers, body: vec![body], ends: true }
}

/// The same with one header more, or another value of it.
fn with(mut sent: Sent, name: &'static str, value: &str) -> Sent {
    sent.headers.retain(|(other, _)| *other != name);
    sent.headers.push((name, value.to_owned()));
    sent
}

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
    // A connection of its own, that may be closed.
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

/// A body of frames as they come.
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

fn question(token: &str) -> Vec<u8> {
    ValidateRequest { access_token: token.to_owned(), ..Default::default() }.encode_to_vec()
}

/// A message with this flag and this length before it, whatever it has.
fn framed(flag: u8, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&[flag], &length.to_be_bytes()[..], bytes].concat()
}

/// A field of a message with its length (proto3, wire type 2).
fn nested(bytes: &[u8], depth: usize) -> Vec<u8> {
    (0..depth).fold(bytes.to_vec(), |inner, _| {
        // A list in a value in a list: field 1 of ListValue is a Value, field 6 of Value a
        // ListValue.
        let mut list = vec![0x32];
        prost::encoding::encode_varint(inner.len() as u64, &mut list);
        list.extend(inner);
        let mut value = vec![0x0a];
        prost::encoding::encode_varint(list.len() as u64, &mut value);
        value.extend(list);
        value
    })
}

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
        // claims = Struct { fields: { "a": Value { list: … } } }
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
        // As small as gzip makes a megabyte of zeros; nobody unpacks it.
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
        // Sizes.
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
        ("a batch that is larger than another request may be", batch(16, 8000), Grpc(Code::Ok)),
        ("a batch too large", batch(256, 8000), Grpc(Code::InvalidArgument)),
        ("a length of 4 GiB", validate(framed(0, u32::MAX, &good)), Grpc(Code::InvalidArgument)),
        (
            "a length of 4 GiB and no more",
            validate(framed(0, u32::MAX, &[])),
            Grpc(Code::InvalidArgument),
        ),
        (
            "a length longer than the message",
            validate(framed(0, length + 1, &good)),
            Grpc(Code::Internal),
        ),
        (
            "a length of all that may be sent, and little that is",
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
        ("nothing", validate(vec![]), Grpc(Code::Internal)),
        ("an empty message", plain(&[]), Grpc(Code::InvalidArgument)),
        ("a byte more", validate([message(&good), vec![0]].concat()), Grpc(Code::Internal)),
        // What follows is passed over.
        ("a length more", validate([message(&good), vec![0, 0, 0, 0, 9]].concat()), Grpc(Code::Ok)),
        ("two messages", validate([message(&good), message(&good)].concat()), Grpc(Code::Ok)),
        ("a thousand messages", validate(message(&good).repeat(1000)), Grpc(Code::Ok)),
        // Compression, which is not taken.
        ("compressed without saying how", validate(compressed.clone()), Grpc(Code::Internal)),
        (
            "said to be compressed as it should not be",
            with(good_call(), "grpc-encoding", "gzip"),
            Grpc(Code::Unimplemented),
        ),
        (
            "a bomb",
            with(validate(compressed.clone()), "grpc-encoding", "gzip"),
            Grpc(Code::Unimplemented),
        ),
        (
            "a bomb not called compressed",
            with(validate(compressed.clone()), "grpc-encoding", "identity"),
            Grpc(Code::Internal),
        ),
        ("flag 2", validate(framed(2, length, &good)), Grpc(Code::Internal)),
        ("flag 255", validate(framed(255, length, &good)), Grpc(Code::Internal)),
        (
            "not compressed, and said so",
            with(good_call(), "grpc-encoding", "identity"),
            Grpc(Code::Ok),
        ),
        // Protocol buffers.
        ("a field cut off", plain(&good[..good.len() - 1]), Grpc(Code::Internal)),
        ("a length in it beyond the end", plain(&[0x0a, 0x7f, b'x']), Grpc(Code::Internal)),
        (
            "a length in it of 2^63",
            plain(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            Grpc(Code::Internal),
        ),
        (
            "a number without an end",
            plain(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            Grpc(Code::Internal),
        ),
        ("field 0", plain(&[0x02, 1, b'x']), Grpc(Code::Internal)),
        ("a field of another type", plain(&[0x08, 1]), Grpc(Code::Internal)),
        ("a wire type that there is not", plain(&[0x0f, 1]), Grpc(Code::Internal)),
        ("a group without a beginning", plain(&[0x0c]), Grpc(Code::Internal)),
        ("groups without an end", plain(&[0x7b; 3000]), Grpc(Code::Internal)),
        ("text that is none", plain(&[0x0a, 2, 0xff, 0xfe]), Grpc(Code::Internal)),
        (
            "random bytes",
            plain(
                &(0..2000u32)
                    .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
                    .collect::<Vec<_>>(),
            ),
            Grpc(Code::Internal),
        ),
        (
            "a field that nobody knows",
            plain(&[&good[..], &[0xfa, 0x7f, 1, b'x']].concat()),
            Grpc(Code::Ok),
        ),
        (
            "an enum that nobody knows",
            plain(&[&good[..], &[0x30, 0x63]].concat()),
            Grpc(Code::InvalidArgument),
        ),
        ("claims 2000 deep", claims(2000), Grpc(Code::InvalidArgument)),
        // Headers.
        ("a deadline that is none", with(good_call(), "grpc-timeout", "soon"), Grpc(Code::Ok)),
        ("a deadline after ages", with(good_call(), "grpc-timeout", "99999999H"), Grpc(Code::Ok)),
        ("metadata that claim to be binary", with(good_call(), "x-bin", "&&&"), Grpc(Code::Ok)),
        ("much metadata", with(good_call(), "x", &"x".repeat(5000)), Http(431)),
        (
            "a key that is none, where nobody has one",
            with(good_call(), "authorization", "Basic x"),
            Grpc(Code::Ok),
        ),
    ];
    for encoding in ["deflate", "zstd", "br", "snappy", "x", "", "GZIP", "gzip, identity"] {
        rows.push((
            "an encoding that there is not",
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
        rows.push((
            "a call that there is not",
            call(path, message(&good)),
            Grpc(Code::Unimplemented),
        ));
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
        rows.push(("what is no call", with(good_call(), "content-type", content), Http(415)));
    }
    let mut none = good_call();
    none.headers.retain(|(name, _)| *name != "content-type");
    rows.push(("what does not say that it is a call", none, Http(415)));
    for content in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc;charset=utf-8",
        "application/GRPC",
    ] {
        rows.push((
            "a call, in other words",
            with(good_call(), "content-type", content),
            Grpc(Code::Ok),
        ));
    }
    for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "X"] {
        rows.push(("another method than POST", Sent { method, ..good_call() }, Http(405)));
    }
    rows
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut sized = vec![];
    prost::encoding::encode_varint(bytes.len() as u64, &mut sized);
    sized.extend(bytes);
    sized
}

/// The number of CreateSessionRequest.claims.
fn claims_field() -> u32 {
    let pool = prost_reflect::DescriptorPool::decode(countersign::proto::DESCRIPTORS).unwrap();
    let request = pool.get_message_by_name("countersign.v1.CreateSessionRequest").unwrap();
    request.get_field_by_name("claims").unwrap().number()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_messages() {
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

/// Time-outs that are short, and yet longer than a good call takes on a busy machine.
const SHORT: &str = "[limits]\ncall_timeout = '3s'\nhandshake_timeout = '3s'\nidle_timeout = \
                     '3s'\nkeepalive_timeout = '1s'\nmax_streams_per_connection = \
                     64\nmax_metadata_bytes = 4096";
/// Calls under way on a connection, by these settings.
const STREAMS: usize = 64;
/// How many frames a flood has.
const FLOOD: usize = 20_000;
/// Memory that may come and go, in MiB. A flood that is kept would take more.
const SLACK: u64 = 48;

/// What is sent by sockets.
enum Attack {
    /// This and nothing before it.
    First(Vec<u8>),
    /// This on a connection that has begun well.
    Then(Vec<u8>),
    /// The same, and the connection stays good.
    Stays(Vec<u8>),
    /// The same, and the first stream ends.
    Stream(Vec<u8>),
    /// This again and again, while what comes is read.
    Endless(Vec<u8>),
    /// This again and again, and nothing is read.
    Unread(Vec<u8>),
    /// So many calls whose answers have no room at their client.
    Untaken(usize),
    /// A call with this body, which does not end.
    Body(Vec<Vec<u8>>),
}

/// What is sent, and what must come of it.
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
    /// Makes it. Returns how the connection or the call has ended.
    async fn run(self, address: SocketAddr) -> String {
        match self {
            Self::First(bytes) => {
                let mut raw = Raw::silent(address).await;
                raw.send(&bytes).await;
                told(&raw.rest().await)
            }
            Self::Then(bytes) => {
                let mut once = Some(bytes);
                told(&Raw::open(address).await.flood(|| once.take()).await)
            }
            Self::Stays(bytes) => {
                let mut raw = Raw::open(address).await;
                raw.send(&bytes).await;
                raw.answers().await.map_or_else(|ended| told(&ended), |_| "stays".to_owned())
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
                raw.answers().await.map_or_else(|ended| told(&ended), |_| said)
            }
            Self::Endless(bytes) => {
                told(&Raw::open(address).await.flood(|| Some(bytes.clone())).await)
            }
            Self::Unread(bytes) => {
                let mut raw = Raw::open(address).await;
                while raw.try_send(&bytes).await.is_ok() {}
                "closed".to_owned()
            }
            Self::Untaken(calls) => {
                let mut raw = Raw::with(address, &[(INITIAL_WINDOW, 0)]).await;
                // Open to everybody, so that nobody's calls are counted.
                let call = |n| {
                    let body = frame(kind::DATA, END_STREAM, number(n), &message(&[]));
                    [begin(n, "/countersign.v1.KeyService/GetJwks"), body].concat()
                };
                raw.send(&each(calls, call)).await;
                told(&raw.rest().await)
            }
            Self::Body(body) => {
                let sent = Sent { ends: false, body, ..call(VALIDATE, vec![]) };
                format!("{:?}", ask(address, sent).await)
            }
        }
    }
}

/// How a connection has ended.
fn told(ended: &Ended) -> String {
    match ended.goaway {
        // Whether it is told before depends on whether there is something to read meanwhile.
        None | Some(code::NO_ERROR) => "closed".to_owned(),
        Some(code::PROTOCOL_ERROR) => "PROTOCOL_ERROR".to_owned(),
        Some(code::FLOW_CONTROL_ERROR) => "FLOW_CONTROL_ERROR".to_owned(),
        Some(code::FRAME_SIZE_ERROR) => "FRAME_SIZE_ERROR".to_owned(),
        Some(code::ENHANCE_YOUR_CALM) => "ENHANCE_YOUR_CALM".to_owned(),
        Some(other) => other.to_string(),
    }
}

/// The beginning of a call that may have a body.
fn begin(index: usize, path: &str) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, number(index), &http2::call(path))
}

/// More room than a stream can have, for which the service has to reset it.
fn too_much_room(stream: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])
}

/// The beginning of a call whose headers go on.
fn unfinished() -> Vec<u8> {
    frame(kind::HEADERS, 0, 1, &http2::call(VALIDATE))
}

/// A call that is begun with these headers and has no body.
fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &http2::fields(fields))
}

/// What every call has.
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

/// Many of the same frame, of one stream after the other.
fn each(count: usize, frames: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(frames).collect()
}

/// Walks a table, eight rows at a time: many of them wait for a time-out.
async fn walk(site: &Site, rows: Vec<Row>) {
    let mut wrong = vec![];
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let rows: Vec<_> = rows.by_ref().take(8).collect();
        let names: Vec<_> = rows.iter().map(|(name, ..)| *name).collect();
        // Each by itself, so that none of them waits for the others.
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

/// Clients who do not even begin with HTTP/2: what is idle may be so for longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_begin() {
    let site = Site::quiet(&SHORT.replace("idle_timeout = '3s'", "idle_timeout = '10m'")).await;
    let rows: Vec<Row> = vec![
        ("nothing", first(b""), "closed"),
        ("a letter", first(b"P"), "closed"),
        ("all but the last of the preface", first(&PREFACE[..23]), "closed"),
    ];
    walk(&site, rows).await;
    site.finish().await;
}

/// Clients who begin something and do not go on with it. What is waited for is the end that the
/// service makes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_go_on() {
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
        ("a body without an end, of nothing", Attack::Body(vec![]), "Grpc(DeadlineExceeded)"),
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
        ("answers that are not taken", Attack::Untaken(1), "closed"),
        ("answers that are not taken, on all streams", Attack::Untaken(STREAMS), "closed"),
        // Something, and never what matters.
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
            "more room without end",
            Attack::Endless(frame(kind::WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(500)),
            "ENHANCE_YOUR_CALM",
        ),
        ("pings, and no look at the answers", Attack::Unread(ping(1).repeat(500)), "closed"),
        (
            "settings, and no look at the answers",
            Attack::Unread(http2::settings(&[]).repeat(500)),
            "closed",
        ),
    ];
    let before = site.resident();
    walk(&site, rows).await;
    let after = site.resident();
    assert!(after <= before + SLACK, "{before} MiB, and then {after} MiB");
    site.finish().await;
}

/// Frames that HTTP/2 does not allow, and headers that it does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_frames() {
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
            "headers of no stream",
            then(frame(kind::HEADERS, END_HEADERS, 0, &http2::call(VALIDATE))),
            "PROTOCOL_ERROR",
        ),
        (
            "headers of a server's stream",
            then(frame(kind::HEADERS, END_HEADERS, 2, &http2::call(VALIDATE))),
            "PROTOCOL_ERROR",
        ),
        ("data of no stream", then(frame(kind::DATA, 0, 0, b"x")), "PROTOCOL_ERROR"),
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
            "a promise",
            then(
                [begin(0, VALIDATE), frame(kind::PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])]
                    .concat(),
            ),
            "PROTOCOL_ERROR",
        ),
        (
            "more of no headers",
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
            "an acknowledgement that says something",
            then(frame(kind::SETTINGS, ACK, 0, &[0; 6])),
            "PROTOCOL_ERROR",
        ),
        (
            "a window of 2 GiB",
            then(http2::settings(&[(INITIAL_WINDOW, 1 << 31)])),
            "PROTOCOL_ERROR",
        ),
        ("frames of a byte", then(http2::settings(&[(5, 1)])), "PROTOCOL_ERROR"),
        ("no more room", then(frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4])), "PROTOCOL_ERROR"),
        (
            "more room than there can be",
            then(frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]).repeat(2)),
            "FLOW_CONTROL_ERROR",
        ),
        (
            "headers by an index that there is not",
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
            "a table larger than agreed",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0xff, 0x7f])),
            "PROTOCOL_ERROR",
        ),
        (
            "text by a code that there is not",
            then(frame(kind::HEADERS, END_HEADERS, 1, &[0, 0x84, 0xff, 0xff, 0xff, 0xff, 0])),
            "PROTOCOL_ERROR",
        ),
        // Only the stream suffers.
        ("capitals in a name", then(usual_and("X-Capital", "x")), "PROTOCOL_ERROR"),
        ("a connection's header", stream(usual_and("connection", "close")), "stream reset: 1"),
        ("chunks", stream(usual_and("transfer-encoding", "chunked")), "stream reset: 1"),
        ("a line feed in a value", then(usual_and("x", "a\r\nb: c")), "PROTOCOL_ERROR"),
        ("NUL in a value", then(usual_and("x", "a\0b")), "PROTOCOL_ERROR"),
        ("no method", stream(usual_without(":method")), "stream reset: 1"),
        ("no path", stream(usual_without(":path")), "stream reset: 1"),
        ("two paths", stream(usual_and(":path", "/x")), "stream reset: 1"),
        ("a status", stream(usual_and(":status", "200")), "stream reset: 1"),
        (
            "no more room of a stream",
            then([begin(0, VALIDATE), frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4])].concat()),
            "PROTOCOL_ERROR",
        ),
        (
            "more room of a stream than there can be",
            stream([begin(0, VALIDATE), too_much_room(1)].concat()),
            "stream reset: 3",
        ),
        // Nobody minds.
        ("a frame of a kind that nobody knows", stays(frame(0xbe, 0xff, 0, b"x")), "stays"),
        ("settings that nobody knows", stays(http2::settings(&[(0xbeef, 7)])), "stays"),
        ("a table of nothing", stays(http2::settings(&[(1, 0)])), "stays"),
        (
            "a body far longer than a request may be, within its window",
            stays([begin(0, VALIDATE), frame(kind::DATA, 0, 1, &[0; 16_384]).repeat(60)].concat()),
            "stays",
        ),
    ];
    walk(&site, rows).await;
    site.finish().await;
}

/// As much as a client can send of what costs it nothing. Each costs it the connection, and nobody
/// else anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods() {
    let site = Site::quiet(&SHORT.replace("idle_timeout = '3s'", "idle_timeout = '10m'")).await;
    let large = http2::fields(&[("x", &"x".repeat(8000))]);
    // Into the table of headers, where its index is 62, and then named again and again: small to
    // send, and large to read.
    let entry = [&[0x40][..], &http2::fields(&[("x", &"x".repeat(3000))])[1..]].concat();
    let bomb = [http2::call(VALIDATE), entry, vec![0x80 | 62; 8000]].concat();
    let rows: Vec<Row> = vec![
        (
            "calls begun and given up (rapid reset)",
            then(each(FLOOD, |n| [begin(n, VALIDATE), reset(number(n))].concat())),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "the same of a call that is open to everybody",
            then(each(FLOOD, |n| [begin(n, WATCH), reset(number(n))].concat())),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "calls begun and made to be reset by us",
            then(each(FLOOD, |n| [begin(n, VALIDATE), too_much_room(number(n))].concat())),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "calls begun, far more than may be",
            then(each(FLOOD, |n| begin(n, VALIDATE))),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "headers of nothing without end",
            then([unfinished(), frame(kind::CONTINUATION, 0, 1, &[]).repeat(FLOOD)].concat()),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "headers without end",
            then(
                [unfinished(), frame(kind::CONTINUATION, 0, 1, &large).repeat(FLOOD / 20)].concat(),
            ),
            "ENHANCE_YOUR_CALM",
        ),
        (
            "headers that are large when read",
            then(frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &bomb)),
            "ENHANCE_YOUR_CALM",
        ),
        ("pings", then(each(FLOOD, |n| ping(n as u64))), "ENHANCE_YOUR_CALM"),
        ("settings", then(http2::settings(&[]).repeat(FLOOD)), "ENHANCE_YOUR_CALM"),
        (
            "resets of nothing",
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
    walk(&site, rows).await;
    let after = site.resident();
    assert!(after <= before + SLACK, "{before} MiB, and then {after} MiB");

    // Within the budget each is answered, by one frame and no more.
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
                    let frame = read.next().await.expect("it stays open");
                    seen.0 += usize::from((frame.kind, frame.flags) == (kind::PING, ACK));
                    seen.1 += usize::from((frame.kind, frame.flags) == (kind::SETTINGS, ACK));
                }
                seen
            };
            in_time("all are answered", join(send, count)).await.1
        })
        .await;
    assert_eq!((pongs, acks), (ALLOWED, ALLOWED));

    // One more than may be is refused, and those that there are go on.
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

/// Where TLS is spoken, nothing else is, and nobody waits for who does not begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_port_of_tls() {
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
        // An alert (RFC 8446, section 6) or nothing.
        assert!(
            answer.is_empty() || (answer[0] == 0x15 && answer.len() == 7),
            "{name}: {answer:?}"
        );
    }
    good_call().await;
    server.stop();
}
