//! Decides which loans end here because Bokbasen does not have them, and ends them.
//!
//! `compare` calls this module once a library's listing is complete. A loan ends here only if
//! 1. Bokbasen confirms by id what its listing says;
//! 2. the suspects, together with the loans that balances ended within a night, are a small share
//!    of the library's loans, and of all loans;
//! 3. for an absent loan: the listing has other loans of the library, or one begun later, and an
//!    earlier run, at least `lending.settle` ago, found it absent too.
//!
//! Any other suspect is reported with the rule that it fails.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::Stopped;
use super::compare::{Comparison, Suspect};
use super::confirm::{Confirmed, confirm};
use super::report::{Done, Kind};
use crate::circulation::Closed;
use crate::clock;
use crate::ledger::{Cause, Doubts, LedgerError};
use crate::loan::{EndReason, Event, Loan, LoanId};

/// Balances may end one loan in this many within a night, and in a small library at least one.
const SHARE_DIVISOR: usize = 20;
/// One night. It is shorter than a day, so that each nightly run has its own share.
const NIGHT: SignedDuration = SignedDuration::from_hours(20);
/// Maximum number of suspects that are queried by id if none may end.
const MAX_SAMPLED: usize = 20;

/// Limits for all suspects of a library.
struct Limits {
    /// Why none of them may end in this run.
    forbidden: Option<String>,
    /// When each loan was first found absent.
    doubts: HashMap<LoanId, Timestamp>,
}

impl Comparison<'_> {
    /// Ends or reports each suspect.
    pub(super) async fn repair(&mut self) -> Result<(), Stopped> {
        let suspects = std::mem::take(&mut self.suspects);
        let limits = self.limits(suspects.is_empty()).await?;
        let max_queried = if limits.forbidden.is_some() { MAX_SAMPLED } else { usize::MAX };
        let unexamined = self.suspected.saturating_sub(suspects.len());
        let mut absent = Vec::new();
        for (number, suspect) in suspects.into_iter().enumerate() {
            self.check_stop()?;
            if number < max_queried {
                self.examine(suspect, &limits, &mut absent).await?;
            } else {
                self.report_unqueried(&suspect, &limits);
            }
        }
        if unexamined > 0 {
            let detail =
                format!("{unexamined} more loans of this library are accepted here and not there");
            self.report_only(Kind::UnknownThere, None, None, &detail);
        }
        let doubts = Doubts { library: self.library, absent, run: self.now };
        Ok(self.circulation.inner.ledger.replace_doubts(doubts).await?)
    }

    /// Clears the absences found by earlier runs: this run may have seen those loans, but did not
    /// complete.
    pub(super) async fn clear_doubts(&mut self) {
        let doubts = Doubts { library: self.library, absent: Vec::new(), run: self.now };
        if let Err(error) = self.circulation.inner.ledger.replace_doubts(doubts).await {
            tracing::warn!(%error, library = %self.library, "cannot clear the doubts of a balance");
        }
    }

    async fn limits(&self, nothing_to_do: bool) -> Result<Limits, Stopped> {
        let mut limits = Limits { forbidden: None, doubts: HashMap::new() };
        if nothing_to_do {
            return Ok(limits);
        }
        let recently = self.ended_recently(true).await?;
        let all = self.compared.accepted_here + recently;
        if self.suspected + recently > max_ends(all) {
            limits.forbidden = Some(format!(
                "{} of {all} loans of the library are suspects and {recently} were ended within a \
                 night, more than a balance may end; check lending.url and whether the listing is \
                 complete",
                self.suspected
            ));
        }
        limits.doubts = self.circulation.inner.ledger.doubts(self.library, self.now).await?;
        Ok(limits)
    }

    /// Returns how many loans balances have ended within a night, of this library or of all.
    async fn ended_recently(&self, of_library: bool) -> Result<usize, LedgerError> {
        let after = self.now.checked_sub(NIGHT).unwrap_or(Timestamp::MIN);
        let library = of_library.then_some(self.library);
        self.circulation.inner.ledger.ended_by_balance(library, after).await
    }

    /// Queries a suspect by id, and ends it if every rule allows it.
    async fn examine(
        &mut self,
        suspect: Suspect,
        limits: &Limits,
        absent: &mut Vec<LoanId>,
    ) -> Result<(), Stopped> {
        let Some(lending_id) = suspect.loan.lending_id.clone() else { return Ok(()) };
        let by_id = self.circulation.inner.lending.loan(&lending_id).await?;
        let loan = &suspect.loan;
        let (kind, reason, detail) = match confirm(&suspect, by_id) {
            Confirmed::Gone(kind, reason, detail) => (kind, reason, detail),
            Confirmed::Differs(kind, detail) => {
                self.report_only(kind, Some(loan), None, &detail);
                return Ok(());
            }
        };
        let mut forbidden = limits.forbidden.clone();
        if suspect.listed_as.is_none() && forbidden.is_none() {
            forbidden = self.listing_forbids(loan).map(str::to_owned);
            // Only a run whose listing is evidence counts as one that found the loan absent.
            if forbidden.is_none() {
                absent.push(loan.id);
                forbidden = self.too_early(loan, limits);
            }
        }
        if forbidden.is_none() {
            forbidden = self.over_total_limit().await?;
        }
        match forbidden {
            None => self.end_here(kind, loan, reason, &detail).await,
            Some(why) => {
                self.report_only(kind, Some(loan), None, &format!("{detail}; not ended: {why}"));
                Ok(())
            }
        }
    }

    /// Returns why the listing is no evidence of this loan's absence.
    fn listing_forbids(&self, loan: &Loan) -> Option<&'static str> {
        let shows_later = self.latest_listed.is_some_and(|latest| latest > loan.begun);
        match () {
            () if !self.all_named => Some("a row of the listing has no id and may be this loan"),
            () if self.agreed.is_empty() && !shows_later => {
                Some("the listing shows neither another live loan of the library nor a later one")
            }
            () => None,
        }
    }

    /// Returns why an absent loan may not end yet.
    fn too_early(&self, loan: &Loan, limits: &Limits) -> Option<String> {
        let settle = self.circulation.inner.settings.settle;
        match limits.doubts.get(&loan.id) {
            Some(since) if clock::after(*since, settle) <= self.now => None,
            Some(since) => {
                Some(format!("found absent since {since}; a run {settle:?} after that may end it"))
            }
            None => Some(format!(
                "found absent for the first time; a run at least {settle:?} from now may end it"
            )),
        }
    }

    /// Returns why no further loan of any library may end in this night.
    async fn over_total_limit(&self) -> Result<Option<String>, LedgerError> {
        let recently = self.ended_recently(false).await?;
        let all = self.circulation.inner.ledger.count_accepted().await? + recently;
        let why = || {
            format!("balances ended {recently} of {all} loans within a night, which is the limit")
        };
        Ok((recently >= max_ends(all)).then(why))
    }

    /// Reports a suspect that is not queried by id, because there are too many.
    fn report_unqueried(&mut self, suspect: &Suspect, limits: &Limits) {
        let why = limits.forbidden.as_deref().unwrap_or_default();
        let (kind, listing) = match &suspect.listed_as {
            Some(listed_as) => (Kind::EndedThere, format!("Bokbasen lists it as {listed_as}")),
            None => (Kind::UnknownThere, "Bokbasen does not list it".to_owned()),
        };
        let detail = format!("{listing}; not ended, and not queried by id: {why}");
        self.report_only(kind, Some(&suspect.loan), None, &detail);
    }

    /// Ends a loan in the ledger, so that it opens nothing.
    async fn end_here(
        &mut self,
        kind: Kind,
        loan: &Loan,
        reason: EndReason,
        detail: &str,
    ) -> Result<(), Stopped> {
        let cause = Cause { by: "balance", detail: Some(detail.to_owned()) };
        let circulation = self.circulation;
        match circulation.inner.ledger.apply(loan.id, Event::EndedThere { reason }, cause).await {
            Ok(ended) => {
                circulation.announce(Closed { loan: ended.id, key: ended.key, at: ended.changed });
                self.add_finding(kind, Done::EndedHere, Some(loan), None, detail);
                Ok(())
            }
            // It has ended since.
            Err(LedgerError::Illegal(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns how many of `loans` balances may end within a night.
fn max_ends(loans: usize) -> usize {
    (loans / SHARE_DIVISOR).max(1)
}

#[cfg(test)]
mod tests {
    use super::max_ends;

    #[test]
    fn max_ends_is_a_twentieth_and_at_least_one() {
        for (loans, limit) in [(0, 1), (8, 1), (39, 1), (40, 2), (1000, 50)] {
            assert_eq!(max_ends(loans), limit, "{loans}");
        }
    }
}
