//! Random faults of one round: gates that die or pause, a database that dies, connections to it
//! that break or slow down, and calls of Bokbasen that fail.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::cluster::{Cluster, LEASE};
use crate::support::tcp_proxy::Link;

/// A fault with its parameters, so that a seed repeats it.
#[derive(Clone)]
pub(super) enum Fault {
    /// `kill -9` of a gate, and a restart after this time.
    KillGate { gate: usize, restart_after: Duration },
    /// SIGSTOP of a gate, and SIGCONT after this time.
    PauseGate { gate: usize, pause: Duration },
    /// SIGKILL of all processes of the database, and a restart after this time.
    KillDatabase { restart_after: Duration },
    /// A gate's connections to the database are aborted, and new ones too for this time.
    CutGate { gate: usize, cut: Duration },
    /// Each message between a gate and the database takes longer by `delay`.
    SlowGate { gate: usize, delay: Duration },
    /// A gate's connections to the database stay open, and nothing arrives for this time.
    StallGate { gate: usize, stall: Duration },
    /// Calls of Bokbasen fail as this list of the sandbox's faults says.
    Lending(Value),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::KillGate { gate, restart_after } => {
                write!(f, "kill gate {gate} {restart_after:?}")
            }
            Fault::PauseGate { gate, pause } => write!(f, "pause gate {gate} {pause:?}"),
            Fault::KillDatabase { restart_after } => write!(f, "kill database {restart_after:?}"),
            Fault::CutGate { gate, cut } => write!(f, "cut gate {gate} {cut:?}"),
            Fault::SlowGate { gate, delay } => write!(f, "slow gate {gate} {delay:?}"),
            Fault::StallGate { gate, stall } => write!(f, "stall gate {gate} {stall:?}"),
            Fault::Lending(faults) => write!(f, "lending {faults}"),
        }
    }
}

/// The time for which a fault that ends with its round lasts.
const SLOW_TIME: Duration = Duration::from_secs(1);

impl Fault {
    /// Draws a fault for a cluster of this number of gates.
    pub(super) fn draw(chance: &mut fastrand::Rng, gates: usize, has_database: bool) -> Fault {
        let gate = chance.usize(..gates);
        let mut up_to = |longest: Duration| {
            Duration::from_millis(chance.u64(..u64::try_from(longest.as_millis()).unwrap()))
        };
        let (short, leases) = (up_to(LEASE / 2), up_to(3 * LEASE));
        let kinds = if has_database { 8 } else { 4 };
        match chance.u8(..kinds) {
            0 | 1 => Fault::KillGate { gate, restart_after: short },
            2 => Fault::PauseGate { gate, pause: leases },
            3 => Fault::Lending(lending_faults(chance)),
            4 => Fault::KillDatabase { restart_after: short },
            5 => Fault::CutGate { gate, cut: leases / 2 },
            6 => Fault::SlowGate { gate, delay: short / 10 },
            _ => Fault::StallGate { gate, stall: leases / 2 },
        }
    }

    /// Injects the fault and waits for its end. The sandbox's faults end with the round.
    pub(super) async fn inject(&self, cluster: &Cluster) {
        match self {
            Fault::KillGate { gate, restart_after } => {
                let gate = &cluster.gates[*gate];
                gate.kill();
                sleep(*restart_after).await;
                gate.restart().await;
            }
            Fault::PauseGate { gate, pause } => {
                cluster.gates[*gate].pause();
                sleep(*pause).await;
                cluster.gates[*gate].resume();
            }
            Fault::Lending(faults) => cluster.fault(faults).await,
            Fault::KillDatabase { restart_after } => {
                let Some(store) = cluster.store.postgres() else { return };
                store.server.stop_immediately().await;
                sleep(*restart_after).await;
                store.server.restart().await;
            }
            Fault::CutGate { gate, cut } => {
                let Some(store) = cluster.store.postgres() else { return };
                store.links[*gate].refuse(true);
                store.links[*gate].abort();
                sleep(*cut).await;
                store.links[*gate].refuse(false);
            }
            Fault::SlowGate { gate, delay } => {
                let Some(store) = cluster.store.postgres() else { return };
                store.links[*gate].set(Link::Delayed(*delay));
                sleep(SLOW_TIME).await;
                store.links[*gate].set(Link::Open);
            }
            Fault::StallGate { gate, stall } => {
                let Some(store) = cluster.store.postgres() else { return };
                store.links[*gate].set(Link::Blocked);
                sleep(*stall).await;
                store.links[*gate].set(Link::Open);
            }
        }
    }
}

/// Draws which calls of Bokbasen lose their responses, are late or fail.
fn lending_faults(chance: &mut fastrand::Rng) -> Value {
    let probability = f64::from(chance.u8(1..=5)) / 10.0;
    let effects = [
        ("begin", json!("cut_after")),
        ("begin", json!({ "cut_before": { "late_ms": 50 } })),
        ("begin", json!("cut_before")),
        ("begin", json!({ "lag": { "ms": 60 } })),
        ("begin", json!({ "delay": { "ms": 400 } })),
        ("get", json!({ "status": { "status": 503 } })),
        ("list", json!("garbage")),
        ("return", json!("cut_after")),
        ("return", json!("cut_before")),
        ("cancel", json!("cut_after")),
        ("*", json!({ "delay": { "ms": 150 } })),
    ];
    let some = effects.into_iter().filter(|_| chance.u8(..3) == 0);
    some.map(|(call, effect)| json!({ "call": call, "probability": probability, "effect": effect }))
        .collect()
}
