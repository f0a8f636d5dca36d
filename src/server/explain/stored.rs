//! A request that was answered, as support sees it, and its form in the ledger.

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::explained_problem::ExplainedProblem;
use super::view::Step;
use crate::ledger::StoredRequest;
use crate::loan::LoanKey;
use crate::server::recent_requests::{Asked, RecentRequest, time_of};
use crate::telemetry::{RequestId, Via};

/// The longest path that is stored, in bytes.
const MAX_PATH: usize = 2048;

/// A request that was answered, by this gate or by another one.
#[derive(Clone, Debug)]
pub(in crate::server) struct AnsweredRequest {
    pub(super) id: RequestId,
    pub(super) at: Timestamp,
    pub(super) method: Cow<'static, str>,
    pub(super) path: Option<Arc<str>>,
    pub(super) step: Step,
    pub(super) asked: Option<Asked>,
    pub(super) via: Via,
    pub(super) answer: Result<StatusCode, ExplainedProblem>,
}

/// The detail of a stored request. A borrower is in it as a pseudonym, and a path without a token.
#[derive(Debug, Deserialize, Serialize)]
struct Detail {
    method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    step: Step,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<AskedDetail>,
    via: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    problem: Option<ExplainedProblem>,
}

#[derive(Debug, Deserialize, Serialize)]
struct AskedDetail {
    library: String,
    borrower: String,
    isbn: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issued: Option<Timestamp>,
}

impl From<RecentRequest> for AnsweredRequest {
    fn from(request: RecentRequest) -> AnsweredRequest {
        let RecentRequest { id, began, method, path, step, asked, via, answer } = request;
        AnsweredRequest {
            id,
            at: time_of(began),
            method: method.into(),
            path,
            step,
            asked,
            via,
            answer: answer.map_err(|problem| (&problem).into()),
        }
    }
}

impl AnsweredRequest {
    /// Returns the form in the ledger, to be removed at this time.
    pub(in crate::server) fn to_stored(&self, until: Timestamp) -> StoredRequest {
        let detail = Detail {
            method: self.method.clone().into_owned(),
            path: self.stored_path(),
            step: self.step,
            asked: self.asked.map(|Asked { key, issued }| AskedDetail {
                library: key.library.to_string(),
                borrower: key.borrower.to_string(),
                isbn: key.isbn.to_string(),
                issued,
            }),
            via: self.via.name().to_owned(),
            status: self.answer.as_ref().ok().map(StatusCode::as_u16),
            problem: self.answer.as_ref().err().cloned(),
        };
        StoredRequest {
            id: self.id.uuid(),
            at: self.at,
            until,
            detail: serde_json::to_string(&detail).unwrap_or_default(),
        }
    }

    /// Returns what is stored of the path: all of it if there is such a file, else no more than the
    /// title. A path that an app has put together wrongly may have a token or a card number in it.
    fn stored_path(&self) -> Option<String> {
        let path = self.path.as_deref().filter(|path| path.len() <= MAX_PATH)?;
        if self.answer.is_ok() {
            return Some(path.to_owned());
        }
        let isbn = self.asked?.key.isbn.to_string();
        let (before, _) = path.split_once(&isbn)?;
        Some(format!("{before}{isbn}/…"))
    }

    /// Reads the form in the ledger; none if it is damaged, or of a newer gate.
    pub(super) fn of_stored(stored: &StoredRequest) -> Option<AnsweredRequest> {
        let detail: Detail = serde_json::from_str(&stored.detail).ok()?;
        let answer = match (detail.status, detail.problem) {
            (Some(status), None) => Ok(StatusCode::from_u16(status).ok()?),
            (None, Some(problem)) => Err(problem),
            _ => return None,
        };
        let asked = |asked: AskedDetail| {
            let (library, borrower) = (asked.library.parse().ok()?, asked.borrower.parse().ok()?);
            let key = LoanKey { library, borrower, isbn: asked.isbn.parse().ok()? };
            Some(Asked { key, issued: asked.issued })
        };
        Some(AnsweredRequest {
            id: RequestId::of_uuid(stored.id),
            at: stored.at,
            method: detail.method.into(),
            path: detail.path.map(Into::into),
            step: detail.step,
            asked: match detail.asked {
                Some(detail) => Some(asked(detail)?),
                None => None,
            },
            via: Via::ALL.into_iter().find(|via| via.name() == detail.via)?,
            answer,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::loan::Borrower;
    use crate::problem::Problem;

    fn request(answer: Result<StatusCode, Problem>) -> AnsweredRequest {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([7; 16]),
            isbn: "9788299999014".parse().unwrap(),
        };
        AnsweredRequest::from(RecentRequest {
            id: RequestId::generate(),
            began: Instant::now(),
            method: "GET",
            path: Some("/files/ø".into()),
            step: Step::Gate,
            asked: Some(Asked { key, issued: Some(Timestamp::UNIX_EPOCH) }),
            via: Via::Ledger,
            answer,
        })
    }

    #[test]
    fn stored_request_is_read_as_it_was() {
        let refused = Problem::LoanRefused { reason: "NO_FREE_LICENSE".into(), retry_after: None };
        for answer in [Ok(StatusCode::PARTIAL_CONTENT), Err(refused), Err(Problem::LoanEnded)] {
            let request = request(answer);
            let stored = request.to_stored(Timestamp::MAX);
            let mut read = AnsweredRequest::of_stored(&stored).unwrap();
            read.path = request.path.clone();
            assert_eq!(format!("{read:?}"), format!("{request:?}"));
            let other = StoredRequest { detail: stored.detail.replace("loan-", "new-"), ..stored };
            assert_eq!(AnsweredRequest::of_stored(&other).is_none(), request.answer.is_err());
        }
    }

    #[test]
    fn path_of_a_refused_request_is_stored_up_to_its_title() {
        let path = "/files/9788299999014/eyJhbGciOi.token/4111111111111111";
        let of = |answer, asked| {
            let request = AnsweredRequest { path: Some(path.into()), asked, ..request(answer) };
            let stored = request.to_stored(Timestamp::MAX);
            AnsweredRequest::of_stored(&stored).unwrap().path.map(|path| path.to_string())
        };
        let asked = request(Ok(StatusCode::OK)).asked;
        assert_eq!(of(Ok(StatusCode::OK), asked).as_deref(), Some(path));
        let refused = || Err(Problem::LoanEnded);
        assert_eq!(of(refused(), asked).as_deref(), Some("/files/9788299999014/…"));
        assert_eq!(of(refused(), None), None);
    }

    #[test]
    fn long_path_is_left_out() {
        let request =
            AnsweredRequest { path: Some("/a".repeat(2000).into()), ..request(Ok(StatusCode::OK)) };
        let stored = request.to_stored(Timestamp::MAX);
        assert!(stored.detail.len() < 500, "{}", stored.detail);
        assert_eq!(AnsweredRequest::of_stored(&stored).unwrap().path, None);
    }
}
