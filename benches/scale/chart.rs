//! The picture of a run: load over a day, what decides the number of gates, and an outage.

use std::fmt::Write as _;

use crate::peak::{INTERVAL, Interval};
use crate::queues::{MINUTE, SECOND};
use crate::report::number;
use crate::year::Year;
use crate::{FAULT_AT, Findings, LENDING_OUTAGE};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 730.0;

const STYLE: &str = "\
text { fill: #24292f } .small { font-size: 11px } .head { font-weight: bold }
.grid { stroke: #8c959f; stroke-width: 0.5 } .one { fill: #0a7d4f } .two { fill: #3b6fc4 }
.three { fill: #b35900 } .band { fill: #8c959f; fill-opacity: 0.2 }
.line { fill: none; stroke-width: 2 }
.line.one { stroke: #0a7d4f } .line.two { stroke: #3b6fc4 } .line.three { stroke: #b35900 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 }
.one { fill: #3fb68b } .two { fill: #6ea0f0 } .three { fill: #e09b4f }
.line.one { stroke: #3fb68b } .line.two { stroke: #6ea0f0 } .line.three { stroke: #e09b4f }
.line { fill: none } }";

/// Returns the picture as SVG.
pub(crate) fn svg(year: &Year, results: &[Findings]) -> String {
    let body = [day(year, results), gates(results), outage(&results[0])].concat();
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 880\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <title>What a deployment needs</title>\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    format!("<text x=\"{x:.0}\" y=\"{y:.0}\" {attributes}>{text}</text>\n")
}

fn rectangle(class: &str, x: f64, y: f64, width: f64, height: f64) -> String {
    format!(
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
         height=\"{height:.1}\"/>\n"
    )
}

fn grid(x1: f64, y1: f64, x2: f64, y2: f64) -> String {
    format!("<line class=\"grid\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>\n")
}

/// A plot of values over equal steps of x.
struct Plot {
    top: f64,
    height: f64,
    most: f64,
}

impl Plot {
    /// Returns a plot with a scale that ends at a round number, and its grid.
    fn new(top: f64, height: f64, values: &[f64]) -> (Plot, String) {
        let largest = values.iter().copied().fold(1.0, f64::max);
        let digit = 10f64.powf(largest.log10().floor());
        let steps = [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0].map(|step| step * digit);
        let most = steps.into_iter().find(|step| *step >= largest).unwrap_or(10.0 * digit);
        let mut grids = String::new();
        for part in [0.0, 0.5, 1.0] {
            let y = top + height * (1.0 - part);
            let label = number(most * part);
            grids += &grid(LEFT, y, RIGHT, y);
            grids += &text(LEFT - 6.0, y + 4.0, "class=\"small\" text-anchor=\"end\"", &label);
        }
        (Plot { top, height, most }, grids)
    }

    fn line(&self, class: &str, values: &[f64]) -> String {
        let step = (RIGHT - LEFT) / (values.len() - 1) as f64;
        let mut points = String::new();
        for (index, value) in values.iter().enumerate() {
            let y = self.top + self.height * (1.0 - value / self.most);
            write!(points, "{:.1},{y:.1} ", LEFT + step * index as f64).unwrap();
        }
        format!("<polyline class=\"line {class}\" points=\"{}\"/>\n", points.trim_end())
    }
}

fn legend(x: f64, y: f64, entries: &[(&str, &str)]) -> String {
    let mut svg = String::new();
    for (index, (class, name)) in entries.iter().enumerate() {
        let x = x + 130.0 * index as f64;
        svg += &rectangle(class, x, y - 10.0, 12.0, 12.0);
        svg += &text(x + 18.0, y, "", name);
    }
    svg
}

fn day(year: &Year, results: &[Findings]) -> String {
    let deployment = results[0].sizing.deployment;
    let scaled = |hours: &[f64; 24]| hours.map(|rate| rate * deployment.people);
    let (mean, busiest) = (scaled(&year.mean_day), scaled(&year.busiest_day));
    let head = format!("Requests a second over a day, {}", deployment.name);
    let (plot, grids) = Plot::new(52.0, 150.0, &busiest);
    let mut svg = text(8.0, 20.0, "class=\"head\"", &head);
    svg += &legend(480.0, 20.0, &[("two", "mean day"), ("one", "busiest day")]);
    svg += &grids;
    svg += &plot.line("two", &mean);
    svg += &plot.line("one", &busiest);
    for hour in (0..24).step_by(3) {
        let x = LEFT + (RIGHT - LEFT) * f64::from(hour) / 23.0;
        let label = format!("{hour}:00");
        svg += &text(x, 220.0, "class=\"small\" text-anchor=\"middle\"", &label);
    }
    svg
}

fn gates(results: &[Findings]) -> String {
    let (left, top, decades) = (130.0, 300.0, 5.0);
    let x = |gates: f64| left + (RIGHT - 50.0 - left) * ((gates.log10() + 2.0) / decades).max(0.0);
    let bottom = top + 64.0 * results.len() as f64;
    let mut svg = text(8.0, 264.0, "class=\"head\"", "Gates by resource, on a log scale");
    let classes = [("one", "CPU"), ("two", "network"), ("three", "connections")];
    svg += &legend(376.0, 264.0, &classes);
    for (gates, label) in
        [(0.01, "0.01"), (0.1, "0.1"), (1.0, "1"), (10.0, "10"), (100.0, "100"), (1000.0, "1,000")]
    {
        svg += &grid(x(gates), top - 8.0, x(gates), bottom);
        svg += &text(x(gates), bottom + 16.0, "class=\"small\" text-anchor=\"middle\"", label);
    }
    for (index, result) in results.iter().enumerate() {
        let y = top + 64.0 * index as f64;
        let name = result.sizing.deployment.name;
        svg += &text(left - 8.0, y + 28.0, "text-anchor=\"end\"", name);
        for (which, (class, _)) in classes.iter().enumerate() {
            let needs: f64 = result.sizing.regions.iter().map(|region| region.needs[which]).sum();
            let y = y + 17.0 * which as f64;
            svg += &rectangle(class, left, y, x(needs) - left, 14.0);
            let label = if needs < 10.0 { format!("{needs:.1}") } else { format!("{needs:.0}") };
            svg += &text(x(needs) + 5.0, y + 11.0, "class=\"small\"", &label);
        }
    }
    svg
}

/// Sums of a count in each minute, per second.
fn minutes(result: &Findings, count: impl Fn(&Interval) -> u64) -> Vec<f64> {
    let chunk = (MINUTE / INTERVAL) as usize;
    let timeline = result.outage.timeline.chunks(chunk);
    let per_second = INTERVAL as f64 / SECOND as f64 * chunk as f64;
    timeline.map(|all| all.iter().map(&count).sum::<u64>() as f64 / per_second).collect()
}

fn outage(result: &Findings) -> String {
    let registrations = minutes(result, |interval| interval.accepted);
    let unavailable = minutes(result, |interval| interval.unavailable);
    let last = |all: &[Interval]| all[all.len() - 1].backlog as f64;
    let backlog: Vec<f64> = result.outage.timeline.chunks(6).map(last).collect();
    let head = format!("Bokbasen fails for an hour, {}", result.sizing.deployment.name);
    let mut svg = text(8.0, 556.0, "class=\"head\"", &head);
    let length = (registrations.len() - 1) as f64;
    let x = |minute: f64| LEFT + (RIGHT - LEFT) * minute / length;
    let [from, to] = [FAULT_AT, FAULT_AT + LENDING_OUTAGE].map(|at| x(at as f64 / MINUTE as f64));
    svg += &rectangle("band", from, 570.0, to - from, 282.0);
    let panels = [
        ("registrations a second", "one", &registrations),
        ("503 responses a second", "three", &unavailable),
        ("ends that wait", "two", &backlog),
    ];
    for (index, (name, class, values)) in panels.into_iter().enumerate() {
        let top = 588.0 + 96.0 * index as f64;
        let (plot, grids) = Plot::new(top, 64.0, values);
        svg += &grids;
        svg += &plot.line(class, values);
        svg += &text(RIGHT, top - 6.0, "class=\"small\" text-anchor=\"end\"", name);
    }
    for minute in (0..=length as u32).step_by(30) {
        let label = format!("{minute} min");
        let x = x(f64::from(minute));
        svg += &text(x, 868.0, "class=\"small\" text-anchor=\"middle\"", &label);
    }
    svg
}
