//! Changes sessions: reauthentications and updates.

use diesel::{ExpressionMethods, QueryDsl, RunQueryDsl, SqliteConnection, dsl};

use super::{
    rows::to_json,
    schema::sessions,
    writes::{covering, find, insert_entry, newest_position, write_end, write_rotation},
};
use crate::{
    domain::{
        change::{ChangeDecision, SessionChange},
        session::Session,
        text::DeviceId,
        time::Timestamp,
    },
    store::{Changed, StoreError},
};

/// Decides a change of the current session, and writes the decision.
pub fn change(
    connection: &mut SqliteConnection,
    change: &SessionChange,
) -> Result<Changed, StoreError> {
    let session = find(connection, change.session_id)?;
    let device_id = session.as_ref().map(|session| session.device.id.clone()).unwrap_or_default();
    let decision = change.decide(session, |session| {
        covering(connection, session).map(|covering| covering.is_covered())
    });
    match decision? {
        ChangeDecision::Refuse(refusal) => Ok(Changed::Refused(refusal)),
        ChangeDecision::Keep { session, may_have_entry } => {
            let position = may_have_entry.then(|| newest_position(connection)).transpose()?;
            Ok(Changed::Kept { session, position })
        }
        ChangeDecision::End { session, entry } => {
            write_end(connection, &session)?;
            let position = insert_entry(connection, entry)?;
            Ok(Changed::Ended { session, position })
        }
        ChangeDecision::Change { session, entry } => {
            write(connection, &session, &device_id)?;
            let position = entry.map(|entry| insert_entry(connection, entry)).transpose()?;
            Ok(Changed::Changed { session, position })
        }
    }
}

/// Writes the columns that a reauthentication or an update alters. `device_id` is the identifier of
/// the device that the row has.
fn write(
    connection: &mut SqliteConnection,
    next: &Session,
    device_id: &DeviceId,
) -> Result<(), StoreError> {
    let (authentication, request) = (&next.authentication, next.reauthentication.as_ref());
    write_rotation(connection, next, device_id)?;
    dsl::update(sessions::table.find(next.id.bytes().as_slice()))
        .set((
            sessions::lineage_secret.eq(next.lineage.secret.0.as_slice()),
            sessions::authentication_id.eq(authentication.id.map(|id| id.bytes().to_vec())),
            sessions::acr.eq(&*authentication.acr),
            sessions::amr.eq(to_json(&authentication.amr)),
            sessions::amr_verified_at.eq(authentication.amr_verified_at.to_json()),
            sessions::authenticated_at.eq(authentication.at.micros()),
            sessions::extended_at.eq(next.extended_at.map(Timestamp::micros)),
            sessions::scopes.eq(to_json(&next.scopes)),
            sessions::claims.eq(next.claims.to_json()),
            sessions::metadata.eq(next.metadata.to_json()),
            sessions::reauthentication_id.eq(request.map(|request| &*request.id)),
            sessions::reauthentication_fingerprint
                .eq(request.map(|request| request.fingerprint.0.as_slice())),
        ))
        .execute(connection)?;
    Ok(())
}
