//! Converts rows to domain types and back.

use std::{fmt, ops::Deref, time::Duration};

use diesel::{
    data_types::{PgInterval, PgTimestamp},
    deserialize::{self, FromSql, FromSqlRow},
    pg::{Pg, PgValue},
    prelude::{Insertable, Queryable, Selectable},
    sql_types::{Binary, Jsonb, Nullable, Text, Timestamptz},
};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::schema::{blacklist, sessions, signing_keys};
use crate::{
    domain::{
        claims::CustomClaims,
        cut_off::{CutOff, CutOffKey, CutOffKind},
        factors::FactorTimes,
        ids::{AuthenticationId, SessionId, TokenId},
        key::{Key, KeyAlgorithm, RefreshKeyId, SealedKey},
        metadata::Metadata,
        policy::{OnRefresh, RefreshMode, Replay, SessionPolicy},
        revocation::{Revoked, Seq},
        session::{
            Authentication, Device, EndReason, Ended, IdentifiedRequest, Lineage, LineageSecret,
            RequestFingerprint, Session,
        },
        text::Amr,
        time::{Timestamp, micros},
        who::Who,
    },
    store::{CutOffEntry, StoreError},
};

/// The instant from which PostgreSQL counts time, in microseconds of Unix time:
/// 2000-01-01T00:00:00Z.
const EPOCH: i64 = 946_684_800_000_000;
/// The first and the last instant that PostgreSQL can store: 4714-11-24 BC and the end of 294276.
const FIRST: i64 = -211_813_488_000_000_000;
const LAST: i64 = 9_223_371_331_199_999_999;

pub fn instant(at: Timestamp) -> PgTimestamp {
    PgTimestamp(at.micros().saturating_sub(EPOCH).clamp(FIRST, LAST))
}

pub fn timestamp(instant: PgTimestamp) -> Timestamp {
    Timestamp::from_micros(instant.0.saturating_add(EPOCH))
}

/// Converts a duration to an interval that has only microseconds. It has no days, because the
/// length of a day depends on the calendar.
pub fn interval(span: Duration) -> PgInterval {
    PgInterval::from_microseconds(micros(span))
}

pub fn uuid(bytes: &[u8; 16]) -> Uuid {
    Uuid::from_bytes(*bytes)
}

/// Encodes several texts as one array literal (`{"a","b"}`), because `unnest` would flatten an
/// array of arrays.
pub fn array<'a, T: Deref<Target = str> + 'a>(texts: impl IntoIterator<Item = &'a T>) -> String {
    let mut literal = String::from("{");
    for (n, text) in texts.into_iter().enumerate() {
        literal.push_str(if n == 0 { "\"" } else { ",\"" });
        for character in text.chars() {
            if matches!(character, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal.push('"');
    }
    literal.push('}');
    literal
}

/// The text of a `jsonb` value that has not been decoded. All rows of a page are loaded before the
/// first one is converted, and decoded JSON may take many times as much memory as its text.
#[derive(FromSqlRow)]
pub struct JsonbText(String);

impl FromSql<Jsonb, Pg> for JsonbText {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        // The binary format is a version and the text (`jsonb_recv` in PostgreSQL's `jsonb.c`).
        match value.as_bytes().split_first() {
            Some((1, text)) => Ok(Self(str::from_utf8(text)?.to_owned())),
            _ => Err("the version of a jsonb value is not 1".into()),
        }
    }
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
pub struct SessionRow {
    id: Uuid,
    access_token_id: Uuid,
    authenticated_at: PgTimestamp,
    created_at: PgTimestamp,
    refreshed_at: PgTimestamp,
    idle_expires_at: PgTimestamp,
    expires_at: PgTimestamp,
    access_token_ttl: PgInterval,
    idle_timeout: PgInterval,
    refresh_grace: PgInterval,
    replay_limit: PgInterval,
    generation: i64,
    revision: i64,
    tenant: String,
    subject: String,
    client_id: String,
    audience: Vec<String>,
    scopes: Vec<String>,
    claims: JsonbText,
    acr: String,
    amr: Vec<String>,
    user_agent: String,
    ip_address: String,
    device_label: String,
    policy: String,
    on_refresh: String,
    replay: String,
    lineage_secret: Vec<u8>,
    refresh_key: Vec<u8>,
    request_id: Option<String>,
    request_fingerprint: Option<Vec<u8>>,
    metadata: JsonbText,
    reauthentication_lifetime: Option<PgInterval>,
    created_by: Option<String>,
    refresh_mode: String,
    amr_verified_at: JsonbText,
    device_id: String,
    authentication_id: Option<Uuid>,
    reauthentication_id: Option<String>,
    reauthentication_fingerprint: Option<Vec<u8>>,
    extended_at: Option<PgTimestamp>,
    earlier_tokens_expire_at: Option<PgTimestamp>,
    ended_at: Option<PgTimestamp>,
    end_reason: Option<String>,
    end_note: Option<String>,
    is_over: bool,
}

/// Returns the error for a column whose value its domain type does not allow.
pub fn damaged(column: &str, problem: impl fmt::Display) -> StoreError {
    StoreError::Damaged(format!("{column} {problem}"))
}

fn text<T>(column: &str, text: String) -> Result<T, StoreError>
where
    T: TryFrom<String>,
    T::Error: fmt::Display,
{
    T::try_from(text).map_err(|error| damaged(column, error))
}

fn texts<T>(column: &str, items: Vec<String>) -> Result<Vec<T>, StoreError>
where
    T: TryFrom<String>,
    T::Error: fmt::Display,
{
    items.into_iter().map(|item| text(column, item)).collect()
}

fn bytes<const N: usize>(column: &str, bytes: &[u8]) -> Result<[u8; N], StoreError> {
    bytes
        .try_into()
        .map_err(|_| damaged(column, format_args!("has {} bytes instead of {N}", bytes.len())))
}

/// Converts an interval. A day counts as 24 hours, as in UTC. An interval with months is refused,
/// because the length of a month varies.
fn span(column: &str, interval: PgInterval) -> Result<Duration, StoreError> {
    const DAY: i64 = 86_400_000_000;
    let total = i64::from(interval.days)
        .checked_mul(DAY)
        .and_then(|days| days.checked_add(interval.microseconds));
    match total.map(u64::try_from) {
        Some(Ok(total)) if interval.months == 0 => Ok(Duration::from_micros(total)),
        _ => Err(damaged(column, "is negative, or has months or years")),
    }
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

impl SessionRow {
    /// Returns the identifier of the session, even if the row is damaged.
    pub fn id(&self) -> SessionId {
        SessionId::from_bytes(self.id.into_bytes())
    }
}

/// Reads the end of a session from its columns. Returns none if the session has not ended.
fn ended(
    at: Option<PgTimestamp>,
    reason: Option<String>,
    note: Option<String>,
) -> Result<Option<Ended>, StoreError> {
    match (at, reason) {
        (Some(at), Some(reason)) => Ok(Some(Ended {
            at: timestamp(at),
            reason: named("sessions.end_reason", &reason, EndReason::from_name)?,
            note: text("sessions.end_note", note.unwrap_or_default())?,
        })),
        (None, None) => Ok(None),
        _ => Err(damaged("sessions.ended_at", "and end_reason are not set together")),
    }
}

fn object(column: &str, json: &JsonbText) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_str(&json.0).map_err(|_| damaged(column, "is not a JSON object"))
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
pub fn metadata(json: &JsonbText) -> Result<Metadata, StoreError> {
    Metadata::try_from(object("sessions.metadata", json)?)
        .map_err(|error| damaged("sessions.metadata", error))
}

fn amr_verified_at(json: &JsonbText, amr: &[Amr]) -> Result<FactorTimes, StoreError> {
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

impl TryFrom<SessionRow> for Session {
    type Error = StoreError;

    fn try_from(row: SessionRow) -> Result<Self, StoreError> {
        let id = row.id();
        let policy = policy(&row)?;
        let ended = ended(row.ended_at, row.end_reason, row.end_note)?;
        let amr = texts("sessions.amr", row.amr)?;
        let amr_verified_at = amr_verified_at(&row.amr_verified_at, &amr)?;
        Ok(Self {
            id,
            tenant: text("sessions.tenant", row.tenant)?,
            subject: text("sessions.subject", row.subject)?,
            client_id: text("sessions.client_id", row.client_id)?,
            audience: texts("sessions.audience", row.audience)?,
            scopes: texts("sessions.scopes", row.scopes)?,
            claims: CustomClaims::try_from(object("sessions.claims", &row.claims)?)
                .map_err(|error| damaged("sessions.claims", error))?,
            metadata: metadata(&row.metadata)?,
            authentication: Authentication {
                id: row.authentication_id.map(|id| AuthenticationId::from_bytes(id.into_bytes())),
                acr: text("sessions.acr", row.acr)?,
                amr,
                amr_verified_at,
                at: timestamp(row.authenticated_at),
            },
            device: Device {
                user_agent: text("sessions.user_agent", row.user_agent)?,
                ip_address: text("sessions.ip_address", row.ip_address)?,
                label: text("sessions.device_label", row.device_label)?,
                id: text("sessions.device_id", row.device_id)?,
            },
            policy,
            created_at: timestamp(row.created_at),
            created_by: who(row.created_by)?,
            extended_at: row.extended_at.map(timestamp),
            refreshed_at: timestamp(row.refreshed_at),
            idle_expires_at: timestamp(row.idle_expires_at),
            expires_at: timestamp(row.expires_at),
            earlier_tokens_expire_at: row.earlier_tokens_expire_at.map(timestamp),
            lineage: Lineage {
                generation: number("sessions.generation", row.generation)?,
                secret: LineageSecret(bytes("sessions.lineage_secret", &row.lineage_secret)?),
                key: RefreshKeyId(bytes("sessions.refresh_key", &row.refresh_key)?),
            },
            access_token_id: TokenId::from_bytes(row.access_token_id.into_bytes()),
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

const SESSION: &str = "session";
const TOKEN: &str = "token";

/// Returns the kind and the key that identify an entry.
pub fn revoked_key(revoked: &Revoked) -> (&'static str, String) {
    match revoked {
        Revoked::Session(id) => (SESSION, id.to_string()),
        Revoked::Token(id) => (TOKEN, id.to_string()),
        Revoked::Sessions { key, .. } => (key.kind().as_str(), key.borrowed().text()),
    }
}

/// Reads the columns of an entry, and returns what the entry revokes.
pub fn revoked(
    kind: &str,
    key: String,
    up_to: Option<PgTimestamp>,
    session_id: Option<Uuid>,
) -> Result<Revoked, StoreError> {
    let not_an_id = |error| damaged("blacklist.key", error);
    match (kind, up_to) {
        (SESSION, None) => Ok(Revoked::Session(key.parse().map_err(not_an_id)?)),
        (TOKEN, None) => Ok(Revoked::Token(key.parse().map_err(not_an_id)?)),
        (kind, Some(up_to)) => {
            let (key, cut_off) = cut_off(kind, &key, up_to, session_id)?;
            Ok(Revoked::Sessions { key, cut_off })
        }
        (kind, None) => Err(damaged("blacklist.kind", format_args!("holds {kind:?}"))),
    }
}

/// Reads the columns of the entry of a cut-off.
pub fn cut_off(
    kind: &str,
    key: &str,
    up_to: PgTimestamp,
    session_id: Option<Uuid>,
) -> Result<(CutOffKey, CutOff), StoreError> {
    let kind = named("blacklist.kind", kind, CutOffKind::from_name)?;
    let key = CutOffKey::read(kind, key).map_err(|problem| damaged("blacklist.key", problem))?;
    let spared = session_id
        .filter(|_| kind == CutOffKind::Subject)
        .map(|id| SessionId::from_bytes(id.into_bytes()));
    Ok((key, CutOff { up_to: timestamp(up_to), spared }))
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = blacklist)]
pub struct CutOffRow {
    seq: i64,
    session_id: Option<Uuid>,
    up_to: Option<PgTimestamp>,
    revoked_at: PgTimestamp,
    expires_at: PgTimestamp,
    kind: String,
    key: String,
    reason: String,
    note: String,
    unfinished: bool,
    ended_sessions: i64,
}

impl TryFrom<CutOffRow> for CutOffEntry {
    type Error = StoreError;

    fn try_from(row: CutOffRow) -> Result<Self, StoreError> {
        let up_to = row
            .up_to
            .ok_or_else(|| damaged("blacklist.up_to", "is not set for the entry of a cut-off"))?;
        let (key, cut_off) = cut_off(&row.kind, &row.key, up_to, row.session_id)?;
        Ok(Self {
            seq: Seq(row.seq),
            key,
            cut_off,
            ended: Ended {
                at: timestamp(row.revoked_at),
                reason: named("blacklist.reason", &row.reason, EndReason::from_name)?,
                note: text("blacklist.note", row.note)?,
            },
            expires_at: timestamp(row.expires_at),
            ended_sessions: row.ended_sessions,
            unfinished: row.unfinished,
        })
    }
}

#[derive(Insertable)]
#[diesel(table_name = signing_keys)]
pub struct KeyRow {
    kid: String,
    purpose: String,
    algorithm: String,
    sealed: Vec<u8>,
    created_at: PgTimestamp,
    activated_at: Option<PgTimestamp>,
    retired_at: Option<PgTimestamp>,
    revoked_at: Option<PgTimestamp>,
}

impl From<SealedKey> for KeyRow {
    fn from(SealedKey { key, sealed }: SealedKey) -> Self {
        Self {
            purpose: key.purpose().as_str().to_owned(),
            kid: key.kid,
            algorithm: key.algorithm.as_str().to_owned(),
            sealed,
            created_at: instant(key.created_at),
            activated_at: key.activated_at.map(instant),
            retired_at: key.retired_at.map(instant),
            revoked_at: key.revoked_at.map(instant),
        }
    }
}

/// The columns of a row of `signing_keys`, in the order in which they are selected.
pub type KeyTuple = (
    PgTimestamp,
    String,
    String,
    String,
    Vec<u8>,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
    Option<PgTimestamp>,
);
type OptionalInstant = Nullable<Timestamptz>;
/// The SQL types of a [`KeyTuple`].
pub type SqlKey =
    (Timestamptz, Text, Text, Text, Binary, OptionalInstant, OptionalInstant, OptionalInstant);

impl From<KeyTuple> for KeyRow {
    fn from(
        (created_at, kid, purpose, algorithm, sealed, activated_at, retired_at, revoked_at): KeyTuple,
    ) -> Self {
        Self { kid, purpose, algorithm, sealed, created_at, activated_at, retired_at, revoked_at }
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
            created_at: timestamp(row.created_at),
            activated_at: row.activated_at.map(timestamp),
            retired_at: row.retired_at.map(timestamp),
            revoked_at: row.revoked_at.map(timestamp),
        };
        Ok(Self { key, sealed: row.sealed })
    }
}
