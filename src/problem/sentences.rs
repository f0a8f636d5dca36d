//! What failed and what to do about it, as a sentence in each language.

use super::Problem;
use crate::language::Sentence;

impl Problem {
    /// Returns what failed and what to do, in each language.
    pub fn sentence(&self) -> &'static Sentence {
        match self {
            Problem::RequestMalformed(sentence) | Problem::ReaderUnauthenticated(sentence) => {
                sentence
            }
            Problem::LoanRefused { reason, .. } => refusal_sentence(reason),
            Problem::LoanEnded => &Sentence {
                english: "The loan of this title has ended. To borrow it again, sign in again and \
                          open the title from the start.",
                norwegian: "Lånet av denne tittelen er avsluttet. For å låne den igjen: logg inn \
                            på nytt og åpne tittelen fra begynnelsen.",
            },
            Problem::TitleNotFound => &Sentence {
                english: "There is no such file here. Check the path and the ISBN in it.",
                norwegian: "Det finnes ingen slik fil her. Kontroller stien og ISBN-et i den.",
            },
            Problem::LoanNotFound => &Sentence {
                english: "There is no loan of this title. Begin one with PUT, or open the title \
                          from the start.",
                norwegian: "Det er ikke noe lån av denne tittelen. Start et med PUT, eller åpne \
                            tittelen fra begynnelsen.",
            },
            Problem::MethodNotAllowed(_) => &Sentence {
                english: "This method is not supported here. The field Allow lists the supported \
                          ones.",
                norwegian: "Denne metoden støttes ikke her. Feltet Allow lister dem som støttes.",
            },
            Problem::PreconditionFailed => &Sentence {
                english: "The file has changed since the version that the request names. Fetch it \
                          from the start.",
                norwegian: "Filen er endret siden versjonen som forespørselen nevner. Hent den fra \
                            begynnelsen.",
            },
            Problem::RangeNotSatisfiable { .. } => &Sentence {
                english: "The range lies past the end of the file. The field Content-Range gives \
                          the file's length.",
                norwegian: "Området ligger etter filens slutt. Feltet Content-Range har filens \
                            lengde.",
            },
            Problem::MisdirectedRequest => &Sentence {
                english: "This gate does not serve that host name. Connect to the host that the \
                          request names.",
                norwegian: "Denne porten svarer ikke for det vertsnavnet. Koble til verten som \
                            forespørselen nevner.",
            },
            Problem::TooManyRequests { .. } => &Sentence {
                english: "A limit is reached. Try again after Retry-After.",
                norwegian: "En grense er nådd. Prøv igjen etter Retry-After.",
            },
            Problem::OriginFailed { .. } => &Sentence {
                english: "The storage did not deliver the file. Try again; if it keeps failing, \
                          contact the operator.",
                norwegian: "Lageret leverte ikke filen. Prøv igjen; kontakt driften hvis det \
                            fortsetter å feile.",
            },
            Problem::OriginTimeout => &Sentence {
                english: "The storage did not respond in time. Try again later.",
                norwegian: "Lageret svarte ikke i tide. Prøv igjen senere.",
            },
            Problem::LendingUnavailable { .. } => &Sentence {
                english: "The lending platform cannot be reached, so no new loan can begin. Try \
                          again after Retry-After.",
                norwegian: "Utlånsplattformen kan ikke nås, så ingen nye lån kan starte. Prøv \
                            igjen etter Retry-After.",
            },
            Problem::LedgerUnavailable => &Sentence {
                english: "The gate cannot access its record of loans, so it cannot admit requests. \
                          Try again after Retry-After.",
                norwegian: "Porten når ikke lånebasen sin, så den kan ikke slippe inn \
                            forespørsler. Prøv igjen etter Retry-After.",
            },
            Problem::LoanPending { .. } => &Sentence {
                english: "The lending platform has not yet decided about this loan. Try again \
                          after Retry-After; nothing is lost.",
                norwegian: "Utlånsplattformen har ennå ikke avgjort dette lånet. Prøv igjen etter \
                            Retry-After; ingenting er tapt.",
            },
            Problem::Overloaded => &Sentence {
                english: "The gate is overloaded. Try again after Retry-After.",
                norwegian: "Porten er overbelastet. Prøv igjen etter Retry-After.",
            },
        }
    }
}

/// Returns what a reader can do about a refusal. The upper-case codes are Bokbasen's (assumed), the
/// slugs are the gate's.
pub fn refusal_sentence(reason: &str) -> &'static Sentence {
    match reason {
        "NO_FREE_LICENSE" => &Sentence {
            english: "All of the library's copies of this title are on loan. Try again later or \
                      reserve it.",
            norwegian: "Alle bibliotekets eksemplarer av denne tittelen er utlånt. Prøv igjen \
                        senere, eller reserver den.",
        },
        "BUDGET_EXCEEDED" => &Sentence {
            english: "The library's budget for loans is used up for now. Ask the library.",
            norwegian: "Bibliotekets budsjett for lån er brukt opp for nå. Spør biblioteket.",
        },
        "BORROWER_LIMIT" => &Sentence {
            english: "The reader has as many loans as the library allows. Return one and try again.",
            norwegian: "Leseren har så mange lån som biblioteket tillater. Lever ett og prøv igjen.",
        },
        "TITLE_NOT_LENDABLE" => &Sentence {
            english: "The library does not lend this title. Ask the library.",
            norwegian: "Biblioteket låner ikke ut denne tittelen. Spør biblioteket.",
        },
        "LIBRARY_NOT_ACTIVE" => &Sentence {
            english: "The library is not active on the lending platform. Ask the library.",
            norwegian: "Biblioteket er ikke aktivt på utlånsplattformen. Spør biblioteket.",
        },
        "LICENSE_NOT_FOUND" => &Sentence {
            english: "The library has no licence of this title. Ask the library.",
            norwegian: "Biblioteket har ingen lisens på denne tittelen. Spør biblioteket.",
        },
        "licence-not-allowed" => &Sentence {
            english: "The library's rules allow no licence that this title has. Ask the library.",
            norwegian: "Bibliotekets regler tillater ingen av tittelens lisenser. Spør biblioteket.",
        },
        "outside-of-link" => &Sentence {
            english: "This link does not open this file. Request a link to the file's own title \
                      and path.",
            norwegian: "Denne lenken åpner ikke denne filen. Be om en lenke til filens egen tittel \
                        og sti.",
        },
        "explicit-begin-required" => &Sentence {
            english: "This title is lent only on request. Begin the loan with PUT /loans/{isbn} \
                      first.",
            norwegian: "Denne tittelen lånes bare ut når det bes om det. Start lånet med \
                        PUT /loans/{isbn} først.",
        },
        "continues-download" => &Sentence {
            english: "There is no live loan, and a request that continues a download never begins \
                      one. Open the title from the start.",
            norwegian: "Det er ikke noe løpende lån, og en forespørsel som fortsetter en \
                        nedlasting, starter aldri et. Åpne tittelen fra begynnelsen.",
        },
        _ => &Sentence {
            english: "The lending platform refused this loan. The member reason gives its code; \
                      ask the library.",
            norwegian: "Utlånsplattformen avviste dette lånet. Feltet reason har koden; spør \
                        biblioteket.",
        },
    }
}
