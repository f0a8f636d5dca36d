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
        let (app, operator) = match self {
            ProblemType::RequestMalformed => ("Rett forespørselen; gjenta den ikke uendret.", None),
            ProblemType::ReaderUnauthenticated => (
                "Hent et nytt token eller en ny lenke.",
                Some(
                    "Hvis alle lesere får det, sammenlign `[readers]` med innloggingstjenesten: \
                     utsteder, mottaker, nøkler.",
                ),
            ),
            ProblemType::LoanRefused => (
                "Vis `detail` til leseren. Prøv igjen etter `Retry-After`, hvis den er sendt.",
                Some(
                    "Ingenting, med mindre årsaken er en innstilling: bibliotekets hos Bokbasen, \
                     eller `[licences]`.",
                ),
            ),
            ProblemType::LoanEnded => (
                "Logg inn på nytt, og åpne tittelen fra begynnelsen. Bare et adgangsbevis som er \
                 utstedt etter slutten, låner igjen.",
                None,
            ),
            ProblemType::TitleNotFound => (
                "Kontroller stien og ISBN-et i den.",
                Some("Hvis filen finnes, kontroller `[[routes]]` og titteltabellen."),
            ),
            ProblemType::LoanNotFound => {
                ("Start et lån med PUT, eller åpne tittelen fra begynnelsen.", None)
            }
            ProblemType::MethodNotAllowed => ("Bruk en metode som `Allow` lister.", None),
            ProblemType::PreconditionFailed => ("Hent filen fra begynnelsen.", None),
            ProblemType::RangeNotSatisfiable => ("`Content-Range` har filens lengde.", None),
            ProblemType::MisdirectedRequest => {
                ("Åpne en tilkobling til verten som forespørselen nevner.", None)
            }
            ProblemType::TooManyRequests => (
                "Vent så lenge som `Retry-After` sier.",
                Some(
                    "Hvis ærlige lesere får det, hev grensen: `[brake]`, eller \
                     `delivery.streams_per_borrower`.",
                ),
            ),
            ProblemType::OriginFailed => (
                "Prøv igjen, etter `Retry-After` der den er sendt.",
                Some("Loggen har årsaken. `loangate check --online` prøver hver adresse."),
            ),
            ProblemType::OriginTimeout => {
                ("Prøv igjen senere.", Some("Kontroller lageret, eller hev `first_byte`."))
            }
            ProblemType::LoanPending => (
                "Prøv igjen etter `Retry-After`. Lånet er på vei; ingenting er tapt.",
                Some("Hvis det varer, spør Bokbasen."),
            ),
            ProblemType::LendingUnavailable => (
                "Prøv igjen etter `Retry-After`.",
                Some(
                    "`/readyz` har årsaken. Kontroller nettverket og `[lending]`, og spør så \
                     Bokbasen.",
                ),
            ),
            ProblemType::LedgerUnavailable => (
                "Prøv igjen etter `Retry-After`.",
                Some("`/readyz` har årsaken. Kontroller disken."),
            ),
            ProblemType::Overloaded => (
                "Prøv igjen etter `Retry-After`.",
                Some("Hvis det varer, hev grensen som er nådd, eller avlast lageret."),
            ),
        };
        Advice { app, operator }
    }
}

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
