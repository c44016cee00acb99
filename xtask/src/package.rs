//! `cargo xtask package`: whether every crate could be published.

use anyhow::{Result, bail};
use cargo_metadata::Package;

use crate::features;
use crate::shell::{self, cargo};

/// Packages all crates that are published, against each other, and checks what crates.io and its readers ask for.
pub(crate) fn run() -> Result<()> {
    let metadata = features::metadata()?;
    let packages = metadata.workspace_packages();
    let (published, private): (Vec<&Package>, Vec<&Package>) = packages
        .into_iter()
        .partition(|package| package.publish.is_none());
    let mut broken = Vec::new();
    for package in &published {
        for (what, there) in [
            ("description", package.description.is_some()),
            ("license", package.license.is_some()),
            ("repository", package.repository.is_some()),
            ("categories", !package.categories.is_empty()),
            ("keywords", !package.keywords.is_empty()),
            ("rust-version", package.rust_version.is_some()),
            (
                "readme",
                package.readme().is_some_and(|readme| readme.is_file()),
            ),
        ] {
            if !there {
                broken.push(format!("{} has no {what} in its Cargo.toml", package.name));
            }
        }
    }
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    let mut command = cargo();
    command.args([
        "package",
        "--workspace",
        "--no-verify",
        "--allow-dirty",
        "--quiet",
    ]);
    for package in private {
        command.args(["--exclude", package.name.as_str()]);
    }
    shell::run(&mut command)?;
    eprintln!("{} crates can be packaged", published.len());
    Ok(())
}
