//! Results of a run: as text, as JSON, as a Markdown table, and as a chart.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::proxies::Kind;
use crate::rows::{Load, ROWS, Row};

/// The figures of all rounds, by row and proxy.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<(&'static str, &'static str), Vec<f64>>);

impl Samples {
    pub(crate) fn add(&mut self, row: &'static str, kind: Kind, figures: (f64, Option<f64>)) {
        self.0.entry((row, kind.name())).or_default().push(figures.0);
        if let Some(wait) = figures.1 {
            self.0.entry(("wait", kind.name())).or_default().push(wait);
        }
    }

    fn of(&self, row: &str, kind: Kind) -> Spread {
        let mut all = self.0.get(&(row, kind.name())).cloned().unwrap_or_default();
        all.sort_by(f64::total_cmp);
        Spread(all)
    }
}

/// The sorted figures of one row and proxy.
struct Spread(Vec<f64>);

impl Spread {
    fn least(&self) -> f64 {
        self.0[0]
    }

    fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

pub(crate) struct Report {
    kinds: Vec<Kind>,
    rows: Vec<Row>,
    samples: Samples,
    cipher: String,
}

/// Marks that enclose the table in a Markdown file.
const MARKS: [&str; 2] = ["<!-- the table of a run: begin -->", "<!-- the table of a run: end -->"];

impl Report {
    pub(crate) fn of(kinds: &[Kind], rows: &[Row], samples: Samples, cipher: String) -> Report {
        let measured = |row: &Row| {
            let with_rate = row.load == Load::Wait && rows.iter().any(|row| row.load == Load::Rate);
            with_rate || rows.iter().any(|other| other.key == row.key)
        };
        Report {
            kinds: kinds.to_vec(),
            rows: ROWS.into_iter().filter(measured).collect(),
            samples,
            cipher,
        }
    }

    fn ratio(&self, row: &Row, peer: Kind) -> Option<f64> {
        let theirs = self.kinds.contains(&peer).then(|| self.samples.of(row.key, peer).median());
        theirs.map(|theirs| self.samples.of(row.key, Kind::Gate).median() / theirs)
    }

    fn peers(&self) -> impl Iterator<Item = (usize, Kind)> {
        [Kind::Nginx, Kind::Haproxy]
            .into_iter()
            .enumerate()
            .filter(|(_, kind)| self.kinds.contains(kind))
    }

    fn machine(&self) -> Vec<(&'static str, String)> {
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let model = model.map_or("a CPU", |(_, model)| model);
        let mut all = vec![(
            "machine",
            format!("{model}, {cores} cores, Linux {}", read("/proc/sys/kernel/osrelease").trim()),
        )];
        all.extend(self.kinds.iter().map(|kind| (kind.name(), kind.version())));
        all.push(("cipher of all", self.cipher.clone()));
        all.push((
            "command",
            format!(
                "cargo bench --profile dist --bench peers -- {}",
                std::env::args().skip(1).filter(|a| a != "--bench").collect::<Vec<_>>().join(" ")
            ),
        ));
        all
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in self.machine() {
            writeln!(text, "{name}: {value}").unwrap();
        }
        for cells in self.table() {
            writeln!(text).unwrap();
            for (cell, width) in cells.iter().zip([34, 11, 27, 27, 27, 18, 18]) {
                write!(text, "{cell:<width$}").unwrap();
            }
        }
        text + "\n"
    }

    fn table(&self) -> Vec<Vec<String>> {
        let mut head = vec!["median (least to most)".to_owned(), "unit".to_owned()];
        head.extend(self.kinds.iter().map(|kind| kind.name().to_owned()));
        head.extend(self.peers().map(|(_, kind)| format!("to {} (at most)", kind.name())));
        let rows = self.rows.iter().map(|row| self.cells(row));
        std::iter::once(head).chain(rows).collect()
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let mut cells = vec![row.name.to_owned(), row.unit.to_owned()];
        for kind in &self.kinds {
            let spread = self.samples.of(row.key, *kind);
            let shown = |figure: f64| {
                if figure < 10.0 { format!("{figure:.2}") } else { format!("{figure:.1}") }
            };
            let [least, median, most] = [spread.least(), spread.median(), spread.most()].map(shown);
            cells.push(format!("{median} ({least} to {most})"));
        }
        for (place, peer) in self.peers() {
            let ratio = self.ratio(row, peer).unwrap();
            cells.push(match row.bound[place] {
                Some(bound) if ratio <= bound => format!("{ratio:.2} ({bound:.2})"),
                Some(bound) => format!("{ratio:.2} ({bound:.2}: missed)"),
                None => format!("{ratio:.2}"),
            });
        }
        cells
    }

    pub(crate) fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let samples = self
                .kinds
                .iter()
                .map(|kind| (kind.name().to_owned(), json!(self.samples.of(row.key, *kind).0)));
            let ratios = self.peers().map(|(place, peer)| {
                (
                    peer.name().to_owned(),
                    json!({ "ratio": self.ratio(row, peer), "at_most": row.bound[place] }),
                )
            });
            json!({
                "row": row.key, "name": row.name, "unit": row.unit,
                "samples": samples.collect::<serde_json::Map<_, _>>(),
                "to": ratios.collect::<serde_json::Map<_, _>>(),
            })
        });
        let machine =
            self.machine().into_iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
        let all = json!({
            "run": machine.collect::<serde_json::Map<_, _>>(),
            "rows": rows.collect::<Vec<_>>(),
        });
        serde_json::to_string_pretty(&all).unwrap() + "\n"
    }

    /// Writes the table between the marks of a Markdown file.
    pub(crate) fn put_into(&self, file: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let [begin, end] = MARKS;
        let (before, rest) =
            text.split_once(begin).expect("the file has no mark where the table begins");
        let (_, after) = rest.split_once(end).expect("the file has no mark where the table ends");
        let mut table = String::new();
        for (number, cells) in self.table().into_iter().enumerate() {
            writeln!(table, "| {} |", cells.join(" | ")).unwrap();
            if number == 0 {
                writeln!(table, "|{}", "---|".repeat(cells.len())).unwrap();
            }
        }
        for (name, value) in self.machine() {
            write!(table, "\n- {name}: {value}").unwrap();
        }
        std::fs::write(file, format!("{before}{begin}\n\n{table}\n\n{end}{after}")).unwrap();
    }

    /// Returns a bar chart of the gate's cost relative to each peer's.
    pub(crate) fn svg(&self) -> String {
        let peers: Vec<_> = self.peers().collect();
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.key != "wait").collect();
        let (left, scale, step) = (250.0, 300.0, 16.0 * peers.len() as f64 + 12.0);
        let height = 66.0 + step * rows.len() as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 {height}\" \
             font-family=\"sans-serif\" font-size=\"13\">
<title>What loangate costs where a peer costs 1</title>
<style>text {{ fill: #24292f }} .nginx {{ fill: #0a7d4f }} .haproxy {{ fill: #3b6fc4 }} \
             line {{ stroke: #24292f; stroke-dasharray: 4 3 }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} line {{ stroke: #e6edf3 }} \
             .nginx {{ fill: #3fb68b }} .haproxy {{ fill: #6ea0f0 }} }}</style>
<text x=\"8\" y=\"20\" font-weight=\"bold\">\
             What loangate costs where a peer costs 1 (less is better)</text>
"
        );
        for (place, (_, peer)) in peers.iter().enumerate() {
            let x = 430 + place * 120;
            writeln!(
                svg,
                "<rect class=\"{0}\" x=\"{x}\" y=\"32\" width=\"12\" \
                           height=\"12\"/><text x=\"{1}\" y=\"43\">to {0}</text>",
                peer.name(),
                x + 18
            )
            .unwrap();
        }
        for (number, row) in rows.iter().enumerate() {
            let y = 56.0 + step * number as f64;
            let middle = y + 8.0 * peers.len() as f64 + 4.0;
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                row.name
            )
            .unwrap();
            for (place, (_, peer)) in peers.iter().enumerate() {
                let ratio = self.ratio(row, *peer).unwrap();
                let (y, width) = (y + 16.0 * place as f64, (ratio * scale).min(460.0));
                writeln!(
                    svg,
                    "<rect class=\"{}\" x=\"{left}\" y=\"{y}\" width=\"{width:.0}\" \
                               height=\"14\"/><text x=\"{:.0}\" y=\"{}\" \
                               font-size=\"11\">{ratio:.2}</text>",
                    peer.name(),
                    left + width + 5.0,
                    y + 11.0
                )
                .unwrap();
            }
        }
        let one = left + scale;
        writeln!(
            svg,
            "<line x1=\"{one}\" x2=\"{one}\" y1=\"50\" y2=\"{}\"/>\n</svg>",
            height - 8.0
        )
        .unwrap();
        svg
    }
}
