//! Expressions of PromQL: the metrics that they name, and the variables of Grafana in them.

use std::collections::BTreeSet;

/// Words that stand where a metric could.
const KEYWORDS: [&str; 9] =
    ["and", "or", "unless", "bool", "offset", "by", "without", "inf", "nan"];
/// Words before a list of labels.
const LABEL_LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Returns an expression with values for the variables of the dashboard.
pub(super) fn with_variables(expression: &str) -> String {
    expression.replace("$__rate_interval", "30s").replace("$instance", ".*")
}

/// Returns the names of the metrics in an expression.
pub(super) fn metrics_of(expression: &str) -> BTreeSet<String> {
    let expression = with_variables(expression);
    let mut names = BTreeSet::new();
    let mut rest = expression.as_str();
    while let Some(first) = rest.chars().next() {
        rest = match first {
            '{' => after(rest, '}'),
            '[' => after(rest, ']'),
            '"' => after(&rest[1..], '"'),
            _ if first.is_ascii_alphabetic() || first == '_' || first == ':' => {
                let is_part =
                    |letter: char| letter.is_ascii_alphanumeric() || "_:".contains(letter);
                let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
                let (word, behind) = rest.split_at(end);
                let behind = behind.trim_start();
                if LABEL_LISTS.contains(&word) {
                    after(behind, ')')
                } else {
                    let is_called =
                        ["(", "by (", "without ("].iter().any(|then| behind.starts_with(then));
                    if !is_called && !KEYWORDS.contains(&word) {
                        names.insert(word.to_owned());
                    }
                    behind
                }
            }
            _ if first.is_ascii_digit() => rest
                .trim_start_matches(|letter: char| letter.is_ascii_alphanumeric() || letter == '.'),
            _ => &rest[first.len_utf8()..],
        };
    }
    names
}

fn after(text: &str, end: char) -> &str {
    let mut is_quoted = false;
    for (at, letter) in text.char_indices() {
        is_quoted ^= letter == '"' && end != '"';
        if letter == end && !is_quoted {
            return &text[at + letter.len_utf8()..];
        }
    }
    ""
}

#[test]
fn metrics_are_found_in_expressions() {
    let names = |expression: &str| metrics_of(expression).into_iter().collect::<Vec<_>>();
    let quantile = "histogram_quantile(0.99, sum by (via, le) (rate(a_bucket{x=~\"}b\"}[5m])))";
    assert_eq!(names(quantile), ["a_bucket"]);
    assert_eq!(names("(sum(rate(a[1h])) or vector(0)) / on (job) b{c=\"d\"}"), ["a", "b"]);
    assert_eq!(
        names("14.4 * loangate:x:ratio1h offset 1d > 1e3 and up == 1"),
        ["loangate:x:ratio1h", "up"]
    );
}
