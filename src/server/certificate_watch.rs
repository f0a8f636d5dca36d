//! Notices certificates that were renewed: their files changed, and nobody reloads.
//!
//! `app` calls it every few seconds. A tool that renews certificates writes the chain and the key
//! one after the other, so files count only once they have stayed the same between two looks.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::tls::Certificates;

/// What tells that a file is another one, or has changed. None if it cannot be found.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// The result of a look at the files.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Seen {
    /// Nothing that was not seen before.
    Same,
    /// Other certificates are in use now.
    Renewed,
    /// Other files are there but cannot be used, for this reason. The old certificates stay.
    Unusable(String),
}

/// Watches the files of the certificates in use.
#[derive(Debug)]
pub(crate) struct CertificateWatch {
    certificates: Arc<Certificates>,
    /// The files at the last look.
    last: Vec<Stamp>,
    /// The files that were loaded, or could not be.
    handled: Vec<Stamp>,
}

impl CertificateWatch {
    /// Watches the files that these certificates were loaded from.
    pub(crate) fn new(certificates: Arc<Certificates>) -> CertificateWatch {
        let stamps = stamps(&certificates);
        CertificateWatch { certificates, last: stamps.clone(), handled: stamps }
    }

    /// Looks at the files, and loads them if they are other ones. Reads files, so it may block.
    pub(crate) fn look(&mut self) -> Seen {
        let now = stamps(&self.certificates);
        let last = std::mem::replace(&mut self.last, now.clone());
        if now != last || now == self.handled {
            return Seen::Same;
        }
        self.handled = now;
        match self.certificates.load_again() {
            Ok(()) => Seen::Renewed,
            Err(error) => Seen::Unusable(error.to_string()),
        }
    }
}

fn stamps(certificates: &Certificates) -> Vec<Stamp> {
    let files = certificates.files();
    files.iter().flat_map(|files| [stamp(&files.certificate), stamp(&files.key)]).collect()
}

fn stamp(file: &Path) -> Stamp {
    let metadata = std::fs::metadata(file).ok()?;
    let (at, part) = (metadata.mtime(), metadata.mtime_nsec());
    Some((metadata.dev(), metadata.ino(), metadata.len(), at, part))
}
