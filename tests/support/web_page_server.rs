//! A small web server of an origin of its own: it serves one page, which tells the test what it
//! found.

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

/// What a page's script has: `await tell(value)`. What it does not expect is told as well.
const TELL: &str =
    "const tell = value => fetch('/told', { method: 'POST', body: JSON.stringify(value) });
addEventListener('error', event => tell({ wrong: event.message }));
addEventListener('unhandledrejection', event => tell({ wrong: String(event.reason) }));";

/// A page that is served, over plain HTTP: browsers trust what is on loopback.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Its origin, as browsers write it.
    pub(crate) origin: String,
    told: mpsc::UnboundedReceiver<Value>,
    listener: Option<TcpListener>,
    teller: mpsc::UnboundedSender<Value>,
    stop: CancellationToken,
}

impl Pages {
    /// An origin whose page is not served yet, for who must know its name before.
    pub(crate) async fn bind() -> Pages {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (teller, told) = mpsc::unbounded_channel();
        Pages { origin, told, listener: Some(listener), teller, stop: CancellationToken::new() }
    }

    /// Serves a page with this script, in which an `await` may stand anywhere.
    pub(crate) fn serve(&mut self, script: &str) {
        let page = format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>A reader</title>\n\
             <script>{TELL}</script>\n<script type=\"module\">{script}</script>"
        );
        let listener = self.listener.take().unwrap();
        tokio::spawn(accept(listener, page.into(), self.teller.clone(), self.stop.clone()));
    }

    /// The next thing that the page tells.
    pub(crate) async fn told(&mut self) -> Value {
        self.told.recv().await.unwrap()
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
    teller: mpsc::UnboundedSender<Value>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else { continue };
        let (page, teller, stop) = (page.clone(), teller.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, page.clone(), teller.clone()));
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
    teller: mpsc::UnboundedSender<Value>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let asked = (request.method().clone(), request.uri().path().to_owned());
    let (status, body) = match (&asked.0, asked.1.as_str()) {
        (&Method::GET, "/") => (200, page),
        (&Method::POST, "/told") => {
            let told = request.into_body().collect().await.map(|body| body.to_bytes());
            let told = told.ok().and_then(|told| serde_json::from_slice(&told).ok());
            let _ = teller.send(told.unwrap_or(Value::Null));
            (204, Bytes::new())
        }
        _ => (404, Bytes::new()), // favicon.ico
    };
    let response =
        Response::builder().status(status).header("content-type", "text/html; charset=utf-8");
    Ok(response.body(Full::new(body)).unwrap())
}
