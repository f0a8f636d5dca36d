//! A running step of one loan, and what follows it. The driver runs the steps.

use tokio::time::Instant;

use super::poll_queue::Level;
use crate::circulation::drive::DriverState;
use crate::circulation::{Circulation, LoanOutcome};
use crate::loan::LoanId;
use crate::telemetry::Task;

/// What to do after a step.
#[derive(Debug)]
pub(in crate::circulation) enum Next {
    /// The loan is decided, or this process can do nothing more.
    Done(LoanOutcome),
    /// A begin was sent. The loan is polled at once, or at the earliest at this time.
    Begun { not_before: Instant },
    /// Another process decides the loan. Its waiters read the ledger from now on.
    Released,
    /// The loan is still undecided. It is polled again, at the earliest at this time.
    PollAgain { not_before: Instant },
}

/// A running step. If it is dropped unfinished, its task died, and the loan is
/// scheduled again.
#[derive(Debug)]
pub(in crate::circulation) struct Work {
    circulation: Circulation,
    pub(in crate::circulation) loan: LoanId,
    pub(in crate::circulation) driver: DriverState,
    /// The level whose limit it counts towards; none for a begin.
    level: Option<Level>,
    is_finished: bool,
}

impl Work {
    pub(super) fn new(
        circulation: Circulation,
        loan: LoanId,
        driver: DriverState,
        level: Option<Level>,
    ) -> Work {
        Work { circulation, loan, driver, level, is_finished: false }
    }

    /// Ends the step and schedules the next.
    pub(in crate::circulation) fn finish(mut self, next: Next) {
        self.is_finished = true;
        let driver = std::mem::take(&mut self.driver);
        self.circulation.inner.schedule.finish(self.loan, driver, next);
    }

    /// Removes the entry of an intent that was not written.
    pub(in crate::circulation) fn withdraw(mut self) {
        self.is_finished = true;
        self.circulation.inner.schedule.remove(self.loan);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let schedule = &self.circulation.inner.schedule;
        if !self.is_finished {
            schedule.reschedule_after_panic(self.loan);
            if std::thread::panicking() {
                self.circulation.inner.metrics.task_restarted(Task::Driver);
                tracing::error!(
                    loan = %self.loan,
                    "the driver of a loan panicked; polling it again"
                );
            }
        }
        schedule.task_ended(self.level);
    }
}
