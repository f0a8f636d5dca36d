//! Completions for shells and manual pages: the programs that read them accept them.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::external_program::output_text;
use crate::support::program;

fn loangate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loangate"));
    command.args(arguments).env("SOURCE_DATE_EPOCH", "1767225600").output().unwrap()
}

/// Returns the commands that the help lists, with those below them: `token reader`.
fn commands(above: &str) -> Vec<String> {
    let arguments: Vec<&str> = above.split_whitespace().chain(["--help"]).collect();
    let help = String::from_utf8(loangate(&arguments).stdout).unwrap();
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let listed = listed.take_while(|line| line.starts_with("  ")).filter_map(|line| {
        // A continued description has more space in front.
        let name = line.strip_prefix("  ").filter(|name| !name.starts_with(' '))?;
        name.split_whitespace().next()
    });
    let mut found = Vec::new();
    for name in listed.filter(|name| *name != "help") {
        let command = format!("{above} {name}").trim().to_owned();
        found.push(command.clone());
        found.extend(commands(&command));
    }
    found
}

fn completions(shell: &str, directory: &Path) -> std::path::PathBuf {
    let output = loangate(&["completions", shell]);
    assert!(output.status.success(), "{}", output_text(&output));
    let file = directory.join(shell);
    std::fs::write(&file, output.stdout).unwrap();
    file
}

/// Runs a shell that completes `loangate h`, and returns what it printed.
fn completed(shell: &Path, arguments: &[&str], script: &Path) -> String {
    let output = Command::new(shell).args(arguments).arg(script).output().unwrap();
    assert!(output.status.success(), "{shell:?}: {}", output_text(&output));
    output_text(&output)
}

#[test]
fn bash_completes_commands() {
    let directory = tempfile::tempdir().unwrap();
    let Some(bash) = program("bash", "bash") else { return };
    let script = completions("bash", directory.path());
    assert_eq!(completed(&bash, &["-n"], &script), "");
    let complete = "set -eu; . $0; COMP_WORDS=(loangate h) COMP_CWORD=1; \
                    _loangate loangate h loangate; echo \"${COMPREPLY[@]}\"";
    assert_eq!(completed(&bash, &["-c", complete], &script).trim(), "healthcheck help");
}

#[test]
fn zsh_accepts_completions() {
    let directory = tempfile::tempdir().unwrap();
    let Some(zsh) = program("zsh", "zsh") else { return };
    let script = completions("zsh", directory.path());
    assert_eq!(completed(&zsh, &["-n"], &script), "");
    let load = "autoload -U compinit; compinit -D; . $0; print $_comps[loangate]";
    assert_eq!(completed(&zsh, &["-f", "-c", load], &script).trim(), "_loangate");
}

#[test]
fn fish_completes_commands() {
    let directory = tempfile::tempdir().unwrap();
    let Some(fish) = program("fish", "fish") else { return };
    let script = completions("fish", directory.path());
    assert_eq!(completed(&fish, &["--no-execute"], &script), "");
    let complete = "source $argv[1]; complete --do-complete 'loangate healthc'";
    let said = completed(&fish, &["--no-config", "-c", complete], &script);
    assert!(said.starts_with("healthcheck\t"), "{said}");
}

#[test]
fn every_command_has_a_manual_page_without_warnings() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    let output = loangate(&["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", output_text(&output));
    let written: BTreeSet<String> = std::fs::read_dir(&pages)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let expected = commands("").into_iter().chain([String::new()]);
    let expected: BTreeSet<String> = expected
        .map(|command| format!("loangate {command}").trim().replace(' ', "-") + ".1")
        .collect();
    assert!(expected.contains("loangate-token-reader.1") && expected.len() > 30, "{expected:?}");
    assert_eq!(written, expected);
    let text = std::fs::read_to_string(pages.join("loangate-healthcheck.1")).unwrap();
    assert!(text.contains("2026-01-01") && text.contains("/readyz"), "{text}");

    let Some(mandoc) = program("mandoc", "mandoc") else { return };
    let mut lint = Command::new(mandoc);
    lint.args(["-T", "lint", "-W", "warning"]).args(written.iter().map(|page| pages.join(page)));
    let output = lint.output().unwrap();
    assert!(output.status.success(), "{}", output_text(&output));
}
