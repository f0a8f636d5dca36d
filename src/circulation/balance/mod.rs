//! Balanced books: the ledger beside Bokbasen's listing, each night and on demand.
//!
//! The task of the night and the admin listener call it. It is the net below everything else: what it finds should not
//! be there. A difference is repaired where a rule says what is right, after the one loan has been asked for once more:
//! what has ended here is ended there, what has ended there or is unknown there opens nothing here. Else it is only
//! reported. Two things keep it from doing harm by a mistake: what changed of late is left alone, and where very many
//! loans are unknown there at once, the listing is not believed.

mod report;

use std::collections::{HashMap, HashSet};

use jiff::{SignedDuration, Timestamp};

use super::carry::wait_until;
use super::{Circulation, Closed};
use crate::clock;
use crate::ledger::{Cause, Filter, LedgerError};
use crate::lending::{CallError, RemoteLoan, Standing, Told};
use crate::loan::{EndReason, Event, LibraryId, Loan, LoanState, Reference};

pub use report::{Compared, Done, Finding, Kind, Report};

/// How far back a balance looks at least: a loan lasts for weeks.
const LOOKS_BACK: SignedDuration = SignedDuration::from_hours(60 * 24);
/// The hour of the night, UTC, in which it runs by itself, at a minute that each process draws.
const HOUR: i64 = 2;
/// How many loans of the ledger are read in one go.
const PAGE: u32 = 500;
/// So many accepted loans that Bokbasen does not know are taken for loans that are gone; more of them, where they are
/// also more than one in twenty, for a listing that is not to be believed.
const BELIEVED: usize = 10;

/// Why there is no balance.
#[derive(Debug, thiserror::Error)]
pub enum BalanceError {
    /// One is under way.
    #[error("a balance is under way already; wait for it")]
    UnderWay,
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Circulation {
    /// Compares the ledger with Bokbasen's listing, of every library, and repairs what a rule allows.
    ///
    /// # Errors
    /// [`BalanceError`]. Where Bokbasen cannot be asked about a library, the report says so.
    pub async fn balance(&self, since: Option<Timestamp>) -> Result<Report, BalanceError> {
        let Ok(_alone) = self.inner.balancing.try_lock() else {
            return Err(BalanceError::UnderWay);
        };
        let now = self.inner.clock.now();
        let mut report = Report::begun(now);
        for library in self.inner.ledger.libraries().await? {
            let since = match since {
                Some(since) => since,
                None => self.since(library, now).await?,
            };
            let mut balance = Balance::new(self, library, since, now, &mut report);
            let failed = balance.compare().await.err();
            let mut compared = balance.compared;
            compared.failed = failed.map(|error| error.to_string());
            report.compared(compared);
        }
        self.inner.metrics.balanced(now, report.balanced);
        Ok(report)
    }

    /// The oldest loan that lives must be within what is compared.
    async fn since(&self, library: LibraryId, now: Timestamp) -> Result<Timestamp, LedgerError> {
        let back = now.checked_sub(LOOKS_BACK).unwrap_or(now);
        let oldest = self.inner.ledger.oldest_live(library).await?;
        let day_before = |at: Timestamp| at.checked_sub(SignedDuration::from_hours(24)).unwrap_or(at);
        Ok(oldest.map_or(back, |oldest| back.min(day_before(oldest))))
    }
}

/// Balances each night, until the process stops.
pub(super) async fn each_night(circulation: Circulation) {
    let minute = fastrand::i64(0..60);
    loop {
        let next = next_night(circulation.inner.clock.now(), minute);
        while circulation.inner.clock.now() < next {
            if !circulation.pause(wait_until(&circulation, next, super::LOOK_AT_CLOCK)).await {
                return;
            }
        }
        match circulation.balance(None).await {
            Ok(report) if report.balanced => {
                tracing::info!(repaired = report.findings.len(), "the books balance")
            }
            Ok(report) => tracing::error!(
                findings = report.findings.len() + report.more,
                "the books do not balance; `loangate loans balance` tells what differs"
            ),
            Err(error) => tracing::error!(%error, "the books could not be balanced"),
        }
    }
}

/// The next time of this minute of the hour of the night. A day of UTC has as many seconds as any other.
fn next_night(now: Timestamp, minute: i64) -> Timestamp {
    const DAY: i64 = 86_400;
    let of_the_day = HOUR * 3600 + minute * 60;
    let since = (now.as_second() - of_the_day).rem_euclid(DAY);
    Timestamp::from_second(now.as_second() + DAY - since).unwrap_or(Timestamp::MAX)
}

/// Why a library could not be compared to the end.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// One library's balance.
struct Balance<'a> {
    circulation: &'a Circulation,
    library: LibraryId,
    since: Timestamp,
    /// What changed later is left alone.
    settled: Timestamp,
    compared: Compared,
    report: &'a mut Report,
    /// Bokbasen's ids that were listed.
    seen: HashSet<String>,
    /// The loans that live there under each of our references.
    live: HashMap<Reference, Vec<RemoteLoan>>,
}

impl<'a> Balance<'a> {
    fn new(
        circulation: &'a Circulation,
        library: LibraryId,
        since: Timestamp,
        now: Timestamp,
        report: &'a mut Report,
    ) -> Balance<'a> {
        let compared = Compared {
            library: library.to_string(),
            since,
            there: 0,
            foreign: 0,
            young: 0,
            accepted_here: 0,
            failed: None,
        };
        // A begin shows in the listing within `settle`; twice that leaves room for both clocks.
        let settled = clock::before(now, circulation.inner.settings.settle * 2);
        let (seen, live) = (HashSet::new(), HashMap::new());
        Balance { circulation, library, since, settled, compared, report, seen, live }
    }

    async fn compare(&mut self) -> Result<(), Stopped> {
        let lending = &self.circulation.inner.lending;
        let mut listing = lending.listing(self.library, self.since);
        while let Some(page) = listing.next().await? {
            for remote in page {
                self.listed(remote).await?;
            }
        }
        self.twice_there().await?;
        self.unknown_there().await
    }

    /// One loan of the listing.
    async fn listed(&mut self, remote: RemoteLoan) -> Result<(), Stopped> {
        self.compared.there += 1;
        self.seen.insert(remote.lending_id.clone());
        let Some(reference) = remote.reference.clone().filter(Reference::looks_ours) else {
            self.compared.foreign += 1;
            return Ok(());
        };
        let is_live = matches!(remote.standing, Standing::Pending { .. } | Standing::Accepted(_));
        let Some(loan) = self.circulation.inner.ledger.by_reference(&reference).await? else {
            if is_live {
                let detail = "it bears a reference of this program, and the ledger does not have it: another ledger's, or \
                              one of a ledger that was lost";
                self.note(Kind::UnknownHere, Done::Reported, None, Some(&remote), detail.to_owned());
            }
            return Ok(());
        };
        if loan.changed > self.settled || remote.begin.is_some_and(|begin| begin > self.settled) {
            self.compared.young += 1;
            return Ok(());
        }
        if is_live {
            self.live.entry(reference).or_default().push(remote.clone());
        }
        match (loan.state, &remote.standing) {
            (LoanState::Ended | LoanState::Refused, Standing::Accepted(_) | Standing::Pending { .. }) => {
                self.live_there(&loan, &remote).await?;
            }
            (LoanState::Accepted, _) if loan.lending_id.as_ref() == Some(&remote.lending_id) => {
                self.both_have(&loan, &remote).await?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Ended here and live there: nobody can use it any more.
    async fn live_there(&mut self, loan: &Loan, remote: &RemoteLoan) -> Result<(), Stopped> {
        let ended = loan.ended.unwrap_or(loan.changed);
        let reason = loan.end_reason.unwrap_or(EndReason::Returned);
        let detail = format!("it is {} here since {ended}, and lives there", loan.state);
        self.end_there(Kind::LiveThere, loan, remote, ended, reason, detail).await
    }

    /// Accepted here, and there something else.
    async fn both_have(&mut self, loan: &Loan, remote: &RemoteLoan) -> Result<(), Stopped> {
        let due = loan.terms.as_ref().map(|terms| terms.due);
        match &remote.standing {
            Standing::Accepted(terms) if Some(terms.due) != due => {
                let here = due.map_or_else(|| "never".to_owned(), |due| due.to_string());
                let detail = format!("it is due {here} here and {} there", terms.due);
                self.note(Kind::DueDiffers, Done::Reported, Some(loan), Some(remote), detail);
            }
            Standing::Ended(reason) => {
                self.end_here(Kind::EndedThere, loan, *reason, format!("Bokbasen has it as {reason}"))
                    .await?;
            }
            Standing::Refused(refusal) => {
                let detail = format!("Bokbasen has it as refused: {}", refusal.code);
                self.end_here(Kind::EndedThere, loan, EndReason::Rejected, detail).await?;
            }
            Standing::Accepted(_) | Standing::Pending { .. } | Standing::Unrecognised(_) => {}
        }
        Ok(())
    }

    /// Of several that live under one reference, the one that the ledger has as accepted stays.
    async fn twice_there(&mut self) -> Result<(), Stopped> {
        for (reference, mut several) in std::mem::take(&mut self.live) {
            if several.len() < 2 {
                continue;
            }
            let loan = self.circulation.inner.ledger.by_reference(&reference).await?;
            let Some(loan) = loan.filter(|loan| loan.state == LoanState::Accepted) else {
                continue; // on its way, and settled by whoever carries it; or over, and ended there above
            };
            several.retain(|remote| loan.lending_id.as_ref() != Some(&remote.lending_id));
            let now = self.circulation.inner.clock.now();
            for extra in several {
                self.circulation.inner.metrics.loan("duplicate");
                let detail = "another loan of this reference is the one that is used".to_owned();
                self.end_there(Kind::TwiceThere, &loan, &extra, now, EndReason::Cancelled, detail).await?;
            }
        }
        Ok(())
    }

    /// Accepted here, and not in the listing.
    async fn unknown_there(&mut self) -> Result<(), Stopped> {
        let mut missing = Vec::new();
        let mut filter = Filter {
            library: Some(self.library),
            state: Some(LoanState::Accepted),
            limit: PAGE,
            ..Filter::default()
        };
        loop {
            let page = self.circulation.inner.ledger.page(&filter).await?;
            filter.after = page.last().map(|loan| loan.id);
            self.compared.accepted_here += page.len();
            let full = page.len() == PAGE as usize;
            let is_missing = |loan: &Loan| !loan.lending_id.as_ref().is_some_and(|id| self.seen.contains(id));
            missing.extend(page.into_iter().filter(|loan| loan.changed <= self.settled && is_missing(loan)));
            if !full {
                break;
            }
        }
        let believed = BELIEVED.max(self.compared.accepted_here / 20);
        let is_believed = missing.len() <= believed;
        for loan in missing {
            self.missing(&loan, is_believed).await?;
        }
        Ok(())
    }

    /// A loan that the listing lacks: asked for by its id, and gone only where Bokbasen does not know that either.
    async fn missing(&mut self, loan: &Loan, is_believed: bool) -> Result<(), Stopped> {
        let Some(lending_id) = &loan.lending_id else { return Ok(()) };
        match self.circulation.inner.lending.loan(lending_id).await? {
            Some(remote) => self.both_have(loan, &remote).await,
            None if is_believed => {
                let detail = "Bokbasen neither lists it nor knows its id".to_owned();
                self.end_here(Kind::UnknownThere, loan, EndReason::Rejected, detail).await
            }
            None => {
                let detail = "Bokbasen does not know it, nor so many others that its listing is not believed: is \
                              lending.url the right one?";
                self.note(Kind::UnknownThere, Done::Reported, Some(loan), None, detail.to_owned());
                Ok(())
            }
        }
    }

    /// Ends a loan in the ledger, so that it opens nothing.
    async fn end_here(
        &mut self,
        kind: Kind,
        loan: &Loan,
        reason: EndReason,
        detail: String,
    ) -> Result<(), Stopped> {
        let cause = Cause { by: "balance", detail: Some(detail.clone()) };
        let circulation = self.circulation;
        match circulation.inner.ledger.apply(loan.id, Event::EndedThere { reason }, cause).await {
            Ok(ended) => {
                circulation.announce(Closed { loan: ended.id, key: ended.key, at: ended.changed });
                self.note(kind, Done::EndedHere, Some(loan), None, detail);
                Ok(())
            }
            // It ended in the meantime.
            Err(LedgerError::Illegal(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a loan at Bokbasen: cancelled where it may be, which gives the licence back, else returned.
    async fn end_there(
        &mut self,
        kind: Kind,
        loan: &Loan,
        remote: &RemoteLoan,
        ended: Timestamp,
        reason: EndReason,
        detail: String,
    ) -> Result<(), Stopped> {
        let lending = &self.circulation.inner.lending;
        let never_used = loan.accepted.is_none() || kind == Kind::TwiceThere;
        let is_pending = matches!(remote.standing, Standing::Pending { .. });
        let told = if never_used || is_pending {
            let why = "it has ended in the books of the lender";
            lending.give_back(&remote.lending_id, ended, reason, why).await?
        } else {
            lending.return_loan(&remote.lending_id, ended, reason).await?
        };
        let done = if told == Told::Done { Done::EndedThere } else { Done::Reported };
        self.note(kind, done, Some(loan), Some(remote), detail);
        Ok(())
    }

    fn note(
        &mut self,
        kind: Kind,
        done: Done,
        loan: Option<&Loan>,
        remote: Option<&RemoteLoan>,
        detail: String,
    ) {
        let isbn = loan.map(|loan| loan.key.isbn).or(remote.and_then(|remote| remote.isbn));
        let reference =
            loan.map(|loan| &loan.reference).or(remote.and_then(|remote| remote.reference.as_ref()));
        let lending_id = remote.map(|remote| &remote.lending_id);
        let lending_id = lending_id.or(loan.and_then(|loan| loan.lending_id.as_ref()));
        tracing::warn!(kind = kind.name(), done = done.name(), detail, "a balance found a difference");
        self.circulation.inner.metrics.balance(kind.name(), done.name());
        self.report.found(Finding {
            kind,
            done,
            library: self.library.to_string(),
            isbn: isbn.map(|isbn| isbn.to_string()),
            loan: loan.map(|loan| loan.id.to_string()),
            reference: reference.map(|reference| reference.as_str().to_owned()),
            lending_id: lending_id.cloned(),
            detail,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_night_is_today_or_tomorrow() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (now, next) in [
            ("2026-03-29T00:00:00Z", "2026-03-29T02:07:00Z"),
            ("2026-03-29T02:07:00Z", "2026-03-30T02:07:00Z"),
            ("2026-12-31T23:00:00Z", "2027-01-01T02:07:00Z"),
        ] {
            assert_eq!(next_night(at(now), 7), at(next), "{now}");
        }
    }
}
