//! No output of the library contains a token, an API key or a claim.

use countersign_client::{
    Answer, Client, Demands, Unknown, Verifier,
    layer::{grpc, http::Protect},
    proto::{self, RefreshRequest, ValidateRequest, revoke_request::Target},
    testing::Authority,
};
use countersign_test_support::log;

use crate::site::{Site, eventually, in_time, of_token, request, sign_in};

const API_KEY: &str = "cs_ck_topsecret0123456789";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debug_and_errors_hold_no_secret() {
    let authority = Authority::new();
    let token = authority.token("alice").claim("plan", "gold").issue();
    let verifier = authority.verifier();
    let answer = verifier.verify_locally(&token, &Demands::new());
    let builder = Client::builder("http://127.0.0.1:1").api_key(API_KEY);
    let client = builder.clone().build().unwrap();
    let unknown = Verifier::remote(client.clone()).verify(&token, &Demands::new()).await;
    let Answer::Unknown(Unknown::NotAnswered(error)) = &unknown else { panic!("{unknown:?}") };
    let validate = ValidateRequest { access_token: token.clone(), ..Default::default() };
    let refresh = RefreshRequest { refresh_token: token.clone(), ..Default::default() };
    let tokens = proto::Tokens { access_token: token.clone(), ..Default::default() };
    let outputs = [
        format!("{answer:?} {authority:?} {verifier:?} {:?}", authority.token("alice")),
        format!("{builder:?} {client:?} {:?}", Verifier::local(client.clone())),
        format!("{unknown:?} {error} {error:?}"),
        format!("{validate:?} {refresh:?} {tokens:?} {:?}", request("alice")),
        format!("{:?} {:?}", of_token(&token), Target::Token(token.clone())),
        format!("{:?}", Protect::new(verifier.clone(), Demands::new())),
        format!("{:?}", grpc::Protect::new(verifier, Demands::new())),
    ];
    let signature = token.rsplit('.').next().unwrap();
    for output in outputs {
        for secret in [signature, API_KEY, "gold", "alice"] {
            assert!(!output.contains(secret), "{secret} is in {output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_holds_no_token() {
    log::capture();
    let site = Site::new("");
    let mut server = site.start();
    let client = Client::builder(site.url()).api_key(API_KEY).build().unwrap();
    let verifier = Verifier::local(client.clone()).start();
    in_time("a lease", verifier.ready()).await;
    let token = sign_in(&client, "alice").await;
    server.kill();
    eventually("the lease ends", || verifier.status().lease.is_none()).await;
    let answer = verifier.verify(&token, &Demands::new()).await;
    assert!(matches!(answer, Answer::Unknown(_)));
    let logged = log::logged();
    assert!(
        logged.contains("the watch stream has ended") && logged.contains("could not be validated")
    );
    log::hidden(&logged, "the token", &token);
    log::hidden(&logged, "the API key", API_KEY);
}
