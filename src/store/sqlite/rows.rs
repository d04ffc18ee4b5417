//! Converts rows to domain types and back.

use std::{ops::Deref, time::Duration};

use diesel::prelude::{Insertable, Queryable, Selectable};

use super::schema::{blacklist, sessions, signing_keys};
use crate::{
    domain::{
        claims::CustomClaims,
        cut_off::{CutOff, CutOffKey, CutOffKind, KeyRef},
        factors::FactorTimes,
        ids::{AuthenticationId, SessionId, TokenId},
        key::{Key, KeyAlgorithm, RefreshKeyId, SealedKey},
        metadata::Metadata,
        policy::{OnRefresh, RefreshMode, Replay, SessionPolicy},
        revocation::{BlacklistEntry, EarlierEntry, Revoked, Seq},
        session::{
            Authentication, Device, EndReason, Ended, IdentifiedRequest, Lineage, LineageSecret,
            RequestFingerprint, Session,
        },
        text::Amr,
        time::{Timestamp, micros},
        who::Who,
    },
    store::{CutOffEntry, FeedEntry, StoreError},
};

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = sessions)]
pub struct SessionRow {
    id: Vec<u8>,
    tenant: String,
    subject: String,
    client_id: String,
    audience: String,
    scopes: String,
    claims: String,
    acr: String,
    amr: String,
    amr_verified_at: String,
    authenticated_at: i64,
    user_agent: String,
    ip_address: String,
    device_label: String,
    device_id: String,
    policy: String,
    access_token_ttl: i64,
    idle_timeout: i64,
    refresh_grace: i64,
    replay_limit: i64,
    on_refresh: String,
    replay: String,
    created_at: i64,
    refreshed_at: i64,
    idle_expires_at: i64,
    expires_at: i64,
    generation: i64,
    lineage_secret: Vec<u8>,
    refresh_key: Vec<u8>,
    access_token_id: Vec<u8>,
    request_id: Option<String>,
    request_fingerprint: Option<Vec<u8>>,
    metadata: String,
    authentication_id: Option<Vec<u8>>,
    reauthentication_lifetime: Option<i64>,
    reauthentication_id: Option<String>,
    reauthentication_fingerprint: Option<Vec<u8>>,
    created_by: Option<String>,
    refresh_mode: String,
    extended_at: Option<i64>,
    earlier_tokens_expire_at: Option<i64>,
    ended_at: Option<i64>,
    end_reason: Option<String>,
    end_note: Option<String>,
    revision: i64,
    is_over: bool,
}

/// Returns the error for a column whose value its domain type does not allow.
fn damaged(column: &str, problem: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("{column} {problem}"))
}

fn text<T>(column: &str, text: String) -> Result<T, StoreError>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    T::try_from(text).map_err(|error| damaged(column, error))
}

fn texts<T>(column: &str, json: &str) -> Result<Vec<T>, StoreError>
where
    T: TryFrom<String>,
    T::Error: std::fmt::Display,
{
    let items: Vec<String> =
        serde_json::from_str(json).map_err(|_| damaged(column, "is not a JSON array of texts"))?;
    items.into_iter().map(|item| text(column, item)).collect()
}

pub fn bytes<const N: usize>(column: &str, bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes
        .try_into()
        .map_err(|_| damaged(column, format_args!("has {} bytes instead of {N}", bytes.len())))
}

fn span(column: &str, micros: i64) -> Result<Duration, StoreError> {
    u64::try_from(micros).map(Duration::from_micros).map_err(|_| damaged(column, "is negative"))
}

fn number(column: &str, number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| damaged(column, "is out of range"))
}

pub fn named<T>(
    column: &str,
    name: &str,
    find: impl Fn(&str) -> Option<T>,
) -> Result<T, StoreError> {
    find(name).ok_or_else(|| damaged(column, format_args!("holds the unknown name {name:?}")))
}

/// Returns a JSON array of texts.
pub fn to_json<T: Deref<Target = str>>(texts: &[T]) -> String {
    serde_json::Value::from_iter(texts.iter().map(|text| text.to_string())).to_string()
}

impl From<&Session> for SessionRow {
    fn from(session: &Session) -> Self {
        let ended = session.ended.as_ref();
        Self {
            id: session.id.bytes().to_vec(),
            tenant: session.tenant.to_string(),
            subject: session.subject.to_string(),
            client_id: session.client_id.to_string(),
            audience: to_json(&session.audience),
            scopes: to_json(&session.scopes),
            claims: session.claims.to_json(),
            acr: session.authentication.acr.to_string(),
            amr: to_json(&session.authentication.amr),
            amr_verified_at: session.authentication.amr_verified_at.to_json(),
            authenticated_at: session.authentication.at.micros(),
            user_agent: session.device.user_agent.to_string(),
            ip_address: session.device.ip_address.to_string(),
            device_label: session.device.label.to_string(),
            device_id: session.device.id.to_string(),
            policy: session.policy.name.to_string(),
            access_token_ttl: micros(session.policy.access_token_ttl),
            idle_timeout: micros(session.policy.idle_timeout),
            refresh_grace: micros(session.policy.refresh_grace),
            replay_limit: micros(session.policy.replay_limit),
            on_refresh: session.policy.on_refresh.as_str().to_owned(),
            replay: session.policy.replay.as_str().to_owned(),
            created_at: session.created_at.micros(),
            refreshed_at: session.refreshed_at.micros(),
            idle_expires_at: session.idle_expires_at.micros(),
            expires_at: session.expires_at.micros(),
            generation: session.lineage.generation.into(),
            lineage_secret: session.lineage.secret.0.to_vec(),
            refresh_key: session.lineage.key.0.to_vec(),
            access_token_id: session.access_token_id.bytes().to_vec(),
            request_id: session.request_id.as_ref().map(|id| id.to_string()),
            request_fingerprint: session
                .request_fingerprint
                .map(|fingerprint| fingerprint.0.to_vec()),
            metadata: session.metadata.to_json(),
            authentication_id: session.authentication.id.map(|id| id.bytes().to_vec()),
            reauthentication_lifetime: session.policy.reauthentication_lifetime.map(micros),
            reauthentication_id: session
                .reauthentication
                .as_ref()
                .map(|request| request.id.to_string()),
            reauthentication_fingerprint: session
                .reauthentication
                .as_ref()
                .map(|request| request.fingerprint.0.to_vec()),
            created_by: session.created_by.as_ref().map(|who| who.as_str().to_owned()),
            refresh_mode: session.policy.refresh.as_str().to_owned(),
            extended_at: session.extended_at.map(Timestamp::micros),
            earlier_tokens_expire_at: session.earlier_tokens_expire_at.map(Timestamp::micros),
            ended_at: ended.map(|ended| ended.at.micros()),
            end_reason: ended.map(|ended| ended.reason.as_str().to_owned()),
            end_note: ended.map(|ended| ended.note.to_string()),
            revision: session.revision.into(),
            is_over: ended.is_some() || session.expiry_recorded,
        }
    }
}

/// Reads the policy of a session from its columns.
fn policy(row: &SessionRow) -> Result<SessionPolicy, StoreError> {
    Ok(SessionPolicy {
        name: text("sessions.policy", row.policy.clone())?,
        access_token_ttl: span("sessions.access_token_ttl", row.access_token_ttl)?,
        idle_timeout: span("sessions.idle_timeout", row.idle_timeout)?,
        refresh: named("sessions.refresh_mode", &row.refresh_mode, RefreshMode::from_name)?,
        refresh_grace: span("sessions.refresh_grace", row.refresh_grace)?,
        replay: named("sessions.replay", &row.replay, Replay::from_name)?,
        replay_limit: span("sessions.replay_limit", row.replay_limit)?,
        on_refresh: named("sessions.on_refresh", &row.on_refresh, OnRefresh::from_name)?,
        reauthentication_lifetime: row
            .reauthentication_lifetime
            .map(|lifetime| span("sessions.reauthentication_lifetime", lifetime))
            .transpose()?,
    })
}

/// Reads the metadata of a session from their column.
pub fn metadata(json: &str) -> Result<Metadata, StoreError> {
    Metadata::try_from(object("sessions.metadata", json)?)
        .map_err(|error| damaged("sessions.metadata", error))
}

fn amr_verified_at(json: &str, amr: &[Amr]) -> Result<FactorTimes, StoreError> {
    let times = object("sessions.amr_verified_at", json)?;
    FactorTimes::from_stored(&times, amr)
        .ok_or_else(|| damaged("sessions.amr_verified_at", "has a value that is not an instant"))
}

/// Reads a request with an idempotency key from its columns.
fn identified_request(
    id: Option<String>,
    fingerprint: Option<Vec<u8>>,
) -> Result<Option<IdentifiedRequest>, StoreError> {
    let (Some(id), Some(fingerprint)) = (id, fingerprint) else { return Ok(None) };
    let fingerprint = bytes("sessions.reauthentication_fingerprint", &fingerprint)?;
    Ok(Some(IdentifiedRequest {
        id: text("sessions.reauthentication_id", id)?,
        fingerprint: RequestFingerprint(fingerprint),
    }))
}

/// Reads the party that created a session.
fn who(name: Option<String>) -> Result<Option<Who>, StoreError> {
    let read = |name| Who::from_name(name).map_err(|error| damaged("sessions.created_by", error));
    name.map(read).transpose()
}

/// Reads the authentication of a session from its columns.
fn authentication(row: &SessionRow) -> Result<Authentication, StoreError> {
    let id = row.authentication_id.as_ref();
    let id = id.map(|id| bytes("sessions.authentication_id", id)).transpose()?;
    let amr = texts("sessions.amr", &row.amr)?;
    Ok(Authentication {
        id: id.map(AuthenticationId::from_bytes),
        acr: text("sessions.acr", row.acr.clone())?,
        amr_verified_at: amr_verified_at(&row.amr_verified_at, &amr)?,
        amr,
        at: Timestamp::from_micros(row.authenticated_at),
    })
}

impl TryFrom<SessionRow> for Session {
    type Error = StoreError;

    fn try_from(row: SessionRow) -> Result<Self, StoreError> {
        let policy = policy(&row)?;
        let authentication = authentication(&row)?;
        let ended = ended(row.ended_at, row.end_reason, row.end_note)?;
        Ok(Self {
            id: SessionId::from_bytes(bytes("sessions.id", &row.id)?),
            tenant: text("sessions.tenant", row.tenant)?,
            subject: text("sessions.subject", row.subject)?,
            client_id: text("sessions.client_id", row.client_id)?,
            audience: texts("sessions.audience", &row.audience)?,
            scopes: texts("sessions.scopes", &row.scopes)?,
            claims: CustomClaims::try_from(object("sessions.claims", &row.claims)?)
                .map_err(|error| damaged("sessions.claims", error))?,
            metadata: metadata(&row.metadata)?,
            authentication,
            device: Device {
                user_agent: text("sessions.user_agent", row.user_agent)?,
                ip_address: text("sessions.ip_address", row.ip_address)?,
                label: text("sessions.device_label", row.device_label)?,
                id: text("sessions.device_id", row.device_id)?,
            },
            policy,
            created_at: Timestamp::from_micros(row.created_at),
            created_by: who(row.created_by)?,
            extended_at: row.extended_at.map(Timestamp::from_micros),
            refreshed_at: Timestamp::from_micros(row.refreshed_at),
            idle_expires_at: Timestamp::from_micros(row.idle_expires_at),
            expires_at: Timestamp::from_micros(row.expires_at),
            earlier_tokens_expire_at: row.earlier_tokens_expire_at.map(Timestamp::from_micros),
            lineage: Lineage {
                generation: number("sessions.generation", row.generation)?,
                secret: LineageSecret(bytes("sessions.lineage_secret", &row.lineage_secret)?),
                key: RefreshKeyId(bytes("sessions.refresh_key", &row.refresh_key)?),
            },
            access_token_id: TokenId::from_bytes(bytes(
                "sessions.access_token_id",
                &row.access_token_id,
            )?),
            request_id: row.request_id.map(|id| text("sessions.request_id", id)).transpose()?,
            request_fingerprint: row
                .request_fingerprint
                .map(|digest| {
                    bytes("sessions.request_fingerprint", &digest).map(RequestFingerprint)
                })
                .transpose()?,
            reauthentication: identified_request(
                row.reauthentication_id,
                row.reauthentication_fingerprint,
            )?,
            expiry_recorded: row.is_over && ended.is_none(),
            ended,
            revision: number("sessions.revision", row.revision)?,
        })
    }
}

fn ended(
    at: Option<i64>,
    reason: Option<String>,
    note: Option<String>,
) -> Result<Option<Ended>, StoreError> {
    match (at, reason) {
        (Some(at), Some(reason)) => Ok(Some(Ended {
            at: Timestamp::from_micros(at),
            reason: named("sessions.end_reason", &reason, EndReason::from_name)?,
            note: text("sessions.end_note", note.unwrap_or_default())?,
        })),
        (None, None) => Ok(None),
        _ => Err(damaged("sessions.ended_at", "and end_reason are not set together")),
    }
}

fn object(
    column: &str,
    json: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, StoreError> {
    serde_json::from_str(json).map_err(|_| damaged(column, "is not a JSON object"))
}

const SESSION: &str = "session";
const TOKEN: &str = "token";

#[derive(Insertable)]
#[diesel(table_name = blacklist)]
pub struct NewBlacklistRow {
    pub kind: &'static str,
    pub key: Vec<u8>,
    up_to: Option<i64>,
    tenant: String,
    subject: Option<String>,
    session_id: Option<Vec<u8>>,
    reason: &'static str,
    note: String,
    revoked_at: i64,
    expires_at: i64,
    unfinished: bool,
    ended_sessions: i64,
    walked_at: Option<i64>,
}

/// A row of the blacklist that a new row with the same kind and key replaces.
#[derive(Queryable, Selectable)]
#[diesel(table_name = blacklist)]
pub struct EarlierRow {
    up_to: Option<i64>,
    session_id: Option<Vec<u8>>,
    reason: String,
    note: String,
    revoked_at: i64,
    expires_at: i64,
    unfinished: bool,
    ended_sessions: i64,
    walked_at: Option<i64>,
}

impl EarlierRow {
    /// Returns the parts that the new entry takes over.
    pub fn entry(&self) -> Result<EarlierEntry, StoreError> {
        let cut_off =
            self.up_to.map(|up_to| cut_off(up_to, self.session_id.as_deref())).transpose()?;
        let expires_at = Timestamp::from_micros(self.expires_at);
        Ok(EarlierEntry { cut_off, expires_at, unfinished: self.unfinished })
    }

    /// Returns the time, reason and note of the end of the sessions that the entry covers.
    pub fn end(&self) -> Result<Ended, StoreError> {
        Ok(Ended {
            at: Timestamp::from_micros(self.revoked_at),
            reason: named("blacklist.reason", &self.reason, EndReason::from_name)?,
            note: text("blacklist.note", self.note.clone())?,
        })
    }
}

/// Returns the kind and the key that identify an entry.
pub fn revoked_key(revoked: &Revoked) -> (&'static str, Vec<u8>) {
    match revoked {
        Revoked::Session(id) => (SESSION, id.bytes().to_vec()),
        Revoked::Token(id) => (TOKEN, id.bytes().to_vec()),
        Revoked::Sessions { key, .. } => cut_off_key(&key.borrowed()),
    }
}

/// Returns the kind and the key that identify the entry of a cut-off.
pub fn cut_off_key(key: &KeyRef<'_>) -> (&'static str, Vec<u8>) {
    (key.kind.as_str(), key.text().into_bytes())
}

impl NewBlacklistRow {
    /// Creates the row of an entry, which replaces an earlier row if there is one. The progress of
    /// an unfinished entry goes on.
    pub fn new(entry: &BlacklistEntry, earlier: Option<&EarlierRow>) -> Self {
        let ended_sessions = earlier.filter(|earlier| earlier.unfinished);
        let cut_off = entry.revoked.cut_off();
        let session_id = cut_off.map_or(entry.session_id, |cut_off| cut_off.spared);
        let (kind, key) = revoked_key(&entry.revoked);
        Self {
            kind,
            key,
            up_to: cut_off.map(|cut_off| cut_off.up_to.micros()),
            tenant: entry.tenant.to_string(),
            subject: entry.subject.as_ref().map(|subject| subject.to_string()),
            session_id: session_id.map(|id| id.bytes().to_vec()),
            reason: entry.reason.as_str(),
            note: entry.note.to_string(),
            revoked_at: entry.revoked_at.micros(),
            expires_at: entry.expires_at.micros(),
            unfinished: entry.unfinished,
            ended_sessions: ended_sessions.map_or(0, |earlier| earlier.ended_sessions),
            walked_at: earlier.and_then(|earlier| earlier.walked_at),
        }
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = blacklist)]
pub struct FeedRow {
    seq: i64,
    kind: String,
    key: Vec<u8>,
    up_to: Option<i64>,
    session_id: Option<Vec<u8>>,
    expires_at: i64,
    tenant: String,
}

/// Converts the columns of a cut-off.
pub fn cut_off(up_to: i64, session_id: Option<&[u8]>) -> Result<CutOff, StoreError> {
    let spared = session_id
        .map(|id| bytes("blacklist.session_id", id).map(SessionId::from_bytes))
        .transpose()?;
    Ok(CutOff { up_to: Timestamp::from_micros(up_to), spared })
}

/// Reads the kind and the key of a cut-off.
fn read_cut_off_key(kind: &str, key: Vec<u8>) -> Result<CutOffKey, StoreError> {
    let kind = named("blacklist.kind", kind, CutOffKind::from_name)?;
    let key = String::from_utf8(key).map_err(|_| damaged("blacklist.key", "is not UTF-8"))?;
    CutOffKey::read(kind, &key).map_err(|problem| damaged("blacklist.key", problem))
}

impl TryFrom<FeedRow> for FeedEntry {
    type Error = StoreError;

    fn try_from(row: FeedRow) -> Result<Self, StoreError> {
        let revoked = match (row.kind.as_str(), row.up_to) {
            (SESSION, None) => {
                Revoked::Session(SessionId::from_bytes(bytes("blacklist.key", &row.key)?))
            }
            (TOKEN, None) => Revoked::Token(TokenId::from_bytes(bytes("blacklist.key", &row.key)?)),
            (kind, Some(up_to)) => Revoked::Sessions {
                key: read_cut_off_key(kind, row.key)?,
                cut_off: cut_off(up_to, row.session_id.as_deref())?,
            },
            (kind, None) => {
                return Err(damaged("blacklist.kind", format_args!("holds {kind:?}")));
            }
        };
        Ok(Self {
            seq: Seq(row.seq),
            tenant: FeedEntry::tenant_of(&revoked, row.tenant)
                .map_err(|problem| damaged("blacklist.tenant", problem))?,
            revoked,
            expires_at: Timestamp::from_micros(row.expires_at),
        })
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = blacklist)]
pub struct CutOffRow {
    seq: i64,
    kind: String,
    key: Vec<u8>,
    up_to: Option<i64>,
    session_id: Option<Vec<u8>>,
    reason: String,
    note: String,
    revoked_at: i64,
    expires_at: i64,
    unfinished: bool,
    ended_sessions: i64,
}

impl TryFrom<CutOffRow> for CutOffEntry {
    type Error = StoreError;

    fn try_from(row: CutOffRow) -> Result<Self, StoreError> {
        let up_to = row
            .up_to
            .ok_or_else(|| damaged("blacklist.up_to", "is not set for the entry of a cut-off"))?;
        Ok(Self {
            seq: Seq(row.seq),
            key: read_cut_off_key(&row.kind, row.key)?,
            cut_off: cut_off(up_to, row.session_id.as_deref())?,
            expires_at: Timestamp::from_micros(row.expires_at),
            ended: Ended {
                at: Timestamp::from_micros(row.revoked_at),
                reason: named("blacklist.reason", &row.reason, EndReason::from_name)?,
                note: text("blacklist.note", row.note)?,
            },
            ended_sessions: row.ended_sessions,
            unfinished: row.unfinished,
        })
    }
}

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = signing_keys)]
pub struct KeyRow {
    kid: String,
    purpose: String,
    algorithm: String,
    sealed: Vec<u8>,
    created_at: i64,
    activated_at: Option<i64>,
    retired_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl From<SealedKey> for KeyRow {
    fn from(SealedKey { key, sealed }: SealedKey) -> Self {
        Self {
            purpose: key.purpose().as_str().to_owned(),
            kid: key.kid,
            algorithm: key.algorithm.as_str().to_owned(),
            sealed,
            created_at: key.created_at.micros(),
            activated_at: key.activated_at.map(Timestamp::micros),
            retired_at: key.retired_at.map(Timestamp::micros),
            revoked_at: key.revoked_at.map(Timestamp::micros),
        }
    }
}

impl KeyRow {
    /// Returns the row together with the name of its key.
    pub fn named(self) -> (String, Self) {
        (self.kid.clone(), self)
    }
}

impl TryFrom<KeyRow> for SealedKey {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<Self, StoreError> {
        let of_purpose = |algorithm: &str| KeyAlgorithm::for_purpose(algorithm, &row.purpose);
        let algorithm = named("signing_keys.algorithm", &row.algorithm, of_purpose)?;
        let key = Key {
            algorithm,
            kid: row.kid,
            created_at: Timestamp::from_micros(row.created_at),
            activated_at: row.activated_at.map(Timestamp::from_micros),
            retired_at: row.retired_at.map(Timestamp::from_micros),
            revoked_at: row.revoked_at.map(Timestamp::from_micros),
        };
        Ok(Self { key, sealed: row.sealed })
    }
}
