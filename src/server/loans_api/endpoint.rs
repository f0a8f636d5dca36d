//! The endpoints of the loans API, by their paths.

use crate::loan::Isbn;
use crate::path::RequestPath;
use crate::problem::Problem;

/// An endpoint of the loans API, as its path names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) enum LoansEndpoint {
    /// `/loans`
    All,
    /// `/loans/{isbn}`
    One(Isbn),
    /// `/loans/{isbn}/progress`
    Progress(Isbn),
    /// `/loans/{isbn}/availability`
    Availability(Isbn),
}

impl LoansEndpoint {
    /// The title of the endpoint; none for `/loans`.
    pub(in super::super) fn isbn(self) -> Option<Isbn> {
        match self {
            LoansEndpoint::All => None,
            LoansEndpoint::One(isbn)
            | LoansEndpoint::Progress(isbn)
            | LoansEndpoint::Availability(isbn) => Some(isbn),
        }
    }

    /// The supported methods, as the field Allow lists them.
    pub(super) fn methods(self) -> &'static str {
        match self {
            LoansEndpoint::All | LoansEndpoint::Availability(_) => "GET, HEAD",
            LoansEndpoint::One(_) => "GET, HEAD, PUT, DELETE",
            LoansEndpoint::Progress(_) => "PUT",
        }
    }
}

/// Returns the endpoint of a path. Returns none for a path outside `/loans`, and a problem for an
/// unknown path below it.
pub(in super::super) fn parse_endpoint(
    path: &RequestPath,
) -> Option<Result<LoansEndpoint, Problem>> {
    let below = path.decoded().strip_prefix("/loans")?;
    if below.is_empty() {
        return Some(Ok(LoansEndpoint::All));
    }
    let mut segments = below.strip_prefix('/')?.split('/');
    let Some(Ok(isbn)) = segments.next().map(str::parse) else {
        return Some(Err(Problem::TitleNotFound));
    };
    Some(match (segments.next(), segments.next()) {
        (None, _) => Ok(LoansEndpoint::One(isbn)),
        (Some("progress"), None) => Ok(LoansEndpoint::Progress(isbn)),
        (Some("availability"), None) => Ok(LoansEndpoint::Availability(isbn)),
        (Some(_), _) => Err(Problem::TitleNotFound),
    })
}
