//! `cargo xtask build`: a binary with just the modules that are wanted.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, cargo};
use crate::{features, licence};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The module families to build in, such as `tls,ssh`; may be given several times. Without it: all.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    with: Vec<String>,
    /// Where to put the binary.
    #[arg(long, short, value_name = "FILE", default_value = "conncept")]
    output: PathBuf,
    /// The cargo profile: `dist` is small and slow to build, `release` the other way round.
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Build for another target.
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// Passed on to `cargo build`.
    #[arg(last = true)]
    cargo: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    check_names(&args.with, &features::names(&features::metadata()?)?)?;
    let output = std::path::absolute(&args.output)?;
    if output.is_dir() {
        bail!(
            "{} is a directory; --output names the binary itself",
            output.display()
        );
    }
    let mut command = cargo();
    command.args([
        "build",
        "--package",
        "conncept",
        "--bin",
        "conncept",
        "--profile",
        &args.profile,
    ]);
    let with = args.with.join(",");
    let choice: &[&str] = match args.with.is_empty() {
        true => &[],
        false => &["--no-default-features", "--features", &with],
    };
    command.args(choice);
    if let Some(target) = &args.target {
        command.args(["--target", target]);
    }
    shell::run(command.args(&args.cargo))?;

    let built = built_binary(args)?;
    // Written beside the output and moved, so that nobody ever finds half a binary there.
    let unfinished = output.with_extension("unfinished");
    std::fs::copy(&built, &unfinished)
        .and_then(|_| std::fs::rename(&unfinished, &output))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&unfinished);
        })
        .with_context(|| format!("cannot write {}", output.display()))?;
    let size = std::fs::metadata(&output)?.len();
    eprintln!(
        "{}: {:.1} MiB, modules: {}, {:.0} s",
        output.display(),
        size as f64 / (1024.0 * 1024.0),
        if args.with.is_empty() {
            "all".to_owned()
        } else {
            args.with.join(", ")
        },
        started.elapsed().as_secs_f64(),
    );
    match licence::copyleft(choice)?.as_slice() {
        [] => eprintln!("licence: MIT OR Apache-2.0"),
        packages => eprintln!(
            "licence: GPL-3.0-or-later, because of {}; --with permissive leaves that out",
            packages.join(", ")
        ),
    }
    Ok(())
}

/// Refuses names that are no feature, with the nearest that is.
fn check_names(wanted: &[String], known: &[String]) -> Result<()> {
    for name in wanted {
        if known.contains(name) {
            continue;
        }
        let near = known
            .iter()
            .min_by_key(|k| distance(name, k))
            .filter(|k| distance(name, k) <= 2);
        let hint = near
            .map(|near| format!("; did you mean {near}?"))
            .unwrap_or_default();
        bail!(
            "there is no module family {name:?}{hint} There are: {}",
            known.join(", ")
        );
    }
    Ok(())
}

/// Edits between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn built_binary(args: &Args) -> Result<PathBuf> {
    let profile = if args.profile == "dev" {
        "debug"
    } else {
        &args.profile
    };
    let mut path = shell::target_directory()?;
    path.extend(&args.target);
    path.extend([profile, "conncept"]);
    if args
        .target
        .as_deref()
        .unwrap_or(std::env::consts::OS)
        .contains("windows")
    {
        path.set_extension("exe");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_family_is_refused_with_a_suggestion() {
        let known = ["tls".to_owned(), "http".to_owned(), "proxy".to_owned()];
        assert!(check_names(&["tls".to_owned(), "proxy".to_owned()], &known).is_ok());
        let error = check_names(&["proxi".to_owned()], &known)
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean proxy?"), "{error}");
        let error = check_names(&["quantum".to_owned()], &known)
            .unwrap_err()
            .to_string();
        assert!(
            !error.contains("did you mean") && error.contains("tls, http, proxy"),
            "{error}"
        );
    }
}
