//! Normalised locations of an origin's files, so that equal places compare equal.
//!
//! Two origins with different names may be the same storage. Therefore the catalog compares
//! locations, not names, to decide whether an open route reaches gated files. `config` creates
//! them. Two host names for one server are not detected, since that needs DNS.

use std::path::{Component, Path, PathBuf};

use percent_encoding::percent_decode_str;
use url::{Host, Url};

use super::built_route::encode_path;

/// An origin, with the locations of its files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Storage {
    /// The name by which routes refer to it.
    pub name: String,
    /// Every location of its files, under each possible address.
    pub locations: Vec<Location>,
}

/// A server or storage, with a base path for files.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location {
    /// The server or the kind of storage, normalised.
    pub(super) server: String,
    /// The decoded base path: empty, or with a trailing slash.
    pub(super) base: String,
}

impl Location {
    /// Returns the location of an HTTP URL, which may also be a bucket's.
    pub fn http(url: &Url) -> Location {
        let path = percent_decode_str(url.path()).decode_utf8_lossy();
        let host = host(url);
        if let Some((server, bucket)) = bucket_in_host(&host) {
            return Location::new(server, &format!("{bucket}/{path}"));
        }
        // Ports 80 and 443 of a host usually serve the same files.
        let server = match url.port_or_known_default() {
            Some(80 | 443) | None => host,
            Some(port) => format!("{host}:{port}"),
        };
        Location::new(server, &path)
    }

    /// Returns the locations of a bucket or container at this endpoint. If the endpoint does not
    /// name the bucket, the storage may serve it by path and by host name.
    pub fn bucket(endpoint: &Url, names_bucket: bool, bucket: &str, prefix: &str) -> Vec<Location> {
        let Location { server, base } = Location::http(endpoint);
        if names_bucket {
            return vec![Location::new(server, &format!("{base}{prefix}"))];
        }
        let in_host = Location::new(format!("{bucket}.{server}"), &format!("{base}{prefix}"));
        vec![Location::new(server, &format!("{base}{bucket}/{prefix}")), in_host]
    }

    /// Returns the location of a local directory, by its canonical path if it exists.
    pub fn directory(path: &Path) -> Location {
        let path = path.canonicalize().unwrap_or_else(|_| without_dots(path));
        Location::new("file".to_owned(), &path.to_string_lossy())
    }

    fn new(server: String, path: &str) -> Location {
        let segments = path.split('/').filter(|segment| !segment.is_empty() && *segment != ".");
        let base = segments.flat_map(|segment| [segment, "/"]).collect();
        Location { server, base }
    }
}

/// Returns the place of each storage's files: the first location of the first storage that shares
/// one with it, encoded, with a trailing slash.
pub(super) fn places(storages: &[Storage]) -> Vec<String> {
    let shares = |one: &Storage, other: &Storage| {
        one.locations.iter().any(|location| other.locations.contains(location))
    };
    let place = |storage: &Storage| {
        let first = storages.iter().find(|other| shares(other, storage)).unwrap_or(storage);
        let at = first.locations.first();
        at.map(|at| format!("{}/{}", at.server, encode_path(&at.base))).unwrap_or_default()
    };
    storages.iter().map(place).collect()
}

fn host(url: &Url) -> String {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            if name.ends_with(".localhost") { "localhost".to_owned() } else { name }
        }
        Some(Host::Ipv4(ip)) if ip.is_loopback() || ip.is_unspecified() => "localhost".to_owned(),
        Some(Host::Ipv4(ip)) => ip.to_string(),
        Some(Host::Ipv6(ip)) => match ip.to_ipv4_mapped() {
            _ if ip.is_loopback() || ip.is_unspecified() => "localhost".to_owned(),
            Some(ip) if ip.is_loopback() || ip.is_unspecified() => "localhost".to_owned(),
            Some(ip) => ip.to_string(),
            None => ip.to_string(),
        },
        None => String::new(),
    }
}

/// Returns the storage and bucket of a cloud's host name, like `books.s3.eu-north-1.amazonaws.com`.
fn bucket_in_host(host: &str) -> Option<(String, String)> {
    if let Some(bucket) = host.strip_suffix(".storage.googleapis.com") {
        return Some(("storage.googleapis.com".to_owned(), bucket.to_owned()));
    }
    if host == "storage.cloud.google.com" {
        return Some(("storage.googleapis.com".to_owned(), String::new()));
    }
    if let Some(account) = host.strip_suffix(".dfs.core.windows.net") {
        return Some((format!("{account}.blob.core.windows.net"), String::new()));
    }
    let labels = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".amazonaws.com")?;
    let labels: Vec<&str> = labels.split('.').collect();
    let s3 = labels.iter().rposition(|label| *label == "s3" || label.starts_with("s3-"))?;
    let bucket = labels.get(..s3).unwrap_or_default().join(".");
    Some(("s3.amazonaws.com".to_owned(), bucket))
}

fn without_dots(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(url: &str) -> Location {
        Location::http(&Url::parse(url).unwrap())
    }

    #[test]
    fn equal_places_have_equal_locations() {
        let place = http("https://files.example.no/books/");
        for same in [
            "https://FILES.example.no:443/books",
            "http://files.example.no/books/",
            "http://files.example.no:80//books//",
            "https://files.example.no./b%6Foks",
            "https://user:secret@files.example.no/x/../books",
            "https://files.example.no/%2e/books",
        ] {
            assert_eq!(http(same), place, "{same}");
        }
        for other in [
            "https://files.example.no:8443/books/",
            "https://other.example.no/books/",
            "https://files.example.no/",
        ] {
            assert_ne!(http(other), place, "{other}");
        }
        for here in [
            "http://localhost:9000",
            "http://127.0.0.1:9000/",
            "http://[::1]:9000",
            "http://127.9.9.9:9000",
            "http://[::ffff:127.0.0.1]:9000",
            "http://a.localhost:9000",
        ] {
            assert_eq!(http(here), http("http://localhost:9000/"), "{here}");
        }
    }

    #[test]
    fn bucket_addresses_share_a_location() {
        let aws = Url::parse("https://s3.amazonaws.com").unwrap();
        let places = Location::bucket(&aws, false, "books", "all");
        for same in [
            "https://books.s3.eu-north-1.amazonaws.com/all/",
            "https://books.s3.amazonaws.com/all",
            "https://s3.eu-north-1.amazonaws.com/books/all",
            "https://books.s3-eu-north-1.amazonaws.com/all",
            "https://books.s3.dualstack.eu-north-1.amazonaws.com/all",
        ] {
            assert!(places.contains(&http(same)), "{same}: {:?} in {places:?}", http(same));
        }
        let own = Url::parse("https://s3.example.no:9000/").unwrap();
        let places = Location::bucket(&own, false, "books", "");
        for same in ["https://s3.example.no:9000/books", "https://books.s3.example.no:9000/"] {
            assert!(places.contains(&http(same)), "{same}");
        }
        let google = Url::parse("https://storage.googleapis.com").unwrap();
        let places = Location::bucket(&google, false, "books", "all");
        for same in [
            "https://storage.googleapis.com/books/all",
            "https://books.storage.googleapis.com/all",
            "https://storage.cloud.google.com/books/all",
        ] {
            assert!(places.contains(&http(same)), "{same}");
        }
    }

    #[test]
    fn directory_has_its_canonical_path() {
        let dir = tempfile::tempdir().unwrap();
        let books = dir.path().join("books");
        std::fs::create_dir(&books).unwrap();
        std::os::unix::fs::symlink(&books, dir.path().join("link")).unwrap();
        let place = Location::directory(&books);
        for same in ["link", "books/", "./books", "x/../books"] {
            let is_there = !same.starts_with('x');
            let given = Location::directory(&dir.path().join(same));
            assert!(
                given == place || !is_there && given.base.ends_with("/books/"),
                "{same}: {given:?}"
            );
        }
    }
}
