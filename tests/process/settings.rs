//! Tests of the precedence of settings (flags, environment, file, defaults), and of `config check`
//! and `config print`, which show what `serve` would do.

use std::{fs, path::Path};

use countersign_test_support::process::{Server, countersign, run, serve};
use serde_json::Value;

/// Returns the settings that result from this file, these variables and these flags.
fn in_force(file: &Path, variables: &[(&str, &str)], flags: &[&str]) -> Value {
    let mut command = countersign();
    run(command
        .args(["config", "print", "--json", "--config"])
        .arg(file)
        .args(flags)
        .envs(variables.iter().copied()))
    .json()
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("countersign.toml");
    fs::write(
        &file,
        "listen = '127.0.0.1:1'\ndata_dir = '/file'\ninsecure = true\n[tokens]\nleeway = '1s'",
    )
    .unwrap();
    let variables = [
        ("COUNTERSIGN_LISTEN", "127.0.0.1:2"),
        ("COUNTERSIGN_DATA_DIR", "/environment"),
        ("COUNTERSIGN_TOKENS__LEEWAY", "2s"),
        ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "7m"),
    ];

    let defaults = run(countersign().args(["config", "print", "--json"])).json();
    assert_eq!(
        [&defaults["listen"], &defaults["data_dir"]],
        ["127.0.0.1:50051", "countersign-data"]
    );

    let config = in_force(&file, &[], &[]);
    assert_eq!([&config["listen"], &config["data_dir"]], ["127.0.0.1:1", "/file"]);
    assert_eq!(
        [&config["tokens"]["leeway"], &config["policies"]["default"]["access_token_ttl"]],
        ["1s", "10m"]
    );
    assert_eq!(config["insecure"], true);

    let config = in_force(&file, &variables, &[]);
    assert_eq!([&config["listen"], &config["data_dir"]], ["127.0.0.1:2", "/environment"]);
    assert_eq!(
        [&config["tokens"]["leeway"], &config["policies"]["default"]["access_token_ttl"]],
        ["2s", "7m"]
    );
    assert_eq!(config["insecure"], true, "only the file sets this");

    let config = in_force(
        &file,
        &variables,
        &["--listen", "127.0.0.1:3", "--database-url", "sqlite:///flag.db"],
    );
    assert_eq!([&config["listen"], &config["data_dir"]], ["127.0.0.1:3", "/environment"]);
    assert_eq!([&config["database_url"], &config["tokens"]["leeway"]], ["sqlite:///flag.db", "2s"]);
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("countersign.toml");
    fs::write(&file, "issuer = 'https://auth.example'").unwrap();
    let config =
        run(countersign().args(["config", "print", "--json"]).env("COUNTERSIGN_CONFIG", &file))
            .json();
    assert_eq!(config["issuer"], "https://auth.example");
}

#[test]
fn a_service_takes_its_settings_from_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = countersign();
    command.args(["serve", "--data-dir"]).arg(folder.path()).envs([
        ("COUNTERSIGN_LISTEN", "127.0.0.1:0"),
        ("COUNTERSIGN_ISSUER", "https://auth.example"),
        ("COUNTERSIGN_POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "7m"),
        ("COUNTERSIGN_POLICIES__SHORT__ACCESS_TOKEN_TTL", "1m"),
    ]);
    let server = Server::launch(&mut command);
    let created = server.cli(["session", "create", "alice", "--json"]).json();
    assert_eq!(created["session"]["policy"]["access_token_ttl"], "420s");
    assert_eq!(created["session"]["audience"][0], "https://auth.example");
    let created = server.cli(["session", "create", "alice", "--policy", "short", "--json"]).json();
    assert_eq!(created["session"]["policy"]["access_token_ttl"], "60s");
}

#[test]
fn the_http_address_comes_from_the_settings_and_an_empty_one_disables_the_port() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("countersign.toml");
    fs::write(&file, "http_listen = '127.0.0.1:1'").unwrap();
    let environment = [("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:2")];
    assert_eq!(in_force(&file, &environment, &[])["http_listen"], "127.0.0.1:2");
    assert_eq!(
        in_force(&file, &environment, &["--http-listen", "127.0.0.1:3"])["http_listen"],
        "127.0.0.1:3"
    );

    let data = folder.path().join("data");
    Server::launch(serve(&data).args(["--http-listen", ""])).cli(["health"]).ok();
    let mut server = Server::spawn(serve(&data).env("COUNTERSIGN_HTTP_LISTEN", ""));
    assert_eq!(server.line("starting")["http"], Value::Null);
    server.line("serving");
}

#[test]
fn config_check_says_what_serve_would_do() {
    let check = || {
        let mut command = countersign();
        command.args(["config", "check"]);
        command
    };
    assert_eq!(run(&mut check()).ok(), "the configuration is good\n");
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in [
        ("COUNTERSIGN_LISTEN", "0.0.0.0:50051"),
        ("COUNTERSIGN_ISSUER", "auth"),
        ("COUNTERSIGN_LOG__LEVEL", "!!"),
        ("COUNTERSIGN_HTTP_LISTEN", "here"),
        ("COUNTERSIGN_TENANTS__ACME__POLICY", "nowhere"),
        ("COUNTERSIGN_SWEEPER__SCHEDULE", "often"),
        ("COUNTERSIGN_NOTHING", "x"),
        ("COUNTERSIGN_CONFIG", "/nowhere/countersign.toml"),
    ] {
        let checked = run(check().env(name, value));
        let served =
            run(countersign().args(["serve", "--data-dir"]).arg(folder.path()).env(name, value));
        assert_eq!(checked.error(2), served.error(2), "{name}={value}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is opened");
}

#[test]
fn the_output_of_config_print_can_be_loaded_and_prints_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first.toml"), folder.path().join("second.toml"));
    fs::write(
        &first,
        "issuer = 'https://auth.example'\n[policies.short]\naccess_token_ttl = \
         '90s'\n[tenants.acme]\npolicy = 'short'\naudiences = \
         ['https://api.example']\n[sweeper]\nschedule = '*/5 * * * *'",
    )
    .unwrap();
    let print =
        |file: &Path| run(countersign().args(["config", "print", "--config"]).arg(file)).ok();
    let printed = print(&first);
    fs::write(&second, &printed).unwrap();
    assert_eq!(print(&second), printed);
    assert_eq!(run(countersign().args(["config", "check", "--config"]).arg(&second)).code, Some(0));
    assert_eq!(in_force(&first, &[], &[]), in_force(&second, &[], &[]));
}

/// The meaning of a configuration file must not depend on the directory in which the service is
/// started.
#[test]
fn relative_paths_in_the_file_start_from_its_folder_and_others_from_the_working_directory() {
    let folder = tempfile::tempdir().unwrap();
    let sub = folder.path().join("etc");
    fs::create_dir(&sub).unwrap();
    fs::write(
        sub.join("c.toml"),
        "data_dir = 'data'\ndatabase_url = 'sqlite://s.db'\n[keys]\nmaster_key_file = 'm'",
    )
    .unwrap();
    let print =
        |config: &str, working_directory: &Path, flags: &[&str], variables: &[(&str, &str)]| {
            let mut command = countersign();
            command
                .args(["config", "print", "--json", "--config", config])
                .args(flags)
                .envs(variables.iter().copied());
            run(command.current_dir(working_directory)).json()
        };
    let path = |name: &str| sub.join(name).display().to_string();
    for (config, working_directory) in
        [("etc/c.toml", folder.path()), ("c.toml", &sub), (&path("c.toml"), Path::new("/"))]
    {
        let config = print(config, working_directory, &[], &[]);
        assert_eq!(config["data_dir"], path("data"));
        assert_eq!(config["database_url"], format!("sqlite://{}", path("s.db")));
        assert_eq!(config["keys"]["master_key_file"], path("m"));
    }
    let variables = [("COUNTERSIGN_KEYS__MASTER_KEY_FILE", "v")];
    let config = print("etc/c.toml", folder.path(), &["--data-dir", "flag"], &variables);
    assert_eq!([&config["data_dir"], &config["keys"]["master_key_file"]], ["flag", "v"]);

    // `serve` uses the paths that `config print` shows.
    let mut command = countersign();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--config", "etc/c.toml"])
        .current_dir(folder.path());
    fs::write(sub.join("c.toml"), "data_dir = 'data'").unwrap();
    Server::launch(command.env(countersign_test_support::process::GRACE, "0s")).stop();
    assert!(sub.join("data/countersign.db").exists() && sub.join("data/master.key").exists());
}

#[test]
fn derived_settings_follow_a_setting_that_is_changed_in_a_printed_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    let printed = run(countersign().args(["config", "print", "--data-dir", "/a"])).ok();
    let changed = printed
        .replace("\"/a\"", "\"/b\"")
        .replace("issuer = \"http://127.0.0.1:8080\"", "issuer = \"https://b\"");
    assert_ne!(printed, changed);
    fs::write(&file, changed).unwrap();
    let config = in_force(&file, &[], &[]);
    assert_eq!(config["database_url"], "sqlite:///b/countersign.db");
    assert_eq!(config["keys"]["master_key_file"], "/b/master.key");
    assert_eq!(config["tokens"]["default_audience"], "https://b");
}

#[test]
fn no_secret_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    Server::start(folder.path()).stop();
    let key = fs::read_to_string(folder.path().join("master.key")).unwrap();
    let print = run(countersign().args(["config", "print", "--data-dir"]).arg(folder.path())).ok();
    assert!(print.contains("master.key") && !print.contains(key.trim()), "{print}");

    let with_password =
        [("COUNTERSIGN_DATABASE_URL", "postgres://user:hidden@127.0.0.1:1/database")];
    let print = run(countersign().args(["config", "print"]).envs(with_password)).ok();
    assert!(
        print.contains("postgres://user@127.0.0.1:1/database") && !print.contains("hidden"),
        "{print}"
    );
    let at_once = ("COUNTERSIGN_DATABASE__STARTUP_TIMEOUT", "0s");
    let refused = run(serve(folder.path()).envs(with_password).envs([at_once]));
    assert_eq!(refused.code, Some(2), "no server listens there");
    assert!(refused.stderr.contains("postgres://user@127.0.0.1:1/database"), "{refused:?}");
    assert!(!refused.stderr.contains("hidden"), "{refused:?}");
    for (section, value) in [
        ("DATABASE", "postgres://user:hidden@host/database"),
        ("KEYS", "hidden"),
        ("CALLERS", "hidden"),
        ("TENANTS", "hidden"),
        ("POLICIES", "hidden"),
    ] {
        let refused = run(serve(folder.path()).envs([(format!("COUNTERSIGN_{section}"), value)]));
        let names_it = refused.error(2).contains(&section.to_lowercase());
        assert!(names_it && !refused.stderr.contains("hidden"), "{refused:?}");
    }
    for wrong in ["mysql://user:hidden@host/database", "postgres://user:hid@den@host/database"] {
        let refused = run(serve(folder.path()).envs([("COUNTERSIGN_DATABASE_URL", wrong)]));
        assert!(
            refused.error(2).contains("database_url") && !refused.stderr.contains("hid"),
            "{refused:?}"
        );
    }
}

#[test]
fn the_log_level_can_be_changed_in_the_file_while_the_service_runs() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("countersign.toml");
    let write = |level: &str, schedule: &str| {
        let sweeper = format!("[sweeper]\nschedule = \"{schedule}\"");
        // The service must not read a file that is written half.
        let (next, text) =
            (config.with_extension("new"), format!("[log]\nlevel = \"{level}\"\n{sweeper}\n"));
        fs::write(&next, text).unwrap();
        fs::rename(next, &config).unwrap();
    };
    const NEVER: &str = "0 0 29 2 *";
    write("info", NEVER);
    let mut server = Server::launch(serve(folder.path()).arg("--config").arg(&config));
    write("loud", NEVER);
    server.signal("HUP");
    server.line("certificates and configuration are read anew");
    write("info,countersign=debug", "* * * * * *");
    server.signal("HUP");
    let settings = server.line("settings have changed")["settings"].clone();
    assert_eq!(settings, "log.level = info,countersign=debug, sweeper.schedule = * * * * * *");
    // This line has the level debug, and the former schedule would never have led to it.
    server.line("swept, nothing was due");
    write("info", "* * * * * *");
    server.signal("HUP");
    assert_eq!(server.line("settings have changed")["settings"], "log.level = info");
    let log = server.stop();
    let last = log.iter().rposition(|line| line.contains("settings have changed")).unwrap();
    assert!(!log[last..].iter().any(|line| line.contains("\"DEBUG\"")), "{log:#?}");
    assert!(!log.iter().any(|line| line.contains("take effect after a restart")), "{log:#?}");
}
