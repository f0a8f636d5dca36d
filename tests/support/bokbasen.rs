//! A proxy between the gate and the sandbox. A test rewrites its responses where the sandbox has no
//! such fault.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

/// A response of the sandbox, which a test can change.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) next: Option<String>,
    pub(crate) body: Value,
}

impl Answer {
    /// Bokbasen does not know the loan.
    pub(crate) fn unknown() -> Answer {
        let body = json!({ "code": "LOAN_NOT_FOUND", "message": "There is no such loan." });
        Answer { status: StatusCode::NOT_FOUND, next: None, body }
    }

    /// The rows of a listing.
    pub(crate) fn rows(&mut self) -> &mut Vec<Value> {
        self.body.as_array_mut().unwrap()
    }
}

type Rewrite = Box<dyn Fn(&str, Answer) -> Answer + Send>;

#[derive(Clone)]
struct Front {
    sandbox: String,
    client: reqwest::Client,
    rewrite: Arc<Mutex<Rewrite>>,
    calls: Arc<Mutex<Vec<ReceivedCall>>>,
}

/// A call that the gate has sent.
#[derive(Clone, Debug)]
pub(crate) struct ReceivedCall {
    pub(crate) method: http::Method,
    pub(crate) headers: HeaderMap,
}

/// A loopback server that forwards every call to the sandbox.
pub(crate) struct Bokbasen {
    pub(crate) url: String,
    rewrite: Arc<Mutex<Rewrite>>,
    calls: Arc<Mutex<Vec<ReceivedCall>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Bokbasen {
    /// Starts the proxy for the sandbox at this address. It rewrites nothing yet.
    pub(crate) async fn start(sandbox: &str) -> Bokbasen {
        let listener =
            tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let rewrite: Arc<Mutex<Rewrite>> = Arc::new(Mutex::new(Box::new(|_, answer| answer)));
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let calls: Arc<Mutex<Vec<ReceivedCall>>> = Arc::default();
        let front = Front {
            sandbox: sandbox.to_owned(),
            client,
            rewrite: rewrite.clone(),
            calls: calls.clone(),
        };
        let router = Router::new().fallback(forward).with_state(front);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Bokbasen { url, rewrite, calls, task }
    }

    /// Returns the calls so far, logins apart.
    pub(crate) fn calls(&self) -> Vec<ReceivedCall> {
        self.calls.lock().unwrap().clone()
    }

    /// Rewrites all further responses to GET. The function gets the requested path and query.
    pub(crate) fn rewrite(&self, rewrite: impl Fn(&str, Answer) -> Answer + Send + 'static) {
        *self.rewrite.lock().unwrap() = Box::new(rewrite);
    }
}

impl Drop for Bokbasen {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(State(front): State<Front>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let mut headers: HeaderMap = parts.headers;
    let call = ReceivedCall { method: parts.method.clone(), headers: headers.clone() };
    front.calls.lock().unwrap().push(call);
    headers.remove(http::header::HOST);
    headers.remove(http::header::CONTENT_LENGTH);
    let request = front.client.request(parts.method.clone(), format!("{}{path}", front.sandbox));
    let Ok(answer) = request.headers(headers).body(body).send().await else {
        return Response::builder().status(502).body(Body::empty()).unwrap();
    };
    let retry_after = answer.headers().get("retry-after").cloned();
    // The gate reads Bokbasen's time from this field, and the sandbox's clock moves with the test.
    let date = answer.headers().get("date").cloned();
    let next = answer.headers().get("next").map(|next| next.to_str().unwrap().to_owned());
    let status = answer.status();
    let body = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null);
    let mut answer = Answer { status, next, body };
    if parts.method == http::Method::GET {
        answer = (front.rewrite.lock().unwrap())(&path, answer);
    }
    let mut response =
        Response::builder().status(answer.status).header("content-type", "application/json");
    if let Some(next) = answer.next {
        response = response.header("next", next);
    }
    if let Some(wait) = retry_after {
        response = response.header("retry-after", wait);
    }
    if let Some(date) = date {
        response = response.header("date", date);
    }
    response.body(Body::from(answer.body.to_string())).unwrap()
}
