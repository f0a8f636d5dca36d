//! `tls.minimum_version` and `tls.cipher_suites`, with clients of each version.

use std::path::Path;
use std::sync::Arc;

use http::StatusCode;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::{Scene, Setting};

/// Returns the cipher suite of a connection by this version; none if the gate refuses it.
async fn suite(scene: &Scene, version: &'static SupportedProtocolVersion) -> Option<String> {
    let ca: &Path = &scene.ca();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(scene.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.ok()?;
    Some(format!("{:?}", stream.get_ref().1.negotiated_cipher_suite()?.suite()))
}

#[tokio::test]
async fn clients_get_only_the_versions_and_suites_that_are_allowed() {
    let scene = Scene::start_with(Setting::default()).await;
    let (old, new) = (&rustls::version::TLS12, &rustls::version::TLS13);
    assert!(suite(&scene, old).await.is_some() && suite(&scene, new).await.is_some());

    let reload = async |from: &str, to: &str| {
        scene.replace_in_config(from, to);
        let reloaded = scene.admin_post("/api/v1/reload", &Value::Null).await;
        assert_eq!(reloaded.status(), StatusCode::OK);
        let reloaded: Value = reloaded.json().await.unwrap();
        assert_eq!(reloaded["needs_restart"].as_array().unwrap().len(), 0, "{reloaded}");
    };
    reload("[tls]", "[tls]\nminimum_version = \"1.3\"").await;
    assert_eq!(suite(&scene, old).await, None);
    assert!(suite(&scene, new).await.is_some());

    let suites = "minimum_version = \"1.2\"\ncipher_suites = [\"TLS_CHACHA20_POLY1305_SHA256\", \
                  \"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\"]";
    reload("minimum_version = \"1.3\"", suites).await;
    assert_eq!(suite(&scene, new).await.unwrap(), "TLS13_CHACHA20_POLY1305_SHA256");
    assert_eq!(suite(&scene, old).await.unwrap(), "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256");
    reload("TLS_CHACHA20_POLY1305_SHA256", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384").await;
    assert_eq!(suite(&scene, new).await, None, "no suite of TLS 1.3 is left");
    scene.end().await;
}
