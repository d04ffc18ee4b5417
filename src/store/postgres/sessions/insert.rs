//! Writes one or many new sessions by one statement.

use std::collections::HashMap;

use diesel::{
    pg::Pg,
    serialize::ToSql,
    sql_types::{
        Array, BigInt, Binary, HasSqlType, Integer, Interval, Nullable, Text, Timestamptz,
        Uuid as SqlUuid,
    },
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{
    super::{
        connection::{fault::Fault, pool::PooledConnection},
        rows::{array, instant, interval, uuid},
        schema::{new_columns, with_new_columns},
        sql::{Statement, first_uncovered, is_uncovered, statement, wide_keys},
    },
    jsonb::to_jsonb,
    quota_lock::{SubjectLock, subject_locks},
};
use crate::{
    domain::{ids::SessionId, session::Session, who::Who},
    store::Creation,
};

/// Expands to the statement that inserts sessions. Each value of a row stands between `$open` and
/// `$close`.
macro_rules! insert_sessions {
    ($open:literal, $close:literal, $lock:literal, $live:literal, $conflict:literal) => {
        concat!(
            "INSERT INTO sessions (",
            new_columns!(""),
            ", sweep_on)
            SELECT ",
            new_columns!(""),
            ", idle_expires_at
            FROM (
                SELECT ",
            with_new_columns!(insert_sessions! @row $open, $close,),
            ",
                    ",
            $open,
            "?",
            $close,
            " AS most_others,
                    ",
            $open,
            "?",
            $close,
            " AS ",
            $lock,
            "
            ) AS new
            WHERE (most_others IS NULL OR ",
            $live,
            " <= most_others)
                AND ",
            is_uncovered!("new"),
            $conflict,
            "
            RETURNING id"
        )
    };
    (
        @row $open:literal, $close:literal,
        $first:literal $first_cast:literal $(, $column:literal $cast:literal)*
    ) => {
        concat!(
            $open, "?", $close, $first_cast, " AS ", $first
            $(, ", ", $open, "?", $close, $cast, " AS ", $column)*
        )
    };
}

/// The statement for one session without a request id, which cannot repeat an earlier request. This
/// is the most frequent case, and the case in which a caller waits for this write alone. The
/// clauses that only [`MANY`] has take a third of the time of that statement.
const ONE: &str = insert_sessions!(
    "",
    "",
    "turn",
    "sessions_in_turn(turn, tenant, subject, created_at, most_others, 1)",
    ""
);
const MANY: &str = insert_sessions!(
    "unnest(",
    ")",
    "ordinal",
    "(
                    ARRAY(
                        SELECT sessions_in_turn(turn, of_tenant, of_subject, at, others, added)
                        FROM unnest(?, ?, ?, ?, ?, ?) AS given
                            (turn, of_tenant, of_subject, at, others, added)
                    )
                )[ordinal]",
    "
            ON CONFLICT (tenant, request_id) WHERE request_id IS NOT NULL DO NOTHING"
);

/// A new session, and what its subject's quota requires.
struct New<'a> {
    session: &'a Session,
    /// The largest number of other live sessions that its subject may have; none if the subject has
    /// no limit.
    most_others: Option<i64>,
    /// The ordinal of its subject's lock, counted from 1.
    ordinal: Option<i32>,
}

/// The statement, with the values that have been added so far. For one row these are plain values;
/// for several rows, each column is an array.
struct Insert<'a, 'r> {
    rows: &'r [New<'a>],
    statement: Statement<'a, SqlUuid>,
}

impl<'a, 'r> Insert<'a, 'r> {
    fn into(rows: &'r [New<'a>]) -> Self {
        Self { rows, statement: statement(if plain(rows).is_some() { ONE } else { MANY }) }
    }

    /// Adds the values of the next column.
    fn column<Type, Value>(self, of: impl Fn(&New<'a>) -> Value) -> Self
    where
        Type: 'static,
        Value: ToSql<Type, Pg> + Send + 'a,
        Vec<Value>: ToSql<Array<Type>, Pg>,
        Pg: HasSqlType<Type> + HasSqlType<Array<Type>>,
    {
        let statement = match plain(self.rows) {
            Some(one) => self.statement.bind::<Type, _>(of(one)),
            None => {
                self.statement.bind::<Array<Type>, _>(self.rows.iter().map(of).collect::<Vec<_>>())
            }
        };
        Self { statement, ..self }
    }
}

/// Returns the row if it is the only one, and has no request id, so that it cannot repeat an
/// earlier request.
fn plain<'r, 'a>(rows: &'r [New<'a>]) -> Option<&'r New<'a>> {
    match rows {
        [one] if one.session.request_id.is_none() => Some(one),
        _ => None,
    }
}

/// The enforcement of the quotas of the subjects.
#[derive(Clone, Copy, Debug)]
pub enum Limits {
    /// The statement takes the locks of the subjects, and checks their limits.
    Check,
    /// The caller holds the locks of the subjects, and has checked that there is room.
    Checked,
}

/// Writes new sessions, and returns those that were written. A session is left out if its request
/// was made before, if a cut-off covers it, or if it might exceed the quota of its subject.
///
/// All locks are taken before the first row is written, in the order that all transactions keep to.
pub async fn insert_sessions(
    connection: &PooledConnection<'_>,
    creations: &[&Creation],
    limits: Limits,
) -> Result<Vec<SessionId>, Fault> {
    let subject_locks = match limits {
        Limits::Check => subject_locks(connection, creations),
        Limits::Checked => vec![],
    };
    let rows = new_rows(creations, &subject_locks, limits);
    let insert = with_columns(Insert::into(&rows));
    let insert = match plain(&rows) {
        Some(_) => insert
            .statement
            .bind::<Nullable<BigInt>, _>(subject_locks.iter().find_map(|lock| lock.key)),
        None => insert
            .column::<Nullable<Integer>, _>(|new| new.ordinal)
            .statement
            .bind::<Array<Nullable<BigInt>>, _>(
                subject_locks.iter().map(|lock| lock.key).collect::<Vec<_>>(),
            )
            .bind::<Array<Text>, _>(
                subject_locks.iter().map(|lock| lock.tenant).collect::<Vec<_>>(),
            )
            .bind::<Array<Text>, _>(
                subject_locks.iter().map(|lock| lock.subject).collect::<Vec<_>>(),
            )
            .bind::<Array<Timestamptz>, _>(
                subject_locks.iter().map(|lock| instant(lock.at)).collect::<Vec<_>>(),
            )
            .bind::<Array<BigInt>, _>(
                subject_locks.iter().map(|lock| lock.others).collect::<Vec<_>>(),
            )
            .bind::<Array<BigInt>, _>(
                subject_locks.iter().map(|lock| lock.added).collect::<Vec<_>>(),
            ),
    };
    let mut connection: &AsyncPgConnection = connection;
    let ids: Vec<uuid::Uuid> = insert.load(&mut connection).await?;
    Ok(ids.into_iter().map(|id| SessionId::from_bytes(id.into_bytes())).collect())
}

/// Returns the rows of these creations, in the order in which they are written.
fn new_rows<'a>(
    creations: &[&'a Creation],
    subject_locks: &[SubjectLock<'_>],
    limits: Limits,
) -> Vec<New<'a>> {
    let ordinals: HashMap<_, _> = (1..)
        .zip(subject_locks)
        .map(|(ordinal, lock)| ((lock.tenant, lock.subject), ordinal))
        .collect();
    // For each session, the sessions of the same subject that come before it in the batch count as
    // others.
    let mut before = HashMap::new();
    let mut rows: Vec<New<'_>> = Vec::with_capacity(creations.len());
    for Creation { session, max_sessions, .. } in creations {
        let subject = (&*session.tenant, &*session.subject);
        let before: &mut i64 = before.entry(subject).or_default();
        *before += 1;
        let is_limited = *max_sessions > 0 && matches!(limits, Limits::Check);
        let most_others = is_limited.then(|| i64::from(*max_sessions) - *before);
        let ordinal = most_others.and_then(|_| ordinals.get(&subject).copied());
        rows.push(New { session, most_others, ordinal });
    }
    rows.sort_by_key(|new| (&new.session.tenant, &new.session.request_id));
    rows
}

/// Adds the values of all columns, in the order of `with_new_columns`, and then the number of other
/// live sessions that the subject of each session may have.
fn with_columns<'a, 'r>(insert: Insert<'a, 'r>) -> Insert<'a, 'r> {
    insert
        .column::<SqlUuid, _>(|new| uuid(new.session.id.bytes()))
        .column::<SqlUuid, _>(|new| uuid(new.session.access_token_id.bytes()))
        .column::<Timestamptz, _>(|new| instant(new.session.authentication.at))
        .column::<Timestamptz, _>(|new| instant(new.session.created_at))
        .column::<Timestamptz, _>(|new| instant(new.session.refreshed_at))
        .column::<Timestamptz, _>(|new| instant(new.session.idle_expires_at))
        .column::<Timestamptz, _>(|new| instant(new.session.expires_at))
        .column::<Interval, _>(|new| interval(new.session.policy.access_token_ttl))
        .column::<Interval, _>(|new| interval(new.session.policy.idle_timeout))
        .column::<Interval, _>(|new| interval(new.session.policy.refresh_grace))
        .column::<Interval, _>(|new| interval(new.session.policy.replay_limit))
        .column::<BigInt, _>(|new| i64::from(new.session.lineage.generation))
        .column::<BigInt, _>(|new| i64::from(new.session.revision))
        .column::<Text, _>(|new| &*new.session.tenant)
        .column::<Text, _>(|new| &*new.session.subject)
        .column::<Text, _>(|new| &*new.session.client_id)
        .column::<Text, _>(|new| array(&new.session.audience))
        .column::<Text, _>(|new| array(&new.session.scopes))
        .column::<Text, _>(|new| to_jsonb(new.session.claims.object()))
        .column::<Text, _>(|new| &*new.session.authentication.acr)
        .column::<Text, _>(|new| array(&new.session.authentication.amr))
        .column::<Text, _>(|new| &*new.session.device.user_agent)
        .column::<Text, _>(|new| &*new.session.device.ip_address)
        .column::<Text, _>(|new| &*new.session.device.label)
        .column::<Text, _>(|new| &*new.session.policy.name)
        .column::<Text, _>(|new| new.session.policy.on_refresh.as_str())
        .column::<Text, _>(|new| new.session.policy.replay.as_str())
        .column::<Binary, _>(|new| new.session.lineage.secret.0.to_vec())
        .column::<Binary, _>(|new| new.session.lineage.key.0.to_vec())
        .column::<Nullable<Text>, _>(|new| new.session.request_id.as_deref())
        .column::<Nullable<Binary>, _>(|new| {
            new.session.request_fingerprint.map(|fingerprint| fingerprint.0.to_vec())
        })
        .column::<Text, _>(|new| to_jsonb(new.session.metadata.object()))
        .column::<Nullable<Interval>, _>(|new| {
            new.session.policy.reauthentication_lifetime.map(interval)
        })
        .column::<Nullable<Text>, _>(|new| new.session.created_by.as_ref().map(Who::as_str))
        .column::<Text, _>(|new| new.session.policy.refresh.as_str())
        .column::<Text, _>(|new| new.session.authentication.amr_verified_at.to_json())
        .column::<Text, _>(|new| &*new.session.device.id)
        .column::<Nullable<BigInt>, _>(|new| new.most_others)
}
