//! Minting signed links: `POST /api/v1/links`.
//!
//! The borrower's own id comes in and becomes a pseudonym at once; no answer and no log has it.

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
use super::problems::Refused;
use crate::loan::{Isbn, LibraryId};
use crate::problem;
use crate::reader::Scope;

/// The longest id of a borrower, in bytes, as in a reader's token.
const MAX_BORROWER: usize = 256;
/// How long a link is good for where nobody says.
const TTL: Duration = Duration::from_secs(8 * 3600);

/// No `Debug`: it holds a borrower's own id.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = LinkWish)]
pub(super) struct Wish {
    /// An ISIL.
    #[schema(
        example = "NO-0301000",
        max_length = 16,
        pattern = "^[A-Za-z0-9]{1,4}-[A-Za-z0-9:/-]{1,11}$"
    )]
    library: String,
    /// The borrower's own id, 1 to 256 bytes of UTF-8, which becomes a pseudonym at once.
    #[schema(min_length = 1, max_length = 256)]
    borrower: String,
    /// The title that it opens; or else a prefix.
    isbn: Option<String>,
    /// The path below which it opens everything; or else a title.
    prefix: Option<String>,
    /// How long it is good for; else 8 hours.
    #[schema(example = "8h")]
    ttl: Option<String>,
}

/// A link that was minted.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Link)]
pub(super) struct Minted {
    /// In the path form: relative links below it keep the token.
    url: String,
    /// In the query form: to be put after a file's path and a question mark.
    query: String,
    #[schema(value_type = String, format = DateTime)]
    expires: Timestamp,
}

/// Mints a signed link.
#[utoipa::path(post, path = "/api/v1/links", tag = "support", request_body = Wish, responses(
    (status = 201, description = "The link, in both forms", body = Minted),
    (status = 400, response = inline(problem::Refused)), (status = 401, response = inline(problem::Refused)),
))]
pub(super) async fn mint(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Result<(StatusCode, Json<Minted>), Refused> {
    // serde's sentence names a field or a place, and repeats no value of a string.
    let wish: Wish = serde_json::from_slice(&body)
        .map_err(|error| Refused::malformed(format!("The body cannot be read: {error}.")))?;
    let library: LibraryId = wish
        .library
        .parse()
        .map_err(|_| Refused::malformed("library is not an ISIL. Write one like NO-0301000."))?;
    if !(1..=MAX_BORROWER).contains(&wish.borrower.len()) {
        return Err(Refused::malformed("borrower must have 1 to 256 bytes."));
    }
    let (scope, below) = scope(&app, wish.isbn.as_deref(), wish.prefix.as_deref())?;
    let ttl = wish.ttl.as_deref().map_or(Ok(TTL), humantime::parse_duration);
    let readers = &app.parts.readers;
    let ttl = ttl.ok().filter(|ttl| !ttl.is_zero() && *ttl <= readers.max_lifetime());
    let ttl = ttl.ok_or(Refused::malformed(
        "ttl is not a duration up to the configuration's readers.max_lifetime. Write one like 8h.",
    ))?;
    let borrower = readers.pseudonym(library, &wish.borrower);
    let minted = readers.mint_link(library, borrower, &scope, ttl);
    let (token, expires) = minted.ok_or(Refused::malformed(
        "No link can be made: the configuration has no [readers.links] keys, or the prefix is too long.",
    ))?;
    let url = format!("{}/~{token}{below}", app.parts.public_base);
    Ok((StatusCode::CREATED, Json(Minted { url, query: format!("token={token}"), expires })))
}

/// What the link opens, and the path below which that lies.
fn scope(app: &App, isbn: Option<&str>, prefix: Option<&str>) -> Result<(Scope, String), Refused> {
    match (isbn, prefix) {
        (Some(isbn), None) => {
            let isbn: Isbn = isbn.parse().map_err(|_| {
                Refused::malformed("isbn cannot be read. Write 13 digits with a right check digit.")
            })?;
            let below = app.parts.catalog.files_of(isbn).into_iter().next().unwrap_or_default();
            Ok((Scope::Title(isbn), below))
        }
        (None, Some(prefix)) => {
            let scope = Scope::prefix(prefix).map_err(|error| Refused::malformed(error.0))?;
            Ok((scope, prefix.to_owned()))
        }
        _ => Err(Refused::malformed(
            "A link opens a title or a prefix. Write one of isbn and prefix.",
        )),
    }
}
