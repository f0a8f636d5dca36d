//! Explains what a request would get and why, without making it: for support.
//!
//! The admin API calls it, off the workers. It takes the steps of `dispatch` with the same
//! functions, in the same order. The gate and the delivery only preview, so nothing is begun, and
//! at most a HEAD goes to an origin.

use std::fmt;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::dispatch::{self, authenticate, check_authority, check_shape, gate_request};
use super::recent_requests::{RecentRequest, time_of};
use super::{Services, download_continuation, loans_api};
use crate::catalog::{File, Target, Titles};
use crate::delivery::{Delivery, Foreseen};
use crate::gate::Previewed;
use crate::loan::{Borrower, Isbn, LibraryId, LoanKey};
use crate::path::RequestPath;
use crate::problem::Problem;
use crate::reader::{Reader, Readers, Scope};
use crate::telemetry::{RequestId, Via, logged_method};

/// Explains requests. It has a delivery of its own, since each belongs to one runtime.
#[derive(Debug)]
pub(crate) struct Explainer {
    services: Arc<Services>,
    delivery: Delivery,
    /// The name in the certificate, which clients connect to; none if it has no single name.
    name: Option<String>,
}

/// A request to explain.
pub(crate) struct Question {
    /// Who asks.
    pub(crate) reader: Asking,
    /// The method.
    pub(crate) method: Method,
    /// The path, which may have a link's token, and a query.
    pub(crate) target: String,
    /// The header fields.
    pub(crate) headers: HeaderMap,
}

/// Who asks for the file.
pub(crate) enum Asking {
    /// A borrower, whose credential was issued at this time.
    Borrower(LibraryId, Borrower, Timestamp),
    /// Whoever the credential in the request names.
    Credential,
}

/// Why a request cannot be explained.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotExplained {
    /// The method, the path or a field is none that HTTP can transmit.
    NoRequest,
    /// It is a request to the API of loans.
    LoansApi,
}

/// What a request would get, and why.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Explanation {
    /// The status of the response.
    status: u16,
    /// The type of the problem document; none if the file is sent.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "loan-refused")]
    kind: Option<&'static str>,
    /// The code of the refusal, or the name of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    reason: Option<String>,
    /// Whether the request would begin a loan at Bokbasen.
    would_begin: bool,
    /// `accepted` if `status` holds only if Bokbasen accepts the loan: one that the request would
    /// begin, or one that is not decided yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "accepted")]
    assumes: Option<&'static str>,
    /// The steps of the request, in their order. The last one is decisive.
    steps: Vec<ExplainedStep>,
    /// What the reader, the app or the operator can do.
    advice: String,
    /// The request, if it is one that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = RecordedView, required = false)]
    request: Option<RecordedView>,
}

/// A request that was made.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RecordedRequest)]
pub(crate) struct RecordedView {
    id: String,
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    method: String,
    /// The path without a link's token; none if it was not in normal form.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    path: Option<String>,
    /// The ISIL of the borrower's library; none without a valid credential, as the next members.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    library: Option<String>,
    /// The borrower's pseudonym.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    borrower: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    isbn: Option<String>,
    /// When the credential was issued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = DateTime)]
    issued: Option<Timestamp>,
}

impl RecordedView {
    fn of(request: &RecentRequest) -> RecordedView {
        let RecentRequest { id, began, method, path, asked, .. } = request;
        let key = asked.as_ref().map(|asked| &asked.key);
        RecordedView {
            id: id.to_string(),
            at: time_of(*began),
            // An invented method may be anything, even a token.
            method: logged_method(method).to_owned(),
            path: path.as_deref().map(str::to_owned),
            library: key.map(|key| key.library.to_string()),
            borrower: key.map(|key| key.borrower.to_string()),
            isbn: key.map(|key| key.isbn.to_string()),
            issued: asked.as_ref().and_then(|asked| asked.issued),
        }
    }
}

/// A step of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ExplainedStep)]
pub(crate) struct ExplainedStep {
    step: Step,
    /// What the step decided, in a word or two.
    decision: &'static str,
    /// Why, as a sentence.
    why: String,
}

/// The steps of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = StepOfRequest)]
pub(crate) enum Step {
    /// The path is in normal form.
    Path,
    /// The request names this gate.
    Authority,
    /// A route and a title are found.
    Catalog,
    /// The credential is valid, and opens the file.
    Reader,
    /// There is a loan, or one may be begun.
    Gate,
    /// The origin has the file.
    Origin,
    /// What is sent of the file.
    Delivery,
}

/// An explanation that is being made: the steps so far.
#[derive(Default)]
struct Walk {
    steps: Vec<ExplainedStep>,
    would_begin: bool,
    assumes: Option<&'static str>,
}

impl Walk {
    fn note(&mut self, step: Step, decision: &'static str, why: impl Into<String>) {
        self.steps.push(ExplainedStep { step, decision, why: why.into() });
    }

    /// Notes the result of a step. The problem's own sentence says why it was refused.
    fn take<T>(&mut self, step: Step, result: Result<T, Problem>) -> Result<T, Problem> {
        result.inspect_err(|problem| self.note(step, "refused", problem.document().detail))
    }
}

impl fmt::Debug for Question {
    /// Shows no credential, and no borrower.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Explainer {
    /// Creates an explainer with this delivery, which no worker may use.
    pub(crate) fn new(
        services: Arc<Services>,
        delivery: Delivery,
        name: Option<String>,
    ) -> Explainer {
        Explainer { services, delivery, name }
    }

    /// Explains a request.
    ///
    /// # Errors
    /// [`NotExplained`] if it is no request for a file.
    pub(crate) async fn explain(&self, question: Question) -> Result<Explanation, NotExplained> {
        let mut walk = Walk::default();
        let (request, asking) = self.request(question)?;
        let path = RequestPath::parse(request.uri.path())
            .map_err(|error| Problem::RequestMalformed(error.0));
        let result = match walk.take(Step::Path, path) {
            Ok(path) => {
                let (token, path) = path.split_token();
                if loans_api::parse_endpoint(&path).is_some() {
                    return Err(NotExplained::LoansApi);
                }
                walk.note(Step::Path, "accepted", "The path is in normal form.");
                self.walk(&mut walk, (&request, &path, token.as_deref()), &asking).await
            }
            Err(problem) => Err(problem),
        };
        Ok(walk.explanation(result))
    }

    /// Explains a request that was made, by its id. Returns none if it is not stored any more.
    pub(crate) fn recorded(&self, id: RequestId) -> Option<Explanation> {
        let request = self.services.recent.find(id)?;
        let mut walk = Walk::default();
        walk.recorded(&request);
        let view = RecordedView::of(&request);
        let explained = walk.explanation(request.answer);
        Some(Explanation { request: Some(view), ..explained })
    }

    /// Builds the request as a client would send it.
    fn request(&self, question: Question) -> Result<(Parts, Asking), NotExplained> {
        let Question { reader, method, target, headers } = question;
        let request = Request::builder().method(method).uri(target.as_str());
        let request = request.body(()).map_err(|_| NotExplained::NoRequest)?;
        let mut request = request.into_parts().0;
        request.headers = headers;
        if let Some(name) = self.name.as_deref().filter(|_| !request.headers.contains_key(HOST)) {
            let name = HeaderValue::from_str(name).map_err(|_| NotExplained::NoRequest)?;
            request.headers.insert(HOST, name);
        }
        Ok((request, reader))
    }

    /// Takes the steps of `dispatch::process`.
    async fn walk(
        &self,
        walk: &mut Walk,
        (request, path, token): (&Parts, &RequestPath, Option<&str>),
        asking: &Asking,
    ) -> Result<StatusCode, Problem> {
        let catalog = &self.services.catalog;
        walk.take(Step::Authority, check_authority(request, self.name.as_deref()))?;
        walk.note(Step::Authority, "accepted", "The request names the host that it was sent to.");
        let target = walk.take(Step::Catalog, catalog.resolve(path))?;
        walk.take(Step::Catalog, check_shape(request, false))?;
        let fields = (&request.method, &request.headers);
        match target {
            Target::Open(open) => {
                let file = open.file();
                let route = catalog.route_name(file.route);
                let why = format!("The open route {route} needs no loan.");
                walk.note(Step::Catalog, "open file", why);
                self.deliver(walk, file, None, fields, None).await
            }
            Target::Loanable { titles, file, explicit } => {
                let route = catalog.route_name(file.route);
                let why = format!("It is a file of {} by the route {route}.", named(&titles));
                walk.note(Step::Catalog, "title found", why);
                let (reader, is_expired) = self.reader(walk, request, token, asking)?;
                let continues = download_continuation::continues(&request.headers);
                let asked = gate_request(&reader, &titles, path, explicit, continues);
                let asked = walk.take(Step::Reader, asked.ok_or_else(dispatch::outside_of_link))?;
                let preview = self.services.gate.preview(&asked).await;
                let otherwise = is_expired.then(Readers::expired_link_problem);
                let key = LoanKey { isbn: preview.isbn, ..asked.key };
                walk.gate(preview.decision, &key.isbn, otherwise.clone())?;
                self.deliver(walk, &file, Some(&key), fields, otherwise).await
            }
        }
    }

    fn reader(
        &self,
        walk: &mut Walk,
        request: &Parts,
        token: Option<&str>,
        asking: &Asking,
    ) -> Result<(Arc<Reader>, bool), Problem> {
        let (reader, is_expired) = match *asking {
            Asking::Credential => {
                let found = authenticate(&self.services.readers, request, token);
                walk.take(Step::Reader, found)?
            }
            Asking::Borrower(library, borrower, issued) => {
                let (issued, expires) = (Some(issued), Timestamp::MAX);
                let scope = Scope::All;
                (Arc::new(Reader { library, borrower, issued, expires, scope }), false)
            }
        };
        let issued = reader.issued.map_or_else(|| "at no known time".into(), |at| at.to_string());
        let why = format!("A borrower of {}, with a credential issued {issued}.", reader.library);
        walk.note(Step::Reader, "authenticated", why);
        Ok((reader, is_expired))
    }

    async fn deliver(
        &self,
        walk: &mut Walk,
        file: &File,
        loan: Option<&LoanKey>,
        fields: (&Method, &HeaderMap),
        otherwise: Option<Problem>,
    ) -> Result<StatusCode, Problem> {
        let Foreseen { file, status } = self.delivery.preview(file, loan, fields, otherwise).await;
        let (length, content_type) = walk.take(Step::Origin, file)?;
        let length = length.map_or_else(|| "of unknown length".into(), |n| format!("of {n} bytes"));
        let content_type = content_type.map_or_else(String::new, |is| format!(", {is}"));
        let why = format!("The origin has the file, {length}{content_type}.");
        walk.note(Step::Origin, "file found", why);
        let status = walk.take(Step::Delivery, status.unwrap_or(Err(Problem::TitleNotFound)))?;
        let what = match status {
            StatusCode::PARTIAL_CONTENT => "The requested ranges of the file are sent.",
            StatusCode::NOT_MODIFIED => "The app has the current file already.",
            _ if fields.0 == Method::HEAD => "The fields of the file are sent.",
            _ => "The whole file is sent.",
        };
        walk.note(Step::Delivery, "sent", what);
        Ok(status)
    }
}

impl Walk {
    fn gate(
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
    fn recorded(&mut self, request: &RecentRequest) {
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

    fn explanation(self, result: Result<StatusCode, Problem>) -> Explanation {
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

fn named(titles: &Titles) -> String {
    let others = titles.alternatives().len();
    match others {
        0 => titles.first().to_string(),
        _ => format!("{} and {others} more titles", titles.first()),
    }
}
