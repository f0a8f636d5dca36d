//! The stored certificate: whether it must be replaced, and whether a new one may replace it.
//!
//! The certificate, its chain and its key are one file, so they always belong together.

use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use pem::{EncodeConfig, LineEnding, Pem, encode_config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Settings;
use super::data_directory::{DataDirectory, DataError};
use super::order::{Issued, OrderFailure};
use super::renewal_info::RenewalInfo;
use crate::clock;
use crate::server::{Candidate, Certificate, Certificates, TlsError};

/// The most certificates of a chain.
const MAX_CHAIN: usize = 10;
/// More bytes than the file of a certificate with its chain has.
pub(super) const MAX_SIZE: usize = 64 * 1024;

/// Why a certificate is ordered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reason {
    Absent,
    Damaged,
    OtherNames,
    Due,
    Wanted,
}

impl Reason {
    /// Returns the reason as a phrase.
    pub(super) fn phrase(self) -> &'static str {
        match self {
            Reason::Absent => "there is no certificate yet",
            Reason::Damaged => "the stored certificate cannot be used",
            Reason::OtherNames => "the stored certificate has other names",
            Reason::Due => "less than a third of the certificate's lifetime is left",
            Reason::Wanted => "the authority wants the certificate to be renewed",
        }
    }
}

/// Returns the stored certificate if it is good, or else why another must be ordered.
pub(super) fn assess(
    data: &DataDirectory,
    settings: &Settings,
    info: Option<&RenewalInfo>,
    now: Timestamp,
) -> Result<Result<Candidate, Reason>, DataError> {
    let path = settings.certificate_file();
    if data.read(&path)?.is_none() {
        return Ok(Err(Reason::Absent));
    }
    let Ok(stored) = load(&path) else { return Ok(Err(Reason::Damaged)) };
    let wanted = info.and_then(|info| info.time(&stored, share(&stored)));
    let reason = if !settings.names.iter().all(|name| stored.covers(name)) {
        Some(Reason::OtherNames)
    } else if now >= renewal(&stored) {
        Some(Reason::Due)
    } else {
        Some(Reason::Wanted).filter(|_| wanted.is_some_and(|wanted| now >= wanted))
    };
    Ok(reason.map_or(Ok(stored), Err))
}

/// Returns when a certificate is due for renewal: when a third of its lifetime is left, or up to a
/// thirtieth of it before. The certificate itself decides, so that gates with certificates of their
/// own differ.
fn renewal(certificate: &Candidate) -> Timestamp {
    let (from, until) = certificate.validity().bounds();
    let lifetime = clock::until(from, until);
    let jitter = lifetime / 30 * u32::from(share(certificate)) / u32::from(u8::MAX);
    clock::before(until, lifetime / 3 + jitter)
}

/// Returns a number that differs from certificate to certificate.
fn share(certificate: &Candidate) -> u8 {
    let hash = digest(&SHA256, certificate.der());
    hash.as_ref().first().copied().unwrap_or_default()
}

fn load(path: &Path) -> Result<Candidate, TlsError> {
    Certificates::try_load(&Certificate { certificate: path.to_owned(), key: path.to_owned() })
}

/// Stores an issued certificate, if it is what was ordered.
pub(super) fn store(
    data: &DataDirectory,
    settings: &Settings,
    issued: &Issued,
    now: Timestamp,
) -> Result<Timestamp, OrderFailure> {
    let chain =
        CertificateDer::pem_slice_iter(issued.chain.as_bytes()).collect::<Result<Vec<_>, _>>();
    let chain = match chain {
        Ok(chain) if (1..=MAX_CHAIN).contains(&chain.len()) => chain,
        _ => return Err(OrderFailure::new("it issued something that is no certificate in PEM")),
    };
    let mut text = issued.key.clone();
    chain.iter().for_each(|certificate| text.push_str(&pem("CERTIFICATE", certificate)));
    let mut until = now;
    data.write_if(&settings.certificate_file(), text.as_bytes(), |path| {
        let certificate = load(path).map_err(|error| {
            OrderFailure::new(match error {
                TlsError::OtherKey { .. } => "it issued a certificate for another key".to_owned(),
                error => format!("it issued a certificate that cannot be used: {error}"),
            })
        })?;
        until = certificate.validity().bounds().1;
        check(&certificate, settings, now)
    })?;
    Ok(until)
}

/// Checks the names and the dates of an issued certificate.
fn check(certificate: &Candidate, settings: &Settings, now: Timestamp) -> Result<(), OrderFailure> {
    if let Some(name) = settings.names.iter().find(|name| !certificate.covers(name)) {
        return Err(OrderFailure::new(format!("it issued a certificate without the name {name}")));
    }
    let problem = certificate.validity().problem(now).filter(|problem| problem.is_fatal());
    if let Some(problem) = problem {
        let why = format!("it issued a certificate that is not valid by this clock: {problem}");
        return Err(OrderFailure::new(why));
    }
    if now >= renewal(certificate) {
        return Err(OrderFailure::new("it issued a certificate that is due for renewal already"));
    }
    Ok(())
}

/// Encodes a section of PEM (RFC 7468 §3).
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    encode_config(&Pem::new(label, der), lines)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    /// The columns of a line in PEM.
    const COLUMNS: usize = 64;
    const DAY: Duration = Duration::from_secs(86_400);
    const DIRECTORY: &str = "https://ca.example.no/directory";

    fn settings(data: &Path, directory: &str, names: &[&str]) -> Settings {
        Settings {
            directory: directory.parse().unwrap(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            contact: Vec::new(),
            data: data.to_owned(),
            ca: None,
            external_account: None,
        }
    }

    /// Issues a certificate that is valid for 90 days of 2026, from the first of January on.
    fn issue(names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2026, 4, 1);
        let key = KeyPair::generate().unwrap();
        Issued { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    #[test]
    fn certificate_is_due_when_a_third_is_left_or_a_little_before() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(&directory.path().join("acme")).unwrap();
        let (from, until): (Timestamp, Timestamp) =
            ("2026-01-01T00:00:00Z".parse().unwrap(), "2026-04-01T00:00:00Z".parse().unwrap());
        let names = ["a.example.no", "b.example.no"];
        let settings_of =
            |directory: &str, names: &[&str]| settings(&data.file(""), directory, names);
        let own = settings_of(DIRECTORY, &names);
        let reason = |settings: &Settings, now| assess(&data, settings, None, now).unwrap().err();
        assert_eq!(reason(&own, from), Some(Reason::Absent));
        let mut due = Vec::new();
        for _ in 0..16 {
            assert_eq!(store(&data, &own, &issue(&names), from).unwrap(), until);
            let days = (0..91).find(|days| reason(&own, clock::after(from, DAY * *days)).is_some());
            let first = clock::after(from, DAY * days.unwrap());
            assert_eq!(reason(&own, first), Some(Reason::Due));
            due.push(days.unwrap());
        }
        assert!(due.iter().all(|days| (57..=60).contains(days)), "{due:?}");
        assert!(due.iter().any(|days| *days != due[0]), "all at once: {due:?}");
        // Gates that order other certificates do not touch this one.
        let more = settings_of(DIRECTORY, &["a.example.no", "c.example.no"]);
        let other = settings_of("https://other.example.no/directory", &names);
        assert_eq!([&more, &other].map(|it| reason(it, from)), [Some(Reason::Absent); 2]);
        store(&data, &more, &issue(&["a.example.no", "c.example.no"]), from).unwrap();
        assert_eq!(reason(&own, from), None);
        let same = settings_of(DIRECTORY, &["b.example.no", "a.example.no"]);
        assert_eq!(reason(&same, from), None, "the order of the names does not matter");
        std::fs::copy(more.certificate_file(), own.certificate_file()).unwrap();
        assert_eq!(reason(&own, from), Some(Reason::OtherNames));
        std::fs::write(own.certificate_file(), "nothing").unwrap();
        assert_eq!(reason(&own, from), Some(Reason::Damaged));
    }

    #[test]
    fn certificate_that_is_refused_leaves_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDirectory::open(&directory.path().join("acme")).unwrap();
        let own = settings(&data.file(""), DIRECTORY, &["a.example.no"]);
        let (now, late): (Timestamp, Timestamp) =
            ("2026-01-02T00:00:00Z".parse().unwrap(), "2026-03-20T00:00:00Z".parse().unwrap());
        store(&data, &own, &issue(&["a.example.no"]), now).unwrap();
        let before = std::fs::read(own.certificate_file()).unwrap();
        let refused =
            |issued: Issued, now| store(&data, &own, &issued, now).unwrap_err().into_why();
        let other = Issued {
            key: KeyPair::generate().unwrap().serialize_pem(),
            ..issue(&["a.example.no"])
        };
        assert!(refused(other, now).contains("another key"));
        assert!(refused(issue(&["b.example.no"]), now).contains("without the name"));
        assert!(refused(issue(&["a.example.no"]), late).contains("due for renewal already"));
        assert_eq!(std::fs::read(own.certificate_file()).unwrap(), before);
        let files = std::fs::read_dir(data.file("")).unwrap().count();
        assert_eq!(files, 2, "the certificate, and the directory of challenges");
    }

    #[test]
    fn pem_is_read_as_it_was_encoded() {
        let der: Vec<u8> = (0..200).collect();
        let text = pem("CERTIFICATE", &der);
        assert!(text.lines().all(|line| line.len() <= COLUMNS), "{text}");
        assert_eq!(CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(), der);
    }
}
