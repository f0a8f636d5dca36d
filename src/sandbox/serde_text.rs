//! Serde for the domain's names, which are written as plain text.
//!
//! The sandbox's wire and settings types call it through `#[serde(with = …)]`; it calls nothing of
//! ours. A text that is not such a name is refused with the name's own sentence.

use std::fmt::Display;
use std::str::FromStr;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// Writes a name as text.
pub(super) fn serialize<T: Display, S: Serializer>(
    name: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

/// Reads a name from text.
pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|error| D::Error::custom(format!("\"{text}\": {error}")))
}

/// The same for a name that may be absent.
pub(super) mod option {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes a name as text, or null.
    pub(in super::super) fn serialize<T: Display, S: Serializer>(
        name: &Option<T>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match name {
            Some(name) => serializer.collect_str(name),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a name from text; null is none.
    pub(in super::super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let Some(text) = Option::<String>::deserialize(deserializer)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(name) => Ok(Some(name)),
            Err(error) => Err(D::Error::custom(format!("\"{text}\": {error}"))),
        }
    }
}
