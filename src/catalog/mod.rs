//! What is asked: a path in its normal form becomes a title's file, or an open one.
//!
//! Called by the server. It calls nothing of ours but the vocabulary. The path at the origin is
//! rebuilt from the parts that a pattern named, never copied from the request; and only the catalog
//! makes an [`OpenFile`]. Where paths do not name their title, a table does, which is read apart
//! and anew while requests go on.

mod location;
mod overlap;
mod template;
mod titles;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderValue;
use matchit::Router;

use crate::loan::Isbn;
use crate::path::{self, FilePath, RequestPath};
use crate::problem::Problem;
use overlap::Shape;
use template::Template;
use titles::Table;

pub use location::{Location, Storage};
pub use titles::{TableError, Titles};

/// One `[[routes]]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// The pattern as written, such as `/files/{isbn}/{*file}`.
    pub path: String,
    /// The origin's name.
    pub origin: String,
    /// Where the file is there, such as `{isbn}/{file}`.
    pub to: String,
    /// Whether it needs no loan.
    pub open: bool,
    /// Whether only an explicit request begins a loan.
    pub explicit: bool,
    /// The file of the table that names the titles, in place of `{isbn}` in the path.
    pub table: Option<PathBuf>,
    /// Whether and how the answers say under which name the file is saved; none: as the origin
    /// does.
    pub disposition: Option<Disposition>,
    /// The Content-Security-Policy of its documents; none: the gate's own, for gated ones.
    pub content_security_policy: Option<HeaderValue>,
}

/// What a reader's program is told to do with a file (RFC 6266 §4.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// Save it.
    Attachment,
    /// Show it, where it can.
    Inline,
}

/// The routes, in the order of the file, and the origins to which they lead.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The origins; a [`File`] names one by its index.
    pub origins: Vec<Storage>,
    /// The routes.
    pub routes: Vec<Route>,
}

/// Why a route cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{sentence}")]
pub struct RouteError {
    /// Which of the routes.
    pub route: usize,
    /// Which of its keys: `path`, `to`, `origin` or `title`.
    pub key: &'static str,
    /// What is wrong and what to write instead.
    pub sentence: String,
    /// The route that it conflicts with.
    pub other: Option<usize>,
}

/// A file at an origin.
#[derive(Clone, Debug)]
pub struct File {
    /// Which of the origins.
    pub origin: usize,
    /// Where it is there.
    pub path: FilePath,
    /// Which of the routes led to it.
    pub route: usize,
    /// The path that readers ask for, decoded and without a link's token: its name in what is told
    /// of deliveries.
    pub name: Arc<str>,
    /// What its route says of saving it.
    pub disposition: Option<Disposition>,
    /// The Content-Security-Policy that its route sets.
    pub content_security_policy: Option<HeaderValue>,
}

/// A file of an open route.
#[derive(Debug)]
pub struct OpenFile(File);

impl OpenFile {
    /// The file.
    pub fn file(&self) -> &File {
        &self.0
    }

    /// The file, for whoever fetches it.
    pub fn into_file(self) -> File {
        self.0
    }
}

/// What a path leads to.
#[derive(Debug)]
pub enum Target {
    /// A title's file, which needs a loan.
    Loanable {
        /// The titles that the file belongs to.
        titles: Titles,
        /// The file.
        file: File,
        /// Whether only an explicit request begins a loan.
        explicit: bool,
    },
    /// A file that needs none.
    Open(OpenFile),
}

/// The routes, ready to be asked.
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
    table: Option<TitlesOfRoute>,
}

/// The table of a route, and what it is asked for.
#[derive(Debug)]
struct TitlesOfRoute {
    file: PathBuf,
    /// The name of the part of the pattern that the table's paths stand for.
    part: String,
    table: ArcSwap<Table>,
}

impl Catalog {
    /// The routes over these origins. No table is read yet: [`Catalog::read_tables`] does that.
    ///
    /// # Errors
    /// Every mistake in every route.
    pub fn new(settings: &Settings) -> Result<Catalog, Vec<RouteError>> {
        let origins = &settings.origins;
        let mut catalog = Catalog { router: Router::new(), routes: Vec::new() };
        let mut mistakes = Vec::new();
        for (route, written) in settings.routes.iter().enumerate() {
            match build(written, origins) {
                Ok(built) => {
                    if let Err(error) = catalog.router.insert(&written.path, catalog.routes.len()) {
                        let sentence = format!(
                            "the pattern cannot be used: {error}. Write one like /files/{{isbn}}/{{*file}}"
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

    /// An open route that leads to files of a gated one would hand them out without a loan, also
    /// where their origins are two names of one place, or one lies below the other.
    fn open_to_gated_files(&self, origins: &[Storage]) -> Vec<RouteError> {
        let shapes: Vec<Vec<(&str, Shape)>> =
            self.routes.iter().map(|built| built.reaches(origins)).collect();
        let meet = |one: usize, other: usize| {
            let (Some(one), Some(other)) = (shapes.get(one), shapes.get(other)) else {
                return false;
            };
            let mut pairs = one.iter().flat_map(|one| other.iter().map(move |other| (one, other)));
            pairs.any(|((here, one), (there, other))| here == there && one.meets(other))
        };
        let routes = || self.routes.iter().enumerate();
        let open = routes().filter(|(_, built)| built.settings.open);
        open.filter_map(|(route, open)| {
            let mut gated = routes().filter(|(_, built)| !built.settings.open);
            let (other, gated) = gated.find(|(gated, _)| meet(*gated, route))?;
            let (one, two) = (&open.settings.origin, &gated.settings.origin);
            let places =
                if one == two { String::new() } else { format!(" (the origins {one} and {two} share a place)") };
            let sentence = format!(
                "this open route can lead to files of {}, which need a loan{places}. Give open files a folder of their own",
                gated.settings.path
            );
            Some(RouteError { route, key: "to", sentence, other: Some(other) })
        })
        .collect()
    }

    /// What the path leads to.
    ///
    /// # Errors
    /// `title-not-found` where no route has it, or its title is no ISBN.
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
                found.params.get(&by.part).and_then(|path| by.table.load().titles(path).cloned())
            }
        };
        let titles = titles.ok_or(Problem::TitleNotFound)?;
        Ok(Target::Loanable { titles, file, explicit: built.settings.explicit })
    }

    /// Reads the tables of all routes, also anew while requests go on; how many lines each has. A
    /// table with a mistake stays as it was.
    ///
    /// # Errors
    /// Every mistake in every table.
    pub fn read_tables(&self) -> Result<Vec<usize>, Vec<TableError>> {
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        for (route, built) in self.routes.iter().enumerate() {
            let Some(by) = &built.table else { continue };
            match Table::read(route, &by.file) {
                Ok(table) => {
                    lines.push(table.len());
                    by.table.store(table.into());
                }
                Err(mistakes) => wrong.extend(mistakes),
            }
        }
        if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
    }

    /// The pattern of a route, for logs.
    pub fn route_name(&self, route: usize) -> &str {
        self.routes.get(route).map_or("?", |built| &built.settings.path)
    }

    /// The paths under which a title's files lie, as they are asked for: those that a table names,
    /// and each gated route with `{isbn}` up to its first part that is not the title.
    pub fn files_of(&self, isbn: Isbn) -> Vec<String> {
        let gated = || self.routes.iter().filter(|built| !built.settings.open);
        // What a table says of a title is certain; whether a route has it, only the storage knows.
        let named = gated().flat_map(|built| built.paths_in_table(isbn));
        let by_isbn = gated().filter(|built| built.table.is_none()).map(|built| {
            let path = built.settings.path.replace("{isbn}", &isbn.to_string());
            as_asked_for(path.split('{').next().unwrap_or_default())
        });
        named.chain(by_isbn).collect()
    }
}

impl Built {
    /// Every server that it leads to, and the paths that it can reach there.
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
        let table = by.table.load();
        table.paths(isbn).iter().map(|path| as_asked_for(&format!("{before}{path}"))).collect()
    }
}

/// A decoded path as it stands in a request.
fn as_asked_for(path: &str) -> String {
    path.split('/')
        .enumerate()
        .flat_map(|(number, segment)| {
            (number > 0).then_some("/").into_iter().chain(path::encoded(segment))
        })
        .collect()
}

fn build(route: &Route, origins: &[Storage]) -> Result<Built, Vec<(&'static str, String)>> {
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
            "no request has such a path: it ends in a slash, or has an empty segment, dots, an escape or a \
             semicolon. Write it decoded, like /files/{isbn}/{*file}"
                .to_owned(),
        ));
    }
    let table =
        title_of(route).map_err(|(key, sentence)| mistakes.push((key, sentence.to_owned())));
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

/// How a route names its titles: the table, where not by `{isbn}`.
fn title_of(route: &Route) -> Result<Option<TitlesOfRoute>, (&'static str, &'static str)> {
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
    // A table's path must mean one file: it could not where another part of the pattern chose among
    // several.
    let part =
        route.path.split_once('{').and_then(|(_, rest)| rest.strip_prefix('*')?.strip_suffix('}'));
    let part = part.filter(|part| !part.contains('{'));
    let part = part.ok_or((
        "path",
        "with a table of titles its one part is {*file}. Write a path like /media/{*file}",
    ))?;
    Ok(Some(TitlesOfRoute { file, part: part.to_owned(), table: ArcSwap::default() }))
}

const NO_TITLE: &str = "a gated route needs {isbn}, which names the title, or a table of titles. Add one, or write open = true";

/// Whether a path in normal form can have this pattern: one that it would match is read and comes
/// out the same.
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
