//! Reads `[ledger]` and `[brake]`: where loans are stored, and the limits on new ones.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use super::Config;
use super::table::Table;
use super::values::{self, nonzero_duration, number, one_of};
use crate::ledger::{
    Brake, BrakeMode, Endpoint, MIGRATIONS, PostgresSettings, ReadEndpoint, Settings, Sources,
    StoreSettings, longest_call,
};

const URL_EXAMPLE: &str = "url = \"sqlite:data/loangate.db\"";

/// The keys of PostgreSQL only.
const POSTGRES_KEYS: [&str; 5] = ["password", "direct_url", "connections", "lease", "heads"];

/// The default directory of the audit trail's newest links.
const DEFAULT_HEADS: &str = "ledger-heads";

/// What the lending platform requires of a lease.
#[derive(Clone, Copy, Debug)]
pub(super) struct Platform {
    /// Whether it is on this machine, as in development.
    pub(super) is_local: bool,
    /// `lending.timeout`.
    pub(super) timeout: Duration,
}

/// A URL of `[ledger]`.
enum StoreUrl {
    Sqlite(PathBuf),
    Postgres(Box<ReadEndpoint>),
}

pub(super) fn ledger(root: &mut Table<'_>, platform: Option<Platform>) -> Option<Settings> {
    let brake = brake(root);
    let mut table = root.required_table("ledger", URL_EXAMPLE)?;
    let password = table.optional_secret("password");
    let source = table.source();
    let path = |file: &str| source.path(file);
    let sources = sources(&path, password.as_ref());
    let url =
        table.required("url", URL_EXAMPLE, |value| store_url(&values::text(value)?, &sources));
    let store = match url {
        Some(StoreUrl::Sqlite(file)) => {
            reject_postgres_keys(&mut table);
            Some(StoreSettings::Sqlite(file))
        }
        Some(StoreUrl::Postgres(read)) => {
            let endpoint = accept_endpoint(&mut table, "url", *read);
            let settings = postgres(&mut table, endpoint, &sources, platform);
            Some(StoreSettings::Postgres(Box::new(settings)))
        }
        // Reading the other keys keeps them known.
        None => {
            for key in POSTGRES_KEYS {
                let _ = table.has(key);
            }
            None
        }
    };
    table.finish();
    Some(Settings { store: store?, brake })
}

/// Returns the default of `gate.freshness` with this ledger; none for the usual one.
pub(super) fn freshness(settings: Option<&Settings>) -> Option<Duration> {
    match settings?.store {
        StoreSettings::Sqlite(_) => None,
        StoreSettings::Postgres(_) => Some(PostgresSettings::DEFAULT_FRESHNESS),
    }
}

/// Records `gate.freshness` in the settings of the ledger, through which other gates know it.
pub(super) fn set_freshness(settings: Option<&mut Settings>, freshness: Duration) {
    if let Some(Settings { store: StoreSettings::Postgres(postgres), .. }) = settings {
        postgres.freshness = freshness;
    }
}

fn sources<'a>(
    path: &'a dyn Fn(&str) -> PathBuf,
    password: Option<&'a SecretString>,
) -> Sources<'a> {
    Sources { environment: &|name| std::env::var(name).ok(), path, password }
}

/// Reads a URL of a ledger on a command line, where paths are relative to the working directory.
/// `file` is the file of `config`. Returns the store, and warnings as sentences.
///
/// Of the database that `config` names, the other keys of `[ledger]` apply, and the password if the
/// URL has none.
///
/// # Errors
/// Returns what is wrong and what to write instead. The sentence contains no password.
pub fn ledger_of_url(
    url: &str,
    config: &Config,
    file: &Path,
) -> Result<(StoreSettings, Vec<String>), String> {
    let path = |file: &str| PathBuf::from(file);
    let read = match store_url(url, &sources(&path, None))? {
        StoreUrl::Sqlite(file) => return Ok((StoreSettings::Sqlite(file), Vec::new())),
        StoreUrl::Postgres(read) => *read,
    };
    let ReadEndpoint { endpoint, has_password_in_url, mut warnings } = read;
    if has_password_in_url {
        let sentence = "other users of this machine can see a password on the command line; set \
             PGPASSWORD or use a password file";
        warnings.push(sentence.to_owned());
    }
    let settings = match &config.ledger.store {
        StoreSettings::Postgres(configured) if configured.endpoint.has_hosts_of(&endpoint) => {
            let mut settings = configured.as_ref().clone();
            if has_password_in_url {
                settings.endpoint = endpoint;
            }
            settings
        }
        _ => PostgresSettings {
            endpoint,
            direct: None,
            connections: PostgresSettings::DEFAULT_CONNECTIONS,
            lease: PostgresSettings::DEFAULT_LEASE,
            freshness: PostgresSettings::DEFAULT_FRESHNESS,
            heads: file.with_file_name(DEFAULT_HEADS),
            migrations: MIGRATIONS,
        },
    };
    Ok((StoreSettings::Postgres(Box::new(settings)), warnings))
}

fn store_url(url: &str, sources: &Sources<'_>) -> Result<StoreUrl, String> {
    match url.split_once(':') {
        Some(("postgres" | "postgresql", _)) => {
            Endpoint::read(url, *sources).map(|read| StoreUrl::Postgres(Box::new(read)))
        }
        Some(("sqlite", file)) => match file.strip_prefix("//").unwrap_or(file) {
            "" | ":memory:" => Err("a ledger needs a file, so that it outlives the process. \
                                    Write \"sqlite:data/loangate.db\""
                .to_owned()),
            file => Ok(StoreUrl::Sqlite((sources.path)(file))),
        },
        // Not quoted, since it may contain a password.
        _ => Err("it names neither SQLite nor PostgreSQL. Write \"sqlite:data/loangate.db\" or \
                  \"postgres://loangate@db.example.no/loangate\""
            .to_owned()),
    }
}

fn reject_postgres_keys(table: &mut Table<'_>) {
    for key in POSTGRES_KEYS {
        if table.has(key) {
            let sentence = "only a ledger in PostgreSQL has this key. Remove it";
            table.mistake(key, sentence);
        }
    }
}

/// Records what the operator should know about an endpoint.
fn accept_endpoint(table: &mut Table<'_>, key: &'static str, read: ReadEndpoint) -> Endpoint {
    let ReadEndpoint { endpoint, has_password_in_url, warnings } = read;
    if has_password_in_url {
        table.record_literal_secret(key);
    }
    warnings.iter().for_each(|warning| table.warn(key, warning));
    endpoint
}

fn postgres(
    table: &mut Table<'_>,
    endpoint: Endpoint,
    sources: &Sources<'_>,
    platform: Option<Platform>,
) -> PostgresSettings {
    let least = u64::from(PostgresSettings::MIN_CONNECTIONS);
    let default = PostgresSettings::DEFAULT_CONNECTIONS;
    let connections = table.or("connections", u64::from(default), number(least, 1000));
    let lease = lease(table, platform);
    let heads = table.or("heads", (sources.path)(DEFAULT_HEADS), |value| {
        Ok((sources.path)(&values::text(value)?))
    });
    let direct = table
        .optional("direct_url", |value| Endpoint::read(&values::text(value)?, *sources))
        .map(|read| Box::new(accept_endpoint(table, "direct_url", read)));
    let connections = u32::try_from(connections).unwrap_or(default);
    let freshness = PostgresSettings::DEFAULT_FRESHNESS;
    let migrations = MIGRATIONS;
    PostgresSettings { endpoint, direct, connections, lease, freshness, heads, migrations }
}

/// Reads the lease, and compares it with the calls that must end within it.
fn lease(table: &mut Table<'_>, platform: Option<Platform>) -> Duration {
    const MIN: Duration = PostgresSettings::MIN_LEASE;
    const MAX: Duration = PostgresSettings::MAX_LEASE;
    let lease = table.or("lease", PostgresSettings::DEFAULT_LEASE, nonzero_duration);
    if lease > MAX {
        let sentence = format!(
            "other gates take over the loans of a dead gate only after this time. Write at most \
             \"{}s\"",
            MAX.as_secs()
        );
        table.mistake("lease", sentence);
        return lease;
    }
    let Some(Platform { is_local, timeout }) = platform else { return lease };
    if lease < MIN && !is_local {
        let sentence = format!(
            "a node that is only slow for a moment would lose its loans. Write at least \"{}s\"",
            MIN.as_secs()
        );
        table.mistake("lease", sentence);
        return lease;
    }
    let longest = longest_call(lease);
    if timeout > longest {
        let sentence = format!(
            "a call may take lending.timeout ({}), and must end within two thirds of the lease. \
             Write a longer lease, or lending.timeout = \"{}\" or less",
            humantime::format_duration(timeout),
            humantime::format_duration(Duration::from_secs(longest.as_secs().max(1))),
        );
        // In development, a short lease may meet any timeout.
        match is_local {
            true => table.warn("lease", &sentence),
            false => table.mistake("lease", sentence),
        }
    }
    lease
}

fn brake(root: &mut Table<'_>) -> Brake {
    let mut table = root.optional_table("brake");
    let modes =
        [("off", BrakeMode::Off), ("shadow", BrakeMode::Shadow), ("enforce", BrakeMode::Enforce)];
    let mode = table.or("mode", BrakeMode::Off, one_of(&modes));
    let mut limit = |key, default| {
        u32::try_from(table.or(key, default, number(0, u64::from(u32::MAX)))).unwrap_or(u32::MAX)
    };
    let brake = Brake {
        mode,
        library_per_hour: limit("library_per_hour", 0),
        library_per_day: limit("library_per_day", 0),
        borrower_per_hour: limit("borrower_per_hour", 0),
        attempts_per_borrower_per_hour: limit("attempts_per_borrower_per_hour", 30),
        attempts_per_library_per_hour: limit("attempts_per_library_per_hour", 0),
    };
    let loans = [brake.library_per_hour, brake.library_per_day, brake.borrower_per_hour];
    if mode != BrakeMode::Off && loans == [0; 3] {
        table.mistake(
            "mode",
            "a brake without a limit stops nothing. Write library_per_hour = 500, or \
             mode = \"off\"",
        );
    }
    table.finish();
    brake
}
