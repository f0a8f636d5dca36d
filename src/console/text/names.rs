//! The names of states, reasons, causes and roles in each language.

use super::super::session::Role;
use crate::language::{Language, Sentence};
use crate::loan::{EndReason, LoanState};
use crate::server::Step;

/// Returns the name of a state of a loan.
pub(in crate::console) fn state(state: LoanState, language: Language) -> &'static str {
    let name = match state {
        LoanState::Intended => Sentence { english: "intended", norwegian: "påtenkt" },
        LoanState::Pending => Sentence { english: "pending", norwegian: "venter" },
        LoanState::Accepted => Sentence { english: "accepted", norwegian: "godtatt" },
        LoanState::Unknown => Sentence { english: "unknown", norwegian: "uvisst" },
        LoanState::Refused => Sentence { english: "refused", norwegian: "avvist" },
        LoanState::Ending => Sentence { english: "ending", norwegian: "avsluttes" },
        LoanState::Ended => Sentence { english: "ended", norwegian: "avsluttet" },
    };
    name.text(language)
}

/// Returns what a state of a loan means.
pub(in crate::console) fn state_meaning(state: LoanState, language: Language) -> &'static str {
    let meaning = match state {
        LoanState::Intended => Sentence {
            english: "The loan is recorded here, and is being sent to Bokbasen.",
            norwegian: "Lånet er registrert her og blir sendt til Bokbasen.",
        },
        LoanState::Pending => Sentence {
            english: "Bokbasen has the loan and has not decided.",
            norwegian: "Bokbasen har lånet og har ikke avgjort.",
        },
        LoanState::Accepted => Sentence {
            english: "Bokbasen has accepted the loan. The reader can read.",
            norwegian: "Bokbasen har godtatt lånet. Leseren kan lese.",
        },
        LoanState::Unknown => Sentence {
            english: "Bokbasen's answer was lost. The gate searches for the loan there.",
            norwegian: "Svaret fra Bokbasen gikk tapt. Porten leter etter lånet der.",
        },
        LoanState::Refused => Sentence {
            english: "Bokbasen has refused the loan.",
            norwegian: "Bokbasen har avvist lånet.",
        },
        LoanState::Ending => Sentence {
            english: "The loan has ended here, and opens nothing. Bokbasen has not acknowledged \
                      it.",
            norwegian: "Lånet er avsluttet her og åpner ingenting. Bokbasen har ikke bekreftet \
                        det.",
        },
        LoanState::Ended => Sentence {
            english: "The loan is over, here and at Bokbasen.",
            norwegian: "Lånet er over, her og hos Bokbasen.",
        },
    };
    meaning.text(language)
}

/// Returns why a loan ended.
pub(in crate::console) fn end_reason(reason: EndReason, language: Language) -> &'static str {
    let name = match reason {
        EndReason::Returned => Sentence { english: "returned", norwegian: "levert" },
        EndReason::Expired => Sentence { english: "expired", norwegian: "utløpt" },
        EndReason::Cancelled => {
            Sentence { english: "cancelled unread", norwegian: "avbrutt ulest" }
        }
        EndReason::Rejected => Sentence {
            english: "it never existed at Bokbasen",
            norwegian: "det fantes aldri hos Bokbasen",
        },
    };
    name.text(language)
}

/// Returns the cause of a step of a loan in words; the slug itself if it is not known.
pub(in crate::console) fn cause(slug: &str, language: Language) -> &str {
    let name = match slug {
        "admin" => Sentence { english: "support", norwegian: "brukerstøtte" },
        "balance" => {
            Sentence { english: "balance with Bokbasen", norwegian: "balanse mot Bokbasen" }
        }
        "begin" => Sentence { english: "answer to the begin", norwegian: "svar på lånestarten" },
        "driver" => Sentence { english: "interrupted begin", norwegian: "avbrutt lånestart" },
        "examination" => {
            Sentence { english: "examined by a balance", norwegian: "undersøkt av en balanse" }
        }
        "examination-requested" => {
            Sentence { english: "marked for balance", norwegian: "merket for balansen" }
        }
        "expiry" => Sentence { english: "due time", norwegian: "forfall" },
        "ledger" => Sentence { english: "start of a gate", norwegian: "start av en port" },
        "licences" => Sentence { english: "choice of licence", norwegian: "valg av lisens" },
        "outbox" => Sentence { english: "Bokbasen's acknowledgement", norwegian: "bekreftelse" },
        "poll" => Sentence { english: "query to Bokbasen", norwegian: "spørring til Bokbasen" },
        "reader" => Sentence { english: "the reader", norwegian: "leseren" },
        "retention" => Sentence { english: "erasure of the borrower", norwegian: "sletting" },
        "settle" => Sentence { english: "search at Bokbasen", norwegian: "søk hos Bokbasen" },
        other => return other,
    };
    name.text(language)
}

/// Returns the name of a role.
pub(in crate::console) fn role(role: Role, language: Language) -> &'static str {
    let name = match role {
        Role::Operator => Sentence { english: "operator", norwegian: "drift" },
        Role::Support => Sentence { english: "support", norwegian: "brukerstøtte" },
        Role::Auditor => Sentence { english: "auditor", norwegian: "revisor" },
    };
    name.text(language)
}

/// Returns the name of a step of a request.
pub(in crate::console) fn step(step: Step, language: Language) -> &'static str {
    let name = match step {
        Step::Path => Sentence { english: "Path", norwegian: "Sti" },
        Step::Authority => Sentence { english: "Host", norwegian: "Vert" },
        Step::Catalog => Sentence { english: "Catalog", norwegian: "Katalog" },
        Step::Reader => Sentence { english: "Reader", norwegian: "Leser" },
        Step::Gate => Sentence { english: "Loan", norwegian: "Lån" },
        Step::Origin => Sentence { english: "Storage", norwegian: "Lager" },
        Step::Delivery => Sentence { english: "Delivery", norwegian: "Levering" },
    };
    name.text(language)
}
