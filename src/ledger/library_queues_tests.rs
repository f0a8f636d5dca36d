//! Tests of the queues alone. `postgres/store_tests.rs` has those with a database.

use super::super::command::{Reply, Response, Update};
use super::*;
use crate::loan::{LoanId, Progress};

fn library(number: u8) -> LibraryId {
    format!("NO-03010{number:02}").parse().unwrap()
}

fn queues(spans_libraries: bool, max_turn: usize, lanes: usize) -> Arc<LibraryQueues> {
    Arc::new(LibraryQueues::new(spans_libraries, max_turn, lanes))
}

/// Enqueues a command of a library, with a number that [`numbers`] returns.
async fn push(queues: &LibraryQueues, of: u8, number: u16) -> Result<Response<u64>, LedgerError> {
    let (reply, response) = Reply::new();
    let progress = Progress::of_hundredths(number).unwrap();
    let update = Update::SetProgress(LoanId::generate(library(of)), progress);
    queues.push(Command::Update(update, reply)).await.map(|()| response)
}

fn numbers(turn: &Turn) -> Vec<u16> {
    let number = |command: &Command| match command {
        Command::Update(Update::SetProgress(_, progress), _) => progress.hundredths(),
        _ => panic!("another command"),
    };
    turn.commands.iter().map(number).collect()
}

#[tokio::test]
async fn one_lane_at_a_time_serves_a_library_in_order() {
    let queues = queues(false, 3, 2);
    let (one, other) = (queues.add_lane(Arc::default()), queues.add_lane(Arc::default()));
    for number in 0..5 {
        push(&queues, 1, number).await.unwrap();
    }
    let first = one.try_next().unwrap();
    assert_eq!(numbers(&first), [0, 1, 2]);
    push(&queues, 1, 5).await.unwrap();
    assert!(other.try_next().is_none(), "the library has commands in the first lane");
    push(&queues, 2, 9).await.unwrap();
    assert_eq!(numbers(&other.try_next().unwrap()), [9]);
    drop(first);
    assert_eq!(numbers(&other.try_next().unwrap()), [3, 4, 5]);
    assert!(one.try_next().is_none() && other.try_next().is_none());
    assert!(lock(&queues.state).waiting.is_empty(), "no idle library takes memory");
}

#[tokio::test]
async fn busy_library_waits_behind_others_between_its_turns() {
    let queues = queues(false, 1, 1);
    let lane = queues.add_lane(Arc::default());
    for (of, number) in [(1, 10), (1, 11), (2, 20), (3, 30)] {
        push(&queues, of, number).await.unwrap();
    }
    let order: Vec<u16> =
        std::iter::from_fn(|| lane.try_next()).flat_map(|turn| numbers(&turn)).collect();
    assert_eq!(order, [10, 20, 30, 11]);
}

#[tokio::test]
async fn store_that_spans_libraries_gets_them_together() {
    let queues = queues(true, 10, 1);
    let lane = queues.add_lane(Arc::default());
    for number in 0..3 {
        push(&queues, u8::try_from(number).unwrap(), number).await.unwrap();
    }
    assert_eq!(numbers(&lane.try_next().unwrap()), [0, 1, 2]);
}

#[tokio::test]
async fn full_queue_of_one_library_leaves_room_for_others() {
    let queues = queues(false, 1, 2);
    let _lane = queues.add_lane(Arc::default());
    for _ in 0..CAPACITY {
        push(&queues, 1, 0).await.unwrap();
    }
    let refused = push(&queues, 1, 0).await;
    assert!(matches!(refused, Err(LedgerError::Commit(_))), "{refused:?}");
    push(&queues, 2, 0).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn caller_waits_a_limited_time_for_room() {
    let queues = queues(false, CAPACITY, 1);
    let lane = queues.add_lane(Arc::default());
    for _ in 0..CAPACITY {
        push(&queues, 1, 0).await.unwrap();
    }
    let refused = push(&queues, 2, 0).await;
    assert!(matches!(refused, Err(LedgerError::Commit(_))), "{refused:?}");
    let (pushed, turn) = tokio::join!(push(&queues, 2, 0), lane.next());
    assert_eq!((pushed.is_ok(), turn.unwrap().commands.len()), (true, CAPACITY));
}

#[tokio::test]
async fn closed_queues_are_still_served() {
    let queues = queues(false, 1, 1);
    let lane = queues.add_lane(Arc::default());
    push(&queues, 1, 7).await.unwrap();
    queues.close();
    assert!(matches!(push(&queues, 1, 8).await, Err(LedgerError::Closed)));
    assert_eq!(numbers(&lane.try_next().unwrap()), [7]);
}

#[tokio::test]
async fn commands_fail_when_the_last_lane_has_ended() {
    let queues = queues(false, 1, 2);
    let (one, other) = (queues.add_lane(Arc::default()), queues.add_lane(Arc::default()));
    let response = push(&queues, 1, 0).await.unwrap();
    drop(one);
    let mut response = std::pin::pin!(response);
    assert!(futures_util::poll!(response.as_mut()).is_pending(), "the other lane may serve it");
    drop(other);
    assert!(response.await.is_err());
    assert!(matches!(push(&queues, 1, 0).await, Err(LedgerError::Closed)));
}
