//! `--from`: which module families a configuration names.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::shell::Said;

/// The families whose names stand where a configuration names modules.
///
/// A first guess from the shape of the file alone, without knowing any module: the binary that is built with it is asked
/// what is still missing ([`missing`]).
pub(crate) fn named(file: &Path, families: &[String]) -> Result<Vec<String>> {
    let text = std::fs::read(file)
        .with_context(|| format!("cannot read the configuration {}", file.display()))?;
    let config: Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    Ok(Names::of(&config).families(families))
}

/// Names of modules by where they stand.
#[derive(Default)]
struct Names<'a> {
    matchers: BTreeSet<&'a str>,
    others: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn of(config: &'a Value) -> Self {
        let mut names = Self::default();
        names.collect(config);
        names
    }

    fn collect(&mut self, value: &'a Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            Value::Object(members) => {
                for (key, value) in members {
                    match key.as_str() {
                        "handler" => self.others.extend(value.as_str()),
                        "apps" | "upstreams" => keys(value, &mut self.others),
                        "match" | "not" => keys(value, &mut self.matchers),
                        _ => {}
                    }
                    self.collect(value);
                }
            }
            _ => {}
        }
    }

    /// Those of `families` that are named. Where a matcher has a family of its own, `tls_matcher` or `socks5_matcher`,
    /// matching by it takes no more than that.
    fn families(&self, families: &[String]) -> Vec<String> {
        let own = |name: &str| format!("{name}_matcher");
        let named = |family: &&String| {
            self.others.contains(family.as_str())
                || self.matchers.contains(family.as_str()) && !families.contains(&own(family))
                || self.matchers.iter().any(|name| own(name) == **family)
        };
        families.iter().filter(named).cloned().collect()
    }
}

/// The members of an object, or of each object of a list.
fn keys<'a>(value: &'a Value, names: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(members) => names.extend(members.keys().map(String::as_str)),
        Value::Array(items) => items
            .iter()
            .filter_map(Value::as_object)
            .for_each(|members| names.extend(members.keys().map(String::as_str))),
        _ => {}
    }
}

/// The families that `validate`, run by a binary, says it was made without.
///
/// # Errors
/// The configuration names a module that no family has.
pub(crate) fn missing(file: &Path, validated: &Said) -> Result<Vec<String>> {
    const REMEDY: &str = "cargo xtask build --with ";
    let mut families: Vec<String> = Vec::new();
    let mut unknown = Vec::new();
    for line in validated.stderr.lines() {
        if let Some((_, family)) = line.split_once(REMEDY) {
            unknown.pop();
            // What the binary has already, and behind it what it lacks.
            let names = family.split_whitespace().next().unwrap_or_default();
            families.extend(names.rsplit(',').next().map(str::to_owned));
        } else if let Some((_, id)) = line.split_once("unknown module: ") {
            unknown.push(id.trim().to_owned());
        }
    }
    families.sort_unstable();
    families.dedup();
    if families.is_empty() && !unknown.is_empty() {
        bail!(
            "{} uses {}, which neither a module family nor a --with brings; name the crate: --with NAME=SOURCE",
            file.display(),
            unknown.join(", ")
        );
    }
    Ok(families)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &str) -> Vec<String> {
        let config: Value = serde_json::from_str(config).unwrap();
        let names = Names::of(&config);
        let all = names.matchers.iter().chain(&names.others);
        all.map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn modules_are_found_wherever_they_are_named() {
        let found = names(
            r#"{"apps": {"tls": {}, "layer4": {"servers": {"xmpp": {"routes": [
                {"match": [{"http": [{"host": ["postgres"]}], "not": [{"ssh": {}}]}],
                 "handle": [{"handler": "subroute", "routes": [
                    {"handle": [{"handler": "proxy", "upstreams": [{"dial": ["tee:1"], "quic": {}}]}]}]}]}
            ]}}}}}"#,
        );
        for name in ["tls", "layer4", "http", "ssh", "subroute", "proxy", "quic"] {
            assert!(found.iter().any(|n| n == name), "{name} in {found:?}");
        }
        // Names of servers, hosts and addresses are not modules.
        for name in ["xmpp", "postgres", "tee"] {
            assert!(!found.iter().any(|n| n == name), "{name} in {found:?}");
        }
    }

    #[test]
    fn a_matcher_brings_its_own_family_and_the_handler_the_whole_one() {
        let families = [
            "proxy",
            "socks5",
            "socks5_matcher",
            "ssh",
            "tls",
            "tls_matcher",
        ];
        let families = families.map(str::to_owned);
        let of = |config: &str| {
            let config: Value = serde_json::from_str(config).unwrap();
            Names::of(&config).families(&families)
        };
        let matcher = r#"{"match": [{"tls": {}}, {"socks5": {}}, {"ssh": {}}]}"#;
        assert_eq!(of(matcher), ["socks5_matcher", "ssh", "tls_matcher"]);
        assert_eq!(of(r#"{"handle": [{"handler": "tls"}]}"#), ["tls"]);
        let upstream = r#"{"handler": "proxy", "upstreams": [{"dial": ["a:1"], "tls": {}}]}"#;
        assert_eq!(of(upstream), ["proxy", "tls"]);
    }

    #[test]
    fn the_binary_has_the_last_word() {
        let said = |stderr: &str| Said {
            success: false,
            stdout: String::new(),
            stderr: stderr.to_owned(),
        };
        let file = Path::new("l4.json");
        let both = said(
            "error: unknown module: layer4.handlers.tee\n  = help: this build was made without it; add it with: cargo \
             xtask build --with tiny,ssh,tee\nerror: unknown module: layer4.handlers.mine\n  = help: this build has: echo\n",
        );
        assert_eq!(missing(file, &both).unwrap(), ["tee"]);
        let error =
            missing(file, &said("error: unknown module: layer4.handlers.mine\n")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("layer4.handlers.mine, which neither"),
            "{error}"
        );
        assert_eq!(
            missing(file, &said("error: no such file\n")).unwrap(),
            [""; 0]
        );
    }
}
