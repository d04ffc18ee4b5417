//! Converts metrics to the messages of OTLP. Each metric keeps the name that it has on the page of
//! metrics.

use std::ops::Range;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
        metric::Data, number_data_point,
    },
};
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as prometheus;

use crate::domain::time::Timestamp;

/// Converts metrics with their values. `period` is the time from the start of the counters until
/// the values were read.
pub fn of_families(
    families: Vec<prometheus::MetricFamily>,
    period: Range<Timestamp>,
) -> Vec<Metric> {
    let period = nanos(period.start)..nanos(period.end);
    // A metric may have no series at the moment.
    let families = families.into_iter().filter(|family| !family.metric.is_empty());
    families.map(|family| metric(family, &period)).collect()
}

/// Returns an instant in nanoseconds since 1970.
fn nanos(instant: Timestamp) -> u64 {
    u64::try_from(instant.micros()).unwrap_or(0).saturating_mul(1_000)
}

fn metric(family: prometheus::MetricFamily, period: &Range<u64>) -> Metric {
    let cumulative = AggregationTemporality::Cumulative.into();
    let kind = family.r#type();
    let series = family.metric.into_iter();
    let data = match kind {
        prometheus::MetricType::Counter => Data::Sum(Sum {
            data_points: series.map(|series| number(series, period)).collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        prometheus::MetricType::Histogram => Data::Histogram(Histogram {
            data_points: series.map(|series| distribution(series, period)).collect(),
            aggregation_temporality: cumulative,
        }),
        // An `info` is a gauge, too.
        _ => Data::Gauge(Gauge {
            data_points: series.map(|series| number(series, period)).collect(),
        }),
    };
    Metric {
        name: family.name,
        description: family.help,
        unit: unit(&family.unit).to_owned(),
        data: Some(data),
        ..Default::default()
    }
}

/// Returns the code of a unit (UCUM).
fn unit(name: &str) -> &str {
    match name {
        "seconds" => "s",
        "bytes" => "By",
        _ => "",
    }
}

/// Returns the value of a counter or of a gauge.
fn number(series: prometheus::Metric, period: &Range<u64>) -> NumberDataPoint {
    let counter = series.counter.map(|counter| counter.value);
    let value = counter.or(series.gauge.map(|gauge| gauge.value));
    NumberDataPoint {
        attributes: attributes(series.label),
        // The value of a gauge belongs to one moment.
        start_time_unix_nano: if counter.is_some() { period.start } else { 0 },
        time_unix_nano: period.end,
        value: value.map(number_data_point::Value::AsDouble),
        ..Default::default()
    }
}

fn distribution(series: prometheus::Metric, period: &Range<u64>) -> HistogramDataPoint {
    let histogram = series.histogram.unwrap_or_default();
    // The last bucket, which has all other values, has no bound in OTLP.
    let bounded = || histogram.bucket.iter().filter(|bucket| bucket.upper_bound.is_finite());
    let below = bounded().map(|bucket| bucket.cumulative_count).chain([histogram.sample_count]);
    let bucket_counts = below.scan(0_u64, |before, count| {
        let of_bucket = count.saturating_sub(*before);
        *before = count;
        Some(of_bucket)
    });
    HistogramDataPoint {
        attributes: attributes(series.label),
        start_time_unix_nano: period.start,
        time_unix_nano: period.end,
        count: histogram.sample_count,
        sum: Some(histogram.sample_sum),
        bucket_counts: bucket_counts.collect(),
        explicit_bounds: bounded().map(|bucket| bucket.upper_bound).collect(),
        ..Default::default()
    }
}

fn attributes(labels: Vec<prometheus::LabelPair>) -> Vec<KeyValue> {
    let attribute = |label: prometheus::LabelPair| KeyValue {
        key: label.name,
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(label.value)) }),
        ..Default::default()
    };
    labels.into_iter().map(attribute).collect()
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::prometheus_protobuf::encode,
        metrics::{counter::Counter, family::Family, gauge::Gauge, histogram, info::Info},
        registry::{Registry, Unit},
    };

    use super::*;

    /// Converts the metrics of a registry.
    fn converted(registry: &Registry) -> Vec<Metric> {
        let period = Timestamp::from_micros(1)..Timestamp::from_micros(2);
        of_families(encode(registry).unwrap(), period)
    }

    fn label(attributes: &[KeyValue]) -> (&str, &str) {
        let [KeyValue { key, value: Some(value), .. }] = attributes else {
            panic!("{attributes:?}")
        };
        let Some(any_value::Value::StringValue(value)) = &value.value else { panic!("{value:?}") };
        (key, value)
    }

    #[test]
    fn a_counter_is_a_cumulative_sum_since_the_start_and_a_gauge_the_value_of_a_moment() {
        let mut registry = Registry::with_prefix("p");
        let calls = Family::<[(&str, &str); 1], Counter>::default();
        calls.get_or_create(&[("kind", "x")]).inc_by(3);
        registry.register("calls", "Calls", calls);
        let size = Gauge::<i64>::default();
        size.set(-7);
        registry.register_with_unit("size", "Size", Unit::Bytes, size);
        registry.register("build", "Version", Info::new([("version", "1")]));
        registry.register("none", "No series", Family::<[(&str, &str); 1], Counter>::default());

        let [calls, size, build] = &converted(&registry)[..] else { panic!("{registry:?}") };
        let Some(Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.aggregation_temporality(), AggregationTemporality::Cumulative);
        let point = &sum.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1_000, 2_000));
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(3.0)));
        assert_eq!((&*calls.name, label(&point.attributes)), ("p_calls_total", ("kind", "x")));

        let Some(Data::Gauge(gauge)) = &size.data else { panic!("{size:?}") };
        let point = &gauge.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (0, 2_000));
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(-7.0)));
        assert_eq!((&*size.name, &*size.unit, &*size.description), ("p_size_bytes", "By", "Size."));

        let Some(Data::Gauge(gauge)) = &build.data else { panic!("{build:?}") };
        let point = &gauge.data_points[0];
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(1.0)));
        assert_eq!((&*build.name, label(&point.attributes)), ("p_build_info", ("version", "1")));
    }

    #[test]
    fn the_buckets_of_a_histogram_are_not_cumulative_and_the_last_one_has_no_bound() {
        let mut registry = Registry::default();
        let wait = histogram::Histogram::new([0.5, 2.0]);
        [0.1, 0.5, 1.0, 3.0].into_iter().for_each(|seconds| wait.observe(seconds));
        registry.register_with_unit("wait", "Wait", Unit::Seconds, wait);

        let [wait] = &converted(&registry)[..] else { panic!("{registry:?}") };
        let Some(Data::Histogram(histogram)) = &wait.data else { panic!("{wait:?}") };
        assert_eq!(histogram.aggregation_temporality(), AggregationTemporality::Cumulative);
        let point = &histogram.data_points[0];
        assert_eq!((&*wait.name, &*wait.unit), ("wait_seconds", "s"));
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1_000, 2_000));
        assert_eq!((point.count, point.sum), (4, Some(4.6)));
        assert_eq!(
            (&*point.explicit_bounds, &*point.bucket_counts),
            (&[0.5, 2.0][..], &[2, 1, 1][..])
        );
    }
}
