//! A stream that appends the SQLSTATE of each error to the message of the error.
//!
//! Diesel passes on the message of an error but not its SQLSTATE, and gives no access to the
//! connection that it uses (decision 23). So the SQLSTATE is appended to the message before Diesel
//! reads it, in the protocol's ErrorResponse, which contains both (PostgreSQL manual, section 55.7,
//! "Message Formats").

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

use super::sqlstate::with_code;

/// The type of a message that reports an error.
const ERROR_RESPONSE: u8 = b'E';
/// The types of the fields that contain the SQLSTATE and the message.
const CODE: u8 = b'C';
const MESSAGE: u8 = b'M';
/// A message begins with its type and its length. The length counts its own bytes, but not the
/// type.
const HEADER: usize = 5;
const TYPE: usize = 1;
/// The longest error message, in bytes, that is changed. Real ones are shorter. A longer one is
/// passed on unchanged, so that a server cannot make this process buffer it.
const LONGEST_ERROR: usize = 1 << 20;

/// A stream that changes the error messages of the server, and nothing else.
#[derive(Debug)]
pub struct CodedStream<S> {
    stream: S,
    framing: Framing,
    /// The bytes that the next reads return. Their error messages have been changed.
    ready: BytesMut,
}

impl<S> CodedStream<S> {
    /// Wraps a stream from which nothing has been read. If `is_negotiated`, TLS is negotiated
    /// first: the server answers that request with one byte, before its first message.
    pub fn new(stream: S, is_negotiated: bool) -> Self {
        let framing = Framing { passing: usize::from(is_negotiated), held: BytesMut::new() };
        Self { stream, framing, ready: BytesMut::new() }
    }
}

/// The state of the division of the stream into messages.
#[derive(Debug)]
struct Framing {
    /// The number of bytes to pass on next without looking at them.
    passing: usize,
    /// The beginning of an incomplete message: a part of a header, or a part of an error message.
    held: BytesMut,
}

impl Framing {
    /// Returns whether these bytes can be passed on unchanged. If they can, moves past them.
    fn skip(&mut self, bytes: &[u8]) -> bool {
        if !self.held.is_empty() {
            return false;
        }
        let (mut passing, mut rest) = (self.passing, bytes);
        loop {
            let Some(next) = rest.get(passing..) else {
                self.passing = passing - rest.len();
                return true;
            };
            let Some(&[kind, ref length @ ..]) = next.first_chunk::<HEADER>() else {
                if next.is_empty() {
                    self.passing = 0;
                }
                return next.is_empty();
            };
            if kind == ERROR_RESPONSE {
                return false;
            }
            (passing, rest) = (message_length(*length), next);
        }
    }

    /// Moves the bytes that can be passed on to `ready`, and changes the error messages among them.
    /// Keeps an incomplete header or error message.
    fn translate(&mut self, bytes: &[u8], ready: &mut BytesMut) {
        self.held.extend_from_slice(bytes);
        loop {
            let passing = self.passing.min(self.held.len());
            ready.unsplit(self.held.split_to(passing));
            self.passing -= passing;
            let Some(&[kind, ref length @ ..]) = self.held.first_chunk::<HEADER>() else { return };
            let length = message_length(*length);
            if kind != ERROR_RESPONSE || length > LONGEST_ERROR {
                self.passing = length;
            } else if self.held.len() < length {
                return;
            } else {
                let message = self.held.split_to(length);
                let fields = message.get(HEADER..).unwrap_or_default();
                match rewrite(fields) {
                    Some(fields) => {
                        ready.put_u8(ERROR_RESPONSE);
                        ready.put_u32(
                            u32::try_from(HEADER - TYPE + fields.len()).unwrap_or(u32::MAX),
                        );
                        ready.extend_from_slice(&fields);
                    }
                    None => ready.extend_from_slice(&message),
                }
            }
        }
    }
}

/// Returns the length of a message, including its header. A message that claims to be shorter than
/// a header is passed on, and the driver rejects it.
fn message_length(length: [u8; HEADER - TYPE]) -> usize {
    usize::try_from(u32::from_be_bytes(length))
        .unwrap_or(usize::MAX)
        .saturating_add(TYPE)
        .max(HEADER)
}

/// Appends the code to the message in the fields of an error. Returns none if the bytes are not a
/// list of fields that contains both.
fn rewrite(fields: &[u8]) -> Option<BytesMut> {
    let text = |kind: u8| {
        let field =
            fields.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(&[kind]))?;
        std::str::from_utf8(field).ok()
    };
    let message = with_code(text(MESSAGE)?, text(CODE)?);
    let mut rewritten = BytesMut::with_capacity(fields.len() + message.len());
    for field in fields.split(|byte| *byte == 0).take_while(|field| !field.is_empty()) {
        match field.first() {
            Some(&MESSAGE) => {
                rewritten.put_u8(MESSAGE);
                rewritten.extend_from_slice(message.as_bytes());
            }
            _ => rewritten.extend_from_slice(field),
        }
        rewritten.put_u8(0);
    }
    rewritten.put_u8(0);
    Some(rewritten)
}

impl<S: AsyncRead + Unpin> AsyncRead for CodedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, framing, ready } = self.get_mut();
        while ready.is_empty() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut *stream).poll_read(context, buffer))?;
            let bytes = buffer.filled().get(before..).unwrap_or_default();
            if bytes.is_empty() {
                // The stream has ended, or the reader's buffer is full. If the stream has ended in
                // the middle of a message, that message is lost.
                return Poll::Ready(Ok(()));
            }
            if framing.skip(bytes) {
                return Poll::Ready(Ok(()));
            }
            framing.translate(bytes, ready);
            buffer.set_filled(before);
        }
        let length = ready.len().min(buffer.remaining());
        buffer.put_slice(&ready.copy_to_bytes(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CodedStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for CodedStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// Sets up TLS below the coded stream, because the coded stream must read the decrypted messages.
#[derive(Debug)]
pub struct CodedTls<T>(pub T);

impl<S, T> TlsConnect<CodedStream<S>> for CodedTls<T>
where
    T: TlsConnect<S, Future: Send + 'static>,
{
    type Stream = CodedStream<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: CodedStream<S>) -> Self::Future {
        let connecting = self.0.connect(stream.stream);
        Box::pin(async move { Ok(CodedStream::new(connecting.await?, false)) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    /// Reads a stream to its end, with a buffer of this length.
    async fn read(stream: CodedStream<tokio::io::DuplexStream>, buffer: usize) -> Vec<u8> {
        let (mut stream, mut all) = (stream, vec![]);
        loop {
            let mut bytes = vec![0; buffer];
            match stream.read(&mut bytes).await.unwrap() {
                0 => return all,
                length => all.extend_from_slice(&bytes[..length]),
            }
        }
    }

    async fn assert_becomes(sent: &[u8], expected: &[u8], is_negotiated: bool) {
        use tokio::io::AsyncWriteExt;
        for (piece, buffer) in [(1, 1), (3, 64), (1 << 20, 4), (7, 7), (1 << 20, 1 << 20)] {
            let (mut server, client) = tokio::io::duplex(1 << 20);
            let stream = CodedStream::new(client, is_negotiated);
            let sending = async {
                for bytes in sent.chunks(piece) {
                    server.write_all(bytes).await.unwrap();
                    tokio::task::yield_now().await;
                }
                drop(server);
            };
            let ((), read) = tokio::join!(sending, read(stream, buffer));
            assert_eq!(read, expected, "pieces of {piece}, read by {buffer}");
        }
    }

    #[tokio::test]
    async fn the_sqlstate_is_appended_to_error_messages_and_nothing_else_changes() {
        let german =
            "SFEHLER\0VERROR\0C40P01\0MVerklemmung (Deadlock) entdeckt\0DProzess 1\0\0".as_bytes();
        let coded =
            "SFEHLER\0VERROR\0C40P01\0MVerklemmung (Deadlock) entdeckt (SQLSTATE 40P01)\0DProzess \
             1\0\0"
                .as_bytes();
        let row = message(b'D', b"E\0\0\0\x08C40P01");
        let (long, notice) = (message(b'D', &[b'E'; 9000]), message(b'N', german));
        let ready = message(b'Z', b"E");
        let (error, rewritten) = (message(b'E', german), message(b'E', coded));
        let sent = [&row, &long, &error, &notice, &error, &ready, &row].map(Vec::as_slice).concat();
        let expected = [&row, &long, &rewritten, &notice, &rewritten, &ready, &row]
            .map(Vec::as_slice)
            .concat();
        assert_becomes(&sent, &expected, false).await;
        // The server's answer to the request for TLS is one byte, and not a message.
        for answer in [b"N", b"E", b"S"] {
            assert_becomes(
                &[answer, sent.as_slice()].concat(),
                &[answer, expected.as_slice()].concat(),
                true,
            )
            .await;
        }
    }

    #[tokio::test]
    async fn malformed_error_messages_are_passed_on_unchanged() {
        for body in [&b"Mwithout a code\0\0"[..], b"C40P01\0\0", b"", b"\0", b"M\xff\0C40P01\0\0"] {
            let sent = message(b'E', body);
            assert_becomes(&sent, &sent, false).await;
        }
        for header in
            [&b"E\0\0\0\0MA\0CB\0\0"[..], b"D\0\0\0\0E\0\0\0\0", b"E\xff\xff\xff\xffwhatever"]
        {
            let (mut server, client) = tokio::io::duplex(64);
            tokio::io::AsyncWriteExt::write_all(&mut server, header).await.unwrap();
            drop(server);
            assert!(header.starts_with(&read(CodedStream::new(client, false), 64).await));
        }
    }
}
