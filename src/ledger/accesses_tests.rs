//! Tests of accesses on both stores: recorded, listed, verified and removed.

use std::time::Duration;

use super::super::test_store::{TestStore, on_each_store};
use super::super::test_support::{accepted, audit_key, end, forget};
use super::super::verify;
use super::*;

on_each_store! {
    accesses_are_listed_and_verified
    pages_of_accesses_have_each_once
    changed_or_removed_access_is_found
    old_accesses_are_removed_and_the_trail_verifies
    access_of_a_library_without_loans_makes_no_chain
}

const LISTING: AccessFilter =
    AccessFilter { library: None, since: None, before: None, after: None, limit: 1000 };

fn look(who: &str) -> Access {
    Access::new(who, "support", "list-loans")
}

async fn slugs(ledger: &Ledger, filter: AccessFilter) -> Vec<String> {
    let accesses = ledger.accesses(&filter).await.unwrap();
    accesses.into_iter().map(|recorded| recorded.access.who).collect()
}

async fn accesses_are_listed_and_verified(store: &TestStore) {
    let ledger = store.open().await;
    let loan = accepted(&ledger, 1).await;
    let library = loan.library();
    let borrower = Borrower::from_bytes([1; 16]);
    let shown = Access::new("kari\u{202e}", "support", "show-loan")
        .of_library(Some(library))
        .to(Some(loan.into()))
        .because(Some("  she\u{2028}called\n"));
    ledger.record_access(shown).await.unwrap();
    ledger.record_access(look("ola").to(Some(borrower.into()))).await.unwrap();
    end(&ledger, loan).await;

    let all = ledger.accesses(&LISTING).await.unwrap();
    assert_eq!(all.len(), 2);
    let recorded = all.iter().find(|recorded| recorded.access.who == "kari ").unwrap();
    assert_eq!(recorded.access.why.as_deref(), Some("she called"));
    assert_eq!(recorded.access.target, Some(AccessTarget::Loan(loan.to_string())));
    assert_eq!(recorded.access.library(), Some(library.as_str()));
    let of_library = AccessFilter { library: Some(library), ..LISTING };
    assert_eq!(slugs(&ledger, of_library).await, ["kari "]);
    let other = AccessFilter { library: "NO-1103000".parse().ok(), ..LISTING };
    assert_eq!(slugs(&ledger, other).await, Vec::<String>::new());
    let later = AccessFilter { since: Some(Timestamp::MAX), ..LISTING };
    assert_eq!(slugs(&ledger, later).await, Vec::<String>::new());
    assert_eq!(slugs(&ledger, AccessFilter { limit: 1, ..LISTING }).await.len(), 1);
    let history = ledger.history(loan).await.unwrap();
    assert!(history.iter().all(|step| step.cause != ACCESS_STEP), "{history:?}");
    ledger.close().await;
    store.assert_sound().await;
}

async fn pages_of_accesses_have_each_once(store: &TestStore) {
    let ledger = store.open().await;
    let loan = accepted(&ledger, 1).await;
    let libraries = [None, Some(loan.library())];
    for number in 0..40 {
        let access = look(&number.to_string()).of_library(libraries[number % 2]);
        ledger.record_access(access).await.unwrap();
    }
    let alike = "UPDATE history SET at = 1790000000000 + number / 30 WHERE to_state = 'access'";
    store.execute(alike, alike).await;
    for limit in [1, 7, 40] {
        let (mut seen, mut times, mut after) = (Vec::new(), Vec::new(), None);
        for _ in 0..40 {
            let page = ledger.accesses(&AccessFilter { after, limit, ..LISTING }).await.unwrap();
            after = page.last().map(|last| last.position.to_string().parse().unwrap());
            times.extend(page.iter().map(|access| access.at));
            seen.extend(page.into_iter().map(|access| access.access.who));
            if after.is_none() {
                break;
            }
        }
        assert!(times.is_sorted_by(|newer, older| newer >= older), "{limit}: {times:?}");
        seen.sort_by_key(|who| who.parse::<u32>().unwrap());
        assert_eq!(seen, (0..40).map(|number| number.to_string()).collect::<Vec<_>>(), "{limit}");
    }
    end(&ledger, loan).await;
    ledger.close().await;
}

async fn changed_or_removed_access_is_found(store: &TestStore) {
    let ledger = store.open().await;
    for who in ["kari", "ola", "per"] {
        ledger.record_access(look(who)).await.unwrap();
    }
    ledger.close().await;
    store.assert_sound().await;
    for damage in [
        "UPDATE history SET detail = replace(detail, 'ola', 'eva') WHERE detail LIKE '%ola%'",
        "UPDATE history SET at = at - 1 WHERE detail LIKE '%kari%'",
        "DELETE FROM history WHERE detail LIKE '%ola%'",
        "DELETE FROM history WHERE detail LIKE '%per%'",
    ] {
        let save = "CREATE TABLE saved AS SELECT * FROM history";
        store.execute(save, save).await;
        store.execute(damage, damage).await;
        let found = verify(&store.settings(), &audit_key(), &crate::ledger::RowsRead::default())
            .await
            .unwrap()
            .findings;
        assert_ne!(found, Vec::<String>::new(), "{damage}");
        let restore = "DELETE FROM history; INSERT INTO history SELECT * FROM saved; \
             DROP TABLE saved";
        store.execute(restore, restore).await;
        store.assert_sound().await;
    }
}

async fn old_accesses_are_removed_and_the_trail_verifies(store: &TestStore) {
    let ledger = store.open().await;
    let loan = accepted(&ledger, 1).await;
    let library = Some(loan.library());
    // More than one transaction removes.
    for number in 0..250 {
        let access = look(&number.to_string());
        ledger.record_access(access.of_library(library)).await.unwrap();
        ledger.record_access(look("of all")).await.unwrap();
    }
    end(&ledger, loan).await;
    while crate::clock::Clock::system().now()
        <= ledger.accesses(&LISTING).await.unwrap().first().unwrap().at
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let cut = crate::clock::Clock::system().now();
    assert_eq!(ledger.prune_accesses(Timestamp::MIN).await.unwrap(), 0);
    let pruned = ledger.prune_accesses(cut).await.unwrap();
    // The newest step of a chain stays.
    let left = if store.file().is_some() { 0 } else { 1 };
    assert_eq!(pruned, 500 - left);
    assert_eq!(ledger.accesses(&LISTING).await.unwrap().len() as u64, left);
    ledger.record_access(look("new").of_library(library)).await.unwrap();
    forget(&ledger).await;
    ledger.close().await;
    store.assert_sound().await;
    let verified =
        verify(&store.settings(), &audit_key(), &crate::ledger::RowsRead::default()).await.unwrap();
    assert_eq!(u64::try_from(verified.pruned).unwrap(), pruned);
    let reopened = store.open().await;
    reopened.record_access(look("newer")).await.unwrap();
    assert_eq!(slugs(&reopened, AccessFilter { limit: 1, ..LISTING }).await, ["newer"]);
    reopened.close().await;
    store.assert_sound().await;
}

async fn access_of_a_library_without_loans_makes_no_chain(store: &TestStore) {
    const NO_CHAIN: &str = "DO $$ BEGIN IF EXISTS (SELECT 1 FROM chains \
         WHERE library NOT IN ('ZZ-loangate', 'NO-0301000')) \
         THEN RAISE EXCEPTION 'a search has made a chain'; END IF; END $$";
    let ledger = store.open().await;
    let loan = accepted(&ledger, 1).await;
    let isil = |text: &str| text.parse::<LibraryId>().ok();
    ledger.record_access(look("own").of_library(Some(loan.library()))).await.unwrap();
    for (who, library) in [("one", "NO-1111111"), ("other", "NO-11111"), ("third", "NO-2222222")] {
        // Text that looks like another library does not count.
        let why = "\"library\":\"NO-1111111\"";
        let access = look(who).of_library(isil(library)).because(Some(why));
        ledger.record_access(access).await.unwrap();
    }
    store.execute("SELECT 1", NO_CHAIN).await;
    let of = |library| AccessFilter { library: isil(library), ..LISTING };
    assert_eq!(slugs(&ledger, of("NO-1111111")).await, ["one"]);
    assert_eq!(slugs(&ledger, of("NO-11111")).await, ["other"]);
    assert_eq!(slugs(&ledger, of(loan.library().as_str())).await, ["own"]);
    assert_eq!(slugs(&ledger, LISTING).await.len(), 4);
    end(&ledger, loan).await;
    ledger.close().await;
    store.assert_sound().await;
}
