//! `cargo xtask bench`: what a unit of work costs, beside other programs in the same run.
//!
//! The proxy is pinned to one processor, load and backend to another. The figure is the processor time of the proxy
//! per unit of work, from `/proc/PID/task/*/schedstat`; rounds of all contestants are interleaved, and medians with
//! minimum and maximum are reported, because the machines this runs on are small and noisy.
//!
//! Nothing is installed: a peer that is missing is named with the command that gets it. Only loopback is ever used.

mod flow;
mod load;
mod plot;
mod program;
mod proxy;
mod report;
mod scenario;
mod tls;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::shell;
use program::{PEERS, Program};
use report::Report;
use scenario::{Bench, NAMES};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The scenarios to run, separated by commas. Without it: all.
    #[arg(long, value_delimiter = ',')]
    scenario: Vec<String>,
    /// Whom to measure beside ours, separated by commas: direct, haproxy, haproxy-splice, haproxy-splice-1m, nginx,
    /// caddy-l4. Without it: all that are there.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Rounds for each contestant; three times as many where a round takes a fraction of a second.
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// Measure this binary of ours instead of building one from this checkout.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The cargo profile to build it with. `dist` is what is distributed and takes minutes to build; `release` is there
    /// sooner and needs some per cent more processor time.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "dist",
        conflicts_with = "binary"
    )]
    profile: String,
    /// Another binary of ours to measure beside it, such as the previous release.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Where to write the report, as Markdown with plots beside it. Without it: to the terminal.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where to write every figure of every round, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    known("scenario", &args.scenario, NAMES)?;
    known("peer", &args.peers, PEERS)?;
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            let build = ["build", "--package", "conncept", "--profile", &args.profile];
            shell::run(shell::cargo().args(build))?;
            shell::target_directory()?
                .join(directory(&args.profile))
                .join("conncept")
        }
    };
    let mut report = Report::new();
    let mut bench = Bench {
        programs: Program::all(&binary, args.baseline.as_deref(), &args.peers),
        rounds: args.rounds.max(1),
        descriptors: proxy::prepare()?,
    };
    for &name in NAMES {
        if args.scenario.is_empty() || args.scenario.iter().any(|wanted| wanted == name) {
            eprintln!("{name}");
            report.add(bench.run(name)?);
            // After each: a long run that is broken off has its figures.
            if let Some(file) = &args.output {
                report.write(file)?;
            }
            if let Some(file) = &args.json {
                report.write_json(file)?;
            }
        }
    }
    if args.output.is_none() {
        print!("{report}");
    }
    Ok(())
}

/// Where below the target directory cargo puts what it builds with a profile.
fn directory(profile: &str) -> &str {
    match profile {
        "dev" | "test" => "debug",
        "bench" => "release",
        name => name,
    }
}

fn known(what: &str, wanted: &[String], known: &[&str]) -> Result<()> {
    match wanted.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(unknown) => bail!(
            "there is no {what} {unknown:?}; there are: {}",
            known.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn what_is_distributed_is_measured_unless_another_profile_is_named() {
        let of = |arguments: &[&str]| {
            let line = ["bench"].iter().chain(arguments);
            Command::try_parse_from(line).map(|command| command.args.profile)
        };
        assert_eq!(of(&[]).unwrap(), "dist");
        assert_eq!(of(&["--binary", "x"]).unwrap(), "dist");
        assert_eq!(of(&["--profile", "release"]).unwrap(), "release");
        assert!(of(&["--profile", "release", "--binary", "x"]).is_err());
        assert_eq!(directory("dev"), "debug");
        assert_eq!(directory("dist"), "dist");
    }
}
