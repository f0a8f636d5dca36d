//! The problems that a reader's request can end with, as problem documents (RFC 9457).
//!
//! Each module that handles a request converts its errors to a [`Problem`]; only `server`
//! serializes it. A problem contains no borrower, origin, key or token. Its sentences are fixed,
//! and its only variable text is Bokbasen's refusal code. The module depends only on `language`.
//! [`ProblemType`] has what does not depend on the request; `docs/problems.md` is generated from
//! it.

mod guidance;
mod problem_type;
mod sentences;

use std::time::Duration;

use http::StatusCode;
use serde::Serialize;
use utoipa::{ToResponse, ToSchema};

use crate::language::Sentence;
pub use guidance::Guidance;
pub use problem_type::{ProblemType, RetryAfter};
pub use sentences::refusal_sentence;

/// Why a request is refused.
///
/// ```
/// use std::time::Duration;
///
/// use loangate::problem::Problem;
///
/// let problem = Problem::LoanRefused {
///     reason: "NO_FREE_LICENSE".into(),
///     retry_after: Some(Duration::from_millis(59_001)),
/// };
/// assert_eq!(problem.status(), 403);
/// assert_eq!(problem.retry_after(), Some(60)); // rounded up to whole seconds
///
/// // Apps match the slug; the sentence is for people.
/// let document = serde_json::to_value(problem.document()).unwrap();
/// assert_eq!(document["type"], "loan-refused");
/// assert_eq!(document["reason"], "NO_FREE_LICENSE");
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// The request is malformed. The sentence describes what is wrong.
    RequestMalformed(&'static Sentence),
    /// The request has no valid credential. The sentence describes why.
    ReaderUnauthenticated(&'static Sentence),
    /// Bokbasen or a rule of the gate refused the loan.
    LoanRefused {
        /// Bokbasen's code, unchanged, or the slug of the gate's rule.
        reason: String,
        /// How long to wait before requesting the loan again, if a time is known.
        retry_after: Option<Duration>,
    },
    /// A loan of this title has ended, and the credential was issued before its end (invariant 7).
    LoanEnded,
    /// No route has this path, or the file does not exist.
    TitleNotFound,
    /// The reader has never had a loan of this title.
    LoanNotFound,
    /// The method is not supported here. The text lists the supported ones, as for Allow.
    MethodNotAllowed(&'static str),
    /// A precondition of the request (RFC 9110 §13) is false.
    PreconditionFailed,
    /// No requested range overlaps the representation.
    RangeNotSatisfiable {
        /// The representation's length in bytes.
        complete_length: u64,
    },
    /// The request names an authority that this gate does not serve.
    MisdirectedRequest,
    /// The client has reached a limit on requests or loans.
    TooManyRequests {
        /// The name of the limit, such as `brake`.
        reason: &'static str,
        /// How long to wait before the next attempt.
        retry_after: Duration,
    },
    /// The origin failed, or its response cannot be forwarded.
    OriginFailed {
        /// How long to wait, if the origin or its circuit breaker gives a time.
        retry_after: Option<Duration>,
    },
    /// The origin did not respond in time.
    OriginTimeout,
    /// Bokbasen cannot be reached, or its response is not usable.
    LendingUnavailable {
        /// How long to wait before the next attempt.
        retry_after: Duration,
    },
    /// An operator has paused lending of the library.
    LendingPaused,
    /// The ledger cannot be read or written.
    LedgerUnavailable,
    /// The gate has no key of the login service to verify the token with.
    LoginUnavailable {
        /// How long to wait before the next attempt.
        retry_after: Duration,
    },
    /// Bokbasen has not decided about the loan yet.
    LoanPending {
        /// How long to wait before the next attempt.
        retry_after: Duration,
    },
    /// The gate is overloaded, or is stopping.
    Overloaded,
}

/// A problem document (RFC 9457 §3), with the extension members that some problems add.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document<'a> {
    /// The stable slug of the problem.
    #[serde(rename = "type")]
    #[schema(example = "loan-refused")]
    pub kind: &'static str,
    /// The slug in words.
    pub title: &'static str,
    /// The HTTP status of the response.
    pub status: u16,
    /// What failed, and what to do.
    pub detail: &'a str,
    /// The URI of the request, by its id; support finds the request by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false,
        example = "urn:uuid:f81d4fae-7dec-41d0-a765-00a0c91e6bf6")]
    pub instance: Option<String>,
    /// The code of the refusal, or the name of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub reason: Option<&'a str>,
    /// How many seconds to wait before the next attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    pub retry_after: Option<u64>,
}

/// A refusal in the OpenAPI description of the APIs.
#[derive(Debug, ToResponse)]
#[response(
    description = "A refusal; its `type` identifies the problem",
    content_type = "application/problem+json"
)]
pub struct Refused(#[allow(dead_code)] Document<'static>);

impl Problem {
    /// Returns the type of the problem.
    pub fn problem_type(&self) -> ProblemType {
        match self {
            Problem::RequestMalformed(_) => ProblemType::RequestMalformed,
            Problem::ReaderUnauthenticated(_) => ProblemType::ReaderUnauthenticated,
            Problem::LoanRefused { .. } => ProblemType::LoanRefused,
            Problem::LoanEnded => ProblemType::LoanEnded,
            Problem::TitleNotFound => ProblemType::TitleNotFound,
            Problem::LoanNotFound => ProblemType::LoanNotFound,
            Problem::MethodNotAllowed(_) => ProblemType::MethodNotAllowed,
            Problem::PreconditionFailed => ProblemType::PreconditionFailed,
            Problem::RangeNotSatisfiable { .. } => ProblemType::RangeNotSatisfiable,
            Problem::MisdirectedRequest => ProblemType::MisdirectedRequest,
            Problem::TooManyRequests { .. } => ProblemType::TooManyRequests,
            Problem::OriginFailed { .. } => ProblemType::OriginFailed,
            Problem::OriginTimeout => ProblemType::OriginTimeout,
            Problem::LoanPending { .. } => ProblemType::LoanPending,
            Problem::LendingUnavailable { .. } => ProblemType::LendingUnavailable,
            Problem::LendingPaused => ProblemType::LendingPaused,
            Problem::LedgerUnavailable => ProblemType::LedgerUnavailable,
            Problem::LoginUnavailable { .. } => ProblemType::LoginUnavailable,
            Problem::Overloaded => ProblemType::Overloaded,
        }
    }

    /// Returns the HTTP status of the response.
    pub fn status(&self) -> StatusCode {
        self.problem_type().status()
    }

    /// Returns the stable slug: the document's `type`, and the `outcome` of logs and metrics.
    pub fn slug(&self) -> &'static str {
        self.problem_type().slug()
    }

    /// Returns the value of Retry-After, in whole seconds and at least one; none for a problem that
    /// waiting does not solve.
    pub fn retry_after(&self) -> Option<u64> {
        let wait = match self {
            Problem::LoanRefused { retry_after, .. } | Problem::OriginFailed { retry_after } => {
                (*retry_after)?
            }
            Problem::TooManyRequests { retry_after, .. }
            | Problem::LendingUnavailable { retry_after }
            | Problem::LoginUnavailable { retry_after }
            | Problem::LoanPending { retry_after } => *retry_after,
            Problem::LendingPaused => Duration::from_secs(60),
            Problem::LedgerUnavailable | Problem::Overloaded => Duration::from_secs(5),
            Problem::RequestMalformed(_)
            | Problem::ReaderUnauthenticated(_)
            | Problem::LoanEnded
            | Problem::TitleNotFound
            | Problem::LoanNotFound
            | Problem::MethodNotAllowed(_)
            | Problem::PreconditionFailed
            | Problem::RangeNotSatisfiable { .. }
            | Problem::MisdirectedRequest
            | Problem::OriginTimeout => return None,
        };
        Some(wait.as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX))
    }

    /// Returns the problem document to send.
    pub fn document(&self) -> Document<'_> {
        let problem_type = self.problem_type();
        Document {
            kind: problem_type.slug(),
            title: problem_type.title(),
            status: problem_type.status().as_u16(),
            detail: self.sentence().english,
            instance: None,
            reason: match self {
                Problem::LoanRefused { reason, .. } => Some(reason),
                Problem::TooManyRequests { reason, .. } => Some(reason),
                _ => None,
            },
            retry_after: self.retry_after(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn document_has_slug_sentence_and_retry_after() {
        let problem = Problem::LoanRefused {
            reason: "NO_FREE_LICENSE".into(),
            retry_after: Some(Duration::from_millis(1500)),
        };
        let json = serde_json::to_value(problem.document()).unwrap();
        assert_eq!(json["type"], "loan-refused");
        assert_eq!(json["status"], 403);
        assert_eq!(json["reason"], "NO_FREE_LICENSE");
        assert_eq!(json["retry_after"], 2);
        assert!(json["detail"].as_str().unwrap().contains("on loan"));
    }

    const EMPTY: Sentence = Sentence { english: "", norwegian: "" };

    /// One problem of each type, without a wait where that is possible.
    fn examples() -> [Problem; 19] {
        let retry_after = Duration::from_secs(1);
        [
            Problem::RequestMalformed(&EMPTY),
            Problem::ReaderUnauthenticated(&EMPTY),
            Problem::LoanRefused { reason: String::new(), retry_after: None },
            Problem::LoanEnded,
            Problem::TitleNotFound,
            Problem::LoanNotFound,
            Problem::MethodNotAllowed("GET"),
            Problem::PreconditionFailed,
            Problem::RangeNotSatisfiable { complete_length: 1 },
            Problem::MisdirectedRequest,
            Problem::TooManyRequests { reason: "brake", retry_after },
            Problem::OriginFailed { retry_after: None },
            Problem::OriginTimeout,
            Problem::LoanPending { retry_after },
            Problem::LendingUnavailable { retry_after },
            Problem::LendingPaused,
            Problem::LedgerUnavailable,
            Problem::LoginUnavailable { retry_after },
            Problem::Overloaded,
        ]
    }

    #[test]
    fn retry_after_is_sent_as_the_type_says() {
        let types = examples().map(|problem| problem.problem_type());
        assert_eq!(types, ProblemType::ALL);
        for problem in examples() {
            let is_always = problem.problem_type().retry_after() == RetryAfter::Always;
            assert_eq!(problem.retry_after().is_some(), is_always, "{problem:?}");
        }
        let wait = Some(Duration::from_secs(1));
        let refused = Problem::LoanRefused { reason: String::new(), retry_after: wait };
        for problem in [refused, Problem::OriginFailed { retry_after: wait }] {
            assert_eq!(problem.problem_type().retry_after(), RetryAfter::IfKnown);
            assert_eq!(problem.retry_after(), Some(1), "{problem:?}");
        }
    }

    #[test]
    fn retry_after_is_never_zero() {
        let problem = Problem::LoanPending { retry_after: Duration::ZERO };
        assert_eq!(problem.retry_after(), Some(1));
    }
}
