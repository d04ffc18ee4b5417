//! The statements that all writes are made of. Each takes as many rows as there are, and its text never changes.
//!
//! Locks are taken in one order everywhere, so that nobody waits for each other: subjects, requests, sessions by their
//! identifiers, and the head of the feed last.

use std::collections::HashMap;

use diesel::{
    BoolExpressionMethods, ExpressionMethods, QueryDsl, SelectableHelper,
    data_types::PgTimestamp,
    sql_types::{Array, BigInt, Binary, Interval, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{
    claims::to_jsonb,
    pool::{Fault, Lease},
    rows::{SessionRow, TENANT, array, instant, interval, revoked_key, timestamp, uuid},
    schema::{blacklist, sessions},
    sql::{first_uncovered, statement},
};
use crate::{
    domain::{
        ids::SessionId,
        revocation::{BlacklistEntry, Place, Revoked, Seq, Timeline},
        session::Session,
        text::Tenant,
        time::Timestamp,
    },
    mutants::broken,
    store::{Creation, StoreError},
};

type OptionalText = Nullable<Text>;
type OptionalInstant = Nullable<Timestamptz>;

/// Reads sessions and keeps others from changing them until the transaction ends.
pub async fn lock(lease: &mut Lease<'_>, ids: &[SessionId]) -> Result<HashMap<SessionId, Session>, Fault> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<_> = ids.iter().map(|id| uuid(id.bytes())).collect();
    let rows: Vec<SessionRow> = sessions::table
        .filter(sessions::id.eq_any(ids))
        .order(sessions::id.asc())
        .for_update()
        .select(SessionRow::as_select())
        .load(&mut **lease)
        .await?;
    rows.into_iter().map(|row| Ok((row.id(), Session::try_from(row)?))).collect()
}

/// Writes everything of locked sessions that ever changes.
pub async fn save(lease: &mut Lease<'_>, changed: &[Session]) -> Result<(), Fault> {
    if changed.is_empty() {
        return Ok(());
    }
    fn column<'a, T>(changed: &'a [Session], of: impl Fn(&'a Session) -> T) -> Vec<T> {
        changed.iter().map(of).collect()
    }
    let ended = |session: &Session| session.ended.clone();
    statement::<()>(
        "UPDATE sessions AS s SET refreshed_at = given.refreshed_at, idle_expires_at = given.idle_expires_at, \
         sweep_on = least(s.sweep_on, given.idle_expires_at, given.ended_at), generation = given.generation, \
         refresh_key = given.refresh_key, access_token_id = given.access_token_id, user_agent = given.user_agent, \
         ip_address = given.ip_address, device_label = given.device_label, ended_at = given.ended_at, \
         end_reason = given.end_reason, end_note = given.end_note, revision = given.revision \
         FROM unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) AS given (id, refreshed_at, idle_expires_at, generation, \
         refresh_key, access_token_id, user_agent, ip_address, device_label, ended_at, end_reason, end_note, revision) \
         WHERE s.id = given.id",
    )
    .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.id.bytes())))
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.refreshed_at)))
    .bind::<Array<Timestamptz>, _>(column(changed, |session| instant(session.idle_expires_at)))
    .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.lineage.generation)))
    .bind::<Array<Binary>, _>(column(changed, |session| session.lineage.key.0.to_vec()))
    .bind::<Array<SqlUuid>, _>(column(changed, |session| uuid(session.access_token_id.bytes())))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.device.user_agent))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.device.ip_address))
    .bind::<Array<Text>, _>(column(changed, |session| &*session.device.label))
    .bind::<Array<OptionalInstant>, _>(column(changed, |session| ended(session).map(|ended| instant(ended.at))))
    .bind::<Array<OptionalText>, _>(column(changed, |session| ended(session).map(|ended| ended.reason.as_str())))
    .bind::<Array<OptionalText>, _>(column(changed, |session| ended(session).map(|ended| ended.note.into_string())))
    .bind::<Array<BigInt>, _>(column(changed, |session| i64::from(session.revision)))
    .execute(&mut **lease)
    .await?;
    Ok(())
}

/// The statement that writes entries behind the head of the feed.
macro_rules! insertion {
    ($head:literal) => {
        concat!(
            "WITH head AS (",
            $head,
            ") \
         INSERT INTO blacklist AS b \
         (seq, kind, key, up_to, tenant, subject, session_id, reason, note, revoked_at, expires_at) \
         SELECT head.seq + given.place, given.kind, given.key, given.up_to, given.tenant, given.subject, \
         given.session_id, given.reason, given.note, given.revoked_at, given.expires_at \
         FROM head, unnest(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) WITH ORDINALITY AS given \
         (kind, key, up_to, tenant, subject, session_id, reason, note, revoked_at, expires_at, place) \
         ON CONFLICT (kind, key) DO UPDATE SET seq = excluded.seq, up_to = greatest(b.up_to, excluded.up_to), \
         tenant = excluded.tenant, subject = excluded.subject, session_id = excluded.session_id, \
         reason = excluded.reason, note = excluded.note, revoked_at = excluded.revoked_at, \
         expires_at = greatest(b.expires_at, excluded.expires_at) RETURNING b.seq, feed_timeline()"
        )
    };
}

/// Writes blacklist entries, each in the place of an older one for the same thing, and returns their places in the feed.
///
/// This locks the head of the feed until the commit, so it comes last: then the order of the entries is the order of the
/// commits, and a reader who has seen one has seen all before it.
pub async fn insert_entries(lease: &mut Lease<'_>, entries: &[BlacklistEntry]) -> Result<Vec<Place>, Fault> {
    if entries.is_empty() {
        return Ok(vec![]);
    }
    // One statement cannot write a row twice, so what is stopped twice gets one entry, the later one.
    let mut rows: Vec<BlacklistEntry> = vec![];
    let mut keys = vec![];
    let mut known = HashMap::new();
    let mut offsets = Vec::with_capacity(entries.len());
    for entry in entries {
        let place = *known.entry(revoked_key(&entry.revoked)).or_insert_with_key(|key| {
            keys.push(key.clone());
            rows.push(entry.clone());
            rows.len() - 1
        });
        if let Some(row) = rows.get_mut(place) {
            *row = later_of(row, entry);
        }
        offsets.push(i64::try_from(place).unwrap_or(i64::MAX));
    }
    let count = i64::try_from(rows.len()).unwrap_or(i64::MAX);

    fn column<'a, T>(rows: &'a [BlacklistEntry], of: impl Fn(&'a BlacklistEntry) -> T) -> Vec<T> {
        rows.iter().map(of).collect()
    }
    let up_to = |entry: &BlacklistEntry| match &entry.revoked {
        Revoked::Tenant { up_to, .. } => Some(instant(*up_to)),
        Revoked::Session(_) | Revoked::Token(_) => None,
    };
    let text = match broken("feed-by-bigserial") {
        true => insertion!("SELECT nextval('broken_feed') + 0 * (?::bigint + ?::bigint) AS seq"),
        false => insertion!("UPDATE feed_head SET seq = seq + ? RETURNING seq - ? AS seq"),
    };
    let written: Vec<(i64, i64)> = statement::<(BigInt, BigInt)>(text)
        .bind::<BigInt, _>(count)
        .bind::<BigInt, _>(count)
        .bind::<Array<Text>, _>(keys.iter().map(|(kind, _)| *kind).collect::<Vec<_>>())
        .bind::<Array<Text>, _>(keys.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>())
        .bind::<Array<OptionalInstant>, _>(column(&rows, up_to))
        .bind::<Array<Text>, _>(column(&rows, |entry| &*entry.tenant))
        .bind::<Array<OptionalText>, _>(column(&rows, |entry| entry.subject.as_deref()))
        .bind::<Array<Nullable<SqlUuid>>, _>(column(&rows, |entry| entry.session_id.map(|id| uuid(id.bytes()))))
        .bind::<Array<Text>, _>(column(&rows, |entry| entry.reason.as_str()))
        .bind::<Array<Text>, _>(column(&rows, |entry| &*entry.note))
        .bind::<Array<Timestamptz>, _>(column(&rows, |entry| instant(entry.revoked_at)))
        .bind::<Array<Timestamptz>, _>(column(&rows, |entry| instant(entry.expires_at)))
        .load(&mut **lease)
        .await?;
    match written.iter().min() {
        Some((first, timeline)) if written.len() == rows.len() => {
            let place = |offset| Place { timeline: Timeline(*timeline), seq: Seq(first + offset) };
            Ok(offsets.into_iter().map(place).collect())
        }
        _ => Err(StoreError::Damaged("feed_head does not have one row".to_owned()).into()),
    }
}

/// Of two entries for the same thing the newer one, kept as long as either.
fn later_of(one: &BlacklistEntry, newer: &BlacklistEntry) -> BlacklistEntry {
    let mut entry = newer.clone();
    entry.expires_at = one.expires_at.max(newer.expires_at);
    if let (Revoked::Tenant { up_to: before, .. }, Revoked::Tenant { up_to, .. }) = (&one.revoked, &mut entry.revoked) {
        *up_to = (*up_to).max(*before);
    }
    entry
}

/// The last instants that the entries of tenants cover, of those that have one.
pub async fn tenants_up_to<'a>(
    lease: &mut Lease<'_>,
    tenants: impl IntoIterator<Item = &'a Tenant>,
) -> Result<HashMap<String, Timestamp>, Fault> {
    let mut names: Vec<&str> = tenants.into_iter().map(|tenant| &**tenant).collect();
    names.sort_unstable();
    names.dedup();
    let rows: Vec<(String, Option<PgTimestamp>)> = blacklist::table
        .filter(blacklist::kind.eq(TENANT).and(blacklist::key.eq_any(names)))
        .select((blacklist::key, blacklist::up_to))
        .load(&mut **lease)
        .await?;
    Ok(rows.into_iter().filter_map(|(name, up_to)| Some((name, timestamp(up_to?)))).collect())
}

/// The setting by which a transaction says that it has its turn with the subjects that it creates sessions of.
macro_rules! turn {
    () => {
        "countersign.turn"
    };
}
pub(super) use turn;

/// Writes new sessions, and returns which. It leaves out those whose request was made before, those that the revocation of
/// their tenant covers, and of limited subjects those that may be too many, or all of them outside of their turn.
pub async fn insert_sessions(lease: &Lease<'_>, creations: &[&Creation]) -> Result<Vec<SessionId>, Fault> {
    // How many others each may find there: those of its subject that come before it will be there, too.
    let mut before = HashMap::new();
    let mut given: Vec<(&Session, Option<i64>)> = Vec::with_capacity(creations.len());
    for Creation { session, max_sessions, .. } in creations {
        let before: &mut i64 = before.entry((&*session.tenant, &*session.subject)).or_default();
        *before += 1;
        given.push((session, (*max_sessions > 0).then(|| i64::from(*max_sessions) - *before)));
    }
    given.sort_by_key(|(session, _)| (&session.tenant, &session.request_id));
    fn column<'a, T>(given: &[(&'a Session, Option<i64>)], of: impl Fn(&'a Session) -> T) -> Vec<T> {
        given.iter().map(|(session, _)| of(session)).collect()
    }
    let g = &given;
    let mut connection: &AsyncPgConnection = lease;
    let ids: Vec<uuid::Uuid> = statement::<SqlUuid>(concat!(
        "INSERT INTO sessions (id, access_token_id, authenticated_at, created_at, refreshed_at, idle_expires_at, \
         expires_at, sweep_on, access_token_ttl, idle_timeout, refresh_grace, generation, revision, tenant, subject, \
         client_id, audience, scopes, claims, acr, amr, user_agent, ip_address, device_label, policy, on_refresh, \
         lineage_secret, refresh_key, request_id) \
         SELECT id, access_token_id, authenticated_at, created_at, refreshed_at, idle_expires_at, \
         expires_at, idle_expires_at, access_token_ttl, idle_timeout, refresh_grace, generation, revision, tenant, subject, \
         client_id, audience::text[], scopes::text[], claims::jsonb, acr, amr::text[], user_agent, ip_address, \
         device_label, policy, on_refresh, lineage_secret, refresh_key, request_id \
         FROM (SELECT unnest(?) AS id, unnest(?) AS access_token_id, unnest(?) AS authenticated_at, \
         unnest(?) AS created_at, unnest(?) AS refreshed_at, unnest(?) AS idle_expires_at, unnest(?) AS expires_at, \
         unnest(?) AS access_token_ttl, unnest(?) AS idle_timeout, unnest(?) AS refresh_grace, \
         unnest(?) AS generation, unnest(?) AS revision, unnest(?) AS tenant, unnest(?) AS subject, \
         unnest(?) AS client_id, unnest(?) AS audience, unnest(?) AS scopes, unnest(?) AS claims, unnest(?) AS acr, \
         unnest(?) AS amr, unnest(?) AS user_agent, unnest(?) AS ip_address, unnest(?) AS device_label, \
         unnest(?) AS policy, unnest(?) AS on_refresh, unnest(?) AS lineage_secret, unnest(?) AS refresh_key, \
         unnest(?) AS request_id, unnest(?) AS most_others) AS new \
         WHERE (most_others IS NULL OR (SELECT current_setting('",
        turn!(),
        "', true) = 'taken') AND (SELECT count(*) FROM sessions AS s WHERE s.tenant = new.tenant \
         AND s.subject = new.subject AND s.ended_at IS NULL AND s.idle_expires_at > new.created_at) <= most_others) \
         AND (SELECT new.id < ",
        first_uncovered!(),
        " FROM blacklist AS b WHERE b.kind = 'tenant' AND b.key = new.tenant) IS NOT TRUE \
         ON CONFLICT (tenant, request_id) WHERE request_id IS NOT NULL DO NOTHING RETURNING id"
    ))
    .bind::<Array<SqlUuid>, _>(column(g, |s| uuid(s.id.bytes())))
    .bind::<Array<SqlUuid>, _>(column(g, |s| uuid(s.access_token_id.bytes())))
    .bind::<Array<Timestamptz>, _>(column(g, |s| instant(s.authentication.at)))
    .bind::<Array<Timestamptz>, _>(column(g, |s| instant(s.created_at)))
    .bind::<Array<Timestamptz>, _>(column(g, |s| instant(s.refreshed_at)))
    .bind::<Array<Timestamptz>, _>(column(g, |s| instant(s.idle_expires_at)))
    .bind::<Array<Timestamptz>, _>(column(g, |s| instant(s.expires_at)))
    .bind::<Array<Interval>, _>(column(g, |s| interval(s.policy.access_token_ttl)))
    .bind::<Array<Interval>, _>(column(g, |s| interval(s.policy.idle_timeout)))
    .bind::<Array<Interval>, _>(column(g, |s| interval(s.policy.refresh_grace)))
    .bind::<Array<BigInt>, _>(column(g, |s| i64::from(s.lineage.generation)))
    .bind::<Array<BigInt>, _>(column(g, |s| i64::from(s.revision)))
    .bind::<Array<Text>, _>(column(g, |s| &*s.tenant))
    .bind::<Array<Text>, _>(column(g, |s| &*s.subject))
    .bind::<Array<Text>, _>(column(g, |s| &*s.client_id))
    .bind::<Array<Text>, _>(column(g, |s| array(&s.audience)))
    .bind::<Array<Text>, _>(column(g, |s| array(&s.scopes)))
    .bind::<Array<Text>, _>(column(g, |s| to_jsonb(&s.claims)))
    .bind::<Array<Text>, _>(column(g, |s| &*s.authentication.acr))
    .bind::<Array<Text>, _>(column(g, |s| array(&s.authentication.amr)))
    .bind::<Array<Text>, _>(column(g, |s| &*s.device.user_agent))
    .bind::<Array<Text>, _>(column(g, |s| &*s.device.ip_address))
    .bind::<Array<Text>, _>(column(g, |s| &*s.device.label))
    .bind::<Array<Text>, _>(column(g, |s| &*s.policy.name))
    .bind::<Array<Text>, _>(column(g, |s| s.policy.on_refresh.as_str()))
    .bind::<Array<Binary>, _>(column(g, |s| s.lineage.secret.0.to_vec()))
    .bind::<Array<Binary>, _>(column(g, |s| s.lineage.key.0.to_vec()))
    .bind::<Array<OptionalText>, _>(column(g, |s| s.request_id.as_deref()))
    .bind::<Array<Nullable<BigInt>>, _>(given.iter().map(|(_, most_others)| *most_others).collect::<Vec<_>>())
    .load(&mut connection)
    .await?;
    Ok(ids.into_iter().map(|id| SessionId::from_bytes(id.into_bytes())).collect())
}
