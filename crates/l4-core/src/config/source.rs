//! The text a document was read from, and places in it.

use std::fmt;

/// A place in a text as an editor counts it.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Position {
    /// Line, the first is 1. Only a line feed ends a line.
    pub line: u32,
    /// Column, the first is 1. Counts characters, not bytes; a tab counts as one.
    pub column: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Half-open range of byte offsets. They are 32 bits because [`Source::MAX_BYTES`] bounds texts.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Span {
    pub(super) fn new(start: usize, end: usize) -> Self {
        Self {
            start: offset(start),
            end: offset(end),
        }
    }
}

/// A text with its name, shared by a document and all errors about it.
pub(super) struct Source {
    name: Box<str>,
    text: Box<str>,
    /// Byte offset of the first character of every line.
    lines: Vec<u32>,
}

impl Source {
    pub(super) const MAX_BYTES: usize = u32::MAX as usize;

    pub(super) fn new(name: &str, text: &str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| offset(at + 1));
        let lines = std::iter::once(0).chain(after_breaks).collect();
        Self {
            name: name.into(),
            text: text.into(),
            lines,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The text at `span`, empty when the span is not one of this text.
    pub(super) fn slice(&self, span: Span) -> &str {
        self.text
            .get(span.start as usize..span.end as usize)
            .unwrap_or_default()
    }

    pub(super) fn position(&self, at: u32) -> Position {
        let line = self.line_index(at);
        let before = Span {
            start: self.line_start(line),
            end: at,
        };
        let column = self.slice(before).chars().count() + 1;
        Position {
            line: offset(line + 1),
            column: offset(column),
        }
    }

    /// The line that holds the byte at `at`, without its line break.
    pub(super) fn line_at(&self, at: u32) -> &str {
        let start = self.line_start(self.line_index(at)) as usize;
        let rest = self.text.get(start..).unwrap_or_default();
        rest.lines().next().unwrap_or_default()
    }

    fn line_index(&self, at: u32) -> usize {
        self.lines
            .partition_point(|&start| start <= at)
            .saturating_sub(1)
    }

    fn line_start(&self, index: usize) -> u32 {
        self.lines.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({:?}, {} bytes)", self.name, self.text.len())
    }
}

/// Longer texts than [`Source::MAX_BYTES`] are refused before any offset is taken, so nothing
/// saturates in practice.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_end_at_line_feeds() {
        let source = Source::new("t", "a\n\u{e4}\tb\r\n");
        let at = |offset| source.position(offset).to_string();
        assert_eq!(
            [at(0), at(1), at(2), at(5), at(7)],
            ["1:1", "1:2", "2:1", "2:3", "2:5"]
        );
        assert_eq!(at(8), "3:1");
        assert_eq!(source.line_at(5), "\u{e4}\tb");
        assert_eq!(source.line_at(8), "");
    }
}
