//! Tests of `countersign top`, which shows the figures of a running service.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use countersign_test_support::{
    ports::free_address,
    process::{Server, countersign, run},
};

/// Shows one screen for a service with this HTTP address.
fn top(http: &str) -> countersign_test_support::process::Run {
    run(countersign().args(["top", "--once", "--interval", "1s", "--http-listen", http]))
}

#[test]
fn one_screen_shows_calls_with_rates_and_latencies_within_80_columns_and_24_lines() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path());
    let is_over = AtomicBool::new(false);
    let (at, http) = (format!("http://{}", server.address()), server.http().to_string());
    let shown = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let mut create = countersign();
                create.args(["session", "create", "alice"]).env("COUNTERSIGN_SERVER", &at);
                run(&mut create).ok();
            }
        });
        let shown = top(&http);
        is_over.store(true, Ordering::Relaxed);
        shown.ok()
    });
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.len() <= 24, "{shown}");
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{shown}");
    let row = lines.iter().find(|line| line.starts_with("CreateSession")).expect(&shown);
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert!(cells[1].parse::<f64>().unwrap() > 0.0 && cells[2] == "0", "{row}");
    assert!(row.ends_with("ms") || row.ends_with("us") || row.ends_with(" s"), "{row}");
    for part in ["lease: does not end", "blacklist entries", "writes in a batch", "MiB"] {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }
}

#[test]
fn a_service_that_is_away_is_an_error_that_names_the_address() {
    let address = free_address().to_string();
    let shown = top(&address);
    assert_eq!(shown.code, Some(1), "{shown:?}");
    assert!(shown.stderr.contains(&format!("the metrics at {address}: nothing listens there")));
}
