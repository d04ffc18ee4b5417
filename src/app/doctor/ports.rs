//! Checks the ports of a running service, and its lease. Nothing is bound: whether a service runs
//! is found out by connecting to it.

use std::net::SocketAddr;

use http::StatusCode;
use tonic_health::pb::health_check_response::ServingStatus;

use super::finding::Finding;
use crate::{
    app::probe::{Probe, ProbeError, reachable},
    config::Config,
    net::tls::{ClientCertificates, Tls},
};

const GRPC: &str = "grpc_port";
const HTTP: &str = "http_port";
const START: &str = "start it by `countersign serve`, or check the installation where it runs";

/// Checks both ports, and the lease. `tls` has the certificate in the file, if it could be read.
pub async fn check(config: &Config, tls: Option<&Tls>) -> Vec<Finding> {
    let certificate = tls.map(Tls::certificate);
    let probe = |address: SocketAddr, is_encrypted: bool| Probe {
        address: reachable(address),
        is_encrypted,
        certificate: certificate.clone(),
    };
    let grpc = probe(config.listen.address, config.tls.is_some());
    let http = config
        .http_listen
        .map(|listen| probe(listen.address, config.tls.as_ref().is_some_and(|tls| tls.http)));
    let health = ask_health(config, &grpc).await;
    let ready = match &http {
        Some(http) => Some(http.get("/readyz").await),
        None => None,
    };
    let runs = [
        !matches!(health, Err(ProbeError::Closed)),
        !matches!(ready, None | Some(Err(ProbeError::Closed))),
    ];
    let mut findings = vec![judge_health(&grpc, &health, runs.contains(&true), http.is_some())];
    if let (Some(http), Some(ready)) = (&http, &ready) {
        findings.push(judge_ready(http, ready, runs.contains(&true)));
        if matches!(ready, Ok((StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE, _))) {
            findings.push(check_lease(http).await);
        }
    }
    findings
}

/// The answer of the gRPC port.
enum Health {
    /// The answer of the health service.
    Status(ServingStatus),
    /// The port is open, but answers only clients with a certificate.
    NeedsCertificate,
}

/// Asks for the health of the service. If clients need a certificate, only a connection is made,
/// because this command has none.
async fn ask_health(config: &Config, probe: &Probe) -> Result<Health, ProbeError> {
    let needs_certificate = config
        .tls
        .as_ref()
        .is_some_and(|tls| tls.files.client_certificates == ClientCertificates::Required);
    match needs_certificate {
        true => probe.open(b"h2").await.map(|_| Health::NeedsCertificate),
        false => probe.health().await.map(Health::Status),
    }
}

fn judge_health(
    probe: &Probe,
    health: &Result<Health, ProbeError>,
    runs: bool,
    has_http: bool,
) -> Finding {
    let address = probe.address;
    match health {
        Err(error) => judge_error(GRPC, "listen", address, error, runs),
        Ok(Health::Status(ServingStatus::Serving)) => {
            Finding::ok(GRPC, format!("{address} answers SERVING"))
        }
        Ok(Health::Status(status)) => Finding::fail(
            GRPC,
            format!("{address} answers {}", status.as_str_name()),
            "wait until the service has started; if it stays so, its log says why (often the \
             database is away)",
        ),
        Ok(Health::NeedsCertificate) if has_http => Finding::ok(
            GRPC,
            format!("{address} is open, and answers only clients with a certificate"),
        ),
        Ok(Health::NeedsCertificate) => Finding::warn(
            GRPC,
            format!("{address} is open, but answers only clients with a certificate"),
            "ask it by `countersign health` with --client-certificate-file and --client-key-file",
        ),
    }
}

fn judge_ready(
    probe: &Probe,
    ready: &Result<(StatusCode, String), ProbeError>,
    runs: bool,
) -> Finding {
    let address = probe.address;
    match ready {
        Err(error) => judge_error(HTTP, "http_listen", address, error, runs),
        Ok((StatusCode::OK, _)) => Finding::ok(HTTP, format!("{address} is ready")),
        Ok((StatusCode::SERVICE_UNAVAILABLE, reason)) => Finding::fail(
            HTTP,
            format!("{address} is not ready: {}", shortened(reason)),
            "wait until the service has started; if it stays so, its log says why",
        ),
        Ok((status, _)) => Finding::fail(
            HTTP,
            format!("{address} answers {} to /readyz, so it is another program", status.as_u16()),
            "stop the other program, or set http_listen to a free address",
        ),
    }
}

/// Describes a port that gave no answer. `runs` says whether the other port is open.
fn judge_error(
    check: &'static str,
    setting: &str,
    address: SocketAddr,
    error: &ProbeError,
    runs: bool,
) -> Finding {
    match error {
        ProbeError::Closed if address.port() == 0 => Finding::warn(
            check,
            format!("{setting} is port 0, so the service chooses a port when it starts"),
            "name the port of the running service by --listen and --http-listen",
        ),
        ProbeError::Closed if !runs => Finding::warn(
            check,
            format!("the service does not run here: nothing listens on {address}"),
            START,
        ),
        ProbeError::Closed => Finding::fail(
            check,
            format!("nothing listens on {address}, but the other port is open"),
            &format!("restart the service with this configuration (setting {setting})"),
        ),
        ProbeError::OtherCertificate => Finding::warn(
            check,
            format!("{address} has another certificate than the one in tls.certificate_file"),
            "wait some seconds until the service has loaded the file, or see in its log why it \
             does not; if another program listens there, stop it",
        ),
        ProbeError::Failed(problem) => Finding::fail(
            check,
            format!("{address} does not answer as this service would ({problem})"),
            &format!(
                "stop the other program that listens there, or restart the service with this \
                 configuration (settings {setting} and tls)"
            ),
        ),
    }
}

/// Truncates an answer, which may be that of another program.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Reads from the metrics whether the service has a lease.
async fn check_lease(probe: &Probe) -> Finding {
    const CHECK: &str = "lease";
    match probe.get("/metrics").await {
        Ok((StatusCode::OK, metrics)) => judge_lease(&metrics),
        Ok((status, _)) => Finding::warn(
            CHECK,
            format!("/metrics answers {}, so the lease is not known", status.as_u16()),
            "see the log of the service",
        ),
        Err(error) => Finding::warn(
            CHECK,
            format!("the metrics cannot be read ({error}), so the lease is not known"),
            "run this command again",
        ),
    }
}

fn judge_lease(metrics: &str) -> Finding {
    const CHECK: &str = "lease";
    let current = metric(metrics, "countersign_lease_current");
    let remaining = metric(metrics, "countersign_lease_remaining_seconds");
    match (current, remaining) {
        (Some(current), Some(seconds)) if current > 0.0 => {
            Finding::ok(CHECK, format!("the lease is valid for another {seconds:.3} s"))
        }
        (Some(current), None) if current > 0.0 => {
            let finding = "on SQLite, the service validates without a time limit";
            Finding::ok(CHECK, finding)
        }
        (Some(_), _) => Finding::fail(
            CHECK,
            "there is no lease, so calls to Validate wait or fail",
            "make sure that the database answers, and that the clock is right: the log says which",
        ),
        (None, _) => Finding::warn(
            CHECK,
            "the metrics do not have countersign_lease_current",
            "run the command of the version that serves",
        ),
    }
}

/// Returns the value of a metric that has no labels.
fn metric(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{super::finding::Status, *};

    #[test]
    fn a_port_on_all_addresses_is_asked_on_loopback() {
        for (listen, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:1", "[::1]:1"), ("192.0.2.1:1", "192.0.2.1:1")]
        {
            assert_eq!(reachable(listen.parse().unwrap()), asked.parse().unwrap());
        }
    }

    #[test]
    fn a_lapsed_lease_fails() {
        let judge = |metrics| judge_lease(metrics).status;
        assert_eq!(judge("countersign_lease_current 0\n"), Status::Fail);
        assert_eq!(judge("countersign_lease_current 1\n"), Status::Ok);
        assert_eq!(judge("# HELP countersign_lease_current x\n"), Status::Warn);
        let held =
            judge_lease("countersign_lease_current 1\ncountersign_lease_remaining_seconds 1.5\n");
        assert!(held.status == Status::Ok && held.finding.contains("1.500 s"), "{held:?}");
    }
}
