//! Circuit breaker for one kind of call: it holds calls back while Bokbasen fails for many
//! different subjects.
//!
//! A subject is what a call is about: one loan, or one title at one library. A failed call makes
//! its subject a suspect. The breaker opens when enough different loans failed recently and they
//! are half of the recent loans. Failures of one title alone do not open it while Bokbasen answers
//! about another title. A subject is at fault itself if it fails again after Bokbasen answered
//! about another subject. Its failures then no longer count until it succeeds.
//!
//! An open breaker admits a few trial calls after each backoff. Any success closes it. Suspects
//! have their own trials, so that they never delay the trial of another subject. The backoff
//! doubles if Bokbasen is unreachable or has failed for a minute. Before that, the breaker tries
//! many subjects to find one that succeeds.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// The number of different loans that must fail to open the breaker.
const MIN_FAILED_LOANS: usize = 5;
/// The most recent loans that are evaluated, and how long an outcome is recent.
const MAX_RECENT: usize = 16;
const WINDOW: Duration = Duration::from_secs(60);
/// The number of trial calls after each backoff, for subjects that are not suspects.
const TRIALS: usize = 4;
/// The backoff before the trials: the first, and the longest after doubling. It stays short, since
/// readers wait for the end of an outage.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The additional delay before the trial of a suspect.
const SUSPECT_DELAY: Duration = Duration::from_millis(500);
/// The most suspects that are stored, and how long each is a suspect.
const MAX_SUSPECTS: usize = 10_000;
const SUSPECT_AGE: Duration = Duration::from_secs(600);

/// What a call is about, as hashes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Subject {
    /// The unit in which failures are counted: the loan, or another single item.
    pub(super) counted: u64,
    /// The unit that a failure makes suspect: the loan or, for a begin, the title at its library.
    pub(super) suspected: u64,
    /// The unit that shares slots in the bulkhead.
    pub(super) group: u64,
}

/// The outcome of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// Bokbasen answered, also if it rejected the call.
    Answered,
    /// Bokbasen did not answer, or answered with a 5xx: the subject may be the cause.
    Failed,
    /// No connection or no login: the subject cannot be the cause.
    Unreachable,
}

/// Whether a breaker admits calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Passage {
    /// All calls are admitted.
    Open,
    /// A few trial calls are admitted, to test whether Bokbasen answers again.
    Trial,
    /// No call is admitted for this time.
    Closed(Duration),
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The last outcome of each recent loan, the newest at the back.
    recent: VecDeque<Recent>,
    suspects: HashMap<u64, Suspect>,
    /// The number of answered calls so far.
    answers: u64,
    /// The last answer, and the last one about another subject: the subject and the time of each.
    last_answers: [Option<(u64, Instant)>; 2],
    open: Option<Open>,
}

#[derive(Debug)]
struct Recent {
    subject: Subject,
    failed: bool,
    at: Instant,
}

#[derive(Debug)]
struct Suspect {
    at: Instant,
    /// `Breaker::answers` at the first failure.
    answers: u64,
    /// It failed before the breaker last closed, so it is not treated as a suspect.
    failed_in_outage: bool,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    backoff: Duration,
    /// Whether the backoff was doubled since the first of these trials.
    was_doubled: bool,
    /// The number of trials left after `trial_at`.
    trials: usize,
    /// The earliest times of the next trials: of other subjects, and of a suspect.
    trial_at: Instant,
    suspect_trial_at: Instant,
}

impl Breaker {
    /// Whether the last call about this subject failed.
    pub(super) fn is_suspect(&self, subject: Subject) -> bool {
        let suspect = self.suspects.get(&subject.suspected);
        suspect
            .is_some_and(|suspect| !suspect.failed_in_outage && suspect.at.elapsed() < SUSPECT_AGE)
    }

    /// Returns whether calls are admitted, for suspects or for other subjects.
    pub(super) fn passage(&self, suspect: bool) -> Passage {
        let Some(open) = &self.open else { return Passage::Open };
        let at = if suspect { open.suspect_trial_at } else { open.trial_at };
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Passage::Trial,
            wait => Passage::Closed(wait),
        }
    }

    /// As [`Breaker::passage`], for a call that is about to be sent; uses up one trial.
    pub(super) fn pass(&mut self, suspect: bool) -> Passage {
        let passage = self.passage(suspect);
        if let (Passage::Trial, Some(open)) = (passage, &mut self.open) {
            open.take_trial(suspect);
        }
        passage
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Records the outcome of a call. Returns the breaker's new state (true: open) if it changed.
    pub(super) fn note(
        &mut self,
        subject: Subject,
        outcome: Outcome,
        was_trial: bool,
    ) -> Option<bool> {
        match outcome {
            Outcome::Answered => self.answered(subject),
            Outcome::Failed => {
                let was_suspect = self.is_suspect(subject);
                let has_own_fault = self.suspect(subject);
                match &mut self.open {
                    Some(open) if was_trial && !was_suspect => open.trial_failed(false),
                    Some(_) => {}
                    None if has_own_fault => self.recent.retain(|recent| recent.subject != subject),
                    None => return self.failed(subject),
                }
                None
            }
            Outcome::Unreachable => match &mut self.open {
                Some(open) if was_trial => {
                    open.trial_failed(true);
                    None
                }
                Some(_) => None,
                // A unique subject, so that every such failure counts against Bokbasen.
                None => {
                    let unique = fastrand::u64(..);
                    self.failed(Subject { counted: unique, suspected: unique, group: unique })
                }
            },
        }
    }

    fn answered(&mut self, subject: Subject) -> Option<bool> {
        self.answers += 1;
        let [last, before] = &mut self.last_answers;
        if last.is_some_and(|(answered, _)| answered != subject.suspected) {
            *before = *last;
        }
        *last = Some((subject.suspected, Instant::now()));
        self.suspects.remove(&subject.suspected);
        if self.open.take().is_some() {
            // Failures during an outage are no evidence of the next one.
            self.recent.clear();
            self.suspects.values_mut().for_each(|suspect| suspect.failed_in_outage = true);
            return Some(false);
        }
        self.record_outcome(subject, false);
        None
    }

    fn failed(&mut self, subject: Subject) -> Option<bool> {
        self.record_outcome(subject, true);
        let failed = self.recent.iter().filter(|recent| recent.failed).count();
        let enough = failed >= MIN_FAILED_LOANS && failed * 2 >= self.recent.len();
        if !enough || self.is_isolated(subject) {
            return None;
        }
        let now = Instant::now();
        let trial_at = now + MIN_BACKOFF;
        self.open = Some(Open {
            since: now,
            backoff: MIN_BACKOFF,
            was_doubled: false,
            trials: TRIALS,
            trial_at,
            suspect_trial_at: trial_at + SUSPECT_DELAY,
        });
        Some(true)
    }

    /// Whether all recent failures are of this title or loan, while Bokbasen answered about another
    /// one.
    fn is_isolated(&self, subject: Subject) -> bool {
        let is_this = |recent: &Recent| recent.subject.suspected == subject.suspected;
        let others_succeed = self
            .last_answers
            .iter()
            .flatten()
            .any(|(answered, at)| *answered != subject.suspected && at.elapsed() < WINDOW);
        others_succeed && self.recent.iter().all(|recent| !recent.failed || is_this(recent))
    }

    fn record_outcome(&mut self, subject: Subject, failed: bool) {
        self.recent.retain(|recent| recent.subject != subject && recent.at.elapsed() < WINDOW);
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { subject, failed, at: Instant::now() });
    }

    /// Records that a subject failed, and returns whether the subject itself is at fault.
    fn suspect(&mut self, subject: Subject) -> bool {
        let (now, answers) = (Instant::now(), self.answers);
        if let Some(suspect) = self.suspects.get_mut(&subject.suspected) {
            if suspect.at.elapsed() >= SUSPECT_AGE {
                suspect.answers = answers;
            }
            (suspect.at, suspect.failed_in_outage) = (now, false);
            return suspect.answers < answers;
        }
        if self.suspects.len() >= MAX_SUSPECTS {
            self.suspects.retain(|_, suspect| suspect.at.elapsed() < SUSPECT_AGE);
        }
        if self.suspects.len() < MAX_SUSPECTS {
            self.suspects
                .insert(subject.suspected, Suspect { at: now, answers, failed_in_outage: false });
        }
        false
    }
}

impl Open {
    fn take_trial(&mut self, suspect: bool) {
        if suspect {
            self.suspect_trial_at = Instant::now() + self.backoff + SUSPECT_DELAY;
            return;
        }
        if self.trials == TRIALS {
            self.was_doubled = false;
        }
        self.trials = self.trials.saturating_sub(1);
        if self.trials == 0 {
            self.start_backoff();
        }
    }

    fn trial_failed(&mut self, unreachable: bool) {
        let doubles = unreachable || self.since.elapsed() >= WINDOW;
        if doubles && !self.was_doubled {
            self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            self.start_backoff();
            self.was_doubled = true;
        }
    }

    fn start_backoff(&mut self) {
        self.trial_at = Instant::now() + self.backoff;
        self.suspect_trial_at = self.suspect_trial_at.max(self.trial_at + SUSPECT_DELAY);
        self.trials = TRIALS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loan(number: u64) -> Subject {
        Subject { counted: number, suspected: number, group: number }
    }

    /// Simulates a call: passes the breaker and records the outcome. None if it was held back.
    fn call(breaker: &mut Breaker, subject: Subject, outcome: Outcome) -> Option<Option<bool>> {
        match breaker.pass(breaker.is_suspect(subject)) {
            Passage::Closed(_) => None,
            passage => Some(breaker.note(subject, outcome, passage == Passage::Trial)),
        }
    }

    fn fails(breaker: &mut Breaker, number: u64) -> Option<Option<bool>> {
        call(breaker, loan(number), Outcome::Failed)
    }

    fn succeeds(breaker: &mut Breaker, number: u64) -> Option<Option<bool>> {
        call(breaker, loan(number), Outcome::Answered)
    }

    #[tokio::test(start_paused = true)]
    async fn one_faulty_loan_never_opens_the_breaker() {
        let mut breaker = Breaker::default();
        for _ in 0..1000 {
            assert_eq!(fails(&mut breaker, 1), Some(None));
            tokio::time::advance(Duration::from_millis(500)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failing_loans_open_and_a_success_closes_the_breaker() {
        for outcome in [Outcome::Failed, Outcome::Unreachable] {
            let mut breaker = Breaker::default();
            for number in 1..MIN_FAILED_LOANS as u64 {
                assert_eq!(call(&mut breaker, loan(number), outcome), Some(None));
            }
            assert_eq!(call(&mut breaker, loan(99), outcome), Some(Some(true)));
            assert_eq!(breaker.passage(false), Passage::Closed(MIN_BACKOFF));
            assert_eq!(succeeds(&mut breaker, 100), None, "held back");
            tokio::time::advance(MIN_BACKOFF).await;
            for _ in 0..TRIALS {
                assert_eq!(breaker.pass(false), Passage::Trial);
            }
            assert!(
                matches!(breaker.pass(false), Passage::Closed(_)),
                "no call is admitted besides the trials"
            );
            assert_eq!(breaker.note(loan(102), Outcome::Answered, true), Some(false));
            assert_eq!(breaker.passage(false), Passage::Open);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn backoff_grows_while_bokbasen_is_unreachable() {
        let mut breaker = Breaker::default();
        for number in 0..MIN_FAILED_LOANS as u64 {
            call(&mut breaker, loan(number), Outcome::Unreachable);
        }
        for backoff in [1, 2, 4, 5, 5].map(Duration::from_secs) {
            assert_eq!(breaker.passage(false), Passage::Closed(backoff));
            tokio::time::advance(backoff).await;
            assert_eq!(
                call(&mut breaker, loan(101), Outcome::Unreachable),
                Some(None),
                "the trial"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn backoff_grows_after_a_minute_of_failures() {
        let mut breaker = Breaker::default();
        let (mut sent, began) = (0, Instant::now());
        while began.elapsed() < Duration::from_secs(3600) {
            sent += u64::from(fails(&mut breaker, sent).is_some());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(sent < 3600, "{sent} calls were sent in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_among_many_successes_keep_it_closed() {
        let mut breaker = Breaker::default();
        for number in 0..1000 {
            let outcome = if number % 3 == 0 { Outcome::Failed } else { Outcome::Answered };
            assert_eq!(call(&mut breaker, loan(number), outcome), Some(None), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn loans_at_fault_do_not_reopen_the_breaker() {
        let mut breaker = Breaker::default();
        let mut opened = Vec::new();
        for round in 0..20 {
            for number in 0..40 {
                if fails(&mut breaker, number) == Some(Some(true)) {
                    opened.push(round);
                }
            }
            tokio::time::advance(MIN_BACKOFF).await;
            assert!(succeeds(&mut breaker, 1000 + round).is_some(), "a good loan is not held back");
        }
        // It opens once for every five loans that have not failed before.
        assert!(!opened.is_empty() && opened.iter().all(|round| *round < 8), "{opened:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn suspects_do_not_delay_the_trial_of_a_good_loan() {
        let mut breaker = Breaker::default();
        for number in 0..5 {
            fails(&mut breaker, number);
        }
        assert!(breaker.is_open());
        tokio::time::advance(MIN_BACKOFF).await;
        assert_eq!(fails(&mut breaker, 0), None, "other subjects are tried first");
        tokio::time::advance(SUSPECT_DELAY).await;
        assert_eq!(
            fails(&mut breaker, 0),
            Some(None),
            "without other subjects, the suspect is tried"
        );
        assert_eq!(fails(&mut breaker, 1), None);
        assert_eq!(succeeds(&mut breaker, 7), Some(Some(false)), "besides the suspect's trial");
    }

    #[tokio::test(start_paused = true)]
    async fn begins_of_one_faulty_title_do_not_open_the_breaker() {
        let title =
            |title: u64, loan: u64| Subject { counted: loan, suspected: title, group: title };
        for order in [[Outcome::Failed, Outcome::Answered], [Outcome::Answered, Outcome::Failed]] {
            let mut breaker = Breaker::default();
            for (outcome, number) in order.into_iter().zip(0..) {
                let which = if outcome == Outcome::Failed { 1 } else { 2 };
                assert_eq!(call(&mut breaker, title(which, number), outcome), Some(None));
            }
            for number in 2..1000 {
                assert_eq!(
                    call(&mut breaker, title(1, number), Outcome::Failed),
                    Some(None),
                    "{order:?}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rarely_answered_title_holds_back_no_other() {
        let title =
            |title: u64, loan: u64| Subject { counted: loan, suspected: title, group: title };
        let mut breaker = Breaker::default();
        assert_eq!(call(&mut breaker, title(2, 1), Outcome::Answered), Some(None));
        for number in 2..1000 {
            let outcome = if number % 20 == 0 { Outcome::Answered } else { Outcome::Failed };
            assert_eq!(call(&mut breaker, title(1, number), outcome), Some(None), "{number}");
        }
        assert_eq!(call(&mut breaker, title(2, 1000), Outcome::Answered), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn stored_suspects_and_outcomes_are_bounded() {
        let mut breaker = Breaker::default();
        for number in 0..3 * MAX_SUSPECTS as u64 {
            breaker.note(loan(number), Outcome::Failed, false);
        }
        assert!(breaker.suspects.len() <= MAX_SUSPECTS && breaker.recent.len() <= MAX_RECENT);
    }
}
