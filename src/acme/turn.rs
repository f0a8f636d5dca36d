//! Whether a certificate must be ordered now, and whether it is this gate's turn to do so.

use jiff::Timestamp;

use super::Settings;
use super::attempts::Attempts;
use super::data_directory::{DataDirectory, OrderLock};
use super::order::OrderFailure;
use super::renewal_info::RenewalInfo;
use super::stored::{self, Reason};
use crate::server::Candidate;

/// What a look at the data directory has found.
pub(super) enum Found {
    /// The stored certificate is good.
    Good(Candidate),
    /// A certificate must be ordered, but not before this time.
    Later(Timestamp, Option<String>),
    /// Another gate orders.
    Elsewhere,
    /// This gate has the right to order, and has recorded that it begins.
    Turn(Reason, OrderLock, Attempts),
}

/// Looks at the stored certificate. Takes the right to order one, if it is due.
pub(super) fn look(
    data: &DataDirectory,
    settings: &Settings,
    info: Option<&RenewalInfo>,
    now: Timestamp,
) -> Result<Found, OrderFailure> {
    let due = |attempts: &Attempts| -> Result<Result<Reason, Found>, OrderFailure> {
        let reason = match stored::assess(data, settings, info, now)? {
            Ok(certificate) => return Ok(Err(Found::Good(certificate))),
            Err(reason) => reason,
        };
        let ordered = settings.ordered();
        let next = attempts.next(&ordered, now);
        let why = attempts.failure(&ordered).map(str::to_owned);
        Ok(if next > now { Err(Found::Later(next, why)) } else { Ok(reason) })
    };
    if let Err(found) = due(&Attempts::read(data)?)? {
        return Ok(found);
    }
    let Some(right) = data.lock()? else { return Ok(Found::Elsewhere) };
    // Another gate may have ordered until now.
    let mut attempts = Attempts::read(data)?;
    let reason = match due(&attempts)? {
        Ok(reason) => reason,
        Err(found) => return Ok(found),
    };
    // An authority issues only a few with the same names in a week, so none may be lost.
    data.prove_writable(&settings.certificate_file(), stored::MAX_SIZE)?;
    attempts.begin(&settings.ordered(), now);
    attempts.write(data)?;
    Ok(Found::Turn(reason, right, attempts))
}
