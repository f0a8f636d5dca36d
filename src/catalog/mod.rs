//! Routing: maps a normalised request path to a title's file or an open file.
//!
//! The server calls it. It depends only on shared types. It rebuilds the path at the origin from
//! the pattern's parameters and never copies it from the request. Only the catalog creates an
//! [`OpenFile`]. If paths do not name their title, a table maps them to titles.

mod built_route;
mod location;
mod overlap;
mod settings;
mod target;
mod template;
mod title_table;
mod titles;

use matchit::Router;

use crate::loan::Isbn;
use crate::path::{PathError, RequestPath};
use crate::problem::Problem;
use built_route::{BuiltRoute, build, encode_path};
use overlap::Shape;

pub use location::{Location, Storage};
pub use settings::{Disposition, Route, RouteError, Settings};
pub use target::{File, OpenFile, Target};
pub use titles::{TableError, Titles};

/// The router over all configured routes.
#[derive(Debug)]
pub struct Catalog {
    router: Router<usize>,
    routes: Vec<BuiltRoute>,
    /// The place of each origin's files, encoded. Origins that share a location have one place.
    places: Vec<String>,
}

impl Catalog {
    /// Builds the router. No table is read yet: [`Catalog::read_tables`] does that.
    ///
    /// # Errors
    /// Returns every mistake in every route.
    pub fn new(settings: &Settings) -> Result<Catalog, Vec<RouteError>> {
        let origins = &settings.origins;
        let places = location::places(origins);
        let mut catalog = Catalog { router: Router::new(), routes: Vec::new(), places };
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

    /// Parses the path of a request: one in normal form, or the path of a page, which ends in a
    /// slash and equals the whole path of an open route.
    ///
    /// # Errors
    /// The same as for [`RequestPath::parse`].
    pub fn parse(&self, raw: &str) -> Result<RequestPath, PathError> {
        RequestPath::parse(raw).or_else(|error| {
            let is_page = |route: &&BuiltRoute| route.settings.open && route.settings.path == raw;
            let page = self.routes.iter().find(is_page);
            page.and_then(|_| RequestPath::of_page(raw)).ok_or(error)
        })
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
            return Ok(Target::Open(OpenFile::new(file)));
        }
        let titles = match &built.table {
            None => isbn.map(Titles::one),
            Some(by) => {
                found.params.get(by.parameter()).and_then(|path| by.titles().titles(path).cloned())
            }
        };
        let titles = titles.ok_or(Problem::TitleNotFound)?;
        Ok(Target::Loanable { titles, file, explicit: built.settings.explicit })
    }

    /// Returns the stored file of a decoded path: the same for all paths that lead to the file.
    /// None if no route matches.
    pub fn stored_file(&self, path: &str) -> Option<String> {
        let found = self.router.at(path).ok()?;
        let built = self.routes.get(*found.value)?;
        let file = built.to.fill(&found.params)?;
        let place = self.places.get(built.origin)?;
        Some(format!("{place}{}", file.as_str()))
    }

    /// Reads the tables of all routes, and returns the number of lines of each. A table with a
    /// mistake keeps its previous content.
    ///
    /// # Errors
    /// Returns every mistake in every table.
    pub fn read_tables(&mut self) -> Result<Vec<usize>, Vec<TableError>> {
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        for table in self.routes.iter_mut().filter_map(|built| built.table.as_mut()) {
            match table.read() {
                Ok(read) => lines.push(read),
                Err(mistakes) => wrong.extend(mistakes),
            }
        }
        if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
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

#[cfg(test)]
mod tests;
