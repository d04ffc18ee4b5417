//! Writes metrics to a page, each with its name, its meaning, its unit and its labels.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::instruments::{Distribution, Events, Labels};

/// Writes metrics one after the other.
pub struct Page<'a>(pub DescriptorEncoder<'a>);

impl Page<'_> {
    pub fn encode(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, None, metric.metric_type())?)
    }

    /// Writes a metric with a unit.
    pub fn unit(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        metric: &impl EncodeMetric,
    ) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, Some(unit), metric.metric_type())?)
    }

    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.encode(name, help, &ConstCounter::new(value))
    }

    /// Writes a gauge that has one value for each kind. The label names the kind.
    pub fn gauges<'a>(
        &mut self,
        label: &str,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        gauges: impl Iterator<Item = (&'a str, ConstGauge<i64>)>,
    ) -> fmt::Result {
        let gauges: Vec<_> = gauges.collect();
        let gauges: Vec<_> = gauges.iter().map(|(kind, gauge)| (*kind, gauge)).collect();
        self.by(label, name, help, unit, &gauges)
    }

    /// Writes distributions of durations, which a label distinguishes.
    pub fn durations<'a>(
        &mut self,
        label: &str,
        name: &str,
        help: &str,
        distributions: impl Iterator<Item = (&'a str, Distribution)>,
    ) -> fmt::Result {
        let unit = Some(&Unit::Seconds);
        let mut family = self.0.encode_descriptor(name, help, unit, MetricType::Histogram)?;
        for (kind, Distribution { sum, count, buckets }) in distributions {
            let labels = [(label, kind)];
            let mut series = family.encode_family(&labels)?;
            series.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    pub fn number(&mut self, name: &str, help: &str, value: u32) -> fmt::Result {
        self.encode(name, help, &ConstGauge::new(value))
    }

    pub fn seconds(&mut self, name: &str, help: &str, value: Duration) -> fmt::Result {
        self.unit(name, help, &Unit::Seconds, &ConstGauge::new(value.as_secs_f64()))
    }

    pub fn by_outcome<M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metrics: &[(&str, &M)],
    ) -> fmt::Result {
        self.by("outcome", name, help, unit, metrics)
    }

    /// Writes how many events ended with each code, and how long they took. `label` is the name of
    /// the label for the code. The first code is always written, so that there is a series to
    /// compute rates from; others once they occurred.
    pub fn events(
        &mut self,
        label: &'static str,
        [total, total_help]: [&str; 2],
        [duration, duration_help]: [&str; 2],
        events: &Events,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(total, total_help, None, MetricType::Counter)?;
        for (kind, labels) in events.kinds().iter().enumerate() {
            for (number, code) in events.codes().iter().enumerate() {
                let count = events.count(kind, number);
                if number == 0 || count > 0 {
                    let labels: Labels = labels.iter().copied().chain([(label, *code)]).collect();
                    let mut series = family.encode_family(&labels)?;
                    series.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
                }
            }
        }
        let unit = Some(&Unit::Seconds);
        let mut family =
            self.0.encode_descriptor(duration, duration_help, unit, MetricType::Histogram)?;
        for (kind, labels) in events.kinds().iter().enumerate() {
            let Distribution { sum, count, buckets } = events.distribution(kind);
            let mut series = family.encode_family(labels)?;
            series.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    /// Writes a metric that has one value for each kind. The label names the kind.
    pub fn by<M: EncodeMetric>(
        &mut self,
        label: &str,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        metrics: &[(&str, &M)],
    ) -> fmt::Result {
        let Some((_, first)) = metrics.first() else { return Ok(()) };
        let mut family = self.0.encode_descriptor(name, help, unit, first.metric_type())?;
        metrics
            .iter()
            .try_for_each(|(kind, metric)| metric.encode(family.encode_family(&[(label, *kind)])?))
    }
}

/// Converts a count to the type of a gauge. A count that is too large becomes the largest value.
pub fn count(number: impl TryInto<u32>) -> u32 {
    number.try_into().unwrap_or(u32::MAX)
}
