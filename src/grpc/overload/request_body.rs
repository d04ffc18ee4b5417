//! A request body that is read to its end even if it is dropped earlier.
//!
//! A call may be answered before its message has arrived: because the call is refused, because the
//! message is too long, or because the deadline has passed. The HTTP/2 library then resets the
//! stream, and counts the frames of the message that are still on their way as errors of the
//! client. After too many errors (`max_local_error_reset_streams`) it closes the connection and
//! fails all calls on it. Behind a proxy, these may be the calls of many clients.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout;

/// The longest time for which the rest of a dropped body is read.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// A body whose rest is read in the background, within limits, if it is dropped before its end.
#[derive(Debug)]
pub struct RequestBody<B: Unread> {
    body: Option<B>,
    /// The largest number of bytes that are read after the drop.
    rest: usize,
}

/// A body that another task can read after the drop.
pub trait Unread: Body<Data = Bytes> + Send + Unpin + 'static {}
impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Unread for B {}

impl<B: Unread> RequestBody<B> {
    /// Wraps a body. After a drop, at most `rest` bytes of it are read.
    pub fn new(body: B, rest: usize) -> Self {
        Self { body: Some(body), rest }
    }
}

/// Reads and discards a body until it ends or `most_bytes` have been read.
pub async fn discard(body: &mut (impl Body<Data = Bytes> + Unpin), most_bytes: usize) {
    let mut read = 0;
    while read < most_bytes
        && !body.is_end_stream()
        && let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
    {
        read += frame.data_ref().map_or(0, Bytes::len);
    }
}

impl<B: Unread> Drop for RequestBody<B> {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let rest = self.rest;
        // If there is no runtime, the process is about to end, and the rest need not be read.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { timeout(REST_TIMEOUT, discard(&mut body, rest)).await });
        }
    }
}

impl<B: Unread> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}
