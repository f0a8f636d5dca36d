//! A machine with systemd, for a package that is installed, started and removed as on any other.
//!
//! It is a copy-on-write view of this machine's files in namespaces of its own. Its network is that
//! of this machine, so that it reaches the servers of a test. Dropping it removes everything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::external_program::{OwnedProcess, output_text, run, system_file};

/// The timeout for a start of systemd.
const PATIENCE: Duration = Duration::from_secs(60);

/// What may be forbidden, in a container for example.
const ATTEMPT: &str = "set -eu
    mount -t tmpfs tmpfs \"$1\"
    cd \"$1\"
    mkdir changed work root
    mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/changed,workdir=$1/work\" root
    mount -t cgroup2 cgroup2 root/mnt";

/// Its files are in memory, since the files of this machine may be such a view already. systemd
/// starts no service of this machine, only what the target needs, and can change neither its kernel
/// nor its devices nor its network.
const BOOT: &str = "set -eu
    mount -t tmpfs tmpfs \"$1\"
    cd \"$1\"
    mkdir changed work root
    mount -t overlay overlay -o \"lowerdir=/,upperdir=$1/changed,workdir=$1/work\" root
    mount --bind /sys root/sys
    mount -o remount,bind,ro root/sys
    mount -t cgroup2 cgroup2 root/sys/fs/cgroup
    mount -t proc proc root/proc
    mount --bind root/proc/sys root/proc/sys
    mount -o remount,bind,ro root/proc/sys
    mount -t tmpfs -o mode=755 tmpfs root/dev
    mkdir root/dev/pts root/dev/shm
    for node in full null random tty urandom zero; do
        touch root/dev/$node
        mount --bind /dev/$node root/dev/$node
    done
    ln -s /proc/self/fd root/dev/fd
    ln -s pts/ptmx root/dev/ptmx
    mount -t tmpfs tmpfs root/run
    mount -t tmpfs tmpfs root/tmp
    mkdir -p root/run/changed root/run/systemd/system
    for unit in network-online.target nftables.service; do
        ln -s /dev/null root/run/systemd/system/$unit
    done
    mount --bind changed root/run/changed
    cd root
    pivot_root . mnt
    exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . sh -c \
        'umount --lazy /mnt && exec setpriv \
            --bounding-set=-net_admin,-net_raw,-sys_boot,-sys_module,-sys_time --inh-caps=-all \
            /lib/systemd/systemd --system --unit=basic.target'";

/// Where it has the files that differ from those of this machine.
const CHANGED: &str = "/run/changed";

/// A running machine.
#[derive(Debug)]
pub(crate) struct SystemdMachine {
    _process: OwnedProcess,
    /// The process id of its systemd, on this machine.
    systemd: u32,
    _directory: TempDir,
}

impl SystemdMachine {
    /// Boots it. Returns none, and prints why, where there is no systemd or a test may not create
    /// namespaces.
    pub(crate) async fn boot() -> Option<SystemdMachine> {
        system_file("/lib/systemd/systemd", "systemd")?;
        let directory = tempfile::tempdir().unwrap();
        let in_namespaces = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork"]);
            command.args(["--kill-child", "sh", "-c", script, "sh"]).arg(directory.path());
            command
        };
        let attempt = run(&mut in_namespaces(ATTEMPT)).await;
        if !attempt.status.success() {
            eprintln!("skipped: it needs root and its namespaces: {}", output_text(&attempt));
            return None;
        }
        let mut command = in_namespaces(BOOT);
        let log = directory.path().join("boot.log");
        let errors = fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let process = OwnedProcess(command.spawn().unwrap());
        let deadline = Instant::now() + PATIENCE;
        let systemd = loop {
            if let Some(systemd) = systemd_under(process.0.id()) {
                break systemd;
            }
            let said = fs::read_to_string(&log).unwrap();
            assert!(Instant::now() < deadline, "systemd does not start: {said}");
            sleep(Duration::from_millis(20)).await;
        };
        let machine = SystemdMachine { _process: process, systemd, _directory: directory };
        loop {
            let state = machine.run(&["systemctl", "is-active", "basic.target"]).await;
            if state.status.success() {
                return Some(machine);
            }
            assert!(Instant::now() < deadline, "systemd is not ready: {}", output_text(&state));
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where its file is, seen from this machine.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.systemd)).join(path.trim_start_matches('/'))
    }

    /// Runs a command there.
    pub(crate) async fn run(&self, command: &[&str]) -> Output {
        let mut enter = Command::new("nsenter");
        enter.args(["--target", &self.systemd.to_string()]);
        enter.args(["--mount", "--pid", "--cgroup", "--uts", "--ipc", "--root", "--wd"]);
        run(enter.args(command)).await
    }

    /// As [`SystemdMachine::run`]. Returns what it says, and panics if it fails.
    pub(crate) async fn output(&self, command: &[&str]) -> String {
        let output = self.run(command).await;
        assert!(output.status.success(), "{command:?}: {}", output_text(&output));
        output_text(&output)
    }

    /// Returns the paths of all files that differ from those of this machine.
    pub(crate) async fn changed(&self) -> Vec<String> {
        let text = self.output(&["find", CHANGED, "-not", "-type", "d"]).await;
        text.lines().map(|line| line.trim_start_matches(CHANGED).to_owned()).collect()
    }
}

/// Returns the child of `unshare`, once it has become systemd.
fn systemd_under(unshare: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
    let child: u32 = children.split_whitespace().next()?.parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
    (name.trim() == "systemd").then_some(child)
}
