//! A small disk of its own for a test: a tmpfs that the test fills and frees.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs, unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs of this many KiB on a new directory. Where the process may not mount, a
    /// sentence says so and the test is to return; under LOANGATE_TEST_ALL=1 it fails instead.
    pub(crate) fn mount(directory: &Path, kib: u32) -> Option<SmallDisk> {
        fs::create_dir_all(directory).unwrap();
        let size = format!("size={kib}k");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "loangate-test"])
            .arg(directory)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(directory.to_owned()));
        }
        let sentence =
            "skipped: a tmpfs cannot be mounted; run the tests as root, or under `unshare -Urm`";
        let all = std::env::var("LOANGATE_TEST_ALL").is_ok_and(|all| all == "1");
        assert!(!all, "{sentence}");
        // Not by print!, which the test harness captures where a test passes.
        let _ = writeln!(std::io::stderr(), "{sentence}");
        None
    }

    /// Writes a file until the disk has no byte left.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        for size in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    /// Removes that file.
    pub(crate) fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
