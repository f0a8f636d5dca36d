//! `loangate completions`: prints the completions of a shell.

use std::io::Write;

use clap::{CommandFactory, ValueEnum};

use super::{Cli, CliError};

/// A shell whose completions are tested.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(shell: Shell) -> Result<(), CliError> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // Written at once: a closed pipe is no error, and the generator panics on any.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "loangate", &mut script);
    let _ = std::io::stdout().write_all(&script);
    Ok(())
}
