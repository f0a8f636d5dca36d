//! The breaker of one kind of call: it holds calls back while Bokbasen fails for many different
//! subjects.
//!
//! A subject is what a call is about: one loan, or one title at one library. A failure is evidence
//! about its subject first. The breaker opens when enough different loans failed recently and they
//! are half of the recent loans; loans of one title are not enough where Bokbasen answers about
//! another. A subject that fails again although Bokbasen has answered about another since has a
//! fault of its own, and counts no more until it succeeds.
//!
//! An open breaker lets a few trial calls out after each rest. Any success closes it. Subjects that
//! failed last have trials of their own, so that they never delay the trial of another subject. The
//! rest doubles where Bokbasen cannot be reached or has failed for a minute; before that, many
//! subjects are tried to find one that succeeds.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// How many different loans must have failed to open the breaker.
const LEAST_FAILED: usize = 5;
/// How many recent loans are looked at, and for how long an outcome is recent.
const RECENT: usize = 16;
const WINDOW: Duration = Duration::from_secs(60);
/// How many subjects that did not fail last are tried after each rest.
const TRIALS: usize = 4;
/// How long the breaker rests before the trials: at first, and the longest that it doubles up to. A
/// reader waits for the end of an outage, so that it stays short.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(5);
/// How much later than others a subject that failed last may be the trial.
const SUSPECT_DELAY: Duration = Duration::from_millis(500);
/// How many subjects that failed are remembered, and for how long.
const MAX_SUSPECTS: usize = 10_000;
const SUSPECT_AGE: Duration = Duration::from_secs(600);

/// What a call is about, by hashes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Subject {
    /// The loan, or what else is counted as one.
    pub(super) counted: u64,
    /// What a failure makes suspect: the loan itself, or for a begin the title at its library.
    pub(super) suspected: u64,
    /// What shares slots in the bulkhead.
    pub(super) group: u64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ended {
    /// Bokbasen answered, be it with a no.
    Answered,
    /// Bokbasen did not answer, or with a 5xx: this may be the subject's fault.
    Failed,
    /// No connection or no login: whatever the call was about, it would have failed.
    Unreachable,
}

/// Whether calls go out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Passage {
    /// They do.
    Open,
    /// A few do, and show whether the others may.
    Trial,
    /// None does, for so long.
    Closed(Duration),
}

#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The last outcome of each recent loan, the newest at the back.
    recent: VecDeque<Recent>,
    suspects: HashMap<u64, Suspect>,
    /// How many calls were answered so far.
    answers: u64,
    /// The last answer, and the last about another subject than that: what it was about, and when.
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
    /// It failed while the breaker was open, which has closed since: it is tried as others are.
    forgiven: bool,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    rest: Duration,
    /// Whether the rest was doubled since the first of these trials.
    was_doubled: bool,
    /// How many trials are left after `trial_at`.
    trials: usize,
    /// When the next trials may go out: of subjects that did not fail last, and of one that did.
    trial_at: Instant,
    suspect_trial_at: Instant,
}

impl Breaker {
    /// Whether the last call about this subject failed.
    pub(super) fn is_suspect(&self, subject: Subject) -> bool {
        let suspect = self.suspects.get(&subject.suspected);
        suspect.is_some_and(|suspect| !suspect.forgiven && suspect.at.elapsed() < SUSPECT_AGE)
    }

    /// Whether calls go out, of subjects that failed last or did not.
    pub(super) fn passage(&self, suspect: bool) -> Passage {
        let Some(open) = &self.open else { return Passage::Open };
        let at = if suspect { open.suspect_trial_at } else { open.trial_at };
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Passage::Trial,
            wait => Passage::Closed(wait),
        }
    }

    /// As [`Breaker::passage`], for a call that goes out where it may: a trial is then taken.
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

    /// Notes how a call ended, and returns whether the breaker is open now, where that changed.
    pub(super) fn note(&mut self, subject: Subject, ended: Ended, was_trial: bool) -> Option<bool> {
        match ended {
            Ended::Answered => self.answered(subject),
            Ended::Failed => {
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
            Ended::Unreachable => match &mut self.open {
                Some(open) if was_trial => {
                    open.trial_failed(true);
                    None
                }
                Some(_) => None,
                // A number that no other has: every such failure is evidence about Bokbasen.
                None => {
                    let chance = fastrand::u64(..);
                    self.failed(Subject { counted: chance, suspected: chance, group: chance })
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
            // What failed during an outage starts anew, and is not evidence of another one.
            self.recent.clear();
            self.suspects.values_mut().for_each(|suspect| suspect.forgiven = true);
            return Some(false);
        }
        self.remember(subject, false);
        None
    }

    fn failed(&mut self, subject: Subject) -> Option<bool> {
        self.remember(subject, true);
        let failed = self.recent.iter().filter(|recent| recent.failed).count();
        let enough = failed >= LEAST_FAILED && failed * 2 >= self.recent.len();
        if !enough || self.only_this_fails(subject) {
            return None;
        }
        let now = Instant::now();
        let trial_at = now + FIRST_REST;
        self.open = Some(Open {
            since: now,
            rest: FIRST_REST,
            was_doubled: false,
            trials: TRIALS,
            trial_at,
            suspect_trial_at: trial_at + SUSPECT_DELAY,
        });
        Some(true)
    }

    /// Whether all recent failures are of this title or loan, and Bokbasen has answered about
    /// another one.
    fn only_this_fails(&self, subject: Subject) -> bool {
        let is_this = |recent: &Recent| recent.subject.suspected == subject.suspected;
        let others_succeed = self
            .last_answers
            .iter()
            .flatten()
            .any(|(answered, at)| *answered != subject.suspected && at.elapsed() < WINDOW);
        others_succeed && self.recent.iter().all(|recent| !recent.failed || is_this(recent))
    }

    fn remember(&mut self, subject: Subject, failed: bool) {
        self.recent.retain(|recent| recent.subject != subject && recent.at.elapsed() < WINDOW);
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(Recent { subject, failed, at: Instant::now() });
    }

    /// Notes that a subject failed, and returns whether the fault is its own.
    fn suspect(&mut self, subject: Subject) -> bool {
        let (now, answers) = (Instant::now(), self.answers);
        if let Some(suspect) = self.suspects.get_mut(&subject.suspected) {
            if suspect.at.elapsed() >= SUSPECT_AGE {
                suspect.answers = answers;
            }
            (suspect.at, suspect.forgiven) = (now, false);
            return suspect.answers < answers;
        }
        if self.suspects.len() >= MAX_SUSPECTS {
            self.suspects.retain(|_, suspect| suspect.at.elapsed() < SUSPECT_AGE);
        }
        if self.suspects.len() < MAX_SUSPECTS {
            self.suspects.insert(subject.suspected, Suspect { at: now, answers, forgiven: false });
        }
        false
    }
}

impl Open {
    fn take_trial(&mut self, suspect: bool) {
        if suspect {
            self.suspect_trial_at = Instant::now() + self.rest + SUSPECT_DELAY;
            return;
        }
        if self.trials == TRIALS {
            self.was_doubled = false;
        }
        self.trials = self.trials.saturating_sub(1);
        if self.trials == 0 {
            self.rest_again();
        }
    }

    fn trial_failed(&mut self, unreachable: bool) {
        let doubles = unreachable || self.since.elapsed() >= WINDOW;
        if doubles && !self.was_doubled {
            self.rest = (self.rest * 2).min(LONGEST_REST);
            self.rest_again();
            self.was_doubled = true;
        }
    }

    fn rest_again(&mut self) {
        self.trial_at = Instant::now() + self.rest;
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

    /// As a call does it: passes, and notes how it ended. None where it was held back.
    fn call(breaker: &mut Breaker, subject: Subject, ended: Ended) -> Option<Option<bool>> {
        match breaker.pass(breaker.is_suspect(subject)) {
            Passage::Closed(_) => None,
            passage => Some(breaker.note(subject, ended, passage == Passage::Trial)),
        }
    }

    fn fails(breaker: &mut Breaker, number: u64) -> Option<Option<bool>> {
        call(breaker, loan(number), Ended::Failed)
    }

    fn succeeds(breaker: &mut Breaker, number: u64) -> Option<Option<bool>> {
        call(breaker, loan(number), Ended::Answered)
    }

    #[tokio::test(start_paused = true)]
    async fn one_poisonous_loan_never_opens_the_breaker() {
        let mut breaker = Breaker::default();
        for _ in 0..1000 {
            assert_eq!(fails(&mut breaker, 1), Some(None));
            tokio::time::advance(Duration::from_millis(500)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn different_loans_open_it_and_a_success_closes_it() {
        for ended in [Ended::Failed, Ended::Unreachable] {
            let mut breaker = Breaker::default();
            for number in 1..LEAST_FAILED as u64 {
                assert_eq!(call(&mut breaker, loan(number), ended), Some(None));
            }
            assert_eq!(call(&mut breaker, loan(99), ended), Some(Some(true)));
            assert_eq!(breaker.passage(false), Passage::Closed(FIRST_REST));
            assert_eq!(succeeds(&mut breaker, 100), None, "held back");
            tokio::time::advance(FIRST_REST).await;
            for _ in 0..TRIALS {
                assert_eq!(breaker.pass(false), Passage::Trial);
            }
            assert!(
                matches!(breaker.pass(false), Passage::Closed(_)),
                "nothing goes out beside them"
            );
            assert_eq!(breaker.note(loan(102), Ended::Answered, true), Some(false));
            assert_eq!(breaker.passage(false), Passage::Open);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rests_grow_while_bokbasen_cannot_be_reached() {
        let mut breaker = Breaker::default();
        for number in 0..LEAST_FAILED as u64 {
            call(&mut breaker, loan(number), Ended::Unreachable);
        }
        for rest in [1, 2, 4, 5, 5].map(Duration::from_secs) {
            assert_eq!(breaker.passage(false), Passage::Closed(rest));
            tokio::time::advance(rest).await;
            assert_eq!(call(&mut breaker, loan(101), Ended::Unreachable), Some(None), "the trial");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rests_grow_when_everything_fails_for_a_minute() {
        let mut breaker = Breaker::default();
        let (mut sent, began) = (0, Instant::now());
        while began.elapsed() < Duration::from_secs(3600) {
            sent += u64::from(fails(&mut breaker, sent).is_some());
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(sent < 3600, "{sent} calls went out in an hour");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_among_many_successes_do_not_open_it() {
        let mut breaker = Breaker::default();
        for number in 0..1000 {
            let outcome = if number % 3 == 0 { Ended::Failed } else { Ended::Answered };
            assert_eq!(call(&mut breaker, loan(number), outcome), Some(None), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn loans_with_a_fault_of_their_own_do_not_open_it_again() {
        let mut breaker = Breaker::default();
        let mut opened = Vec::new();
        for round in 0..20 {
            for number in 0..40 {
                if fails(&mut breaker, number) == Some(Some(true)) {
                    opened.push(round);
                }
            }
            tokio::time::advance(FIRST_REST).await;
            assert!(succeeds(&mut breaker, 1000 + round).is_some(), "a good loan is not held back");
        }
        // Once for each five that nothing is known of yet.
        assert!(!opened.is_empty() && opened.iter().all(|round| *round < 8), "{opened:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn suspects_do_not_delay_the_trial_of_a_good_loan() {
        let mut breaker = Breaker::default();
        for number in 0..5 {
            fails(&mut breaker, number);
        }
        assert!(breaker.is_open());
        tokio::time::advance(FIRST_REST).await;
        assert_eq!(fails(&mut breaker, 0), None, "others have their turn first");
        tokio::time::advance(SUSPECT_DELAY).await;
        assert_eq!(
            fails(&mut breaker, 0),
            Some(None),
            "but where there are no others, it is tried"
        );
        assert_eq!(fails(&mut breaker, 1), None);
        assert_eq!(succeeds(&mut breaker, 7), Some(Some(false)), "beside the suspect's trial");
    }

    #[tokio::test(start_paused = true)]
    async fn begins_of_one_poisonous_title_leave_others_alone() {
        let title =
            |title: u64, loan: u64| Subject { counted: loan, suspected: title, group: title };
        for order in [[Ended::Failed, Ended::Answered], [Ended::Answered, Ended::Failed]] {
            let mut breaker = Breaker::default();
            for (ended, number) in order.into_iter().zip(0..) {
                let which = if ended == Ended::Failed { 1 } else { 2 };
                assert_eq!(call(&mut breaker, title(which, number), ended), Some(None));
            }
            for number in 2..1000 {
                assert_eq!(
                    call(&mut breaker, title(1, number), Ended::Failed),
                    Some(None),
                    "{order:?}"
                );
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn title_that_is_answered_now_and_then_holds_back_no_other() {
        let title =
            |title: u64, loan: u64| Subject { counted: loan, suspected: title, group: title };
        let mut breaker = Breaker::default();
        assert_eq!(call(&mut breaker, title(2, 1), Ended::Answered), Some(None));
        for number in 2..1000 {
            let ended = if number % 20 == 0 { Ended::Answered } else { Ended::Failed };
            assert_eq!(call(&mut breaker, title(1, number), ended), Some(None), "{number}");
        }
        assert_eq!(call(&mut breaker, title(2, 1000), Ended::Answered), Some(None));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let mut breaker = Breaker::default();
        for number in 0..3 * MAX_SUSPECTS as u64 {
            breaker.note(loan(number), Ended::Failed, false);
        }
        assert!(breaker.suspects.len() <= MAX_SUSPECTS && breaker.recent.len() <= RECENT);
    }
}
