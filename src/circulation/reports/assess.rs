//! Decides which loans are reported, and writes their reports to the books.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::{Lists, Reporter, date_in_oslo, is_of_one_loan, rule};
use crate::clock;
use crate::ledger::{Evidence, LedgerError, Measure, Report, ReportModel, ReportState, ReportStep};
use crate::loan::{LibraryId, Loan, LoanId};

/// The number of loans or reports in one query, and the pause after it, which leaves the ledger to
/// readers.
const PAGE: u32 = 200;
const PAUSE: Duration = Duration::from_millis(20);
/// A loan is accepted at most this long after its id was made, by a wide margin.
const LONGEST_BEGIN: Duration = Duration::from_secs(86_400);

/// The loans of one library that were assessed, and their reports.
#[derive(Default)]
struct Assessed {
    reports: Vec<Report>,
    loans: Vec<LoanId>,
}

impl Reporter {
    /// Assesses accepted loans that were not assessed, page by page: none before `since`, so that a
    /// mistaken one settles nothing for good.
    pub(super) async fn assess_loans(&self, lists: &Lists) -> Result<(), LedgerError> {
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
                    first_id(clock::before(self.settings.since, LONGEST_BEGIN))
                }
            });
            while let Some(position) = after {
                let page =
                    self.circulation.inner.ledger.loans_to_assess(licence_type, position, PAGE);
                let (mut loans, next) = page.await?;
                loans.retain(|loan| model == ReportModel::Package || !self.is_before_since(loan));
                self.assess_page(lists, model, &loans).await?;
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
        lists: &Lists,
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
                    let size = lists.size(loan.key.isbn);
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
                let report = report(lists, model, loan, measure, is_due);
                assessed.reports.extend(match self.is_before_since(loan) {
                    true => of_known_package(report),
                    false => Some(report),
                });
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

    fn is_before_since(&self, loan: &Loan) -> bool {
        loan.accepted.is_none_or(|at| at < self.settings.since)
    }

    /// Writes the reports of one library. If a loan prevents that, they are written one by one, and
    /// its own is skipped. Returns the number of new reports.
    async fn add(&self, library: LibraryId, assessed: Assessed) -> Result<u64, LedgerError> {
        let ledger = &self.circulation.inner.ledger;
        let Assessed { reports, loans } = assessed;
        match ledger.add_reports(library, reports.clone(), loans.clone()).await {
            Err(error) if is_of_one_loan(&error) => {}
            added => return added,
        }
        let mut added = 0;
        for loan in loans {
            let own = reports.iter().filter(|report| report.loan == loan).cloned().collect();
            added += Reporter::changed(ledger.add_reports(library, own, vec![loan]).await)?;
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
        let sum = |files: BTreeMap<String, crate::loan::Tally>| {
            files.values().fold(0_u64, |sum, tally| sum.saturating_add(tally.ranges.length()))
        };
        Ok(delivered.into_iter().map(|(loan, files)| (loan, sum(files))).collect())
    }

    /// Looks again at reports without a price or a measure: the lists may have them now, or the app
    /// may have reported its progress late.
    pub(super) async fn assess_again(&self, lists: &Lists) -> Result<(), LedgerError> {
        for state in [ReportState::Unpriced, ReportState::Unmeasured] {
            let mut after = Some(Uuid::nil());
            while let Some(position) = after {
                let page = self.circulation.inner.ledger.reports_in_state(state, position, PAGE);
                let (reports, next) = page.await?;
                let steps = match state {
                    ReportState::Unmeasured => self.measured(lists, &reports).await?,
                    _ => reports.iter().filter_map(|report| priced(lists, report)).collect(),
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
        lists: &Lists,
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
            let size = lists.size(loan.key.isbn);
            let covered = covered.get(&loan.id).copied().unwrap_or_default();
            let measure = rule::measure(self.settings.evidence, loan, covered, size, now);
            let report = reports.iter().find(|report| report.loan == loan.id)?;
            let is_due = rule::is_due(&measure, self.settings.limit);
            let price = lists.price(report.model, report.isbn, &report.licence_type);
            let (to, note) = match (measure.evidence, is_due, price) {
                (Evidence::None, ..) => return None,
                (_, true, Some(_)) => (ReportState::Due, None),
                (_, true, None) => (ReportState::Unpriced, None),
                (_, false, _) => (ReportState::NotReported, Some("too little was read".to_owned())),
            };
            let from = &[ReportState::Unmeasured];
            let step = ReportStep::new(loan.id, from, to, "report");
            Some(ReportStep { price, measure: Some(measure), note, ..step })
        };
        Ok(loans.iter().filter_map(step).collect())
    }
}

/// Returns the step of a report that now has a price.
fn priced(lists: &Lists, report: &Report) -> Option<ReportStep> {
    let price = Some(lists.price(report.model, report.isbn, &report.licence_type)?);
    let step = ReportStep::new(report.loan, &[ReportState::Unpriced], ReportState::Due, "report");
    Some(ReportStep { price, ..step })
}

/// Returns the report of a package that was in use before `since`: it is never sent, and its row
/// keeps a later loan from making the package due. Without its licence, it would keep none.
fn of_known_package(report: Report) -> Option<Report> {
    let note = Some("the package was in use before [reports] since".to_owned());
    let is_known = report.model == ReportModel::Package && report.licence_id.is_some();
    is_known.then_some(Report { state: ReportState::NotReported, note, ..report })
}

/// Creates the report of a loan.
fn report(
    lists: &Lists,
    model: ReportModel,
    loan: &Loan,
    measure: Measure,
    is_due: bool,
) -> Report {
    let terms = loan.terms.as_ref();
    let licence_id = terms.and_then(|terms| terms.licence_id.clone());
    let licence_type = terms.and_then(|terms| terms.licence_type.clone()).unwrap_or_default();
    let price = lists.price(model, loan.key.isbn, &licence_type);
    let subject = match (model, &licence_id) {
        (ReportModel::Package, Some(licence)) => licence.clone(),
        (ReportModel::Package, None) | (ReportModel::PayPerLoan, _) => loan.id.to_string(),
    };
    let state = match (model, &licence_id, price) {
        _ if !is_due => ReportState::Unmeasured,
        (ReportModel::Package, None, _) => ReportState::Unidentified,
        (_, _, Some(_)) => ReportState::Due,
        (_, _, None) => ReportState::Unpriced,
    };
    let date = match model {
        ReportModel::Package => date_in_oslo(loan.accepted.unwrap_or(measure.at)),
        ReportModel::PayPerLoan => date_in_oslo(measure.at),
    };
    Report {
        loan: loan.id,
        model,
        subject,
        isbn: loan.key.isbn,
        licence_id,
        licence_type,
        date,
        measure,
        price,
        state,
        owner: None,
        attempts: 0,
        sent: None,
        note: None,
        changed: measure.at,
    }
}

/// Returns the first id that a loan could have got at this time.
fn first_id(at: Timestamp) -> Uuid {
    let millis = u128::try_from(at.as_millisecond()).unwrap_or_default();
    Uuid::from_u128(millis << 80)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_in_use_before_since_is_never_sent() {
        let key = crate::loan::LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: crate::loan::Borrower::from_bytes([1; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let at = Timestamp::UNIX_EPOCH;
        let loan = Loan::intend(key, at);
        let evidence = Evidence::Accepted;
        let measure = Measure { evidence, progress: None, covered: None, size: None, at };
        let unidentified = report(&Lists::default(), ReportModel::Package, &loan, measure, true);
        let (licence_id, subject) = (Some("K1".to_owned()), "K1".to_owned());
        let known = Report { licence_id, subject, ..unidentified.clone() };
        let settled = of_known_package(known).unwrap();
        assert_eq!((settled.state, settled.subject.as_str()), (ReportState::NotReported, "K1"));
        assert!(settled.note.is_some());
        assert_eq!(of_known_package(unidentified), None, "a row of its loan would block nothing");
    }

    #[test]
    fn ids_after_a_time_follow_the_first_id() {
        let library = "NO-0301000".parse().unwrap();
        let id = LoanId::generate(library);
        let at = id.created_at();
        assert!(first_id(at) <= id.uuid());
        assert!(first_id(clock::after(at, Duration::from_millis(1))) > id.uuid());
        assert_eq!(first_id(Timestamp::MIN), Uuid::nil());
    }
}
