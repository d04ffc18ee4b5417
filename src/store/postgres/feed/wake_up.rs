//! Notifications between the processes that use one database, by LISTEN and NOTIFY. They are only
//! hints, which shorten the time until a revocation is found. Where they do not arrive, for example
//! behind a pooler in transaction mode, a process polls the head of the feed instead.

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

/// The time without a notification after which a listener sends one to itself.
const SILENCE: Duration = Duration::from_secs(10);
/// The time within which a listener must receive the notification that it has sent to itself. If it
/// does not, it stops with [`End::NoEcho`], or with [`End::Lost`] if it received notifications
/// before.
const ECHO: Duration = Duration::from_secs(2);
/// The pauses before a listener connects again: after it lost its connection, and after it had no
/// echo.
const RETRY: Duration = Duration::from_millis(500);
const RETRY_NO_ECHO: Duration = Duration::from_secs(60);

/// The reason why a listener has stopped.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The connection of the listener is lost, or none could be made.
    Lost,
    /// The listener does not receive its own notifications.
    NoEcho,
}

impl End {
    /// Returns the reason for a listener whose LISTEN failed with this error.
    fn of_refusal(error: &Error) -> Self {
        match Class::of(error) {
            // LISTEN does not prepare a statement. So the class `Outdated` here means "feature not
            // supported". Some poolers, and some engines that speak the protocol of PostgreSQL,
            // answer LISTEN with this error.
            Class::Bug | Class::Outdated => Self::NoEcho,
            Class::Retry | Class::Unavailable | Class::Lost | Class::Rejected => Self::Lost,
        }
    }
}

/// Notifies other processes of the entries that this process commits. If there are several new
/// entries, only the newest position is sent.
pub async fn publish(shared: Arc<Shared>) {
    let mut committed = shared.committed.subscribe();
    while committed.changed().await.is_ok() {
        let seq = *committed.borrow_and_update();
        if let Err(fault) = notify(&shared.pool, seq).await {
            // The other processes find the entry with their next renewal.
            tracing::debug!(error = %StoreError::from(fault), "others could not be told of a \
                                                               revocation");
        }
    }
}

/// Sends a notification. The transaction does not wait for the disk, because a notification is of
/// no use after a crash.
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

/// Listens for the notifications of other processes, over a connection of its own, and reports
/// whether notifications arrive.
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
                RETRY_NO_ECHO
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
                    // This listener received notifications before. So the server does not respond
                    // any more, or the other processes now send their notifications to another
                    // server.
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
    fn a_server_without_notifications_is_distinguished_from_a_lost_connection() {
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
