//! Near cache: a small table of each thread in front of a cache that all threads share.
//!
//! The gate and the reader module look entries up here on every request. The shared cache is the
//! cache of record. A lookup there touches much memory that the processor's caches do not hold; a
//! hit here touches two places, takes no lock, and writes nothing that another thread reads.
//!
//! A near cache never serves what has been replaced or removed in the record. After such a change
//! the caller calls [`NearCache::invalidate`], and no thread uses an older copy from then on. An
//! eviction for space is no such change. The caller checks key and expiry with every hit.

use std::cell::RefCell;
use std::fmt;
use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thread_local::ThreadLocal;

/// Number of entries that compete for a place. Four fill one cache line of the processor.
const WAYS: usize = 4;
/// The minimum number of entries of a worker's table.
const MIN_ENTRIES: usize = 1 << 14;
/// Number of version counters; a power of two. Keys that share one are invalidated together.
const VERSIONS: usize = 4096;

/// A table for each thread that looks something up. Each table takes 16 bytes an entry.
pub struct NearCache<V: Send + Sync> {
    tables: ThreadLocal<RefCell<Box<[Set<V>]>>>,
    /// Number of sets in each table; a power of two.
    sets: usize,
    /// Incremented when the record of a key changes.
    versions: Box<[AtomicU32]>,
}

/// A lookup that found nothing. [`NearCache::insert`] needs it, so that the version is from before
/// the record was read.
#[derive(Debug)]
pub struct Miss {
    hash: u64,
    version: u32,
}

/// Entries with the same lower bits of the hash, those with more hits first.
#[repr(align(64))]
struct Set<V>([Slot<V>; WAYS]);

struct Slot<V> {
    /// The upper bits of the hash.
    tag: u32,
    /// The version of the key before the record was read.
    version: u32,
    value: Option<Arc<V>>,
}

impl<V: Send + Sync> NearCache<V> {
    /// Creates a cache of about this number of entries in the tables of all workers. There is one
    /// worker for each core, and each reader's connection stays at one worker.
    pub fn for_workers(entries: usize) -> NearCache<V> {
        let workers = std::thread::available_parallelism().map_or(1, NonZero::get);
        NearCache::new((entries / workers).max(MIN_ENTRIES))
    }

    /// Creates a cache of at least this number of entries for each thread. A thread allocates its
    /// table at its first lookup.
    pub fn new(entries: usize) -> NearCache<V> {
        NearCache {
            tables: ThreadLocal::new(),
            sets: entries.div_ceil(WAYS).next_power_of_two(),
            versions: (0..VERSIONS).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Returns what `pick` returns for this thread's copy of the entry. `pick` must compare the
    /// key, since keys may share a hash, and returns none for a value that no longer holds.
    ///
    /// # Errors
    /// [`Miss`] if there is no such copy; the caller then reads the record.
    pub fn find<R>(&self, hash: u64, pick: impl FnOnce(&Arc<V>) -> Option<R>) -> Result<R, Miss> {
        let version = self.version(hash).map_or(0, |version| version.load(Ordering::Acquire));
        let miss = Miss { hash, version };
        self.with_set(hash, |set| set.find(&miss, pick)).flatten().ok_or(miss)
    }

    /// Stores a copy of what the record held after the miss, for this thread.
    pub fn insert(&self, miss: Miss, value: Arc<V>) {
        self.with_set(miss.hash, |set| set.insert(&miss, value));
    }

    /// Makes every thread read the record of this key again. Must be called after each change of
    /// the record.
    pub fn invalidate(&self, hash: u64) {
        if let Some(version) = self.version(hash) {
            version.fetch_add(1, Ordering::Release);
        }
    }

    fn version(&self, hash: u64) -> Option<&AtomicU32> {
        self.versions.get(place(hash, VERSIONS))
    }

    /// Calls `call` with this thread's set for the hash.
    fn with_set<R>(&self, hash: u64, call: impl FnOnce(&mut Set<V>) -> R) -> Option<R> {
        let table =
            self.tables.get_or(|| RefCell::new((0..self.sets).map(|_| Set::new()).collect()));
        table.try_borrow_mut().ok()?.get_mut(place(hash, self.sets)).map(call)
    }
}

impl<V: Send + Sync> fmt::Debug for NearCache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NearCache").field("sets", &self.sets).finish_non_exhaustive()
    }
}

/// Returns the place of a hash among `places`, a power of two.
fn place(hash: u64, places: usize) -> usize {
    hash as usize & (places - 1)
}

impl Miss {
    fn tag(&self) -> u32 {
        (self.hash >> 32) as u32
    }
}

impl<V> Set<V> {
    fn new() -> Set<V> {
        Set(std::array::from_fn(|_| Slot { tag: 0, version: 0, value: None }))
    }

    fn find<R>(&mut self, wanted: &Miss, pick: impl FnOnce(&Arc<V>) -> Option<R>) -> Option<R> {
        let tag = wanted.tag();
        let position = self.0.iter().position(|slot| slot.tag == tag && slot.value.is_some())?;
        let slot = self.0.get(position)?;
        if slot.version != wanted.version {
            return None;
        }
        let picked = pick(slot.value.as_ref()?)?;
        // An entry advances by one place with each hit, so that a rare one replaces no busy one.
        if let Some(ahead) = position.checked_sub(1) {
            self.0.swap(ahead, position);
        }
        Some(picked)
    }

    /// Replaces the entry with the same tag, or fills an empty slot, or replaces the last entry.
    fn insert(&mut self, miss: &Miss, value: Arc<V>) {
        let (tag, version) = (miss.tag(), miss.version);
        let is_free = |slot: &Slot<V>| slot.tag == tag || slot.value.is_none();
        let position = self.0.iter().position(is_free).unwrap_or(WAYS - 1);
        if let Some(slot) = self.0.get_mut(position) {
            *slot = Slot { tag, version, value: Some(value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An entry that holds until it is withdrawn.
    type Entry = (u64, &'static str);

    fn find(cache: &NearCache<Entry>, hash: u64) -> Result<&'static str, Miss> {
        cache.find(hash, |entry| (entry.0 == hash).then_some(entry.1))
    }

    fn insert(cache: &NearCache<Entry>, hash: u64, text: &'static str) {
        cache.insert(find(cache, hash).unwrap_err(), Arc::new((hash, text)));
    }

    #[test]
    fn copy_is_used_until_the_record_changes() {
        let cache = NearCache::new(64);
        insert(&cache, 1, "first");
        assert_eq!(find(&cache, 1).unwrap(), "first");
        cache.invalidate(1);
        insert(&cache, 1, "second");
        assert_eq!(find(&cache, 1).unwrap(), "second");
    }

    #[test]
    fn change_reaches_every_thread() {
        let cache = NearCache::new(64);
        std::thread::scope(|scope| {
            let (copied, wait_for_copy) = mpsc::channel();
            let (changed, wait_for_change) = mpsc::channel();
            let cache = &cache;
            scope.spawn(move || {
                insert(cache, 1, "first");
                assert_eq!(find(cache, 1).unwrap(), "first");
                copied.send(()).unwrap();
                wait_for_change.recv().unwrap();
                assert!(find(cache, 1).is_err());
            });
            wait_for_copy.recv().unwrap();
            assert!(find(cache, 1).is_err(), "each thread has its own copies");
            cache.invalidate(1);
            changed.send(()).unwrap();
        });
    }

    #[test]
    fn change_while_the_record_is_read_makes_the_copy_obsolete() {
        let cache = NearCache::new(64);
        let miss = find(&cache, 1).unwrap_err();
        cache.invalidate(1);
        cache.insert(miss, Arc::new((1, "read before the change")));
        assert!(find(&cache, 1).is_err());
    }

    #[test]
    fn keys_with_one_hash_are_not_confused() {
        let cache = NearCache::new(64);
        let of = |key: u64| cache.find(7, |entry: &Arc<u64>| (**entry == key).then_some(key));
        for key in 0..9 {
            let miss = of(key).unwrap_err();
            cache.insert(miss, Arc::new(key));
            assert_eq!(of(key).unwrap(), key);
        }
    }

    #[test]
    fn rare_entries_replace_no_busy_one() {
        let cache = NearCache::new(2 * WAYS);
        let busy = 1 << 32;
        for number in 1..=WAYS as u64 {
            insert(&cache, number << 32, "busy");
        }
        for rare in 100..200 {
            assert_eq!(find(&cache, busy).unwrap(), "busy");
            insert(&cache, rare << 32, "rare");
        }
        assert_eq!(find(&cache, 199 << 32).unwrap(), "rare");
        assert!(find(&cache, 198 << 32).is_err());
    }

    #[test]
    fn replaced_entries_are_dropped() {
        let cache = NearCache::new(WAYS);
        let first = Arc::new((1 << 32, "first"));
        cache.insert(find(&cache, 1 << 32).unwrap_err(), first.clone());
        for number in 2..=2 * WAYS as u64 {
            insert(&cache, number << 32, "other");
        }
        assert_eq!(find(&cache, 1 << 32).unwrap(), "first");
        cache.invalidate(1 << 32);
        insert(&cache, 1 << 32, "second");
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
