//! Compares one row of the listing with the ledger.

use jiff::Timestamp;

use super::Stopped;
use super::compare::{Comparison, Suspect};
use super::findings::truncate;
use super::report::Kind;
use crate::clock;
use crate::ledger::LedgerError;
use crate::lending::{RemoteLoan, Standing};
use crate::loan::{Loan, LoanState, Reference};

impl Comparison<'_> {
    /// Compares a row. A loan that needs a repair is only remembered.
    pub(super) async fn compare_row(&mut self, remote: RemoteLoan) -> Result<(), Stopped> {
        self.compared.listed += 1;
        let standing = self.hash(&format!("{:?}", remote.standing));
        match self.seen.insert(self.hash(&remote.lending_id), standing) {
            None => {}
            Some(before) if before == standing => return Ok(()),
            Some(_) => {
                let detail = "Bokbasen lists it twice, with different contents";
                self.report_only(Kind::ListedTwice, None, Some(&remote), detail);
                return Ok(());
            }
        }
        let ledger = &self.circulation.inner.ledger;
        let Some(reference) = remote.reference.clone() else {
            let detail = "Bokbasen lists it without a reference, which every loan has";
            let loan = ledger.by_lending_id(&remote.lending_id, None).await?;
            self.report_only(Kind::NoReference, loan.as_ref(), Some(&remote), detail);
            return Ok(());
        };
        match self.find(&reference).await? {
            Some(loan) => {
                self.compare_known(loan, remote);
                Ok(())
            }
            None => self.compare_unknown(&remote, reference.has_our_format()).await,
        }
    }

    /// Returns the loan with a reference that this program made. Bokbasen may list it with another
    /// library than it was begun for, so this searches all libraries after the compared one.
    async fn find(&self, reference: &Reference) -> Result<Option<Loan>, LedgerError> {
        if !reference.has_our_format() {
            return Ok(None);
        }
        let ledger = &self.circulation.inner.ledger;
        match ledger.by_reference(Some(self.library), reference).await? {
            Some(loan) => Ok(Some(loan)),
            None => ledger.by_reference(None, reference).await,
        }
    }

    /// Compares a row whose reference is not in the ledger.
    async fn compare_unknown(
        &mut self,
        remote: &RemoteLoan,
        has_our_format: bool,
    ) -> Result<(), Stopped> {
        let same_id = self.circulation.inner.ledger.by_lending_id(&remote.lending_id, None).await?;
        if let Some(loan) = same_id.filter(|loan| loan.state.is_live()) {
            let detail = "Bokbasen lists it under another reference than its begin had";
            self.report_only(Kind::RowDiffers, Some(&loan), Some(remote), detail);
        } else if remote.library.is_some_and(|library| library != self.library) {
            let detail = "Bokbasen lists it with this library, but it belongs to another";
            self.report_only(Kind::RowDiffers, None, Some(remote), detail);
        } else if !has_our_format {
            self.compared.foreign += 1;
        } else if is_live(&remote.standing) || matches!(remote.standing, Standing::Unrecognised(_))
        {
            let detail = "its reference is from this program but not in the ledger: it belongs to \
                          another ledger, or to one that was lost";
            self.report_only(Kind::UnknownHere, None, Some(remote), detail);
        }
        Ok(())
    }

    /// Compares a row of a loan that is in the ledger.
    fn compare_known(&mut self, loan: Loan, remote: RemoteLoan) {
        if loan.key.library != self.library || is_of_another(&loan, &remote) {
            let detail = "Bokbasen lists it with another library or title than it was begun for";
            return self.report_only(Kind::RowDiffers, Some(&loan), Some(&remote), detail);
        }
        self.latest_listed = self.latest_listed.max(Some(loan.begun));
        let same_id = loan.lending_id.as_ref() == Some(&remote.lending_id);
        if same_id
            && loan.state == LoanState::Accepted
            && matches!(remote.standing, Standing::Accepted(_))
        {
            self.agreed.insert(self.hash(&remote.lending_id));
        }
        let soon = clock::after(self.now, self.circulation.inner.settings.settle * 2);
        let (is_future, is_recent) =
            (|at: Timestamp| at > soon, |at: Timestamp| at > self.settled && at <= soon);
        if loan.changed > self.settled || remote.begin.is_some_and(is_recent) {
            self.compared.too_recent += 1;
            return;
        }
        if remote.begin.is_some_and(is_future) {
            let detail = "Bokbasen lists it with a begin in the future";
            self.report_only(Kind::RowDiffers, Some(&loan), Some(&remote), detail);
        }
        if let Standing::Unrecognised(status) = &remote.standing {
            let detail = format!(
                "Bokbasen lists it with the status {}, which this program does not know",
                truncate(status)
            );
            return self.report_only(Kind::UnknownStatus, Some(&loan), Some(&remote), &detail);
        }
        match loan.state {
            LoanState::Ended | LoanState::Refused if is_live(&remote.standing) => {
                self.add_extra(Kind::LiveThere, loan, remote);
            }
            LoanState::Accepted if same_id => self.compare_accepted(loan, &remote),
            LoanState::Accepted if is_live(&remote.standing) => {
                self.add_extra(Kind::TwiceThere, loan, remote)
            }
            // Undecided, or ended on both sides.
            _ => {}
        }
    }

    /// Compares a loan that is accepted here and listed under the id in the ledger.
    fn compare_accepted(&mut self, loan: Loan, remote: &RemoteLoan) {
        let due = loan.terms.as_ref().map(|terms| terms.due);
        let listed_as = match &remote.standing {
            Standing::Accepted(terms) if Some(terms.due) != due => {
                let here = due.map_or_else(|| "never".to_owned(), |due| due.to_string());
                let detail = format!("it is due {here} here and {} there", terms.due);
                return self.report_only(Kind::DueDiffers, Some(&loan), Some(remote), &detail);
            }
            Standing::Pending { .. } => {
                let detail = "it is accepted here, and Bokbasen lists it as pending";
                return self.report_only(Kind::RowDiffers, Some(&loan), Some(remote), detail);
            }
            Standing::Accepted(_) | Standing::Unrecognised(_) => return,
            Standing::Ended(reason) => reason.to_string(),
            Standing::Refused(refusal) => format!("refused ({})", truncate(&refusal.code)),
        };
        self.add_suspect(Suspect { loan, listed_as: Some(listed_as) });
    }
}

/// Returns whether Bokbasen has a loan under another library or title than it was begun for.
pub(super) fn is_of_another(loan: &Loan, remote: &RemoteLoan) -> bool {
    remote.library.is_some_and(|library| library != loan.key.library)
        || remote.isbn.is_some_and(|isbn| isbn != loan.key.isbn)
}

/// Returns whether the loan is live at Bokbasen, decided or not.
pub(super) fn is_live(standing: &Standing) -> bool {
    matches!(standing, Standing::Pending { .. } | Standing::Accepted(_))
}
