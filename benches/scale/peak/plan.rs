//! Which part of a deployment is simulated, and at which rates.

use crate::deployment::{TITLE_EXPONENT, TITLES};
use crate::distributions::Weighted;
use crate::sizing::Sizing;
use crate::year::{Rates, Year};

/// The part of a deployment that is simulated.
pub(crate) struct Plan {
    pub(crate) gates: usize,
    pub(crate) fronts: usize,
    pub(super) rates: Rates,
    pub(super) libraries: Weighted,
    pub(super) titles: Weighted,
    /// Whether sessions go on after their first request. Without, the cell has neither hits nor
    /// metering.
    pub(crate) has_hits: bool,
    /// Seconds for which a gate caches a decision before newer ones evict it.
    pub(super) cached_for: f64,
}

impl Plan {
    /// Returns the fullest cell of the first region.
    pub(crate) fn of(sizing: &Sizing, year: &Year) -> Plan {
        /// Decisions that a gate caches.
        const DECISIONS: f64 = 1e6;
        let region = &sizing.regions[0];
        let gates = (region.gates as f64 * region.share).round().max(2.0) as usize;
        let mean = year.mean.sessions * sizing.deployment.people * sizing.deployment.regions[0];
        Plan {
            gates,
            fronts: region.gates,
            rates: region.peak.times(region.share),
            libraries: Weighted::new(region.fullest.iter().copied()),
            titles: Weighted::new(Weighted::zipf(TITLES, TITLE_EXPONENT)),
            has_hits: true,
            cached_for: DECISIONS * region.gates as f64 / mean,
        }
    }
}
