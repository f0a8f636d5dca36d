//! The monthly statement of each library as a page to print. It needs no other file.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Language;
use super::statement::{Line, Statement};
use crate::spreadsheet::nok;

/// A4, with the head of a table on each page and no row divided.
const STYLE: &str = "\
@page { size: A4; margin: 18mm 15mm; }
body { font: 10.5pt/1.45 system-ui, sans-serif; color: #16181d; background: #fff; margin: 0 auto; \
max-width: 60rem; padding: 1.5rem; }
section + section { break-before: page; }
h1 { font-size: 18pt; margin: 0 0 .2em; }
h2 { font-size: 12.5pt; margin: 1.8em 0 .4em; break-after: avoid; }
p { margin: 0 0 .6em; max-width: 42rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
thead { display: table-header-group; }
tr { break-inside: avoid; }
th, td { text-align: left; padding: .3em .6em .3em 0; border-bottom: .5pt solid #b9bec8; \
vertical-align: top; overflow-wrap: anywhere; }
th { border-bottom: 1pt solid #16181d; font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
tfoot td { border-bottom: 0; border-top: 1pt solid #16181d; font-weight: 600; }
@media print { body { padding: 0; max-width: none; } }
@media (max-width: 30rem) { body { padding: 1rem .75rem; font-size: 9.5pt; } }
";

/// The words of a statement.
struct Words {
    lang: &'static str,
    title: &'static str,
    month: &'static str,
    nothing: &'static str,
    reported: &'static str,
    none_reported: &'static str,
    corrections: &'static str,
    corrections_note: &'static str,
    open: &'static str,
    open_note: &'static str,
    columns: [&'static str; 6],
    reason: &'static str,
    total: &'static str,
}

const ENGLISH: Words = Words {
    lang: "en",
    title: "Usage reported to Bokbasen",
    month: "Month",
    nothing: "Nothing was due in this month.",
    reported: "Reported",
    none_reported: "Nothing was reported.",
    corrections: "To be settled by a person",
    corrections_note: "These are not part of the total. An unknown report may have reached \
        Bokbasen; it is not sent a second time.",
    open: "Not sent yet",
    open_note: "These will be sent, and are not part of the total.",
    columns: ["Date", "Title (ISBN)", "Licence", "Read", "Loan", "NOK"],
    reason: "State",
    total: "Total",
};

const NORWEGIAN: Words = Words {
    lang: "nb",
    title: "Bruk rapportert til Bokbasen",
    month: "Måned",
    nothing: "Ingenting skulle rapporteres denne måneden.",
    reported: "Rapportert",
    none_reported: "Ingenting er rapportert.",
    corrections: "Må avklares av en person",
    corrections_note: "Disse er ikke med i summen. En rapport med ukjent utfall kan ha nådd \
        Bokbasen; den sendes ikke en gang til.",
    open: "Ikke sendt ennå",
    open_note: "Disse blir sendt, og er ikke med i summen.",
    columns: ["Dato", "Tittel (ISBN)", "Lisens", "Lest", "Lån", "NOK"],
    reason: "Status",
    total: "Sum",
};

impl Words {
    fn of(language: Language) -> &'static Words {
        match language {
            Language::En => &ENGLISH,
            Language::Nb => &NORWEGIAN,
        }
    }

    /// Formats a number as people of the language write it.
    fn number(&self, text: &str) -> String {
        if self.lang == "nb" { text.replace('.', ",") } else { text.to_owned() }
    }

    /// Returns what a state means.
    fn state<'a>(&self, state: &'a str) -> &'a str {
        let is_norwegian = self.lang == "nb";
        match (state, is_norwegian) {
            ("unknown", false) => "Unknown whether Bokbasen has it",
            ("unknown", true) => "Ukjent om Bokbasen har den",
            ("rejected", false) => "Refused by Bokbasen",
            ("rejected", true) => "Avvist av Bokbasen",
            ("unpriced", false) => "No price",
            ("unpriced", true) => "Mangler pris",
            ("unmeasured", false) => "Not known how much was read",
            ("unmeasured", true) => "Ukjent hvor mye som er lest",
            ("unidentified", false) => "Unknown licence",
            ("unidentified", true) => "Ukjent lisens",
            _ => state,
        }
    }
}

pub(super) fn of(statement: &Statement, language: Language) -> String {
    let words = Words::of(language);
    let libraries = statement.by_library();
    let page = html! {
        (DOCTYPE)
        html lang=(words.lang) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (words.title) " " (statement.month) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    @if libraries.is_empty() {
                        section {
                            h1 { (words.title) }
                            p { (words.month) ": " (statement.month) }
                            p { (words.nothing) }
                        }
                    }
                    @for (library, statement) in &libraries {
                        (section(words, library, statement))
                    }
                }
            }
        }
    };
    page.into_string()
}

fn section(words: &Words, library: &str, statement: &Statement) -> Markup {
    let reported: Vec<&Line> = statement.reported().collect();
    let corrections: Vec<&Line> = statement.corrections().collect();
    let is_open = |line: &&Line| matches!(line.state.as_str(), "due" | "sending");
    let open: Vec<&Line> = statement.lines.iter().filter(is_open).collect();
    let total: u64 = reported.iter().filter_map(|line| line.price()).sum();
    html! {
        section {
            h1 { (words.title) }
            p { (library) " · " (words.month) ": " (statement.month) }
            h2 { (words.reported) }
            @if reported.is_empty() {
                p { (words.none_reported) }
            } @else {
                (table(words, &reported, Some(total)))
            }
            @if !open.is_empty() {
                h2 { (words.open) }
                p { (words.open_note) }
                (table(words, &open, None))
            }
            @if !corrections.is_empty() {
                h2 { (words.corrections) }
                p { (words.corrections_note) }
                (corrections_table(words, &corrections))
            }
        }
    }
}

fn table(words: &Words, lines: &[&Line], total: Option<u64>) -> Markup {
    let [date, title, licence, read, loan, price] = words.columns;
    html! {
        table {
            thead {
                tr {
                    th scope="col" { (date) }
                    th scope="col" { (title) }
                    th scope="col" { (licence) }
                    th scope="col" class="number" { (read) }
                    th scope="col" { (loan) }
                    th scope="col" class="number" { (price) }
                }
            }
            tbody {
                @for line in lines {
                    tr {
                        td { (line.date) }
                        td { (line.isbn) }
                        td { (line.licence_type) }
                        td class="number" { (percent(words, line)) }
                        td { (line.loan) }
                        td class="number" {
                            (words.number(line.price.as_deref().unwrap_or("–")))
                        }
                    }
                }
            }
            @if let Some(total) = total {
                tfoot {
                    tr {
                        td colspan="5" { (words.total) }
                        td class="number" { (words.number(&nok(total))) }
                    }
                }
            }
        }
    }
}

fn corrections_table(words: &Words, lines: &[&Line]) -> Markup {
    let [date, title, licence, _, loan, _] = words.columns;
    html! {
        table {
            thead {
                tr {
                    @for name in [date, title, licence, words.reason, loan] {
                        th scope="col" { (name) }
                    }
                }
            }
            tbody {
                @for line in lines {
                    tr {
                        td { (line.date) }
                        td { (line.isbn) }
                        td { (line.licence_type) }
                        td {
                            (words.state(&line.state))
                            @if let Some(note) = &line.note { br; (note) }
                        }
                        td { (line.loan) }
                    }
                }
            }
        }
    }
}

fn percent(words: &Words, line: &Line) -> String {
    line.percent().map_or_else(|| "–".to_owned(), |read| format!("{} %", words.number(&read)))
}

#[cfg(test)]
mod tests {
    use super::super::statement::tests::statement;
    use super::*;

    #[test]
    fn statement_is_escaped_and_in_both_languages() {
        let english = of(&statement(), Language::En);
        assert!(english.contains("&lt;b&gt;+1&lt;/b&gt;") && !english.contains("<b>"));
        assert!(english.contains(">30.05<") && english.contains("No price"), "{english}");
        assert!(english.contains("To be settled by a person"));
        let norwegian = of(&statement(), Language::Nb);
        assert!(norwegian.contains(">30,05<") && norwegian.contains("Mangler pris"));
        assert!(norwegian.contains("lang=\"nb\""));
    }

    #[test]
    fn month_without_reports_has_a_page() {
        let empty = Statement::new("2026-10".to_owned(), Vec::new(), Vec::new());
        assert!(of(&empty, Language::En).contains("Nothing was due"));
    }
}
