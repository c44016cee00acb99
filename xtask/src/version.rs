//! `cargo xtask version`: what is built here, and by what.

use anyhow::{Context as _, Result};

use crate::features;
use crate::shell::{ask, root, rustc};

pub(crate) fn run() -> Result<()> {
    let metadata = features::metadata()?;
    let version = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name == "conncept")
        .map(|package| package.version.to_string())
        .context("this checkout has no crate conncept")?;
    let mut git = std::process::Command::new("git");
    git.args(["log", "-1", "--abbrev=8", "--format=(%h, %cs)"])
        .current_dir(root());
    // An archive has no commit, and who has one may have no git.
    let commit = ask(&mut git).ok().filter(|said| said.success);
    println!(
        "conncept v{version}{}",
        commit.map_or(String::new(), |said| format!(" {}", said.stdout.trim()))
    );
    println!("{}", ask(rustc().arg("--version"))?.stdout.trim());
    println!("{}", root().display());
    Ok(())
}
