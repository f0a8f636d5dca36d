//! Tests of the ledger's contract, which every store must pass.

use std::time::Duration;

use jiff::Timestamp;

use super::test_store::{TestStore, on_each_store};
use super::test_support::{KEY, acceptance, by, end, intend, key, second, written};
use super::*;
use crate::clock::Clock;
use crate::loan::{EndReason, LoanKey, LoanState, Terms};

on_each_store! {
    concurrent_intents_of_one_reader_and_title_write_one
    loans_and_history_survive_reopening
    illegal_event_changes_nothing_and_fails_no_other
    only_a_credential_issued_after_the_end_borrows_again
    end_seen_before_acceptance_bars_older_credentials
    dropped_future_does_not_cancel_the_write
    listings_filter_and_continue_after_a_loan
    loans_of_a_dead_process_are_taken_over_once
    only_the_owner_decides_an_undecided_loan
    several_processes_open_a_new_ledger_at_once
    erasure_is_of_one_borrower_of_one_library_and_of_ended_loans
    loan_due_at_the_maximum_timestamp_can_be_read
    every_filter_of_the_listing_has_an_index
    ledger_of_another_key_is_refused
}

async fn concurrent_intents_of_one_reader_and_title_write_one(store: &TestStore) {
    let ledger = store.open().await;
    let intents: Vec<_> = (0..200)
        .map(|_| {
            let ledger = ledger.clone();
            tokio::spawn(async move { intend(&ledger, 1).await })
        })
        .collect();
    let (mut written, mut live) = (Vec::new(), Vec::new());
    for intent in intents {
        match intent.await.unwrap() {
            Intended::Written(loan) => written.push(loan.id),
            Intended::Live(loan) => live.push(loan.id),
            Intended::EndedSince(at) | Intended::Braked(at) => panic!("{at}"),
            Intended::Paused => panic!("paused"),
        }
    }
    assert_eq!((written.len(), live.len()), (1, 199));
    assert!(live.iter().all(|id| *id == written[0]));
}

async fn loans_and_history_survive_reopening(store: &TestStore) {
    let ledger = store.open().await;
    let id = written(&ledger, 1).await;
    let before = ledger.apply(id, acceptance(100), by("begin")).await.unwrap();
    ledger.close().await;
    assert!(matches!(ledger.apply(id, Event::Lost, by("x")).await, Err(LedgerError::Closed)));

    let ledger = store.open().await;
    let after = ledger.newest(&key(1)).await.unwrap().unwrap();
    assert_eq!(after.terms, before.terms);
    assert_eq!((after.id, after.open_until()), (id, Some(second(100))));
    let history = ledger.history(id).await.unwrap();
    let steps: Vec<_> = history.iter().map(|row| (row.from, row.to, row.cause.as_str())).collect();
    let expected = [
        (None, LoanState::Intended, "reader"),
        (Some(LoanState::Intended), LoanState::Accepted, "begin"),
    ];
    assert_eq!(steps, expected);
}

async fn illegal_event_changes_nothing_and_fails_no_other(store: &TestStore) {
    let ledger = store.open().await;
    let (one, two) = (written(&ledger, 1).await, written(&ledger, 2).await);
    let (illegal, legal, missing) = tokio::join!(
        ledger.apply(one, Event::EndAcknowledged, by("x")),
        ledger.apply(two, acceptance(100), by("begin")),
        ledger.apply(LoanId::random(), Event::Lost, by("x")),
    );
    assert!(matches!(illegal, Err(LedgerError::Illegal(_))));
    assert!(matches!(missing, Err(LedgerError::NoSuchLoan(_))));
    assert_eq!(legal.unwrap().state, LoanState::Accepted);
    assert_eq!(ledger.loan(one).await.unwrap().unwrap().state, LoanState::Intended);
    assert_eq!(ledger.history(one).await.unwrap().len(), 1);
}

async fn only_a_credential_issued_after_the_end_borrows_again(store: &TestStore) {
    let ledger = store.open().await;
    let id = written(&ledger, 1).await;
    ledger.apply(id, acceptance(100), by("begin")).await.unwrap();
    let ending = ledger
        .apply(id, Event::Ending { reason: EndReason::Returned }, by("reader"))
        .await
        .unwrap();
    assert!(
        matches!(intend(&ledger, 1).await, Intended::Live(_)),
        "the loan is live until Bokbasen acknowledges the end"
    );
    ledger.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
    let end = ledger.last_end(&key(1)).await.unwrap().unwrap();
    assert_eq!(Some(end.as_millisecond()), ending.ended.map(Timestamp::as_millisecond));
    let later = crate::clock::after(end, Duration::from_millis(1));
    for (issued, permitted) in [(None, false), (Some(end), false), (Some(later), true)] {
        let intended =
            ledger.intend(Loan::intend(key(1), second(1)), issued, by("reader")).await.unwrap();
        assert_eq!(matches!(intended, Intended::Written(_)), permitted, "{issued:?}");
        assert_eq!(matches!(intended, Intended::EndedSince(_)), !permitted, "{issued:?}");
    }
}

async fn end_seen_before_acceptance_bars_older_credentials(store: &TestStore) {
    for (borrower, reason, bars) in [
        (1, EndReason::Returned, true),
        (2, EndReason::Expired, true),
        (3, EndReason::Cancelled, false),
        (4, EndReason::Rejected, false),
    ] {
        let store = store.another().await;
        let ledger = store.open().await;
        let id = written(&ledger, borrower).await;
        ledger.apply(id, Event::Begun { lending_id: "b-1".to_owned() }, by("begin")).await.unwrap();
        ledger.apply(id, Event::EndedThere { reason }, by("poll")).await.unwrap();
        let old = Some(second(1));
        let intended =
            ledger.intend(Loan::intend(key(borrower), second(1)), old, by("reader")).await.unwrap();
        assert_eq!(matches!(intended, Intended::EndedSince(_)), bars, "{reason}: {intended:?}");
    }
}

async fn dropped_future_does_not_cancel_the_write(store: &TestStore) {
    let ledger = store.open().await;
    {
        let mut intent =
            std::pin::pin!(ledger.intend(Loan::intend(key(1), second(1)), None, by("reader")));
        // One poll enqueues the command. Then the future is dropped.
        assert!(futures_util::poll!(intent.as_mut()).is_pending());
    }
    assert!(matches!(intend(&ledger, 1).await, Intended::Live(_)));
}

async fn listings_filter_and_continue_after_a_loan(store: &TestStore) {
    let ledger = store.open().await;
    let mut ids = Vec::new();
    for borrower in 1..=5 {
        ids.push(written(&ledger, borrower).await);
    }
    ledger.apply(ids[2], acceptance(50), by("begin")).await.unwrap();
    ids.reverse();
    let listed = async |filter: Filter| -> Vec<LoanId> {
        ledger.page(&filter).await.unwrap().iter().map(|loan| loan.id).collect()
    };
    let all = || Filter { limit: 10, ..Filter::default() };
    assert_eq!(listed(all()).await, ids);
    assert_eq!(listed(Filter { limit: 2, after: Some(ids[1].uuid()), ..all() }).await, ids[2..4]);
    assert_eq!(listed(Filter { state: Some(LoanState::Accepted), ..all() }).await, [ids[2]]);
    assert_eq!(listed(Filter { borrower: Some(key(5).borrower), ..all() }).await, [ids[0]]);
    assert!(listed(Filter { since: Some(second(2)), ..all() }).await.is_empty());
    assert!(listed(Filter { library: "NO-1".parse().ok(), ..all() }).await.is_empty());
    assert_eq!(ledger.next_due(second(49)).await.unwrap(), Some(second(50)));
    assert_eq!(ledger.next_due(second(50)).await.unwrap(), None);
    assert!(ledger.due(second(49), 10).await.unwrap().is_empty());
    assert_eq!(ledger.due(second(50), 10).await.unwrap().len(), 1);
}

async fn loans_of_a_dead_process_are_taken_over_once(store: &TestStore) {
    let first = store.open().await;
    let id = written(&first, 1).await;
    let second = store.open().await;
    assert!(second.orphans(None).await.unwrap().is_empty(), "the first process is alive");
    assert!(!second.adopt(id).await.unwrap());
    first.close().await;
    let name = first.membership.name();
    drop(first);
    store.declare_dead(&name).await;
    // The writing task releases the lock slightly later than the last handle.
    while second.orphans(None).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(second.adopt(id).await.unwrap());
    assert!(!second.adopt(id).await.unwrap(), "the owner is this live process");
    assert!(second.orphans(None).await.unwrap().is_empty());
}

async fn only_the_owner_decides_an_undecided_loan(store: &TestStore) {
    let (owner, other) = (store.open().await, store.open().await);
    let id = written(&owner, 1).await;
    let decided = other.apply(id, acceptance(100), by("poll")).await;
    assert!(matches!(decided, Err(LedgerError::NotOwner(of)) if of == id), "{decided:?}");
    // Any process may end a loan, and change one that is decided.
    owner.apply(id, acceptance(100), by("poll")).await.unwrap();
    other.apply(id, Event::Ending { reason: EndReason::Returned }, by("reader")).await.unwrap();
    other.apply(id, Event::EndAcknowledged, by("outbox")).await.unwrap();
    owner.close().await;
    other.close().await;
}

async fn several_processes_open_a_new_ledger_at_once(store: &TestStore) {
    for _ in 0..5 {
        let store = store.another().await;
        let ledgers = futures_util::future::join_all((0..6).map(|_| store.open())).await;
        for (borrower, ledger) in (1..).zip(&ledgers) {
            written(ledger, borrower).await;
        }
        futures_util::future::join_all(ledgers.iter().map(Ledger::close)).await;
        store.assert_sound().await;
    }
}

async fn erasure_is_of_one_borrower_of_one_library_and_of_ended_loans(store: &TestStore) {
    let ledger = store.open().await;
    let (library, erased) = (key(1).library, key(1).borrower);
    let other_library = LoanKey { library: "NO-1103000".parse().unwrap(), ..key(1) };
    let other_title = LoanKey { isbn: "9788299999014".parse().unwrap(), ..key(1) };
    let mut ended = Vec::new();
    for key in [other_library, other_title, key(1), key(2)] {
        let loan = Loan::intend(key, second(1));
        let id = loan.id;
        ledger.intend(loan, None, by("reader")).await.unwrap();
        ledger.apply(id, acceptance(4_000_000_000), by("begin")).await.unwrap();
        end(&ledger, id).await;
        ended.push(id);
    }
    let elsewhere = ended[0];
    let again = Loan::intend(key(1), Clock::system().now());
    let live = again.id;
    let issued = Some(Clock::system().now());
    ledger.intend(again, issued, by("reader")).await.unwrap();

    let erase = |before| ledger.forget_borrower(library, erased, before, 500);
    assert_eq!(erase(second(1)).await.unwrap(), 0, "none ended before then");
    assert_eq!(erase(Timestamp::MAX).await.unwrap(), 2);
    assert_eq!(erase(Timestamp::MAX).await.unwrap(), 0);
    let page = ledger.page(&Filter { limit: 100, ..Filter::default() }).await.unwrap();
    let left: Vec<_> = page.iter().filter(|loan| loan.key.borrower == erased).collect();
    assert_eq!(left.iter().map(|loan| loan.id).collect::<Vec<_>>(), [live, elsewhere]);
    assert!(left.iter().all(|loan| loan.forgotten.is_none()));
    let forgotten: Vec<_> = page.iter().filter(|loan| loan.forgotten.is_some()).collect();
    assert_eq!(forgotten.len(), 2);
    assert_ne!(forgotten[0].key.borrower, forgotten[1].key.borrower, "they cannot be linked");
    assert_eq!(page.iter().filter(|loan| loan.key.borrower == key(2).borrower).count(), 1);
    let history = ledger.history(forgotten[0].id).await.unwrap();
    assert_eq!(history.last().unwrap().cause, "erasure");
    ledger.close().await;
    store.assert_sound().await;
}

async fn loan_due_at_the_maximum_timestamp_can_be_read(store: &TestStore) {
    let ledger = store.open().await;
    let id = written(&ledger, 1).await;
    let terms = Terms { due: Timestamp::MAX, licence_id: None, licence_type: None };
    ledger
        .apply(id, Event::Accepted { lending_id: "L1".into(), terms }, by("begin"))
        .await
        .unwrap();
    let due = ledger.loan(id).await.unwrap().unwrap().open_until().unwrap();
    assert_eq!(due.as_millisecond(), Timestamp::MAX.as_millisecond());
    ledger.close().await;
}

async fn every_filter_of_the_listing_has_an_index(store: &TestStore) {
    let ledger = store.open().await;
    let first = written(&ledger, 1).await;
    let second = written(&ledger, 2).await;
    for mask in 0..32_u32 {
        let has = |bit: u32| mask & (1 << bit) != 0;
        let filter = Filter {
            library: has(0).then(|| key(1).library),
            isbn: has(1).then(|| key(1).isbn),
            state: has(2).then_some(LoanState::Intended),
            borrower: has(3).then(|| key(1).borrower),
            since: has(4).then(|| Timestamp::from_second(1).unwrap()),
            after: None,
            limit: 10,
        };
        // Each query of SQLite names its index, and fails if it cannot use it.
        let ids: Vec<LoanId> =
            ledger.page(&filter).await.unwrap().iter().map(|loan| loan.id).collect();
        assert_eq!(ids, if has(3) { vec![first] } else { vec![second, first] }, "{filter:?}");
        let next = Filter { after: ids.first().map(|id| id.uuid()), ..filter };
        assert_eq!(ledger.page(&next).await.unwrap().len(), ids.len() - 1, "{next:?}");
    }
    // After a pruned loan, the listing continues at the position derived from its id.
    let pruned = Filter { after: Some(LoanId::random().uuid()), limit: 10, ..Filter::default() };
    assert_eq!(ledger.page(&pruned).await.unwrap().len(), 2);
    ledger.close().await;
}

async fn ledger_of_another_key_is_refused(store: &TestStore) {
    store.open().await.close().await;
    let other = store.try_open(&[2; 32], Brake::default()).await;
    assert!(matches!(other, Err(LedgerError::OtherPseudonymKey)));
    store.try_open(&KEY, Brake::default()).await.unwrap().close().await;
}
