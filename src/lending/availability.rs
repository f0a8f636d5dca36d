//! The availability of a title: a library's licences and their free loans.

use jiff::Timestamp;

/// The availability of one title at one library.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Availability {
    /// Whether Bokbasen reports that the title can be borrowed now.
    pub available: bool,
    /// The library's licences for the title, in Bokbasen's order.
    pub licences: Vec<FreeLicence>,
}

/// A licence and its free loans.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FreeLicence {
    /// Bokbasen's id of the licence.
    pub licence_id: String,
    /// The licence type, such as `PACKAGE`.
    pub kind: String,
    /// The number of loans that can begin on it now.
    pub free: u32,
    /// The time of the next free loan, if none is free now.
    pub next_free: Option<Timestamp>,
}

impl Availability {
    /// Returns the earliest time at which a licence becomes free; none if the title is available
    /// now or Bokbasen names no time.
    pub fn next_free(&self) -> Option<Timestamp> {
        if self.available {
            None
        } else {
            self.licences.iter().filter_map(|licence| licence.next_free).min()
        }
    }
}
