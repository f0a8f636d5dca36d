//! How many machines a deployment needs, from the rates of the year and the cost of each operation.

use fastrand::Rng;

use crate::calibration as cost;
use crate::deployment::{
    BUDGET, DATABASE_CORES, DATABASE_PRICE, Deployment, GATE_BITS, GATE_CONNECTIONS, GATE_CORES,
    GATE_PRICE, KEPT_DAYS, LIBRARY_EXPONENT, LOANS_PER_YEAR, METERING_FLUSH, NODE_CONNECTIONS,
    SHARD_BYTES, STORAGE_PRICE, TRAFFIC_PRICE,
};
use crate::distributions::Weighted;
use crate::year::{Rates, Year};

/// Groups of libraries that move between databases together, for each database.
const GROUPS_PER_SHARD: usize = 16;
const SECONDS_PER_MONTH: f64 = 86_400.0 * 365.0 / 12.0;

pub(crate) struct Sizing {
    pub(crate) deployment: &'static Deployment,
    pub(crate) peak: Rates,
    pub(crate) loans: f64,
    pub(crate) connections: f64,
    pub(crate) regions: Vec<Region>,
    pub(crate) bytes: f64,
    pub(crate) traffic_per_month: f64,
}

pub(crate) struct Region {
    pub(crate) peak: Rates,
    /// Gates that each resource alone requires within its budget: CPU, network, connections.
    pub(crate) needs: [f64; 3],
    pub(crate) gates: usize,
    pub(crate) shards: usize,
    /// Weights of the libraries in the fullest shard, and their part of the region's load.
    pub(crate) fullest: Vec<f64>,
    pub(crate) share: f64,
    pub(crate) database: DatabaseLoad,
}

/// What the databases of a region do in a second of the busiest hour.
#[derive(Clone, Copy, Default)]
pub(crate) struct DatabaseLoad {
    pub(crate) transactions: f64,
    pub(crate) writes: f64,
    pub(crate) cpu: f64,
    pub(crate) log_bytes: f64,
}

impl Sizing {
    pub(crate) fn of(deployment: &'static Deployment, year: &Year, seed: u64) -> Sizing {
        let people = deployment.people;
        let loans = people * LOANS_PER_YEAR;
        let mean_days = 365.0 * year.live_loans / LOANS_PER_YEAR;
        let kept = loans * (KEPT_DAYS + mean_days) / 365.0;
        let bytes = kept * cost::LOAN_BYTES * cost::BLOAT;
        let region = |share: &f64| Region::of(deployment, *share, bytes * share, year, seed);
        Sizing {
            deployment,
            peak: year.peak.times(people),
            loans,
            connections: year.connections * people,
            regions: deployment.regions.iter().map(region).collect(),
            bytes,
            traffic_per_month: year.mean.bytes * people * SECONDS_PER_MONTH,
        }
    }

    pub(crate) fn gates(&self) -> usize {
        self.regions.iter().map(|region| region.gates).sum()
    }

    pub(crate) fn shards(&self) -> usize {
        self.regions.iter().map(|region| region.shards).sum()
    }

    pub(crate) fn database(&self) -> DatabaseLoad {
        self.regions.iter().fold(DatabaseLoad::default(), |mut all, region| {
            all.transactions += region.database.transactions;
            all.writes += region.database.writes;
            all.cpu += region.database.cpu;
            all.log_bytes += region.database.log_bytes;
            all
        })
    }

    pub(crate) fn database_connections(&self) -> usize {
        self.gates() * NODE_CONNECTIONS
    }

    /// Euros in a month: gates, databases with their disks, and traffic.
    pub(crate) fn costs(&self) -> [f64; 3] {
        [
            self.gates() as f64 * GATE_PRICE,
            self.shards() as f64 * DATABASE_PRICE + self.bytes / 1e12 * STORAGE_PRICE,
            self.traffic_per_month / 1e12 * TRAFFIC_PRICE,
        ]
    }
}

impl Region {
    fn of(deployment: &Deployment, share: f64, bytes: f64, year: &Year, seed: u64) -> Region {
        let people = deployment.people * share;
        let peak = year.peak.times(people);
        let needs = [
            gate_cpu(&peak) / (GATE_CORES as f64 * BUDGET),
            peak.bytes * 8.0 / (GATE_BITS * BUDGET),
            year.connections * people / (GATE_CONNECTIONS * BUDGET),
        ];
        let largest = needs.iter().copied().fold(0.0, f64::max).ceil() as usize;
        let gates = largest + (largest / 10).max(1);
        let count = (deployment.libraries as f64 * share) as usize;
        let libraries: Vec<f64> = Weighted::zipf(count, LIBRARY_EXPONENT).collect();
        let sum = libraries.iter().sum::<f64>();
        let database = database_load(&peak, gates, &libraries);
        let by_cpu = database.cpu / (DATABASE_CORES as f64 * BUDGET);
        let mut shards = by_cpu.max(bytes / SHARD_BYTES).ceil().max(1.0) as usize;
        loop {
            let fullest = fullest_shard(&libraries, shards, seed);
            let share = fullest.iter().sum::<f64>() / sum;
            if shards == 1 || bytes * share <= SHARD_BYTES {
                return Region { peak, needs, gates, shards, fullest, share, database };
            }
            shards += 1;
        }
    }
}

/// CPU seconds of all gates in a second. Each session counts as one handshake and one miss.
fn gate_cpu(peak: &Rates) -> f64 {
    let micros = peak.requests * cost::HIT
        + peak.sessions * (cost::HANDSHAKE + cost::MISS)
        + peak.begins * cost::REGISTRATION
        + (peak.returns + peak.expiries) * cost::END;
    micros / 1e6 + peak.bytes / 1e9 * cost::BYTES
}

fn database_load(peak: &Rates, gates: usize, libraries: &[f64]) -> DatabaseLoad {
    let ends = peak.returns + peak.expiries;
    let rows = peak.requests;
    let sum: f64 = libraries.iter().sum();
    // Rows of one gate in one flush. A transaction has the rows of one library.
    let flushed = rows * METERING_FLUSH as f64 / gates as f64;
    let batches: f64 = libraries.iter().map(|weight| 1.0 - (-flushed * weight / sum).exp()).sum();
    let batches = batches * gates as f64 / METERING_FLUSH as f64;
    let steps = 1.0 + cost::PENDING * (1.0 - cost::REFUSED);
    let polls = 2.0 * gates as f64;
    let micros = peak.begins * (cost::INTENT + steps * cost::STEP + cost::OPENED)
        + peak.sessions * cost::READ
        + ends * 2.0 * cost::STEP
        + batches * cost::METER_BATCH
        + rows * cost::METER_ROW
        + polls * cost::FEED;
    let writes = peak.begins * (2.0 + steps) + ends * 2.0 + batches;
    DatabaseLoad {
        transactions: writes + peak.sessions + polls,
        writes,
        cpu: micros / 1e6 * (1.0 + cost::VACUUM),
        log_bytes: peak.begins * cost::LOAN_WAL + batches * cost::METER_WAL + rows * cost::ROW_WAL,
    }
}

/// Places libraries in groups by hash, and groups on shards, the largest first on the emptiest.
/// Returns the libraries of the fullest shard.
fn fullest_shard(libraries: &[f64], shards: usize, seed: u64) -> Vec<f64> {
    let mut random = Rng::with_seed(seed);
    let mut groups = vec![Vec::new(); if shards == 1 { 1 } else { shards * GROUPS_PER_SHARD }];
    for library in libraries {
        let group = random.usize(..groups.len());
        groups[group].push(*library);
    }
    let load = |libraries: &Vec<f64>| libraries.iter().sum::<f64>();
    groups.sort_by(|one, two| load(two).total_cmp(&load(one)));
    let mut placed = vec![Vec::new(); shards];
    for group in groups {
        let emptiest = placed.iter_mut().min_by(|one, two| load(one).total_cmp(&load(two)));
        emptiest.unwrap().extend(group);
    }
    placed.into_iter().max_by(|one, two| load(one).total_cmp(&load(two))).unwrap()
}
