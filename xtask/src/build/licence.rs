//! Under which licence a binary may be passed on: the strictest among the crates in it.

use std::process::Command;

use anyhow::{Result, bail};

/// What everything in this repository is under.
pub(crate) const OURS: &str = "MIT OR Apache-2.0";

/// How much a licence asks of who passes the binary on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Demand {
    /// To be named.
    Notice,
    /// The sources of just that crate.
    Files(String),
    /// Not said, or in words that this does not know.
    Unclear(String),
    /// The same licence for the whole.
    Whole(String),
}

/// A crate in the binary, and the SPDX expression in its manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) licence: String,
}

/// The crates that `cargo tree` with these arguments says are linked in.
pub(crate) fn parts(tree: &mut Command) -> Result<Vec<Part>> {
    tree.args(["--edges", "normal,no-proc-macro", "--prefix", "none"])
        .args(["--format", "{p}\t{l}"]);
    let output = tree.output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut parts: Vec<Part> = text
        .lines()
        .filter_map(|line| {
            let (package, licence) = line.split_once('\t')?;
            Some(Part {
                name: package.split(' ').take(2).collect::<Vec<_>>().join(" "),
                // Crates seen before are marked.
                licence: licence.trim_end_matches("(*)").trim().to_owned(),
            })
        })
        .collect();
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    parts.dedup();
    Ok(parts)
}

/// The licence of the whole and, if it is another than ours, which crates are the reason.
pub(crate) fn effective(parts: &[Part]) -> (String, Vec<String>) {
    let demands: Vec<(Demand, &str)> = parts
        .iter()
        .map(|part| (demand(&part.licence), part.name.as_str()))
        .collect();
    let of = |wanted: fn(&Demand) -> Option<&String>| -> (Vec<&str>, Vec<String>) {
        let mut names: Vec<&str> = demands
            .iter()
            .filter_map(|(demand, _)| wanted(demand).map(String::as_str))
            .collect();
        names.sort_unstable();
        names.dedup();
        let crates = demands
            .iter()
            .filter(|(demand, _)| wanted(demand).is_some());
        (names, crates.map(|(_, name)| (*name).to_owned()).collect())
    };
    let (whole, mut because) = of(|demand| match demand {
        Demand::Whole(name) => Some(name),
        _ => None,
    });
    let (unclear, who) = of(|demand| match demand {
        Demand::Unclear(name) => Some(name),
        _ => None,
    });
    let (files, whose) = of(|demand| match demand {
        Demand::Files(name) => Some(name),
        _ => None,
    });
    let mut licence = match whole.is_empty() {
        true => OURS.to_owned(),
        false => whole.join(" AND "),
    };
    if licence == OURS && !(files.is_empty() && unclear.is_empty()) {
        licence = format!("({OURS})");
    }
    for further in files.into_iter().chain(unclear) {
        licence.push_str(" AND ");
        licence.push_str(further);
    }
    because.extend(whose.into_iter().chain(who));
    (licence, because)
}

/// Reads an SPDX expression: of alternatives the mildest counts, of what holds together the strictest.
fn demand(expression: &str) -> Demand {
    // Before SPDX, cargo's manifests separated alternatives by slashes.
    let text = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut rest = words.as_slice();
    let demand = alternatives(&mut rest);
    match rest.is_empty() {
        true => demand,
        false => Demand::Unclear(format!("{expression:?}")),
    }
}

fn alternatives(words: &mut &[&str]) -> Demand {
    let mut mildest = together(words);
    while let Some(("OR", rest)) = words.split_first().map(|(first, rest)| (*first, rest)) {
        *words = rest;
        mildest = mildest.min(together(words));
    }
    mildest
}

fn together(words: &mut &[&str]) -> Demand {
    let mut strictest = one(words);
    while let Some(("AND", rest)) = words.split_first().map(|(first, rest)| (*first, rest)) {
        *words = rest;
        strictest = strictest.max(one(words));
    }
    strictest
}

fn one(words: &mut &[&str]) -> Demand {
    let Some((first, rest)) = words.split_first() else {
        return Demand::Unclear("an unstated licence".to_owned());
    };
    *words = rest;
    if *first == "(" {
        let inner = alternatives(words);
        if words.first() == Some(&")") {
            *words = &words[1..];
        }
        return inner;
    }
    let mut name = (*first).to_owned();
    if let ["WITH", exception, rest @ ..] = words {
        name = format!("{name} WITH {exception}");
        *words = rest;
    }
    classify(name)
}

fn classify(name: String) -> Demand {
    const NOTICE: &[&str] = &[
        "MIT",
        "Apache-",
        "BSD-",
        "0BSD",
        "ISC",
        "Zlib",
        "Unicode-",
        "CC0-",
        "BSL-",
        "Unlicense",
        "OpenSSL",
        "CDLA-Permissive-",
        "NCSA",
        "PostgreSQL",
        "X11",
        "Python-",
        "bzip2-",
        "curl",
        "WTFPL",
    ];
    const FILES: &[&str] = &["MPL-", "LGPL-", "EPL-", "CDDL-"];
    const WHOLE: &[&str] = &["GPL-", "AGPL-", "EUPL-"];
    let among = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
    if among(NOTICE) {
        Demand::Notice
    } else if among(FILES) {
        Demand::Files(name)
    } else if among(WHOLE) {
        Demand::Whole(name)
    } else {
        Demand::Unclear(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(licences: &[&str]) -> (String, Vec<String>) {
        let parts: Vec<Part> = licences
            .iter()
            .zip('a'..)
            .map(|(licence, name)| Part {
                name: name.to_string(),
                licence: (*licence).to_owned(),
            })
            .collect();
        effective(&parts)
    }

    #[test]
    fn alternatives_are_chosen_from_and_conjunctions_are_kept() {
        for expression in [
            "MIT OR Apache-2.0",
            "MIT/Apache-2.0",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "ISC AND (Apache-2.0 OR ISC) AND OpenSSL",
            "GPL-2.0-only OR MIT",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0-only",
        ] {
            assert_eq!(
                of(&["MIT", expression]),
                (OURS.to_owned(), vec![]),
                "{expression}"
            );
        }
    }

    #[test]
    fn copyleft_decides_for_the_whole_and_names_the_crate() {
        let (licence, because) = of(&["MIT", "GPL-3.0-or-later", "MIT AND GPL-3.0-or-later"]);
        assert_eq!(licence, "GPL-3.0-or-later");
        assert_eq!(because, ["b", "c"]);
    }

    #[test]
    fn what_is_due_for_single_crates_is_added() {
        assert_eq!(of(&["MPL-2.0"]).0, "(MIT OR Apache-2.0) AND MPL-2.0");
        assert_eq!(
            of(&["", "MIT"]),
            (
                "(MIT OR Apache-2.0) AND an unstated licence".to_owned(),
                vec!["a".to_owned()]
            )
        );
        assert_eq!(
            of(&["LicenseRef-Mine"]).0,
            "(MIT OR Apache-2.0) AND LicenseRef-Mine"
        );
        assert_eq!(of(&["MIT) AND"]).0, "(MIT OR Apache-2.0) AND \"MIT) AND\"");
    }
}
