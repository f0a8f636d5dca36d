//! The links of the chain: what each hash covers, and in which order.
//!
//! Hashes are stored, so the bytes that they cover never change for a version of steps.

use std::sync::Arc;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use uuid::Uuid;

use crate::ledger::accesses::{ACCESS, ACCESS_STEP};
use crate::ledger::{Access, Cause};
use crate::loan::{LibraryId, Loan, LoanState};

/// The length of a hash, in bytes.
const MAC_LENGTH: usize = 32;

/// The key of the chain. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct AuditKey(Arc<hmac::Key>);

impl AuditKey {
    /// Creates a key from 32 bytes.
    pub fn new(bytes: &[u8; 32]) -> AuditKey {
        AuditKey(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// Returns the hash of a loan's row. It does not cover progress, owner and deliveries, which
    /// change without a step.
    pub(in crate::ledger) fn loan_mac(&self, salt: &[u8], loan: &Loan) -> Vec<u8> {
        let millis = |at: Option<Timestamp>| at.map(|at| at.as_millisecond().to_be_bytes());
        let (terms, refusal) = (loan.terms.as_ref(), loan.refusal.as_ref());
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"loan"));
        parts.add(Some(salt));
        parts.add(Some(loan.id.to_string().as_bytes()));
        parts.add(Some(loan.key.library.as_str().as_bytes()));
        parts.add(Some(loan.key.borrower.as_bytes()));
        parts.add(Some(&loan.key.isbn.number().to_be_bytes()));
        parts.add(Some(loan.reference.as_str().as_bytes()));
        parts.add(loan.lending_id.as_deref().map(str::as_bytes));
        parts.add(Some(loan.state.name().as_bytes()));
        parts.add(loan.end_reason.map(|reason| reason.name().as_bytes()));
        parts.add(terms.and_then(|terms| terms.licence_id.as_deref()).map(str::as_bytes));
        parts.add(terms.and_then(|terms| terms.licence_type.as_deref()).map(str::as_bytes));
        parts.add(refusal.map(|refusal| refusal.code.as_bytes()));
        parts.add(refusal.map(|refusal| refusal.message.as_bytes()));
        let times = [
            Some(loan.begun),
            loan.accepted,
            terms.map(|terms| terms.due),
            loan.ended,
            refusal.and_then(|refusal| refusal.retry_at),
            loan.forgotten,
            Some(loan.changed),
        ];
        times.map(millis).iter().for_each(|time| parts.add(time.as_ref().map(<[u8; 8]>::as_slice)));
        parts.sign()
    }

    /// Returns what precedes the first step of a process's chain in a library, so that no chain
    /// verifies in place of another.
    pub(in crate::ledger) fn chain_start(&self, library: LibraryId, chain: Uuid) -> Vec<u8> {
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"chain"));
        parts.add(Some(library.as_str().as_bytes()));
        parts.add(Some(chain.as_bytes()));
        parts.sign()
    }

    /// Returns the seal of the row that says where a ledger was copied from.
    pub(in crate::ledger) fn origin_seal(&self, text: &str) -> Vec<u8> {
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"copied from"));
        parts.add(Some(text.as_bytes()));
        parts.sign()
    }

    /// Returns the seal of an epoch of the ledger with this id.
    pub(in crate::ledger) fn epoch_seal(&self, ledger: Uuid, epoch: i64) -> Vec<u8> {
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"epoch"));
        parts.add(Some(ledger.as_bytes()));
        parts.add(Some(&epoch.to_be_bytes()));
        parts.sign()
    }

    /// Returns the seal of a chain that was closed at this time, in milliseconds, with this newest
    /// link.
    pub(in crate::ledger) fn closing_seal(
        &self,
        library: &str,
        chain: Uuid,
        last: &Head,
        closed: i64,
    ) -> Vec<u8> {
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"closed"));
        parts.add(Some(library.as_bytes()));
        parts.add(Some(chain.as_bytes()));
        parts.add(Some(&last.number.to_be_bytes()));
        parts.add(Some(&last.mac));
        parts.add(Some(&closed.to_be_bytes()));
        parts.sign()
    }

    /// Returns the seal of an anchor. It covers the hash before the first pruned step and the hash
    /// of the last one.
    pub(in crate::ledger) fn seal(&self, first: i64, before: &[u8], last: &Head) -> Vec<u8> {
        let mut parts = MacInput::with_key(&self.0);
        parts.add(Some(b"anchor"));
        parts.add(Some(&first.to_be_bytes()));
        parts.add(Some(before));
        parts.add(Some(&last.number.to_be_bytes()));
        parts.add(Some(&last.mac));
        parts.sign()
    }
}

/// The input of a hash. Each part is preceded by its length, and a missing part by `u64::MAX`, so
/// that different inputs never encode to the same bytes.
struct MacInput(hmac::Context);

impl MacInput {
    fn with_key(key: &hmac::Key) -> MacInput {
        MacInput(hmac::Context::with_key(key))
    }

    fn add(&mut self, bytes: Option<&[u8]>) {
        let length = bytes.map_or(u64::MAX, |bytes| bytes.len() as u64);
        self.0.update(&length.to_be_bytes());
        self.0.update(bytes.unwrap_or_default());
    }

    fn sign(self) -> Vec<u8> {
        self.0.sign().as_ref().to_vec()
    }
}

/// The newest link of a chain.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// The number of the step; 0 for an empty chain.
    pub number: i64,
    /// The hash of the step.
    pub mac: Vec<u8>,
}

/// The parts of a step that its hash covers.
#[derive(Clone, Copy, Debug)]
pub struct AuditStep<'a> {
    /// The id of the loan.
    pub loan: &'a str,
    /// When the step was written, in milliseconds since the epoch.
    pub at: i64,
    /// The name of the state before the step; none for an intent.
    pub from: Option<&'a str>,
    /// The name of the state after the step.
    pub to: &'a str,
    /// The slug of the cause.
    pub cause: &'a str,
    /// The text of the cause.
    pub detail: Option<&'a str>,
    /// The hash of the loan's row after the step; none in a step of version 1.
    pub loan_mac: Option<&'a [u8]>,
}

impl Head {
    /// Returns the link of the next step.
    pub fn next(&self, step: &AuditStep<'_>, key: &AuditKey) -> Head {
        let number = self.number.saturating_add(1);
        let mut parts = MacInput::with_key(&key.0);
        parts.add(Some(&self.mac));
        parts.add(Some(&number.to_be_bytes()));
        parts.add(Some(step.loan.as_bytes()));
        parts.add(Some(&step.at.to_be_bytes()));
        parts.add(step.from.map(str::as_bytes));
        parts.add(Some(step.to.as_bytes()));
        parts.add(Some(step.cause.as_bytes()));
        parts.add(step.detail.map(str::as_bytes));
        if let Some(loan_mac) = step.loan_mac {
            parts.add(Some(loan_mac));
        }
        Head { number, mac: parts.sign() }
    }

    /// Returns whether a chain with this newest link can contain that one.
    pub(in crate::ledger) fn follows(&self, other: &Head) -> bool {
        self.number > other.number || self == other
    }

    /// Returns the text of a head file.
    pub(super) fn text(&self) -> String {
        format!("{} {}\n", self.number, HEXLOWER.encode(&self.mac))
    }

    /// Parses a link. Returns none for a truncated text: half a hash must not count as a hash.
    pub(super) fn from_text(text: &str) -> Option<Head> {
        let (number, mac) = text.strip_suffix('\n')?.split_once(' ')?;
        let mac = HEXLOWER.decode(mac.as_bytes()).ok().filter(|mac| mac.len() == MAC_LENGTH)?;
        Some(Head { number: number.parse().ok()?, mac })
    }
}

/// A step that is not written yet.
#[derive(Debug)]
pub(in crate::ledger) struct NewStep {
    pub(in crate::ledger) loan: String,
    pub(in crate::ledger) at: i64,
    pub(in crate::ledger) from: Option<&'static str>,
    pub(in crate::ledger) to: &'static str,
    pub(in crate::ledger) cause: Cause,
    /// The salt of `loan_mac`.
    pub(in crate::ledger) salt: Option<[u8; 16]>,
    /// The hash of the loan's row after the step; none for a step without a loan.
    pub(in crate::ledger) loan_mac: Option<Vec<u8>>,
    /// The number and the hash of the step. Empty until [`NewStep::link`].
    pub(in crate::ledger) link: Head,
}

impl NewStep {
    /// Creates a step to the state of this loan, with a new salt.
    pub(in crate::ledger) fn new(
        loan: &Loan,
        at: Timestamp,
        from: Option<LoanState>,
        cause: &Cause,
        key: &AuditKey,
    ) -> NewStep {
        let salt = *Uuid::new_v4().as_bytes();
        NewStep {
            loan: loan.id.to_string(),
            at: at.as_millisecond(),
            from: from.map(LoanState::name),
            to: loan.state.name(),
            cause: cause.clone(),
            salt: Some(salt),
            loan_mac: Some(key.loan_mac(&salt, loan)),
            link: Head::default(),
        }
    }

    /// Creates a step for an access, which belongs to no loan.
    pub(in crate::ledger) fn of_access(access: &Access, at: Timestamp) -> NewStep {
        NewStep {
            loan: ACCESS.to_string(),
            at: at.as_millisecond(),
            from: Some(ACCESS_STEP),
            to: ACCESS_STEP,
            cause: Cause { by: ACCESS_STEP, detail: Some(access.to_text()) },
            salt: None,
            loan_mac: None,
            link: Head::default(),
        }
    }

    /// Appends the step to the chain that ends with this link, and returns the new end.
    pub(in crate::ledger) fn link(&mut self, before: &Head, key: &AuditKey) -> Head {
        let step = AuditStep {
            loan: &self.loan,
            at: self.at,
            from: self.from,
            to: self.to,
            cause: self.cause.by,
            detail: self.cause.detail.as_deref(),
            // As a stored step of version 2 without a row is read.
            loan_mac: Some(self.loan_mac.as_deref().unwrap_or_default()),
        };
        self.link = before.next(&step, key);
        self.link.clone()
    }
}

/// A step as the ledger stores it.
#[derive(Debug)]
pub(in crate::ledger) struct StoredStep {
    pub(in crate::ledger) number: i64,
    pub(in crate::ledger) loan: String,
    pub(in crate::ledger) at: i64,
    pub(in crate::ledger) from_state: Option<String>,
    pub(in crate::ledger) to_state: String,
    pub(in crate::ledger) cause: String,
    pub(in crate::ledger) detail: Option<String>,
    /// The hash; none in a step from before the audit trail.
    pub(in crate::ledger) mac: Option<Vec<u8>>,
    /// The version of the hash.
    pub(in crate::ledger) version: i64,
    pub(in crate::ledger) loan_mac: Option<Vec<u8>>,
}

impl StoredStep {
    /// Returns the link that this step must have after `before`.
    pub(in crate::ledger) fn link_after(&self, before: &Head, key: &AuditKey) -> Head {
        let covers_loan = self.version > 1;
        let step = AuditStep {
            loan: &self.loan,
            at: self.at,
            from: self.from_state.as_deref(),
            to: &self.to_state,
            cause: &self.cause,
            detail: self.detail.as_deref(),
            loan_mac: covers_loan.then(|| self.loan_mac.as_deref().unwrap_or_default()),
        };
        before.next(&step, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loan::{Borrower, LoanId, LoanKey, LoanRecord, Reference, Terms};

    const ID: &str = "0198f3c2-5a00-7000-8000-000000000001";

    fn millis(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn loan() -> Loan {
        let key = LoanKey {
            library: "NO-0301000".parse().unwrap(),
            borrower: Borrower::from_bytes([7; 16]),
            isbn: "9780306406157".parse().unwrap(),
        };
        let terms = Terms { due: millis(9000), licence_id: Some("K1".into()), licence_type: None };
        Loan::restore(LoanRecord {
            id: LoanId::new(key.library, ID.parse().unwrap()),
            reference: Reference::from_text("lg-1"),
            lending_id: Some("BL1".into()),
            state: LoanState::Accepted,
            accepted: Some(millis(2000)),
            terms: Some(terms),
            changed: millis(2000),
            ..Loan::intend(key, millis(1000)).record().clone()
        })
        .unwrap()
    }

    /// Ledgers store these hashes. They were computed by another program from the description of
    /// the parts.
    #[test]
    fn hashes_equal_those_of_stored_ledgers() {
        let key = AuditKey::new(&[2; 32]);
        let loan_mac = key.loan_mac(&[9; 16], &loan());
        let before = Head { number: 7, mac: vec![5; 32] };
        let step = |loan_mac| AuditStep {
            loan: ID,
            at: 2000,
            from: Some("pending"),
            to: "accepted",
            cause: "poll",
            detail: None,
            loan_mac,
        };
        let first = before.next(&step(None), &key);
        let second = before.next(&step(Some(&loan_mac)), &key);
        let seal = key.seal(3, &before.mac, &second);
        let hashes = [&loan_mac, &first.mac, &second.mac, &seal].map(|mac| HEXLOWER.encode(mac));
        let expected = [
            "76b6384ffceb0d68c29c725291fdc0189ec8f170e9d2f95edbc07e7fdabf563d",
            "729e6a255c4ec43eb2265d3db1b11971b65463b379465fd3cedcc6907ebb87ff",
            "d681c21212d2e51884206c840c69dd84be1a0975e9e00d38f1b87bf6ea550c3a",
            "fe92d700f56af3bf97ef23b4826d0305dbc41c85b81f4836a8a8930a1d74aeb8",
        ];
        assert_eq!(hashes, expected);
        assert_eq!((first.number, second.number), (8, 8));
    }
}
