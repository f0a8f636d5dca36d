//! The certificates of the CAs that this machine trusts, as PEM.
//!
//! sqlx is built with Mozilla's list of public CAs. The machine's own list may have more, such as
//! the CA of a company. `connect` adds it if there is no `sslrootcert`.

use data_encoding::BASE64;
use rustls::RootCertStore;

/// Returns the certificates. Those that rustls rejects are left out.
pub(super) fn pem() -> Vec<u8> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut pem = String::new();
    for certificate in loaded.certs {
        let text = BASE64.encode(&certificate);
        if RootCertStore::empty().add(certificate).is_ok() {
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            pem.push_str(&text);
            pem.push_str("\n-----END CERTIFICATE-----\n");
        }
    }
    pem.into_bytes()
}
