//! The demo's web reader: a page that borrows, reads, listens and returns as a reading app does,
//! and shows beside it what the gate, Bokbasen's stand-in and the storage did.
//!
//! The gate serves it by open routes, which only the demo's configuration has, from an origin on
//! loopback. The page borrows and returns by the readers' API, and plays by signed links. `api`
//! answers what a page could not know: it signs in the demo's invented readers, and reads the admin
//! API in their place. The admin token stays in this process. Whoever reaches the demo's port can
//! therefore act as these readers, and see their loans, and nothing more.

mod api;
mod behind;
mod files;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use data_encoding::BASE64;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HOST};
use http::{HeaderValue, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

pub(super) use behind::{Behind, client};

/// The most calls of the page that are answered at the same time.
const MAX_CALLS: usize = 16;

/// The running origin of the page. Dropping it stops it.
#[derive(Debug)]
pub(super) struct Page {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    host: String,
    calls: Semaphore,
    /// Set once the gate runs.
    behind: OnceLock<Behind>,
}

impl Page {
    /// Listens on a free port of loopback.
    pub(super) async fn start() -> io::Result<Page> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            host: address.to_string(),
            calls: Semaphore::new(MAX_CALLS),
            behind: OnceLock::new(),
        });
        let router = Router::new()
            .route("/demo/api/world", get(api::world))
            .route("/demo/api/sign-in/{reader}", get(api::sign_in))
            .route("/demo/api/live/{reader}/{isbn}/{issued}", get(api::live))
            .route("/demo/api/request/{id}", get(api::recorded))
            .route("/demo/{*file}", get(file))
            .layer(middleware::from_fn_with_state(shared.clone(), check))
            .with_state(shared.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the page's origin has stopped");
            }
        });
        Ok(Page { address, shared, serving })
    }

    /// Connects the page with the running gate, so that its calls are answered.
    pub(super) fn connect(&self, behind: Behind) {
        let _ = self.shared.behind.set(behind);
    }

    /// Returns the part of a configuration that serves the page.
    pub(super) fn configuration(&self) -> String {
        let policy = policy();
        let route = |path: &str, to: &str| {
            format!(
                "\n[[routes]]\npath = \"{path}\"\norigin = \"page\"\nto = \"{to}\"\nopen = true\n\
                 content_security_policy = \"{policy}\"\n"
            )
        };
        let index = "demo/index.html";
        format!(
            "\n# The demo's web reader. A gate of your own has none.\n[[origins]]\n\
             name = \"page\"\nurl = \"http://{}/\"\n{}{}{}",
            self.address,
            route("/demo/", index),
            route("/demo", index),
            route("/demo/{*file}", "demo/{file}")
        )
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Returns the page's Content-Security-Policy. The inline styles are those of the vendored
/// paginator: its sheet, and the empty ones that it adds to a chapter.
fn policy() -> String {
    let sheet = files::PAGINATOR.split("<style>").nth(1).and_then(|after| {
        let (sheet, _) = after.split_once("</style>")?;
        Some(sheet)
    });
    let hash = |text: &str| {
        format!(
            "'sha256-{}'",
            BASE64.encode(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
        )
    };
    let (sheet, empty) = (hash(sheet.unwrap_or_default()), hash(""));
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self' {sheet} {empty}; \
         img-src 'self' blob:; media-src 'self'; connect-src 'self'; frame-src blob:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// Refuses requests by another name than this listener's: a page of another site could otherwise
/// reach it by a name that resolves to loopback. Bounds the requests in flight.
async fn check(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).map(HeaderValue::as_bytes);
    if host != Some(shared.host.as_bytes()) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    match shared.calls.acquire().await {
        Ok(_permit) => next.run(request).await,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

async fn file(Path(name): Path<String>) -> Response {
    let Some(file) = files::FILES.iter().find(|file| file.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let tag = BASE64.encode(digest::digest(&digest::SHA256, file.content).as_ref());
    let fields = [
        (CONTENT_TYPE, file.content_type().to_owned()),
        (CACHE_CONTROL, "no-cache".to_owned()),
        (ETAG, format!("\"{tag}\"")),
    ];
    (fields, file.content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_allows_the_paginators_sheet_and_no_other_inline_code() {
        let policy = policy();
        let empty = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='";
        assert_eq!(policy.matches("'sha256-").count(), 2, "{policy}");
        assert_eq!(policy.matches(empty).count(), 1, "the paginator's sheet was found: {policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    }

    #[test]
    fn every_file_of_the_page_has_its_licence_and_a_type() {
        for file in files::FILES {
            assert!(!file.content.is_empty() && !file.content_type().is_empty(), "{}", file.name);
            let directory = file.name.rsplit_once('/').map_or("", |(directory, _)| directory);
            let licence = format!("{directory}/LICENSE");
            let has_licence = files::FILES.iter().any(|file| file.name == licence);
            assert!(directory.is_empty() || has_licence, "{}", file.name);
        }
    }

    #[tokio::test]
    async fn page_answers_by_its_own_name_only() {
        let page = Page::start().await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let status = async |host: &str, path: &str| {
            let request = client.get(format!("http://{}{path}", page.address)).header("host", host);
            request.send().await.unwrap().status().as_u16()
        };
        let own = page.address.to_string();
        assert_eq!(status(&own, "/demo/index.html").await, 200);
        assert_eq!(status(&own, "/demo/../mod.rs").await, 404);
        assert_eq!(status("evil.example", "/demo/index.html").await, 421);
        assert_eq!(status("evil.example", "/demo/api/sign-in/kari").await, 421);
    }
}
