//! Tests of `countersign doctor`: each defect of an installation is found and comes with the way
//! out, and the command changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, Permissions},
    net::{SocketAddr, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use countersign::clock::{Clock, SystemClock};
use countersign_test_support::{
    certificates::Certificates,
    ports::free_address,
    postgres_server::{execute, new_database, texts},
    process::{GRACE, Server, countersign, run},
};
use diesel::{Connection, SqliteConnection, connection::SimpleConnection};
use serde_json::Value;
use tempfile::TempDir;

/// The variable with a master key, for databases on PostgreSQL.
const MASTER_KEY: (&str, &str) =
    ("COUNTERSIGN_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");

/// An installation.
struct Site {
    folder: TempDir,
    /// The addresses for gRPC and HTTP.
    ports: [SocketAddr; 2],
    /// The settings, as environment variables.
    settings: Vec<(String, String)>,
}

/// The output of `countersign doctor`: status and text by the name of the check.
#[derive(Debug)]
struct Report(BTreeMap<String, (String, String)>);

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Sweeps and the audit table are off, because they would change the database during a test.
        let site = Self { folder, ports: [free_address(), free_address()], settings: vec![] };
        site.with("COUNTERSIGN_SWEEPER__SCHEDULE", "0 0 30 2 *")
            .with("COUNTERSIGN_AUDIT__TABLE", "false")
    }

    /// Creates an installation on a new database of PostgreSQL.
    async fn on_postgres() -> (Self, String) {
        let url = new_database().await;
        let site = Self::new().with(MASTER_KEY.0, MASTER_KEY.1);
        (site.with("COUNTERSIGN_DATABASE_URL", &url), url)
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = countersign();
        let [grpc, http] = self.ports.map(|address| address.to_string());
        command.args([subcommand, "--listen", &grpc, "--http-listen", &http, "--data-dir"]);
        command.arg(self.data()).env(GRACE, "0s");
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    fn start(&self) -> Server {
        Server::launch(&mut self.command("serve"))
    }

    /// Runs the command as text and as JSON, and checks that both agree.
    #[track_caller]
    fn doctor(&self) -> Report {
        Report::of(|| self.command("doctor"))
    }
}

impl Report {
    #[track_caller]
    fn of(command: impl Fn() -> Command) -> Self {
        let (text, json) = (run(&mut command()), run(command().arg("--json")));
        assert_eq!((text.stderr.as_str(), json.stderr.as_str()), ("", ""));
        let lines: Vec<_> = text
            .stdout
            .lines()
            .map(|line| {
                let (status, rest) = line.split_once(' ').unwrap();
                let (check, finding) = rest.trim_start().split_once(' ').unwrap();
                [status, check, finding.trim_start()].map(str::to_owned)
            })
            .collect();
        let parsed: Value = serde_json::from_str(&json.stdout).unwrap();
        let parsed: Vec<_> = parsed
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                let member = |name: &str| entry[name].as_str().unwrap().to_owned();
                assert_eq!(entry["remedy"].is_null(), entry["status"] == "OK", "{entry}");
                let finding = match entry["remedy"].as_str() {
                    Some(remedy) => format!("{}: {remedy}", member("finding")),
                    None => member("finding"),
                };
                [member("status"), member("check"), finding]
            })
            .collect();
        // Some findings have numbers that change all the time, or the error of a connection, which
        // may end in several ways.
        let comparable = |lines: &[[String; 3]]| -> Vec<_> {
            let finding = |check: &str, text: &str| match check {
                "lease" | "disk_space" | "clock" | "replicas" => String::new(),
                "grpc_port" | "http_port" => text.split(" (").next().unwrap().to_owned(),
                _ => text.to_owned(),
            };
            let compared = |[status, check, text]: &[String; 3]| {
                [status.clone(), check.clone(), finding(check, text)]
            };
            lines.iter().map(compared).collect()
        };
        assert_eq!(comparable(&lines), comparable(&parsed));
        let has_failed = lines.iter().any(|[status, ..]| status == "FAIL");
        assert_eq!([text.code, json.code], [Some(i32::from(has_failed)); 2], "{lines:#?}");
        let report: BTreeMap<_, _> =
            lines.iter().cloned().map(|[status, check, text]| (check, (status, text))).collect();
        assert_eq!(report.len(), lines.len(), "one line a check: {lines:#?}");
        Self(report)
    }

    /// Checks the status of a check, and that its line contains these words.
    #[track_caller]
    fn says(&self, check: &str, status: &str, words: &[&str]) -> &Self {
        let (found, text) = self.0.get(check).unwrap_or_else(|| panic!("no {check}: {self:#?}"));
        assert_eq!(found, status, "{check}: {text}");
        for words in words {
            assert!(text.contains(words), "{words:?} is missing in {check}: {text}");
        }
        self
    }

    /// Checks that these are the only checks that are not OK.
    #[track_caller]
    fn only(&self, expected: &[&str]) -> &Self {
        let not_ok: Vec<_> =
            self.0.iter().filter(|(_, (status, _))| status != "OK").map(|(name, _)| name).collect();
        assert_eq!(not_ok, expected, "{self:#?}");
        self
    }

    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

/// The mode, the time of the last change and the content of everything in a folder.
#[derive(PartialEq, Eq)]
struct Snapshot(BTreeMap<PathBuf, (u32, i64, i64, Vec<u8>)>);

impl Snapshot {
    fn of(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let metadata = fs::metadata(&path).unwrap();
            let content = if metadata.is_dir() {
                files.extend(Self::of(&path).0);
                vec![]
            } else {
                fs::read(&path).unwrap()
            };
            let changed = (metadata.mtime(), metadata.mtime_nsec());
            files.insert(path, (metadata.mode(), changed.0, changed.1, content));
        }
        Self(files)
    }

    /// Checks that nothing has changed in the folder.
    #[track_caller]
    fn assert_unchanged(&self, folder: &Path) {
        let now = Self::of(folder);
        let paths: BTreeSet<_> = self.0.keys().chain(now.0.keys()).collect();
        let changed: Vec<_> =
            paths.into_iter().filter(|path| self.0.get(*path) != now.0.get(*path)).collect();
        assert!(changed.is_empty(), "{changed:?} changed");
    }

    fn has(&self, name: &str) -> bool {
        self.0.keys().any(|path| path.ends_with(name))
    }
}

#[test]
fn a_healthy_installation_has_no_findings_and_is_left_unchanged() {
    let site = Site::new();
    let unused = Snapshot::of(site.folder.path());
    site.doctor()
        .only(&["data_directory", "database_files", "grpc_port", "http_port", "master_key"])
        .says("database_files", "WARN", &["does not exist yet", "start the service"])
        .says("grpc_port", "WARN", &["the service does not run here", "countersign serve"]);
    unused.assert_unchanged(site.folder.path());

    let mut server = site.start();
    server.cli(["session", "create", "alice"]).ok();
    // The service stamps the file after its first write.
    while !fs::read_to_string(site.data().join("countersign.db.lock")).unwrap().contains("stamp ") {
        std::thread::yield_now();
    }
    let serving = Snapshot::of(site.folder.path());
    let report = site.doctor();
    report.only(&[]).says("grpc_port", "OK", &["SERVING"]).says("schema", "OK", &["up to date"]);
    report.says("keys", "OK", &["opens all 4"]).says("lease", "OK", &["without a time limit"]);
    report.says("key_rotation", "OK", &["access_token at 2", "refresh_token at 2"]);
    let expected = [
        "access",
        "configuration",
        "data_directory",
        "database",
        "database_files",
        "disk_space",
        "grpc_port",
        "http_port",
        "key_rotation",
        "keys",
        "lease",
        "master_key",
        "schema",
    ];
    assert_eq!(report.names(), expected);
    serving.assert_unchanged(site.folder.path());
    server.cli(["session", "create", "bob"]).ok();

    // After a crash, the last changes are only in the log.
    server.kill();
    let killed = Snapshot::of(site.folder.path());
    assert!(killed.has("countersign.db-wal"));
    site.doctor().only(&["grpc_port", "http_port"]).says("keys", "OK", &["opens all 4"]);
    killed.assert_unchanged(site.folder.path());

    fs::remove_file(site.data().join("countersign.db-shm")).unwrap();
    site.doctor().says("database", "WARN", &["without its -shm file", "database check"]);
    assert!(!site.data().join("countersign.db-shm").exists());

    let database = site.data().join("countersign.db");
    fs::rename(&database, site.folder.path().join("aside.db")).unwrap();
    fs::write(&database, "").unwrap();
    site.doctor().says("database_files", "FAIL", &["its log", "put the database back"]);
    fs::rename(site.folder.path().join("aside.db"), &database).unwrap();

    site.start().stop();
    let stopped = Snapshot::of(site.folder.path());
    assert!(!stopped.has("countersign.db-wal"));
    let report = site.doctor();
    report.only(&["grpc_port", "http_port"]);
    assert!(!report.names().contains(&"lease"));
    stopped.assert_unchanged(site.folder.path());
    site.start();
}

#[test]
fn a_configuration_that_is_not_valid_is_the_only_finding() {
    let site = Site::new().with("COUNTERSIGN_TOKENS__LEEWAY", "soon");
    let report = site.doctor();
    report.says("configuration", "FAIL", &["COUNTERSIGN_TOKENS__LEEWAY", "\"soon\"", "correct"]);
    assert_eq!(report.names(), ["configuration"]);
    let report = Site::new().with("COUNTERSIGN_DATABASE_URL", "mysql://u:hidden@h/d").doctor();
    report.says("configuration", "FAIL", &["setting database_url", "use sqlite://PATH"]);
    assert!(!format!("{report:?}").contains("hidden"));
}

#[test]
fn ports_that_others_can_reach_without_protection_are_a_warning() {
    let mut site = Site::new().with("COUNTERSIGN_INSECURE", "true");
    site.ports[0].set_ip([0, 0, 0, 0].into());
    let _server = site.start();
    site.doctor()
        .says("access", "WARN", &["whoever reaches the ports may do everything", "callers"])
        .says("grpc_port", "OK", &["127.0.0.1:", "SERVING"]);
}

#[test]
fn files_that_others_can_read_or_replace_are_found_with_the_command_that_corrects_them() {
    let site = Site::new();
    site.start().stop();
    let mode = |name: &str, mode| {
        fs::set_permissions(site.data().join(name), Permissions::from_mode(mode)).unwrap();
    };
    mode("master.key", 0o644);
    mode("countersign.db", 0o644);
    mode("", 0o777);
    let report = site.doctor();
    report.says("master_key", "FAIL", &["master.key has mode 0644", "run `chmod 600 "]);
    report.says("data_directory", "FAIL", &["has mode 0777", "chmod go-w"]);
    assert!(!report.names().contains(&"keys"), "the master key is not used: {report:?}");
    mode("", 0o700);
    mode("master.key", 0o600);
    let report = site.doctor();
    report.only(&["database_files", "grpc_port", "http_port"]);
    report.says("database_files", "WARN", &["has mode 0644, so others can read it", "chmod 600"]);
    mode("countersign.db", 0o666);
    site.doctor().says("database_files", "FAIL", &["others can change it", "chmod 600"]);
}

#[test]
fn a_master_key_that_does_not_open_the_keys_fails() {
    let (site, other) = (Site::new(), Site::new());
    for site in [&site, &other] {
        site.start().stop();
    }
    let path = site.data().join("master.key");
    fs::copy(other.data().join("master.key"), &path).unwrap();
    site.doctor().only(&["grpc_port", "http_port", "keys"]).says(
        "keys",
        "FAIL",
        &["cannot be opened with this master key", "restore the master key"],
    );
    fs::remove_file(&path).unwrap();
    site.doctor().says("keys", "FAIL", &["master.key does not exist", "restore it from a backup"]);
}

#[test]
fn a_database_that_is_damaged_or_has_another_schema_is_found() {
    let site = Site::new();
    site.start().stop();
    let path = site.data().join("countersign.db");
    let edit = |sql: &str| {
        let mut connection = SqliteConnection::establish(path.to_str().unwrap()).unwrap();
        connection.batch_execute(sql).unwrap();
    };
    edit("INSERT INTO __diesel_schema_migrations (version) VALUES ('9999')");
    site.doctor().only(&["grpc_port", "http_port", "schema"]).says(
        "schema",
        "FAIL",
        &["newer countersign (migration 9999)", "run that version"],
    );
    edit("DELETE FROM __diesel_schema_migrations WHERE version IN ('0006', '9999')");
    site.doctor().says("schema", "WARN", &["older", "0006", "countersign migrate"]);
    fs::write(&path, b"no database ".repeat(1000)).unwrap();
    site.doctor().says("database", "FAIL", &["damaged", "restore it from a backup"]);
}

#[test]
fn a_certificate_is_checked_in_its_file_and_on_the_ports() {
    let mut site = Site::new();
    let certificates = Certificates::new(site.folder.path());
    let in_days = |days: i64| {
        // The half day keeps the number of whole days the same while the test runs.
        let at = SystemClock.now().seconds() + days * 86_400 + 43_200;
        time::OffsetDateTime::from_unix_timestamp(at).unwrap()
    };
    let (year, soon) = (in_days(365), in_days(10));
    certificates.certificate("good", &["localhost"], |params| params.not_after = year);
    certificates.certificate("other", &["localhost"], |params| params.not_after = year);
    certificates.certificate("soon", &["localhost"], |params| params.not_after = soon);
    certificates.certificate("expired", &["localhost"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let use_files = |site: &mut Site, certificate: &str, key: &str| {
        let path = |name: String| certificates.path(&name).display().to_string();
        site.settings.retain(|(name, _)| !name.starts_with("COUNTERSIGN_TLS__"));
        for (name, file) in [
            ("COUNTERSIGN_TLS__CERTIFICATE_FILE", format!("{certificate}.pem")),
            ("COUNTERSIGN_TLS__PRIVATE_KEY_FILE", format!("{key}.key")),
        ] {
            site.settings.push((name.to_owned(), path(file)));
        }
    };
    use_files(&mut site, "good", "good");
    let server = site.start();
    site.doctor().only(&[]).says("certificate", "OK", &["good.pem is valid until", "key matches"]);
    use_files(&mut site, "other", "other");
    site.doctor().only(&["grpc_port", "http_port"]).says(
        "grpc_port",
        "WARN",
        &["another certificate than the one in tls.certificate_file"],
    );
    use_files(&mut site, "soon", "soon");
    site.doctor().says("certificate", "WARN", &["for 10 days", "renew it"]);
    use_files(&mut site, "expired", "expired");
    site.doctor().only(&["certificate"]).says(
        "certificate",
        "FAIL",
        &["expired at 2020-01-01", "renew it"],
    );
    use_files(&mut site, "good", "other");
    site.doctor().says("certificate", "FAIL", &["does not go with the certificate"]);
    server.stop();

    use_files(&mut site, "good", "good");
    let authority = certificates.path("ca.pem").display().to_string();
    let site = site
        .with("COUNTERSIGN_TLS__CLIENT_CA_FILE", &authority)
        .with("COUNTERSIGN_TLS__CLIENT_CERTIFICATES", "required");
    let _server = site.start();
    site.doctor().only(&[]).says("grpc_port", "OK", &["only clients with a certificate"]);
}

#[test]
fn a_port_on_which_another_program_listens_fails() {
    let mut site = Site::new();
    let _server = site.start();
    site.ports.reverse();
    site.doctor()
        .only(&["grpc_port", "http_port"])
        .says("grpc_port", "FAIL", &["does not answer as this service would", "(settings listen"])
        .says("http_port", "FAIL", &["does not answer as this service would", "http_listen"]);
    site.ports.reverse();
    site.ports[1] = free_address();
    site.doctor().only(&["http_port"]).says("http_port", "FAIL", &["the other port is open"]);
}

#[test]
fn a_service_that_waits_for_its_database_is_not_ready() {
    let site = Site::new()
        .with(MASTER_KEY.0, MASTER_KEY.1)
        .with("COUNTERSIGN_DATABASE_URL", "postgres://u:hidden@127.0.0.1:1/d");
    let mut server = Server::spawn(&mut site.command("serve"));
    while !server.next_line().contains("trying again for") {}
    while site.ports.iter().any(|address| TcpStream::connect(address).is_err()) {}
    let report = site.doctor();
    report
        .says("database", "FAIL", &["postgres://u@127.0.0.1:1/d cannot be reached", "start the"])
        .says("grpc_port", "FAIL", &["NOT_SERVING"])
        .says("http_port", "FAIL", &["starting: the blacklist is being loaded"])
        .says("lease", "FAIL", &["there is no lease"]);
    assert!(["schema", "clock", "keys", "replicas"].iter().all(|c| !report.names().contains(c)));
    let output = run(&mut site.command("doctor"));
    assert!(!format!("{output:?}").contains("hidden"), "{output:?}");
}

/// Returns the content of all tables.
async fn content(url: &str) -> Vec<(String, Vec<String>)> {
    let tables = "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public' ORDER BY 1";
    let mut content = vec![];
    for table in texts(url, tables).await {
        let rows = texts(url, &format!("SELECT t::text FROM {table} AS t ORDER BY 1")).await;
        content.push((table, rows));
    }
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_on_postgresql_is_checked_with_its_clock_and_replicas() {
    let (site, url) = Site::on_postgres().await;
    site.doctor().says("schema", "WARN", &["no tables yet", "start this version"]);
    assert_eq!(content(&url).await, [], "no migration runs");
    let server = site.start();
    let report = site.doctor();
    // The server of the tests has no standby.
    report
        .only(&["replication"])
        .says("replication", "WARN", &["primary", "docs/guarantees.md#high-availability"])
        .says("database", "OK", &["can be reached (PostgreSQL "])
        .says("clock", "OK", &["clock"])
        .says("replicas", "OK", &["1 replica serves"])
        .says("lease", "OK", &["valid for another"]);
    server.stop();

    let stopped = content(&url).await;
    site.doctor()
        .only(&["grpc_port", "http_port", "replication"])
        .says("replicas", "OK", &["no replica serves"])
        .says("keys", "OK", &["opens all 4"]);
    assert_eq!(content(&url).await, stopped);
    execute(
        &url,
        "INSERT INTO replicas (incarnation, renewed_at, applied, name, version, address) VALUES \
         (gen_random_uuid(), now() - interval '1 hour', 0, 'lost', '0.1.0', '192.0.2.7:50051')",
    )
    .await;
    site.doctor().says("replicas", "WARN", &["lost at 192.0.2.7:50051", "3600 s ago", "start"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_migrations_a_newer_schema_and_a_read_only_database_are_found() {
    let (site, url) = Site::on_postgres().await;
    site.start().stop();
    execute(&url, "DELETE FROM __diesel_schema_migrations WHERE version = '0012'").await;
    let pending = content(&url).await;
    site.doctor().says("schema", "WARN", &["missing is migration 0012", "countersign migrate"]);
    assert_eq!(content(&url).await, pending, "no migration runs");
    let site = site.with("COUNTERSIGN_DATABASE__MIGRATE", "false");
    site.doctor().says("schema", "FAIL", &["0012", "does not migrate", "countersign migrate"]);

    execute(&url, "INSERT INTO __diesel_schema_migrations (version) VALUES ('0012'), ('9999')")
        .await;
    let report = site.doctor();
    report.says("schema", "FAIL", &["newer countersign (migration 9999)", "run that version"]);
    assert!(!report.names().contains(&"keys"), "{report:?}");

    let database = url.rsplit_once('/').unwrap().1;
    let read_only = format!("ALTER DATABASE {database} SET default_transaction_read_only = on");
    execute(&url, &read_only).await;
    site.doctor().says("database", "FAIL", &["does not allow writes", "name the primary"]);
}
