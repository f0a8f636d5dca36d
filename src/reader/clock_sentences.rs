//! The sentences about a credential from the future, by the clock that is wrong.

use super::clock_blame::WrongClock;
use crate::language::Sentence;

/// The sentences about a credential from the future, by the clock that is wrong.
pub(super) struct ClockSentences {
    issuer: Sentence,
    gate: Sentence,
    unknown: Sentence,
}

impl ClockSentences {
    /// Returns the sentence for this clock.
    pub(super) fn of(&'static self, clock: WrongClock) -> &'static Sentence {
        match clock {
            WrongClock::Issuer => &self.issuer,
            WrongClock::Gate => &self.gate,
            WrongClock::Unknown => &self.unknown,
        }
    }
}

pub(super) static TOKEN_NOT_YET_VALID: ClockSentences = ClockSentences {
    issuer: Sentence {
        english: "The reader token is not valid yet. Check the clock of the login service.",
        norwegian: "Lesertokenet gjelder ikke ennå. Kontroller klokken til innloggingstjenesten.",
    },
    gate: Sentence {
        english: "The reader token is not valid yet by this gate's clock, which is behind. The \
                  gate's operator must set it.",
        norwegian: "Lesertokenet gjelder ikke ennå ifølge portens klokke, som går etter. Portens \
                    drift må stille den.",
    },
    unknown: Sentence {
        english: "The reader token is not valid yet. The clock of the login service or of this \
                  gate is wrong: check both.",
        norwegian: "Lesertokenet gjelder ikke ennå. Klokken til innloggingstjenesten eller til \
                    denne porten er feil: kontroller begge.",
    },
};

pub(super) static TOKEN_ISSUED_AHEAD: ClockSentences = ClockSentences {
    issuer: Sentence {
        english: "The reader token was issued in the future. Check the clock of the login \
                  service.",
        norwegian: "Lesertokenet er utstedt i fremtiden. Kontroller klokken til \
                    innloggingstjenesten.",
    },
    gate: Sentence {
        english: "The reader token was issued in the future by this gate's clock, which is \
                  behind. The gate's operator must set it.",
        norwegian: "Lesertokenet er utstedt i fremtiden ifølge portens klokke, som går etter. \
                    Portens drift må stille den.",
    },
    unknown: Sentence {
        english: "The reader token was issued in the future. The clock of the login service or \
                  of this gate is wrong: check both.",
        norwegian: "Lesertokenet er utstedt i fremtiden. Klokken til innloggingstjenesten eller \
                    til denne porten er feil: kontroller begge.",
    },
};

pub(super) static LINK_ISSUED_AHEAD: ClockSentences = ClockSentences {
    issuer: Sentence {
        english: "The signed link was issued in the future. Check the clock of its issuer.",
        norwegian: "Den signerte lenken er utstedt i fremtiden. Kontroller klokken til \
                    utstederen.",
    },
    gate: Sentence {
        english: "The signed link was issued in the future by this gate's clock, which is \
                  behind. The gate's operator must set it.",
        norwegian: "Den signerte lenken er utstedt i fremtiden ifølge portens klokke, som går \
                    etter. Portens drift må stille den.",
    },
    unknown: Sentence {
        english: "The signed link was issued in the future. The clock of its issuer or of this \
                  gate is wrong: check both.",
        norwegian: "Den signerte lenken er utstedt i fremtiden. Klokken til utstederen eller til \
                    denne porten er feil: kontroller begge.",
    },
};
