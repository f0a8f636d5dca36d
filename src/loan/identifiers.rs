//! What a loan is about: title, library, borrower, and the names of the loan itself.
//!
//! Each is parsed once, at the door, and is small and `Copy` from then on, since a [`LoanKey`] is
//! made and looked up on every request.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use jiff::Timestamp;
use uuid::Uuid;

/// Why a text is not the name that it should be. The sentence says what is wrong.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(&'static str);

impl NameError {
    /// An error with this sentence.
    pub(super) fn because(sentence: &'static str) -> NameError {
        NameError(sentence)
    }
}

/// A title: an ISBN-13 whose check digit is right.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Isbn(u64);

impl Isbn {
    /// The thirteen digits as a number.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl FromStr for Isbn {
    type Err = NameError;

    /// Reads thirteen digits without hyphens: prefix 978 or 979, check digit by ISO 2108.
    fn from_str(text: &str) -> Result<Isbn, NameError> {
        if text.len() != 13 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError("an ISBN is 13 digits without hyphens"));
        }
        if !text.starts_with("978") && !text.starts_with("979") {
            return Err(NameError("an ISBN-13 starts with 978 or 979"));
        }
        let digits = text.bytes().map(|byte| u64::from(byte - b'0'));
        let sum: u64 = digits
            .clone()
            .zip([1, 3].into_iter().cycle())
            .map(|(digit, weight)| digit * weight)
            .sum();
        if !sum.is_multiple_of(10) {
            return Err(NameError("the check digit of the ISBN is wrong"));
        }
        Ok(Isbn(digits.fold(0, |number, digit| number * 10 + digit)))
    }
}

impl fmt::Display for Isbn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:013}", self.0)
    }
}

/// A library, by its ISIL (ISO 15511): a prefix, a hyphen, and up to eleven letters, digits, `:`,
/// `/` or `-`.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct LibraryId {
    /// The text, filled up with zeros.
    text: [u8; 16],
}

impl LibraryId {
    /// The ISIL as it was written.
    pub fn as_str(&self) -> &str {
        let end = self.text.iter().position(|byte| *byte == 0).unwrap_or(self.text.len());
        self.text.get(..end).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or("")
    }
}

impl FromStr for LibraryId {
    type Err = NameError;

    fn from_str(written: &str) -> Result<LibraryId, NameError> {
        let (prefix, rest) = written
            .split_once('-')
            .ok_or(NameError("an ISIL is a prefix, a hyphen and an identifier, like NO-0301000"))?;
        if prefix.is_empty()
            || prefix.len() > 4
            || !prefix.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            return Err(NameError(
                "the prefix of an ISIL is one to four letters or digits, like NO",
            ));
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'/' | b'-');
        if rest.is_empty() || rest.len() > 11 || !rest.bytes().all(allowed) {
            return Err(NameError(
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
/// The own id is gone once this is made. `Display` gives the pseudonym (26 characters of lower-case
/// base 32), for the ledger, Bokbasen and support; `Debug` gives nothing, so that no log shows it
/// by chance.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Borrower([u8; 16]);

impl Borrower {
    /// The borrower of these 128 bits.
    pub fn from_bytes(bytes: [u8; 16]) -> Borrower {
        Borrower(bytes)
    }

    /// The 128 bits.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for Borrower {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Borrower, NameError> {
        const WRONG: NameError =
            NameError("a borrower's pseudonym is 26 characters of lower-case base 32");
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

/// Base 32 of RFC 4648 in lower case, without padding: it reads well in a URL, a table and over the
/// telephone.
fn borrower_encoding() -> &'static Encoding {
    static ENCODING: LazyLock<Encoding> = LazyLock::new(|| {
        let mut specification = Specification::new();
        specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
        specification.encoding().unwrap_or(BASE32_NOPAD)
    });
    &ENCODING
}

/// What at most one loan may be live for: a library, one of its borrowers, a title.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LoanKey {
    /// The library that lends.
    pub library: LibraryId,
    /// Who borrows.
    pub borrower: Borrower,
    /// What is borrowed.
    pub isbn: Isbn,
}

/// A loan's own name in the ledger: a UUID of version 7, so that names sort by the time they were
/// made.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LoanId(Uuid);

impl LoanId {
    /// A name that nothing else has.
    pub fn fresh() -> LoanId {
        LoanId(Uuid::now_v7())
    }

    /// When it was made, by the clock of that time; the epoch for an id of another kind.
    pub fn made_at(self) -> Timestamp {
        let (seconds, nanoseconds) = self.0.get_timestamp().map_or((0, 0), |at| at.to_unix());
        let seconds = i64::try_from(seconds).unwrap_or_default();
        Timestamp::new(seconds, i32::try_from(nanoseconds).unwrap_or_default()).unwrap_or_default()
    }
}

impl FromStr for LoanId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<LoanId, NameError> {
        Uuid::try_parse(text).map(LoanId).map_err(|_| NameError("a loan's id is a UUID"))
    }
}

impl fmt::Display for LoanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

/// The client reference under which a begin is sent, and found again at Bokbasen after a lost
/// answer.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Reference(String);

impl Reference {
    /// A reference that was never used: random, so that it tells nothing.
    pub fn fresh() -> Reference {
        Reference(format!("lg-{}", Uuid::new_v4().simple()))
    }

    /// The reference as it was written down or heard from Bokbasen.
    pub fn from_text(text: impl Into<String>) -> Reference {
        Reference(text.into())
    }

    /// Whether it has the form of those that this program makes.
    pub fn looks_ours(&self) -> bool {
        self.0.strip_prefix("lg-").is_some_and(|rest| Uuid::try_parse(rest).is_ok())
    }

    /// The text.
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
    fn an_isbn_needs_its_check_digit() {
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
    fn an_isil_keeps_its_text() {
        for text in ["NO-0301000", "O-ISIL/a:1-2", "NO-1"] {
            assert_eq!(text.parse::<LibraryId>().unwrap().as_str(), text);
        }
        for text in ["", "NO", "NO-", "-0301000", "NORGE-1", "NO-123456789012", "NO-ø", "NO-03 01"]
        {
            assert!(text.parse::<LibraryId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_pseudonym_reads_back_and_never_prints_itself_in_debug() {
        let borrower = Borrower::from_bytes(*b"0123456789abcdef");
        let text = borrower.to_string();
        assert_eq!(text.len(), 26);
        assert_eq!(text.parse::<Borrower>().unwrap(), borrower);
        assert!(!format!("{borrower:?}").contains(&text));
        assert!("0123".parse::<Borrower>().is_err());
    }
}
