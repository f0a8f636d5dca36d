//! The storage's request log, with which a demo or a test shows what the gate requested.
//!
//! The storage logs a request before it responds. Logging never waits.

use std::collections::VecDeque;
use std::sync::Mutex;

use http::HeaderMap;
use http::header::RANGE;
use jiff::Timestamp;
use serde::Serialize;

use crate::lock::lock;

/// The maximum number of requests in the log.
const MAX_ENTRIES: usize = 100_000;

/// A request in the log.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    at: Timestamp,
    method: String,
    path: String,
    /// The value of the Range header.
    range: Option<String>,
}

impl Entry {
    pub(super) fn new(at: Timestamp, method: &str, path: &str, headers: &HeaderMap) -> Entry {
        Entry {
            at,
            method: method.to_owned(),
            path: path.to_owned(),
            range: headers
                .get(RANGE)
                .map(|field| String::from_utf8_lossy(field.as_bytes()).into_owned()),
        }
    }
}

/// The newest requests, oldest first.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<VecDeque<Entry>>);

impl Log {
    /// Adds a request, and removes the oldest if the log is full.
    pub(super) fn add(&self, entry: Entry) {
        let mut entries = lock(&self.0);
        if entries.len() == MAX_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// Returns the log as a JSON array: the newest entries, at most this number.
    pub(super) fn json(&self, newest: usize) -> serde_json::Result<Vec<u8>> {
        let entries = lock(&self.0);
        let first = entries.len().saturating_sub(newest);
        serde_json::to_vec(&entries.range(first..).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_drops_the_oldest_requests() {
        let log = Log::default();
        for second in 0..=MAX_ENTRIES {
            let at = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
            log.add(Entry::new(at, "GET", "/a", &HeaderMap::new()));
        }
        let kept: Vec<serde_json::Value> =
            serde_json::from_slice(&log.json(usize::MAX).unwrap()).unwrap();
        assert_eq!(kept.len(), MAX_ENTRIES);
        let at = "1970-01-01T00:00:01Z";
        let expected = serde_json::json!({"at": at, "method": "GET", "path": "/a", "range": null});
        assert_eq!(kept[0], expected);
        let newest: Vec<serde_json::Value> = serde_json::from_slice(&log.json(2).unwrap()).unwrap();
        assert_eq!(newest, kept[MAX_ENTRIES - 2..]);
    }
}
