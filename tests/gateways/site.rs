//! An authority, a gateway that asks it, and an application behind that.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    application::Application,
    gateway::{Addresses, Gateway, Program},
    http::{self, Answer},
    support::{Server, countersign, run, serve},
};

pub struct Site {
    pub authority: Server,
    gateway: Gateway,
    pub application: Application,
    /// The key of an admin, where callers must be known.
    admin: Option<String>,
    _folder: TempDir,
}

/// The authority is gone.
pub struct Orphaned {
    gateway: Gateway,
    pub application: Application,
}

/// A caller's key and its lines of configuration.
fn caller(name: &str, role: &str) -> (String, String) {
    let made = run(countersign().args(["caller", "new", name, "--role", role, "--json"])).json();
    let hash = made["caller"]["key_hashes"][0].as_str().unwrap();
    let lines = format!("[[callers]]\nname = {name:?}\nroles = [{role:?}]\nkey_hashes = [{hash:?}]\n");
    (made["api_key"].as_str().unwrap().to_owned(), lines)
}

impl Site {
    /// Everybody on this machine may ask.
    pub async fn start(program: Program) -> Self {
        Self::start_as(program, String::new(), None, None).await
    }

    /// Callers must be known, and the gateway is or is not.
    pub async fn start_with_callers(program: Program, is_known: bool) -> Self {
        let (admin, as_admin) = caller("admin", "admin");
        let (key, as_gateway) = caller("gateway", "validator");
        Self::start_as(program, as_admin + &as_gateway, is_known.then_some(&*key), Some(admin)).await
    }

    async fn start_as(program: Program, callers: String, key: Option<&str>, admin: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("countersign.toml");
        let policy = "[policies.brief]\naccess_token_ttl = \"2s\"\nrefresh_grace = \"1s\"\n";
        fs::write(&config, format!("{policy}{callers}")).unwrap();
        let authority = Server::launch(serve(folder.path()).arg("--config").arg(config));
        let application = Application::start().await;
        let addresses =
            Addresses { grpc: authority.address(), http: authority.http(), application: application.address };
        let gateway = Gateway::start(program, &addresses, key).await;
        Self { authority, gateway, application, admin, _folder: folder }
    }

    /// What the gateway answers.
    pub async fn ask(&self, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Answer {
        ask(&self.gateway, path, token, headers).await
    }

    /// A token of a new session.
    pub fn created_token(&self) -> String {
        let mut create = self.authority.verb(["session", "create", "alice", "--json"]);
        create.env("COUNTERSIGN_API_KEY", self.admin.as_deref().unwrap());
        let created: Value = run(&mut create).json();
        created["tokens"]["access_token"].as_str().unwrap().to_owned()
    }

    /// Ends the authority as `kill -9` does.
    pub fn without_authority(mut self) -> Orphaned {
        self.authority.kill();
        Orphaned { gateway: self.gateway, application: self.application }
    }
}

impl Orphaned {
    /// What the gateway answers.
    pub async fn ask(&self, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Answer {
        ask(&self.gateway, path, token, headers).await
    }
}

async fn ask(gateway: &Gateway, path: &str, token: Option<&str>, headers: &[(&str, &str)]) -> Answer {
    let mut request = format!("GET {path} HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(token) = token {
        request.push_str(&format!("authorization: Bearer {token}\r\n"));
    }
    http::ask(gateway.address, &(request + "\r\n")).await
}
