//! What the gate costs where there are many: readers who stand still, connections at rest, first
//! requests, decisions.
//!
//! `cargo bench --profile dist --bench crowds`, or with names of sections for those alone: stalled,
//! stalled-h2, idle, first, growth, balance. The gate is the program as it is shipped, a process of
//! its own between an origin and the sandbox, which are in this process with the readers, so that
//! what they cost is not counted. All of it is on loopback, and bounded in count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::large_futures
)]
#![allow(dead_code, unused_imports)] // of what benches and tests share, it needs a part

mod balance;
#[path = "../shared/environment.rs"]
mod environment;
mod first;
mod growth;
mod idle;
#[path = "../shared/mod.rs"]
mod shared;
mod stage;
mod stalled;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::fmt;

use http::Version;
use stage::Stage;

const SECTIONS: [&str; 6] = ["stalled", "stalled-h2", "idle", "first", "growth", "balance"];

/// Something that was measured, and the most that it may be where the project holds itself to it.
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    most: Option<f64>,
}

impl Figure {
    fn told(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure { name: name.into(), value, unit, most: None }
    }

    fn asked(name: impl Into<String>, value: f64, unit: &'static str, most: f64) -> Figure {
        Figure { name: name.into(), value, unit, most: Some(most) }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figure { name, value, unit, most } = self;
        write!(f, "{name:<64} {value:>9.2} {unit:<12}")?;
        match most {
            Some(most) if value > most => write!(f, " at most {most}: MISSED"),
            Some(most) => write!(f, " at most {most}: kept"),
            None => Ok(()),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let asked: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = asked.iter().find(|name| !SECTIONS.contains(&name.as_str())) {
        panic!("there is no section {unknown}; there are {}", SECTIONS.join(", "));
    }
    println!("this process may have {} files open at once (ulimit -n)", shared::cost::open_files());
    for section in
        SECTIONS.into_iter().filter(|name| asked.is_empty() || asked.iter().any(|one| one == name))
    {
        println!("\n{section}");
        // What is measured and what it is held against take turns, on a gate each: machines are
        // noisy.
        let (mut stage, other) = (Stage::set().await, Stage::set().await);
        let figures = match section {
            "stalled" => stalled::measure(&stage, &other, Version::HTTP_11, 5000).await,
            "stalled-h2" => stalled::measure(&stage, &other, Version::HTTP_2, 1000).await,
            "idle" => idle::measure(&stage, &other).await,
            "first" => first::measure(&mut stage).await,
            "growth" => growth::measure(&stage, &other).await,
            _ => balance::measure(&stage).await,
        };
        figures.iter().for_each(|figure| println!("{figure}"));
    }
}

/// The one in the middle.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
