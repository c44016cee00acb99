//! `http.matchers.path`

use l4_core::config::At;
use l4_core::{Provision, Rejected, Template};
use schemars::JsonSchema;
use serde::Deserialize;

use super::glob::Glob;
use super::{Request, RequestMatch};
use crate::{HttpHead, uri};

/// The paths that match, for example `["/", "/api/*", "*.php"]`. An empty list matches nothing.
///
/// Without regard to case, after escapes are decoded, `.` and `..` are resolved and repeated slashes are merged (unless
/// the pattern has some). `/x*` stands for paths that begin with `/x`, `*x` for paths that end with it, `*x*` for paths
/// that contain it, and `*` for all. With stars elsewhere the whole path is compared: `*` is any text without a slash,
/// `?` one character but a slash, `[a-z]` one of a range, `[^a-z]` any other. A pattern with an escape such as `%2F`
/// wants that very escape there, and `%*` is any text before decoding. Without stars, `/foo` is `/foo` only, not
/// `/foo/`. Placeholders are filled in for each connection.
#[derive(Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct PathConfig(Vec<At<String>>);

struct MatchPath(Vec<Entry>);

enum Entry {
    Fixed(Pattern),
    Expanded(Template),
}

impl RequestMatch for MatchPath {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        self.0.iter().any(|entry| match entry {
            Entry::Fixed(pattern) => pattern.matches(request.head()),
            Entry::Expanded(template) => {
                Pattern::new(&request.expand(template)).matches(request.head())
            }
        })
    }
}

struct Pattern {
    form: Form,
    /// The pattern has no `//`, so slashes in the path are merged.
    merge: bool,
}

/// Texts are in lower case.
enum Form {
    Any,
    Contains(Box<str>),
    EndsWith(Box<str>),
    StartsWith(Box<str>),
    Equals(Box<str>),
    Glob(Glob),
    Escaped(Box<str>),
    /// A broken glob.
    Never,
}

impl Pattern {
    fn new(pattern: &str) -> Self {
        let pattern = uri::lower(pattern);
        Self {
            form: Form::new(&pattern),
            merge: !pattern.contains("//"),
        }
    }

    fn matches(&self, head: &HttpHead) -> bool {
        let path = || head.folded_path(self.merge);
        match &self.form {
            Form::Any => true,
            Form::Contains(text) => path().contains(&**text),
            Form::EndsWith(text) => path().ends_with(&**text),
            Form::StartsWith(text) => path().starts_with(&**text),
            Form::Equals(text) => path() == &**text,
            Form::Glob(glob) => glob.matches(path()),
            Form::Escaped(pattern) => {
                let escaped = uri::escaped(head.raw_path());
                escaped_matches(pattern, &uri::lower(&uri::clean(&escaped, self.merge)))
            }
            Form::Never => false,
        }
    }
}

impl Form {
    fn new(pattern: &str) -> Self {
        if pattern == "*" {
            return Self::Any;
        }
        if pattern.contains('%') {
            return Self::Escaped(pattern.into());
        }
        let (tail, head) = (pattern.strip_prefix('*'), pattern.strip_suffix('*'));
        match (pattern.matches('*').count(), tail, head) {
            (2, Some(tail), Some(_)) => Self::Contains(tail.trim_end_matches('*').into()),
            (1, Some(tail), _) => Self::EndsWith(tail.into()),
            (1, _, Some(head)) => Self::StartsWith(head.into()),
            _ if !pattern.contains(['*', '?', '[', '\\']) => Self::Equals(pattern.into()),
            _ => Glob::new(pattern).map_or(Self::Never, Self::Glob),
        }
    }
}

/// Compares in escaped space where the pattern has escapes, in decoded space elsewhere: what the path has there is
/// written out one way or the other, and the result compared as a glob.
fn escaped_matches(pattern: &str, path: &str) -> bool {
    let Some(written) = write_out(pattern.as_bytes(), path.as_bytes()) else {
        return false;
    };
    let Some(glob) = Glob::new(&pattern.replace("%*", "*")) else {
        return false;
    };
    glob.matches(&uri::lower(&uri::to_text(&written)))
}

fn write_out(pattern: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    let (mut wanted, mut rest) = (pattern, path);
    while let (Some((&want, mut after_want)), Some((&given, mut after))) =
        (wanted.split_first(), rest.split_first())
    {
        let escape = if given == b'%' { rest.get(..3) } else { None };
        if escape.is_some() {
            after = &rest[3..];
        }
        let literal_escape = want == b'%' && after_want.len() >= 2 && after_want[0] != b'*';
        if literal_escape {
            out.extend_from_slice(escape.unwrap_or_default());
            (wanted, rest) = (&after_want[2..], after);
            continue;
        }
        if want != b'%' && want != b'*' {
            match escape {
                Some(escape) => out.extend_from_slice(&uri::unescape(escape)?),
                None => out.push(given),
            }
            (wanted, rest) = (after_want, after);
            continue;
        }
        if want == b'%' {
            after_want = after_want.get(1..).unwrap_or_default();
        }
        // The wildcard goes up to the next octet that the pattern has. Where it begins on an escape, the reference
        // counts from the last octet of that, and so do we: the same requests match.
        let from = if escape.is_some() { &rest[2..] } else { rest };
        let length = match after_want.first() {
            Some(next) => from.iter().position(|b| b == next)?,
            None => from.len(),
        };
        let (covered, after) = from.split_at(length);
        if want == b'*' {
            out.extend_from_slice(&uri::unescape(covered)?);
        } else {
            out.extend_from_slice(covered);
        }
        (wanted, rest) = (after_want, after);
    }
    // A rest of the path counts, so that a pattern is never only a prefix.
    out.extend_from_slice(&uri::unescape(rest).unwrap_or(rest.into()));
    Some(out)
}

pub(super) fn provision(
    config: PathConfig,
    cx: &mut Provision<'_>,
) -> Result<Box<dyn RequestMatch>, Rejected> {
    let entries = cx.all(&config.0, |cx, path| {
        let template = cx.template(path)?;
        let Some(text) = template.constant() else {
            return Ok(Entry::Expanded(template));
        };
        let pattern = Pattern::new(text);
        if matches!(pattern.form, Form::Never) {
            cx.warn(
                path.node(),
                format!("{text:?} is not a valid pattern and never matches"),
            );
        }
        Ok(Entry::Fixed(pattern))
    })?;
    Ok(Box::new(MatchPath(entries)))
}

#[cfg(test)]
mod tests {
    use l4_core::{Fact as _, Parsed};
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, target: &str) -> bool {
        let head = format!("GET {target} HTTP/1.1\r\n\r\n");
        let Parsed::Done(head) = HttpHead::parse(head.as_bytes()) else {
            panic!("{target}")
        };
        Pattern::new(pattern).matches(&head)
    }

    /// `t` lists targets, `p` a pattern, the `m` lines behind it the targets it matches.
    #[test]
    fn paths_match_as_in_the_reference() {
        let rows = include_str!("../../testdata/paths.txt");
        let of = |kind: &'static str| rows.lines().filter_map(move |line| line.strip_prefix(kind));
        let targets = of("t ").collect::<Vec<_>>();
        let mut patterns: Vec<(&str, Vec<&str>)> = Vec::new();
        for line in rows.lines() {
            if let Some(pattern) = line.strip_prefix("p ") {
                patterns.push((pattern, Vec::new()));
            }
            if let Some(target) = line.strip_prefix("m ") {
                patterns.last_mut().unwrap().1.push(target);
            }
        }
        assert!(targets.len() > 60 && patterns.len() > 50);
        for (pattern, expected) in patterns {
            let matched = targets
                .iter()
                .copied()
                .filter(|target| matches(pattern, target));
            assert_eq!(matched.collect::<Vec<_>>(), expected, "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_compared_with_any_path(
            pattern in r"[/.a%2fF*?\[\]\\\u{e4}-]{0,14}",
            target in r"/[/.a2fF*\u{e4}]{0,6}(%2[fF])?[/.a2fF*\u{e4}]{0,6}(%[cC]3)?",
        ) {
            matches(&pattern, &target);
        }

        #[test]
        fn a_path_matches_itself_and_its_beginnings(path in "(/[a-z0-9]{1,5}){1,4}", cut in 1..8_usize) {
            prop_assert!(matches(&path, &path));
            let beginning = format!("{}*", &path[..cut.min(path.len())]);
            let longer = format!("{path}/");
            prop_assert!(matches(&beginning, &path));
            prop_assert!(!matches(&longer, &path));
        }
    }
}
