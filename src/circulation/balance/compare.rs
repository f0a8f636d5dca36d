//! Compares one library's listing at Bokbasen with the ledger, row by row.
//!
//! Reading the listing changes nothing on either side. Once it is complete, loans that should be
//! over are ended at Bokbasen. Then `repair` decides about loans that are accepted here but not
//! there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::report::{Compared, Done, Finding, Kind, Report};
use super::{Circulation, Stopped};
use crate::clock;
use crate::ledger::Filter;
use crate::lending::{EndAck, RemoteLoan, Standing, Unreadable};
use crate::loan::{EndReason, LibraryId, Loan, LoanState};
use crate::telemetry::LoanEvent;

/// Maximum number of loans in one query of the ledger.
const PAGE: u32 = 500;
/// Maximum number of examined loans per kind of difference; more are only counted.
const MAX_EXAMINED: usize = 1000;
/// A loan begun within this time after the start of a listing may be missing in it, because clocks
/// differ.
const WINDOW_MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// A loan that is accepted here and, according to the listing, not at Bokbasen.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) loan: Loan,
    /// Its status in the listing; none if it is absent.
    pub(super) listed_as: Option<String>,
}

/// Comparison of one library.
pub(super) struct Comparison<'a> {
    pub(super) circulation: &'a Circulation,
    pub(super) library: LibraryId,
    pub(super) now: Timestamp,
    until: Instant,
    since: Timestamp,
    /// Loans that changed later are not compared.
    settled: Timestamp,
    pub(super) compared: Compared,
    report: &'a mut Report,
    hasher: RandomState,
    /// Hash of each listed id, with the hash of its status. A collision hides an absence, which is
    /// safe.
    seen: HashMap<u64, u64>,
    /// Hashes of the ids that are accepted on both sides.
    pub(super) agreed: HashSet<u64>,
    /// Latest begin of this gate's listed loans.
    pub(super) latest_listed: Option<Timestamp>,
    /// Loans that are live at Bokbasen after their end here, or beside the one in the ledger.
    extras: Vec<(Kind, Loan, RemoteLoan)>,
    pub(super) suspects: Vec<Suspect>,
    /// Number of suspects, including those that are not examined.
    pub(super) suspected: usize,
    /// Whether every row has an id. If not, any absent loan may be the row without one.
    pub(super) all_named: bool,
}

impl<'a> Comparison<'a> {
    pub(super) fn new(
        circulation: &'a Circulation,
        library: LibraryId,
        since: Timestamp,
        (now, until): (Timestamp, Instant),
        report: &'a mut Report,
    ) -> Comparison<'a> {
        let compared = Compared {
            library: library.to_string(),
            since,
            listed: 0,
            foreign: 0,
            too_recent: 0,
            accepted_here: 0,
            failed: None,
        };
        // A begin is listed within `settle`; twice that allows for both clocks.
        let settled = clock::before(now, circulation.inner.settings.settle * 2);
        Comparison {
            circulation,
            library,
            now,
            until,
            since,
            settled,
            compared,
            report,
            hasher: RandomState::new(),
            seen: HashMap::new(),
            agreed: HashSet::new(),
            latest_listed: None,
            extras: Vec::new(),
            suspects: Vec::new(),
            suspected: 0,
            all_named: true,
        }
    }

    pub(super) async fn run(&mut self) -> Result<(), Stopped> {
        let mut listing = self.circulation.inner.lending.listing(self.library, self.since);
        while let Some(page) = listing.next().await? {
            self.check_stop()?;
            for row in page.unreadable {
                self.unreadable(row);
            }
            for remote in page.loans {
                self.row(remote).await?;
            }
        }
        self.find_absent().await?;
        self.end_extras().await?;
        self.repair().await
    }

    /// Returns an error once the balance must stop. Called between steps, because a step that is
    /// dropped half-way might end a loan without notifying the gate.
    pub(super) fn check_stop(&self) -> Result<(), Stopped> {
        match () {
            () if self.circulation.inner.stopping.is_cancelled() => Err(Stopped::Stopping),
            () if Instant::now() > self.until => Err(Stopped::TooLong),
            () => Ok(()),
        }
    }

    /// Records a row that breaks the protocol. Its loan still counts as listed.
    fn unreadable(&mut self, row: Unreadable) {
        self.compared.listed += 1;
        match &row.lending_id {
            Some(id) => drop(self.seen.insert(self.hash(id), 0)),
            None => self.all_named = false,
        }
        let finding =
            self.finding(Kind::UnreadableRow, Done::Reported, None, row.lending_id, row.why);
        self.add(finding);
    }

    async fn row(&mut self, remote: RemoteLoan) -> Result<(), Stopped> {
        self.compared.listed += 1;
        let standing = self.hasher.hash_one(format!("{:?}", remote.standing));
        match self.seen.insert(self.hash(&remote.lending_id), standing) {
            None => {}
            Some(before) if before == standing => return Ok(()),
            Some(_) => {
                let detail = "Bokbasen lists it twice, with different contents";
                self.report_finding(Kind::ListedTwice, Done::Reported, None, Some(&remote), detail);
                return Ok(());
            }
        }
        let ledger = &self.circulation.inner.ledger;
        let Some(reference) = remote.reference.clone() else {
            let detail = "Bokbasen lists it without a reference, which every loan has";
            let loan = ledger.by_lending_id(&remote.lending_id, None).await?;
            self.report_finding(
                Kind::NoReference,
                Done::Reported,
                loan.as_ref(),
                Some(&remote),
                detail,
            );
            return Ok(());
        };
        let loan =
            if reference.has_our_format() { ledger.by_reference(&reference).await? } else { None };
        match loan {
            Some(loan) => {
                self.known(loan, remote);
                Ok(())
            }
            None => self.unknown_here(&remote, reference.has_our_format()).await,
        }
    }

    /// Compares a row whose reference is not in the ledger.
    async fn unknown_here(
        &mut self,
        remote: &RemoteLoan,
        has_our_format: bool,
    ) -> Result<(), Stopped> {
        let same_id = self.circulation.inner.ledger.by_lending_id(&remote.lending_id, None).await?;
        if let Some(loan) = same_id.filter(|loan| loan.state.is_live()) {
            let detail = "Bokbasen lists it under another reference than its begin had";
            self.report_finding(
                Kind::RowDiffers,
                Done::Reported,
                Some(&loan),
                Some(remote),
                detail,
            );
        } else if remote.library.is_some_and(|library| library != self.library) {
            let detail = "Bokbasen lists it with this library, but it belongs to another";
            self.report_finding(Kind::RowDiffers, Done::Reported, None, Some(remote), detail);
        } else if !has_our_format {
            self.compared.foreign += 1;
        } else if is_live(&remote.standing) || matches!(remote.standing, Standing::Unrecognised(_))
        {
            let detail = "its reference is from this program but not in the ledger: it belongs to \
                          another ledger, or to one that was lost";
            self.report_finding(Kind::UnknownHere, Done::Reported, None, Some(remote), detail);
        }
        Ok(())
    }

    /// Compares a row of a loan that is in the ledger.
    fn known(&mut self, loan: Loan, remote: RemoteLoan) {
        let other_library = loan.key.library != self.library
            || remote.library.is_some_and(|library| library != loan.key.library);
        if other_library || remote.isbn.is_some_and(|isbn| isbn != loan.key.isbn) {
            let detail = "Bokbasen lists it with another library or title than it was begun for";
            return self.report_finding(
                Kind::RowDiffers,
                Done::Reported,
                Some(&loan),
                Some(&remote),
                detail,
            );
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
            self.report_finding(
                Kind::RowDiffers,
                Done::Reported,
                Some(&loan),
                Some(&remote),
                detail,
            );
        }
        if let Standing::Unrecognised(status) = &remote.standing {
            let detail = format!(
                "Bokbasen lists it with the status {}, which this program does not know",
                truncate(status)
            );
            return self.report_finding(
                Kind::UnknownStatus,
                Done::Reported,
                Some(&loan),
                Some(&remote),
                &detail,
            );
        }
        match loan.state {
            LoanState::Ended | LoanState::Refused if is_live(&remote.standing) => {
                self.extra(Kind::LiveThere, loan, remote);
            }
            LoanState::Accepted if same_id => self.both_have(loan, &remote),
            LoanState::Accepted if is_live(&remote.standing) => {
                self.extra(Kind::TwiceThere, loan, remote)
            }
            // Undecided, or ended on both sides.
            _ => {}
        }
    }

    fn extra(&mut self, kind: Kind, loan: Loan, remote: RemoteLoan) {
        if self.extras.len() < MAX_EXAMINED {
            self.extras.push((kind, loan, remote));
        } else {
            let detail = "not examined: too many loans are live there that should not; a later \
                          balance examines it";
            self.report_finding(kind, Done::Reported, Some(&loan), Some(&remote), detail);
        }
    }

    /// Compares a loan that is accepted here and listed under the id in the ledger.
    fn both_have(&mut self, loan: Loan, remote: &RemoteLoan) {
        let due = loan.terms.as_ref().map(|terms| terms.due);
        let listed_as = match &remote.standing {
            Standing::Accepted(terms) if Some(terms.due) != due => {
                let here = due.map_or_else(|| "never".to_owned(), |due| due.to_string());
                let detail = format!("it is due {here} here and {} there", terms.due);
                return self.report_finding(
                    Kind::DueDiffers,
                    Done::Reported,
                    Some(&loan),
                    Some(remote),
                    &detail,
                );
            }
            Standing::Pending { .. } => {
                let detail = "it is accepted here, and Bokbasen lists it as pending";
                return self.report_finding(
                    Kind::RowDiffers,
                    Done::Reported,
                    Some(&loan),
                    Some(remote),
                    detail,
                );
            }
            Standing::Accepted(_) | Standing::Unrecognised(_) => return,
            Standing::Ended(reason) => reason.to_string(),
            Standing::Refused(refusal) => format!("refused ({})", truncate(&refusal.code)),
        };
        self.suspect(Suspect { loan, listed_as: Some(listed_as) });
    }

    fn suspect(&mut self, suspect: Suspect) {
        self.suspected += 1;
        if self.suspects.len() < MAX_EXAMINED {
            self.suspects.push(suspect);
        }
    }

    /// Ends loans that are live at Bokbasen and cannot be used any more. If several are live under
    /// one reference, the one accepted in the ledger stays, provided that it is listed.
    async fn end_extras(&mut self) -> Result<(), Stopped> {
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
                self.report_finding(
                    Kind::RowDiffers,
                    Done::Reported,
                    Some(&loan),
                    Some(&extra),
                    detail,
                );
            }
        }
        Ok(())
    }

    /// Finds loans that are accepted here and missing in the listing, though it should have them.
    async fn find_absent(&mut self) -> Result<(), Stopped> {
        let expected_from = self.since.checked_add(WINDOW_MARGIN).unwrap_or(Timestamp::MAX);
        let mut filter = Filter {
            library: Some(self.library),
            state: Some(LoanState::Accepted),
            limit: PAGE,
            ..Filter::default()
        };
        loop {
            self.check_stop()?;
            let page = self.circulation.inner.ledger.page(&filter).await?;
            filter.after = page.last().map(|loan| loan.id);
            self.compared.accepted_here += page.len();
            let full = page.len() == PAGE as usize;
            for loan in page {
                let listed = loan
                    .lending_id
                    .as_ref()
                    .is_some_and(|id| self.seen.contains_key(&self.hash(id)));
                if !listed && loan.changed <= self.settled && loan.begun >= expected_from {
                    self.suspect(Suspect { loan, listed_as: None });
                }
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Ends a loan at Bokbasen, once Bokbasen confirms by id that it is live under our reference.
    /// It is cancelled if no byte can have been sent under it and cancelling is still allowed, or
    /// else returned.
    async fn end_there(
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
            self.report_finding(kind, Done::Reported, Some(loan), Some(remote), &detail);
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
        self.report_finding(kind, done, Some(loan), Some(remote), detail);
        Ok(())
    }

    pub(super) fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    pub(super) fn report_finding(
        &mut self,
        kind: Kind,
        done: Done,
        loan: Option<&Loan>,
        remote: Option<&RemoteLoan>,
        detail: &str,
    ) {
        let lending_id = remote.map(|remote| remote.lending_id.clone());
        let mut finding = self.finding(kind, done, loan, lending_id, detail.to_owned());
        if let Some(remote) = remote {
            finding.isbn = finding.isbn.or(remote.isbn.map(|isbn| isbn.to_string()));
            let reference =
                remote.reference.as_ref().map(|reference| reference.as_str().to_owned());
            finding.reference = finding.reference.or(reference);
        }
        self.add(finding);
    }

    fn finding(
        &self,
        kind: Kind,
        done: Done,
        loan: Option<&Loan>,
        lending_id: Option<String>,
        detail: String,
    ) -> Finding {
        Finding {
            kind,
            done,
            library: self.library.to_string(),
            isbn: loan.map(|loan| loan.key.isbn.to_string()),
            loan: loan.map(|loan| loan.id.to_string()),
            reference: loan.map(|loan| loan.reference.as_str().to_owned()),
            lending_id: lending_id.or(loan.and_then(|loan| loan.lending_id.clone())),
            detail,
        }
    }

    fn add(&mut self, finding: Finding) {
        self.circulation.inner.metrics.balance_finding(finding.kind, finding.done);
        if self.report.has_room() {
            let (library, detail) = (&finding.library, &finding.detail);
            let (kind, done) = (finding.kind.name(), finding.done.name());
            tracing::warn!(
                kind,
                done,
                library,
                loan = finding.loan,
                detail,
                "a balance found a difference"
            );
        }
        self.report.found(finding);
    }
}

/// Returns whether the loan is live at Bokbasen, decided or not.
pub(super) fn is_live(standing: &Standing) -> bool {
    matches!(standing, Standing::Pending { .. } | Standing::Accepted(_))
}

/// Shortens a text from Bokbasen for the report.
pub(super) fn truncate(text: &str) -> String {
    text.chars().take(40).collect()
}
