//! Copies of steps whose times are not in their order.

use jiff::SignedDuration;

use super::*;
use crate::ledger::HistoryRow;
use crate::ledger::test_support::{acceptance, end as end_loan, loan_at};

async fn open_with_clock(store: &TestStore, clock: &Clock) -> Ledger {
    let settings = Settings { store: store.settings(), brake: Brake::default() };
    let metrics = Metrics::new().unwrap();
    Ledger::open(&settings, &KEY, audit_key(), clock.clone(), metrics).await.unwrap()
}

fn states(history: &[HistoryRow]) -> Vec<LoanState> {
    history.iter().map(|step| step.to).collect()
}

/// A gate on SQLite records what its clock shows, also after somebody has set it back. After a copy
/// to PostgreSQL, another process adds steps in a chain of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_keep_their_order_where_their_times_differ() {
    let Some((first, there, back)) = stores().await else { return };
    let hour = SignedDuration::from_hours(1);
    let clock = Clock::movable(now() + hour);
    let ledger = open_with_clock(&first, &clock).await;
    let mut loans = Vec::new();
    for borrower in 0..4 {
        let loan = loan_at(borrower, clock.now());
        loans.push(loan.id);
        ledger.intend(loan, None, by("reader")).await.unwrap();
    }
    clock.set(now() - hour);
    for id in &loans {
        apply(&ledger, *id, acceptance(4_000_000_000)).await;
    }
    close(ledger).await;
    copy_all(&first, &there).await.unwrap();
    let ledger = open_with_clock(&there, &Clock::system()).await;
    for id in &loans {
        end_loan(&ledger, *id).await;
    }
    assert_eq!(ledger.forget(Timestamp::MAX, 2).await.unwrap(), 2);
    close(ledger).await;
    there.assert_sound().await;
    // Interrupted after each batch, also within a loan.
    while copy_until(&there, &back, 1).await.transpose().unwrap().is_none() {}
    back.assert_sound().await;
    let ledger = back.open().await;
    for id in loans {
        use LoanState::{Accepted, Ended, Ending, Intended};
        let history = ledger.history(id).await.unwrap();
        assert_eq!(states(&history)[..4], [Intended, Accepted, Ending, Ended]);
        assert!(history[1].at < history[2].at && history[2].at < history[0].at, "{history:?}");
    }
    close(ledger).await;
}
