//! Counts the loans of a library's month in the background, day by day, and stores the result for
//! a while.
//!
//! A library may have a million loans, so no click adds them up. A page waits a moment for a count,
//! which is enough for most libraries, and else shows the last one or none. One month is counted at
//! a time, which leaves a connection of support to the other pages. Days that are over are counted
//! again once an hour only.

use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::super::failure::Failure;
use super::super::find::failed;
use super::month::{Month, times_of};
use super::sums::{Sums, TitleRow};
use crate::circulation::date_in_oslo;
use crate::clock::Clock;
use crate::ledger::{Ledger, LedgerError};
use crate::loan::LibraryId;

/// The most stored months, of at most two megabytes, and the most that wait to be counted.
const MAX_MONTHS: u64 = 32;
const MAX_WAITING: usize = 32;
/// How long a month is stored after its last look.
const IDLE_LIFETIME: Duration = Duration::from_secs(2 * 3600);
/// A count is used for this many times as long as it took, within these bounds. So counting takes
/// a small part of a connection, however many loans there are.
const USE_FACTOR: u32 = 50;
const SHORTEST_USE: Duration = Duration::from_secs(1);
const LONGEST_USE: Duration = Duration::from_secs(60);
/// How long the count of days that are over is used.
const SETTLED_USE: Duration = Duration::from_secs(3600);
/// The number of days after which the loans of a day are all decided.
const SETTLED_AFTER: i64 = 3;

/// How long a count may take before others have their turn. The next one continues it.
const COUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the list of libraries is used.
const LIST_LIFETIME: Duration = Duration::from_secs(60);

/// The loans of a month.
#[derive(Debug)]
pub(super) struct Counted {
    /// When they were counted.
    pub(super) at: Timestamp,
    /// The titles, those with the most loans first.
    pub(super) rows: Vec<TitleRow>,
    pub(super) sums: Sums,
    finished: Instant,
    took: Duration,
}

/// The sums of the days that are over.
#[derive(Clone, Debug)]
struct Settled {
    sums: Sums,
    /// The last of these days.
    until: Option<Date>,
    counted: Instant,
}

/// The counts of one month, and whether one is running.
#[derive(Debug, Default)]
struct Entry(watch::Sender<Latest>);

#[derive(Clone, Debug, Default)]
struct Latest {
    counted: Option<Arc<Counted>>,
    is_running: bool,
    failure: Option<Failure>,
    /// What the last count has of the days that are over, also if it failed later.
    settled: Option<Arc<Settled>>,
}

/// The stored counts of all libraries.
pub(in crate::console) struct Counts {
    counter: Counter,
    months: Cache<(LibraryId, Month), Arc<Entry>>,
    libraries: Cache<(), Arc<[LibraryId]>>,
    queue: Arc<Semaphore>,
}

/// Counts the loans of months.
#[derive(Clone)]
struct Counter {
    ledger: Ledger,
    clock: Clock,
    has_prices: bool,
    /// The count that runs.
    turn: Arc<Semaphore>,
}

/// Ends a count, also if it panics.
struct Running(Arc<Entry>, #[allow(dead_code, reason = "held until the end")] OwnedSemaphorePermit);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.send_modify(|latest| latest.is_running = false);
    }
}

impl Counted {
    fn is_fresh(&self) -> bool {
        let lifetime = (self.took * USE_FACTOR).clamp(SHORTEST_USE, LONGEST_USE);
        self.finished.elapsed() < lifetime
    }
}

impl Counts {
    /// Creates an empty store. `has_prices` is whether costs are counted, too.
    pub(in crate::console) fn new(ledger: Ledger, clock: Clock, has_prices: bool) -> Counts {
        let turn = Arc::new(Semaphore::new(1));
        // By frequency, the newest month would be the first to go.
        let months = Cache::builder().eviction_policy(EvictionPolicy::lru());
        let months = months.max_capacity(MAX_MONTHS).time_to_idle(IDLE_LIFETIME);
        let libraries = Cache::builder().max_capacity(1).time_to_live(LIST_LIFETIME);
        Counts {
            counter: Counter { ledger, clock, has_prices, turn },
            months: months.build(),
            libraries: libraries.build(),
            queue: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// Returns the loans of a month: a fresh count if there is one within `wait`, else the last
    /// one; none if they are being counted for the first time.
    ///
    /// # Errors
    /// [`Failure::Ledger`] if the first count failed.
    pub(super) async fn get(
        &self,
        library: LibraryId,
        month: Month,
        wait: Duration,
    ) -> Result<Option<Arc<Counted>>, Failure> {
        let entry = self.months.get_with((library, month), Arc::default);
        let counted = entry.0.borrow().counted.clone();
        if let Some(counted) = counted.filter(|counted| counted.is_fresh()) {
            return Ok(Some(counted));
        }
        self.begin(&entry, library, month);
        let mut changes = entry.0.subscribe();
        // Neither a late count nor one that could not begin is a failure.
        let _ = timeout(wait, changes.wait_for(|latest| !latest.is_running)).await;
        let latest = entry.0.borrow().clone();
        match (latest.counted, latest.failure) {
            (Some(counted), _) => Ok(Some(counted)),
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(None),
        }
    }

    /// Returns the libraries that have loans, as of the last minute: a ledger on PostgreSQL finds
    /// them one after the other.
    ///
    /// # Errors
    /// [`Failure::Ledger`] if the ledger cannot be read.
    pub(super) async fn libraries(&self) -> Result<Arc<[LibraryId]>, Failure> {
        if let Some(libraries) = self.libraries.get(&()) {
            return Ok(libraries);
        }
        let read = timeout(COUNT_TIMEOUT, self.counter.ledger.libraries()).await;
        let libraries: Arc<[LibraryId]> =
            read.map_err(|_| Failure::Ledger)?.map_err(failed)?.into();
        self.libraries.insert((), libraries.clone());
        Ok(libraries)
    }

    /// Begins a count, unless one is running or too many wait.
    fn begin(&self, entry: &Arc<Entry>, library: LibraryId, month: Month) {
        let Ok(place) = self.queue.clone().try_acquire_owned() else { return };
        let is_first = entry.0.send_if_modified(|latest| {
            let is_first = !latest.is_running;
            if is_first {
                (latest.is_running, latest.failure) = (true, None);
            }
            is_first
        });
        if !is_first {
            return;
        }
        let running = Running(entry.clone(), place);
        let counter = self.counter.clone();
        tokio::spawn(async move {
            let Ok(_turn) = counter.turn.acquire().await else { return };
            let mut settled = running.0.0.borrow().settled.clone();
            let counting = counter.count(library, month, &mut settled);
            let counted = match timeout(COUNT_TIMEOUT, counting).await {
                Ok(Ok(counted)) => Ok(counted.into()),
                Ok(Err(error)) => Err(failed(error)),
                Err(_) => Err(Failure::Ledger),
            };
            running.0.0.send_modify(|latest| {
                latest.settled = settled;
                match counted {
                    Ok(counted) => latest.counted = Some(counted),
                    Err(failure) => latest.failure = Some(failure),
                }
            });
        });
    }
}

impl Counter {
    async fn count(
        &self,
        library: LibraryId,
        month: Month,
        stored: &mut Option<Arc<Settled>>,
    ) -> Result<Counted, LedgerError> {
        let (began, at) = (Instant::now(), self.clock.now());
        let today = date_in_oslo(at);
        let is_settled = |day: Date| day.saturating_add(SETTLED_AFTER.days()) < today;
        if stored.as_ref().is_some_and(|settled| settled.counted.elapsed() >= SETTLED_USE) {
            *stored = None;
        }
        let nothing = || Settled { sums: Sums::default(), until: None, counted: began }.into();
        let settled: &mut Arc<Settled> = stored.get_or_insert_with(nothing);
        let next = settled.until;
        let days = month.days().filter(|day| next.is_none_or(|until| *day > until));
        let mut recent = None;
        // A clock that was wrong may have begun loans in the future.
        for day in days.take_while(|day| *day <= today.saturating_add(1.day())) {
            if is_settled(day) {
                let settled = Arc::make_mut(settled);
                self.add(&mut settled.sums, library, day).await?;
                settled.until = Some(day);
            } else {
                let recent = recent.get_or_insert_with(|| settled.sums.clone());
                self.add(recent, library, day).await?;
            }
        }
        let mut sums = recent.unwrap_or_else(|| settled.sums.clone());
        let rows = sums.take_rows();
        let took = began.elapsed();
        Ok(Counted { at, rows, sums, finished: Instant::now(), took })
    }

    async fn add(&self, sums: &mut Sums, library: LibraryId, day: Date) -> Result<(), LedgerError> {
        let (from, before) = times_of(day);
        let loans = self.ledger.loans_by_title(library, from, before).await?;
        let costs = match self.has_prices {
            true => self.ledger.costs_by_title(library, day).await?,
            false => Vec::new(),
        };
        sums.add_day(day, &loans, &costs);
        Ok(())
    }
}
