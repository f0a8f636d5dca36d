//! Exports what the watch finds as metrics, so that alerts need not derive it again.

use std::time::Duration;

use super::codes::{Code, Level, Severity};
use super::status::levels_of;
use super::tracker::Problem;
use crate::telemetry::{Metrics, ProblemSeverity, Service, ServiceStatus};

/// Exports the open problems of this gate, and how well it serves readers with them. A code
/// without a problem has the value zero.
pub(super) fn problems(metrics: &Metrics, open: &[(Code, Problem)]) {
    for code in Code::ALL {
        for (severity, label) in [
            (Severity::Warning, ProblemSeverity::Warning),
            (Severity::Critical, ProblemSeverity::Critical),
        ] {
            let is_one =
                |(of, problem): &&(Code, Problem)| of == code && problem.severity == severity;
            metrics.problems(code.name(), label, open.iter().filter(is_one).count());
        }
    }
    for (service, level) in Service::ALL.into_iter().zip(levels_of(open)) {
        let status = match level {
            Level::Ok => ServiceStatus::Ok,
            Level::Degraded => ServiceStatus::Degraded,
            Level::Down => ServiceStatus::Down,
        };
        metrics.service_status(service, status);
    }
}

/// Exports the age of the oldest end, and the free and all bytes of the ledger's disk.
pub(super) fn observed(metrics: &Metrics, oldest_end: Duration, disk: Option<(u64, u64)>) {
    metrics.oldest_end(oldest_end);
    if let Some((free, size)) = disk {
        metrics.ledger_disk(free, size);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn open(code: Code, subject: &str, severity: Severity) -> (Code, Problem) {
        let since = Timestamp::UNIX_EPOCH;
        (code, Problem::new(code, Some(subject.to_owned()), severity, "", since, String::new()))
    }

    #[test]
    fn problems_are_counted_by_code_and_end_as_zero() {
        let metrics = Metrics::new().unwrap();
        let line = |code: &str, severity: &str, count: u32| {
            format!("loangate_problems{{code=\"{code}\",severity=\"{severity}\"}} {count}\n")
        };
        let origins = ["a", "b"].map(|name| open(Code::OriginFailing, name, Severity::Critical));
        problems(&metrics, &origins);
        observed(&metrics, Duration::from_secs(90), Some((5, 10)));
        let text = metrics.render();
        assert!(text.contains(&line("origin-failing", "critical", 2)), "{text}");
        assert!(text.contains(&line("origin-failing", "warning", 0)), "{text}");
        assert!(text.contains("loangate_service_status{service=\"reading\"} 1\n"), "{text}");
        assert!(text.contains("loangate_ends_oldest_age_seconds 90\n"), "{text}");
        assert!(text.contains("loangate_ledger_disk_free_bytes 5\n"), "{text}");
        assert!(!text.contains("\"a\""), "no subject is a label: {text}");
        problems(&metrics, &[open(Code::LedgerMoved, "", Severity::Critical)]);
        let text = metrics.render();
        assert!(text.contains(&line("origin-failing", "critical", 0)), "{text}");
        assert!(text.contains("loangate_service_status{service=\"returning\"} 2\n"), "{text}");
    }
}
