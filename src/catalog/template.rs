//! Where a file is at its origin: a template of fixed text and of the parts that the pattern names.

use matchit::Params;

use super::overlap::Shape;
use crate::path::FilePath;

/// Room for most paths at an origin.
const LENGTH: usize = 128;

/// A template, segment by segment.
#[derive(Debug)]
pub(super) struct Template {
    segments: Vec<Vec<Part>>,
}

#[derive(Debug)]
enum Part {
    Text(String),
    Named(String),
}

impl Template {
    /// The paths that it can produce, below a base path.
    pub(super) fn shape(&self, base: &str, pattern: &str) -> Shape {
        let mut shape = Shape::default();
        shape.text(base);
        for (number, parts) in self.segments.iter().enumerate() {
            if number > 0 {
                shape.text("/");
            }
            for part in parts {
                match part {
                    Part::Text(text) => shape.text(text),
                    Part::Named(name) if name == "isbn" => shape.isbn(),
                    Part::Named(name) => shape.anything(pattern.contains(&format!("{{*{name}}}"))),
                }
            }
        }
        shape
    }
}

impl Template {
    /// Reads a template whose names must all be in the pattern.
    pub(super) fn parse(to: &str, pattern: &str) -> Result<Template, String> {
        let segments: Result<Vec<_>, String> =
            to.split('/').map(|segment| parts(segment, pattern)).collect();
        Ok(Template { segments: segments? })
    }

    /// The path at the origin. A part that spans segments stays so. None where a segment comes out
    /// empty or as dots, which no storage could be asked for safely.
    pub(super) fn fill(&self, params: &Params<'_, '_>) -> Option<FilePath> {
        let mut filled = String::with_capacity(LENGTH);
        for (number, parts) in self.segments.iter().enumerate() {
            if number > 0 {
                filled.push('/');
            }
            filled.extend(parts.iter().map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Named(name) => params.get(name).unwrap_or_default(),
            }));
        }
        FilePath::of_decoded(&filled)
    }
}

fn parts(segment: &str, pattern: &str) -> Result<Vec<Part>, String> {
    if segment.is_empty() || segment == "." || segment == ".." {
        return Err("a segment is empty, . or ... Write a path like {isbn}/{file}".to_owned());
    }
    let mut parts = Vec::new();
    let mut rest = segment;
    while let Some((text, after)) = rest.split_once('{') {
        let (name, after) =
            after.split_once('}').ok_or("a { has no }. Write a path like {isbn}/{file}")?;
        if !pattern.contains(&format!("{{{name}}}")) && !pattern.contains(&format!("{{*{name}}}")) {
            return Err(format!("{{{name}}} is not in the route's path. Write a name that is"));
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        parts.push(Part::Named(name.to_owned()));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}
