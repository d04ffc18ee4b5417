//! How the database is reached: TLS, several hosts, passwords.

use std::{fs, net::TcpListener, path::PathBuf};

use countersign::store::{
    Store,
    postgres::{
        PostgresStore,
        connect::{Options, Password},
    },
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::postgres_server::{Server, execute, new_database, options};

/// The name in the server's certificate. The host is reached by an address, which is not in it.
const NAME: &str = "localhost";
const PASSWORD: &str = "pass %word";

/// A server that takes nothing but TLS and a password over TCP.
struct Protected {
    server: Server,
    port: u16,
    folder: TempDir,
}

impl Protected {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
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
        let certificate =
            CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &authority).unwrap().pem();

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Server::start_with(|dir| {
            let file = |name: &str, text: &str| {
                fs::write(dir.join(name), text).unwrap();
                dir.join(name).display().to_string()
            };
            let private = file("server.key", &key.serialize_pem());
            fs::set_permissions(&private, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            vec![
                format!("port={port}"),
                "listen_addresses=127.0.0.1".to_owned(),
                "ssl=on".to_owned(),
                format!("ssl_key_file={private}"),
                format!("ssl_cert_file={}", file("server.pem", &certificate)),
                format!("hba_file={}", file("hba", "local all all trust\nhostssl all all all scram-sha-256\n")),
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

/// Opens a store and uses it.
async fn attempt(options: &Options) -> Result<(), String> {
    let store = PostgresStore::open(options).await.map_err(|error| error.to_string())?;
    store.ring().await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_of_tls_demands_what_it_says() {
    let server = Protected::start().with_role().await;
    let (ours, other) = (server.root("ca.pem"), server.root("other.pem"));
    for (host, query, expected) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), Err("no encryption")),
        ("127.0.0.1", String::new(), Ok(())),
        ("127.0.0.1", "sslmode=prefer".to_owned(), Ok(())),
        ("127.0.0.1", "sslmode=require".to_owned(), Ok(())),
        ("127.0.0.1", format!("sslmode=require&sslrootcert={other}"), Err("invalid peer certificate")),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={ours}"), Ok(())),
        ("127.0.0.1", format!("sslmode=verify-ca&sslrootcert={other}"), Err("invalid peer certificate")),
        ("127.0.0.1", format!("sslmode=verify-full&sslrootcert={ours}"), Err("not valid for name")),
        ("localhost", format!("sslmode=verify-full&sslrootcert={ours}"), Ok(())),
        ("localhost", format!("sslmode=verify-full&sslrootcert={other}"), Err("invalid peer certificate")),
        ("localhost", "sslmode=verify-full".to_owned(), Err("invalid peer certificate")),
    ] {
        let outcome = attempt(&options(&server.url(host, &query))).await;
        match (&outcome, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(error.contains(expected), "{host} {query}: {error}"),
            _ => panic!("{host} {query}: {outcome:?}"),
        }
    }
}

/// A certificate proves whose key it is only if the key is used.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_where_it_is_demanded() {
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
    assert!(refused.contains("database.password_file") && refused.contains("No such file"), "{refused}");
    fs::write(&file, "of yesterday").unwrap();
    let refused = attempt(&from_file).await.unwrap_err();
    assert!(refused.contains("password authentication failed") && !refused.contains("yesterday"), "{refused}");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    attempt(&from_file).await.unwrap();
}

/// After a failover the server that was asked first is gone, or only reads.
#[tokio::test(flavor = "multi_thread")]
async fn of_several_hosts_the_one_that_takes_writes_is_used() {
    let reading = new_database().await;
    let writing = Server::start();
    let name = reading.rsplit_once('/').unwrap().1;
    execute(&writing.url("postgres"), &format!("CREATE DATABASE {name}")).await;
    execute(&reading, &format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;

    let refused = attempt(&options(&reading)).await.unwrap_err();
    assert!(refused.contains("does not allow writes"), "{refused}");
    let host = |url: &str| url.split_once('@').unwrap().1.rsplit_once('/').unwrap().0.to_owned();
    let (first, last) = (host(&reading), host(&writing.url(name)));
    let url = format!("postgres://postgres@127.0.0.1:1,{first}:5432,{last}:5432/{name}");
    attempt(&options(&url)).await.unwrap();
    execute(&writing.url(name), "SELECT seq FROM feed_head").await;
}
