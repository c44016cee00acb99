//! `cargo xtask deps`: which crate may depend on which.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};

use crate::shell::root;

/// What the engine must not know: protocols, kernels and command lines are other crates' business.
const NOT_IN_CORE: &[&str] = &[
    "rustls",
    "tokio-rustls",
    "httparse",
    "quinn-udp",
    "socket2",
    "libc",
    "clap",
    "l4-net",
];

/// The crates that everything else may build on.
const FOUNDATION: &[&str] = &["l4-core", "l4-net"];

/// Modules that open sockets, and so may depend on `l4-net`.
const OPEN_SOCKETS: &[&str] = &["l4-proxy", "l4-socks"];

/// Checks the directions and says what breaks them.
pub(crate) fn run() -> Result<()> {
    let metadata = MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()?;
    let packages: Vec<&Package> = metadata.workspace_packages();
    let mut broken = Vec::new();
    for package in &packages {
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Development {
                continue;
            }
            if let Some(why) = forbidden(package.name.as_str(), &dependency.name) {
                broken.push(format!(
                    "{} must not depend on {}: {why}",
                    package.name, dependency.name
                ));
            }
        }
    }
    broken.extend(unsafe_code(&packages)?);
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    eprintln!(
        "{} crates keep to the dependency directions",
        packages.len()
    );
    Ok(())
}

fn forbidden(from: &str, to: &str) -> Option<&'static str> {
    let is_module = |name: &str| name.starts_with("l4-") && !FOUNDATION.contains(&name);
    if from == "l4-core" && NOT_IN_CORE.contains(&to) {
        return Some("the engine knows no protocol, no socket and no command line");
    }
    if from == "l4-core" && to.starts_with("l4-") {
        return Some("the engine is the foundation");
    }
    if from == "l4-net" && is_module(to) {
        return Some("l4-net may only build on l4-core");
    }
    if is_module(from) && is_module(to) {
        return Some("modules meet in the registry, not in each other");
    }
    if is_module(from) && to == "l4-net" && !OPEN_SOCKETS.contains(&from) {
        return Some("it opens no sockets");
    }
    if to == "conncept" && from != "e2e" {
        return Some("nothing depends on the binary but custom builds");
    }
    None
}

/// `unsafe` is for `l4-net` alone; every other crate must inherit the workspace's `forbid`.
fn unsafe_code(packages: &[&Package]) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for package in packages
        .iter()
        .filter(|package| package.name.as_str() != "l4-net")
    {
        let manifest = std::fs::read_to_string(&package.manifest_path)?;
        let lines: BTreeSet<&str> = manifest.lines().map(str::trim).collect();
        if !(lines.contains("[lints]") && lines.contains("workspace = true")) {
            broken.push(format!(
                "{} does not inherit the workspace's lints",
                package.name
            ));
        }
    }
    Ok(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directions_are_refused_and_allowed_as_documented() {
        for (from, to) in [
            ("l4-core", "rustls"),
            ("l4-core", "l4-net"),
            ("l4-net", "l4-proxy"),
            ("l4-http", "l4-tls"),
            ("l4-http", "l4-net"),
            ("l4-tls", "conncept"),
        ] {
            assert!(forbidden(from, to).is_some(), "{from} -> {to}");
        }
        for (from, to) in [
            ("l4-net", "l4-core"),
            ("l4-proxy", "l4-net"),
            ("l4-tls", "regex"),
            ("conncept", "l4-tls"),
            ("e2e", "conncept"),
        ] {
            assert!(forbidden(from, to).is_none(), "{from} -> {to}");
        }
    }
}
