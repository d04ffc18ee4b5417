//! Lets calls in: who makes them, whether they may, and whether there is room.

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
    gateway::credential::bearer_token,
    net::connection::Peer,
};

/// A call that has been let in.
#[derive(Debug)]
pub struct Admitted {
    /// Who makes it; none if it is open to everybody.
    pub actor: Option<Actor>,
    /// That it is under way.
    pub permit: Option<CallPermit>,
}

/// What a service is told of a call, in the extensions of its request.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Who makes it; none if it is open to everybody.
    pub actor: Option<Actor>,
    /// The answers that wait on its connection.
    pub unsent: Arc<Unsent>,
}

/// Lets a call in, or says why not.
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

/// The API key of a call: what comes after `Bearer` (RFC 6750, section 2.1). If there is something
/// else it is a key that nobody has, because who means to be known must not be taken for somebody
/// else.
fn api_key(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (first, second) = (values.next()?, values.next());
    let key = bearer_token(first.as_bytes()).filter(|_| second.is_none());
    Some(key.unwrap_or_default())
}

/// Who makes a call that was let in.
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

/// What an answer takes until it has been sent. It is for calls that only read, so that nothing is
/// lost if there is no room.
pub fn reserve<T>(request: &Request<T>) -> Result<Reserved, Status> {
    Ok(Reserved::new(context(request)?.unsent.clone()))
}

/// An answer that counts among the unsent ones, as far as it has not been reserved.
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
        for good in ["Bearer cs_ck_1", "bearer cs_ck_1", "BEARER  cs_ck_1 "] {
            assert_eq!(read(&[good]).as_deref(), Some("cs_ck_1"), "{good}");
        }
        for wrong in [
            &["cs_ck_1"][..],
            &["Basic cs_ck_1"],
            &[""],
            &["Bearer"],
            &["Bearer\tcs_ck_1"],
            &["Bearer cs_ck_1 x"],
            &["Bearer cs_ck_1, x"],
            &["Bearer cs_ck_1", "Bearer cs_ck_1"],
        ] {
            assert_eq!(read(wrong).as_deref(), Some(""), "{wrong:?}");
        }
    }
}
