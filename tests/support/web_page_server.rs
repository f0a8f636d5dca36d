//! A web server of a separate origin. It serves one page, whose script reports results to the test.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Prelude of a page's script: it defines `await report(value)` and reports uncaught errors.
const REPORT_SCRIPT: &str =
    "const report = value => fetch('/reported', { method: 'POST', body: JSON.stringify(value) });
addEventListener('error', event => report({ wrong: event.message }));
addEventListener('unhandledrejection', event => report({ wrong: String(event.reason) }));";

/// A page served over plain HTTP, which browsers trust on loopback.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Origin of the page as browsers write it.
    pub(crate) origin: String,
    reported: mpsc::UnboundedReceiver<Value>,
    listener: Option<TcpListener>,
    reporter: mpsc::UnboundedSender<Value>,
    stop: CancellationToken,
}

impl Pages {
    /// Binds an origin before its page is served, so that a test can configure its name first.
    pub(crate) async fn bind() -> Pages {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (reporter, reported) = mpsc::unbounded_channel();
        Pages {
            origin,
            reported,
            listener: Some(listener),
            reporter,
            stop: CancellationToken::new(),
        }
    }

    /// Serves a page with this module script.
    pub(crate) fn serve(&mut self, script: &str) {
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>A reader</title>\n\
             <script>{REPORT_SCRIPT}</script>\n<script type=\"module\">{script}</script>"
        );
        let listener = self.listener.take().unwrap();
        tokio::spawn(accept(listener, page.into(), self.reporter.clone(), self.stop.clone()));
    }

    /// Returns the next value that the page reports.
    pub(crate) async fn reported(&mut self) -> Value {
        self.reported.recv().await.unwrap()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    page: Bytes,
    reporter: mpsc::UnboundedSender<Value>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        let (page, reporter, stop) = (page.clone(), reporter.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, page.clone(), reporter.clone()));
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), service);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = served => {}
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    page: Bytes,
    reporter: mpsc::UnboundedSender<Value>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let target = (request.method().clone(), request.uri().path().to_owned());
    let (status, body) = match (&target.0, target.1.as_str()) {
        (&Method::GET, "/") => (200, page),
        (&Method::POST, "/reported") => {
            let reported = request.into_body().collect().await.map(|body| body.to_bytes());
            let reported =
                reported.ok().and_then(|reported| serde_json::from_slice(&reported).ok());
            let _ = reporter.send(reported.unwrap_or(Value::Null));
            (204, Bytes::new())
        }
        _ => (404, Bytes::new()), // favicon.ico
    };
    let response =
        Response::builder().status(status).header("content-type", "text/html; charset=utf-8");
    Ok(response.body(Full::new(body)).unwrap())
}
