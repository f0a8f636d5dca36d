//! Combines what the listing says about a suspect with a query by its id.

use super::compare::Suspect;
use super::findings::truncate;
use super::report::Kind;
use crate::lending::{RemoteLoan, Standing};
use crate::loan::EndReason;

/// Result of a query by id of a suspect.
pub(super) enum Confirmed {
    /// The loan is over or unknown at Bokbasen, for this reason.
    Gone(Kind, EndReason, String),
    /// The listing and the loan by id differ.
    Differs(Kind, String),
}

/// Combines the listing with the result of the query by id.
pub(super) fn confirm(suspect: &Suspect, by_id: Option<RemoteLoan>) -> Confirmed {
    let listing = match &suspect.listed_as {
        Some(listed_as) => format!("Bokbasen lists it as {listed_as}"),
        None => "Bokbasen does not list it".to_owned(),
    };
    let Some(by_id) = by_id else {
        return match suspect.listed_as {
            None => {
                let detail = format!("{listing}, and does not know its id");
                Confirmed::Gone(Kind::UnknownThere, EndReason::Rejected, detail)
            }
            Some(_) => {
                Confirmed::Differs(Kind::RowDiffers, format!("{listing}, and does not know its id"))
            }
        };
    };
    let same = Some(&by_id.lending_id) == suspect.loan.lending_id.as_ref()
        && by_id.reference.as_ref() == Some(&suspect.loan.reference);
    if !same {
        return Confirmed::Differs(
            Kind::RowDiffers,
            format!("{listing}, and its id belongs to another loan"),
        );
    }
    match by_id.standing {
        Standing::Ended(reason) => Confirmed::Gone(
            Kind::EndedThere,
            reason,
            format!("{listing}, and by id it is {reason}"),
        ),
        Standing::Refused(refusal) => {
            let detail = format!("{listing}, and by id it is refused: {}", truncate(&refusal.code));
            Confirmed::Gone(Kind::EndedThere, EndReason::Rejected, detail)
        }
        Standing::Accepted(_) if suspect.listed_as.is_none() => {
            Confirmed::Differs(Kind::NotListed, format!("{listing}, and by id it is accepted"))
        }
        Standing::Accepted(_) | Standing::Pending { .. } => {
            Confirmed::Differs(Kind::RowDiffers, format!("{listing}, and by id it is live"))
        }
        Standing::Unrecognised(status) => {
            let detail =
                format!("{listing}, and by id it has the unknown status {}", truncate(&status));
            Confirmed::Differs(Kind::UnknownStatus, detail)
        }
    }
}
