//! The lists of prices and of the sizes of titles: small CSV files that an operator keeps.
//!
//! A line has a key and a value, with a comma or a semicolon between them. `#` starts a comment,
//! and a first line without a number is a header. The last line ends too, since a file without its
//! end is half written.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::ledger::ReportModel;
use crate::loan::Isbn;

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 20;
/// The greatest price, in NOK: a greater one is a mistake.
const MAX_PRICE: u64 = 1_000_000;
/// The most mistakes that are returned for one file.
const MAX_REPORTED: usize = 20;

/// The lists in use.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// The price of a title, in øre.
    of_titles: HashMap<Isbn, u64>,
    /// The price of a licence type, in øre.
    of_types: HashMap<String, u64>,
    /// The size of a title: of all its files together, in bytes.
    sizes: HashMap<Isbn, u64>,
}

/// A mistake in a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListMistake {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1; none if the file cannot be read.
    pub line: Option<usize>,
    /// What is wrong, and what to write instead.
    pub sentence: String,
}

impl fmt::Display for ListMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file.display(), self.sentence),
            None => f.write_str(&self.sentence),
        }
    }
}

impl Lists {
    /// Reads both files, which may be large, away from the runtime.
    ///
    /// # Errors
    /// Every mistake in them, up to a maximum.
    pub async fn read(
        prices: Option<&Path>,
        sizes: Option<&Path>,
    ) -> Result<Lists, Vec<ListMistake>> {
        let (prices, sizes) = (prices.map(Path::to_owned), sizes.map(Path::to_owned));
        let reading = move || Lists::read_now(prices.as_deref(), sizes.as_deref());
        tokio::task::spawn_blocking(reading).await.unwrap_or_else(|_| Err(Vec::new()))
    }

    fn read_now(prices: Option<&Path>, sizes: Option<&Path>) -> Result<Lists, Vec<ListMistake>> {
        let mut lists = Lists::default();
        let mut mistakes = Vec::new();
        if let Some(file) = prices {
            mistakes.extend(read_file(file, |key, value| lists.add_price(key, value)));
        }
        if let Some(file) = sizes {
            mistakes.extend(read_file(file, |key, value| lists.add_size(key, value)));
        }
        if mistakes.is_empty() { Ok(lists) } else { Err(mistakes) }
    }

    fn add_price(&mut self, key: &str, value: &str) -> Result<(), String> {
        let price = price(value)?;
        let is_type = key.starts_with(|first: char| first.is_ascii_uppercase());
        let before = if is_type {
            let is_valid =
                |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            if !key.bytes().all(is_valid) {
                return Err(format!("{key:?} is no licence type. Write it as Bokbasen does"));
            }
            self.of_types.insert(key.to_owned(), price)
        } else {
            self.of_titles.insert(isbn(key)?, price)
        };
        once(key, before)
    }

    fn add_size(&mut self, key: &str, value: &str) -> Result<(), String> {
        let size = value.parse().ok().filter(|size| *size > 0);
        let size = size.ok_or_else(|| {
            format!("{value:?} is no size. Write the bytes of all files of the title, like 734003")
        })?;
        let before = self.sizes.insert(isbn(key)?, size);
        once(key, before)
    }

    /// Returns the price, in øre: for a loan that is paid by use that of the title, else that of
    /// the licence type. The price of a title is that of one loan, so a package has that of its
    /// type.
    pub(super) fn price(&self, model: ReportModel, isbn: Isbn, licence_type: &str) -> Option<u64> {
        let of_title = match model {
            ReportModel::PayPerLoan => self.of_titles.get(&isbn),
            ReportModel::Package => None,
        };
        of_title.or_else(|| self.of_types.get(licence_type)).copied()
    }

    /// Returns the size of a title, in bytes.
    pub(super) fn size(&self, isbn: Isbn) -> Option<u64> {
        self.sizes.get(&isbn).copied()
    }
}

fn once(key: &str, before: Option<u64>) -> Result<(), String> {
    match before {
        None => Ok(()),
        Some(_) => Err(format!("{key} is listed twice. Write it once")),
    }
}

fn isbn(key: &str) -> Result<Isbn, String> {
    key.parse().map_err(|error| format!("{key:?} is no title: {error}"))
}

/// Reads a price in NOK, and returns it in øre.
fn price(value: &str) -> Result<u64, String> {
    let wrong = || format!("{value:?} is no price. Write NOK, like 29 or 29.90");
    let decimal = value.replace(',', ".");
    let (whole, part) = decimal.split_once('.').unwrap_or((&decimal, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 2 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part: u64 = format!("{part:0<2}").parse().map_err(|_| wrong())?;
    match whole {
        0..MAX_PRICE => Ok(whole * 100 + part),
        _ => Err(format!("{value} NOK is too much for a loan. Write the price of one")),
    }
}

/// Calls `add` for each line. Returns the mistakes.
fn read_file(
    file: &Path,
    mut add: impl FnMut(&str, &str) -> Result<(), String>,
) -> Vec<ListMistake> {
    let at = |line, sentence| ListMistake { file: file.to_owned(), line, sentence };
    let text = match read_text(file) {
        Ok(text) => text,
        Err(why) => {
            let shown = file.display();
            let sentence =
                format!("the list {shown} cannot be read: {why}. Make it, or name another");
            return vec![at(None, sentence)];
        }
    };
    let mut mistakes = Vec::new();
    let mut is_first = true;
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let is_header = std::mem::take(&mut is_first) && !line.bytes().any(|b| b.is_ascii_digit());
        if is_header {
            continue;
        }
        // A spreadsheet program writes semicolons where a comma divides the fractions.
        let separator = if line.contains(';') { ';' } else { ',' };
        let added = match line.split_once(separator) {
            Some((key, value)) => add(field(key), field(value)),
            None => Err("there is no value. Write the key, a comma and the value".to_owned()),
        };
        mistakes.extend(added.err().map(|sentence| at(Some(number), sentence)));
        if mistakes.len() >= MAX_REPORTED {
            break;
        }
    }
    if !text.ends_with('\n') {
        let sentence = "the last line does not end, so the list may be half written. Write all of \
                        it, with a line break at the end";
        mistakes.push(at(Some(text.lines().count().max(1)), sentence.to_owned()));
    }
    mistakes
}

fn field(text: &str) -> &str {
    text.trim().trim_matches('"').trim()
}

fn read_text(file: &Path) -> Result<String, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > MAX_FILE {
        return Err(format!("it has more than {MAX_FILE} bytes"));
    }
    std::fs::read_to_string(file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::ReportModel::{Package, PayPerLoan};

    const ONE: &str = "9780306406157";

    fn read(prices: &str, sizes: &str) -> Result<Lists, Vec<(Option<usize>, String)>> {
        let directory = tempfile::tempdir().unwrap();
        let files = ["prices.csv", "sizes.csv"].map(|name| directory.path().join(name));
        std::fs::write(&files[0], prices).unwrap();
        std::fs::write(&files[1], sizes).unwrap();
        let [prices, sizes] = &files;
        Lists::read_now(Some(prices), Some(sizes)).map_err(|mistakes| {
            mistakes.into_iter().map(|mistake| (mistake.line, mistake.sentence)).collect()
        })
    }

    #[test]
    fn price_of_a_title_precedes_that_of_its_licence_type() {
        let prices = format!("\u{feff}type or ISBN,NOK\n# all\nPAY_PER_LOAN,23.5\n\n{ONE},29\n");
        let lists = read(&prices, &format!("{ONE},1000\n")).unwrap();
        let (one, other) = (ONE.parse().unwrap(), "9788299999014".parse().unwrap());
        assert_eq!(lists.price(PayPerLoan, one, "PAY_PER_LOAN"), Some(2900));
        assert_eq!(lists.price(PayPerLoan, other, "PAY_PER_LOAN"), Some(2350));
        assert_eq!(lists.price(PayPerLoan, other, "OTHER"), None);
        assert_eq!(lists.price(Package, one, "PACKAGE"), None, "a title is no package");
        assert_eq!((lists.size(one), lists.size(other)), (Some(1000), None));
    }

    #[test]
    fn semicolons_allow_decimal_commas() {
        let lists = read(&format!("\"PACKAGE\";\"1234,05\"\n{ONE};0,1\n"), "# none\n").unwrap();
        assert_eq!(lists.price(Package, ONE.parse().unwrap(), "PACKAGE"), Some(123_405));
        assert_eq!(lists.price(PayPerLoan, ONE.parse().unwrap(), ""), Some(10));
    }

    #[test]
    fn every_mistake_has_its_line() {
        let prices =
            "PACKAGE,1\nPACKAGE,2\nPackage,1\n978,1\nX,-1\nX,1.234\nX,1e3\nX\nX,2000000\nX,\n";
        let mistakes = read(prices, "9780306406157,0\n").unwrap_err();
        let lines: Vec<_> = mistakes.iter().map(|(line, _)| line.unwrap()).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9, 10, 1], "{mistakes:?}");
        assert!(mistakes[0].1.contains("twice"), "{mistakes:?}");
    }

    #[test]
    fn half_written_list_is_a_mistake() {
        for (prices, line) in [("PACKAGE,1\nPAY_PER_LOAN,29", 2), ("PACKAGE,1\nPAY", 2), ("", 1)] {
            let mistakes = read(prices, "# none\r\n").unwrap_err();
            let (at, sentence) = mistakes.last().unwrap();
            assert_eq!(*at, Some(line), "{prices:?}: {mistakes:?}");
            assert!(sentence.contains("half written"), "{prices:?}: {mistakes:?}");
        }
    }

    #[test]
    fn missing_list_is_a_mistake() {
        let mistakes = Lists::read_now(Some(Path::new("/nowhere/prices.csv")), None).unwrap_err();
        assert!(mistakes[0].sentence.contains("/nowhere/prices.csv cannot be read"));
    }
}
