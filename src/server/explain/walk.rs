//! An explanation that is being made: its steps so far.

use http::StatusCode;

use super::view::{ExplainedStep, Explanation, Step};
use crate::gate::Previewed;
use crate::loan::Isbn;
use crate::problem::Problem;
use crate::server::dispatch;
use crate::server::recent_requests::RecentRequest;
use crate::telemetry::Via;

/// An explanation that is being made: the steps so far.
#[derive(Default)]
pub(super) struct Walk {
    steps: Vec<ExplainedStep>,
    would_begin: bool,
    assumes: Option<&'static str>,
}

impl Walk {
    pub(super) fn note(&mut self, step: Step, decision: &'static str, why: impl Into<String>) {
        self.steps.push(ExplainedStep { step, decision, why: why.into() });
    }

    /// Notes the result of a step. The problem's own sentence says why it was refused.
    pub(super) fn take<T>(&mut self, step: Step, result: Result<T, Problem>) -> Result<T, Problem> {
        result.inspect_err(|problem| self.note(step, "refused", problem.document().detail))
    }
}

impl Walk {
    pub(super) fn gate(
        &mut self,
        decision: Previewed,
        isbn: &Isbn,
        otherwise: Option<Problem>,
    ) -> Result<(), Problem> {
        match decision {
            Previewed::Permitted { loan } => {
                self.note(Step::Gate, "permitted", format!("The loan {loan} of {isbn} is open."));
            }
            Previewed::Undecided => {
                self.assumes = Some("accepted");
                let why = format!("A begin of {isbn} is under way. Bokbasen has not decided.");
                self.note(Step::Gate, "undecided", why);
            }
            Previewed::WouldBegin => {
                (self.would_begin, self.assumes) = (true, Some("accepted"));
                let why = format!(
                    "There is no loan of {isbn}. The request begins one, and Bokbasen decides."
                );
                self.note(Step::Gate, "begins a loan", why);
            }
            Previewed::Refused(problem) => {
                return self.take(Step::Gate, Err(dispatch::refusal(problem, otherwise)));
            }
        }
        Ok(())
    }

    /// Notes the steps of a request that was made.
    pub(super) fn recorded(&mut self, request: &RecentRequest) {
        self.would_begin = request.via == Via::Registered;
        let passed = match request.step {
            Step::Path => 0,
            Step::Authority => 1,
            Step::Catalog => 2,
            Step::Reader => 3,
            Step::Gate => 4,
            Step::Origin | Step::Delivery => 5,
        };
        let is_open = request.via == Via::Open;
        let steps = [
            (Step::Path, "accepted", "The path was in normal form."),
            (Step::Authority, "accepted", "The request named the host that it was sent to."),
            (Step::Catalog, "file found", "A route and, if it needs one, a title were found."),
            (Step::Reader, "authenticated", "The credential was valid, and opened the file."),
            (Step::Gate, "permitted", permitted_by(request.via)),
        ];
        for (step, decision, why) in steps.into_iter().take(passed) {
            if !(is_open && matches!(step, Step::Reader | Step::Gate)) {
                self.note(step, decision, why);
            }
        }
        match &request.answer {
            Ok(status) => {
                self.note(Step::Origin, "file found", "The origin had the file.");
                self.note(Step::Delivery, "sent", format!("The response had status {status}."));
            }
            Err(problem) => {
                let step = match problem {
                    Problem::TitleNotFound
                    | Problem::OriginFailed { .. }
                    | Problem::OriginTimeout
                        if request.step == Step::Delivery =>
                    {
                        Step::Origin
                    }
                    _ => request.step,
                };
                self.note(step, "refused", problem.document().detail);
            }
        }
    }

    pub(super) fn explanation(self, result: Result<StatusCode, Problem>) -> Explanation {
        let Walk { steps, would_begin, assumes } = self;
        let (status, kind, reason, advice) = match result {
            Ok(status) => (status, None, None, advice_for_sent(assumes, would_begin)),
            Err(problem) => {
                let guidance = problem.problem_type().guidance();
                let operator = guidance.operator.map(|text| format!(" Operator: {text}"));
                let advice = format!("App: {}{}", guidance.app, operator.unwrap_or_default());
                let reason = problem.document().reason.map(str::to_owned);
                (problem.status(), Some(problem.slug()), reason, advice)
            }
        };
        let status = status.as_u16();
        Explanation { status, kind, reason, would_begin, assumes, steps, advice, request: None }
    }
}

fn permitted_by(via: Via) -> &'static str {
    match via {
        Via::Cache => "A loan was open, as the gate had in memory.",
        Via::Ledger => "A loan was open, as the ledger said.",
        Via::Registered => "The request began a loan, and Bokbasen accepted it.",
        Via::Open | Via::None => "No loan was needed.",
    }
}

fn advice_for_sent(assumes: Option<&str>, would_begin: bool) -> String {
    match (assumes, would_begin) {
        (None, _) => "Nothing is to be done: the request succeeds.".to_owned(),
        (_, true) => "The request succeeds if Bokbasen accepts the loan. If the reader was \
             refused before, the loan's history has Bokbasen's own words."
            .to_owned(),
        (_, false) => "The request succeeds once Bokbasen accepts the loan. If it stays \
             undecided, ask Bokbasen."
            .to_owned(),
    }
}
