//! Raw HTTP/2 connections.

use std::{collections::BTreeMap, io, net::SocketAddr};

use futures_util::future::join;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{ACK, Frame, Head, PREFACE, frame, kind, ping, settings};
use crate::server::in_time;

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

    /// Opens a connection, and exchanges the prefaces of HTTP/2.
    pub async fn open(address: SocketAddr) -> Self {
        Self::with(address, &[]).await
    }

    /// Opens a connection, and exchanges the prefaces of HTTP/2 with these settings. Also waits
    /// until the server has extended the connection's window: before that, a client may send at
    /// most 65,535 bytes (RFC 9113, section 6.9.2).
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
        in_time("the bytes are sent", self.write.write_all(bytes)).await
    }

    /// Sends bytes, and reads meanwhile, until the connection is closed.
    pub async fn flood(mut self, mut bytes: impl FnMut() -> Option<Vec<u8>>) -> Ended {
        let write = async {
            while let Some(bytes) = bytes() {
                if self.write.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // The write half is returned, because dropping it would tell the server that the client
            // sends nothing more.
            self.write
        };
        in_time("the connection is closed", join(self.read.rest(), write)).await.0
    }

    /// Reads until the connection is closed.
    pub async fn rest(self) -> Ended {
        self.flood(|| None).await
    }

    /// Sends a PING, and waits for its answer. Returns the frames that came before the answer, or
    /// an [`Ended`] if the connection was closed.
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
        let mut head = [0; Head::LENGTH];
        self.0.read_exact(&mut head).await.ok()?;
        let Head { length, kind, flags, stream } = Head::parse(head);
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind, flags, stream, payload })
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
