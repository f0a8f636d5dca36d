//! Explanations of requests: `POST /api/v1/explain`.
//!
//! The borrower's own id becomes a pseudonym at once; no response and no log contains it, nor the
//! credential of a request.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::App;
use super::accesses::Accessor;
use super::links::{check_borrower, library_of};
use super::loans::ledger_error;
use super::problems::AdminProblem;
use super::request_body;
use crate::language::Language;
use crate::ledger::AccessTarget;
use crate::problem;
use crate::reader::is_issued_ahead;
use crate::server::{
    Asking, Explained, Explanation, NotExplained, Question, WrongFields, parse_fields,
};
use crate::telemetry::RequestId;

/// A request to explain. It has no `Debug`, since it contains a borrower's own id or a credential.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ExplainRequest)]
pub(super) struct ExplainRequest {
    /// The path of the file, and a query if there is one. It may have a link's token.
    #[schema(example = "/files/9788299999014/book.epub")]
    path: Option<String>,
    /// The ISIL of the borrower's library; with `borrower`.
    #[schema(example = "NO-0301000")]
    library: Option<String>,
    /// The borrower's own id, which becomes a pseudonym at once. Without it, the credential in the
    /// path or in `headers` says who asks.
    #[schema(min_length = 1, max_length = 256)]
    borrower: Option<String>,
    /// When the borrower's credential was issued; the default is now.
    #[schema(value_type = Option<String>, format = DateTime)]
    issued: Option<Timestamp>,
    /// The method; the default is GET.
    #[schema(example = "GET")]
    method: Option<String>,
    /// Header fields of the request.
    #[serde(default)]
    #[schema(example = json!(["Range: bytes=0-"]))]
    headers: Vec<String>,
    /// The id of a request that was made, from `X-Request-Id` or a problem document's `instance`;
    /// instead of all others. Each gate stores its own last requests.
    #[schema(value_type = Option<String>, example = "f81d4fae-7dec-41d0-a765-00a0c91e6bf6")]
    request: Option<String>,
}

/// Explains what a request for a file would get, and why. Begins nothing, and sends Bokbasen
/// nothing.
#[utoipa::path(post, path = "/api/v1/explain", tag = "support", request_body = ExplainRequest,
    responses(
    (status = 200, description = "What the request would get", body = Explanation),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 404, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn explain(
    State(app): State<Arc<App>>,
    by: Accessor,
    body: Bytes,
) -> Result<Json<Explanation>, AdminProblem> {
    let request: ExplainRequest = request_body::parse(&body)?;
    if let Some(id) = &request.request {
        let id = request_id(id, &request)?;
        let target = AccessTarget::Request(id.to_string());
        let explained = app.parts.explainer.recorded(id).await.map_err(ledger_error)?;
        let made = explained.as_ref().and_then(Explained::request);
        let library = made.and_then(|made| made.library.as_ref()?.parse().ok());
        app.record_access(&by, "explain", library, Some(target)).await?;
        let explained = explained.ok_or(AdminProblem::NO_SUCH_REQUEST)?;
        return Ok(Json(explained.in_language(Language::English)));
    }
    let question = question(&app, request)?;
    let (library, borrower) = app.parts.explainer.asker(&question).await.unzip();
    app.record_access(&by, "explain", library, borrower.map(Into::into)).await?;
    let explained = app.parts.explainer.explain(question).await;
    let explained = explained.map(|explained| explained.in_language(Language::English));
    explained.map(Json).map_err(|error| match error {
        NotExplained::NoRequest => AdminProblem::malformed(
            "The method and the path make no request. Write a path that begins with a slash.",
        ),
        NotExplained::LoansApi => AdminProblem::malformed(
            "Only requests for files are explained, and this is one for the readers' API of \
             loans. Write the path of a file.",
        ),
    })
}

/// Returns the id of a request that was made, which nothing else may describe.
fn request_id(id: &str, request: &ExplainRequest) -> Result<RequestId, AdminProblem> {
    let ExplainRequest { path, library, borrower, issued, method, headers, .. } = request;
    let others = [path, library, borrower, method];
    if others.iter().any(|other| other.is_some()) || issued.is_some() || !headers.is_empty() {
        return Err(AdminProblem::malformed(
            "request names a request that was made, so nothing else describes it. Write it alone.",
        ));
    }
    RequestId::parse(id).ok_or(AdminProblem::malformed(
        "request is no id of a request. Write the UUID of the error message.",
    ))
}

fn question(app: &App, request: ExplainRequest) -> Result<Question, AdminProblem> {
    let ExplainRequest { path, library, borrower, issued, method, headers, .. } = request;
    let target = path.ok_or(AdminProblem::malformed(
        "Nothing says which request. Write path, or request for one that was made.",
    ))?;
    let reader = match (library, borrower) {
        (Some(library), Some(borrower)) => {
            let library = library_of(&library)?;
            check_borrower(&borrower)?;
            let borrower = app.parts.readers.pseudonym_to_look_up(library, &borrower);
            // A credential counts as issued when it is first seen, at the latest.
            let now = app.parts.clock.now();
            if issued.is_some_and(|issued| is_issued_ahead(issued, now)) {
                return Err(AdminProblem::malformed(
                    "issued is in the future. Write when the reader's token was issued, or leave \
                     it out for now.",
                ));
            }
            let issued = issued.unwrap_or(now);
            Asking::Borrower(library, borrower, issued)
        }
        (None, None) if issued.is_none() => Asking::Credential,
        _ => {
            return Err(AdminProblem::malformed(
                "library and borrower belong together, and issued to them. Write both, or none \
                 and a credential.",
            ));
        }
    };
    if !target.starts_with('/') {
        return Err(AdminProblem::malformed(
            "path is no path of a request. Write one that begins with a slash.",
        ));
    }
    let method = method.as_deref().unwrap_or("GET");
    let method = Method::from_bytes(method.as_bytes())
        .map_err(|_| AdminProblem::malformed("method is no method. Write one like GET."))?;
    Ok(Question { reader, method, target, headers: fields(&headers)? })
}

fn fields(lines: &[String]) -> Result<HeaderMap, AdminProblem> {
    parse_fields(lines.iter().map(String::as_str)).map_err(|wrong| match wrong {
        WrongFields::TooMany => {
            AdminProblem::malformed("headers has more than 100 fields. Write fewer.")
        }
        WrongFields::Malformed => {
            AdminProblem::malformed("headers has no header field. Write each like \"Name: value\".")
        }
    })
}
