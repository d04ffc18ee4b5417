//! The metrics of the process, with the names that Prometheus recommends
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).

use std::fmt;

use procfs::{
    WithCurrentSystemInfo, boot_time_secs,
    process::{LimitValue, Process},
    ticks_per_second,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// Writes the metrics of this process. Values that the system does not give are left out.
#[derive(Debug)]
pub struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(process) = Process::myself() else { return Ok(()) };
        let mut write = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn Encode| {
            metric.encode_in(&mut encoder, name, help, unit)
        };
        let per_second = u32::try_from(ticks_per_second()).unwrap_or(100);
        // Ticks are exact up to 2^53.
        #[allow(clippy::cast_precision_loss)]
        let seconds = |ticks: u64| ticks as f64 / f64::from(per_second);
        if let Ok(stat) = process.stat() {
            let used = ConstCounter::new(seconds(stat.utime + stat.stime));
            let help = "Processor time that the process has used.";
            write("process_cpu", help, Some(&Unit::Seconds), &used)?;
            let resident = ConstGauge::new(stat.rss_bytes().get());
            let help = "Memory of the process that is resident.";
            write("process_resident_memory", help, Some(&Unit::Bytes), &resident)?;
            let virtual_memory = ConstGauge::new(stat.vsize);
            let help = "Virtual memory of the process.";
            write("process_virtual_memory", help, Some(&Unit::Bytes), &virtual_memory)?;
            let threads = ConstGauge::new(stat.num_threads);
            write("process_threads", "Threads of the process.", None, &threads)?;
            if let Ok(boot) = boot_time_secs() {
                let ticks = stat.starttime / u64::from(per_second);
                let help = "Start of the process, in seconds since 1970.";
                let started = ConstGauge::new(boot + ticks);
                write("process_start_time", help, Some(&Unit::Seconds), &started)?;
            }
        }
        if let Ok(open) = process.fd_count() {
            let open = ConstGauge::new(u64::try_from(open).unwrap_or(u64::MAX));
            write("process_open_fds", "Open file descriptors.", None, &open)?;
        }
        if let Ok(limits) = process.limits()
            && let LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            let help = "The most file descriptors that may be open.";
            write("process_max_fds", help, None, &ConstGauge::new(most))?;
        }
        Ok(())
    }
}

/// A metric of any type.
trait Encode {
    fn encode_in(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> fmt::Result;
}

impl<M: EncodeMetric> Encode for M {
    fn encode_in(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> fmt::Result {
        self.encode(encoder.encode_descriptor(name, help, unit, self.metric_type())?)
    }
}
