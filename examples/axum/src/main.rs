//! A shop that is protected by Countersign. Its routes show what a route can demand: nothing, any
//! session, a scope, or a recent authentication with a second factor.
//!
//! Usage: countersign-example-axum, with these variables in the environment:
//! - `COUNTERSIGN_ENDPOINTS`: the URLs of the replicas, separated by commas
//! - `COUNTERSIGN_API_KEY`: the key of a caller with the role `validator`, if the service has callers
//! - `LISTEN`: the address to listen on, 127.0.0.1:3000 by default

use std::{env, error::Error, time::Duration};

use axum::{
    Json, Router,
    routing::{get, post},
};
use countersign_client::{
    Client, Demands, Session, Verifier, layer::http::Protect, verifier::OnLapse,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};

/// The audience that tokens for this service have.
const AUDIENCE: &str = "https://shop.example";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let verifier = Verifier::local(client()?).on_lapse(OnLapse::Refuse).start();
    // The service also starts without the authority, and then answers 503 until it is there.
    let _ = timeout(Duration::from_secs(5), verifier.ready()).await;
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    axum::serve(listener, routes(verifier)).await?;
    Ok(())
}

fn client() -> Result<Client, Box<dyn Error>> {
    let endpoints = env::var("COUNTERSIGN_ENDPOINTS")
        .map_err(|_| "COUNTERSIGN_ENDPOINTS must have the URLs of the replicas")?;
    let mut endpoints = endpoints.split(',');
    let mut builder = Client::builder(endpoints.next().unwrap_or_default());
    for endpoint in endpoints {
        builder = builder.endpoint(endpoint);
    }
    if let Ok(key) = env::var("COUNTERSIGN_API_KEY") {
        builder = builder.api_key(key);
    }
    Ok(builder.build()?)
}

fn routes(verifier: Verifier) -> Router {
    let ours = || Demands::new().audience(AUDIENCE);
    let protect = Protect::new(verifier, ours()).cookie("access_token").realm(AUDIENCE);
    let ordering = protect.clone().demands(ours().scope("orders:write"));
    let paying = protect
        .clone()
        .demands(ours().acr_values(["gold"]).max_authentication_age(Duration::from_secs(300)));
    Router::new()
        .route("/", get(greet).layer(protect.clone().optional()))
        .route("/me", get(show_session).layer(protect))
        .route("/orders", post(order).layer(ordering))
        .route("/payments", post(pay).layer(paying))
}

/// Public: anybody may call it, and a session makes a difference.
async fn greet(session: Option<Session>) -> String {
    match session {
        Some(session) => format!("welcome back, {}", session.subject()),
        None => "welcome".to_owned(),
    }
}

/// Needs any session.
async fn show_session(session: Session) -> Json<Value> {
    Json(json!({
        "session": session.id().to_string(),
        "subject": session.subject(),
        "scopes": session.scopes(),
        "plan": session.claim("plan"),
    }))
}

/// Needs the scope orders:write.
async fn order(session: Session) -> String {
    format!("ordered by {}", session.subject())
}

/// Needs an authentication of class gold within the last five minutes. A client that gets the
/// challenge `insufficient_user_authentication` sends its user to sign in again (RFC 9470).
async fn pay(session: Session) -> String {
    format!("paid by {}", session.subject())
}
