//! Opens the ledger. Waits for a database that does not respond, so that gates and their database
//! may start in any order.

use std::sync::Arc;
use std::time::Duration;

use super::StartError;
use crate::admin::{Sockets, Waiting};
use crate::config::Config;
use crate::ledger::{AuditKey, Ledger, LedgerError};
use crate::listeners::{AdminSocket, AdminSocketFile, EarlyAdmin, EarlySockets};
use crate::process_handles::ProcessHandles;
use crate::reader::Readers;
use crate::server::Certificates;
use crate::telemetry::LogLimit;

/// The wait between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// What `/readyz` reports as missing.
const MISSING: &str = "the database of the ledger does not respond; the gate waits for it";

/// Opens the ledger. While its database does not respond, the admin listener reports that the gate
/// is not ready, unless a predecessor still serves it. The caller may drop this future at any time.
///
/// # Errors
/// Returns a [`StartError`] if the ledger must not be used, or the admin address cannot be bound.
pub(super) async fn open_ledger(
    config: &Config,
    readers: &Readers,
    certificates: &Arc<Certificates>,
    handles: &ProcessHandles,
    early_admin: &EarlyAdmin,
) -> Result<Ledger, StartError> {
    static LIMIT: LogLimit = LogLimit::per_minute();
    let fingerprint = readers.key_fingerprint();
    let open = async || {
        let audit_key = AuditKey::new(&readers.audit_key());
        let ProcessHandles { clock, metrics, .. } = handles.clone();
        Ledger::open(&config.ledger, &fingerprint, audit_key, clock, metrics).await
    };
    let mut waiting: Option<(Option<AdminSocketFile>, Waiting)> = None;
    loop {
        let error: LedgerError = match open().await {
            Err(error) if error.is_unreachable() => error,
            opened => {
                if let Some((file, waiting)) = waiting {
                    drop(file);
                    waiting.stop().await;
                }
                return Ok(opened?);
            }
        };
        if LIMIT.permit("unreachable").is_some() {
            tracing::warn!(%error, "the gate does not start yet; waiting for the ledger");
        }
        if waiting.is_none()
            && let Some(EarlySockets { tcp, local }) = early_admin.open()?
        {
            let certificates = certificates.clone();
            let tls = Arc::new(move || certificates.admin_config());
            let (file, local) = AdminSocket::parts(local);
            let sockets = Sockets { tcp, local };
            waiting = Some((file, Waiting::start(&config.admin, sockets, tls, MISSING)?));
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}
