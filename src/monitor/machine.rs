//! What is wrong around the gate: the dates and orders of certificates, the keys of login services,
//! and the disk.

use std::path::Path;

use jiff::Timestamp;

use super::codes::{Code, Severity};
use super::observe::{Probes, observation};
use super::tracker::Observation;

/// The share of a disk that is too little, in per cent, and the bytes.
const LOW_PERCENT: u64 = 5;
const LOW_BYTES: u64 = 1 << 30;
/// The bytes of a disk with which the next hour is uncertain.
const CRITICAL_BYTES: u64 = 100 << 20;

/// A certificate whose dates are invalid, or soon will be.
#[derive(Clone, Debug)]
pub(crate) struct CertificateDates {
    /// The file.
    pub(crate) file: String,
    /// Whether clients refuse it.
    pub(crate) is_fatal: bool,
    /// What is wrong, as a sentence without a full stop.
    pub(crate) what: String,
}

/// Returns the certificates with a problem at a time.
pub(crate) type CertificateProbe = Box<dyn Fn(Timestamp) -> Vec<CertificateDates> + Send + Sync>;

/// An order of a certificate that has failed.
#[derive(Clone, Debug)]
pub(crate) struct OrderFailure {
    /// Whether there is no certificate to serve readers with.
    pub(crate) is_fatal: bool,
    /// Why it has failed, as a sentence.
    pub(crate) what: String,
}

/// Returns why the last order of a certificate has failed; none if none has.
pub(crate) type OrderProbe = Box<dyn Fn() -> Option<OrderFailure> + Send + Sync>;

/// The keys of a login service that are missing or old.
#[derive(Clone, Debug)]
pub(crate) struct LoginKeys {
    /// The issuer.
    pub(crate) issuer: String,
    /// Whether there is no key, so that its tokens are not accepted.
    pub(crate) are_missing: bool,
    /// What is wrong, as a sentence.
    pub(crate) what: String,
}

/// Returns the login services whose keys are missing or old.
pub(crate) type LoginKeyProbe = Box<dyn Fn() -> Vec<LoginKeys> + Send + Sync>;

/// Observes the certificates, the keys of login services, and the disk of the ledger.
pub(super) fn observe(probes: &Probes, now: Timestamp, found: &mut Vec<Observation>) {
    for CertificateDates { file, is_fatal, what } in (probes.certificates)(now) {
        let (code, severity) = match is_fatal {
            true => (Code::CertificateInvalid, Severity::Critical),
            false => (Code::CertificateExpires, Severity::Warning),
        };
        let what = format!("{what}.");
        found.push(Observation { subject: Some(file), ..observation(code, severity, what) });
    }
    if let Some(OrderFailure { is_fatal, what }) = (probes.certificate_orders)() {
        let severity = if is_fatal { Severity::Critical } else { Severity::Warning };
        found.push(observation(Code::CertificateOrders, severity, what));
    }
    for LoginKeys { issuer, are_missing, what } in (probes.login_keys)() {
        let severity = if are_missing { Severity::Critical } else { Severity::Warning };
        let subject = Some(issuer);
        found.push(Observation { subject, ..observation(Code::LoginKeys, severity, what) });
    }
    let Some((free, total)) = disk(probes) else { return };
    if free < LOW_BYTES && free < total / 100 * LOW_PERCENT || free < CRITICAL_BYTES {
        let severity = if free < CRITICAL_BYTES { Severity::Critical } else { Severity::Warning };
        let what = format!("The disk of the ledger has {} MiB left.", free >> 20);
        found.push(observation(Code::DiskFilling, severity, what));
    }
}

/// Returns the free and all bytes of the ledger's disk; none if it is elsewhere.
pub(super) fn disk(probes: &Probes) -> Option<(u64, u64)> {
    probes.file.as_ref().and_then(|file| disk_space(file))
}

/// Returns the free and all bytes of the disk of a file.
fn disk_space(file: &Path) -> Option<(u64, u64)> {
    let status = rustix::fs::statvfs(file).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(status.f_frsize);
    Some((bytes(status.f_bavail), bytes(status.f_blocks)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_of_a_file_has_a_size() {
        let directory = tempfile::tempdir().unwrap();
        let (free, total) = disk_space(directory.path()).unwrap();
        assert!(free > 0 && free <= total);
    }
}
