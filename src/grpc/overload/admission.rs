//! Admits calls: finds the caller, and checks its rights and the limits.

use std::sync::Arc;

use http::{HeaderMap, header::AUTHORIZATION};
use prost::Message;
use tonic::{Request, Response, Status};

use super::unsent::{FREE_BYTES, Reservation, UnsentBytes};
use crate::{
    authority::error::AuthorityError,
    callers::{Callers, Credentials, Refusal, meter::CallPermit},
    domain::caller::Actor,
    gateway::bearer::bearer_token,
    grpc::methods::Access,
    net::connection::Peer,
};

/// A call that has been admitted.
#[derive(Debug)]
pub struct Admitted {
    /// The caller; `None` if the call is open to everybody.
    pub actor: Option<Actor>,
    /// The permit that counts the call as under way; `None` if the call is not counted.
    pub permit: Option<CallPermit>,
}

/// The context of a call, which its service finds in the extensions of the request.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The caller; `None` if the call is open to everybody.
    pub actor: Option<Actor>,
    /// The count of the bytes of unsent answers on its connection.
    pub unsent: Arc<UnsentBytes>,
}

/// Admits a call that needs this access, or returns the reason for which it is refused.
pub fn admit(
    callers: &Callers,
    access: Access,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Admitted, Refusal> {
    let credentials = || Credentials {
        api_key: api_key(headers),
        certificate_names: &peer.certificate_names,
        name: None,
    };
    match access {
        Access::Open => Ok(Admitted { actor: None, permit: None }),
        Access::Known if callers.knows(credentials()) => Ok(Admitted { actor: None, permit: None }),
        Access::Known => Err(Refusal::Unknown),
        Access::Allowed(operation) => {
            let (caller, permit) = callers.admit(credentials(), operation)?;
            let actor = Actor { caller, peer: peer.address, call: None };
            Ok(Admitted { actor: Some(actor), permit: Some(permit) })
        }
    }
}

/// Returns the API key of a call, or `None` without an `authorization` header. If the header is
/// repeated or holds anything but a bearer token, the key is empty, and no caller has an empty key,
/// so the call is refused. If this returned `None` instead, the call could be admitted by its
/// certificate in spite of the wrong header.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next()?, values.next());
    let key = bearer_token(first.as_bytes()).filter(|_| second.is_none());
    Some(key.unwrap_or_default())
}

/// Returns the caller of an admitted call.
pub fn actor<T>(request: &Request<T>) -> Result<&Actor, Status> {
    context(request)?.actor.as_ref().ok_or_else(not_admitted)
}

fn context<T>(request: &Request<T>) -> Result<&CallContext, Status> {
    request.extensions().get().ok_or_else(not_admitted)
}

fn not_admitted() -> Status {
    tracing::error!("a call reached its service without having been admitted");
    AuthorityError::Internal.into()
}

/// Begins a reservation of memory for an answer. Only calls that change nothing may do this: if
/// such a call fails because there is no room for its answer, nothing is lost.
pub fn reserve<T>(request: &Request<T>) -> Result<Reservation, Status> {
    Ok(Reservation::new(context(request)?.unsent.clone()))
}

/// Makes the response, and reserves those of its bytes that `reserved` does not cover yet. Fails if
/// these bytes exceed the limit. For an answer of at most [`FREE_BYTES`], no bytes are added.
pub fn counted<M: Message>(message: M, mut reserved: Reservation) -> Result<Response<M>, Status> {
    let bytes = message.encoded_len();
    if let Some(more) = bytes.checked_sub(reserved.bytes())
        && bytes > FREE_BYTES
    {
        reserved.try_grow(more)?;
    }
    let mut response = Response::new(message);
    if reserved.bytes() > 0 {
        response.extensions_mut().insert(Arc::new(reserved));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authorization_header_other_than_one_bearer_token_is_an_empty_key() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, value.parse().unwrap());
            }
            api_key(&headers).map(str::to_owned)
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["Bearer cs_ck_1"]).as_deref(), Some("cs_ck_1"));
        for wrong in [
            &["Basic cs_ck_1"][..],
            &[""],
            &["Bearer cs_ck_1 x"],
            &["Bearer cs_ck_1", "Bearer cs_ck_1"],
        ] {
            assert_eq!(read(wrong).as_deref(), Some(""), "{wrong:?}");
        }
    }
}
