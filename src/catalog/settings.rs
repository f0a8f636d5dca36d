//! The routes of the configuration, and what makes one unusable.

use std::path::PathBuf;

use http::HeaderValue;

use super::Storage;

/// One `[[routes]]` entry of the configuration.
#[derive(Clone, Debug)]
pub struct Route {
    /// The pattern as written, such as `/files/{isbn}/{*file}`.
    pub path: String,
    /// The name of the origin that stores the files.
    pub origin: String,
    /// The path template at the origin, such as `{isbn}/{file}`.
    pub to: String,
    /// Whether its files need no loan.
    pub open: bool,
    /// Whether only an explicit request begins a loan.
    pub explicit: bool,
    /// The CSV file that maps paths to titles, in place of `{isbn}` in the path.
    pub table: Option<PathBuf>,
    /// The Content-Disposition of responses; none keeps the origin's.
    pub disposition: Option<Disposition>,
    /// The Content-Security-Policy of its documents. None means the gate's default for gated files,
    /// and no policy for open ones.
    pub content_security_policy: Option<HeaderValue>,
}

/// The Content-Disposition of a file (RFC 6266 §4.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// The reader's program should save the file.
    Attachment,
    /// The reader's program should show the file if it can.
    Inline,
}

/// The configured routes, in file order, and their origins.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The origins; a [`File`](super::File) refers to one by its index.
    pub origins: Vec<Storage>,
    /// The routes; a [`File`](super::File) refers to one by its index.
    pub routes: Vec<Route>,
}

/// The reason why a route is unusable.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{sentence}")]
pub struct RouteError {
    /// The index of the route.
    pub route: usize,
    /// The affected key: `path`, `to`, `origin` or `title`.
    pub key: &'static str,
    /// The mistake, and what to write instead.
    pub sentence: String,
    /// The index of the route that it conflicts with.
    pub other: Option<usize>,
}
