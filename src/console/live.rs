//! Streams of updates to open pages, as server-sent events: the server sends the changing parts of
//! a page, and the script of the page swaps them. A page without a script shows the same, and has a
//! link that loads it again.
//!
//! Streams are bounded: a few for each session, the oldest of which ends for a new one, and a few
//! for the process. Each ends after some time, and with its session, which it does not renew.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Extension;
use axum::extract::{Query, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use http::header::HeaderName;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use maud::{Markup, html};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Console;
use super::address::Address;
use super::format::time;
use super::now::Shown;
use super::page::count;
use super::roles::Action;
use super::session::Hash;
use super::text::live as texts;
use super::visit::Visit;
use crate::lock::lock;

/// The most streams of a session, and of the process.
const MAX_OF_SESSION: usize = 3;
const MAX_STREAMS: usize = 16;
/// How long a stream lasts. The browser then begins another one.
const LIFETIME: Duration = Duration::from_secs(600);
/// The time between two checks for news and of the session.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long a browser waits before it begins another stream.
const RETRY: Duration = Duration::from_secs(3);

/// The streams that there are, the oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    last: u64,
    streams: Vec<Stream>,
}

#[derive(Debug)]
struct Stream {
    number: u64,
    session: Hash,
    end: CancellationToken,
}

/// A stream that counts until it is dropped.
#[derive(Debug)]
struct Admitted {
    streams: Streams,
    number: u64,
    end: CancellationToken,
}

impl Streams {
    /// Admits a stream, and ends the oldest one of the session if it has too many. Returns none if
    /// the process has too many.
    fn admit(&self, session: Hash) -> Option<Admitted> {
        let mut open = lock(&self.0);
        let of_session = |stream: &Stream| stream.session == session;
        if open.streams.iter().filter(|stream| of_session(stream)).count() >= MAX_OF_SESSION
            && let Some(oldest) = open.streams.iter().position(of_session)
        {
            open.streams.remove(oldest).end.cancel();
        }
        if open.streams.len() >= MAX_STREAMS {
            return None;
        }
        open.last = open.last.wrapping_add(1);
        let (number, end) = (open.last, CancellationToken::new());
        open.streams.push(Stream { number, session, end: end.clone() });
        Some(Admitted { streams: self.clone(), number, end })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        lock(&self.streams.0).streams.retain(|stream| stream.number != self.number);
    }
}

/// What a stream sends.
#[derive(Clone, Debug)]
enum Content {
    Now(Shown),
    Problems,
}

/// Streams the page Now.
pub(super) async fn now(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
    Address(Query(shown)): Address<Query<Shown>>,
) -> Response {
    stream(console, visit, Content::Now(shown))
}

/// Streams the page Problems.
pub(super) async fn problems(
    State(console): State<Arc<Console>>,
    Extension(visit): Extension<Visit>,
) -> Response {
    stream(console, visit, Content::Problems)
}

/// A stream in progress.
struct Running {
    console: Arc<Console>,
    visit: Visit,
    content: Content,
    admitted: Admitted,
    until: Instant,
    /// The reading that was sent last.
    sent: Option<u64>,
    is_over: bool,
}

/// Returns a stream; without a session that may watch, or with too many streams, a response after
/// which a browser does not try again.
fn stream(console: Arc<Console>, visit: Visit, content: Content) -> Response {
    let session = visit.may(Action::Watch).then(|| visit.secret.hash());
    let Some(admitted) = session.and_then(|session| console.streams.admit(session)) else {
        return StatusCode::NO_CONTENT.into_response();
    };
    let until = Instant::now() + LIFETIME;
    let running = Running { console, visit, content, admitted, until, sent: None, is_over: false };
    let events = unfold(running, |mut running| async move {
        let event = running.next().await?;
        Some((Ok::<_, Infallible>(event), running))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    // A proxy of the operator must not collect the events.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    response
}

impl Running {
    /// Waits for the next event; none if the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.is_over || Instant::now() >= self.until {
                return None;
            }
            let has_session = self.console.sessions.peek(&self.visit.secret).is_some();
            if !has_session || self.admitted.end.is_cancelled() {
                self.is_over = true;
                return Some(Event::default().event("end").data("over"));
            }
            let reading = self.console.parts.monitor.readings();
            if self.sent != Some(reading) {
                self.sent = Some(reading);
                let html = self.fragment().into_string();
                return Some(Event::default().event("update").retry(RETRY).data(html));
            }
            sleep(INTERVAL).await;
        }
    }

    fn fragment(&mut self) -> Markup {
        self.visit.problems = self.console.parts.monitor.problem_count();
        let (console, visit) = (&self.console, &self.visit);
        html! {
            (count(visit.problems))
            @match &self.content {
                Content::Now(shown) => (super::now::fragment(console, visit, shown)),
                Content::Problems => (super::problems::fragment(console, visit)),
            }
        }
    }
}

/// Returns the line that says when the page was drawn, with what a script needs to update it.
pub(super) fn bar(visit: &Visit, at: Timestamp, stream: &str) -> Markup {
    let texts = texts(visit.language);
    html! {
        div.live data-stream=(stream) {
            p.hint {
                (updated(visit, at)) " "
                span data-says="live" hidden { (texts.live) }
                span data-says="paused" hidden { (texts.paused) }
                strong data-says="ended" hidden { (texts.ended) }
            }
            a href=(visit.here) { (texts.reload) }
            button.choice type="button" data-switch="pause" hidden { (texts.pause) }
            button.choice type="button" data-switch="resume" hidden { (texts.resume) }
        }
    }
}

/// Returns when the page was drawn.
pub(super) fn updated(visit: &Visit, at: Timestamp) -> Markup {
    html! { span data-live="updated" { (texts(visit.language).drawn) " " (time(at)) "." } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_a_session_and_of_the_process_are_bounded() {
        let streams = Streams::default();
        let mut of_one: Vec<_> = (0..5).map(|_| streams.admit([1; 32]).unwrap()).collect();
        let ended: Vec<_> = of_one.iter().map(|stream| stream.end.is_cancelled()).collect();
        assert_eq!(ended, [true, true, false, false, false], "the oldest ones end");
        let others: Vec<_> = (2..100).filter_map(|session| streams.admit([session; 32])).collect();
        assert_eq!(others.len(), MAX_STREAMS - MAX_OF_SESSION);
        // Somebody who has streams gets one in place of an own one.
        of_one.push(streams.admit([1; 32]).unwrap());
        assert_eq!(lock(&streams.0).streams.len(), MAX_STREAMS);
        drop((of_one, others));
        assert!(lock(&streams.0).streams.is_empty());
    }
}
