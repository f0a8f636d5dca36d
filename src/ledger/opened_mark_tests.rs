//! Tests of the mark of opened loans.

use super::test_store::{TestStore, on_each_store};
use super::test_support::{accepted, by};
use crate::loan::{EndReason, Event};

on_each_store! {
    cancel_of_a_loan_opened_elsewhere_is_a_return
    concurrent_mark_and_cancel_never_both_succeed
}

async fn cancel_of_a_loan_opened_elsewhere_is_a_return(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    let (opened, unopened) = (accepted(&ours, 1).await, accepted(&ours, 2).await);
    assert!(ours.mark_opened(opened).await.unwrap());
    assert!(other.mark_opened(opened).await.unwrap(), "a second mark succeeds");
    let cancel = Event::Ending { reason: EndReason::Cancelled };
    let ended = other.apply(opened, cancel.clone(), by("reader")).await.unwrap();
    assert_eq!(ended.end_reason, Some(EndReason::Returned));
    let ended = other.apply(unopened, cancel, by("reader")).await.unwrap();
    assert_eq!(ended.end_reason, Some(EndReason::Cancelled));
    assert!(!ours.mark_opened(unopened).await.unwrap(), "a cancelled loan cannot be opened");
    assert!(!ours.mark_opened(opened).await.unwrap(), "nor can a returned one");
    ours.close().await;
    other.close().await;
}

async fn concurrent_mark_and_cancel_never_both_succeed(store: &TestStore) {
    let (ours, other) = (store.open().await, store.open().await);
    for borrower in 0..40 {
        let id = accepted(&ours, borrower).await;
        let cancel = Event::Ending { reason: EndReason::Cancelled };
        let (marked, ended) =
            tokio::join!(ours.mark_opened(id), other.apply(id, cancel, by("reader")));
        let cancelled = ended.unwrap().end_reason == Some(EndReason::Cancelled);
        assert_ne!(marked.unwrap(), cancelled);
    }
    ours.close().await;
    other.close().await;
}
