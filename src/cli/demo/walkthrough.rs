//! What to try with the demo, in order, and what to expect: the same lines as in the README.

/// Where everything is.
pub(super) struct Places<'a> {
    pub(super) base: &'a str,
    pub(super) admin: &'a str,
    pub(super) sandbox: &'a str,
    pub(super) origin: &'a str,
    pub(super) dir: &'a str,
}

/// The lines for these places.
pub(super) fn lines(places: &Places<'_>) -> String {
    include_str!("tried.sh")
        .replace("https://localhost:8443", places.base)
        .replace("http://127.0.0.1:9443", places.admin)
        .replace("http://127.0.0.1:9100", places.sandbox)
        .replace("http://127.0.0.1:9000", places.origin)
        .replace("demo/", &format!("{}/", places.dir))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_has_the_same_lines() {
        let readme = include_str!("../../../README.md");
        for line in include_str!("tried.sh").lines().filter(|line| line.starts_with("curl")) {
            assert!(readme.contains(line), "the README lacks: {line}");
        }
    }
}
