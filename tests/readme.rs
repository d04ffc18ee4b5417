//! Checks the README and the operator's guide: the commands in them run exactly as they are
//! printed, and the table of settings has every setting.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{env, fs, path::Path, process::Command};

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
                      ['a']\n[otlp]\nca_file = 'p'",
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
    assert!(names.len() > 20, "{names:?}");
    for name in &names {
        let shown = name
            .replace("policies.default.", "policies.NAME.")
            .replace("tenants.t.", "tenants.NAME.");
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
