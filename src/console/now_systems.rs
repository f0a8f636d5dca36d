//! The charts of the page Now about other systems: how well Bokbasen and the storages answer.

use maud::{Markup, html};

use super::chart::{Chart, Line};
use super::now_charts::Source;
use super::plot::Unit;
use super::text::Now;
use crate::monitor::{Activity, CallRates, Code, Problem};

/// The most storages that are listed.
const MAX_STORAGES: usize = 20;

impl<'a> Source<'a> {
    /// Returns the chart of the calls to Bokbasen.
    pub(super) fn lending(&self, problems: &[(Code, Problem)]) -> Chart<'a> {
        let (texts, language) = (self.texts, self.visit.language);
        let recent = self.overview.recent.as_ref();
        let has = |wanted: Code| problems.iter().any(|(code, _)| *code == wanted);
        let badge = match recent.map(|activity| activity.lending) {
            _ if has(Code::LendingUnavailable) => badge(texts.fails, "refused"),
            _ if has(Code::BreakerOpen) => badge(texts.suspended, "refused"),
            calls => health(texts, calls.unwrap_or_default()),
        };
        let latency = recent.and_then(|activity| activity.lending_seconds.quantile(0.9));
        Chart {
            value: html! {
                (badge)
                @if let Some(latency) = latency {
                    " " span { (Unit::Seconds.text(latency, language)) " 90%" }
                }
            },
            suffix: texts.per_minute,
            lines: self.calls(|activity| activity.lending),
            ..self.chart("lending", texts.lending, Unit::Count)
        }
    }

    fn calls(&self, calls: impl Fn(&Activity) -> CallRates) -> Vec<Line> {
        let failed = self.line(self.texts.failed, |activity| Some(calls(activity).failed));
        vec![
            self.line(self.texts.answered, |activity| Some(calls(activity).answered)),
            Line { is_of_failures: true, ..failed },
        ]
    }

    /// Returns the chart of the requests to the storages.
    pub(super) fn storages(&self, problems: &[(Code, Problem)]) -> Chart<'a> {
        let (texts, language) = (self.texts, self.visit.language);
        let all = |activity: &Activity| {
            activity.origins.values().fold(CallRates::default(), |sum, calls| CallRates {
                answered: sum.answered + calls.answered,
                failed: sum.failed + calls.failed,
            })
        };
        let recent = self.overview.recent.as_ref();
        let has_failed = |name: &str| {
            let is_it = |(code, problem): &(Code, Problem)| {
                *code == Code::OriginFailing && problem.subject.as_deref() == Some(name)
            };
            problems.iter().any(is_it)
        };
        let is_failing = problems.iter().any(|(code, _)| *code == Code::OriginFailing);
        let value = match is_failing {
            true => badge(texts.fails, "refused"),
            false => health(texts, recent.map(all).unwrap_or_default()),
        };
        let below = html! {
            @match recent.map(|activity| &activity.origins) {
                Some(origins) if !origins.is_empty() => {
                    ul.health {
                        @for (name, calls) in origins.iter().take(MAX_STORAGES) {
                            li {
                                span { (name) } " "
                                @if has_failed(name) { (badge(texts.fails, "refused")) }
                                @else { (health(texts, *calls)) }
                                " " span.hint {
                                    (Unit::Count.text(calls.answered, language)) " "
                                    (texts.answered) ", "
                                    (Unit::Count.text(calls.failed, language)) " " (texts.failed)
                                }
                            }
                        }
                    }
                }
                _ => p.hint { (texts.no_storages) },
            }
        };
        Chart {
            value,
            suffix: texts.per_minute,
            lines: self.calls(all),
            below,
            ..self.chart("storages", texts.storages, Unit::Count)
        }
    }
}

fn badge(text: &str, class: &str) -> Markup {
    html! { span class={ "badge " (class) } { (text) } }
}

/// Returns how well another system answers calls.
fn health(texts: &Now, calls: CallRates) -> Markup {
    match calls {
        CallRates { failed, answered } if failed > answered => badge(texts.fails, "refused"),
        CallRates { failed, .. } if failed > 0.0 => badge(texts.fails, "pending"),
        CallRates { answered, .. } if answered > 0.0 => badge(texts.works, "passed"),
        _ => badge(texts.idle, ""),
    }
}
