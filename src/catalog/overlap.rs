//! Overlap test for two templates: an open route that can produce the path of a gated file would
//! serve it without a loan.
//!
//! Each template becomes a simple character pattern. A search over pairs of positions finds a
//! common path.

use std::collections::HashSet;

/// The characters that one position of a pattern matches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Class {
    Exactly(char),
    Digit,
    /// Any character of a segment.
    InSegment,
    Anything,
}

/// A position of a pattern, which matches once or, if it repeats, any number of times.
#[derive(Clone, Copy, Debug)]
struct Position {
    class: Class,
    repeats: bool,
}

/// The set of paths that a template can produce.
#[derive(Debug, Default)]
pub(super) struct Shape(Vec<Position>);

impl Shape {
    pub(super) fn text(&mut self, text: &str) {
        self.0.extend(
            text.chars()
                .map(|character| Position { class: Class::Exactly(character), repeats: false }),
        );
    }

    /// Appends the thirteen digits of an ISBN.
    pub(super) fn isbn(&mut self) {
        self.0.extend([Position { class: Class::Digit, repeats: false }; 13]);
    }

    /// Appends one or more characters.
    pub(super) fn anything(&mut self, spans_segments: bool) {
        let class = if spans_segments { Class::Anything } else { Class::InSegment };
        self.0.extend([Position { class, repeats: false }, Position { class, repeats: true }]);
    }

    /// Whether a path exists in both sets.
    pub(super) fn overlaps(&self, other: &Shape) -> bool {
        let mut seen = HashSet::from([(0, 0)]);
        let mut pending = vec![(0, 0)];
        while let Some((a, b)) = pending.pop() {
            let (here, there) = (self.0.get(a), other.0.get(b));
            let mut next = Vec::with_capacity(4);
            match (here, there) {
                (None, None) => return true,
                (here, there) => {
                    let (skip_a, skip_b) = (
                        here.is_some_and(|position| position.repeats),
                        there.is_some_and(|position| position.repeats),
                    );
                    next.extend(skip_a.then_some((a + 1, b)));
                    next.extend(skip_b.then_some((a, b + 1)));
                    if let (Some(here), Some(there)) = (here, there)
                        && classes_overlap(here.class, there.class)
                    {
                        next.push((
                            a + usize::from(!here.repeats),
                            b + usize::from(!there.repeats),
                        ));
                    }
                }
            }
            pending.extend(next.into_iter().filter(|pair| seen.insert(*pair)));
        }
        false
    }
}

fn classes_overlap(one: Class, other: Class) -> bool {
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
