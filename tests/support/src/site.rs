//! The real binary as a process with a folder and a database of its own, which logs everything that
//! it does. After any bad input, the tests check that the process is still in order.

use std::{
    collections::HashSet,
    fs,
    net::{SocketAddr, TcpListener},
    sync::Mutex,
    time::Duration,
};

use countersign::{
    app,
    config::{Config, Flags},
    proto::{
        CreateSessionRequest, CreateSessionResponse, RefreshRequest, RotateKeyRequest,
        ValidateRequest, key_service_client::KeyServiceClient,
        session_service_client::SessionServiceClient,
    },
};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::{
    database::Database,
    forge::{Forge, header},
    log::Secrets,
    process::{Server as Process, countersign},
    server::{Rows, SignedIn},
};

/// The pause between the calls of other clients during an attack, so that they do not take the
/// processor from the attack.
const PACE: Duration = Duration::from_millis(2);

/// A process that serves.
pub struct Site {
    process: Mutex<Process>,
    folder: TempDir,
    database: Database,
    secrets: Mutex<Secrets>,
    /// A live session after its last refresh.
    good: Mutex<SignedIn>,
    /// The listener whose address the bad tokens contain. The service must never connect to it.
    trap: TcpListener,
    /// The address on which the process listens for gRPC.
    pub address: SocketAddr,
    /// A connection to the process.
    pub channel: Channel,
}

/// The keys of a site, and a token of a key that was deleted.
pub struct Keys {
    /// The keys that sign and encrypt.
    pub forge: Forge,
    /// A token whose key was deleted.
    pub token_of_deleted_key: String,
}

impl Site {
    /// Starts a site with these sections of settings in addition to its own.
    pub async fn start(sections: &str) -> Self {
        Self::launch("trace", sections, async |_, _| ()).await.0
    }

    /// Starts a site that logs only the usual level, for tests that send a hundred thousand frames.
    pub async fn quiet(sections: &str) -> Self {
        Self::launch("info", sections, async |_, _| ()).await.0
    }

    /// Starts a site, and also returns its keys.
    pub async fn with_keys(sections: &str) -> (Self, Keys) {
        let prepare = async |folder: &TempDir, database: &Database| {
            let process = serve(folder);
            let channel = process.channel().await;
            let token_of_deleted_key = sign_in(&channel).await.access;
            let rotate = RotateKeyRequest { force: true, ..Default::default() };
            KeyServiceClient::new(channel).rotate_key(rotate).await.unwrap();
            process.stop();
            database.released().await;
            let gone = header(&token_of_deleted_key)["kid"].as_str().unwrap().to_owned();
            database.execute(&format!("DELETE FROM signing_keys WHERE kid = '{gone}'")).await;
            let config =
                Config::load(Some(&folder.path().join("countersign.toml")), &Flags::default())
                    .unwrap();
            let store = app::open_store(&config).await.unwrap();
            let forge = Forge::open(&folder.path().join("data/master.key"), &*store).await;
            drop(store);
            database.released().await;
            Keys { forge, token_of_deleted_key }
        };
        Self::launch("trace", sections, prepare).await
    }

    async fn launch<T>(
        level: &str,
        sections: &str,
        prepare: impl AsyncFnOnce(&TempDir, &Database) -> T,
    ) -> (Self, T) {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let database = Database::new(&data).await;
        let text = format!(
            "issuer = 'https://auth.test'\nlisten = '127.0.0.1:0'\nhttp_listen = \
             '127.0.0.1:0'\ndata_dir = '{}'\ndatabase_url = '{}'\n[shutdown]\ngrace = \
             '0s'\n[log]\nlevel = '{level}'\n[sweeper]\nschedule = '0 0 29 2 *'\n{sections}",
            data.display(),
            database.url()
        );
        fs::write(folder.path().join("countersign.toml"), text).unwrap();
        let prepared = prepare(&folder, &database).await;
        let process = serve(&folder);
        let (address, channel) = (process.address(), process.channel().await);
        let good = sign_in(&channel).await;
        let trap = TcpListener::bind("127.0.0.1:0").unwrap();
        trap.set_nonblocking(true).unwrap();
        let (process, good) = (Mutex::new(process), Mutex::new(good));
        (
            Self {
                process,
                folder,
                database,
                secrets: Mutex::default(),
                good,
                trap,
                address,
                channel,
            },
            prepared,
        )
    }

    /// Returns whether its database is SQLite.
    pub fn is_on_sqlite(&self) -> bool {
        matches!(self.database, Database::Sqlite(_))
    }

    /// Returns an address to which the service must not connect.
    pub fn trap(&self) -> String {
        format!("http://{}", self.trap.local_addr().unwrap())
    }

    /// Returns the live session after its last refresh.
    pub fn good(&self) -> SignedIn {
        self.good.lock().unwrap().clone()
    }

    /// Returns a client, which may send messages of any size.
    pub fn client(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone()).max_encoding_message_size(usize::MAX)
    }

    /// Returns the resident memory of the process in MiB.
    pub fn resident(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.lock().unwrap().id()))
                .unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    /// Counts the rows.
    pub async fn rows(&self) -> Rows {
        Rows {
            sessions: self.database.count("sessions").await,
            blacklist: self.database.count("blacklist").await,
        }
    }

    /// Sends bad input that contains these secrets. Then checks that no row was added or deleted,
    /// that the process is running and has opened no connection, and that it answers good calls,
    /// also those that need the database.
    pub async fn survives<T>(
        &self,
        name: &str,
        secrets: &[&str],
        send: impl Future<Output = T>,
    ) -> T {
        secrets.iter().for_each(|secret| self.secrets.lock().unwrap().keep(name, secret));
        let rows = self.rows().await;
        let sent = send.await;
        assert_eq!(self.rows().await, rows, "{name}: rows were added or deleted");
        assert!(
            self.trap.accept().is_err(),
            "{name}: the service has connected to an address in a token"
        );
        assert_eq!(
            self.outgoing(),
            Vec::<String>::new(),
            "{name}: the service has connected to somebody"
        );
        assert!(!self.process.lock().unwrap().has_ended(), "{name}: the process has ended");
        self.good_call().await;
        sent
    }

    /// Opens a new connection as any client does, and makes good calls on it.
    async fn good_call(&self) {
        let good = self.good();
        let mut client = SessionServiceClient::new(connect(self.address).await);
        assert!(self.validates(&mut client).await);
        let refreshed = client
            .refresh(RefreshRequest { refresh_token: good.refresh, ..Default::default() })
            .await;
        let refreshed = refreshed.unwrap().into_inner();
        *self.good.lock().unwrap() = (refreshed.session, refreshed.tokens).into();
    }

    /// Returns whether the good access token is active.
    pub async fn validates(&self, client: &mut SessionServiceClient<Channel>) -> bool {
        let ask = ValidateRequest { access_token: self.good().access, ..Default::default() };
        client.validate(ask).await.unwrap().into_inner().active
    }

    /// Waits for an event. In the meantime checks repeatedly, and at least once, that another
    /// client is served on a connection of its own.
    pub async fn while_others_are_served<T>(&self, event: impl Future<Output = T>) -> T {
        let mut client = SessionServiceClient::new(connect(self.address).await);
        let mut event = std::pin::pin!(event);
        loop {
            assert!(self.validates(&mut client).await);
            tokio::select! {
                biased;
                done = &mut event => return done,
                () = tokio::time::sleep(PACE) => {}
            }
        }
    }

    /// Returns the TCP and UDP sockets of the process, except those on the ports where it listens.
    fn outgoing(&self) -> Vec<String> {
        let (id, ports) = {
            let process = self.process.lock().unwrap();
            (process.id(), [process.address().port(), process.http().port()])
        };
        let own: HashSet<_> = fs::read_dir(format!("/proc/{id}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter_map(|target| {
                Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
            })
            .collect();
        assert!(!own.is_empty(), "its sockets can be seen");
        let lines = ["tcp", "tcp6", "udp", "udp6"]
            .map(|kind| fs::read_to_string(format!("/proc/{id}/net/{kind}")));
        let is_outgoing = |line: &&str| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = u16::from_str_radix(fields[1].rsplit(':').next().unwrap(), 16).unwrap();
            own.contains(fields[9]) && !ports.contains(&port)
        };
        let lines: Vec<_> = lines.into_iter().flatten().collect();
        lines
            .iter()
            .flat_map(|text| text.lines().skip(1))
            .filter(is_outgoing)
            .map(str::to_owned)
            .collect()
    }

    /// Stops the process gracefully, and checks that its log has no piece of the secrets that were
    /// sent.
    pub async fn finish(self) {
        drop(self.channel);
        let mut secrets = self.secrets.into_inner().unwrap();
        let good = self.good.into_inner().unwrap();
        [&good.access, &good.refresh]
            .into_iter()
            .for_each(|token| secrets.keep("good calls", token));
        let log = self.process.into_inner().unwrap().stop().join("\n");
        assert!(log.contains("\"stopped\""), "the log is complete");
        assert_eq!(
            secrets.found_in(&log),
            Vec::<&str>::new(),
            "in the log of {}",
            self.folder.path().display()
        );
    }
}

fn serve(folder: &TempDir) -> Process {
    let mut command = countersign();
    command.args(["serve", "--config"]).arg(folder.path().join("countersign.toml"));
    Process::launch(&mut command)
}

/// Opens a connection.
pub async fn connect(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .expect("the server listens")
}

async fn sign_in(channel: &Channel) -> SignedIn {
    let request = CreateSessionRequest { subject: "alice".to_owned(), ..Default::default() };
    let created = SessionServiceClient::new(channel.clone()).create_session(request).await.unwrap();
    let CreateSessionResponse { session, tokens } = created.into_inner();
    (session, tokens).into()
}
