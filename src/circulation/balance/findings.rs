//! Records the differences that a comparison finds, in the report, the log and the metrics.

use super::compare::Comparison;
use super::report::{Done, Finding, Kind};
use crate::lending::{RemoteLoan, Unreadable};
use crate::loan::Loan;

impl Comparison<'_> {
    /// Records a difference that a person must check.
    pub(super) fn report_only(
        &mut self,
        kind: Kind,
        loan: Option<&Loan>,
        remote: Option<&RemoteLoan>,
        detail: &str,
    ) {
        self.add_finding(kind, Done::Reported, loan, remote, detail);
    }

    /// Records a difference, between this loan in the ledger and this loan at Bokbasen as far as
    /// they exist.
    pub(super) fn add_finding(
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

    /// Records a row that breaks the protocol. Its loan still counts as listed.
    pub(super) fn record_unreadable(&mut self, row: Unreadable) {
        self.compared.listed += 1;
        match &row.lending_id {
            Some(id) => drop(self.seen.insert(self.hash(id), 0)),
            None => self.all_named = false,
        }
        let finding =
            self.finding(Kind::UnreadableRow, Done::Reported, None, row.lending_id, row.why);
        self.add(finding);
    }
}

/// Shortens a text from Bokbasen for the report.
pub(super) fn truncate(text: &str) -> String {
    text.chars().take(40).collect()
}
