//! The HTTP/1.1 client of one worker, for HTTP origins and object storages.
//!
//! `connection_pool` stores idle connections. `exchange` sends a request and reads its response.
//! `response_head` and `framing` parse the response. `socket` is the transport.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::{BufMut, Bytes};
use http::header::{CONTENT_LENGTH, HOST, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, Uri};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::Settings;
use super::connection_limit::ConnectionLimits;
use super::connection_pool::{ConnectSettings, Pool};
use super::exchange::{Failure, Incoming};
use super::socket::Server;
use crate::buffer_budget::Buffers;
use crate::lock::lock;
use crate::telemetry::{TRACEPARENT, Trace, TraceParent};

/// The User-Agent of the gate.
pub(super) const OUR_NAME: &str = concat!("loangate/", env!("CARGO_PKG_VERSION"));

/// The connection pools of all servers of one origin address.
#[derive(Clone)]
pub(super) struct Connections {
    settings: ConnectSettings,
    pools: Arc<Mutex<HashMap<Server, Arc<Pool>>>>,
    /// Whether requests name their trace.
    traces: bool,
}

impl Connections {
    /// Creates a client. With `secure`, it supports TLS and loads this machine's root certificates.
    pub(super) fn new(
        settings: &Settings,
        secure: bool,
        buffers: &Buffers,
        limits: &ConnectionLimits,
    ) -> Result<Connections, String> {
        let roots = if secure { system_roots()? } else { RootCertStore::empty() };
        let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        let connect_timeout = settings.connect_timeout;
        // A request that waits too long for a connection must not look like a slow origin.
        let queue_timeout = settings.queue_timeout();
        let (buffers, limits) = (buffers.clone(), limits.clone());
        let traces = settings.traces;
        let settings = ConnectSettings { tls, connect_timeout, queue_timeout, buffers, limits };
        Ok(Connections { settings, pools: Arc::default(), traces })
    }

    /// Returns the pool of a server.
    pub(super) fn to(&self, server: Server) -> Arc<Pool> {
        let mut pools = lock(&self.pools);
        pools
            .entry(server)
            .or_insert_with_key(|server| Pool::new(server.clone(), self.settings.clone()))
            .clone()
    }

    /// Names the trace of a request for a file.
    pub(super) fn name_trace(&self, fields: &mut HeaderMap) {
        let parent = self.traces.then(Trace::outgoing).flatten();
        if let Some(parent) = parent.and_then(TraceParent::value) {
            fields.insert(TRACEPARENT, parent);
        }
    }

    /// Sends a request unchanged. With `fresh`, it uses a new connection.
    pub(super) async fn send(
        &self,
        request: Request<Bytes>,
        fresh: bool,
    ) -> Result<Response<Incoming>, Failure> {
        let pool = self.to(server_of(request.uri()).map_err(Failure::Broken)?);
        pool.send(&serialized(&request), request.method() == Method::HEAD, fresh).await
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let loaded = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        return Err(format!(
            "this machine has no root certificates to verify a server with: install \
             ca-certificates ({:?})",
            loaded.errors
        ));
    }
    Ok(roots)
}

/// Returns the server of a URI.
pub(super) fn server_of(uri: &Uri) -> Result<Server, String> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or("the address names no server")?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    Ok(Server { secure, host, port })
}

/// Serializes a request (RFC 9112 §3).
fn serialized(request: &Request<Bytes>) -> Vec<u8> {
    let (uri, fields) = (request.uri(), request.headers());
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut text = Vec::with_capacity(1024 + request.body().len());
    let mut line = |parts: &[&[u8]]| {
        parts.iter().for_each(|part| text.put_slice(part));
        text.put_slice(b"\r\n");
    };
    line(&[request.method().as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1"]);
    if !fields.contains_key(HOST) {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        line(&[b"host: ", authority.rsplit('@').next().unwrap_or_default().as_bytes()]);
    }
    let own = |name: &http::HeaderName| name == USER_AGENT || name == CONTENT_LENGTH;
    for (name, value) in fields.iter().filter(|(name, _)| !own(name)) {
        line(&[name.as_str().as_bytes(), b": ", value.as_bytes()]);
    }
    line(&[b"user-agent: ", OUR_NAME.as_bytes()]);
    if !request.body().is_empty()
        || request.method() == Method::POST
        || request.method() == Method::PUT
    {
        line(&[b"content-length: ", request.body().len().to_string().as_bytes()]);
    }
    line(&[]);
    text.put_slice(request.body());
    text
}
