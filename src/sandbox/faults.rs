//! The ways to misbehave: which call, how often, and what happens then.
//!
//! Settings and the control API say the list; every call asks it once for a [`Plan`]. It calls
//! nothing of ours but the domain's names. In one order of calls, chance falls the same each time.

use std::time::Duration;

use fastrand::Rng;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::serde_text;
use crate::loan::{Isbn, LibraryId};

/// A call of the API, as faults name it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// `POST /v1/loans`
    Begin,
    /// `GET /v1/loans/{loanId}`
    Get,
    /// `GET /v1/loans`
    List,
    /// `POST /v1/loans/{loanId}/return`
    Return,
    /// `POST /v1/loans/{loanId}/cancel`
    Cancel,
    /// `GET /v1/libraries/{isil}/availability`
    Availability,
    /// `GET /v1/libraries/{isil}/inventory`
    Inventory,
    /// `GET /v1/license-types` and `GET /v1/libraries/{isil}/titles/{isbn}/licenses`
    Licenses,
    /// `POST /reporting/loan/v1`
    Report,
    /// `POST /oauth/token` and `POST /v1/tickets`
    Token,
    /// Any of them.
    #[serde(rename = "*")]
    Any,
}

/// One way to misbehave.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// On which call.
    pub call: Call,
    /// Only for this title.
    #[serde(default, with = "serde_text::option", skip_serializing_if = "Option::is_none")]
    pub isbn: Option<Isbn>,
    /// Only for this library.
    #[serde(default, with = "serde_text::option", skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryId>,
    /// How many times; none is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// How likely, from 0 to 1; none is certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// What happens. In JSON `{"delay": {"ms": 200}}`; one that needs nothing said also as
    /// `"hang"`.
    #[serde(deserialize_with = "named_effect")]
    pub effect: Effect,
}

/// Reads an effect; one that needs nothing said may be its bare name.
fn named_effect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Effect, D::Error> {
    let effect = match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(name) => serde_json::json!({ name: {} }),
        other => other,
    };
    serde_json::from_value(effect).map_err(D::Error::custom)
}

/// What happens.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// The answer comes later. A begin takes effect within `post_bound_ms` all the same, also when
    /// the caller has hung up by then.
    Delay {
        /// By how many milliseconds.
        ms: u64,
    },
    /// The answer comes later, mostly a little and sometimes much.
    DelayLongTail {
        /// Half of the calls wait less than this, in milliseconds.
        median_ms: u64,
        /// None waits longer than this, in milliseconds.
        max_ms: u64,
    },
    /// The loan that is begun stays PENDING for so many polls.
    PendingPolls {
        /// How many.
        n: u32,
    },
    /// The loan that is begun will be refused.
    Refuse {
        /// Bokbasen's code.
        code: String,
        /// Bokbasen's words; none takes the usual ones.
        #[serde(default)]
        message: Option<String>,
        /// In seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// The call is answered with this status.
    Status {
        /// 429, or 5xx.
        status: u16,
        /// In seconds.
        #[serde(default)]
        retry_after: Option<u64>,
        /// Whether the call has been carried out before.
        #[serde(default)]
        made: bool,
    },
    /// No answer ever comes, and the connection stays.
    Hang {
        /// Whether the call has been carried out before.
        #[serde(default)]
        made: bool,
    },
    /// The connection is cut without a byte of an answer, and the call is not carried out.
    CutBefore {
        /// It is carried out after all, so many milliseconds later (within `post_bound_ms`).
        #[serde(default)]
        late_ms: Option<u64>,
    },
    /// The call is carried out, and the connection is cut without a byte of an answer.
    CutAfter {},
    /// The call is carried out, and the body of its answer is broken JSON.
    Garbage {},
    /// The answer shows a status that no page names.
    UnknownStatus {},
    /// A get, return or cancel answers 404 `LOAN_NOT_FOUND`, and a list leaves the loan out, until
    /// a loan is this old.
    Lag {
        /// In milliseconds.
        ms: u64,
    },
    /// A listing shows loans without their reference.
    NoReference {},
    /// The token that the call carries is revoked, and the call answered with 401.
    ExpireToken {},
    /// Someone else begins a second loan under the same reference.
    Duplicate {},
}

/// What is to become of one call: every fault that fits it, taken together.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) delay: Duration,
    pub(super) pending_polls: Option<u32>,
    pub(super) refuse: Option<(String, Option<String>, Option<u64>)>,
    pub(super) unknown_status: bool,
    pub(super) lag: Duration,
    pub(super) no_reference: bool,
    pub(super) duplicate: bool,
    pub(super) expire_token: bool,
    pub(super) end: End,
}

/// How a call ends.
#[derive(Clone, Debug, Default)]
pub(super) enum End {
    #[default]
    Answer,
    Status {
        status: u16,
        retry_after: Option<u64>,
        made: bool,
    },
    Hang {
        made: bool,
    },
    CutBefore {
        late: Option<Duration>,
    },
    CutAfter,
    Garbage,
}

/// What a call is about, as far as it names a library and titles.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    pub(super) library: Option<LibraryId>,
    pub(super) isbns: Vec<Isbn>,
}

/// The list of faults.
#[derive(Debug)]
pub(super) struct Faults {
    list: Vec<Fault>,
    chance: Rng,
}

impl Faults {
    pub(super) fn new(list: Vec<Fault>) -> Faults {
        Faults { list, chance: Rng::with_seed(0x10a9_6a7e) }
    }

    pub(super) fn list(&self) -> &[Fault] {
        &self.list
    }

    pub(super) fn replace(&mut self, list: Vec<Fault>) {
        self.list = list;
    }

    pub(super) fn add(&mut self, more: Vec<Fault>) {
        self.list.extend(more);
    }

    /// What is to become of this call. Faults that happen so many times are counted down here.
    pub(super) fn plan(&mut self, call: Call, subject: &Subject) -> Plan {
        let mut plan = Plan::default();
        let chance = &mut self.chance;
        self.list.retain_mut(|fault| {
            let falls =
                fault.fits(call, subject) && fault.probability.is_none_or(|p| chance.f64() < p);
            if falls {
                plan.take(&fault.effect, chance);
                fault.times = fault.times.map(|times| times.saturating_sub(1));
            }
            fault.times != Some(0)
        });
        plan
    }
}

impl Fault {
    fn fits(&self, call: Call, subject: &Subject) -> bool {
        (self.call == Call::Any || self.call == call)
            && self.times != Some(0)
            && (self.library.is_none() || self.library == subject.library)
            && self.isbn.is_none_or(|isbn| subject.isbns.contains(&isbn))
    }
}

impl Plan {
    /// Adds an effect. Of two that decide the end, the first holds.
    fn take(&mut self, effect: &Effect, chance: &mut Rng) {
        let end = match effect.clone() {
            Effect::Delay { ms } => return self.delay += Duration::from_millis(ms),
            Effect::DelayLongTail { median_ms, max_ms } => {
                return self.delay += long_tail(median_ms, max_ms, chance);
            }
            Effect::PendingPolls { n } => return self.pending_polls = Some(n),
            Effect::Refuse { code, message, retry_after } => {
                return self.refuse = Some((code, message, retry_after));
            }
            Effect::UnknownStatus {} => return self.unknown_status = true,
            Effect::Lag { ms } => return self.lag = self.lag.max(Duration::from_millis(ms)),
            Effect::NoReference {} => return self.no_reference = true,
            Effect::ExpireToken {} => return self.expire_token = true,
            Effect::Duplicate {} => return self.duplicate = true,
            Effect::Status { status, retry_after, made } => {
                End::Status { status, retry_after, made }
            }
            Effect::Hang { made } => End::Hang { made },
            Effect::CutBefore { late_ms } => {
                End::CutBefore { late: late_ms.map(Duration::from_millis) }
            }
            Effect::CutAfter {} => End::CutAfter,
            Effect::Garbage {} => End::Garbage,
        };
        if matches!(self.end, End::Answer) {
            self.end = end;
        }
    }
}

/// A wait with a Pareto tail of index 1: half are shorter than the median, one in n longer than n/2
/// of it.
fn long_tail(median_ms: u64, max_ms: u64, chance: &mut Rng) -> Duration {
    let median = Duration::from_millis(median_ms);
    let times = 0.5 / chance.f64().max(1e-6);
    median.mul_f64(times).min(Duration::from_millis(max_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: serde_json::Value) -> Faults {
        Faults::new(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn effects_read_as_objects_and_as_bare_names() {
        let list = serde_json::json!([
            {"call": "begin", "effect": "cut_after"},
            {"call": "begin", "effect": {"cut_after": {}}},
            {"call": "*", "effect": {"delay": {"ms": 5}}},
            {"call": "get", "effect": {"refuse": {"code": "X"}}},
            {"call": "token", "effect": "hang"},
        ]);
        let read = faults(list);
        let written = serde_json::to_value(read.list()).unwrap();
        assert_eq!(faults(written).list(), read.list());
        for wrong in [
            serde_json::json!({"call": "begin", "effect": "explode"}),
            serde_json::json!({"call": "fetch", "effect": "hang"}),
            serde_json::json!({"call": "begin", "effect": {"delay": {"s": 5}}}),
            serde_json::json!({"call": "begin", "effect": "hang", "often": 2}),
        ] {
            assert!(serde_json::from_value::<Fault>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fault_wears_off_after_its_times_and_fits_only_its_title() {
        let isbn: Isbn = "9780306406157".parse().unwrap();
        let mut faults = faults(serde_json::json!([
            {"call": "begin", "isbn": "9780306406157", "times": 2, "effect": "cut_after"},
        ]));
        let this = Subject { library: None, isbns: vec![isbn] };
        let cuts = |faults: &mut Faults, call, subject: &Subject| {
            matches!(faults.plan(call, subject).end, End::CutAfter)
        };
        assert!(!cuts(&mut faults, Call::Begin, &Subject::default()));
        assert!(!cuts(&mut faults, Call::Get, &this));
        assert!(cuts(&mut faults, Call::Begin, &this));
        assert!(cuts(&mut faults, Call::Begin, &this));
        assert!(!cuts(&mut faults, Call::Begin, &this));
        assert!(faults.list().is_empty());
    }

    #[test]
    fn effects_add_up_and_the_first_end_holds() {
        let mut faults = faults(serde_json::json!([
            {"call": "*", "effect": {"delay": {"ms": 5}}},
            {"call": "*", "effect": {"delay_long_tail": {"median_ms": 10, "max_ms": 20}}},
            {"call": "*", "effect": "cut_after"},
            {"call": "*", "effect": "hang"},
            {"call": "*", "probability": 0.0, "effect": "expire_token"},
            {"call": "*", "probability": 1.0, "effect": "duplicate"},
        ]));
        let plan = faults.plan(Call::List, &Subject::default());
        assert!(plan.delay > Duration::from_millis(5) && plan.delay <= Duration::from_millis(25));
        assert!(matches!(plan.end, End::CutAfter));
        assert!(!plan.expire_token && plan.duplicate);
    }
}
