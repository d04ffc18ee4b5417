//! A service as a process, with a folder of its own, and clients of it.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use countersign::{callers::api_key::ApiKey, rng::SystemRng};
use countersign_client::{
    Answer, Client, Demands, Unknown, Verifier, json,
    proto::{CreateSessionRequest, RevokeRequest, revoke_request::Target},
    testing::{Clock, SettableClock},
    verifier::OnLapse,
};
use countersign_test_support::process::{GRACE, Server, countersign};
use countersign_verification::clock::SystemClock;
use tempfile::TempDir;

/// The issuer of the service.
pub const ISSUER: &str = "https://auth.test";
/// The audience of its tokens.
pub const AUDIENCE: &str = "https://orders.test";

/// The folder of a service.
pub struct Site {
    folder: TempDir,
    address: SocketAddr,
}

impl Site {
    /// Creates the folder, with these settings in addition to the usual ones.
    pub fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "issuer = '{ISSUER}'\ndata_dir = '{}'\n[tokens]\ndefault_audience = \
             '{AUDIENCE}'\n{settings}",
            folder.path().join("data").display()
        );
        fs::write(folder.path().join("countersign.toml"), text).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self { folder, address: free.local_addr().unwrap() }
    }

    /// Starts the service. It has the same address each time.
    pub fn start(&self) -> Server {
        let mut command = countersign();
        let file = self.folder.path().join("countersign.toml");
        command.args(["serve", "--listen", &self.address.to_string(), "--config"]).arg(file);
        Server::launch(command.env(GRACE, "0s"))
    }

    /// Replaces a text in the configuration.
    pub fn change(&self, from: &str, to: &str) {
        let file = self.folder.path().join("countersign.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from));
        fs::write(file, text.replace(from, to)).unwrap();
    }

    /// Returns the URL of the service.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns a client.
    pub fn client(&self) -> Client {
        Client::builder(self.url()).build().unwrap()
    }

    /// Returns a client with an API key.
    pub fn client_with(&self, api_key: &str) -> Client {
        Client::builder(self.url()).api_key(api_key).build().unwrap()
    }

    /// Starts a local verifier that answers only under a lease.
    pub fn watcher(&self) -> Verifier {
        Verifier::local(self.client()).on_lapse(OnLapse::Refuse).start()
    }

    /// Starts such a verifier with a clock that stands still, so that a lease lasts until the test
    /// moves the clock.
    pub fn still_watcher(&self) -> (Verifier, Arc<SettableClock>) {
        let (client, clock) = (self.client(), clock());
        let settings = Verifier::local(client).on_lapse(OnLapse::Refuse);
        (settings.clock(clock.clone()).start(), clock)
    }
}

/// Suspends a service, and waits until none of its threads runs.
pub async fn suspend(server: &Server) {
    server.signal("STOP");
    let tasks = format!("/proc/{}/task", server.id());
    let is_stopped = |task: std::io::Result<fs::DirEntry>| {
        let stat = fs::read_to_string(task.unwrap().path().join("stat"));
        // The state follows the name of the thread, which is in parentheses.
        stat.map_or(true, |stat| stat.rsplit_once(") ").unwrap().1.starts_with('T'))
    };
    eventually("the service is suspended", || fs::read_dir(&tasks).unwrap().all(is_stopped)).await;
}

/// Returns a clock that stands at the present time.
pub fn clock() -> Arc<SettableClock> {
    Arc::new(SettableClock::at(SystemClock.now()))
}

/// Returns the table of a caller in the configuration, and its API key.
pub fn caller(name: &str, settings: &str) -> (String, String) {
    let key = ApiKey::generate(&SystemRng::default()).unwrap();
    let table =
        format!("[[callers]]\nname = '{name}'\nkey_hashes = ['{}']\n{settings}\n", key.hash());
    (table, key.reveal().to_owned())
}

/// Returns a request for a session with a scope and a claim.
pub fn request(subject: &str) -> CreateSessionRequest {
    let claims = serde_json::json!({ "plan": "gold", "seats": 3 });
    CreateSessionRequest {
        subject: subject.to_owned(),
        scopes: vec!["orders:read".to_owned()],
        claims: claims.as_object().map(json::to_struct),
        ..Default::default()
    }
}

/// Creates a session, and returns its access token.
pub async fn sign_in(client: &Client, subject: &str) -> String {
    let answer = client.create_session(request(subject)).await.unwrap();
    answer.tokens.unwrap().access_token
}

/// Returns a request to revoke the session of a token.
pub fn of_token(token: &str) -> RevokeRequest {
    RevokeRequest { target: Some(Target::Token(token.to_owned())), ..Default::default() }
}

/// Checks a token without a call.
pub fn check(verifier: &Verifier, token: &str) -> Answer {
    verifier.verify_locally(token, &Demands::new())
}

/// Checks a token without a call, once there is a lease. On a busy machine a lease may end.
pub async fn settled(verifier: &Verifier, token: &str) -> Answer {
    loop {
        match check(verifier, token) {
            Answer::Unknown(Unknown::NoLease) => in_time("a lease", verifier.ready()).await,
            answer => return answer,
        }
    }
}

/// Waits for an event that must happen.
pub async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), event)
        .await
        .unwrap_or_else(|_| panic!("not within a minute: {what}"))
}

/// Waits until a condition without an event holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    in_time(what, looking).await;
}
