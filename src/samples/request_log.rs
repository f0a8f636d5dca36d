//! The storage's own log: which requests came, so that a demo or a test can show what the gate let
//! through.
//!
//! The storage writes a request down before it answers it. It calls nothing of ours, and never
//! waits.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use http::header::RANGE;
use jiff::Timestamp;
use serde::Serialize;

/// How many requests are kept, the newest.
const KEPT: usize = 100_000;

/// One request.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    at: Timestamp,
    method: String,
    path: String,
    /// The field Range as it was sent.
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
    /// Writes a request down, and forgets the oldest where there are too many.
    pub(super) fn add(&self, entry: Entry) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// All that is kept, as an array of JSON.
    pub(super) fn json(&self) -> serde_json::Result<Vec<u8>> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        serde_json::to_vec(&*entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let log = Log::default();
        for second in 0..=KEPT {
            let at = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
            log.add(Entry::new(at, "GET", "/a", &HeaderMap::new()));
        }
        let kept: Vec<serde_json::Value> = serde_json::from_slice(&log.json().unwrap()).unwrap();
        assert_eq!(kept.len(), KEPT);
        let expected = serde_json::json!({"at": "1970-01-01T00:00:01Z", "method": "GET", "path": "/a", "range": null});
        assert_eq!(kept[0], expected);
    }
}
