//! Usage reports that a person must look at, and those that are late.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::codes::{Code, Severity};
use super::observe::{QUERY_DEADLINE, observation};
use super::tracker::Observation;
use crate::clock;
use crate::ledger::{Ledger, LedgerError};

/// The time between two counts, which is also this many times as long as the last one took: many
/// reports may wait for a person.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
const COUNT_FACTOR: u32 = 200;
/// The age from which a due report is late.
const LATE: Duration = Duration::from_secs(86_400);

/// The counts of the books, as of the last time.
#[derive(Debug, Default)]
pub(super) struct ReportBooks {
    next: Option<Instant>,
    for_a_person: u64,
    late: u64,
}

impl ReportBooks {
    /// Counts at an interval, and adds what it finds. A failure is no new count.
    pub(super) async fn observe(
        &mut self,
        ledger: &Ledger,
        now: (Instant, Timestamp),
        found: &mut Vec<Observation>,
    ) {
        if self.next.is_none_or(|next| now.0 >= next) {
            let began = Instant::now();
            let counts = timeout(QUERY_DEADLINE, count(ledger, clock::before(now.1, LATE))).await;
            self.next = Some(now.0 + COUNT_INTERVAL.max(began.elapsed() * COUNT_FACTOR));
            if let Ok(Ok((for_a_person, late))) = counts {
                (self.for_a_person, self.late) = (for_a_person, late);
            }
        }
        if self.for_a_person > 0 {
            let what = match self.for_a_person {
                1 => "A usage report waits for a person.".to_owned(),
                count => format!("{count} usage reports wait for a person."),
            };
            found.push(observation(Code::ReportsForAPerson, Severity::Warning, what));
        }
        if self.late > 0 {
            let what = match self.late {
                1 => "A usage report has been due for more than a day.".to_owned(),
                count => format!("{count} usage reports have been due for more than a day."),
            };
            found.push(observation(Code::ReportsLate, Severity::Warning, what));
        }
    }
}

/// Returns the number of reports for a person, and of those that became due before this time.
async fn count(ledger: &Ledger, before: Timestamp) -> Result<(u64, u64), LedgerError> {
    let states = ledger.count_reports().await?;
    let for_a_person = states.iter().filter(|(state, _)| state.is_for_a_person());
    let for_a_person = for_a_person.map(|(_, count)| count).sum();
    Ok((for_a_person, ledger.count_late_reports(before).await?))
}
