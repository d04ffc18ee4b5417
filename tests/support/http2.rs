//! HTTP/2 frame by frame (RFC 9113), for a client that behaves as no library would let it.

use std::{collections::BTreeMap, io, net::SocketAddr};

use futures_util::future::join;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use crate::server::in_time;

/// What a client begins with (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames (section 6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// Of SETTINGS and PING.
pub const ACK: u8 = 1;

/// How long a stream of ours may be given by a peer: SETTINGS_INITIAL_WINDOW_SIZE.
pub const INITIAL_WINDOW: u16 = 4;

/// Codes of errors (section 7).
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame as it is written.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Names and values as HPACK has them that compresses nothing (RFC 7541, section 6.2.2).
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![];
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A number after a prefix of seven bits (RFC 7541, section 5.1).
fn integer(block: &mut Vec<u8>, number: usize) {
    let Some(mut rest) = number.checked_sub(127) else {
        return block.push(u8::try_from(number).unwrap());
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The headers of a call of a method.
pub fn call(path: &str) -> Vec<u8> {
    fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "test"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A message of a call, with its length before it.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// SETTINGS with these values.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<_> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

pub fn ping(number: u64) -> Vec<u8> {
    frame(kind::PING, 0, 0, &number.to_be_bytes())
}

/// Streams of a client have odd numbers.
pub fn stream(index: usize) -> u32 {
    u32::try_from(2 * index + 1).unwrap()
}

/// A frame that has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// How a connection ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The first code with which the server announced it; none if it just closed.
    pub goaway: Option<u32>,
    /// How many frames of each kind came before.
    pub frames: BTreeMap<u8, usize>,
}

/// A connection of such a client.
pub struct Raw {
    pub read: Frames,
    pub write: OwnedWriteHalf,
}

/// What comes back.
pub struct Frames(OwnedReadHalf);

impl Raw {
    /// A connection on which nothing has been said.
    pub async fn silent(address: SocketAddr) -> Self {
        let (read, write) = TcpStream::connect(address).await.unwrap().into_split();
        Self { read: Frames(read), write }
    }

    /// A connection on which HTTP/2 has begun.
    pub async fn open(address: SocketAddr) -> Self {
        Self::with(address, &[]).await
    }

    /// The same with settings. The server has opened the connection's window: what comes before
    /// that may fill no more than the 65,535 bytes of RFC 9113, section 6.9.2.
    pub async fn with(address: SocketAddr, values: &[(u16, u32)]) -> Self {
        let mut raw = Self::silent(address).await;
        raw.send(&[PREFACE, &settings(values)].concat()).await;
        for begun in [kind::SETTINGS, kind::WINDOW_UPDATE] {
            while in_time("the server begins", raw.read.next())
                .await
                .expect("the connection stays")
                .kind
                != begun
            {}
        }
        raw.send(&frame(kind::SETTINGS, ACK, 0, &[])).await;
        raw
    }

    /// Sends what must arrive.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends to whom may have gone.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        in_time("it is sent", self.write.write_all(bytes)).await
    }

    /// Sends while it reads what comes, until the connection is closed.
    pub async fn flood(mut self, mut bytes: impl FnMut() -> Option<Vec<u8>>) -> Ended {
        let write = async {
            while let Some(bytes) = bytes() {
                if self.write.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // Dropped, it would say that the client has gone.
            self.write
        };
        in_time("the connection is closed", join(self.read.rest(), write)).await.0
    }

    /// Reads until the connection is closed.
    pub async fn rest(self) -> Ended {
        self.flood(|| None).await
    }

    /// Whether the connection is still good: what is asked for comes back. Returns what came
    /// before, or how it has ended.
    pub async fn answers(&mut self) -> Result<Vec<Frame>, Ended> {
        let asked = 0x1234_5678_u64;
        let _ = self.try_send(&ping(asked)).await;
        let mut seen = vec![];
        while let Some(frame) = in_time("the answer to a ping", self.read.next()).await {
            if (frame.kind, frame.flags) == (kind::PING, ACK)
                && frame.payload == asked.to_be_bytes()
            {
                return Ok(seen);
            }
            seen.push(frame);
        }
        Err(Ended::of(&seen))
    }
}

impl Ended {
    fn of(frames: &[Frame]) -> Self {
        let mut ended = Self::default();
        frames.iter().for_each(|frame| ended.add(frame));
        ended
    }

    fn add(&mut self, frame: &Frame) {
        self.goaway = self.goaway.or_else(|| (frame.kind == kind::GOAWAY).then(|| frame.code()));
        *self.frames.entry(frame.kind).or_default() += 1;
    }
}

impl Frames {
    /// The next frame; none once the connection is closed, however.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    async fn rest(&mut self) -> Ended {
        let mut ended = Ended::default();
        while let Some(frame) = self.next().await {
            ended.add(&frame);
        }
        ended
    }

    /// All bytes until the connection is closed.
    pub async fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![];
        let _ = in_time("the connection is closed", self.0.read_to_end(&mut bytes)).await;
        bytes
    }
}
