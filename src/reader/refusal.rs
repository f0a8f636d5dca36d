//! Why a request has no reader: every reason, with its sentence and its problem document.
//!
//! The other files of `reader` return these; `reader/mod.rs` turns one into a [`Problem`] at the
//! end. A sentence is fixed text: it never repeats what the request said, and never names a key, a
//! borrower or a token.

use super::clock_blame::Blame;
use crate::problem::Problem;

/// Why nobody could be made out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refusal {
    NoCredential,
    SeveralCredentials,
    OtherScheme,
    NoTokensHere,
    NoLinksHere,
    TokenInLink,
    TokenTooLong,
    TokenMalformed,
    TokenAlgorithm,
    TokenKey,
    TokenSignature,
    TokenIssuer,
    TokenAudience,
    TokenWithoutExpiry,
    TokenExpired,
    TokenNotYetValid(Blame),
    TokenIssuedAhead(Blame),
    TokenLivesTooLong,
    TokenLibrary,
    TokenBorrower,
    LinkTwice,
    LinkMalformed,
    LinkKey,
    LinkForged,
    LinkIssuedAhead(Blame),
    LinkExpired,
    LinkLivesTooLong,
}

impl Refusal {
    /// 400 for a link that cannot be read, 401 for everything else.
    pub(super) fn problem(self) -> Problem {
        match self {
            Refusal::LinkTwice | Refusal::LinkMalformed => {
                Problem::RequestMalformed(self.sentence())
            }
            Refusal::NoCredential
            | Refusal::SeveralCredentials
            | Refusal::OtherScheme
            | Refusal::NoTokensHere
            | Refusal::NoLinksHere
            | Refusal::TokenInLink
            | Refusal::TokenTooLong
            | Refusal::TokenMalformed
            | Refusal::TokenAlgorithm
            | Refusal::TokenKey
            | Refusal::TokenSignature
            | Refusal::TokenIssuer
            | Refusal::TokenAudience
            | Refusal::TokenWithoutExpiry
            | Refusal::TokenExpired
            | Refusal::TokenNotYetValid(_)
            | Refusal::TokenIssuedAhead(_)
            | Refusal::TokenLivesTooLong
            | Refusal::TokenLibrary
            | Refusal::TokenBorrower
            | Refusal::LinkKey
            | Refusal::LinkForged
            | Refusal::LinkIssuedAhead(_)
            | Refusal::LinkExpired
            | Refusal::LinkLivesTooLong => Problem::ReaderUnauthenticated(self.sentence()),
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Refusal::NoCredential => {
                "The request says nothing of who asks. Send Authorization: Bearer with a reader token, or use a signed link."
            }
            Refusal::SeveralCredentials => "There is more than one field Authorization. Send one.",
            Refusal::OtherScheme => {
                "The field Authorization is not of the scheme Bearer with one token. Send Authorization: Bearer and the token."
            }
            Refusal::NoTokensHere => "This gate takes no reader tokens. Use a signed link.",
            Refusal::NoLinksHere => {
                "This gate takes no signed links. Send a reader token in Authorization."
            }
            Refusal::TokenInLink => {
                "A reader token does not belong in a URL, where logs keep it. Send it in Authorization, and get a new one."
            }
            Refusal::TokenTooLong => "The reader token is longer than 8 KiB. Get a shorter one.",
            Refusal::TokenMalformed => {
                "The reader token is not a JWT that can be read. Get a new token."
            }
            Refusal::TokenAlgorithm => {
                "The reader token is signed with an algorithm that is not allowed here. Get a new token."
            }
            Refusal::TokenKey => {
                "The reader token is signed with a key that is not known here. Get a new token."
            }
            Refusal::TokenSignature => {
                "The signature of the reader token is wrong. Get a new token."
            }
            Refusal::TokenIssuer => {
                "The reader token is of another issuer, or names none. Get a new token."
            }
            Refusal::TokenAudience => {
                "The reader token is meant for another service. Get a token for this one."
            }
            Refusal::TokenWithoutExpiry => {
                "The reader token does not say when it expires. Get one that does."
            }
            Refusal::TokenExpired => "The reader token has expired. Get a new token.",
            Refusal::TokenNotYetValid(Blame::Issuer) => {
                "The reader token is not valid yet. Check the clock of the login service."
            }
            Refusal::TokenNotYetValid(Blame::Gate) => {
                "The reader token is not valid yet by this gate's clock, which is behind. The gate's operator must set it."
            }
            Refusal::TokenNotYetValid(Blame::Unknown) => {
                "The reader token is not valid yet. The clock of the login service or of this gate is wrong: check both."
            }
            Refusal::TokenIssuedAhead(Blame::Issuer) => {
                "The reader token was issued in the future. Check the clock of the login service."
            }
            Refusal::TokenIssuedAhead(Blame::Gate) => {
                "The reader token was issued in the future by this gate's clock, which is behind. The gate's operator \
                 must set it."
            }
            Refusal::TokenIssuedAhead(Blame::Unknown) => {
                "The reader token was issued in the future. The clock of the login service or of this gate is wrong: \
                 check both."
            }
            Refusal::TokenLivesTooLong => {
                "The reader token is good for longer than this gate allows. Get one that expires sooner."
            }
            Refusal::TokenLibrary => {
                "The reader token does not name its library by an ISIL. Get a new token."
            }
            Refusal::TokenBorrower => {
                "The reader token does not name its borrower. Get a new token."
            }
            Refusal::LinkTwice => {
                "The query has more than one token. Use the link as it was given."
            }
            Refusal::LinkMalformed => {
                "The signed link cannot be read. Use the whole link as it was given."
            }
            Refusal::LinkKey => {
                "The signed link was signed with a key that is no longer known here. Get a new link."
            }
            Refusal::LinkForged => {
                "The signature of the link is wrong. Use the link as it was given."
            }
            Refusal::LinkIssuedAhead(Blame::Issuer) => {
                "The signed link was issued in the future. Check the clock where it was made."
            }
            Refusal::LinkIssuedAhead(Blame::Gate) => {
                "The signed link was issued in the future by this gate's clock, which is behind. The gate's operator \
                 must set it."
            }
            Refusal::LinkIssuedAhead(Blame::Unknown) => {
                "The signed link was issued in the future. The clock where it was made or that of this gate is wrong: \
                 check both."
            }
            Refusal::LinkExpired => "The signed link has expired. Get a new link.",
            Refusal::LinkLivesTooLong => {
                "The signed link is good for longer than this gate allows. Get one that expires sooner."
            }
        }
    }
}
