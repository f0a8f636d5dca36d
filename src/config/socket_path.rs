//! Reads the path of a Unix socket.

use std::path::PathBuf;

use toml::de::DeValue;

use super::source::Source;
use super::values;
use crate::listeners;

/// Reads a path that a Unix socket can have. `instead` is what the operator may do if no path is
/// short enough.
pub(super) fn socket_path(
    value: &DeValue<'_>,
    source: &Source<'_>,
    instead: &str,
) -> Result<PathBuf, String> {
    let file = source.path(&values::text(value)?);
    let (length, longest) = (file.as_os_str().len(), listeners::longest_file());
    match length <= longest {
        true => Ok(file),
        false => Err(format!(
            "the path has {length} bytes, and the system allows {longest} for this socket. Write a \
             shorter path, or {instead}"
        )),
    }
}
