//! The certificates in `loangate check`: those of readers and of the admin listener, the roots of
//! operators' certificates, and what `[tls.acme]` names.
//!
//! `check` calls it.

use std::path::Path;

use super::check::Checker;
use crate::clock::Clock;
use crate::server::{Certificate, Certificates, TlsError, Validity};

impl Checker<'_> {
    /// Returns the files of certificates, with the tables that name them.
    pub(super) fn named_certificates(&self) -> Vec<(String, Certificate)> {
        let settings = &self.loaded.config.server;
        // One that is ordered may be absent.
        let own = settings.ordered.is_none().then_some(("tls".to_owned(), &settings.certificate));
        let extra = settings.extra.iter().enumerate();
        let extra = extra.map(|(number, files)| (format!("tls.extra[{number}]"), files));
        let admin = settings.admin.certificate.as_ref().map(|files| ("admin".to_owned(), files));
        let named = own.into_iter().chain(extra).chain(admin);
        named.map(|(table, files)| (table, files.clone())).collect()
    }

    /// Checks the certificates, with their dates if that is wanted.
    pub(super) fn certificates(&mut self, with_dates: bool) {
        self.ordered_certificate();
        self.client_ca();
        for (table, files) in self.named_certificates() {
            let error = match Certificates::try_load(&files) {
                Ok(_) if !with_dates => continue,
                Ok(candidate) => {
                    let validity = candidate.validity();
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

    /// Checks the roots of operators' certificates.
    fn client_ca(&mut self) {
        let Some(file) = &self.loaded.config.server.admin.client_ca else { return };
        if let Err(error) = Certificates::try_client_ca(file) {
            self.checked.mistakes.push(self.at("admin.client_ca", error.to_string()));
        }
    }

    /// Checks what `[tls.acme]` names.
    fn ordered_certificate(&mut self) {
        let Some(settings) = &self.loaded.config.acme else { return };
        for (key, checked) in [("data", settings.check_data()), ("ca", settings.check_ca())] {
            if let Err(sentence) = checked {
                self.checked.mistakes.push(self.at(&format!("tls.acme.{key}"), sentence));
            }
        }
    }

    /// Reports invalid certificate dates: a mistake now, a warning if they become invalid soon.
    fn dates(&mut self, key: &str, file: &Path, validity: Validity) {
        let Some(problem) = validity.problem(Clock::system().now()) else { return };
        let mistake = self.at(key, format!("{}: {problem}", file.display()));
        match problem.is_fatal() {
            true => self.checked.mistakes.push(mistake),
            false => self.checked.warnings.push(mistake),
        }
    }
}
