//! HTTP/2 (RFC 9113): its frames, and two clients. One client sends frame by frame, and so can
//! behave in ways that no library allows. The other uses as little processor time as a benchmark
//! needs.

mod raw;
mod unary;

pub use raw::{Ended, Frames, Raw};
pub use unary::{Answered, Connection, Failure};

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
    /// The permission to send further bytes.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of headers.
    pub const CONTINUATION: u8 = 9;
}

/// The flag of the last DATA or HEADERS frame of a sender on a stream.
pub const END_STREAM: u8 = 1;
/// The flag of HEADERS that no CONTINUATION follows.
pub const END_HEADERS: u8 = 4;
/// The flag of SETTINGS and PING.
pub const ACK: u8 = 1;

/// SETTINGS_MAX_CONCURRENT_STREAMS, the most calls that may be under way.
pub const MAX_STREAMS: u16 = 3;
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
    /// A call that the server refused before it began to process the call.
    pub const REFUSED_STREAM: u32 = 7;
    /// Headers that cannot be decoded.
    pub const COMPRESSION_ERROR: u32 = 9;
    /// Too much load.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(Head::LENGTH + payload.len());
    put_frame(&mut frame, kind, flags, stream, payload);
    frame
}

/// Appends a frame to bytes that are to be sent.
pub fn put_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap();
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The head of a received frame.
#[derive(Clone, Copy, Debug)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    const LENGTH: usize = 9;

    fn parse([a, b, c, kind, flags, stream @ ..]: [u8; Self::LENGTH]) -> Self {
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) }
    }
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

/// Returns the identifier of a client's stream with this index. Clients use odd identifiers.
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
