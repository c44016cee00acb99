//! Regular expressions as configurations write them: RE2 syntax, with the meaning that Go's `regexp` gives it.
//!
//! The engine is the crate `regex`, whose matching is RE2's (leftmost, first alternative, linear time) but whose
//! dialect is another: there `\d`, `\w`, `\s` and `\b` know Unicode, `{` always starts a repetition, `[a&&b]` is an
//! intersection, and `\Q…\E` and octal escapes do not exist. So every pattern is read by the rules of RE2 and written
//! anew, and one that RE2 refuses is refused in a sentence.
//!
//! Differences that remain:
//!
//! * Scripts are found by their short names too (`\p{Grek}`), and those with a `_` in their name under it.
//! * Expressions nest up to 250 levels deep, where a group, its alternatives, their sequences and the group's repetition
//!   are a level each. Compiled, an expression takes at most 64 MiB. Go stops at 1000 levels and 128 MiB.
//! * Half of a surrogate pair (`\x{D800}`) is no character, so it never matches.
//! * Unicode is that of `regex`, not that of some Go release: a character that was added since has its class.

mod re2;

use std::borrow::Cow;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};

use crate::config::{At, Node};
use crate::conn::Capture;
use crate::provision::{Provision, Rejected};

pub use re2::RegexpError;

/// A regular expression in RE2 syntax, found anywhere in a text unless it is anchored.
#[derive(Debug, Clone)]
pub struct Expression {
    regex: Regex,
    /// What groups are called, by number and, where they have one, by name.
    groups: Box<[(Arc<str>, usize)]>,
}

impl Expression {
    /// Compiles `pattern`.
    ///
    /// # Errors
    /// It is not RE2 syntax, or takes too much memory.
    pub fn new(pattern: &str) -> Result<Self, RegexpError> {
        Self::compile(pattern, false)
    }

    /// Compiles `pattern` as if it began with `(?i)`; `(?-i)` in it tells upper and lower case apart again.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn ignoring_case(pattern: &str) -> Result<Self, RegexpError> {
        Self::compile(pattern, true)
    }

    fn compile(pattern: &str, ignore_case: bool) -> Result<Self, RegexpError> {
        let translated = re2::translate(pattern, ignore_case)?;
        let regex = RegexBuilder::new(&translated.pattern)
            .size_limit(MAX_SIZE)
            .build()
            .map_err(RegexpError::from_engine)?;
        let numbered = (0..=translated.names.len()).map(|group| (group.to_string().into(), group));
        let mut groups: Vec<(Arc<str>, usize)> = numbered.collect();
        // Names may be given twice and may be numbers; the one written last hides the others.
        for (name, group) in translated.names.into_iter().zip(1..) {
            let Some(name) = name else { continue };
            match groups.iter_mut().find(|(taken, _)| **taken == *name) {
                Some((_, hidden)) => *hidden = group,
                None => groups.push((name.into(), group)),
            }
        }
        Ok(Self {
            regex,
            groups: groups.into(),
        })
    }

    /// The pattern as the engine was given it, in the dialect of the crate `regex`.
    pub fn translated(&self) -> &str {
        self.regex.as_str()
    }

    /// Whether some part of `text` matches. Takes no memory but for the engine's cache, which soon is full.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// What the groups took of the first match, by number (0 is the whole match) and by name, as
    /// [`Capture::groups`] wants it. A group that took no part is empty. If nothing matches, it costs what
    /// [`is_match`](Self::is_match) costs.
    pub fn captures(&self, text: &str) -> Option<Vec<(Arc<str>, Box<str>)>> {
        // The plain test first: it runs without the memory that captures take.
        if !self.regex.is_match(text) {
            return None;
        }
        let found = self.regex.captures(text)?;
        let group = |(key, number): &(Arc<str>, usize)| {
            let taken = found.get(*number).map_or("", |taken| taken.as_str());
            (key.clone(), taken.into())
        };
        Some(self.groups.iter().map(group).collect())
    }
}

/// An expression whose captures are read as `{PREFIX.GROUP}` and, if it has a name, `{PREFIX.NAME.GROUP}`.
#[derive(Debug, Clone)]
pub struct NamedExpression {
    expression: Expression,
    prefix: &'static str,
    name: Option<Arc<str>>,
}

impl NamedExpression {
    /// Compiles `pattern` for captures under `prefix` (`l4.regexp`). An empty name is none.
    ///
    /// # Errors
    /// The name or the pattern is refused; what is wrong with either was reported.
    pub fn provision(
        name: Option<&At<String>>,
        pattern: &At<String>,
        prefix: &'static str,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let expression = Expression::new(pattern).map_err(|error| error.reject(pattern.node(), cx));
        Self::with_expression(name, expression, prefix, cx)
    }

    /// [`provision`](Self::provision) with an expression that was compiled in another way.
    ///
    /// # Errors
    /// The name is refused, or the expression was.
    pub fn with_expression(
        name: Option<&At<String>>,
        expression: Result<Expression, Rejected>,
        prefix: &'static str,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let name = name.filter(|name| !name.is_empty());
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if let Some(name) = name
            && !name.bytes().all(word)
        {
            return Err(cx.reject_help(
                name.node(),
                format!("invalid expression name {:?}", **name),
                "use letters, digits and underscores only",
            ));
        }
        Ok(Self {
            expression: expression?,
            prefix,
            name: name.map(|name| name.as_str().into()),
        })
    }

    /// [`Expression::is_match`].
    pub fn is_match(&self, text: &str) -> bool {
        self.expression.is_match(text)
    }

    /// What the first match captured; costs what [`Expression::captures`] costs.
    pub fn capture(&self, text: &str) -> Option<Capture> {
        Some(Capture {
            groups: self.expression.captures(text)?,
            prefix: self.prefix,
            name: self.name.clone(),
        })
    }
}

impl RegexpError {
    /// Reports the error at `node`, which holds the pattern.
    pub fn reject(&self, node: Node, cx: &mut Provision<'_>) -> Rejected {
        let message = format!("invalid regular expression: {self}");
        match self.help() {
            Some(help) => cx.reject_help(node, message, help),
            None => cx.reject(node, message),
        }
    }

    /// Why the engine refused what the translator wrote.
    fn from_engine(error: regex::Error) -> Self {
        match error {
            regex::Error::CompiledTooBig(_) => Self::TooLarge,
            error => {
                // It draws the pattern over several lines, and ours is not the one that was written; its last line
                // says what is wrong.
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default();
                match why.strip_prefix("error: ").unwrap_or(why) {
                    why if why.contains("nested") => Self::TooDeep,
                    why => Self::Engine(why.into()),
                }
            }
        }
    }
}

/// Fills in the placeholders of a pattern. A repetition such as `{2,5}` looks like one and would silently vanish, so
/// that is a warning.
///
/// # Errors
/// The pattern has too many open braces.
pub fn expand_pattern(pattern: &At<String>, cx: &mut Provision<'_>) -> Result<String, Rejected> {
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

/// Bytes as the text that expressions are matched against: every byte that is not part of valid UTF-8 is one U+FFFD.
///
/// [`String::from_utf8_lossy`] makes one of a whole truncated character, which `.` and `[^a]` would notice.
pub fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(text)
}

/// What a compiled expression may take: `\pL{1000}` needs half of it and is allowed in Go.
const MAX_SIZE: usize = 64 << 20;

#[cfg(test)]
mod tests;
