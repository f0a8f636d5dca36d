//! One order: from the account to the certificate (RFC 8555 §7.4).
//!
//! `orders` calls [`obtain`] while it holds the lock of the data directory. Every wait is bounded,
//! whatever the authority answers. The caller checks what is issued.

use std::time::Duration;

use instant_acme::{
    AuthorizationHandle, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order,
    OrderStatus, Problem,
};
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::data_directory::{DataDirectory, DataError};
use super::{Settings, account};
use crate::language::is_unprintable;
use crate::server::challenge_file;

/// How long an order may take.
const DEADLINE: Duration = Duration::from_secs(600);
/// How long the authority may take to validate the names, and to issue the certificate.
const POLL_DEADLINE: Duration = Duration::from_secs(240);
/// The waits between polls: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The longest sentence that is logged about a failure, in characters.
const MAX_WHY: usize = 400;

/// Why an order has failed, as a phrase about the authority.
#[derive(Debug)]
pub(super) struct OrderFailure(String);

impl OrderFailure {
    /// The phrase may have text of the authority, so it is bounded, and shown without control
    /// characters.
    pub(super) fn new(why: impl AsRef<str>) -> OrderFailure {
        let shown = |letter| if is_unprintable(letter) { ' ' } else { letter };
        OrderFailure(why.as_ref().chars().take(MAX_WHY).map(shown).collect())
    }

    pub(super) fn why(&self) -> &str {
        &self.0
    }

    pub(super) fn into_why(self) -> String {
        self.0
    }
}

impl From<DataError> for OrderFailure {
    fn from(error: DataError) -> OrderFailure {
        OrderFailure::new(error.to_string())
    }
}

impl From<instant_acme::Error> for OrderFailure {
    fn from(error: instant_acme::Error) -> OrderFailure {
        let text = error.to_string();
        OrderFailure::new(text.strip_prefix("API error: ").unwrap_or(&text))
    }
}

impl From<rcgen::Error> for OrderFailure {
    fn from(error: rcgen::Error) -> OrderFailure {
        OrderFailure::new(error.to_string())
    }
}

/// What the authority has issued. Nothing of it is checked.
#[derive(Debug)]
pub(super) struct Issued {
    /// The certificate with its chain, in PEM.
    pub(super) chain: String,
    /// The key that was ordered for, in PEM.
    pub(super) key: String,
}

/// Obtains a certificate.
pub(super) async fn obtain(
    settings: &Settings,
    data: &DataDirectory,
    client: &Client,
) -> Result<Issued, OrderFailure> {
    // Those of an order that did not end.
    remove_challenges(data).await;
    let ordered = timeout(DEADLINE, run(settings, data, client)).await;
    remove_challenges(data).await;
    ordered.unwrap_or_else(|_| Err(OrderFailure::new("the order took more than ten minutes")))
}

/// Removes the answers to challenges. One that stays answers nobody but an authority, and the next
/// order of its name replaces it, so it prevents no order.
async fn remove_challenges(data: &DataDirectory) {
    if let Err(error) = data.off_runtime(DataDirectory::remove_challenges).await {
        tracing::warn!(%error, "cannot remove the answers to challenges");
    }
}

async fn run(
    settings: &Settings,
    data: &DataDirectory,
    client: &Client,
) -> Result<Issued, OrderFailure> {
    let account = account::open(settings, data, client).await?;
    let identifiers: Vec<Identifier> =
        settings.names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    if order.state().authorizations.len() > identifiers.len() {
        return Err(OrderFailure::new("it wants to validate more names than were ordered"));
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        answer(settings, data, authorization?).await?;
    }
    let is_validated = |status| matches!(status, OrderStatus::Ready | OrderStatus::Valid);
    poll(&mut order, || client.retry_after(), is_validated).await?;
    let key = KeyPair::generate()?;
    if order.state().status == OrderStatus::Ready {
        let mut params = CertificateParams::new(settings.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key)?;
        order.finalize_csr(request.der()).await?;
    }
    poll(&mut order, || client.retry_after(), |status| status == OrderStatus::Valid).await?;
    let chain = order.certificate().await?;
    let chain = chain.ok_or_else(|| OrderFailure::new("it has no certificate for the order"))?;
    Ok(Issued { chain, key: key.serialize_pem() })
}

/// Answers the challenge of an authorization, if it is not valid already.
async fn answer(
    settings: &Settings,
    data: &DataDirectory,
    mut authorization: AuthorizationHandle<'_>,
) -> Result<(), OrderFailure> {
    let name = match authorization.identifier().identifier {
        Identifier::Dns(name) if !authorization.wildcard => name.to_ascii_lowercase(),
        _ => String::new(),
    };
    let Some(name) = settings.names.iter().find(|ordered| **ordered == name) else {
        return Err(OrderFailure::new("it wants to validate a name that was not ordered"));
    };
    match authorization.status {
        AuthorizationStatus::Valid => return Ok(()),
        AuthorizationStatus::Pending => {}
        status => return Err(OrderFailure::new(format!("the name {name} is {status:?}"))),
    }
    let Some(mut challenge) = authorization.challenge(ChallengeType::TlsAlpn01) else {
        return Err(OrderFailure::new(format!("it does not validate {name} by TLS-ALPN-01")));
    };
    let digest = challenge.key_authorization().digest();
    let text = challenge_certificate(name, digest.as_ref())?;
    let name = name.clone();
    data.off_runtime(move |data| {
        Ok::<_, OrderFailure>(
            data.write(&challenge_file(&data.challenges(), &name), text.as_bytes())?,
        )
    })
    .await?;
    Ok(challenge.set_ready().await?)
}

/// Creates the certificate that answers a challenge (RFC 8737 §3), with its key.
fn challenge_certificate(name: &str, digest: &[u8]) -> Result<String, OrderFailure> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    Ok(format!("{}{}", params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// Polls the order until its status is as wanted.
async fn poll(
    order: &mut Order,
    retry_after: impl Fn() -> Option<Duration>,
    is_wanted: impl Fn(OrderStatus) -> bool,
) -> Result<(), OrderFailure> {
    let (until, mut wait) = (Instant::now() + POLL_DEADLINE, FIRST_WAIT);
    loop {
        let state = order.state();
        match state.status {
            status if is_wanted(status) => return Ok(()),
            OrderStatus::Invalid => return Err(explain(order).await),
            _ => {}
        }
        if Instant::now() >= until {
            return Err(OrderFailure::new("it did not decide within four minutes"));
        }
        sleep(retry_after().map_or(wait, |asked| asked.clamp(wait, MAX_WAIT))).await;
        wait = (wait * 2).min(MAX_WAIT);
        order.refresh().await?;
    }
}

/// Returns why an order has become invalid: the names that could not be validated, or its error.
async fn explain(order: &mut Order) -> OrderFailure {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { break };
        let name = state.identifier().to_string();
        let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        reasons.extend(errors.map(|error| format!("{name}: {}", detail(error))));
    }
    reasons.extend(order.state().error.as_ref().map(detail));
    match reasons.is_empty() {
        true => OrderFailure::new("it gave the order up without a reason"),
        false => OrderFailure::new(reasons.join("; ")),
    }
}

fn detail(problem: &Problem) -> String {
    problem.detail.clone().or_else(|| problem.r#type.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Method, Request, Response};
    use http_body_util::Full;
    use instant_acme::{Account, BodyWrapper, BytesResponse, Error, HttpClient, Key};
    use serde_json::json;

    use super::*;

    /// An authority that never decides.
    #[derive(Clone, Default)]
    struct Undecided(Arc<AtomicUsize>);

    impl HttpClient for Undecided {
        fn request(
            &self,
            request: Request<BodyWrapper<Bytes>>,
        ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            let body = match request.method() {
                &Method::GET => json!({
                    "newNonce": "https://ca/nonce",
                    "newAccount": "https://ca/account",
                    "newOrder": "https://ca/order",
                }),
                _ => {
                    json!({ "status": "pending", "authorizations": [], "finalize": "https://ca/f" })
                }
            };
            let response = Response::builder()
                .header("replay-nonce", "n")
                .header("location", "https://ca/1")
                .body(Full::new(Bytes::from(body.to_string())));
            Box::pin(async move { Ok(response.unwrap().into()) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn undecided_order_ends_after_few_polls() {
        let authority = Undecided::default();
        let (key, der) = Key::generate_pkcs8().unwrap();
        let (account, _) = Account::builder_with_http(Box::new(authority.clone()))
            .create_from_key((key, der.into()), "https://ca/directory".to_owned())
            .await
            .unwrap();
        let names = [Identifier::Dns("example.no".to_owned())];
        let mut order = account.new_order(&NewOrder::new(&names)).await.unwrap();
        let (began, before) = (Instant::now(), authority.0.load(Ordering::SeqCst));
        let asked = || Some(Duration::MAX);
        let polled = poll(&mut order, asked, |status| status == OrderStatus::Ready).await;
        assert_eq!(polled.unwrap_err().why(), "it did not decide within four minutes");
        assert!(began.elapsed() <= POLL_DEADLINE + MAX_WAIT);
        assert!(authority.0.load(Ordering::SeqCst) - before < 30);
    }

    #[test]
    fn text_of_the_authority_is_bounded_and_printable() {
        let failure = OrderFailure::new(format!("a\u{1b}[2J\u{202e}\n{}", "x".repeat(10_000)));
        assert!(failure.why().starts_with("a [2J  x"), "{}", failure.why());
        assert_eq!(failure.why().chars().count(), MAX_WHY);
    }
}
