//! Path template at the origin: fixed text and the parameters of the route's pattern.

use matchit::Params;

use super::overlap::Shape;
use crate::path::FilePath;

/// The initial capacity for a path, in bytes; enough for most.
const INITIAL_CAPACITY: usize = 128;

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
    /// Returns the paths that the template can produce below a base path.
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
    /// Parses a template. All its parameters must be in the pattern.
    pub(super) fn parse(to: &str, pattern: &str) -> Result<Template, String> {
        let segments: Result<Vec<_>, String> =
            to.split('/').map(|segment| parts(segment, pattern)).collect();
        Ok(Template { segments: segments? })
    }

    /// Returns the path at the origin. The value of a `{*name}` parameter keeps its segments. None
    /// if a segment is empty or dots, which is unsafe to request from a storage.
    pub(super) fn fill(&self, params: &Params<'_, '_>) -> Option<FilePath> {
        let mut filled = String::with_capacity(INITIAL_CAPACITY);
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
