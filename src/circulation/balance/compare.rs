//! One library: its listing at Bokbasen, row by row, beside the ledger.
//!
//! Reading the listing changes nothing, neither here nor there. Only once it is whole, loans that
//! should be over are ended there, and `repair` decides about the loans that are accepted here and
//! not there.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::report::{Compared, Done, Finding, Kind, Report};
use super::{Circulation, Stopped};
use crate::clock;
use crate::ledger::Filter;
use crate::lending::{RemoteLoan, Standing, Told, Unreadable};
use crate::loan::{EndReason, LibraryId, Loan, LoanState};

/// How many loans of the ledger are read in one go.
const PAGE: u32 = 500;
/// How many loans of one kind of difference are looked at one by one; more than these are only
/// counted.
const MAX_EXAMINED: usize = 1000;
/// A loan that was begun this shortly after the start of a listing may be missing in it: clocks
/// differ.
const WINDOW_MARGIN: SignedDuration = SignedDuration::from_hours(1);

/// A loan that is accepted here and, by the listing, not at Bokbasen.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) loan: Loan,
    /// How the listing has it, where it lists it; none where it is absent.
    pub(super) listed_as: Option<String>,
}

/// One library's comparison.
pub(super) struct Comparison<'a> {
    pub(super) circulation: &'a Circulation,
    pub(super) library: LibraryId,
    pub(super) now: Timestamp,
    until: Instant,
    since: Timestamp,
    /// What changed later is left alone.
    settled: Timestamp,
    pub(super) compared: Compared,
    report: &'a mut Report,
    hasher: RandomState,
    /// Hashes of the listed ids, each with the hash of its standing. A collision hides an absence,
    /// which is safe.
    seen: HashMap<u64, u64>,
    /// Hashes of the ids that are accepted here and there.
    pub(super) agreed: HashSet<u64>,
    /// The latest begin of the loans of this gate that are listed.
    pub(super) latest_listed: Option<Timestamp>,
    /// Loans that live there after their end here, or beside the one that the ledger has.
    extras: Vec<(Kind, Loan, RemoteLoan)>,
    pub(super) suspects: Vec<Suspect>,
    /// How many suspects there are, also beyond those that are examined.
    pub(super) suspected: usize,
    /// Whether every row has an id: else any absent loan may be the row without one.
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
            there: 0,
            foreign: 0,
            young: 0,
            accepted_here: 0,
            failed: None,
        };
        // A begin shows in the listing within `settle`; twice that leaves room for both clocks.
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
            self.may_go_on()?;
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

    /// An error once the balance must stop. It is looked at between steps, since a step that is cut
    /// off might end a loan without telling the gate.
    pub(super) fn may_go_on(&self) -> Result<(), Stopped> {
        match () {
            () if self.circulation.inner.stopping.is_cancelled() => Err(Stopped::Stopping),
            () if Instant::now() > self.until => Err(Stopped::TooLong),
            () => Ok(()),
        }
    }

    /// A row that breaks the protocol. Its loan is listed, whatever else is wrong with it.
    fn unreadable(&mut self, row: Unreadable) {
        self.compared.there += 1;
        match &row.lending_id {
            Some(id) => drop(self.seen.insert(self.hash(id), 0)),
            None => self.all_named = false,
        }
        let finding =
            self.finding(Kind::UnreadableRow, Done::Reported, None, row.lending_id, row.why);
        self.add(finding);
    }

    async fn row(&mut self, remote: RemoteLoan) -> Result<(), Stopped> {
        self.compared.there += 1;
        let standing = self.hasher.hash_one(format!("{:?}", remote.standing));
        match self.seen.insert(self.hash(&remote.lending_id), standing) {
            None => {}
            Some(before) if before == standing => return Ok(()),
            Some(_) => {
                let detail = "Bokbasen lists it twice, and not alike";
                self.note(Kind::ListedTwice, Done::Reported, None, Some(&remote), detail);
                return Ok(());
            }
        }
        let ledger = &self.circulation.inner.ledger;
        let Some(reference) = remote.reference.clone() else {
            let detail = "Bokbasen lists it without a reference, which every loan has";
            let loan = ledger.by_lending_id(&remote.lending_id, None).await?;
            self.note(Kind::NoReference, Done::Reported, loan.as_ref(), Some(&remote), detail);
            return Ok(());
        };
        let loan =
            if reference.looks_ours() { ledger.by_reference(&reference).await? } else { None };
        match loan {
            Some(loan) => {
                self.known(loan, remote);
                Ok(())
            }
            None => self.unknown_here(&remote, reference.looks_ours()).await,
        }
    }

    /// A row whose reference the ledger does not have.
    async fn unknown_here(&mut self, remote: &RemoteLoan, looks_ours: bool) -> Result<(), Stopped> {
        let same_id = self.circulation.inner.ledger.by_lending_id(&remote.lending_id, None).await?;
        if let Some(loan) = same_id.filter(|loan| loan.state.is_live()) {
            let detail = "Bokbasen lists it under another reference than it was begun with";
            self.note(Kind::RowDiffers, Done::Reported, Some(&loan), Some(remote), detail);
        } else if remote.library.is_some_and(|library| library != self.library) {
            let detail = "Bokbasen lists it with this library, and it belongs to another";
            self.note(Kind::RowDiffers, Done::Reported, None, Some(remote), detail);
        } else if !looks_ours {
            self.compared.foreign += 1;
        } else if is_live(&remote.standing) || matches!(remote.standing, Standing::Unrecognised(_))
        {
            let detail = "its reference is one of this program, and the ledger does not have it: it \
                          belongs to another ledger, or to one that was lost";
            self.note(Kind::UnknownHere, Done::Reported, None, Some(remote), detail);
        }
        Ok(())
    }

    /// A row of a loan that the ledger has.
    fn known(&mut self, loan: Loan, remote: RemoteLoan) {
        let other_library = loan.key.library != self.library
            || remote.library.is_some_and(|library| library != loan.key.library);
        if other_library || remote.isbn.is_some_and(|isbn| isbn != loan.key.isbn) {
            let detail = "Bokbasen lists it with another library or title than it was begun for";
            return self.note(Kind::RowDiffers, Done::Reported, Some(&loan), Some(&remote), detail);
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
            self.compared.young += 1;
            return;
        }
        if remote.begin.is_some_and(is_future) {
            let detail = "Bokbasen lists it with a begin in the future";
            self.note(Kind::RowDiffers, Done::Reported, Some(&loan), Some(&remote), detail);
        }
        if let Standing::Unrecognised(status) = &remote.standing {
            let detail = format!(
                "Bokbasen lists it with the status {}, which this program does not know",
                short(status)
            );
            return self.note(
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
            // On its way, or ended on both sides.
            _ => {}
        }
    }

    fn extra(&mut self, kind: Kind, loan: Loan, remote: RemoteLoan) {
        if self.extras.len() < MAX_EXAMINED {
            self.extras.push((kind, loan, remote));
        } else {
            let detail = "so many live there that should not; a later balance looks at this one";
            self.note(kind, Done::Reported, Some(&loan), Some(&remote), detail);
        }
    }

    /// Accepted here, and listed under the id that the ledger has.
    fn both_have(&mut self, loan: Loan, remote: &RemoteLoan) {
        let due = loan.terms.as_ref().map(|terms| terms.due);
        let listed_as = match &remote.standing {
            Standing::Accepted(terms) if Some(terms.due) != due => {
                let here = due.map_or_else(|| "never".to_owned(), |due| due.to_string());
                let detail = format!("it is due {here} here and {} there", terms.due);
                return self.note(
                    Kind::DueDiffers,
                    Done::Reported,
                    Some(&loan),
                    Some(remote),
                    &detail,
                );
            }
            Standing::Pending { .. } => {
                let detail = "it is accepted here, and Bokbasen lists it as pending";
                return self.note(
                    Kind::RowDiffers,
                    Done::Reported,
                    Some(&loan),
                    Some(remote),
                    detail,
                );
            }
            Standing::Accepted(_) | Standing::Unrecognised(_) => return,
            Standing::Ended(reason) => reason.to_string(),
            Standing::Refused(refusal) => format!("refused ({})", short(&refusal.code)),
        };
        self.suspect(Suspect { loan, listed_as: Some(listed_as) });
    }

    fn suspect(&mut self, suspect: Suspect) {
        self.suspected += 1;
        if self.suspects.len() < MAX_EXAMINED {
            self.suspects.push(suspect);
        }
    }

    /// Ends what lives there and should not: nobody can use it any more. Of several that live under
    /// one reference, the one that the ledger has as accepted stays, if it is listed.
    async fn end_extras(&mut self) -> Result<(), Stopped> {
        for (kind, loan, extra) in std::mem::take(&mut self.extras) {
            self.may_go_on()?;
            if kind == Kind::LiveThere {
                let ended = loan.ended.unwrap_or(loan.changed);
                let reason = loan.end_reason.unwrap_or(EndReason::Returned);
                let detail = format!("it is {} here since {ended}, and lives there", loan.state);
                self.end_there(kind, &loan, &extra, ended, reason, &detail).await?;
            } else if loan
                .lending_id
                .as_ref()
                .is_some_and(|id| self.agreed.contains(&self.hash(id)))
            {
                self.circulation.inner.metrics.loan("duplicate");
                let detail = "another loan of this reference is the one that is used";
                self.end_there(kind, &loan, &extra, self.now, EndReason::Cancelled, detail).await?;
            } else {
                self.suspects.retain(|suspect| suspect.loan.id != loan.id);
                let detail = "Bokbasen lists it as live under another id than it accepted it with";
                self.note(Kind::RowDiffers, Done::Reported, Some(&loan), Some(&extra), detail);
            }
        }
        Ok(())
    }

    /// Finds the loans that are accepted here and absent in the listing, of those that it should
    /// have.
    async fn find_absent(&mut self) -> Result<(), Stopped> {
        let expected_from = self.since.checked_add(WINDOW_MARGIN).unwrap_or(Timestamp::MAX);
        let mut filter = Filter {
            library: Some(self.library),
            state: Some(LoanState::Accepted),
            limit: PAGE,
            ..Filter::default()
        };
        loop {
            self.may_go_on()?;
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

    /// Ends a loan at Bokbasen, once it confirms by id that the loan lives there under our
    /// reference: cancelled where no byte can have left under it and it still may be, else
    /// returned.
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
                format!("{detail}; it is not ended there, since its id leads to something else");
            self.note(kind, Done::Reported, Some(loan), Some(remote), &detail);
            return Ok(());
        };
        let never_used = loan.accepted.is_none() || kind == Kind::TwiceThere;
        let told = if never_used || matches!(confirmed.standing, Standing::Pending { .. }) {
            let why = "it has ended in the books of the lender";
            inner.lending.give_back(&remote.lending_id, ended, reason, why).await?
        } else {
            inner.lending.return_loan(&remote.lending_id, ended, reason).await?
        };
        let done = if told == Told::Done { Done::EndedThere } else { Done::Reported };
        self.note(kind, done, Some(loan), Some(remote), detail);
        Ok(())
    }

    pub(super) fn hash(&self, id: &str) -> u64 {
        self.hasher.hash_one(id)
    }

    pub(super) fn note(
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
        let (kind, done) = (finding.kind.name(), finding.done.name());
        self.circulation.inner.metrics.balance(kind, done);
        if self.report.has_room() {
            let (library, detail) = (&finding.library, &finding.detail);
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

/// Whether a loan lives there, decided or not.
pub(super) fn is_live(standing: &Standing) -> bool {
    matches!(standing, Standing::Pending { .. } | Standing::Accepted(_))
}

/// A text of Bokbasen's, cut to a length that is fit for a report.
pub(super) fn short(text: &str) -> String {
    text.chars().take(40).collect()
}
