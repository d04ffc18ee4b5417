//! A client's connection, plain or encrypted, which writes a short answer whole.

use std::{
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, BufWriter, ReadBuf},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval_at},
};
use tokio_rustls::server::TlsStream;

use crate::domain::certificate_name::CertificateName;

/// Who is at the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The address, if it is known.
    pub address: Option<IpAddr>,
    /// The names in its certificate, which has been checked; none without one.
    pub certificate_names: Vec<CertificateName>,
}

/// How much is read from a connection.
#[derive(Clone, Debug)]
pub struct Reading(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    /// Bytes so far.
    read: AtomicUsize,
    /// With so many, this turn is over.
    turn_ends: AtomicUsize,
}

/// Bytes of a turn: hundreds of calls, and any message that is not a large batch. A read that
/// begins within them is done whole.
pub(crate) const TURN_BYTES: usize = 64 * 1024;

impl Reading {
    fn new() -> Self {
        let (read, turn_ends) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        Self(Arc::new(Counters { read, turn_ends }))
    }

    /// How many bytes have been read so far.
    pub fn bytes(&self) -> usize {
        self.0.read.load(Ordering::Relaxed)
    }

    /// From now on no more is read than fits into a turn, until the next one begins.
    pub fn begin_turn(&self) {
        self.0.turn_ends.store(self.bytes().saturating_add(TURN_BYTES), Ordering::Relaxed);
    }

    fn turn_is_over(&self) -> bool {
        self.bytes() >= self.0.turn_ends.load(Ordering::Relaxed)
    }
}

/// Whether the client takes what is written to it.
#[derive(Clone, Debug)]
pub struct WriteProgress(Arc<AtomicUsize>);

impl WriteProgress {
    fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(0)))
    }

    /// Ends when something that was written has not been wholly taken for so long, and at most
    /// twice as long. A client that takes a part of it now and then does not put this off.
    pub async fn stalled(&self, patience: Duration) {
        let mut looks = interval_at(Instant::now() + patience, patience);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.blocked_write();
        loop {
            looks.tick().await;
            let now = self.blocked_write();
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }

    /// The number of the write that waits for the client, if one does.
    fn blocked_write(&self) -> Option<usize> {
        let changes = self.0.load(Ordering::Relaxed);
        (changes % 2 == 1).then_some(changes)
    }

    /// A write begins to wait if none does, or no longer waits if one does.
    fn change(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Encrypted(Box<TlsStream<TcpStream>>),
}

/// Does not say that it could write from several places at once.
///
/// Where a connection can, HTTP/2 sends each message of more than 256 bytes by itself, and what
/// ends the answer, or the next one, in another write: two system calls, and a client that wakes up
/// twice. Where it cannot, that begins beyond 1024 bytes, and the buffer keeps a longer message
/// together with its header.
#[derive(Debug)]
pub struct Connection {
    stream: BufWriter<Stream>,
    reading: Reading,
    progress: WriteProgress,
    /// Something that was written waits for the client.
    is_blocked: bool,
    is_reserved: bool,
}

impl Connection {
    fn new(stream: Stream) -> Self {
        Self {
            stream: BufWriter::new(stream),
            reading: Reading::new(),
            progress: WriteProgress::new(),
            is_blocked: false,
            is_reserved: false,
        }
    }

    /// How much is read, now and later.
    pub fn reading(&self) -> Reading {
        self.reading.clone()
    }

    /// Whether the client takes what is written, now and later.
    pub fn write_progress(&self) -> WriteProgress {
        self.progress.clone()
    }

    /// Says that only the reserve had room for it.
    pub(super) fn mark_reserved(&mut self) {
        self.is_reserved = true;
    }

    /// Whether there was room in the reserve alone ([`super::accept::Reserve`]).
    pub fn is_reserved(&self) -> bool {
        self.is_reserved
    }

    fn mark_blocked(&mut self) {
        if !self.is_blocked {
            self.is_blocked = true;
            self.progress.change();
        }
    }

    fn mark_taken(&mut self) {
        if self.is_blocked {
            self.is_blocked = false;
            self.progress.change();
        }
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
        if self.reading.turn_is_over() {
            // The task is asked again when those before it have had their turn. (`yield_now` would
            // wait until there are none.)
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = Pin::new(self.stream.get_mut()).poll_read(context, buffer);
        let read = buffer.filled().len().saturating_sub(before);
        self.reading.0.read.fetch_add(read, Ordering::Relaxed);
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
            Poll::Ready(_) => self.mark_taken(),
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_shutdown(context);
        match polled {
            Poll::Pending => self.mark_blocked(),
            Poll::Ready(_) => self.mark_taken(),
        }
        polled
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
    async fn what_is_written_arrives_once_it_is_flushed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut server = Connection::from(listener.accept().await.unwrap().0);
        assert!(!server.is_write_vectored());
        client.write_all(b"asked").await.unwrap();
        let mut asked = [0; 5];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(server.reading().bytes(), 5);
        for part in [&b"an"[..], b"swe", b"red"] {
            server.write_all(part).await.unwrap();
        }
        server.flush().await.unwrap();
        let mut answered = [0; 8];
        client.read_exact(&mut answered).await.unwrap();
        assert_eq!((&asked, &answered), (b"asked", b"answered"));
    }

    /// Both ends of a connection.
    async fn pair() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0.into())
    }

    /// Writes until nothing takes it any more.
    async fn fill(server: &mut Connection) {
        let bytes = vec![0; 1 << 20];
        while let Ok(written) =
            tokio::time::timeout(Duration::from_secs(1), server.write_all(&bytes)).await
        {
            written.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_has_stalled_when_it_was_not_wholly_taken_for_a_while_whatever_part_of_it_was()
    {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (mut client, mut server) = pair().await;
        let progress = server.write_progress();
        let stalled =
            async || tokio::time::timeout(3 * PATIENCE, progress.stalled(PATIENCE)).await.is_ok();
        assert!(!stalled().await, "nothing was written");
        server.write_all(b"x").await.unwrap();
        server.flush().await.unwrap();
        assert!(!stalled().await, "it went on its way at once");
        fill(&mut server).await;
        let nibbling = async {
            let mut byte = [0; 1];
            while client.read_exact(&mut byte).await.is_ok() {
                tokio::time::sleep(PATIENCE / 10).await;
            }
        };
        tokio::select! {
            () = nibbling => panic!("it is open"),
            stalled = stalled() => assert!(stalled),
        }
    }
}
