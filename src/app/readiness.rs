//! The checks behind `/healthz` and `/readyz`.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::build::ConnectedParts;
use super::reload::Reloader;
use crate::admin::{Liveness, Missing, Readiness};
use crate::circulation::Circulation;
use crate::ledger::Ledger;
use crate::lending::Bokbasen;
use crate::server::Heartbeat;

/// How long the threads of readers may take to respond: less than a probe waits.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(2);
const STUCK: &str = "A thread that serves readers does not respond: restart this gate if it stays.";
const STOPPING: &str = "The gate is stopping: send no new readers to it.";
const LEDGER_UNREADABLE: &str = "The ledger cannot be read: no new reader gets a file.";
const LEDGER_MOVED: &str = "The ledger was moved, so the gate delivers nothing and ends. Its log \
                            says where to.";
const CLOCK_OFF: &str = "This machine's clock is more than 15 minutes from Bokbasen's: no loan is \
                         begun and no expiry is registered. Set it by NTP.";
const NOT_RELOADED: &str = "The last reload found a mistake, so the configuration of before is in \
                            use. The log and `loangate check` name the line.";
const FIRST_CERTIFICATE: &str = "There is no certificate yet: it is being ordered. Until then only \
                                 the certificate authority can connect.";
const BEGINS_CLOSED: &str = "No gate begins a loan, since the database of the ledger lost steps: \
                             see \"At night\" in docs/cluster.md.";

/// Builds the check that the gate responds at all.
pub(super) fn liveness(heartbeat: Heartbeat) -> Liveness {
    Liveness::new(move || {
        let heartbeat = heartbeat.clone();
        async move { heartbeat.is_alive_within(HEARTBEAT_LIMIT).await }
    })
}

/// Builds the readiness check, which returns what is missing as sentences.
pub(super) fn check(
    parts: &ConnectedParts,
    heartbeat: Heartbeat,
    reloader: &Reloader,
    stopping: &CancellationToken,
) -> Readiness {
    let ConnectedParts { ledger, circulation, lending, certificates, orders, readers, .. } = parts;
    let parts = (ledger.clone(), circulation.clone(), lending.clone(), stopping.clone());
    let others = (reloader.clone(), certificates.clone(), orders.clone(), readers.clone());
    Readiness::new(move || {
        let (ledger, circulation, lending, stopping) = parts.clone();
        let (reloader, certificates, orders, readers) = others.clone();
        let heartbeat = heartbeat.clone();
        async move {
            let missing = find_missing(&ledger, &circulation, &lending, &stopping);
            let (mut missing, is_alive) =
                tokio::join!(missing, heartbeat.is_alive_within(HEARTBEAT_LIMIT));
            if !is_alive {
                missing.needed.push(STUCK.into());
            }
            if reloader.has_failed() {
                missing.wanted.push(NOT_RELOADED.into());
            }
            if let Some(why) = certificates.unusable() {
                let sentence =
                    format!("A renewed certificate cannot be used, so the old one stays: {why}");
                missing.wanted.push(sentence.into());
            }
            match (certificates.awaits_first(), orders.failure()) {
                (true, failure) => {
                    let why = failure.map_or(FIRST_CERTIFICATE.into(), Into::into);
                    missing.needed.push(why);
                }
                (false, failure) => missing.wanted.extend(failure.map(Into::into)),
            }
            // Readers whose token was verified, and those with links, are served.
            missing.wanted.extend(readers.key_troubles().into_iter().map(|it| it.what.into()));
            missing
        }
    })
}

async fn find_missing(
    ledger: &Ledger,
    circulation: &Circulation,
    lending: &Bokbasen,
    stopping: &CancellationToken,
) -> Missing {
    let mut missing = Missing::default();
    if stopping.is_cancelled() {
        missing.needed.push(STOPPING.into());
    }
    if ledger.moved().is_some() {
        missing.needed.push(LEDGER_MOVED.into());
    } else if ledger.check().await.is_err() {
        // All gates lose their database at once. If that made them unready, a load balancer would
        // close the connections of readers whom the gates still serve.
        match circulation.serves_cached_loans() {
            true => missing.wanted.push(LEDGER_UNREADABLE.into()),
            false => missing.needed.push(LEDGER_UNREADABLE.into()),
        }
    } else if let Err(why) = ledger.check_writable().await {
        let sentence = format!(
            "The ledger cannot be written ({why}): readers without a loan cannot get one. Check \
             its disk."
        );
        missing.wanted.push(sentence.into());
    }
    if ledger.begins_are_closed() {
        missing.wanted.push(BEGINS_CLOSED.into());
    }
    if lending.clock_is_off() {
        missing.wanted.push(CLOCK_OFF.into());
    }
    let damaged = ledger.damaged_rows();
    if damaged > 0 {
        let sentence = format!(
            "{damaged} rows of the ledger are damaged and skipped: `loangate ledger check` names \
             them."
        );
        missing.wanted.push(sentence.into());
    }
    if let Some(trouble) = lending.trouble() {
        missing.wanted.push(trouble.sentence().into());
    }
    missing
}
