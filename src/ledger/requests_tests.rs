//! Tests of stored requests on both stores.

use std::time::Duration;

use super::super::test_store::{TestStore, on_each_store};
use super::super::test_support::accepted;
use super::*;

on_each_store! {
    requests_are_stored_once_and_removed_after_their_time
}

async fn requests_are_stored_once_and_removed_after_their_time(store: &TestStore) {
    let (ledger, other) = (store.open().await, store.open().await);
    accepted(&ledger, 1).await;
    let now = Timestamp::from_second(1_790_000_000).unwrap();
    let later = |seconds| now + Duration::from_secs(seconds);
    let request = |until: Timestamp, detail: &str| StoredRequest {
        id: Uuid::new_v4(),
        at: now,
        until,
        detail: detail.to_owned(),
    };
    let (short, long) =
        (request(later(60), "{}"), request(later(86_400), "{\"path\":\"ø\\u0000\"}"));
    ledger.record_requests(&[]).await.unwrap();
    ledger.record_requests(&[short.clone(), long.clone()]).await.unwrap();
    let again = StoredRequest { detail: "other".to_owned(), ..long.clone() };
    other.record_requests(&[again, request(later(60), "{}")]).await.unwrap();
    // What one process stored, the other finds, until its time is over.
    assert_eq!(other.request(short.id, now).await.unwrap(), Some(short.clone()));
    assert_eq!(other.request(long.id, now).await.unwrap(), Some(long.clone()));
    assert_eq!(ledger.request(short.id, later(60)).await.unwrap(), None);
    assert_eq!(ledger.request(Uuid::new_v4(), now).await.unwrap(), None);
    assert_eq!(ledger.remove_requests(now, 10).await.unwrap(), 0);
    assert_eq!(other.remove_requests(later(60), 1).await.unwrap(), 1);
    assert_eq!(other.remove_requests(later(60), 10).await.unwrap(), 1);
    assert_eq!(ledger.request(short.id, now).await.unwrap(), None, "removed");
    assert_eq!(ledger.request(long.id, now).await.unwrap(), Some(long));
    other.close().await;
    ledger.close().await;
    store.assert_sound().await;
}
