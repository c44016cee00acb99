//! What a choice of features does to the licence of the binary, asked of the packages themselves.

use anyhow::{Result, bail};

use crate::shell::{self, cargo};

/// The packages that a build of `conncept` with these arguments of cargo links, and that can only be had under a
/// copyleft licence: name, version and licence of each.
pub(crate) fn copyleft(choice: &[&str]) -> Result<Vec<String>> {
    let mut command = cargo();
    command
        .args([
            "tree",
            "--quiet",
            "--package",
            "conncept",
            "--edges",
            "normal",
        ])
        .args(["--prefix", "none", "--format", "{p}\t{l}"])
        .args(choice);
    let tree = shell::output(&mut command)?;
    let mut found: Vec<String> = tree
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(_, licence)| is_copyleft(licence))
        .map(|(package, licence)| format!("{package}: {}", licence.trim_end_matches(" (*)")))
        .collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// Checks that the feature `permissive` is what its name says, and that the default is no surprise.
pub(crate) fn check() -> Result<()> {
    let unwanted = copyleft(&["--no-default-features", "--features", "permissive"])?;
    if !unwanted.is_empty() {
        bail!("the feature permissive brings {}", unwanted.join(", "));
    }
    let known = copyleft(&[])?;
    if let [package] = known.as_slice()
        && package.starts_with("socks5-proto ")
    {
        return Ok(());
    }
    bail!(
        "the default features should bring socks5-proto and nothing else under a copyleft licence, not {known:?}"
    );
}

/// Whether an SPDX expression leaves no choice but a licence of the GPL family. Weaker ones, for files or libraries, do
/// not extend to the binary.
fn is_copyleft(licence: &str) -> bool {
    licence.split(" OR ").all(|choice| {
        choice
            .split(" AND ")
            .map(|part| part.trim_matches(['(', ')', ' ']))
            .any(|part| part.starts_with("GPL-") || part.starts_with("AGPL-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_counts_only_if_there_is_no_other_choice() {
        for (licence, copyleft) in [
            ("GPL-3.0-or-later", true),
            ("GPL-2.0-only AND MIT", true),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
            ("MIT OR GPL-3.0-or-later", false),
            ("MIT OR Apache-2.0 OR LGPL-2.1-or-later", false),
            ("AGPL-3.0-only", true),
            ("MPL-2.0", false),
            ("", false),
        ] {
            assert_eq!(is_copyleft(licence), copyleft, "{licence}");
        }
    }

    #[test]
    fn everything_but_the_socks_server_is_permissive() {
        check().unwrap();
    }
}
