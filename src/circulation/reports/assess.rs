//! Decides which loans are reported, and writes their reports to the books.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use uuid::Uuid;

use super::{Reporter, Run, entry, is_of_one_loan, rule};
use crate::clock;
use crate::ledger::{
    Evidence, LONGEST_BEGIN, LedgerError, Measure, Report, ReportModel, ReportState, ReportStep,
    first_loan_id,
};
use crate::loan::{LibraryId, Loan, LoanId};

/// The number of loans or reports in one query, and the pause after it, which leaves the ledger to
/// readers.
const PAGE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);

/// The loans of one library that were assessed, and their reports.
#[derive(Default)]
struct Assessed {
    reports: Vec<Report>,
    loans: Vec<LoanId>,
}

impl Reporter {
    /// Assesses accepted loans that were not assessed, page by page: none before `since`, so that a
    /// mistaken one settles nothing for good.
    pub(super) async fn assess_loans(&self, run: &Run<'_>) -> Result<(), LedgerError> {
        if self.circulation.inner.clock.now() < self.settings.since {
            return Ok(());
        }
        let packages = self.settings.packages.iter().map(|name| (name, ReportModel::Package));
        let per_loan =
            self.settings.pay_per_loan.iter().map(|name| (name, ReportModel::PayPerLoan));
        for (licence_type, model) in packages.chain(per_loan) {
            let mut after = Some(match model {
                // Those before `since` show which packages are not new.
                ReportModel::Package => Uuid::nil(),
                // Ids begin with their time, so the loans before `since` are skipped.
                ReportModel::PayPerLoan => {
                    first_loan_id(clock::before(self.settings.since, LONGEST_BEGIN))
                }
            });
            while let Some(position) = after {
                let page =
                    self.circulation.inner.ledger.loans_to_assess(licence_type, position, PAGE);
                let (mut loans, next) = page.await?;
                let boundary = &run.boundary;
                loans.retain(|loan| {
                    model == ReportModel::Package || !boundary.is_before_since(loan)
                });
                self.assess_page(run, model, &loans).await?;
                after = next;
                if after.is_some() && !self.circulation.pause(PAUSE).await || !self.may_work() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn assess_page(
        &self,
        run: &Run<'_>,
        model: ReportModel,
        loans: &[Loan],
    ) -> Result<(), LedgerError> {
        let covered = match model {
            ReportModel::Package => HashMap::new(),
            ReportModel::PayPerLoan => self.covered(loans.iter().map(|loan| loan.id)).await?,
        };
        let now = self.circulation.inner.clock.now();
        let mut libraries: BTreeMap<LibraryId, Assessed> = BTreeMap::new();
        for loan in loans {
            let covered = covered.get(&loan.id).copied().unwrap_or_default();
            let measure = match model {
                ReportModel::Package => {
                    let (progress, size) = (None, None);
                    Measure { evidence: Evidence::Accepted, progress, covered: None, size, at: now }
                }
                ReportModel::PayPerLoan => {
                    let size = run.lists.size(loan.key.isbn);
                    rule::measure(self.settings.evidence, loan, covered, size, now)
                }
            };
            let is_due = match model {
                ReportModel::Package => true,
                ReportModel::PayPerLoan => rule::is_due(&measure, self.settings.limit),
            };
            let is_over =
                loan.ended.is_some_and(|ended| clock::after(ended, self.settings.grace) <= now);
            let is_unmeasured = is_over && measure.evidence == Evidence::None && covered > 0;
            if !is_due && !is_over {
                continue;
            }
            let assessed = libraries.entry(loan.key.library).or_default();
            assessed.loans.push(loan.id);
            if is_due || is_unmeasured {
                assessed.reports.extend(entry::of_loan(run, model, loan, measure, is_due));
            }
        }
        for (library, assessed) in libraries {
            let added = self.add(library, assessed).await?;
            if added > 0 {
                tracing::info!(%library, added, %model, "usage reports were added to the books");
            }
        }
        Ok(())
    }

    /// Writes the reports of one library. If a loan prevents that, they are written one by one, and
    /// its own is skipped. Returns the number of new reports.
    async fn add(&self, library: LibraryId, assessed: Assessed) -> Result<u64, LedgerError> {
        let (ledger, since) = (&self.circulation.inner.ledger, self.settings.since);
        let Assessed { reports, loans } = assessed;
        match ledger.add_reports(library, reports.clone(), loans.clone(), since).await {
            Err(error) if is_of_one_loan(&error) => {}
            added => return added,
        }
        let mut added = 0;
        for loan in loans {
            let own = reports.iter().filter(|report| report.loan == loan).cloned().collect();
            added += Reporter::changed(ledger.add_reports(library, own, vec![loan], since).await)?;
        }
        Ok(added)
    }

    /// Returns the number of bytes that were delivered under each loan, each byte counted once.
    async fn covered(
        &self,
        loans: impl Iterator<Item = LoanId>,
    ) -> Result<HashMap<LoanId, u64>, LedgerError> {
        let loans: Vec<LoanId> = loans.collect();
        let delivered = self.circulation.inner.ledger.delivered(&loans).await?;
        let covered = |files| rule::covered(&files, |path| (self.stored_file)(path));
        Ok(delivered.into_iter().map(|(loan, files)| (loan, covered(files))).collect())
    }

    /// Looks again at reports without a price or a measure: the lists may have them now, or the app
    /// may have reported its progress late.
    pub(super) async fn assess_again(&self, run: &Run<'_>) -> Result<(), LedgerError> {
        for state in [ReportState::Unpriced, ReportState::Unmeasured] {
            let mut after = Some(Uuid::nil());
            while let Some(position) = after {
                let page = self.circulation.inner.ledger.reports_in_state(state, position, PAGE);
                let (reports, next) = page.await?;
                let steps = match state {
                    ReportState::Unmeasured => self.measured(run, &reports).await?,
                    _ => reports.iter().filter_map(|report| priced(run, report)).collect(),
                };
                for step in steps {
                    Reporter::changed(self.circulation.inner.ledger.step_report(step).await)?;
                }
                after = next;
                if after.is_some() && !self.circulation.pause(PAUSE).await || !self.may_work() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Returns the steps of reports that can now be measured.
    async fn measured(
        &self,
        run: &Run<'_>,
        reports: &[Report],
    ) -> Result<Vec<ReportStep>, LedgerError> {
        let ids: Vec<LoanId> = reports.iter().map(|report| report.loan).collect();
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let loans = self.circulation.inner.ledger.loans(&ids).await?;
        let covered = self.covered(ids.into_iter()).await?;
        let now = self.circulation.inner.clock.now();
        let step = |loan: &Loan| {
            let size = run.lists.size(loan.key.isbn);
            let covered = covered.get(&loan.id).copied().unwrap_or_default();
            let measure = rule::measure(self.settings.evidence, loan, covered, size, now);
            let report = reports.iter().find(|report| report.loan == loan.id)?;
            let is_due = rule::is_due(&measure, self.settings.limit);
            let price = run.lists.price(report.model, report.isbn, &report.licence_type);
            let (to, note) = match (run.boundary.doubt(report), is_due, price) {
                _ if measure.evidence == Evidence::None => return None,
                (Some(doubt), ..) => (ReportState::Unknown, Some(doubt)),
                (None, true, Some(_)) => (ReportState::Due, None),
                (None, true, None) => (ReportState::Unpriced, None),
                (None, false, _) => {
                    (ReportState::NotReported, Some("too little was read".to_owned()))
                }
            };
            let from = &[ReportState::Unmeasured];
            let step = ReportStep::new(loan.id, from, to, "report");
            Some(ReportStep { price, measure: Some(measure), note, ..step })
        };
        Ok(loans.iter().filter_map(step).collect())
    }
}

/// Returns the step of a report that now has a price.
fn priced(run: &Run<'_>, report: &Report) -> Option<ReportStep> {
    let price = Some(run.lists.price(report.model, report.isbn, &report.licence_type)?);
    let note = run.boundary.doubt(report);
    let to = if note.is_some() { ReportState::Unknown } else { ReportState::Due };
    let step = ReportStep::new(report.loan, &[ReportState::Unpriced], to, "report");
    Some(ReportStep { price, note, ..step })
}
