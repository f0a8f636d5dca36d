//! Failures of the work on the audit trail, by library: one that fails must not stop the others.

use std::collections::HashSet;

use super::server_error::is_of_connection;
use crate::loan::LibraryId;

/// The failures in a row that end a round: the database fails, and not a library.
const MAX_FAILURES: u32 = 3;

/// Counts failures, and reports each once.
#[derive(Debug, Default)]
pub(super) struct LibraryFailures {
    /// The libraries that fail, and at what.
    failing: HashSet<(LibraryId, &'static str)>,
    /// The failures of connections in a row.
    of_connections: u32,
}

impl LibraryFailures {
    /// Records the result of work on a library. `what` is a verb, and names the work. Logs the
    /// first failure.
    ///
    /// # Errors
    /// This failure, if connections have failed several times in a row.
    pub(super) fn note(
        &mut self,
        library: LibraryId,
        what: &'static str,
        done: Result<(), sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        let Err(error) = done else {
            self.of_connections = 0;
            self.failing.remove(&(library, what));
            return Ok(());
        };
        self.of_connections = if is_of_connection(&error) { self.of_connections + 1 } else { 0 };
        if self.of_connections >= MAX_FAILURES {
            self.of_connections = 0;
            return Err(error);
        }
        if self.failing.insert((library, what)) {
            tracing::warn!(
                %library,
                %error,
                "cannot {what} the heads of this library's audit trail; retrying"
            );
        }
        Ok(())
    }
}
