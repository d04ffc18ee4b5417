//! Tests of the error messages of commands that call a service. Each row is an invocation, its exit
//! code, and the words that the one line on standard error must contain.

use std::{
    fs::{self, Permissions},
    io::Write,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
};

use countersign_test_support::{
    certificates::Certificates,
    ports::free_address,
    process::{Run, Server, countersign, run},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

/// An invocation, its exit code, and the words of its error message.
struct Row {
    args: Vec<String>,
    variables: Vec<(&'static str, String)>,
    code: i32,
    words: &'static [&'static str],
}

/// Makes a row from a command line whose arguments are separated by spaces.
fn row(command: impl Into<String>, code: i32, words: &'static [&'static str]) -> Row {
    let args = command.into().split(' ').map(ToOwned::to_owned).collect();
    Row { args, variables: vec![], code, words }
}

impl Row {
    /// Sets a variable of the environment.
    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    fn run(&self) -> Run {
        run(countersign()
            .args(&self.args)
            .envs(self.variables.iter().map(|(name, value)| (*name, value))))
    }

    /// Runs the invocation, and returns the problems with its outcome.
    fn problems(&self) -> Vec<String> {
        let answer = self.run();
        let mut problems = vec![];
        if answer.code != Some(self.code) {
            problems.push(format!("exits with {:?}, not {}", answer.code, self.code));
        }
        if answer.stderr.lines().count() != 1 || !answer.stderr.starts_with("countersign: ") {
            problems.push("is not one line of ours".to_owned());
        }
        if !answer.stdout.is_empty() {
            problems.push("prints to standard output".to_owned());
        }
        let missing = self.words.iter().filter(|word| !answer.stderr.contains(**word));
        problems.extend(missing.map(|word| format!("does not say {word:?}")));
        let shown = |problem| format!("{} {problem}: {}", self.args.join(" "), answer.stderr);
        problems.into_iter().map(shown).collect()
    }
}

/// A running service, and a folder with certificates for its clients.
struct Site {
    folder: TempDir,
    certificates: Certificates,
    server: Server,
}

impl Site {
    /// Starts a service without TLS and without callers.
    fn plain() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(&folder.path().join("data"));
        Self { certificates: Certificates::new(folder.path()), folder, server }
    }

    /// Starts a service with TLS and these callers. `mode` is the value of
    /// `tls.client_certificates`.
    fn encrypted(callers: &str, mode: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(folder.path());
        certificates.certificate("expired", &["client.test"], |params| {
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        });
        certificates.certificate("client", &["client.test"], |_| ());
        certificates.certificate("other", &["other.test"], |_| ());
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of somebody else");
        let stranger = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        certificates.certificate_of(&stranger, "foreign", &["client.test"], |_| ());
        fs::write(folder.path().join("foreign-ca.pem"), stranger.pem()).unwrap();
        let path = folder.path().display();
        let text = format!(
            "data_dir = '{path}/data'\nlisten = '127.0.0.1:0'\nhttp_listen = '127.0.0.1:0'\n[tls]\n\
             certificate_file = '{path}/server.pem'\nprivate_key_file = '{path}/server.key'\n\
             client_ca_file = '{path}/ca.pem'\nclient_certificates = '{mode}'\n{callers}"
        );
        fs::write(certificates.path("countersign.toml"), text).unwrap();
        let mut serve = countersign();
        serve.args(["serve", "--config"]).arg(certificates.path("countersign.toml"));
        serve.env_remove("COUNTERSIGN_HTTP_LISTEN");
        let server = Server::launch(&mut serve);
        Self { folder, certificates, server }
    }

    fn path(&self, name: &str) -> String {
        self.certificates.path(name).display().to_string()
    }

    /// Writes a file that only its owner may read, and returns its path.
    fn write(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// Makes a row that calls this service over TLS and trusts its certificate authority.
    fn row(&self, command: &str, code: i32, words: &'static [&'static str]) -> Row {
        let url = format!("https://localhost:{}", self.server.address().port());
        row(command, code, words)
            .with("COUNTERSIGN_SERVER", url)
            .with("COUNTERSIGN_CA_FILE", self.path("ca.pem"))
    }

    /// Makes a row like [`Self::row`], in which the client also presents a certificate.
    fn showing(&self, name: &str, command: &str, code: i32, words: &'static [&'static str]) -> Row {
        let (certificate, key) =
            (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        self.row(
            &format!("{command} --client-certificate-file {certificate} --client-key-file {key}"),
            code,
            words,
        )
    }
}

/// Runs all rows, and fails with a list of all problems.
fn check(rows: &[Row]) {
    let problems: Vec<String> = rows.iter().flat_map(Row::problems).collect();
    assert!(
        problems.is_empty(),
        "{} of {} rows:\n{}",
        problems.len(),
        rows.len(),
        problems.join("")
    );
}

/// Returns a new API key, and the configuration of its caller.
fn caller(name: &str, role: &str) -> (String, String) {
    let made = run(countersign().args(["caller", "new", name, "--role", role])).ok();
    let key = made.lines().find(|line| line.starts_with("cs_ck_")).unwrap().to_owned();
    (key, made[made.find("[[callers]]").unwrap()..].to_owned())
}

#[test]
fn a_usage_error_is_one_line_that_names_the_remedy() {
    check(&[
        row("session create", 2, &["missing <SUBJECT>", "`countersign session create --help`"]),
        row("session create --sever x", 2, &["--sever", "did you mean --server?"]),
        row("session list --subjct alice", 2, &["--subjct", "did you mean --subject?"]),
        row(
            "serve --listn x",
            2,
            &["--listn", "did you mean --listen?", "`countersign serve --help`"],
        ),
        row(
            "sesion list",
            2,
            &["\"sesion\" is not a command", "did you mean session?", "`countersign --help`"],
        ),
        row("session lst", 2, &["\"lst\"", "did you mean list?", "`countersign session --help`"]),
        row(
            "session list --state lve",
            2,
            &["--state", "\"lve\" is not one of live, ended, any", "did you mean live?"],
        ),
        row(
            "key rotate --purpose refresh",
            2,
            &["--purpose", "access-token, refresh-token", "refresh-token?"],
        ),
        row(
            "session create bob --access-token-ttl 10",
            2,
            &["--access-token-ttl \"10\"", "like 10m"],
        ),
        row(
            "token validate t --max-authentication-age soon",
            2,
            &["--max-authentication-age", "\"soon\"", "like 10m"],
        ),
        row("session create bob --claim x", 2, &["--claim \"x\"", "NAME=VALUE"]),
        row("session list --page-size 0", 2, &["--page-size \"0\"", "1..=500"]),
        row("session list --subject", 2, &["--subject needs a value"]),
        row("session list extra", 2, &["extra is not an argument"]),
        row("session revoke", 2, &["missing <SESSION_ID|--token <TOKEN>"]),
        row("session revoke x --token y", 2, &["[SESSION_ID]", "cannot be combined with --token"]),
        row("session revoke --tenant x", 2, &["missing"]),
        row("session list --client-key-file k", 2, &["missing --client-certificate-file"]),
        row("caller new x", 2, &["missing --role"]),
        row("key import", 2, &["missing <FILE>"]),
    ]);
    // The usage line that clap writes shows options with a default as if they were required, so it
    // must not appear.
    let error = run(countersign().args(["session", "create"])).stderr;
    assert!(!error.contains("--server") && !error.contains("Usage"), "{error}");
}

#[test]
fn without_tls_each_mistake_is_named() {
    let site = Site::plain();
    let (grpc, http) = (site.server.address(), site.server.http());
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = silent.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in silent.incoming() {
            let _ =
                stream.unwrap().write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
        }
    });
    let closed = free_address();
    let empty = site.write("empty", "");
    let strange = site.write("strange", "two\nlines");
    let to_plain = |command: &str, code, words| {
        row(command, code, words).with("COUNTERSIGN_SERVER", format!("http://{grpc}"))
    };
    check(&[
        row(
            format!("session list --server http://{closed}"),
            1,
            &["cannot reach http://127.0.0.1:", "refused", "`countersign serve`"],
        ),
        row(
            "session list --server localhost:50051",
            2,
            &["--server \"localhost:50051\"", "like http://127.0.0.1:50051"],
        ),
        row(
            "session list --server ftp://localhost",
            2,
            &["--server \"ftp://localhost\"", "like http://127.0.0.1:50051"],
        ),
        row(
            "session list --server http://host.invalid:1",
            1,
            &["cannot reach http://host.invalid:1"],
        ),
        row(
            format!("session list --server https://{grpc} --ca-file {}", site.path("ca.pem")),
            1,
            // The rest of the message depends on whether the connection is reset before the first
            // byte.
            &["not speak TLS", "tls.certificate_file"],
        ),
        row(
            format!("session list --server https://{http} --ca-file {}", site.path("ca.pem")),
            1,
            &["not speak TLS"],
        ),
        row(
            format!("session list --server http://{http}"),
            1,
            &["is no port for gRPC", "`listen`", "`http_listen`"],
        ),
        row(format!("health --server http://{http}"), 1, &["is no port for gRPC", "`listen`"]),
        row(format!("key list --server http://{web}"), 1, &["is no port for gRPC", "`listen`"]),
        to_plain("session show nope", 1, &["session_id", "(INVALID_FIELD)"]),
        to_plain("session create alice --policy nowhere", 1, &["policy", "(INVALID_FIELD)"]),
        to_plain(
            "session list --api-key-file /nowhere/key",
            2,
            &["--api-key-file /nowhere/key", "No such file"],
        ),
        to_plain(
            &format!("session list --api-key-file {empty}"),
            2,
            &["--api-key-file", "is empty", "`countersign caller new`"],
        ),
        to_plain(
            &format!("session list --api-key-file {strange}"),
            2,
            &["--api-key-file", "characters that no API key has"],
        ),
        to_plain(
            &format!("session create alice --note {}", "x"),
            2,
            &["--note", "is not an argument of this command"],
        ),
        to_plain(
            &format!("session create {}", "x".repeat(70_000)),
            1,
            &["request has more than 65536 bytes", "limits.max_request_bytes", "(INVALID_FIELD)"],
        ),
    ]);
}

#[test]
fn with_tls_each_mistake_is_named_with_the_option_that_fixes_it() {
    let (issuer, stanza) = caller("login", "issuer");
    let (stranger, _) = caller("stranger", "admin");
    let by_name = "[[callers]]\nname = 'gateway'\nroles = ['validator']\ncertificate_names = \
                   ['client.test']\n";
    let site = Site::encrypted(&format!("{by_name}{stanza}"), "optional");
    let (grpc, http) = (site.server.address(), site.server.http());
    let ca = format!("--ca-file {}", site.path("ca.pem"));
    let pair = |certificate: &str, key: &str| {
        format!(
            "session list --client-certificate-file {} --client-key-file {}",
            site.path(certificate),
            site.path(key)
        )
    };
    let wrong_key = site.write("wrong.key", &stranger);
    site.write("garbage.pem", "not PEM at all");
    let mut rows = vec![
        row(
            format!("session list --server http://{grpc}"),
            1,
            &["speaks TLS: use --server https://127.0.0.1:"],
        ),
        row(
            format!("session list --server http://{http}"),
            1,
            &["speaks TLS: use --server https://127.0.0.1:"],
        ),
        row(
            format!("session list --server https://{http} {ca}"),
            1,
            &["is no port for gRPC", "`listen`", "`http_listen`"],
        ),
        site.row(
            &format!("health --ca-file {}", site.path("foreign-ca.pem")),
            1,
            &["authority", "--ca-file", "foreign-ca.pem"],
        ),
        site.row(
            "health --ca-file /nowhere/ca.pem",
            2,
            &["--ca-file /nowhere/ca.pem", "No such file"],
        ),
        site.row(
            &format!("health --ca-file {}", site.path("server.key")),
            2,
            &["--ca-file", "no certificate in PEM"],
        ),
        site.row(
            &format!("health --ca-file {}", site.path("garbage.pem")),
            2,
            &["--ca-file", "no certificate in PEM"],
        ),
        site.row(
            &pair("client.pem", "other.key"),
            2,
            &["--client-key-file", "--client-certificate-file", "one pair"],
        ),
        site.row(
            &pair("client.pem", "nowhere.key"),
            2,
            &["--client-key-file", "nowhere.key", "No such file"],
        ),
        site.row(
            &pair("nowhere.pem", "client.key"),
            2,
            &["--client-certificate-file", "nowhere.pem", "No such file"],
        ),
        site.row(
            &pair("client.key", "client.key"),
            2,
            &["--client-certificate-file", "no certificate in PEM"],
        ),
        site.row(
            &pair("client.pem", "garbage.pem"),
            2,
            &["--client-key-file", "no private key in PEM"],
        ),
        site.showing(
            "expired",
            "session list",
            1,
            &["--client-certificate-file", "expired.pem", "expired", "renew"],
        ),
        site.showing(
            "foreign",
            "session list",
            1,
            &["--client-certificate-file", "foreign.pem", "tls.client_ca_file"],
        ),
        site.showing(
            "other",
            "session list",
            1,
            &["--client-certificate-file", "no caller", "(CALLER_UNKNOWN)"],
        ),
        site.showing(
            "client",
            "session list",
            1,
            &[
                "the caller gateway may not call ListSessions",
                "issuer or viewer or admin",
                "(CALLER_NOT_ALLOWED)",
            ],
        ),
        site.row(
            "session list",
            1,
            &["no API key", "COUNTERSIGN_API_KEY", "--api-key-file", "(CALLER_UNKNOWN)"],
        ),
        site.row(
            "session list",
            1,
            &["COUNTERSIGN_API_KEY is not known", "--api-key-file", "(CALLER_UNKNOWN)"],
        )
        .with("COUNTERSIGN_API_KEY", stranger.clone()),
        site.row(
            &format!("session list --api-key-file {wrong_key}"),
            1,
            &["--api-key-file", "is not known", "(CALLER_UNKNOWN)"],
        ),
    ];
    let denied: [(&str, &'static [&'static str]); 4] = [
        (
            "session revoke x",
            &[
                "the caller login may not call Revoke",
                "the role revoker or admin",
                "(CALLER_NOT_ALLOWED)",
            ],
        ),
        ("key list", &["may not call ListKeys", "the role admin"]),
        ("key rotate", &["may not call RotateKey", "the role admin"]),
        ("token validate x", &["may not call Validate", "the role validator or admin"]),
    ];
    rows.extend(denied.map(|(command, words)| {
        site.row(command, 1, words).with("COUNTERSIGN_API_KEY", issuer.clone())
    }));
    check(&rows);

    let wrong_name = Site::encrypted_for_another_host();
    check(&[wrong_name.row(
        "health",
        1,
        &["is not for \"localhost\" but for elsewhere.test", "--server"],
    )]);
}

impl Site {
    /// Starts a service with TLS whose certificate is for another host.
    fn encrypted_for_another_host() -> Self {
        let site = Self::encrypted("", "optional");
        let Self { folder, certificates, server } = site;
        server.stop();
        certificates.certificate("server", &["elsewhere.test"], |_| ());
        let mut serve = countersign();
        serve.args(["serve", "--config"]).arg(certificates.path("countersign.toml"));
        serve.env_remove("COUNTERSIGN_HTTP_LISTEN");
        let server = Server::launch(&mut serve);
        Self { folder, certificates, server }
    }
}

#[test]
fn a_client_without_a_valid_certificate_learns_the_options_and_the_service_logs_the_reason() {
    let by_name =
        "[[callers]]\nname = 'gateway'\nroles = ['admin']\ncertificate_names = ['client.test']\n";
    let mut site = Site::encrypted(by_name, "required");
    site.showing("client", "session list", 0, &[]).run().ok();
    check(&[
        site.row(
            "health",
            1,
            &["wants a client certificate", "--client-certificate-file", "--client-key-file"],
        ),
        site.showing(
            "expired",
            "health",
            1,
            &["--client-certificate-file", "expired.pem", "expired"],
        ),
        site.showing(
            "foreign",
            "health",
            1,
            &["--client-certificate-file", "foreign.pem", "tls.client_ca_file"],
        ),
    ]);
    for reason in [
        "none was shown",
        "it expired at 2020-01-01T00:00:00Z",
        "not issued by an authority in tls.client_ca_file",
    ] {
        let line = site.server.line("a client's certificate was refused");
        assert_eq!(
            (line["level"].as_str(), line["peer"].as_str()),
            (Some("WARN"), Some("127.0.0.1")),
            "{line}"
        );
        assert!(line["reason"].as_str().unwrap().contains(reason), "{line}");
    }
}

#[test]
fn with_the_json_option_errors_are_json_too() {
    let site = Site::plain();
    let error = |args: &[&str], code: i32| {
        let run = site.server.cli(args.iter().copied());
        assert_eq!((run.code, run.stdout.as_str()), (Some(code), ""), "{run:?}");
        let value: Value = serde_json::from_str(&run.stderr).unwrap_or_else(|_| panic!("{run:?}"));
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
        value["error"].clone()
    };
    let invalid = error(&["session", "show", "nope", "--json"], 1);
    assert_eq!(
        (&invalid["reason"], &invalid["field"]),
        (&"INVALID_FIELD".into(), &"session_id".into()),
        "{invalid}"
    );
    assert!(invalid["message"].as_str().unwrap().starts_with("session_id "), "{invalid}");
    let refused = error(&["token", "refresh", "garbage", "--json"], 1);
    assert_eq!(refused["reason"], "REFRESH_TOKEN_INVALID");
    let wrong = error(&["session", "list", "--json", "--sever", "x"], 2);
    assert!(wrong["message"].as_str().unwrap().contains("did you mean --server?"), "{wrong}");
    let closed = format!("http://{}", free_address());
    let unreachable = error(&["health", "--json", "--server", &closed], 1);
    assert!(unreachable["message"].as_str().unwrap().starts_with("cannot reach"), "{unreachable}");
    let decoded = error(&["token", "decode", "garbage", "--json"], 1);
    assert!(decoded["message"].as_str().unwrap().starts_with("not a"), "{decoded}");
}
