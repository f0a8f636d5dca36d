//! Cost of the gate with many clients: stalled readers, idle connections, first requests, cached
//! decisions.
//!
//! `cargo bench --profile dist --bench crowds`, optionally with section names: stalled, stalled-h2,
//! idle, first, growth, balance. The gate is the release program in its own process. The origin,
//! the sandbox and the readers are in this process, so their cost is not counted. Everything runs
//! on loopback and is bounded in count.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::large_futures
)]
#![allow(dead_code, unused_imports)] // uses only a part of the shared support

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

/// A measured value, and its limit where the project sets one.
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    most: Option<f64>,
}

impl Figure {
    fn unbounded(name: impl Into<String>, value: f64, unit: &'static str) -> Figure {
        Figure { name: name.into(), value, unit, most: None }
    }

    fn bounded(name: impl Into<String>, value: f64, unit: &'static str, most: f64) -> Figure {
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
    let names: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if let Some(unknown) = names.iter().find(|name| !SECTIONS.contains(&name.as_str())) {
        panic!("there is no section {unknown}; there are {}", SECTIONS.join(", "));
    }
    println!("this process may have {} files open at once (ulimit -n)", shared::cost::open_files());
    for section in
        SECTIONS.into_iter().filter(|name| names.is_empty() || names.iter().any(|one| one == name))
    {
        println!("\n{section}");
        // A measurement alternates with its baseline, each on its own gate, since machines are
        // noisy.
        let (mut stage, other) = (Stage::set_up().await, Stage::set_up().await);
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
