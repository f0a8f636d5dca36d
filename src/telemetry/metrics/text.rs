//! Parses the text that the registry renders, for the parts that read metrics in the process.

/// The value of one series.
#[derive(Debug)]
pub(in crate::telemetry) struct Sample<'t> {
    pub(in crate::telemetry) name: &'t str,
    /// The names and values of the labels, in order.
    pub(in crate::telemetry) labels: Vec<(&'t str, String)>,
    pub(in crate::telemetry) value: &'t str,
}

/// Returns the samples of a text. A line that cannot be read is left out.
pub(in crate::telemetry) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

/// Parses one line: `name{label="value",…} 1`.
fn sample(line: &str) -> Option<Sample<'_>> {
    if line.starts_with('#') {
        return None;
    }
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        None => (series, Vec::new()),
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)?),
    };
    Some(Sample { name, labels, value })
}

fn parse_labels(mut text: &str) -> Option<Vec<(&str, String)>> {
    let mut labels = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"")?;
        let (mut value, mut characters) = (String::new(), rest.char_indices());
        let end = loop {
            match characters.next()? {
                (end, '"') => break end,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.push((name, value));
        text = rest.get(end..)?.strip_prefix('"')?;
        text = text.strip_prefix(',').unwrap_or(text);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_parsed_with_escapes() {
        let parsed = sample(r#"a_total{one="1",two="a\"b\\c\nd, }"} 7"#).unwrap();
        let two = ("two", "a\"b\\c\nd, }".to_owned());
        assert_eq!((parsed.name, parsed.value), ("a_total", "7"));
        assert_eq!(parsed.labels, [("one", "1".to_owned()), two]);
        for wrong in ["", "a", "# HELP a b", "a{b=\"c} 1", "a{b} 1"] {
            assert!(sample(wrong).is_none(), "{wrong}");
        }
    }
}
