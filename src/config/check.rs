//! The check behind `loangate check`: tries everything that a start needs, so that the start
//! succeeds.
//!
//! The modules open their own files, so the messages are the same as at a start. Each message gets
//! the line that names the file. `check_certificates` checks certificates, and `check_online` tests
//! the network.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Loaded, Mistake, check_online, load};
use crate::buffer_budget::Buffers;
use crate::catalog::Catalog;
use crate::circulation::{ListMistake, Lists};
use crate::clock::Clock;
use crate::ledger;
use crate::listeners::check_socket_path;
use crate::origin::{Origin, Where};
use crate::reader::{self, KeySource, Readers};
use crate::telemetry::{Metrics, access_log};

/// The result of a check.
#[derive(Debug, Default)]
pub struct Checked {
    /// Problems that keep the gate from working.
    pub mistakes: Vec<Mistake>,
    /// Settings that are valid but not advisable.
    pub warnings: Vec<Mistake>,
    /// Sentences about what works. Empty unless the network was tested.
    pub found: Vec<String>,
}

/// Checks a configuration and everything on this machine that it names. With `online`, also checks
/// Bokbasen's login, API and clock, and every address of every origin.
pub async fn check(file: &Path, online: bool) -> Checked {
    let loaded = match load(file) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            return Checked { mistakes, ..Checked::default() };
        }
    };
    let mut checker = Checker { file, loaded: &loaded, checked: Checked::default() };
    checker.addresses();
    checker.admin_socket();
    checker.certificates(true);
    checker.readers();
    checker.origins();
    checker.titles();
    checker.report_lists().await;
    checker.private_files();
    checker.access_log();
    checker.ledger().await;
    if online {
        checker.online().await;
    }
    let mut checked = checker.checked;
    checked.warnings.extend(loaded.warnings);
    checked.warnings.sort_by_key(|warning| warning.line);
    // Mistakes in the configuration first, then those in the title tables that it names.
    checked
        .mistakes
        .sort_by_cached_key(|mistake| (mistake.file != file, mistake.file.clone(), mistake.line));
    checked
}

/// Checks certificates, readers' keys and origins for a reload. Returns every mistake. An expired
/// certificate is none: the one in use may have expired, too.
pub fn check_files(file: &Path, loaded: &Loaded) -> Vec<Mistake> {
    let mut checker = Checker { file, loaded, checked: Checked::default() };
    checker.certificates(false);
    checker.readers();
    checker.origins();
    checker.checked.mistakes
}

/// Checks one part after the other.
pub(super) struct Checker<'a> {
    file: &'a Path,
    pub(super) loaded: &'a Loaded,
    pub(super) checked: Checked,
}

impl Checker<'_> {
    pub(super) fn at(&self, key: &str, sentence: String) -> Mistake {
        self.loaded.mistake(self.file, key, sentence)
    }

    /// Checks that this machine has the listen addresses and that this user may bind them. An
    /// address in use is no mistake: the gate may be running.
    fn addresses(&mut self) {
        let config = &self.loaded.config;
        let public = config.server.listen.iter().map(|address| ("listen.public", address));
        for (key, address) in public.chain([("listen.admin", config.admin.listen)]) {
            let Err(error) = try_bind(address) else { continue };
            let sentence = match error.kind() {
                ErrorKind::AddrNotAvailable => {
                    let wildcard = if address.is_ipv4() { "0.0.0.0" } else { "[::]" };
                    format!(
                        "this machine does not have the address {}. Write one of its own, or \
                         {wildcard}",
                        address.ip()
                    )
                }
                _ if Errno::from_io_error(&error) == Some(Errno::AFNOSUPPORT) => format!(
                    "this machine has no IPv6, so it cannot listen on {address}. Remove the \
                     address, or turn IPv6 on"
                ),
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

    /// Checks that the Unix socket of the admin listener can be made. A socket that is there is no
    /// mistake: the gate may be running.
    fn admin_socket(&mut self) {
        let Some(path) = &self.loaded.config.admin.socket else { return };
        let Err(sentence) = check_socket_path(path) else { return };
        let found = self.at("listen.admin_socket", sentence);
        // The service manager makes directories of /run at each start.
        let is_made_later =
            path.starts_with("/run") && path.parent().is_some_and(|it| !it.exists());
        match is_made_later {
            true => self.checked.warnings.push(found),
            false => self.checked.mistakes.push(found),
        }
    }

    fn readers(&mut self) {
        let settings = &self.loaded.config.readers;
        let files = settings.issuers.iter().enumerate().filter_map(|(number, service)| {
            let KeySource::File(file) = &service.keys else { return None };
            Some((self.loaded.login_service_key(number), service, file))
        });
        let (mut found, mut mistakes) = (Vec::new(), Vec::new());
        for (key, service, file) in files {
            let file = file.display();
            let one = reader::Settings { issuers: vec![service.clone()], ..settings.clone() };
            match Readers::new(&one, Clock::system()) {
                Ok(_) => found.push(format!("the readers' key set {file} can be read")),
                Err(error) => mistakes.push(self.at(&format!("{key}.jwks"), error.to_string())),
            }
        }
        if mistakes.is_empty()
            && let Err(error) = Readers::new(settings, Clock::system())
        {
            mistakes.push(self.at("readers", error.to_string()));
        }
        self.checked.found.extend(found);
        self.checked.mistakes.extend(mistakes);
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
                let sentence = "no region is set, here or in AWS_REGION, so requests are \
                                signed for us-east-1. Write s3 = { region = \"eu-north-1\" }";
                self.checked
                    .warnings
                    .push(self.at(&format!("origins[{number}].url"), sentence.to_owned()));
            }
        }
    }

    /// Checks the title tables. [`load`] has already checked the routes.
    fn titles(&mut self) {
        let config = &self.loaded.config;
        let read = Catalog::new(&config.catalog).map(|mut catalog| catalog.read_tables());
        for error in read.ok().and_then(Result::err).unwrap_or_default() {
            self.checked.mistakes.push(self.loaded.table_mistake(self.file, error));
        }
    }

    /// Checks the lists of prices and sizes.
    async fn report_lists(&mut self) {
        let Some(reports) = &self.loaded.config.reports else { return };
        let read = Lists::read(reports.prices.as_deref(), reports.sizes.as_deref()).await;
        for ListMistake { file, line, sentence } in read.err().unwrap_or_default() {
            let mistake = match line {
                Some(line) => Mistake { file, line, key: String::new(), sentence },
                None if reports.prices.as_ref() == Some(&file) => {
                    self.at("reports.prices", sentence)
                }
                None => self.at("reports.sizes", sentence),
            };
            self.checked.mistakes.push(mistake);
        }
    }

    /// Checks that the access log can be opened, without making its file.
    fn access_log(&mut self) {
        if let Err(error) = access_log::check(&self.loaded.config.access_log.output) {
            let mistake = self.at("access_log.to", error.to_string());
            self.checked.mistakes.push(mistake);
        }
    }

    /// Reports secret files that the group or other users can access. The group may read a file of
    /// root, as libpq allows it for private keys: so the gate cannot change its own secrets.
    fn private_files(&mut self) {
        let tls = self.named_certificates().into_iter();
        let tls = tls.map(|(table, files)| (format!("{table}.key"), files.key));
        let secrets =
            self.loaded.secret_files.iter().map(|found| (found.key.clone(), found.file.clone()));
        for (key, file) in tls.chain(secrets) {
            let Ok(metadata) = std::fs::metadata(&file) else { continue };
            let mode = metadata.permissions().mode();
            let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
            if mode & forbidden != 0 {
                let (shown, mode) = (file.display(), mode & 0o777);
                let sentence = format!(
                    "other users can read or change {shown} (mode {mode:03o}). Allow only its \
                     owner: chmod 600 {shown}"
                );
                self.checked.mistakes.push(self.at(&key, sentence));
            }
        }
    }

    /// Checks that the ledger opens with this configuration's pseudonym key.
    async fn ledger(&mut self) {
        let Ok(readers) = Readers::new(&self.loaded.config.readers, Clock::system()) else {
            return;
        };
        // A database elsewhere is tested only with the rest of the network.
        let Some(file) = self.loaded.config.ledger.sqlite_file() else { return };
        if let Err(error) = ledger::probe(file, &readers.key_fingerprint()).await {
            self.checked.mistakes.push(self.at("ledger.url", error.to_string()));
        }
    }

    async fn online(&mut self) {
        let found = check_online::run(self.loaded).await;
        self.checked.found.extend(found.good);
        for (key, sentence) in found.warnings {
            self.checked.warnings.push(self.at(&key, sentence));
        }
        for (key, sentence) in found.mistakes {
            self.checked.mistakes.push(self.at(&key, sentence));
        }
    }
}

/// Whether an Amazon bucket has no region in the file or the environment.
fn lacks_region(place: &Where) -> bool {
    let Where::S3(_, s3) = place else { return false };
    let in_environment = ["AWS_REGION", "AWS_DEFAULT_REGION"];
    // The environment counts only without a configured key, as in `origin`.
    let is_inherited =
        s3.keys.is_none() && in_environment.iter().any(|name| std::env::var_os(name).is_some());
    s3.region.is_none() && s3.endpoint.is_none() && !is_inherited
}

/// Binds without listening, so that a gate running at this address is not disturbed.
fn try_bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())
}
