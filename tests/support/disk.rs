//! A tmpfs that a test fills and frees, to simulate a full disk.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs, unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts a tmpfs of this size in KiB on a new directory.
    ///
    /// Without the right to mount, prints why the test is skipped and returns `None`. With
    /// `LOANGATE_TEST_ALL=1` it panics instead.
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
        // The test harness captures `print!` of passing tests.
        let _ = writeln!(std::io::stderr(), "{sentence}");
        None
    }

    /// Writes a file until no space is left.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.ballast()).unwrap();
        for size in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }

    /// Removes the file that [`SmallDisk::fill`] wrote.
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
