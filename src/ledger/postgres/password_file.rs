//! Looks a password up in a password file of libpq (`~/.pgpass`).
//!
//! A line is `host:port:database:user:password`. `*` matches everything, a backslash escapes `:`
//! and itself, and the first matching line counts. `endpoint` calls this module.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

/// The Unix socket directories to which `localhost` in a password file refers.
const DEFAULT_SOCKET_DIRECTORIES: [&str; 3] = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

/// Reads a password file. Returns none if there is no such file.
///
/// # Errors
/// Returns why the file is ignored, as a sentence. As libpq does, this ignores a file that the
/// group or other users can access.
pub(super) fn read(file: &Path) -> Result<Option<Zeroizing<String>>, String> {
    let shown = file.display();
    let ignored = |why: String| format!("the password file {shown} is ignored: {why}");
    let metadata = match fs::metadata(file) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ignored(error.to_string())),
    };
    if !metadata.is_file() {
        return Err(ignored("it is not a plain file".to_owned()));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("other users can access it (mode {mode:03o}). Write chmod 600 {shown}");
        return Err(ignored(why));
    }
    let mut text = Zeroizing::new(String::new());
    let read = File::open(file).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| Some(text)).map_err(|error| ignored(error.to_string()))
}

/// Finds the password for a host in the text of a password file.
pub(super) fn find(
    text: &str,
    host: &str,
    port: u16,
    database: &str,
    user: &str,
) -> Option<SecretString> {
    let port = port.to_string();
    let is_default_socket = DEFAULT_SOCKET_DIRECTORIES.contains(&host);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(fields).find_map(|fields| {
        let [line_host, line_port, line_database, line_user, password] = fields?;
        let is_host = matches(&line_host, host) || is_default_socket && line_host == "localhost";
        let is_rest = matches(&line_port, &port)
            && matches(&line_database, database)
            && matches(&line_user, user);
        (is_host && is_rest && !password.is_empty()).then(|| password.as_str().into())
    })
}

fn matches(field: &str, value: &str) -> bool {
    field == "*" || field == value
}

/// Splits a line at its unescaped colons. As in libpq, the password ends at one too.
fn fields(line: &str) -> Option<[String; 5]> {
    let mut fields = <[String; 5]>::default();
    let mut number = 0;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ':' if number == 4 => break,
            ':' => number += 1,
            '\\' => fields.get_mut(number)?.push(characters.next().unwrap_or('\\')),
            other => fields.get_mut(number)?.push(other),
        }
    }
    (number == 4).then_some(fields)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn found(text: &str, host: &str) -> Option<String> {
        find(text, host, 5432, "loans", "gate").map(|found| found.expose_secret().to_owned())
    }

    #[test]
    fn first_matching_line_counts() {
        let text = "# db:5432:loans:gate:comment\nshort\ndb:5433:loans:gate:other port\n\
                    db:5432:loans:gate:right\n*:*:*:*:fallback\n";
        assert_eq!(found(text, "db").as_deref(), Some("right"));
        assert_eq!(found(text, "elsewhere").as_deref(), Some("fallback"));
        assert_eq!(found("db:*:other:gate:a\ndb:*:loans:other:b", "db"), None);
    }

    #[test]
    fn escapes_are_resolved() {
        let line = r"\:\:1:*:loans:gate:a\:b\\c";
        assert_eq!(found(line, "::1").as_deref(), Some(r"a:b\c"));
        assert_eq!(found("db:*:*:*:a:b", "db").as_deref(), Some("a"), "as in libpq");
    }

    #[test]
    fn localhost_covers_the_default_sockets() {
        let line = "localhost:*:*:*:local";
        assert_eq!(found(line, "/var/run/postgresql").as_deref(), Some("local"));
        assert_eq!(found(line, "/elsewhere"), None);
    }

    #[test]
    fn file_of_other_users_is_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pgpass");
        assert!(read(&file).unwrap().is_none());
        fs::write(&file, "*:*:*:*:secret").unwrap();
        for (mode, is_used) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            match read(&file) {
                Ok(text) => assert!(is_used && text.unwrap().contains("secret"), "{mode:o}"),
                Err(sentence) => {
                    assert!(!is_used && sentence.contains("chmod 600"), "{mode:o}: {sentence}");
                    assert!(!sentence.contains("secret"));
                }
            }
        }
        assert!(read(directory.path()).unwrap_err().contains("not a plain file"));
    }
}
