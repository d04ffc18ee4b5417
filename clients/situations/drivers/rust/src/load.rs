//! An application that works in the background.

use countersign_client::{
    Answer, Client, Demands, Error, Verifier,
    proto::{CreateSessionRequest, RefreshRequest},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::{JoinError, JoinHandle},
};

use crate::driver::revocation;

/// The number of errors that are described.
const MAX_ERRORS: usize = 10;

/// The application, which ends after the round that is under way once it is told to.
pub struct Load {
    stop: watch::Sender<bool>,
    running: JoinHandle<Rounds>,
}

struct Rounds {
    client: Client,
    verifier: Verifier,
    subject: String,
    count: usize,
    failed: usize,
    errors: Vec<String>,
}

impl Load {
    /// Starts it.
    pub fn start(client: Client, verifier: Verifier, subject: String) -> Self {
        let (stop, is_stopped) = watch::channel(false);
        let mut rounds = Rounds { client, verifier, subject, count: 0, failed: 0, errors: vec![] };
        let running = tokio::spawn(async move {
            while !*is_stopped.borrow() {
                if let Err((call, error)) = rounds.round().await {
                    // What cannot be done after a call that has failed is left out.
                    rounds.fail(format!("{call}: {error}"));
                }
                rounds.count += 1;
            }
            rounds
        });
        Self { stop, running }
    }

    /// Ends it, and returns the result.
    pub async fn end(self) -> Result<Value, JoinError> {
        self.stop.send_replace(true);
        let Rounds { count, failed, errors, .. } = self.running.await?;
        Ok(json!({ "rounds": count, "failed": failed, "errors": errors }))
    }
}

impl Rounds {
    async fn round(&mut self) -> Result<(), (&'static str, Error)> {
        let request = CreateSessionRequest { subject: self.subject.clone(), ..Default::default() };
        let created = self.client.create_session(request).await;
        let created = created.map_err(|error| ("CreateSession", error))?;
        let tokens = created.tokens.unwrap_or_default();
        self.expect(&tokens.access_token, "active").await;
        let refresh_token = tokens.refresh_token;
        let refreshed =
            self.client.refresh(RefreshRequest { refresh_token, ..Default::default() }).await;
        let refreshed = refreshed.map_err(|error| ("Refresh", error))?;
        let token = refreshed.tokens.unwrap_or_default().access_token;
        self.expect(&token, "active").await;
        let revoked = self.client.revoke(revocation(token.clone())).await;
        revoked.map_err(|error| ("Revoke", error))?;
        self.expect(&token, "revoked").await;
        Ok(())
    }

    async fn expect(&mut self, token: &str, expected: &str) {
        let answer = self.verifier.verify(token, &Demands::new()).await;
        let seen = match &answer {
            Answer::Active(_) => "active",
            Answer::Inactive(reason) => reason.as_str(),
            Answer::Unknown(_) => "unknown",
        };
        if seen != expected {
            self.fail(format!("a token is {answer:?} instead of {expected}"));
        }
    }

    fn fail(&mut self, error: String) {
        self.failed += 1;
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(error);
        }
    }
}
