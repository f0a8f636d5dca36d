//! Closes begins if the database lost writes, and learns that another gate has closed them.
//!
//! Only the keeper calls it, after each response of the database.

use super::super::closed_begins::REMEDY;
use super::super::members_table::{MemberTable, Renewal};
use super::Keeper;
use crate::telemetry::LogLimit;

impl<T: MemberTable> Keeper<T> {
    /// Closes the begins of all gates if the database lost writes. The next round tries again after
    /// a failure.
    pub(super) async fn close_begins(&mut self) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        if self.detector.has_lost() {
            self.standing.note_loss(self.detector.epoch());
        }
        if !self.detector.must_close() {
            return;
        }
        let (process, epoch) = (self.process.id, self.detector.closing_epoch());
        let closed = self.table.close_begins(process, epoch).await;
        if let Err(error) = closed
            && let Some(suppressed) = LIMIT.permit("close begins")
        {
            tracing::error!(
                %error,
                suppressed,
                "cannot close the begins of the other gates; retrying"
            );
        }
    }

    pub(super) fn note_begins(&self, renewal: Renewal) {
        static LIMIT: LogLimit = LogLimit::per_minute();
        let are_closed = renewal.begins_are_closed || self.detector.has_lost();
        self.standing.note_begins(are_closed, renewal.epoch);
        if are_closed && LIMIT.permit("begins closed").is_some() {
            tracing::error!(
                "the database of the ledger lacks steps that a gate has committed, so no gate \
                 begins a loan; {REMEDY}"
            );
        }
    }
}
