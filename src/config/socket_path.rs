//! Reads the path of a Unix socket.

use std::path::{Path, PathBuf};

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

/// Whether the sockets at two paths would take each other's file: also that of the temporary name
/// under which a socket is made.
pub(super) fn collide(one: &Path, other: &Path) -> bool {
    let (one, other) = (resolved(one), resolved(other));
    let is_temporary = |of: &Path, file: &Path| listeners::temporary_file(of) == file;
    one == other || is_temporary(&one, &other) || is_temporary(&other, &one)
}

/// Returns a path without links and `..` in its directory, if that exists.
fn resolved(file: &Path) -> PathBuf {
    let directory = file.parent().and_then(|directory| directory.canonicalize().ok());
    match (directory, file.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => file.to_owned(),
    }
}

#[cfg(test)]
#[test]
fn paths_of_one_file_collide() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("run")).unwrap();
    let at = |path: &str| directory.path().join(path);
    for (one, other, is_one) in [
        ("run/h", "run/h", true),
        ("run/h", "run/../run/h", true),
        ("run/h", "run/h.new", true),
        ("run/h.new", "run/./h", true),
        ("run/h", "h", false),
        ("run/h", "run/admin", false),
        ("missing/h", "missing/h", true),
    ] {
        assert_eq!(collide(&at(one), &at(other)), is_one, "{one} {other}");
    }
}
