//! Looking deeper than the file: what it names is opened and tried, so that a start will not fail.
//!
//! The command line calls it for `loangate check`. It lets the modules themselves open their files, so that the
//! sentences are those of a start, and puts to each the line that named it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jiff::SignedDuration;

use super::{Loaded, Mistake, load};
use crate::buffers::Buffers;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::lending::Bokbasen;
use crate::origin::Origin;
use crate::reader::Readers;
use crate::server::{Certificates, TlsError};
use crate::telemetry::Metrics;

/// The farthest that our clock may be from Bokbasen's (page "Authentication Service").
const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(15);

/// What was found.
#[derive(Debug, Default)]
pub struct Checked {
    /// What keeps the gate from working.
    pub mistakes: Vec<Mistake>,
    /// What is allowed and not advisable.
    pub warnings: Vec<Mistake>,
    /// How far our clock is ahead of Bokbasen's, where it was asked.
    pub clock_ahead: Option<SignedDuration>,
}

/// Checks a configuration and everything on this machine that it names; with `online`, also whether Bokbasen lets
/// us in and whether its clock agrees with ours.
pub async fn check(file: &Path, online: bool) -> Checked {
    let loaded = match load(file) {
        Ok(loaded) => loaded,
        Err(mistakes) => {
            return Checked { mistakes, ..Checked::default() };
        }
    };
    let mut look = Look { file, loaded: &loaded, checked: Checked::default() };
    look.certificates();
    look.readers();
    look.origins();
    look.titles();
    look.private_files();
    if online {
        look.lending().await;
    }
    let mut checked = look.checked;
    checked.warnings.extend(loaded.warnings);
    checked.warnings.sort_by_key(|warning| warning.line);
    // Those in the file itself before those in the tables that it names.
    checked.mistakes.sort_by_cached_key(|mistake| (mistake.file != file, mistake.file.clone(), mistake.line));
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

    fn certificates(&mut self) {
        let settings = &self.loaded.config.server;
        let extra = settings.extra.iter().enumerate();
        let named = std::iter::once(("tls".to_owned(), &settings.certificate))
            .chain(extra.map(|(number, files)| (format!("tls.extra[{number}]"), files)));
        for (table, files) in named {
            let Err(error) = Certificates::try_load(files) else { continue };
            let key = match &error {
                TlsError::File { file, .. } if *file == files.key => "key",
                _ => "certificate",
            };
            self.checked.mistakes.push(self.at(&format!("{table}.{key}"), error.to_string()));
        }
    }

    fn readers(&mut self) {
        if let Err(error) = Readers::new(&self.loaded.config.readers, Clock::system()) {
            self.checked.mistakes.push(self.at("readers.jwt.jwks", error.to_string()));
        }
    }

    fn origins(&mut self) {
        let Ok(metrics) = Metrics::new() else { return };
        for (number, settings) in self.loaded.config.origins.iter().enumerate() {
            if let Err(error) =
                Origin::new(settings, &Buffers::new(self.loaded.config.server.buffers), metrics.clone())
            {
                self.checked.mistakes.push(self.at(&format!("origins[{number}].url"), error.to_string()));
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
        let tls = std::iter::once(("tls.key".to_owned(), settings.certificate.key.clone()))
            .chain(extra.map(|(number, files)| (format!("tls.extra[{number}].key"), files.key.clone())));
        let secrets = self.loaded.secret_files.iter().map(|found| (found.key.clone(), found.file.clone()));
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

    async fn lending(&mut self) {
        let asked = match Metrics::new() {
            Ok(metrics) => Bokbasen::new(&self.loaded.config.lending, Clock::system(), metrics)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let answer = match asked {
            Ok(bokbasen) => bokbasen.try_login().await.map_err(|error| error.to_string()),
            Err(error) => Err(error),
        };
        match answer {
            Ok(ahead) => {
                self.checked.clock_ahead = ahead;
                if ahead.is_some_and(|ahead| ahead.abs() > CLOCKS_APART) {
                    let sentence = "this machine's clock is more than 15 minutes from Bokbasen's, which then refuses \
                                    every call. Set it by NTP";
                    self.checked.mistakes.push(self.at("lending.url", sentence.to_owned()));
                }
            }
            Err(error) => self.checked.mistakes.push(self.at("lending.url", error)),
        }
    }
}
