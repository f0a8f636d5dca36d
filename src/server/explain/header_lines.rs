//! Header fields of a described request, as people write them: one to a line.

use http::{HeaderMap, HeaderName, HeaderValue};

/// The most header fields of a request.
pub(crate) const MAX_FIELDS: usize = 100;

/// Why lines are no header fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum WrongFields {
    /// There are more than [`MAX_FIELDS`].
    TooMany,
    /// A line is not like `Name: value`.
    Malformed,
}

/// Parses lines like `Name: value`. The values may have a credential, so no log shows them.
///
/// # Errors
/// [`WrongFields`].
pub(crate) fn parse_fields<'a>(
    lines: impl IntoIterator<Item = &'a str>,
) -> Result<HeaderMap, WrongFields> {
    let mut fields = HeaderMap::new();
    for (number, line) in lines.into_iter().enumerate() {
        if number >= MAX_FIELDS {
            return Err(WrongFields::TooMany);
        }
        let (name, value) = line.split_once(':').ok_or(WrongFields::Malformed)?;
        let name = HeaderName::from_bytes(name.as_bytes());
        let value = HeaderValue::from_str(value.trim());
        let (Ok(name), Ok(mut value)) = (name, value) else { return Err(WrongFields::Malformed) };
        value.set_sensitive(true);
        fields.append(name, value);
    }
    Ok(fields)
}
