//! Writes and checks the vectors for client libraries that are not about the form of tokens
//! (`clients/vectors/README.md` describes the files).

mod demands;
mod feed;
mod live;
mod rules;
mod stream;

use countersign_test_support::{server::Server, vectors};
use serde_json::json;

pub async fn client_libraries_decide_on_demands_and_times_as_the_service_does() {
    vectors::settle("tokens-demands.json", &demands::contents().await);
}

pub async fn client_libraries_decide_as_the_service_does_after_each_revocation() {
    vectors::settle("feeds-recorded.json", &live::feeds().await);
}

pub async fn client_libraries_keep_the_rules_of_the_stream() {
    let server = Server::start().await;
    let site = feed::Site::of(&server).await;
    let feeds = [stream::feeds(&site), rules::feeds(&site)].concat();
    vectors::settle("feeds-rules.json", &json!({ "feeds": feeds }));
}
