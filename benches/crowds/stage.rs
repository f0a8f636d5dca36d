//! The gate with everything around it, and its readers.

use std::time::Duration;

use bytes::Bytes;

use crate::environment;
use crate::shared::load::{Client, Target};
use crate::shared::{cost, origin};
use crate::support::{BOOK, Process, Scene};

pub(crate) const SMALL: usize = 1 << 10;
pub(crate) const LARGE: usize = 100 << 20;

pub(crate) struct Stage {
    pub(crate) scene: Scene,
    pub(crate) gate: Process,
    pub(crate) client: Client,
}

impl Stage {
    pub(crate) async fn set_up() -> Stage {
        let files =
            [SMALL, LARGE].map(|size| (format!("/{BOOK}/{size}"), Bytes::from(vec![0xa5; size])));
        let (mut scene, client) = environment::around(origin::serve_sparingly(files.into())).await;
        let gate = scene.spawn_gate().await;
        Stage { scene, gate, client }
    }

    /// Stops the gate gracefully and restarts it with the same ledger.
    pub(crate) async fn restart(&mut self) {
        self.gate.terminate();
        assert!(self.gate.exit().await.success());
        self.gate = self.scene.spawn_gate().await;
    }

    /// Returns the target for the file of this size.
    pub(crate) fn target(&self, size: usize) -> Target {
        let port = environment::port_of(&self.scene.base);
        let path = format!("/files/{BOOK}/{size}");
        Target { port, path, token: self.token("kari"), size: size as u64 }
    }

    /// Returns the Authorization value of this reader.
    pub(crate) fn token(&self, reader: &str) -> String {
        format!("Bearer {}", self.scene.token(reader))
    }

    /// Returns the Authorization values of this many readers.
    pub(crate) fn tokens(&self, readers: usize) -> Vec<String> {
        (0..readers).map(|number| self.token(&format!("reader-{number}"))).collect()
    }

    pub(crate) fn process(&self) -> u32 {
        self.gate.child.id()
    }

    /// Returns the CPU seconds of the gate so far.
    pub(crate) fn spent(&self) -> f64 {
        cost::cpu(self.process())
    }

    /// Returns the CPU seconds that the gate spends on this load.
    pub(crate) async fn costs(&self, load: impl Future<Output = ()>) -> f64 {
        let before = self.spent();
        load.await;
        self.spent() - before
    }

    /// Like [`Stage::costs`], including all work until the gate is idle.
    pub(crate) async fn costs_in_all(&self, load: impl Future<Output = ()>) -> f64 {
        const QUIET: f64 = 0.005;
        let before = self.spent();
        load.await;
        for _ in 0..30 {
            let so_far = self.spent();
            tokio::time::sleep(Duration::from_secs(1)).await;
            if self.spent() - so_far < QUIET {
                break;
            }
        }
        self.spent() - before
    }
}
