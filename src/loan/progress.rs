//! Reading progress of a borrower.

use super::IdentifierError;

/// Reading progress from 0 to 1, stored in hundredths of a per cent. It is rounded down, so that no
/// unread part counts as read: reports to Bokbasen about loans that are paid by use depend on it.
///
/// ```
/// use loangate::loan::Progress;
///
/// let almost = Progress::of(0.999_99)?;
/// assert_eq!(almost.hundredths(), 9_999);
/// assert!(almost < Progress::of(1.0)?);
///
/// assert!(Progress::of(1.01).is_err());
/// assert!(Progress::of(f64::NAN).is_err());
/// # Ok::<(), loangate::loan::IdentifierError>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Progress(u16);

/// The whole title, in hundredths of a per cent.
const WHOLE: u16 = 10_000;
/// Tolerance for fractions that binary numbers cannot represent exactly.
const SLACK: f64 = 1e-6;

impl Progress {
    /// Creates a progress from a fraction.
    ///
    /// # Errors
    /// Fails if the fraction is not between 0 and 1.
    pub fn of(fraction: f64) -> Result<Progress, IdentifierError> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(IdentifierError::because("a progress is a fraction from 0 to 1, like 0.4"));
        }
        // The check above limits it to 0 to 10,000, so nothing is truncated.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(Progress((fraction * f64::from(WHOLE) + SLACK).floor() as u16))
    }

    /// Creates a progress from hundredths of a per cent, as the ledger stores it.
    ///
    /// # Errors
    /// Fails if the value exceeds 10,000.
    pub fn of_hundredths(hundredths: u16) -> Result<Progress, IdentifierError> {
        match hundredths {
            0..=WHOLE => Ok(Progress(hundredths)),
            _ => Err(IdentifierError::because(
                "a progress has at most 10,000 hundredths of a per cent",
            )),
        }
    }

    /// Returns the progress in hundredths of a per cent.
    pub fn hundredths(self) -> u16 {
        self.0
    }

    /// Returns the progress as a fraction from 0 to 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fraction_is_stored_and_never_rounded_up() {
        for (fraction, stored) in
            [(0.0, 0), (0.4, 4000), (0.29, 2900), (0.099_99, 999), (1.0, 10_000)]
        {
            assert_eq!(Progress::of(fraction).unwrap().hundredths(), stored, "{fraction}");
        }
        assert_eq!(Progress::of(0.29).unwrap().fraction(), 0.29);
        for wrong in [-0.1, 1.000_1, f64::NAN, f64::INFINITY] {
            assert!(Progress::of(wrong).is_err(), "{wrong}");
        }
        assert!(Progress::of_hundredths(10_001).is_err());
    }
}
