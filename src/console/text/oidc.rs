//! The texts of sign-in by OpenID Connect, in each language.

use super::super::oidc::SignInError;
use crate::language::{Language, Sentence};

/// Returns the name of the link to the provider.
pub(in crate::console) fn provider_sign_in(language: Language) -> &'static str {
    let name = Sentence {
        english: "Sign in with your organisation's account",
        norwegian: "Logg inn med organisasjonens konto",
    };
    name.text(language)
}

/// Returns the title and the sentence of a failed sign-in.
pub(in crate::console) fn sign_in_error(
    error: SignInError,
    language: Language,
) -> [&'static str; 2] {
    let title = match error {
        SignInError::NoRole => Sentence { english: "No role", norwegian: "Ingen rolle" },
        _ => Sentence { english: "Not signed in", norwegian: "Ikke logget inn" },
    };
    let sentence = match error {
        SignInError::Provider => Sentence {
            english: "The sign-in service does not answer, or answers what cannot be used. Try \
                      again in a while; the gate's log says why.",
            norwegian: "Innloggingstjenesten svarer ikke, eller svarer noe som ikke kan brukes. \
                        Prøv igjen om litt; portens logg sier hvorfor.",
        },
        SignInError::Busy => Sentence {
            english: "Too many people are signing in at once. Try again in a while.",
            norwegian: "For mange logger inn samtidig. Prøv igjen om litt.",
        },
        SignInError::Refused => Sentence {
            english: "The sign-in service did not sign you in. Try again, or ask those who run \
                      it.",
            norwegian: "Innloggingstjenesten logget deg ikke inn. Prøv igjen, eller spør dem som \
                        drifter den.",
        },
        SignInError::NotPending => Sentence {
            english: "This sign-in took too long, was already used, or was begun in another \
                      browser or at another gate. Begin again.",
            norwegian: "Denne innloggingen tok for lang tid, er allerede brukt, eller ble startet \
                        i en annen nettleser eller hos en annen port. Begynn på nytt.",
        },
        SignInError::Untrusted => Sentence {
            english: "The answer of the sign-in service does not belong to this sign-in, or \
                      cannot be trusted. Begin again; the gate's log says why.",
            norwegian: "Svaret fra innloggingstjenesten hører ikke til denne innloggingen, eller \
                        er ikke til å stole på. Begynn på nytt; portens logg sier hvorfor.",
        },
        SignInError::NoRole => Sentence {
            english: "The sign-in service knows you, but gives you no role in this console. Ask \
                      those who manage your account for one.",
            norwegian: "Innloggingstjenesten kjenner deg, men gir deg ingen rolle i denne \
                        konsollen. Be dem som forvalter kontoen din om en.",
        },
    };
    [title.text(language), sentence.text(language)]
}
