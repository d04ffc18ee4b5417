//! Access tokens. They are JWTs in the form of RFC 9068, and are parsed as strictly as RFC 8725
//! recommends.
//!
//! A token is read in two steps, because the key is looked up between them. [`Unverified::parse`]
//! parses only the header. [`Unverified::verify`] checks the signature, and parses the claims
//! afterwards.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::value::RawValue;

use crate::{
    claims::{AMR_VERIFIED_AT, AUTHENTICATION_ID, AccessClaims},
    factor_times::{DecodedTimes, EncodedTimes},
    ids::{AuthenticationId, SessionId, TokenId},
    inactive::InactiveReason,
    json_object::JsonObject,
    keys::VerifyingKey,
    time::Timestamp,
};

/// The only `typ` that is issued and accepted (RFC 9068, section 2.1).
pub const TYPE: &str = "at+jwt";

/// The beginning of every refresh token, by which secret scanners find leaked ones.
pub const REFRESH_TOKEN_PREFIX: &str = "cs_rt_";

/// The longest token that is parsed, in bytes.
pub const MAX_BYTES: usize = 8192;

/// Signing failed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The claims cannot be serialized to JSON.
    #[error("the access token could not be signed: {0}")]
    Claims(#[from] serde_json::Error),
    /// The signing function failed.
    #[error("the access token could not be signed with key {0}")]
    Key(String),
}

/// A key that signs.
pub struct Signer<'a, F> {
    /// The name of the key.
    pub kid: &'a str,
    /// The JOSE name of the algorithm.
    pub algorithm: &'static str,
    /// The function that signs a message.
    pub sign: F,
}

/// Signs claims. The result is a compact JWS (RFC 7515, section 7.1).
///
/// `jsonwebtoken` is not used here, because it would parse the key for each signature, which takes
/// more than half as long as the signature itself.
pub fn sign<F>(claims: &AccessClaims, signer: Signer<'_, F>) -> Result<String, SignError>
where
    F: FnOnce(&[u8]) -> Option<Vec<u8>>,
{
    #[derive(Serialize)]
    struct Header<'a> {
        typ: &'static str,
        alg: &'static str,
        kid: &'a str,
    }
    let Signer { kid, algorithm, sign } = signer;
    let header = serde_json::to_vec(&Header { typ: TYPE, alg: algorithm, kid })?;
    let mut token = URL_SAFE_NO_PAD.encode(header);
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(&Payload(claims))?, &mut token);
    let signature = sign(token.as_bytes()).ok_or_else(|| SignError::Key(kid.to_owned()))?;
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

/// A token whose header has been parsed and whose signature has not been checked.
pub struct Unverified<'a> {
    /// The `kid`, which names the key that verifies the token. It is not authenticated yet.
    pub kid: String,
    algorithm: String,
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl fmt::Debug for Unverified<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unverified").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// The requirements that the claims of every token must meet.
#[derive(Clone, Copy, Debug)]
pub struct Expectations<'a> {
    /// The only `iss` that is accepted.
    pub issuer: &'a str,
    /// The longest lifetime that a token may have.
    pub max_ttl: Duration,
}

impl Expectations<'_> {
    /// Checks the lifetime of a token.
    pub fn check_lifetime(&self, claims: &AccessClaims) -> Result<(), InactiveReason> {
        match claims.expires_at.since(claims.issued_at) > self.max_ttl {
            true => Err(InactiveReason::Malformed),
            false => Ok(()),
        }
    }
}

/// A JOSE header, which is an object with unique names (RFC 7515, section 4). It is deserialized by
/// hand, because the code that serde derives also accepts a list of values, and duplicate unknown
/// members.
struct Header<'a> {
    alg: Borrowed<'a>,
    kid: Borrowed<'a>,
    typ: Option<Borrowed<'a>>,
    /// True if there is an extension that changes the meaning of the token (`crit` or `b64`), even
    /// with the value `null`. None is supported, so such a token is refused (RFC 7515, section
    /// 4.1.11; RFC 7797, section 3).
    has_extension: bool,
}

/// A string that is borrowed from the input if it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Borrowed<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Header<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the header of an access token")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header<'de>, M::Error> {
        use serde::de::Error;

        let (mut alg, mut kid) = (None::<Borrowed<'de>>, None::<Borrowed<'de>>);
        let mut typ = None::<Option<Borrowed<'de>>>;
        let mut has_extension = false;
        let mut others = BTreeSet::new();
        while let Some(Borrowed(name)) = map.next_key()? {
            match &*name {
                "alg" => set(&mut alg, "alg", &mut map)?,
                "kid" => set(&mut kid, "kid", &mut map)?,
                "typ" => set(&mut typ, "typ", &mut map)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    has_extension |= matches!(&*name, "crit" | "b64");
                    if !others.insert(name) {
                        return Err(Error::custom("duplicate member"));
                    }
                }
            }
        }
        Ok(Header {
            alg: alg.ok_or_else(|| Error::missing_field("alg"))?,
            kid: kid.ok_or_else(|| Error::missing_field("kid"))?,
            typ: typ.flatten(),
            has_extension,
        })
    }
}

impl<'a> Unverified<'a> {
    /// Parses the header. The size is checked before anything else.
    pub fn parse(token: &'a str) -> Result<Self, InactiveReason> {
        if token.len() > MAX_BYTES {
            return Err(InactiveReason::Malformed);
        }
        if token.starts_with(REFRESH_TOKEN_PREFIX) {
            return Err(InactiveReason::WrongType);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(InactiveReason::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(InactiveReason::Malformed)?;
        if payload.contains('.') {
            return Err(InactiveReason::Malformed);
        }
        let header = decode(header)?;
        // The whole header must be UTF-8, including the members that are ignored (RFC 7515, section
        // 5.2, step 3).
        let header = str::from_utf8(&header).map_err(|_| InactiveReason::Malformed)?;
        let header: Header<'_> =
            serde_json::from_str(header).map_err(|_| InactiveReason::Malformed)?;
        if header.has_extension {
            return Err(InactiveReason::Malformed);
        }
        if header.typ.is_none_or(|typ| typ.0 != TYPE) {
            return Err(InactiveReason::WrongType);
        }
        Ok(Self {
            kid: header.kid.0.into_owned(),
            algorithm: header.alg.0.into_owned(),
            signed,
            payload,
            signature,
        })
    }

    /// Checks the signature, and then parses the claims. A token that names another algorithm than
    /// that of the key is refused.
    pub fn verify(
        &self,
        key: &VerifyingKey,
        expected: &Expectations<'_>,
    ) -> Result<AccessClaims, InactiveReason> {
        if self.algorithm != algorithm_name(key.algorithm()) {
            return Err(InactiveReason::BadSignature);
        }
        if !key.verifies(self.signed.as_bytes(), &decode(self.signature)?) {
            return Err(InactiveReason::BadSignature);
        }
        let claims: Claims = serde_json::from_slice(&decode(self.payload)?)
            .map_err(|_| InactiveReason::Malformed)?;
        let claims = claims.0;
        if claims.issuer != expected.issuer {
            return Err(InactiveReason::WrongIssuer);
        }
        // `iat` and `exp` are equal if the token was issued in the last second of its session.
        let ordered =
            claims.issued_at <= claims.expires_at && claims.issued_at >= Timestamp::from_seconds(0);
        if !ordered {
            return Err(InactiveReason::Malformed);
        }
        expected.check_lifetime(&claims)?;
        Ok(claims)
    }
}

/// Returns the name of an algorithm in a header (RFC 7518, section 3.1; RFC 8037, section 3.1).
fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::EdDSA => "EdDSA",
        Algorithm::ES256 => "ES256",
        Algorithm::RS256 => "RS256",
        // No key of an issuer has another algorithm. If one had, the empty name would refuse its
        // tokens.
        _ => "",
    }
}

/// Decodes base64url without padding (RFC 7515, section 2). Refuses unused bits at the end that are
/// not zero.
fn decode(part: &str) -> Result<Vec<u8>, InactiveReason> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| InactiveReason::Malformed)
}

/// Serializes claims as a JWT payload. Empty claims are left out.
pub struct Payload<'a>(pub &'a AccessClaims);

impl Serialize for Payload<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let claims = self.0;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("iss", &claims.issuer)?;
        map.serialize_entry("sub", &claims.subject)?;
        map.serialize_entry("aud", &claims.audience)?;
        map.serialize_entry("client_id", &claims.client_id)?;
        map.serialize_entry("iat", &claims.issued_at.seconds())?;
        map.serialize_entry("exp", &claims.expires_at.seconds())?;
        map.serialize_entry("jti", &Text(&claims.token_id))?;
        map.serialize_entry("sid", &Text(&claims.session_id))?;
        if let Some(id) = &claims.authentication_id {
            map.serialize_entry(AUTHENTICATION_ID, &Text(id))?;
        }
        if let Some(not_before) = claims.not_before {
            map.serialize_entry("nbf", &not_before.seconds())?;
        }
        if !claims.tenant.is_empty() {
            map.serialize_entry("tenant", &claims.tenant)?;
        }
        if !claims.scopes.is_empty() {
            map.serialize_entry("scope", &claims.scopes.join(" "))?;
        }
        map.serialize_entry("auth_time", &claims.authenticated_at.seconds())?;
        if !claims.acr.is_empty() {
            map.serialize_entry("acr", &claims.acr)?;
        }
        if !claims.amr.is_empty() {
            map.serialize_entry("amr", &claims.amr)?;
        }
        if !claims.amr_verified_at.is_empty() {
            map.serialize_entry(AMR_VERIFIED_AT, &EncodedTimes(&claims.amr_verified_at))?;
        }
        for (name, value) in claims.custom.members() {
            map.serialize_entry(&name, value)?;
        }
        map.end()
    }
}

/// Serializes a value as the text that its `Display` gives.
struct Text<'a, T>(&'a T);

impl<T: fmt::Display> Serialize for Text<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// Deserializes claims from a payload. Every required claim must be present, every claim must have
/// the right type, and no name may occur twice.
struct Claims(AccessClaims);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClaimsVisitor)
    }
}

struct ClaimsVisitor;

/// Sets a claim that must not have been set before.
fn set<'de, M: MapAccess<'de>, T: Deserialize<'de>>(
    slot: &mut Option<T>,
    name: &'static str,
    map: &mut M,
) -> Result<(), M::Error> {
    if slot.is_some() {
        return Err(serde::de::Error::duplicate_field(name));
    }
    *slot = Some(map.next_value()?);
    Ok(())
}

impl<'de> Visitor<'de> for ClaimsVisitor {
    type Value = Claims;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the claims of an access token")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Claims, M::Error> {
        use serde::de::Error;

        let (mut iss, mut sub, mut client_id, mut jti, mut sid) = (None, None, None, None, None);
        let (mut authentication_id, mut tenant, mut scope, mut acr) = (None, None, None, None);
        let [mut iat, mut exp, mut nbf, mut auth_time] = [None::<i64>; 4];
        let (mut aud, mut amr) = (None::<OneOrMany>, None::<Vec<String>>);
        let mut amr_verified_at = None::<DecodedTimes>;
        let mut custom = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "iss" => set::<_, String>(&mut iss, "iss", &mut map)?,
                "sub" => set::<_, String>(&mut sub, "sub", &mut map)?,
                "aud" => set(&mut aud, "aud", &mut map)?,
                "client_id" => set::<_, String>(&mut client_id, "client_id", &mut map)?,
                "iat" => set(&mut iat, "iat", &mut map)?,
                "exp" => set(&mut exp, "exp", &mut map)?,
                "nbf" => set(&mut nbf, "nbf", &mut map)?,
                "jti" => set::<_, String>(&mut jti, "jti", &mut map)?,
                "sid" => set::<_, String>(&mut sid, "sid", &mut map)?,
                AUTHENTICATION_ID => {
                    set::<_, String>(&mut authentication_id, AUTHENTICATION_ID, &mut map)?;
                }
                "tenant" => set::<_, String>(&mut tenant, "tenant", &mut map)?,
                "scope" => set::<_, String>(&mut scope, "scope", &mut map)?,
                "auth_time" => set(&mut auth_time, "auth_time", &mut map)?,
                "acr" => set::<_, String>(&mut acr, "acr", &mut map)?,
                "amr" => set(&mut amr, "amr", &mut map)?,
                AMR_VERIFIED_AT => set(&mut amr_verified_at, AMR_VERIFIED_AT, &mut map)?,
                _ => {
                    if custom.insert(name, map.next_value::<&RawValue>()?).is_some() {
                        return Err(Error::custom("duplicate claim"));
                    }
                }
            }
        }
        let required =
            |claim: Option<String>, name| claim.ok_or_else(|| Error::missing_field(name));
        let instant = |claim: Option<i64>, name| {
            claim.map(Timestamp::from_seconds).ok_or_else(|| Error::missing_field(name))
        };
        Ok(Claims(AccessClaims {
            issuer: required(iss, "iss")?,
            session_id: required(sid, "sid")?.parse::<SessionId>().map_err(Error::custom)?,
            token_id: required(jti, "jti")?.parse::<TokenId>().map_err(Error::custom)?,
            authentication_id: authentication_id
                .map(|id| id.parse::<AuthenticationId>().map_err(Error::custom))
                .transpose()?,
            subject: required(sub, "sub")?,
            tenant: tenant.unwrap_or_default(),
            client_id: required(client_id, "client_id")?,
            audience: audience(aud)?,
            scopes: words(&scope.unwrap_or_default()),
            issued_at: instant(iat, "iat")?,
            expires_at: instant(exp, "exp")?,
            not_before: nbf.map(Timestamp::from_seconds),
            authenticated_at: instant(auth_time, "auth_time")?,
            acr: acr.unwrap_or_default(),
            amr: amr.unwrap_or_default(),
            amr_verified_at: amr_verified_at.unwrap_or_default().0,
            custom: JsonObject::try_from(&custom).map_err(Error::custom)?,
        }))
    }
}

fn audience<E: serde::de::Error>(claim: Option<OneOrMany>) -> Result<Vec<String>, E> {
    match claim.ok_or_else(|| E::missing_field("aud"))? {
        OneOrMany::One(one) => Ok(vec![one]),
        OneOrMany::Many(many) if !many.is_empty() => Ok(many),
        OneOrMany::Many(_) => Err(E::custom("aud is empty")),
    }
}

/// Splits a `scope` claim into its scopes, which are separated by spaces.
fn words(scope: &str) -> Vec<String> {
    scope.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
