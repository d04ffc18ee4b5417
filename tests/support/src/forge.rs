//! Makes invalid tokens that are signed with the service's own key, so that only their fault can be
//! the reason to refuse them.

use std::path::Path;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use countersign::{
    domain::session::Lineage,
    keys::{master_key, ring::KeyRing, sealing::MasterKeys},
    store::Store,
    token::refresh,
};
use serde_json::{Map, Value, json};

use crate::server::Server;

/// The keys of a service, with which tokens can be forged.
pub struct Forge {
    /// The keys of the service.
    pub ring: KeyRing,
    /// The master keys that encrypt `ring`.
    pub masters: MasterKeys,
}

impl Forge {
    /// Opens the keys of a running service.
    pub async fn of(server: &Server) -> Self {
        Self::open(&server.home.master_key_file(), &*server.store).await
    }

    /// Opens the keys in a store.
    pub async fn open(master_key: &Path, store: &dyn Store) -> Self {
        let current = master_key::read_file(master_key).unwrap().unwrap();
        let masters = MasterKeys { current, additional: None };
        Self { ring: KeyRing::open(&masters, store.ring().await.unwrap()).unwrap(), masters }
    }

    /// Returns the header of a good token with these changes.
    pub fn header(&self, changes: Value) -> String {
        let key = self.ring.signing().unwrap();
        changed(
            json!({ "alg": key.pair.algorithm().as_str(), "typ": "at+jwt", "kid": key.kid }),
            changes,
        )
    }

    /// Signs a header and a payload exactly as they are given.
    pub fn sign(&self, header: &str, payload: &str) -> String {
        self.sign_parts(&URL_SAFE_NO_PAD.encode(header), &URL_SAFE_NO_PAD.encode(payload))
    }

    /// Signs two parts of a token that are already encoded in some way.
    pub fn sign_parts(&self, header: &str, payload: &str) -> String {
        let signed = format!("{header}.{payload}");
        let signature = URL_SAFE_NO_PAD
            .encode(self.ring.signing().unwrap().pair.sign(signed.as_bytes()).unwrap());
        format!("{signed}.{signature}")
    }

    /// Signs the claims of a good token with changes.
    pub fn resign(&self, good: &str, changes: Value) -> String {
        self.sign(&self.header(json!({})), &changed(Value::Object(claims(good)), changes))
    }

    /// Issues a refresh token for a session, with a changed lineage.
    pub async fn refresh_token(
        &self,
        server: &Server,
        id: &str,
        change: impl FnOnce(&mut Lineage),
    ) -> String {
        let mut lineage = server.lineage(id).await;
        change(&mut lineage);
        refresh::issue(id.parse().unwrap(), &lineage, self.ring.refresh(lineage.key).unwrap())
    }
}

/// Returns an object as text, with these members replaced or, if they are null, removed.
fn changed(mut object: Value, changes: Value) -> String {
    for (name, value) in changes.as_object().unwrap() {
        let members = object.as_object_mut().unwrap();
        if value.is_null() {
            members.remove(name);
        } else {
            members.insert(name.clone(), value.clone());
        }
    }
    object.to_string()
}

/// Returns the three parts of a token.
pub fn parts(token: &str) -> [&str; 3] {
    token.split('.').collect::<Vec<_>>().try_into().unwrap()
}

/// Returns the header of a token.
pub fn header(token: &str) -> Map<String, Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts(token)[0]).unwrap()).unwrap()
}

/// Returns the claims of a token.
pub fn claims(token: &str) -> Map<String, Value> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts(token)[1]).unwrap()).unwrap()
}
