//! Tests of the memory that clients can make the service use: claims that are small as text and
//! large when decoded, and answers that the client does not read. The limits are low, so that a
//! small excess is visible.

use countersign::proto::{
    BatchValidateRequest, CreateSessionRequest, ListSessionsRequest, ValidateRequest, ValidateView,
};
use countersign_test_support::{
    http2::{
        self, END_HEADERS, END_STREAM, INITIAL_WINDOW, Raw, frame, kind, message, stream as number,
    },
    refusal::{Refusal, refused},
    server::in_time,
    site::Site,
};
use futures_util::{StreamExt, stream};
use prost::Message;
use prost_types::{ListValue, Struct, Value, value::Kind};
use tonic::Code;

const LIST: &str = "/countersign.v1.SessionService/ListSessions";

fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn object(name: &str, value: Value) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields: [(name.to_owned(), value)].into() })) }
}

/// Returns values of claims, each of which is about 4 KiB long as JSON.
fn shapes() -> [(&'static str, Value); 5] {
    let number = || Value::from(0.0);
    let deep = || (0..14).fold(number(), |inner, _| list(vec![object("", inner)]));
    [
        ("many small objects", list(vec![object("", number()); 580])),
        ("many small numbers", list(vec![number(); 2000])),
        ("many empty lists", list(vec![list(vec![]); 1300])),
        ("deep", list((0..40).map(|_| deep()).collect())),
        ("text", "x".repeat(4000).into()),
    ]
}

fn with_claims(subject: &str, value: Value) -> CreateSessionRequest {
    let claims = Struct { fields: [("a".to_owned(), value)].into() };
    CreateSessionRequest {
        subject: subject.to_owned(),
        claims: Some(claims.into()),
        ..Default::default()
    }
}

async fn create(site: &Site, request: CreateSessionRequest) -> String {
    site.client().create_session(request).await.unwrap().into_inner().tokens.unwrap().access_token
}

pub async fn verified_tokens_stay_within_their_memory_limit_whatever_they_claim() {
    const CACHE_MIB: u64 = 2;
    const TOKENS: usize = 400;
    let site = Site::quiet("[tokens]\nverified_cache_bytes = 2097152").await;
    let mut tokens = vec![];
    for (name, value) in shapes() {
        let create = |n: usize| create(&site, with_claims(&format!("{name} {n}"), value.clone()));
        tokens.push((
            name,
            stream::iter(0..TOKENS).map(create).buffer_unordered(64).collect::<Vec<_>>().await,
        ));
    }
    let before = site.resident();
    for (name, tokens) in tokens {
        let validate = async |token: String| {
            let request = ValidateRequest { access_token: token, ..Default::default() };
            assert!(site.client().validate(request).await.unwrap().into_inner().active);
        };
        stream::iter(tokens).for_each_concurrent(64, validate).await;
        let grown = site.resident().saturating_sub(before);
        // The process may grow by one and a half times the limit, and by 4 MiB more for the calls
        // themselves.
        assert!(grown <= CACHE_MIB * 3 / 2 + 4, "{name}: {grown} MiB");
    }
    site.finish().await;
}

pub async fn a_batch_whose_answer_is_too_long_is_refused_at_the_first_request_that_does_not_fit() {
    let site = Site::quiet("[limits]\nmax_answer_bytes = 131072").await;
    let [_, (_, numbers), ..] = shapes();
    let token = create(&site, with_claims("alice", numbers)).await;
    let batch = |view: ValidateView, tokens: usize| {
        let request = ValidateRequest {
            access_token: token.clone(),
            view: view.into(),
            ..Default::default()
        };
        BatchValidateRequest { requests: vec![request; tokens] }
    };
    let answer =
        site.client().batch_validate(batch(ValidateView::Full, 5)).await.unwrap().into_inner();
    let bytes = answer.encoded_len();
    assert!(bytes > 131_072 * 5 / 6 && bytes <= 131_072, "{bytes}");
    let too_long = refused(site.client().batch_validate(batch(ValidateView::Full, 40)).await);
    assert_eq!(too_long, Refusal::field("requests[5]"));
    let basic =
        site.client().batch_validate(batch(ValidateView::Basic, 40)).await.unwrap().into_inner();
    assert!(
        basic.responses.iter().all(|answer| answer.active),
        "without claims the answer is short enough"
    );
    site.finish().await;
}

/// Returns the frames of `count` calls of a method, on streams from the `first` on.
fn calls(path: &str, request: &impl Message, first: usize, count: usize) -> Vec<u8> {
    let call = |n| {
        let body = message(&request.encode_to_vec());
        let headers = frame(kind::HEADERS, END_HEADERS, number(n), &http2::call(path));
        [headers, frame(kind::DATA, END_STREAM, number(n), &body)].concat()
    };
    (first..first + count).flat_map(call).collect()
}

pub async fn unread_answers_count_towards_the_limit_until_they_are_read() {
    const CALLS: usize = 40;
    let site = Site::quiet(
        "[limits]\nmax_unsent_bytes = 2097152\nmax_answer_bytes = \
                     262144\n[policies.default]\nmax_sessions_per_subject = 0",
    )
    .await;
    let [_, _, _, _, (_, text)] = shapes();
    let sign_in = |_| create(&site, with_claims("alice", text.clone()));
    let _: Vec<_> = stream::iter(0..40).map(sign_in).buffer_unordered(8).collect().await;
    // A page takes some 160 KiB, and the unread answers of a connection may take 256 KiB. So one
    // page fits, and two do not.
    let page =
        ListSessionsRequest { page_size: 40, subject: "alice".to_owned(), ..Default::default() };
    // With a window of one byte, the service can begin to send the answer, so the handler finishes
    // before the answer is read.
    for initial_window in [0, 1] {
        let mut greedy = Raw::with(site.address, &[(INITIAL_WINDOW, initial_window)]).await;
        // The first answer must have begun before the other calls are made. If all calls were made
        // at the same time, all of them could be refused.
        greedy.send(&calls(LIST, &page, 0, 1)).await;
        let answered = number(0);
        loop {
            let frame = in_time("the first answer", greedy.read.next())
                .await
                .expect("the connection stays open");
            if frame.kind == kind::HEADERS && frame.stream == answered {
                assert!(frame.flags & END_STREAM == 0, "the first call is not refused");
                break;
            }
        }
        greedy.send(&calls(LIST, &page, 1, CALLS - 1)).await;
        let mut refused = 0;
        while refused < CALLS - 1 {
            let frame =
                in_time("a refusal", greedy.read.next()).await.expect("the connection stays open");
            refused += usize::from(frame.kind == kind::HEADERS && frame.flags & END_STREAM != 0);
        }
        // Other clients are served, even with the same call.
        assert_eq!(
            site.client().list_sessions(page.clone()).await.unwrap().into_inner().sessions.len(),
            40
        );

        // Once the answer is read, there is room for another.
        let window =
            |stream: u32| frame(kind::WINDOW_UPDATE, 0, stream, &(1u32 << 20).to_be_bytes());
        greedy.send(&[window(0), window(answered)].concat()).await;
        let mut bytes = 0;
        loop {
            let frame =
                in_time("the answer", greedy.read.next()).await.expect("the connection stays open");
            if frame.stream == answered && frame.kind == kind::DATA {
                bytes += frame.payload.len();
            }
            if frame.stream == answered && frame.flags & END_STREAM != 0 {
                break;
            }
        }
        assert!(bytes > 160_000, "{bytes}");
        greedy.send(&[calls(LIST, &page, CALLS, 1), window(number(CALLS))].concat()).await;
        let next = loop {
            let frame = in_time("the next answer", greedy.read.next())
                .await
                .expect("the connection stays open");
            if frame.stream == number(CALLS) && frame.kind == kind::HEADERS {
                break frame;
            }
        };
        assert_eq!(next.flags & END_STREAM, 0, "the next call is not refused");
    }
    site.finish().await;
}

/// The message of a call may arrive after the service has refused the call. The service must not
/// treat such a message as an error of the client, because closing the connection would end all
/// other calls that share it.
pub async fn a_connection_stays_open_although_its_large_messages_are_refused() {
    const CALLS: usize = 1500;
    let site = Site::quiet("").await;
    // The token is longer than a request may be, so the service refuses it after its first bytes.
    let large = ValidateRequest { access_token: "x".repeat(100_000), ..Default::default() };
    let refuse = async |_| {
        let refusal = site.client().validate(large.clone()).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    };
    // All calls share one connection.
    stream::iter(0..CALLS).for_each_concurrent(64, refuse).await;
    site.finish().await;
}
