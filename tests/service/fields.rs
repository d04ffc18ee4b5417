//! Tests of the limits of every text and list of CreateSession, at the limit and beyond it.

use countersign::proto::{CreateSessionRequest, Device, RefreshRequest, Session};
use countersign_test_support::{
    refusal::{Refusal, refused},
    server::{Server, request},
};

type Set = fn(&mut CreateSessionRequest, String);
type Repeat = fn(&mut CreateSessionRequest, Vec<String>);

/// The path of each text, its limit in bytes, whether it may be empty, and how to set it.
const TEXTS: [(&str, usize, bool, Set); 9] = [
    ("subject", 256, false, |request, text| request.subject = text),
    ("tenant", 128, true, |request, text| request.tenant = text),
    ("client_id", 256, true, |request, text| request.client_id = text),
    ("audience[1]", 256, false, |request, text| request.audience = vec!["a".to_owned(), text]),
    ("scopes[1]", 128, false, |request, text| request.scopes = vec!["a".to_owned(), text]),
    ("acr", 256, true, |request, text| request.acr = text),
    ("amr[1]", 64, false, |request, text| request.amr = vec!["a".to_owned(), text]),
    ("request_id", 128, true, |request, text| request.request_id = text),
    ("device.device_id", 128, true, |request, text| {
        request.device = Some(Device { device_id: text, ..Default::default() });
    }),
];

/// The path of each list, its limit in entries, and how to set it.
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

pub async fn a_text_may_have_as_many_bytes_as_its_limit_and_not_one_more() {
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

pub async fn control_characters_are_refused_and_empty_texts_only_where_a_value_is_required() {
    let server = Server::start().await;
    for (path, _, may_be_empty, set) in TEXTS {
        for text in ["a\nb", "\0", "\u{7f}", "\u{9b}"] {
            assert_eq!(
                refused(server.create(with(set, text)).await),
                Refusal::field(path),
                "{text:?}"
            );
        }
        let empty = server.create(with(set, "")).await;
        if may_be_empty {
            assert!(empty.is_ok(), "{path}");
        } else {
            assert_eq!(refused(empty), Refusal::field(path));
        }
    }
}

pub async fn a_list_may_have_as_many_entries_as_its_limit_and_not_one_more() {
    let server = Server::start().await;
    for (path, limit, repeat) in LISTS {
        let mut request = request("alice");
        repeat(&mut request, vec!["x".to_owned(); limit]);
        assert!(server.create(request.clone()).await.is_ok(), "{path}");
        repeat(&mut request, vec!["x".to_owned(); limit + 1]);
        assert_eq!(refused(server.create(request).await), Refusal::field(path));
    }
}

pub async fn an_invalid_scope_or_policy_name_is_refused() {
    let server = Server::start().await;
    for scope in ["a b", "a\"b", "a\\b", "é"] {
        let request = CreateSessionRequest { scopes: vec![scope.to_owned()], ..request("alice") };
        assert_eq!(refused(server.create(request).await), Refusal::field("scopes[0]"), "{scope}");
    }
    assert_eq!(
        refused(server.create(with(|request, text| request.policy = text, &"p".repeat(65))).await),
        Refusal::field("policy")
    );
}

/// The user agent, the address and the label of devices, as they are sent and as they are stored.
const DEVICES: [([&str; 3], [&str; 3]); 12] = [
    (["curl/8", "203.0.113.7", "Zoë's phone"], ["curl/8", "203.0.113.7", "Zoë's phone"]),
    (["", "2001:DB8::1", ""], ["", "2001:DB8::1", ""]),
    (["", "203.0.113.7:51234", ""], ["", "203.0.113.7", ""]),
    (["", "[2001:db8::1]:443", ""], ["", "2001:db8::1", ""]),
    (["", "203.0.113.7, 10.0.0.6", ""], ["", "203.0.113.7", ""]),
    (["", "fe80::1%eth0", ""], ["", "fe80::1", ""]),
    (["", " 203.0.113.7\t", ""], ["", "203.0.113.7", ""]),
    (["", "unknown", ""], ["", "", ""]),
    (["", "localhost", ""], ["", "", ""]),
    (["", "192.0.2.256", ""], ["", "", ""]),
    (["curl\t8", "", "my\nphone"], ["curl 8", "", "my phone"]),
    (["\0", "", "\u{9b}"], ["", "", ""]),
];

fn device(texts: [&str; 3]) -> Device {
    let [user_agent, ip_address, label] = texts.map(str::to_owned);
    Device { user_agent, ip_address, label, ..Default::default() }
}

/// Returns the user agent, the address and the label of the device of a session.
fn texts(session: &Session) -> [&str; 3] {
    let Device { user_agent, ip_address, label, .. } = session.device.as_ref().unwrap();
    [user_agent, ip_address, label]
}

pub async fn device_texts_are_never_refused_and_the_answer_shows_them_as_they_were_stored() {
    let server = Server::start().await;
    let (long_agent, long_label) = ("x".repeat(513), "é".repeat(65));
    let long = ([&*long_agent, "", &*long_label], [&long_agent[..512], "", &long_label[..128]]);
    for (sent, kept) in DEVICES.into_iter().chain([long]) {
        let with_device = CreateSessionRequest { device: Some(device(sent)), ..request("alice") };
        let created = server.create(with_device).await.unwrap();
        assert_eq!(texts(&created.session), kept, "{sent:?}");

        let plain = server.sign_in("alice").await;
        let refresh = RefreshRequest {
            refresh_token: plain.refresh.clone(),
            device: Some(device(sent)),
            ..Default::default()
        };
        let refreshed = server.exchange(refresh).await.unwrap().now;
        assert_eq!(texts(&refreshed.session), kept, "{sent:?}");
        assert_eq!(server.session(&plain.id()).await.unwrap(), refreshed.session);
    }
}

/// The address of a device may include a port, and a client that sends its call again over another
/// connection has another port. The port is not stored, so the request counts as the same.
pub async fn requests_that_differ_only_in_the_port_of_the_device_count_as_repeated() {
    let server = Server::start().await;
    let from = |address: &str| CreateSessionRequest {
        device: Some(device(["\tcurl/8", address, ""])),
        request_id: "once".to_owned(),
        ..request("alice")
    };
    let first = server.create(from("203.0.113.7:51234")).await.unwrap();
    for address in ["203.0.113.7:51234", "203.0.113.7:51235", "203.0.113.7"] {
        assert_eq!(server.create(from(address)).await.unwrap().id(), first.id(), "{address}");
    }
    let refusal = refused(server.create(from("203.0.113.8:51234")).await);
    assert_eq!(refusal, Refusal::request_id_reused());
}
