//! The messages for operators: each row is an invocation, its exit code, and the words of its one
//! line.

use std::fs;

use crate::support::{countersign, run};

/// An invocation that fails, or not.
#[derive(Default)]
pub struct Row<'a> {
    /// The arguments. `FILE` stands for the configuration file, `DIR` for its folder.
    pub arguments: &'a [&'a str],
    /// Variables of the environment.
    pub environment: &'a [(&'a str, &'a str)],
    /// The text of the configuration file.
    pub configuration: &'a str,
    /// The exit code.
    pub code: i32,
    /// The words that must appear, in standard output if it succeeds, else in the one line of
    /// standard error.
    pub says: &'a [&'a str],
}

impl Row<'_> {
    /// Runs the invocation and checks what it says.
    #[track_caller]
    pub fn check(&self) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("countersign.toml");
        fs::write(&file, self.configuration).unwrap();
        let (file, dir) = (file.display().to_string(), folder.path().display().to_string());
        let arguments = self.arguments.iter().map(|argument| argument.replace("FILE", &file).replace("DIR", &dir));
        let mut command = countersign();
        command.args(arguments).envs(self.environment.iter().copied()).current_dir(folder.path());
        let run = run(&mut command);
        let said = if self.code == 0 { run.stdout.as_str() } else { run.error(self.code) };
        assert_eq!(run.code, Some(self.code), "{:?} {:?}: {run:?}", self.arguments, self.environment);
        for words in self.says {
            assert!(said.contains(words), "{words:?} is missing in: {said}");
        }
        assert!(self.code != 0 || run.stderr.is_empty(), "{run:?}");
    }
}

/// `config check` with one variable, which is refused with these words.
#[track_caller]
fn variable_is_refused(name: &str, value: &str, says: &[&str]) {
    let environment = [(name, value)];
    for arguments in [&["config", "check"][..], &["serve", "--data-dir", "DIR/data"]] {
        Row { arguments, environment: &environment, code: 2, says, ..Row::default() }.check();
    }
}

/// `config check` with this file, which is refused with these words.
#[track_caller]
fn file_is_refused(configuration: &str, says: &[&str]) {
    Row { arguments: &["config", "check", "--config", "FILE"], configuration, code: 2, says, ..Row::default() }.check();
}

#[test]
fn a_word_that_a_setting_does_not_know_is_refused_with_those_that_it_knows() {
    const LEVELS: &str = "is not one of error, warn, info, debug, trace, off";
    for (name, value, says) in [
        ("COUNTERSIGN_LOG__LEVEL", "warning", &["log.level", "\"warning\"", LEVELS, "did you mean warn?"][..]),
        ("COUNTERSIGN_LOG__LEVEL", "", &["log.level", "\"\"", LEVELS]),
        ("COUNTERSIGN_LOG__LEVEL", "inof", &["log.level", "did you mean info?"]),
        ("COUNTERSIGN_LOG__LEVEL", "info,h2=warning", &["log.level", "\"warning\"", "did you mean warn?"]),
        ("COUNTERSIGN_LOG__LEVEL", "info,contersign=debug", &["log.level", "did you mean countersign?"]),
        ("COUNTERSIGN_LOG__LEVEL", "h2=debug", &["log.level", "logs nothing of the service"]),
        ("COUNTERSIGN_LOG__FORMAT", "jsn", &["log.format", "\"jsn\"", "auto, text, json", "did you mean json?"]),
        ("COUNTERSIGN_LOG__FORMAT", "", &["log.format", "\"\" is not one of auto, text, json"]),
        ("COUNTERSIGN_REFLECTION", "true", &["reflection", "\"true\" is not one of auto, on, off"]),
        ("COUNTERSIGN_REFLECTION", "", &["reflection", "\"\" is not one of auto, on, off"]),
        ("COUNTERSIGN_TLS__CLIENT_CERTIFICATES", "require", &["optional, required", "did you mean required?"]),
        ("COUNTERSIGN_KEYS__ALGORITHM", "EDDSA", &["EdDSA, ES256, RS256", "did you mean EdDSA?"]),
        ("COUNTERSIGN_KEYS__ALGORITHM", "", &["keys.algorithm", "\"\" is not one of EdDSA, ES256, RS256"]),
        ("COUNTERSIGN_POLICIES__DEFAULT__ON_QUOTA", "evict", &["on_quota", "did you mean evict_oldest?"]),
        ("COUNTERSIGN_POLICIES__DEFAULT__ON_REFRESH", "keep", &["on_refresh", "did you mean keep_access_token?"]),
        ("COUNTERSIGN_TENANTS__ACME__POLICY", "defualt", &["tenants.acme.policy", "did you mean default?"]),
        ("COUNTERSIGN_INSECURE", "yes", &["insecure", "must be true or false"]),
        ("COUNTERSIGN_DATABASE_URL", "postgrs://h/d", &["postgrs:// is not supported", "did you mean postgres://?"]),
        ("COUNTERSIGN_SWEEPER__SCHEDULE", "", &["sweeper.schedule", "cron pattern like"]),
        ("COUNTERSIGN_SWEEPR__SCHEDULE", "* * * * *", &["unknown setting sweepr", "did you mean sweeper?"]),
    ] {
        variable_is_refused(name, value, says);
    }
    let caller = "[[callers]]\nname = 'a'\nroles = ['isuer']";
    file_is_refused(caller, &["callers[0].roles", "\"isuer\" is not one of issuer", "did you mean issuer?"]);
}

#[test]
fn a_span_of_time_says_how_it_is_written() {
    for (value, given) in [("10", "int `10`"), ("'soon'", "string \"soon\""), ("''", "string \"\"")] {
        let says = ["policies.default.access_token_ttl", "like 10m", given];
        file_is_refused(&format!("[policies.default]\naccess_token_ttl = {value}"), &says);
        file_is_refused(&format!("[tokens]\nleeway = {value}"), &["tokens.leeway", "like 10m", given]);
    }
}

#[test]
fn links_to_services_of_kubernetes_are_passed_over_and_typing_errors_are_not() {
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
