//! The body of a request, whose rest is read even if nobody wants it.
//!
//! A call may be answered before its message has arrived: it is refused, too long, or its deadline
//! passes. HTTP/2 then resets the stream and takes what is still on its way for an error of the
//! client. After some of these, the connection is closed with all calls on it
//! (`max_local_error_reset_streams`), which may be those of many clients behind one proxy.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::timeout;

/// How long the rest of a message is read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A body that is read to its end, within limits, when it is dropped before.
#[derive(Debug)]
pub struct RequestBody<B: Unread> {
    body: Option<B>,
    /// Most bytes that are read of a rest.
    rest: usize,
}

/// A body that can be read by a task of its own.
pub trait Unread: Body<Data = Bytes> + Send + Unpin + 'static {}
impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Unread for B {}

impl<B: Unread> RequestBody<B> {
    /// Of a rest, so many bytes are read at most.
    pub fn new(body: B, rest: usize) -> Self {
        Self { body: Some(body), rest }
    }
}

/// Reads a body until its end, for so many bytes at most.
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
        // Without a runtime the process is about to end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { timeout(PATIENCE, discard(&mut body, rest)).await });
        }
    }
}

impl<B: Unread> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
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
