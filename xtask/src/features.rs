//! `cargo xtask features`: the builds that `--workspace`, which unifies features, never makes.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{Metadata, MetadataCommand};

use crate::build::licence;
use crate::shell::{self, cargo, root};

/// Checks `conncept` with no feature, each alone, each set of them and all; then every library crate on its own, as it is
/// by default and with none and each of the features it has. And that the feature `permissive` is permissive.
pub(crate) fn run() -> Result<()> {
    check_licences()?;
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
        if !package.name.starts_with("l4-") {
            continue;
        }
        let name = package.name.as_str();
        clippy(&["--package", name])?;
        if package.features.is_empty() {
            continue;
        }
        let own = package.features.keys().filter(|name| *name != "default");
        for feature in own.map(String::as_str).chain([""]) {
            clippy(&[
                "--package",
                name,
                "--no-default-features",
                "--features",
                feature,
            ])?;
        }
    }
    Ok(())
}

/// Checks that the feature `permissive` is what its name says, and that the default is no surprise.
fn check_licences() -> Result<()> {
    let of = |choice: &[&str]| -> Result<(String, Vec<String>)> {
        let mut tree = cargo();
        tree.args(["tree", "--quiet", "--package", "conncept"])
            .args(choice);
        Ok(licence::effective(&licence::parts(&mut tree)?))
    };
    let (licence, because) = of(&["--no-default-features", "--features", "permissive"])?;
    if licence != licence::OURS {
        bail!("the feature permissive is under {licence}, because of {because:?}");
    }
    match of(&[])? {
        (licence, because)
            if licence == "GPL-3.0-or-later"
                && because.iter().all(|name| name.starts_with("socks5-proto ")) =>
        {
            Ok(())
        }
        (licence, because) => {
            bail!("the default features are under {licence}, because of {because:?}")
        }
    }
}

/// The features of a package, and what each of them switches on.
pub(crate) type Table = BTreeMap<String, Vec<String>>;

/// The features of `conncept`.
pub(crate) fn table(metadata: &Metadata) -> Result<Table> {
    let conncept = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == "conncept")
        .context("this workspace has no package conncept")?;
    Ok(conncept.features.clone())
}

/// The features of `conncept` that stand for a module family or a set of them.
pub(crate) fn names(metadata: &Metadata) -> Result<Vec<String>> {
    let mut names: Vec<String> = table(metadata)?.into_keys().collect();
    names.retain(|name| name != "default");
    Ok(names)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_but_the_socks_server_is_permissive() {
        check_licences().unwrap();
    }
}
