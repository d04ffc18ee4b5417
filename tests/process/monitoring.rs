//! Tests of the files for operators in `deploy/prometheus` and `deploy/grafana`, and of the
//! runbook. Prometheus itself reads its files, scrapes a service under load, and answers each query
//! of the alerts and of the dashboard.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use countersign::proto::{
    CreateSessionRequest, GetSessionRequest, RefreshRequest, RevokeRequest, ValidateRequest,
    revoke_request::Target,
};
use countersign_test_support::{
    http_client::{ask, get},
    ports::free_address,
    process::{Server, serve},
    server::eventually,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};

const ALERTS: &str = "deploy/prometheus/alerts.yaml";
const DASHBOARD: &str = "deploy/grafana/countersign.json";

/// The panels without data in this test, each with what it needs.
const EMPTY_PANELS: [(&str, &str); 6] = [
    ("Alerts that fire", "a failure"),
    ("Remaining time of the lease", "PostgreSQL"),
    ("Store operations that fail", "a failure"),
    ("Table rows", "PostgreSQL"),
    ("Table sizes", "PostgreSQL"),
    ("Time until the certificate expires", "TLS"),
];

/// The metrics that a service without TLS on SQLite does not have.
const ABSENT_METRICS: [&str; 4] = [
    "countersign_certificate_expiry_timestamp_seconds",
    "countersign_lease_remaining_seconds",
    "countersign_table_bytes",
    "countersign_table_rows",
];

/// The longest time in which all panels get data.
const HANGS: Duration = Duration::from_secs(60);

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// Returns the names of the alerts, each with its definition.
fn alerts() -> Vec<(String, String)> {
    let file = read(ALERTS);
    let definitions = file.split("\n      - ").filter_map(|rule| rule.strip_prefix("alert: "));
    definitions.map(|rule| (rule.lines().next().unwrap().to_owned(), rule.to_owned())).collect()
}

/// A query of a panel or of an annotation of the dashboard.
#[derive(Clone, Debug)]
struct Query {
    panel: String,
    expression: String,
}

/// Returns the queries of all panels. The variables of the dashboard have the values that Grafana
/// would insert, but a shorter interval, because the test scrapes more often.
fn panel_queries(dashboard: &Value) -> Vec<Query> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| Query {
            panel: panel["title"].as_str().unwrap().to_owned(),
            expression: insert_variables(target["expr"].as_str().unwrap()),
        })
    });
    queries.collect()
}

fn insert_variables(expression: &str) -> String {
    let variables = [
        ("$__rate_interval", "10s"),
        ("$__range", "1m"),
        ("$instance", ".+"),
        ("$job", "countersign"),
    ];
    let inserted = variables
        .into_iter()
        .fold(expression.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!inserted.contains('$'), "unknown variable in {inserted}");
    inserted
}

/// Returns the names of the metrics in an expression, recorded ones too.
fn metric_names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
    words.filter(|word| {
        ["countersign_", "process_", "instance:"].iter().any(|prefix| word.starts_with(prefix))
    })
}

/// Runs promtool, and panics unless it is content.
fn promtool(args: &[&str], file: &str) {
    let output = Command::new("promtool")
        .args(args)
        .arg(path(file))
        .output()
        .unwrap_or_else(|error| panic!("promtool (Debian package prometheus): {error}"));
    assert!(output.status.success(), "{args:?} {file}: {output:#?}");
}

#[test]
fn promtool_accepts_the_configuration_and_the_rules() {
    promtool(&["check", "config"], "deploy/prometheus/prometheus.yaml");
    promtool(&["check", "rules"], ALERTS);
}

#[test]
fn each_alert_fires_for_the_replica_that_is_bad_and_for_no_other() {
    let file = "deploy/prometheus/alerts_test.yaml";
    promtool(&["test", "rules"], file);
    let tests = read(file);
    for (name, _) in alerts() {
        let expected = format!("alertname=\"{name}\", instance=\"bad:8080\"");
        assert!(tests.contains(&expected), "{file} has no test of {name}");
    }
}

#[test]
fn each_alert_says_how_severe_it_is_names_the_replica_and_points_to_its_section_of_the_runbook() {
    let alerts = alerts();
    assert!(alerts.len() > 20, "{alerts:?}");
    for (name, definition) in &alerts {
        let severe = ["critical", "warning"].map(|level| format!("{{ severity: {level} }}"));
        assert!(severe.iter().any(|severity| definition.contains(severity)), "{name}");
        let section = format!("runbook: docs/runbook.md#{}\n", name.to_lowercase());
        let definition = definition.trim_end().to_owned() + "\n";
        for part in ["\n        for: ", "summary: ", "{{ $labels.instance }}", &section] {
            assert!(definition.contains(part), "{name} lacks {part:?}");
        }
    }
    let runbook = read("docs/runbook.md");
    let sections: Vec<_> = runbook.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let sorted = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(sections.len(), alerts.len());
    assert_eq!(sorted(sections), sorted(alerts.iter().map(|(name, _)| &**name).collect()));
}

#[test]
fn each_panel_has_a_title_a_unit_and_a_description_and_the_runbook_names_only_existing_panels() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut titles = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(titles.insert(title), "two panels are called {title}");
        if panel["type"] != "row" {
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "the unit of {title}");
            let description = panel["description"].as_str().unwrap();
            assert!(description.ends_with('.') && description.len() > 20, "{title}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    let runbook = read("docs/runbook.md").split_whitespace().collect::<Vec<_>>().join(" ");
    // Bold text has two asterisks, which leave nothing between them here.
    let plain = runbook.replace("**", "");
    let named: Vec<_> = plain.split('*').skip(1).step_by(2).collect();
    assert!(named.len() > 50, "{named:?}");
    let unknown: Vec<_> =
        named.iter().filter(|name| **name != "italics" && !titles.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// A running Prometheus, which is killed when it is dropped.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Starts Prometheus with our configuration, in which only the addresses of the replicas and
    /// the intervals are replaced.
    async fn scraping(service: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let targets = "[\"127.0.0.1:8080\", \"127.0.0.1:8081\"]";
        let config = read("deploy/prometheus/prometheus.yaml");
        assert!(config.contains(targets) && config.contains("_interval: 15s"), "{config}");
        let config = config.replace(targets, &format!("[\"{service}\"]")).replace("15s", "1s");
        fs::write(folder.path().join("prometheus.yaml"), config).unwrap();
        fs::copy(path(ALERTS), folder.path().join("alerts.yaml")).unwrap();
        let address = free_address();
        let child = Command::new("prometheus")
            .arg("--config.file=prometheus.yaml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus (Debian package prometheus): {error}"));
        let prometheus = Self { child, address, _folder: folder };
        eventually("Prometheus is ready", async || {
            TcpStream::connect(address).await.ok()?;
            (get(address, "/-/ready").await.status == 200).then_some(())
        })
        .await;
        prometheus
    }

    /// Returns the data of an answer of the HTTP API. Panics if it is an error.
    async fn ask(&self, path: &str) -> Value {
        // Answers to HTTP 1.1 would come in chunks.
        let request = format!("GET /api/v1/{path} HTTP/1.0\r\nhost: test\r\n\r\n");
        let answer = ask(self.address, &request).await;
        let mut body: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(body["status"], "success", "{path}: {body}");
        body["data"].take()
    }

    /// Evaluates an expression, and returns the values that are numbers. Panics if the expression
    /// is wrong.
    async fn numbers(&self, expression: &str) -> Vec<f64> {
        let query: String = form_urlencoded::byte_serialize(expression.as_bytes()).collect();
        let data = self.ask(&format!("query?query={query}")).await;
        assert_eq!(data["resultType"], "vector", "{expression}");
        let samples = data["result"].as_array().unwrap().iter();
        let values = samples.map(|sample| sample["value"][1].as_str().unwrap().parse().unwrap());
        values.filter(|value: &f64| !value.is_nan()).collect()
    }

    /// Returns all rules.
    async fn rules(&self) -> Vec<Value> {
        let groups = self.ask("rules").await["groups"].take();
        let rules = |group: &Value| group["rules"].as_array().unwrap().clone();
        groups.as_array().unwrap().iter().flat_map(rules).collect()
    }
}

/// Makes some calls of each kind, also some that fail through the fault of the caller.
async fn load(server: &Server) {
    let mut client = server.sessions().await;
    let alice = CreateSessionRequest { subject: "alice".to_owned(), ..Default::default() };
    let tokens = client.create_session(alice).await.unwrap().into_inner().tokens.unwrap();
    for token in [&*tokens.access_token, &tokens.access_token, "forged"] {
        let access_token = token.to_owned();
        client.validate(ValidateRequest { access_token, ..Default::default() }).await.unwrap();
        let request = format!(
            "GET /forward-auth HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\nconnection: \
             close\r\n\r\n"
        );
        ask(server.http(), &request).await;
    }
    let refresh = RefreshRequest { refresh_token: tokens.refresh_token, ..Default::default() };
    let tokens = client.refresh(refresh).await.unwrap().into_inner().tokens.unwrap();
    let target = Some(Target::Token(tokens.access_token));
    client.revoke(RevokeRequest { target, ..Default::default() }).await.unwrap();
    let nobody = GetSessionRequest { session_id: uuid::Uuid::nil().to_string() };
    client.get_session(nobody).await.unwrap_err();
    get(server.http(), "/.well-known/jwks.json").await;
    get(server.http(), "/readyz").await;
}

/// Puts load on the server until Prometheus has data for each query. Panics if some get none.
async fn await_data(prometheus: &Prometheus, server: &Server, queries: Vec<Query>) {
    let mut unanswered = queries;
    let answering = async {
        while !unanswered.is_empty() {
            load(server).await;
            for query in std::mem::take(&mut unanswered) {
                if prometheus.numbers(&query.expression).await.is_empty() {
                    unanswered.push(query);
                }
            }
        }
    };
    let in_time = timeout(HANGS, answering).await.is_ok();
    assert!(in_time, "there is no data for {unanswered:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_answers_each_query_of_the_dashboard_and_the_alerts_from_a_service_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = serve(folder.path());
    let server = Server::launch(command.env("COUNTERSIGN_SWEEPER__SCHEDULE", "* * * * * *"));
    let prometheus = Prometheus::scraping(server.http()).await;

    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let queries = panel_queries(&dashboard);
    let is_empty = |query: &Query| EMPTY_PANELS.iter().any(|(title, _)| query.panel == *title);
    let (empty, answered): (Vec<_>, Vec<_>) = queries.iter().cloned().partition(is_empty);
    assert_eq!(empty.len(), EMPTY_PANELS.len(), "{empty:?}");
    await_data(&prometheus, &server, answered).await;
    for Query { panel, expression } in &empty {
        let numbers = prometheus.numbers(expression).await;
        assert!(numbers.is_empty(), "{panel}: there is data, so its exception is outdated");
    }

    let rules = prometheus.rules().await;
    assert!(rules.len() >= alerts().len(), "{rules:?}");
    for rule in &rules {
        prometheus.numbers(rule["query"].as_str().unwrap()).await;
        assert_eq!(rule["health"], "ok", "{rule}");
    }

    let names = prometheus.ask("label/__name__/values").await;
    let mut known: BTreeSet<_> =
        names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let recording = rules.iter().filter(|rule| rule["type"] == "recording");
    known.extend(recording.map(|rule| rule["name"].as_str().unwrap()));
    known.extend(ABSENT_METRICS);
    let annotations = dashboard["annotations"]["list"].as_array().unwrap().iter();
    let expressions = queries
        .iter()
        .map(|query| &*query.expression)
        .chain(annotations.filter_map(|annotation| annotation["expr"].as_str()))
        .chain(rules.iter().map(|rule| rule["query"].as_str().unwrap()));
    let unknown: BTreeSet<_> =
        expressions.flat_map(metric_names).filter(|name| !known.contains(name)).collect();
    assert!(unknown.is_empty(), "no metrics of the service: {unknown:?}");
}
