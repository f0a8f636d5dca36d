//! Routing: maps a normalised request path to a title's file or an open file.
//!
//! The server calls it. It depends only on shared types. It rebuilds the path at the origin from
//! the pattern's parameters and never copies it from the request. Only the catalog creates an
//! [`OpenFile`]. If paths do not name their title, a table maps them to titles. Tables are reloaded
//! while requests are served.

mod location;
mod overlap;
mod template;
mod title_table;
mod titles;

use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderValue;
use matchit::Router;

use crate::loan::Isbn;
use crate::path::{self, FilePath, RequestPath};
use crate::problem::Problem;
use overlap::Shape;
use template::Template;
use title_table::TitleTable;

pub use location::{Location, Storage};
pub use titles::{TableError, Titles};

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
    /// The origins; a [`File`] refers to one by its index.
    pub origins: Vec<Storage>,
    /// The routes; a [`File`] refers to one by its index.
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

/// A file at an origin.
#[derive(Clone, Debug)]
pub struct File {
    /// The index of the origin.
    pub origin: usize,
    /// The path at the origin.
    pub path: FilePath,
    /// The index of the route that matched.
    pub route: usize,
    /// The requested path, decoded and without a link token. Delivery records name the file by it.
    pub name: Arc<str>,
    /// The Content-Disposition that its route sets.
    pub disposition: Option<Disposition>,
    /// The Content-Security-Policy that its route sets.
    pub content_security_policy: Option<HeaderValue>,
}

/// A file of an open route. Only the catalog can create one.
#[derive(Debug)]
pub struct OpenFile(File);

impl OpenFile {
    /// Returns the file at its origin.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Returns the file by value, for its delivery.
    pub fn into_file(self) -> File {
        self.0
    }
}

/// The target of a path.
#[derive(Debug)]
pub enum Target {
    /// A title's file, which needs a loan.
    Loanable {
        /// The titles that the file belongs to.
        titles: Titles,
        /// The file at its origin.
        file: File,
        /// Whether only an explicit request begins a loan.
        explicit: bool,
    },
    /// A file that needs no loan.
    Open(OpenFile),
}

/// The router over all configured routes.
#[derive(Debug)]
pub struct Catalog {
    router: Router<usize>,
    routes: Vec<Built>,
}

#[derive(Debug)]
struct Built {
    settings: Route,
    origin: usize,
    to: Template,
    table: Option<Arc<TitleTable>>,
}

impl Catalog {
    /// Builds the router. No table is read yet: [`Catalog::read_tables`] does that.
    ///
    /// # Errors
    /// Returns every mistake in every route.
    pub fn new(settings: &Settings) -> Result<Catalog, Vec<RouteError>> {
        let origins = &settings.origins;
        let mut catalog = Catalog { router: Router::new(), routes: Vec::new() };
        let mut mistakes = Vec::new();
        for (route, written) in settings.routes.iter().enumerate() {
            match build(route, written, origins) {
                Ok(built) => {
                    if let Err(error) = catalog.router.insert(&written.path, catalog.routes.len()) {
                        let sentence = format!(
                            "the pattern is unusable: {error}. Write one like \
                             /files/{{isbn}}/{{*file}}"
                        );
                        mistakes.push(RouteError { route, key: "path", sentence, other: None });
                    }
                    catalog.routes.push(built);
                }
                Err(wrong) => {
                    mistakes.extend(wrong.into_iter().map(|(key, sentence)| RouteError {
                        route,
                        key,
                        sentence,
                        other: None,
                    }));
                }
            }
        }
        if mistakes.is_empty() {
            mistakes.extend(catalog.open_to_gated_files(origins));
        }
        if mistakes.is_empty() { Ok(catalog) } else { Err(mistakes) }
    }

    /// Finds open routes that reach files of a gated route, which would be served without a loan.
    /// This includes origins that are two names of one place, or of which one is below the other.
    fn open_to_gated_files(&self, origins: &[Storage]) -> Vec<RouteError> {
        let shapes: Vec<Vec<(&str, Shape)>> =
            self.routes.iter().map(|built| built.reaches(origins)).collect();
        let overlap = |one: usize, other: usize| {
            let (Some(one), Some(other)) = (shapes.get(one), shapes.get(other)) else {
                return false;
            };
            let mut pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
            pairs.any(|((here, one), (there, other))| here == there && one.overlaps(other))
        };
        let routes = || self.routes.iter().enumerate();
        let open = routes().filter(|(_, built)| built.settings.open);
        open.filter_map(|(route, open)| {
            let mut gated = routes().filter(|(_, built)| !built.settings.open);
            let (other, gated) = gated.find(|(gated, _)| overlap(*gated, route))?;
            let (one, two) = (&open.settings.origin, &gated.settings.origin);
            let places = match one == two {
                true => String::new(),
                false => format!(" (the origins {one} and {two} share a place)"),
            };
            let sentence = format!(
                "this open route can lead to files of {}, which need a loan{places}. Give open \
                 files a folder of their own",
                gated.settings.path
            );
            Some(RouteError { route, key: "to", sentence, other: Some(other) })
        })
        .collect()
    }

    /// Returns the target of a path.
    ///
    /// # Errors
    /// `title-not-found` if no route matches, or if the title is not an ISBN.
    pub fn resolve(&self, path: &RequestPath) -> Result<Target, Problem> {
        let found = self.router.at(path.decoded()).map_err(|_| Problem::TitleNotFound)?;
        let route = *found.value;
        let built = self.routes.get(route).ok_or(Problem::TitleNotFound)?;
        let file = File {
            origin: built.origin,
            path: built.to.fill(&found.params).ok_or(Problem::TitleNotFound)?,
            route,
            name: path.shared(),
            disposition: built.settings.disposition,
            content_security_policy: built.settings.content_security_policy.clone(),
        };
        let isbn: Option<Isbn> = found
            .params
            .get("isbn")
            .map(str::parse)
            .transpose()
            .map_err(|_| Problem::TitleNotFound)?;
        if built.settings.open {
            return Ok(Target::Open(OpenFile(file)));
        }
        let titles = match &built.table {
            None => isbn.map(Titles::one),
            Some(by) => {
                found.params.get(by.parameter()).and_then(|path| by.current().titles(path).cloned())
            }
        };
        let titles = titles.ok_or(Problem::TitleNotFound)?;
        Ok(Target::Loanable { titles, file, explicit: built.settings.explicit })
    }

    /// Reads the tables of all routes, and returns the number of lines of each. A table with a
    /// mistake keeps its previous content.
    ///
    /// # Errors
    /// Returns every mistake in every table.
    pub fn read_tables(&self) -> Result<Vec<usize>, Vec<TableError>> {
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        for table in self.title_tables() {
            match table.read() {
                Ok(read) => lines.push(read),
                Err(mistakes) => wrong.extend(mistakes),
            }
        }
        if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
    }

    /// Returns the tables of all routes, which can be reloaded while requests are served.
    pub(crate) fn title_tables(&self) -> impl Iterator<Item = Arc<TitleTable>> {
        self.routes.iter().filter_map(|built| built.table.clone())
    }

    /// Returns the pattern of a route, for logs.
    pub fn route_name(&self, route: usize) -> &str {
        self.routes.get(route).map_or("?", |built| &built.settings.path)
    }

    /// Returns the request paths of a title's files: those that a table lists, and each gated
    /// route with `{isbn}` up to its first other parameter.
    pub fn files_of(&self, isbn: Isbn) -> Vec<String> {
        let gated = || self.routes.iter().filter(|built| !built.settings.open);
        // Paths of a table come first: its titles certainly have files. Whether a title has files
        // on another route is known only to the storage.
        let named = gated().flat_map(|built| built.paths_in_table(isbn));
        let by_isbn = gated().filter(|built| built.table.is_none()).map(|built| {
            let path = built.settings.path.replace("{isbn}", &isbn.to_string());
            encode_path(path.split('{').next().unwrap_or_default())
        });
        named.chain(by_isbn).collect()
    }
}

impl Built {
    /// Returns every server that the route reaches, with the possible paths there.
    fn reaches<'a>(&self, origins: &'a [Storage]) -> Vec<(&'a str, Shape)> {
        let locations =
            origins.get(self.origin).map(|origin| origin.locations.as_slice()).unwrap_or_default();
        let reach =
            |at: &'a Location| (at.server.as_str(), self.to.shape(&at.base, &self.settings.path));
        locations.iter().map(reach).collect()
    }

    fn paths_in_table(&self, isbn: Isbn) -> Vec<String> {
        let Some(by) = &self.table else { return Vec::new() };
        let before = self.settings.path.split('{').next().unwrap_or_default();
        let table = by.current();
        table.paths(isbn).iter().map(|path| encode_path(&format!("{before}{path}"))).collect()
    }
}

/// Percent-encodes a decoded path, as in a request.
fn encode_path(path: &str) -> String {
    path.split('/')
        .enumerate()
        .flat_map(|(number, segment)| {
            (number > 0).then_some("/").into_iter().chain(path::encoded(segment))
        })
        .collect()
}

fn build(
    index: usize,
    route: &Route,
    origins: &[Storage],
) -> Result<Built, Vec<(&'static str, String)>> {
    let mut mistakes = Vec::new();
    if !route.path.starts_with('/') {
        mistakes.push((
            "path",
            "a pattern starts with a slash. Write one like /files/{isbn}/{*file}".to_owned(),
        ));
    }
    if route.path == "/loans" || route.path.starts_with("/loans/") || route.path.starts_with("/~") {
        mistakes.push((
            "path",
            "/loans and /~ belong to the gate itself. Choose another first segment".to_owned(),
        ));
    }
    if route.path.starts_with('/') && !can_match(&route.path) {
        mistakes.push((
            "path",
            "no request has such a path: it ends in a slash, or has an empty segment, dots, an \
             escape or a semicolon. Write it decoded, like /files/{isbn}/{*file}"
                .to_owned(),
        ));
    }
    let table =
        title_of(index, route).map_err(|(key, sentence)| mistakes.push((key, sentence.to_owned())));
    let origin = origins.iter().position(|origin| origin.name == route.origin);
    if origin.is_none() {
        let known: Vec<&str> = origins.iter().map(|origin| origin.name.as_str()).collect();
        let known = known.join(", ");
        mistakes.push((
            "origin",
            format!("there is no origin named {}. Write one of: {known}", route.origin),
        ));
    }
    let to =
        Template::parse(&route.to, &route.path).map_err(|sentence| mistakes.push(("to", sentence)));
    match (origin, to, table) {
        (Some(origin), Ok(to), Ok(table)) if mistakes.is_empty() => {
            Ok(Built { settings: route.clone(), origin, to, table })
        }
        _ => Err(mistakes),
    }
}

/// Returns the table of a route; none if `{isbn}` names its titles, or if it is open.
fn title_of(
    index: usize,
    route: &Route,
) -> Result<Option<Arc<TitleTable>>, (&'static str, &'static str)> {
    let by_isbn = route.path.contains("{isbn}");
    let Some(file) = route.table.clone() else {
        let names_none = !route.open && !by_isbn;
        return if names_none { Err(("path", NO_TITLE)) } else { Ok(None) };
    };
    if route.open {
        return Err((
            "title",
            "an open file is lent under no title. Take it out, or write open = false",
        ));
    }
    if by_isbn {
        return Err((
            "title",
            "the path names the title already, by {isbn}. Take one of the two out",
        ));
    }
    // A second parameter could select among several files for one path of the table.
    let parameter =
        route.path.split_once('{').and_then(|(_, rest)| rest.strip_prefix('*')?.strip_suffix('}'));
    let parameter = parameter.filter(|parameter| !parameter.contains('{'));
    let parameter = parameter.ok_or((
        "path",
        "with a table of titles, {*file} must be its only parameter. Write a path like \
         /media/{*file}",
    ))?;
    Ok(Some(Arc::new(TitleTable::new(index, file, parameter.to_owned()))))
}

const NO_TITLE: &str = "a gated route needs {isbn}, which names the title, or a table of titles. \
                        Add one, or write open = true";

/// Whether a normalised path can match this pattern. Builds a matching example, and checks that
/// normalisation does not change it.
fn can_match(pattern: &str) -> bool {
    let mut example = String::new();
    let mut rest = pattern;
    while let Some((text, after)) = rest.split_once('{') {
        example.push_str(text);
        example.push('x');
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    example.push_str(rest);
    RequestPath::of_decoded(&example).is_ok_and(|path| path.decoded() == example)
}

#[cfg(test)]
mod tests;
