//! The metrics at one moment, and their change between two moments.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// The values of all series at one moment.
#[derive(Clone, Debug)]
pub struct Sample {
    at: Instant,
    series: BTreeMap<String, Vec<Series>>,
}

/// A series of a metric.
#[derive(Clone, Debug)]
struct Series {
    labels: String,
    value: f64,
}

impl Series {
    fn has(&self, label: &str, value: &str) -> bool {
        self.label(label) == Some(value)
    }

    /// Returns the value of a label. The service publishes no value that needs an escape.
    fn label(&self, label: &str) -> Option<&str> {
        self.labels
            .split(',')
            .find_map(|pair| pair.strip_prefix(label)?.strip_prefix("=\"")?.strip_suffix('"'))
    }
}

impl Sample {
    /// Reads a page of metrics. Lines that are not series are left out.
    pub fn read(page: &str, at: Instant) -> Self {
        let mut series: BTreeMap<String, Vec<Series>> = BTreeMap::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let labels = labels.trim_end_matches('}').to_owned();
            series.entry(name.to_owned()).or_default().push(Series { labels, value });
        }
        Self { at, series }
    }

    fn of(&self, name: &str) -> &[Series] {
        self.series.get(name).map_or(&[], Vec::as_slice)
    }

    /// Returns the sum of a metric over all series with these labels; none if there is no such
    /// series.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut values = self
            .of(name)
            .iter()
            .filter(|series| labels.iter().all(|(label, value)| series.has(label, value)))
            .map(|series| series.value);
        let first = values.next()?;
        Some(first + values.sum::<f64>())
    }

    /// Returns the values that a label of a metric has.
    pub fn values(&self, name: &str, label: &str) -> Vec<&str> {
        let mut values: Vec<_> =
            self.of(name).iter().filter_map(|series| series.label(label)).collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// The change between two samples.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    before: &'a Sample,
    now: &'a Sample,
}

impl<'a> Change<'a> {
    /// Compares two samples.
    pub fn new(before: &'a Sample, now: &'a Sample) -> Self {
        Self { before, now }
    }

    /// Returns the time between the samples, in seconds.
    fn seconds(&self) -> f64 {
        self.now.at.saturating_duration_since(self.before.at).as_secs_f64()
    }

    /// Returns how much a counter has grown. After a restart of the service it has begun at 0.
    pub fn growth(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let now = self.now.sum(name, labels).unwrap_or_default();
        let before = self.before.sum(name, labels).unwrap_or_default();
        if now < before { now } else { now - before }
    }

    /// Returns the growth of a counter in a second.
    pub fn rate(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let seconds = self.seconds();
        if seconds > 0.0 { self.growth(name, labels) / seconds } else { 0.0 }
    }

    /// Returns a quantile of the durations that a histogram has counted, as Prometheus estimates
    /// it: within a bucket, the durations count as spread evenly. Returns none if there were none.
    pub fn quantile(&self, q: f64, name: &str, labels: &[(&str, &str)]) -> Option<Duration> {
        let buckets = format!("{name}_bucket");
        let mut bounds: Vec<(f64, &str)> = self
            .now
            .values(&buckets, "le")
            .into_iter()
            .filter_map(|le| {
                Some((if le == "+Inf" { f64::INFINITY } else { le.parse().ok()? }, le))
            })
            .collect();
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = |le: &str| {
            let labels: Vec<_> = labels.iter().copied().chain([("le", le)]).collect();
            self.growth(&buckets, &labels)
        };
        let total = count(bounds.last()?.1);
        if total <= 0.0 {
            return None;
        }
        let rank = q * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, le) in bounds {
            let up_to = count(le);
            if up_to >= rank {
                let seconds = if bound.is_infinite() {
                    lower
                } else {
                    lower + (bound - lower) * (rank - below) / (up_to - below).max(1.0)
                };
                return Duration::try_from_secs_f64(seconds).ok();
            }
            (lower, below) = (bound, up_to);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
# TYPE countersign_requests counter
countersign_requests_total{method=\"A\",code=\"OK\"} 10
countersign_requests_total{method=\"A\",code=\"UNAVAILABLE\"} 1
countersign_requests_total{method=\"B\",code=\"OK\"} 100
d_bucket{le=\"0.1\"} 0
d_bucket{le=\"1.0\"} 0
d_bucket{le=\"+Inf\"} 0
nonsense
# EOF";
    const NOW: &str = "\
countersign_requests_total{method=\"A\",code=\"OK\"} 30
countersign_requests_total{method=\"A\",code=\"UNAVAILABLE\"} 1
countersign_requests_total{method=\"B\",code=\"OK\"} 8
d_bucket{le=\"0.1\"} 50
d_bucket{le=\"1.0\"} 100
d_bucket{le=\"+Inf\"} 100";

    #[test]
    fn rates_and_quantiles_are_those_of_the_interval_and_a_restart_begins_at_zero() {
        let began = Instant::now();
        let before = Sample::read(BEFORE, began);
        let now = Sample::read(NOW, began + Duration::from_secs(2));
        let change = Change::new(&before, &now);
        let rate = |labels: &[(&str, &str)]| change.rate("countersign_requests_total", labels);
        assert_eq!(rate(&[("method", "A")]), 10.0);
        assert_eq!(rate(&[("method", "A"), ("code", "UNAVAILABLE")]), 0.0);
        assert_eq!(rate(&[("method", "B")]), 4.0, "the service was started anew");
        assert_eq!(rate(&[("method", "C")]), 0.0);
        assert_eq!(now.values("countersign_requests_total", "method"), ["A", "B"]);
        assert_eq!(now.sum("missing", &[]), None);
        let quantile = |q| change.quantile(q, "d", &[]).map(|span| span.as_millis());
        assert_eq!(
            (quantile(0.25), quantile(0.5), quantile(0.99)),
            (Some(50), Some(100), Some(982))
        );
        assert_eq!(Change::new(&now, &now).quantile(0.5, "d", &[]), None);
    }
}
