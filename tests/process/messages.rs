//! Tests of the error messages for operators. Each row is an invocation, its exit code, and the
//! words that its one line must contain.

use countersign_test_support::{
    certificates::Certificates,
    process::{countersign, run},
};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

/// An invocation and its expected outcome.
#[derive(Default)]
pub struct Row<'a> {
    /// The arguments. `FILE` stands for the configuration file, `DIR` for its folder.
    pub arguments: &'a [&'a str],
    pub environment: &'a [(&'a str, &'a str)],
    /// The text of the configuration file.
    pub configuration: &'a str,
    pub code: i32,
    /// The words that must appear: in standard output if the exit code is 0, else in the one line
    /// of standard error.
    pub says: &'a [&'a str],
}

impl Row<'_> {
    /// Runs the invocation, and checks its exit code and its output.
    #[track_caller]
    pub fn check(&self) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("countersign.toml");
        fs::write(&file, self.configuration).unwrap();
        let (file, dir) = (file.display().to_string(), folder.path().display().to_string());
        let arguments = self
            .arguments
            .iter()
            .map(|argument| argument.replace("FILE", &file).replace("DIR", &dir));
        let mut command = countersign();
        command.args(arguments).envs(self.environment.iter().copied()).current_dir(folder.path());
        let run = run(&mut command);
        let said = if self.code == 0 { run.stdout.as_str() } else { run.error(self.code) };
        assert_eq!(
            run.code,
            Some(self.code),
            "{:?} {:?}: {run:?}",
            self.arguments,
            self.environment
        );
        for words in self.says {
            assert!(said.contains(words), "{words:?} is missing in: {said}");
        }
        assert!(self.code != 0 || run.stderr.is_empty(), "{run:?}");
    }
}

/// Checks that `config check` and `serve` refuse this variable with these words.
#[track_caller]
fn variable_is_refused(name: &str, value: &str, says: &[&str]) {
    let environment = [(name, value)];
    for arguments in [&["config", "check"][..], &["serve", "--data-dir", "DIR/data"]] {
        Row { arguments, environment: &environment, code: 2, says, ..Row::default() }.check();
    }
}

/// Checks that `config check` refuses this configuration file with these words.
#[track_caller]
fn file_is_refused(configuration: &str, says: &[&str]) {
    Row {
        arguments: &["config", "check", "--config", "FILE"],
        configuration,
        code: 2,
        says,
        ..Row::default()
    }
    .check();
}

#[test]
fn an_unknown_value_is_refused_with_the_known_values_and_a_suggestion() {
    const LEVELS: &str = "is not one of error, warn, info, debug, trace, off";
    for (name, value, says) in [
        (
            "COUNTERSIGN_LOG__LEVEL",
            "warning",
            &["log.level", "\"warning\"", LEVELS, "did you mean warn?"][..],
        ),
        ("COUNTERSIGN_LOG__LEVEL", "", &["log.level", "\"\"", LEVELS]),
        ("COUNTERSIGN_LOG__LEVEL", "inof", &["log.level", "did you mean info?"]),
        (
            "COUNTERSIGN_LOG__LEVEL",
            "info,h2=warning",
            &["log.level", "\"warning\"", "did you mean warn?"],
        ),
        (
            "COUNTERSIGN_LOG__LEVEL",
            "info,contersign=debug",
            &["log.level", "did you mean countersign?"],
        ),
        ("COUNTERSIGN_LOG__LEVEL", "h2=debug", &["log.level", "logs nothing of the service"]),
        (
            "COUNTERSIGN_LOG__FORMAT",
            "jsn",
            &["log.format", "\"jsn\"", "auto, text, json", "did you mean json?"],
        ),
        ("COUNTERSIGN_LOG__FORMAT", "", &["log.format", "\"\" is not one of auto, text, json"]),
        ("COUNTERSIGN_REFLECTION", "true", &["reflection", "\"true\" is not one of auto, on, off"]),
        ("COUNTERSIGN_REFLECTION", "", &["reflection", "\"\" is not one of auto, on, off"]),
        (
            "COUNTERSIGN_TLS__CLIENT_CERTIFICATES",
            "require",
            &["optional, required", "did you mean required?"],
        ),
        ("COUNTERSIGN_KEYS__ALGORITHM", "EDDSA", &["EdDSA, ES256, RS256", "did you mean EdDSA?"]),
        (
            "COUNTERSIGN_KEYS__ALGORITHM",
            "",
            &["keys.algorithm", "\"\" is not one of EdDSA, ES256, RS256"],
        ),
        (
            "COUNTERSIGN_POLICIES__DEFAULT__ON_QUOTA",
            "evict",
            &["on_quota", "did you mean evict_oldest?"],
        ),
        (
            "COUNTERSIGN_POLICIES__DEFAULT__ON_REFRESH",
            "keep",
            &["on_refresh", "did you mean keep_access_token?"],
        ),
        (
            "COUNTERSIGN_TENANTS__ACME__POLICY",
            "defualt",
            &["tenants.acme.policy", "did you mean default?"],
        ),
        ("COUNTERSIGN_INSECURE", "yes", &["insecure", "must be true or false"]),
        (
            "COUNTERSIGN_DATABASE_URL",
            "postgrs://h/d",
            &["postgrs:// is not supported", "did you mean postgres://?"],
        ),
        ("COUNTERSIGN_SWEEPER__SCHEDULE", "", &["sweeper.schedule", "cron pattern like"]),
        (
            "COUNTERSIGN_SWEEPR__SCHEDULE",
            "* * * * *",
            &["unknown setting sweepr", "did you mean sweeper?"],
        ),
    ] {
        variable_is_refused(name, value, says);
    }
    let caller = "[[callers]]\nname = 'a'\nroles = ['isuer']";
    file_is_refused(
        caller,
        &["callers[0].roles", "\"isuer\" is not one of issuer", "did you mean issuer?"],
    );
}

#[test]
fn an_invalid_time_span_is_refused_with_an_example() {
    for (value, given) in [("10", "int `10`"), ("'soon'", "string \"soon\""), ("''", "string \"\"")]
    {
        let says = ["policies.default.access_token_ttl", "like 10m", given];
        file_is_refused(&format!("[policies.default]\naccess_token_ttl = {value}"), &says);
        file_is_refused(
            &format!("[tokens]\nleeway = {value}"),
            &["tokens.leeway", "like 10m", given],
        );
    }
}

/// `config check` opens the files that the settings name, as `nginx -t` does, and reports the same
/// errors as `serve`.
#[test]
fn config_check_opens_the_files_in_settings_and_its_errors_name_the_setting() {
    const MASTER: (&str, &str) =
        ("COUNTERSIGN_MASTER_KEY", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    const POSTGRES: &str = "data_dir = 'data'\ndatabase_url = 'postgres://u@127.0.0.1:1/d'\n";
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(folder.path());
    let path = |name: &str| certificates.path(name).display().to_string();
    certificates.certificate("expired", &["a.test"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    certificates.certificate("other", &["a.test"], |_| ());
    let write = |name: &str, text: &str, mode| {
        fs::write(certificates.path(name), text).unwrap();
        fs::set_permissions(certificates.path(name), Permissions::from_mode(mode)).unwrap();
        path(name)
    };
    let (garbage, open) = (write("garbage", "x", 0o600), write("open", MASTER.1, 0o644));
    let (good, empty) = (write("good", MASTER.1, 0o600), write("empty", "", 0o600));
    let tls = |certificate: &str, key: &str, more: &str| {
        format!("[tls]\ncertificate_file = '{certificate}'\nprivate_key_file = '{key}'\n{more}")
    };
    let (pem, key) = (path("server.pem"), path("server.key"));
    let keys = |file: &str| format!("data_dir = 'data'\n[keys]\nmaster_key_file = '{file}'");
    let additional = |file: &str| format!("[keys]\nadditional_master_key_file = '{file}'");
    let password = |file: &str| format!("{POSTGRES}[database]\npassword_file = '{file}'");
    let roots = |file: &str| {
        format!(
            "data_dir = 'data'\ndatabase_url = \
             'postgres://u@127.0.0.1:1/d?sslmode=verify-full&sslrootcert={file}'"
        )
    };
    type Words<'a> = &'a [&'a str];
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let rows: Vec<(String, Variables<'_>, Words<'_>)> = vec![
        (
            tls("none.pem", &key, ""),
            &[],
            &["setting tls.certificate_file: ", "none.pem", "No such file"],
        ),
        (
            tls(&garbage, &key, ""),
            &[],
            &["setting tls.certificate_file: ", "garbage", "no certificate in PEM"],
        ),
        (
            tls(&path("expired.pem"), &path("expired.key"), ""),
            &[],
            &["tls.certificate_file", "expired at", "renew it"],
        ),
        (
            tls(&pem, "none.key", ""),
            &[],
            &["setting tls.private_key_file: ", "none.key", "No such file"],
        ),
        (
            tls(&pem, &garbage, ""),
            &[],
            &["setting tls.private_key_file: ", "no private key in PEM"],
        ),
        (
            tls(&pem, &open, ""),
            &[],
            &["setting tls.private_key_file: ", "mode 0644, so others can read it", "chmod 600"],
        ),
        (
            tls(&pem, &path("other.key"), ""),
            &[],
            &["setting tls.private_key_file: ", "does not go with"],
        ),
        (
            tls(&pem, &key, "client_ca_file = 'none'"),
            &[],
            &["setting tls.client_ca_file: ", "none", "No such file"],
        ),
        (
            keys("none"),
            &[],
            &["setting keys.master_key_file: ", "none does not exist", "openssl rand"],
        ),
        (keys(&garbage), &[], &["setting keys.master_key_file: ", "garbage", "32 bytes"]),
        (keys(&open), &[], &["setting keys.master_key_file: ", "mode 0644", "chmod 600"]),
        (
            additional("none"),
            &[],
            &["setting keys.additional_master_key_file: ", "none does not exist"],
        ),
        (additional(&open), &[], &["setting keys.additional_master_key_file: ", "mode 0644"]),
        (
            "".to_owned(),
            &[("COUNTERSIGN_MASTER_KEY", "x")],
            &["COUNTERSIGN_MASTER_KEY", "32 bytes"],
        ),
        (
            password("none"),
            &[MASTER],
            &["setting database.password_file: ", "none", "No such file"],
        ),
        (
            roots("none.pem"),
            &[MASTER],
            &["setting database_url: ", "sslrootcert", "none.pem", "cannot be read"],
        ),
        (roots(&garbage), &[MASTER], &["setting database_url: ", "sslrootcert", "garbage"]),
        (
            POSTGRES.to_owned(),
            &[],
            &["master.key does not exist", "everyone who serves", "openssl rand"],
        ),
    ];
    for (configuration, environment, says) in &rows {
        for arguments in [
            &["config", "check", "--config", "FILE"][..],
            &["serve", "--config", "FILE", "--listen", "127.0.0.1:0"],
        ] {
            if arguments.contains(&"serve")
                && configuration.starts_with("data_dir")
                && configuration.contains("postgres")
            {
                // `serve` would connect to the database first, and no server runs there.
                continue;
            }
            Row { arguments, environment, configuration, code: 2, says }.check();
        }
    }
    // All errors are reported at once, in one line.
    let both = tls("none.pem", &key, "[keys]\nmaster_key_file = 'none.key'");
    file_is_refused(&both, &["setting tls.certificate_file: ", "; setting keys.master_key_file: "]);

    let authorities =
        format!("client_ca_file = '{}'\n[keys]\nmaster_key_file = '{good}'", path("ca.pem"));
    for configuration in
        [tls(&pem, &key, &authorities), password(&empty), roots(&path("ca.pem")), String::new()]
    {
        let environment =
            if configuration.contains("master_key_file") { &[][..] } else { &[MASTER] };
        let says = &["the configuration is good"];
        let arguments = &["config", "check", "--config", "FILE"];
        Row { arguments, environment, configuration: &configuration, code: 0, says }.check();
    }
    assert!(!folder.path().join("data").exists(), "no file is created");
}

#[test]
fn service_variables_of_kubernetes_are_ignored_and_misspelled_settings_are_refused() {
    let links = [
        ("COUNTERSIGN_SERVICE_HOST", "10.0.0.5"),
        ("COUNTERSIGN_SERVICE_PORT", "50051"),
        ("COUNTERSIGN_PORT", "tcp://10.0.0.5:50051"),
        ("COUNTERSIGN_PORT_50051_TCP", "tcp://10.0.0.5:50051"),
        ("COUNTERSIGN_GRPC_SERVICE_HOST", "10.0.0.5"),
        ("COUNTERSIGN_GRPC_SERVICE_PORT_GRPC", "50051"),
        ("COUNTERSIGN_HTTP_PORT", "tcp://10.0.0.5:8080"),
        ("COUNTERSIGN_DB_PORT_5432_TCP", "tcp://10.0.0.5:5432"),
        ("COUNTERSIGN_DB_PORT_5432_TCP_PROTO", "tcp"),
        ("COUNTERSIGN_DB_PORT_5432_TCP_PORT", "5432"),
        ("COUNTERSIGN_DB_PORT_5432_TCP_ADDR", "10.0.0.5"),
        ("COUNTERSIGN_TLS__X_SERVICE_HOST", "10.0.0.5"),
    ];
    let says = &["the configuration is good"][..];
    Row { arguments: &["config", "check"], environment: &links, says, ..Row::default() }.check();
    for (name, value, setting) in [
        ("COUNTERSIGN_PORT", "50051", "port"),
        ("COUNTERSIGN_HTTP_PORT", "8080", "http_port"),
        ("COUNTERSIGN_HTTP_LISTN", "127.0.0.1:1", "http_listn"),
        ("COUNTERSIGN_TLS__X_SERVICE_HOST", "name", "tls.x_service_host"),
    ] {
        variable_is_refused(name, value, &["unknown setting", setting]);
    }
}
