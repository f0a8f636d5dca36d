//! The walk of a request through its steps: first what each decided, then an explanation of it.

use http::StatusCode;

use super::explained_problem::ExplainedProblem;
use super::stored::AnsweredRequest;
use super::view::{ExplainedStep, Explanation, RecordedView, Step};
use super::why::Why;
use crate::gate::Previewed;
use crate::language::{Language, Sentence};
use crate::loan::Isbn;
use crate::problem::{Problem, ProblemType};
use crate::server::dispatch;
use crate::telemetry::Via;

/// An explanation that is being made: the steps so far.
#[derive(Default)]
pub(super) struct Walk {
    steps: Vec<(Step, Why)>,
    would_begin: bool,
    assumes: Option<&'static str>,
}

impl Walk {
    pub(super) fn note(&mut self, step: Step, why: Why) {
        self.steps.push((step, why));
    }

    /// Notes the result of a step. The problem's own sentence says why it was refused.
    pub(super) fn take<T>(&mut self, step: Step, result: Result<T, Problem>) -> Result<T, Problem> {
        result.inspect_err(|problem| self.note(step, Why::Refused(problem.into())))
    }

    pub(super) fn gate(
        &mut self,
        decision: Previewed,
        isbn: &Isbn,
        otherwise: Option<Problem>,
    ) -> Result<(), Problem> {
        match decision {
            Previewed::Permitted { loan } => {
                self.note(Step::Gate, Why::Permitted(loan, *isbn));
            }
            Previewed::Undecided => {
                self.assumes = Some("accepted");
                self.note(Step::Gate, Why::Undecided(*isbn));
            }
            Previewed::WouldBegin => {
                (self.would_begin, self.assumes) = (true, Some("accepted"));
                self.note(Step::Gate, Why::WouldBegin(*isbn));
            }
            Previewed::Refused(problem) => {
                return self.take(Step::Gate, Err(dispatch::refusal(problem, otherwise)));
            }
        }
        Ok(())
    }

    /// Notes the steps of a request that was made.
    pub(super) fn recorded(&mut self, request: &AnsweredRequest) {
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
            (Step::Path, Why::Passed(Step::Path)),
            (Step::Authority, Why::Passed(Step::Authority)),
            (Step::Catalog, Why::Passed(Step::Catalog)),
            (Step::Reader, Why::Passed(Step::Reader)),
            (Step::Gate, Why::PermittedBy(request.via)),
        ];
        for (step, why) in steps.into_iter().take(passed) {
            if !(is_open && matches!(step, Step::Reader | Step::Gate)) {
                self.note(step, why);
            }
        }
        match &request.answer {
            Ok(status) => {
                self.note(Step::Origin, Why::HadFile);
                self.note(Step::Delivery, Why::Responded(*status));
            }
            Err(problem) => {
                let step = match problem.problem_type() {
                    ProblemType::TitleNotFound
                    | ProblemType::OriginFailed
                    | ProblemType::OriginTimeout
                        if request.step == Step::Delivery =>
                    {
                        Step::Origin
                    }
                    _ => request.step,
                };
                self.note(step, Why::Refused(problem.clone()));
            }
        }
    }

    /// Ends the walk with the response. `request` is the one that was made, if it was.
    pub(super) fn end(
        self,
        result: Result<StatusCode, ExplainedProblem>,
        request: Option<RecordedView>,
    ) -> Explained {
        Explained { walk: self, result, request }
    }
}

/// What a request gets and why, in no language yet.
pub(crate) struct Explained {
    walk: Walk,
    result: Result<StatusCode, ExplainedProblem>,
    request: Option<RecordedView>,
}

impl Explained {
    /// Returns the request that was made; none if it is only described.
    pub(crate) fn request(&self) -> Option<&RecordedView> {
        self.request.as_ref()
    }

    /// Returns the problem with which the request ends; none if the file is sent.
    pub(crate) fn problem(&self) -> Option<&ExplainedProblem> {
        self.result.as_ref().err()
    }

    /// Returns the explanation in a language.
    pub(crate) fn in_language(self, language: Language) -> Explanation {
        let Explained { walk: Walk { steps, would_begin, assumes }, result, request } = self;
        let steps = steps.into_iter().map(|(step, why)| ExplainedStep {
            step,
            decision: why.decision().text(language),
            why: why.sentence(language),
        });
        let (status, kind, reason, advice) = match result {
            Ok(status) => {
                let advice = advice_for_sent(assumes, would_begin).text(language).to_owned();
                (status, None, None, advice)
            }
            Err(problem) => {
                let advice = advice_about(&problem, language);
                let reason = problem.reason().map(str::to_owned);
                let kind = problem.problem_type();
                (kind.status(), Some(kind.slug()), reason, advice)
            }
        };
        let (status, steps) = (status.as_u16(), steps.collect());
        Explanation { status, kind, reason, would_begin, assumes, steps, advice, request }
    }
}

fn advice_about(problem: &ExplainedProblem, language: Language) -> String {
    let guidance = problem.problem_type().guidance();
    let (app, operator) = match language {
        Language::English => ("App", "Operator"),
        Language::Norwegian => ("Appen", "Driften"),
    };
    let for_app = guidance.app.text(language);
    match guidance.operator {
        Some(sentence) => format!("{app}: {for_app} {operator}: {}", sentence.text(language)),
        None => format!("{app}: {for_app}"),
    }
}

fn advice_for_sent(assumes: Option<&str>, would_begin: bool) -> &'static Sentence {
    match (assumes, would_begin) {
        (None, _) => &Sentence {
            english: "Nothing is to be done: the request succeeds.",
            norwegian: "Ingenting å gjøre: forespørselen lykkes.",
        },
        (_, true) => &Sentence {
            english: "The request succeeds if Bokbasen accepts the loan. If the reader was refused \
                      before, the loan's history has Bokbasen's own words.",
            norwegian: "Forespørselen lykkes hvis Bokbasen godtar lånet. Ble leseren avvist før, \
                        har lånets historikk Bokbasens egne ord.",
        },
        (_, false) => &Sentence {
            english: "The request succeeds once Bokbasen accepts the loan. If it stays undecided, \
                      ask Bokbasen.",
            norwegian: "Forespørselen lykkes når Bokbasen godtar lånet. Blir det stående uavgjort, \
                        spør Bokbasen.",
        },
    }
}
