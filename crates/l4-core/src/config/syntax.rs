//! The JSON grammar of RFC 8259, strictly, into a flat tree whose nodes know where they stand.
//!
//! The parser never panics and allocates only for text it has seen. It descends recursively, which
//! [`MAX_DEPTH`] bounds. On a fault the part of the tree read so far stays usable, so that other
//! complaints can be made about it in the same run.

use super::document::Node;
use super::error::shortened;
use super::source::Span;
use super::suggest::closest;

/// Objects and lists inside each other. Real configurations stay below 30.
pub(super) const MAX_DEPTH: usize = 128;

/// Nodes in the order of the text, so that comparing [`Node`]s compares places.
#[derive(Debug, Default)]
pub(super) struct Tree(Vec<Entry>);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) parent: Option<Node>,
    pub(super) origin: Origin,
    pub(super) kind: Kind,
    /// The value as written, from its first to its last character.
    pub(super) span: Span,
    first_child: Option<Node>,
    next_sibling: Option<Node>,
}

impl Entry {
    /// A `null` at the start of the text that no document holds.
    pub(super) const NOWHERE: Self = Self {
        parent: None,
        origin: Origin::Root,
        kind: Kind::Null,
        span: Span { start: 0, end: 0 },
        first_child: None,
        next_sibling: None,
    };
}

/// How a node hangs on its parent.
#[derive(Debug)]
pub(super) enum Origin {
    Root,
    Item(u32),
    Member { key: Text, span: Span },
}

#[derive(Debug)]
pub(super) enum Kind {
    Null,
    Bool(bool),
    Number,
    String(Text),
    Array,
    Object,
}

/// A decoded string: where it stands, or its content when escapes make that differ.
#[derive(Debug)]
pub(super) enum Text {
    Plain(Span),
    Unescaped(Box<str>),
}

/// Where and why reading stopped.
#[derive(Debug)]
pub(super) struct Fault {
    /// The innermost value being read, `None` before the first.
    pub(super) node: Option<Node>,
    pub(super) span: Span,
    pub(super) message: String,
    pub(super) help: Option<&'static str>,
    /// A place that explains the fault, such as the bracket that is still open.
    pub(super) related: Option<(Node, &'static str)>,
}

/// Reads one value and makes sure that nothing follows it.
pub(super) fn parse(text: &str) -> (Tree, Option<Fault>) {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
        tree: Tree::default(),
    };
    let fault = parser.document().err().map(|fault| *fault);
    (parser.tree, fault)
}

impl Tree {
    pub(super) fn entry(&self, node: Node) -> Option<&Entry> {
        self.0.get(node.index())
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = Node> + use<> {
        (0..self.0.len()).map(Node::from_index)
    }

    pub(super) fn children(&self, node: Node) -> impl Iterator<Item = Node> {
        let first = self.entry(node).and_then(|entry| entry.first_child);
        std::iter::successors(first, |&child| self.entry(child)?.next_sibling)
    }

    fn push(&mut self, place: Place, span: Span) -> Node {
        let node = Node::from_index(self.0.len());
        let neighbour = place
            .previous
            .or(place.parent)
            .and_then(|n| self.0.get_mut(n.index()));
        if let Some(neighbour) = neighbour {
            let link = match place.previous {
                Some(_) => &mut neighbour.next_sibling,
                None => &mut neighbour.first_child,
            };
            *link = Some(node);
        }
        self.0.push(Entry {
            parent: place.parent,
            origin: place.origin,
            kind: Kind::Null,
            span,
            first_child: None,
            next_sibling: None,
        });
        node
    }

    fn set(&mut self, node: Node, kind: Kind) {
        if let Some(entry) = self.0.get_mut(node.index()) {
            entry.kind = kind;
        }
    }

    fn end(&mut self, node: Node, end: usize) {
        if let Some(entry) = self.0.get_mut(node.index()) {
            entry.span.end = Span::new(end, end).end;
        }
    }
}

/// Where the next node goes.
struct Place {
    parent: Option<Node>,
    previous: Option<Node>,
    origin: Origin,
}

/// Boxed because it travels through every level of the descent.
type Parsed<T> = Result<T, Box<Fault>>;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    tree: Tree,
}

impl Parser<'_> {
    fn document(&mut self) -> Parsed<()> {
        self.skip_space();
        let root = self.value(Place {
            parent: None,
            previous: None,
            origin: Origin::Root,
        })?;
        self.skip_space();
        match self.peek_char() {
            None => Ok(()),
            Some(_) if self.at_comment() => Err(self.unexpected(root, "")),
            Some(c) => {
                let message = format!("invalid character {c:?} after top-level value");
                let fault = self.fault(Some(root), self.here(), message);
                Err(fault.help("a configuration is one JSON value with nothing after it"))
            }
        }
    }

    fn value(&mut self, place: Place) -> Parsed<Node> {
        let node = self.tree.push(place, self.here());
        let kind = match self.peek() {
            Some(b'{') => return self.container(node, Kind::Object, Self::members),
            Some(b'[') => return self.container(node, Kind::Array, Self::items),
            Some(b'"') => Kind::String(self.string(node)?),
            Some(b'-' | b'0'..=b'9') => self.number(node)?,
            Some(c) if c.is_ascii_alphabetic() => self.word(node)?,
            _ => return Err(self.unexpected(node, "a value")),
        };
        self.tree.set(node, kind);
        self.tree.end(node, self.at);
        Ok(node)
    }

    fn container(
        &mut self,
        node: Node,
        kind: Kind,
        content: fn(&mut Self, Node) -> Parsed<()>,
    ) -> Parsed<Node> {
        if self.depth == MAX_DEPTH {
            let message = format!("lists and objects are nested deeper than {MAX_DEPTH} levels");
            return Err(self.fault(Some(node), self.here(), message));
        }
        // Known from here on, so that a fault further in leaves a tree that can be walked.
        self.tree.set(node, kind);
        self.depth += 1;
        self.at += 1;
        self.skip_space();
        content(self, node)?;
        self.depth -= 1;
        self.tree.end(node, self.at);
        Ok(node)
    }

    fn members(&mut self, object: Node) -> Parsed<()> {
        let mut previous = None;
        if self.eat(b'}') {
            return Ok(());
        }
        loop {
            let key_start = self.at;
            let key = self.key(object)?;
            let origin = Origin::Member {
                key,
                span: Span::new(key_start, self.at),
            };
            self.skip_space();
            if !self.eat(b':') {
                return Err(self.unexpected(object, "a colon after the key"));
            }
            self.skip_space();
            let place = Place {
                parent: Some(object),
                previous,
                origin,
            };
            previous = Some(self.value(place)?);
            if self.separator(object, b'}')? {
                return Ok(());
            }
        }
    }

    fn items(&mut self, list: Node) -> Parsed<()> {
        let mut previous = None;
        if self.eat(b']') {
            return Ok(());
        }
        for index in 0.. {
            let place = Place {
                parent: Some(list),
                previous,
                origin: Origin::Item(index),
            };
            previous = Some(self.value(place)?);
            if self.separator(list, b']')? {
                break;
            }
        }
        Ok(())
    }

    /// Reads a comma (`false`) or the closing bracket (`true`).
    fn separator(&mut self, container: Node, close: u8) -> Parsed<bool> {
        self.skip_space();
        if self.eat(close) {
            return Ok(true);
        }
        let comma = self.here();
        let closing = char::from(close);
        if !self.eat(b',') {
            let wanted = match self.peek() {
                Some(b'"' | b'{' | b'[' | b'0'..=b'9' | b'-') => "a comma before this".to_owned(),
                _ => format!("a comma or \"{closing}\""),
            };
            return Err(self.unexpected(container, &wanted));
        }
        self.skip_space();
        if self.peek() == Some(close) {
            let message = format!("trailing comma before \"{closing}\"");
            return Err(self
                .fault(Some(container), comma, message)
                .help("remove the comma"));
        }
        Ok(false)
    }

    fn key(&mut self, object: Node) -> Parsed<Text> {
        if self.peek() == Some(b'"') {
            return self.string(object);
        }
        let word = self.word_here();
        if word.is_empty() {
            return Err(self.unexpected(object, "a key in double quotes"));
        }
        let span = Span::new(self.at, self.at + word.len());
        let word = shortened(word);
        let message = format!("the key {word} has no quotes, write \"{word}\"");
        Err(self.fault(Some(object), span, message))
    }

    fn word(&mut self, node: Node) -> Parsed<Kind> {
        let word = self.word_here();
        let kind = match word {
            "null" => Kind::Null,
            "true" => Kind::Bool(true),
            "false" => Kind::Bool(false),
            _ => {
                let message = match closest(word, ["true", "false", "null"]) {
                    Some(name) => format!("unknown word {word} (did you mean {name}?)"),
                    None => format!("unknown word {}", shortened(word)),
                };
                let span = Span::new(self.at, self.at + word.len());
                let fault = self.fault(Some(node), span, message);
                return Err(fault.help("text is written in double quotes"));
            }
        };
        self.at += word.len();
        Ok(kind)
    }

    fn number(&mut self, node: Node) -> Parsed<Kind> {
        let start = self.at;
        self.eat(b'-');
        let integer = self.digits();
        let mut complaint = match integer {
            "" => Some("a number needs a digit here"),
            _ if integer.len() > 1 && integer.starts_with('0') => {
                Some("a number has no leading zeros")
            }
            _ => None,
        };
        if complaint.is_none() && self.eat(b'.') && self.digits().is_empty() {
            complaint = Some("a number needs a digit after its decimal point");
        }
        if complaint.is_none() && (self.eat(b'e') || self.eat(b'E')) {
            let _signed = self.eat(b'-') || self.eat(b'+');
            if self.digits().is_empty() {
                complaint = Some("a number needs a digit in its exponent");
            }
        }
        if complaint.is_none() && !self.word_here().is_empty() {
            complaint = Some("a number is followed by letters");
        }
        match complaint {
            None => Ok(Kind::Number),
            Some(message) => {
                let end = (self.at + self.word_here().len()).max(start + 1);
                let fault = self.fault(Some(node), Span::new(start, end), message);
                Err(fault.help("units, such as in \"10s\", need double quotes"))
            }
        }
    }

    fn digits(&mut self) -> &str {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Reads a string from its opening to its closing quote.
    fn string(&mut self, node: Node) -> Parsed<Text> {
        let opening = self.here();
        self.at += 1;
        let mut unescaped: Option<String> = None;
        let mut run = self.at;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    let before = self.text.get(run..self.at).unwrap_or_default();
                    let text = unescaped.get_or_insert_default();
                    text.push_str(before);
                    text.push(self.escape(node)?);
                    run = self.at;
                }
                Some(b'\n') => {
                    let fault = self.fault(Some(node), opening, "this string has no closing quote");
                    return Err(fault.help("a line break inside a string is written \\n"));
                }
                Some(c @ ..0x20) => {
                    let message = format!("control character inside a string, write \\u{c:04x}");
                    return Err(self.fault(Some(node), self.here(), message));
                }
                Some(_) => self.at += 1,
                None => {
                    let message = "this string has no closing quote";
                    return Err(self.fault(Some(node), opening, message));
                }
            }
        }
        let tail = Span::new(run, self.at);
        self.at += 1;
        Ok(match unescaped {
            None => Text::Plain(tail),
            Some(mut text) => {
                text.push_str(self.text.get(run..self.at - 1).unwrap_or_default());
                Text::Unescaped(text.into_boxed_str())
            }
        })
    }

    /// Reads one escape sequence, `\` included.
    fn escape(&mut self, node: Node) -> Parsed<char> {
        let start = self.at;
        self.at += 1;
        let simple = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(node, start),
            _ => {
                let end = self.at + self.peek_char().map_or(0, char::len_utf8);
                let message = "invalid escape sequence in a string";
                let fault = self.fault(Some(node), Span::new(start, end), message);
                return Err(fault.help("a backslash itself is written \\\\"));
            }
        };
        self.at += 1;
        Ok(simple)
    }

    /// Reads `uXXXX`, and the second half when it is a surrogate pair.
    fn unicode_escape(&mut self, node: Node, start: usize) -> Parsed<char> {
        let first = self.hex_unit(node, start)?;
        let mut code = u32::from(first);
        if (0xd800..0xdc00).contains(&first) && self.eat(b'\\') && self.peek() == Some(b'u') {
            let second = self.hex_unit(node, start)?;
            if (0xdc00..0xe000).contains(&second) {
                code = 0x10000 + ((u32::from(first) - 0xd800) << 10) + u32::from(second) - 0xdc00;
            }
        }
        // A surrogate that stands alone is the only code left that is no character.
        char::from_u32(code).ok_or_else(|| {
            let message = "half of a surrogate pair in a string is not a character";
            self.fault(Some(node), Span::new(start, self.at), message)
        })
    }

    fn hex_unit(&mut self, node: Node, start: usize) -> Parsed<u16> {
        self.at += 1;
        let digits = self.text.get(self.at..self.at + 4).unwrap_or_default();
        // `from_str_radix` alone would take a sign.
        let unit = digits
            .bytes()
            .all(|c| c.is_ascii_hexdigit())
            .then(|| u16::from_str_radix(digits, 16).ok())
            .flatten();
        let Some(unit) = unit else {
            let span = Span::new(start, self.at);
            return Err(self.fault(Some(node), span, "\\u needs four hexadecimal digits"));
        };
        self.at += 4;
        Ok(unit)
    }

    /// The fault of not finding `wanted` at the current place.
    fn unexpected(&self, node: Node, wanted: &str) -> Box<Fault> {
        if self.at_comment() {
            let message = "comments are not allowed in JSON";
            return self
                .fault(Some(node), self.here(), message)
                .help("remove the comment");
        }
        match self.peek_char() {
            None => self.unexpected_end(node),
            Some('\'') => {
                let message = "strings and keys are written in double quotes";
                self.fault(Some(node), self.here(), message)
            }
            Some(c) => {
                let message = format!("invalid character {c:?}, expected {wanted}");
                self.fault(Some(node), self.here(), message)
            }
        }
    }

    fn unexpected_end(&self, node: Node) -> Box<Fault> {
        // The caret goes behind the last thing written, not onto an empty last line.
        let end = self.text.trim_end().len();
        let mut fault = self.fault(Some(node), Span::new(end, end), "the text ends too early");
        let open = std::iter::successors(Some(node), |&n| self.tree.entry(n)?.parent).find(|&n| {
            self.tree
                .entry(n)
                .is_some_and(|entry| entry.kind.is_container())
        });
        fault.related = open.map(|open| (open, "still open here"));
        fault
    }

    fn at_comment(&self) -> bool {
        let rest = self.text.get(self.at..).unwrap_or_default();
        ["//", "/*", "#"].iter().any(|mark| rest.starts_with(mark))
    }

    fn fault(&self, node: Option<Node>, span: Span, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault {
            node,
            span,
            message: message.into(),
            help: None,
            related: None,
        })
    }

    /// Letters, digits and the like at the current place: what a reader would call a word.
    fn word_here(&self) -> &str {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"_-.$".contains(c));
        rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
    }

    /// The character at the current place.
    fn here(&self) -> Span {
        Span::new(
            self.at,
            self.at + self.peek_char().map_or(0, char::len_utf8),
        )
    }

    fn peek_char(&self) -> Option<char> {
        self.text.get(self.at..)?.chars().next()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
}

impl Kind {
    pub(super) fn is_container(&self) -> bool {
        matches!(self, Self::Array | Self::Object)
    }
}

impl Fault {
    fn help(mut self: Box<Self>, help: &'static str) -> Box<Self> {
        self.help = Some(help);
        self
    }
}
