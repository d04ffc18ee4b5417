//! A client of HTTP/2 that costs little: it knows of the protocol what unary calls of one method
//! need, and no more.

use std::collections::BTreeMap;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

// Frames of HTTP/2 (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

// Settings (RFC 9113, section 6.5.2), and what holds until a server has sent them.
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW: i64 = 65_535;
/// Bytes of a frame that a peer takes unasked.
const FRAME: usize = 16_384;

/// A call under way.
struct Call {
    /// What has not been sent yet, and how much of that the server takes.
    unsent: Vec<u8>,
    window: i64,
    /// The beginning of the answer.
    answer: Vec<u8>,
}

pub struct Connection {
    socket: TcpStream,
    out: Vec<u8>,
    headers: Vec<u8>,
    headers_again: Vec<u8>,
    last_stream: u32,
    /// Bytes that may be sent until the server opens the connection's window further.
    window: i64,
    /// What it has said of each call's window, and of how many may be under way.
    window_of_calls: i64,
    most_calls: usize,
    /// What has been read, and how much of that has been looked at.
    input: Vec<u8>,
    read: usize,
    open: BTreeMap<u32, Call>,
}

/// A call that has ended.
pub struct Answered {
    pub stream: u32,
    /// The message. Only a call that failed has none, so headers need not be read.
    pub message: Option<Vec<u8>>,
}

impl Connection {
    /// Connects for calls on a path, which show an API key if there is one.
    pub async fn open(address: &str, path: &str, api_key: Option<&str>) -> Result<Self, Failure> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut connection = Self {
            socket,
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            headers: vec![],
            headers_again: vec![0x83, 0x86],
            last_stream: 0,
            window: WINDOW,
            window_of_calls: WINDOW,
            most_calls: usize::MAX,
            input: Vec::with_capacity(1 << 16),
            read: 0,
            open: BTreeMap::new(),
        };
        // Windows as large as they get (the initial one is setting 4), so that none is ever to be
        // opened further.
        let window = (1_u32 << 31) - 1;
        connection.frame(
            SETTINGS,
            0,
            0,
            &[&INITIAL_WINDOW_SIZE.to_be_bytes()[..], &window.to_be_bytes()].concat(),
        );
        connection.frame(WINDOW_UPDATE, 0, 0, &(window - WINDOW as u32).to_be_bytes());
        // The first headers fill the server's table (RFC 7541); `POST` and `http` are in it from
        // the start.
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
        self.out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        self.out.extend_from_slice(&[kind, flags]);
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(payload);
    }

    /// Begins a call, which leaves with the next [`Connection::flush`].
    pub fn ask(&mut self, message: &[u8]) -> u32 {
        // Streams of a client are odd.
        let stream = self.last_stream * 2 + 1;
        self.last_stream += 1;
        let headers = std::mem::replace(&mut self.headers, self.headers_again.clone());
        self.frame(HEADERS, END_HEADERS, stream, &headers);
        let unsent = [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat();
        self.open.insert(stream, Call { unsent, window: self.window_of_calls, answer: vec![] });
        self.send(stream);
        stream
    }

    /// Sends what the windows allow of a call's message.
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
            self.frame(DATA, flags, stream, &part);
        }
    }

    /// Takes what the server allows.
    fn set(&mut self, settings: &[u8]) {
        for setting in settings.as_chunks::<6>().0 {
            let [a, b, value @ ..] = *setting;
            let value = u32::from_be_bytes(value);
            match u16::from_be_bytes([a, b]) {
                MAX_CONCURRENT_STREAMS => self.most_calls = value as usize,
                INITIAL_WINDOW_SIZE => {
                    // Also for the calls that are under way.
                    let more = i64::from(value) - self.window_of_calls;
                    self.window_of_calls += more;
                    self.open.values_mut().for_each(|call| call.window += more);
                }
                _ => {}
            }
        }
    }

    /// Whether the server takes another call now, and the whole of its message on this connection.
    #[allow(dead_code)] // Only few and small ones are sent elsewhere.
    pub fn has_room_for(&self, message: &[u8]) -> bool {
        self.open.len() < self.most_calls && self.window >= message.len() as i64 + 5
    }

    /// Calls under way.
    pub fn under_way(&self) -> usize {
        self.open.len()
    }

    /// Sends what has been begun.
    pub async fn flush(&mut self) -> Result<(), Failure> {
        self.socket.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// Waits until something has come. May be given up.
    pub async fn wait(&mut self) -> Result<(), Failure> {
        self.input.drain(..self.read);
        self.read = 0;
        match self.socket.read_buf(&mut self.input).await? {
            0 => Err("the service has closed the connection".into()),
            _ => Ok(()),
        }
    }

    /// The calls that have ended with what has come.
    pub fn answered(&mut self) -> Result<Vec<Answered>, Failure> {
        let mut answered = vec![];
        while let Some((head, rest)) = self.input[self.read..].split_first_chunk::<9>() {
            let [a, b, c, kind, flags, stream @ ..] = *head;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some(payload) = rest.get(..length) else { break };
            let payload = payload.to_vec();
            self.read += head.len() + length;
            let stream = u32::from_be_bytes(stream);
            match kind {
                DATA => {
                    self.open
                        .get_mut(&stream)
                        .ok_or("an answer to nothing")?
                        .answer
                        .extend_from_slice(&payload);
                }
                SETTINGS if flags & ACK == 0 => {
                    self.set(&payload);
                    self.frame(SETTINGS, ACK, 0, &[]);
                }
                PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload),
                // After an answer to a call that was not read to its end; else the call itself is
                // refused.
                RST_STREAM => {
                    if self.open.remove(&stream).is_some() {
                        answered.push(Answered { stream, message: None });
                    }
                }
                WINDOW_UPDATE => {
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
                HEADERS | SETTINGS | PING => {}
                GOAWAY => {
                    let text = String::from_utf8_lossy(payload.get(8..).unwrap_or_default());
                    return Err(format!(
                        "the service has closed the connection, with error {:?} {text}",
                        payload.get(4..8)
                    )
                    .into());
                }
                other => return Err(format!("the service has sent a frame of type {other}").into()),
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                let call = self.open.remove(&stream).ok_or("an answer to nothing")?;
                answered
                    .push(Answered { stream, message: call.answer.get(5..).map(<[u8]>::to_vec) });
            }
        }
        Ok(answered)
    }
}
