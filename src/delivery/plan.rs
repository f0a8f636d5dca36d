//! Plans the answer to a request for a file (RFC 9110 §13 and §14), without any I/O.
//!
//! `transfer` performs the plan. It asks [`Planner::plan`] what to request of the origin, and
//! [`Planner::judge`] what to send of its response. Both are functions of the request's fields, the
//! file's fields, and the rules for this reader.

use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::conditions::{self, Verdict};
use super::fields::{self, Kind};
use super::range::{self, Part, Parts, RequestedRanges};
use crate::origin::{ByteRange, MAX_LENGTH};
use crate::path::FilePath;
use crate::problem::Problem;

/// Why a 206 is not usable: [`part_of`] returns `None`.
pub(super) const OTHER_PART: &str = "it answered with another part than the requested one";

/// The rules by which one request is answered.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    headers: &'a HeaderMap,
    has_conditions: bool,
    ranges: RequestedRanges,
    max_ranges: usize,
    continuation: Option<Problem>,
}

/// Whether a plan depends on the file's fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum MetadataUse {
    /// The plan does not use them.
    Unused,
    /// They save a request to the origin if they are cached.
    IfCached,
    /// The plan needs them.
    Required,
}

/// What to request of the origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Plan {
    /// Nothing: the reader has the current file. Answer 304.
    NotModified,
    /// The whole file.
    Whole,
    /// One part of the file.
    Range(ByteRange),
    /// At least two parts, for a response in several parts (RFC 9110 §14.6).
    Parts(Vec<Part>),
}

/// What to do with the origin's response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Judgement {
    /// Send this part of its body.
    Send(Selection),
    /// The origin has another file now than the one that If-Range names. Request the whole file.
    RequestWhole,
}

/// The bytes of an origin's response to send, with the status and fields that describe them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Selection {
    /// The selected part; `None` for the whole file.
    part: Option<Part>,
    /// Bytes of the origin's body before the part.
    pub(super) skip: u64,
    /// The number of bytes to send; `None` if the origin announced no length.
    pub(super) length: Option<u64>,
    /// Whether the body has a content coding, so that its bytes are not those of the file.
    pub(super) is_encoded: bool,
}

/// Why a response of the origin is not sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    /// The answer to the reader.
    Problem(Problem),
    /// The same, since the file has changed. Cached fields of the file are outdated.
    Changed(Problem),
    /// The response is not usable, for this reason.
    Unusable(&'static str),
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Refusal {
        Refusal::Problem(problem)
    }
}

impl<'a> Planner<'a> {
    /// Creates the rules for a request with these fields. At most `max_ranges` parts are sent in
    /// one response.
    ///
    /// With `continuation`, the request may only continue a download. Only one part may be sent,
    /// not from the first byte, and the request's validators must match the file. The problem
    /// answers everything else.
    pub(super) fn new(
        headers: &'a HeaderMap,
        max_ranges: usize,
        continuation: Option<Problem>,
    ) -> Planner<'a> {
        Planner {
            headers,
            has_conditions: conditions::any(headers),
            ranges: RequestedRanges::of(headers),
            max_ranges,
            continuation,
        }
    }

    /// Plans the answer to HEAD: the status without a body. RFC 9110 §14.2 defines no ranges for
    /// HEAD.
    pub(super) fn plan_head(&self, file: &HeaderMap) -> Result<StatusCode, Problem> {
        match conditions::judge(self.headers, file) {
            Verdict::Proceed => Ok(StatusCode::OK),
            Verdict::NotModified => Ok(StatusCode::NOT_MODIFIED),
            Verdict::Failed => Err(self.precondition_failed()),
        }
    }

    /// Returns whether [`Planner::plan`] depends on the file's fields.
    pub(super) fn metadata_use(&self) -> MetadataUse {
        match &self.ranges {
            _ if self.has_conditions => MetadataUse::Required,
            RequestedRanges::Several(_) => MetadataUse::Required,
            RequestedRanges::One(range) if !selects_first_bytes(*range) => MetadataUse::IfCached,
            RequestedRanges::One(_) | RequestedRanges::Whole => MetadataUse::Unused,
        }
    }

    /// Plans the answer to GET. `file` has the file's fields, as far as [`Planner::metadata_use`]
    /// requires them.
    ///
    /// # Errors
    /// `precondition-failed`, `range-not-satisfiable`, or the problem of a continuation.
    pub(super) fn plan(&self, file: Option<&HeaderMap>) -> Result<Plan, Problem> {
        let mut ranges = &self.ranges;
        if let Some(file) = file.filter(|_| self.has_conditions) {
            match conditions::judge(self.headers, file) {
                Verdict::Proceed => {}
                Verdict::NotModified if self.continuation.is_none() => {
                    return Ok(Plan::NotModified);
                }
                Verdict::NotModified | Verdict::Failed => return Err(self.precondition_failed()),
            }
            if !self.range_applies(file) {
                ranges = &RequestedRanges::Whole;
            }
        }
        if self.continuation.is_some() && !matches!(ranges, RequestedRanges::One(_)) {
            return Err(self.precondition_failed());
        }
        let complete_length = file.and_then(length_of);
        match (ranges, complete_length) {
            (RequestedRanges::One(range), Some(complete_length)) => {
                // Such a range lies outside an empty file only; the origin's response decides.
                if selects_first_bytes(*range) || range.is_satisfiable(complete_length) {
                    Ok(Plan::Range(*range))
                } else {
                    Err(Problem::RangeNotSatisfiable { complete_length })
                }
            }
            (RequestedRanges::One(range), None) => Ok(Plan::Range(*range)),
            (RequestedRanges::Several(ranges), Some(complete_length)) => {
                self.plan_parts(ranges, complete_length)
            }
            (RequestedRanges::Whole, _) | (RequestedRanges::Several(_), None) => Ok(Plan::Whole),
        }
    }

    fn plan_parts(&self, ranges: &[ByteRange], complete_length: u64) -> Result<Plan, Problem> {
        match range::parts(ranges, complete_length, self.max_ranges) {
            Parts::These(parts) => Ok(match parts.as_slice() {
                [part] => Plan::Range(ByteRange::Between(part.first, part.last)),
                _ => Plan::Parts(parts),
            }),
            Parts::Whole => Ok(Plan::Whole),
            Parts::None => Err(Problem::RangeNotSatisfiable { complete_length }),
        }
    }

    /// Judges the conditions again, by the response that will be sent: the file may have changed
    /// since the plan.
    pub(super) fn recheck(&self, fields: &HeaderMap) -> Result<(), Refusal> {
        match conditions::judge(self.headers, fields) {
            Verdict::Failed => Err(Refusal::Changed(self.precondition_failed())),
            // A file that has changed since the plan is sent.
            Verdict::Proceed | Verdict::NotModified => Ok(()),
        }
    }

    /// Judges the origin's response to the requested range, or to a request for the whole file.
    pub(super) fn judge(
        &self,
        status: StatusCode,
        fields: &HeaderMap,
        range: Option<ByteRange>,
    ) -> Result<Judgement, Refusal> {
        self.recheck(fields)?;
        let range = range.filter(|_| self.range_applies(fields));
        if status == StatusCode::PARTIAL_CONTENT && range.is_none() {
            return Ok(Judgement::RequestWhole);
        }
        self.select(status, fields, range).map(Judgement::Send)
    }

    /// Returns whether ranges apply to the file of this response: If-Range is absent or names it.
    pub(super) fn range_applies(&self, fields: &HeaderMap) -> bool {
        conditions::range_applies(self.headers, fields)
    }

    /// Selects the bytes to send from a response that is a 200, or a 206 to `range`.
    pub(super) fn select(
        &self,
        status: StatusCode,
        fields: &HeaderMap,
        range: Option<ByteRange>,
    ) -> Result<Selection, Refusal> {
        let (length, is_encoded) = (length_of(fields), fields::is_encoded(fields));
        if length.is_none() && !fields::is_framed(fields) {
            return Err(Refusal::Unusable(
                "its response has no length, so a truncated body could look complete",
            ));
        }
        if range.is_some() && is_encoded {
            return Err(Refusal::Unusable(
                "it encoded a file of which a part was requested; the gate does not forward ranges \
                 of encoded bytes",
            ));
        }
        let (part, skip) = match (range, length) {
            (None, _) => (None, 0),
            (Some(range), _) if status == StatusCode::PARTIAL_CONTENT => {
                (Some(part_of(fields, range).ok_or(Refusal::Unusable(OTHER_PART))?), 0)
            }
            // The origin does not support ranges: extract the part here, if the length is known.
            (Some(range), Some(complete_length)) => match Part::of(range, complete_length) {
                Some(part) => (Some(part), part.first),
                None if range.is_satisfiable(complete_length) => (None, 0),
                None => return Err(Problem::RangeNotSatisfiable { complete_length }.into()),
            },
            (Some(_), None) => (None, 0),
        };
        if self.continuation.is_some() && part.is_none_or(|part| part.first == 0) {
            return Err(self.precondition_failed().into());
        }
        Ok(Selection { part, skip, length: part.map(Part::length).or(length), is_encoded })
    }

    fn precondition_failed(&self) -> Problem {
        self.continuation.clone().unwrap_or(Problem::PreconditionFailed)
    }
}

impl Selection {
    /// Returns the status of the response.
    pub(super) fn status(&self) -> StatusCode {
        if self.part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK }
    }

    /// Returns the first and the last byte of the file to send. The last one is `None` if it is not
    /// known, or if there is none.
    pub(super) fn bounds(&self) -> (u64, Option<u64>) {
        let first = self.part.map_or(0, |part| part.first);
        (first, self.length.and_then(|length| first.checked_add(length)?.checked_sub(1)))
    }

    /// Adds the fields of the response. `origin` has those of the origin's.
    pub(super) fn add_fields(
        &self,
        origin: HeaderMap,
        kind: Kind,
        path: &FilePath,
        to: &mut HeaderMap,
    ) {
        fields::pass(origin, kind, path, to);
        if let Some(length) = self.length {
            to.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        if let Some(field) = self.part.and_then(Part::field) {
            to.insert(CONTENT_RANGE, field);
        }
    }
}

/// Whether a range lies within every file but an empty one. These ranges are the most common ones.
fn selects_first_bytes(range: ByteRange) -> bool {
    matches!(range, ByteRange::From(0) | ByteRange::Between(0, _) | ByteRange::Last(1..))
}

/// Returns the part in a 206, if it is the requested one.
pub(super) fn part_of(fields: &HeaderMap, range: ByteRange) -> Option<Part> {
    let part = fields.get(CONTENT_RANGE).and_then(Part::read)?;
    let is_requested = Part::of(range, part.complete) == Some(part);
    let is_whole = length_of(fields).is_none_or(|length| length == part.length());
    (is_requested && is_whole).then_some(part)
}

/// Returns the length that a response announces.
pub(super) fn length_of(fields: &HeaderMap) -> Option<u64> {
    let length = fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    length.filter(|length| *length <= MAX_LENGTH)
}

#[cfg(test)]
mod tests;
