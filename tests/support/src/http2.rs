//! HTTP/2 frame by frame (RFC 9113), for a client that behaves in ways that no library allows.

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

/// The connection preface of a client (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Frame types (section 6).
pub mod kind {
    /// Content.
    pub const DATA: u8 = 0;
    /// Headers or trailers.
    pub const HEADERS: u8 = 1;
    /// A priority, which is deprecated.
    pub const PRIORITY: u8 = 2;
    /// The abrupt end of a stream.
    pub const RST_STREAM: u8 = 3;
    /// Settings.
    pub const SETTINGS: u8 = 4;
    /// A stream that a server announces.
    pub const PUSH_PROMISE: u8 = 5;
    /// A question whether the peer is there.
    pub const PING: u8 = 6;
    /// The end of a connection.
    pub const GOAWAY: u8 = 7;
    /// Leave to send further bytes.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of headers.
    pub const CONTINUATION: u8 = 9;
}

/// The flag of DATA and HEADERS that are the last of their sender.
pub const END_STREAM: u8 = 1;
/// The flag of HEADERS that no CONTINUATION follows.
pub const END_HEADERS: u8 = 4;
/// The flag of SETTINGS and PING.
pub const ACK: u8 = 1;

/// SETTINGS_INITIAL_WINDOW_SIZE, the number of bytes that a peer may send on a stream at first.
pub const INITIAL_WINDOW: u16 = 4;

/// Error codes (section 7).
pub mod code {
    /// The end of a connection without an error.
    pub const NO_ERROR: u32 = 0;
    /// A breach of the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// More bytes than a window allows.
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    /// A frame on a stream that has ended.
    pub const STREAM_CLOSED: u32 = 5;
    /// A frame of a wrong length.
    pub const FRAME_SIZE_ERROR: u32 = 6;
    /// A call that was not begun.
    pub const REFUSED_STREAM: u32 = 7;
    /// Headers that cannot be decoded.
    pub const COMPRESSION_ERROR: u32 = 9;
    /// Too much load.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Encodes names and values in HPACK without compression (RFC 7541, section 6.2.2).
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

/// Encodes a number with a prefix of seven bits (RFC 7541, section 5.1).
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

/// Encodes the headers of a gRPC call.
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

/// Encodes a gRPC message, with its length before it.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    [&[0], &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// Encodes SETTINGS with these values.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<_> = values
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

/// Encodes RST_STREAM with the code CANCEL.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// Encodes PING.
pub fn ping(number: u64) -> Vec<u8> {
    frame(kind::PING, 0, 0, &number.to_be_bytes())
}

/// Returns the identifier of a client's stream, which is odd.
pub fn stream(index: usize) -> u32 {
    u32::try_from(2 * index + 1).unwrap()
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The type.
    pub kind: u8,
    /// The flags.
    pub flags: u8,
    /// The stream, or 0 for the connection.
    pub stream: u32,
    /// The content.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns the error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// The end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The error code of the server's first GOAWAY; `None` if it closed the connection without one.
    pub goaway: Option<u32>,
    /// The number of frames of each type that came before.
    pub frames: BTreeMap<u8, usize>,
}

/// A connection whose frames a test sends one by one.
pub struct Raw {
    /// The frames that the server sends.
    pub read: Frames,
    /// The bytes to the server.
    pub write: OwnedWriteHalf,
}

/// The frames that the server sends.
pub struct Frames(OwnedReadHalf);

impl Raw {
    /// Opens a connection on which nothing has been sent.
    pub async fn silent(address: SocketAddr) -> Self {
        let (read, write) = TcpStream::connect(address).await.unwrap().into_split();
        Self { read: Frames(read), write }
    }

    /// Opens a connection on which HTTP/2 has begun.
    pub async fn open(address: SocketAddr) -> Self {
        Self::with(address, &[]).await
    }

    /// Opens a connection on which HTTP/2 has begun with these settings. It also waits until the
    /// server has extended the connection's window: before that, a client may send at most 65,535
    /// bytes (RFC 9113, section 6.9.2).
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

    /// Sends bytes, and panics if the connection is closed.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.unwrap();
    }

    /// Sends bytes to a server that may have closed the connection.
    pub async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        in_time("it is sent", self.write.write_all(bytes)).await
    }

    /// Sends bytes, and reads meanwhile, until the connection is closed.
    pub async fn flood(mut self, mut bytes: impl FnMut() -> Option<Vec<u8>>) -> Ended {
        let write = async {
            while let Some(bytes) = bytes() {
                if self.write.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // If it were dropped, the server would see that the client has gone.
            self.write
        };
        in_time("the connection is closed", join(self.read.rest(), write)).await.0
    }

    /// Reads until the connection is closed.
    pub async fn rest(self) -> Ended {
        self.flood(|| None).await
    }

    /// Sends a PING, and waits for its answer. Returns the frames that came before it, or the end
    /// of the connection if that has closed.
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
    /// Returns the next frame, or `None` once the connection is closed in any way.
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

    /// Returns all bytes until the connection is closed.
    pub async fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![];
        let _ = in_time("the connection is closed", self.0.read_to_end(&mut bytes)).await;
        bytes
    }
}
