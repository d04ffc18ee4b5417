//! Reads the metadata of sessions.

use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    data_types::PgTimestamp,
    prelude::{Queryable, Selectable},
};
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::super::{
    connection::{fault::Fault, pool::PooledConnection},
    rows::{JsonbText, metadata, named, timestamp, uuid},
    schema::sessions,
};
use crate::{
    domain::{
        ids::{AuthenticationId, SessionId, TokenId},
        metadata::SessionMetadata,
        policy::OnRefresh,
    },
    store::StoreError,
};

#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
struct MetadataRow {
    id: Uuid,
    access_token_id: Uuid,
    on_refresh: String,
    metadata: JsonbText,
    authentication_id: Option<Uuid>,
    earlier_tokens_expire_at: Option<PgTimestamp>,
    ended_at: Option<PgTimestamp>,
}

impl TryFrom<MetadataRow> for SessionMetadata {
    type Error = StoreError;

    fn try_from(row: MetadataRow) -> Result<Self, StoreError> {
        let access_token_id = TokenId::from_bytes(row.access_token_id.into_bytes());
        let on_refresh = named("sessions.on_refresh", &row.on_refresh, OnRefresh::from_name)?;
        Ok(Self {
            session_id: SessionId::from_bytes(row.id.into_bytes()),
            metadata: metadata(&row.metadata)?,
            is_ended: row.ended_at.is_some(),
            authentication_id: row
                .authentication_id
                .map(|id| AuthenticationId::from_bytes(id.into_bytes())),
            only_token: SessionMetadata::only_token(
                access_token_id,
                on_refresh,
                row.earlier_tokens_expire_at.map(timestamp),
            ),
        })
    }
}

pub async fn read(
    connection: &mut PooledConnection<'_>,
    ids: Vec<SessionId>,
) -> Result<Vec<SessionMetadata>, Fault> {
    let ids: Vec<_> = ids.iter().map(|id| uuid(id.bytes())).collect();
    let rows: Vec<MetadataRow> = sessions::table
        .filter(sessions::id.eq_any(ids))
        .select(MetadataRow::as_select())
        .load(&mut **connection)
        .await?;
    Ok(rows.into_iter().map(SessionMetadata::try_from).collect::<Result<_, _>>()?)
}
