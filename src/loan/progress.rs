//! How far a borrower has read.

use super::NameError;

/// A part of the whole, from 0 to 1, kept to a hundredth of a per cent. It is rounded down, so that
/// nothing counts as read that was not: what Bokbasen is to be told of a loan paid for by its use
/// hangs on it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Progress(u16);

/// The whole.
const WHOLE: u16 = 10_000;
/// What a fraction that cannot be written exactly in binary may lack of itself.
const SLACK: f64 = 1e-6;

impl Progress {
    /// The progress of a fraction.
    ///
    /// # Errors
    /// Where it is not between 0 and 1.
    pub fn of(fraction: f64) -> Result<Progress, NameError> {
        if !(0.0..=1.0).contains(&fraction) {
            return Err(NameError::because("a progress is a fraction from 0 to 1, like 0.4"));
        }
        // Between 0 and 10,000 by the check above: nothing is cut off.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(Progress((fraction * f64::from(WHOLE) + SLACK).floor() as u16))
    }

    /// The progress of so many hundredths of a per cent, as the ledger keeps it.
    ///
    /// # Errors
    /// Where they are more than the whole.
    pub fn of_hundredths(hundredths: u16) -> Result<Progress, NameError> {
        match hundredths {
            0..=WHOLE => Ok(Progress(hundredths)),
            _ => Err(NameError::because("a progress has at most 10,000 hundredths of a per cent")),
        }
    }

    /// As hundredths of a per cent.
    pub fn hundredths(self) -> u16 {
        self.0
    }

    /// As a fraction.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_kept_and_never_rounded_up() {
        for (fraction, kept) in
            [(0.0, 0), (0.4, 4000), (0.29, 2900), (0.099_99, 999), (1.0, 10_000)]
        {
            assert_eq!(Progress::of(fraction).unwrap().hundredths(), kept, "{fraction}");
        }
        assert_eq!(Progress::of(0.29).unwrap().fraction(), 0.29);
        for wrong in [-0.1, 1.000_1, f64::NAN, f64::INFINITY] {
            assert!(Progress::of(wrong).is_err(), "{wrong}");
        }
        assert!(Progress::of_hundredths(10_001).is_err());
    }
}
