//! The title table of a route, in place of `{isbn}` in its path.
//!
//! The catalog looks titles up in it. It is read once: a reload builds another catalog.

use std::path::PathBuf;

use super::titles::{Table, TableError};

/// The table of a route, and the path parameter that it maps.
#[derive(Debug)]
pub(crate) struct TitleTable {
    /// The index of the route.
    route: usize,
    file: PathBuf,
    /// The name of the pattern parameter that the table's paths are compared with.
    parameter: String,
    titles: Table,
}

impl TitleTable {
    /// Creates a table without titles. The file is not read yet.
    pub(super) fn new(route: usize, file: PathBuf, parameter: String) -> TitleTable {
        TitleTable { route, file, parameter, titles: Table::default() }
    }

    pub(super) fn parameter(&self) -> &str {
        &self.parameter
    }

    /// Returns the titles, none before the file is read.
    pub(super) fn titles(&self) -> &Table {
        &self.titles
    }

    /// Reads the file and uses its titles. Returns the number of lines.
    pub(super) fn read(&mut self) -> Result<usize, Vec<TableError>> {
        self.titles = Table::read(self.route, &self.file)?;
        Ok(self.titles.len())
    }
}
