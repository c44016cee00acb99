//! Tasks for developers of Conncept and for those who assemble their own binary: `cargo xtask help`.
//!
//! One subcommand per file.

mod bench;
mod build;
mod ci;
mod deps;
mod docs;
mod features;
mod fuzz;
mod new_module;
mod package;
mod run;
mod shell;
mod version;

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
    /// hostile peers against a release build, tests against real clients and servers.
    Ci(ci::Args),
    /// Check the rules for which crate may depend on which.
    Deps,
    /// Fill in the tables of fields in `docs`, and write the JSON Schema, from the types that read configurations.
    Docs(docs::Args),
    /// Check that `conncept` builds with each feature alone, none and all, and every crate on its own.
    Features,
    /// Replay or extend the fuzz corpus.
    Fuzz(fuzz::Args),
    /// Write a crate with a matcher and a handler, to begin your own with.
    NewModule(new_module::Args),
    /// Check that every crate can be packaged for crates.io.
    Package,
    /// In the folder of a module crate: build Conncept with it, and run that.
    Run(run::Args),
    /// Say which version this checkout has, and which compiler builds it.
    Version,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // To standard output if it was asked for, such as with --help.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let done = match args.task {
        Task::Bench(args) => bench::run(&args),
        Task::Build(args) => build::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Deps => deps::run(),
        Task::Docs(args) => docs::run(&args),
        Task::Features => features::run(),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::NewModule(args) => new_module::run(&args),
        Task::Package => package::run(),
        Task::Run(args) => run::run(&args),
        Task::Version => version::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
