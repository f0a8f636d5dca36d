//! The configuration: reads one TOML file into the `Settings` of every module, or reports every
//! mistake in it.
//!
//! The command line calls [`load`] to serve and [`check()`] to test what the file names. This
//! module builds the `Settings` of every other module and calls nothing else in them. Only `check`
//! also opens files and connections, through the modules that own them.
//!
//! `overrides` puts values of the environment into the file before it is read. `written` compares
//! two configurations key by key, and `reloadable` says which keys a running gate applies.
//!
//! `source` has the lines and the mistakes, `table` walks the TOML, and `values` reads one value.
//! The files named after sections read those sections. One mistake never hides another.

mod access_log;
mod admin_address;
mod alerts;
mod check;
mod check_certificates;
mod check_online;
mod console;
mod handover;
mod ledger;
mod lending;
mod limits;
mod login_services;
mod origins;
mod otlp;
mod overrides;
mod public_addresses;
mod readers;
mod reloadable;
mod reports;
mod routes;
mod secrets;
mod service;
mod socket_path;
mod source;
mod table;
#[cfg(test)]
mod tests;
mod tls;
mod values;
mod written;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::telemetry::access_log::AccessSettings;
use crate::{
    acme, admin, catalog, circulation, console as pages, delivery, gate, ledger as loans,
    lending as bokbasen, listeners, metering, monitor, origin, reader, server, telemetry,
};

pub use admin_address::{AdminAddress, admin_address};
pub use check::{Checked, check, check_files};
pub use ledger::ledger_of_url;
use overrides::Override;
pub use reloadable::is_reloadable;
pub(crate) use reloadable::{PROXIES, changes_login};
use source::{Report, Source};
use table::Table;
pub use written::Written;

/// The settings of every part of a gate.
#[derive(Clone, Debug)]
pub struct Config {
    /// The public listener, from `[listen] public`, `[tls]`, `[server]`, `[cors]` and `[limits]`.
    pub server: server::Settings,
    /// The orders of the public listener's certificate, from `[tls.acme]`; none without the table.
    pub acme: Option<acme::Settings>,
    /// The upgrade to another process, from `[server]`.
    pub handover: listeners::Settings,
    /// The admin listener, from `[listen] admin` and `[admin]`.
    pub admin: admin::Settings,
    /// The console, from `[console]`.
    pub console: pages::Settings,
    /// The authentication of readers, from `[readers]` and `[privacy]`.
    pub readers: reader::Settings,
    /// The client of Bokbasen, from `[lending]`.
    pub lending: bokbasen::Settings,
    /// The database of loans, from `[ledger]`.
    pub ledger: loans::Settings,
    /// The limits of streams, from `[delivery]`.
    pub delivery: delivery::Settings,
    /// The recording of delivered bytes, from `[metering]`.
    pub metering: metering::Settings,
    /// The file storages, from `[[origins]]`.
    pub origins: Vec<origin::Settings>,
    /// The paths of files, from `[[routes]]`.
    pub catalog: catalog::Settings,
    /// The life of a loan, from `[licences]` and the times in `[lending]` and `[gate]`.
    pub circulation: circulation::Settings,
    /// The usage reports, from `[reports]`; none if they are off.
    pub reports: Option<circulation::ReportSettings>,
    /// The access decisions, from `[gate]`.
    pub gate: gate::Settings,
    /// The receivers of alerts, from `[alerts]`.
    pub monitor: monitor::Settings,
    /// The log output, from `[log]`.
    pub log: telemetry::Settings,
    /// The lines of requests, from `[access_log]`.
    pub(crate) access_log: AccessSettings,
    /// The export of telemetry, from `[otlp]`; none if it is off.
    pub otlp: Option<telemetry::OtlpSettings>,
}

/// A configuration without mistakes.
#[derive(Debug)]
pub struct Loaded {
    /// The settings that the file describes.
    pub config: Config,
    /// Settings that are valid but not advisable.
    pub warnings: Vec<Mistake>,
    /// The keys that the file and the environment set.
    pub written: Written,
    /// The line of each key in the file.
    lines: Lines,
    /// The files that contain secrets.
    secret_files: Vec<SecretFile>,
}

impl Loaded {
    /// Returns a mistake at a key, or at the nearest table that contains it. `file` is that of the
    /// configuration.
    pub fn mistake(&self, file: &Path, key: &str, sentence: String) -> Mistake {
        let (file, line) = match self.written.variable(key) {
            Some(variable) => (PathBuf::from(variable), 0),
            None => (file.to_owned(), self.lines.get(key)),
        };
        Mistake { file, line, key: key.to_owned(), sentence }
    }

    /// Returns the mistake in a title table, with its own line if the table can be read. `file` is
    /// that of the configuration.
    pub fn table_mistake(&self, file: &Path, error: catalog::TableError) -> Mistake {
        let catalog::TableError { route, file: table, line, sentence } = error;
        match line {
            Some(line) => Mistake { file: table, line, key: String::new(), sentence },
            None => self.mistake(file, &format!("routes[{route}].title.table"), sentence),
        }
    }
}

/// A file that contains a secret, and the key that names it. It may be the configuration itself.
#[derive(Clone, Debug)]
struct SecretFile {
    key: String,
    file: PathBuf,
}

impl Loaded {
    /// Returns the name of the table of a login service, by its number from 0.
    fn login_service_key(&self, number: usize) -> String {
        match self.lines.0.contains_key("readers.issuers") {
            true => format!("readers.issuers[{number}]"),
            false => "readers.jwt".to_owned(),
        }
    }
}

/// A mistake in a configuration: where it is, what is wrong and what to write instead.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// The file's path, as the caller or the configuration named it; or the name of the environment
    /// variable that overrides the key.
    pub file: PathBuf,
    /// The line, counted from 1; zero for an environment variable.
    pub line: usize,
    /// The key with its tables, such as `lending.timeout`.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub sentence: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file.display())?,
            line => write!(f, "{}:{line}: ", self.file.display())?,
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.sentence)
    }
}

/// The line of every key in the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lines(std::collections::BTreeMap<String, usize>);

impl Lines {
    fn record(&mut self, key: String, line: usize) {
        self.0.insert(key, line);
    }

    /// Returns the line of a key, or of the nearest table that contains it.
    fn get(&self, key: &str) -> usize {
        let mut name = key;
        loop {
            if let Some(line) = self.0.get(name) {
                return *line;
            }
            match name.rsplit_once('.') {
                Some((table, _)) => name = table,
                None => return 1,
            }
        }
    }
}

/// Loads a configuration from a file, with the secrets that it names. Variables of the environment
/// override its keys.
///
/// # Errors
/// Returns every mistake, sorted by line.
pub fn load(file: &Path) -> Result<Loaded, Vec<Mistake>> {
    let text = text_of(file)?;
    read_with(file, &text, &Override::all(std::env::vars_os()))
}

fn text_of(file: &Path) -> Result<String, Vec<Mistake>> {
    std::fs::read_to_string(file).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => ". `loangate init` writes one",
            std::io::ErrorKind::InvalidData => ". Save it as UTF-8",
            _ => "",
        };
        let sentence = format!("the configuration cannot be read: {error}{hint}");
        vec![Mistake { file: file.to_owned(), line: 1, key: String::new(), sentence }]
    })
}

/// Reads a configuration from text. Paths in it are relative to the directory of `file`.
///
/// # Errors
/// Returns every mistake, sorted by line.
pub fn read(file: &Path, text: &str) -> Result<Loaded, Vec<Mistake>> {
    read_with(file, text, &[])
}

fn read_with(file: &Path, text: &str, overrides: &[Override]) -> Result<Loaded, Vec<Mistake>> {
    let (document, errors) = toml::de::DeTable::parse_recoverable(text);
    let mut document = document.into_inner();
    let source = Source::new(file, text);
    errors.iter().for_each(|error| source.not_toml(error));
    overrides.iter().for_each(|variable| variable.apply(&mut document, &source));
    let config = sections(Table::root(&source, &document));
    let report = source.finish();
    match config {
        Some(config) if report.mistakes.is_empty() => {
            let Report { warnings, lines, secret_files, secrets, overrides, .. } = report;
            let written = Written::new(&document, secrets, overrides);
            Ok(Loaded { config, warnings, written, lines, secret_files })
        }
        _ => Err(report.mistakes),
    }
}

/// Reads every table, even after mistakes in earlier ones.
fn sections(mut root: Table<'_>) -> Option<Config> {
    let listen = service::listen(&mut root);
    let lending = lending::lending(&mut root);
    let mut ledger =
        ledger::ledger(&mut root, lending.as_ref().and_then(lending::Lending::platform));
    let mut tls = tls::tls(&mut root, ledger.as_ref().map(|ledger| &ledger.store));
    let acme = tls.as_mut().and_then(|tls| tls.acme.take());
    let (mut admin, admin_tls) = service::admin(&mut root, &listen).unzip();
    let admin_tls = admin_tls.unwrap_or_default();
    let (server, handover) = service::server(&mut root, &listen, tls, admin_tls).unzip();
    let stored = server.as_ref().map_or(Duration::ZERO, |server| server.store_requests);
    let console = console::console(&mut root);
    if let (Some(admin), Some(host)) = (&mut admin, console.host()) {
        admin.hosts.push(host);
    }
    let reader_tables = readers::readers(&mut root, stored);
    let (mut origins, storages) = origins::origins(&mut root);
    let catalog = routes::routes(&mut root, storages);
    let licences = service::licences(&mut root);
    let mut delivery = service::delivery(&mut root);
    if let Some(server) = &server {
        delivery.suspend_after = server.limits.send;
    }
    let freshness = ledger::freshness(ledger.as_ref());
    let gate = service::gate(&mut root, freshness);
    ledger::set_freshness(ledger.as_mut(), gate.freshness);
    let log = service::log(&mut root);
    let access_log = access_log::access_log(&mut root);
    let metering = service::metering(&mut root);
    let monitor = alerts::alerts(&mut root);
    let reports = reports::reports(&mut root);
    let otlp = otlp::otlp(&mut root);
    let traces = otlp.as_ref().is_some_and(|otlp| otlp.traces);
    origins.iter_mut().for_each(|origin| origin.traces = traces);
    root.finish();
    let lending = lending?;
    let (server, ledger) = (server?, ledger?);
    let handover = handover?.settings(&ledger.store, server.listen.first().port());
    Some(Config {
        handover,
        server,
        acme,
        admin: admin?,
        console,
        readers: reader_tables.readers?,
        lending: lending.client?,
        ledger,
        delivery,
        metering,
        origins,
        catalog,
        circulation: circulation::Settings {
            settle: lending.settle,
            refusal_ttl: gate.refusal_ttl,
            availability_ttl: lending.availability_ttl,
            retention: reader_tables.retention,
            licences,
            polls: lending.polls,
        },
        reports,
        gate: gate::Settings { flights: lending.flights, ..gate },
        monitor,
        log,
        access_log,
        otlp,
    })
}
