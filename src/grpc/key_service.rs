//! `countersign.v1.KeyService`: each method converts the request, runs its use case, and converts
//! the result.

use tonic::{Request, Response, Status};

use super::{common::timestamp, overload::admission::actor};
use crate::{
    authority::{error::AuthorityError, ready::Ready},
    domain::key::{Key, KeyPurpose, KeyState},
    proto::{self, key_service_server::KeyService},
};

/// The maximum length of a key identifier in a request.
const MAX_KID_BYTES: usize = 128;

/// The service. It accepts calls as soon as the process has started. Until the authority is ready,
/// all of them fail with `NOT_CURRENT`.
#[derive(Clone, Debug)]
pub struct Keys(pub Ready);

#[tonic::async_trait]
impl KeyService for Keys {
    async fn get_jwks(
        &self,
        _: Request<proto::GetJwksRequest>,
    ) -> Result<Response<proto::GetJwksResponse>, Status> {
        let public = self.0.get()?.public_keys();
        let max_age = prost_types::Duration::try_from(public.max_age).ok();
        Ok(Response::new(proto::GetJwksResponse { jwks: public.jwks.json, max_age }))
    }

    async fn list_keys(
        &self,
        _: Request<proto::ListKeysRequest>,
    ) -> Result<Response<proto::ListKeysResponse>, Status> {
        let keys = self.0.get()?.list_keys().await?;
        Ok(Response::new(proto::ListKeysResponse { keys: keys.iter().map(message).collect() }))
    }

    async fn rotate_key(
        &self,
        request: Request<proto::RotateKeyRequest>,
    ) -> Result<Response<proto::RotateKeyResponse>, Status> {
        let by = actor(&request)?.clone();
        let proto::RotateKeyRequest { purpose, force } = request.into_inner();
        let purpose = match proto::KeyPurpose::try_from(purpose) {
            Ok(proto::KeyPurpose::Unspecified | proto::KeyPurpose::AccessToken) => {
                KeyPurpose::AccessToken
            }
            Ok(proto::KeyPurpose::RefreshToken) => KeyPurpose::RefreshToken,
            Err(_) => return Err(AuthorityError::field("purpose", "is not known").into()),
        };
        let active = self.0.get()?.rotate_key(&by, purpose, force).await?;
        Ok(Response::new(proto::RotateKeyResponse { active: Some(message(&active)) }))
    }

    async fn revoke_key(
        &self,
        request: Request<proto::RevokeKeyRequest>,
    ) -> Result<Response<proto::RevokeKeyResponse>, Status> {
        let by = actor(&request)?.clone();
        let kid = request.into_inner().kid;
        if kid.is_empty() || kid.len() > MAX_KID_BYTES {
            let problem = format!("has {} bytes, 1 to {MAX_KID_BYTES} are allowed", kid.len());
            return Err(AuthorityError::field("kid", problem).into());
        }
        let revoked = self.0.get()?.revoke_key(&by, &kid).await?;
        Ok(Response::new(proto::RevokeKeyResponse { revoked: Some(message(&revoked)) }))
    }
}

fn message(key: &Key) -> proto::Key {
    let purpose = match key.purpose() {
        KeyPurpose::AccessToken => proto::KeyPurpose::AccessToken,
        KeyPurpose::RefreshToken => proto::KeyPurpose::RefreshToken,
    };
    let state = match key.state() {
        KeyState::Pending => proto::KeyState::Pending,
        KeyState::Active => proto::KeyState::Active,
        KeyState::Retired => proto::KeyState::Retired,
        KeyState::Revoked => proto::KeyState::Revoked,
    };
    proto::Key {
        kid: key.kid.clone(),
        purpose: purpose.into(),
        algorithm: key.algorithm.to_string(),
        state: state.into(),
        created_at: Some(timestamp(key.created_at)),
        activated_at: key.activated_at.map(timestamp),
        retired_at: key.retired_at.map(timestamp),
        revoked_at: key.revoked_at.map(timestamp),
    }
}
