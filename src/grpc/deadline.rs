//! Ends calls at the deadline that their callers gave (`grpc-timeout`), with the status that gRPC has for that.
//!
//! Tonic ends them too, but as CANCELLED, which a caller takes for the work of somebody else.

use std::{future::Future, pin::Pin, time::Duration};

use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use tokio::time::timeout;
use tonic::{Status, body::Body};
use tower::Service;

/// How much earlier than the deadline a call ends, so that tonic does not come first, whose timer ticks each millisecond.
const AHEAD: Duration = Duration::from_millis(2);

/// A service whose calls end at their deadlines.
#[derive(Clone, Debug)]
pub struct Deadline<S>(pub S);

impl<S> Service<Request<Body>> for Deadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let span = span(request.headers());
        let call = self.0.call(request);
        match span {
            None => Either::Left(call),
            Some(span) => Either::Right(Box::pin(async move {
                let exceeded = |_| Ok(Status::deadline_exceeded("the deadline of the call has passed").into_http());
                timeout(span.saturating_sub(AHEAD), call).await.unwrap_or_else(exceeded)
            })),
        }
    }
}

/// The span that a caller gives a call: up to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn span(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_a_number_of_a_unit() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            span(&headers)
        };
        let units = [("2H", 7_200_000_000_000), ("3M", 180_000_000_000), ("4S", 4_000_000_000), ("5m", 5_000_000)];
        for (text, nanos) in units.into_iter().chain([("6u", 6_000), ("7n", 7), ("99999999n", 99_999_999)]) {
            assert_eq!(read(text), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "5", "5x", "-5S", "+5S", "1.5S", "999999999n"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(span(&HeaderMap::new()), None);
    }

    /// A service that answers after a second.
    fn slow() -> impl Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send>
    {
        Deadline(tower::service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::convert::Infallible>(Status::ok("").into_http())
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_longer_than_its_caller_waits_ends_as_one_whose_deadline_has_passed() {
        for (timeout, code) in [("999m", "4"), ("1100m", "0"), ("nonsense", "0")] {
            let request = Request::builder().header("grpc-timeout", timeout).body(Body::empty()).unwrap();
            let answer = slow().call(request).await.unwrap();
            assert_eq!(answer.headers()["grpc-status"], code, "{timeout}");
        }
    }
}
