//! Reads the cut-offs of tenants and subjects, for decisions about sessions that they may cover.

use std::collections::HashMap;

use diesel::{BoolExpressionMethods, ExpressionMethods, QueryDsl, data_types::PgTimestamp};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::revoked,
    schema::blacklist,
};
use crate::domain::{
    revocation::{self, CutOff, cut_off_key},
    session::Session,
    time::Timestamp,
};

/// The cut-offs that exist, by the keys of their blacklist entries.
pub struct CutOffs(HashMap<String, CutOff>);

impl CutOffs {
    /// Returns the last instant up to which the session's tenant or subject was revoked, if the
    /// revocation covers the session.
    pub fn covered_up_to(&self, session: &Session) -> Option<Timestamp> {
        let keys = [
            cut_off_key(&session.tenant, None),
            cut_off_key(&session.tenant, Some(&session.subject)),
        ];
        let cut_offs = keys.iter().filter_map(|key| self.0.get(key)).copied();
        revocation::covered_up_to(cut_offs, session.id)
    }
}

/// Reads the cut-offs that may cover these sessions.
pub async fn read<'a>(
    connection: &mut PooledConnection<'_>,
    sessions: impl IntoIterator<Item = &'a Session>,
) -> Result<CutOffs, Fault> {
    let mut keys: Vec<String> = sessions
        .into_iter()
        .flat_map(|session| {
            [
                cut_off_key(&session.tenant, None),
                cut_off_key(&session.tenant, Some(&session.subject)),
            ]
        })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    let rows: Vec<(String, String, Option<PgTimestamp>, Option<Uuid>)> = blacklist::table
        .filter(blacklist::kind.eq_any(["tenant", "subject"]).and(blacklist::key.eq_any(keys)))
        .select((blacklist::kind, blacklist::key, blacklist::up_to, blacklist::session_id))
        .load(&mut **connection)
        .await?;
    let mut cut_offs = HashMap::new();
    for (kind, key, up_to, session_id) in rows {
        if let Some(cut_off) = revoked(&kind, key.clone(), up_to, session_id)?.cut_off() {
            cut_offs.insert(key, cut_off);
        }
    }
    Ok(CutOffs(cut_offs))
}
