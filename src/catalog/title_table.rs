//! The title table of a route, in place of `{isbn}` in its path.
//!
//! The catalog looks titles up in it. It is reloaded while requests are served.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::titles::{Table, TableError};
use crate::reload::Reload;

/// The table of a route, and the path parameter that it maps.
#[derive(Debug)]
pub(crate) struct TitleTable {
    /// The index of the route.
    route: usize,
    file: PathBuf,
    /// The name of the pattern parameter that the table's paths are compared with.
    parameter: String,
    current: ArcSwap<Table>,
}

impl TitleTable {
    /// Creates a table without titles. The file is not read yet.
    pub(super) fn new(route: usize, file: PathBuf, parameter: String) -> TitleTable {
        TitleTable { route, file, parameter, current: ArcSwap::default() }
    }

    pub(super) fn parameter(&self) -> &str {
        &self.parameter
    }

    /// Returns the table in use.
    pub(super) fn current(&self) -> Guard<Arc<Table>> {
        self.current.load()
    }

    /// Reads the file and uses its titles. Returns the number of lines.
    pub(super) fn read(&self) -> Result<usize, Vec<TableError>> {
        Ok(self.replace(self.validate(&())?))
    }

    fn replace(&self, table: Table) -> usize {
        let lines = table.len();
        self.current.store(Arc::new(table));
        lines
    }
}

impl Reload for TitleTable {
    /// A reload reads the file that was configured at the start.
    type Settings = ();
    type Version = Table;
    type Error = TableError;

    const KEPT: &str = "a title table was not reloaded; the old one stays";

    fn validate(&self, (): &()) -> Result<Table, Vec<TableError>> {
        Table::read(self.route, &self.file)
    }

    fn apply(&self, table: Table) {
        let lines = self.replace(table);
        tracing::info!(lines, "a title table was reloaded");
    }
}
