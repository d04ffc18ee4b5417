//! Tests the example of docs/my-devices.md against a running service, as a browser would use it.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use countersign_test_support::{
    process::{Server, countersign, run, serve},
    venv::{ran, with_protocol},
};
use serde_json::Value;

/// The example, which runs until it is dropped.
struct App {
    child: Child,
    url: String,
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies the example, generates the code of its protocol, and returns the folder with the command
/// that runs it.
fn example() -> (PathBuf, Command) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("my-devices");
    fs::create_dir_all(&folder).unwrap();
    let example = root.join("examples/my-devices");
    fs::copy(example.join("app.py"), folder.join("app.py")).unwrap();
    let packages = fs::read_to_string(example.join("requirements.txt")).unwrap();
    let protos = ["countersign/v1/session.proto", "countersign/v1/session_service.proto"];
    let python = with_protocol(&folder, &packages, &protos);
    let mut command = Command::new(python);
    command.arg("app.py").arg("0").current_dir(&folder);
    (folder, command)
}

impl App {
    fn start(server: &Server, key: &str) -> Self {
        let (_, mut command) = example();
        command.env("COUNTERSIGN_SERVER", server.address().to_string());
        command.env("COUNTERSIGN_API_KEY", key);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { child, url: format!("http://127.0.0.1:{}/devices", port.trim()) }
    }

    /// Sends a request with curl. Returns the status and the body.
    fn ask(&self, token: &str, path: &str, form: &[(&str, &str)]) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--write-out", "\n%{http_code}", "--cookie"]);
        curl.arg(format!("access_token={token}"));
        for (field, value) in form {
            curl.arg("--data-urlencode").arg(format!("{field}={value}"));
        }
        let output = ran(curl.arg(format!("{}{path}", self.url)));
        let (body, status) = output.rsplit_once('\n').unwrap_or(("", &output));
        (status.parse().unwrap(), body.to_owned())
    }

    /// Returns the names of the devices on the page, and the value that its forms need.
    fn devices(&self, token: &str) -> (Vec<String>, String) {
        let (status, page) = self.ask(token, "", &[]);
        assert_eq!(status, 200, "{page}");
        let between = |text: &str, begin: &str, end: &str| {
            text.split_once(begin).unwrap().1.split_once(end).unwrap().0.to_owned()
        };
        let rows = page.split("<li>").skip(1);
        let names = rows.map(|row| between(row, "<strong>", "<small>").replace("</strong>", ""));
        (
            names.map(|name| name.trim().to_owned()).collect(),
            between(&page, "csrf\" value=\"", "\""),
        )
    }
}

#[test]
fn users_see_their_devices_and_sign_them_out_and_nobody_elses() {
    let home = tempfile::tempdir().unwrap();
    let roles = ["issuer", "validator", "revoker", "viewer"];
    let made = ["caller", "new", "account", "--json"]
        .into_iter()
        .chain(roles.iter().flat_map(|role| ["--role", role]));
    let made: Value = run(countersign().args(made)).json();
    let (key, hash) =
        (made["api_key"].as_str().unwrap(), made["caller"]["key_hashes"][0].as_str().unwrap());
    let config = home.path().join("countersign.toml");
    let caller =
        format!("[[callers]]\nname = \"account\"\nroles = {roles:?}\nkey_hashes = [{hash:?}]\n");
    fs::write(&config, caller).unwrap();
    let server = Server::launch(serve(home.path()).arg("--config").arg(config));
    let sign_in = |subject: &str, label: &str| {
        let args = ["session", "create", subject, "--label", label, "--json"];
        let mut create = server.command(args);
        let created: Value = run(create.env("COUNTERSIGN_API_KEY", key)).json();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&created["session"]["session_id"]), text(&created["tokens"]["access_token"]))
    };
    let (_, laptop) = sign_in("alice", "<Laptop>");
    let (phone_id, phone) = sign_in("alice", "Phone");
    let (tablet_id, tablet) = sign_in("alice", "Tablet");
    let (bobs_id, bobs) = sign_in("bob", "Bob's phone");
    let app = App::start(&server, key);

    let (names, csrf) = app.devices(&laptop);
    assert_eq!(names, ["Tablet", "Phone", "&lt;Laptop&gt; (this device)"]);
    let rename = [("csrf", csrf.as_str()), ("session", &phone_id), ("label", "Old phone")];
    assert_eq!(app.ask(&laptop, "/rename", &rename).0, 303);
    assert_eq!(app.devices(&laptop).0[1], "Old phone");

    let end = |csrf: &str, id: &str| app.ask(&laptop, "/end", &[("csrf", csrf), ("session", id)]).0;
    assert_eq!(end("", &tablet_id), 403, "a form of another site");
    assert_eq!(end(&app.devices(&bobs).1, &tablet_id), 403, "a form of another session");
    assert_eq!(end(&csrf, &bobs_id), 404);
    assert_eq!(end(&csrf, "x"), 404);
    assert_eq!(end(&csrf, &tablet_id), 303);
    assert_eq!(app.ask(&tablet, "", &[]).0, 401, "the tablet is signed out");
    assert_eq!(app.ask(&laptop, "/end-others", &[("csrf", &csrf)]).0, 303);
    assert_eq!(app.ask(&phone, "", &[]).0, 401);
    assert_eq!(app.devices(&laptop).0, ["&lt;Laptop&gt; (this device)"]);
    assert_eq!(app.devices(&bobs).0, ["Bob&#x27;s phone (this device)"]);
    assert_eq!(app.ask("nonsense", "", &[]).0, 401);
    server.stop();
    assert_eq!(app.ask(&laptop, "", &[]).0, 503, "nobody is let in while nobody can tell");
}
