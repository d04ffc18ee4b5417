//! A client that costs little processor time, because it implements only what unary calls of one
//! method need.

use std::collections::BTreeMap;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    ACK, END_HEADERS, END_STREAM, Head, INITIAL_WINDOW, MAX_STREAMS, PREFACE, kind,
    message as framed, put_frame, settings, stream as number,
};

/// The reason for which a benchmark cannot go on.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The window of streams and of the connection until a server sends its own (section 6.9.2).
const WINDOW: i64 = 65_535;
/// The most bytes of a frame that every peer accepts (SETTINGS_MAX_FRAME_SIZE).
const FRAME: usize = 16_384;

/// A call under way.
struct Call {
    /// The part of the message that has not been sent yet.
    unsent: Vec<u8>,
    /// The bytes that the server accepts on this stream.
    window: i64,
    /// The part of the answer that has been received.
    answer: Vec<u8>,
}

/// A connection for calls of one method, many of which may be under way.
pub struct Connection {
    socket: TcpStream,
    out: Vec<u8>,
    headers: Vec<u8>,
    /// The headers of later calls, which refer to the dynamic table.
    headers_again: Vec<u8>,
    /// The number of calls that have begun.
    calls: usize,
    /// The bytes that the server accepts on this connection.
    window: i64,
    /// The initial window of each call.
    window_of_calls: i64,
    /// The most calls that may be under way.
    most_calls: usize,
    /// The bytes that have been received.
    input: Vec<u8>,
    /// The number of these bytes that have been parsed.
    read: usize,
    open: BTreeMap<u32, Call>,
}

/// A call that has ended.
pub struct Answered {
    /// The number that [`Connection::ask`] has returned.
    pub stream: u32,
    /// The message; `None` if the call failed. A failed call has no message, so the client need not
    /// read headers to notice the failure.
    pub message: Option<Vec<u8>>,
}

impl Connection {
    /// Opens a connection for calls of the method with this path. The calls carry the API key if
    /// there is one.
    pub async fn open(address: &str, path: &str, api_key: Option<&str>) -> Result<Self, Failure> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut connection = Self {
            socket,
            out: PREFACE.to_vec(),
            headers: vec![],
            headers_again: vec![0x83, 0x86],
            calls: 0,
            window: WINDOW,
            window_of_calls: WINDOW,
            most_calls: usize::MAX,
            input: Vec::with_capacity(1 << 16),
            read: 0,
            open: BTreeMap::new(),
        };
        // The windows are as large as possible, so that they never need to be extended.
        let window = (1_u32 << 31) - 1;
        connection.out.extend(settings(&[(INITIAL_WINDOW, window)]));
        connection.frame(kind::WINDOW_UPDATE, 0, 0, &(window - WINDOW as u32).to_be_bytes());
        // The first headers fill the server's dynamic table (RFC 7541); `POST` and `http` are in
        // the static one.
        let literal =
            |name: &[u8], value: &str| [name, &[value.len() as u8], value.as_bytes()].concat();
        connection.headers = [
            &[0x83, 0x86][..],
            &literal(&[0x44], path),
            &literal(&[0x41], address),
            &literal(&[0x5f], "application/grpc"),
            &literal(b"\x40\x02te", "trailers"),
        ]
        .concat();
        if let Some(key) = api_key {
            connection.headers.extend(literal(&[0x40 | 23], &format!("Bearer {key}")));
        }
        let entries = if api_key.is_some() { 5 } else { 4 };
        connection.headers_again.extend((0..entries).map(|entry| 0x80 | (61 + entries - entry)));
        Ok(connection)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        put_frame(&mut self.out, kind, flags, stream, payload);
    }

    /// Begins a call, which is sent by the next [`Connection::flush`].
    pub fn ask(&mut self, message: &[u8]) -> u32 {
        let stream = number(self.calls);
        self.calls += 1;
        let headers = std::mem::replace(&mut self.headers, self.headers_again.clone());
        self.frame(kind::HEADERS, END_HEADERS, stream, &headers);
        let unsent = framed(message);
        self.open.insert(stream, Call { unsent, window: self.window_of_calls, answer: vec![] });
        self.send(stream);
        stream
    }

    /// Queues as much of a call's message as the windows allow.
    fn send(&mut self, stream: u32) {
        while let Some(call) = self.open.get_mut(&stream).filter(|call| !call.unsent.is_empty()) {
            let allowed = usize::try_from(self.window.min(call.window)).unwrap_or(0);
            let part: Vec<u8> =
                call.unsent.drain(..call.unsent.len().min(allowed).min(FRAME)).collect();
            let flags = if call.unsent.is_empty() { END_STREAM } else { 0 };
            if part.is_empty() {
                return;
            }
            call.window -= part.len() as i64;
            self.window -= part.len() as i64;
            self.frame(kind::DATA, flags, stream, &part);
        }
    }

    /// Applies the settings of the server.
    fn set(&mut self, settings: &[u8]) {
        for setting in settings.as_chunks::<6>().0 {
            let [a, b, value @ ..] = *setting;
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                MAX_STREAMS => self.most_calls = value as usize,
                INITIAL_WINDOW => {
                    // The change also applies to calls that are under way.
                    let more = i64::from(value) - self.window_of_calls;
                    self.window_of_calls += more;
                    self.open.values_mut().for_each(|call| call.window += more);
                }
                _ => {}
            }
        }
    }

    /// Returns whether the server accepts another call now, with its whole message, on this
    /// connection.
    pub fn has_room_for(&self, message: &[u8]) -> bool {
        self.open.len() < self.most_calls && self.window >= message.len() as i64 + 5
    }

    /// Returns the number of calls under way.
    pub fn under_way(&self) -> usize {
        self.open.len()
    }

    /// Sends everything that is queued.
    pub async fn flush(&mut self) -> Result<(), Failure> {
        self.socket.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Waits until bytes have arrived. This function is cancel-safe.
    pub async fn wait(&mut self) -> Result<(), Failure> {
        self.input.drain(..self.read);
        self.read = 0;
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err("the service has closed the connection".into()),
            _ => Ok(()),
        }
    }

    /// Parses the bytes that have arrived, and returns the calls that have ended.
    pub fn answered(&mut self) -> Result<Vec<Answered>, Failure> {
        let mut answered = vec![];
        while let Some((head, rest)) = self.input[self.read..].split_first_chunk() {
            let Head { length, kind, flags, stream } = Head::parse(*head);
            let Some(payload) = rest.get(..length) else { break };
            let payload = payload.to_vec();
            self.read += head.len() + length;
            match kind {
                kind::DATA => {
                    self.open
                        .get_mut(&stream)
                        .ok_or("an answer to nothing")?
                        .answer
                        .extend_from_slice(&payload);
                }
                kind::SETTINGS if flags & ACK == 0 => {
                    self.set(&payload);
                    self.frame(kind::SETTINGS, ACK, 0, &[]);
                }
                kind::PING if flags & ACK == 0 => self.frame(kind::PING, ACK, 0, &payload),
                // If the call is still open, the server has refused it. Otherwise the server
                // answered before it had read the whole message.
                kind::RST_STREAM => {
                    if self.open.remove(&stream).is_some() {
                        answered.push(Answered { stream, message: None });
                    }
                }
                kind::WINDOW_UPDATE => {
                    let opened = i64::from(
                        payload.first_chunk().map_or(0, |opened| u32::from_be_bytes(*opened)),
                    );
                    if stream == 0 {
                        self.window += opened;
                        let waiting = self.open.iter().filter(|(_, call)| !call.unsent.is_empty());
                        let calls: Vec<u32> = waiting.map(|(stream, _)| *stream).collect();
                        calls.into_iter().for_each(|call| self.send(call));
                    } else if let Some(call) = self.open.get_mut(&stream) {
                        call.window += opened;
                        self.send(stream);
                    }
                }
                kind::HEADERS | kind::SETTINGS | kind::PING => {}
                kind::GOAWAY => {
                    let text = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                    return Err(format!(
                        "the service has closed the connection, with error {:?} {text}",
                        payload.get(4..8)
                    )
                    .into());
                }
                other => return Err(format!("the service has sent a frame of type {other}").into()),
            }
            if matches!(kind, kind::DATA | kind::HEADERS) && flags & END_STREAM != 0 {
                let call = self.open.remove(&stream).ok_or("an answer to nothing")?;
                answered
                    .push(Answered { stream, message: call.answer.get(5..).map(<[u8]>::to_vec) });
            }
        }
        Ok(answered)
    }
}
