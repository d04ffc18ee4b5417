//! Draws the figures of a service.

use std::time::Duration;

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style, Stylize},
    text::Line,
    widgets::{Block, Borders, Paragraph, Row, Table},
};

use super::sample::{Change, Sample};
use crate::config::Config;

/// The label of calls that succeeded.
const OK: &str = "OK";

/// The figures of one screen.
pub struct Screen<'a> {
    address: String,
    change: Change<'a>,
    now: &'a Sample,
    problem: Option<String>,
}

impl<'a> Screen<'a> {
    /// Compares two samples of the service with this configuration.
    pub fn new(config: &Config, before: &'a Sample, now: &'a Sample) -> Self {
        let address = config.http_listen.map(|listen| listen.address.to_string());
        let change = Change::new(before, now);
        Self { address: address.unwrap_or_default(), change, now, problem: None }
    }

    /// Shows a problem instead of the state of the lease.
    pub fn with_problem(mut self, problem: Option<String>) -> Self {
        self.problem = problem;
        self
    }

    /// Draws the screen.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let rows = [Constraint::Length(2), Constraint::Min(6), Constraint::Length(9)];
        let [head, calls, rest] = Layout::vertical(rows).areas(frame.area());
        let [left, right] =
            Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
                .areas(rest);
        self.draw_head(frame, head);
        self.draw_calls(frame, calls);
        draw_list(frame, left, " validations and revocations ", self.revocations());
        draw_list(frame, right, " database and process ", self.database());
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let version = self.now.values("countersign_build_info", "version").join(" ");
        let first = format!("countersign {version}  {}  q: quit", self.address);
        let second = match (&self.problem, self.value("countersign_lease_current")) {
            (Some(problem), _) => Line::from(problem.clone()).red(),
            (None, Some(1.0)) => {
                let remaining = self.value("countersign_lease_remaining_seconds");
                let left = remaining.map_or_else(
                    || "does not end".to_owned(),
                    |seconds| format!("{seconds:.1} s left"),
                );
                let others = self.value("countersign_other_replicas").unwrap_or_default();
                Line::from(format!("lease: {left}, other replicas: {others}")).green()
            }
            (None, _) => Line::from("no lease: calls to Validate wait or fail").red(),
        };
        let head = Paragraph::new(vec![Line::from(first).bold(), second]);
        frame.render_widget(head, area);
    }

    /// Draws the methods with calls, those with most calls first.
    fn draw_calls(&self, frame: &mut Frame<'_>, area: Rect) {
        const REQUESTS: &str = "countersign_requests_total";
        const DURATION: &str = "countersign_request_duration_seconds";
        let mut methods: Vec<(f64, &str)> = self
            .now
            .values(REQUESTS, "method")
            .into_iter()
            .map(|method| (self.change.rate(REQUESTS, &[("method", method)]), method))
            .filter(|(rate, _)| *rate > 0.0)
            .collect();
        methods.sort_by(|a, b| b.0.total_cmp(&a.0));
        let rows = methods.into_iter().map(|(rate, method)| {
            let labels = [("method", method)];
            let good = self.change.rate(REQUESTS, &[("method", method), ("code", OK)]);
            let quantile = |q| span(self.change.quantile(q, DURATION, &labels));
            let failed = rate - good;
            let style = if failed > 0.0 { Style::new().yellow() } else { Style::new() };
            Row::new([
                method.to_owned(),
                number(rate),
                number(failed),
                quantile(0.5),
                quantile(0.99),
            ])
            .style(style)
        });
        let widths = [
            Constraint::Min(24),
            Constraint::Length(11),
            Constraint::Length(11),
            Constraint::Length(10),
            Constraint::Length(10),
        ];
        let head = Row::new(["method", "calls/s", "not OK/s", "p50", "p99"])
            .style(Style::new().add_modifier(Modifier::BOLD));
        let block = Block::new().borders(Borders::TOP).title(" calls ");
        frame.render_widget(Table::new(rows, widths).header(head).block(block), area);
    }

    fn revocations(&self) -> Vec<(&'static str, String)> {
        const VALIDATIONS: &str = "countersign_validations_total";
        const ACKNOWLEDGED: &str = "countersign_acknowledgement_duration_seconds";
        let hits = self.change.growth("countersign_token_cache_hits_total", &[]);
        let misses = self.change.growth("countersign_token_cache_misses_total", &[]);
        let share = if hits + misses > 0.0 {
            format!("{:.0} %", 100.0 * hits / (hits + misses))
        } else {
            "-".to_owned()
        };
        let applied = self.value("countersign_feed_applied_seq").unwrap_or_default();
        let head = self.value("countersign_feed_head_seq").unwrap_or_default();
        let rate = |result| number(self.change.rate(VALIDATIONS, &[("result", result)]));
        vec![
            ("active tokens/s", rate("active")),
            ("inactive tokens/s", rate("inactive")),
            ("tokens in the cache", share),
            ("blacklist entries", self.shown("countersign_blacklist_entries")),
            ("feed entries behind", number((head - applied).max(0.0))),
            ("waiting revocations", self.shown("countersign_unacknowledged_revocations")),
            ("acknowledged in, p99", span(self.change.quantile(0.99, ACKNOWLEDGED, &[]))),
        ]
    }

    fn database(&self) -> Vec<(&'static str, String)> {
        const BATCHES: &str = "countersign_write_batch_writes";
        let writes = self.change.growth(&format!("{BATCHES}_sum"), &[]);
        let batches = self.change.growth(&format!("{BATCHES}_count"), &[]);
        let wait = self.change.quantile(0.99, "countersign_write_queue_wait_seconds", &[]);
        let connections = |state| {
            let value = self.now.sum("countersign_database_connections", &[("state", state)]);
            number(value.unwrap_or_default())
        };
        let cpu = 100.0 * self.change.rate("process_cpu_seconds_total", &[]);
        let memory = self.value("process_resident_memory_bytes").unwrap_or_default();
        vec![
            ("waiting writes", self.shown("countersign_write_queue_depth")),
            ("wait for a batch, p99", span(wait)),
            ("writes in a batch", number(if batches > 0.0 { writes / batches } else { 0.0 })),
            ("connections in use, idle", [connections("in_use"), connections("idle")].join(", ")),
            ("waits for a connection", self.shown("countersign_database_connection_waiting")),
            ("processor", format!("{cpu:.0} %")),
            ("memory", format!("{:.0} MiB", memory / f64::from(1 << 20))),
        ]
    }

    fn value(&self, name: &str) -> Option<f64> {
        self.now.sum(name, &[])
    }

    fn shown(&self, name: &str) -> String {
        self.value(name).map_or_else(|| "-".to_owned(), number)
    }
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, title: &str, list: Vec<(&'static str, String)>) {
    let rows = list.into_iter().map(|(name, value)| Row::new([name.to_owned(), value]));
    let widths = [Constraint::Length(25), Constraint::Min(10)];
    let block = Block::new().borders(Borders::TOP).title(title.to_owned());
    frame.render_widget(Table::new(rows, widths).block(block), area);
}

/// Formats a number with as many digits as matter.
fn number(value: f64) -> String {
    match value {
        value if value == value.trunc() || value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

/// Formats a span in the unit that suits it.
fn span(span: Option<Duration>) -> String {
    let Some(span) = span else { return "-".to_owned() };
    let micros = span.as_secs_f64() * 1e6;
    match micros {
        micros if micros < 1e3 => format!("{micros:.0} us"),
        micros if micros < 1e6 => format!("{:.1} ms", micros / 1e3),
        micros => format!("{:.1} s", micros / 1e6),
    }
}
