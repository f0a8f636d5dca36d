//! Shared bench support: a sandbox process, resource use of processes, and percentiles of waits.

pub(crate) mod cost;
pub(crate) mod load;
pub(crate) mod origin;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use loangate::lending::{self, Auth};
use loangate::sandbox::{AUDIENCE, Bounds};
use serde_json::Value;

/// `loangate sandbox` as a process without delays; killed when it is dropped.
pub(crate) struct Sandbox {
    child: Child,
    told: Value,
}

impl Sandbox {
    /// Starts it with books in memory, or in this directory.
    pub(crate) fn start(books: Option<&Path>) -> Sandbox {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
        command.args(["sandbox", "--json", "--listen", "127.0.0.1:0", "--bounds"]);
        command.arg(serde_json::to_string(&Bounds::quick()).unwrap());
        if let Some(books) = books {
            command.arg("--dir").arg(books);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Sandbox { child, told: serde_json::from_str(&line).unwrap() }
    }

    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ready_field(&self, name: &str) -> String {
        self.told[name].as_str().unwrap().to_owned()
    }

    /// Returns the `[lending]` settings of a gate that uses this sandbox.
    pub(crate) fn lending(&self) -> lending::Settings {
        lending::Settings {
            url: self.ready_field("url").parse().unwrap(),
            auth: Auth::OAuth {
                token_url: self.ready_field("token_url").parse().unwrap(),
                audience: AUDIENCE.to_owned(),
                client_id: self.ready_field("client_id"),
                client_secret: self.ready_field("client_secret").into(),
            },
            concurrency: 32,
            timeout: Duration::from_secs(10),
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the CPU seconds of a process without its children.
pub(crate) fn cpu_without_children(process: u32) -> f64 {
    ticks_of(process) as f64 / 100.0
}

/// Returns the fields of /proc/PID/stat after the name, which may contain spaces.
fn stat(process: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, after) = text.rsplit_once(") ")?;
    Some(after.split(' ').map(str::to_owned).collect())
}

fn ticks_of(process: u32) -> u64 {
    let fields = stat(process);
    fields
        .map_or(0, |fields| fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
}

fn parent_of(process: u32) -> Option<u32> {
    stat(process)?.get(1)?.parse().ok()
}

/// Sorted waits, for percentiles.
pub(crate) struct Waits(Vec<Duration>);

impl Waits {
    pub(crate) fn of(mut waits: Vec<Duration>) -> Waits {
        waits.sort();
        Waits(waits)
    }

    /// Returns the wait that this fraction of them does not exceed.
    pub(crate) fn at(&self, part: f64) -> Duration {
        self.0[((self.0.len() - 1) as f64 * part) as usize]
    }
}

/// Returns the median of these values.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
