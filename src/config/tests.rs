//! Tests of the settings that are accepted, and of the texts of errors.

use std::{collections::BTreeMap, fs, time::Duration};

use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::domain::policy::RefreshMode;

fn load(toml: &str) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("countersign.toml");
    fs::write(&path, toml).unwrap();
    Config::load(Some(&path), &Flags::default())
        .map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let config = load("").unwrap();
    assert_eq!(config.listen.address.to_string(), "127.0.0.1:50051");
    assert_eq!(config.http_listen.unwrap().address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.database, DatabaseUrl::Sqlite("countersign-data/countersign.db".into()));
    assert_eq!(
        config.policies[crate::domain::policy::DEFAULT].session.access_token_ttl,
        Duration::from_secs(600)
    );
    assert_eq!(*config.tokens.default_audience, *config.issuer);
}

#[test]
fn a_password_is_used_and_never_shown() {
    let url = "postgresql://u:s%40cret@h1:5432,h2/d?target_session_attrs=read-write";
    let config = load(&format!("database_url = '{url}'")).unwrap();
    let DatabaseUrl::Postgres(postgres) = &config.database else { panic!("{config:?}") };
    assert_eq!(postgres.with_password(), url);
    assert_eq!(
        config.database.to_string(),
        "postgres://u@h1:5432,h2/d?target_session_attrs=read-write"
    );
    let everything =
        format!("{config:?}{:?}{}", config.to_json().unwrap(), config.to_toml().unwrap());
    assert!(!everything.contains("cret"), "{everything}");

    for (url, shown) in
        [("postgres://h", "postgres://h"), ("postgres://u:@%2Frun/d", "postgres://u@%2Frun/d")]
    {
        assert_eq!(load(&format!("database_url = '{url}'")).unwrap().database.to_string(), shown);
    }
}

#[test]
fn a_password_in_a_line_that_is_not_toml_is_not_shown() {
    for toml in [
        "database_url = 'postgres://u:s3cret@h/d",
        "database_url = postgres://u:s3cret@h/d",
        "s3cret",
    ] {
        let error = load(toml).unwrap_err();
        assert!(
            !error.contains("s3cret")
                && error.starts_with("configuration in FILE: TOML parse error at line 1")
        );
    }
}

#[test]
fn a_policy_takes_limits_that_it_does_not_set_from_the_default_policy() {
    let config =
        load("[policies.default]\nidle_timeout = '1d'\n[policies.short]\naccess_token_ttl = '1m'")
            .unwrap();
    let short = &config.policies["short"];
    assert_eq!(short.session.access_token_ttl, Duration::from_secs(60));
    assert_eq!(short.session.idle_timeout, Duration::from_secs(86_400));
    assert_eq!(&*short.session.name, "short");
}

#[test]
fn each_error_is_one_line_that_names_the_setting_and_the_correction() {
    for (toml, expected) in [
        ("isuer = 'x'", "unknown setting isuer in FILE: did you mean issuer?"),
        (
            "[policies.default]\naccess_token_tll = '1m'",
            "unknown setting policies.default.access_token_tll in FILE: did you mean \
             access_token_ttl?",
        ),
        (
            "[sweeper]\nbatchsize = 3",
            "unknown setting sweeper.batchsize in FILE: did you mean batch_size?",
        ),
        ("sweeper = 3", "setting sweeper in FILE: must be a section, not signed int `3`"),
        (
            "[blacklist]\nmax_entries = 'many'",
            "setting blacklist.max_entries in FILE: must be a whole number, not string \"many\"",
        ),
        ("[log]\nlevel = 3", "setting log.level in FILE: must be a string, not signed int `3`"),
        (
            "[log]\nformat = 'xml'",
            "setting log.format in FILE: \"xml\" is not one of auto, text, json",
        ),
        ("issuer = 'auth'", "setting issuer: must start with https:// (or http:// for a trial)"),
        (
            "issuer = 'https://a?b'",
            "setting issuer: must be a URL with a host and without query and fragment",
        ),
        (
            "listen = 'here'",
            "setting listen: \"here\" must be an address and a port like 127.0.0.1:50051",
        ),
        (
            "http_listen = '8080'",
            "setting http_listen: \"8080\" must be an address and a port like 127.0.0.1:8080",
        ),
        (
            "database_url = 'mysql://u:secret@h/d'",
            "setting database_url: mysql:// is not supported: use sqlite://PATH or \
             postgres://USER:PASSWORD@HOST/DATABASE",
        ),
        (
            "database_url = 'postgres://u:p@ss@h/d'",
            "setting database_url: @ / ? and # in a user or a password are written as %40 %2F %3F \
             and %23",
        ),
        (
            "database_url = 'postgres://u:p/ss@h/d'",
            "setting database_url: @ / ? and # in a user or a password are written as %40 %2F %3F \
             and %23",
        ),
        (
            "database_url = 'postgres://u@h/d?password=secret'",
            "setting database_url: the password belongs in front of the host: USER:PASSWORD@HOST",
        ),
        (
            "database_url = 'postgres:///d'",
            "setting database_url: must name a host: postgres://USER:PASSWORD@HOST/DATABASE",
        ),
        (
            "[policies.p]\nrefresh_grace = '1h'",
            "setting policies.p: refresh_grace must be shorter than access_token_ttl by at least \
             a second",
        ),
        (
            "[policies.p]\nreplay = 'until_used'\non_refresh = 'revoke_access_token'",
            "setting policies.p: replay = \"until_used\" does not go with on_refresh = \
             \"revoke_access_token\": choose one",
        ),
        (
            "[policies.p]\nreplay = 'until_used'\nreplay_limit = '5s'",
            "setting policies.p: replay_limit must not be shorter than refresh_grace",
        ),
        (
            "[tenants.acme]\npolicy = 'p'",
            "setting tenants.acme.policy: \"p\" is not one of default, nist-aal1, nist-aal2, \
             nist-aal3, owasp-high-value, remember-me",
        ),
        (
            "[sweeper]\nschedule = ', * 1 9 * *'",
            "setting sweeper.schedule: \", * 1 9 * *\" is not a cron pattern like \"*/5 * * * *\" \
             (a list is empty)",
        ),
        ("[sweeper]\nbatch_size = 0", "setting sweeper.batch_size: must be from 1 to 100000"),
        (
            "[audit]\nretention = '0s'",
            "setting audit.retention: must be more than 0s: to keep no records, set audit.table \
             to false",
        ),
        ("[audit]\ntables = true", "unknown setting audit.tables in FILE: did you mean table?"),
        (
            "[lease]\nrenewal = '18446744073709551615s'",
            "setting lease.duration: must be at least 3 times lease.renewal, so that one may be \
             late",
        ),
        ("[blacklist]\nmax_entries = 0", "setting blacklist.max_entries: must be at least 1"),
        (
            "[tokens]\nleeway = '2m'",
            "setting tokens.leeway: must be at most 1m: synchronize the clocks instead",
        ),
    ] {
        assert_eq!(load(toml).unwrap_err(), expected, "{toml}");
    }
    for toml in [
        "issuer = ",
        "[sweeper]\nschedule = 'often'",
        "[tokens]\nleeway = 'soon'",
        "[tokens]\nleeway = 5",
    ] {
        let error = load(toml).unwrap_err();
        assert!(!error.contains('\n') && error.len() < 300, "{error}");
    }
    for toml in [
        "\"is\\nsuer\" = 1",
        "[\"a\\u0007\"]",
        "[policies.\"a\\u001b[2J\".b]",
        "[tenants.\"a\\nb\"]",
        "database_url = \"a\\n://b\"",
        "[policies.default]\non_quota = \"\\u0085\"",
        "[sweeper]\nschedule = \"\\u0000\"",
    ] {
        let error = load(toml).unwrap_err();
        assert!(!error.contains(char::is_control), "{error:?}");
    }
    assert!(
        load("[tokens]\nleeway = 'soon'")
            .unwrap_err()
            .starts_with("setting tokens.leeway in FILE: ")
    );
    assert!(
        load("[sweeper]\nschedule = 'often'")
            .unwrap_err()
            .starts_with("setting sweeper.schedule: ")
    );
}

/// Without our deserializers, serde would accept a list for a struct, and figment a number or a
/// section for an enum.
#[test]
fn a_section_must_be_a_table_and_an_enum_must_be_a_name() {
    // The sections are listed from the defaults, so that a section that is added later is tested
    // too.
    let everything: toml::Table = load("").unwrap().to_toml().unwrap().parse().unwrap();
    let sections: Vec<_> =
        everything.iter().filter(|(_, value)| value.is_table()).map(|(name, _)| name).collect();
    assert!(sections.len() >= 12, "{sections:?}");
    for section in sections {
        for list in ["[]", "['a']", "[true, '1d']"] {
            let error = load(&format!("{section} = {list}")).err().unwrap();
            assert_eq!(
                error,
                format!("setting {section} in FILE: must be a section, not sequence"),
                "{list}"
            );
        }
    }
    for (setting, toml) in [
        ("policies.p", "[policies]\np = ['1m', '1d']"),
        ("tenants.t", "[tenants]\nt = ['default']"),
        ("callers.0", "callers = [['a', ['admin'], [], [], ['sha256:00']]]"),
    ] {
        let error = load(toml).err().unwrap();
        assert_eq!(
            error,
            format!("setting {setting} in FILE: must be a section, not sequence"),
            "{toml}"
        );
    }
    for (setting, value, problem) in [
        ("reflection", "1", "\"1\" is not one of auto, on, off"),
        ("reflection", "{ on = {} }", "must be a string, not map"),
        ("log.format", "0", "\"0\" is not one of auto, text, json"),
        ("tls.client_certificates", "1", "\"1\" is not one of optional, required"),
        ("policies.default.on_quota", "1", "\"1\" is not one of evict_oldest, refuse"),
        ("policies.default.on_refresh", "{ keep_access_token = 1 }", "must be a string, not map"),
        (
            "policies.default.on_refresh",
            "'keep'",
            "\"keep\" is not one of keep_access_token, revoke_access_token: did you mean \
             keep_access_token?",
        ),
    ] {
        let error = load(&format!("{setting} = {value}")).err().unwrap();
        assert_eq!(error, format!("setting {setting} in FILE: {problem}"), "{value}");
    }
}

#[test]
fn an_address_that_others_can_reach_needs_protection_or_the_setting_insecure() {
    for setting in ["listen", "http_listen"] {
        let refused = load(&format!("{setting} = '0.0.0.0:50051'")).unwrap_err();
        assert!(
            refused.starts_with(&format!("setting {setting}: ")) && refused.contains("--insecure"),
            "{refused}"
        );
        assert!(load(&format!("{setting} = '0.0.0.0:50051'\ninsecure = true")).is_ok());
        assert!(load(&format!("{setting} = '[::1]:50051'")).is_ok());
    }
}

#[test]
fn the_http_port_may_be_left_out_but_not_the_grpc_port() {
    assert_eq!(load("http_listen = ''").unwrap().http_listen, None);
    assert!(load("listen = ''").unwrap_err().starts_with("setting listen: "));
}

#[test]
fn service_links_of_kubernetes_are_not_settings() {
    for (name, value) in [
        ("SERVICE_HOST", "10.0.0.5"),
        ("PORT", "tcp://10.0.0.5:50051"),
        ("PORT_50051_TCP_ADDR", "10.0.0.5"),
        ("HTTP_SERVICE_PORT", "8080"),
        ("CONFIG", "x"),
        ("SERVER", "x"),
    ] {
        assert!(!is_setting(name, Some(value)), "{name}");
    }
    assert!(
        is_setting("PORT", Some("50051")),
        "a number is not a link, so the unknown setting is reported"
    );
    for name in ["ISSUER", "SWEEPER__SCHEDULE", "POLICIES__DEFAULT__ACCESS_TOKEN_TTL", "POLICY"] {
        assert!(is_setting(name, Some("x")), "{name}");
    }
}

#[test]
fn a_file_name_with_a_special_meaning_to_sqlite_is_refused() {
    for path in ["", ":memory:", "file:x?mode=memory", "?x"] {
        assert!(load(&format!("database_url = 'sqlite://{path}'")).is_err(), "{path}");
    }
    assert!(load("database_url = 'sqlite:///var/lib/countersign.db'").is_ok());
    for folder in [":memory:", "file:x", "?x"] {
        assert!(
            load(&format!("data_dir = '{folder}'")).unwrap_err().starts_with("setting data_dir: "),
            "{folder}"
        );
        assert!(load(&format!("data_dir = './{folder}'")).is_ok());
    }
}

#[test]
fn a_flag_takes_precedence_over_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("countersign.toml");
    fs::write(&path, "listen = '127.0.0.1:1'\ndata_dir = '/file'").unwrap();
    let flags = Flags { listen: Some("127.0.0.1:2".to_owned()), ..Flags::default() };
    let config = Config::load(Some(&path), &flags).unwrap();
    assert_eq!(config.listen.address.port(), 2);
    assert_eq!(config.data_dir, PathBuf::from("/file"));
}

#[test]
fn printed_settings_can_be_loaded_and_are_printed_the_same_again() {
    let text = load("issuer = 'https://a.example'\n[policies.short]\naccess_token_ttl = '1m'")
        .unwrap()
        .to_toml()
        .unwrap();
    assert_eq!(load(&text).unwrap().to_toml().unwrap(), text);
    assert_eq!(Config::from_toml(&text).unwrap().to_toml().unwrap(), text);

    for span in ["2710y 5821ms", "18446744073709551615s 999999999ns"] {
        let config = load(&format!("shutdown.drain = '{span}'")).unwrap();
        assert_eq!(
            load(&config.to_toml().unwrap()).unwrap().shutdown.drain,
            config.shutdown.drain,
            "{span}"
        );
    }
}

#[test]
fn a_configuration_file_that_does_not_exist_is_an_error() {
    let error =
        Config::load(Some(Path::new("/nowhere/countersign.toml")), &Flags::default()).unwrap_err();
    assert!(error.to_string().starts_with("configuration file /nowhere/countersign.toml: "));
}

/// A level is chosen for diagnostics, and must not turn off the audit as a side effect.
#[test]
fn the_audit_is_logged_at_every_level_unless_a_directive_names_its_target() {
    for (level, is_logged) in [
        ("info", true),
        ("error", true),
        ("off", true),
        ("warn,countersign=error", true),
        ("countersign::audit=off", false),
        ("info,countersign::audit=warn", false),
    ] {
        let config = load(&format!("[log]\nlevel = '{level}'")).unwrap();
        let logged = tracing::subscriber::with_default(
            tracing_subscriber::registry().with(config.log.filter().unwrap()),
            || tracing::enabled!(target: crate::domain::audit::TARGET, tracing::Level::INFO),
        );
        assert_eq!(logged, is_logged, "{level}");
    }
}

/// `EnvFilter` interprets a word that is not a level as the target of a directive, which silences
/// all other targets.
#[test]
fn a_misspelt_level_that_would_silence_the_log_is_refused() {
    const LEVELS: &str = "error, warn, info, debug, trace, off";
    for (level, problem) in [
        ("warning", format!("\"warning\" is not one of {LEVELS}: did you mean warn?")),
        ("inf", format!("\"inf\" is not one of {LEVELS}: did you mean info?")),
        ("", format!("\"\" is not one of {LEVELS}, or directives like info,countersign=debug")),
        (" ", format!("\"\" is not one of {LEVELS}, or directives like info,countersign=debug")),
        (
            "info,",
            format!(
                "\"\" is not one of {LEVELS}, or directives like \
                           info,countersign=debug"
            ),
        ),
        ("3", format!("\"3\" is not one of {LEVELS}, or directives like info,countersign=debug")),
        ("h2", format!("\"h2\" is not one of {LEVELS}, or directives like info,countersign=debug")),
        ("info,h2=warning", format!("\"warning\" is not one of {LEVELS}: did you mean warn?")),
        (
            "info,h2=",
            format!(
                "\"\" is not one of {LEVELS}, or directives like \
                              info,countersign=debug"
            ),
        ),
        ("[a{b=c}]=debg,info", format!("\"debg\" is not one of {LEVELS}: did you mean debug?")),
        (
            "info,contersign=debug",
            "\"contersign\" is not a part of the service: did you mean \
                                   countersign?"
                .to_owned(),
        ),
        (
            "h2=debug",
            "\"h2=debug\" logs nothing of the service: begin with a level, like \
             info,countersign=debug"
                .to_owned(),
        ),
    ] {
        let error = load(&format!("log.level = '{level}'")).err().unwrap_or_default();
        assert_eq!(error, format!("setting log.level: {problem}"), "{level:?}");
    }
    for level in [
        "warn",
        "WARN",
        "off",
        "info, h2=warn",
        "countersign=debug",
        "info,[span{a=1}]=trace",
        "info,[x]",
    ] {
        assert!(load(&format!("log.level = '{level}'")).is_ok(), "{level:?}");
    }
}

#[test]
fn differences_lists_the_settings_that_differ_with_their_values() {
    let base = "issuer = 'https://a.example'\ndatabase_url = \
                'postgres://u:one@h/d'\n[[callers]]\nname = 'a'\nroles = ['admin']\nkey_hashes = \
                ['sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA']";
    let names = |from: &str, to: &str| {
        let changed = base.replace(from, to);
        assert_ne!(base, changed);
        let differences = load(&changed).unwrap().differences(&load(base).unwrap());
        let settings = differences.iter().map(|(name, value)| format!("{name}{value}"));
        settings.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(load(base).unwrap().differences(&load(base).unwrap()).len(), 0);
    assert_eq!(
        names("https://a.", "https://b."),
        "issuer = https://b.example tokens.default_audience = https://b.example"
    );
    assert_eq!(names(":one@", ":two@"), "database_url");
    assert_eq!(names("'admin'", "'viewer'"), "callers", "without the hashes of their keys");
    let end = "\n[[callers]]";
    assert_eq!(names(end, "\n[log]\nformat = 'json'\n[[callers]]"), "log.format = json");
    assert_eq!(names(end, "\n[log]\nlevel = 'warn'\n[[callers]]"), "log.level = warn");
    let policy = "\n[policies.short]\naccess_token_ttl = '1m'\n[[callers]]";
    assert_eq!(names(end, policy), "policies.short");
}

/// Collects the values of all settings by their dotted names.
fn leaves(path: &str, value: &serde_json::Value, found: &mut BTreeMap<String, String>) {
    match value {
        serde_json::Value::Object(section) => {
            for (name, value) in section {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(&path, value, found);
            }
        }
        serde_json::Value::String(text) => drop(found.insert(path.to_owned(), text.clone())),
        other => drop(found.insert(path.to_owned(), other.to_string())),
    }
}

fn values(config: &Config) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    leaves("", &config.to_json().unwrap(), &mut found);
    found
}

#[test]
fn a_relative_path_in_a_file_starts_from_the_folder_of_the_file() {
    let text = "data_dir = 'data'\ndatabase_url = \
                'sqlite://./db/../s.db'\n[database]\npassword_file = 'p'\n[tls]\ncertificate_file \
                = 'c'\nprivate_key_file = '../k'\nclient_ca_file = 'ca'\n[keys]\nmaster_key_file \
                = 'm'\nadditional_master_key_file = 'a/b'";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("countersign.toml");
    fs::write(&path, text).unwrap();
    let config = Config::load(Some(&path), &Flags::default()).unwrap();
    let folder = folder.path().display().to_string();
    let is_path =
        |name: &str| name.ends_with("_file") || name.ends_with("_dir") || name == "database_url";
    let values = values(&config);
    let paths: Vec<_> = values.iter().filter(|(name, _)| is_path(name)).collect();
    assert_eq!(paths.len(), 8, "the text above names all paths: {paths:?}");
    for (name, value) in paths {
        assert!(value.trim_start_matches("sqlite://").starts_with(&folder), "{name} = {value}");
    }
    assert_eq!(config.data_dir, Path::new(&folder).join("data"));
    assert_eq!(config.database, DatabaseUrl::Sqlite(Path::new(&folder).join("db/../s.db")));

    // Absolute paths stay as they are, and so do paths that flags set.
    fs::write(&path, "data_dir = '/data'\ndatabase_url = 'sqlite:///s.db'").unwrap();
    let config = Config::load(Some(&path), &Flags::default()).unwrap();
    assert_eq!(
        (config.data_dir, config.database),
        ("/data".into(), DatabaseUrl::Sqlite("/s.db".into()))
    );
    let flags = Flags {
        data_dir: Some("data".into()),
        database_url: Some("sqlite://s.db".into()),
        ..Flags::default()
    };
    let config = Config::load(Some(&path), &flags).unwrap();
    assert_eq!(
        (config.data_dir, config.database),
        ("data".into(), DatabaseUrl::Sqlite("s.db".into()))
    );
}

#[test]
fn a_relative_path_in_a_url_starts_from_the_folder_of_the_file_too() {
    for (path, expected) in [
        ("sslrootcert=ca%2B1.pem", "sslrootcert=/etc/a%20b/ca%2B1.pem"),
        (
            "sslmode=require&sslrootcert=../ca.pem&x=y",
            "sslmode=require&sslrootcert=/etc/a%20b/../ca.pem&x=y",
        ),
        ("sslrootcert=system", "sslrootcert=system"),
        ("sslrootcert=/ca.pem", "sslrootcert=/ca.pem"),
        ("sslmode=require", "sslmode=require"),
    ] {
        let url = |query: &str| format!("postgres://u:s%40cret@h/d?{query}");
        let resolved = database::resolve(&url(path), Path::new("/etc/a b")).unwrap();
        assert_eq!(resolved.unwrap_or_else(|| url(path)), url(expected));
    }
}

#[test]
fn derived_settings_are_printed_as_comments_and_stay_derived() {
    let text = "issuer = 'https://a.example'\ndata_dir = \
                '/a'\n[policies.default]\naccess_token_ttl = '20s'\n[policies.\"a \
                b\"]\nidle_timeout = '1d'\n[tenants.t]\npolicy = 'a b'\n[[callers]]\nname = \
                'c'\nroles = ['admin']\nkey_hashes = \
                ['sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA']";
    let printed = load(text).unwrap().to_toml().unwrap();
    let is_comment = |line: &str| printed.lines().any(|printed| printed == format!("# {line}"));
    for line in [
        "database_url = \"sqlite:///a/countersign.db\"",
        "master_key_file = \"/a/master.key\"",
        "default_audience = \"https://a.example\"",
        "refresh_grace = \"19s\"",
        "access_token_ttl = \"20s\"",
    ] {
        assert!(is_comment(line), "{line} in {printed}");
    }
    for line in [
        "data_dir = \"/a\"",
        "issuer = \"https://a.example\"",
        "idle_timeout = \"1d\"",
        "[policies.\"a b\"]",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line} in {printed}");
    }
    assert_eq!(values(&load(&printed).unwrap()), values(&load(text).unwrap()));
    assert_eq!(load(&printed).unwrap().to_toml().unwrap(), printed);

    let changed =
        printed.replace("data_dir = \"/a\"", "data_dir = \"/b\"").replace("= \"20s\"", "= \"40s\"");
    let changed = load(&changed.replace("issuer = \"https://a.", "issuer = \"https://b.")).unwrap();
    let values = values(&changed);
    for (name, value) in [
        ("database_url", "sqlite:///b/countersign.db"),
        ("keys.master_key_file", "/b/master.key"),
        ("tokens.default_audience", "https://b.example"),
        ("policies.default.refresh_grace", "30s"),
        ("policies.a b.access_token_ttl", "40s"),
        ("policies.a b.refresh_grace", "30s"),
        ("policies.a b.idle_timeout", "1d"),
    ] {
        assert_eq!(values[name], value, "{name}");
    }
    assert_eq!(changed.callers.len(), 1);

    // A flag's relative path starts from the working directory, so it is printed as absolute.
    let strange = "a\n[tokens]\u{7f}\"";
    let flags = Flags { data_dir: Some(strange.into()), ..Flags::default() };
    let printed = Config::load(None, &flags).unwrap().to_toml().unwrap();
    let printed = load(&printed).unwrap();
    assert_eq!(printed.data_dir, std::env::current_dir().unwrap().join(strange));
    assert_eq!(printed.database, DatabaseUrl::Sqlite(printed.data_dir.join("countersign.db")));
}

/// A change that needs a restart must not take effect in part, by what is derived from it.
#[test]
fn a_reload_takes_only_settings_that_can_change_and_derives_the_others_from_those_in_force() {
    let url = "database_url = 'postgres://u:secret@h/d'";
    let before = load(&format!("{url}\nissuer = 'https://a.example'")).unwrap();
    let read = load(&format!(
        "{url}\nissuer = 'https://b.example'\n[tokens]\nleeway = '7s'\n[policies.default]\n\
         access_token_ttl = '20s'"
    ))
    .unwrap();
    let after = before.reloaded(&read).unwrap();
    assert_eq!(
        (&*after.issuer, &*after.tokens.default_audience),
        ("https://a.example", "https://a.example")
    );
    assert_eq!(after.tokens.leeway, Duration::from_secs(7));
    let grace = after.policies["default"].session.refresh_grace;
    assert_eq!(grace, Duration::from_secs(19), "shortened as in a file");
    assert_eq!(after.database, before.database, "with the password");
    let names: Vec<_> = read.differences(&after).into_keys().collect();
    assert_eq!(names, ["issuer", "tokens.default_audience"]);

    let after = after.reloaded(&before).unwrap();
    assert!(after.differences(&before).is_empty(), "back again");

    // The callers of the new file need authorities, which are read at the start.
    let read = load(
        "tls = { certificate_file = 'c', private_key_file = 'k', client_ca_file = 'a' }\n\
         [[callers]]\nname = 'a'\nroles = ['admin']\ncertificate_names = ['a.example']",
    );
    let error = load("").unwrap().reloaded(&read.unwrap()).unwrap_err();
    assert!(error.to_string().contains("callers[0]"), "{error}");
}

#[test]
fn wrong_rules_of_clients_and_policies_are_refused_with_the_way_out() {
    for (text, problem) in [
        ("[clients.app]", "setting clients.app: has no effect: set its policy or its audiences"),
        ("[tenants.t.clients.app]", "setting tenants.t.clients.app: has no effect"),
        ("[clients.'']\naudiences = ['a']", "setting clients: must not name an empty client"),
        ("[clients.app]\npolicy = 'nist-aal4'", "setting clients.app.policy: \"nist-aal4\""),
        (
            "[tenants.t]\naudiences = ['a']\nclients.app = { audiences = ['b'] }",
            "setting tenants.t.clients.app.audiences: has no audience in common with \
             tenants.t.audiences",
        ),
        ("[policies.p]\npreset = 'nist'", "setting policies.p.preset: \"nist\" is not one of"),
        (
            "[policies.nist-aal2]\nidle_timeout = '1d'",
            "setting policies.nist-aal2: is the name of a preset, which cannot be changed: give \
             your policy another name, and preset = \"nist-aal2\"",
        ),
        (
            "[policies.p]\nrefresh = 'reuse'\nrefresh_grace = '1s'",
            "setting policies.p.refresh_grace: does not go with refresh = \"reuse\"",
        ),
        (
            "[policies.default]\nrefresh = 'reuse'\n[policies.p]\nreplay = 'until_used'",
            "setting policies.p.replay: does not go with refresh = \"reuse\"",
        ),
        ("[policies.p]\nrefresh = 'never'", "setting policies.p.refresh in FILE: \"never\""),
    ] {
        let error = load(text).err().unwrap_or_default();
        assert!(error.starts_with(problem), "{text}: {error}");
    }
}

#[test]
fn a_policy_inherits_from_its_preset_or_else_from_the_default_policy() {
    let config = load(
        "[tokens]\nmax_access_token_ttl = '4m'\n\
         [policies.default]\npreset = 'nist-aal3'\naccess_token_ttl = '3m'\nrefresh = 'reuse'\n\
         [policies.a]\nrefresh = 'rotate'\n[policies.b]\npreset = 'remember-me'\n\
         access_token_ttl = '1m'",
    )
    .unwrap();
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let limits = |name: &str| {
        let policy = &config.policies[name];
        (policy.session.access_token_ttl, policy.session.idle_timeout, policy.session.refresh)
    };
    assert_eq!(limits("default"), (minutes(3), minutes(15), RefreshMode::Reuse));
    assert_eq!(limits("a"), (minutes(3), minutes(15), RefreshMode::Rotate));
    assert_eq!(config.policies["a"].session.refresh_grace, Duration::from_secs(30));
    assert_eq!(limits("b"), (minutes(1), minutes(30 * 1440), RefreshMode::Rotate));
    assert_eq!(limits("remember-me").0, minutes(4), "as short as the longest that is allowed");

    // What is printed is a configuration file with the same meaning.
    let printed = config.to_toml().unwrap();
    assert!(printed.contains("\n# [policies.nist-aal1]\n# "), "{printed}");
    assert!(printed.contains("\n[policies.b]\n"), "{printed}");
    let again = load(&printed).unwrap();
    assert_eq!(again.policies, config.policies);
}
