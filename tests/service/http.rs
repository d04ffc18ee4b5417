//! Tests of the HTTP port: liveness, readiness, metrics, and the requests that it refuses.

use std::collections::BTreeMap;

use countersign_test_support::{
    http_client::{Answer, Metrics, ask, get},
    server::{Home, Server, eventually, in_time, next_status, of_token, request},
};
use tonic_health::pb::health_check_response::ServingStatus;

async fn ready(server: &Server) -> (u16, String) {
    let Answer { status, body, .. } = get(server.http, "/readyz").await;
    (status, body)
}

pub async fn the_service_is_live_but_not_ready_until_the_blacklist_is_loaded() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.revoke(of_token(&session.access)).await.unwrap();
    let server = server.stop().await.launch(|store| store.feed.shut()).await;
    server.store.feed.held().await;
    assert_eq!(get(server.http, "/livez").await.status, 200);
    let (status, reason) = ready(&server).await;
    assert!(status == 503 && reason.starts_with("starting"), "{status} {reason}");
    let metrics = Metrics::of(server.http).await;
    assert_eq!([metrics.get("lease_current"), metrics.get("lease_remaining_seconds")], [0.0, 0.0]);
    assert_eq!(
        (metrics.get("blacklist_entries"), metrics.find("lease_renewal_age_seconds")),
        (0.0, None)
    );

    let mut watch = server.watch_health("").await;
    server.store.feed.open();
    while next_status(&mut watch).await != Some(ServingStatus::Serving) {}
    assert_eq!(ready(&server).await, (200, "serving\n".to_owned()));
    let metrics = Metrics::of(server.http).await;
    assert_eq!([metrics.get("lease_current"), metrics.get("blacklist_entries")], [1.0, 1.0]);
    assert_eq!(metrics.get("lease_renewal_age_seconds"), 0.0, "the clock stands still");
}

pub async fn the_service_is_live_but_not_ready_while_it_finishes_calls_after_the_signal() {
    let server = Server::start().await;
    server.store.creations.shut();
    let mut client = server.client();
    let call = tokio::spawn(async move { client.create_session(request("alice")).await });
    server.store.creations.held().await;
    let mut watch = server.watch_health("").await;
    server.shutdown.soft.cancel();
    // The server ends the watch when the gRPC port stops accepting calls.
    while next_status(&mut watch).await.is_some() {}
    assert_eq!(get(server.http, "/livez").await.status, 200);
    assert_eq!(ready(&server).await, (503, "stopping\n".to_owned()));
    assert!(!call.is_finished());
    server.store.creations.open();
    call.await.unwrap().unwrap();
    in_time("the service stops", server.running).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(server.http).await.is_err(), "the port is closed");
}

pub async fn an_idle_connection_does_not_keep_the_service_from_stopping() {
    let server = Server::start().await;
    let idle = tokio::net::TcpStream::connect(server.http).await.unwrap();
    assert_eq!(
        get(server.http, "/livez").await.status,
        200,
        "the idle connection was accepted before"
    );
    server.stop().await;
    drop(idle);
}

pub async fn unknown_paths_are_not_found_and_read_only_paths_refuse_other_methods() {
    let server = Server::start().await;
    for path in ["/", "/metrics/", "/readyz/x", "/LIVEZ", "/countersign.v1.SessionService/Validate"]
    {
        assert_eq!(get(server.http, path).await.status, 404, "{path}");
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: \
                 close\r\n\r\n"
            );
            let answer = ask(server.http, &request).await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.head.contains("\nallow: get"), "{answer:?}");
        }
        let head = ask(
            server.http,
            &format!("HEAD {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"),
        )
        .await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
    }
}

pub async fn a_request_head_beyond_the_limits_is_refused_and_the_next_request_is_answered() {
    let server = Server::start().await;
    // The heads are no longer than what the service reads of a head. If the service closed the
    // connection while bytes were still unread, the answer could be lost.
    let start = "GET /livez HTTP/1.1\r\nhost: a\r\nx: ";
    let long = start.to_owned() + &"x".repeat((64 << 10) - start.len());
    let many = format!("GET /livez HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(200));
    for request in [long, many] {
        assert_eq!(ask(server.http, &request).await.status, 431);
    }
    for nonsense in ["nonsense\r\n\r\n", "GET /livez HTTP/1.1\r\n\0: a\r\n\r\n"] {
        assert_eq!(ask(server.http, nonsense).await.status, 400, "{nonsense:?}");
    }
    assert_eq!(get(server.http, "/livez").await.status, 200);
}

/// The labels that metrics may have. The values of all of them come from fixed lists.
const LABELS: [&str; 16] = [
    "code",
    "kind",
    "le",
    "method",
    "operation",
    "outcome",
    "purpose",
    "queue",
    "reason",
    "result",
    "route",
    "service",
    "side",
    "state",
    "table",
    "version",
];

/// Checks those rules of the OpenMetrics specification that monitoring relies on.
pub async fn metrics_follow_openmetrics_and_each_metric_has_a_description() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.revoke(of_token(&session.access)).await.unwrap();
    let answer = get(server.http, "/metrics").await;
    let media_type = "\ncontent-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(media_type), "{answer:?}");
    let Some(text) = answer.body.strip_suffix("\n# EOF\n") else { panic!("{}", answer.body) };

    let mut described: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    let mut samples = 0;
    for line in text.lines() {
        if let Some(description) = line.strip_prefix("# ") {
            let mut words = description.splitn(3, ' ');
            let [kind, name, meaning] = [(); 3].map(|()| words.next().unwrap());
            assert!(described.insert((name, kind), meaning).is_none(), "twice: {line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        assert!(value.parse::<f64>().is_ok_and(f64::is_finite), "{line}");
        for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
            assert!(LABELS.iter().any(|known| label.starts_with(&format!("{known}="))), "{line}");
        }
        let family = ["_total", "_sum", "_count", "_bucket", "_info"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        let family =
            family.filter(|family| described.contains_key(&(*family, "TYPE"))).unwrap_or(name);
        let kind = described.get(&(family, "TYPE")).unwrap_or_else(|| panic!("no TYPE of {line}"));
        assert!(
            described.get(&(family, "HELP")).is_some_and(|help| help.ends_with('.')),
            "no HELP of {line}"
        );
        assert!(
            ["countersign_", "process_"].iter().any(|known| family.starts_with(known)),
            "{line}"
        );
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
        samples += 1;
    }
    assert!(samples > 60, "{text}");
}

pub async fn a_revocation_is_counted_when_it_is_acknowledged() {
    let server = Server::start().await;
    let [alice, bob] = [server.sign_in("alice").await, server.sign_in("bob").await];
    let before = Metrics::of(server.http).await;
    server.revoke(of_token(&alice.access)).await.unwrap();
    server.revoke(of_token(&bob.access)).await.unwrap();
    let after = Metrics::of(server.http).await;
    let grows = |name: &str| after.get(name) - before.get(name);
    assert_eq!(after.acknowledged("everywhere") - before.acknowledged("everywhere"), 2.0);
    assert_eq!(
        [grows("feed_applied_seq"), grows("feed_head_seq"), grows("blacklist_entries")],
        [2.0; 3]
    );
    assert!(
        after.renewals("confirmed") > before.renewals("confirmed"),
        "a renewal brought the entry"
    );
    for outcome in ["after_wait", "failed", "given_up"] {
        assert_eq!(after.acknowledged(outcome), 0.0, "{outcome}");
    }
    for name in [
        "unacknowledged_revocations",
        "other_replicas",
        "guarantee_broken_revocations_total",
        "lease_lapses_total",
    ] {
        assert_eq!(after.get(name), 0.0, "{name}");
    }
}

pub async fn metrics_show_an_unacknowledged_revocation_and_count_it_if_its_caller_gives_up() {
    let server = Home::new("").await.start().await;
    let session = server.sign_in("alice").await;
    server.store.feed.shut();
    let (mut client, order) = (server.client(), of_token(&session.access));
    let call = tokio::spawn(async move { client.revoke(order).await });
    let metrics = async |wanted: fn(&Metrics) -> bool| {
        eventually("the metrics say so", async || {
            Some(Metrics::of(server.http).await).filter(wanted)
        })
        .await
    };
    metrics(|metrics| metrics.get("unacknowledged_revocations") == 1.0).await;
    call.abort();
    metrics(|metrics| metrics.acknowledged("given_up") == 1.0).await;
    let metrics = metrics(|metrics| metrics.get("unacknowledged_revocations") == 0.0).await;
    assert_eq!(metrics.acknowledged("failed"), 0.0);
    server.store.feed.open();
}

/// Some scrapers read nothing but the older text format of Prometheus.
pub async fn metrics_have_the_older_text_format_for_scrapers_that_prefer_it() {
    let server = Server::start().await;
    let session = server.sign_in("alice").await;
    server.revoke(of_token(&session.access)).await.unwrap();
    let accept = async |value: &str| {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: test\r\naccept: {value}\r\nconnection: close\r\n\r\n"
        );
        let answer = ask(server.http, &request).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("\nvary: accept"), "{answer:?}");
        answer
    };
    let text = accept("text/plain").await;
    assert!(
        text.head.contains("\ncontent-type: text/plain; version=0.0.4; charset=utf-8"),
        "{text:?}"
    );
    assert!(text.body.contains("\n# TYPE countersign_lease_renewals_total counter\n"), "{text:?}");
    let mut described = "";
    for line in text.body.lines() {
        let mut words = line.split_whitespace();
        match (words.next().unwrap(), words.next(), words.next()) {
            ("#", Some("HELP" | "TYPE"), Some(name)) => described = name,
            ("#", ..) => panic!("not a line of the older format: {line}"),
            // The names of a histogram's samples have suffixes.
            (name, ..) => assert!(name.starts_with(described), "{line} comes after {described}"),
        }
    }
    for value in
        ["application/openmetrics-text", "*/*", "application/json", "text/plain;q=0.5, */*"]
    {
        let answer = accept(value).await;
        assert!(
            answer.head.contains("\ncontent-type: application/openmetrics-text"),
            "{value}: {answer:?}"
        );
        assert!(answer.body.ends_with("# EOF\n"), "{value}");
    }
    let samples = |page: &str| {
        let names = page.lines().filter(|line| !line.starts_with('#'));
        names
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        samples(&text.body),
        samples(&get(server.http, "/metrics").await.body),
        "the same samples"
    );
}
