//! The charts of the page Now: what each shows, and what is below it.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use maud::{Markup, html};

use super::chart::{Chart, Line};
use super::plot::Unit;
use super::text::{Now, now};
use super::visit::Visit;
use crate::monitor::{Activity, Code, Overview, Problem};

/// The most reasons of refusals with a line of their own.
const MAX_REASONS: usize = 3;

/// What the charts are made of.
pub(super) struct Source<'a> {
    pub(super) visit: &'a Visit,
    pub(super) texts: &'static Now,
    pub(super) overview: &'a Overview,
}

/// Returns all charts in their order. `problems` are those of the gates that are shown.
pub(super) fn charts<'a>(
    visit: &'a Visit,
    overview: &'a Overview,
    problems: &[(Code, Problem)],
) -> Vec<Chart<'a>> {
    let source = Source { visit, texts: now(visit.language), overview };
    vec![
        source.loans(),
        source.refusals(),
        source.hit_rate(),
        source.latency(),
        source.bytes(),
        source.lending(problems),
        source.storages(problems),
        source.outbox(),
        source.members(),
    ]
}

impl<'a> Source<'a> {
    /// Returns a line with a value of each slot.
    pub(super) fn line(&self, name: &str, value: impl Fn(&Activity) -> Option<f64>) -> Line {
        let slots = self.overview.slots.iter();
        let values = slots.map(|slot| slot.as_ref().and_then(&value)).collect();
        Line { name: name.to_owned(), values, is_of_failures: false }
    }

    /// Returns the value of the last minute, with words after it.
    fn value(&self, unit: Unit, suffix: &str, value: impl Fn(&Activity) -> Option<f64>) -> Markup {
        let value = self.overview.recent.as_ref().and_then(value);
        html! {
            @match value {
                Some(value) => {
                    strong { (unit.text(value, self.visit.language)) }
                    @if !suffix.is_empty() { " " span { (suffix) } }
                }
                None => span { (self.texts.unknown) },
            }
        }
    }

    /// Returns a chart without lines.
    pub(super) fn chart(&self, id: &'static str, title: &'static str, unit: Unit) -> Chart<'a> {
        Chart {
            id,
            title,
            hint: "",
            value: Markup::default(),
            unit,
            suffix: "",
            lines: Vec::new(),
            has_highest: false,
            below: Markup::default(),
        }
    }

    fn loans(&self) -> Chart<'a> {
        let (texts, value) = (self.texts, |activity: &Activity| Some(activity.loans));
        Chart {
            value: self.value(Unit::Count, texts.per_minute, value),
            suffix: texts.per_minute,
            lines: vec![self.line(texts.loans, value)],
            ..self.chart("loans", texts.loans, Unit::Count)
        }
    }

    /// The most frequent reasons have a line of their own, and all others have one together.
    fn refusals(&self) -> Chart<'a> {
        let texts = self.texts;
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for activity in self.overview.slots.iter().flatten() {
            for (kind, rate) in &activity.refusals {
                *sums.entry(kind).or_default() += rate;
            }
        }
        let mut kinds: Vec<(&str, f64)> = sums.into_iter().collect();
        kinds.sort_by_key(|(kind, sum)| (Reverse((sum * 1000.0) as u64), *kind));
        let has_others = kinds.len() > MAX_REASONS;
        let named: Vec<&str> = kinds.iter().take(MAX_REASONS).map(|(kind, _)| *kind).collect();
        let rate = |activity: &Activity, kind: &str| activity.refusals.get(kind).copied();
        let mut lines: Vec<_> = named
            .iter()
            .map(|kind| self.line(kind, |activity| Some(rate(activity, kind).unwrap_or_default())))
            .collect();
        let of_named = |activity: &Activity| -> f64 {
            named.iter().filter_map(|kind| rate(activity, kind)).sum()
        };
        if has_others {
            let others = |activity: &Activity| Some(activity.refused() - of_named(activity));
            lines.push(self.line(texts.other_refusals, others));
        }
        if lines.is_empty() {
            lines.push(self.line(texts.refusals, |activity| Some(activity.refused())));
        }
        Chart {
            hint: if named.is_empty() { texts.no_refusals } else { texts.refusals_hint },
            value: self.value(Unit::Count, texts.per_minute, |activity| Some(activity.refused())),
            suffix: texts.per_minute,
            below: html! { @if let [only] = named.as_slice() { p { code { (only) } } } },
            lines,
            ..self.chart("refusals", texts.refusals, Unit::Count)
        }
    }

    fn hit_rate(&self) -> Chart<'a> {
        let texts = self.texts;
        let recent = self.overview.recent.as_ref();
        let value = match recent.map(Activity::hit_rate) {
            Some(None) => html! { span { (texts.no_requests) } },
            _ => self.value(Unit::Share, "", Activity::hit_rate),
        };
        Chart {
            hint: texts.hit_rate_hint,
            value,
            lines: vec![self.line(texts.hit_rate, Activity::hit_rate)],
            ..self.chart("hit-rate", texts.hit_rate, Unit::Share)
        }
    }

    fn latency(&self) -> Chart<'a> {
        let texts = self.texts;
        let quantiles = [("99%", 0.99), ("90%", 0.9), ("50%", 0.5)];
        let lines = quantiles
            .map(|(name, quantile)| self.line(name, |activity| activity.head.quantile(quantile)));
        let recent = self.overview.recent.as_ref();
        let value = match recent.map(|activity| activity.head.quantile(0.99)) {
            Some(None) => html! { span { (texts.no_requests) } },
            _ => self.value(Unit::Seconds, "99%", |activity| activity.head.quantile(0.99)),
        };
        Chart {
            hint: texts.latency_hint,
            value,
            lines: lines.into(),
            has_highest: true,
            ..self.chart("latency", texts.latency, Unit::Seconds)
        }
    }

    fn bytes(&self) -> Chart<'a> {
        let (texts, value) = (self.texts, |activity: &Activity| Some(activity.bytes));
        Chart {
            value: self.value(Unit::BytesPerSecond, "", value),
            lines: vec![self.line(texts.bytes, value)],
            ..self.chart("bytes", texts.bytes, Unit::BytesPerSecond)
        }
    }

    fn outbox(&self) -> Chart<'a> {
        let texts = self.texts;
        let waiting = self.overview.recent.as_ref().map_or(0, |activity| activity.ends_waiting);
        let age = |activity: &Activity| Some(activity.oldest_end as f64);
        Chart {
            hint: texts.outbox_hint,
            value: self.value(Unit::Age, &(texts.waiting)(waiting), age),
            lines: vec![self.line(texts.outbox, age)],
            has_highest: true,
            ..self.chart("outbox", texts.outbox, Unit::Age)
        }
    }

    fn members(&self) -> Chart<'a> {
        let (texts, value) = (self.texts, |activity: &Activity| Some(activity.nodes as f64));
        Chart {
            value: self.value(Unit::Count, "", value),
            lines: vec![self.line(texts.members, value)],
            has_highest: true,
            ..self.chart("members", texts.members, Unit::Count)
        }
    }
}
