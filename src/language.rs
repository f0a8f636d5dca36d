//! The languages of texts for people, and sentences in all of them.
//!
//! A sentence has a member for each language, so a missing translation does not compile.

/// A language of the console and of explanations.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Language {
    /// English, the language of the APIs.
    #[default]
    English,
    /// Norwegian bokmål.
    Norwegian,
}

impl Language {
    /// All languages.
    pub const ALL: [Language; 2] = [Language::English, Language::Norwegian];

    /// Returns the language's tag (BCP 47).
    pub fn tag(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::Norwegian => "nb",
        }
    }

    /// Returns the language with this tag, ignoring its region. All kinds of Norwegian are bokmål.
    pub fn of_tag(tag: &str) -> Option<Language> {
        match tag.split('-').next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "en" => Some(Language::English),
            "nb" | "no" | "nn" => Some(Language::Norwegian),
            _ => None,
        }
    }

    /// Returns the language that a field Accept-Language prefers (RFC 9110 §12.5.4).
    pub fn preferred(accept: &str) -> Option<Language> {
        let weighted = accept.split(',').take(MAX_RANGES).filter_map(|range| {
            let (tag, parameter) = range.split_once(';').unwrap_or((range, "q=1"));
            let weight = parameter.trim().strip_prefix("q=")?.parse::<f32>().ok()?;
            let weight = Some(weight).filter(|weight| (0.0..=1.0).contains(weight))?;
            Some((Language::of_tag(tag.trim())?, weight))
        });
        let accepted = weighted.filter(|(_, weight)| *weight > 0.0);
        // Of equal weights the first one wins.
        accepted
            .reduce(|best, other| if other.1 > best.1 { other } else { best })
            .map(|(language, _)| language)
    }
}

/// The most ranges of a field that are read.
const MAX_RANGES: usize = 20;

/// A fixed sentence in each language.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Sentence {
    /// In English.
    pub english: &'static str,
    /// In Norwegian bokmål.
    pub norwegian: &'static str,
}

impl Sentence {
    /// Returns the sentence in a language.
    pub const fn text(&self, language: Language) -> &'static str {
        match language {
            Language::English => self.english,
            Language::Norwegian => self.norwegian,
        }
    }
}

/// Returns whether a character is a control character, or is invisible and affects how text is
/// shown: bidirectional controls (CWE-451), joiners, marks, tags, line separators.
pub(crate) fn is_unprintable(character: char) -> bool {
    let is_invisible = matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    character.is_control() || is_invisible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn language_with_the_highest_weight_is_preferred() {
        for (accept, language) in [
            ("nb-NO,nb;q=0.9,en;q=0.8", Some(Language::Norwegian)),
            ("en-GB,nb;q=0.9", Some(Language::English)),
            ("de,nn;q=0.2,en;q=0.1", Some(Language::Norwegian)),
            ("no;q=0,en;q=0.1", Some(Language::English)),
            ("en;q=NaN,no;q=0.1", Some(Language::Norwegian)),
            ("de", None),
            ("", None),
        ] {
            assert_eq!(Language::preferred(accept), language, "{accept}");
        }
    }
}
