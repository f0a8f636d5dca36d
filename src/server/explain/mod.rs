//! Explains what a request would get and why, without making it: for support.
//!
//! The admin API calls it, off the workers. It takes the steps of `dispatch` with the same
//! functions, in the same order. The gate and the delivery only preview, so nothing is begun, and
//! at most a HEAD goes to an origin.

mod explained_problem;
mod header_lines;
mod stored;
mod view;
mod walk;
mod why;

use std::fmt;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use jiff::Timestamp;

use super::authentication::authenticate;
use super::dispatch::{self, gate_request};
use super::request_checks::{check_authority, check_shape};
use super::request_config::RequestConfig;
use super::{Services, download_continuation, loans_api};
use crate::catalog::{File, Target};
use crate::clock::Clock;
use crate::delivery::{Delivery, Foreseen};
use crate::ledger::LedgerError;
use crate::loan::{Borrower, LibraryId, LoanKey};
use crate::path::RequestPath;
use crate::problem::Problem;
use crate::reader::{Reader, Readers, Scope};
use crate::reload::Current;
use crate::telemetry::RequestId;
pub(crate) use explained_problem::ExplainedProblem;
pub(crate) use header_lines::{WrongFields, parse_fields};
pub(super) use stored::AnsweredRequest;
pub(crate) use view::{Explanation, RecordedView, Step};
pub(crate) use walk::Explained;
use walk::Walk;
use why::Why;

/// Explains requests.
#[derive(Debug)]
pub(crate) struct Explainer {
    services: Arc<Services>,
    config: Current<RequestConfig>,
    /// The name in the certificate, which clients connect to; none if it has no single name.
    name: Option<String>,
    clock: Clock,
}

/// A request to explain.
#[derive(Clone)]
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
#[derive(Clone, Copy)]
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

impl fmt::Debug for Question {
    /// Shows no credential, and no borrower.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question").field("method", &self.method).finish_non_exhaustive()
    }
}

impl Explainer {
    /// Creates an explainer. No worker may use this configuration, since a delivery belongs to one
    /// runtime.
    pub(crate) fn new(
        services: Arc<Services>,
        config: Current<RequestConfig>,
        name: Option<String>,
        clock: Clock,
    ) -> Explainer {
        Explainer { services, config, name, clock }
    }

    /// Returns whose request it is; none if its credential names nobody. It fetches the key of a
    /// token first, as the request would: the explanation that follows then has the same reader.
    pub(crate) async fn asker(&self, question: &Question) -> Option<(LibraryId, Borrower)> {
        if let Asking::Borrower(library, borrower, _) = question.reader {
            return Some((library, borrower));
        }
        self.services.readers.until_keys_fetched(&question.headers).await;
        let (request, _) = self.request(question.clone()).ok()?;
        let catalog = &self.config.get().catalog;
        let (token, _) = catalog.parse(request.uri.path()).ok()?.split_token();
        let reader = authenticate(&self.services.readers, &request, token.as_deref());
        reader.ok().map(|(reader, _)| (reader.library, reader.borrower))
    }

    /// Explains a request.
    ///
    /// # Errors
    /// [`NotExplained`] if it is no request for a file.
    pub(crate) async fn explain(&self, question: Question) -> Result<Explained, NotExplained> {
        let mut walk = Walk::default();
        let (request, asking) = self.request(question)?;
        let config = self.config.get();
        let path = config
            .catalog
            .parse(request.uri.path())
            .map_err(|error| Problem::RequestMalformed(error.0));
        let result = match walk.take(Step::Path, path) {
            Ok(path) => {
                let (token, path) = path.split_token();
                if loans_api::parse_endpoint(&path).is_some() {
                    return Err(NotExplained::LoansApi);
                }
                walk.note(Step::Path, Why::PathAccepted);
                self.walk(&mut walk, &config, (&request, &path, token.as_deref()), &asking).await
            }
            Err(problem) => Err(problem),
        };
        Ok(walk.end(result.map_err(|problem| (&problem).into()), None))
    }

    /// Explains a request that was made, by its id: from memory, or from the ledger, where another
    /// gate may have stored it. Returns none if it is not stored any more.
    ///
    /// # Errors
    /// [`LedgerError`] if it is not in memory, and the ledger cannot be read.
    pub(crate) async fn recorded(&self, id: RequestId) -> Result<Option<Explained>, LedgerError> {
        let request = match self.services.recent.find(id) {
            Some(request) => request.into(),
            None => {
                let stored = self.services.ledger.request(id.uuid(), self.clock.now()).await?;
                match stored.as_ref().and_then(AnsweredRequest::of_stored) {
                    Some(request) => request,
                    None => return Ok(None),
                }
            }
        };
        let mut walk = Walk::default();
        walk.recorded(&request);
        let view = RecordedView::of(&request);
        Ok(Some(walk.end(request.answer, Some(view))))
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
        config: &RequestConfig,
        (request, path, token): (&Parts, &RequestPath, Option<&str>),
        asking: &Asking,
    ) -> Result<StatusCode, Problem> {
        let RequestConfig { catalog, delivery, .. } = config;
        walk.take(Step::Authority, check_authority(request, self.name.as_deref()))?;
        walk.note(Step::Authority, Why::HostAccepted);
        let target = walk.take(Step::Catalog, catalog.resolve(path))?;
        walk.take(Step::Catalog, check_shape(request, false))?;
        let fields = (&request.method, &request.headers);
        match target {
            Target::Open(open) => {
                let file = open.file();
                let route = catalog.route_name(file.route);
                walk.note(Step::Catalog, Why::OpenFile(route.to_owned()));
                deliver(walk, delivery, file, None, fields, None).await
            }
            Target::Loanable { titles, file, explicit } => {
                let route = catalog.route_name(file.route);
                let (isbn, others) = (titles.first(), titles.alternatives().len());
                let why = Why::TitleFound { isbn, others, route: route.to_owned() };
                walk.note(Step::Catalog, why);
                let (reader, is_expired) = self.reader(walk, request, token, asking)?;
                let continues = download_continuation::continues(&request.headers);
                let asked = gate_request(&reader, &titles, path, explicit, continues);
                let asked = walk.take(Step::Reader, asked.ok_or_else(dispatch::outside_of_link))?;
                let preview = self.services.gate.preview(&asked).await;
                let otherwise = is_expired.then(Readers::expired_link_problem);
                let key = LoanKey { isbn: preview.isbn, ..asked.key };
                walk.gate(preview.decision, &key.isbn, otherwise.clone())?;
                deliver(walk, delivery, &file, Some(&key), fields, otherwise).await
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
                let (issued, issued_ahead) = (Some(issued), false);
                let (expires, scope) = (Timestamp::MAX, Scope::All);
                let reader = Reader { library, borrower, issued, issued_ahead, expires, scope };
                (Arc::new(reader), false)
            }
        };
        walk.note(Step::Reader, Why::Authenticated(reader.library, reader.issued));
        Ok((reader, is_expired))
    }
}

async fn deliver(
    walk: &mut Walk,
    delivery: &Delivery,
    file: &File,
    loan: Option<&LoanKey>,
    fields: (&Method, &HeaderMap),
    otherwise: Option<Problem>,
) -> Result<StatusCode, Problem> {
    let Foreseen { file, status } = delivery.preview(file, loan, fields, otherwise).await;
    let (length, content_type) = walk.take(Step::Origin, file)?;
    walk.note(Step::Origin, Why::FileFound(length, content_type));
    let status = walk.take(Step::Delivery, status.unwrap_or(Err(Problem::TitleNotFound)))?;
    let why = match status {
        StatusCode::PARTIAL_CONTENT => Why::RangesSent,
        StatusCode::NOT_MODIFIED => Why::NotModified,
        _ if fields.0 == Method::HEAD => Why::FieldsSent,
        _ => Why::WholeFileSent,
    };
    walk.note(Step::Delivery, why);
    Ok(status)
}
