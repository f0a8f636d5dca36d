//! Random numbers of the simulation, and the curves of load over a day, a week and a year.

use fastrand::Rng;

use crate::queues::{DAY, HOUR};

/// Load in each hour of a day, local time, relative to each other. People read in the evening.
pub(crate) const HOURS: [f64; 24] = [
    0.35, 0.20, 0.12, 0.10, 0.10, 0.20, 0.50, 0.90, 1.00, 1.00, 1.00, 1.05, 1.10, 1.05, 1.00, 1.05,
    1.15, 1.25, 1.35, 1.60, 1.95, 2.15, 1.75, 0.90,
];
/// Load on each day of the week, from Monday.
const WEEKDAYS: [f64; 7] = [1.00, 0.97, 0.95, 0.95, 0.95, 1.03, 1.15];
/// Load in each month of 30 or 31 days, from January. July is the holiday month.
const MONTHS: [f64; 12] = [1.10, 1.00, 1.00, 1.00, 0.90, 1.00, 1.35, 1.05, 0.90, 0.95, 0.95, 1.00];
/// Days with more load: Easter, and Christmas with its new devices.
const HOLIDAYS: [(std::ops::Range<u64>, f64); 2] = [(95..102, 1.3), (358..365, 1.6)];

/// Returns the load on a day of the year relative to the mean of [`WEEKDAYS`] and [`MONTHS`].
fn day_factor(day: u64) -> f64 {
    let day = day % 365;
    let holiday = HOLIDAYS.iter().find(|(days, _)| days.contains(&day));
    WEEKDAYS[(day % 7) as usize]
        * MONTHS[(day * 12 / 365) as usize]
        * holiday.map_or(1.0, |(_, factor)| *factor)
}

/// Begins of loans over the year: a Poisson process whose rate follows the curves.
pub(crate) struct Demand {
    mean: f64,
    max: f64,
}

impl Demand {
    pub(crate) fn new() -> Demand {
        let days: Vec<f64> = (0..365).map(day_factor).collect();
        let hours = HOURS.iter().sum::<f64>() / 24.0;
        let max = |all: &[f64]| all.iter().copied().fold(0.0, f64::max);
        Demand { mean: days.iter().sum::<f64>() / 365.0 * hours, max: max(&days) * max(&HOURS) }
    }

    /// Returns the time of the next begin after `now`, for a mean rate per microsecond.
    pub(crate) fn next(&self, random: &mut Rng, mut now: u64, rate: f64) -> u64 {
        loop {
            now += exponential(random, self.mean / (rate * self.max)).max(1.0) as u64;
            let load = day_factor(now / DAY) * HOURS[(now % DAY / HOUR) as usize];
            if random.f64() * self.max < load {
                return now;
            }
        }
    }
}

/// Returns a time of day that follows [`HOURS`].
pub(crate) fn time_of_day(random: &mut Rng) -> u64 {
    let mut left = random.f64() * HOURS.iter().sum::<f64>();
    let hour = HOURS.iter().position(|load| {
        left -= load;
        left < 0.0
    });
    hour.unwrap_or(21) as u64 * HOUR + random.u64(..HOUR)
}

pub(crate) fn exponential(random: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - random.f64()).ln()
}

/// Returns a lognormal number, whose logarithm deviates by `deviation`.
pub(crate) fn lognormal(random: &mut Rng, median: f64, deviation: f64) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    median * (deviation * radius * (std::f64::consts::TAU * random.f64()).cos()).exp()
}

/// A choice among numbered things with unequal weights.
pub(crate) struct Weighted(Vec<f64>);

impl Weighted {
    pub(crate) fn new(weights: impl Iterator<Item = f64>) -> Weighted {
        let mut sum = 0.0;
        Weighted(
            weights
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect(),
        )
    }

    /// The weights of ranks by Zipf's law.
    pub(crate) fn zipf(count: usize, exponent: f64) -> impl Iterator<Item = f64> {
        (1..=count).map(move |rank| (rank as f64).powf(-exponent))
    }

    pub(crate) fn choose(&self, random: &mut Rng) -> usize {
        let at = random.f64() * self.0[self.0.len() - 1];
        self.0.partition_point(|sum| *sum < at).min(self.0.len() - 1)
    }
}
