//! The service `envoy.service.auth.v3.Authorization`. Envoy, and other proxies that speak Envoy's
//! protocol, call it for each request that they receive.

use std::sync::Arc;

use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
        },
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::HttpRequest, authorization_server::Authorization,
            check_response::HttpResponse,
        },
        r#type::v3::HttpStatus,
    },
    google::rpc,
};
use http::{
    HeaderName, StatusCode,
    header::{AUTHORIZATION, COOKIE},
};
use tonic::{Code, Request, Response, Status};

use super::overload::admission::actor;
use crate::{
    authority::{error::AuthorityError, ready::Ready},
    gateway::{
        Decision, Gateway, Passed, Settings,
        credential::{self, Found},
        demands::Demands,
        denial::Denial,
        outcomes::Kind,
    },
};

/// The `Authorization` service.
#[derive(Debug)]
pub struct ExtAuthz {
    ready: Ready,
    gateway: Arc<Gateway>,
}

impl ExtAuthz {
    /// Creates the service, which answers once the authority is ready.
    pub fn new(ready: Ready, gateway: Arc<Gateway>) -> Self {
        Self { ready, gateway }
    }
}

#[tonic::async_trait]
impl Authorization for ExtAuthz {
    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let by = actor(&request)?.clone();
        let attributes = request.into_inner().attributes.unwrap_or_default();
        let Some(http) = attributes.request.and_then(|request| request.http) else {
            return Err(
                AuthorityError::field("attributes.request.http", "must not be empty").into()
            );
        };
        let extensions = attributes.context_extensions;
        let demands =
            Demands::read(extensions.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let settings = self.gateway.settings();
        let credential = credential::find(
            values(&http, AUTHORIZATION.as_str()),
            values(&http, COOKIE.as_str()),
            settings.cookie.as_deref(),
        );
        let authority = self.ready.get()?;
        let asked = (credential, demands);
        let decision =
            self.gateway.authorize(Kind::ExtAuthz, authority, &by, &settings, asked).await;
        Ok(Response::new(match decision {
            Decision::Passed(passed) => passed_answer(&settings, &http, passed),
            Decision::Denied(denial) => denied(&denial, &authority.issuer()),
            Decision::Unavailable(error) => return Err(error.into()),
        }))
    }
}

/// Returns the values of a header. Envoy sends them as text or, with `encode_raw_headers`, as
/// bytes.
fn values<'a>(http: &'a HttpRequest, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    names_and_values(http)
        .filter(move |(found, _)| found.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn names_and_values(http: &HttpRequest) -> impl Iterator<Item = (&str, &[u8])> {
    let texts = http.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let raw = http.header_map.iter().flat_map(|map| &map.headers).map(|header| {
        let value =
            if header.raw_value.is_empty() { header.value.as_bytes() } else { &header.raw_value };
        (header.key.as_str(), value)
    });
    texts.chain(raw)
}

fn passed_answer(settings: &Settings, http: &HttpRequest, passed: Passed<'_>) -> CheckResponse {
    let mut answer = OkHttpResponse::default();
    // Some applications treat an underscore in the name of a header as a hyphen. They would
    // mistake a header that the client has sent, such as `x_auth_subject`, for a header that
    // this answer adds, such as `x-auth-subject`.
    let is_alike = |name: &str| {
        name.contains('_')
            && settings
                .headers
                .names()
                .any(|ours| name.replace('_', "-").eq_ignore_ascii_case(ours.as_str()))
    };
    answer.headers_to_remove.extend(
        names_and_values(http)
            .map(|(name, _)| name)
            .filter(|name| is_alike(name))
            .map(str::to_owned),
    );
    for (name, value) in passed.identity {
        match value.as_ref().and_then(|value| value.to_str().ok()) {
            Some(value) => answer.headers.push(header(name.as_str(), value.to_owned())),
            None => answer.headers_to_remove.push(name.to_string()),
        }
    }
    if settings.remove_credential {
        remove_credential(settings, http, passed.found, &mut answer);
    }
    CheckResponse {
        status: Some(status(Code::Ok)),
        http_response: Some(HttpResponse::OkResponse(answer)),
        ..CheckResponse::default()
    }
}

fn remove_credential(
    settings: &Settings,
    http: &HttpRequest,
    found: Found,
    answer: &mut OkHttpResponse,
) {
    if found == Found::Header {
        answer.headers_to_remove.push(AUTHORIZATION.to_string());
    }
    // The cookie is removed in either case, because it may hold the same token as the header.
    let Some(cookie) = &settings.cookie else { return };
    if values(http, COOKIE.as_str()).next().is_none() {
        return;
    }
    let left =
        values(http, COOKIE.as_str()).filter_map(|value| credential::without_cookie(value, cookie));
    let left = left.collect::<Vec<_>>().join(&b"; "[..]);
    match String::from_utf8(left) {
        Ok(left) if !left.is_empty() => answer.headers.push(header(COOKIE.as_str(), left)),
        // No cookie is left, or the other cookies are not UTF-8 and cannot be sent back.
        _ => answer.headers_to_remove.push(COOKIE.to_string()),
    }
}

fn denied(denial: &Denial, issuer: &str) -> CheckResponse {
    let (code, of_http) = match denial.status() {
        StatusCode::UNAUTHORIZED => (Code::Unauthenticated, 401),
        _ => (Code::PermissionDenied, 403),
    };
    let to_header = |(name, value): (&HeaderName, &http::HeaderValue)| {
        Some(header(name.as_str(), value.to_str().ok()?.to_owned()))
    };
    CheckResponse {
        status: Some(status(code)),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: of_http }),
            headers: denial.headers(issuer).iter().filter_map(to_header).collect(),
            body: denial.body(),
        })),
        ..CheckResponse::default()
    }
}

fn status(code: Code) -> rpc::Status {
    rpc::Status { code: code.into(), ..rpc::Status::default() }
}

/// Creates a header that replaces all others of the same name.
fn header(name: &str, value: String) -> HeaderValueOption {
    let header = HeaderValue { key: name.to_owned(), value, raw_value: vec![] };
    HeaderValueOption {
        header: Some(header),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}
