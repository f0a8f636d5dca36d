//! An origin address that is an HTTP or HTTPS server.

use std::sync::Arc;

use bytes::BufMut;
use http::{Response, Uri};
use url::Url;

use super::Settings;
use super::body::Body;
use super::connection_limit::ConnectionLimits;
use super::connection_pool::Pool;
use super::connections::{Connections, OUR_NAME, server_of};
use super::exchange::Failure;
use super::file_request::FileRequest;
use crate::buffer_budget::Buffers;
use crate::path::FilePath;
use crate::telemetry::Trace;

/// The length of the field that names the trace, in bytes.
const TRACE_FIELD: usize = 70;

#[derive(Debug)]
pub(super) struct Http {
    /// Path prefix of every file; ends with a slash.
    base: Box<str>,
    /// The end of the request line, and the header fields of every request.
    fields: Box<str>,
    pool: Arc<Pool>,
    /// Whether requests name their trace.
    traces: bool,
}

impl Http {
    pub(super) fn new(
        settings: &Settings,
        url: &Url,
        buffers: &Buffers,
        limits: &ConnectionLimits,
    ) -> Result<Http, String> {
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err("its url must start with http:// or https://".to_owned());
        }
        let uri = Uri::try_from(url.as_str()).map_err(|error| error.to_string())?;
        let mut base = uri.path().trim_end_matches('/').to_owned();
        base.push('/');
        // Without the user name and password of the URL.
        let host = match (url.host_str().unwrap_or_default(), url.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let fields = format!(
            " HTTP/1.1\r\nhost: {host}\r\nuser-agent: {OUR_NAME}\r\naccept-encoding: identity\r\n"
        );
        let connections = Connections::new(settings, url.scheme() == "https", buffers, limits)?;
        let pool = connections.to(server_of(&uri)?);
        let traces = settings.traces;
        Ok(Http { base: base.into(), fields: fields.into(), pool, traces })
    }

    pub(super) async fn send(
        &self,
        path: &FilePath,
        request: &FileRequest,
    ) -> Result<Response<Body>, Failure> {
        let answer =
            self.pool.send(&self.request(path, request), request.head, request.fresh).await?;
        Ok(answer.map(Body::from))
    }

    fn request(&self, path: &FilePath, request: &FileRequest) -> Vec<u8> {
        let length = self.base.len() + path.as_str().len() + self.fields.len();
        let further = if self.traces { 160 + TRACE_FIELD } else { 160 };
        let mut text = Vec::with_capacity(length + further);
        text.put_slice(if request.head { b"HEAD " } else { b"GET " });
        text.put_slice(self.base.as_bytes());
        text.put_slice(path.as_str().as_bytes());
        text.put_slice(self.fields.as_bytes());
        if let Some(range) = request.range {
            text.put_slice(b"range: ");
            text.put_slice(range.text().as_bytes());
            text.put_slice(b"\r\n");
        }
        if let Some(tag) = &request.only_if {
            text.put_slice(b"if-range: ");
            text.put_slice(tag.as_bytes());
            text.put_slice(b"\r\n");
        }
        if let Some(parent) = self.traces.then(Trace::outgoing).flatten() {
            text.put_slice(b"traceparent: ");
            text.put_slice(&parent.text());
            text.put_slice(b"\r\n");
        }
        text.put_slice(b"\r\n");
        text
    }
}
