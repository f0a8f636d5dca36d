//! The path of a request through the gate: reader, catalog, gate, delivery.
//!
//! [`dispatch`] always returns a response: it counts the response, and adds the fields that each
//! one has. [`process`] takes the steps, and may end at each of them with a [`Problem`]. The log
//! line of the request is written when its body ends.

use std::pin::pin;
use std::sync::Arc;

use http::header::{HeaderName, RANGE};
use http::request::Parts;
use http::{Request, Response};
use http_body::Body as _;

use super::authentication::{authenticate, authenticate_with_new_keys};
use super::connection::ConnectionInfo;
use super::explain::Step;
use super::recent_requests::{Asked, RecentRequest};
use super::request_body::RequestBody;
use super::request_checks::{check_authority, check_shape};
use super::request_config::RequestConfig;
use super::{Services, download_continuation, loans_api, problem_response};
use crate::catalog::{Target, Titles};
use crate::delivery::{Body, Delivered, Pass};
use crate::gate;
use crate::loan::Isbn;
use crate::path::RequestPath;
use crate::problem::Problem;
use crate::reader::{Reader, Readers};
use crate::telemetry::{RequestId, RequestLine, RequestOutcome, StreamEnd, Via, logged_method};

/// The response field with the id of the request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the steps of one request share.
struct Context<'a> {
    services: &'a Services,
    config: &'a RequestConfig,
    connection: &'a ConnectionInfo,
    request: &'a Parts,
    log: RequestLine,
    seen: Seen,
}

/// What is recorded of a request, for support.
struct Seen {
    step: Step,
    path: Option<Arc<str>>,
    asked: Option<Asked>,
}

/// Responds to one request.
pub(super) async fn dispatch(
    services: &Services,
    config: &RequestConfig,
    connection: &ConnectionInfo,
    request: Request<RequestBody>,
) -> Response<Body> {
    let (request, body) = request.into_parts();
    let id = RequestId::generate();
    let log = RequestLine::start(id, connection.client, &request.method, request.version);
    let seen = Seen { step: Step::Path, path: None, asked: None };
    let mut context = Context { services, config, connection, request: &request, log, seen };
    let mut response = match config.cors.preflight(&request.method, &request.headers) {
        Some(response) => {
            let took = context.log.began().elapsed();
            services.metrics.request(RequestOutcome::Preflight, Via::None, took);
            response
        }
        None => {
            let (headers, is_trusted) = (&request.headers, connection.is_trusted);
            let trace = services.tracer.request(id, headers, is_trusted);
            context.log.trace(trace.clone());
            let processed = id.poll_within(trace, pin!(process(&mut context, body))).await;
            let mut response = context.response(id, processed);
            config.cors.add_response_fields(&request.headers, &mut response);
            response
        }
    };
    config.security.add(response.headers_mut());
    if let Some(id) = id.field() {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

impl Context<'_> {
    /// Records that the request has reached a step, and begins a span of its trace.
    fn enter(&mut self, step: Step, span: &'static str) {
        self.seen.step = step;
        self.log.enter(span);
    }

    /// Counts the request, and turns a problem into its response.
    fn response(self, id: RequestId, processed: Result<Response<Body>, Problem>) -> Response<Body> {
        let (metrics, mut log) = (&self.services.metrics, self.log);
        let (via, took) = (log.permitted_via(), log.began().elapsed());
        if let Some(exemplar) = log.exemplar(took) {
            metrics.exemplar(via, exemplar);
        }
        self.services.recent.record(RecentRequest {
            id,
            began: log.began(),
            method: logged_method(&self.request.method),
            path: self.seen.path,
            step: self.seen.step,
            asked: self.seen.asked,
            via,
            answer: processed.as_ref().map(Response::status).map_err(Problem::clone),
        });
        match processed {
            Ok(response) => {
                metrics.request(RequestOutcome::Ok, via, took);
                response
            }
            Err(problem) => {
                metrics.request(RequestOutcome::Refused(problem.problem_type()), via, took);
                log.outcome(problem.status().as_u16(), problem.slug());
                log.finish(0, 0, StreamEnd::Complete, took);
                problem_response::problem(&problem, id, &self.request.method, self.request.version)
            }
        }
    }
}

async fn process(context: &mut Context<'_>, body: RequestBody) -> Result<Response<Body>, Problem> {
    let (services, request) = (context.services, context.request);
    let catalog = &context.config.catalog;
    let path =
        catalog.parse(request.uri.path()).map_err(|error| Problem::RequestMalformed(error.0))?;
    let (token, path) = path.split_token();
    // A token may be in another place of a mistyped address, and staff read the recent requests.
    context.seen.path = (!path.decoded().contains("/~")).then(|| path.shared());
    context.seen.step = Step::Authority;
    check_authority(request, context.connection.name.as_deref())?;
    context.seen.step = Step::Catalog;
    if let Some(endpoint) = loans_api::parse_endpoint(&path) {
        context.log.route("/loans");
        // Boxed: it is twice as large as a delivery, and hyper copies the future of each request.
        return Box::pin(process_loans(context, body, endpoint?, token.as_deref())).await;
    }
    let target = catalog.resolve(&path)?;
    context.log.range(request.headers.get(RANGE));
    check_shape(request, !body.is_end_stream())?;
    drop(body);
    let pass = match target {
        Target::Open(file) => {
            context.log.via(Via::Open).route(catalog.route_name(file.file().route));
            Pass::Open(file)
        }
        Target::Loanable { titles, file, explicit } => {
            context.log.route(catalog.route_name(file.route)).isbn(titles.first());
            context.enter(Step::Reader, "reader");
            let (readers, token) = (&context.services.readers, token.as_deref());
            let (reader, is_expired) = match authenticate(readers, request, token) {
                // Boxed: it is rare, and hyper copies the future of each request.
                Err(Problem::LoginUnavailable { .. }) => {
                    Box::pin(authenticate_with_new_keys(readers, request, token)).await?
                }
                authenticated => authenticated?,
            };
            let (key, issued) = (reader.key(titles.first()), reader.issued);
            context.seen.asked = Some(Asked { key, issued });
            context.connection.connection.note_credentials();
            let continues = download_continuation::continues(&request.headers);
            let loan_request = gate_request(&reader, &titles, &path, explicit, continues)
                .ok_or_else(outside_of_link)?;
            context.enter(Step::Gate, "gate");
            let admission = services.gate.admit(&loan_request).await;
            context.log.via(admission.via).isbn(admission.isbn);
            context.seen.asked = Some(Asked { key: reader.key(admission.isbn), issued });
            let otherwise = is_expired.then(Readers::expired_link_problem);
            match (admission.permit, otherwise) {
                (Ok(permit), None) => Pass::Loan(permit, file),
                (Ok(permit), Some(otherwise)) => Pass::Continuation { permit, file, otherwise },
                (Err(problem), otherwise) => return Err(refusal(problem, otherwise)),
            }
        }
    };
    context.enter(Step::Delivery, "delivery");
    deliver(context, pass).await
}

/// Returns the problem for a reader without a permit. `otherwise` is that of an expired link.
pub(super) fn refusal(problem: Problem, otherwise: Option<Problem>) -> Problem {
    match (problem, otherwise) {
        // A new link helps. Only the end of the loan is final, and the reader learns of it.
        (Problem::LoanRefused { .. }, Some(otherwise)) => otherwise,
        (problem, _) => problem,
    }
}

async fn deliver(context: &Context<'_>, pass: Pass) -> Result<Response<Body>, Problem> {
    let log = context.log.clone();
    let on_end = Box::new(move |delivered: Delivered| write_line(log, &delivered));
    let (request, connection) = (context.request, &context.connection.connection);
    context
        .config
        .delivery
        .deliver(pass, &request.method, &request.headers, connection, on_end)
        .await
}

/// Processes a request for the reader's loans. Its response is complete when it is created.
async fn process_loans(
    context: &mut Context<'_>,
    body: RequestBody,
    endpoint: loans_api::LoansEndpoint,
    link: Option<&str>,
) -> Result<Response<Body>, Problem> {
    let (services, request) = (context.services, context.request);
    let (headers, method) = (&request.headers, &request.method);
    loans_api::check_method(endpoint, method)?;
    context.enter(Step::Reader, "reader");
    let (readers, query) = (&services.readers, request.uri.query());
    let mut reader = readers.authenticate(headers, query, link);
    if matches!(reader, Err(Problem::LoginUnavailable { .. })) {
        Box::pin(readers.until_keys_fetched(headers)).await;
        reader = readers.authenticate(headers, query, link);
    }
    let reader = reader?;
    context.connection.connection.note_credentials();
    if let Some(isbn) = endpoint.isbn() {
        context.log.isbn(isbn);
        context.seen.asked = Some(Asked { key: reader.key(isbn), issued: reader.issued });
    }
    context.enter(Step::Gate, "gate");
    let resources = (services, context.config);
    let response = loans_api::answer(resources, &reader, method, body, endpoint).await?;
    let mut log = context.log.clone();
    log.outcome(response.status().as_u16(), "ok");
    let (bytes, head) = (response.body().size_hint().lower(), log.began().elapsed());
    log.finish(bytes, 0, StreamEnd::Complete, head);
    Ok(response)
}

fn write_line(mut log: RequestLine, delivered: &Delivered) {
    log.outcome(delivered.status.as_u16(), "ok");
    let head = delivered.opened.duration_since(log.began());
    log.finish(delivered.bytes, delivered.resumes, delivered.end, head);
}

/// Returns the request to the gate for a file of these titles, or none if the credential opens none
/// of them.
pub(super) fn gate_request<'a>(
    reader: &Reader,
    titles: &'a Titles,
    path: &RequestPath,
    explicit: bool,
    continues: bool,
) -> Option<gate::Request<'a>> {
    let opens = |isbn: &Isbn| reader.opens(Some(*isbn), path);
    let (first, alternatives) = (titles.first(), titles.alternatives());
    let (isbn, alternatives, explicit) = if !opens(&first) {
        // A link to a title that is not named first: its loan opens the file, and no request for
        // the file begins it.
        (*alternatives.iter().find(|isbn| opens(isbn))?, &[][..], true)
    } else if alternatives.iter().all(opens) {
        (first, alternatives, explicit)
    } else {
        (first, &[][..], explicit)
    };
    Some(gate::Request {
        key: reader.key(isbn),
        alternative_titles: alternatives,
        issued: reader.issued,
        issued_ahead: reader.issued_ahead,
        continues,
        explicit,
    })
}

pub(super) fn outside_of_link() -> Problem {
    Problem::LoanRefused { reason: "outside-of-link".to_owned(), retry_after: None }
}
