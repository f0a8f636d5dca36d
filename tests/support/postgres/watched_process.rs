//! A server program that ends when the test process ends, even by SIGKILL, and then removes its
//! folder. Also the means to signal it and its children.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::account::Account;

/// Timeout for an end of processes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which processes are polled for their end.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Starts the program of its arguments and prints its process id. At the end of its standard input,
/// which is at the latest the end of the test process, ends the program and removes the folder.
///
/// A paused program continues first, with its children, else the end of PostgreSQL takes 5 s more.
/// A PostgreSQL server that was killed leaves behind a segment of shared memory, whose id is in the
/// seventh line of `postmaster.pid`.
const WATCHDOG: &str = r#"
signal=$1 folder=$2
shift 2
"$@" >&2 &
pid=$!
echo $pid
read -r word
kill -CONT $(cat /proc/$pid/task/$pid/children) $pid
kill -"$signal" $pid
wait $pid
[ "$word" = keep ] && exit
set -- $(sed -n 7p "$folder/data/postmaster.pid")
[ -z "$2" ] || ipcrm -m "$2"
rm -rf "$folder"
"#;

/// A program under a watchdog. Dropping it ends the program and removes its folder.
#[derive(Debug)]
pub(super) struct WatchedProcess {
    watchdog: Child,
    control: Option<ChildStdin>,
    pid: Pid,
}

impl WatchedProcess {
    /// Returns the id of the program's process.
    pub(super) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }

    /// Starts a program under this account, with its output in `log` of the folder. The signal, for
    /// example `QUIT`, must end the program at once.
    pub(super) fn start(
        program: &[PathBuf],
        signal: &str,
        folder: &Path,
        account: Option<Account>,
    ) -> WatchedProcess {
        // Appended, so that the log before a restart is kept.
        let log = File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", WATCHDOG, "watchdog", signal]).arg(folder).args(program);
        // A group of its own, so that the terminal's Ctrl-C does not end the watchdog.
        command.current_dir(folder).process_group(0);
        if let Some(account) = account {
            account.apply(&mut command);
        }
        let mut watchdog = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("sh starts");
        let mut line = String::new();
        BufReader::new(watchdog.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let pid = line.trim().parse().ok().and_then(Pid::from_raw).expect("a process id");
        WatchedProcess { control: watchdog.stdin.take(), watchdog, pid }
    }

    /// Returns whether the program still runs.
    pub(super) fn is_running(&self) -> bool {
        is_running(self.pid)
    }

    /// Sends a signal to the program alone. Returns its process id.
    pub(super) fn signal(&self, signal: Signal) -> Pid {
        send(self.pid, signal);
        self.pid
    }

    /// Sends a signal to the program and its children. Returns their process ids.
    ///
    /// The program is stopped first, so that it starts no further child meanwhile.
    pub(super) fn signal_all(&self, signal: Signal) -> Vec<Pid> {
        send(self.pid, Signal::STOP);
        let mut processes = children(self.pid);
        processes.push(self.pid);
        for &process in &processes {
            send(process, signal);
        }
        processes
    }

    /// Ends the program and its watchdog. The folder remains.
    pub(super) async fn end_and_keep_folder(mut self) {
        if let Some(mut control) = self.control.take() {
            let _ = control.write_all(b"keep\n");
        }
        let deadline = Instant::now() + PATIENCE;
        while self.watchdog.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the watchdog of {:?} does not end", self.pid);
            sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for WatchedProcess {
    fn drop(&mut self) {
        self.control = None;
        let _ = self.watchdog.wait();
    }
}

/// Waits until none of these processes runs.
pub(super) async fn wait_for(processes: &[Pid]) {
    let deadline = Instant::now() + PATIENCE;
    while processes.iter().any(|&process| is_running(process)) {
        assert!(Instant::now() < deadline, "one of {processes:?} does not end");
        sleep(POLL_INTERVAL).await;
    }
}

/// Sends a signal to a process, which may be gone already.
fn send(process: Pid, signal: Signal) {
    let _ = kill_process(process, signal);
}

/// Returns whether a process exists and is no zombie.
fn is_running(process: Pid) -> bool {
    status(process.as_raw_nonzero().get()).is_some_and(|(state, _)| state != "Z" && state != "X")
}

fn children(parent: Pid) -> Vec<Pid> {
    let parent = parent.as_raw_nonzero().get();
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let (_, parent_of_id) = status(id)?;
        (parent_of_id == parent).then(|| Pid::from_raw(id)).flatten()
    });
    entries.collect()
}

/// Returns the state and the parent of a process.
fn status(id: i32) -> Option<(String, i32)> {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name of the program may contain spaces and parentheses.
    let (_, fields) = status.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
