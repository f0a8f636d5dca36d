//! What each step of an explanation decided and why, in each language.

use http::StatusCode;
use jiff::Timestamp;

use super::explained_problem::ExplainedProblem;
use super::view::Step;
use crate::language::{Language, Sentence};
use crate::loan::{Isbn, LibraryId, LoanId};
use crate::telemetry::Via;

/// What a step decided, and why. A match without one of them does not compile, so each has its
/// texts in each language.
#[derive(Clone, Debug)]
pub(super) enum Why {
    PathAccepted,
    HostAccepted,
    /// A route without loans, by its name.
    OpenFile(String),
    /// The titles of a file, by a route.
    TitleFound {
        isbn: Isbn,
        others: usize,
        route: String,
    },
    Authenticated(LibraryId, Option<Timestamp>),
    Permitted(LoanId, Isbn),
    Undecided(Isbn),
    WouldBegin(Isbn),
    /// The file's length and type, as far as they are known.
    FileFound(Option<u64>, Option<String>),
    RangesSent,
    NotModified,
    FieldsSent,
    WholeFileSent,
    Refused(ExplainedProblem),
    /// A step that a recorded request had passed.
    Passed(Step),
    PermittedBy(Via),
    HadFile,
    Responded(StatusCode),
}

impl Why {
    /// Returns what the step decided, in a word or two.
    pub(super) fn decision(&self) -> &'static Sentence {
        match self {
            Why::PathAccepted | Why::HostAccepted | Why::Passed(Step::Path | Step::Authority) => {
                &Sentence { english: "accepted", norwegian: "godtatt" }
            }
            Why::OpenFile(_) => &Sentence { english: "open file", norwegian: "åpen fil" },
            Why::TitleFound { .. } => {
                &Sentence { english: "title found", norwegian: "tittel funnet" }
            }
            Why::Authenticated(..) | Why::Passed(Step::Reader) => {
                &Sentence { english: "authenticated", norwegian: "gjenkjent" }
            }
            Why::Permitted(..) | Why::PermittedBy(_) | Why::Passed(Step::Gate) => {
                &Sentence { english: "permitted", norwegian: "tillatt" }
            }
            Why::Undecided(_) => &Sentence { english: "undecided", norwegian: "uavgjort" },
            Why::WouldBegin(_) => {
                &Sentence { english: "begins a loan", norwegian: "starter et lån" }
            }
            Why::FileFound(..)
            | Why::HadFile
            | Why::Passed(Step::Catalog | Step::Origin | Step::Delivery) => {
                &Sentence { english: "file found", norwegian: "fil funnet" }
            }
            Why::RangesSent
            | Why::NotModified
            | Why::FieldsSent
            | Why::WholeFileSent
            | Why::Responded(_) => &Sentence { english: "sent", norwegian: "sendt" },
            Why::Refused(_) => &Sentence { english: "refused", norwegian: "avvist" },
        }
    }

    /// Returns why, as a sentence.
    pub(super) fn sentence(&self, language: Language) -> String {
        match (self, language) {
            (Why::Refused(problem), language) => problem.sentence(language).to_owned(),
            (_, Language::English) => self.english(),
            (_, Language::Norwegian) => self.norwegian(),
        }
    }

    fn english(&self) -> String {
        match self {
            Why::OpenFile(route) => format!("The open route {route} needs no loan."),
            Why::TitleFound { isbn, others: 0, route } => {
                format!("It is a file of {isbn} by the route {route}.")
            }
            Why::TitleFound { isbn, others, route } => {
                format!("It is a file of {isbn} and {others} more titles by the route {route}.")
            }
            Why::Authenticated(library, issued) => {
                let issued = issued.map_or_else(|| "at no known time".into(), |at| at.to_string());
                format!("A borrower of {library}, with a credential issued {issued}.")
            }
            Why::Permitted(loan, isbn) => format!("The loan {loan} of {isbn} is open."),
            Why::Undecided(isbn) => {
                format!("A begin of {isbn} is under way. Bokbasen has not decided.")
            }
            Why::WouldBegin(isbn) => {
                format!("There is no loan of {isbn}. The request begins one, and Bokbasen decides.")
            }
            Why::FileFound(length, content_type) => {
                let length = length.map_or("of unknown length".into(), |n| format!("of {n} bytes"));
                let content_type =
                    content_type.as_ref().map_or(String::new(), |is| format!(", {is}"));
                format!("The origin has the file, {length}{content_type}.")
            }
            Why::Responded(status) => format!("The response had status {status}."),
            fixed => fixed.fixed().english.to_owned(),
        }
    }

    fn norwegian(&self) -> String {
        match self {
            Why::OpenFile(route) => format!("Den åpne ruten {route} krever ikke lån."),
            Why::TitleFound { isbn, others: 0, route } => {
                format!("Det er en fil av {isbn} etter ruten {route}.")
            }
            Why::TitleFound { isbn, others, route } => {
                format!("Det er en fil av {isbn} og {others} titler til etter ruten {route}.")
            }
            Why::Authenticated(library, issued) => {
                let issued = issued.map_or_else(|| "på ukjent tid".into(), |at| at.to_string());
                format!("En låner ved {library}, med et adgangsbevis utstedt {issued}.")
            }
            Why::Permitted(loan, isbn) => format!("Lånet {loan} av {isbn} er åpent."),
            Why::Undecided(isbn) => {
                format!("En lånestart av {isbn} er underveis. Bokbasen har ikke avgjort.")
            }
            Why::WouldBegin(isbn) => format!(
                "Det er ikke noe lån av {isbn}. Forespørselen starter et, og Bokbasen avgjør."
            ),
            Why::FileFound(length, content_type) => {
                let length = length.map_or("av ukjent lengde".into(), |n| format!("på {n} byte"));
                let content_type =
                    content_type.as_ref().map_or(String::new(), |is| format!(", {is}"));
                format!("Lageret har filen, {length}{content_type}.")
            }
            Why::Responded(status) => format!("Svaret hadde status {status}."),
            fixed => fixed.fixed().norwegian.to_owned(),
        }
    }

    /// Returns the sentence of a reason without variable text.
    fn fixed(&self) -> &'static Sentence {
        match self {
            Why::Passed(step) => passed(*step),
            Why::PermittedBy(via) => permitted_by(*via),
            Why::PathAccepted => &Sentence {
                english: "The path is in normal form.",
                norwegian: "Stien er på normalform.",
            },
            Why::HostAccepted => &Sentence {
                english: "The request names the host that it was sent to.",
                norwegian: "Forespørselen nevner verten som den ble sendt til.",
            },
            Why::RangesSent => &Sentence {
                english: "The requested ranges of the file are sent.",
                norwegian: "De ønskede områdene av filen sendes.",
            },
            Why::NotModified => &Sentence {
                english: "The app has the current file already.",
                norwegian: "Appen har den gjeldende filen fra før.",
            },
            Why::FieldsSent => &Sentence {
                english: "The fields of the file are sent.",
                norwegian: "Filens felter sendes.",
            },
            Why::WholeFileSent => {
                &Sentence { english: "The whole file is sent.", norwegian: "Hele filen sendes." }
            }
            Why::HadFile => {
                &Sentence { english: "The origin had the file.", norwegian: "Lageret hadde filen." }
            }
            // These have variable text, and no fixed sentence.
            Why::OpenFile(_)
            | Why::TitleFound { .. }
            | Why::Authenticated(..)
            | Why::Permitted(..)
            | Why::Undecided(_)
            | Why::WouldBegin(_)
            | Why::FileFound(..)
            | Why::Refused(_)
            | Why::Responded(_) => &Sentence { english: "", norwegian: "" },
        }
    }
}

fn passed(step: Step) -> &'static Sentence {
    match step {
        Step::Path => &Sentence {
            english: "The path was in normal form.",
            norwegian: "Stien var på normalform.",
        },
        Step::Authority => &Sentence {
            english: "The request named the host that it was sent to.",
            norwegian: "Forespørselen nevnte verten som den ble sendt til.",
        },
        Step::Catalog => &Sentence {
            english: "A route and, if it needs one, a title were found.",
            norwegian: "En rute og, om den trenger en, en tittel ble funnet.",
        },
        Step::Reader => &Sentence {
            english: "The credential was valid, and opened the file.",
            norwegian: "Adgangsbeviset var gyldig og åpnet filen.",
        },
        Step::Gate | Step::Origin | Step::Delivery => permitted_by(Via::None),
    }
}

fn permitted_by(via: Via) -> &'static Sentence {
    match via {
        Via::Cache => &Sentence {
            english: "A loan was open, as the gate had in memory.",
            norwegian: "Et lån var åpent; porten hadde det i minnet.",
        },
        Via::Ledger => &Sentence {
            english: "A loan was open, as the ledger said.",
            norwegian: "Et lån var åpent ifølge lånebasen.",
        },
        Via::Registered => &Sentence {
            english: "The request began a loan, and Bokbasen accepted it.",
            norwegian: "Forespørselen startet et lån, og Bokbasen godtok det.",
        },
        Via::Open | Via::None => {
            &Sentence { english: "No loan was needed.", norwegian: "Ingen lån var nødvendig." }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_sentence_in_each_language() {
        let isbn: Isbn = "9788299999014".parse().unwrap();
        let library: LibraryId = "NO-0301000".parse().unwrap();
        let reasons = [
            Why::PathAccepted,
            Why::HostAccepted,
            Why::OpenFile("covers".to_owned()),
            Why::TitleFound { isbn, others: 0, route: "files".to_owned() },
            Why::TitleFound { isbn, others: 2, route: "files".to_owned() },
            Why::Authenticated(library, None),
            Why::Permitted(LoanId::generate(library), isbn),
            Why::Undecided(isbn),
            Why::WouldBegin(isbn),
            Why::FileFound(None, None),
            Why::FileFound(Some(1), Some("text/plain".to_owned())),
            Why::RangesSent,
            Why::NotModified,
            Why::FieldsSent,
            Why::WholeFileSent,
            Why::Refused((&crate::problem::Problem::Overloaded).into()),
            Why::Passed(Step::Path),
            Why::Passed(Step::Gate),
            Why::PermittedBy(Via::Cache),
            Why::HadFile,
            Why::Responded(StatusCode::OK),
        ];
        for why in reasons {
            let [english, norwegian] = Language::ALL.map(|language| why.sentence(language));
            assert!(english.ends_with('.') && norwegian.ends_with('.'), "{why:?}");
            assert_ne!(english, norwegian, "{why:?}");
        }
    }
}
