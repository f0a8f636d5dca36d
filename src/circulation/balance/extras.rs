//! Ends loans at Bokbasen that are live there and should not be.
//!
//! Called once the listing is complete. Nothing in the ledger changes here.

use jiff::Timestamp;

use super::Stopped;
use super::compare::{Comparison, MAX_EXAMINED};
use super::report::{Done, Kind};
use super::rows::is_live;
use crate::lending::{EndAck, RemoteLoan, Standing};
use crate::loan::{EndReason, Loan};
use crate::telemetry::LoanEvent;

impl Comparison<'_> {
    /// Remembers a loan that is live at Bokbasen and should not be.
    pub(super) fn add_extra(&mut self, kind: Kind, loan: Loan, remote: RemoteLoan) {
        if self.extras.len() < MAX_EXAMINED {
            self.extras.push((kind, loan, remote));
        } else {
            let detail = "not examined: too many loans are live there that should not; a later \
                          balance examines it";
            self.report_only(kind, Some(&loan), Some(&remote), detail);
        }
    }

    /// Ends loans that are live at Bokbasen and cannot be used any more. If several are live under
    /// one reference, the one accepted in the ledger stays, provided that it is listed.
    pub(super) async fn end_extras(&mut self) -> Result<(), Stopped> {
        for (kind, loan, extra) in std::mem::take(&mut self.extras) {
            self.check_stop()?;
            if kind == Kind::LiveThere {
                let ended = loan.ended.unwrap_or(loan.changed);
                let reason = loan.end_reason.unwrap_or(EndReason::Returned);
                let detail = format!("it is {} here since {ended}, and live there", loan.state);
                self.end_there(kind, &loan, &extra, ended, reason, &detail).await?;
            } else if loan
                .lending_id
                .as_ref()
                .is_some_and(|id| self.agreed.contains(&self.hash(id)))
            {
                self.circulation.inner.metrics.loan(LoanEvent::Duplicate);
                let detail = "another loan under this reference is in use";
                self.end_there(kind, &loan, &extra, self.now, EndReason::Cancelled, detail).await?;
            } else {
                self.suspects.retain(|suspect| suspect.loan.id != loan.id);
                let detail = "Bokbasen lists it as live under another id than it accepted it with";
                self.report_only(Kind::RowDiffers, Some(&loan), Some(&extra), detail);
            }
        }
        Ok(())
    }

    /// Ends a loan at Bokbasen, once Bokbasen confirms by id that it is live under our reference.
    /// It is cancelled if no byte can have been sent under it and cancelling is still allowed, or
    /// else returned.
    pub(super) async fn end_there(
        &mut self,
        kind: Kind,
        loan: &Loan,
        remote: &RemoteLoan,
        ended: Timestamp,
        reason: EndReason,
        detail: &str,
    ) -> Result<(), Stopped> {
        let inner = &self.circulation.inner;
        let other = inner.ledger.by_lending_id(&remote.lending_id, Some(loan.id)).await?;
        let confirmed = inner.lending.loan(&remote.lending_id).await?.filter(|by_id| {
            by_id.lending_id == remote.lending_id
                && by_id.reference.as_ref() == Some(&loan.reference)
                && is_live(&by_id.standing)
        });
        let Some(confirmed) = confirmed.filter(|_| other.is_none()) else {
            let detail =
                format!("{detail}; not ended there, because its id belongs to another loan");
            self.report_only(kind, Some(loan), Some(remote), &detail);
            return Ok(());
        };
        let never_used = loan.accepted.is_none() || kind == Kind::TwiceThere;
        let ack = if never_used || matches!(confirmed.standing, Standing::Pending { .. }) {
            let why = "it has ended in the lender's ledger";
            inner.lending.cancel_or_return(&remote.lending_id, ended, reason, why).await?
        } else {
            inner.lending.return_loan(&remote.lending_id, ended, reason).await?
        };
        let done = if ack == EndAck::Done { Done::EndedThere } else { Done::Reported };
        self.add_finding(kind, done, Some(loan), Some(remote), detail);
        Ok(())
    }
}
