//! A client's connection, plain or encrypted. It sends a short answer by a single write.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, Sleep, interval_at, sleep},
};
use tokio_rustls::server::TlsStream;

use super::read_budget::ReadBudget;
use crate::domain::certificate_name::CertificateName;

/// The time within which a client should close its side of a connection that the server closes.
const LINGER: Duration = Duration::from_secs(1);

/// The maximum number of bytes that are discarded during [`LINGER`].
const LINGER_BYTES: usize = 1 << 20;

/// The client at the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The address, if it is known.
    pub address: Option<IpAddr>,
    /// The names in the client's certificate, which has been verified. The list is empty if the
    /// client has no certificate.
    pub certificate_names: Vec<CertificateName>,
}

/// The progress of the writes of a connection. A write that waits for the client is blocked until
/// the client has taken all of its bytes. The counter is odd while a write is blocked.
#[derive(Clone, Debug)]
pub struct WriteProgress(Arc<AtomicUsize>);

impl WriteProgress {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }

    /// Completes once a write has been blocked for a time between `timeout` and twice `timeout`. A
    /// client that takes only some of the bytes now and then does not extend this time.
    pub async fn stalled(&self, timeout: Duration) {
        let mut ticks = interval_at(Instant::now() + timeout, timeout);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.blocked_write();
        loop {
            ticks.tick().await;
            let now = self.blocked_write();
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }

    /// Returns a number that identifies the blocked write, or `None` if no write is blocked.
    fn blocked_write(&self) -> Option<usize> {
        let changes = self.0.load(Ordering::Relaxed);
        (changes % 2 == 1).then_some(changes)
    }

    /// Records that a write becomes blocked or, if one is blocked, that it no longer is.
    fn change(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// A client's connection, which does not offer vectored writes.
///
/// If it did, the HTTP/2 library would pass each message of more than 256 bytes to a write of its
/// own, and the end of the answer, or the next answer, to a second write. This costs two system
/// calls, and wakes the client twice. Without vectored writes, the library does this only with
/// messages of more than 1024 bytes, and the buffer joins such a message with its header.
///
/// A shutdown ends once the client has closed its side too, or after a second. Until then, bytes
/// that the client still sends are discarded. If the server closed the connection while there are
/// unread bytes, the kernel would send a TCP reset, which may overtake the last answer (RFC 9112,
/// section 9.6).
#[derive(Debug)]
pub struct Connection {
    stream: BufWriter<Stream>,
    read_budget: ReadBudget,
    progress: WriteProgress,
    /// Set while a write waits for the client.
    is_blocked: bool,
    is_reserved: bool,
    closing: Closing,
}

/// The progress of a shutdown.
#[derive(Debug, Default)]
enum Closing {
    /// The server may still write.
    #[default]
    No,
    /// The server has closed its side, and waits for the client. It discards at most `bytes` more.
    Lingering { end: Pin<Box<Sleep>>, bytes: usize },
    /// The client has closed its side too, or had [`LINGER`] to do so.
    Done,
}

impl Connection {
    fn new(stream: Stream) -> Self {
        Self {
            stream: BufWriter::new(stream),
            read_budget: ReadBudget::new(),
            progress: WriteProgress::new(),
            is_blocked: false,
            is_reserved: false,
            closing: Closing::No,
        }
    }

    /// Returns a handle to the budget of the connection's reads.
    pub fn read_budget(&self) -> ReadBudget {
        self.read_budget.clone()
    }

    /// Returns a handle to the progress of the connection's writes.
    pub fn write_progress(&self) -> WriteProgress {
        self.progress.clone()
    }

    /// Marks the connection as one for which only the reserve had room.
    pub(super) fn mark_reserved(&mut self) {
        self.is_reserved = true;
    }

    /// Returns whether only the reserve had room for the connection ([`super::accept::Reserve`]).
    pub fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    fn mark_blocked(&mut self) {
        if !self.is_blocked {
            self.is_blocked = true;
            self.progress.change();
        }
    }

    fn mark_progress(&mut self) {
        if self.is_blocked {
            self.is_blocked = false;
            self.progress.change();
        }
    }

    /// Discards what the client sends. Completes once the client has closed its side, or at `end`.
    fn poll_linger(
        stream: &mut Stream,
        context: &mut Context<'_>,
        end: Pin<&mut Sleep>,
        bytes: &mut usize,
    ) -> Poll<()> {
        let mut discarded = [0; 4 << 10];
        while *bytes > 0 {
            let mut buffer = ReadBuf::new(&mut discarded);
            match Pin::new(&mut *stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    *bytes = bytes.saturating_sub(buffer.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        end.poll(context)
    }
}

impl From<TcpStream> for Connection {
    fn from(stream: TcpStream) -> Self {
        Self::new(Stream::Plain(stream))
    }
}

impl From<TlsStream<TcpStream>> for Connection {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        Self::new(Stream::Encrypted(Box::new(stream)))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read_budget.is_spent() {
            // The task is polled again after the tasks that are runnable now. (`yield_now` would
            // wait until no task is runnable.)
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(self.stream.get_mut()).poll_read(context, buffer);
        let read = buffer.filled().len().saturating_sub(before);
        self.read_budget.spend(read);
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if polled.is_pending() {
            self.mark_blocked();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        match polled {
            Poll::Pending => self.mark_blocked(),
            Poll::Ready(_) => self.mark_progress(),
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match &mut this.closing {
                Closing::No => {
                    let polled = Pin::new(&mut this.stream).poll_shutdown(context);
                    match polled {
                        Poll::Pending => this.mark_blocked(),
                        Poll::Ready(_) => this.mark_progress(),
                    }
                    ready!(polled)?;
                    let end = Box::pin(sleep(LINGER));
                    this.closing = Closing::Lingering { end, bytes: LINGER_BYTES };
                }
                Closing::Lingering { end, bytes } => {
                    let stream = this.stream.get_mut();
                    ready!(Self::poll_linger(stream, context, end.as_mut(), bytes));
                    this.closing = Closing::Done;
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn the_parts_of_an_answer_arrive_once_they_are_flushed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = Connection::from(listener.accept().await.unwrap().0);
        assert!(!server.is_write_vectored());
        client.write_all(b"asked").await.unwrap();
        let mut asked = [0; 5];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(server.read_budget().bytes(), 5);
        for part in [&b"an"[..], b"swe", b"red"] {
            server.write_all(part).await.unwrap();
        }
        server.flush().await.unwrap();
        let mut answered = [0; 8];
        client.read_exact(&mut answered).await.unwrap();
        assert_eq!((&asked, &answered), (b"asked", b"answered"));
    }

    /// Opens a connection, and returns both ends.
    async fn pair() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0.into())
    }

    #[tokio::test]
    async fn a_client_that_goes_on_sending_reads_the_last_answer() {
        let (mut client, mut server) = pair().await;
        client.write_all(&vec![0; LINGER_BYTES / 4]).await.unwrap();
        server.write_all(b"the last answer").await.unwrap();
        let closed = tokio::spawn(async move {
            server.shutdown().await.unwrap();
            drop(server);
        });
        // The answer and the end have come, and the client still sends.
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        client.write_all(b"more").await.unwrap();
        assert_eq!(answer, "the last answer");
        assert!(!closed.is_finished());
        drop(client);
        closed.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_close_is_waited_for_one_second() {
        let (_client, mut server) = pair().await;
        let begun = Instant::now();
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), LINGER.as_secs());
        server.shutdown().await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), LINGER.as_secs(), "the second finds it closed");
    }

    /// Writes until the socket accepts no more bytes.
    async fn fill(server: &mut Connection) {
        let bytes = vec![0; 1 << 20];
        while let Ok(written) =
            tokio::time::timeout(Duration::from_secs(1), server.write_all(&bytes)).await
        {
            written.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_stalls_even_if_the_client_takes_single_bytes_of_it() {
        const TIMEOUT: Duration = Duration::from_secs(10);
        let (mut client, mut server) = pair().await;
        let progress = server.write_progress();
        let stalled =
            async || tokio::time::timeout(3 * TIMEOUT, progress.stalled(TIMEOUT)).await.is_ok();
        assert!(!stalled().await, "nothing was written");
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert!(!stalled().await, "the write was complete at once");
        fill(&mut server).await;
        let nibbling = async {
            let mut byte = [0; 1];
            while client.read_exact(&mut byte).await.is_ok() {
                tokio::time::sleep(TIMEOUT / 10).await;
            }
        };
        tokio::select! {
            () = nibbling => panic!("the connection was closed"),
            stalled = stalled() => assert!(stalled),
        }
    }
}
