//! What each type of problem means and what to do about it. `docs/problems.md` is generated from
//! it.

use super::ProblemType;

/// The explanation of a type of problem, in Markdown.
#[derive(Clone, Copy, Debug)]
pub struct Guidance {
    /// When the problem occurs.
    pub occurs: &'static str,
    /// What the app does.
    pub app: &'static str,
    /// What the operator does; none if only the client can do something.
    pub operator: Option<&'static str>,
}

impl ProblemType {
    /// Returns what the problem means and what to do about it.
    pub fn guidance(self) -> Guidance {
        match self {
            ProblemType::RequestMalformed => REQUEST_MALFORMED,
            ProblemType::ReaderUnauthenticated => READER_UNAUTHENTICATED,
            ProblemType::LoanRefused => LOAN_REFUSED,
            ProblemType::LoanEnded => LOAN_ENDED,
            ProblemType::TitleNotFound => TITLE_NOT_FOUND,
            ProblemType::LoanNotFound => LOAN_NOT_FOUND,
            ProblemType::MethodNotAllowed => METHOD_NOT_ALLOWED,
            ProblemType::PreconditionFailed => PRECONDITION_FAILED,
            ProblemType::RangeNotSatisfiable => RANGE_NOT_SATISFIABLE,
            ProblemType::MisdirectedRequest => MISDIRECTED_REQUEST,
            ProblemType::TooManyRequests => TOO_MANY_REQUESTS,
            ProblemType::OriginFailed => ORIGIN_FAILED,
            ProblemType::OriginTimeout => ORIGIN_TIMEOUT,
            ProblemType::LoanPending => LOAN_PENDING,
            ProblemType::LendingUnavailable => LENDING_UNAVAILABLE,
            ProblemType::LedgerUnavailable => LEDGER_UNAVAILABLE,
            ProblemType::Overloaded => OVERLOADED,
        }
    }
}

const REQUEST_MALFORMED: Guidance = Guidance {
    occurs: "The path, a header field, the query or the body is not valid. `detail` says what.",
    app: "Correct the request; do not repeat it unchanged.",
    operator: None,
};

const READER_UNAUTHENTICATED: Guidance = Guidance {
    occurs: "The request has no credential, or its token or link is not valid or has expired.",
    app: "Get a new token or link.",
    operator: Some(
        "If every reader gets it, compare `[readers]` with the login service: issuer, audience, \
         keys.",
    ),
};

const LOAN_REFUSED: Guidance = Guidance {
    occurs: "Bokbasen or a rule of the gate refused the loan. `reason` has Bokbasen's code, such \
         as `NO_FREE_LICENSE` or `BORROWER_LIMIT`, or the gate's rule, such as \
         `explicit-begin-required`.",
    app: "Show `detail` to the reader. Retry after `Retry-After`, if it is sent.",
    operator: Some(
        "Nothing, unless the reason is a setting: the library's at Bokbasen, or `[licences]`.",
    ),
};

const LOAN_ENDED: Guidance = Guidance {
    occurs: "The reader's last loan of the title ended when the credential existed already.",
    app: "Sign in again, and open the title from the start. Only a credential that was issued \
         after the end borrows again.",
    operator: None,
};

const TITLE_NOT_FOUND: Guidance = Guidance {
    occurs: "No route has this path, or the storage has no such file.",
    app: "Check the path and the ISBN in it.",
    operator: Some("If the file exists, check `[[routes]]` and the table of titles."),
};

const LOAN_NOT_FOUND: Guidance = Guidance {
    occurs: "The reader has never borrowed the title that the path names.",
    app: "Begin a loan with PUT, or open the title from the start.",
    operator: None,
};

const METHOD_NOT_ALLOWED: Guidance = Guidance {
    occurs: "The path does not support the method.",
    app: "Use a method that `Allow` lists.",
    operator: None,
};

const PRECONDITION_FAILED: Guidance = Guidance {
    occurs: "A precondition, such as `If-Match`, is false: the file has changed.",
    app: "Fetch the file from the start.",
    operator: None,
};

const RANGE_NOT_SATISFIABLE: Guidance = Guidance {
    occurs: "The range lies past the end of the file.",
    app: "`Content-Range` has the length of the file.",
    operator: None,
};

const MISDIRECTED_REQUEST: Guidance = Guidance {
    occurs: "The request names another host than the one that its connection was opened for.",
    app: "Open a connection to the host that the request names.",
    operator: None,
};

const TOO_MANY_REQUESTS: Guidance = Guidance {
    occurs: "A limit is reached. `reason` is `brake` (too many begins) or `streams` (too many \
         downloads at once).",
    app: "Wait for `Retry-After`.",
    operator: Some(
        "If honest readers get it, raise the limit: `[brake]`, or \
         `delivery.streams_per_borrower`.",
    ),
};

const ORIGIN_FAILED: Guidance = Guidance {
    occurs: "The storage cannot be reached, its response cannot be forwarded, or its circuit \
         breaker is open.",
    app: "Retry, after `Retry-After` where it is sent.",
    operator: Some("The log has the reason. `loangate check --online` tries each address."),
};

const ORIGIN_TIMEOUT: Guidance = Guidance {
    occurs: "The storage did not answer within `first_byte` of its `[[origins]]`.",
    app: "Retry later.",
    operator: Some("Check the storage, or raise `first_byte`."),
};

const LOAN_PENDING: Guidance = Guidance {
    occurs: "Bokbasen has not decided about the loan within `gate.patience`, or a return arrives \
        while an earlier request may still begin the loan.",
    app: "Retry after `Retry-After`. The loan is on its way; nothing is lost.",
    operator: Some("If it lasts, ask Bokbasen."),
};

const LENDING_UNAVAILABLE: Guidance = Guidance {
    occurs: "Bokbasen cannot be reached, or its response is not usable, so no loan begins. Readers \
         with a live loan read on.",
    app: "Retry after `Retry-After`.",
    operator: Some(
        "`/readyz` has the reason. Check the network and `[lending]`, then ask Bokbasen.",
    ),
};

const LEDGER_UNAVAILABLE: Guidance = Guidance {
    occurs: "The ledger cannot be read or written.",
    app: "Retry after `Retry-After`.",
    operator: Some("`/readyz` has the reason. Check the disk."),
};

const OVERLOADED: Guidance = Guidance {
    occurs: "The gate is stopping, `lending.flights` decisions are in flight, or a request waited \
         too long for one of the storage's `connections`.",
    app: "Retry after `Retry-After`.",
    operator: Some("If it lasts, raise the limit that is reached, or relieve the storage."),
};
