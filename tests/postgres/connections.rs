//! Connections to the database: TLS, passwords, several hosts, and time-outs.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use countersign::{
    app,
    domain::ids::SessionId,
    store::{
        Store,
        postgres::{
            PostgresStore,
            connect::{Options, Password},
        },
    },
};
use countersign_test_support::{
    ports::free_address,
    postgres_server::{Server, execute, new_database, number, options},
    proxy::Link,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::{config, in_time};

/// The name in the server's certificate, which does not contain the server's address.
const NAME: &str = "localhost";
const PASSWORD: &str = "pass %word";

/// A server that demands TLS and a password over TCP.
struct Protected {
    server: Server,
    port: u16,
    folder: TempDir,
}

impl Protected {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (key, certificate) = Self::certificate(&folder);
        Self::start_by(folder, &key, &certificate, "TLSv1.3")
    }

    /// Returns a key and a certificate for `NAME`, in PEM, signed by the authority in ca.pem. The
    /// authority in other.pem has signed nothing.
    fn certificate(folder: &TempDir) -> (String, String) {
        let authority = |name: &str| {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            fs::write(folder.path().join(name), params.self_signed(&key).unwrap().pem()).unwrap();
            Issuer::new(params, key)
        };
        authority("other.pem");
        let authority = authority("ca.pem");
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![NAME.to_owned()])
            .unwrap()
            .signed_by(&key, &authority)
            .unwrap()
            .pem();
        (key.serialize_pem(), certificate)
    }

    /// Starts a server with this key and certificate. `folder` holds the root certificates for
    /// clients.
    fn start_by(folder: TempDir, key: &str, certificate: &str, version: &str) -> Self {
        let port = free_address().port();
        let server = Server::start_with(|dir| {
            let file = |name: &str, text: &str| {
                fs::write(dir.join(name), text).unwrap();
                dir.join(name).display().to_string()
            };
            let private = file("server.key", key);
            fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .unwrap();
            vec![
                format!("port={port}"),
                "listen_addresses=127.0.0.1".to_owned(),
                "ssl=on".to_owned(),
                format!("ssl_key_file={private}"),
                format!("ssl_cert_file={}", file("server.pem", certificate)),
                format!("ssl_max_protocol_version={version}"),
                format!(
                    "hba_file={}",
                    file("hba", "local all all trust\nhostssl all all all scram-sha-256\n")
                ),
            ]
        });
        Self { server, port, folder }
    }

    async fn with_role(self) -> Self {
        let url = self.server.url("postgres");
        let (socket, database) = url.rsplit_once('/').unwrap();
        execute(
            &format!("{socket}:{}/{database}", self.port),
            &format!("CREATE ROLE app LOGIN SUPERUSER PASSWORD '{PASSWORD}'"),
        )
        .await;
        self
    }

    fn root(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string().replace('/', "%2F")
    }

    fn url(&self, host: &str, query: &str) -> String {
        format!("postgres://app:pass%20%25word@{host}:{}/postgres?{query}", self.port)
    }
}

/// Opens a store and reads from it.
async fn attempt(options: &Options) -> Result<(), String> {
    let store = PostgresStore::open(options).await.map_err(|error| error.to_string())?;
    store.ring().await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sslmode_accepts_only_servers_that_meet_its_demands() {
    let server = Protected::start().with_role().await;
    let (ours, other) = (server.root("ca.pem"), server.root("other.pem"));
    for (host, query, expected) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), Err("no encryption")),
        ("127.0.0.1", String::new(), Ok(())),
        ("127.0.0.1", "sslmode=prefer".to_owned(), Ok(())),
        ("127.0.0.1", "sslmode=require".to_owned(), Ok(())),
        (
            "127.0.0.1",
            format!("sslmode=require&sslrootcert={other}"),
            Err("invalid peer certificate"),
        ),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}"), Ok(())),
        (
            "127.0.0.1",
            format!("sslmode=verify-ca&sslrootcert={other}"),
            Err("invalid peer certificate"),
        ),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}"), Err("not valid for name")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}"), Ok(())),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={other}"),
            Err("invalid peer certificate"),
        ),
        ("localhost", "sslmode=verify-full".to_owned(), Err("invalid peer certificate")),
    ] {
        let outcome = attempt(&options(&server.url(host, &query))).await;
        match (&outcome, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expected)) => {
                assert!(error.contains(expected), "{host} {query}: {error}")
            }
            _ => panic!("{host} {query}: {outcome:?}"),
        }
    }
}

/// Makes a key and a self-signed certificate of X.509 version 1, as the tools of some images do.
fn version_1(folder: &Path, algorithm: &[&str]) -> [String; 2] {
    let openssl = |arguments: &[&str]| {
        let made =
            Command::new("openssl").args(arguments).current_dir(folder).output().expect("openssl");
        assert!(made.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).unwrap()
    };
    openssl(&[&["genpkey", "-out", "v1.key"], algorithm].concat());
    openssl(&["req", "-new", "-key", "v1.key", "-subj", "/CN=localhost", "-out", "v1.csr"]);
    openssl(&[
        "x509", "-req", "-in", "v1.csr", "-signkey", "v1.key", "-days", "2", "-out", "v1.pem",
    ]);
    if !openssl(&["x509", "-in", "v1.pem", "-noout", "-text"]).contains("Version: 1 ") {
        // Newer releases of openssl make certificates of version 3 unless an option demands version
        // 1.
        openssl(&[
            "req",
            "-x509v1",
            "-key",
            "v1.key",
            "-subj",
            "/CN=localhost",
            "-days",
            "2",
            "-out",
            "v1.pem",
        ]);
    }
    ["v1.key", "v1.pem"].map(|name| fs::read_to_string(folder.join(name)).unwrap())
}

/// In the modes that do not verify the certificate, libpq accepts any certificate, and so does the
/// service.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_1_certificate_is_accepted_only_in_modes_that_do_not_verify_certificates() {
    for (algorithm, version) in [
        (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"].as_slice(), "TLSv1.3"),
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "TLSv1.3"),
        (&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "TLSv1.2"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [key, certificate] = version_1(folder.path(), algorithm);
        let server = Protected::start_by(folder, &key, &certificate, version).with_role().await;
        let root = server.root("v1.pem");
        for mode in ["prefer", "require"] {
            attempt(&options(&server.url("127.0.0.1", &format!("sslmode={mode}")))).await.unwrap();
        }
        for mode in ["verify-ca", "verify-full"] {
            let url = server.url("localhost", &format!("sslmode={mode}&sslrootcert={root}"));
            let refused = attempt(&options(&url)).await.unwrap_err();
            for part in ["X.509 version 1", "version 3", "sslmode=require"] {
                assert!(refused.contains(part) && !refused.contains('\n'), "{refused}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_if_the_url_demands_tls() {
    let url = new_database().await;
    let outcome = attempt(&options(&format!("{url}?sslmode=require"))).await;
    assert!(outcome.unwrap_err().contains("server does not support TLS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_the_url_the_environment_or_a_file_that_may_change() {
    let server = Protected::start().with_role().await;
    let url = format!("postgres://app@127.0.0.1:{}/postgres", server.port);
    let file = server.folder.path().join("password");
    let with = |password| Options { password, ..options(&url) };
    attempt(&options(&server.url("127.0.0.1", ""))).await.unwrap();
    attempt(&with(Password::Text(PASSWORD.to_owned()))).await.unwrap();

    let from_file = with(Password::File(PathBuf::from(&file)));
    let refused = attempt(&from_file).await.unwrap_err();
    assert!(
        refused.contains("database.password_file") && refused.contains("No such file"),
        "{refused}"
    );
    fs::write(&file, "of yesterday").unwrap();
    let refused = attempt(&from_file).await.unwrap_err();
    assert!(
        refused.contains("password authentication failed") && !refused.contains("yesterday"),
        "{refused}"
    );
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    attempt(&from_file).await.unwrap();
}

/// After a failover the first server of the list is gone, or is read-only.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_hosts_the_one_that_accepts_writes_is_used() {
    let read_only = new_database().await;
    let writable = Server::start();
    let name = read_only.rsplit_once('/').unwrap().1;
    execute(&writable.url("postgres"), &format!("CREATE DATABASE {name}")).await;
    execute(&read_only, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"))
        .await;

    let refused = attempt(&options(&read_only)).await.unwrap_err();
    assert!(refused.contains("does not allow writes"), "{refused}");
    let host = |url: &str| url.split_once('@').unwrap().1.rsplit_once('/').unwrap().0.to_owned();
    let (first, last) = (host(&read_only), host(&writable.url(name)));
    let url = format!("postgres://postgres@127.0.0.1:1,{first}:5432,{last}:5432/{name}");
    attempt(&options(&url)).await.unwrap();
    execute(&writable.url(name), "SELECT seq FROM feed_head").await;
}

/// Returns an address that accepts connections into its backlog and never answers, like a server
/// whose processes are stopped.
fn unresponsive_address() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    (listener, host)
}

/// Creates databases of one name on two servers, the first of them read-only. Returns their URLs
/// and hosts, the second server, and the name.
async fn read_only_and_writable() -> ([String; 2], [String; 2], Server, String) {
    let read_only = new_database().await;
    let server = Server::start();
    let name = read_only.rsplit_once('/').unwrap().1.to_owned();
    execute(&server.url("postgres"), &format!("CREATE DATABASE {name}")).await;
    execute(&read_only, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on"))
        .await;
    let urls = [read_only, server.url(&name)];
    let hosts = urls.each_ref().map(|url| {
        let host = url.split_once('@').unwrap().1.rsplit_once('/').unwrap().0;
        format!("{host}:5432")
    });
    (urls, hosts, server, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unresponsive_server_does_not_prevent_a_connection_to_another() {
    let (_, [read_only, writable], _server, name) = read_only_and_writable().await;
    let ((_one, mute), (_two, other_mute)) = (unresponsive_address(), unresponsive_address());
    let refusing = "127.0.0.1:1".to_owned();
    for hosts in [
        vec![&mute, &writable],
        vec![&writable, &mute],
        vec![&mute, &other_mute, &writable],
        vec![&read_only, &mute, &writable],
        vec![&mute, &read_only, &writable],
        vec![&refusing, &mute, &read_only, &writable],
    ] {
        let hosts = hosts.into_iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let url = format!("postgres://postgres@{hosts}/{name}");
        let long_timeout = Options { connect_timeout: Duration::from_secs(600), ..options(&url) };
        in_time(attempt(&long_timeout)).await.unwrap_or_else(|error| panic!("{hosts}: {error}"));
        let folder = tempfile::tempdir().unwrap();
        in_time(app::migrate(&config(&format!("{url}?connect_timeout=600"), folder.path())))
            .await
            .unwrap();
    }
}

/// The server that never answers takes the part of the former primary. The other server is
/// read-only at first, and then becomes the new primary.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_takes_over_is_found_although_another_server_does_not_answer() {
    let ([read_only, _], _, _server, name) = read_only_and_writable().await;
    let (_listener, mute) = unresponsive_address();
    let link = Link::to(&read_only).await;
    let address = link.url().split_once('@').unwrap().1.rsplit_once('/').unwrap().0.to_owned();
    for hosts in [[&mute, &address], [&address, &mute]] {
        let alter = |how: &str| format!("BEGIN READ WRITE; ALTER DATABASE {name} {how}; COMMIT");
        execute(&read_only, &alter("SET default_transaction_read_only = on")).await;
        let before = link.connections();
        let url = format!("postgres://postgres@{},{}/{name}", hosts[0], hosts[1]);
        let long_timeout = Options { connect_timeout: Duration::from_secs(600), ..options(&url) };
        let taking_over = async {
            link.connected(before + 1).await;
            execute(&read_only, &alter("RESET ALL")).await;
        };
        let (attempted, ()) =
            in_time(futures_util::future::join(attempt(&long_timeout), taking_over)).await;
        attempted.unwrap();
    }
}

/// The connect time-out also covers the handshakes that follow an accepted TCP connection, and the
/// error names the hosts.
#[tokio::test(flavor = "multi_thread")]
async fn the_connect_timeout_covers_the_handshakes_with_a_host() {
    let ((_one, mute), (_two, other)) = (unresponsive_address(), unresponsive_address());
    let url = format!("postgres://postgres@{mute},{other}/d?sslmode=disable");
    let hasty = Options { connect_timeout: Duration::from_millis(200), ..options(&url) };
    let refused = in_time(attempt(&hasty)).await.unwrap_err();
    for part in [mute, other, "no answer within 200ms".to_owned()] {
        assert!(refused.contains(&part) && !refused.contains('\n'), "{refused}");
    }
}

/// The server stops executing a query that nobody waits for as soon as its connection is closed,
/// and the pool can open another connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_closed_at_once_when_the_store_stops_waiting_for_its_answer() {
    let url = new_database().await;
    let link = Link::to(&url).await;
    let hasty = Options { statement_timeout: Duration::from_millis(200), ..options(&link.url()) };
    let store = PostgresStore::open(&hasty).await.unwrap();
    let ask = || store.session(SessionId::from_bytes([1; 16]));
    assert_eq!(ask().await.unwrap(), None);

    let instant =
        number(&url, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await;
    let asked = format!(
        "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%sessions%'
        AND extract(epoch FROM query_start) * 1000000 > {instant}"
    );
    let becomes = async |expected: i64| while number(&url, &asked).await != expected {};
    link.hold_replies();
    let (answer, ()) = in_time(futures_util::future::join(ask(), becomes(1))).await;
    answer.unwrap_err();
    in_time(becomes(0)).await;
}
