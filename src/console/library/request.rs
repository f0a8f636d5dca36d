//! Which library and month a request is for, and in which order its titles are shown.

use serde::Deserialize;
use url::form_urlencoded::Serializer;

use super::super::visit::Form;
use super::month::Month;
use super::sums::{TitleRow, by_title};
use crate::loan::LibraryId;

/// The number of titles on a page.
pub(super) const PAGE_SIZE: usize = 25;

/// The query of a request, unparsed.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::console) struct Query {
    pub(super) library: String,
    month: String,
    sort: String,
    page: String,
}

/// The order of titles.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Sort {
    #[default]
    Loans,
    Title,
    Cost,
}

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) library: LibraryId,
    pub(super) month: Month,
    pub(super) sort: Sort,
    /// The page of titles, from 0.
    pub(super) page: usize,
}

impl Sort {
    fn name(self) -> &'static str {
        match self {
            Sort::Loans => "loans",
            Sort::Title => "title",
            Sort::Cost => "cost",
        }
    }

    fn of(name: &str) -> Sort {
        [Sort::Title, Sort::Cost].into_iter().find(|sort| sort.name() == name).unwrap_or_default()
    }

    /// Returns the titles in this order.
    pub(super) fn order(self, rows: &[TitleRow]) -> Vec<&TitleRow> {
        let mut rows: Vec<&TitleRow> = rows.iter().collect();
        match self {
            Sort::Loans => {}
            Sort::Title => rows.sort_by(|one, other| by_title(one, other)),
            Sort::Cost => rows.sort_by_key(|row| std::cmp::Reverse(row.sum.cost)),
        }
        rows
    }
}

impl Query {
    /// Reads the fields of a form.
    pub(super) fn of_form(form: &Form) -> Query {
        let field = |name: &str| form.field(name).to_owned();
        Query {
            library: field("library"),
            month: field("month"),
            sort: field("sort"),
            page: field("page"),
        }
    }

    /// Returns what is wanted; none if the library or the month cannot be read. Without a month, it
    /// is `now`.
    pub(super) fn wanted(&self, now: Month) -> Option<Wanted> {
        let month = match self.month.trim() {
            "" => now,
            text => Month::parse(text)?,
        };
        let page = self.page.parse::<usize>().map_or(0, |number| number.saturating_sub(1));
        let library = self.library.trim().parse().ok()?;
        Some(Wanted { library, month, sort: Sort::of(&self.sort), page })
    }
}

impl Wanted {
    /// Returns the address of what is wanted, below this path.
    pub(super) fn path(&self, path: &str) -> String {
        let mut query = Serializer::new(String::new());
        query.append_pair("library", self.library.as_str());
        query.append_pair("month", &self.month.to_string());
        if self.sort != Sort::Loans {
            query.append_pair("sort", self.sort.name());
        }
        if self.page > 0 {
            query.append_pair("page", &self.page.saturating_add(1).to_string());
        }
        format!("{path}?{}", query.finish())
    }

    /// Returns the fields of [`Wanted::path`], for a form.
    pub(super) fn fields(&self) -> [(&'static str, String); 4] {
        [
            ("library", self.library.to_string()),
            ("month", self.month.to_string()),
            ("sort", self.sort.name().to_owned()),
            ("page", self.page.saturating_add(1).to_string()),
        ]
    }

    /// Returns the titles of the page, and the number of pages, at least one.
    pub(super) fn titles<'a>(&self, rows: &'a [TitleRow]) -> (Vec<&'a TitleRow>, usize) {
        let ordered = self.sort.order(rows);
        let from = self.page.saturating_mul(PAGE_SIZE);
        let shown = ordered.into_iter().skip(from).take(PAGE_SIZE).collect();
        (shown, rows.len().div_ceil(PAGE_SIZE).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(library: &str, month: &str, sort: &str, page: &str) -> Option<String> {
        let [library, month, sort, page] = [library, month, sort, page].map(str::to_owned);
        let now = Month::parse("2026-10").unwrap();
        let wanted = Query { library, month, sort, page }.wanted(now)?;
        Some(wanted.path("/library"))
    }

    #[test]
    fn address_leads_back_to_what_is_wanted() {
        let of = "/library?library=NO-0301000&month=2026-10";
        for (sort, page, path) in [
            ("", "", of.to_owned()),
            ("x", "0", of.to_owned()),
            ("cost", "3", format!("{of}&sort=cost&page=3")),
            ("title", "99999999999999999999999", format!("{of}&sort=title")),
        ] {
            assert_eq!(wanted("NO-0301000", "", sort, page), Some(path), "{sort} {page}");
        }
        for (library, month) in [("", "2026-10"), ("<b>", "2026-10"), ("NO-0301000", "10/2026")] {
            assert_eq!(wanted(library, month, "", ""), None, "{library} {month}");
        }
    }
}
