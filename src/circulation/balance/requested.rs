//! Examines the loans that a person asked for, and records in the history of each what it found.
//!
//! Called after the comparison of their library, complete or not: a loan is queried by its id, or
//! by its reference if it has none, whatever the listing says and however old it is. A loan that
//! has ended here and is live at Bokbasen is ended there, as by `extras`. Any other difference is
//! reported, unless the comparison has already handled it. A loan that changed too recently, or
//! that cannot be queried, waits for the next balance.

use super::Stopped;
use super::compare::Comparison;
use super::findings::truncate;
use super::report::{Done, Kind};
use super::rows::{is_live, is_of_another};
use crate::ledger::LedgerError;
use crate::lending::{CallError, RemoteLoan, Standing};
use crate::loan::{EndReason, Loan, LoanState};

/// Maximum number of loans of a library that one balance examines. The others wait.
const MAX_REQUESTED: u32 = 100;
/// Number of failed queries after which the others wait: Bokbasen does not answer them either.
const MAX_FAILURES: u32 = 3;

/// What Bokbasen says of a loan.
enum There {
    /// The loan, by its id or its reference.
    Loan(RemoteLoan),
    /// Its id belongs to another loan.
    Another,
    /// Bokbasen does not know it.
    Unknown,
}

impl Comparison<'_> {
    /// Examines the loans of this library that wait for it.
    pub(super) async fn examine_requested(&mut self) -> Result<(), Stopped> {
        let ledger = &self.circulation.inner.ledger;
        let mut failures = 0;
        for loan in ledger.loans_to_examine(self.library, MAX_REQUESTED).await? {
            self.check_stop()?;
            if loan.changed > self.settled {
                continue;
            }
            let result = match self.query(&loan).await {
                Ok(there) => self.judge(&loan, there).await?,
                Err(CallError::Rejected { status, code, .. }) => {
                    Some(format!("Bokbasen refused the query: {status} {}", truncate(&code)))
                }
                Err(error) => {
                    failures += 1;
                    if failures == MAX_FAILURES {
                        return Err(error.into());
                    }
                    continue;
                }
            };
            let Some(result) = result else { continue };
            match ledger.record_examination(loan.id, result).await {
                // It was pruned, or its row is damaged.
                Err(LedgerError::NoSuchLoan(_) | LedgerError::Damaged { .. }) => {}
                recorded => drop(recorded?),
            }
        }
        Ok(())
    }

    async fn query(&self, loan: &Loan) -> Result<There, CallError> {
        let lending = &self.circulation.inner.lending;
        let Some(lending_id) = &loan.lending_id else {
            let found = lending.find(&loan.reference).await?;
            // A live one matters most.
            let live = found.iter().position(|remote| is_live(&remote.standing)).unwrap_or(0);
            return Ok(found.into_iter().nth(live).map_or(There::Unknown, There::Loan));
        };
        Ok(match lending.loan(lending_id).await? {
            None => There::Unknown,
            Some(remote)
                if remote.lending_id == *lending_id
                    && remote.reference.as_ref() == Some(&loan.reference) =>
            {
                There::Loan(remote)
            }
            Some(_) => There::Another,
        })
    }

    /// Compares a loan with what Bokbasen says of it. Returns the result in words; none if the loan
    /// has changed meanwhile.
    async fn judge(&mut self, loan: &Loan, there: There) -> Result<Option<String>, Stopped> {
        let now = self.circulation.inner.ledger.loan(loan.id).await?;
        if now.as_ref() != Some(loan) {
            return Ok(None);
        }
        let words = format!("{}; it is {} here", describe(&there), loan.state);
        let (id, kind) = (loan.id.to_string(), difference(loan, &there));
        if !self.has_finding(&id) {
            match (&there, kind) {
                (There::Loan(remote), Some(Kind::LiveThere)) => {
                    let ended = loan.ended.unwrap_or(loan.changed);
                    let reason = loan.end_reason.unwrap_or(EndReason::Returned);
                    self.end_there(Kind::LiveThere, loan, remote, ended, reason, &words).await?;
                }
                (There::Loan(remote), Some(kind)) => {
                    self.report_only(kind, Some(loan), Some(remote), &words);
                }
                (_, Some(kind)) => self.report_only(kind, Some(loan), None, &words),
                (_, None) => {}
            }
        }
        let mut findings = self.report.findings.iter().rev();
        let handled = findings.find(|finding| finding.loan.as_deref() == Some(&*id));
        let Some(finding) = handled else {
            // A report that is full has no finding of a difference: the loan stays marked.
            return Ok(kind.is_none().then(|| format!("{words}; no difference")));
        };
        let done = match finding.done {
            Done::Reported => "reported to the operator",
            Done::EndedHere => "ended here",
            Done::EndedThere => "ended at Bokbasen",
        };
        Ok(Some(format!("{words}; {done}: {}", finding.detail)))
    }

    fn has_finding(&self, loan: &str) -> bool {
        self.report.findings.iter().any(|finding| finding.loan.as_deref() == Some(loan))
    }
}

fn describe(there: &There) -> String {
    let remote = match there {
        There::Unknown => return "Bokbasen does not know it".to_owned(),
        There::Another => return "its id belongs to another loan at Bokbasen".to_owned(),
        There::Loan(remote) => remote,
    };
    match &remote.standing {
        Standing::Accepted(terms) => format!("Bokbasen has accepted it, due {}", terms.due),
        Standing::Pending { .. } => "Bokbasen has not decided it".to_owned(),
        Standing::Refused(refusal) => {
            format!("Bokbasen has refused it with {}", truncate(&refusal.code))
        }
        Standing::Ended(reason) => format!("it is {reason} at Bokbasen"),
        Standing::Unrecognised(status) => {
            format!("Bokbasen has it with the unknown status {}", truncate(status))
        }
    }
}

/// Returns how a loan differs from what Bokbasen says of it; none if the books agree.
fn difference(loan: &Loan, there: &There) -> Option<Kind> {
    let standing = match there {
        There::Another => return Some(Kind::RowDiffers),
        There::Unknown => {
            return (loan.state == LoanState::Accepted).then_some(Kind::UnknownThere);
        }
        There::Loan(remote) if is_of_another(loan, remote) => return Some(Kind::RowDiffers),
        There::Loan(remote) => &remote.standing,
    };
    match (loan.state, standing) {
        (_, Standing::Unrecognised(_)) => Some(Kind::UnknownStatus),
        (LoanState::Accepted, Standing::Accepted(terms)) => {
            let due = loan.terms.as_ref().map(|terms| terms.due);
            (due != Some(terms.due)).then_some(Kind::DueDiffers)
        }
        (LoanState::Accepted, Standing::Pending { .. }) => Some(Kind::RowDiffers),
        (LoanState::Accepted, Standing::Ended(_) | Standing::Refused(_)) => Some(Kind::EndedThere),
        (LoanState::Ended | LoanState::Refused, standing) if is_live(standing) => {
            Some(Kind::LiveThere)
        }
        // Over on both sides, undecided, or its end has not been acknowledged yet.
        _ => None,
    }
}
