//! Calls about the keys of a service.

use countersign::proto::{
    Key, KeyPurpose, KeyState, ListKeysRequest, RevokeKeyRequest, RotateKeyRequest,
    key_service_client::KeyServiceClient,
};
use serde_json::Value;
use tonic::{Status, transport::Channel};

use crate::{
    http_client::get,
    server::{Server, eventually},
};

impl Server {
    /// Returns a client of the key service.
    pub fn keys(&self) -> KeyServiceClient<Channel> {
        KeyServiceClient::new(self.channel.clone())
    }

    /// Lists the keys.
    pub async fn ring(&self) -> Vec<Key> {
        self.keys().list_keys(ListKeysRequest {}).await.unwrap().into_inner().keys
    }

    /// Returns the one key with this purpose and state.
    pub async fn find(&self, purpose: KeyPurpose, state: KeyState) -> Key {
        let keys = self.ring().await;
        let found: Vec<_> = keys
            .iter()
            .filter(|key| key.purpose() == purpose && key.state() == state)
            .cloned()
            .collect();
        assert_eq!(found.len(), 1, "{state:?}: {keys:#?}");
        found[0].clone()
    }

    /// Returns the one key of access tokens in this state.
    pub async fn signing(&self, state: KeyState) -> Key {
        self.find(KeyPurpose::AccessToken, state).await
    }

    /// Rotates the keys for this purpose, and returns the key that is active afterwards.
    pub async fn rotate(&self, purpose: KeyPurpose, force: bool) -> Result<Key, Status> {
        let request = RotateKeyRequest { purpose: purpose.into(), force };
        Ok(self.keys().rotate_key(request).await?.into_inner().active.unwrap())
    }

    /// Revokes a key, and returns it.
    pub async fn revoke_key(&self, kid: &str) -> Result<Key, Status> {
        let request = RevokeKeyRequest { kid: kid.to_owned() };
        Ok(self.keys().revoke_key(request).await?.into_inner().revoked.unwrap())
    }

    /// Returns the identifiers of the published keys.
    pub async fn published(&self) -> Vec<String> {
        let answer = get(self.http, "/.well-known/jwks.json").await;
        let set: Value = serde_json::from_str(&answer.body).unwrap();
        set["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|key| key["kid"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until the scheduled rotation has made this key active.
    pub async fn becomes_active(&self, kid: &str) {
        eventually("the key is active", async || {
            let keys = self.ring().await;
            keys.iter().any(|key| key.kid == kid && key.state() == KeyState::Active).then_some(())
        })
        .await;
    }
}
