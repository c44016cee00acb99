//! Complaints about a configuration, each with the place it is about.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::document::{Document, Node};
use super::source::{Position, Source, Span};

/// One thing that is wrong with a configuration, and where.
///
/// `Display` is one line for logs and API answers; [`render`](Self::render) shows the line of the
/// text for people. The error owns what it needs, so it outlives the document.
#[derive(Clone, Debug)]
pub struct ConfigError(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    message: String,
    help: Option<String>,
    site: Site,
    related: Vec<(String, Site)>,
}

#[derive(Clone, Debug)]
enum Site {
    /// The whole text, or a text that could not be read at all.
    Named(Box<str>),
    Text {
        source: Arc<Source>,
        pointer: String,
        /// What the caret line underlines.
        marked: Span,
        /// The value the error is about, when it is more than what is underlined.
        value: Option<Span>,
    },
}

impl ConfigError {
    /// An error about something that has no text, such as a file that cannot be opened.
    pub fn without_place(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(message.into(), Site::Named(name.into().into_boxed_str()))
    }

    pub(super) fn in_text(
        source: &Arc<Source>,
        pointer: String,
        marked: Span,
        value: Option<Span>,
        message: impl Into<String>,
    ) -> Self {
        let site = Site::Text {
            source: Arc::clone(source),
            pointer,
            marked,
            value,
        };
        Self::new(message.into(), site)
    }

    fn new(message: String, site: Site) -> Self {
        Self(Box::new(Inner {
            message,
            help: None,
            site,
            related: Vec::new(),
        }))
    }

    /// Adds a sentence that says what would be right. A second call replaces the first.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.0.help = Some(help.into());
        self
    }

    /// Adds a second place, for example where a name was first used, and what it has to do with
    /// the error (`"first defined here"`). A member is shown at its key.
    #[must_use]
    pub fn related(mut self, document: &Document, node: Node, note: impl Into<String>) -> Self {
        let place = *document.key_error(node, "").0;
        self.0.related.push((note.into(), place.site));
        self
    }

    /// What is wrong, in one sentence without a place.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What would be right, see [`help`](Self::help).
    pub fn help_text(&self) -> Option<&str> {
        self.0.help.as_deref()
    }

    /// JSON pointer of the value the error is about. Empty for the root, and without a place.
    pub fn pointer(&self) -> &str {
        match &self.0.site {
            Site::Named(_) => "",
            Site::Text { pointer, .. } => pointer,
        }
    }

    /// Line and column of the caret.
    pub fn position(&self) -> Option<Position> {
        self.0.site.position()
    }

    /// Byte offset of the caret; cheap, where counting columns is not.
    pub(super) fn offset(&self) -> Option<u32> {
        match &self.0.site {
            Site::Named(_) => None,
            Site::Text { marked, .. } => Some(marked.start),
        }
    }

    /// The name the text was read under, such as a file name.
    pub fn source_name(&self) -> &str {
        self.0.site.name()
    }

    /// Several lines for a person: message, place, the line of the text with the faulty part
    /// underlined, the value, help, and related places. No line break at the end.
    pub fn render(&self) -> String {
        let mut out = format!("error: {}\n", Printable(&self.0.message));
        let gutter = self.position().map_or(0, |at| at.line.to_string().len());
        let _ = write!(out, "{:gutter$}--> {}", "", self.0.site);
        if let Site::Text {
            source,
            pointer,
            marked,
            value,
        } = &self.0.site
        {
            render_line(&mut out, gutter, source, *marked);
            let _ = write!(out, "\n{:gutter$} = at: {}", "", Pointer(pointer));
            if let Some(value) = value {
                let shown = one_line(source.slice(*value));
                let _ = write!(out, "\n{:gutter$} = value: {}", "", Printable(&shown));
            }
        }
        if let Some(help) = &self.0.help {
            let _ = write!(out, "\n{:gutter$} = help: {}", "", Printable(help));
        }
        for (note, site) in &self.0.related {
            let _ = write!(out, "\n{:gutter$} = {}: {site}", "", Printable(note));
        }
        out
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.0.site)?;
        if let Site::Text { pointer, .. } = &self.0.site {
            write!(f, "{}: ", Pointer(pointer))?;
        }
        write!(f, "{}", Printable(&self.0.message))
    }
}

impl std::error::Error for ConfigError {}

impl Site {
    fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Text { source, .. } => source.name(),
        }
    }

    fn position(&self) -> Option<Position> {
        match self {
            Self::Named(_) => None,
            Self::Text { source, marked, .. } => Some(source.position(marked.start)),
        }
    }
}

/// `file.json:12:17`, or only the name.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Printable(self.name()))?;
        self.position()
            .map_or(Ok(()), |position| write!(f, ":{position}"))
    }
}

/// Everything that is wrong with a configuration, in the order of the text.
///
/// `Display` renders all of them, separated by empty lines, and ends with their number.
#[derive(Clone, Debug, Default)]
pub struct Errors(Vec<ConfigError>);

impl Errors {
    /// The errors in order of appearance.
    pub fn as_slice(&self) -> &[ConfigError] {
        &self.0
    }

    /// Gives the errors back, in order of appearance.
    pub fn into_vec(self) -> Vec<ConfigError> {
        self.0
    }
}

impl From<Vec<ConfigError>> for Errors {
    fn from(mut errors: Vec<ConfigError>) -> Self {
        // Stable: errors of one place keep the order in which they were found.
        errors.sort_by(|a, b| {
            a.source_name()
                .cmp(b.source_name())
                .then_with(|| a.offset().cmp(&b.offset()))
        });
        Self(errors)
    }
}

impl From<ConfigError> for Errors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            write!(f, "{}\n\n", error.render())?;
        }
        match self.0.len() {
            1 => f.write_str("1 error"),
            count => write!(f, "{count} errors"),
        }
    }
}

impl std::error::Error for Errors {}

/// The line around the caret, and the line under it.
fn render_line(out: &mut String, gutter: usize, source: &Source, marked: Span) {
    let position = source.position(marked.start);
    let line = source.line_at(marked.start);
    let caret = position.column.saturating_sub(1) as usize;
    let first = if line.chars().count() > LINE_CHARS {
        caret.saturating_sub(CHARS_BEFORE)
    } else {
        0
    };

    let window: String = line.chars().skip(first).take(LINE_CHARS).collect();
    let cut_left = if first > 0 { ELLIPSIS } else { "" };
    let cut_right = if line.chars().count() > first + LINE_CHARS {
        ELLIPSIS
    } else {
        ""
    };
    // A tab under a tab keeps the caret in place whatever the terminal's tab width is.
    let indent: String = window
        .chars()
        .take(caret - first)
        .map(|c| if c == '\t' { '\t' } else { ' ' })
        .collect();
    let room = window.chars().count().saturating_sub(caret - first).max(1);
    let length = source.slice(marked).chars().count().clamp(1, room);

    let _ = write!(
        out,
        "\n{:gutter$} |\n{} | {cut_left}{}{cut_right}\n{:gutter$} | {:pad$}{indent}{}",
        "",
        position.line,
        Printable(&window),
        "",
        "",
        "^".repeat(length),
        pad = cut_left.chars().count(),
    );
}

/// White space folded, cut to [`VALUE_CHARS`] characters.
fn one_line(text: &str) -> String {
    // Bounds the work too: a value may be the whole document.
    let head: String = text.chars().take(4 * VALUE_CHARS).collect();
    let folded = head.split_whitespace().collect::<Vec<_>>().join(" ");
    if head.len() == text.len() && folded.chars().count() <= VALUE_CHARS {
        return folded;
    }
    folded
        .chars()
        .take(VALUE_CHARS)
        .chain(ELLIPSIS.chars())
        .collect()
}

/// A name or value as a message repeats it, cut to [`QUOTED_CHARS`] characters.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}{ELLIPSIS}", text.get(..end).unwrap_or_default()),
    }
}

/// Text from a configuration, fit for a terminal: control characters other than tab become one
/// replacement character each, so that columns stay right and no escape sequence gets through.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .chars()
            .map(|c| {
                if c.is_control() && c != '\t' {
                    char::REPLACEMENT_CHARACTER
                } else {
                    c
                }
            })
            .try_for_each(|c| f.write_char(c))
    }
}

/// RFC 6901 writes the root as nothing, which nobody would find in a message.
struct Pointer<'a>(&'a str);

impl fmt::Display for Pointer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}",
            Printable(if self.0.is_empty() { "/" } else { self.0 })
        )
    }
}

/// Longest part of a line that is shown.
const LINE_CHARS: usize = 100;
/// How much of a cut line stands before the caret.
const CHARS_BEFORE: usize = 40;
/// Longest value that is shown.
const VALUE_CHARS: usize = 72;
/// Longest part of a name or value that a message repeats.
const QUOTED_CHARS: usize = 48;
const ELLIPSIS: &str = "\u{2026}";

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document::parse("l4.json", text.as_bytes()).unwrap()
    }

    #[test]
    fn one_line_form_names_file_line_column_and_pointer() {
        let doc = document("{\n  \"a\": {\"b/c\": 5}\n}");
        let a = doc.member(doc.root(), "a").unwrap();
        let node = doc.member(a, "b/c").unwrap();
        let error = doc.error(node, "too small");
        assert_eq!(error.to_string(), "l4.json:2:16: /a/b~1c: too small");
        assert_eq!(
            doc.key_error(node, "no").to_string(),
            "l4.json:2:9: /a/b~1c: no"
        );
        assert_eq!(
            doc.error(doc.root(), "no").to_string(),
            "l4.json:1:1: /: no"
        );
    }

    #[test]
    fn rendered_form_underlines_the_value_and_keeps_tabs() {
        let doc = document("{\n\t\"dial\":\t[\"a:1\", \"b:x\"]\n}");
        let dial = doc.member(doc.root(), "dial").unwrap();
        let second = doc.items(dial).nth(1).unwrap();
        let error = doc
            .error(second, "invalid start port")
            .help("a port is a number from 0 to 65535")
            .related(&doc, dial, "in this list");
        let expected = "\
error: invalid start port
 --> l4.json:2:18
  |
2 | \t\"dial\":\t[\"a:1\", \"b:x\"]
  | \t       \t        ^^^^^
  = at: /dial/1
  = help: a port is a number from 0 to 65535
  = in this list: l4.json:2:2";
        assert_eq!(error.render(), expected);
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let doc = document(&format!(
            "{{\"pad\":\"{}\",\"x\":12,\"more\":{:?}}}",
            "p".repeat(500),
            "q".repeat(500)
        ));
        let node = doc.member(doc.root(), "x").unwrap();
        let rendered = doc.error(node, "no").render();
        let lines: Vec<&str> = rendered.lines().collect();
        let caret = lines[4].chars().position(|c| c == '^').unwrap();
        let marked: String = lines[3].chars().skip(caret).take(2).collect();
        assert_eq!(marked, "12");
        assert!(lines[3].chars().count() < 120, "{}", lines[3]);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let doc = document("{\"a\\u001b[2J\": 1}");
        let node = doc
            .items(doc.root())
            .next()
            .or(doc.members(doc.root()).next().map(|(_, n)| n));
        let text = doc.error(node.unwrap(), "bad \u{1b}[2J").to_string();
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn key_errors_show_the_value_too() {
        let doc = document("{\"a\": {\n  \"b\": 1}}");
        let node = doc.member(doc.root(), "a").unwrap();
        assert!(
            doc.key_error(node, "no")
                .render()
                .contains("= value: { \"b\": 1}")
        );
    }

    #[test]
    fn all_errors_are_sorted_by_place_and_counted() {
        let doc = document("{\"a\": 1, \"b\": 2}");
        let [a, b] = ["a", "b"].map(|key| doc.member(doc.root(), key).unwrap());
        let errors = Errors::from(vec![doc.error(b, "second"), doc.error(a, "first")]);
        let text = errors.to_string();
        assert!(text.find("first").unwrap() < text.find("second").unwrap());
        assert!(text.ends_with("\n\n2 errors"));
        let one = ConfigError::without_place("l4.json", "permission denied");
        assert_eq!(one.to_string(), "l4.json: permission denied");
        assert_eq!(one.render(), "error: permission denied\n--> l4.json");
        assert!(Errors::from(one).to_string().ends_with("\n\n1 error"));
    }
}
