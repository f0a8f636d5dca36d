//! What every request to the console passes through: who it is from, its form, and the headers of
//! its response.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT_LANGUAGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, REFERRER_POLICY,
    SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;
use url::form_urlencoded;

use super::Console;
use super::cookies::Cookie;
use super::failure::Failure;
use super::forgery::{is_form_token, is_same_origin};
use super::oidc;
use super::page::Place;
use super::preferences::Theme;
use super::roles::{Action, may};
use super::session::{Secret, Session};
use super::text::{Texts, TrailTexts, texts, trail_texts};
use crate::language::Language;

/// The timeout for a form, and its maximum length in bytes.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_FORM: usize = 16 * 1024;
/// The most fields of a form.
const MAX_FIELDS: usize = 32;
/// The end of the paths of streams of updates.
pub(super) const STREAM: &str = "/stream";
/// The name of the field with the token.
pub(super) const TOKEN_FIELD: &str = "form-token";

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; \
                      base-uri 'none'";

/// A request to the console, without its form.
#[derive(Clone)]
pub(super) struct Visit {
    pub(super) language: Language,
    pub(super) texts: &'static Texts,
    pub(super) theme: Theme,
    /// Whether single keys are shortcuts.
    pub(super) has_keys: bool,
    pub(super) session: Option<Session>,
    /// The secret of the session; without one, that of its forms.
    pub(super) secret: Secret,
    /// The secret of forms of a page that was opened without the cookie of the session: from a link
    /// of another site. Only forms that need no session accept it.
    pub(super) open_secret: Option<Secret>,
    /// The path and the query, if a form can lead back to them.
    pub(super) here: String,
    pub(super) tls: bool,
    /// The number of problems that need a person.
    pub(super) problems: usize,
}

/// The fields of a form. It has no `Debug`, since it may have a borrower's own id or a token.
#[derive(Clone, Default)]
pub(super) struct Form(Arc<Vec<(String, String)>>);

impl Form {
    fn parse(body: &[u8]) -> Option<Form> {
        let fields: Vec<_> =
            form_urlencoded::parse(body).into_owned().take(MAX_FIELDS + 1).collect();
        (fields.len() <= MAX_FIELDS).then(|| Form(Arc::new(fields)))
    }

    /// Returns a field without the white space around it; empty if there is none or several.
    pub(super) fn field(&self, name: &str) -> &str {
        let mut values = self.0.iter().filter(|(field, _)| field == name);
        let value = values.next().filter(|_| values.next().is_none());
        value.map_or("", |(_, value)| value.trim())
    }
}

impl Visit {
    /// Returns the session.
    ///
    /// # Errors
    /// [`Failure::SignedOut`] without one.
    pub(super) fn session(&self) -> Result<&Session, Failure> {
        self.session.as_ref().ok_or(Failure::SignedOut)
    }

    /// Returns whether the person may do this.
    pub(super) fn may(&self, action: Action) -> bool {
        self.session.as_ref().is_some_and(|session| may(session.person.role, action))
    }

    /// Returns whether the person may open a page of the navigation.
    pub(super) fn may_open(&self, place: Place) -> bool {
        self.session.as_ref().is_some_and(|session| place.is_for(session.person.role))
    }

    /// Returns the texts of the page of the trail.
    pub(super) fn trail_texts(&self) -> &'static TrailTexts {
        trail_texts(self.language)
    }

    fn of(console: &Console, request: &Request) -> Option<(Visit, Option<HeaderValue>)> {
        let (headers, tls) = (request.headers(), console.parts.tls);
        let secret_in = |cookie: Cookie| Secret::of_cookie(cookie.read(headers, tls)?);
        // A page that is only left open does not keep its session.
        let find = |secret: &Secret| match request.uri().path().ends_with(STREAM) {
            true => console.sessions.peek(secret),
            false => console.sessions.find(secret),
        };
        let signed_in =
            secret_in(Cookie::Session).and_then(|secret| Some((find(&secret)?, secret)));
        let (mut open_secret, form_secret) = (None, secret_in(Cookie::Form));
        let (session, secret, cookie) = match (signed_in, form_secret) {
            (Some((session, secret)), form_secret) => {
                open_secret = form_secret;
                (Some(session), secret, None)
            }
            (None, Some(secret)) => (None, secret, None),
            (None, None) => {
                let secret = Secret::generate()?;
                let cookie = Cookie::Form.set(secret.cookie_value(), tls);
                (None, secret, cookie)
            }
        };
        let problems = session.as_ref().map_or(0, |_| console.parts.monitor.problem_count());
        let language = language_of(headers, tls);
        let visit = Visit {
            language,
            texts: texts(language),
            theme: Theme::of(Cookie::Theme.read(headers, tls)),
            has_keys: Cookie::Keys.read(headers, tls) != Some("off"),
            session,
            secret,
            open_secret,
            here: here(request),
            tls,
            problems,
        };
        Some((visit, cookie))
    }
}

fn language_of(headers: &HeaderMap, tls: bool) -> Language {
    let chosen = Cookie::Language.read(headers, tls).and_then(Language::of_tag);
    let accepted = || Language::preferred(headers.get(ACCEPT_LANGUAGE)?.to_str().ok()?);
    chosen.or_else(accepted).unwrap_or_default()
}

/// Returns where a form that changes a preference leads back to. A page that a form or the provider
/// has made cannot be requested again.
fn here(request: &Request) -> String {
    let uri = request.uri();
    match *request.method() {
        _ if uri.path() == oidc::CALLBACK => "/".to_owned(),
        Method::GET | Method::HEAD => {
            uri.path_and_query().map_or("/", |path| path.as_str()).to_owned()
        }
        _ if uri.path() == "/why" => "/why".to_owned(),
        _ => uri.path().strip_suffix("/link").unwrap_or("/").to_owned(),
    }
}

/// Returns a path of this console to go on to; the first page for any other text.
pub(super) fn local_path(text: &str) -> &str {
    let is_local = text.starts_with('/')
        && !text.starts_with("//")
        && text.bytes().all(|byte| matches!(byte, b'!'..=b'~') && byte != b'\\');
    if is_local { text } else { "/" }
}

/// Finds out who a request is from, and turns a failure into a page in its language.
pub(super) async fn enter(
    State(console): State<Arc<Console>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some((visit, cookie)) = Visit::of(&console, &request) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    if visit.session.is_some() {
        console.parts.host.note_session(request.extensions(), visit.secret.number());
    }
    request.extensions_mut().insert(visit.clone());
    let mut response = next.run(request).await;
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        response = failure.page(&visit);
    }
    if let Some(cookie) = cookie.filter(|_| !response.headers().contains_key(SET_COOKIE)) {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Lets only requests with a session pass.
pub(super) async fn require_session(
    Extension(visit): Extension<Visit>,
    request: Request,
    next: Next,
) -> Response {
    match visit.session {
        Some(_) => next.run(request).await,
        None if request.method() == Method::POST => Failure::SignedOut.into_response(),
        None => Failure::SignInFirst.into_response(),
    }
}

/// Runs a look on threads that give way to those of readers. What changes something runs where it
/// did: a loan, for which others wait, does not.
pub(super) async fn give_way(
    State(low_priority): State<Handle>,
    request: Request,
    next: Next,
) -> Response {
    if !request.method().is_safe() {
        return next.run(request).await;
    }
    // Also ends when the client is gone.
    let look = AbortOnDropHandle::new(low_priority.spawn(next.run(request)));
    match look.await {
        Ok(page) => page,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        },
    }
}

/// Reads the form of a request, and lets it pass only with the token of its page.
pub(super) async fn check_form(
    Extension(visit): Extension<Visit>,
    request: Request,
    next: Next,
) -> Response {
    check(&[Some(&visit.secret)], request, next).await
}

/// As [`check_form`], for a form that needs no session. A browser that comes from another site does
/// not send the cookie of the session, which is SameSite=Strict, but sends it with the form. So the
/// page may have had the token of the other cookie.
pub(super) async fn check_open_form(
    Extension(visit): Extension<Visit>,
    request: Request,
    next: Next,
) -> Response {
    check(&[Some(&visit.secret), visit.open_secret.as_ref()], request, next).await
}

async fn check(secrets: &[Option<&Secret>], request: Request, next: Next) -> Response {
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    if !is_same_origin(&parts) {
        return Failure::Forged.into_response();
    }
    let body = match tokio::time::timeout(FORM_TIMEOUT, to_bytes(body, MAX_FORM)).await {
        Ok(Ok(body)) => body,
        _ => return Failure::Malformed.into_response(),
    };
    let Some(form) = Form::parse(&body) else { return Failure::Malformed.into_response() };
    let token = form.field(TOKEN_FIELD);
    if !secrets.iter().flatten().any(|secret| is_form_token(secret, token)) {
        return Failure::Forged.into_response();
    }
    parts.extensions.insert(form);
    next.run(Request::from_parts(parts, axum::body::Body::empty())).await
}

/// Adds the headers that protect each response.
pub(super) async fn protect(mut response: Response) -> Response {
    let fields = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        fields.insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;
    use crate::low_priority::Threads;

    #[test]
    fn only_paths_of_this_console_are_gone_on_to() {
        for path in ["/", "/loans/1?borrower=a&after=b"] {
            assert_eq!(local_path(path), path);
        }
        for other in ["", "//evil.no", "/\\evil.no", "https://evil.no", "/a\r\nset-cookie: b"] {
            assert_eq!(local_path(other), "/", "{other}");
        }
    }

    #[test]
    fn field_that_is_there_twice_is_none() {
        let form = Form::parse(b"a=%20x%20&b=1&b=2").unwrap();
        assert_eq!((form.field("a"), form.field("b"), form.field("c")), ("x", "", ""));
        assert!(Form::parse("a=1&".repeat(MAX_FIELDS + 1).as_bytes()).is_none());
    }

    /// Returns the thread that serves a request with this method.
    async fn thread(low_priority: &Handle, method: Method) -> String {
        let name = async || std::thread::current().name().unwrap_or_default().to_owned();
        let router = Router::new()
            .route("/", get(name).post(name))
            .layer(from_fn_with_state(low_priority.clone(), give_way));
        let request = Request::builder().method(method).body(Body::empty()).unwrap();
        let response = TowerToHyperService::new(router).call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let name = to_bytes(response.into_body(), 100).await.unwrap();
        String::from_utf8(name.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn only_a_look_gives_way() {
        let threads = Threads::start("given-way").unwrap();
        assert_eq!(thread(threads.handle(), Method::GET).await, "given-way");
        assert_ne!(thread(threads.handle(), Method::POST).await, "given-way");
    }
}
