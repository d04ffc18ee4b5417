//! Reads cut-offs, for decisions about sessions that they may cover.

use std::collections::{HashMap, HashSet};

use diesel::{
    data_types::PgTimestamp,
    sql_types::{Array, Nullable, Text, Timestamptz, Uuid as SqlUuid},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::cut_off,
    sql::statement,
};
use crate::domain::{
    cut_off::{Coverable, Covering, CutOff, CutOffKey, CutOffKind, KeyRef},
    session::Session,
};

/// The cut-offs that exist, each by the name of its kind and the text of its key.
pub struct CutOffs(HashMap<(&'static str, String), CutOff>);

impl CutOffs {
    /// Returns which of the cut-offs cover a session.
    pub fn covering(&self, session: &Session) -> Covering {
        let coverable = Coverable::from(session);
        let cut_offs = CutOffKind::ALL.into_iter().filter_map(|kind| {
            let cut_off = self.0.get(&named(&coverable.key(kind)))?;
            Some((kind, *cut_off))
        });
        Covering::of(coverable, cut_offs)
    }

    /// Returns the cut-off with a key, if it exists.
    pub fn get(&self, key: &CutOffKey) -> Option<CutOff> {
        self.0.get(&named(&key.borrowed())).copied()
    }
}

fn named(key: &KeyRef<'_>) -> (&'static str, String) {
    (key.kind.as_str(), key.text())
}

/// Reads the cut-offs that may cover these sessions.
pub async fn read<'a>(
    connection: &mut PooledConnection<'_>,
    sessions: impl IntoIterator<Item = &'a Session>,
) -> Result<CutOffs, Fault> {
    let keys = sessions.into_iter().flat_map(|session| {
        let coverable = Coverable::from(session);
        CutOffKind::ALL.map(|kind| named(&coverable.key(kind)))
    });
    find(connection, keys.collect()).await
}

/// Reads the cut-offs with these keys.
pub async fn with_keys<'a>(
    connection: &mut PooledConnection<'_>,
    keys: impl IntoIterator<Item = &'a CutOffKey>,
) -> Result<CutOffs, Fault> {
    find(connection, keys.into_iter().map(|key| named(&key.borrowed())).collect()).await
}

async fn find(
    connection: &mut PooledConnection<'_>,
    keys: HashSet<(&'static str, String)>,
) -> Result<CutOffs, Fault> {
    if keys.is_empty() {
        return Ok(CutOffs(HashMap::new()));
    }
    let (kinds, keys): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    type Row = (String, String, Option<PgTimestamp>, Option<Uuid>);
    let rows: Vec<Row> = statement::<(Text, Text, Nullable<Timestamptz>, Nullable<SqlUuid>)>(
        "SELECT b.kind, b.key, b.up_to, b.session_id
            FROM unnest(?, ?) AS given (kind, key)
            JOIN blacklist AS b
                ON b.kind = given.kind COLLATE \"C\" AND b.key = given.key COLLATE \"C\"",
    )
    .bind::<Array<Text>, _>(kinds)
    .bind::<Array<Text>, _>(keys)
    .load(&mut **connection)
    .await?;
    let mut cut_offs = HashMap::new();
    for (kind, key, up_to, session_id) in rows {
        if let Some(up_to) = up_to {
            let (parsed, cut_off) = cut_off(&kind, &key, up_to, session_id)?;
            cut_offs.insert((parsed.kind().as_str(), key), cut_off);
        }
    }
    Ok(CutOffs(cut_offs))
}
