//! Tests of the metrics that a collector receives.

use std::collections::{BTreeMap, BTreeSet};

use countersign::proto::{ValidateRequest, session_service_client::SessionServiceClient};
use countersign_test_support::{http_client::get, ports::free_address, process::Server};
use serde_json::Value;

use super::collector::{Collector, HANGS, channel, count_warnings, exporting, warning};

/// The values of series, by the names of the series and their labels.
type Series = BTreeMap<(String, BTreeSet<String>), f64>;

/// Writes a label. Bounds of buckets are written in one form, whichever they had.
fn label(name: &str, value: &str) -> String {
    match value.parse::<f64>() {
        Ok(bound) if name == "le" => format!("le={bound}"),
        _ => format!("{name}={value}"),
    }
}

/// Returns the series of a page of metrics.
fn series_of_page(page: &str) -> Series {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels =
                labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
            let labels = labels.map(|pair| {
                let (name, value) = pair.split_once("=\"").unwrap();
                label(name, value.trim_end_matches('"'))
            });
            ((name.to_owned(), labels.collect()), value.parse().unwrap())
        })
        .collect()
}

/// Returns the series of an export, with the names that the page has for the parts of a histogram.
fn series_of_export(export: &Value) -> Series {
    let mut series = Series::new();
    for metric in export["metrics"].as_array().unwrap() {
        let name = metric["name"].as_str().unwrap();
        for point in metric["points"].as_array().unwrap() {
            let labels = point["attributes"].as_object().unwrap().iter();
            let labels: BTreeSet<String> =
                labels.map(|(name, value)| label(name, value.as_str().unwrap())).collect();
            let mut add = |suffix: &str, bound: Option<f64>, value: f64| {
                let mut labels = labels.clone();
                labels.extend(bound.map(|bound| format!("le={bound}")));
                series.insert((format!("{name}{suffix}"), labels), value);
            };
            if metric["kind"] != "histogram" {
                add("", None, point["value"].as_f64().unwrap());
                continue;
            }
            add("_count", None, point["count"].as_f64().unwrap());
            add("_sum", None, point["sum"].as_f64().unwrap());
            let numbers = |name: &str| {
                let numbers = point[name].as_array().unwrap().iter();
                numbers.map(|number| number.as_f64().unwrap()).collect::<Vec<_>>()
            };
            let (counts, bounds) = (numbers("counts"), numbers("bounds"));
            assert_eq!(counts.len(), bounds.len() + 1, "{point}");
            let mut below = 0.0;
            for (bound, count) in bounds.into_iter().chain([f64::INFINITY]).zip(counts) {
                below += count;
                add("_bucket", Some(bound), below);
            }
        }
    }
    series
}

/// Removes the series whose values change by themselves, or because the test reads the page.
fn without_changing(mut series: Series) -> Series {
    let changes = |name: &str| {
        name.starts_with("process_")
            || name.starts_with("countersign_http_request")
            || name.starts_with("countersign_connections_")
            || name.contains("_age_seconds")
    };
    series.retain(|(name, _), _| !changes(name));
    series
}

/// Returns the metric with this name.
fn metric<'a>(export: &'a Value, name: &str) -> &'a Value {
    let metrics = export["metrics"].as_array().unwrap();
    metrics.iter().find(|metric| metric["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

async fn validate(server: &Server) {
    let mut client = SessionServiceClient::new(channel(server).await);
    let request = ValidateRequest { access_token: "x".to_owned(), ..Default::default() };
    client.validate(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_receives_the_metrics_of_the_page_with_their_types_and_values() {
    for protocol in ["grpc", "http"] {
        let home = tempfile::tempdir().unwrap();
        let collector = Collector::start(protocol, "ok");
        let mut command = exporting(home.path(), &collector.endpoint(), protocol);
        let server = Server::launch(command.env("COUNTERSIGN_REPLICA__NAME", "replica-1"));
        for _ in 0..3 {
            validate(&server).await;
        }
        // An export and a page that were made one after the other agree, unless something happened
        // between them, such as a sweep.
        let mut attempts = 0;
        let export = loop {
            let export = collector.metrics.recv_timeout(HANGS).unwrap();
            let page = get(server.http(), "/metrics").await.body;
            let exported = without_changing(series_of_export(&export));
            let expected = without_changing(series_of_page(&page));
            if exported == expected {
                break export;
            }
            attempts += 1;
            let other: Vec<_> = expected
                .iter()
                .filter(|(series, value)| exported.get(series) != Some(value))
                .collect();
            assert!(attempts < 30, "{protocol}: {other:#?}");
        };

        let resource = [
            ("service.instance.id", "replica-1"),
            ("service.name", "countersign"),
            ("service.version", env!("CARGO_PKG_VERSION")),
        ];
        assert_eq!(export["resource"], Value::from_iter(resource));
        let requests = metric(&export, "countersign_requests_total");
        let of_counter = ["kind", "is_monotonic", "temporality"].map(|field| &requests[field]);
        assert_eq!(of_counter, [&Value::from("sum"), &true.into(), &2.into()]);
        let points = requests["points"].as_array().unwrap();
        let is_validate = |point: &&Value| {
            let labels = &point["attributes"];
            (&labels["method"], &labels["code"]) == (&"Validate".into(), &"OK".into())
        };
        let validations = points.iter().find(is_validate).unwrap();
        assert_eq!(validations["value"], 3.0);
        let [start, time] = ["start", "time"].map(|field| validations[field].as_u64().unwrap());
        assert!(0 < start && start < time, "{validations}");
        let durations = metric(&export, "countersign_request_duration_seconds");
        let of_histogram = ["kind", "unit", "temporality"].map(|field| &durations[field]);
        assert_eq!(of_histogram, [&Value::from("histogram"), &"s".into(), &2.into()]);
        let build = metric(&export, "countersign_build_info");
        assert_eq!((&build["kind"], &build["points"][0]["value"]), (&"gauge".into(), &1.0.into()));

        // The last values are sent at the end.
        server.stop();
        drop(collector);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_stops_exports_what_was_counted_since_the_last_export() {
    let home = tempfile::tempdir().unwrap();
    let collector = Collector::start("grpc", "ok");
    let mut command = exporting(home.path(), &collector.endpoint(), "grpc");
    let server = Server::launch(command.env("COUNTERSIGN_OTLP__METRICS_INTERVAL", "1h"));
    let first = collector.metrics.recv_timeout(HANGS).unwrap();
    validate(&server).await;
    server.stop();
    let last = collector.metrics.recv_timeout(HANGS).unwrap();
    let validations = |export: &Value| {
        let series = series_of_export(export);
        let of_validate = series.iter().filter(|((name, labels), _)| {
            name == "countersign_requests_total" && labels.contains("method=Validate")
        });
        of_validate.map(|(_, value)| value).sum::<f64>()
    };
    assert_eq!((validations(&first), validations(&last)), (0.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_comes_back_receives_metrics_again() {
    for protocol in ["grpc", "http"] {
        let home = tempfile::tempdir().unwrap();
        let address = free_address();
        let mut command = exporting(home.path(), &format!("http://{address}"), protocol);
        let mut server = Server::launch(&mut command);
        warning(&mut server, "metrics");
        let collector = Collector::start_at(address.port(), protocol, "ok");
        collector.metrics.recv_timeout(HANGS).unwrap();
        server.line("metrics are exported again");
        server.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_that_a_collector_rejects_are_one_warning_with_its_reason() {
    for protocol in ["grpc", "http"] {
        let home = tempfile::tempdir().unwrap();
        let collector = Collector::start(protocol, "reject");
        let mut server =
            Server::launch(&mut exporting(home.path(), &collector.endpoint(), protocol));
        let warning = warning(&mut server, "metrics");
        let problem = warning["problem"].as_str().unwrap();
        assert!(problem.ends_with("this collector has no room"), "{problem}");
        for _ in 0..2 {
            collector.metrics.recv_timeout(HANGS).unwrap();
        }
        let log = server.stop();
        assert_eq!(count_warnings(&log, "metrics"), 1, "{log:#?}");
    }
}
