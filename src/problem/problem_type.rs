//! The types of problems: the part of a problem that does not depend on the request.

use http::StatusCode;

/// The type of a [`Problem`](super::Problem): its slug, title and status.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ProblemType {
    /// The request is malformed.
    RequestMalformed,
    /// The request has no valid credential.
    ReaderUnauthenticated,
    /// Bokbasen or a rule of the gate refused the loan.
    LoanRefused,
    /// A loan of the title has ended, and the credential is older than its end.
    LoanEnded,
    /// No route has the path, or the file does not exist.
    TitleNotFound,
    /// The reader has never had a loan of the title.
    LoanNotFound,
    /// The method is not supported at the path.
    MethodNotAllowed,
    /// A precondition of the request is false.
    PreconditionFailed,
    /// No requested range overlaps the file.
    RangeNotSatisfiable,
    /// The request names an authority that this gate does not serve.
    MisdirectedRequest,
    /// The client has reached a limit on requests or loans.
    TooManyRequests,
    /// The origin failed, or its response cannot be forwarded.
    OriginFailed,
    /// The origin did not respond in time.
    OriginTimeout,
    /// Bokbasen has not decided about the loan yet.
    LoanPending,
    /// Bokbasen cannot be reached, or its response is not usable.
    LendingUnavailable,
    /// An operator has paused lending.
    LendingPaused,
    /// The ledger cannot be read or written.
    LedgerUnavailable,
    /// The gate has no key of the login service to verify the token with.
    LoginUnavailable,
    /// The gate is overloaded, or is stopping.
    Overloaded,
}

/// Whether a problem of a type has the field Retry-After.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryAfter {
    /// Every problem of the type has it.
    Always,
    /// A problem has it if a time is known.
    IfKnown,
    /// No problem of the type has it.
    Never,
}

impl ProblemType {
    /// Every type, by status.
    pub const ALL: [ProblemType; 19] = [
        ProblemType::RequestMalformed,
        ProblemType::ReaderUnauthenticated,
        ProblemType::LoanRefused,
        ProblemType::LoanEnded,
        ProblemType::TitleNotFound,
        ProblemType::LoanNotFound,
        ProblemType::MethodNotAllowed,
        ProblemType::PreconditionFailed,
        ProblemType::RangeNotSatisfiable,
        ProblemType::MisdirectedRequest,
        ProblemType::TooManyRequests,
        ProblemType::OriginFailed,
        ProblemType::OriginTimeout,
        ProblemType::LoanPending,
        ProblemType::LendingUnavailable,
        ProblemType::LendingPaused,
        ProblemType::LedgerUnavailable,
        ProblemType::LoginUnavailable,
        ProblemType::Overloaded,
    ];

    /// The stable slug: the document's `type`, and the `outcome` of logs and metrics.
    pub fn slug(self) -> &'static str {
        match self {
            ProblemType::RequestMalformed => "request-malformed",
            ProblemType::ReaderUnauthenticated => "reader-unauthenticated",
            ProblemType::LoanRefused => "loan-refused",
            ProblemType::LoanEnded => "loan-ended",
            ProblemType::TitleNotFound => "title-not-found",
            ProblemType::LoanNotFound => "loan-not-found",
            ProblemType::MethodNotAllowed => "method-not-allowed",
            ProblemType::PreconditionFailed => "precondition-failed",
            ProblemType::RangeNotSatisfiable => "range-not-satisfiable",
            ProblemType::MisdirectedRequest => "misdirected-request",
            ProblemType::TooManyRequests => "too-many-requests",
            ProblemType::OriginFailed => "origin-failed",
            ProblemType::OriginTimeout => "origin-timeout",
            ProblemType::LoanPending => "loan-pending",
            ProblemType::LendingUnavailable => "lending-unavailable",
            ProblemType::LendingPaused => "lending-paused",
            ProblemType::LedgerUnavailable => "ledger-unavailable",
            ProblemType::LoginUnavailable => "login-unavailable",
            ProblemType::Overloaded => "overloaded",
        }
    }

    /// The slug in words: the document's `title`.
    pub fn title(self) -> &'static str {
        match self {
            ProblemType::RequestMalformed => "Request malformed",
            ProblemType::ReaderUnauthenticated => "Reader unauthenticated",
            ProblemType::LoanRefused => "Loan refused",
            ProblemType::LoanEnded => "Loan ended",
            ProblemType::TitleNotFound => "Title not found",
            ProblemType::LoanNotFound => "Loan not found",
            ProblemType::MethodNotAllowed => "Method not allowed",
            ProblemType::PreconditionFailed => "Precondition failed",
            ProblemType::RangeNotSatisfiable => "Range not satisfiable",
            ProblemType::MisdirectedRequest => "Misdirected request",
            ProblemType::TooManyRequests => "Too many requests",
            ProblemType::OriginFailed => "Origin failed",
            ProblemType::OriginTimeout => "Origin timeout",
            ProblemType::LoanPending => "Loan pending",
            ProblemType::LendingUnavailable => "Lending unavailable",
            ProblemType::LendingPaused => "Lending paused",
            ProblemType::LedgerUnavailable => "Ledger unavailable",
            ProblemType::LoginUnavailable => "Login unavailable",
            ProblemType::Overloaded => "Overloaded",
        }
    }

    /// The HTTP status of the response.
    pub fn status(self) -> StatusCode {
        match self {
            ProblemType::RequestMalformed => StatusCode::BAD_REQUEST,
            ProblemType::ReaderUnauthenticated => StatusCode::UNAUTHORIZED,
            ProblemType::LoanRefused | ProblemType::LoanEnded => StatusCode::FORBIDDEN,
            ProblemType::TitleNotFound | ProblemType::LoanNotFound => StatusCode::NOT_FOUND,
            ProblemType::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ProblemType::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            ProblemType::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            ProblemType::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
            ProblemType::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            ProblemType::OriginFailed => StatusCode::BAD_GATEWAY,
            ProblemType::OriginTimeout => StatusCode::GATEWAY_TIMEOUT,
            ProblemType::LoanPending
            | ProblemType::LendingUnavailable
            | ProblemType::LendingPaused
            | ProblemType::LedgerUnavailable
            | ProblemType::LoginUnavailable
            | ProblemType::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether the response has the field Retry-After.
    pub fn retry_after(self) -> RetryAfter {
        match self {
            ProblemType::TooManyRequests
            | ProblemType::LoanPending
            | ProblemType::LendingUnavailable
            | ProblemType::LendingPaused
            | ProblemType::LedgerUnavailable
            | ProblemType::LoginUnavailable
            | ProblemType::Overloaded => RetryAfter::Always,
            ProblemType::LoanRefused | ProblemType::OriginFailed => RetryAfter::IfKnown,
            ProblemType::RequestMalformed
            | ProblemType::ReaderUnauthenticated
            | ProblemType::LoanEnded
            | ProblemType::TitleNotFound
            | ProblemType::LoanNotFound
            | ProblemType::MethodNotAllowed
            | ProblemType::PreconditionFailed
            | ProblemType::RangeNotSatisfiable
            | ProblemType::MisdirectedRequest
            | ProblemType::OriginTimeout => RetryAfter::Never,
        }
    }
}
