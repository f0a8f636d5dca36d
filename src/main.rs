//! The binary: parses the command line, runs the command, and gives its exit code.

use std::process::ExitCode;

use clap::Parser;
use loangate::cli::{self, Cli};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
