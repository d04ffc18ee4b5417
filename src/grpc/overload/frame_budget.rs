//! Limits the number of HTTP/2 frames that a client may send besides those that carry its calls.
//!
//! SETTINGS, PING, PRIORITY, WINDOW_UPDATE, RST_STREAM and unknown frames cost the server work, and
//! neither HTTP/2 nor the library limits them. A client whose frames exceed the budget gets GOAWAY
//! with ENHANCE_YOUR_CALM (RFC 9113, sections 7 and 10.5), and its connection is closed.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::Instant,
};

/// The number of frames that a client may send in a [`PERIOD`] even if it makes no calls. A client
/// needs a few frames for keep-alive.
const FREE_FRAMES: u64 = 1_000;
/// The number of additional frames that a client may send for each part of a call. A part is a
/// HEADERS frame in either direction, or a DATA frame that the server has sent. Clients that
/// estimate the bandwidth send a PING and two WINDOW_UPDATEs after each answer, and old browsers
/// send a PRIORITY with each call.
const FRAMES_A_PART: u64 = 8;
/// The minimum length of a DATA frame that counts as data. A shorter DATA frame from the server
/// allows no additional frames. Otherwise a client that opens its window byte by byte would gain
/// frames with each byte. A shorter DATA frame from the client counts against the budget. Otherwise
/// a client could send any number of empty DATA frames.
const LEAST_DATA_BYTES: usize = 64;
/// The minimum time between two resets of the counts. When this time has passed, the next frame
/// beyond [`FREE_FRAMES`] resets the counts. After a reset, the parts of earlier calls allow no
/// additional frames.
const PERIOD: Duration = Duration::from_secs(10);

/// Length of the connection preface of a client (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Length of a frame header (RFC 9113, section 4.1).
const HEADER_BYTES: usize = 9;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;

/// GOAWAY with ENHANCE_YOUR_CALM (RFC 9113, section 6.8). The last stream identifier is the highest
/// possible, so that the client regards none of its calls as unprocessed.
const GOAWAY: [u8; HEADER_BYTES + 8] =
    [0, 0, 8, 0x7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0xb];

/// The number of frames in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// HEADERS frames.
    headers: u64,
    /// DATA frames of at least [`LEAST_DATA_BYTES`].
    data: u64,
    /// All other frames.
    others: u64,
}

/// Counts the frames in the bytes of one direction.
#[derive(Debug, Default)]
struct Scanner {
    /// The number of bytes to skip: the rest of the preface, or the rest of a frame's payload.
    skip: usize,
    /// The first bytes of a header of which the rest has not arrived yet.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    counts: Counts,
}

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8]) {
        while let Some(rest) = bytes.get(self.skip..) {
            bytes = rest;
            self.skip = 0;
            // Fast path: all bytes of the header have arrived together.
            let header = match (self.header_bytes, bytes.split_first_chunk()) {
                (0, Some((header, rest))) => {
                    bytes = rest;
                    *header
                }
                _ => {
                    let missing = self.header.iter_mut().skip(self.header_bytes);
                    let taken = missing.zip(bytes).map(|(to, from)| *to = *from).count();
                    self.header_bytes += taken;
                    bytes = bytes.get(taken..).unwrap_or_default();
                    if self.header_bytes < HEADER_BYTES {
                        return;
                    }
                    self.header_bytes = 0;
                    self.header
                }
            };
            let [high, middle, low, kind, ..] = header;
            self.skip = (usize::from(high) << 16) | (usize::from(middle) << 8) | usize::from(low);
            match kind {
                HEADERS => self.counts.headers += 1,
                DATA if self.skip >= LEAST_DATA_BYTES => self.counts.data += 1,
                _ => self.counts.others += 1,
            }
        }
        self.skip -= bytes.len();
    }

    /// Returns whether the bytes so far end at the end of a frame.
    fn is_between_frames(&self) -> bool {
        self.skip == 0 && self.header_bytes == 0
    }
}

/// Counts the frames of a connection, and stops reading from it once they exceed the budget.
#[derive(Debug)]
pub struct FrameBudget<C> {
    connection: C,
    received: Scanner,
    sent: Scanner,
    period_began: Instant,
    exceeded: Exceeded,
    is_exceeded: bool,
}

/// Notifies one waiter that a connection has exceeded its budget.
#[derive(Clone, Debug, Default)]
pub struct Exceeded(Arc<Notify>);

impl Exceeded {
    /// Waits until the budget is exceeded.
    pub async fn wait(&self) {
        self.0.notified().await;
    }
}

impl<C> FrameBudget<C> {
    /// Wraps a connection on which nothing has been read or written.
    pub fn new(connection: C) -> Self {
        Self {
            connection,
            received: Scanner { skip: PREFACE_BYTES, ..Scanner::default() },
            sent: Scanner::default(),
            period_began: Instant::now(),
            exceeded: Exceeded::default(),
            is_exceeded: false,
        }
    }

    /// Returns a handle that notifies when the budget is exceeded.
    pub fn exceeded(&self) -> Exceeded {
        self.exceeded.clone()
    }

    /// Returns whether the budget is exceeded, and resets the counts after a [`PERIOD`]. The clock
    /// is read only if the client has sent more than [`FREE_FRAMES`].
    fn exceeds_budget(&mut self) -> bool {
        let (received, sent) = (self.received.counts, self.sent.counts);
        if received.others <= FREE_FRAMES {
            return false;
        }
        let now = Instant::now();
        if now.duration_since(self.period_began) >= PERIOD {
            (self.received.counts, self.sent.counts) = Default::default();
            self.period_began = now;
            return false;
        }
        // DATA from the client does not count as a part. Flow control limits it already.
        let parts = received.headers.saturating_add(sent.headers).saturating_add(sent.data);
        received.others > FREE_FRAMES.saturating_add(FRAMES_A_PART.saturating_mul(parts))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> AsyncRead for FrameBudget<C> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_exceeded {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.connection).poll_read(context, buffer))?;
        self.received.scan(buffer.filled().get(before..).unwrap_or_default());
        if self.exceeds_budget() {
            self.is_exceeded = true;
            buffer.set_filled(before);
            if self.sent.is_between_frames()
                && Pin::new(&mut self.connection).poll_write(context, &GOAWAY).is_ready()
            {
                // The flush is best effort: a client that does not read does not receive the
                // GOAWAY.
                let _ = Pin::new(&mut self.connection).poll_flush(context);
            }
            self.exceeded.0.notify_one();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for FrameBudget<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.connection).poll_write(context, bytes))?;
        self.sent.scan(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::{advance, timeout},
    };

    use super::*;

    const PING: u8 = 0x6;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let [.., high, middle, low] = payload.to_be_bytes();
        [&[high, middle, low, kind, 0, 0, 0, 0, 1][..], &vec![kind; payload]].concat()
    }

    proptest! {
        #[test]
        fn frames_are_counted_wherever_reads_split_them(
            frames in proptest::collection::vec(
                (0u8..12, prop_oneof![Just(0usize), 1..100usize, Just(70_000)]),
                0..20,
            ),
            cuts in proptest::collection::vec(1usize..60, 1..20),
        ) {
            let written = frames.iter().flat_map(|(kind, payload)| frame(*kind, *payload));
            let bytes: Vec<u8> = written.collect();
            let mut scanner = Scanner::default();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                scanner.scan(now);
                rest = later;
            }
            let count = |is_one: fn(&(u8, usize)) -> bool| {
                u64::try_from(frames.iter().filter(|frame| is_one(frame)).count()).unwrap()
            };
            let headers = count(|frame| frame.0 == HEADERS);
            let data = count(|frame| matches!(frame, (DATA, LEAST_DATA_BYTES..)));
            let others = u64::try_from(frames.len()).unwrap() - headers - data;
            prop_assert_eq!(scanner.counts, Counts { headers, data, others });
            prop_assert!(scanner.is_between_frames());
        }
    }

    /// Returns a client that has sent the preface, and the server's end of the connection.
    async fn connected() -> (DuplexStream, FrameBudget<DuplexStream>) {
        let (mut client, server) = duplex(1 << 20);
        client.write_all(&[0; PREFACE_BYTES]).await.unwrap();
        let mut server = FrameBudget::new(server);
        server.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
        (client, server)
    }

    /// Sends frames, and returns whether the server can read them.
    async fn pass(
        client: &mut DuplexStream,
        server: &mut FrameBudget<DuplexStream>,
        frames: &[u8],
    ) -> bool {
        client.write_all(frames).await.unwrap();
        timeout(Duration::from_millis(1), server.read_exact(&mut vec![0; frames.len()]))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_beyond_its_budget_gets_goaway() {
        for kind in [0x2, 0x3, 0x4, PING, 0x8, 0x42, DATA] {
            let (mut client, mut server) = connected().await;
            let payload = if kind == DATA { 0 } else { 8 };
            let allowed = frame(kind, payload).repeat(usize::try_from(FREE_FRAMES).unwrap());
            assert!(pass(&mut client, &mut server, &allowed).await, "{kind}");
            assert!(!pass(&mut client, &mut server, &frame(kind, payload)).await, "{kind}");
            timeout(Duration::ZERO, server.exceeded().wait()).await.unwrap();
            let mut received = [0; GOAWAY.len()];
            client.read_exact(&mut received).await.unwrap();
            assert_eq!(received, GOAWAY);
            assert!(
                !pass(&mut client, &mut server, &frame(HEADERS, 1)).await,
                "nothing more is read"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_and_a_new_period_allow_more_frames() {
        let (mut client, mut server) = connected().await;
        let most = frame(PING, 8).repeat(usize::try_from(FREE_FRAMES).unwrap());
        let for_a_part = frame(PING, 8).repeat(usize::try_from(FRAMES_A_PART).unwrap());
        assert!(pass(&mut client, &mut server, &most).await);
        assert!(
            pass(&mut client, &mut server, &[frame(HEADERS, 20), for_a_part.clone()].concat())
                .await
        );
        server
            .write_all(&[frame(HEADERS, 20), frame(DATA, 300), frame(HEADERS, 20)].concat())
            .await
            .unwrap();
        assert!(
            pass(&mut client, &mut server, &for_a_part.repeat(3)).await,
            "an answer has three parts"
        );
        advance(PERIOD).await;
        assert!(
            pass(&mut client, &mut server, &frame(PING, 8)).await,
            "the ping begins the next period"
        );
        assert!(pass(&mut client, &mut server, &most).await);
        assert!(
            !pass(&mut client, &mut server, &frame(PING, 8)).await,
            "the parts of the last period no longer count"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn data_from_the_client_and_short_data_allow_no_additional_frames() {
        let (mut client, mut server) = connected().await;
        let large = frame(DATA, 1000).repeat(100);
        assert!(pass(&mut client, &mut server, &large).await, "only flow control limits DATA");
        server.write_all(&frame(DATA, LEAST_DATA_BYTES - 1).repeat(100)).await.unwrap();
        let small = frame(DATA, 1).repeat(usize::try_from(FREE_FRAMES).unwrap());
        assert!(pass(&mut client, &mut server, &small).await);
        assert!(!pass(&mut client, &mut server, &frame(PING, 8)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn goaway_is_not_written_into_the_middle_of_a_frame() {
        let (mut client, mut server) = connected().await;
        server.write_all(&frame(DATA, 300)[..100]).await.unwrap();
        let flood = frame(PING, 8).repeat(2 * usize::try_from(FREE_FRAMES).unwrap() + 100);
        assert!(!pass(&mut client, &mut server, &flood).await);
        drop(server);
        let mut received = vec![];
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), 100);
    }
}
