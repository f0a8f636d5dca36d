//! Draws the dashboard as one SVG, from what Prometheus has of a run.

use std::fmt::Write;

use loangate::clock::Clock;
use serde_json::Value;

use super::expression::with_variables;
use crate::support::prometheus::Prometheus;

/// How long the run is.
pub(super) const SECONDS: u64 = 100;
/// The time between two points, in seconds.
const STEP: u32 = 2;
/// The pixels of a column and of a row of Grafana's grid.
const COLUMN: f64 = 50.0;
const ROW: f64 = 24.0;
/// The space between panels, and around the plot in a panel.
const GAP: f64 = 3.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;
const COLORS: [&str; 10] = [
    "#2f7ed8", "#8bbc21", "#d9534f", "#e8a33d", "#7b52ab", "#1aadce", "#c42525", "#7a7a7a",
    "#4a9f6e", "#b0722e",
];
/// The most series that the legend of a panel names.
const MAX_NAMED: usize = 4;

/// A series of a panel: its name, and its points by time.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Where a panel is.
struct Frame {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// Returns the picture.
pub(super) async fn draw(dashboard: &Value, prometheus: &Prometheus) -> String {
    let now = Clock::system().now().as_second();
    let times = (now - i64::try_from(SECONDS).unwrap(), now);
    let panels = dashboard["panels"].as_array().unwrap();
    let bottom = |panel: &Value| number(panel, "y") + number(panel, "h");
    let height = panels.iter().map(bottom).fold(0.0, f64::max) * ROW;
    let width = 24.0 * COLUMN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <title>The dashboard of loangate in Grafana's layout, from two minutes of a test</title>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#eef0f2\"/>\n"
    );
    for panel in panels {
        let frame = Frame {
            x: number(panel, "x") * COLUMN + GAP,
            y: number(panel, "y") * ROW + GAP,
            width: number(panel, "w") * COLUMN - 2.0 * GAP,
            height: number(panel, "h") * ROW - 2.0 * GAP,
        };
        let title = escape(panel["title"].as_str().unwrap());
        if panel["type"] == "row" {
            let y = frame.y + 13.0;
            let look = "font-size=\"13\" font-weight=\"bold\"";
            writeln!(svg, "<text x=\"6\" y=\"{y}\" {look}>{title}</text>").unwrap();
            continue;
        }
        let Frame { x, y, width, height } = frame;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"3\" \
             fill=\"#fff\" stroke=\"#d5d9dd\"/>\n<text x=\"{}\" y=\"{}\" \
             font-weight=\"bold\">{title}</text>",
            x + 8.0,
            y + 16.0
        )
        .unwrap();
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
        let series = series_of(panel, prometheus, times).await;
        if panel["type"] == "stat" {
            draw_value(&mut svg, &frame, panel, unit, &series);
        } else {
            draw_lines(&mut svg, &frame, panel, unit, &series, times);
        }
    }
    svg + "</svg>\n"
}

fn number(panel: &Value, key: &str) -> f64 {
    panel["gridPos"][key].as_f64().unwrap()
}

async fn series_of(panel: &Value, prometheus: &Prometheus, times: (i64, i64)) -> Vec<Series> {
    let mut all = Vec::new();
    for target in panel["targets"].as_array().unwrap() {
        let expression = with_variables(target["expr"].as_str().unwrap());
        for found in prometheus.query_range(&expression, times, STEP).await {
            let mut name = target["legendFormat"].as_str().unwrap().to_owned();
            for (label, value) in found["metric"].as_object().unwrap() {
                // The port differs from run to run.
                let value = if label == "instance" { "gate" } else { value.as_str().unwrap() };
                name = name.replace(&format!("{{{{{label}}}}}"), value);
            }
            let points = found["values"].as_array().unwrap().iter();
            let points = points.map(|point| {
                (point[0].as_f64().unwrap(), point[1].as_str().unwrap().parse().unwrap())
            });
            all.push(Series { name, points: points.collect() });
        }
    }
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal" {
        stack(&mut all);
    }
    all
}

/// Adds to each series those before it.
fn stack(all: &mut [Series]) {
    let mut sums = std::collections::BTreeMap::new();
    for series in all {
        for (time, value) in &mut series.points {
            let sum: &mut f64 = sums.entry(*time as i64).or_default();
            *sum += if value.is_finite() { *value } else { 0.0 };
            *value = *sum;
        }
    }
}

fn draw_value(svg: &mut String, frame: &Frame, panel: &Value, unit: &str, series: &[Series]) {
    let last = series.first().and_then(|series| series.points.last());
    let value = last.map_or(f64::NAN, |(_, value)| *value);
    let defaults = &panel["fieldConfig"]["defaults"];
    let named = &defaults["mappings"][0]["options"][format!("{value:.0}")]["text"];
    let text = named.as_str().map_or_else(|| text_of(value, unit), str::to_owned);
    let steps = defaults["thresholds"]["steps"].as_array().unwrap().iter();
    let reached = steps.rev().find(|step| step["value"].as_f64().is_none_or(|from| value >= from));
    let color = match reached.and_then(|step| step["color"].as_str()) {
        Some("red") => COLORS[2],
        Some("yellow") => COLORS[3],
        _ => COLORS[8],
    };
    let (x, y) = (frame.x + frame.width / 2.0, frame.y + frame.height * 0.72);
    let (look, text) = ("text-anchor=\"middle\" font-size=\"22\"", escape(&text));
    writeln!(svg, "<text x=\"{x}\" y=\"{y}\" {look} fill=\"{color}\">{text}</text>").unwrap();
}

fn draw_lines(
    svg: &mut String,
    frame: &Frame,
    panel: &Value,
    unit: &str,
    series: &[Series],
    (from, to): (i64, i64),
) {
    let values = series.iter().flat_map(|series| &series.points).map(|(_, value)| *value);
    let values = values.filter(|value| value.is_finite());
    let (lowest, highest) =
        values.fold((0.0_f64, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let fixed = panel["fieldConfig"]["defaults"]["max"].as_f64();
    let least = if unit == "s" { 0.001 } else { 1.0 };
    let highest = if highest > 0.0 { fixed.unwrap_or(highest) } else { least };
    let (left, right) = (frame.x + LEFT, frame.x + frame.width - 10.0);
    let (top, bottom) = (frame.y + TOP, frame.y + frame.height - BOTTOM);
    let y = |value: f64| bottom - (value - lowest) / (highest - lowest) * (bottom - top);
    let x = |time: f64| left + (time - from as f64) / (to - from) as f64 * (right - left);
    for tick in [lowest, f64::midpoint(lowest, highest), highest] {
        let (height, label) = (y(tick), escape(&text_of(tick, unit)));
        writeln!(
            svg,
            "<path d=\"M{left} {height:.1}H{right}\" stroke=\"#e3e6e9\"/><text x=\"{}\" \
             y=\"{:.1}\" text-anchor=\"end\" font-size=\"9\">{label}</text>",
            left - 4.0,
            height + 3.0
        )
        .unwrap();
    }
    for (index, series) in series.iter().enumerate() {
        let mut path = String::new();
        let mut letter = 'M';
        for (time, value) in &series.points {
            if value.is_finite() {
                write!(path, "{letter}{:.0} {:.1}", x(*time), y(*value)).unwrap();
            }
            letter = if value.is_finite() { 'L' } else { 'M' };
        }
        let color = COLORS[index % COLORS.len()];
        writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\"/>")
            .unwrap();
    }
    draw_legend(svg, frame, series);
}

/// Names the series with the largest values.
fn draw_legend(svg: &mut String, frame: &Frame, series: &[Series]) {
    let mut x = frame.x + 8.0;
    let legend = frame.y + frame.height - 10.0;
    if series.is_empty() {
        writeln!(svg, "<text x=\"{x}\" y=\"{legend}\" fill=\"#888\">no data</text>").unwrap();
    }
    let peak = |series: &Series| {
        let values = series.points.iter().map(|(_, value)| *value);
        values.filter(|value| value.is_finite()).fold(0.0, f64::max)
    };
    let mut largest: Vec<(usize, &Series)> = series.iter().enumerate().collect();
    largest.sort_by(|(_, one), (_, other)| peak(other).total_cmp(&peak(one)));
    for (index, series) in largest.into_iter().take(MAX_NAMED) {
        let name: String = series.name.chars().take(22).collect();
        let color = COLORS[index % COLORS.len()];
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"9\" height=\"3\" fill=\"{color}\"/><text \
             x=\"{}\" y=\"{legend}\" font-size=\"9\">{}</text>",
            legend - 4.0,
            x + 12.0,
            escape(&name)
        )
        .unwrap();
        x += 24.0 + name.chars().count() as f64 * 4.9;
    }
}

/// Returns a value as Grafana shows it.
fn text_of(value: f64, unit: &str) -> String {
    let short = |value: f64| match value.abs() {
        v if v >= 1e9 => format!("{:.1} G", value / 1e9),
        v if v >= 1e6 => format!("{:.1} M", value / 1e6),
        v if v >= 1e3 => format!("{:.1} k", value / 1e3),
        v if v >= 10.0 || v.fract() < 1e-9 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    };
    match unit {
        _ if !value.is_finite() => "no data".to_owned(),
        "percentunit" => format!("{:.2} %", value * 100.0),
        "s" if value.abs() >= 86_400.0 => format!("{:.1} d", value / 86_400.0),
        "s" if value.abs() >= 60.0 => format!("{:.1} min", value / 60.0),
        "s" if value.abs() < 1.0 && value.abs() > 0.0 => format!("{:.1} ms", value * 1000.0),
        "s" => format!("{value:.1} s"),
        "Bps" => format!("{}B/s", short(value)),
        "bytes" => format!("{}B", short(value)),
        _ => short(value),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}
