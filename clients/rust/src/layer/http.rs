//! Middleware for HTTP services.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use countersign_verification::{
    credential::{Credential, find},
    inactive::InactiveReason,
};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use tower::{Layer, Service};

use super::challenge::Denial;
use crate::{Answer, Demands, Session, Verifier};

/// Lets only requests pass whose access token is active and meets the demands. It works as a layer
/// of axum, and of any other tower service whose response body can be made from a text.
///
/// The token is in `Authorization: Bearer` or, if [`cookie`](Self::cookie) is set, in a cookie. The
/// [`Session`] is put into the extensions of the request; with the feature `axum` it is also an
/// extractor of handlers. Other requests are answered:
///
/// | the request | the answer |
/// |---|---|
/// | has no token | 401, with a challenge that names the demanded scopes |
/// | has several tokens | 400, `invalid_request` (RFC 6750) |
/// | has an inactive token | 401, `invalid_token` |
/// | lacks a scope | 403, `insufficient_scope` |
/// | needs a stronger or more recent authentication | 401, `insufficient_user_authentication` (RFC 9470) |
/// | cannot be checked now | 503, with `Retry-After` |
///
/// ```
/// # #[cfg(feature = "axum")]
/// # fn routes(verifier: countersign_client::Verifier) -> axum::Router {
/// use countersign_client::{Demands, Session, layer::http::Protect};
///
/// let protect = Protect::new(verifier, Demands::new().audience("https://orders.example"));
/// axum::Router::new()
///     .route("/orders", axum::routing::post(async |session: Session| session.subject().to_owned()))
///     .layer(protect)
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Protect {
    settings: Arc<Settings>,
}

#[derive(Clone, Debug)]
struct Settings {
    verifier: Verifier,
    demands: Demands,
    cookie: Option<String>,
    realm: Option<String>,
    is_optional: bool,
}

impl Protect {
    /// Creates a layer with these demands.
    pub fn new(verifier: Verifier, demands: Demands) -> Self {
        let (cookie, realm, is_optional) = (None, None, false);
        let settings = Settings { verifier, demands, cookie, realm, is_optional };
        Self { settings: Arc::new(settings) }
    }

    /// Replaces the demands, for a route that has others.
    #[must_use]
    pub fn demands(self, demands: Demands) -> Self {
        self.with(|settings| settings.demands = demands)
    }

    /// Also takes the token from the cookie of this name. The cookie should be `HttpOnly` and
    /// `SameSite`, because browsers send it with requests that other sites have caused.
    #[must_use]
    pub fn cookie(self, name: impl Into<String>) -> Self {
        self.with(|settings| settings.cookie = Some(name.into()))
    }

    /// Sets the realm of challenges (RFC 9110, section 11.5), such as the URL of the service.
    #[must_use]
    pub fn realm(self, realm: impl Into<String>) -> Self {
        self.with(|settings| settings.realm = Some(realm.into()))
    }

    /// Also lets requests pass that have no token; they have no [`Session`]. A request with a bad
    /// token is denied nevertheless.
    #[must_use]
    pub fn optional(self) -> Self {
        self.with(|settings| settings.is_optional = true)
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
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
    R: From<String>,
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
            match settings.check(request.headers()).await {
                Ok(session) => {
                    if let Some(session) = session {
                        request.extensions_mut().insert(session);
                    }
                    inner.call(request).await
                }
                Err(denial) => Ok(settings.deny(denial)),
            }
        })
    }
}

impl Settings {
    async fn check(&self, headers: &HeaderMap) -> Result<Option<Session>, Denial> {
        let values = |name| headers.get_all(name).into_iter().map(HeaderValue::as_bytes);
        let token = match find(values(AUTHORIZATION), values(COOKIE), self.cookie.as_deref()) {
            Credential::Token(token, _) => token,
            Credential::None if self.is_optional => return Ok(None),
            Credential::None => return Err(Denial::NoToken),
            Credential::Several => return Err(Denial::SeveralTokens),
            Credential::ConflictingCookies => return Err(Denial::ConflictingCookies),
        };
        match self.verifier.verify(token, &self.demands).await {
            Answer::Active(session) => Ok(Some(session)),
            Answer::Inactive(reason) => Err(Denial::Inactive(reason)),
            Answer::Unknown(_) => Err(Denial::Unknown),
        }
    }

    fn deny<R: From<String>>(&self, denial: Denial) -> Response<R> {
        // The codes and descriptions have no characters that JSON would escape, but methods may.
        let body = serde_json::json!({
            "error": denial.code(),
            "error_description": denial.description(&self.demands),
        });
        let mut response = Response::new(R::from(body.to_string()));
        *response.status_mut() = match denial {
            Denial::Unknown => StatusCode::SERVICE_UNAVAILABLE,
            Denial::SeveralTokens | Denial::ConflictingCookies => StatusCode::BAD_REQUEST,
            Denial::Inactive(InactiveReason::InsufficientScope) => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        };
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if denial == Denial::Unknown {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        } else {
            let challenge = denial.challenge(self.realm.as_deref(), &self.demands);
            // A demand may have characters that a header cannot have.
            let challenge = HeaderValue::try_from(challenge);
            let challenge = challenge.unwrap_or(HeaderValue::from_static("Bearer"));
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
