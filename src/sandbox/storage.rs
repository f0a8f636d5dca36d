//! The storage of a staging gate, read through the sandbox, so that a drill can slow it down.
//!
//! It relays GET and HEAD below `/storage` to the configured address, and never writes there.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::get;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode};
use url::Url;

use super::context::App;
use super::error_response::Rejected;

/// The path below which the storage's files are.
pub(super) const PATH: &str = "/storage/";
/// The longest time for a connection to the storage.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest silence of the storage.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Headers of one connection rather than of a message (RFC 9110, section 7.6.1). A relayed request
/// has no body, and names another host.
const NOT_RELAYED: [HeaderName; 7] = [
    CONNECTION,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Returns the route of the storage's files, if there is a storage.
///
/// # Errors
/// A client for the storage cannot be built.
pub(super) fn routes(storage: Option<&Url>) -> reqwest::Result<Router<App>> {
    let Some(storage) = storage else { return Ok(Router::new()) };
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .build()?;
    let base = storage.as_str().trim_end_matches('/').to_owned();
    let relay = move |State(app): State<App>, request: Request| {
        let (client, base) = (client.clone(), base.clone());
        let (head, _) = request.into_parts();
        async move { relay(&app, &client, &base, head).await }
    };
    Ok(Router::new().route(&format!("{PATH}{{*file}}"), get(relay)))
}

async fn relay(
    app: &App,
    client: &reqwest::Client,
    base: &str,
    request: Parts,
) -> Result<Response, Rejected> {
    let delay = app.state().bounds.storage_delay_ms;
    tokio::time::sleep(Duration::from_millis(delay)).await;
    let target = request.uri.path_and_query().map_or("", |target| target.as_str());
    // The slash before the file stays.
    let file = target.strip_prefix(PATH.trim_end_matches('/')).unwrap_or_default();
    // A path with dots may lead out of the storage.
    let url = Url::parse(&format!("{base}{file}")).ok();
    let Some(url) = url.filter(|url| url.as_str().starts_with(&format!("{base}/"))) else {
        return Err(Rejected::not_found("NO_SUCH_PATH", "There is nothing at this address."));
    };
    let mut headers = relayed(&request.headers);
    headers.remove(CONTENT_LENGTH);
    let method = if request.method == Method::HEAD { Method::HEAD } else { Method::GET };
    let answer = client.request(method, url).headers(headers).send().await;
    let answer = answer.map_err(|error| {
        let message = format!("The storage does not answer: {}.", error.without_url());
        Rejected::new(StatusCode::BAD_GATEWAY, "STORAGE_FAILED", message)
    })?;
    let (status, headers) = (answer.status(), relayed(answer.headers()));
    let mut response = Response::new(Body::from_stream(answer.bytes_stream()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn relayed(headers: &HeaderMap) -> HeaderMap {
    let mut relayed = headers.clone();
    for name in NOT_RELAYED {
        relayed.remove(name);
    }
    relayed
}
