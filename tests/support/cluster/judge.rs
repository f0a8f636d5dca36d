//! The judge of a cluster: compares the sandbox's books with the ledger, with what the origin sent
//! and with what readers received.
//!
//! All times are of one machine's clock. Each rule compares only times whose order is certain: a
//! response that arrived before another request was sent, a loan that ended before a request.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use loangate::clock;
use serde_json::Value;

use super::{Exchange, Kind};
use crate::support::origin::RecordedRequest;

/// What happened in a cluster, after it has settled.
#[derive(Clone, Debug)]
pub(crate) struct Evidence {
    /// All loans of the sandbox.
    pub(crate) books: Vec<Value>,
    /// All loans of the ledger, as the admin API shows them.
    pub(crate) ledger: Vec<Value>,
    pub(crate) exchanges: Vec<Exchange>,
    /// All requests at the origin.
    pub(crate) origin: Vec<RecordedRequest>,
    /// How long after the books' end of a loan a gate may still open it.
    pub(crate) stale_bound: Duration,
    /// The longest time for which one reader and title may have two live loans.
    pub(crate) duplicate_bound: Duration,
}

/// A loan of the books.
#[derive(Debug)]
struct Booked<'a> {
    value: &'a Value,
    made: Timestamp,
    accepted: Option<Timestamp>,
    /// When Bokbasen had the end; `Timestamp::MAX` while the loan is live.
    ended: Timestamp,
    is_live: bool,
}

type Key = (String, String);

impl Evidence {
    /// Returns a sentence for each rule that was broken.
    pub(crate) fn findings(&self) -> Vec<String> {
        let booked = self.booked_by_key();
        let mut findings = Vec::new();
        self.check_reads(&booked, &mut findings);
        self.check_origin(&booked, &mut findings);
        self.check_duplicates(&booked, &mut findings);
        self.check_returns(&booked, &mut findings);
        self.check_ledger(&mut findings);
        findings
    }

    /// Returns how many pairs of loans of one key were live at once, and for how long at most.
    pub(crate) fn duplicates(&self) -> (usize, Duration) {
        let overlaps: Vec<_> =
            self.booked_by_key().values().flat_map(|all| overlaps(all)).collect();
        (overlaps.len(), overlaps.into_iter().max().unwrap_or_default())
    }

    fn booked_by_key(&self) -> BTreeMap<Key, Vec<Booked<'_>>> {
        let mut booked: BTreeMap<Key, Vec<_>> = BTreeMap::new();
        for value in &self.books {
            let time = |name: &str| value[name].as_str().map(|at| at.parse().unwrap());
            let is_live = is_live(value);
            let made = time("made").unwrap();
            let received = time("endReceived");
            let ended = received.unwrap_or(if is_live { Timestamp::MAX } else { made });
            let loan = Booked { value, made, accepted: time("accepted"), ended, is_live };
            booked.entry((text(value, "borrower"), text(value, "isbn"))).or_default().push(loan);
        }
        booked
    }

    /// No reader receives a byte without an accepted loan.
    fn check_reads(&self, booked: &BTreeMap<Key, Vec<Booked<'_>>>, findings: &mut Vec<String>) {
        for exchange in self.exchanges.iter().filter(|exchange| exchange.kind == Kind::Read) {
            if exchange.is_corrupt {
                findings.push(format!("other bytes than the file's: {exchange:?}"));
            }
            let loans = booked.get(&exchange.key).map_or(&[][..], Vec::as_slice);
            let has_loan = loans.iter().any(|loan| {
                loan.accepted.is_some_and(|accepted| accepted <= exchange.answered)
                    && exchange.sent <= clock::after(loan.ended, self.stale_bound)
            });
            if exchange.is_ok() && !has_loan {
                findings.push(format!("served without a loan: {exchange:?}, {loans:?}"));
            }
        }
    }

    /// No gate requests a file before Bokbasen has accepted its loan.
    fn check_origin(&self, booked: &BTreeMap<Key, Vec<Booked<'_>>>, findings: &mut Vec<String>) {
        let keys: BTreeMap<&str, &Key> =
            self.exchanges.iter().map(|one| (one.file.as_str(), &one.key)).collect();
        for request in &self.origin {
            let Some(key) = keys.get(request.path.trim_start_matches('/')) else { continue };
            let mut loans = booked.get(*key).into_iter().flatten();
            if !loans.any(|loan| loan.accepted.is_some_and(|accepted| accepted <= request.at)) {
                findings
                    .push(format!("fetched without a loan: {} at {}", request.path, request.at));
            }
        }
    }

    fn check_duplicates(
        &self,
        booked: &BTreeMap<Key, Vec<Booked<'_>>>,
        findings: &mut Vec<String>,
    ) {
        for (key, loans) in booked {
            if loans.iter().filter(|loan| loan.is_live).count() > 1 {
                findings.push(format!("two live loans of {key:?}: {loans:?}"));
            }
            for overlap in overlaps(loans).into_iter().filter(|&time| time > self.duplicate_bound) {
                findings.push(format!("two loans of {key:?} were live for {overlap:?}: {loans:?}"));
            }
        }
    }

    /// A loan that was read and then returned has ended at Bokbasen.
    fn check_returns(&self, booked: &BTreeMap<Key, Vec<Booked<'_>>>, findings: &mut Vec<String>) {
        let all = &self.exchanges;
        for returned in all.iter().filter(|one| one.kind == Kind::Return && one.is_ok()) {
            let was_read = |one: &&Exchange| {
                one.kind == Kind::Read && one.is_ok() && one.answered < returned.sent
            };
            let reads = all.iter().filter(|one| one.key == returned.key).filter(was_read);
            let Some(read_at) = reads.map(|one| one.answered).max() else { continue };
            for loan in booked.get(&returned.key).into_iter().flatten() {
                let was_live = loan.accepted.is_some_and(|accepted| accepted <= read_at);
                if was_live && loan.is_live {
                    findings.push(format!("the return {returned:?} was lost: {loan:?}"));
                }
            }
        }
    }

    /// The ledger and the books agree on which loans are live, and no end waits.
    fn check_ledger(&self, findings: &mut Vec<String>) {
        let ledger: BTreeMap<&str, &Value> = self
            .ledger
            .iter()
            .filter_map(|loan| Some((loan["lending_id"].as_str()?, loan)))
            .collect();
        for loan in self.ledger.iter().filter(|loan| loan["state"] == "ending") {
            findings.push(format!("an end was not sent: {loan}"));
        }
        for booked in &self.books {
            let here = ledger.get(booked["loanId"].as_str().unwrap());
            let is_accepted_here = here.is_some_and(|loan| loan["state"] == "accepted");
            if is_live(booked) != is_accepted_here {
                findings.push(format!("the books have {booked}, the ledger has {here:?}"));
            }
        }
        for (id, loan) in ledger.iter().filter(|(_, loan)| loan["state"] == "accepted") {
            if !self.books.iter().any(|booked| booked["loanId"] == **id) {
                findings.push(format!("the books do not have {loan}"));
            }
        }
    }
}

/// Returns for how long each pair of these loans was live at once, if it was.
fn overlaps(loans: &[Booked<'_>]) -> Vec<Duration> {
    let mut overlaps = Vec::new();
    for (number, first) in loans.iter().enumerate() {
        for second in loans.iter().skip(number + 1) {
            let from = first.made.max(second.made);
            let until = first.ended.min(second.ended);
            if from < until {
                overlaps.push(clock::until(from, until));
            }
        }
    }
    overlaps
}

fn is_live(booked: &Value) -> bool {
    matches!(booked["status"].as_str(), Some("PENDING" | "ACCEPTED"))
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap().to_owned()
}
