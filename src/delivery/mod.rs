//! The only door to the origins: it takes a permit or an open file, and nothing else.
//!
//! The dispatcher calls it. It asks the origin for the file, or the part of it, that the reader's fields mean
//! (RFC 9110 §13 and §14), and passes the body on without holding it: `range` reads Range, `conditions` judges
//! preconditions, `fields` is the allow-list, `body` counts what leaves and never lets a short body look whole, `resume`
//! goes on where an origin broke off, `watch` and `share` bound what one reader costs.

mod body;
mod conditions;
mod disposition;
mod fields;
mod flow;
mod kinds;
mod multipart;
mod range;
mod resume;
mod share;
mod watch;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use crate::catalog::{File, OpenFile};
use crate::gate::Permit;
use crate::metering::{Meter, Metered};
use crate::origin::{self, Ask, Asked, Origin};
use crate::path::FilePath;
use crate::problem::Problem;
use crate::telemetry::Metrics;

pub use body::{Body, BodyError, Delivered, End, OnEnd};
use conditions::Verdict;
use fields::Kind;
use flow::{Flow, Piece, Stretch};
use multipart::Several;
use range::{Part, Parts, Wanted};
use resume::Rest;
use share::{Share, Shares};
use watch::Watch;

/// How many files' fields are kept.
const KNOWN_FILES: u64 = 100_000;

/// The keys of `[delivery]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Settings {
    /// How many ranges one answer may have.
    pub max_ranges: usize,
    /// How long a reader may take nothing of what it has asked for.
    pub idle: Duration,
    /// How many bytes a second a reader must take; 0 is any.
    pub min_rate: u64,
    /// Over how long that is measured.
    pub min_rate_grace: Duration,
    /// How many streams a borrower may have at once; 0 is any.
    pub streams_per_borrower: usize,
    /// How many bytes a second a borrower may take, over all streams together; 0 is any.
    pub rate_per_borrower: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_ranges: 16,
            idle: Duration::from_secs(600),
            min_rate: 0,
            min_rate_grace: Duration::from_secs(60),
            streams_per_borrower: 0,
            rate_per_borrower: 0,
        }
    }
}

/// A stream may end at any moment.
const TOO_MANY_STREAMS: Problem =
    Problem::TooManyRequests { reason: "streams", retry_after: Duration::from_secs(2) };

/// What opens a file.
#[derive(Debug)]
pub enum Pass {
    /// A title's file, under a loan.
    Loan(Permit, File),
    /// A title's file, under a loan, of which no more may leave than one part that does not start with its first byte,
    /// and that only where the request's validators say that the reader has begun this very file.
    Rest(Permit, File),
    /// A file of an open route.
    Open(OpenFile),
}

/// The way from the origins to the readers; one worker's.
#[derive(Clone, Debug)]
pub struct Delivery {
    origins: Vec<Arc<Origin>>,
    known: Vec<Known>,
    settings: Settings,
    watch: Watch,
    shares: Shares,
    meter: Meter,
    metrics: Metrics,
}

/// The fields of an origin's files, as its answers to HEAD gave them.
type Known = Cache<FilePath, Arc<HeaderMap>>;

/// Where a body goes: by which permit, on which connection, and who is told of its end.
struct Towards<'a> {
    permit: Option<Permit>,
    /// Where it is counted; nowhere for an open file.
    metered: Option<Metered>,
    connection: &'a CancellationToken,
    on_end: OnEnd,
    metrics: &'a Metrics,
    watch: &'a Watch,
    share: Option<Share>,
}

/// A request for a file, and what is known of it.
struct Request<'a> {
    origin: &'a Arc<Origin>,
    known: &'a Known,
    path: &'a FilePath,
    kind: Kind,
    headers: &'a HeaderMap,
    max_ranges: usize,
    /// [`Pass::Rest`]: what would be answered otherwise is a failed precondition.
    only_rest: bool,
}

impl Delivery {
    /// The way to these origins; what is delivered under loans is counted by this meter.
    ///
    /// # Errors
    /// For the first that cannot be used.
    pub fn new(
        settings: Settings,
        origins: &[origin::Settings],
        meter: Meter,
        metrics: Metrics,
    ) -> Result<Delivery, origin::SetUpError> {
        let built: Result<Vec<Arc<Origin>>, _> =
            origins.iter().map(|settings| Origin::new(settings, metrics.clone()).map(Arc::new)).collect();
        let known = origins.iter().map(|settings| known(settings.metadata_ttl)).collect();
        let (watch, shares) = (Watch::new(settings), Shares::new(&settings));
        Ok(Delivery { origins: built?, known, settings, watch, shares, meter, metrics })
    }

    /// The same, with connections of its own; what is known of files is shared.
    ///
    /// # Errors
    /// As [`Delivery::new`].
    pub fn for_worker(&self) -> Result<Delivery, origin::SetUpError> {
        let origins: Result<Vec<Arc<Origin>>, _> =
            self.origins.iter().map(|origin| origin.for_worker().map(Arc::new)).collect();
        Ok(Delivery { origins: origins?, meter: self.meter.for_worker(), ..self.clone() })
    }

    /// Cuts readers who take too little, for as long as anything is delivered; a task of its own.
    pub fn watch_readers(&self) -> impl Future<Output = ()> + Send + use<> {
        self.watch.clone().look()
    }

    /// The response to a GET or HEAD. `connection` is what is cut where the loan ends and the reader takes nothing, so that
    /// the body cannot notice it. `on_end` is told how the body ended, and is not called where there is a
    /// problem in place of a response.
    ///
    /// # Errors
    /// [`Problem`]: `title-not-found`, `precondition-failed`, `range-not-satisfiable`, `origin-failed`,
    /// `origin-timeout`, `too-many-requests`.
    pub async fn deliver(
        &self,
        pass: Pass,
        method: &Method,
        headers: &HeaderMap,
        connection: &CancellationToken,
        on_end: OnEnd,
    ) -> Result<Response<Body>, Problem> {
        let only_rest = matches!(pass, Pass::Rest(..));
        let (permit, file) = match pass {
            Pass::Loan(permit, file) | Pass::Rest(permit, file) => (Some(permit), file),
            Pass::Open(open) => (None, open.into_file()),
        };
        let kind = if permit.is_some() { Kind::Gated } else { Kind::Open };
        let (Some(origin), Some(known)) = (self.origins.get(file.origin), self.known.get(file.origin)) else {
            return Err(Problem::TitleNotFound);
        };
        let max_ranges = self.settings.max_ranges;
        let request = Request { origin, known, path: &file.path, kind, headers, max_ranges, only_rest };
        let mut response = if method == Method::HEAD {
            request.head(on_end).await?
        } else {
            let share = permit.as_ref().map_or(Some(None), |permit| self.shares.take(permit.key()));
            let share = share.ok_or(TOO_MANY_STREAMS)?;
            let metered = permit.as_ref().map(|permit| self.meter.of(permit.loan(), file.name.clone()));
            let (metrics, watch) = (&self.metrics, &self.watch);
            let to = Towards { permit, metered, connection, on_end, metrics, watch, share };
            request.get(to).await?
        };
        let named = file.disposition.and_then(|disposition| disposition::field(disposition, &file.path));
        if let Some(named) = named {
            response.headers_mut().insert(CONTENT_DISPOSITION, named);
        }
        Ok(response)
    }
}

fn known(believed: Duration) -> Known {
    Cache::builder().max_capacity(KNOWN_FILES).time_to_live(believed).build()
}

impl Towards<'_> {
    /// Begins the stream, unless the loan has ended while the origin was asked.
    fn open(mut self, status: StatusCode) -> Result<body::Told, Problem> {
        if self.permit.as_mut().is_some_and(|permit| !permit.begin_stream(self.connection)) {
            return Err(Problem::LoanEnded);
        }
        let (on_end, permit, metered, metrics) =
            (self.on_end, self.permit, self.metered, self.metrics.clone());
        let reader = body::Reader {
            connection: self.connection.clone(),
            watch: self.watch.clone(),
            share: self.share,
        };
        Ok(body::Told { on_end, status, metrics, permit, metered, reader })
    }
}

impl Request<'_> {
    /// HEAD: as GET without its body; RFC 9110 §14.2 has no ranges for it.
    async fn head(&self, on_end: OnEnd) -> Result<Response<Body>, Problem> {
        let file = self.file().await?;
        let status = match conditions::judge(self.headers, &file) {
            Verdict::Proceed => StatusCode::OK,
            Verdict::NotModified => StatusCode::NOT_MODIFIED,
            Verdict::Failed => return Err(Problem::PreconditionFailed),
        };
        Ok(self.bodiless(status, &file, on_end))
    }

    async fn get(&self, to: Towards<'_>) -> Result<Response<Body>, Problem> {
        let mut wanted = Wanted::of(self.headers);
        // What the reader says about the file it has can only be judged with the file's fields at hand.
        if conditions::any(self.headers) {
            let file = self.file().await?;
            match conditions::judge(self.headers, &file) {
                Verdict::Proceed => {}
                Verdict::NotModified if self.only_rest => return Err(Problem::PreconditionFailed),
                Verdict::NotModified => return Ok(self.bodiless(StatusCode::NOT_MODIFIED, &file, to.on_end)),
                Verdict::Failed => return Err(Problem::PreconditionFailed),
            }
            if !conditions::range_applies(self.headers, &file) {
                wanted = Wanted::Whole;
            }
        }
        if self.only_rest && !matches!(wanted, Wanted::One(_)) {
            return Err(Problem::PreconditionFailed);
        }
        let asked = match wanted {
            Wanted::Whole => None,
            Wanted::One(asked) => Some(asked),
            Wanted::Several(ranges) => match self.parts(&ranges).await? {
                Some(parts) if parts.len() > 1 => return self.several(&parts, to).await,
                parts => {
                    parts.and_then(|parts| parts.first().map(|part| Asked::Between(part.first, part.last)))
                }
            },
        };
        let answer = match (self.ask_judged(asked).await, asked) {
            // All of an empty file: there is no part that a 206 could tell of.
            (Err(Problem::RangeNotSatisfiable { complete_length }), Some(asked))
                if asked.is_satisfiable(complete_length) =>
            {
                let whole = self.ask(None).await?;
                return self.stream(whole, None, to);
            }
            (answer, _) => answer?,
        };
        let ranged = asked.is_some() && conditions::range_applies(self.headers, answer.headers());
        if answer.status() == StatusCode::PARTIAL_CONTENT && !ranged {
            // The part of a file that is no longer the one that If-Range means.
            self.known.invalidate(self.path);
            let whole = self.ask(None).await?;
            return self.stream(whole, None, to);
        }
        self.stream(answer, asked.filter(|_| ranged), to)
    }

    /// As [`Request::ask`], with the reader's conditions judged by what comes: the file may have changed since they were.
    async fn ask_judged(&self, asked: Option<Asked>) -> Result<Response<origin::Body>, Problem> {
        let answer = self.ask(asked).await?;
        match conditions::judge(self.headers, answer.headers()) {
            Verdict::Failed => {
                self.known.invalidate(self.path);
                Err(Problem::PreconditionFailed)
            }
            // It was judged otherwise a moment ago: the reader gets the new one.
            Verdict::Proceed | Verdict::NotModified => Ok(answer),
        }
    }

    /// The answer to a GET: 200 or 206, checked to be what was asked.
    async fn ask(&self, asked: Option<Asked>) -> Result<Response<origin::Body>, Problem> {
        let answer = self.fetch(&Ask::get(asked)).await?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::PARTIAL_CONTENT if asked.is_some() => Ok(answer),
            StatusCode::RANGE_NOT_SATISFIABLE if asked.is_some() => Err(self.not_satisfiable(&answer).await),
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.failed(&unexpected(status))),
        }
    }

    /// A 416 tells the file's length, which not every origin says with it.
    async fn not_satisfiable(&self, answer: &Response<origin::Body>) -> Problem {
        let told = answer.headers().get(CONTENT_RANGE).and_then(|field| field.to_str().ok());
        let told = told.and_then(|field| field.strip_prefix("bytes */")?.parse().ok());
        let length = match told {
            Some(length) => Some(length),
            None => match self.file().await {
                Ok(file) => length_of(&file),
                Err(problem) => return problem,
            },
        };
        match length {
            Some(complete_length) => Problem::RangeNotSatisfiable { complete_length },
            None => self.failed("it does not tell the length of a file"),
        }
    }

    fn stream(
        &self,
        answer: Response<origin::Body>,
        asked: Option<Asked>,
        to: Towards<'_>,
    ) -> Result<Response<Body>, Problem> {
        let (head, incoming) = answer.into_parts();
        let length = length_of(&head.headers);
        if length.is_none() && !fields::is_framed(&head.headers) {
            return Err(
                self.failed("its answer has no length, so that its end could not be told from a break")
            );
        }
        if asked.is_some() && fields::is_encoded(&head.headers) {
            return Err(self.failed(
                "it packed a file of which a part was asked: the part would be of the packed bytes",
            ));
        }
        let (part, skip) = match (head.status, asked) {
            (StatusCode::PARTIAL_CONTENT, Some(asked)) => (Some(self.checked(&head.headers, asked)?), 0),
            // The origin has no ranges: the part is cut out here, where the length is known.
            (_, Some(asked)) => match length {
                Some(complete_length) => match Part::of(asked, complete_length) {
                    Some(part) => (Some(part), part.first),
                    None if asked.is_satisfiable(complete_length) => (None, 0),
                    None => return Err(Problem::RangeNotSatisfiable { complete_length }),
                },
                None => (None, 0),
            },
            (_, None) => (None, 0),
        };
        // Looked at here, where it is certain what leaves: the file may have changed since it was judged.
        if self.only_rest && part.is_none_or(|part| part.first == 0) {
            return Err(Problem::PreconditionFailed);
        }
        let status = if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let take = part.map(Part::length).or(length);
        let mut told = to.open(status)?;
        if fields::is_encoded(&head.headers) {
            told.metered.iter_mut().for_each(Metered::without_places);
        }
        let first = part.map_or(0, |part| part.first);
        let last = take.and_then(|take| (first + take).checked_sub(1));
        let rest = Rest::of(self.origin, self.path, &told.metrics, &head.headers, (first, last));
        let stretch = Stretch::coming(incoming, skip, (first, take), self.origin.settings().idle, rest);
        let flow = Flow::of([Piece::File(stretch)]);
        let mut response = Response::new(body::measured(flow, take, told));
        *response.status_mut() = status;
        let fields = response.headers_mut();
        fields::pass(&head.headers, self.kind, self.path, fields);
        if let Some(take) = take {
            fields.insert(CONTENT_LENGTH, HeaderValue::from(take));
        }
        if let Some(field) = part.and_then(Part::field) {
            fields.insert(CONTENT_RANGE, field);
        }
        Ok(response)
    }

    /// What several ranges come to; none where the whole file is answered.
    async fn parts(&self, ranges: &[Asked]) -> Result<Option<Vec<Part>>, Problem> {
        let file = self.file().await?;
        let Some(complete_length) = length_of(&file) else { return Ok(None) };
        match range::parts(ranges, complete_length, self.max_ranges) {
            Parts::These(parts) => Ok(Some(parts)),
            Parts::Whole => Ok(None),
            Parts::None => Err(Problem::RangeNotSatisfiable { complete_length }),
        }
    }

    /// Several parts in one answer (RFC 9110 §14.6), put together here, since hardly any storage does it. Only of a file of
    /// which a strong entity tag says that all parts are of it; another is answered whole.
    async fn several(&self, parts: &[Part], to: Towards<'_>) -> Result<Response<Body>, Problem> {
        let Some(first) = parts.first() else { return Err(self.failed("no part was asked for")) };
        let asked = Asked::Between(first.first, first.last);
        let answer = self.ask_judged(Some(asked)).await?;
        if answer.status() == StatusCode::OK {
            return self.stream(answer, None, to);
        }
        let bounds = (first.first, Some(first.last));
        let rest = Rest::of(self.origin, self.path, to.metrics, answer.headers(), bounds);
        let rest = rest.filter(|_| conditions::range_applies(self.headers, answer.headers()));
        let is_part = self.checked(answer.headers(), asked).is_ok_and(|part| part == *first);
        let (Some(rest), true) = (rest, is_part) else {
            self.known.invalidate(self.path);
            drop(answer);
            let whole = self.ask(None).await?;
            return self.stream(whole, None, to);
        };
        let status = StatusCode::PARTIAL_CONTENT;
        let told = to.open(status)?;
        let (head, incoming) = answer.into_parts();
        let mut response = Response::new(body::empty());
        *response.status_mut() = status;
        fields::pass(&head.headers, self.kind, self.path, response.headers_mut());
        let several = Several::new(response.headers().get(CONTENT_TYPE));
        let idle = self.origin.settings().idle;
        let mut incoming = Some(incoming);
        let mut pieces = Vec::with_capacity(2 * parts.len() + 1);
        for part in parts {
            pieces.push(Piece::Text(several.before(*part)));
            let rest = rest.of_part(*part);
            pieces.push(Piece::File(match incoming.take() {
                Some(incoming) => {
                    Stretch::coming(incoming, 0, (part.first, Some(part.length())), idle, Some(rest))
                }
                None => Stretch::to_ask_for(rest, *part, idle),
            }));
        }
        pieces.push(Piece::Text(several.end()));
        let texts =
            pieces.iter().map(|piece| if let Piece::Text(text) = piece { text.len() as u64 } else { 0 });
        let take = texts.sum::<u64>() + parts.iter().map(|part| part.length()).sum::<u64>();
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, several.kind());
        fields.insert(CONTENT_LENGTH, HeaderValue::from(take));
        *response.body_mut() = body::measured(Flow::of(pieces), Some(take), told);
        Ok(response)
    }

    /// The part that a 206 brings, which must be the one that was asked for.
    fn checked(&self, answer: &HeaderMap, asked: Asked) -> Result<Part, Problem> {
        let part = answer.get(CONTENT_RANGE).and_then(Part::read);
        let part = part.filter(|part| Part::of(asked, part.complete) == Some(*part));
        match part {
            Some(part) if length_of(answer).is_none_or(|length| length == part.length()) => Ok(part),
            _ => Err(self.failed("it answered with another part than it was asked for")),
        }
    }

    fn bodiless(&self, status: StatusCode, file: &HeaderMap, on_end: OnEnd) -> Response<Body> {
        let mut response = Response::new(body::empty());
        *response.status_mut() = status;
        fields::pass(file, self.kind, self.path, response.headers_mut());
        if let Some(length) = length_of(file).filter(|_| status == StatusCode::OK) {
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        on_end(Delivered { bytes: 0, end: End::Complete, status, opened: Instant::now(), resumes: 0 });
        response
    }

    /// The file's fields, as known or as the origin answers HEAD.
    async fn file(&self) -> Result<Arc<HeaderMap>, Problem> {
        if let Some(file) = self.known.get(self.path) {
            return Ok(file);
        }
        let answer = self.fetch(&Ask::head()).await?;
        match answer.status() {
            StatusCode::OK => {
                let file = Arc::new(answer.into_parts().0.headers);
                self.known.insert(self.path.clone(), file.clone());
                Ok(file)
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Err(Problem::TitleNotFound),
            status => Err(self.failed(&unexpected(status))),
        }
    }

    /// Asks the origin, and again where it answers that something is wrong with itself: mostly that is over in a moment.
    async fn fetch(&self, ask: &Ask) -> Result<Response<origin::Body>, Problem> {
        let mut vain = 0;
        loop {
            let answer = self.origin.fetch(self.path, ask).await?;
            if !answer.status().is_server_error() || vain == self.origin.settings().resumes {
                return Ok(answer);
            }
            tokio::time::sleep(resume::wait(vain)).await;
            vain += 1;
        }
    }

    fn failed(&self, why: &str) -> Problem {
        tracing::warn!(origin = self.origin.settings().name, why, "an origin's answer cannot be passed on");
        Problem::OriginFailed
    }
}

/// What an origin answers that gives no file, in words for whoever runs the gate.
fn unexpected(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => format!(
            "it answered {status}: it does not know our credentials, or they do not open this file. \
             Look at the keys in [[origins]], and at what they may read"
        ),
        status => format!("it answered {status}"),
    }
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
