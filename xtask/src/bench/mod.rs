//! `cargo xtask bench`: what a unit of work costs, beside a peer in the same run.
//!
//! The proxy is pinned to one processor, load and backend to another. The figure is the processor time of the proxy
//! per unit of work, from `/proc/PID/stat`; rounds of all contestants are interleaved, and medians with
//! minimum and maximum are reported, because the machines this runs on are small and noisy.
//!
//! Nothing is installed: a peer that is missing is named with the command that gets it. Only loopback is ever used.

mod load;
mod proxy;
mod report;
mod scenario;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::shell;
use report::Report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The scenarios to run. Without it: all.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Rounds for each contestant.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Another binary of ours to measure beside this checkout's, such as the previous release.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Where to write the report, as Markdown. Without it: to the terminal.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(unknown) = args
        .scenario
        .iter()
        .find(|name| !scenario::NAMES.contains(&name.as_str()))
    {
        bail!(
            "there is no scenario {unknown:?}; there are: {}",
            scenario::NAMES.join(", ")
        );
    }
    shell::run(shell::cargo().args(["build", "--release", "--package", "conncept"]))?;
    let binary = shell::target_directory()?.join("release/conncept");
    let mut report = Report::new();
    let descriptors = proxy::prepare()?;
    for name in scenario::NAMES {
        if args.scenario.is_empty() || args.scenario.iter().any(|wanted| wanted == name) {
            eprintln!("{name}: {} rounds", args.rounds);
            scenario::run(
                name,
                &binary,
                args.baseline.as_deref(),
                args.rounds,
                descriptors,
                &mut report,
            )?;
        }
    }
    match &args.output {
        Some(file) => std::fs::write(file, report.to_string())?,
        None => print!("{report}"),
    }
    Ok(())
}
