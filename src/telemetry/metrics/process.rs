//! Metrics of the process, by the names that Prometheus' own clients use.

use std::fs;

use metrics::{SharedString, Unit};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::Metrics;
use super::family::{Definition, Family};
use super::label::{Label, LabelValues};

const BUILD: Family<Version> =
    Family::gauge("loangate_build_info", Unit::Count, "1, with the version of the program");
const START_TIME: Family<()> = Family::gauge(
    "process_start_time_seconds",
    Unit::Seconds,
    "When the process started, in seconds since 1970",
);
const CPU: Family<()> = Family::counter(
    "process_cpu_seconds_total",
    Unit::Seconds,
    "Processor time of the process, in whole seconds",
);
const RESIDENT: Family<()> =
    Family::gauge("process_resident_memory_bytes", Unit::Bytes, "Memory of the process in RAM");
const OPEN_DESCRIPTORS: Family<()> =
    Family::gauge("process_open_fds", Unit::Count, "Open file descriptors of the process");
const MAX_DESCRIPTORS: Family<()> =
    Family::gauge("process_max_fds", Unit::Count, "File descriptors that the process may open");

pub(super) const DEFINITIONS: [Definition; 6] = [
    BUILD.definition,
    START_TIME.definition,
    CPU.definition,
    RESIDENT.definition,
    OPEN_DESCRIPTORS.definition,
    MAX_DESCRIPTORS.definition,
];

/// The version of the program.
struct Version;

impl Label for Version {
    const KEY: &'static str = "version";

    fn values() -> LabelValues {
        LabelValues::Configured("the version of the program")
    }

    fn value(&self) -> SharedString {
        SharedString::const_str(env!("CARGO_PKG_VERSION"))
    }
}

impl Metrics {
    /// Records the version, and the start of the process.
    pub(super) fn process_started(&self) {
        self.set(&BUILD, Version, 1.0);
        // By the machine's clock, as Prometheus reads it, wherever a test moves the gate's.
        let now = clock_gettime(ClockId::Realtime).tv_sec;
        self.set(&START_TIME, (), now as f64);
    }

    /// Reads what the process uses. What the system does not tell stays as it was.
    pub(crate) fn read_process(&self) {
        let cpu = clock_gettime(ClockId::ProcessCPUTime).tv_sec;
        let registry = &self.inner.registry;
        registry.counter(&CPU, ()).absolute(u64::try_from(cpu).unwrap_or_default());
        if let Some(bytes) = resident_bytes() {
            self.set(&RESIDENT, (), bytes as f64);
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.set(&OPEN_DESCRIPTORS, (), open.count() as f64);
        }
        if let Some(max) = getrlimit(Resource::Nofile).current {
            self.set(&MAX_DESCRIPTORS, (), max as f64);
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::ProblemType;

    #[test]
    fn process_has_memory_descriptors_and_a_version() {
        let metrics = Metrics::new().unwrap();
        metrics.read_process();
        let text = metrics.render();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name}: {text}")).parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1_000_000.0);
        let open = value("process_open_fds");
        assert!(open >= 3.0 && open <= value("process_max_fds"));
        assert!(value("process_start_time_seconds") > 1_700_000_000.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(text.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"} 1")), "{text}");
    }

    #[test]
    fn counters_begin_at_zero_where_their_series_are_few() {
        let metrics = Metrics::new().unwrap();
        let text = metrics.render();
        assert!(text.contains("loangate_late_begins_total{finder=\"search\"} 0"), "{text}");
        assert!(text.contains("loangate_ledger_failures_total 0"), "{text}");
        let refused = ProblemType::LoanRefused.slug();
        assert!(!text.contains(refused), "requests have too many series: {text}");
    }
}
