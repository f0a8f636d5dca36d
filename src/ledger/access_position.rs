//! The position of an access in the order of the listing.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A position in the listing of accesses. No two accesses of a ledger have the same one.
///
/// As text it fits into a query. Its order is that of the listing, the oldest first: by time, and
/// within a millisecond by library, chain and number.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct AccessPosition {
    /// When it was recorded, in milliseconds.
    pub(super) at: i64,
    /// The library of its chain; empty in a store with one chain.
    pub(super) library: String,
    /// Its chain; nil in a store with one chain.
    pub(super) chain: Uuid,
    /// Its number in the chain.
    pub(super) number: i64,
}

impl AccessPosition {
    /// Returns the position after all accesses: the listing begins below it.
    pub(super) fn end() -> AccessPosition {
        AccessPosition { at: i64::MAX, library: String::new(), chain: Uuid::nil(), number: 0 }
    }
}

impl fmt::Display for AccessPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AccessPosition { at, library, chain, number } = self;
        write!(f, "{at}.{number}.{}.{library}", chain.simple())
    }
}

/// The text is no position.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this is no position of an access")]
pub struct NoAccessPosition;

impl FromStr for AccessPosition {
    type Err = NoAccessPosition;

    fn from_str(text: &str) -> Result<AccessPosition, NoAccessPosition> {
        let mut parts = text.splitn(4, '.');
        let mut next = || parts.next().ok_or(NoAccessPosition);
        let (at, number, chain, library) = (next()?, next()?, next()?, next()?);
        Ok(AccessPosition {
            at: at.parse().map_err(|_| NoAccessPosition)?,
            // PostgreSQL refuses a text with a null character.
            library: Some(library)
                .filter(|text| !text.contains('\0'))
                .ok_or(NoAccessPosition)?
                .into(),
            chain: chain.parse().map_err(|_| NoAccessPosition)?,
            number: number.parse().map_err(|_| NoAccessPosition)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_is_read_as_it_was_written() {
        let position = AccessPosition {
            at: 1_790_000_000_000,
            library: "NO-0301000".to_owned(),
            chain: Uuid::max(),
            number: 42,
        };
        assert_eq!(position.to_string().parse(), Ok(position.clone()));
        assert!(position < AccessPosition::end());
        for wrong in
            ["", "1", "1.2", "1.2.x.NO-1", "1.2.00000000000000000000000000000000", "....", "x"]
        {
            assert_eq!(wrong.parse::<AccessPosition>(), Err(NoAccessPosition), "{wrong}");
        }
    }
}
