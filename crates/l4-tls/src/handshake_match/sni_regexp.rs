//! `sni_regexp`: the server name by regular expression.

use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use serde::Deserialize;

use l4_core::config::At;
use l4_core::conn::Capture;
use l4_core::{Cost, Provision, Rejected};

use super::{HandshakeMatch, HandshakeScope};
use crate::ClientHello;

/// A regular expression that the server name must match.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SniRegexpConfig {
    /// A name for the expression, made of letters, digits and `_`: captures are then also found as
    /// `{tls.regexp.NAME.GROUP}`, where no other expression hides them. Default: none.
    #[serde(default)]
    name: Option<At<String>>,
    /// The expression, such as `^(?<tenant>[a-z0-9]+)\.example\.com$`. RE2 syntax; it may match anywhere in the name
    /// unless anchored. Upper and lower case are the same, because clients choose them freely; write `(?-i)` to tell
    /// them apart. Braces are placeholders, filled in when the configuration is loaded: write `\{2,5\}` for a
    /// repetition. A client that names no server is matched as the empty text. What groups capture is read as
    /// `{tls.regexp.1}` or `{tls.regexp.tenant}`, in the case that was sent. Default: empty, which matches everything.
    #[serde(default)]
    pattern: Option<At<String>>,
}

/// The server name matches a regular expression.
pub struct MatchSniRegexp {
    regex: Regex,
    name: Option<Arc<str>>,
    /// What groups are called in placeholders, by number and, where they have one, by name.
    groups: Vec<(Arc<str>, usize)>,
}

impl MatchSniRegexp {
    /// Makes the condition.
    ///
    /// # Errors
    /// [`Rejected`] once the reason was reported to `cx`.
    pub fn provision(config: SniRegexpConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let name = config.name.filter(|name| !name.is_empty());
        if let Some(name) = &name
            && !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            return Err(cx.reject(
                name.node(),
                format!(
                    "invalid regexp name (must contain only word characters): {}",
                    **name
                ),
            ));
        }
        let pattern = match &config.pattern {
            Some(pattern) => expand(pattern, cx)?,
            None => String::new(),
        };
        let regex = RegexBuilder::new(&pattern)
            .case_insensitive(true)
            .build()
            .map_err(|error| {
                let node = config.pattern.as_ref().map_or(cx.node(), At::node);
                cx.reject(node, format!("compiling matcher regexp {pattern}: {error}"))
            })?;
        let numbers = (0..regex.captures_len()).map(|group| (group.to_string().into(), group));
        let names = regex.capture_names().enumerate();
        let groups = numbers
            .chain(names.filter_map(|(group, name)| Some((name?.into(), group))))
            .collect();
        Ok(Self {
            regex,
            name: name.map(|name| name.into_inner().into()),
            groups,
        })
    }
}

impl HandshakeMatch for MatchSniRegexp {
    fn matches(
        &self,
        hello: &ClientHello,
        _conn: &dyn HandshakeScope,
        captures: &mut Vec<Capture>,
    ) -> bool {
        // The plain test first: it runs without the memory that captures take.
        let sent = hello.server_name().unwrap_or_default();
        if !self.regex.is_match(sent) {
            return false;
        }
        captures.extend(self.regex.captures(sent).map(|found| {
            Capture {
                prefix: "tls.regexp",
                name: self.name.clone(),
                groups: self
                    .groups
                    .iter()
                    .map(|(key, group)| {
                        let text = found.get(*group).map_or("", |text| text.as_str());
                        (key.clone(), text.into())
                    })
                    .collect(),
            }
        }));
        true
    }

    fn cost(&self) -> Cost {
        Cost::Regex
    }
}

/// Fills in the placeholders of a pattern. A repetition such as `{2,5}` looks like one and would silently vanish.
fn expand(pattern: &At<String>, cx: &mut Provision<'_>) -> Result<String, Rejected> {
    let expanded = cx.expand_load(pattern)?;
    if cx.expand_known(pattern)? != expanded {
        cx.warn(
            pattern.node(),
            format!(
                "{{…}} is a placeholder, and one that is unknown here is left out: the pattern \
                 becomes {expanded:?}; for a repetition write \\{{2,5\\}}"
            ),
        );
    }
    Ok(expanded)
}
