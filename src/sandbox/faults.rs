//! Faults: which calls misbehave, how often, and how.
//!
//! Settings and the control API provide the list, and every call requests one [`Plan`]. The random
//! numbers have a fixed seed, so the same sequence of calls gets the same faults.

use std::time::Duration;

use fastrand::Rng;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::serde_text;
use crate::loan::{Isbn, LibraryId};

/// A call of Bokbasen's API, as faults name it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// Begin: `POST /v1/loans`.
    Begin,
    /// Read by id: `GET /v1/loans/{loanId}`.
    Get,
    /// Listing, by library or reference: `GET /v1/loans`.
    List,
    /// Return of a loan: `POST /v1/loans/{loanId}/return`.
    Return,
    /// Cancellation of a loan: `POST /v1/loans/{loanId}/cancel`.
    Cancel,
    /// Free licences of titles: `GET /v1/libraries/{isil}/availability`.
    Availability,
    /// Titles of a library: `GET /v1/libraries/{isil}/inventory`.
    Inventory,
    /// Licences: `GET /v1/license-types`, `GET /v1/libraries/{isil}/titles/{isbn}/licenses`.
    Licenses,
    /// Report of a paid loan: `POST /reporting/loan/v1`.
    Report,
    /// Both logins: `POST /oauth/token` and `POST /v1/tickets`.
    Token,
    /// Every call of the API.
    #[serde(rename = "*")]
    Any,
}

/// A fault in the sandbox's behaviour.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The call that it affects.
    pub call: Call,
    /// The title that it is limited to, if any.
    #[serde(default, with = "serde_text::option", skip_serializing_if = "Option::is_none")]
    pub isbn: Option<Isbn>,
    /// The library that it is limited to, if any.
    #[serde(default, with = "serde_text::option", skip_serializing_if = "Option::is_none")]
    pub library: Option<LibraryId>,
    /// How many times it happens; none means without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// Its probability, from 0 to 1; none means always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Its effect. In JSON `{"delay": {"ms": 200}}`; without parameters also `"hang"`.
    #[serde(deserialize_with = "named_effect")]
    pub effect: Effect,
}

/// Parses an effect. One without parameters may be just its name.
fn named_effect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Effect, D::Error> {
    let effect = match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(name) => serde_json::json!({ name: {} }),
        other => other,
    };
    serde_json::from_value(effect).map_err(D::Error::custom)
}

/// The effect of a fault.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Effect {
    /// The response is late. A begin takes effect within `post_bound_ms`, even without its caller.
    Delay {
        /// The delay, in milliseconds.
        ms: u64,
    },
    /// The response is late: usually by little, sometimes by much.
    DelayLongTail {
        /// The median delay, in milliseconds.
        median_ms: u64,
        /// The maximum delay, in milliseconds.
        max_ms: u64,
    },
    /// The new loan stays PENDING for `n` polls.
    PendingPolls {
        /// The number of polls.
        n: u32,
    },
    /// The new loan will be refused.
    Refuse {
        /// The code of the refusal, as Bokbasen spells it.
        code: String,
        /// The message of the refusal; none means the default for its code.
        #[serde(default)]
        message: Option<String>,
        /// The `retryAfter` of the refusal, in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// The response has this status.
    Status {
        /// The status: 429, or 5xx.
        status: u16,
        /// The value of `Retry-After`, in seconds.
        #[serde(default)]
        retry_after: Option<u64>,
        /// Whether the call takes effect first.
        #[serde(default)]
        made: bool,
    },
    /// The connection stays open without a response.
    Hang {
        /// Whether the call takes effect first.
        #[serde(default)]
        made: bool,
    },
    /// The connection closes without a response, and the call has no effect.
    CutBefore {
        /// The call takes effect after all, this many milliseconds later (within `post_bound_ms`).
        #[serde(default)]
        late_ms: Option<u64>,
    },
    /// The call takes effect, and the connection closes without a response.
    CutAfter {},
    /// The call takes effect, and the body of its response is invalid JSON.
    Garbage {},
    /// The response has a status that no page documents.
    UnknownStatus {},
    /// Until a loan has this age, get, return and cancel respond 404 `LOAN_NOT_FOUND`, and listings
    /// do not have the loan.
    Lag {
        /// The age, in milliseconds.
        ms: u64,
    },
    /// Listings omit the references of loans.
    NoReference {},
    /// The call's token is revoked, and the response is 401.
    ExpireToken {},
    /// Another client begins a second loan with the same reference.
    Duplicate {},
}

/// All faults that apply to one call, combined.
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

/// The response to a call, or what replaces it.
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

/// The library and titles that a call names.
#[derive(Clone, Debug, Default)]
pub(super) struct Subject {
    pub(super) library: Option<LibraryId>,
    pub(super) isbns: Vec<Isbn>,
}

/// The active faults, and the random numbers for their probabilities.
#[derive(Debug)]
pub(super) struct Faults {
    list: Vec<Fault>,
    rng: Rng,
}

impl Faults {
    pub(super) fn new(list: Vec<Fault>) -> Faults {
        Faults { list, rng: Rng::with_seed(0x10a9_6a7e) }
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

    /// Combines the faults that apply to a call, and counts them down.
    pub(super) fn plan(&mut self, call: Call, subject: &Subject) -> Plan {
        let mut plan = Plan::default();
        let rng = &mut self.rng;
        self.list.retain_mut(|fault| {
            let applies =
                fault.applies_to(call, subject) && fault.probability.is_none_or(|p| rng.f64() < p);
            if applies {
                plan.add(&fault.effect, rng);
                fault.times = fault.times.map(|times| times.saturating_sub(1));
            }
            fault.times != Some(0)
        });
        plan
    }
}

impl Fault {
    fn applies_to(&self, call: Call, subject: &Subject) -> bool {
        (self.call == Call::Any || self.call == call)
            && self.times != Some(0)
            && (self.library.is_none() || self.library == subject.library)
            && self.isbn.is_none_or(|isbn| subject.isbns.contains(&isbn))
    }
}

impl Plan {
    /// Adds an effect. The first effect that replaces the response wins.
    fn add(&mut self, effect: &Effect, rng: &mut Rng) {
        let end = match effect.clone() {
            Effect::Delay { ms } => return self.delay += Duration::from_millis(ms),
            Effect::DelayLongTail { median_ms, max_ms } => {
                return self.delay += long_tail(median_ms, max_ms, rng);
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

/// Returns a Pareto-distributed delay of index 1: half are below the median, 1 in n above n/2 of
/// it.
fn long_tail(median_ms: u64, max_ms: u64, rng: &mut Rng) -> Duration {
    let median = Duration::from_millis(median_ms);
    let times = 0.5 / rng.f64().max(1e-6);
    median.mul_f64(times).min(Duration::from_millis(max_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: serde_json::Value) -> Faults {
        Faults::new(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn effects_parse_from_objects_and_names() {
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
    fn fault_ends_after_its_times_and_affects_its_title() {
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
    fn effects_add_up_and_the_first_end_wins() {
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
