//! Reads `[[origins]]`: where the files are stored.

use std::time::Duration;

use secrecy::SecretString;
use toml::de::DeValue;
use url::Url;

use super::source::Source;
use super::table::Table;
use super::values::{self, boolean, confidential_url, list, nonzero_duration, number, text};
use crate::catalog::{Location, Storage};
use crate::origin::{self, Azure, Bucket, Google, S3, Where};

/// Returns the origins and the locations of their files. The locations include origins with
/// mistakes, because a route may name one.
pub(super) fn origins(root: &mut Table<'_>) -> (Vec<origin::Settings>, Vec<Storage>) {
    let mut origins: Vec<origin::Settings> = Vec::new();
    let mut storages: Vec<Storage> = Vec::new();
    for mut table in root.tables("origins") {
        let name = table.required("name", "name = \"files\"", text);
        let is_taken = |name: &String| storages.iter().any(|other| other.name == *name);
        if name.as_ref().is_some_and(is_taken) {
            table.mistake("name", "another origin has this name. Give each its own");
        }
        let origin = origin(&mut table, name.clone());
        let places = origin.as_ref().map(|origin| origin.places.as_slice()).unwrap_or_default();
        let locations = places.iter().flat_map(locations).collect();
        storages.extend(name.map(|name| Storage { name, locations }));
        origins.extend(origin);
        table.finish();
    }
    if !root.has("origins") {
        let _: Option<()> = root.required("origins", "[[origins]] with name and url", |_| Ok(()));
    }
    (origins, storages)
}

/// Returns the locations of the files at an address, in comparable form.
fn locations(place: &Where) -> Vec<Location> {
    let bucket = |bucket: &Bucket, endpoint: &Option<Url>, public: &str, names_bucket: bool| {
        let endpoint = endpoint.clone().or_else(|| Url::parse(public).ok());
        let places =
            endpoint.map(|url| Location::bucket(&url, names_bucket, &bucket.name, &bucket.prefix));
        places.unwrap_or_default()
    };
    match place {
        Where::Http(url) => vec![Location::http(url)],
        Where::Directory(path) => vec![Location::directory(path)],
        // Without path style, a configured endpoint already names the bucket.
        Where::S3(name, s3) => {
            let names_bucket = s3.endpoint.is_some() && !s3.path_style;
            bucket(name, &s3.endpoint, "https://s3.amazonaws.com", names_bucket)
        }
        Where::Google(name, google) => {
            bucket(name, &google.endpoint, "https://storage.googleapis.com", false)
        }
        Where::Azure(name, azure) => {
            let public = format!("https://{}.blob.core.windows.net", azure.account);
            bucket(name, &azure.endpoint, &public, false)
        }
    }
}

/// The minimum of open files for a directory. An open file costs less than a connection.
const MIN_FILES: usize = 1024;

fn origin(table: &mut Table<'_>, name: Option<String>) -> Option<origin::Settings> {
    let places = places(table);
    let connect_timeout = table.or("connect_timeout", Duration::from_secs(5), nonzero_duration);
    let first_byte = table.or("first_byte", Duration::from_secs(15), nonzero_duration);
    let idle = table.or("idle", Duration::from_secs(30), nonzero_duration);
    let metadata_ttl = table.or("metadata_ttl", Duration::from_secs(60), nonzero_duration);
    let connections =
        usize::try_from(table.or("connections", 256, number(1, 100_000))).unwrap_or(256);
    let follow_symlinks = follow_symlinks(table, places.as_deref().unwrap_or_default());
    let resumes = u32::try_from(table.or("resumes", 5, number(0, 1000))).unwrap_or(5);
    let (name, places) = (name?, places?);
    Some(origin::Settings {
        name,
        places,
        connect_timeout,
        first_byte,
        idle,
        connections,
        files: connections.max(MIN_FILES),
        resumes,
        follow_symlinks,
        metadata_ttl,
        traces: false,
    })
}

fn follow_symlinks(table: &mut Table<'_>, places: &[Where]) -> bool {
    let is_directory = |place: &Where| matches!(place, Where::Directory(_));
    if table.has("follow_symlinks") && !places.iter().any(is_directory) {
        table.mistake(
            "follow_symlinks",
            "no address of this origin starts with file:. Remove the line",
        );
    }
    table.or("follow_symlinks", false, boolean)
}

/// A parsed address of an origin.
enum Address {
    Http(Url),
    Directory(std::path::PathBuf),
    S3(Bucket),
    Google(Bucket),
    Azure(Bucket),
}

fn places(table: &mut Table<'_>) -> Option<Vec<Where>> {
    let source = table.source();
    let address = |value: &DeValue<'_>| address(value, source);
    let addresses = if table.has("urls") {
        if table.has("url") {
            table.mistake("url", "urls is set too. Keep one of the two");
        }
        match table.optional("urls", list(address)) {
            Some(none) if none.is_empty() => {
                table.mistake(
                    "urls",
                    "the list is empty. Write urls = [\"https://a.example.no/\", \
                     \"https://b.example.no/\"]",
                );
                None
            }
            addresses => addresses,
        }
    } else {
        table
            .required("url", "url = \"https://files.example.no/\"", address)
            .map(|address| vec![address])
    };
    let is_used =
        |wanted: fn(&Address) -> bool| addresses.as_deref().unwrap_or_default().iter().any(wanted);
    let s3 = s3(table, is_used(|address| matches!(address, Address::S3(_))));
    let google = google(table, is_used(|address| matches!(address, Address::Google(_))));
    let azure = azure(table, is_used(|address| matches!(address, Address::Azure(_))));
    let place = |address| {
        Some(match address {
            Address::Http(url) => Where::Http(url),
            Address::Directory(directory) => Where::Directory(directory),
            Address::S3(bucket) => Where::S3(bucket, s3.clone()),
            Address::Google(bucket) => Where::Google(bucket, google.clone()),
            Address::Azure(bucket) => Where::Azure(bucket, azure.clone()?),
        })
    };
    addresses?.into_iter().map(place).collect()
}

fn address(value: &DeValue<'_>, source: &Source<'_>) -> Result<Address, String> {
    let written = text(value)?;
    if let Some(directory) = written.strip_prefix("file:") {
        return match directory.strip_prefix("//").unwrap_or(directory) {
            "" => Err("it names no directory. Write one like \"file:///srv/books\"".to_owned()),
            directory => Ok(Address::Directory(source.path(directory))),
        };
    }
    match written.split_once("://") {
        Some(("s3", rest)) => bucket(rest, "s3").map(Address::S3),
        Some(("gs", rest)) => bucket(rest, "gs").map(Address::Google),
        Some(("az", rest)) => bucket(rest, "az").map(Address::Azure),
        _ => http(value).map(Address::Http),
    }
}

/// Reads an HTTP address. The caller has already handled every other supported scheme.
fn http(value: &DeValue<'_>) -> Result<Url, String> {
    let written = text(value)?;
    match written.split_once("://") {
        Some((scheme, _)) if !matches!(scheme, "http" | "https") => Err(format!(
            "an origin cannot use {scheme}. Write an address that starts with https://, http://, \
             s3://, gs://, az:// or file:"
        )),
        _ => values::url(value),
    }
}

fn bucket(written: &str, scheme: &str) -> Result<Bucket, String> {
    let (name, prefix) = written.split_once('/').unwrap_or((written, ""));
    let prefix = prefix.trim_matches('/');
    let is_plain = |text: &str| {
        !text.contains(['?', '#', '@', '%', ' ']) && !text.split('/').any(|part| part == "..")
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.is_empty() || !name.bytes().all(is_name) || !is_plain(written) {
        return Err(format!("this names no bucket. Write it like \"{scheme}://books/path\""));
    }
    Ok(Bucket { name: name.to_owned(), prefix: prefix.to_owned() })
}

/// Returns the table of a storage type, empty if absent. Reports it if no address has that type.
fn kind<'s>(table: &mut Table<'s>, key: &'static str, scheme: &str, is_used: bool) -> Table<'s> {
    if table.has(key) && !is_used {
        table.mistake(
            key,
            format!("no address of this origin starts with {scheme}. Remove the table"),
        );
    }
    table.optional_table(key)
}

fn secret(table: &mut Table<'_>, key: &'static str, example: &str) -> Option<SecretString> {
    if table.has(key) { table.secret(key, example) } else { None }
}

fn s3(table: &mut Table<'_>, is_used: bool) -> S3 {
    let mut table = kind(table, "s3", "s3://", is_used);
    let region = table.optional("region", text);
    let endpoint = table.optional("endpoint", values::url);
    // Self-hosted storage seldom has a host name for each bucket.
    let path_style = table.or("path_style", endpoint.is_some(), boolean);
    let id = table.optional("access_key_id", text);
    let secret =
        secret(&mut table, "secret_access_key", "secret_access_key = { file = \"certs/s3.key\" }");
    match (&id, table.has("secret_access_key")) {
        (Some(_), false) => table.mistake(
            "access_key_id",
            "its secret is missing. Write secret_access_key = { file = \"certs/s3.key\" }",
        ),
        (None, true) => {
            table.mistake("secret_access_key", "its id is missing. Write access_key_id = \"…\"")
        }
        _ => {}
    }
    table.finish();
    S3 { region, endpoint, path_style, keys: id.zip(secret) }
}

fn google(table: &mut Table<'_>, is_used: bool) -> Google {
    let mut table = kind(table, "google", "gs://", is_used);
    let service_account =
        secret(&mut table, "service_account", "service_account = { file = \"certs/google.json\" }");
    // Requests to the endpoint carry a bearer token.
    let endpoint = table.optional("endpoint", confidential_url);
    table.finish();
    Google { service_account, endpoint }
}

/// Returns none without an account, which is a mistake only if an address needs it.
fn azure(table: &mut Table<'_>, is_used: bool) -> Option<Azure> {
    let mut table = kind(table, "azure", "az://", is_used);
    let account = match is_used {
        true => table.required("account", "account = \"books\"", text),
        false => table.optional("account", text),
    };
    let access_key =
        secret(&mut table, "access_key", "access_key = { file = \"certs/azure.key\" }");
    let endpoint = table.optional("endpoint", confidential_url);
    table.finish();
    Some(Azure { account: account?, access_key, endpoint })
}
