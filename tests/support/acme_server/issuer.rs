//! The keys of the authority, and the certificates that it issues.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Fault, Script};

const HOUR: i64 = 3600;
const GARBAGE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

pub(super) struct Issuer {
    root: CertifiedIssuer<'static, KeyPair>,
    server_root: CertifiedIssuer<'static, KeyPair>,
}

impl Issuer {
    pub(super) fn new() -> Issuer {
        Issuer { root: authority("Issuing root"), server_root: authority("Server root") }
    }

    /// Returns the root of the certificates that are issued, in PEM.
    pub(super) fn root(&self) -> String {
        self.root.pem()
    }

    /// Returns the root of the server's own certificate, in PEM.
    pub(super) fn server_root(&self) -> String {
        self.server_root.pem()
    }

    /// Returns the TLS settings of the server itself.
    pub(super) fn server_config(&self) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.server_root).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap()
    }

    /// Issues a certificate for a request that has exactly these names. Returns the chain.
    pub(super) fn issue(
        &self,
        request: &[u8],
        names: &[String],
        script: &Script,
        now: Timestamp,
    ) -> Result<String, &'static str> {
        let request = CertificateSigningRequestDer::from(request.to_vec());
        let mut request =
            CertificateSigningRequestParams::from_der(&request).map_err(|_| "badCSR")?;
        let requested = request.params.subject_alt_names.iter().map(|name| match name {
            SanType::DnsName(name) => name.to_string(),
            _ => String::new(),
        });
        let mut requested: Vec<String> = requested.collect();
        let mut ordered = names.to_vec();
        requested.sort();
        ordered.sort();
        if requested != ordered || request.params.distinguished_name.iter().next().is_some() {
            return Err("badCSR");
        }
        // In hours; authorities date a certificate back a little.
        let (from, days) = match script.fault {
            Some(Fault::Expired) => (-2400, 90),
            Some(Fault::Early) => (240, 90),
            _ => (-1, script.days.unwrap_or(90)),
        };
        let moment = |hours: i64| {
            let seconds = now.as_second() + hours * HOUR;
            date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds.unsigned_abs())
        };
        request.params.not_before = moment(from);
        request.params.not_after = moment(from + days * 24);
        request.params.use_authority_key_identifier_extension = true;
        let names = &mut request.params.subject_alt_names;
        match script.fault {
            Some(Fault::LessNames) => drop(names.pop()),
            Some(Fault::WrongName) => {
                *names = vec![SanType::DnsName("other.example.no".try_into().unwrap())];
            }
            Some(Fault::Garbage) => return Ok(GARBAGE.to_owned()),
            Some(Fault::Nothing) => return Ok(String::new()),
            _ => {}
        }
        let certificate = match script.fault {
            Some(Fault::OtherKey) => {
                request.params.signed_by(&KeyPair::generate().unwrap(), &self.root)
            }
            _ => request.signed_by(&self.root),
        };
        Ok(format!("{}{}", certificate.unwrap().pem(), self.root.pem()))
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}
