//! What the delivery would answer, for support. It may send a HEAD to the origin, and opens
//! nothing.
//!
//! The server's explanations call it.

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, StatusCode};

use super::origin_fetch::OriginFile;
use super::plan::{Judgement, Plan, Planner, Refusal};
use super::{Delivery, File};
use crate::loan::LoanKey;
use crate::problem::Problem;

/// What the delivery would answer.
#[derive(Debug)]
pub(crate) struct Foreseen {
    /// What the origin says of the file: its length and its type, if it names them.
    pub(crate) file: Result<(Option<u64>, Option<String>), Problem>,
    /// The status of the response; none if the origin has no file.
    pub(crate) status: Option<Result<StatusCode, Problem>>,
}

impl Delivery {
    /// Returns what [`Delivery::deliver`] would answer. `loan` has the key of the loan of a gated
    /// file. `otherwise` is the answer to a reader that may only continue a download.
    pub(crate) async fn preview(
        &self,
        file: &File,
        loan: Option<&LoanKey>,
        (method, headers): (&Method, &HeaderMap),
        otherwise: Option<Problem>,
    ) -> Foreseen {
        let (Some(origin), Some(cache)) =
            (self.origins.get(file.origin), self.metadata.get(file.origin))
        else {
            return Foreseen { file: Err(Problem::TitleNotFound), status: None };
        };
        let fields = match OriginFile::new(origin, cache, &file.path).metadata().await {
            Ok(fields) => fields,
            Err(problem) => return Foreseen { file: Err(problem), status: None },
        };
        let planner = Planner::new(headers, self.settings.max_ranges, otherwise);
        let over = loan.filter(|_| method != Method::HEAD);
        let over = over.and_then(|key| self.limits.would_refuse(key));
        let status = over.map_or_else(|| status(&planner, method, &fields), Err);
        Foreseen { file: Ok(described(&fields)), status: Some(status) }
    }
}

fn described(fields: &HeaderMap) -> (Option<u64>, Option<String>) {
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok());
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok());
    (length, text(CONTENT_TYPE).map(str::to_owned))
}

/// Returns the status that follows from the plan, if the origin sends the file as HEAD says.
fn status(
    planner: &Planner<'_>,
    method: &Method,
    fields: &HeaderMap,
) -> Result<StatusCode, Problem> {
    if method == Method::HEAD {
        return planner.plan_head(fields);
    }
    let range = match planner.plan(Some(fields))? {
        Plan::NotModified => return Ok(StatusCode::NOT_MODIFIED),
        Plan::Parts(_) => return Ok(StatusCode::PARTIAL_CONTENT),
        Plan::Whole => None,
        Plan::Range(range) => Some(range),
    };
    match planner.judge(StatusCode::OK, fields, range) {
        Ok(Judgement::Send(selection)) => Ok(selection.status()),
        Ok(Judgement::RequestWhole) => Ok(StatusCode::OK),
        Err(Refusal::Problem(problem) | Refusal::Changed(problem)) => Err(problem),
        Err(Refusal::Unusable(_)) => Err(Problem::OriginFailed { retry_after: None }),
    }
}
