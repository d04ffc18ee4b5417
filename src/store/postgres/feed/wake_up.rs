//! Wake-ups between the processes on one database, by LISTEN and NOTIFY. They are hints, which cut
//! the time until a revocation is found; without them, as on the far side of a pooler in
//! transaction mode, looking at the head of the feed does.

use std::{sync::Arc, time::Duration};

use diesel::result::Error;
use diesel_async::SimpleAsyncConnection;
use tokio::{sync::watch, time::timeout};

use super::super::{
    Shared,
    connection::{
        connect::{Connected, Target},
        fault::Fault,
        pool::Pool,
        sqlstate::Class,
    },
};
use crate::{domain::revocation::Seq, store::StoreError};

const CHANNEL: &str = "countersign_feed";

/// The time that a listener waits before it calls, so as to hear itself.
const SILENCE: Duration = Duration::from_secs(10);
/// The time within which a listener hears itself. One that does not has no echo.
const ECHO: Duration = Duration::from_secs(2);
/// The pause before a lost listener tries again, and before one that turned out to be deaf does.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_DEAF: Duration = Duration::from_secs(60);

/// Why a listener has stopped.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its connection is lost, or could not be made.
    Lost,
    /// It does not hear itself.
    NoEcho,
}

impl End {
    /// The end of a listener that was not let listen.
    fn of_refusal(error: &Error) -> Self {
        match Class::of(error) {
            // LISTEN prepares no statement, so an outdated one means "feature not supported", which
            // some engines that speak the protocol of PostgreSQL and some poolers answer.
            Class::Bug | Class::Outdated => Self::NoEcho,
            Class::Retry | Class::Unavailable | Class::Lost | Class::Rejected => Self::Lost,
        }
    }
}

/// Tells others of each entry that this process has committed, the newest alone if there are many
/// at once.
pub async fn publish(shared: Arc<Shared>) {
    let mut committed = shared.committed.subscribe();
    while committed.changed().await.is_ok() {
        let seq = *committed.borrow_and_update();
        if let Err(fault) = notify(&shared.pool, seq).await {
            // They find it by looking.
            tracing::debug!(error = %StoreError::from(fault), "others could not be told of a \
                                                               revocation");
        }
    }
}

/// The notification is a transaction that nobody needs to survive a crash, so it does not wait for
/// the disk.
async fn notify(pool: &Pool, seq: Seq) -> Result<(), Fault> {
    let mut connection = pool.checkout().await?;
    let Seq(number) = seq;
    let notify = format!(
        "BEGIN; SET LOCAL synchronous_commit = off; SELECT pg_notify('{CHANNEL}', '{number}'); \
         COMMIT"
    );
    let outcome = pool
        .in_time(connection.origin(), async { Ok(connection.batch_execute(&notify).await?) })
        .await;
    connection.end(&outcome);
    outcome
}

/// Listens to others, on a connection of its own, and says whether it is live.
pub async fn listen(shared: Arc<Shared>, target: Target, is_live: watch::Sender<bool>) {
    loop {
        let end = listen_once(&shared, &target, &is_live).await;
        is_live.send_replace(false);
        let wait = match end {
            End::Lost => RETRY,
            End::NoEcho => {
                tracing::info!(
                    "the database passes on no notifications, perhaps because of a pooler in \
                     between; looking for revocations of other replicas more often instead"
                );
                RETRY_DEAF
            }
        };
        tokio::time::sleep(wait).await;
    }
}

async fn listen_once(shared: &Shared, target: &Target, is_live: &watch::Sender<bool>) -> End {
    let connected = target.connect_in(shared.pool.latest()).await;
    let Ok(Connected { mut connection, mut notifications, .. }) = connected else {
        return End::Lost;
    };
    match timeout(ECHO, connection.batch_execute(&format!("LISTEN {CHANNEL}"))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return End::of_refusal(&error),
        Err(_) => return End::Lost,
    }
    loop {
        let wait = if *is_live.borrow() { SILENCE } else { Duration::ZERO };
        let heard = match timeout(wait, notifications.recv()).await {
            Ok(heard) => heard,
            Err(_) => {
                if notify(&shared.pool, shared.newest()).await.is_err() {
                    return End::Lost;
                }
                match timeout(ECHO, notifications.recv()).await {
                    Ok(heard) => heard,
                    // It did hear before: the server stands still, or is no longer the one where
                    // the others call.
                    Err(_) if *is_live.borrow() => return End::Lost,
                    Err(_) => return End::NoEcho,
                }
            }
        };
        let Some(payload) = heard else { return End::Lost };
        is_live.send_if_modified(|is_live| !std::mem::replace(is_live, true));
        if let Ok(seq) = payload.parse() {
            shared.hint(Seq(seq));
        }
    }
}

#[cfg(test)]
mod tests {
    use diesel::result::DatabaseErrorKind;

    use super::{super::super::connection::sqlstate::with_code, *};

    #[test]
    fn a_server_without_notifications_is_told_from_one_that_is_lost() {
        for (code, end) in [
            ("0A000", End::NoEcho),
            ("42501", End::NoEcho),
            ("42601", End::NoEcho),
            ("57P01", End::Lost),
            ("53300", End::Lost),
            ("08006", End::Lost),
        ] {
            let message = with_code("LISTEN was refused", code);
            let error = Error::DatabaseError(DatabaseErrorKind::Unknown, Box::new(message));
            assert_eq!(End::of_refusal(&error), end, "{code}");
        }
    }
}
