//! What each type of problem means and what to do about it. `docs/problems.md` is generated from
//! it.

use super::ProblemType;
use crate::language::Sentence;

/// The explanation of a type of problem, in Markdown.
#[derive(Clone, Copy, Debug)]
pub struct Guidance {
    /// When the problem occurs.
    pub occurs: &'static str,
    /// What the app does.
    pub app: Sentence,
    /// What the operator does; none if only the client can do something.
    pub operator: Option<Sentence>,
}

impl ProblemType {
    /// Returns what the problem means and what to do about it.
    pub fn guidance(self) -> Guidance {
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
            ProblemType::LendingPaused => LENDING_PAUSED,
            ProblemType::LedgerUnavailable => LEDGER_UNAVAILABLE,
            ProblemType::LoginUnavailable => LOGIN_UNAVAILABLE,
            ProblemType::Overloaded => OVERLOADED,
        }
    }
}

const REQUEST_MALFORMED: Guidance = Guidance {
    occurs: "The path, a header field, the query or the body is not valid. `detail` says what.",
    app: Sentence {
        english: "Correct the request; do not repeat it unchanged.",
        norwegian: "Rett forespørselen; gjenta den ikke uendret.",
    },
    operator: None,
};

const READER_UNAUTHENTICATED: Guidance = Guidance {
    occurs: "The request has no credential, or its token or link is not valid or has expired.",
    app: Sentence {
        english: "Get a new token or link.",
        norwegian: "Hent et nytt token eller en ny lenke.",
    },
    operator: Some(Sentence {
        english: "If every reader gets it, compare `[readers]` with the login service: issuer, \
                 audience, keys.",
        norwegian: "Hvis alle lesere får det, sammenlign `[readers]` med innloggingstjenesten: \
                 utsteder, mottaker, nøkler.",
    }),
};

const LOAN_REFUSED: Guidance = Guidance {
    occurs: "Bokbasen or a rule of the gate refused the loan. `reason` has Bokbasen's code, such \
         as `NO_FREE_LICENSE` or `BORROWER_LIMIT`, or the gate's rule, such as \
         `explicit-begin-required`.",
    app: Sentence {
        english: "Show `detail` to the reader. Retry after `Retry-After`, if it is sent.",
        norwegian: "Vis `detail` til leseren. Prøv igjen etter `Retry-After`, hvis den er sendt.",
    },
    operator: Some(Sentence {
        english: "Nothing, unless the reason is a setting: the library's at Bokbasen, or \
                 `[licences]`.",
        norwegian: "Ingenting, med mindre årsaken er en innstilling: bibliotekets hos Bokbasen, \
                 eller `[licences]`.",
    }),
};

const LOAN_ENDED: Guidance = Guidance {
    occurs: "The reader's last loan of the title ended when the credential existed already.",
    app: Sentence {
        english: "Sign in again, and open the title from the start. Only a credential that was \
                 issued after the end borrows again.",
        norwegian: "Logg inn på nytt, og åpne tittelen fra begynnelsen. Bare et adgangsbevis som \
                 er utstedt etter slutten, låner igjen.",
    },
    operator: None,
};

const TITLE_NOT_FOUND: Guidance = Guidance {
    occurs: "No route has this path, or the storage has no such file.",
    app: Sentence {
        english: "Check the path and the ISBN in it.",
        norwegian: "Kontroller stien og ISBN-et i den.",
    },
    operator: Some(Sentence {
        english: "If the file exists, check `[[routes]]` and the table of titles.",
        norwegian: "Hvis filen finnes, kontroller `[[routes]]` og titteltabellen.",
    }),
};

const LOAN_NOT_FOUND: Guidance = Guidance {
    occurs: "The reader has never borrowed the title that the path names.",
    app: Sentence {
        english: "Begin a loan with PUT, or open the title from the start.",
        norwegian: "Start et lån med PUT, eller åpne tittelen fra begynnelsen.",
    },
    operator: None,
};

const METHOD_NOT_ALLOWED: Guidance = Guidance {
    occurs: "The path does not support the method.",
    app: Sentence {
        english: "Use a method that `Allow` lists.",
        norwegian: "Bruk en metode som `Allow` lister.",
    },
    operator: None,
};

const PRECONDITION_FAILED: Guidance = Guidance {
    occurs: "A precondition, such as `If-Match`, is false: the file has changed.",
    app: Sentence {
        english: "Fetch the file from the start.",
        norwegian: "Hent filen fra begynnelsen.",
    },
    operator: None,
};

const RANGE_NOT_SATISFIABLE: Guidance = Guidance {
    occurs: "The range lies past the end of the file.",
    app: Sentence {
        english: "`Content-Range` has the length of the file.",
        norwegian: "`Content-Range` har filens lengde.",
    },
    operator: None,
};

const MISDIRECTED_REQUEST: Guidance = Guidance {
    occurs: "The request names another host than the one that its connection was opened for.",
    app: Sentence {
        english: "Open a connection to the host that the request names.",
        norwegian: "Åpne en tilkobling til verten som forespørselen nevner.",
    },
    operator: None,
};

const TOO_MANY_REQUESTS: Guidance = Guidance {
    occurs: "A limit is reached. `reason` is `brake` (too many begins) or `streams` (too many \
         downloads at once).",
    app: Sentence {
        english: "Wait for `Retry-After`.",
        norwegian: "Vent så lenge som `Retry-After` sier.",
    },
    operator: Some(Sentence {
        english: "If honest readers get it, raise the limit: `[brake]`, or \
                 `delivery.streams_per_borrower`.",
        norwegian: "Hvis ærlige lesere får det, hev grensen: `[brake]`, eller \
                 `delivery.streams_per_borrower`.",
    }),
};

const ORIGIN_FAILED: Guidance = Guidance {
    occurs: "The storage cannot be reached, its response cannot be forwarded, or its circuit \
         breaker is open.",
    app: Sentence {
        english: "Retry, after `Retry-After` where it is sent.",
        norwegian: "Prøv igjen, etter `Retry-After` der den er sendt.",
    },
    operator: Some(Sentence {
        english: "The log has the reason. `loangate check --online` tries each address.",
        norwegian: "Loggen har årsaken. `loangate check --online` prøver hver adresse.",
    }),
};

const ORIGIN_TIMEOUT: Guidance = Guidance {
    occurs: "The storage did not answer within `first_byte` of its `[[origins]]`.",
    app: Sentence { english: "Retry later.", norwegian: "Prøv igjen senere." },
    operator: Some(Sentence {
        english: "Check the storage, or raise `first_byte`.",
        norwegian: "Kontroller lageret, eller hev `first_byte`.",
    }),
};

const LOAN_PENDING: Guidance = Guidance {
    occurs: "Bokbasen has not decided about the loan within `gate.patience`, or a return arrives \
        while an earlier request may still begin the loan.",
    app: Sentence {
        english: "Retry after `Retry-After`. The loan is on its way; nothing is lost.",
        norwegian: "Prøv igjen etter `Retry-After`. Lånet er på vei; ingenting er tapt.",
    },
    operator: Some(Sentence {
        english: "If it lasts, ask Bokbasen.",
        norwegian: "Hvis det varer, spør Bokbasen.",
    }),
};

const LENDING_UNAVAILABLE: Guidance = Guidance {
    occurs: "Bokbasen cannot be reached, or its response is not usable, so no loan begins. Readers \
         with a live loan read on.",
    app: Sentence {
        english: "Retry after `Retry-After`.",
        norwegian: "Prøv igjen etter `Retry-After`.",
    },
    operator: Some(Sentence {
        english: "`/readyz` has the reason. Check the network and `[lending]`, then ask Bokbasen.",
        norwegian: "`/readyz` har årsaken. Kontroller nettverket og `[lending]`, og spør så \
                 Bokbasen.",
    }),
};

const LENDING_PAUSED: Guidance = Guidance {
    occurs: "An operator has paused lending of the library, so no loan begins. Readers with a live \
         loan read on.",
    app: Sentence {
        english: "Say that the library lends nothing now. Retry after `Retry-After`.",
        norwegian: "Si at biblioteket ikke låner ut nå. Prøv igjen etter `Retry-After`.",
    },
    operator: Some(Sentence {
        english: "`loangate lending list` says who has paused it, and why. `loangate lending \
                 resume` ends the pause.",
        norwegian: "`loangate lending list` sier hvem som har satt det på pause, og hvorfor. \
                 `loangate lending resume` avslutter pausen.",
    }),
};

const LEDGER_UNAVAILABLE: Guidance = Guidance {
    occurs: "The ledger cannot be read or written.",
    app: Sentence {
        english: "Retry after `Retry-After`.",
        norwegian: "Prøv igjen etter `Retry-After`.",
    },
    operator: Some(Sentence {
        english: "`/readyz` has the reason. Check the disk.",
        norwegian: "`/readyz` har årsaken. Kontroller disken.",
    }),
};

const LOGIN_UNAVAILABLE: Guidance = Guidance {
    occurs: "The gate cannot fetch the keys of the login service, or the token's key is newer than \
         those that it has. Readers read on whose token has a key that it has.",
    app: Sentence {
        english: "Retry after `Retry-After`, with the same token.",
        norwegian: "Prøv igjen etter `Retry-After`, med det samme tokenet.",
    },
    operator: Some(Sentence {
        english: "`/readyz` has the reason. `loangate check --online` tries each login service.",
        norwegian: "`/readyz` har årsaken. `loangate check --online` prøver hver \
                 innloggingstjeneste.",
    }),
};

const OVERLOADED: Guidance = Guidance {
    occurs: "The gate is stopping, `lending.flights` decisions are in flight, or a request waited \
         too long for one of the storage's `connections`.",
    app: Sentence {
        english: "Retry after `Retry-After`.",
        norwegian: "Prøv igjen etter `Retry-After`.",
    },
    operator: Some(Sentence {
        english: "If it lasts, raise the limit that is reached, or relieve the storage.",
        norwegian: "Hvis det varer, hev grensen som er nådd, eller avlast lageret.",
    }),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_have_something_to_do_in_each_language() {
        for problem in ProblemType::ALL {
            let Sentence { english, norwegian } = problem.guidance().app;
            assert!(norwegian.ends_with('.') && norwegian != english, "{problem:?}");
        }
    }
}
