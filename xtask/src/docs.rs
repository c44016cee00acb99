//! `cargo xtask docs`: what the documentation takes from the types that read configurations.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::shell::{self, cargo, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing, and say what is not up to date.
    #[arg(long)]
    check: bool,
}

/// The schema of a build with everything.
const SCHEMA: &str = "docs/conncept.schema.json";

/// In a page that has tables of fields.
const MARK: &str = "<!-- fields: ";

pub(crate) fn check() -> Result<()> {
    run(&Args { check: true })
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // For this machine, which runs it, and so to where it is looked for.
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--locked", "--package", "conncept"])
        .env_remove("CARGO_BUILD_TARGET");
    shell::run(&mut build)?;
    let program = shell::target_directory()?.join("debug/conncept");
    let mut files = vec![(root().join(SCHEMA), output(&program, &["schema"], "")?)];
    for page in pages(&root().join("docs"))? {
        let text = fs::read_to_string(&page)?;
        if text.contains(MARK) {
            let filled = output(&program, &["docs", "--fill"], &text)
                .with_context(|| page.display().to_string())?;
            files.push((page, filled));
        }
    }
    let mut stale = Vec::new();
    for (path, text) in &files {
        if fs::read_to_string(path).is_ok_and(|there| there == *text) {
            continue;
        }
        stale.push(
            path.strip_prefix(root())
                .unwrap_or(path)
                .display()
                .to_string(),
        );
        if !args.check {
            fs::write(path, text).with_context(|| path.display().to_string())?;
        }
    }
    if args.check && !stale.is_empty() {
        bail!(
            "not up to date with the types: {}; run cargo xtask docs",
            stale.join(", ")
        );
    }
    eprintln!("{} files, {} changed", files.len(), stale.len());
    Ok(())
}

/// The Markdown files in a folder and the folders in it.
fn pages(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(pages(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn output(program: &Path, args: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It reads all before it writes, so nobody waits for the other.
    child
        .stdin
        .take()
        .context("no standard input")?
        .write_all(input.as_bytes())?;
    let finished = child.wait_with_output()?;
    if !finished.status.success() {
        bail!("{}", String::from_utf8_lossy(&finished.stderr).trim());
    }
    Ok(String::from_utf8(finished.stdout)?)
}
