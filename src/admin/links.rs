//! Minting of signed links: `POST /api/v1/links`.
//!
//! The borrower's own id becomes a pseudonym at once; no response and no log contains it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::accesses::Accessor;
use super::problems::AdminProblem;
use super::request_body;
use crate::loan::{Isbn, LibraryId};
use crate::problem;
use crate::reader::Scope;

/// The longest borrower id, in bytes, as in a reader token.
const MAX_BORROWER: usize = 256;
/// The default lifetime of a link.
const DEFAULT_TTL: Duration = Duration::from_secs(8 * 3600);

/// The request for a link. It has no `Debug`, since it contains a borrower's own id.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LinkRequest)]
pub(super) struct LinkRequest {
    /// The ISIL of the library that lends.
    #[schema(
        example = "NO-0301000",
        max_length = 16,
        pattern = "^[A-Za-z0-9]{1,4}-[A-Za-z0-9:/-]{1,11}$"
    )]
    library: String,
    /// The borrower's own id, 1 to 256 bytes of UTF-8, which becomes a pseudonym at once.
    #[schema(min_length = 1, max_length = 256)]
    borrower: String,
    /// The title that the link opens; exclusive with `prefix`.
    isbn: Option<String>,
    /// The path below which the link opens every file; exclusive with `isbn`.
    prefix: Option<String>,
    /// The lifetime of the link; the default is 8 hours.
    #[schema(example = "8h")]
    ttl: Option<String>,
}

/// A signed link, in the two forms that players use.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Link)]
pub(super) struct MintedLink {
    /// The link with the token in its path. Relative links below it keep the token.
    url: String,
    /// The token as a query string, to append to a file's path after a question mark.
    query: String,
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// Mints a signed link.
#[utoipa::path(post, path = "/api/v1/links", tag = "support", request_body = LinkRequest, responses(
    (status = 201, description = "The link, in both forms", body = MintedLink),
    (status = 400, response = inline(problem::Refused)),
    (status = 401, response = inline(problem::Refused)),
    (status = 503, response = inline(problem::Refused)),
))]
pub(super) async fn mint(
    State(app): State<Arc<App>>,
    by: Accessor,
    body: Bytes,
) -> Result<(StatusCode, Json<MintedLink>), AdminProblem> {
    let request: LinkRequest = request_body::parse(&body)?;
    let library = library_of(&request.library)?;
    check_borrower(&request.borrower)?;
    let (scope, below) = scope(&app, request.isbn.as_deref(), request.prefix.as_deref())?;
    let ttl = request.ttl.as_deref().map_or(Ok(DEFAULT_TTL), humantime::parse_duration);
    let readers = &app.parts.readers;
    let ttl = ttl.ok().filter(|ttl| !ttl.is_zero() && *ttl <= readers.max_lifetime());
    let ttl = ttl.ok_or(AdminProblem::malformed(
        "ttl is not a duration up to the configuration's readers.max_lifetime. Write one like 8h.",
    ))?;
    if readers.names_a_group(&request.borrower) {
        return Err(AdminProblem::malformed(
            "Links are made for borrowers without a group, and this borrower names one.",
        ));
    }
    let borrower = readers.pseudonym(library, &request.borrower);
    app.record_access(&by, "mint-link", Some(library), Some(borrower.into())).await?;
    let minted = readers.mint_link(library, borrower, &scope, ttl);
    let (token, expires) = minted.ok_or(AdminProblem::malformed(
        "No link can be made: the configuration has no [readers.links] keys, or the prefix is \
         too long.",
    ))?;
    let url = format!("{}/~{token}{below}", app.parts.public_base);
    Ok((StatusCode::CREATED, Json(MintedLink { url, query: format!("token={token}"), expires })))
}

/// Parses the ISIL of a library.
pub(super) fn library_of(text: &str) -> Result<LibraryId, AdminProblem> {
    text.parse()
        .map_err(|_| AdminProblem::malformed("library is not an ISIL. Write one like NO-0301000."))
}

/// Checks the length of a borrower's own id.
pub(super) fn check_borrower(borrower: &str) -> Result<(), AdminProblem> {
    match borrower.len() {
        1..=MAX_BORROWER => Ok(()),
        _ => Err(AdminProblem::malformed("borrower must have 1 to 256 bytes.")),
    }
}

/// Returns the scope of the link, and the path below which its files are.
fn scope(
    app: &App,
    isbn: Option<&str>,
    prefix: Option<&str>,
) -> Result<(Scope, String), AdminProblem> {
    match (isbn, prefix) {
        (Some(isbn), None) => {
            let isbn: Isbn = isbn.parse().map_err(|_| {
                AdminProblem::malformed(
                    "isbn cannot be read. Write 13 digits with a right check digit.",
                )
            })?;
            let below =
                app.parts.requests.catalog().files_of(isbn).into_iter().next().unwrap_or_default();
            Ok((Scope::Title(isbn), below))
        }
        (None, Some(prefix)) => {
            let scope =
                Scope::prefix(prefix).map_err(|error| AdminProblem::malformed(error.0.english))?;
            Ok((scope, prefix.to_owned()))
        }
        _ => Err(AdminProblem::malformed(
            "A link opens a title or a prefix. Write one of isbn and prefix.",
        )),
    }
}
