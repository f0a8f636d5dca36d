//! A model of the permitted behaviour, independent of the gate's code: what the readers received,
//! and which states of ledger and books are valid after that.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::stage::Seen;

/// IDs of the readers.
pub(super) const BORROWERS: [&str; 2] = ["kari", "ola"];
/// Every reader with every title.
pub(super) const KEYS: [Key; 4] = [(0, 0), (0, 1), (1, 0), (1, 1)];
/// Size of a title's file, in bytes.
pub(super) const SIZE: usize = 3000;
/// Tolerance for a token issued ahead of the clock, in seconds.
const LEEWAY: i64 = 60;

/// A reader and a title, by their indexes.
pub(super) type Key = (usize, usize);
/// Number of occurrences of each event.
pub(super) type Tally = BTreeMap<&'static str, usize>;

/// Kind of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RequestKind {
    /// The file from its start.
    Read,
    /// The rest of a download.
    Continue,
    /// PUT of the loan.
    Begin,
    /// DELETE of the loan.
    Return,
}

/// A request of a reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReaderRequest {
    pub(super) reader: usize,
    pub(super) title: usize,
    pub(super) what: RequestKind,
    /// Age of its token in tokens; 0 is the newest.
    pub(super) token_back: usize,
    pub(super) http2: bool,
}

/// A reader's token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    /// The second of its issue.
    pub(super) issued: i64,
    /// Its place among the reader's tokens. Two of one second differ: a token counts as issued when
    /// it is first seen, at the latest.
    pub(super) number: usize,
}

impl Token {
    fn is_later_than(self, end: Option<Timestamp>) -> bool {
        end.is_none_or(|end| Timestamp::from_second(self.issued).unwrap() > end)
    }
}

/// A request and its result. The status is `None` if the gate crashed before a response.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) request: ReaderRequest,
    pub(super) token: Token,
    pub(super) status: Option<StatusCode>,
    /// Number of received bytes of the title's file.
    pub(super) bytes: usize,
}

impl Answered {
    fn key(&self) -> Key {
        (self.request.reader, self.request.title)
    }

    /// Returns whether the gate has confirmed that the reader has no live loan.
    fn has_returned(&self) -> bool {
        self.request.what == RequestKind::Return && self.status == Some(StatusCode::NO_CONTENT)
    }

    /// Returns whether the reader received a loan or part of the file.
    fn is_served(&self) -> bool {
        match self.request.what {
            RequestKind::Read | RequestKind::Continue => self.bytes > 0,
            RequestKind::Begin => matches!(self.status, Some(StatusCode::OK | StatusCode::CREATED)),
            RequestKind::Return => false,
        }
    }
}

/// Returns a text member of a JSON object.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_else(|| panic!("no {name} in {object}"))
}

/// Returns a time member of a JSON object, if it is set.
pub(super) fn moment(object: &Value, name: &str) -> Option<Timestamp> {
    object[name].as_str().map(|text| text.parse().unwrap())
}

fn has_ended(row: &Value) -> bool {
    matches!(text(row, "state"), "ending" | "ended")
}

/// Returns whether the ledger ever had the loan as accepted, and so ever granted access.
fn was_accepted(row: &Value) -> bool {
    moment(row, "due").is_some()
}

/// State of the readers as the test knows it.
#[derive(Debug)]
pub(super) struct Model {
    /// Tokens of each reader, the newest last.
    tokens: [Vec<Token>; 2],
    /// The latest time that the clock has shown.
    pub(super) latest: Timestamp,
    /// Tokens of requests that timed out before their loan was decided. The gate may write the
    /// intent of such a request later, and retries a failed begin once more.
    waiting: BTreeMap<Key, Vec<Token>>,
    /// Loans under which a byte was delivered.
    delivered: BTreeSet<String>,
    pub(super) tally: Tally,
}

impl Model {
    pub(super) fn new(now: Timestamp) -> Model {
        let first = vec![Token { issued: now.as_second(), number: 0 }];
        Model {
            tokens: [first.clone(), first],
            latest: now,
            waiting: BTreeMap::new(),
            delivered: BTreeSet::new(),
            tally: Tally::new(),
        }
    }

    /// Gives a reader's app a new token.
    pub(super) fn issue(&mut self, reader: usize, now: Timestamp) {
        let number = self.tokens[reader].len();
        self.tokens[reader].push(Token { issued: now.as_second(), number });
    }

    /// Returns the token of a request.
    pub(super) fn token(&self, request: &ReaderRequest) -> Token {
        let tokens = &self.tokens[request.reader];
        tokens[(tokens.len() - 1).saturating_sub(request.token_back)]
    }

    /// Checks a step against the rules. `times` are the earliest and latest time during it.
    pub(super) fn judge(
        &mut self,
        before: &Seen,
        after: &Seen,
        answered: &[Answered],
        times: (Timestamp, Timestamp),
        crashed: bool,
        step: &str,
    ) {
        self.latest = self.latest.max(times.1);
        let context =
            format!("{step}\nanswered {answered:#?}\nbefore {before:#?}\nafter {after:#?}");
        for answer in answered {
            let usual = matches!(
                answer.status.map(|status| status.as_u16()),
                Some(200 | 201 | 204 | 206 | 401 | 403 | 503)
            );
            assert!(usual || crashed, "an unexpected status: {context}");
            self.count(answer);
        }
        ends_stay(before, after, &context);
        intents_precede_loans(after, &context);
        for key in KEYS {
            let answers: Vec<_> =
                answered.iter().filter(|answer| answer.key() == key).copied().collect();
            self.begins_are_allowed(key, before, after, &answers, (times, crashed), &context);
            for answer in answers.iter().filter(|answer| answer.is_served()) {
                let loan = lent_to(key, before, after, times, &context);
                if answer.bytes > 0 {
                    self.delivered.insert(loan);
                }
            }
            if let ([answer], false) = (&answers[..], crashed) {
                self.judge_single(answer, before, after, times, &context);
            }
        }
        if crashed {
            *self.tally.entry("crash").or_default() += 1;
        }
    }

    fn count(&mut self, answer: &Answered) {
        let what = match (
            answer.is_served(),
            answer.request.what,
            answer.status.map(|status| status.as_u16()),
        ) {
            (true, RequestKind::Read, _) => "read",
            (true, RequestKind::Continue, _) => "continued",
            (true, _, Some(201)) => "begun by PUT",
            (true, ..) => "found by PUT",
            (_, RequestKind::Return, Some(204)) => "returned",
            (_, _, Some(403)) => "refused",
            (_, _, Some(401)) => "token from ahead",
            (_, _, Some(503)) => "to come back",
            _ => "aborted",
        };
        *self.tally.entry(what).or_default() += 1;
    }

    /// Checks that each loan was begun for a request that may begin one. That is a request from the
    /// start or an explicit one, with a token later than every end of an accepted loan of this
    /// reader and title (invariant 7). Where the clock was set back behind such an end, the end
    /// blocks no token of the present.
    fn begins_are_allowed(
        &mut self,
        key: Key,
        before: &Seen,
        after: &Seen,
        answers: &[Answered],
        (times, crashed): ((Timestamp, Timestamp), bool),
        context: &str,
    ) {
        let is_new = |row: &Value| before.row(&row["id"]).is_none();
        let begun: Vec<_> = after.of(key).filter(|row| is_new(row)).collect();
        // Ends of this step count too: no other loan could begin while one was live.
        let earlier = after.of(key).filter(|row| !is_new(row) && was_accepted(row));
        let last_end = earlier.filter_map(|row| moment(row, "ended")).max();
        let waiting = self.waiting.entry(key).or_default();
        let beginning = answers
            .iter()
            .filter(|answer| matches!(answer.request.what, RequestKind::Read | RequestKind::Begin));
        waiting.extend(beginning.clone().map(|answer| answer.token));
        // A token from ahead of the clock is later than the end of a loan that it has itself begun,
        // and may begin another.
        let weight = |token: &Token| if token.issued > times.0.as_second() { 2 } else { 1 };
        let lies_ahead = last_end.is_some_and(|end| end > times.0);
        let may_begin = |token: &&Token| {
            token.is_later_than(last_end) || lies_ahead && token.issued <= times.1.as_second()
        };
        let allowed: usize = waiting.iter().filter(may_begin).map(weight).sum();
        let left = begun.iter().filter(|row| row["end_reason"] != "rejected").count();
        let fits = left <= allowed && (allowed > 0 || begun.is_empty());
        assert!(fits, "{begun:?} for {key:?} where {allowed} requests might begin: {context}");
        // A return succeeds only where no earlier request may still begin a loan.
        let returned = matches!(answers, [answer] if answer.has_returned());
        let is_undecided =
            |row: &Value| matches!(text(row, "state"), "intended" | "pending" | "unknown");
        let is_decided = !after.has_flights && !after.of(key).any(is_undecided);
        if crashed || returned || is_decided {
            waiting.clear();
        }
    }

    /// Checks the result of a request that was the only one for its title and was not aborted.
    fn judge_single(
        &self,
        answer: &Answered,
        before: &Seen,
        after: &Seen,
        times: (Timestamp, Timestamp),
        context: &str,
    ) {
        let is_good = answer.token.issued <= times.0.as_second() + LEEWAY;
        let open = |seen: &Seen| {
            seen.of(answer.key())
                .find(|row| row["state"] == "accepted")
                .map(|row| row["id"].clone())
        };
        match answer.request.what {
            RequestKind::Return if answer.status == Some(StatusCode::NO_CONTENT) => {
                // An end is later than those before, also if the clock stops or is set back.
                let earlier = before.of(answer.key()).filter(|row| was_accepted(row));
                let last_end = earlier.filter_map(|row| moment(row, "ended")).max();
                let next = last_end.map(|end| end + SignedDuration::from_millis(1));
                for row in after.of(answer.key()).filter(|row| was_live(before, row)) {
                    let in_time =
                        |ended| (times.0..=times.1).contains(&ended) || Some(ended) == next;
                    let ended = moment(row, "ended").is_some_and(in_time);
                    assert!(ended, "the returned loan did not end in this step: {context}");
                }
            }
            RequestKind::Return => {}
            RequestKind::Read | RequestKind::Continue | RequestKind::Begin => {
                // After its due time, a loan may be over for some checks and not for others until
                // it is ended.
                let ahead = before.due(answer.key()).is_some_and(|due| due > self.latest);
                if is_good && ahead && open(before) == open(after) {
                    // The scene's patience is short, and the machine may be busy.
                    let comes_back = answer.status == Some(StatusCode::SERVICE_UNAVAILABLE);
                    assert!(
                        answer.is_served() || comes_back,
                        "a reader with a loan was refused: {context}"
                    );
                }
            }
        }
    }

    /// Checks, when all work is done, that ledger and books have the same loans and the same ends.
    pub(super) fn judge_rest(&mut self, seen: &Seen) {
        for loan in &seen.books {
            let row = seen.ledger.iter().find(|row| row["reference"] == loan["reference"]);
            let row = row.unwrap_or_else(|| panic!("the ledger does not have {loan}: {seen:#?}"));
            let (status, state) = (text(loan, "status"), text(row, "state"));
            let is_live = matches!(status, "PENDING" | "ACCEPTED");
            assert_eq!(is_live, state == "accepted", "{loan} and {row}: {seen:#?}");
            if was_accepted(row) && matches!(status, "RETURNED" | "EXPIRED") {
                assert_eq!(moment(loan, "ended"), moment(row, "ended"), "{loan} {row}");
            }
            let delivered = self.delivered.contains(text(loan, "loanId"));
            assert!(
                !(delivered && status == "CANCELLED"),
                "cancelled after a delivery: {loan} {row}"
            );
        }
        for row in seen.ledger.iter().filter(|row| has_ended(row) && !row["lending_id"].is_null()) {
            let loan = seen.booked(row).unwrap_or_else(|| panic!("Bokbasen does not have {row}"));
            let fits = match (text(row, "end_reason"), text(loan, "status")) {
                ("returned", "RETURNED")
                | ("expired", "EXPIRED")
                | ("cancelled", "CANCELLED" | "RETURNED") => true,
                // Ended in the ledger while it was pending at Bokbasen, where it can only be
                // cancelled.
                ("returned", "CANCELLED") => !was_accepted(row),
                _ => false,
            };
            assert!(fits && loan["ends"].as_u64() > Some(0), "{row} ended as {loan}");
        }
    }

    /// Counts how the loans of a case ended.
    pub(super) fn count_ends(&mut self, seen: &Seen) {
        for row in &seen.ledger {
            let how = match row["end_reason"].as_str() {
                None => "live loans",
                Some("returned") => "loans returned",
                Some("expired") => "loans expired",
                Some("cancelled") => "loans cancelled",
                Some(_) => "failed begins",
            };
            *self.tally.entry(how).or_default() += 1;
        }
        let again = seen.books.iter().filter(|loan| loan["ends"].as_u64() > Some(1)).count();
        *self.tally.entry("ends sent more than once").or_default() += again;
    }

    /// Checks that every reader was served every title: under the existing loan, or else under
    /// exactly one new one.
    pub(super) fn judge_served_again(&self, before: &Seen, after: &Seen) {
        for key in KEYS {
            let count =
                |seen: &Seen| seen.books.iter().filter(|loan| seen.key(loan) == key).count();
            let had_one = before.due(key).is_some();
            assert_eq!(
                count(after) - count(before),
                usize::from(!had_one),
                "{before:#?} {after:#?}"
            );
            assert!(after.due(key).is_some(), "served without a loan: {after:#?}");
        }
    }
}

/// Returns whether a row existed before and had not ended.
fn was_live(before: &Seen, row: &Value) -> bool {
    before.row(&row["id"]).is_some_and(|row| !has_ended(row) && row["state"] != "refused")
}

/// Checks that an ended loan stays ended, with the same time and reason (invariant 7).
fn ends_stay(before: &Seen, after: &Seen, context: &str) {
    for row in before.ledger.iter().filter(|row| has_ended(row)) {
        let now = after.row(&row["id"]).unwrap_or_else(|| panic!("{row} is gone: {context}"));
        assert!(has_ended(now), "{row} lives again: {context}");
        assert_eq!(
            (&now["ended"], &now["end_reason"]),
            (&row["ended"], &row["end_reason"]),
            "{context}"
        );
    }
}

/// Checks that the ledger had an intent for every loan in the books, and that each reference was
/// used once (invariant 2).
fn intents_precede_loans(after: &Seen, context: &str) {
    let mut used = BTreeSet::new();
    for loan in &after.books {
        let row = after.ledger.iter().find(|row| row["reference"] == loan["reference"]);
        let row = row.unwrap_or_else(|| panic!("begun without an intent: {loan}: {context}"));
        assert_eq!(after.key(row), after.key(loan), "begun for another: {context}");
        assert!(used.insert(text(loan, "reference")), "begun twice: {loan}: {context}");
    }
}

/// Returns the loan under which a reader was served: accepted in the books, not ended when the step
/// began, and due later than the clock showed (invariant 1). If it is no longer accepted, it has
/// ended since.
fn lent_to(
    key: Key,
    before: &Seen,
    after: &Seen,
    times: (Timestamp, Timestamp),
    context: &str,
) -> String {
    let mut loans = after.of(key).filter(|row| {
        let over_before = before.row(&row["id"]).is_some_and(has_ended);
        let accepted = after.booked(row).is_some_and(|loan| {
            !loan["accepted"].is_null() && (loan["status"] == "ACCEPTED" || has_ended(row))
        });
        !over_before && accepted && moment(row, "due") > Some(times.0)
    });
    let loan = loans.next().unwrap_or_else(|| panic!("served without a loan: {context}"));
    text(loan, "lending_id").to_owned()
}

#[test]
fn token_of_the_second_of_an_end_is_not_later() {
    let end = Timestamp::from_second(100).unwrap();
    let token = |issued| Token { issued, number: 0 };
    assert!(!token(100).is_later_than(Some(end)));
    assert!(!token(100).is_later_than(Some(end + SignedDuration::from_millis(500))));
    assert!(token(101).is_later_than(Some(end + SignedDuration::from_millis(500))));
}
