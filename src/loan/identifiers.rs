//! Identifiers: title, library, borrower, and the id and reference of a loan.
//!
//! Each is parsed once, on input, and is then small and `Copy` (except [`Reference`]), because a
//! [`LoanKey`] is created and looked up on every request.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use jiff::Timestamp;
use uuid::Uuid;

/// Why a text is not a valid identifier. The sentence says what is wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct IdentifierError(&'static str);

impl IdentifierError {
    /// Creates an error with this sentence.
    pub(super) fn because(sentence: &'static str) -> IdentifierError {
        IdentifierError(sentence)
    }
}

/// A title: an ISBN-13 with a valid check digit.
///
/// ```
/// use loangate::loan::Isbn;
///
/// let isbn: Isbn = "9788299999014".parse()?;
/// assert_eq!(isbn.to_string(), "9788299999014");
///
/// assert!("9788299999015".parse::<Isbn>().is_err()); // wrong check digit
/// assert!("978-82-99999-01-4".parse::<Isbn>().is_err()); // hyphens
/// assert!("8299999011".parse::<Isbn>().is_err()); // ISBN-10
/// # Ok::<(), loangate::loan::IdentifierError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Isbn(u64);

impl Isbn {
    /// Returns the thirteen digits as a number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl FromStr for Isbn {
    type Err = IdentifierError;

    /// Parses thirteen digits without hyphens: prefix 978 or 979, check digit by ISO 2108.
    fn from_str(text: &str) -> Result<Isbn, IdentifierError> {
        if text.len() != 13 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(IdentifierError("an ISBN is 13 digits without hyphens"));
        }
        if !text.starts_with("978") && !text.starts_with("979") {
            return Err(IdentifierError("an ISBN-13 starts with 978 or 979"));
        }
        let digits = text.bytes().map(|byte| u64::from(byte - b'0'));
        let sum: u64 = digits
            .clone()
            .zip([1, 3].into_iter().cycle())
            .map(|(digit, weight)| digit * weight)
            .sum();
        if !sum.is_multiple_of(10) {
            return Err(IdentifierError("the check digit of the ISBN is wrong"));
        }
        Ok(Isbn(digits.fold(0, |number, digit| number * 10 + digit)))
    }
}

impl fmt::Display for Isbn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:013}", self.0)
    }
}

/// A library, by its ISIL (ISO 15511): a prefix, a hyphen, and up to 11 letters, digits or `:/-`.
///
/// Two spellings are two libraries: the gate never changes the case of an ISIL.
///
/// ```
/// use loangate::loan::LibraryId;
///
/// let library: LibraryId = "NO-0301000".parse()?;
/// assert_eq!(library.as_str(), "NO-0301000");
/// assert_ne!(library, "no-0301000".parse()?);
///
/// assert!("0301000".parse::<LibraryId>().is_err()); // no prefix
/// assert!("NO-Oslo bibliotek".parse::<LibraryId>().is_err()); // a space, and too long
/// # Ok::<(), loangate::loan::IdentifierError>(())
/// ```
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LibraryId {
    /// The text, padded with zeros.
    text: [u8; 16],
}

impl LibraryId {
    /// Returns the ISIL as it was written.
    pub fn as_str(&self) -> &str {
        let end = self.text.iter().position(|byte| *byte == 0).unwrap_or(self.text.len());
        self.text.get(..end).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or("")
    }
}

impl FromStr for LibraryId {
    type Err = IdentifierError;

    fn from_str(written: &str) -> Result<LibraryId, IdentifierError> {
        let (prefix, rest) = written.split_once('-').ok_or(IdentifierError(
            "an ISIL is a prefix, a hyphen and an identifier, like NO-0301000",
        ))?;
        if prefix.is_empty()
            || prefix.len() > 4
            || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(IdentifierError(
                "the prefix of an ISIL is one to four letters or digits, like NO",
            ));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'/' | b'-');
        if rest.is_empty() || rest.len() > 11 || !rest.bytes().all(allowed) {
            return Err(IdentifierError(
                "after its hyphen an ISIL has 1 to 11 letters, digits, ':', '/' or '-'",
            ));
        }
        let mut text = [0; 16];
        for (slot, byte) in text.iter_mut().zip(written.bytes()) {
            *slot = byte;
        }
        Ok(LibraryId { text })
    }
}

impl fmt::Display for LibraryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for LibraryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LibraryId({})", self.as_str())
    }
}

/// A borrower, by pseudonym: 128 bits of a keyed hash of the library and the borrower's own id.
///
/// The borrower's own id is not stored. `Display` writes the pseudonym (26 characters of lower-case
/// base 32), for the ledger, Bokbasen and support. `Debug` hides it, so that no log shows it.
///
/// ```
/// use loangate::loan::Borrower;
///
/// let borrower = Borrower::from_bytes([7; 16]);
/// assert_eq!(borrower.to_string().parse(), Ok(borrower));
/// assert_eq!(format!("{borrower:?}"), "Borrower(…)");
/// ```
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Borrower([u8; 16]);

impl Borrower {
    /// Creates a borrower from the 128 bits of a pseudonym.
    pub fn from_bytes(bytes: [u8; 16]) -> Borrower {
        Borrower(bytes)
    }

    /// Returns the 128 bits of the pseudonym.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for Borrower {
    type Err = IdentifierError;

    fn from_str(text: &str) -> Result<Borrower, IdentifierError> {
        const WRONG: IdentifierError =
            IdentifierError("a borrower's pseudonym is 26 characters of lower-case base 32");
        let bytes = borrower_encoding().decode(text.as_bytes()).map_err(|_| WRONG)?;
        Ok(Borrower(bytes.try_into().map_err(|_| WRONG)?))
    }
}

impl fmt::Display for Borrower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&borrower_encoding().encode(&self.0))
    }
}

impl fmt::Debug for Borrower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Borrower(…)")
    }
}

/// Base 32 of RFC 4648 in lower case, without padding: easy to read aloud and safe in a URL.
fn borrower_encoding() -> &'static Encoding {
    static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
        let mut specification = Specification::new();
        specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
        specification.encoding().unwrap_or(BASE32_NOPAD)
    });
    &ENCODING
}

/// Key of a loan: a library, its borrower and a title. At most one loan of a key may be live.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LoanKey {
    /// The library that lends.
    pub library: LibraryId,
    /// The borrower, by pseudonym.
    pub borrower: Borrower,
    /// The title that is lent.
    pub isbn: Isbn,
}

/// Id of a loan in the ledger: the library of the loan, and a UUID of version 7.
///
/// The UUID alone is unique, and is what people and APIs see. The library is part of the id because
/// a ledger may be distributed by library: each statement about a loan names both. The ids of one
/// library sort by creation time.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LoanId {
    library: LibraryId,
    uuid: Uuid,
}

impl LoanId {
    /// Creates a unique id for a loan of this library.
    pub fn generate(library: LibraryId) -> LoanId {
        LoanId { library, uuid: Uuid::now_v7() }
    }

    /// Creates a unique id in an arbitrary library.
    #[cfg(test)]
    pub(crate) fn random() -> LoanId {
        LoanId::generate(LibraryId { text: *b"NO-0301000\0\0\0\0\0\0" })
    }

    /// Restores the id of a stored loan.
    pub fn new(library: LibraryId, uuid: Uuid) -> LoanId {
        LoanId { library, uuid }
    }

    /// Returns the library of the loan.
    pub fn library(self) -> LibraryId {
        self.library
    }

    /// Returns the UUID, by which people and APIs name the loan.
    pub fn uuid(self) -> Uuid {
        self.uuid
    }

    /// Returns the creation time by the clock at that time; the epoch for another kind of UUID.
    pub fn created_at(self) -> Timestamp {
        created_at(self.uuid)
    }
}

/// Returns the creation time in a UUID of version 7; the epoch for another kind of UUID.
pub fn created_at(uuid: Uuid) -> Timestamp {
    let (seconds, nanoseconds) = uuid.get_timestamp().map_or((0, 0), |at| at.to_unix());
    let seconds = i64::try_from(seconds).unwrap_or_default();
    Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or_default()).unwrap_or_default()
}

impl fmt::Display for LoanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.uuid.hyphenated())
    }
}

/// Client reference of a begin. After a lost response, Bokbasen is queried for it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reference(String);

impl Reference {
    /// Creates a unique reference. It is random, so that it reveals nothing.
    pub fn generate() -> Reference {
        Reference(format!("lg-{}", Uuid::new_v4().simple()))
    }

    /// Creates a reference from the ledger's or Bokbasen's text.
    pub fn from_text(text: impl Into<String>) -> Reference {
        Reference(text.into())
    }

    /// Returns whether it has the form of the references that this program creates.
    pub fn has_our_format(&self) -> bool {
        self.0.strip_prefix("lg-").is_some_and(|rest| Uuid::try_parse(rest).is_ok())
    }

    /// Returns the text of the reference.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isbn_needs_a_valid_check_digit() {
        for (text, sentence) in [
            ("978820336513", "13 digits"),
            ("97882033651330", "13 digits"),
            ("978-820336513", "13 digits"),
            ("９788203365133", "13 digits"),
            ("1234567890128", "978 or 979"),
        ] {
            let error = text.parse::<Isbn>().unwrap_err();
            assert!(error.to_string().contains(sentence), "{text}: {error}");
        }
        let good: Isbn = "9780306406157".parse().unwrap();
        assert_eq!(good.to_string(), "9780306406157");
        assert!("9780306406158".parse::<Isbn>().is_err());
    }

    #[test]
    fn isil_keeps_its_text() {
        for text in ["NO-0301000", "O-ISIL/a:1-2", "NO-1"] {
            assert_eq!(text.parse::<LibraryId>().unwrap().as_str(), text);
        }
        for text in ["", "NO", "NO-", "-0301000", "NORGE-1", "NO-123456789012", "NO-ø", "NO-03 01"]
        {
            assert!(text.parse::<LibraryId>().is_err(), "{text}");
        }
    }

    #[test]
    fn pseudonym_round_trips_and_debug_hides_it() {
        let borrower = Borrower::from_bytes(*b"0123456789abcdef");
        let text = borrower.to_string();
        assert_eq!(text.len(), 26);
        assert_eq!(text.parse::<Borrower>().unwrap(), borrower);
        assert!(!format!("{borrower:?}").contains(&text));
        assert!("0123".parse::<Borrower>().is_err());
    }
}
