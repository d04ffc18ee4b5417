//! The session as an extractor of axum.

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use crate::Session;

/// A handler asks for a [`Session`], and no layer has checked the request. This is a mistake of the
/// application: it answers 500, and does not run the handler.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the route is not protected, or its protection is optional, so there is no session")]
pub struct NoSession;

impl IntoResponse for NoSession {
    fn into_response(self) -> Response {
        tracing::error!("{self}");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

/// Returns the session of a request that [`Protect`](crate::layer::http::Protect) has let pass.
impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = NoSession;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoSession> {
        parts.extensions.get().cloned().ok_or(NoSession)
    }
}

/// Returns the session of a request, if it has one.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Session {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &S,
    ) -> Result<Option<Self>, std::convert::Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}
