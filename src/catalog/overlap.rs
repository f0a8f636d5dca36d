//! Whether two templates can come out as the same path: then an open route would open a title's
//! file.
//!
//! Both are read as simple patterns over characters, and walked side by side.

use std::collections::HashSet;

/// What stands in one place of a pattern.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    Exactly(char),
    Digit,
    /// Any character of a segment.
    InSegment,
    Anything,
}

/// A place, taken once or as often as wanted.
#[derive(Clone, Copy, Debug)]
struct Place {
    class: Class,
    repeats: bool,
}

/// The paths that a template can come out as.
#[derive(Debug, Default)]
pub(super) struct Shape(Vec<Place>);

impl Shape {
    pub(super) fn text(&mut self, text: &str) {
        self.0.extend(
            text.chars()
                .map(|character| Place { class: Class::Exactly(character), repeats: false }),
        );
    }

    /// Thirteen digits.
    pub(super) fn isbn(&mut self) {
        self.0.extend([Place { class: Class::Digit, repeats: false }; 13]);
    }

    /// One character or more.
    pub(super) fn anything(&mut self, spans_segments: bool) {
        let class = if spans_segments { Class::Anything } else { Class::InSegment };
        self.0.extend([Place { class, repeats: false }, Place { class, repeats: true }]);
    }

    /// Whether some path has both shapes.
    pub(super) fn meets(&self, other: &Shape) -> bool {
        let mut seen = HashSet::from([(0, 0)]);
        let mut open = vec![(0, 0)];
        while let Some((a, b)) = open.pop() {
            let (here, there) = (self.0.get(a), other.0.get(b));
            let mut ways = Vec::with_capacity(4);
            match (here, there) {
                (None, None) => return true,
                (here, there) => {
                    let (skip_a, skip_b) = (
                        here.is_some_and(|place| place.repeats),
                        there.is_some_and(|place| place.repeats),
                    );
                    ways.extend(skip_a.then_some((a + 1, b)));
                    ways.extend(skip_b.then_some((a, b + 1)));
                    if let (Some(here), Some(there)) = (here, there)
                        && share_a_character(here.class, there.class)
                    {
                        ways.push((
                            a + usize::from(!here.repeats),
                            b + usize::from(!there.repeats),
                        ));
                    }
                }
            }
            open.extend(ways.into_iter().filter(|way| seen.insert(*way)));
        }
        false
    }
}

fn share_a_character(one: Class, other: Class) -> bool {
    match (one, other) {
        (Class::Exactly(one), Class::Exactly(other)) => one == other,
        (Class::Exactly(one), Class::Digit) | (Class::Digit, Class::Exactly(one)) => {
            one.is_ascii_digit()
        }
        (Class::Exactly(one), Class::InSegment) | (Class::InSegment, Class::Exactly(one)) => {
            one != '/'
        }
        _ => true,
    }
}
