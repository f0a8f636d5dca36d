//! The loans and costs of a library, added up by title, by licence type and by day.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::civil::Date;

use crate::ledger::{TitleCost, TitleLoans};
use crate::loan::Isbn;

/// The most titles of a month, each with one licence type. Further ones count in the totals only.
const MAX_TITLES: usize = 10_000;
/// The most licence types. Further ones count in the totals only.
const MAX_TYPES: usize = 100;

/// A number of loans, and what they cost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Sum {
    /// Accepted loans.
    pub(super) lent: u64,
    /// Begins that Bokbasen refused.
    pub(super) refused: u64,
    /// The refused ones that exceeded a budget.
    pub(super) over_budget: u64,
    /// The price of the usage reports that Bokbasen has recorded, in øre.
    pub(super) cost: u64,
    /// Usage reports that are not settled.
    pub(super) open: u64,
}

/// The sum of a title under a licence type.
#[derive(Clone, Debug)]
pub(super) struct TitleRow {
    pub(super) isbn: Isbn,
    /// Empty if Bokbasen named none, as for refused loans.
    pub(super) licence_type: Arc<str>,
    pub(super) sum: Sum,
}

/// Sums of some days.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    titles: HashMap<(Isbn, Arc<str>), Sum>,
    pub(super) types: BTreeMap<Arc<str>, Sum>,
    pub(super) days: BTreeMap<Date, Sum>,
    pub(super) total: Sum,
    /// The sum of the titles that are not among the rows, and of the types that are not among the
    /// types, if there are such.
    pub(super) other_titles: Option<Sum>,
    pub(super) other_types: Option<Sum>,
}

impl Sum {
    fn add(&mut self, other: &Sum) {
        self.lent += other.lent;
        self.refused += other.refused;
        self.over_budget += other.over_budget;
        self.cost = self.cost.saturating_add(other.cost);
        self.open += other.open;
    }
}

impl From<&TitleLoans> for Sum {
    fn from(loans: &TitleLoans) -> Sum {
        let TitleLoans { lent, refused, over_budget, .. } = *loans;
        Sum { lent, refused, over_budget, ..Sum::default() }
    }
}

impl From<&TitleCost> for Sum {
    fn from(cost: &TitleCost) -> Sum {
        Sum { cost: cost.price, open: cost.open, ..Sum::default() }
    }
}

impl Sums {
    /// Adds a day.
    pub(super) fn add_day(&mut self, day: Date, loans: &[TitleLoans], costs: &[TitleCost]) {
        for title in loans {
            let licence_type = title.licence_type.as_deref().unwrap_or_default();
            self.add(day, title.isbn, licence_type, &title.into());
        }
        for cost in costs {
            self.add(day, cost.isbn, &cost.licence_type, &cost.into());
        }
    }

    fn add(&mut self, day: Date, isbn: Isbn, licence_type: &str, sum: &Sum) {
        self.total.add(sum);
        self.days.entry(day).or_default().add(sum);
        let known = self.types.get_key_value(licence_type).map(|(name, _)| name.clone());
        if known.is_none() && self.types.len() >= MAX_TYPES {
            self.other_types.get_or_insert_default().add(sum);
            self.other_titles.get_or_insert_default().add(sum);
            return;
        }
        let name = known.unwrap_or_else(|| licence_type.into());
        self.types.entry(name.clone()).or_default().add(sum);
        let is_full = self.titles.len() >= MAX_TITLES;
        match self.titles.get_mut(&(isbn, name.clone())) {
            Some(title) => title.add(sum),
            None if is_full => self.other_titles.get_or_insert_default().add(sum),
            None => drop(self.titles.insert((isbn, name), *sum)),
        }
    }

    /// Takes the titles out, those with the most loans first.
    pub(super) fn take_rows(&mut self) -> Vec<TitleRow> {
        let row = |((isbn, licence_type), sum)| TitleRow { isbn, licence_type, sum };
        let mut rows: Vec<TitleRow> = self.titles.drain().map(row).collect();
        rows.sort_by(|one, other| {
            let by_loans =
                (other.sum.lent, other.sum.refused).cmp(&(one.sum.lent, one.sum.refused));
            by_loans.then_with(|| by_title(one, other))
        });
        rows
    }
}

/// Compares rows by title and licence type.
pub(super) fn by_title(one: &TitleRow, other: &TitleRow) -> std::cmp::Ordering {
    let of = |row: &TitleRow| (row.isbn.number(), row.licence_type.clone());
    of(one).cmp(&of(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loans(isbn: &str, licence_type: Option<&str>, lent: u64) -> TitleLoans {
        let licence_type = licence_type.map(str::to_owned);
        TitleLoans { isbn: isbn.parse().unwrap(), licence_type, lent, refused: 1, over_budget: 1 }
    }

    #[test]
    fn loans_and_costs_meet_in_their_title() {
        let (one, other) = ("9788299999014", "9788299999038");
        let (first, second) = ("2026-10-01".parse().unwrap(), "2026-10-02".parse().unwrap());
        let cost = TitleCost {
            isbn: one.parse().unwrap(),
            licence_type: "PACKAGE".to_owned(),
            reported: 1,
            price: 2990,
            open: 2,
        };
        let mut sums = Sums::default();
        sums.add_day(first, &[loans(one, Some("PACKAGE"), 2), loans(other, None, 0)], &[cost]);
        sums.add_day(second, &[loans(one, Some("PACKAGE"), 5), loans(other, Some("X"), 9)], &[]);
        let rows = sums.take_rows();
        let found: Vec<_> = rows
            .iter()
            .map(|row| (row.isbn.to_string(), &*row.licence_type, row.sum.lent, row.sum.cost))
            .collect();
        let expected = [
            (other.to_owned(), "X", 9, 0),
            (one.to_owned(), "PACKAGE", 7, 2990),
            (other.to_owned(), "", 0, 0),
        ];
        assert_eq!(found, expected);
        let total = Sum { lent: 16, refused: 4, over_budget: 4, cost: 2990, open: 2 };
        assert_eq!((sums.total, sums.other_titles), (total, None));
        assert_eq!((sums.days[&first].lent, sums.days[&second].lent), (2, 14));
        assert_eq!(sums.types["PACKAGE"].lent, 7);
    }

    #[test]
    fn number_of_rows_is_bounded_and_totals_are_complete() {
        let mut sums = Sums::default();
        let day = "2026-10-01".parse().unwrap();
        for number in 0..200 {
            let name = format!("TYPE_{number}");
            sums.add_day(day, &[loans("9788299999014", Some(&name), 1)], &[]);
        }
        assert_eq!((sums.types.len(), sums.take_rows().len()), (MAX_TYPES, MAX_TYPES));
        for others in [sums.other_titles, sums.other_types] {
            assert_eq!(others.map(|sum| sum.lent), Some(200 - MAX_TYPES as u64));
        }
        assert_eq!(sums.total.lent, 200);
    }
}
