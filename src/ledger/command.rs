//! The commands of the executor, and the channel for the response of each.
//!
//! [`super::Ledger`] sends commands, and the executor runs them and responds after the commit.
//! There are three kinds of results: those of an intent and of an event of a loan, and the number
//! of rows that every other command returns.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::store::OldLoans;
use super::{
    Access, Cause, Delivered, Doubts, Intended, LedgerError, PauseChange, Report, ReportState,
    ReportStep,
};
use crate::loan::{Event, LibraryId, Loan, LoanId, Progress};
use crate::telemetry::LoanEvent;

/// A message to one executor.
pub(super) enum Message {
    /// Run a command that concerns the executor itself.
    Run(Box<Command>),
    /// Commit the commands that wait, close the connection and respond.
    Close(oneshot::Sender<()>),
}

/// A command with its response.
pub(super) enum Command {
    Intend(Box<Intent>, Reply<Intended>),
    Apply(Change, Reply<Loan>),
    Update(Update, Reply<u64>),
    Report(ReportWrite, Reply<u64>),
    Examine(Examination, Reply<u64>),
}

/// A new loan to write, unless a rule forbids it.
pub(super) struct Intent {
    pub(super) loan: Loan,
    /// The time at which the reader's credential was issued.
    pub(super) issued: Option<Timestamp>,
    pub(super) cause: Cause,
    /// When the caller stops waiting. An intent that no transaction has started by then is not
    /// written.
    pub(super) until: Option<Instant>,
}

/// An event to apply to a loan.
pub(super) struct Change {
    pub(super) id: LoanId,
    pub(super) event: Event,
    pub(super) cause: Cause,
}

/// An update without a step, or with steps that the update itself determines. Its result is the
/// number of changed rows.
pub(super) enum Update {
    /// Take over a loan of a dead process.
    Adopt(LoanId),
    SetProgress(LoanId, Progress),
    /// Add to the stored tallies of loans of this library.
    AddDelivered(LibraryId, Arc<[Delivered]>),
    /// Mark an accepted loan as opened.
    MarkOpened(LoanId),
    /// Replace the doubts about a library.
    ReplaceDoubts(Doubts),
    /// Replace the borrower of loans that ended long ago.
    Forget(OldLoans),
    /// Append an access to the audit trail, in the chain of this library.
    RecordAccess(LibraryId, Box<Access>),
    /// Pause or resume lending.
    SetPause(PauseChange),
    /// Write a probe row, to test that the ledger can be written.
    Probe,
}

/// A request to examine a loan, or the result of an examination, with its step.
pub(super) struct Examination {
    pub(super) id: LoanId,
    /// Whether it is the request. The result of an examination that nobody waits for is dropped.
    pub(super) is_request: bool,
    /// The reason, or the result.
    pub(super) detail: String,
}

/// A change of the books of reports, with the steps of its loans.
pub(super) enum ReportWrite {
    /// Add reports of one library, and mark loans as assessed. A package of a loan that was
    /// accepted before `since` is not reported. Returns the number of new reports.
    Add { library: LibraryId, reports: Vec<Report>, assessed: Vec<LoanId>, since: Timestamp },
    /// Change the state of a report. Returns the number of changed reports.
    Step(Box<ReportStep>),
}

impl ReportWrite {
    fn library(&self) -> LibraryId {
        match self {
            ReportWrite::Add { library, .. } => *library,
            ReportWrite::Step(step) => step.loan.library(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            ReportWrite::Add { .. } => "report-added",
            ReportWrite::Step(step) if step.to == ReportState::Sending => "report-claimed",
            ReportWrite::Step(step) if step.to == ReportState::Reported => "reported",
            ReportWrite::Step(_) => "report-changed",
        }
    }

    /// Appends the loans whose rows the steps of the change cover.
    pub(super) fn push_loans(&self, ids: &mut Vec<LoanId>) {
        match self {
            ReportWrite::Add { reports, .. } => {
                ids.extend(reports.iter().map(|report| report.loan))
            }
            ReportWrite::Step(step) => ids.push(step.loan),
        }
    }
}

impl Command {
    /// Returns the name that crash points use.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Command::Intend(..) => "intended",
            Command::Apply(change, _) => change.event.name(),
            Command::Update(update, _) => update.name(),
            Command::Report(write, _) => write.name(),
            Command::Examine(..) => "examination",
        }
    }

    /// Returns the library whose loans the command changes; none if it concerns no loan.
    pub(super) fn library(&self) -> Option<LibraryId> {
        match self {
            Command::Intend(intent, _) => Some(intent.loan.key.library),
            Command::Apply(change, _) => Some(change.id.library()),
            Command::Update(update, _) => update.library(),
            Command::Report(write, _) => Some(write.library()),
            Command::Examine(examination, _) => Some(examination.id.library()),
        }
    }

    /// Returns the id of the intent if one was written.
    pub(super) fn written_intent(&self) -> Option<LoanId> {
        match self {
            Command::Intend(_, Reply { result: Some(Ok(Intended::Written(loan))), .. }) => {
                Some(loan.id)
            }
            _ => None,
        }
    }

    /// Returns the event that the command has added to the history of a loan, for the metrics.
    pub(super) fn event(&self) -> Option<LoanEvent> {
        match self {
            Command::Intend(..) => self.written_intent().map(|_| LoanEvent::Intended),
            Command::Apply(change, reply) => {
                matches!(reply.result, Some(Ok(_))).then(|| LoanEvent::Applied(change.event.kind()))
            }
            Command::Update(..) | Command::Report(..) | Command::Examine(..) => None,
        }
    }

    /// Sends the response: the result after a commit, or why nothing was committed.
    pub(super) fn respond(self, committed: Result<(), &str>) {
        match self {
            Command::Intend(_, reply) => reply.send(committed),
            Command::Apply(_, reply) => reply.send(committed),
            Command::Update(_, reply) | Command::Report(_, reply) | Command::Examine(_, reply) => {
                reply.send(committed)
            }
        }
    }

    /// Responds that the database never accepts the command.
    pub(super) fn reject(mut self, why: &str) {
        let error = LedgerError::Unwritable(why.to_owned());
        match &mut self {
            Command::Intend(_, reply) => reply.set(Err(error)),
            Command::Apply(_, reply) => reply.set(Err(error)),
            Command::Update(_, reply) | Command::Report(_, reply) | Command::Examine(_, reply) => {
                reply.set(Err(error))
            }
        }
        self.respond(Ok(()));
    }
}

impl Update {
    fn library(&self) -> Option<LibraryId> {
        match self {
            Update::Adopt(_) | Update::SetProgress(..) | Update::MarkOpened(_) => {
                self.loan().map(LoanId::library)
            }
            Update::AddDelivered(library, _) | Update::RecordAccess(library, _) => Some(*library),
            Update::Forget(loans) => loans.library,
            Update::ReplaceDoubts(doubts) => Some(doubts.library),
            Update::SetPause(_) | Update::Probe => None,
        }
    }

    /// Returns the loan whose row the update changes, if it is one.
    pub(super) fn loan(&self) -> Option<LoanId> {
        match self {
            Update::Adopt(id) | Update::SetProgress(id, _) | Update::MarkOpened(id) => Some(*id),
            _ => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Update::Adopt(_) => "adopted",
            Update::SetProgress(..) => "progress",
            Update::AddDelivered(..) => "delivered",
            Update::MarkOpened(_) => "opened",
            Update::ReplaceDoubts(_) => "doubts",
            Update::Forget(_) => "forgotten",
            Update::RecordAccess(..) => "access",
            Update::SetPause(_) => "paused",
            Update::Probe => "tested",
        }
    }
}

/// The response of a command: its result waits here until the transaction is committed.
pub(super) struct Reply<T> {
    sender: oneshot::Sender<Result<T, LedgerError>>,
    result: Option<Result<T, LedgerError>>,
}

/// The receiver of a [`Reply`]. An error means that the executor has ended.
pub(super) type Response<T> = oneshot::Receiver<Result<T, LedgerError>>;

impl<T> Reply<T> {
    pub(super) fn new() -> (Reply<T>, Response<T>) {
        let (sender, response) = oneshot::channel();
        (Reply { sender, result: None }, response)
    }

    /// Stores the result until the commit.
    pub(super) fn set(&mut self, result: Result<T, LedgerError>) {
        self.result = Some(result);
    }

    fn send(self, committed: Result<(), &str>) {
        let result = match committed {
            Ok(()) => self.result,
            Err(why) => Some(Err(LedgerError::Commit(why.to_owned()))),
        };
        // The caller may have dropped its future. That does not cancel the write.
        if let Some(result) = result {
            let _ = self.sender.send(result);
        }
    }
}
