//! The kinds of object storage, and how the client of each is built.
//!
//! `config` fills these types, and `endpoint` builds the [`Store`] of each.

use std::fmt;

use object_store::RetryConfig;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::Settings;
use super::connection_limit::ConnectionLimits;
use super::connections::Connections;
use super::object_store::Store;
use super::object_store_connector::Connector;
use crate::buffer_budget::Buffers;

/// A bucket, or a container as Azure calls it, and the path in it under which the files are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bucket {
    /// Name of the bucket or container.
    pub name: String,
    /// The path, without a slash at either end; empty for the root.
    pub prefix: String,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.prefix)
    }
}

/// Access to a bucket of an S3-compatible storage.
#[derive(Clone, Debug)]
pub struct S3 {
    /// The region for which requests are signed.
    pub region: Option<String>,
    /// URL of the storage, if it is not Amazon's own.
    pub endpoint: Option<Url>,
    /// Whether the bucket is named in the path and not in the host.
    pub path_style: bool,
    /// ID and secret of the access key; without it, this machine's own credentials are used.
    pub keys: Option<(String, SecretString)>,
}

/// Access to a bucket of Google Cloud Storage.
#[derive(Clone, Debug)]
pub struct Google {
    /// Key of a service account as JSON; without it, this machine's own credentials are used.
    pub service_account: Option<SecretString>,
    /// URL of the storage, if it is not Google's own.
    pub endpoint: Option<Url>,
}

/// Access to a container of Azure Blob Storage.
#[derive(Clone, Debug)]
pub struct Azure {
    /// Name of the storage account.
    pub account: String,
    /// Key of the account; without it, this machine's own credentials are used.
    pub access_key: Option<SecretString>,
    /// URL of the storage, if it is not Azure's own.
    pub endpoint: Option<Url>,
}

impl PartialEq for S3 {
    fn eq(&self, other: &S3) -> bool {
        let S3 { region, endpoint, path_style, keys } = self;
        let secret = |keys: &Option<(String, SecretString)>| {
            keys.as_ref().map(|(id, secret)| (id.clone(), secret.expose_secret().to_owned()))
        };
        (region, endpoint, path_style) == (&other.region, &other.endpoint, &other.path_style)
            && secret(keys) == secret(&other.keys)
    }
}

impl PartialEq for Google {
    fn eq(&self, other: &Google) -> bool {
        let Google { service_account, endpoint } = self;
        endpoint == &other.endpoint && is_same(service_account, &other.service_account)
    }
}

impl PartialEq for Azure {
    fn eq(&self, other: &Azure) -> bool {
        let Azure { account, access_key, endpoint } = self;
        (account, endpoint) == (&other.account, &other.endpoint)
            && is_same(access_key, &other.access_key)
    }
}

fn is_same(one: &Option<SecretString>, other: &Option<SecretString>) -> bool {
    let exposed = |secret: &Option<SecretString>| {
        secret.as_ref().map(|secret| secret.expose_secret().to_owned())
    };
    exposed(one) == exposed(other)
}

impl Store {
    pub(super) fn s3(
        settings: &Settings,
        bucket: &Bucket,
        s3: &S3,
        shared: (&Buffers, &ConnectionLimits),
    ) -> Result<Store, String> {
        let mut builder = match &s3.keys {
            Some((id, secret)) => AmazonS3Builder::new()
                .with_access_key_id(id)
                .with_secret_access_key(secret.expose_secret()),
            None => AmazonS3Builder::from_env(),
        };
        builder = builder
            .with_bucket_name(&bucket.name)
            .with_virtual_hosted_style_request(!s3.path_style)
            .with_retry(retry(settings))
            .with_http_connector(connector(
                settings,
                s3.endpoint.as_ref(),
                s3.keys.is_some(),
                shared,
            )?);
        if let Some(region) = &s3.region {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &s3.endpoint {
            builder =
                builder.with_endpoint(plain(endpoint)).with_allow_http(endpoint.scheme() == "http");
        }
        Store::new(builder.build(), bucket, true)
    }

    pub(super) fn google(
        settings: &Settings,
        bucket: &Bucket,
        google: &Google,
        shared: (&Buffers, &ConnectionLimits),
    ) -> Result<Store, String> {
        let known = google.service_account.as_ref();
        let mut builder = match known {
            Some(key) => {
                GoogleCloudStorageBuilder::new().with_service_account_key(key.expose_secret())
            }
            None => GoogleCloudStorageBuilder::from_env(),
        };
        builder = builder
            .with_bucket_name(&bucket.name)
            .with_retry(retry(settings))
            // An emulator over plain HTTP needs no Google login, so it needs no TLS.
            .with_http_connector(connector(settings, google.endpoint.as_ref(), true, shared)?);
        if let Some(endpoint) = &google.endpoint {
            builder = builder.with_base_url(&plain(endpoint));
        }
        Store::new(builder.build(), bucket, true)
    }

    pub(super) fn azure(
        settings: &Settings,
        bucket: &Bucket,
        azure: &Azure,
        shared: (&Buffers, &ConnectionLimits),
    ) -> Result<Store, String> {
        let mut builder = match &azure.access_key {
            Some(key) => MicrosoftAzureBuilder::new().with_access_key(key.expose_secret()),
            None => MicrosoftAzureBuilder::from_env(),
        };
        builder = builder
            .with_account(&azure.account)
            .with_container_name(&bucket.name)
            .with_retry(retry(settings))
            .with_http_connector(connector(
                settings,
                azure.endpoint.as_ref(),
                azure.access_key.is_some(),
                shared,
            )?);
        if let Some(endpoint) = &azure.endpoint {
            builder =
                builder.with_endpoint(plain(endpoint)).with_allow_http(endpoint.scheme() == "http");
        }
        Store::new(builder.build(), bucket, false)
    }
}

fn plain(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Disables retries in `object_store`: `Origin` alone retries, also for credentials, within one
/// budget.
fn retry(settings: &Settings) -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: settings.first_byte, ..RetryConfig::default() }
}

/// Creates the HTTP client. It needs no TLS if the endpoint is plain HTTP and keys are configured.
fn connector(
    settings: &Settings,
    endpoint: Option<&Url>,
    has_keys: bool,
    (buffers, limits): (&Buffers, &ConnectionLimits),
) -> Result<Connector, String> {
    let in_the_clear = has_keys && endpoint.is_some_and(|endpoint| endpoint.scheme() == "http");
    Ok(Connector::new(Connections::new(settings, !in_the_clear, buffers, limits)?))
}
