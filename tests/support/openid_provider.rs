//! A small OpenID provider with real keys, which can also answer like a broken or hostile one.
//!
//! It checks what a provider must check: the client, the redirect address, PKCE, and that a code is
//! used once. A test sets what it says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use loangate::clock::Clock;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use url::Url;

pub(crate) const CLIENT: &str = "loangate console";
pub(crate) const SECRET: &str = "a secret: of the client/+";

/// A key that signs.
#[derive(Clone)]
pub(crate) struct SigningKey {
    algorithm: Algorithm,
    key: EncodingKey,
    pub(crate) jwk: Value,
}

/// How an ID token is signed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Signed {
    Es256,
    Rs256,
    /// `alg` is `none`, without a signature.
    None,
    /// HS256 with the text of the public key as its secret.
    PublicKeyAsSecret,
    /// By a key that is not in the key set, with the id of one that is.
    ByStranger,
    /// By a key that is not in the key set, with its own id.
    UnknownKey,
    /// As RS256, with a header that has a critical extension.
    Critical,
    /// As RS256, with the type of a logout token.
    Logout,
}

/// How an endpoint answers instead.
#[derive(Clone, Debug)]
pub(crate) enum Instead {
    Status(u16),
    /// A JSON string of this many bytes.
    Huge(usize),
    /// Never.
    Hang,
    Redirect,
    RedirectTo(String),
    Text(&'static str),
    /// The error of a token endpoint.
    Error(&'static str),
}

/// What the provider says.
pub(crate) struct Script {
    /// Claims in addition to the usual ones; null removes one.
    pub(crate) claims: Value,
    pub(crate) signed: Signed,
    /// Members of the description in addition to the usual ones; null removes one.
    pub(crate) description: Value,
    /// What one endpoint answers.
    pub(crate) instead: Option<(&'static str, Instead)>,
    /// Parameters of the response to the browser in addition to the usual ones; null removes one.
    pub(crate) response: Value,
    /// How long each response to the gate takes.
    pub(crate) delay: Duration,
    /// The keys at `/jwks`, in place of the usual ones.
    pub(crate) keys: Option<Vec<Value>>,
    /// Cache-Control of the keys.
    pub(crate) cache_control: &'static str,
}

struct State {
    script: Mutex<Script>,
    url: String,
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
    requests: Mutex<Vec<String>>,
}

/// The keys of all providers: RSA keys are slow to generate.
struct Keys {
    ec: SigningKey,
    rsa: SigningKey,
    stranger: SigningKey,
}

static KEYS: LazyLock<Keys> =
    LazyLock::new(|| Keys { ec: ec("ec"), rsa: rsa("rsa"), stranger: ec("ec") });

/// A running provider.
pub(crate) struct OpenIdProvider {
    pub(crate) url: String,
    state: Arc<State>,
    stop: CancellationToken,
}

impl Default for Script {
    fn default() -> Script {
        Script {
            claims: json!({}),
            signed: Signed::Es256,
            description: json!({}),
            instead: None,
            response: json!({}),
            delay: Duration::ZERO,
            keys: None,
            cache_control: "",
        }
    }
}

impl SigningKey {
    /// Returns the key that `/jwks` usually has.
    pub(crate) fn usual() -> &'static SigningKey {
        &KEYS.ec
    }

    /// Creates an EC key with this id.
    pub(crate) fn create(kid: &str) -> SigningKey {
        ec(kid)
    }

    /// Returns a token with these claims, and the key's id in its header.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.jwk["kid"], claims)
    }

    /// Returns a token with this id of a key in its header.
    pub(crate) fn sign_as(&self, kid: &Value, claims: &Value) -> String {
        let header = json!({ "alg": self.algorithm, "typ": "JWT", "kid": kid });
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let message = format!("{}.{}", part(&header), part(claims));
        let signature = crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

fn ec(kid: &str) -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let (x, y) = pair.public_key_raw()[1..].split_at(32);
    let (x, y) = (BASE64URL_NOPAD.encode(x), BASE64URL_NOPAD.encode(y));
    SigningKey {
        algorithm: Algorithm::ES256,
        key: EncodingKey::from_ec_der(&pair.serialize_der()),
        jwk: json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y, "use": "sig" }),
    }
}

fn rsa(kid: &str) -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
    let public = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
    let public = serde_json::to_value(public).unwrap();
    let jwk = json!({ "kty": "RSA", "kid": kid, "n": public["n"], "e": public["e"] });
    SigningKey { algorithm: Algorithm::RS256, key, jwk }
}

impl OpenIdProvider {
    /// Starts a provider at the name `localhost`, which is another site than `127.0.0.1`.
    pub(crate) async fn start() -> OpenIdProvider {
        OpenIdProvider::start_with(None).await
    }

    /// Starts a provider that speaks TLS, with the certificate of a gate in this directory.
    pub(crate) async fn start_tls(dir: &Path) -> OpenIdProvider {
        let file = |name: &str| dir.join("certs").join(name);
        let chain = CertificateDer::pem_file_iter(file("server.pem")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        OpenIdProvider::start_with(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> OpenIdProvider {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://localhost:{}", listener.local_addr().unwrap().port());
        let state = Arc::new(State {
            script: Mutex::default(),
            url: url.clone(),
            codes: Mutex::default(),
            requests: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, tls, state.clone(), stop.clone()));
        OpenIdProvider { url, state, stop }
    }

    /// Changes what the provider says.
    pub(crate) fn say(&self, change: impl FnOnce(&mut Script)) {
        let mut script = Script::default();
        change(&mut script);
        *self.state.script.lock().unwrap() = script;
    }

    /// Returns how often a path was requested.
    pub(crate) fn requests(&self, path: &str) -> usize {
        self.state.requests.lock().unwrap().iter().filter(|seen| *seen == path).count()
    }

    /// Returns the keys of `[console]` for this provider. `url` is the console's address.
    pub(crate) fn config(&self, url: &str) -> String {
        format!(
            "[console]\nurl = \"{url}\"\n\n[console.oidc]\nissuer = \"{}\"\n\
             client_id = \"{CLIENT}\"\nclient_secret = \"{SECRET}\"\n\
             role_claim = [\"realm_access\", \"roles\"]\n\
             roles = {{ support = [\"support\", \"help\"], operator = [\"ops\"], \
             auditor = [\"audit\"] }}\n\n[ledger]",
            self.url
        )
    }

    /// Signs the person in at the provider, and returns where it sends the browser to.
    pub(crate) async fn authorize(&self, url: &str) -> Url {
        let client = reqwest::Client::builder().no_proxy();
        let client = client.redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let answer = client.post(url).send().await.unwrap();
        let location = answer.headers().get("location");
        let location = location.unwrap_or_else(|| panic!("{answer:?}"));
        location.to_str().unwrap().parse().unwrap()
    }
}

impl Drop for OpenIdProvider {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    state: Arc<State>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        let (state, stop, tls) = (state.clone(), stop.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(socket, state, stop).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(socket).await {
                        serve(stream, state, stop).await;
                    }
                }
            }
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    state: Arc<State>,
    stop: CancellationToken,
) {
    let service = service_fn(|request| answer(request, state.clone()));
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        () = stop.cancelled() => {}
        _ = served => {}
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    state.requests.lock().unwrap().push(path.clone());
    let (instead, delay) = {
        let script = state.script.lock().unwrap();
        (script.instead.clone(), script.delay)
    };
    if path != "/authorize" {
        tokio::time::sleep(delay).await;
    }
    if let Some((of, instead)) = instead
        && of == path
    {
        return Ok(match instead {
            Instead::Status(status) => respond(status, "{\"error\":\"server_error\"}"),
            Instead::Huge(length) => respond(200, format!("{{\"a\":\"{}\"}}", "x".repeat(length))),
            Instead::Text(text) => respond(200, text),
            Instead::Error(code) => respond(400, json!({ "error": code }).to_string()),
            Instead::RedirectTo(to) => moved(&to),
            Instead::Redirect => moved(&format!("{}{path}?again", state.url)),
            Instead::Hang => {
                tokio::time::sleep(Duration::from_secs(600)).await;
                respond(500, "")
            }
        });
    }
    Ok(match (&parts.method, path.as_str()) {
        (&Method::GET, "/.well-known/openid-configuration") => {
            respond(200, state.description().to_string())
        }
        (&Method::GET, "/jwks") => {
            let other = json!({ "kty": "AKP", "alg": "ML-DSA-44", "kid": "new", "pub": "AA" });
            let script = state.script.lock().unwrap();
            let usual = || vec![other, KEYS.ec.jwk.clone(), KEYS.rsa.jwk.clone()];
            let keys = script.keys.clone().unwrap_or_else(usual);
            let mut response = respond(200, json!({ "keys": keys }).to_string());
            let lifetime = script.cache_control.parse().unwrap();
            response.headers_mut().insert("cache-control", lifetime);
            response
        }
        (&Method::GET, "/authorize") => respond(
            200,
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Provider</title>\
             <form method=\"post\"><button>Sign in as Kari</button></form>",
        ),
        (&Method::GET, "/elsewhere") => {
            let to = parts.uri.query().unwrap_or_default();
            let page = "<!doctype html><html lang=\"en\"><title>Elsewhere</title>";
            respond(200, format!("{page}<a href=\"{to}\">The console</a>"))
        }
        (&Method::POST, "/authorize") => {
            let query = parts.uri.query().unwrap_or_default();
            let query: HashMap<String, String> =
                url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
            state.redirect(query)
        }
        (&Method::POST, "/token") => {
            let authorization = parts.headers.get("authorization").cloned();
            let authorization = authorization.map(|field| field.to_str().unwrap().to_owned());
            state.token(authorization.as_deref(), &body)
        }
        (&Method::GET, "/favicon.ico") => respond(204, ""),
        _ => respond(404, ""),
    })
}

fn respond(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status);
    let response = response.header("content-type", "text/html; charset=utf-8");
    response.body(Full::new(body.into())).unwrap()
}

fn moved(to: &str) -> Response<Full<Bytes>> {
    Response::builder().status(303).header("location", to).body(Full::default()).unwrap()
}

/// Adds members to an object; null removes one.
fn merge(object: &mut Value, more: &Value) {
    let object = object.as_object_mut().unwrap();
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => object.remove(name),
            value => object.insert(name.clone(), value.clone()),
        };
    }
}

impl State {
    fn description(&self) -> Value {
        let url = &self.url;
        let mut description = json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/authorize"),
            "token_endpoint": format!("{url}/token"),
            "jwks_uri": format!("{url}/jwks"),
            "authorization_response_iss_parameter_supported": true,
        });
        merge(&mut description, &self.script.lock().unwrap().description);
        description
    }

    fn redirect(&self, query: HashMap<String, String>) -> Response<Full<Bytes>> {
        let code = uuid::Uuid::new_v4().to_string();
        let mut url: Url = query["redirect_uri"].parse().unwrap();
        let mut response = json!({ "code": code, "state": query["state"], "iss": self.url });
        merge(&mut response, &self.script.lock().unwrap().response);
        for (name, value) in response.as_object().unwrap() {
            url.query_pairs_mut().append_pair(name, value.as_str().unwrap());
        }
        self.codes.lock().unwrap().insert(code, query);
        moved(url.as_str())
    }

    fn token(&self, authorization: Option<&str>, body: &[u8]) -> Response<Full<Bytes>> {
        let form: HashMap<String, String> =
            url::form_urlencoded::parse(body).into_owned().collect();
        let encoded =
            |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
        let client = format!("{}:{}", encoded(CLIENT), encoded(SECRET));
        let basic = format!("Basic {}", BASE64.encode(client.as_bytes()));
        let in_body = form.get("client_id").map(String::as_str) == Some(CLIENT)
            && form.get("client_secret").map(String::as_str) == Some(SECRET);
        let refuse = |error: &str| respond(400, json!({ "error": error }).to_string());
        if authorization != Some(&basic) && !in_body {
            return refuse("invalid_client");
        }
        let asked = form.get("code").and_then(|code| self.codes.lock().unwrap().remove(code));
        let Some(asked) = asked else { return refuse("invalid_grant") };
        let verifier = form.get("code_verifier").cloned().unwrap_or_default();
        let challenge = BASE64URL_NOPAD.encode(digest(&SHA256, verifier.as_bytes()).as_ref());
        let fits = form.get("grant_type").map(String::as_str) == Some("authorization_code")
            && form.get("redirect_uri") == asked.get("redirect_uri")
            && asked.get("code_challenge_method").map(String::as_str) == Some("S256")
            && asked.get("code_challenge") == Some(&challenge);
        if !fits {
            return refuse("invalid_grant");
        }
        let token = self.id_token(&asked["client_id"], &asked["nonce"]);
        let tokens = json!({
            "access_token": "unused", "token_type": "Bearer", "expires_in": 60, "id_token": token,
        });
        respond(200, tokens.to_string())
    }

    fn id_token(&self, client: &str, nonce: &str) -> String {
        let now = Clock::system().now().as_second();
        let mut claims = json!({
            "iss": self.url, "aud": client, "sub": "f:7:kari", "name": "Kari Nordmann",
            "nonce": nonce, "iat": now, "exp": now + 300,
            "realm_access": { "roles": ["other", "support"] },
        });
        let script = self.script.lock().unwrap();
        merge(&mut claims, &script.claims);
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let message = |header: Value| format!("{}.{}", part(&header), part(&claims));
        let signed = |key: &SigningKey, header: Value| {
            let message = message(header);
            let signature = crypto::sign(message.as_bytes(), &key.key, key.algorithm).unwrap();
            format!("{message}.{signature}")
        };
        match script.signed {
            Signed::Es256 => signed(&KEYS.ec, json!({ "alg": "ES256", "kid": "ec" })),
            Signed::Rs256 => signed(&KEYS.rsa, json!({ "alg": "RS256", "kid": "rsa" })),
            Signed::ByStranger => signed(&KEYS.stranger, json!({ "alg": "ES256", "kid": "ec" })),
            Signed::UnknownKey => {
                signed(&KEYS.stranger, json!({ "alg": "ES256", "kid": "unknown" }))
            }
            Signed::Critical => {
                let header = json!({ "alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": true });
                signed(&KEYS.rsa, header)
            }
            Signed::Logout => {
                let header = json!({ "alg": "RS256", "kid": "rsa", "typ": "logout+jwt" });
                signed(&KEYS.rsa, header)
            }
            Signed::None => format!("{}.", message(json!({ "alg": "none", "kid": "rsa" }))),
            Signed::PublicKeyAsSecret => {
                let header = message(json!({ "alg": "HS256", "kid": "rsa" }));
                let key = EncodingKey::from_secret(KEYS.rsa.jwk.to_string().as_bytes());
                let signature = crypto::sign(header.as_bytes(), &key, Algorithm::HS256).unwrap();
                format!("{header}.{signature}")
            }
        }
    }
}
