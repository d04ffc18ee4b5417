//! Runs a service in this process, with callers of several roles. Tests send bad input to it, and
//! after each case the harness checks that the service still works and that the tables have not
//! grown unexpectedly.

use std::sync::Mutex;

use countersign::{
    callers::api_key::ApiKey,
    proto::{RefreshRequest, ValidateRequest},
    rng::SystemRng,
};
use countersign_test_support::{
    log::{Secrets, capture, logged},
    server::{Home, Rows, Server, SignedIn, request},
};

/// A running service and the API keys of its callers.
pub struct Harness {
    pub server: Server,
    /// The key of a caller that may do everything.
    pub admin: String,
    /// The key of a caller that is limited to a tenant that these tests do not use.
    pub foreign: String,
    /// The key of a caller that may validate.
    pub validator: String,
    /// The key of a caller that may create, refresh and read.
    pub issuer: String,
    /// The result of the latest refresh of a session whose tokens must stay good.
    good: Mutex<SignedIn>,
    /// The tokens and keys that must not appear in the log.
    secrets: Mutex<Secrets>,
}

/// Returns a new API key, and the configuration of a caller that has it.
fn caller(name: &str, lines: &str) -> (String, String) {
    let key = ApiKey::generate(&SystemRng::default()).unwrap();
    let stanza =
        format!("[[callers]]\nname = \"{name}\"\nkey_hashes = [\"{}\"]\n{lines}\n", key.hash());
    (key.reveal().to_owned(), stanza)
}

impl Harness {
    pub async fn start() -> Self {
        capture();
        let callers = [
            ("admin", "roles = ['admin']"),
            (
                "foreign",
                "roles = ['issuer', 'validator', 'revoker', 'viewer']\ntenants = ['other']",
            ),
            ("validator", "roles = ['validator']"),
            ("issuer", "roles = ['issuer']"),
        ];
        let (keys, settings): (Vec<_>, Vec<_>) =
            callers.iter().map(|(name, lines)| caller(name, lines)).unzip();
        let [admin, foreign, validator, issuer] = keys.try_into().unwrap();
        let server = Home::new(&settings.concat()).await.start().await;
        let good = sign_in(&server, &admin, "good").await;
        let (good, secrets) = (Mutex::new(good), Mutex::default());
        Self { server, admin, foreign, validator, issuer, good, secrets }
    }

    /// Creates a session of tenant acme.
    pub async fn sign_in(&self, subject: &str) -> SignedIn {
        sign_in(&self.server, &self.admin, subject).await
    }

    /// Awaits `send`, which sends bad input, and then checks that the blacklist has grown by
    /// `entries`, that no session was added, and that the service still answers good calls,
    /// including one that needs the database. `secrets` are the parts of the input that must not be
    /// logged.
    pub async fn survives<T>(
        &self,
        name: &str,
        secrets: &[&str],
        entries: i64,
        send: impl Future<Output = T>,
    ) -> T {
        secrets.iter().for_each(|secret| self.secrets.lock().unwrap().keep(name, secret));
        let before = self.server.rows().await;
        let sent = send.await;
        let expected = Rows { sessions: before.sessions, blacklist: before.blacklist + entries };
        assert_eq!(self.server.rows().await, expected, "{name}");
        assert!(!self.server.running.is_finished(), "{name}: the service has ended");
        self.good_call(name).await;
        sent
    }

    async fn good_call(&self, name: &str) {
        let good = self.good.lock().unwrap().clone();
        let refreshed = self.refresh(&self.admin, &good.refresh).await;
        let good = refreshed.unwrap_or_else(|status| panic!("{name}: {status:?}"));
        assert!(self.is_active(&good.access).await, "{name}");
        *self.good.lock().unwrap() = good;
    }

    pub async fn is_active(&self, access: &str) -> bool {
        let ask = ValidateRequest { access_token: access.to_owned(), ..Default::default() };
        self.server.client_with(&self.admin).validate(ask).await.unwrap().into_inner().active
    }

    /// Calls Refresh with this API key.
    pub async fn refresh(&self, key: &str, token: &str) -> Result<SignedIn, tonic::Status> {
        let exchange = RefreshRequest { refresh_token: token.to_owned(), ..Default::default() };
        let answer = self.server.client_with(key).refresh(exchange).await?.into_inner();
        Ok((answer.session, answer.tokens).into())
    }

    /// Stops the service, and checks that its log contains none of the secrets that were sent.
    pub async fn finish(self) {
        let mut secrets = self.secrets.into_inner().unwrap();
        for key in [&self.admin, &self.foreign, &self.validator, &self.issuer] {
            secrets.keep("an API key", key);
        }
        self.server.stop().await;
        let log = logged();
        assert!(log.contains("stopped"), "the log is captured");
        assert_eq!(secrets.found_in(&log), Vec::<&str>::new(), "in the log");
    }
}

async fn sign_in(server: &Server, key: &str, subject: &str) -> SignedIn {
    let answer =
        server.client_with(key).create_session(request(subject)).await.unwrap().into_inner();
    (answer.session, answer.tokens).into()
}
