//! The demo's walkthrough: commands to try, in order, with the expected results. The README has the
//! same commands.

/// The addresses and the directory of a running demo.
pub(super) struct Endpoints<'a> {
    pub(super) base: &'a str,
    pub(super) admin: &'a str,
    pub(super) sandbox: &'a str,
    pub(super) origin: &'a str,
    pub(super) dir: &'a str,
}

/// Returns the walkthrough with these addresses.
pub(super) fn lines(endpoints: &Endpoints<'_>) -> String {
    include_str!("walkthrough.sh")
        .replace("https://localhost:8443", endpoints.base)
        .replace("http://127.0.0.1:9443", endpoints.admin)
        .replace("http://127.0.0.1:9100", endpoints.sandbox)
        .replace("http://127.0.0.1:9000", endpoints.origin)
        .replace(" demo/", &format!(" {}/", endpoints.dir))
        .replace("@demo/", &format!("@{}/", endpoints.dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_another_directory_change_no_address() {
        let (base, admin) = ("https://localhost:8443", "http://127.0.0.1:9443");
        let (sandbox, origin) = ("http://127.0.0.1:9100", "http://127.0.0.1:9000");
        let lines = lines(&Endpoints { base, admin, sandbox, origin, dir: "other" });
        assert!(lines.contains("https://localhost:8443/demo/"), "{lines}");
        assert!(!lines.contains(" demo/") && !lines.contains("@demo/"), "{lines}");
    }

    #[test]
    fn readme_has_the_same_commands() {
        let readme = include_str!("../../../README.md");
        for line in include_str!("walkthrough.sh").lines().filter(|line| line.starts_with("curl")) {
            assert!(readme.contains(line), "the README lacks: {line}");
        }
    }
}
