//! The TLS of commands that call the admin API of a running gate.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, ClientBuilder, Identity};

use super::CliError;

/// The certificate of the operator.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ClientCertificate {
    /// Your certificate with its chain, as a PEM file, if the gate has admin.client_ca.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// The key of your certificate, as a PEM file.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
}

/// Whether to call the gate by TCP, the certificate of the operator, and the roots that the client
/// trusts.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ClientTls {
    /// Call listen.admin, also if the configuration has listen.admin_socket. The options of
    /// certificates do so, too.
    #[arg(long)]
    tcp: bool,
    #[command(flatten)]
    certificate: ClientCertificate,
    /// The roots of the gate's certificate, as a PEM file; by default those of this machine.
    #[arg(long, value_name = "FILE")]
    admin_ca: Option<PathBuf>,
}

impl ClientCertificate {
    /// Whether there is one.
    pub(super) fn is_given(&self) -> bool {
        self.client_cert.is_some()
    }

    /// Makes a client present the certificate.
    pub(super) fn apply(&self, client: ClientBuilder) -> Result<ClientBuilder, CliError> {
        let Some((certificate, key)) = self.client_cert.as_ref().zip(self.client_key.as_ref())
        else {
            return Ok(client);
        };
        let mut pem = read(key)?;
        pem.push(b'\n');
        pem.extend(read(certificate)?);
        let identity = Identity::from_pem(&pem).map_err(|_| {
            CliError::new(format!(
                "{} and {} are no certificate and key in PEM",
                certificate.display(),
                key.display()
            ))
        })?;
        Ok(client.identity(identity))
    }
}

impl ClientTls {
    /// Whether the gate is called by TCP, and not by its Unix socket.
    pub(super) fn wants_tcp(&self) -> bool {
        self.tcp || self.has_certificate() || self.admin_ca.is_some()
    }

    /// Whether there is a certificate of the operator.
    pub(super) fn has_certificate(&self) -> bool {
        self.certificate.is_given()
    }

    /// Makes a client present the certificate, and trust the roots.
    pub(super) fn apply(&self, client: ClientBuilder) -> Result<ClientBuilder, CliError> {
        let client = self.certificate.apply(client)?;
        let Some(file) = &self.admin_ca else { return Ok(client) };
        match Certificate::from_pem_bundle(&read(file)?) {
            Ok(roots) if !roots.is_empty() => Ok(client.tls_certs_only(roots)),
            _ => Err(CliError::new(format!("{} has no certificate in PEM", file.display()))),
        }
    }
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(file)
        .map_err(|error| CliError::new(format!("{} cannot be read: {error}", file.display())))
}
