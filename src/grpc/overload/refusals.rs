//! Answers refused calls.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::time::timeout;
use tonic::{Status, body::Body};

use super::request_body::discard;
use crate::callers::Refusal;

/// Makes the answers to refused calls, and keeps the last answer. A caller that calls too often is
/// refused for the same reason again and again, and encoding the reason takes longer than finding
/// it.
#[derive(Debug, Default)]
pub struct RefusalCache(Mutex<Option<(Refusal, HeaderMap)>>);

impl RefusalCache {
    /// Returns the answer to a call that is refused for this reason.
    pub fn answer(&self, refusal: Refusal) -> Response<Body> {
        let mut answer = Response::new(Body::default());
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *answer.headers_mut() = match &*last {
            Some((reason, headers)) if *reason == refusal => headers.clone(),
            _ => {
                let headers =
                    Status::from(refusal.clone()).into_http::<Body>().into_parts().0.headers;
                *last = Some((refusal, headers.clone()));
                headers
            }
        };
        answer
    }
}

/// The longest time to wait for the request message of a refused call before the answer is sent.
const REST_TIMEOUT: Duration = Duration::from_millis(5);
/// The maximum number of bytes of the request message that are read before the answer is sent.
const MOST_BYTES: usize = 64 * 1024;

/// Reads the rest of the request message of a refused call, unless the message is long or arrives
/// slowly. A [`RequestBody`](super::request_body::RequestBody) that has been read to its end spawns
/// no task when it is dropped.
pub async fn take_rest(body: &mut (impl http_body::Body<Data = Bytes> + Unpin)) {
    let _ = timeout(REST_TIMEOUT, discard(body, MOST_BYTES)).await;
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;
    use tokio::{
        sync::mpsc,
        time::{Instant, sleep},
    };

    use super::*;

    /// A message whose parts come through a channel.
    struct Message(mpsc::UnboundedReceiver<usize>);

    impl http_body::Body for Message {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0
                .poll_recv(context)
                .map(|part| part.map(|bytes| Ok(Frame::data(vec![0; bytes].into()))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_message_is_read_if_it_arrives_soon_and_is_short() {
        let begun = Instant::now();
        let (parts, message) = mpsc::unbounded_channel();
        let sending = async move {
            for _ in 0..4 {
                sleep(REST_TIMEOUT / 5).await;
                parts.send(7).unwrap();
            }
            drop(parts);
        };
        let mut message = Message(message);
        tokio::join!(take_rest(&mut message), sending);
        assert_eq!(begun.elapsed(), REST_TIMEOUT / 5 * 4, "the message is read to its end");

        let (parts, message) = mpsc::unbounded_channel();
        parts.send(7).unwrap();
        take_rest(&mut Message(message)).await;
        assert_eq!(
            begun.elapsed(),
            REST_TIMEOUT / 5 * 4 + REST_TIMEOUT,
            "reading stops at the timeout if the message does not end"
        );

        let (parts, message) = mpsc::unbounded_channel();
        for _ in 0..100 {
            parts.send(MOST_BYTES / 10).unwrap();
        }
        take_rest(&mut Message(message)).await;
        assert_eq!(
            begun.elapsed(),
            REST_TIMEOUT / 5 * 4 + REST_TIMEOUT,
            "reading stops at the limit of bytes, without waiting"
        );
    }

    #[test]
    fn a_cached_refusal_equals_a_newly_built_one() {
        let refused = RefusalCache::default();
        let (soon, later) = (Duration::from_millis(100), Duration::from_millis(500));
        let overloaded = |wait| Refusal::Overloaded { wait };
        let over_limit = |wait| Refusal::OverLimit { wait };
        for refusal in [
            overloaded(soon),
            overloaded(soon),
            overloaded(later),
            over_limit(later),
            over_limit(later),
            Refusal::Unknown,
        ] {
            let answer = refused.answer(refusal.clone());
            let expected = Status::from(refusal).into_http::<Body>();
            assert_eq!(
                (answer.status(), answer.headers()),
                (expected.status(), expected.headers())
            );
        }
    }
}
