//! Resource use of a process and its children: CPU in nanoseconds, and memory.

use std::fs;
use std::time::Duration;

/// Returns the CPU seconds so far of the running threads of a process and its children. The kernel
/// counts these in nanoseconds, while /proc/PID/stat has ticks of ten milliseconds.
pub(crate) fn cpu(process: u32) -> f64 {
    family(process).iter().flat_map(|process| threads(*process)).map(|thread| thread.cpu).sum()
}

/// A thread's name and its CPU seconds so far.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) name: String,
    pub(crate) cpu: f64,
}

/// Returns the threads of a process.
pub(crate) fn threads(process: u32) -> Vec<Thread> {
    let Ok(all) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    all.flatten()
        .filter_map(|entry| {
            let spent = fs::read_to_string(entry.path().join("schedstat")).ok()?;
            let nanoseconds: f64 = spent.split(' ').next()?.parse().ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned();
            Some(Thread { name, cpu: nanoseconds / 1e9 })
        })
        .collect()
}

/// Returns the CPU seconds so far of the threads of a gate that serve readers.
pub(crate) fn serving(process: u32) -> f64 {
    let all = threads(process).into_iter();
    all.filter(|thread| thread.name.starts_with("worker-")).map(|thread| thread.cpu).sum()
}

/// Returns the resident memory of a process and its children, in KiB. Each counts shared memory.
pub(crate) fn memory(process: u32) -> u64 {
    family(process)
        .iter()
        .filter_map(|process| {
            let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        })
        .sum()
}

/// Returns the system's memory for all TCP connections, in megabytes.
pub(crate) fn memory_of_tcp() -> f64 {
    const PAGE: f64 = 4096.0;
    let text = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("TCP:"));
    let pages = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    pages.unwrap_or(0.0) * PAGE / 1e6
}

/// Returns the memory once it is stable for three seconds, or after twenty.
pub(crate) async fn steady(process: u32) -> u64 {
    let (mut last, mut still) = (memory(process), 0);
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = memory(process);
        still = if now.abs_diff(last) * 200 <= last { still + 1 } else { 0 };
        last = now;
        if still == 6 {
            break;
        }
    }
    last
}

/// Returns a process and its children.
fn family(process: u32) -> Vec<u32> {
    let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let other: u32 = entry.file_name().to_string_lossy().parse().ok()?;
        (super::parent_of(other) == Some(process)).then_some(other)
    });
    std::iter::once(process).chain(children).collect()
}

/// Returns the limit of open files of this process.
pub(crate) fn open_files() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(1024)
}
