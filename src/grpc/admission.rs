//! Admits calls: finds the caller, and checks its rights and the limits.

use std::sync::Arc;

use http::{HeaderMap, header::AUTHORIZATION};
use prost::Message;
use tonic::{Request, Response, Status};

use super::{
    access::{Access, needed},
    unsent::{FREE_BYTES, Reserved, Unsent},
};
use crate::{
    authority::error::AuthorityError,
    callers::{Callers, Credentials, Refusal, meter::CallPermit},
    domain::caller::Actor,
    gateway::bearer::bearer_token,
    net::connection::Peer,
};

/// A call that has been let in.
#[derive(Debug)]
pub struct Admitted {
    /// The caller; `None` if the call is open to everybody.
    pub actor: Option<Actor>,
    /// The permit by which it counts as under way; `None` if it is not counted.
    pub permit: Option<CallPermit>,
}

/// The context of a call, which its service finds in the extensions of the request.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// The caller; `None` if the call is open to everybody.
    pub actor: Option<Actor>,
    /// The unsent answers of its connection.
    pub unsent: Arc<Unsent>,
}

/// Lets a call in, or returns the reason why not.
pub fn admit(
    callers: &Callers,
    path: &str,
    headers: &HeaderMap,
    peer: &Peer,
) -> Result<Admitted, Refusal> {
    let credentials = || Credentials {
        api_key: api_key(headers),
        certificate_names: &peer.certificate_names,
        name: None,
    };
    match needed(path) {
        Access::Open => Ok(Admitted { actor: None, permit: None }),
        Access::Known if callers.knows(credentials()) => Ok(Admitted { actor: None, permit: None }),
        Access::Known => Err(Refusal::Unknown),
        Access::Allowed(operation) => {
            let (caller, permit) = callers.admit(credentials(), operation)?;
            Ok(Admitted { actor: Some(Actor { caller, peer: peer.address }), permit: Some(permit) })
        }
    }
}

/// The API key of a call. If the header holds anything else, or there are two, it is an empty key,
/// which nobody has: a caller who sends credentials must not be taken for somebody else.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next()?, values.next());
    let key = bearer_token(first.as_bytes()).filter(|_| second.is_none());
    Some(key.unwrap_or_default())
}

/// The caller of a call that was let in.
pub fn actor<T>(request: &Request<T>) -> Result<Actor, Status> {
    context(request)?.actor.clone().ok_or_else(not_let_in)
}

fn context<T>(request: &Request<T>) -> Result<&CallContext, Status> {
    request.extensions().get().ok_or_else(not_let_in)
}

fn not_let_in() -> Status {
    tracing::error!("a call came to its service without having been let in");
    AuthorityError::Internal.into()
}

/// Begins the reservation of memory for an answer. Only calls that read make one, so that nothing
/// is lost if there is no room.
pub fn reserve<T>(request: &Request<T>) -> Result<Reserved, Status> {
    Ok(Reserved::new(context(request)?.unsent.clone()))
}

/// Counts an answer among the unsent ones, as far as its memory has not been reserved.
pub fn counted<M: Message>(message: M, mut reserved: Reserved) -> Result<Response<M>, Status> {
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
    fn a_key_comes_after_bearer_and_anything_else_is_a_wrong_one() {
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
