//! Checks the README and the operator's guide: the commands in them run exactly as they are
//! printed, and the table of settings has every setting.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
};

use countersign::{
    config::{Config, SettingValue},
    domain::preset::{Preset, PresetLimits},
};
use countersign_test_support::ports::free_address;

const BINARY: &str = env!("CARGO_BIN_EXE_countersign");

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

fn readme() -> String {
    page("README.md")
}

/// Returns the fenced blocks of a section of a page, each with its language. The heading includes
/// its marks, as in `## Name`.
fn blocks(page: &str, heading: &str) -> Vec<(String, String)> {
    let marks = heading.split(' ').next().unwrap();
    let from = page.find(&format!("\n{heading}\n")).unwrap() + 1;
    let section = page[from..].split(&format!("\n{marks} ")).next().unwrap().to_owned();
    let mut blocks = vec![];
    let mut lines = section.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let body: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language.to_owned(), body.join("\n")));
        }
    }
    blocks
}

/// Returns whether a line is as expected. In `expected`, `…` stands for any text. A run of white
/// space counts as one space, because the width of columns depends on their content.
fn matches(expected: &str, actual: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, actual) = (squeeze(expected), squeeze(actual));
    let mut rest = actual.as_str();
    let mut pieces = expected.split('…');
    let Some(first) = pieces.next() else { return false };
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    let mut open_end = false;
    for piece in pieces {
        let Some(position) = rest.find(piece) else { return false };
        rest = &rest[position + piece.len()..];
        open_end = piece.is_empty();
    }
    rest.is_empty() || open_end
}

#[test]
fn the_commands_of_the_tour_run_unchanged_and_print_what_the_readme_shows() {
    run_unchanged(&blocks(&readme(), "## Five minutes"), "");
}

#[test]
fn the_commands_of_backup_and_restore_run_unchanged_and_print_what_the_guide_shows() {
    let signed_in = "countersign serve 2> serve.log &\n\
        until countersign health > health.txt 2>&1; do sleep 0.1; done\n\
        countersign session create alice > created.txt\n";
    run_unchanged(&blocks(&page("docs/operations.md"), "### Step by step"), signed_in);
}

/// Runs all shell blocks in one shell, after the commands of `beginning`, which must print nothing.
/// Compares what each block prints with the text block that follows it.
fn run_unchanged(blocks: &[(String, String)], beginning: &str) {
    const MARK: &str = "=====";
    let mut script = format!("set -eu\n{beginning}");
    let mut expected = vec![];
    for (language, body) in blocks {
        match language.as_str() {
            "sh" => {
                script += &format!("{body}\necho '{MARK}'\n");
                expected.push(String::new());
            }
            "text" => expected.last_mut().unwrap().push_str(body),
            other => panic!("a code block has the unexpected language {other:?}"),
        }
    }
    assert!(expected.len() > 5, "the section has too few code blocks");

    // A server that is still running ends with the shell.
    script += "kill $(jobs -p) 2> /dev/null || true\n";
    // The commands run unchanged. The address comes from the environment, so that several of these
    // tests can run at the same time.
    let port = free_address().port();
    let folder = tempfile::tempdir().unwrap();
    let path =
        format!("{}:{}", Path::new(BINARY).parent().unwrap().display(), env::var("PATH").unwrap());
    let output = Command::new("bash")
        // Job control, which `kill %1` needs, is off in scripts without `-m`.
        .args(["-m", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("COUNTERSIGN_LISTEN", format!("127.0.0.1:{port}"))
        .env("COUNTERSIGN_HTTP_LISTEN", "127.0.0.1:0")
        .env("COUNTERSIGN_SERVER", format!("http://127.0.0.1:{port}"))
        .output()
        .unwrap();
    let log = fs::read_to_string(folder.path().join("serve.log")).unwrap_or_default();
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the commands failed\n{printed}\n{errors}\n{log}");
    let printed: Vec<_> = printed.split(&format!("{MARK}\n")).collect();
    for (expected, printed) in expected.iter().zip(&printed) {
        let (expected, printed): (Vec<_>, Vec<_>) =
            (expected.lines().collect(), printed.lines().collect());
        assert_eq!(expected.len(), printed.len(), "expected {expected:#?}, printed {printed:#?}");
        for (expected, printed) in expected.iter().zip(printed) {
            assert!(matches(expected, printed), "expected {expected:?}, printed {printed:?}");
        }
    }
}

/// Returns all settings as dotted names.
fn settings(path: &str, value: &serde_json::Value) -> Vec<String> {
    match value.as_object() {
        Some(object) => object
            .iter()
            .flat_map(|(name, value)| {
                settings(&format!("{path}{}{name}", if path.is_empty() { "" } else { "." }), value)
            })
            .collect(),
        None => vec![path.to_owned()],
    }
}

#[test]
fn the_table_has_every_setting_with_its_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(
        &file,
        "[database]\npassword_file = 'p'\n[keys]\nadditional_master_key_file = \
                      'p'\n[tls]\ncertificate_file = 'p'\nprivate_key_file = 'p'\nclient_ca_file \
                      = 'p'\n[replica]\nname = 'p'\n[tenants.t]\npolicy = 'default'\naudiences = \
                      ['a']\n[tenants.t.clients.c]\npolicy = 'default'\naudiences = ['a']\n\
                      [clients.c]\npolicy = 'default'\naudiences = ['a']\n[policies.p]\npreset = \
                      'nist-aal1'\n[otlp]\nca_file = 'p'",
    )
    .unwrap();
    let output = Command::new(BINARY)
        .args(["config", "print", "--json", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let readme = readme();
    let mut names = settings("", &printed);
    // The keys of `[gateway.headers]` are names of headers that the operator chooses.
    names.retain(|name| !name.starts_with("gateway.headers."));
    names.push("gateway.headers".to_owned());
    // The default policy shows the defaults of all settings but one.
    names.retain(|name| {
        !name.starts_with("policies.")
            || name.starts_with("policies.default.")
            || name == "policies.p.preset"
    });
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        let shown = in_table(name);
        assert!(readme.contains(&format!("| `{shown}` |")), "the README lacks {shown}");
        let value = name.split('.').fold(&printed, |value, part| &value[part]);
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let derived = [
            "database_url",
            "gateway.cookie",
            "gateway.headers",
            "default_audience",
            "master_key_file",
            "password_file",
            "tenants",
            "clients",
            "preset",
            "certificate_file",
            "private_key_file",
            "replica.name",
            "otlp.endpoint",
            "ca_file",
            "acr_order",
        ];
        if derived.iter().any(|derived| name.contains(derived)) {
            continue;
        }
        let row = readme.lines().find(|line| line.starts_with(&format!("| `{shown}` |"))).unwrap();
        let short = row.split('`').nth(3).unwrap();
        let same = short == value
            || humantime::parse_duration(short)
                .ok()
                .is_some_and(|span| Some(span) == humantime::parse_duration(&value).ok());
        assert!(same, "the README says that {shown} is {short}, but it is {value}");
    }
    let rows = readme
        .lines()
        .filter(|line| line.starts_with("| `") && line.matches('|').count() == 4)
        .count();
    assert_eq!(rows, names.len(), "the table has rows for settings that do not exist");
}

/// Returns the name under which the table has a setting. The tests name a tenant `t`, a client `c`
/// and a policy `p`.
fn in_table(name: &str) -> String {
    let name = name
        .replace("policies.default.", "policies.NAME.")
        .replace("policies.p.", "policies.NAME.")
        .replace("tenants.t.", "tenants.NAME.")
        .replace("clients.c.", "clients.CLIENT.");
    match name.starts_with("gateway.headers.") {
        true => "gateway.headers".to_owned(),
        false => name,
    }
}

/// Each setting with a value that is not its default.
const EVERY_SETTING: &str = "
issuer = 'https://other.example'
listen = '127.0.0.1:50052'
http_listen = '127.0.0.1:8081'
insecure = true
reflection = 'off'
data_dir = 'other'
database_url = 'postgres://u@h/d'
callers = [{ name = 'a', roles = ['admin'], key_hashes = ['sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'] }]
[tls]
certificate_file = 'c'
private_key_file = 'k'
client_ca_file = 'a'
client_certificates = 'required'
http = false
[gateway]
headers = { x-user = 'sub' }
max_header_bytes = 1000
cookie = 'c'
remove_credential = true
[limits]
max_connections = 4097
max_http_connections = 1025
listen_backlog = 1025
max_streams_per_connection = 513
max_request_bytes = 65537
max_batch_bytes = 1048577
max_answer_bytes = 4194305
max_unsent_bytes = 67108900
max_metadata_bytes = 16385
max_calls = 8193
max_reads = 97
max_writes = 1025
max_batches = 1
max_calls_per_caller = 4097
calls_per_second_per_caller = 9
max_watchers = 1001
call_timeout = '31s'
handshake_timeout = '11s'
idle_timeout = '11m'
keepalive_interval = '2m'
keepalive_timeout = '21s'
[database]
migrate = false
password_file = 'p'
max_connections = 17
connect_timeout = '4s'
startup_timeout = '2m'
acquire_timeout = '4s'
statement_timeout = '11s'
[tokens]
leeway = '6s'
acr_order = ['a']
legacy_refresh_tokens = true
max_access_token_ttl = '2h'
default_audience = 'd'
verified_cache_bytes = 1
[policies.default]
access_token_ttl = '11m'
idle_timeout = '15d'
absolute_lifetime = '91d'
refresh_grace = '31s'
replay = 'until_used'
replay_limit = '25h'
max_sessions_per_subject = 51
on_quota = 'refuse'
reauthentication_extends = true
apply_to_live = true
[policies.p]
preset = 'nist-aal1'
refresh = 'reuse'
on_refresh = 'revoke_access_token'
[tenants.t]
policy = 'p'
audiences = ['a']
[tenants.t.clients.c]
policy = 'p'
audiences = ['a']
[clients.c]
policy = 'p'
audiences = ['a']
[blacklist]
max_entries = 1
[lease]
duration = '3s'
renewal = '600ms'
margin = '300ms'
max_clock_skew = '6s'
[watch]
lease = '1s'
[replica]
name = 'n'
[sweeper]
schedule = '*/2 * * * *'
batch_size = 1001
session_retention = '31d'
[audit]
table = false
retention = '91d'
[keys]
master_key_file = 'm'
additional_master_key_file = 'n'
algorithm = 'ES256'
rotation = '31d'
refresh_rotation = '91d'
publish_ahead = '2h'
jwks_max_age = '6m'
[shutdown]
grace = '3s'
drain = '21s'
[log]
level = 'warn'
slow_calls = '2s'
format = 'json'
[otlp]
endpoint = 'https://collector.example:4317'
protocol = 'http'
ca_file = 'c'
metrics_interval = '1m'
sample_ratio = 0.5
";

/// Returns how the guide says that a setting takes effect: the first column of each row that lists
/// it. A row that names a setting itself takes precedence over one that names its section.
fn effects_in_guide(guide: &str, setting: &str) -> Vec<String> {
    let heading = "| take effect | settings |";
    let table = guide.split(heading).nth(1).unwrap().lines().skip(2);
    let rows: Vec<Vec<&str>> = table
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let listing = |listed: &str| {
        let listed = format!("`{listed}`");
        let rows = rows.iter().filter(|row| row[2].contains(&listed));
        rows.map(|row| row[1].to_owned()).collect::<Vec<_>>()
    };
    let section = format!("{}.*", setting.split('.').next().unwrap());
    match listing(setting) {
        itself if itself.is_empty() => listing(&section),
        itself => itself,
    }
}

#[test]
fn the_guide_says_of_each_setting_whether_it_changes_while_the_service_runs() {
    // The sections that both configurations have are compared setting by setting.
    let sections = "[policies.p]\n[tenants.t]\n[tenants.t.clients.c]\naudiences = ['x']\n\
                    [clients.c]\naudiences = ['x']";
    let started = Config::from_toml(sections).unwrap();
    let read = Config::from_toml(EVERY_SETTING).unwrap();
    let in_force = started.reloaded(&read).unwrap();
    let names = |differences: BTreeMap<String, SettingValue>| {
        differences.into_keys().map(|name| in_table(&name)).collect::<BTreeSet<_>>()
    };
    let changed = names(in_force.differences(&started));
    let waiting = names(read.differences(&in_force));
    let readme = readme();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let guide = page("docs/operations.md");
    let mut seen = 0;
    for (setting, _) in rows {
        let effect = match (changed.contains(setting), waiting.contains(setting)) {
            (true, false) => "within five seconds",
            (false, true) => "after a restart",
            other => panic!("{setting}: {other:?}"),
        };
        assert_eq!(effects_in_guide(&guide, setting), [effect], "{setting}");
        seen += 1;
    }
    assert!(seen > 90, "{seen}");
}

#[test]
fn the_guide_has_the_limits_of_each_preset() {
    let guide = page("docs/sessions.md");
    let rows: Vec<Vec<&str>> = guide
        .lines()
        .filter(|line| line.matches('|').count() == 7)
        .skip(2)
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
        .collect();
    assert_eq!(rows.len(), Preset::ALL.len());
    let span = |text: &str| humantime::parse_duration(text).unwrap();
    for (preset, row) in Preset::ALL.into_iter().zip(&rows) {
        assert_eq!(row[1], preset.as_str());
        let limits = PresetLimits {
            access_token_ttl: span(row[2]),
            idle_timeout: span(row[3]),
            absolute_lifetime: span(row[4]),
            reauthentication_extends: row[5].parse().unwrap(),
        };
        assert_eq!(limits, preset.limits(), "{}", row[1]);
        assert_eq!(row[6], preset.source());
    }
}

#[test]
fn the_example_configuration_is_accepted() {
    let (_, toml) = blocks(&readme(), "## Configuration")
        .into_iter()
        .find(|(language, _)| language == "toml")
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("c.toml");
    fs::write(&file, toml).unwrap();
    let output =
        Command::new(BINARY).args(["config", "check", "--config"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_wildcard_matches_any_text_and_all_other_text_must_be_equal() {
    assert!(matches("session …", "session   01a1"));
    assert!(matches("… alice … live", "x alice y live"));
    assert!(!matches("active yes", "active no"));
    assert!(!matches("active", "active yes"));
    assert!(!matches("… alice", "bob"));
}
