//! When the authority wants a certificate to be renewed: ARI (RFC 9773). It may be long before the
//! usual time, because the certificate will be revoked.
//!
//! It makes a renewal earlier only, and not within a day after the certificate was issued. So an
//! authority that answers wrongly causes one order a day.

use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use http::Request;
use instant_acme::BodyWrapper;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client::Client;
use crate::clock;
use crate::server::Candidate;

/// How long no further request is sent: by default, at least, and at most.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(6 * 3600);
const MIN_INTERVAL: Duration = Duration::from_secs(3600);
const MAX_INTERVAL: Duration = Duration::from_secs(86_400);
/// How old a certificate must be.
const MIN_AGE: Duration = Duration::from_secs(86_400);

/// What the authority has answered about a certificate.
#[derive(Clone, Debug)]
pub(super) struct RenewalInfo {
    /// The id of the certificate.
    of: String,
    window: Option<Window>,
    /// When the next request may be sent.
    next: Timestamp,
}

/// The time within which a certificate should be renewed.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Window {
    start: Timestamp,
    end: Timestamp,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "suggestedWindow")]
    window: Window,
}

impl RenewalInfo {
    /// Whether the authority should be asked about a certificate now. It need not be if it was
    /// asked recently.
    pub(super) fn is_due(
        known: Option<&RenewalInfo>,
        certificate: &Candidate,
        now: Timestamp,
    ) -> bool {
        let (from, _) = certificate.validity().bounds();
        let of = id_of(certificate);
        let known = known.filter(|known| of.as_ref() == Some(&known.of));
        of.is_some()
            && now >= clock::after(from, MIN_AGE)
            // A clock that was ahead may have set a time far away.
            && known.is_none_or(|known| {
                now >= known.next || known.next > clock::after(now, MAX_INTERVAL)
            })
    }

    /// Asks the authority about a certificate. Returns what is known then.
    pub(super) async fn ask(
        known: Option<RenewalInfo>,
        certificate: &Candidate,
        client: &Client,
        now: Timestamp,
    ) -> Option<RenewalInfo> {
        let of = id_of(certificate)?;
        let known = known.filter(|known| known.of == of);
        let asked = ask(client, &of).await;
        let interval = client.retry_after().unwrap_or(DEFAULT_INTERVAL);
        let next = clock::after(now, interval.clamp(MIN_INTERVAL, MAX_INTERVAL));
        if let Err(why) = &asked {
            tracing::debug!(why, "the authority does not say when to renew the certificate");
        }
        let before = known.and_then(|known| known.window);
        Some(RenewalInfo { of, window: asked.unwrap_or(before), next })
    }

    /// Returns when this certificate should be renewed. Its place in the window is that of `share`
    /// among all bytes.
    pub(super) fn time(&self, certificate: &Candidate, share: u8) -> Option<Timestamp> {
        let Window { start, end } = self.window?;
        let length = clock::until(start, end);
        let is_of_it = id_of(certificate).is_some_and(|id| id == self.of);
        is_of_it.then(|| clock::after(start, length / u32::from(u8::MAX) * u32::from(share)))
    }
}

/// Asks the authority. Returns none if it has no such resource.
async fn ask(client: &Client, id: &str) -> Result<Option<Window>, String> {
    let directory: Map<String, Value> = get(client, client.directory()).await?;
    let Some(url) = directory.get("renewalInfo").and_then(Value::as_str) else { return Ok(None) };
    let answer: Answer = get(client, &format!("{}/{id}", url.trim_end_matches('/'))).await?;
    match answer.window.start <= answer.window.end {
        true => Ok(Some(answer.window)),
        false => Err("the window ends before it starts".to_owned()),
    }
}

async fn get<T: serde::de::DeserializeOwned>(client: &Client, url: &str) -> Result<T, String> {
    let request = Request::get(url).body(BodyWrapper::default());
    let mut response = client.send(request.map_err(|error| error.to_string())?).await?;
    let body = response.body.into_bytes().await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

/// Returns the id of a certificate (RFC 9773 §4.1); none if it does not name its issuer's key.
fn id_of(certificate: &Candidate) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate.der()).ok()?;
    let key =
        parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(issuer) => issuer.key_identifier.as_ref(),
            _ => None,
        })?;
    let serial = parsed.tbs_certificate.raw_serial();
    Some(format!("{}.{}", BASE64URL_NOPAD.encode(key.0), BASE64URL_NOPAD.encode(serial)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::server::{Certificate, Certificates};

    /// Returns a certificate that is valid from the first of January 2026 on.
    fn certificate(names_issuer: bool) -> Candidate {
        let mut params = CertificateParams::new(vec!["example.no".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.use_authority_key_identifier_extension = names_issuer;
        let key = KeyPair::generate().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("both.pem");
        let pem = params.self_signed(&key).unwrap().pem() + &key.serialize_pem();
        std::fs::write(&file, pem).unwrap();
        Certificates::try_load(&Certificate { certificate: file.clone(), key: file }).unwrap()
    }

    #[test]
    fn authority_is_asked_rarely_and_not_about_a_new_certificate() {
        let (own, other) = (certificate(true), certificate(true));
        let at = |hours: u64| {
            clock::after("2026-01-01T00:00:00Z".parse().unwrap(), Duration::from_secs(hours * 3600))
        };
        assert!(!RenewalInfo::is_due(None, &own, at(23)));
        assert!(RenewalInfo::is_due(None, &own, at(24)));
        assert!(!RenewalInfo::is_due(None, &certificate(false), at(24)), "it has no id");
        let window = Some(Window { start: at(100), end: at(100 + 255) });
        let known = RenewalInfo { of: id_of(&own).unwrap(), window, next: at(30) };
        assert!(!RenewalInfo::is_due(Some(&known), &own, at(29)));
        assert!(RenewalInfo::is_due(Some(&known), &own, at(30)));
        assert!(RenewalInfo::is_due(Some(&known), &other, at(29)));
        let ahead = RenewalInfo { next: at(1000), ..known.clone() };
        assert!(RenewalInfo::is_due(Some(&ahead), &own, at(29)), "of a clock that was ahead");
        // A certificate has its own time within the window.
        let times = [0, 100, 255].map(|share| known.time(&own, share));
        assert_eq!(times, [at(100), at(200), at(355)].map(Some));
        assert_eq!(known.time(&other, 0), None);
    }
}
