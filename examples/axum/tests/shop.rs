//! Starts the authority and the shop as processes, and calls each route with each kind of token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use countersign_client::{
    Client,
    proto::{
        CreateSessionRequest, ReauthenticateRequest, RevokeRequest, reauthenticate_request,
        revoke_request,
    },
};
use countersign_test_support::process::{GRACE, Server, countersign};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The shop, which ends with the test.
struct Shop {
    process: Child,
    address: SocketAddr,
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer of the shop: its status, its challenge, and its body.
#[derive(Debug)]
struct Answer {
    status: u16,
    challenge: String,
    body: String,
}

impl Shop {
    fn start(authority: &Server) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_countersign-example-axum"));
        command.env("COUNTERSIGN_ENDPOINTS", format!("http://{}", authority.address()));
        command.env("LISTEN", "127.0.0.1:0").env_remove("COUNTERSIGN_API_KEY");
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
        Self { process, address }
    }

    async fn call(&self, request: &str, token: Option<&str>) -> Answer {
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        self.send(request, &token.unwrap_or_default()).await
    }

    async fn send(&self, request: &str, headers: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head =
            format!("{request} HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let challenge = head.lines().find_map(|line| line.strip_prefix("www-authenticate: "));
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            challenge: challenge.unwrap_or_default().to_owned(),
            body: body.to_owned(),
        }
    }
}

/// Starts an authority whose policy `brief` has tokens of one second.
fn authority(folder: &TempDir) -> Server {
    let file = folder.path().join("countersign.toml");
    let data = folder.path().join("data");
    let text = format!(
        "data_dir = '{}'\n[tokens]\ndefault_audience = 'https://shop.example'\n",
        data.display()
    );
    fs::write(&file, text).unwrap();
    let mut command = countersign();
    command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(file).env(GRACE, "0s");
    Server::launch(&mut command)
}

async fn sign_in(client: &Client, request: CreateSessionRequest) -> String {
    let request = CreateSessionRequest { subject: "alice".to_owned(), ..request };
    client.create_session(request).await.unwrap().tokens.unwrap().access_token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_route_lets_the_right_sessions_pass() {
    let folder = tempfile::tempdir().unwrap();
    let mut authority = authority(&folder);
    let shop = Shop::start(&authority);
    let client = Client::builder(format!("http://{}", authority.address())).build().unwrap();
    let second = prost_types::Duration { seconds: 1, nanos: 0 };
    let brief = CreateSessionRequest { access_token_ttl: Some(second), ..Default::default() };
    let expiring = sign_in(&client, brief).await;
    let good = sign_in(&client, CreateSessionRequest::default()).await;

    let answer = shop.call("GET /", None).await;
    assert_eq!((answer.status, &*answer.body), (200, "welcome"));
    assert_eq!(shop.call("GET /", Some(&good)).await.body, "welcome back, alice");
    let answer = shop.call("GET /me", None).await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.challenge, "Bearer realm=\"https://shop.example\"");
    let answer = shop.call("GET /me", Some("bad")).await;
    assert!(answer.status == 401 && answer.challenge.contains("error=\"invalid_token\""));
    let answer = shop.call("GET /me", Some(&good)).await;
    assert!(answer.status == 200 && answer.body.contains("\"subject\":\"alice\""), "{answer:?}");
    let cookie = format!("cookie: access_token={good}\r\n");
    assert_eq!(shop.send("GET /me", &cookie).await.status, 200);

    let audience = vec!["https://other.example".to_owned()];
    let elsewhere = CreateSessionRequest { audience, ..Default::default() };
    let elsewhere = sign_in(&client, elsewhere).await;
    let answer = shop.call("GET /me", Some(&elsewhere)).await;
    assert!(answer.status == 401 && answer.challenge.contains("not meant for this resource"));
    let answer = shop.call("POST /orders", Some(&good)).await;
    assert!(answer.status == 403 && answer.challenge.contains("scope=\"orders:write\""));
    let scopes = vec!["orders:write".to_owned()];
    let ordering = CreateSessionRequest { scopes, ..Default::default() };
    let ordering = sign_in(&client, ordering).await;
    assert_eq!(shop.call("POST /orders", Some(&ordering)).await.body, "ordered by alice");

    step_up(&client, &shop).await;
    let target = revoke_request::Target::Token(ordering.clone());
    let revoke = RevokeRequest { target: Some(target), ..Default::default() };
    client.revoke(revoke).await.unwrap();
    let answer = shop.call("GET /me", Some(&ordering)).await;
    assert!(answer.status == 401 && answer.challenge.contains("has been revoked"), "{answer:?}");
    until(&shop, &expiring, |answer| answer.challenge.contains("has expired")).await;

    authority.kill();
    until(&shop, &good, |answer| answer.status == 503).await;
    assert_eq!(shop.call("GET /", None).await.status, 200, "what is public stays so");
}

/// Pays, which needs another authentication.
async fn step_up(client: &Client, shop: &Shop) {
    let request = CreateSessionRequest { subject: "bob".to_owned(), ..Default::default() };
    let created = client.create_session(request).await.unwrap();
    let token = created.tokens.unwrap().access_token;
    let answer = shop.call("POST /payments", Some(&token)).await;
    assert_eq!(answer.status, 401);
    for part in ["insufficient_user_authentication", "acr_values=\"gold\"", "max_age=\"300\""] {
        assert!(answer.challenge.contains(part), "{answer:?}");
    }
    let id = created.session.unwrap().session_id;
    let again = ReauthenticateRequest {
        session: Some(reauthenticate_request::Session::SessionId(id)),
        acr: "gold".to_owned(),
        ..Default::default()
    };
    let tokens = client.reauthenticate(again).await.unwrap().tokens.unwrap();
    assert_eq!(shop.call("POST /payments", Some(&tokens.access_token)).await.body, "paid by bob");
    let answer = shop.call("GET /me", Some(&token)).await;
    assert!(answer.challenge.contains("has been revoked"), "the earlier token: {answer:?}");
}

/// Calls until the answer is as expected.
async fn until(shop: &Shop, token: &str, is_expected: impl Fn(&Answer) -> bool) {
    let calling = async {
        while !is_expected(&shop.call("GET /me", Some(token)).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), calling).await.expect("the answer changes");
}
