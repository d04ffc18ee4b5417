//! Reads the state of a server and of the database, without changing anything: no migration runs,
//! no lock is taken but those of a SELECT, and no task is left running.

use std::fmt;

use diesel::{
    data_types::PgTimestamp,
    sql_types::{BigInt, Bool, Text, Timestamptz},
};
use diesel_async::{AsyncPgConnection, RunQueryDsl};

use super::{
    connection::{
        connect::{Options, Target},
        open_error::OpenError,
    },
    feed::replicas,
    open, ring,
    rows::timestamp,
    sql::statement,
};
use crate::{
    domain::time::Timestamp,
    store::{StoreError, replicas::Register, ring::SealedRing},
};

/// A connection over which the state is read.
pub struct Inspector {
    target: Target,
    connection: AsyncPgConnection,
    /// The quoted name of the role of this session.
    role: String,
}

/// The migrations that have not been run on the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Their versions.
    pub versions: Vec<&'static str>,
    /// True if no migration has been run.
    pub is_empty: bool,
}

/// The standbys of the server, as it shows them to this role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replication {
    /// True if the server is a standby itself.
    pub is_standby: bool,
    /// The setting `synchronous_standby_names`; empty if no commit waits for a standby.
    pub synchronous_names: String,
    /// The number of connected standbys for which commits wait; none if the role may not see it.
    pub synchronous: Option<i64>,
    /// The number of all connected standbys.
    pub connected: i64,
}

impl fmt::Debug for Inspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspector").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Inspector {
    /// Connects, and rejects a server or a database that the service cannot use.
    pub async fn connect(options: &Options) -> Result<Self, OpenError> {
        let target = Target::load(options).await?;
        let mut connection = target.connect().await?.connection;
        let role = open::check_server(&target, &mut connection).await?;
        Ok(Self { target, connection, role })
    }

    /// Describes what an attacker on the network could do ([`Target::exposure`]).
    pub fn exposure(&self) -> Option<&'static str> {
        self.target.exposure()
    }

    fn failed(&self, error: &diesel::result::Error) -> OpenError {
        OpenError::other(self.target.name(), error).with_remedy(&self.role)
    }

    /// Reads the version of the server.
    pub async fn version(&mut self) -> Result<String, OpenError> {
        let version = statement::<Text>("SELECT current_setting('server_version')")
            .get_result(&mut self.connection)
            .await;
        version.map_err(|error| self.failed(&error))
    }

    /// Returns the migrations that have not been run. Fails if the database records one that this
    /// version does not know.
    pub async fn pending(&mut self) -> Result<Pending, OpenError> {
        let pending = open::pending(&self.target, &mut self.connection).await;
        let pending = pending.map_err(|error| error.with_remedy(&self.role))?;
        let versions: Vec<_> = pending.iter().map(|(version, _)| *version).collect();
        Ok(Pending { is_empty: versions.len() == open::migrations(), versions })
    }

    /// Reads the clock of the server.
    pub async fn now(&mut self) -> Result<Timestamp, OpenError> {
        let now: Result<PgTimestamp, _> = statement::<Timestamptz>("SELECT clock_timestamp()")
            .get_result(&mut self.connection)
            .await;
        now.map(timestamp).map_err(|error| self.failed(&error))
    }

    /// Reads whether the server is a standby, and which standbys it has. The server lists its
    /// standbys to every role, but shows only some roles for which of them commits wait.
    pub async fn replication(&mut self) -> Result<Replication, OpenError> {
        let read: Result<(bool, String, bool, i64, i64), _> =
            statement::<(Bool, Text, Bool, BigInt, BigInt)>(
                "SELECT
                    pg_is_in_recovery(),
                    current_setting('synchronous_standby_names'),
                    pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
                    count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')),
                    count(*)
                FROM pg_stat_replication",
            )
            .get_result(&mut self.connection)
            .await;
        let (is_standby, synchronous_names, may_see, synchronous, connected) =
            read.map_err(|error| self.failed(&error))?;
        let synchronous = may_see.then_some(synchronous);
        Ok(Replication { is_standby, synchronous_names, synchronous, connected })
    }

    /// Reads the sealed keys. The schema must be up to date.
    pub async fn ring(&mut self) -> Result<SealedRing, StoreError> {
        Ok(ring::ring(&mut self.connection).await?)
    }

    /// Reads the register of the replicas. The schema must be up to date.
    pub async fn register(&mut self) -> Result<Register, StoreError> {
        Ok(replicas::register(&mut self.connection).await?)
    }
}
