//! `conncept docs`

use std::process::ExitCode;

use crate::cli::DocsArgs;
use crate::{Build, cmd};

#[cfg(feature = "schema")]
mod fields;
#[cfg(feature = "schema")]
mod manual;
#[cfg(feature = "schema")]
mod terminal;

#[cfg(feature = "schema")]
pub(crate) fn run(args: &DocsArgs, build: &Build) -> ExitCode {
    let manual = manual::Manual::new(&build.registry);
    if args.fill {
        return match std::io::read_to_string(std::io::stdin()) {
            Ok(page) => match manual.fields().fill(&page) {
                Ok(page) => cmd::print(&page),
                Err(error) => cmd::fail(&error),
            },
            Err(error) => cmd::fail(&format!("reading standard input: {error}")),
        };
    }
    let page = match &args.name {
        None => Ok(manual.contents()),
        Some(name) => manual.page(name),
    };
    match page {
        Ok(page) => cmd::print(&terminal::Screen::of_stdout().show(&page)),
        Err(error) => cmd::fail(&error),
    }
}

#[cfg(not(feature = "schema"))]
pub(crate) fn run(_: &DocsArgs, _: &Build) -> ExitCode {
    cmd::fail(&format!(
        "this build was made without its manual; add it with: cargo xtask build --with {}",
        crate::modules::with_schema()
    ))
}
