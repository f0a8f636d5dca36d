//! What the app and the operator can do about a problem, in each language.

use super::ProblemType;
use crate::language::Language;

/// What can be done about a problem, in Markdown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Advice {
    /// What the app does.
    pub app: &'static str,
    /// What the operator does; none if only the client can do something.
    pub operator: Option<&'static str>,
}

impl ProblemType {
    /// Returns what can be done about the problem.
    pub fn advice(self, language: Language) -> Advice {
        match language {
            Language::English => {
                let guidance = self.guidance();
                Advice { app: guidance.app, operator: guidance.operator }
            }
            Language::Norwegian => self.norwegian_advice(),
        }
    }

    fn norwegian_advice(self) -> Advice {
        match self {
            ProblemType::RequestMalformed => REQUEST_MALFORMED,
            ProblemType::ReaderUnauthenticated => READER_UNAUTHENTICATED,
            ProblemType::LoanRefused => LOAN_REFUSED,
            ProblemType::LoanEnded => LOAN_ENDED,
            ProblemType::TitleNotFound => TITLE_NOT_FOUND,
            ProblemType::LoanNotFound => LOAN_NOT_FOUND,
            ProblemType::MethodNotAllowed => METHOD_NOT_ALLOWED,
            ProblemType::PreconditionFailed => PRECONDITION_FAILED,
            ProblemType::RangeNotSatisfiable => RANGE_NOT_SATISFIABLE,
            ProblemType::MisdirectedRequest => MISDIRECTED_REQUEST,
            ProblemType::TooManyRequests => TOO_MANY_REQUESTS,
            ProblemType::OriginFailed => ORIGIN_FAILED,
            ProblemType::OriginTimeout => ORIGIN_TIMEOUT,
            ProblemType::LoanPending => LOAN_PENDING,
            ProblemType::LendingUnavailable => LENDING_UNAVAILABLE,
            ProblemType::LedgerUnavailable => LEDGER_UNAVAILABLE,
            ProblemType::Overloaded => OVERLOADED,
        }
    }
}

const REQUEST_MALFORMED: Advice =
    Advice { app: "Rett forespørselen; gjenta den ikke uendret.", operator: None };

const READER_UNAUTHENTICATED: Advice = Advice {
    app: "Hent et nytt token eller en ny lenke.",
    operator: Some(
        "Hvis alle lesere får det, sammenlign `[readers]` med innloggingstjenesten: \
         utsteder, mottaker, nøkler.",
    ),
};

const LOAN_REFUSED: Advice = Advice {
    app: "Vis `detail` til leseren. Prøv igjen etter `Retry-After`, hvis den er sendt.",
    operator: Some(
        "Ingenting, med mindre årsaken er en innstilling: bibliotekets hos Bokbasen, \
         eller `[licences]`.",
    ),
};

const LOAN_ENDED: Advice = Advice {
    app: "Logg inn på nytt, og åpne tittelen fra begynnelsen. Bare et adgangsbevis som er \
                 utstedt etter slutten, låner igjen.",
    operator: None,
};

const TITLE_NOT_FOUND: Advice = Advice {
    app: "Kontroller stien og ISBN-et i den.",
    operator: Some("Hvis filen finnes, kontroller `[[routes]]` og titteltabellen."),
};

const LOAN_NOT_FOUND: Advice =
    Advice { app: "Start et lån med PUT, eller åpne tittelen fra begynnelsen.", operator: None };

const METHOD_NOT_ALLOWED: Advice =
    Advice { app: "Bruk en metode som `Allow` lister.", operator: None };

const PRECONDITION_FAILED: Advice = Advice { app: "Hent filen fra begynnelsen.", operator: None };

const RANGE_NOT_SATISFIABLE: Advice =
    Advice { app: "`Content-Range` har filens lengde.", operator: None };

const MISDIRECTED_REQUEST: Advice =
    Advice { app: "Åpne en tilkobling til verten som forespørselen nevner.", operator: None };

const TOO_MANY_REQUESTS: Advice = Advice {
    app: "Vent så lenge som `Retry-After` sier.",
    operator: Some(
        "Hvis ærlige lesere får det, hev grensen: `[brake]`, eller \
         `delivery.streams_per_borrower`.",
    ),
};

const ORIGIN_FAILED: Advice = Advice {
    app: "Prøv igjen, etter `Retry-After` der den er sendt.",
    operator: Some("Loggen har årsaken. `loangate check --online` prøver hver adresse."),
};

const ORIGIN_TIMEOUT: Advice = Advice {
    app: "Prøv igjen senere.",
    operator: Some("Kontroller lageret, eller hev `first_byte`."),
};

const LOAN_PENDING: Advice = Advice {
    app: "Prøv igjen etter `Retry-After`. Lånet er på vei; ingenting er tapt.",
    operator: Some("Hvis det varer, spør Bokbasen."),
};

const LENDING_UNAVAILABLE: Advice = Advice {
    app: "Prøv igjen etter `Retry-After`.",
    operator: Some(
        "`/readyz` har årsaken. Kontroller nettverket og `[lending]`, og spør så \
         Bokbasen.",
    ),
};

const LEDGER_UNAVAILABLE: Advice = Advice {
    app: "Prøv igjen etter `Retry-After`.",
    operator: Some("`/readyz` har årsaken. Kontroller disken."),
};

const OVERLOADED: Advice = Advice {
    app: "Prøv igjen etter `Retry-After`.",
    operator: Some("Hvis det varer, hev grensen som er nådd, eller avlast lageret."),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_have_something_to_do_in_each_language_or_in_none() {
        for problem in ProblemType::ALL {
            let [english, norwegian] = Language::ALL.map(|language| problem.advice(language));
            assert_eq!(english.operator.is_some(), norwegian.operator.is_some(), "{problem:?}");
            assert!(norwegian.app.ends_with('.') && norwegian.app != english.app, "{problem:?}");
        }
    }
}
