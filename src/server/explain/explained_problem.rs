//! A problem as an explanation shows it: in each language, and also after it was stored.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::language::Language;
use crate::problem::{Problem, ProblemType};

/// The type of a problem with its texts.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct ExplainedProblem {
    #[serde(rename = "type", with = "slug")]
    problem_type: ProblemType,
    english: Cow<'static, str>,
    norwegian: Cow<'static, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<&Problem> for ExplainedProblem {
    fn from(problem: &Problem) -> ExplainedProblem {
        let sentence = problem.sentence();
        ExplainedProblem {
            problem_type: problem.problem_type(),
            english: sentence.english.into(),
            norwegian: sentence.norwegian.into(),
            reason: problem.document().reason.map(str::to_owned),
        }
    }
}

impl ExplainedProblem {
    /// Returns the type.
    pub(crate) fn problem_type(&self) -> ProblemType {
        self.problem_type
    }

    /// Returns what failed, and what to do.
    pub(crate) fn sentence(&self, language: Language) -> &str {
        match language {
            Language::English => &self.english,
            Language::Norwegian => &self.norwegian,
        }
    }

    /// Returns the code of the refusal, or the name of the limit.
    pub(super) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// The type as its slug. One that only a newer gate knows cannot be read.
mod slug {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::problem::ProblemType;

    pub(super) fn serialize<S: Serializer>(
        problem_type: &ProblemType,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(problem_type.slug())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(
        deserializer: D,
    ) -> Result<ProblemType, D::Error> {
        let slug = String::deserialize(deserializer)?;
        let known = ProblemType::ALL.into_iter().find(|known| known.slug() == slug);
        known.ok_or_else(|| D::Error::custom("the type of a problem is not known"))
    }
}
