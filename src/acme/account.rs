//! The account with the certificate authority. Its key is stored before the account is created, so
//! a crash leaves no account whose key is lost.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use instant_acme::{Account, ExternalAccountKey, Key, NewAccount};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use secrecy::ExposeSecret;

use super::client::Client;
use super::data_directory::DataDirectory;
use super::order::OrderFailure;
use super::{ExternalAccount, Settings};

/// The bytes of a digest that tell authorities apart.
const NAME_LEN: usize = 8;

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
    let (account, _) = match (&settings.external_account, stored.await?) {
        (None, Some(key)) => builder.create_from_key(key, directory).await?,
        (None, None) => {
            let key = create_key(data, &directory).await?;
            builder.create_from_key(key, directory).await?
        }
        // The authority has bound it when it was created, and may accept the binding once only.
        (Some(_), Some(key)) => builder.from_key(key, directory).await?,
        (Some(external), None) => {
            let new = NewAccount {
                contact: &[],
                terms_of_service_agreed: true,
                only_return_existing: false,
            };
            let bound = external_key(external)?;
            let created = builder.create(&new, directory.clone(), Some(&bound)).await?;
            // The library creates the key and the account together.
            store_key(data, &directory, created.1.private_key()).await?;
            created
        }
    };
    if !settings.contact.is_empty() {
        let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
        account.update_contacts(&contact).await?;
    }
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
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, directory.as_bytes());
    let name = digest.as_ref().get(..NAME_LEN).unwrap_or_default();
    format!("account-{}.key", HEXLOWER.encode(name))
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
