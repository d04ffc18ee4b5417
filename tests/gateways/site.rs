//! A site: an authority, a gateway that asks it, and an application behind the gateway.

use std::{fs, net::SocketAddr, process::Command};

use countersign_test_support::{
    certificates::Certificates,
    http_client::Answer,
    process::{Server, countersign, run, serve},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    application::Application,
    gateway::{Addresses, Edit, Gateway, Program},
};

pub struct Site {
    pub authority: Server,
    gateway: Gateway,
    pub application: Application,
    _folder: TempDir,
}

/// A site whose authority has ended.
pub struct WithoutAuthority {
    gateway: Gateway,
    pub application: Application,
}

/// Returns a caller's key and the lines of configuration for the caller.
fn caller(name: &str, role: &str) -> (String, String) {
    let made = run(countersign().args(["caller", "new", name, "--role", role, "--json"])).json();
    let hash = made["caller"]["key_hashes"][0].as_str().unwrap();
    let lines =
        format!("[[callers]]\nname = {name:?}\nroles = [{role:?}]\nkey_hashes = [{hash:?}]\n");
    (made["api_key"].as_str().unwrap().to_owned(), lines)
}

/// Starts an authority with these settings; returns it with its folder.
fn launch(settings: &str) -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("countersign.toml");
    let policy = "[policies.brief]\naccess_token_ttl = \"2s\"\nrefresh_grace = \"1s\"\n";
    fs::write(&config, format!("{policy}{settings}")).unwrap();
    let authority = Server::launch(serve(folder.path()).arg("--config").arg(config));
    (folder, authority)
}

const CREATE: [&str; 4] = ["session", "create", "alice", "--json"];

/// Returns the access token of the session that a command creates.
fn create(command: &mut Command) -> String {
    run(command).json()["tokens"]["access_token"].as_str().unwrap().to_owned()
}

impl Site {
    /// Starts a site whose authority accepts calls from this machine without authentication.
    pub async fn start(program: Program) -> Self {
        Self::start_with(program, "").await
    }

    /// Starts a site whose authority has these settings.
    pub async fn start_with(program: Program, settings: &str) -> Self {
        let (folder, authority) = launch(settings);
        Self::around(program, folder, authority, &[]).await
    }

    /// Starts a site whose authority demands that callers are known. The gateway has a key only if
    /// `is_known`. Also returns an access token.
    pub async fn start_with_callers(program: Program, is_known: bool) -> (Self, String) {
        let (admin, as_admin) = caller("admin", "admin");
        let (key, as_gateway) = caller("gateway", "validator");
        let (folder, authority) = launch(&(as_admin + &as_gateway));
        let edit = is_known.then(|| program.with_key(&key));
        let token = create(authority.command(CREATE).env("COUNTERSIGN_API_KEY", admin));
        (Self::around(program, folder, authority, edit.as_slice()).await, token)
    }

    /// Starts a site with Traefik, which authenticates by a certificate. The authority knows the
    /// certificate only if `is_known`. Also returns an access token.
    pub async fn start_with_certificates(is_known: bool) -> (Self, String) {
        let certified = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(certified.path());
        certificates.certificate(
            "traefik",
            &[if is_known { "gateway.test" } else { "stranger.test" }],
            |_| (),
        );
        let path = |name| certificates.path(name).display().to_string();
        let (admin, as_admin) = caller("admin", "admin");
        let (folder, authority) = launch(&format!(
            "{as_admin}[[callers]]\nname = \"gateway\"\nroles = \
             [\"validator\"]\ncertificate_names = [\"gateway.test\"]\n[tls]\ncertificate_file = \
             {:?}\nprivate_key_file = {:?}\nclient_ca_file = {:?}\n",
            path("server.pem"),
            path("server.key"),
            path("ca.pem"),
        ));
        let mut command = authority.command(CREATE);
        command.env("COUNTERSIGN_SERVER", format!("https://{}", authority.address()));
        let token = create(
            command.env("COUNTERSIGN_API_KEY", admin).env("COUNTERSIGN_CA_FILE", path("ca.pem")),
        );
        let files = [path("ca.pem"), path("traefik.pem"), path("traefik.key")];
        let [ca, certificate, key] = files;
        let http = authority.http();
        let edits = [
            (
                "# tls: { ca: ca.pem, cert: traefik.pem, key: traefik-key.pem }".to_owned(),
                format!("tls: {{ ca: {ca}, cert: {certificate}, key: {key} }}"),
            ),
            (format!("http://{http}/forward-auth"), format!("https://{http}/forward-auth")),
        ];
        (Self::around(Program::Traefik, folder, authority, &edits).await, token)
    }

    async fn around(program: Program, folder: TempDir, authority: Server, edits: &[Edit]) -> Self {
        let application = Application::start().await;
        let addresses = Addresses {
            grpc: authority.address(),
            http: authority.http(),
            application: application.address,
        };
        let gateway = Gateway::start(program, &addresses, edits).await;
        Self { authority, gateway, application, _folder: folder }
    }

    /// Sends a GET request to the gateway and returns the answer.
    pub async fn ask(&self, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Answer {
        ask(&self.gateway, path, token, headers).await
    }

    /// Sends a request to the gateway with any method and target, which are sent unchanged, and
    /// returns the answer.
    pub async fn send(
        &self,
        method: &str,
        target: &str,
        token: Option<&str>,
        headers: &[(&str, &str)],
    ) -> Answer {
        send(&self.gateway, method, target, token, headers).await
    }

    /// Ends the authority as `kill -9` does.
    pub fn without_authority(mut self) -> WithoutAuthority {
        self.authority.kill();
        WithoutAuthority { gateway: self.gateway, application: self.application }
    }
}

impl WithoutAuthority {
    /// Sends a GET request to the gateway and returns the answer.
    pub async fn ask(&self, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Answer {
        ask(&self.gateway, path, token, headers).await
    }
}

async fn ask(
    gateway: &Gateway,
    path: &str,
    token: Option<&str>,
    headers: &[(&str, &str)],
) -> Answer {
    send(gateway, "GET", path, token, headers).await
}

async fn send(
    gateway: &Gateway,
    method: &str,
    target: &str,
    token: Option<&str>,
    headers: &[(&str, &str)],
) -> Answer {
    // Some gateways refuse a `Host` header that differs from the host in the target, so an attacker
    // would send the target's host.
    let host =
        target.split_once("://").map_or("app.test", |(_, rest)| rest.split('/').next().unwrap());
    let mut request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
        request.push_str("connection: close\r\n");
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(token) = token {
        request.push_str(&format!("authorization: Bearer {token}\r\n"));
    }
    exchange(gateway.address, &(request + "\r\n")).await
}

/// Sends a request and reads the answer. Does not wait until the connection is closed, because
/// after a refusal Envoy closes the connection only a second later.
async fn exchange(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![];
    // A gateway that refuses a request may close the connection before it has read all of the
    // request.
    while !is_complete(&bytes) && stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {}
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) =
        text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {request:?}: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

/// Returns whether an answer has all of the body that its head announces.
fn is_complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_some_and(|length| body.len() >= length.trim().parse().unwrap())
}
