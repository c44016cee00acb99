//! A parsed JSON text whose every value knows its place.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use super::error::{ConfigError, shortened};
use super::source::{Position, Source, Span};
use super::syntax::{self, Entry, Kind, Origin, Text, Tree};

/// A JSON text with names and places for all of its values.
///
/// Numbers keep their digits, object members their order. Cloning is cheap: clones share the text.
///
/// ```text
/// let document = Document::parse("l4.json", br#"{"apps": {"layer4": {}}}"#)?;
/// let apps = document.member(document.root(), "apps")?;
/// document.pointer(apps) == "/apps"
/// document.position(apps) == line 1, column 10
/// ```
#[derive(Clone)]
pub struct Document(Arc<Inner>);

struct Inner {
    source: Arc<Source>,
    tree: Tree,
    ids: Vec<(Box<str>, Node)>,
}

/// A place in a [`Document`]: one of its values.
///
/// Meaningful only together with the document it came from. Another document answers without a
/// panic, but about something else. Nodes are ordered as they stand in the text.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Node(u32);

/// What stands at a [`Node`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number as it was written.
    Number(&'a str),
    /// A string, escapes replaced.
    String(&'a str),
    /// A list, see [`Document::items`].
    Array,
    /// An object, see [`Document::members`].
    Object,
}

impl Document {
    /// Reads a whole JSON text. `name` is shown in messages: a file name, `stdin`.
    ///
    /// Strict JSON of RFC 8259, and stricter: a key may occur once in an object, lists and objects
    /// nest at most 128 deep, and an `@id` member must be a string or a number that no other object
    /// uses. `null` and `{}` are documents, an empty text is not.
    ///
    /// # Errors
    ///
    /// Everything found wrong: all duplicate keys and `@id`s, and the place where the text stops
    /// being JSON. Never empty; beyond 100 duplicates the rest is left for the next run.
    pub fn parse(name: &str, text: &[u8]) -> Result<Self, Vec<ConfigError>> {
        if text.len() > Source::MAX_BYTES {
            return Err(vec![ConfigError::without_place(
                name,
                "the text is longer than 4 GiB",
            )]);
        }
        let source = Arc::new(Source::new(name, &String::from_utf8_lossy(text)));
        if let Some(error) = unreadable(&source, text) {
            return Err(vec![error]);
        }
        let (tree, fault) = syntax::parse(source.text());
        let mut inner = Inner {
            source,
            tree,
            ids: Vec::new(),
        };
        let mut errors = Vec::new();
        inner.duplicate_keys(&mut errors);
        inner.index_ids(&mut errors);
        let document = Self(Arc::new(inner));
        errors.extend(fault.map(|fault| document.syntax_error(fault)));
        errors.sort_by_key(ConfigError::offset);
        if errors.is_empty() {
            Ok(document)
        } else {
            Err(errors)
        }
    }

    /// The name given to [`parse`](Self::parse).
    pub fn name(&self) -> &str {
        self.0.source.name()
    }

    /// The outermost value.
    pub fn root(&self) -> Node {
        Node(0)
    }

    /// What stands at `node`.
    pub fn value(&self, node: Node) -> Value<'_> {
        self.0.value(node)
    }

    /// Keys and values of an object in the order of the text; nothing for other values.
    ///
    /// `@id` members are left out: they are an index for the admin API and no part of any setting.
    pub fn members(&self, node: Node) -> impl Iterator<Item = (&str, Node)> {
        self.0.all_members(node).filter(|&(key, _)| key != ID_KEY)
    }

    /// Values of a list; nothing for other values.
    pub fn items(&self, node: Node) -> impl Iterator<Item = Node> {
        let list = matches!(self.value(node), Value::Array);
        self.0.tree.children(node).filter(move |_| list)
    }

    /// The member of an object with exactly this key.
    pub fn member(&self, node: Node, key: &str) -> Option<Node> {
        self.members(node)
            .find_map(|(name, member)| (name == key).then_some(member))
    }

    /// The object or list that holds `node`; nothing for the root.
    pub fn parent(&self, node: Node) -> Option<Node> {
        self.0.entry(node).parent
    }

    /// The key `node` stands under; nothing for list items and the root.
    pub fn key(&self, node: Node) -> Option<&str> {
        self.0.key(node)
    }

    /// The value at a JSON pointer (RFC 6901) such as `/apps/layer4/servers/a/routes/0`. An empty
    /// pointer is the root, and so is `/`, as messages write it, unless there is a member without
    /// a name.
    pub fn find(&self, pointer: &str) -> Option<Node> {
        let root = self.root();
        if pointer.is_empty() {
            return Some(root);
        }
        let mut tokens = pointer.strip_prefix('/')?.split('/');
        let found = tokens.try_fold(root, |node, token| match self.value(node) {
            Value::Array => self.items(node).nth(list_index(token)?),
            _ => self.member(node, &token.replace("~1", "/").replace("~0", "~")),
        });
        found.or((pointer == "/").then_some(root))
    }

    /// All objects with an `@id`, with the id as text, in the order of the text.
    pub fn ids(&self) -> impl Iterator<Item = (&str, Node)> {
        self.0.ids.iter().map(|(id, node)| (&**id, *node))
    }

    /// JSON pointer (RFC 6901) of `node`, empty for the root.
    pub fn pointer(&self, node: Node) -> String {
        self.0.pointer(node)
    }

    /// Where the value starts.
    pub fn position(&self, node: Node) -> Position {
        self.0.source.position(self.0.entry(node).span.start)
    }

    /// Where the key starts that the value stands under, or the value when it has none.
    pub fn key_position(&self, node: Node) -> Position {
        self.0.source.position(self.0.key_span(node).start)
    }

    /// The value as it was written.
    pub fn text(&self, node: Node) -> &str {
        self.0.source.slice(self.0.entry(node).span)
    }

    /// The value in canonical form: keys sorted bytewise, no white space, `@id`s kept, numbers as
    /// they were written. Two values that differ only in layout have the same canonical form.
    pub fn canonical(&self, node: Node) -> String {
        let mut out = String::new();
        self.0.write_canonical(node, &mut out);
        out
    }

    /// An error about the value at `node`.
    pub fn error(&self, node: Node, message: impl Into<String>) -> ConfigError {
        self.0.error(node, message)
    }

    /// An error about the key that `node` stands under, or about the value when it has none.
    pub fn key_error(&self, node: Node, message: impl Into<String>) -> ConfigError {
        self.0.key_error(node, message)
    }

    fn syntax_error(&self, fault: syntax::Fault) -> ConfigError {
        let pointer = fault
            .node
            .map(|node| self.pointer(node))
            .unwrap_or_default();
        let mut error =
            ConfigError::in_text(&self.0.source, pointer, fault.span, None, fault.message);
        if let Some(help) = fault.help {
            error = error.help(help);
        }
        if let Some((node, note)) = fault.related {
            error = error.related(self, node, note);
        }
        error
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({:?})", self.0.source)
    }
}

impl Node {
    /// Saturates beyond what a text of the greatest size can hold.
    pub(super) fn from_index(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    pub(super) fn index(self) -> usize {
        self.0 as usize
    }

    pub(super) fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    pub(super) fn raw(self) -> u32 {
        self.0
    }
}

impl Inner {
    fn entry(&self, node: Node) -> &Entry {
        self.tree.entry(node).unwrap_or(&NOWHERE)
    }

    fn value(&self, node: Node) -> Value<'_> {
        let entry = self.entry(node);
        match &entry.kind {
            Kind::Null => Value::Null,
            Kind::Bool(value) => Value::Bool(*value),
            Kind::Number => Value::Number(self.source.slice(entry.span)),
            Kind::String(text) => Value::String(self.text(text)),
            Kind::Array => Value::Array,
            Kind::Object => Value::Object,
        }
    }

    fn all_members(&self, node: Node) -> impl Iterator<Item = (&str, Node)> {
        self.tree
            .children(node)
            .filter_map(|child| Some((self.key(child)?, child)))
    }

    fn key(&self, node: Node) -> Option<&str> {
        match &self.entry(node).origin {
            Origin::Member { key, .. } => Some(self.text(key)),
            Origin::Root | Origin::Item(_) => None,
        }
    }

    fn key_span(&self, node: Node) -> Span {
        match self.entry(node).origin {
            Origin::Member { span, .. } => span,
            Origin::Root | Origin::Item(_) => self.marked_span(node),
        }
    }

    /// What a caret line underlines: scalars whole, of lists and objects the bracket.
    fn marked_span(&self, node: Node) -> Span {
        let entry = self.entry(node);
        let whole = entry.span;
        if entry.kind.is_container() {
            Span {
                end: whole.start + 1,
                ..whole
            }
        } else {
            whole
        }
    }

    fn text<'a>(&'a self, text: &'a Text) -> &'a str {
        match text {
            Text::Plain(span) => self.source.slice(*span),
            Text::Unescaped(text) => text,
        }
    }

    fn pointer(&self, node: Node) -> String {
        let mut path = Vec::new();
        let mut next = Some(node);
        while let Some(node) = next {
            path.push(node);
            next = self.entry(node).parent;
        }
        let mut pointer = String::new();
        for node in path.into_iter().rev() {
            match &self.entry(node).origin {
                Origin::Root => {}
                Origin::Item(index) => {
                    let _ = write!(pointer, "/{index}");
                }
                Origin::Member { key, .. } => {
                    pointer.push('/');
                    pointer.push_str(&self.text(key).replace('~', "~0").replace('/', "~1"));
                }
            }
        }
        pointer
    }

    fn error(&self, node: Node, message: impl Into<String>) -> ConfigError {
        let whole = self.entry(node).span;
        let marked = self.marked_span(node);
        let value = (whole != marked).then_some(whole);
        ConfigError::in_text(&self.source, self.pointer(node), marked, value, message)
    }

    fn key_error(&self, node: Node, message: impl Into<String>) -> ConfigError {
        let key = self.key_span(node);
        let value = Some(self.entry(node).span);
        ConfigError::in_text(&self.source, self.pointer(node), key, value, message)
    }

    fn duplicate_keys(&self, errors: &mut Vec<ConfigError>) {
        for object in self.tree.nodes() {
            let mut members: Vec<_> = self.all_members(object).collect();
            // Nodes are in text order, so the first of equal keys comes first.
            members.sort_unstable();
            for same in members.chunk_by(|(a, _), (b, _)| a == b) {
                let Some(((key, first), later)) = same.split_first() else {
                    continue;
                };
                if errors.len() >= MAX_DUPLICATES {
                    return;
                }
                let place = self.source.position(self.key_span(*first).start);
                let (line, column) = (place.line, place.column);
                let key = shortened(key);
                errors.extend(later.iter().take(MAX_DUPLICATES).map(|&(_, second)| {
                    let message = format!(
                        "duplicate key {key:?}, first defined at line {line}, column {column}"
                    );
                    self.key_error(second, message)
                        .help("remove one of the two")
                }));
            }
        }
    }

    /// Collects the `@id`s of all objects and checks that they can serve as an index.
    fn index_ids(&mut self, errors: &mut Vec<ConfigError>) {
        let mut ids = Vec::new();
        let mut owners: HashMap<Box<str>, Node> = HashMap::new();
        for object in self.tree.nodes() {
            if errors.len() >= 2 * MAX_DUPLICATES {
                break;
            }
            // Of duplicate keys only the first counts; they are reported as such.
            let Some((_, node)) = self.all_members(object).find(|&(key, _)| key == ID_KEY) else {
                continue;
            };
            let id: Box<str> = match self.value(node) {
                Value::String(text) => text.into(),
                Value::Number(literal) => shortest_number(literal).into(),
                _ => {
                    errors.push(self.error(node, "@id field must be a string or number"));
                    continue;
                }
            };
            if let Some(&first) = owners.get(&id) {
                let [one, two] = [first, object].map(|owner| self.pointer(owner));
                let message = format!("duplicate ID '{}' found at {one} and {two}", shortened(&id));
                errors.push(self.error(node, message));
                continue;
            }
            ids.push((id.clone(), object));
            owners.insert(id, object);
        }
        self.ids = ids;
    }

    /// Recursion is bounded by the depth limit of the parser.
    fn write_canonical(&self, node: Node, out: &mut String) {
        match self.value(node) {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if value { "true" } else { "false" }),
            Value::Number(literal) => out.push_str(literal),
            Value::String(text) => write_json_string(text, out),
            Value::Array => {
                out.push('[');
                for (index, item) in self.tree.children(node).enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    self.write_canonical(item, out);
                }
                out.push(']');
            }
            Value::Object => {
                let mut members: Vec<_> = self.all_members(node).collect();
                members.sort_unstable();
                out.push('{');
                for (index, (key, member)) in members.into_iter().enumerate() {
                    out.push_str(if index > 0 { "," } else { "" });
                    write_json_string(key, out);
                    out.push(':');
                    self.write_canonical(member, out);
                }
                out.push('}');
            }
        }
    }
}

/// What makes a text unfit to be read as JSON at all.
fn unreadable(source: &Arc<Source>, text: &[u8]) -> Option<ConfigError> {
    let fault = |at, length, message: &str| {
        let span = Span::new(at, at + length);
        ConfigError::in_text(source, String::new(), span, None, message)
    };
    if text.starts_with(&[0xff, 0xfe]) || text.starts_with(&[0xfe, 0xff]) {
        return Some(fault(0, 0, "the text is UTF-16").help("save it as UTF-8"));
    }
    if text.starts_with("\u{feff}".as_bytes()) {
        let message = "the text starts with a byte order mark (BOM)";
        return Some(fault(0, 3, message).help("save it as UTF-8 without BOM"));
    }
    if text.trim_ascii().is_empty() {
        return Some(fault(
            0,
            0,
            "the file is empty; the smallest configuration is {}",
        ));
    }
    // The replacement characters of the lossy text come after this place, so offsets agree.
    let at = std::str::from_utf8(text).err()?.valid_up_to();
    let message = format!("invalid UTF-8 at byte {at}");
    Some(fault(at, 3, &message).help("save the text as UTF-8"))
}

/// The index a pointer token names; no sign, no leading zeros.
fn list_index(token: &str) -> Option<usize> {
    let index = token.parse().ok()?;
    (format!("{index}") == token).then_some(index)
}

/// A number as an `@id`: integers as written, others the shortest way that means the same.
fn shortest_number(literal: &str) -> String {
    let integer = literal.bytes().all(|c| c.is_ascii_digit() || c == b'-');
    match literal.parse::<f64>() {
        Ok(number) if !integer && number.is_finite() => number.to_string(),
        _ => literal.to_owned(),
    }
}

fn write_json_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Placing an error costs a walk over its line, and the whole text may be one line.
const MAX_DUPLICATES: usize = 100;

const ID_KEY: &str = "@id";

/// Stands in for nodes of another document.
static NOWHERE: Entry = Entry::NOWHERE;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Document {
        Document::parse("l4.json", text.as_bytes()).unwrap_or_else(|errors| panic!("{errors:?}"))
    }

    fn complaints(text: impl AsRef<[u8]>) -> Vec<String> {
        let errors = Document::parse("l4.json", text.as_ref()).unwrap_err();
        errors.iter().map(ToString::to_string).collect()
    }

    fn complaint(text: impl AsRef<[u8]>) -> String {
        let complaints = complaints(text);
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        complaints.concat()
    }

    #[test]
    fn values_keep_digits_order_and_escapes() {
        let doc = parse(r#"{"z": 1.50e+9, "a": ["\u00e4\ud83d\ude00\n\"", null, true], "@id": 7}"#);
        let keys: Vec<_> = doc.members(doc.root()).map(|(key, _)| key).collect();
        assert_eq!(keys, ["z", "a"]);
        let z = doc.member(doc.root(), "z").unwrap();
        assert_eq!(doc.value(z), Value::Number("1.50e+9"));
        let list = doc.member(doc.root(), "a").unwrap();
        let items: Vec<_> = doc.items(list).map(|item| doc.value(item)).collect();
        assert_eq!(
            items,
            [
                Value::String("\u{e4}\u{1f600}\n\""),
                Value::Null,
                Value::Bool(true)
            ]
        );
        assert_eq!(doc.member(doc.root(), "@id"), None);
        assert_eq!(doc.items(doc.root()).count(), 0);
        assert_eq!(doc.members(list).count(), 0);
    }

    #[test]
    fn smallest_documents_are_accepted() {
        for text in ["{}", "null", " \t\r\n{ } \n", "[]", "0", "\"\""] {
            assert_eq!(parse(text).pointer(parse(text).root()), "");
        }
    }

    #[test]
    fn texts_that_are_no_json_text_say_why() {
        assert_eq!(
            complaint(""),
            "l4.json:1:1: /: the file is empty; the smallest configuration is {}"
        );
        assert!(complaint(" \n\t").contains("the file is empty"));
        assert!(complaint(b"\xef\xbb\xbf{}").contains("byte order mark"));
        assert!(complaint(b"\xff\xfe{\0}\0").contains("UTF-16"));
        assert_eq!(
            complaint(b"{\n \"\xc3\xa4\xff\": 1}"),
            "l4.json:2:4: /: invalid UTF-8 at byte 6"
        );
    }

    #[test]
    fn syntax_faults_name_the_place_and_the_remedy() {
        let rows = [
            (
                "null true",
                "l4.json:1:6: /: invalid character 't' after top-level value",
            ),
            (
                "{} {}",
                "l4.json:1:4: /: invalid character '{' after top-level value",
            ),
            (
                "{\"a\": [1, 2,]}",
                "l4.json:1:12: /a: trailing comma before \"]\"",
            ),
            (
                "{\"a\": 1,\n}",
                "l4.json:1:8: /: trailing comma before \"}\"",
            ),
            (
                "{\"a\": 1} // x",
                "l4.json:1:10: /: comments are not allowed in JSON",
            ),
            (
                "{ /* x */ }",
                "l4.json:1:3: /: comments are not allowed in JSON",
            ),
            (
                "# x\n{}",
                "l4.json:1:1: /: comments are not allowed in JSON",
            ),
            (
                "{\"a\": 1 \"b\": 2}",
                "1:9: /: invalid character '\"', expected a comma before this",
            ),
            (
                "{\"a\": [1 x]}",
                "1:10: /a: invalid character 'x', expected a comma or \"]\"",
            ),
            (
                "{\"a\" 1}",
                "1:6: /: invalid character '1', expected a colon after the key",
            ),
            (
                "{\"a\": }",
                "1:7: /a: invalid character '}', expected a value",
            ),
            (
                "{dial: 1}",
                "1:2: /: the key dial has no quotes, write \"dial\"",
            ),
            (
                "{'a': 1}",
                "1:2: /: strings and keys are written in double quotes",
            ),
            ("[True]", "1:2: /0: unknown word True (did you mean true?)"),
            ("[NaN]", "1:2: /0: unknown word NaN"),
            ("[01]", "1:2: /0: a number has no leading zeros"),
            ("[-]", "1:2: /0: a number needs a digit here"),
            (
                "[1.]",
                "1:2: /0: a number needs a digit after its decimal point",
            ),
            ("[1e+]", "1:2: /0: a number needs a digit in its exponent"),
            ("[10s]", "1:2: /0: a number is followed by letters"),
            ("[+1]", "1:2: /0: invalid character '+', expected a value"),
            ("[\"a\nb\"]", "1:2: /0: this string has no closing quote"),
            (
                "[\"a\tb\"]",
                "1:4: /0: control character inside a string, write \\u0009",
            ),
            (
                "[\"C:\\dir\"]",
                "1:5: /0: invalid escape sequence in a string",
            ),
            (
                "[\"\\u12g4\"]",
                "1:3: /0: \\u needs four hexadecimal digits",
            ),
            (
                "[\"\\u+123\"]",
                "1:3: /0: \\u needs four hexadecimal digits",
            ),
            ("[\"\\ud83d\"]", "1:3: /0: half of a surrogate pair"),
            ("[\"\\ud83d\\u0041\"]", "1:3: /0: half of a surrogate pair"),
            (
                "{\"a\": {\"b\": [1,",
                "1:16: /a/b/1: the text ends too early",
            ),
        ];
        for (text, expected) in rows {
            let seen = complaint(text);
            assert!(seen.contains(expected), "{text:?}: {seen}");
        }
    }

    #[test]
    fn an_early_end_points_at_the_bracket_that_is_open() {
        let errors = Document::parse("l4.json", b"{\n \"a\": [1,\n 2\n\n").unwrap_err();
        let rendered = errors[0].render();
        assert!(rendered.contains("--> l4.json:3:3"), "{rendered}");
        assert!(
            rendered.contains("still open here: l4.json:2:2"),
            "{rendered}"
        );
    }

    #[test]
    fn nesting_is_limited() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        parse(&nested(128));
        assert!(complaint(nested(129)).contains("nested deeper than 128 levels"));
        assert!(complaint("[{\"a\":".repeat(100_000)).contains("nested deeper"));
    }

    #[test]
    fn duplicate_keys_are_all_reported_with_the_syntax_fault() {
        let seen = complaints("{\"a\": 1,\n \"b\": {\"c\": 1, \"\\u0063\": 2},\n \"a\": 3,\n x}");
        assert_eq!(
            seen,
            [
                "l4.json:2:16: /b/c: duplicate key \"c\", first defined at line 2, column 8",
                "l4.json:3:2: /a: duplicate key \"a\", first defined at line 1, column 2",
                "l4.json:4:2: /: the key x has no quotes, write \"x\"",
            ]
        );
    }

    #[test]
    fn ids_are_indexed_and_checked() {
        let doc = parse(r#"{"@id": "a", "b": [{"@id": 5}, {"@id": 2.50}, {"@id": 1e2}]}"#);
        let ids: Vec<_> = doc
            .ids()
            .map(|(id, node)| (id, doc.pointer(node)))
            .collect();
        let expected = [("a", ""), ("5", "/b/0"), ("2.5", "/b/1"), ("100", "/b/2")];
        assert_eq!(ids, expected.map(|(id, pointer)| (id, pointer.to_owned())));

        let seen = complaints(r#"{"admin": {"@id": "x"}, "apps": {"@id": "x"}, "b": {"@id": []}}"#);
        assert!(
            seen[0].contains("duplicate ID 'x' found at /admin and /apps"),
            "{seen:?}"
        );
        assert!(
            seen[1].contains("/b/@id: @id field must be a string or number"),
            "{seen:?}"
        );
        assert!(complaint(r#"[{"@id": "5"}, {"@id": 5}]"#).contains("duplicate ID '5'"));
        assert!(complaint(r#"{"@id": "5", "@id": "5"}"#).contains("duplicate key \"@id\""));
    }

    #[test]
    fn pointers_escape_and_are_found_again() {
        let doc = parse(r#"{"a/b": {"~": [{"": 1}]}, "@id": 1}"#);
        for pointer in ["", "/a~1b", "/a~1b/~0", "/a~1b/~0/0", "/a~1b/~0/0/"] {
            let node = doc.find(pointer).unwrap_or_else(|| panic!("{pointer}"));
            assert_eq!(doc.pointer(node), pointer);
        }
        assert_eq!(doc.find("/"), Some(doc.root()));
        for pointer in [
            "a",
            "/x",
            "/a~1b/~0/1",
            "/a~1b/~0/00",
            "/a~1b/~0/-1",
            "/@id",
            "/a~1b/x/y",
        ] {
            assert_eq!(doc.find(pointer), None, "{pointer}");
        }
    }

    #[test]
    fn canonical_form_sorts_keys_and_drops_layout() {
        let doc =
            parse("{ \"b\": [1.0, \"\\u0001<\\u00e4\"],\n\"a\": {\"@id\": 1}, \"\\n\": null }");
        let canonical = doc.canonical(doc.root());
        assert_eq!(
            canonical,
            "{\"\\n\":null,\"a\":{\"@id\":1},\"b\":[1.0,\"\\u0001<\u{e4}\"]}"
        );
    }

    #[test]
    fn nodes_of_another_document_do_no_harm() {
        let other = parse("[1, [2]]");
        let node = other.find("/1/0").unwrap();
        let doc = parse("{}");
        assert_eq!(doc.value(node), Value::Null);
        assert_eq!(doc.error(node, "no").to_string(), "l4.json:1:1: /: no");
    }

    #[test]
    fn the_number_of_duplicates_reported_is_bounded() {
        let members: Vec<_> = (0..20_000)
            .map(|i| format!("\"{}\": {{\"@id\": []}}", i / 2))
            .collect();
        let seen = complaints(format!("{{{}}}", members.join(",")));
        assert_eq!(seen.len(), 2 * MAX_DUPLICATES);
    }

    /// JSON without `@id`s and duplicate keys, in any layout.
    pub(in super::super) fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|value| value.to_string()),
            "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,4})?([eE][+-]?[0-9]{1,2})?",
            any::<String>().prop_map(|text| serde_json::Value::String(text).to_string()),
            "\"(\\\\u[0-9a-d][0-7][0-9a-fA-F]{2}|\\\\[bfnrt/\"\\\\]|[a-z\u{e4}\u{1f600}]){0,6}\"",
        ];
        let space = "[ \t\r\n]{0,2}";
        leaf.prop_recursive(5, 40, 6, move |inner| {
            let items = prop::collection::vec((space, inner.clone(), space), 0..5);
            let list = items.prop_map(|items| {
                let items: Vec<_> = items.iter().map(|(a, b, c)| format!("{a}{b}{c}")).collect();
                format!("[{}]", items.join(","))
            });
            let members = prop::collection::btree_map("[a-z/~]{0,3}", (space, inner), 0..5);
            let object = members.prop_map(|members| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(key, (space, value))| format!("{space}{key:?}{space}:{value}{space}"))
                    .collect();
                format!("{{{}}}", members.join(","))
            });
            prop_oneof![list, object]
        })
    }

    /// Pieces of JSON in any order: mostly wrong, sometimes right.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "1", "0", "-", ".", "e", "+", "true",
            "null", "nul", " ", "\n", "\"", "\\", "\\u", "d83d", "\\ude00", "/", "#", "\t",
            "\u{e4}",
        ]);
        prop::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    /// What serde_json makes of the same text; `None` for numbers it cannot hold.
    fn as_serde(doc: &Document, node: Node) -> Option<serde_json::Value> {
        Some(match doc.value(node) {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => value.into(),
            Value::Number(literal) => serde_json::from_str(literal).ok()?,
            Value::String(text) => text.into(),
            Value::Array => doc
                .items(node)
                .map(|item| as_serde(doc, item))
                .collect::<Option<_>>()?,
            Value::Object => {
                let members = doc.members(node);
                members
                    .map(|(key, member)| Some((key.to_owned(), as_serde(doc, member)?)))
                    .collect::<Option<serde_json::Map<_, _>>>()?
                    .into()
            }
        })
    }

    fn agrees_with_serde_json(text: &str) -> Result<(), TestCaseError> {
        let theirs: Result<serde_json::Value, _> = serde_json::from_str(text);
        match Document::parse("l4.json", text.as_bytes()) {
            Ok(doc) => {
                if let Some(ours) = as_serde(&doc, doc.root()) {
                    prop_assert_eq!(ours, theirs.unwrap());
                }
            }
            Err(errors) => {
                let stricter = errors
                    .iter()
                    .all(|e| e.message().starts_with("duplicate key"));
                prop_assert!(theirs.is_err() || stricter, "{:?}", errors);
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn valid_json_means_what_serde_json_makes_of_it(text in json()) {
            let doc = Document::parse("l4.json", text.as_bytes());
            prop_assert!(doc.is_ok(), "{:?}", doc);
            agrees_with_serde_json(&text)?;
        }

        #[test]
        fn pieces_of_json_are_judged_as_by_serde_json(text in pieces()) {
            agrees_with_serde_json(&text)?;
        }

        #[test]
        fn damaged_json_is_judged_as_by_serde_json(
            text in json(),
            at in any::<prop::sample::Index>(),
            piece in "[\\[\\]{},:\"\\\\0-9ae. ]?",
        ) {
            let (at, _) = text.char_indices().nth(at.index(text.chars().count())).unwrap();
            let (head, tail) = text.split_at(at);
            let after: String = tail.chars().skip(1).collect();
            agrees_with_serde_json(&format!("{head}{piece}{after}"))?;
            agrees_with_serde_json(&format!("{head}{piece}{tail}"))?;
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Err(errors) = Document::parse("l4.json", &bytes) {
                prop_assert!(!errors.is_empty());
                errors.iter().for_each(|error| drop(error.render()));
            }
        }

        #[test]
        fn every_prefix_of_an_object_is_an_error(text in json()) {
            let text = format!("{{\"a\":{text}}}");
            for end in 0..text.len() {
                let prefix = &text.as_bytes()[..end];
                let errors = Document::parse("l4.json", prefix).unwrap_err();
                errors.iter().for_each(|error| drop(error.render()));
            }
        }

        #[test]
        fn every_node_is_found_by_its_pointer_and_its_position(text in json()) {
            let doc = parse(&text);
            for node in doc.0.tree.nodes() {
                prop_assert_eq!(doc.find(&doc.pointer(node)), Some(node));
                let Position { line, column, .. } = doc.position(node);
                let line = text.split('\n').nth(line as usize - 1).unwrap();
                let tail: String = line.chars().skip(column as usize - 1).collect();
                let first_line = doc.text(node).split('\n').next().unwrap();
                prop_assert!(tail.starts_with(first_line));
            }
        }

        #[test]
        fn canonical_form_is_stable_and_means_the_same(text in json()) {
            let doc = parse(&text);
            let canonical = doc.canonical(doc.root());
            let again = parse(&canonical);
            prop_assert_eq!(as_serde(&doc, doc.root()), as_serde(&again, again.root()));
            prop_assert_eq!(again.canonical(again.root()), canonical);
        }
    }
}
