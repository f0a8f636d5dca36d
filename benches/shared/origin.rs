//! The storage behind every proxy: files in memory, served by a separate thread.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpListener;

/// The files by path, with its leading slash.
pub(crate) type Files = BTreeMap<String, Bytes>;

/// Serves these files until the program ends, and returns the port.
pub(crate) fn serve(files: Files) -> u16 {
    serve_with(files, None)
}

/// Like [`serve`], with at most this many unsent bytes in the kernel, for stalled readers.
pub(crate) fn serve_sparingly(files: Files) -> u16 {
    serve_with(files, Some(16 << 10))
}

fn serve_with(files: Files, unsent: Option<u32>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(accept(listener, Arc::new(files), unsent));
    });
    port
}

async fn accept(listener: std::net::TcpListener, files: Arc<Files>, unsent: Option<u32>) {
    let listener = TcpListener::from_std(listener).unwrap();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        if let Some(unsent) = unsent {
            SockRef::from(&socket).set_tcp_notsent_lowat(unsent).unwrap();
        }
        let files = files.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| std::future::ready(answer(&files, &request)));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

fn answer(files: &Files, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = match files.get(request.uri().path()) {
        Some(file) => Response::builder()
            .header("content-type", "audio/mpeg")
            .header("etag", "\"v1\"")
            .header("last-modified", "Mon, 05 Jan 2026 08:00:00 GMT")
            .header("accept-ranges", "bytes")
            .body(Full::new(file.clone())),
        None => Response::builder().status(StatusCode::NOT_FOUND).body(Full::default()),
    };
    Ok(answer.unwrap())
}
