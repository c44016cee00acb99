//! `cargo xtask features`: the builds that `--workspace`, which unifies features, never makes.

use anyhow::{Context as _, Result};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::licence;
use crate::shell::{self, cargo, root};

/// Checks `conncept` with no feature, each alone and all; then every library crate on its own. And that the feature
/// `permissive` is permissive.
pub(crate) fn run() -> Result<()> {
    licence::check()?;
    let metadata = metadata()?;
    let mut choices = vec![String::new()];
    choices.extend(names(&metadata)?);
    for features in &choices {
        clippy(&[
            "--package",
            "conncept",
            "--no-default-features",
            "--features",
            features,
        ])?;
    }
    clippy(&["--package", "conncept", "--all-features"])?;
    for package in metadata.workspace_packages() {
        if package.name.starts_with("l4-") {
            clippy(&["--package", package.name.as_str()])?;
        }
    }
    Ok(())
}

/// The features of `conncept` that stand for a module family or a set of them.
pub(crate) fn names(metadata: &Metadata) -> Result<Vec<String>> {
    let conncept = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == "conncept")
        .context("this workspace has no package conncept")?;
    Ok(conncept
        .features
        .keys()
        .filter(|name| *name != "default")
        .cloned()
        .collect())
}

pub(crate) fn metadata() -> Result<Metadata> {
    Ok(MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()?)
}

fn clippy(args: &[&str]) -> Result<()> {
    shell::run(
        cargo()
            .args(["clippy", "--quiet", "--locked"])
            .args(args)
            .args(["--", "-D", "warnings"]),
    )
}
