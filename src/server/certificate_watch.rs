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
    /// The files that were loaded. Empty at first: they may have changed since the start.
    handled: Vec<Stamp>,
    /// Why they cannot be loaded, as was reported.
    reported: Option<String>,
}

impl CertificateWatch {
    /// Watches the files that these certificates were loaded from.
    pub(crate) fn new(certificates: Arc<Certificates>) -> CertificateWatch {
        let last = stamps(&certificates);
        CertificateWatch { certificates, last, handled: Vec::new(), reported: None }
    }

    /// Looks at the files, and loads them if they are other ones. Files that cannot be used are
    /// tried again at each look: their permissions, or this machine, may have been the cause. Reads
    /// files, so it may block.
    pub(crate) fn look(&mut self) -> Seen {
        let now = stamps(&self.certificates);
        let last = std::mem::replace(&mut self.last, now.clone());
        if now != last || now == self.handled {
            return Seen::Same;
        }
        match self.certificates.load_again() {
            Ok((are_others, None)) => {
                (self.handled, self.reported) = (now, None);
                if are_others { Seen::Renewed } else { Seen::Same }
            }
            // The next look reports the one that cannot be used.
            Ok((true, Some(_))) => Seen::Renewed,
            Ok((false, Some(why))) => self.unusable(why),
            Err(error) => self.unusable(error.to_string()),
        }
    }

    fn unusable(&mut self, why: String) -> Seen {
        let is_known = self.reported.replace(why.clone()).as_ref() == Some(&why);
        if is_known { Seen::Same } else { Seen::Unusable(why) }
    }
}

fn stamps(certificates: &Certificates) -> Vec<Stamp> {
    let files = certificates.files();
    files.all().flat_map(|files| [stamp(&files.certificate), stamp(&files.key)]).collect()
}

fn stamp(file: &Path) -> Stamp {
    let metadata = std::fs::metadata(file).ok()?;
    let (at, part) = (metadata.mtime(), metadata.mtime_nsec());
    Some((metadata.dev(), metadata.ino(), metadata.len(), at, part))
}
