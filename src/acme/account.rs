//! The account with the certificate authority. Its key is stored before the account is created, so
//! a crash leaves no account whose key is lost. The library creates the key of an account that is
//! bound to an external one together with that account, so only that key is stored afterwards.

use data_encoding::BASE64URL_NOPAD;
use instant_acme::{Account, Error, ExternalAccountKey, Key, NewAccount};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::ExposeSecret;

use super::client::Client;
use super::data_directory::DataDirectory;
use super::order::OrderFailure;
use super::{ExternalAccount, Settings};

/// The type of the problem that there is no account with a key (RFC 8555 §6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// More bytes than a file with a key has.
const KEY_SIZE: usize = 4096;

/// Opens the account, and creates it if it does not exist.
pub(super) async fn open(
    settings: &Settings,
    data: &DataDirectory,
    client: &Client,
) -> Result<Account, OrderFailure> {
    let directory = settings.directory.to_string();
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let stored = data.off_runtime({
        let directory = directory.clone();
        move |data| stored_key(data, &directory)
    });
    let account = match (&settings.external_account, stored.await?) {
        (None, Some(key)) => builder.create_from_key(key, directory).await?.0,
        (None, None) => {
            let key = create_key(data, &directory).await?;
            builder.create_from_key(key, directory).await?.0
        }
        // The authority has bound it when it was created, and may accept the binding once only.
        (Some(external), Some(key)) => match builder.from_key(key, directory.clone()).await {
            Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                create_bound(external, data, client, directory).await?
            }
            opened => opened?.0,
        },
        (Some(external), None) => create_bound(external, data, client, directory).await?,
    };
    if !settings.contact.is_empty() {
        let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
        account.update_contacts(&contact).await?;
    }
    Ok(account)
}

/// Creates an account that is bound to an external one, and stores its key.
async fn create_bound(
    external: &ExternalAccount,
    data: &DataDirectory,
    client: &Client,
    directory: String,
) -> Result<Account, OrderFailure> {
    let bound = external_key(external)?;
    let name = file_of(&directory);
    let proof = move |data: &DataDirectory| data.prove_writable(&data.file(&name), KEY_SIZE);
    data.off_runtime(proof).await?;
    let new =
        NewAccount { contact: &[], terms_of_service_agreed: true, only_return_existing: false };
    let builder = Account::builder_with_http(Box::new(client.clone()));
    let (account, credentials) = builder.create(&new, directory.clone(), Some(&bound)).await?;
    store_key(data, &directory, credentials.private_key()).await?;
    Ok(account)
}

/// Returns the key of an external account.
fn external_key(external: &ExternalAccount) -> Result<ExternalAccountKey, OrderFailure> {
    let encoded = external.hmac_key.expose_secret().trim_end_matches('=');
    let key = BASE64URL_NOPAD.decode(encoded.as_bytes());
    let key = key.map_err(|_| OrderFailure::new("tls.acme.eab_hmac_key is not base64url"))?;
    Ok(ExternalAccountKey::new(external.key_id.clone(), &key))
}

/// Returns the name of the file with the key for an authority.
fn file_of(directory: &str) -> String {
    format!("account-{}.key", super::short_digest(directory))
}

/// Reads the key; none if there is none yet.
fn stored_key(
    data: &DataDirectory,
    directory: &str,
) -> Result<Option<(Key, PrivateKeyDer<'static>)>, OrderFailure> {
    let path = data.file(&file_of(directory));
    let Some(text) = data.read(&path)? else { return Ok(None) };
    let damaged = || {
        let shown = path.display();
        OrderFailure::new(format!("{shown} is no key. Remove it: the gate creates another account"))
    };
    let key = PrivatePkcs8KeyDer::from_pem_slice(&text).map_err(|_| damaged())?;
    let parsed = Key::from_pkcs8_der(key.clone_key()).map_err(|_| damaged())?;
    Ok(Some((parsed, key.into())))
}

async fn create_key(
    data: &DataDirectory,
    directory: &str,
) -> Result<(Key, PrivateKeyDer<'static>), OrderFailure> {
    let (key, der) = Key::generate_pkcs8()?;
    store_key(data, directory, &der).await?;
    Ok((key, der.into()))
}

async fn store_key(
    data: &DataDirectory,
    directory: &str,
    key: &PrivatePkcs8KeyDer<'_>,
) -> Result<(), OrderFailure> {
    let text = super::stored::pem("PRIVATE KEY", key.secret_pkcs8_der());
    let name = file_of(directory);
    data.off_runtime(move |data| Ok(data.write(&data.file(&name), text.as_bytes())?)).await
}
