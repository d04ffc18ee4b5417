//! Tests with third-party clients: PyJWT and jose verify access tokens with the published keys, and
//! Authlib and oauth4webapi introspect and revoke them, and a collector of OpenTelemetry receives
//! traces and metrics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod collector;
mod devices;
mod metrics;
mod traces;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use countersign_test_support::{
    ports::free_address,
    process::{Server, countersign, run, serve},
    venv::{ran, venv},
};
use serde_json::Value;

/// Returns a folder in which the libraries of both languages are installed. The folder is kept from
/// one run to the next.
fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifiers");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verifiers");
        fs::create_dir_all(&folder).unwrap();
        for file in [
            "collector.py",
            "verify.py",
            "verify.mjs",
            "oauth.py",
            "oauth.mjs",
            "package.json",
            "requirements.txt",
        ] {
            fs::copy(sources.join(file), folder.join(file)).unwrap();
        }
        venv(&folder, &fs::read_to_string(folder.join("requirements.txt")).unwrap());
        let (wanted, installed) =
            (fs::read_to_string(folder.join("package.json")).unwrap(), folder.join("npm-has"));
        if fs::read_to_string(&installed).unwrap_or_default() != wanted {
            ran(Command::new("npm")
                .args(["install", "--no-audit", "--no-fund", "--silent"])
                .current_dir(&folder));
            fs::write(&installed, wanted).unwrap();
        }
        folder
    })
}

#[test]
fn tokens_of_each_algorithm_are_verified_by_other_libraries() {
    let libraries = libraries();
    for algorithm in ["EdDSA", "ES256", "RS256"] {
        let home = tempfile::tempdir().unwrap();
        // The keys are published at the URL of the issuer, so the port is chosen before the start.
        let http = free_address();
        let issuer = format!("http://{http}");
        let mut command = serve(home.path());
        command.env("COUNTERSIGN_ISSUER", &issuer).env("COUNTERSIGN_HTTP_LISTEN", http.to_string());
        command.env("COUNTERSIGN_KEYS__ALGORITHM", algorithm);
        let server = Server::launch(&mut command);
        let created = [
            "session",
            "create",
            "alice",
            "--client-id",
            "web",
            "--audience",
            "https://api.test",
            "--json",
        ];
        let created: Value = server.cli(created).json();
        let token = created["tokens"]["access_token"].as_str().unwrap();
        let verifiers = [("venv/bin/python", "verify.py"), ("node", "verify.mjs")];
        for (program, script) in verifiers {
            let program =
                if program == "node" { PathBuf::from(program) } else { libraries.join(program) };
            let mut verify = Command::new(program);
            let output = ran(verify
                .arg(script)
                .args([&issuer, "https://api.test", token])
                .current_dir(libraries));
            assert_eq!(output, format!("{algorithm} alice"), "{script}");
        }
        server.stop();
    }
}

#[test]
fn tokens_are_introspected_and_revoked_by_other_libraries() {
    let libraries = libraries();
    let home = tempfile::tempdir().unwrap();
    let http = free_address();
    let issuer = format!("http://{http}");
    let roles = ["issuer", "validator", "revoker"];
    let made = ["caller", "new", "resource.server_1", "--json"]
        .into_iter()
        .chain(roles.iter().flat_map(|role| ["--role", role]));
    let made: Value = run(countersign().args(made)).json();
    let (key, hash) =
        (made["api_key"].as_str().unwrap(), made["caller"]["key_hashes"][0].as_str().unwrap());
    let config = home.path().join("countersign.toml");
    let caller = format!(
        "[[callers]]\nname = \"resource.server_1\"\nroles = {roles:?}\nkey_hashes = [{hash:?}]\n"
    );
    fs::write(&config, caller).unwrap();
    let mut command = serve(home.path());
    command.env("COUNTERSIGN_ISSUER", &issuer).env("COUNTERSIGN_HTTP_LISTEN", http.to_string());
    let server = Server::launch(command.arg("--config").arg(config));
    for (program, script, expected) in [
        (libraries.join("venv/bin/python"), "oauth.py", "True alice {'active': False}"),
        (PathBuf::from("node"), "oauth.mjs", "true alice {\"active\":false}"),
    ] {
        let mut create = server.command(["session", "create", "alice", "--json"]);
        let created: Value = run(create.env("COUNTERSIGN_API_KEY", key)).json();
        let token = created["tokens"]["access_token"].as_str().unwrap();
        let arguments = [script, &issuer, "resource.server_1", key, token];
        let output = ran(Command::new(program).args(arguments).current_dir(libraries));
        assert_eq!(output, expected, "{script}");
    }
    server.stop();
}
