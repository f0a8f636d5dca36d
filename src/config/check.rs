//! A check that goes deeper than the file: it opens and tries what the file names, so that a start
//! succeeds.
//!
//! The command line calls it for `loangate check`. The modules themselves open their files, so that
//! the sentences are those of a start; each gets the line that named the file. `check_online` tries
//! the network.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Loaded, Mistake, check_online, load};
use crate::buffer_budget::Buffers;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::ledger;
use crate::origin::{Origin, Where};
use crate::reader::Readers;
use crate::server::{Certificates, TlsError, Validity};
use crate::telemetry::Metrics;

/// What was found.
#[derive(Debug, Default)]
pub struct Checked {
    /// What keeps the gate from working.
    pub mistakes: Vec<Mistake>,
    /// What is allowed and not advisable.
    pub warnings: Vec<Mistake>,
    /// What works, if the network was tried.
    pub found: Vec<String>,
}

/// Checks a configuration and everything on this machine that it names; with `online`, also
/// Bokbasen's login, API and clock, and every address of every origin.
pub async fn check(file: &Path, online: bool) -> Checked {
    let loaded = match load(file) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            return Checked { mistakes, ..Checked::default() };
        }
    };
    let mut look = Look { file, loaded: &loaded, checked: Checked::default() };
    look.addresses();
    look.certificates();
    look.readers();
    look.origins();
    look.titles();
    look.private_files();
    look.ledger().await;
    if online {
        look.online().await;
    }
    let mut checked = look.checked;
    checked.warnings.extend(loaded.warnings);
    checked.warnings.sort_by_key(|warning| warning.line);
    // Those in the file itself before those in the tables that it names.
    checked
        .mistakes
        .sort_by_cached_key(|mistake| (mistake.file != file, mistake.file.clone(), mistake.line));
    checked
}

struct Look<'a> {
    file: &'a Path,
    loaded: &'a Loaded,
    checked: Checked,
}

impl Look<'_> {
    fn at(&self, key: &str, sentence: String) -> Mistake {
        let line = self.loaded.lines.of(key);
        Mistake { file: self.file.to_owned(), line, key: key.to_owned(), sentence }
    }

    /// Whether this machine has the addresses to listen on, and this user may. A port that is taken
    /// is no mistake: the gate may be running.
    fn addresses(&mut self) {
        let config = &self.loaded.config;
        for (key, address) in
            [("listen.public", config.server.listen), ("listen.admin", config.admin.listen)]
        {
            let Err(error) = try_bind(address) else { continue };
            let sentence = match error.kind() {
                ErrorKind::AddrNotAvailable => {
                    format!(
                        "this machine does not have the address {}. Write one of its own, or 0.0.0.0",
                        address.ip()
                    )
                }
                ErrorKind::PermissionDenied => format!(
                    "this user may not listen on port {}. Write one from 1024 on, or allow it \
                     (AmbientCapabilities=CAP_NET_BIND_SERVICE)",
                    address.port()
                ),
                _ => continue,
            };
            self.checked.mistakes.push(self.at(key, sentence));
        }
    }

    fn certificates(&mut self) {
        let settings = &self.loaded.config.server;
        let extra = settings.extra.iter().enumerate();
        let named = std::iter::once(("tls".to_owned(), &settings.certificate))
            .chain(extra.map(|(number, files)| (format!("tls.extra[{number}]"), files)));
        for (table, files) in named {
            let error = match Certificates::try_load(files) {
                Ok(validity) => {
                    self.dates(&format!("{table}.certificate"), &files.certificate, validity);
                    continue;
                }
                Err(error) => error,
            };
            let key = match &error {
                TlsError::File { file, .. } if *file == files.key => "key",
                TlsError::Encrypted { .. } | TlsError::OtherKey { .. } => "key",
                _ => "certificate",
            };
            self.checked.mistakes.push(self.at(&format!("{table}.{key}"), error.to_string()));
        }
    }

    /// A certificate that clients refuse is a mistake; one that they will soon refuse, a warning.
    fn dates(&mut self, key: &str, file: &Path, validity: Validity) {
        let Some(problem) = validity.problem(Clock::system().now()) else { return };
        let said = self.at(key, format!("{}: {problem}", file.display()));
        match problem.is_fatal() {
            true => self.checked.mistakes.push(said),
            false => self.checked.warnings.push(said),
        }
    }

    fn readers(&mut self) {
        let settings = &self.loaded.config.readers;
        match (Readers::new(settings, Clock::system()), &settings.jwt) {
            (Err(error), _) => {
                self.checked.mistakes.push(self.at("readers.jwt.jwks", error.to_string()))
            }
            (Ok(_), Some(jwt)) => {
                let file = jwt.jwks.display();
                self.checked.found.push(format!("the readers' key set {file} can be read"));
            }
            (Ok(_), None) => {}
        }
    }

    fn origins(&mut self) {
        let Ok(metrics) = Metrics::new() else { return };
        for (number, settings) in self.loaded.config.origins.iter().enumerate() {
            if let Err(error) = Origin::new(
                settings,
                &Buffers::new(self.loaded.config.server.buffers),
                metrics.clone(),
            ) {
                self.checked
                    .mistakes
                    .push(self.at(&format!("origins[{number}].url"), error.to_string()));
            }
            if settings.places.iter().any(lacks_region) {
                let sentence = "no region is written, here or in AWS_REGION, so that requests are signed for us-east-1. \
                                Write s3 = { region = \"eu-north-1\" }";
                self.checked
                    .warnings
                    .push(self.at(&format!("origins[{number}].url"), sentence.to_owned()));
            }
        }
    }

    /// The tables of titles. What is wrong with the routes themselves has been said before.
    fn titles(&mut self) {
        let config = &self.loaded.config;
        let read = Catalog::new(&config.catalog).map(|catalog| catalog.read_tables());
        for error in read.ok().and_then(Result::err).unwrap_or_default() {
            let mistake = match error.line {
                Some(line) => {
                    Mistake { file: error.file, line, key: String::new(), sentence: error.sentence }
                }
                None => self.at(&format!("routes[{}].title.table", error.route), error.sentence),
            };
            self.checked.mistakes.push(mistake);
        }
    }

    /// A secret that other users of the machine can read, the group's included, is none.
    fn private_files(&mut self) {
        let settings = &self.loaded.config.server;
        let extra = settings.extra.iter().enumerate();
        let tls =
            std::iter::once(("tls.key".to_owned(), settings.certificate.key.clone()))
                .chain(extra.map(|(number, files)| {
                    (format!("tls.extra[{number}].key"), files.key.clone())
                }));
        let secrets =
            self.loaded.secret_files.iter().map(|found| (found.key.clone(), found.file.clone()));
        for (key, file) in tls.chain(secrets) {
            let mode = std::fs::metadata(&file).map_or(0, |metadata| metadata.permissions().mode());
            if mode & 0o077 != 0 {
                let (shown, mode) = (file.display(), mode & 0o777);
                let sentence = format!(
                    "other users can read or change {shown} (mode {mode:03o}). Make it its owner's alone: chmod 600 {shown}"
                );
                self.checked.mistakes.push(self.at(&key, sentence));
            }
        }
    }

    /// Whether a start could open the ledger, under the pseudonym key of this configuration.
    async fn ledger(&mut self) {
        let Ok(readers) = Readers::new(&self.loaded.config.readers, Clock::system()) else {
            return;
        };
        let file = &self.loaded.config.ledger.file;
        if let Err(error) = ledger::probe(file, &readers.key_fingerprint()).await {
            self.checked.mistakes.push(self.at("ledger.url", error.to_string()));
        }
    }

    async fn online(&mut self) {
        let found = check_online::look(self.loaded).await;
        self.checked.found.extend(found.good);
        for (key, sentence) in found.warnings {
            self.checked.warnings.push(self.at(&key, sentence));
        }
        for (key, sentence) in found.mistakes {
            self.checked.mistakes.push(self.at(&key, sentence));
        }
    }
}

/// Whether a bucket at Amazon has no region from anywhere.
fn lacks_region(place: &Where) -> bool {
    let Where::S3(_, s3) = place else { return false };
    let in_environment = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    // The process's own variables count only where no key is written, as in `origin`.
    let is_inherited =
        s3.keys.is_none() && in_environment.iter().any(|name| std::env::var_os(name).is_some());
    s3.region.is_none() && s3.endpoint.is_none() && !is_inherited
}

/// Binds without listening, so that a gate that starts or runs there is not disturbed.
fn try_bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())
}
