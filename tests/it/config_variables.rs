//! Environment variables that override the configuration, and how two configurations are compared.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn loangate(arguments: &[&str], directory: &Path, variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loangate"))
        .args(arguments)
        .current_dir(directory)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn initialised() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    assert!(loangate(&["init", "--dir", "."], directory.path(), &[]).status.success());
    directory
}

/// Returns what `check --print` prints.
fn printed(directory: &Path, variables: &[(&str, &str)]) -> String {
    let output = loangate(&["check", "--print"], directory, variables);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn variables_override_keys_of_every_kind() {
    let directory = initialised();
    let variables = [
        ("LOANGATE__SERVER__DRAIN", "90s"),
        ("LOANGATE__LIMITS__CONNECTIONS", "500"),
        ("LOANGATE__LISTEN__ADMIN_SOCKET", "admin.sock"),
        ("LOANGATE__ADMIN__OPEN_METRICS", "true"),
        ("LOANGATE__CORS__ORIGINS", "[\"https://app.example.no\"]"),
        // A list, but the file has a text.
        ("LOANGATE__LISTEN__PUBLIC", "[\"127.0.0.1:8443\", \"[::1]:8443\"]"),
        ("LOANGATE__ORIGINS__0__URL", "https://files.example.no/"),
        ("LOANGATE__READERS__JWT__CLAIMS__BORROWER", "card"),
        // A number, but the file has a text.
        ("LOANGATE__LENDING__CLIENT_ID", "12345"),
        ("LOANGATE__LENDING__CLIENT_SECRET", "quite-a-secret"),
        ("LOANGATE__PRIVACY__PSEUDONYM_KEY", "{ file = \"certs/pseudonym.key\" }"),
    ];
    let shown = printed(directory.path(), &variables);
    for line in [
        "drain = \"90s\"  # LOANGATE__SERVER__DRAIN",
        "connections = 500  # LOANGATE__LIMITS__CONNECTIONS",
        "admin_socket = \"admin.sock\"  # LOANGATE__LISTEN__ADMIN_SOCKET",
        "open_metrics = true  # LOANGATE__ADMIN__OPEN_METRICS",
        "public = [\"127.0.0.1:8443\", \"[::1]:8443\"]  # LOANGATE__LISTEN__PUBLIC",
        "origins = [\"https://app.example.no\"]  # LOANGATE__CORS__ORIGINS",
        "url = \"https://files.example.no/\"  # LOANGATE__ORIGINS__0__URL",
        "borrower = \"card\"  # LOANGATE__READERS__JWT__CLAIMS__BORROWER",
        "client_id = \"12345\"  # LOANGATE__LENDING__CLIENT_ID",
        "client_secret = \"…\"  # LOANGATE__LENDING__CLIENT_SECRET",
        "pseudonym_key = { file = \"certs/pseudonym.key\" }  # LOANGATE__PRIVACY__PSEUDONYM_KEY",
        "secret = { file = \"certs/link.key\" }",
    ] {
        assert!(shown.lines().any(|other| other == line), "{line} is missing in\n{shown}");
    }
    assert!(!shown.contains("quite-a-secret"), "{shown}");
    // A secret in a variable is not one in the file, which others may read.
    let checked = loangate(&["check"], directory.path(), &variables);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert!(!text(&checked.stdout).contains("contains the secret"), "{}", text(&checked.stdout));
}

#[test]
fn what_is_printed_is_the_same_configuration() {
    let directory = initialised();
    let variables =
        [("LOANGATE__SERVER__DRAIN", "90s"), ("LOANGATE__CORS__ORIGINS", "[\"https://a.no\"]")];
    fs::write(directory.path().join("printed.toml"), printed(directory.path(), &variables))
        .unwrap();
    let arguments = ["check", "--diff", "config.toml", "printed.toml"];
    let same = loangate(&arguments, directory.path(), &variables);
    let expected = "The configurations set the same keys to the same values.\n";
    assert_eq!(text(&same.stdout), expected, "{}", text(&same.stderr));
}

#[test]
fn mistake_in_a_variable_names_the_variable() {
    let directory = initialised();
    let cases = [
        ("LOANGATE__SERVER__DRAIN", "soon", "server.drain: \"soon\" is not a duration"),
        ("LOANGATE__SERVER__DRIAN", "9s", "server.drian: there is no such key. Write drain"),
        ("LOANGATE__SURPRISE__X", "1", "surprise: there is no such key"),
        ("LOANGATE__ORIGINS__7__URL", "x", "origins[7].url: origins is a list with 1 entries"),
        ("LOANGATE__ORIGINS__URL", "x", "origins.url: origins is a list with 1 entries"),
        ("LOANGATE__ORIGINS__0__URL", "no url", "origins[0].url: "),
        ("LOANGATE__LISTEN__PUBLIC__PORT", "1", "listen.public.port: public is no table"),
        ("LOANGATE__", "1", ": the variable names no key"),
        ("LOANGATE__SERVER__", "1", ": the variable names no key"),
        ("LOANGATE__TLS__CERTIFICATE", "certs/none.pem", "tls.certificate: "),
    ];
    for (variable, value, sentence) in cases {
        let output = loangate(&["check"], directory.path(), &[(variable, value)]);
        let errors = text(&output.stderr);
        assert!(!output.status.success(), "{variable}");
        let named = errors.lines().find(|line| line.contains(&format!("{variable}: ")));
        assert!(named.is_some_and(|line| line.contains(sentence)), "{variable}: {errors}");
    }
}

#[test]
fn comparison_says_what_a_reload_changes_and_shows_no_secret() {
    let directory = initialised();
    let old = fs::read_to_string(directory.path().join("config.toml")).unwrap();
    let new = old
        .replace("\"127.0.0.1:9443\"", "\"127.0.0.1:9444\"\nadmin_socket = \"admin.sock\"")
        .replace("\"127.0.0.1:8443\"", "[\"127.0.0.1:8443\", \"[::1]:8443\"]")
        .replace("client_id = \"sandbox-client\"", "client_id = \"mine\"")
        .replace("{ file = \"certs/link.key\" }", "\"0123456789abcdef0123456789abcdef\"");
    let newer = new.replace("0123456789abcdef\"", "0123456789abcdee\"");
    for (file, text) in [("new.toml", &new), ("newer.toml", &newer)] {
        fs::write(directory.path().join(file), text).unwrap();
    }
    let compared = |arguments: &[&str]| {
        let output = loangate(arguments, directory.path(), &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let shown = compared(&["check", "--diff", "config.toml", "new.toml"]);
    let expected = "A reload changes:\n  \
                    lending.client_id: \"sandbox-client\" -> \"mine\"\n  \
                    readers.links.keys[0].secret: { file = \"certs/link.key\" } -> \"…\"\n\
                    These need a restart:\n  \
                    listen.admin: \"127.0.0.1:9443\" -> \"127.0.0.1:9444\"\n  \
                    listen.admin_socket: set to \"admin.sock\"\n  \
                    listen.public: \"127.0.0.1:8443\" -> [\"127.0.0.1:8443\", \"[::1]:8443\"]\n";
    assert_eq!(shown, expected);
    let shown = compared(&["check", "--diff", "new.toml", "newer.toml"]);
    assert_eq!(shown, "A reload changes:\n  readers.links.keys[0].secret: another secret\n");
    let shown = compared(&["check", "--json", "--diff", "config.toml", "new.toml"]);
    let changes: Vec<Value> = serde_json::from_str(&shown).unwrap();
    let restart = changes.iter().filter(|change| change["needs_restart"] == true);
    let restart: Vec<&Value> = restart.map(|change| &change["key"]).collect();
    assert_eq!(restart, ["listen.admin", "listen.admin_socket", "listen.public"]);
}
