//! Placeholders: `{l4.tls.server_name}` and its kin, compiled to templates when the configuration is loaded.
//!
//! Three ways of filling in, which differ only in what an unknown name becomes:
//! at load with *all* (empty) or *known* (left as written), and per connection ([`Template`], unknown is empty).
//! Replaced text is never scanned again.

mod global;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::Fact;
use crate::conn::{Addr, Inner, Record};

/// Gives the text of one placeholder for a connection.
pub trait Placeholder: Send + Sync + 'static {
    /// Appends the text to `out`; appends nothing if there is no value.
    fn write(&self, scope: &Scope<'_>, out: &mut String);
}

impl<F: Fn(&Scope<'_>, &mut String) + Send + Sync + 'static> Placeholder for F {
    fn write(&self, scope: &Scope<'_>, out: &mut String) {
        self(scope, out);
    }
}

/// Makes the placeholder for a name (without the prefix it was registered under); `None` if there is no such name.
pub type Source = fn(&str) -> Option<Arc<dyn Placeholder>>;

/// What a placeholder may look at.
#[derive(Clone, Copy)]
pub struct Scope<'a> {
    inner: &'a Inner,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(inner: &'a Inner) -> Self {
        Self { inner }
    }

    /// The effective remote address.
    pub fn remote(&self) -> &'a Addr {
        self.inner.remote()
    }

    /// The effective local address.
    pub fn local(&self) -> &'a Addr {
        self.inner.local()
    }

    /// The record of the connection.
    pub fn record(&self) -> &'a Record {
        self.inner.record()
    }

    /// A fact, if a matcher has parsed it from the unread bytes.
    pub fn known_fact<T: Fact>(&self) -> Option<&'a T> {
        self.inner.known_fact()
    }

    /// The value of a variable.
    pub fn var(&self, name: &str) -> Option<&'a str> {
        self.inner.var(name)
    }

    /// What a module left on the connection.
    pub fn extension<T: std::any::Any>(&self) -> Option<&'a T> {
        self.inner.extension()
    }
}

/// The placeholder names a build knows.
pub struct Placeholders {
    sources: Vec<(&'static str, Source)>,
}

impl Default for Placeholders {
    fn default() -> Self {
        let sources: Vec<(&'static str, Source)> = vec![
            ("l4.conn.", conn_placeholder),
            ("l4.vars.", |name| {
                let name: Box<str> = name.into();
                Some(Arc::new(move |scope: &Scope<'_>, out: &mut String| {
                    out.push_str(scope.var(&name).unwrap_or_default());
                }))
            }),
            ("l4.regexp.", |key| {
                Some(capture_placeholder("l4.regexp", key))
            }),
            ("tls.regexp.", |key| {
                Some(capture_placeholder("tls.regexp", key))
            }),
            ("http.regexp.", |key| {
                Some(capture_placeholder("http.regexp", key))
            }),
        ];
        Self { sources }
    }
}

impl Placeholders {
    /// Adds a source; false if the prefix is taken.
    pub(crate) fn add(&mut self, prefix: &'static str, source: Source) -> bool {
        let free = self.sources.iter().all(|(taken, _)| *taken != prefix);
        if free {
            self.sources.push((prefix, source));
        }
        free
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Placeholder>> {
        if global::is_known(name) {
            let name: Box<str> = name.into();
            return Some(Arc::new(move |_: &Scope<'_>, out: &mut String| {
                out.push_str(&global::value(&name).unwrap_or_default());
            }));
        }
        self.sources
            .iter()
            .find_map(|(prefix, source)| name.strip_prefix(prefix).and_then(source))
    }
}

fn conn_placeholder(name: &str) -> Option<Arc<dyn Placeholder>> {
    let write: fn(&Scope<'_>, &mut String) = match name {
        // Fixed at accept: a PROXY header changes neither.
        "remote_addr" => |scope, out| {
            let _ = write!(out, "{}", scope.record().remote());
        },
        "local_addr" => |scope, out| {
            let _ = write!(out, "{}", scope.inner.own_local());
        },
        "wrap_time" => |scope, out| out.push_str(&global::utc(scope.record().accepted_at())),
        _ => return None,
    };
    Some(Arc::new(write))
}

fn capture_placeholder(prefix: &'static str, key: &str) -> Arc<dyn Placeholder> {
    let key: Box<str> = key.into();
    Arc::new(move |scope: &Scope<'_>, out: &mut String| {
        out.push_str(scope.inner.capture(prefix, &key).unwrap_or_default());
    })
}

/// Why a text with placeholders was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// More than 100 braces that nothing closes.
    #[error(
        "too many unclosed placeholders (at most {MAX_UNCLOSED}); write \\{{ for a literal brace"
    )]
    TooManyUnclosed,
}

const MAX_UNCLOSED: usize = 100;

/// A text with placeholders, compiled.
///
/// A module gets one from [`Provision::template`](crate::Provision::template), which knows the placeholders of the build
/// and warns of others, and fills it in with [`Connection::expand`](crate::Connection::expand) or
/// [`View::expand`](crate::View::expand):
///
/// ```
/// use l4_core::{Registry, Template};
///
/// let reg = Registry::new();
/// let greeting = Template::compile("hello {l4.vars.user}", reg.placeholder_table()).unwrap();
/// let mut conn = l4_testkit::received(b"");
/// conn.set_var("user", "alice");
/// assert_eq!(conn.expand(&greeting), "hello alice");
/// ```
#[derive(Clone)]
pub struct Template {
    segments: Box<[Segment]>,
    unknown: Box<[Box<str>]>,
}

#[derive(Clone)]
enum Segment {
    Text(Box<str>),
    Value(Arc<dyn Placeholder>),
}

impl Template {
    /// Compiles `text`. Names that nothing knows are filled in as empty text; [`Template::unknown`] lists them.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn compile(text: &str, table: &Placeholders) -> Result<Self, TemplateError> {
        let mut segments = Vec::new();
        let mut unknown = Vec::new();
        let mut literal = String::new();
        scan(text, &mut |piece| {
            match piece {
                Piece::Literal(text) => literal.push_str(text),
                Piece::Name(name) => match table.find(name) {
                    Some(value) => {
                        if !literal.is_empty() {
                            segments.push(Segment::Text(std::mem::take(&mut literal).into()));
                        }
                        segments.push(Segment::Value(value));
                    }
                    None => unknown.push(name.into()),
                },
            }
            true
        })?;
        if !literal.is_empty() {
            segments.push(Segment::Text(literal.into()));
        }
        Ok(Self {
            segments: segments.into(),
            unknown: unknown.into(),
        })
    }

    /// A text without placeholders, taken as it is.
    pub fn literal(text: &str) -> Self {
        Self {
            segments: [Segment::Text(text.into())].into(),
            unknown: [].into(),
        }
    }

    /// The text, if no placeholder is in it.
    pub fn constant(&self) -> Option<&str> {
        match &*self.segments {
            [] => Some(""),
            [Segment::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The names that nothing knows, which are always empty.
    pub fn unknown(&self) -> &[Box<str>] {
        &self.unknown
    }

    /// The text for a connection; borrowed when it is constant.
    pub fn expand(&self, scope: Scope<'_>) -> Cow<'_, str> {
        if let Some(text) = self.constant() {
            return Cow::Borrowed(text);
        }
        let mut out = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Text(text) => out.push_str(text),
                Segment::Value(value) => value.write(&scope, &mut out),
            }
        }
        Cow::Owned(out)
    }

    /// Whether the whole text is one placeholder.
    pub fn is_single_placeholder(&self) -> bool {
        matches!(&*self.segments, [Segment::Value(_)])
    }

    /// The text with each part replaced: `Some` is a literal, `None` a placeholder.
    pub fn map_parts<'t>(&'t self, mut part: impl FnMut(Option<&'t str>) -> &'t str) -> String {
        self.segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(text) => part(Some(text)),
                Segment::Value(_) => part(None),
            })
            .collect()
    }

    /// The parts of the text in order: `Ok` a literal, `Err` the value of a placeholder for this connection. For
    /// callers that must keep what a client chose apart from what the operator wrote.
    pub fn parts(&self, scope: Scope<'_>) -> impl Iterator<Item = Result<&str, String>> {
        self.segments.iter().map(move |segment| match segment {
            Segment::Text(text) => Ok(&**text),
            Segment::Value(value) => {
                let mut out = String::new();
                value.write(&scope, &mut out);
                Err(out)
            }
        })
    }
}

/// Fills in the global placeholders (`env.*`, `file.*`, `system.*`, `time.*`); any other becomes empty.
///
/// # Errors
/// See [`TemplateError`].
pub fn expand_all(text: &str) -> Result<String, TemplateError> {
    expand_global(text, false)
}

/// Fills in the global placeholders and leaves any other as written.
///
/// # Errors
/// See [`TemplateError`].
pub fn expand_known(text: &str) -> Result<String, TemplateError> {
    expand_global(text, true)
}

fn expand_global(text: &str, keep_unknown: bool) -> Result<String, TemplateError> {
    let mut out = String::with_capacity(text.len());
    scan(text, &mut |piece| {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Name(name) => match global::value(name) {
                Some(value) => out.push_str(&value),
                None => return !keep_unknown,
            },
        }
        true
    })?;
    Ok(out)
}

enum Piece<'a> {
    Literal(&'a str),
    Name(&'a str),
}

/// Cuts `text` into literals and names. `take` answers false to a name it wants left as written: the brace is literal
/// then and scanning goes on behind it.
///
/// A name ends at the first `}` that no backslash precedes; where every one has a backslash, at the last of them.
fn scan<'a>(text: &'a str, take: &mut dyn FnMut(Piece<'a>) -> bool) -> Result<(), TemplateError> {
    let bytes = text.as_bytes();
    let mut literal_from = 0;
    let mut at = 0;
    let mut unclosed = 0;
    // The end found last: several open braces may share it, and searching anew for each would be quadratic.
    let mut close = Some(0);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' if matches!(bytes.get(at + 1), Some(b'{' | b'}')) => {
                take(Piece::Literal(&text[literal_from..at]));
                literal_from = at + 1;
                at += 2;
            }
            b'{' => {
                if close.is_some_and(|close| close <= at) {
                    close = closing_brace(bytes, at + 1);
                }
                let end = close;
                let taken = end.is_some_and(|end| {
                    if literal_from < at {
                        take(Piece::Literal(&text[literal_from..at]));
                        literal_from = at;
                    }
                    take(Piece::Name(&text[at + 1..end]))
                });
                match end {
                    Some(end) if taken => {
                        at = end + 1;
                        literal_from = at;
                    }
                    Some(_) => at += 1,
                    None => {
                        unclosed += 1;
                        if unclosed > MAX_UNCLOSED {
                            return Err(TemplateError::TooManyUnclosed);
                        }
                        at += 1;
                    }
                }
            }
            _ => at += 1,
        }
    }
    if literal_from < bytes.len() {
        take(Piece::Literal(&text[literal_from..]));
    }
    Ok(())
}

fn closing_brace(bytes: &[u8], from: usize) -> Option<usize> {
    let mut escaped = None;
    for (i, &byte) in bytes.iter().enumerate().skip(from) {
        if byte == b'}' {
            if i > 0 && bytes[i - 1] == b'\\' {
                escaped = Some(i);
            } else {
                return Some(i);
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::conn::{Connection, Io};

    fn table() -> Placeholders {
        let mut table = Placeholders::default();
        table.add("known", |rest| {
            rest.is_empty()
                .then(|| Arc::new(|_: &Scope<'_>, out: &mut String| out.push_str("VAL")) as _)
        });
        table.add("empty", |rest| {
            rest.is_empty()
                .then(|| Arc::new(|_: &Scope<'_>, _: &mut String| {}) as _)
        });
        table
    }

    fn conn() -> Connection {
        let record = Arc::new(Record::new(Addr::Tcp("192.0.2.1:7".parse().unwrap())));
        Connection::new(
            Io::Layer(Box::new(tokio::io::empty().chain_nothing())),
            record,
            Some(Addr::UNNAMED),
        )
    }

    trait Chain {
        fn chain_nothing(self) -> tokio::io::Join<tokio::io::Empty, tokio::io::Sink>;
    }
    impl Chain for tokio::io::Empty {
        fn chain_nothing(self) -> tokio::io::Join<tokio::io::Empty, tokio::io::Sink> {
            tokio::io::join(self, tokio::io::sink())
        }
    }

    fn all(text: &str) -> String {
        let template = Template::compile(text, &table()).unwrap();
        conn().expand(&template).into_owned()
    }

    #[test]
    fn every_row_of_the_table_in_mode_all() {
        for (text, expected) in [
            ("a{known}b", "aVALb"),
            ("a{nope}b", "ab"),
            ("a{empty}b", "ab"),
            ("{}", ""),
            ("{", "{"),
            ("}", "}"),
            ("a{b", "a{b"),
            ("{known", "{known"),
            ("{a{known}", ""),
            ("{{known}}", "}"),
            (r"\{known}", "{known}"),
            (r"\{known\}", "{known}"),
            (r"{known\}", ""),
            (r"\\{known}", r"\{known}"),
            ("{ known }", ""),
            (r#"{"a": "{known}"}"#, "\"}"),
        ] {
            assert_eq!(all(text), expected, "{text}");
        }
    }

    #[test]
    fn load_time_modes_differ_only_in_unknown_names() {
        let os = std::env::consts::OS;
        for (text, known, all) in [
            ("a{system.os}b", format!("a{os}b"), format!("a{os}b")),
            ("a{l4.vars.x}b", "a{l4.vars.x}b".into(), "ab".into()),
            ("{a{system.os}", format!("{{a{os}"), String::new()),
            ("{{system.os}}", format!("{{{os}}}"), "}".into()),
            (r"{system.os\}", "{system.os}".into(), String::new()),
        ] {
            assert_eq!(expand_known(text).unwrap(), known, "{text}");
            assert_eq!(expand_all(text).unwrap(), all, "{text}");
        }
    }

    #[test]
    fn connection_placeholders_are_those_of_the_socket() {
        let mut conn = conn();
        conn.set_addresses(Addr::Tcp("198.51.100.1:1".parse().unwrap()), Addr::UNNAMED);
        conn.set_var("who", "me");
        let template = Template::compile(
            "{l4.conn.remote_addr} {l4.vars.who}{l4.vars.unset}",
            &table(),
        )
        .unwrap();
        assert_eq!(conn.expand(&template), "192.0.2.1:7 me");
        assert!(template.constant().is_none());
    }

    #[test]
    fn unknown_names_are_listed_and_too_many_open_braces_refused() {
        let template = Template::compile("{nope}{l4.conn.nope}x", &table()).unwrap();
        assert_eq!(template.unknown().len(), 2);
        assert_eq!(template.constant(), Some("x"));
        assert!(Template::compile(&"{".repeat(100), &table()).is_ok());
        assert!(Template::compile(&"{".repeat(101), &table()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_compiles_or_is_refused_in_linear_time(text in r"[{}\\a]{0,300}") {
            let _ = Template::compile(&text, &table());
            let _ = expand_known(&text);
        }

        #[test]
        fn text_without_braces_and_backslashes_is_itself(text in r"[^{}\\]{0,80}") {
            prop_assert_eq!(all(&text), text);
        }
    }
}
