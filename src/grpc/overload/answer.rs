//! The body of an answer. Until the client has taken it, the body counts as activity of its
//! connection, and its larger parts count as unsent bytes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};

use super::{
    activity::ActivityGuard,
    unsent::{FREE_BYTES, Reservation},
};
use crate::{calls::CallRecord, grpc::call_kinds};

/// The body of an answer. While the body is being sent, its connection does not count as idle. The
/// HTTP/2 library asks for the next part when the client has room for the previous part.
#[derive(Debug)]
pub struct Answer {
    body: Body,
    guard: ActivityGuard,
    record: CallRecord,
    /// Set while a part that was given to the connection waits for the client.
    is_waiting: bool,
    reserved: Reservation,
}

impl Answer {
    /// Wraps the body of the answer to the call that `guard` tracks and that `record` counts.
    /// `reserved` holds the bytes that were counted for the answer before.
    pub fn new(
        body: Body,
        guard: ActivityGuard,
        record: CallRecord,
        reserved: Reservation,
    ) -> Self {
        Self { body, guard, record, is_waiting: false, reserved }
    }

    /// Wraps a part of the answer so that it counts as unsent and blocked until its last byte has
    /// been written. The part needs a guard of its own, because the library asks for the next part,
    /// or ends the call, as soon as the client has room for a single byte of this part.
    fn unsent_part(&mut self, data: Bytes) -> Bytes {
        let mut reserved = self.reserved.take();
        reserved.grow_to(data.len());
        Bytes::from_owner(UnsentPart {
            data,
            _reserved: reserved,
            _guard: self.guard.begin_blocked_part(),
        })
    }
}

/// A part of an answer, which keeps its connection busy while the library holds it.
struct UnsentPart {
    data: Bytes,
    _reserved: Reservation,
    _guard: ActivityGuard,
}

impl AsRef<[u8]> for UnsentPart {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.is_waiting {
            self.is_waiting = false;
            self.guard.mark_progress();
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)?) else {
            return Poll::Ready(None);
        };
        self.is_waiting = true;
        self.guard.mark_blocked();
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) if data.len() > FREE_BYTES => Frame::data(self.unsent_part(data)),
            Ok(data) => Frame::data(data),
            Err(mut trailers) => {
                if let Some(trailers) = trailers.trailers_mut() {
                    call_kinds::end(&mut self.record, trailers);
                }
                trailers
            }
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
