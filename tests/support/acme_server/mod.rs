//! A small certificate authority that speaks ACME (RFC 8555), and validates names by really
//! connecting (RFC 8737). It can also answer like a broken or hostile one.
//!
//! It checks what an authority must check: the signature, the nonce and the URL of each request,
//! the account, the challenge that a connection presents, and the signing request.

mod issuer;
mod jws;
mod resources;
mod validation;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use loangate::clock::Clock;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use issuer::Issuer;
pub(crate) use validation::presented;

/// How the authority behaves.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// What it does wrong.
    pub(crate) fault: Option<Fault>,
    /// The days for which certificates are valid, if not 90.
    pub(crate) days: Option<i64>,
    /// Whether new accounts need an external account.
    pub(crate) needs_external_account: bool,
    /// Whether certificates should have been renewed an hour ago (RFC 9773).
    pub(crate) wants_renewal: bool,
}

/// What the authority does wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// Refuses new orders, and names a time in seconds.
    RateLimited(u64),
    /// Answers every request with 500 and no JSON.
    Broken,
    /// Never decides about a challenge, and wants the client to wait for ages.
    Undecided,
    /// Wants a name to be validated that was not ordered.
    OtherName,
    /// Wants more names to be validated than were ordered.
    MoreNames,
    /// Offers no TLS-ALPN-01.
    OtherChallenges,
    /// Names its resources at another server.
    OtherServer,
    /// Names its resources by plain HTTP.
    PlainHttp,
    /// Names a resource by something that is no URL.
    NoUrl,
    /// Names the order's URLs at another server.
    OrderElsewhere,
    /// Redirects the new order.
    Redirects,
    /// Answers with more than a client should read.
    Huge,
    /// Issues a certificate for another key.
    OtherKey,
    /// Issues a certificate without the last of the names.
    LessNames,
    /// Issues a certificate for another name.
    WrongName,
    /// Issues a certificate that has expired.
    Expired,
    /// Issues a certificate that is not valid yet.
    Early,
    /// Issues something that cannot be parsed.
    Garbage,
    /// Issues an empty chain.
    Nothing,
    /// Validates against another digest, so that every challenge fails.
    OtherDigest,
}

impl Script {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

#[derive(Default)]
struct Books {
    nonces: BTreeSet<String>,
    /// The public keys of the accounts, by their numbers.
    accounts: Vec<Value>,
    contacts: Vec<Value>,
    orders: Vec<Order>,
    /// Validations that failed, with the reason.
    refused: Vec<String>,
    /// Names that were validated.
    validated: Vec<String>,
    replayed: usize,
    /// How often an order was read.
    polls: usize,
    /// The ids of certificates that clients asked about.
    asked_about: Vec<String>,
}

struct Order {
    account: usize,
    names: Vec<String>,
    authorizations: Vec<Authorization>,
    certificate: Option<String>,
    has_failed: bool,
}

#[derive(Clone)]
struct Authorization {
    name: String,
    token: String,
    status: &'static str,
    error: Option<String>,
}

struct State {
    url: String,
    clock: Clock,
    issuer: Issuer,
    script: Mutex<Script>,
    books: Mutex<Books>,
    /// Where names lead to.
    addresses: watch::Sender<BTreeMap<String, SocketAddr>>,
}

/// A running authority.
pub(crate) struct AcmeServer {
    state: Arc<State>,
    /// The root of its own certificate, in PEM.
    pub(crate) ca: PathBuf,
    /// The root of the certificates that it issues, in PEM.
    pub(crate) root: PathBuf,
    stop: CancellationToken,
}

/// The key id and the key of the external account that the authority knows.
pub(crate) const EXTERNAL_ID: &str = "library-7";
pub(crate) const EXTERNAL_KEY: &str = "c2VjcmV0LW9mLXRoZS1leHRlcm5hbC1hY2NvdW50LTE";

impl AcmeServer {
    /// Starts an authority that puts its roots into a directory.
    pub(crate) async fn start(dir: &Path, clock: &Clock) -> AcmeServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let (ca, root) = (dir.join("acme-ca.pem"), dir.join("acme-root.pem"));
        let issuer = Issuer::new();
        std::fs::write(&ca, issuer.server_root()).unwrap();
        std::fs::write(&root, issuer.root()).unwrap();
        let tls = TlsAcceptor::from(Arc::new(issuer.server_config()));
        let state = Arc::new(State {
            url,
            clock: clock.clone(),
            issuer,
            script: Mutex::default(),
            books: Mutex::default(),
            addresses: watch::Sender::new(BTreeMap::new()),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, tls, state.clone(), stop.clone()));
        AcmeServer { state, ca, root, stop }
    }

    /// Returns the directory URL.
    pub(crate) fn directory(&self) -> String {
        format!("{}/directory", self.state.url)
    }

    /// Sets where a name leads to. Validations wait until that is known.
    pub(crate) fn leads(&self, name: &str, address: SocketAddr) {
        self.state.addresses.send_modify(|addresses| {
            addresses.insert(name.to_owned(), address);
        });
    }

    /// Changes how the authority behaves.
    pub(crate) fn behave(&self, script: Script) {
        *self.state.script.lock().unwrap() = script;
    }

    /// Makes the authority do this wrong.
    pub(crate) fn fault(&self, fault: Fault) {
        self.behave(Script { fault: Some(fault), ..Script::default() });
    }

    /// Returns how many orders were made.
    pub(crate) fn orders(&self) -> usize {
        self.books(|books| books.orders.len())
    }

    /// Returns how many certificates were issued.
    pub(crate) fn issued(&self) -> usize {
        self.books(|books| books.orders.iter().filter(|order| order.certificate.is_some()).count())
    }

    /// Returns how many accounts there are.
    pub(crate) fn accounts(&self) -> usize {
        self.books(|books| books.accounts.len())
    }

    /// Returns the last contacts of accounts.
    pub(crate) fn contacts(&self) -> Vec<Value> {
        self.books(|books| books.contacts.clone())
    }

    /// Returns why validations failed.
    pub(crate) fn refused(&self) -> Vec<String> {
        self.books(|books| books.refused.clone())
    }

    /// Returns the names that were validated.
    pub(crate) fn validated(&self) -> Vec<String> {
        self.books(|books| books.validated.clone())
    }

    /// Returns how often a nonce was used again.
    pub(crate) fn replayed(&self) -> usize {
        self.books(|books| books.replayed)
    }

    /// Returns how often orders were read.
    pub(crate) fn polls(&self) -> usize {
        self.books(|books| books.polls)
    }

    /// Returns the ids of certificates whose renewal clients asked about.
    pub(crate) fn asked_about(&self) -> Vec<String> {
        self.books(|books| books.asked_about.clone())
    }

    fn books<T>(&self, read: impl FnOnce(&Books) -> T) -> T {
        read(&self.state.books.lock().unwrap())
    }
}

impl Drop for AcmeServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    state: Arc<State>,
    stop: CancellationToken,
) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((socket, _)) = accepted else { continue };
        let (tls, state, stop) = (tls.clone(), state.clone(), stop.clone());
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(socket).await else { return };
            let service = service_fn(|request| answer(request, state.clone()));
            let serving = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            let _ = stop.run_until_cancelled(serving).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(resources::answer(request, state).await)
}
