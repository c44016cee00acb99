//! The regular expressions of `path_regexp`, `header_regexp` and `vars_regexp`.

use std::sync::Arc;

use l4_core::config::{At, Node, Value};
use l4_core::conn::Capture;
use l4_core::{Provision, Rejected};
use regex::Regex;
use serde::Deserialize;

/// A regular expression, for example `{"name": "api", "pattern": "^/v(?P<version>[0-9]+)/"}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpressionConfig {
    /// A name, under which captures can be read too, as `{http.regexp.NAME.GROUP}`: letters, digits and underscores.
    /// Without one they are `{http.regexp.GROUP}` only, which the next expression that matches hides. Default: none.
    #[serde(default)]
    name: Option<At<String>>,
    /// The expression, in RE2 syntax. It may match anywhere in the text unless it is anchored, and tells upper from
    /// lower case unless it begins with `(?i)`. Placeholders are not filled in. Default: empty, which matches any text.
    #[serde(default)]
    pattern: Option<At<String>>,
}

pub(super) struct Expression {
    regex: Regex,
    name: Option<Arc<str>>,
    /// What groups are called in placeholders: by number and, where they have one, by name.
    groups: Vec<(Arc<str>, usize)>,
}

impl Expression {
    /// The expression at `node`.
    pub(super) fn at(node: Node, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        if matches!(cx.document().value(node), Value::Null) {
            return Err(cx.reject_help(
                node,
                "an expression cannot be null",
                "write {\"pattern\": \"...\"}",
            ));
        }
        let config: ExpressionConfig = cx.decode(node)?;
        Self::provision(&config, cx)
    }

    pub(super) fn provision(
        config: &ExpressionConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let name = config.name.as_ref().filter(|name| !name.is_empty());
        if let Some(name) = name
            && !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return Err(cx.reject_help(
                name.node(),
                format!("invalid expression name {:?}", **name),
                "use letters, digits and underscores only",
            ));
        }
        let pattern = config.pattern.as_ref();
        let text = pattern.map_or("", |pattern| pattern.as_str());
        let regex = Regex::new(text).map_err(|error| {
            // A syntax error draws the expression over several lines; its last one says what is wrong.
            let error = error.to_string();
            let why = error.lines().last().unwrap_or_default();
            let why = why.strip_prefix("error: ").unwrap_or(why);
            let node = pattern.map_or(cx.node(), At::node);
            cx.reject(node, format!("invalid regular expression: {why}"))
        })?;
        let numbers = (0..regex.captures_len()).map(|group| (group.to_string().into(), group));
        let names = regex.capture_names().enumerate();
        let groups = numbers
            .chain(names.filter_map(|(group, name)| Some((name?.into(), group))))
            .collect();
        Ok(Self {
            regex,
            name: name.map(|name| name.as_str().into()),
            groups,
        })
    }

    /// What it captures, if it matches.
    pub(super) fn capture(&self, text: &str) -> Option<Capture> {
        // Captures need room even where there are none; most texts are refused without.
        if !self.regex.is_match(text) {
            return None;
        }
        let found = self.regex.captures(text)?;
        let text = |group| found.get(group).map_or("", |found| found.as_str());
        Some(Capture {
            prefix: "http.regexp",
            name: self.name.clone(),
            groups: self
                .groups
                .iter()
                .map(|(name, group)| (name.clone(), text(*group).into()))
                .collect(),
        })
    }
}
