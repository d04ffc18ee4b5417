//! The limits of every text and list of CreateSession, at the edge and over it.

use countersign::proto::{CreateSessionRequest, Device};

use crate::{
    refusal::{Refusal, refused},
    server::{Server, request},
};

type Set = fn(&mut CreateSessionRequest, String);
type Repeat = fn(&mut CreateSessionRequest, Vec<String>);

fn device(request: &mut CreateSessionRequest) -> &mut Device {
    request.device.get_or_insert_default()
}

/// Path, limit in bytes, whether it may be empty.
const TEXTS: [(&str, usize, bool, Set); 10] = [
    ("subject", 256, false, |request, text| request.subject = text),
    ("tenant", 128, true, |request, text| request.tenant = text),
    ("client_id", 256, true, |request, text| request.client_id = text),
    ("audience[1]", 256, false, |request, text| request.audience = vec!["a".to_owned(), text]),
    ("scopes[1]", 128, false, |request, text| request.scopes = vec!["a".to_owned(), text]),
    ("acr", 256, true, |request, text| request.acr = text),
    ("amr[1]", 64, false, |request, text| request.amr = vec!["a".to_owned(), text]),
    ("device.user_agent", 512, true, |request, text| device(request).user_agent = text),
    ("device.label", 128, true, |request, text| device(request).label = text),
    ("request_id", 128, true, |request, text| request.request_id = text),
];

const LISTS: [(&str, usize, Repeat); 3] = [
    ("audience", 16, |request, texts| request.audience = texts),
    ("scopes", 64, |request, texts| request.scopes = texts),
    ("amr", 16, |request, texts| request.amr = texts),
];

fn with(set: Set, text: &str) -> CreateSessionRequest {
    let mut request = request("alice");
    set(&mut request, text.to_owned());
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_has_as_many_bytes_as_its_limit_and_not_one_more() {
    let server = Server::start().await;
    for (path, limit, _, set) in TEXTS {
        assert!(server.create(with(set, &"x".repeat(limit))).await.is_ok(), "{path}");
        let refusal = refused(server.create(with(set, &"x".repeat(limit + 1))).await);
        assert_eq!(refusal, Refusal::field(path));
        if path != "scopes[1]" {
            assert!(server.create(with(set, &"é".repeat(limit / 2))).await.is_ok(), "{path}");
            let refusal = refused(server.create(with(set, &"é".repeat(limit / 2 + 1))).await);
            assert_eq!(refusal, Refusal::field(path), "the limit is in bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_holds_no_control_character_and_is_empty_only_where_it_may_be() {
    let server = Server::start().await;
    for (path, _, may_be_empty, set) in TEXTS {
        for text in ["a\nb", "\0", "\u{7f}", "\u{9b}"] {
            assert_eq!(refused(server.create(with(set, text)).await), Refusal::field(path), "{text:?}");
        }
        let empty = server.create(with(set, "")).await;
        if may_be_empty {
            assert!(empty.is_ok(), "{path}");
        } else {
            assert_eq!(refused(empty), Refusal::field(path));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_has_as_many_entries_as_its_limit_and_not_one_more() {
    let server = Server::start().await;
    for (path, limit, repeat) in LISTS {
        let mut request = request("alice");
        repeat(&mut request, vec!["x".to_owned(); limit]);
        assert!(server.create(request.clone()).await.is_ok(), "{path}");
        repeat(&mut request, vec!["x".to_owned(); limit + 1]);
        assert_eq!(refused(server.create(request).await), Refusal::field(path));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_and_addresses_have_a_form() {
    let server = Server::start().await;
    for scope in ["a b", "a\"b", "a\\b", "é"] {
        let request = CreateSessionRequest { scopes: vec![scope.to_owned()], ..request("alice") };
        assert_eq!(refused(server.create(request).await), Refusal::field("scopes[0]"), "{scope}");
    }
    let from = |address: &str| with(|request, text| device(request).ip_address = text, address);
    for address in ["", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"] {
        assert!(server.create(from(address)).await.is_ok(), "{address}");
    }
    for address in ["localhost", "192.0.2.1:80", "192.0.2.256", "[::1]"] {
        assert_eq!(refused(server.create(from(address)).await), Refusal::field("device.ip_address"), "{address}");
    }
    assert_eq!(
        refused(server.create(with(|request, text| request.policy = text, &"p".repeat(65))).await),
        Refusal::field("policy")
    );
}
