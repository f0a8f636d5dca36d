//! Checks one configured route, and builds what its requests need.

use super::overlap::Shape;
use super::template::Template;
use super::title_table::TitleTable;
use super::{Location, Route, Storage};
use crate::loan::Isbn;
use crate::path::{self, RequestPath};

/// A route that was checked, with what its requests need.
#[derive(Debug)]
pub(super) struct BuiltRoute {
    pub(super) settings: Route,
    /// The index of the origin.
    pub(super) origin: usize,
    pub(super) to: Template,
    pub(super) table: Option<TitleTable>,
}

impl BuiltRoute {
    /// Returns every server that the route reaches, with the possible paths there.
    pub(super) fn reaches<'a>(&self, origins: &'a [Storage]) -> Vec<(&'a str, Shape)> {
        let locations =
            origins.get(self.origin).map(|origin| origin.locations.as_slice()).unwrap_or_default();
        let reach =
            |at: &'a Location| (at.server.as_str(), self.to.shape(&at.base, &self.settings.path));
        locations.iter().map(reach).collect()
    }

    pub(super) fn paths_in_table(&self, isbn: Isbn) -> Vec<String> {
        let Some(by) = &self.table else { return Vec::new() };
        let before = self.settings.path.split('{').next().unwrap_or_default();
        let paths = by.titles().paths(isbn);
        paths.iter().map(|path| encode_path(&format!("{before}{path}"))).collect()
    }
}

/// Percent-encodes a decoded path, as in a request.
pub(super) fn encode_path(path: &str) -> String {
    path.split('/')
        .enumerate()
        .flat_map(|(number, segment)| {
            (number > 0).then_some("/").into_iter().chain(path::encoded(segment))
        })
        .collect()
}

/// Checks the route with this index, and builds what its requests need.
///
/// # Errors
/// Returns every mistake: the affected key and a sentence.
pub(super) fn build(
    index: usize,
    route: &Route,
    origins: &[Storage],
) -> Result<BuiltRoute, Vec<(&'static str, String)>> {
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
    let is_page = route.open && RequestPath::of_page(&route.path).is_some();
    if route.path.starts_with('/') && !is_page && !can_match(&route.path) {
        mistakes.push((
            "path",
            "no request has such a path: it ends in a slash (as only that of an open page may), or \
             has an empty segment, dots, an escape or a semicolon. Write it decoded, like \
             /files/{isbn}/{*file}"
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
            Ok(BuiltRoute { settings: route.clone(), origin, to, table })
        }
        _ => Err(mistakes),
    }
}

/// Returns the table of a route; none if `{isbn}` names its titles, or if it is open.
fn title_of(
    index: usize,
    route: &Route,
) -> Result<Option<TitleTable>, (&'static str, &'static str)> {
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
    Ok(Some(TitleTable::new(index, file, parameter.to_owned())))
}

const NO_TITLE: &str = "a gated route needs {isbn}, which names the title, or a table of titles. \
                        Add one, or write open = true";

/// Returns whether a normalised path can match this pattern. Builds a matching example, and checks
/// that normalisation does not change it.
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
