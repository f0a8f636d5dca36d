//! Divides the file descriptors of the process among readers, origins and everything else.

use super::build::workers;
use crate::admin;
use crate::config::Config;
use crate::server::{self, Limits};

/// File descriptors for the ledger, the runtimes, the sockets of one public address, standard
/// streams, closing connections and briefly open files.
const RESERVED_DESCRIPTORS: u64 = 96;

/// Returns the file descriptors of the public addresses after the first one: a socket for each
/// worker, its duplicate for a successor, and another one while that is passed.
fn of_more_addresses(config: &Config) -> u64 {
    let sockets = config.server.listen.others().len().saturating_mul(workers());
    u64::try_from(sockets).unwrap_or(u64::MAX).saturating_mul(3)
}

/// Raises the file descriptor limit, and adjusts the limits of reader and origin connections to it.
pub(super) fn fit_limits(config: &mut Config) {
    let descriptors = server::raise_descriptor_limit();
    let calls = u64::try_from(config.lending.concurrency).unwrap_or(u64::MAX);
    let reserved = calls.saturating_add(admin::DESCRIPTORS).saturating_add(RESERVED_DESCRIPTORS);
    let reserved = reserved.saturating_add(of_more_addresses(config));
    let for_origins =
        config.origins.iter().map(|origin| origin.descriptors()).fold(0, u64::saturating_add);
    let configured = config.server.limits.connections;
    config.server.limits = config.server.limits.fit(descriptors, for_origins, reserved);
    let Limits { connections, connections_per_address, .. } = config.server.limits;
    let left = descriptors.saturating_sub(reserved).saturating_sub(connections as u64);
    if left < for_origins {
        config.origins.iter_mut().for_each(|origin| origin.scale_descriptors(left, for_origins));
    }
    tracing::info!(
        connections,
        per_address = connections_per_address,
        for_origins = left.min(for_origins),
        descriptors,
        reserved,
        "limits on connections"
    );
    if connections < configured || left < for_origins {
        tracing::warn!(
            connections,
            configured,
            for_origins = left.min(for_origins),
            configured_for_origins = for_origins,
            descriptors,
            "fewer connections than configured, for lack of file descriptors; raise LimitNOFILE \
             (ulimit -Hn)"
        );
    }
}
