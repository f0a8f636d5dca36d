//! The Debian package on a machine with systemd: installed, started by its unit, upgraded while
//! readers download, and purged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::packages;
use super::upgrade::{self, Downloads, Load};
use crate::support::Scene;
use crate::support::systemd_machine::SystemdMachine;

/// What stays after a purge, besides what the machine itself writes: the operator's own files.
const DATA: [&str; 2] = ["/etc/loangate/certs/", "/var/lib/loangate/"];
/// What systemd, dpkg and their triggers write on any machine.
const OF_THE_MACHINE: [&str; 8] = [
    "/etc/.pwd.lock",
    "/etc/machine-id",
    "/root/",
    "/var/cache/",
    "/var/lib/dpkg/",
    "/var/lib/systemd/",
    "/var/log/",
    "/var/tmp/",
];
/// The user of the service stays, too: its files would belong to another one.
const ACCOUNTS: [&str; 8] = [
    "/etc/group",
    "/etc/group-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/shadow",
    "/etc/shadow-",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_package_serves_upgrades_and_leaves_only_data() {
    if !packages::can_package() {
        return;
    }
    let Some(machine) = SystemdMachine::boot().await else { return };
    let directory = tempfile::tempdir().unwrap();
    let package = packages::package(directory.path()).await;
    let before = of_version(&package, "0.0.1~before", directory.path()).await;
    for (file, name) in [(&before, "before.deb"), (&package, "loangate.deb")] {
        fs::copy(file, machine.file("/root").join(name)).unwrap();
    }
    machine.output(&["dpkg", "--install", "/root/before.deb"]).await;
    assert_eq!(main_process(&machine).await, 0, "it is not configured");
    let scene = upgrade::scene("").await;
    configure(&machine, &scene).await;
    machine.output(&["systemctl", "start", "loangate"]).await;
    let first = main_process(&machine).await;
    assert_eq!(upgrade::readiness(&scene).await, http::StatusCode::OK);

    let downloads = Downloads::start(&scene, 20).await;
    let load = Load::start(&scene);
    load.more(&scene, 50).await;
    let said = machine.output(&["dpkg", "--install", "/root/loangate.deb"]).await;
    assert!(!said.contains("still serves"), "{said}");
    let second = main_process(&machine).await;
    assert!(first != 0 && second != 0 && first != second, "{first}, {second}");
    load.more(&scene, 50).await;
    let served = load.end().await;
    let completed = downloads.complete().await;
    println!("{completed} downloads and {served} new connections through the upgrade");
    assert_eq!(machine.output(&["systemctl", "is-active", "loangate"]).await.trim(), "active");

    machine.output(&["dpkg", "--purge", "loangate"]).await;
    assert_eq!(main_process(&machine).await, 0);
    let changed = machine.changed().await;
    let is_expected = |path: &&String| {
        let starts = OF_THE_MACHINE.iter().chain(&DATA).any(|start| path.starts_with(start));
        starts || ACCOUNTS.contains(&path.as_str())
    };
    let left: Vec<_> = changed.iter().filter(|path| !is_expected(path)).collect();
    assert!(left.is_empty(), "{left:?}");
    for data in ["/etc/loangate/certs/server.key", "/var/lib/loangate/loangate.db"] {
        assert!(changed.iter().any(|path| path == data), "{data} is lost: {changed:?}");
    }
    scene.end().await;
}

/// Returns the same package as another version.
async fn of_version(package: &Path, version: &str, directory: &Path) -> PathBuf {
    let (tree, built) = (directory.join("before"), directory.join("before.deb"));
    packages::output_of(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree)).await;
    let control = tree.join("DEBIAN/control");
    let text = fs::read_to_string(&control).unwrap();
    let line = text.lines().find(|line| line.starts_with("Version:")).unwrap();
    fs::write(&control, text.replace(line, &format!("Version: {version}"))).unwrap();
    let mut build = Command::new("dpkg-deb");
    packages::output_of(build.args(["-Znone", "-b"]).arg(&tree).arg(&built)).await;
    built
}

/// Puts the configuration of the scene and its keys where the unit expects them.
async fn configure(machine: &SystemdMachine, scene: &Scene) {
    let text = fs::read_to_string(scene.config_file()).unwrap();
    let ledger = "sqlite:data/loangate.db";
    assert!(text.contains(ledger), "{text}");
    let text = text.replace(ledger, "sqlite:/var/lib/loangate/loangate.db");
    fs::write(machine.file("/etc/loangate/loangate.toml"), text).unwrap();
    for entry in fs::read_dir(scene.dir.path().join("certs")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), machine.file("/etc/loangate/certs").join(entry.file_name()))
            .unwrap();
    }
    let all = "chown root:_loangate /etc/loangate/certs/* && chmod 0640 /etc/loangate/certs/*";
    machine.output(&["sh", "-c", all]).await;
}

/// Returns the process id of the unit's gate; 0 if none runs.
async fn main_process(machine: &SystemdMachine) -> u32 {
    let show = ["systemctl", "show", "--property=MainPID", "--value", "loangate"];
    machine.output(&show).await.trim().parse().unwrap()
}
