//! Title tables: map files to titles if their paths do not contain an ISBN.
//!
//! The catalog queries a table for each request, and reads it at the start and on a reload. A table
//! is a CSV file of lines like `lyd/12345/,9788299999038`: the decoded value of the route's
//! `{*file}`, then the ISBNs. A trailing slash marks a prefix. The exact path takes precedence over
//! prefixes, and a longer prefix over a shorter one.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use csv::ByteRecord;

use crate::loan::Isbn;
use crate::path::RequestPath;

/// The titles of a file, in the table's order; at least one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Titles {
    first: Isbn,
    alternatives: Option<Arc<[Isbn]>>,
}

impl Titles {
    /// Creates a list of one title.
    pub fn one(isbn: Isbn) -> Titles {
        Titles { first: isbn, alternatives: None }
    }

    /// Returns the first title. A request for the file begins a loan of this title only.
    pub fn first(&self) -> Isbn {
        self.first
    }

    /// Returns the other titles, whose loans open the file as well.
    pub fn alternatives(&self) -> &[Isbn] {
        self.alternatives.as_deref().unwrap_or_default()
    }

    fn all(&self) -> impl Iterator<Item = Isbn> {
        std::iter::once(self.first).chain(self.alternatives().iter().copied())
    }
}

/// A mistake in a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableError {
    /// The index of the route with the table.
    pub route: usize,
    /// The path of the table's file.
    pub file: PathBuf,
    /// The line, counted from 1; none if the file cannot be read.
    pub line: Option<usize>,
    /// The mistake, and what to write instead.
    pub sentence: String,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.sentence),
            None => f.write_str(&self.sentence),
        }
    }
}

/// A table in memory. It is empty until the file is read: no path has a title then.
#[derive(Debug, Default)]
pub(crate) struct Table {
    files: HashMap<Box<str>, Titles>,
    /// The prefixes without their trailing slash.
    prefixes: HashMap<Box<str>, Titles>,
    /// The length of the longest prefix, in bytes: bounds the lookups for a long path.
    longest: usize,
    /// The paths of each title, in the order of the lines.
    paths: HashMap<Isbn, Vec<Box<str>>>,
}

impl Table {
    /// Reads the table file of a route.
    pub(super) fn read(route: usize, file: &Path) -> Result<Table, Vec<TableError>> {
        let at = |line, sentence| TableError { route, file: file.to_owned(), line, sentence };
        let text = std::fs::read(file).map_err(|error| {
            let shown = file.display();
            let sentence =
                format!("the table {shown} cannot be read: {error}. Make it, or name another");
            vec![at(None, sentence)]
        })?;
        Table::parse(&text).map_err(|wrong| {
            wrong.into_iter().map(|(line, sentence)| at(Some(line), sentence)).collect()
        })
    }

    /// Parses a table, or returns every mistake with its line.
    fn parse(text: &[u8]) -> Result<Table, Vec<(usize, String)>> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .from_reader(text);
        let (mut table, mut wrong) = (Table::default(), Vec::new());
        let mut seen: HashMap<Box<str>, usize> = HashMap::new();
        let mut record = ByteRecord::new();
        let mut is_first = true;
        let mut lines = Lines { text, at: 0, ends: 0 };
        loop {
            let read = reader.read_byte_record(&mut record);
            let line = lines.of(reader.position());
            match read {
                Ok(false) => break,
                Ok(true) => {}
                Err(error) => {
                    wrong.push((line, format!("this is not CSV: {error}")));
                    break;
                }
            }
            if std::mem::take(&mut is_first) && is_header(&record) {
                continue;
            }
            let added =
                row(&record).and_then(|(path, titles)| table.add(path, titles, line, &mut seen));
            wrong.extend(added.err().map(|sentence| (line, sentence)));
        }
        if wrong.is_empty() { Ok(table) } else { Err(wrong) }
    }

    fn add(
        &mut self,
        path: &str,
        titles: Titles,
        line: usize,
        seen: &mut HashMap<Box<str>, usize>,
    ) -> Result<(), String> {
        if let Some(before) = seen.insert(path.into(), line) {
            return Err(format!(
                "line {before} has this path already. Write all its ISBNs in one line"
            ));
        }
        for isbn in titles.all() {
            self.paths.entry(isbn).or_default().push(path.into());
        }
        match path.strip_suffix('/') {
            Some(prefix) => {
                self.longest = self.longest.max(prefix.len());
                self.prefixes.insert(prefix.into(), titles);
            }
            None => {
                self.files.insert(path.into(), titles);
            }
        }
        Ok(())
    }

    /// Returns the titles of a path: of its own line, else of its longest prefix.
    pub(super) fn titles(&self, path: &str) -> Option<&Titles> {
        self.files.get(path).or_else(|| {
            let slashes =
                path.rmatch_indices('/').map(|(at, _)| at).skip_while(|at| *at > self.longest);
            slashes.filter_map(|at| path.get(..at)).find_map(|prefix| self.prefixes.get(prefix))
        })
    }

    /// Returns the paths of a title; prefixes keep their trailing slash.
    pub(super) fn paths(&self, isbn: Isbn) -> &[Box<str>] {
        self.paths.get(&isbn).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the number of lines.
    pub(super) fn len(&self) -> usize {
        self.files.len() + self.prefixes.len()
    }
}

/// Line counter for records. The CSV reader's own line number is where it began to search for the
/// record: before the comments and empty lines above it.
#[derive(Debug)]
struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    ends: usize,
}

impl Lines<'_> {
    /// Returns the line, counted from 1, of the record that ends at `end`. Calls must be in order.
    fn of(&mut self, end: &csv::Position) -> usize {
        let end = usize::try_from(end.byte()).unwrap_or(usize::MAX).min(self.text.len());
        let passed = self.text.get(self.at..end).unwrap_or_default();
        self.ends += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = end;
        self.ends + usize::from(!passed.ends_with(b"\n"))
    }
}

/// Whether a first line is a header like `path,isbn`.
fn is_header(record: &ByteRecord) -> bool {
    let is_path = record.get(0).is_some_and(|name| name.trim_ascii().eq_ignore_ascii_case(b"path"));
    is_path && record.get(1).is_none_or(|isbn| !isbn.first().is_some_and(u8::is_ascii_digit))
}

fn row(record: &ByteRecord) -> Result<(&str, Titles), String> {
    let mut fields = record.iter().map(|field| {
        let text = std::str::from_utf8(field);
        text.map_err(|_| "the line is not UTF-8. Save the table as UTF-8".to_owned())
    });
    let path = fields.next().transpose()?.unwrap_or_default();
    check_path(path)?;
    let mut isbns: Vec<Isbn> = Vec::new();
    for field in fields {
        let field = field?.trim();
        if field.is_empty() {
            continue; // spreadsheet programs give all lines the same number of commas
        }
        let isbn = field.parse().map_err(|error| format!("{field:?} is no title: {error}"))?;
        if isbns.contains(&isbn) {
            return Err(format!("{isbn} is listed twice. Write it once"));
        }
        isbns.push(isbn);
    }
    match isbns.as_slice() {
        [] => Err("there is no ISBN. Write the path, a comma, and the ISBNs with commas between"
            .to_owned()),
        [one] => Ok((path, Titles::one(*one))),
        [first, alternatives @ ..] => {
            Ok((path, Titles { first: *first, alternatives: Some(alternatives.into()) }))
        }
    }
}

/// Checks that a request path can have this value for the route's `{*file}`.
fn check_path(path: &str) -> Result<(), String> {
    if path.starts_with('/') {
        return Err(
            "a path here starts without a slash: it is the value of the route's {*file}. Remove \
             the slash"
                .to_owned(),
        );
    }
    let rooted = format!("/{}", path.strip_suffix('/').unwrap_or(path));
    let known = RequestPath::of_decoded(&rooted);
    let known = known.map_err(|error| {
        format!("no request has such a path, which is written decoded. {error}")
    })?;
    if known.segments().next().is_none() {
        return Err(
            "there is no path. Write a file's path, or a prefix with a slash at its end".to_owned()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
