//! Middleware for servers of tonic.

use std::{
    collections::HashMap,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use countersign_verification::{
    credential::{Credential, find},
    inactive::InactiveReason,
};
use http::{HeaderMap, HeaderValue, Request, Response, header::AUTHORIZATION};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::{Layer, Service};

use super::challenge::Denial;
use crate::{Answer, Demands, Session, Verifier};

/// The `domain` in `ErrorInfo` of denied calls.
const DOMAIN: &str = "countersign";

/// Lets only calls pass whose access token is active and meets the demands of the method. The token
/// is in the metadata `authorization`, with the scheme `Bearer`. Use it with
/// `tonic::transport::Server::layer`.
///
/// The [`Session`] is put into the extensions of the request. A stream is checked when it begins.
/// Other calls are answered, with an `ErrorInfo` whose domain is `countersign`:
///
/// | the call | the code | the reason |
/// |---|---|---|
/// | has no token, or several | UNAUTHENTICATED | `NO_TOKEN`, `SEVERAL_TOKENS` |
/// | has an inactive token | UNAUTHENTICATED | the name of the [`InactiveReason`], such as `EXPIRED` |
/// | needs a stronger or more recent authentication | UNAUTHENTICATED | `STEP_UP_REQUIRED`, with `acr_values` and `max_age` in the metadata |
/// | lacks a scope | PERMISSION_DENIED | `INSUFFICIENT_SCOPE`, with `scope` in the metadata |
/// | cannot be checked now | UNAVAILABLE | `TOKEN_NOT_CHECKED`, with `RetryInfo` |
#[derive(Clone, Debug)]
pub struct Protect {
    settings: Arc<Settings>,
}

#[derive(Clone, Debug)]
struct Settings {
    verifier: Verifier,
    demands: Demands,
    /// The methods with other demands, or with none (`None`), by their path.
    methods: HashMap<String, Option<Demands>>,
}

impl Protect {
    /// Creates a layer with these demands on all methods.
    pub fn new(verifier: Verifier, demands: Demands) -> Self {
        let settings = Settings { verifier, demands, methods: HashMap::new() };
        Self { settings: Arc::new(settings) }
    }

    /// Sets other demands on a method, such as `/shop.v1.Orders/Cancel`.
    #[must_use]
    pub fn method(self, path: impl Into<String>, demands: Demands) -> Self {
        self.with(path.into(), Some(demands))
    }

    /// Lets all calls of a method pass without a check, such as `/grpc.health.v1.Health/Check`.
    #[must_use]
    pub fn public(self, path: impl Into<String>) -> Self {
        self.with(path.into(), None)
    }

    fn with(mut self, path: String, demands: Option<Demands>) -> Self {
        Arc::make_mut(&mut self.settings).methods.insert(path, demands);
        self
    }
}

impl<S> Layer<S> for Protect {
    type Service = Protected<S>;

    fn layer(&self, inner: S) -> Protected<S> {
        Protected { inner, settings: self.settings.clone() }
    }
}

/// A service that [`Protect`] protects.
#[derive(Clone, Debug)]
pub struct Protected<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S, B, R> Service<Request<B>> for Protected<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = super::BoxFuture<Result<Response<R>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The clone may not be ready; this service is.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let settings = self.settings.clone();
        Box::pin(async move {
            let Some(demands) = settings.demands_of(request.uri().path()) else {
                return inner.call(request).await;
            };
            match settings.check(request.headers(), demands).await {
                Ok(session) => {
                    request.extensions_mut().insert(session);
                    inner.call(request).await
                }
                Err(denial) => Ok(status(denial, demands).into_http()),
            }
        })
    }
}

impl Settings {
    /// Returns the demands on a method; `None` if it is public.
    fn demands_of(&self, path: &str) -> Option<&Demands> {
        self.methods.get(path).map_or(Some(&self.demands), Option::as_ref)
    }

    async fn check(&self, headers: &HeaderMap, demands: &Demands) -> Result<Session, Denial> {
        let values = headers.get_all(AUTHORIZATION).into_iter().map(HeaderValue::as_bytes);
        let token = match find(values, std::iter::empty(), None) {
            Credential::Token(token, _) => token,
            Credential::None => return Err(Denial::NoToken),
            Credential::Several | Credential::ConflictingCookies => {
                return Err(Denial::SeveralTokens);
            }
        };
        match self.verifier.verify(token, demands).await {
            Answer::Active(session) => Ok(session),
            Answer::Inactive(reason) => Err(Denial::Inactive(reason)),
            Answer::Unknown(_) => Err(Denial::Unknown),
        }
    }
}

fn status(denial: Denial, demands: &Demands) -> Status {
    let (code, reason) = match denial {
        Denial::NoToken => (Code::Unauthenticated, "NO_TOKEN".to_owned()),
        Denial::SeveralTokens | Denial::ConflictingCookies => {
            (Code::Unauthenticated, "SEVERAL_TOKENS".to_owned())
        }
        Denial::Inactive(reason) => {
            let code = match reason {
                InactiveReason::InsufficientScope => Code::PermissionDenied,
                _ => Code::Unauthenticated,
            };
            (code, reason.as_str().to_ascii_uppercase())
        }
        Denial::Unknown => (Code::Unavailable, "TOKEN_NOT_CHECKED".to_owned()),
    };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata(denial, demands));
    if denial == Denial::Unknown {
        details.set_retry_info(Some(Duration::from_millis(500)));
    }
    Status::with_error_details(code, denial.description(demands), details)
}

/// Returns the demands that are not met, by the names that RFC 6750 and RFC 9470 give them.
fn metadata(denial: Denial, demands: &Demands) -> HashMap<String, String> {
    let mut metadata = HashMap::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            metadata.insert(name.to_owned(), value);
        }
    };
    match denial {
        Denial::Inactive(InactiveReason::InsufficientScope) => {
            add("scope", demands.scopes.join(" "));
        }
        Denial::Inactive(InactiveReason::StepUpRequired) => {
            add("acr_values", demands.acr_values.join(" "));
            let age = demands.shortest_age().map(|age| age.as_secs().to_string());
            add("max_age", age.unwrap_or_default());
        }
        _ => {}
    }
    metadata
}
