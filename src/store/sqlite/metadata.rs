//! Reads the metadata of sessions.

use diesel::{
    ExpressionMethods, QueryDsl, SelectableHelper,
    prelude::{Queryable, Selectable},
};
use diesel_async::RunQueryDsl;

use super::{
    Connection,
    rows::{bytes, metadata, named},
    schema::sessions,
};
use crate::{
    domain::{
        ids::{AuthenticationId, SessionId, TokenId},
        metadata::SessionMetadata,
        policy::OnRefresh,
        time::Timestamp,
    },
    store::StoreError,
};

#[derive(Queryable, Selectable)]
#[diesel(table_name = sessions)]
struct MetadataRow {
    id: Vec<u8>,
    metadata: String,
    on_refresh: String,
    access_token_id: Vec<u8>,
    authentication_id: Option<Vec<u8>>,
    earlier_tokens_expire_at: Option<i64>,
    ended_at: Option<i64>,
}

impl TryFrom<MetadataRow> for SessionMetadata {
    type Error = StoreError;

    fn try_from(row: MetadataRow) -> Result<Self, StoreError> {
        let authentication_id = row
            .authentication_id
            .map(|id| bytes("sessions.authentication_id", &id))
            .transpose()?
            .map(AuthenticationId::from_bytes);
        let access_token_id = bytes("sessions.access_token_id", &row.access_token_id)?;
        let on_refresh = named("sessions.on_refresh", &row.on_refresh, OnRefresh::from_name)?;
        Ok(Self {
            session_id: SessionId::from_bytes(bytes("sessions.id", &row.id)?),
            metadata: metadata(&row.metadata)?,
            is_ended: row.ended_at.is_some(),
            authentication_id,
            only_token: SessionMetadata::only_token(
                TokenId::from_bytes(access_token_id),
                on_refresh,
                row.earlier_tokens_expire_at.map(Timestamp::from_micros),
            ),
        })
    }
}

pub async fn read(
    reader: &mut Connection,
    ids: &[SessionId],
) -> Result<Vec<SessionMetadata>, StoreError> {
    let rows = sessions::table
        .filter(sessions::id.eq_any(ids.iter().map(|id| id.bytes().as_slice())))
        .select(MetadataRow::as_select())
        .load(reader)
        .await?;
    rows.into_iter().map(SessionMetadata::try_from).collect()
}
