//! Tasks for developers of Conncept and for those who assemble their own binary: `cargo xtask help`.
//!
//! One subcommand per file.

mod bench;
mod build;
mod ci;
mod deps;
mod features;
mod fuzz;
mod shell;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Developer tasks of Conncept",
    disable_help_subcommand = false
)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure what a unit of work costs, beside HAProxy, nginx and caddy-l4 in the same run.
    Bench(bench::Args),
    /// Build a binary with just the modules you name.
    Build(build::Args),
    /// Everything a change must pass: format, lints, dependency directions, features, documentation, fuzz corpus,
    /// tests against real clients and servers.
    Ci(ci::Args),
    /// Check the rules for which crate may depend on which.
    Deps,
    /// Check that `conncept` builds with each feature alone, none and all, and every crate on its own.
    Features,
    /// Replay or extend the fuzz corpus.
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Deps => deps::run(),
        Task::Features => features::run(),
        Task::Fuzz(args) => fuzz::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
