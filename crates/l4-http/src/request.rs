//! The request a connection begins with, parsed once and read by every matcher and placeholder.

use std::ops::Range;
use std::sync::OnceLock;

use l4_core::conn::MATCH_LIMIT;
use l4_core::{Fact, Parsed};

use crate::hpack::{self, Decoder, Invalid};
use crate::{h2, head, uri};

/// The head of the first request of a connection: of HTTP/1, or of HTTP/2 with prior knowledge.
///
/// `Host` is not among the fields: [`host`](Self::host) has it, or what stands in its place. Bodies are not looked at.
pub struct HttpHead {
    /// What the ranges below point into.
    text: Vec<u8>,
    method: Span,
    target: Span,
    raw_path: Span,
    query: Option<Span>,
    host: Span,
    /// The host without port and brackets, in lower case.
    host_name: Box<str>,
    path: Box<str>,
    merged: OnceLock<Box<str>>,
    unmerged: OnceLock<Box<str>>,
    fields: Vec<(Span, Span)>,
    version: (u8, u8),
    is_h2: bool,
}

impl HttpHead {
    /// The method as sent: `GET`.
    pub fn method(&self) -> &str {
        // A method is a token, which is ASCII.
        std::str::from_utf8(self.of(self.method)).unwrap_or_default()
    }

    /// The request target as sent, or `:path`; the authority of a `CONNECT`.
    pub fn target(&self) -> &[u8] {
        self.of(self.target)
    }

    /// The authority of an absolute target, else `:authority` or the `Host` field, as sent. Empty if there is none.
    pub fn host(&self) -> &[u8] {
        self.of(self.host)
    }

    /// The host without port and brackets, in lower case.
    pub fn host_name(&self) -> &str {
        &self.host_name
    }

    /// The path, decoded. Octets that are not UTF-8 are U+FFFD, one for each. `*` of `OPTIONS *`, and empty if the
    /// target has none.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path as it was sent.
    pub fn raw_path(&self) -> &[u8] {
        self.of(self.raw_path)
    }

    /// The path in lower case, with `.` and `..` resolved and, if `merge`, one slash for several.
    pub fn folded_path(&self, merge: bool) -> &str {
        let folded = if merge { &self.merged } else { &self.unmerged };
        folded.get_or_init(|| uri::clean(&uri::lower(&self.path), merge).into())
    }

    /// What follows the first `?` of the target, as sent.
    pub fn query(&self) -> Option<&[u8]> {
        self.query.map(|span| self.of(span))
    }

    /// Names, in lower case, and values of the fields without `Host`, in the order sent. The `cookie` fields of
    /// HTTP/2 are joined to one, which is the last (RFC 9113 section 8.2.3).
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields
            .iter()
            .map(|&(name, value)| (self.of(name), self.of(value)))
    }

    /// The values of a field. `name` is in lower case; `host` has the value of [`host`](Self::host), if there is one.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let host = (name == "host" && !self.host().is_empty()).then(|| self.host());
        let name = name.as_bytes();
        let listed = self
            .fields()
            .filter_map(move |(n, value)| (n == name).then_some(value));
        host.into_iter().chain(listed)
    }

    /// Major and minor version: (1, 1), (2, 0).
    pub fn version(&self) -> (u8, u8) {
        self.version
    }

    /// Whether it came in HTTP/2 frames.
    pub fn is_h2(&self) -> bool {
        self.is_h2
    }

    fn of(&self, span: Span) -> &[u8] {
        self.text.get(span.range()).unwrap_or_default()
    }
}

impl Fact for HttpHead {
    fn parse(bytes: &[u8]) -> Parsed<Self> {
        if let Some(rest) = bytes.strip_prefix(h2::PREFACE_HEAD) {
            if let Some(frames) = rest.strip_prefix(h2::PREFACE_REST) {
                return parse_h2(frames);
            }
            if h2::PREFACE_REST.starts_with(rest) {
                // Any other octet would make it a request with the method `PRI`.
                return Parsed::More(1);
            }
        }
        parse_h1(bytes)
    }

    fn parse_on(bytes: &[u8], seen: usize) -> Parsed<Self> {
        // Frames are no lines.
        if !bytes.starts_with(h2::PREFACE_HEAD) && head::goes_on(bytes, seen) {
            return Parsed::More(1);
        }
        Self::parse(bytes)
    }
}

fn parse_h1(bytes: &[u8]) -> Parsed<HttpHead> {
    let line = match head::request_line(bytes) {
        Parsed::Done(line) => line,
        Parsed::Not => return Parsed::Not,
        Parsed::More(n) => return Parsed::More(n),
    };
    head::fields(bytes.get(line.len..).unwrap_or_default(), &mut |fields| {
        let size = fields
            .iter()
            .map(|field| field.name.len() + field.value.len())
            .sum::<usize>();
        let mut builder = Builder::new(line.len + size, fields.len());
        builder.method = builder.add(line.method);
        builder.target = builder.add(line.target);
        fields
            .iter()
            .try_for_each(|field| builder.field(field.name.as_bytes(), field.value))?;
        builder.finish(line.version, false)
    })
}

fn parse_h2(frames: &[u8]) -> Parsed<HttpHead> {
    let block = match h2::header_block(frames) {
        Parsed::Done(block) => block,
        Parsed::Not => return Parsed::Not,
        Parsed::More(n) => return Parsed::More(n),
    };
    let mut builder = H2Builder {
        head: Builder::new(block.len() * 2, 16),
        ..H2Builder::default()
    };
    let mut room = MAX_LIST_SIZE;
    let decoded = Decoder::new().decode(&block, |name, value| {
        room = room
            .checked_sub(hpack::list_size(name, value))
            .ok_or(Invalid)?;
        builder.field(name, value).ok_or(Invalid)
    });
    match decoded {
        Ok(()) => builder.finish().map_or(Parsed::Not, Parsed::Done),
        Err(Invalid) => Parsed::Not,
    }
}

/// Puts a head together. Its methods answer `None` if the request is malformed.
#[derive(Default)]
struct Builder {
    text: Vec<u8>,
    fields: Vec<(Span, Span)>,
    method: Span,
    target: Span,
    host: Option<Span>,
    content_length: Option<Span>,
}

impl Builder {
    fn new(text: usize, fields: usize) -> Self {
        let (text, fields) = (Vec::with_capacity(text), Vec::with_capacity(fields));
        Self {
            text,
            fields,
            ..Self::default()
        }
    }

    fn add(&mut self, text: &[u8]) -> Span {
        let start = self.text.len();
        self.text.extend_from_slice(text);
        Span::new(start, self.text.len())
    }

    /// A field, its name in any case.
    fn field(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        let name_span = self.add(name);
        let value_span = self.add(value);
        let name = self.text.get_mut(name_span.range())?;
        name.make_ascii_lowercase();
        if name == b"host" {
            // More than one is an attempt to be understood in two ways, RFC 9112 section 3.2.
            return self.host.replace(value_span).is_none().then_some(());
        }
        if name == b"content-length" {
            // Several are tolerated if they are equal, RFC 9112 section 6.3.
            let first = *self.content_length.get_or_insert(value_span);
            let is_number = matches!(value.len(), 1..=18) && value.iter().all(u8::is_ascii_digit);
            if !is_number || self.text.get(first.range())? != value {
                return None;
            }
        }
        self.fields.push((name_span, value_span));
        Some(())
    }

    fn finish(mut self, version: (u8, u8), is_h2: bool) -> Option<HttpHead> {
        let method = self.text.get(self.method.range())?;
        let target = self.text.get(self.target.range())?;
        let parts = uri::split(method, target)?;
        let end = self.target.end();
        let query = parts.query.map(|query| Span::new(end - query.len(), end));
        let path_end = query.map_or(end, |query| query.start() - 1);
        let raw_path = Span::new(path_end - parts.path.len(), path_end);
        let path = uri::to_text(&uri::unescape(parts.path)?).into();
        // The authority of an absolute target stands above Host, RFC 9112 section 3.2.2.
        if let Some(authority) = parts.authority.filter(|authority| !authority.is_empty()) {
            let authority = uri::unescape(authority)?.into_owned();
            self.host = Some(self.add(&authority));
        }
        let host = self.host.unwrap_or_default();
        let host_text = uri::to_text(self.text.get(host.range())?);
        let host_name = uri::lower(uri::split_host_port(&host_text).0).into();
        Some(HttpHead {
            method: self.method,
            target: self.target,
            raw_path,
            query,
            host,
            host_name,
            path,
            merged: OnceLock::new(),
            unmerged: OnceLock::new(),
            fields: self.fields,
            version,
            is_h2,
            text: self.text,
        })
    }
}

/// Puts together what came in HTTP/2 fields, RFC 9113 section 8.
#[derive(Default)]
struct H2Builder {
    head: Builder,
    method: Option<Span>,
    scheme: Option<Span>,
    authority: Option<Span>,
    path: Option<Span>,
    /// Of an extended CONNECT, RFC 8441.
    protocol: Option<Span>,
    /// A regular field was seen, after which no pseudo-header field may come.
    regular: bool,
    /// With a separator behind each.
    cookies: Vec<u8>,
}

impl H2Builder {
    fn field(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) {
            return None;
        }
        let Some(pseudo) = name.strip_prefix(b":") else {
            return self.regular_field(name, value);
        };
        let value = self.head.add(value);
        let slot = match pseudo {
            b"method" => &mut self.method,
            b"scheme" => &mut self.scheme,
            b"authority" => &mut self.authority,
            b"path" => &mut self.path,
            b"protocol" => &mut self.protocol,
            _ => return None,
        };
        (slot.replace(value).is_none() && !self.regular).then_some(())
    }

    fn regular_field(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        self.regular = true;
        if name.is_empty()
            || !name
                .iter()
                .all(|&b| head::is_token(b) && !b.is_ascii_uppercase())
        {
            return None;
        }
        if name == b"cookie" {
            self.cookies.extend_from_slice(value);
            self.cookies.extend_from_slice(COOKIE_SEPARATOR);
            return Some(());
        }
        self.head.field(name, value)
    }

    fn finish(mut self) -> Option<HttpHead> {
        self.head.method = self.method?;
        let method = self.head.text.get(self.head.method.range())?;
        if method.is_empty() || !method.iter().all(|&b| head::is_token(b)) {
            return None;
        }
        if method == b"CONNECT" && self.protocol.is_none() {
            // Section 8.5.
            if self.scheme.is_some() || self.path.is_some() {
                return None;
            }
            self.head.target = self.authority?;
        } else {
            self.scheme?;
            self.head.target = self.path?;
            let target = self.head.text.get(self.head.target.range())?;
            let is_clean = target.iter().all(|b| matches!(b, 0x21..=0x7e | 0x80..));
            if !is_clean || !(target.starts_with(b"/") || target == b"*") {
                return None;
            }
        }
        if let Some(authority) = self
            .authority
            .filter(|authority| !authority.range().is_empty())
        {
            self.head.host = Some(authority);
        }
        if let Some(joined) = self.cookies.strip_suffix(COOKIE_SEPARATOR) {
            self.head.field(b"cookie", joined)?;
        }
        self.head.finish((2, 0), true)
    }
}

const COOKIE_SEPARATOR: &[u8] = b"; ";

/// The most that a header block may decode to, which is four times the bytes read for matching: compression saves
/// less, except for fields repeated to exhaust us.
const MAX_LIST_SIZE: usize = 4 * MATCH_LIMIT;

/// A place in the text of a head, which is no longer than what was read for matching.
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        let narrow = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            start: narrow(start),
            end: narrow(end),
        }
    }

    fn start(self) -> usize {
        self.start as usize
    }

    fn end(self) -> usize {
        self.end as usize
    }

    fn range(self) -> Range<usize> {
        self.start()..self.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h2::tests::frame;
    use crate::hpack::tests::{Encoder, Representation, Style};

    fn done(bytes: &[u8]) -> HttpHead {
        match HttpHead::parse(bytes) {
            Parsed::Done(head) => head,
            Parsed::Not => panic!("not a request: {}", String::from_utf8_lossy(bytes)),
            Parsed::More(n) => panic!("{n} more: {}", String::from_utf8_lossy(bytes)),
        }
    }

    fn is_not(bytes: &[u8]) -> bool {
        matches!(HttpHead::parse(bytes), Parsed::Not)
    }

    /// Everything about a head but where its text stands.
    fn summary(head: &HttpHead) -> String {
        let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
        let mut out = format!(
            "{} {} {:?} host={} name={} path={} query={:?}",
            head.method(),
            text(head.target()),
            head.version(),
            text(head.host()),
            head.host_name(),
            head.path(),
            head.query().map(text),
        );
        for (name, value) in head.fields() {
            out.push_str(&format!(" {}={}", text(name), text(value)));
        }
        out
    }

    /// Holds the parser to its contract over every prefix: an answer stays, and `More` is honest.
    fn check_prefixes(bytes: &[u8]) -> Parsed<String> {
        let parsed = |n: usize| HttpHead::parse(&bytes[..n]).map(|head| summary(&head));
        let mut wish = 0;
        for n in 0..=bytes.len() {
            // All before it were too few.
            for seen in [n.saturating_sub(1), n / 2] {
                let on = HttpHead::parse_on(&bytes[..n], seen).map(|head| summary(&head));
                assert_eq!(on, parsed(n), "after {n} bytes, {seen} of them seen before");
            }
            match parsed(n) {
                Parsed::More(more) => {
                    assert!(more > 0);
                    wish = n + more;
                }
                decided => {
                    assert!(
                        n >= wish,
                        "decided after {n} bytes, but {wish} were asked for"
                    );
                    for longer in [n + 1, (n + bytes.len()) / 2, bytes.len()] {
                        assert_eq!(parsed(longer.min(bytes.len())), decided, "after {n} bytes");
                    }
                    return decided;
                }
            }
        }
        parsed(bytes.len())
    }

    /// The frames of a request: fields in order, encoded plainly.
    fn h2(fields: &[(&str, &str)]) -> Vec<u8> {
        let style = Style {
            representation: Representation::NotKept,
            huffman: false,
            named: false,
        };
        let mut encoder = Encoder::default();
        let block = fields
            .iter()
            .flat_map(|(n, v)| encoder.field(n.as_bytes(), v.as_bytes(), style));
        h2_block(&block.collect::<Vec<_>>())
    }

    fn h2_block(block: &[u8]) -> Vec<u8> {
        [
            h2::PREFACE_HEAD,
            h2::PREFACE_REST,
            &frame(4, 0, 0, b""),
            &frame(1, 5, 1, block),
        ]
        .concat()
    }

    #[test]
    fn captured_requests_are_understood_once_their_head_is_there() {
        for (bytes, expected) in [
            (
                &include_bytes!("../testdata/curl-get.bin")[..],
                "GET /foo/bar?aaa=bbb (1, 1) host=127.0.0.1:18080 name=127.0.0.1 path=/foo/bar \
                 query=Some(\"aaa=bbb\") user-agent=curl/7.88.1 accept=*/*",
            ),
            (
                include_bytes!("../testdata/curl-post.bin"),
                "POST /submit (1, 1) host=Api.Example.com:8080 name=api.example.com path=/submit query=None \
                 user-agent=curl/7.88.1 accept=*/* content-length=7 \
                 content-type=application/x-www-form-urlencoded",
            ),
            (
                include_bytes!("../testdata/curl-absolute.bin"),
                "GET http://www.example.com:8000/a/b?c (1, 1) host=www.example.com:8000 \
                 name=www.example.com path=/a/b query=Some(\"c\") authorization=Basic dXNlcjpwdw== \
                 user-agent=curl/7.88.1 accept=*/* proxy-connection=Keep-Alive",
            ),
            (
                include_bytes!("../testdata/curl-connect.bin"),
                "CONNECT www.example.com:443 (1, 1) host=www.example.com:443 name=www.example.com \
                 path= query=None user-agent=curl/7.88.1 proxy-connection=Keep-Alive",
            ),
            (
                include_bytes!("../testdata/curl-options.bin"),
                "OPTIONS * (1, 1) host=127.0.0.1:18080 name=127.0.0.1 path=* query=None \
                 user-agent=curl/7.88.1 accept=*/*",
            ),
            (
                include_bytes!("../testdata/curl-upgrade-h2c.bin"),
                "GET /foo/bar?aaa=bbb (1, 1) host=127.0.0.1:18080 name=127.0.0.1 path=/foo/bar \
                 query=Some(\"aaa=bbb\") user-agent=curl/7.88.1 accept=*/* \
                 connection=Upgrade, HTTP2-Settings upgrade=h2c \
                 http2-settings=AAMAAABkAAQCAAAAAAIAAAAA",
            ),
            (
                include_bytes!("../testdata/ab-http10.bin"),
                "GET /ab (1, 0) host=127.0.0.1:18080 name=127.0.0.1 path=/ab query=None \
                 user-agent=ApacheBench/2.3 accept=*/*",
            ),
            (
                include_bytes!("../testdata/curl-h2.bin"),
                "GET /foo/bar?aaa=bbb (2, 0) host=www.example.com name=www.example.com path=/foo/bar \
                 query=Some(\"aaa=bbb\") user-agent=curl/7.88.1 accept=*/*",
            ),
            (
                include_bytes!("../testdata/nghttp.bin"),
                "GET /index.html (2, 0) host=127.0.0.1:18080 name=127.0.0.1 path=/index.html query=None \
                 accept=*/* accept-encoding=gzip, deflate user-agent=nghttp2/1.52.0",
            ),
            (
                include_bytes!("../testdata/nghttp-padding.bin"),
                "GET /padded (2, 0) host=127.0.0.1:18080 name=127.0.0.1 path=/padded query=None \
                 accept=*/* accept-encoding=gzip, deflate user-agent=padded",
            ),
            (
                include_bytes!("../testdata/h2load.bin"),
                "GET /load (2, 0) host=127.0.0.1:18080 name=127.0.0.1 path=/load query=None \
                 user-agent=h2load nghttp2/1.52.0",
            ),
            (
                include_bytes!("../testdata/go-h2.bin"),
                "PUT /api/v1/things?id=7 (2, 0) host=api.example.com name=api.example.com \
                 path=/api/v1/things query=Some(\"id=7\") content-type=application/grpc+proto \
                 content-length=2 accept-encoding=gzip user-agent=Go-http-client/2.0 cookie=a=1; b=2",
            ),
            (
                include_bytes!("../testdata/python-h2.bin"),
                "GET /python (2, 0) host=www.example.com name=www.example.com path=/python query=None \
                 user-agent=python-h2 cookie=a=1; b=2; c=3",
            ),
            (
                include_bytes!("../testdata/made-continuation.bin"),
                "POST /split/here?x=1 (2, 0) host=Www.Example.com:8443 name=www.example.com \
                 path=/split/here query=Some(\"x=1\") content-type=application/json \
                 x-a=1111111111111111111111111111111111111111 cookie=a=1; b=2",
            ),
        ] {
            assert_eq!(check_prefixes(bytes), Parsed::Done(expected.into()));
        }
    }

    /// Row M-07 of docs/defects.md.
    #[test]
    fn large_heads_are_understood() {
        let browser = include_bytes!("../testdata/browser-cookies.bin");
        assert!(matches!(check_prefixes(browser), Parsed::Done(_)));
        let browser = done(browser);
        assert_eq!(browser.path(), "/katalog/b\u{fc}cher");
        assert!(browser.values("cookie").all(|cookie| cookie.len() > 2000));
        let h2 = done(include_bytes!("../testdata/curl-h2-cookies.bin"));
        assert_eq!(h2.values("x-long").next().map(<[u8]>::len), Some(1024));
        assert_eq!(h2.values("cookie").collect::<Vec<_>>(), [b"a=1; b=2"]);
        let continued = include_bytes!("../testdata/nghttp-continuation.bin");
        assert!(matches!(
            HttpHead::parse(&continued[..16_384]),
            Parsed::More(_)
        ));
        assert!(matches!(
            HttpHead::parse(&continued[..continued.len() - 1]),
            Parsed::More(1)
        ));
        let continued = done(continued);
        assert_eq!(continued.path(), "/continued");
        assert!(
            continued
                .values("continuation-test-1")
                .next()
                .is_some_and(|v| v.len() > 4000)
        );
    }

    #[test]
    fn the_host_is_that_of_an_absolute_target_before_that_of_the_field() {
        for (head, host) in [
            ("GET http://a:1/ HTTP/1.1\r\nHost: b\r\n\r\n", "a:1"),
            ("GET http://%C3%A4/ HTTP/1.1\r\nHost: b\r\n\r\n", "\u{e4}"),
            ("GET http:///x HTTP/1.1\r\nHost: b\r\n\r\n", "b"),
            ("GET x:y HTTP/1.1\r\nHost: b\r\n\r\n", "b"),
            ("GET / HTTP/1.1\r\nHOST:  B \r\n\r\n", "B"),
            ("GET / HTTP/1.0\r\n\r\n", ""),
        ] {
            let head = done(head.as_bytes());
            assert_eq!(head.host(), host.as_bytes());
            assert_eq!(head.fields().count(), 0, "Host is not among the fields");
            assert_eq!(head.values("host").count(), usize::from(!host.is_empty()));
        }
        let request = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        let authority = [(":authority", "a")];
        let field = [("host", "b")];
        assert_eq!(
            done(&h2(&[&request[..], &authority, &field].concat())).host(),
            b"a"
        );
        assert_eq!(done(&h2(&[&request[..], &field].concat())).host(), b"b");
    }

    #[test]
    fn contradictions_about_host_and_length_are_refused() {
        for fields in [
            "Host: a\r\nhost: a\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: x\r\n",
            "Content-Length: +1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: 9999999999999999999\r\n",
        ] {
            assert!(
                is_not(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes()),
                "{fields}"
            );
        }
        let head = done(b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n");
        assert_eq!(head.values("content-length").count(), 2);
    }

    #[test]
    fn what_looks_like_a_preface_may_be_a_request() {
        assert!(matches!(
            HttpHead::parse(b"PRI * HTTP/2.0\r\n\r\n"),
            Parsed::More(1)
        ));
        assert!(matches!(
            HttpHead::parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"),
            Parsed::More(1)
        ));
        let head = done(b"PRI * HTTP/2.0\r\n\r\nSMTP");
        assert_eq!(
            (head.method(), head.version(), head.is_h2()),
            ("PRI", (2, 0), false)
        );
        assert!(matches!(
            HttpHead::parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            Parsed::More(1)
        ));
    }

    #[test]
    fn malformed_http2_requests_are_refused() {
        let good = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        assert_eq!(done(&h2(&good)).path(), "/");
        let with = |more: &[(&str, &str)]| h2(&[&good[..], more].concat());
        for (more, why) in [
            (&[(":path", "/")][..], "a pseudo-header field twice"),
            (&[(":status", "200")], "one of a response"),
            (&[("a", "b"), (":authority", "c")], "one behind a field"),
            (&[("A", "b")], "a name in upper case"),
            (&[("a b", "c")], "a name that is no token"),
            (&[("", "c")], "a name without octets"),
            (&[("a", "b\n")], "a line end in a value"),
            (&[("host", "a"), ("host", "a")], "two hosts"),
        ] {
            assert!(is_not(&with(more)), "{why}");
        }
        for missing in 0..3 {
            let mut fields = good.to_vec();
            fields.remove(missing);
            assert!(is_not(&h2(&fields)), "without {}", good[missing].0);
        }
        for path in ["", "x", "/a b", "/%zz", "http://a/", "/a\u{7f}"] {
            assert!(is_not(&h2(&[good[0], good[1], (":path", path)])), "{path}");
        }
        assert!(is_not(&h2(&[(":method", "G T"), good[1], good[2]])));
        assert!(is_not(&h2_block(b"")));
    }

    /// Row M-07 of docs/defects.md.
    #[test]
    fn connect_over_http2_is_plain_or_extended() {
        let connect = (":method", "CONNECT");
        let authority = (":authority", "a.example:443");
        let plain = done(&h2(&[connect, authority]));
        assert_eq!((plain.path(), plain.host_name()), ("", "a.example"));
        let extended = [
            connect,
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/chat"),
            authority,
        ];
        let extended = done(&h2(&extended));
        assert_eq!((extended.path(), extended.fields().count()), ("/chat", 0));
        assert!(is_not(&h2(&[connect, authority, (":path", "/")])));
        assert!(is_not(&h2(&[connect])));
    }

    #[test]
    fn a_header_block_of_repetitions_is_refused() {
        let style = Style {
            representation: Representation::Kept,
            huffman: false,
            named: false,
        };
        let mut encoder = Encoder::default();
        let mut block = [
            b"\x82\x86\x84".to_vec(),
            encoder.field(b"a", &[b'x'; 4000], style),
        ]
        .concat();
        assert_eq!(done(&h2_block(&block)).values("a").count(), 1);
        block.extend([0xbe; 10_000]);
        assert!(is_not(&h2_block(&block)));
    }

    fn token() -> impl Strategy<Value = String> {
        "[a-z][a-z0-9-]{0,14}".prop_filter("has a meaning", |name| {
            !["host", "content-length", "cookie", "te", "connection"].contains(&&**name)
        })
    }

    fn fields() -> impl Strategy<Value = Vec<(String, String)>> {
        prop::collection::vec((token(), "([!-~]([ -~]{0,40}[!-~])?)?"), 0..25)
    }

    fn vector() -> impl Strategy<Value = Vec<u8>> {
        prop::sample::select(vec![
            include_bytes!("../testdata/curl-get.bin").to_vec(),
            include_bytes!("../testdata/curl-connect.bin").to_vec(),
            include_bytes!("../testdata/curl-absolute.bin").to_vec(),
            include_bytes!("../testdata/curl-h2.bin").to_vec(),
            include_bytes!("../testdata/nghttp-padding.bin").to_vec(),
            include_bytes!("../testdata/go-h2.bin").to_vec(),
            include_bytes!("../testdata/made-continuation.bin").to_vec(),
            b"PUT /%41//b?c HTTP/1.0\nA: b\n c\nHost: d\n\nbody".to_vec(),
        ])
    }

    proptest! {
        #[test]
        fn a_written_http1_request_is_read_back(
            method in "[A-Z]{1,10}",
            path in "(/[a-z0-9.~]{0,8}){1,4}",
            query in prop::option::of("[a-z=&%]{0,20}"),
            host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}",
            port in prop::option::of(1..65536_u32),
            fields in fields(),
            bare in any::<bool>(),
            minor in 0..2_u8,
        ) {
            let end = if bare { "\n" } else { "\r\n" };
            let query = query.map(|query| format!("?{query}")).unwrap_or_default();
            let port = port.map(|port| format!(":{port}")).unwrap_or_default();
            let mut bytes = format!("{method} {path}{query} HTTP/1.{minor}{end}Host: {host}{port}{end}");
            for (name, value) in &fields {
                bytes.push_str(&format!("{name}: {value}{end}"));
            }
            bytes.push_str(end);
            let Parsed::Done(seen) = check_prefixes(bytes.as_bytes()) else { panic!("{bytes}") };
            let head = done(bytes.as_bytes());
            prop_assert_eq!(summary(&head), seen);
            prop_assert_eq!((head.method(), head.path(), head.version()), (&*method, &*path, (1, minor)));
            prop_assert_eq!(head.host_name(), host);
            let read = head.fields().map(|(name, value)| (name.to_vec(), value.to_vec()));
            let written = fields.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes()));
            prop_assert_eq!(read.collect::<Vec<_>>(), written.collect::<Vec<_>>());
        }

        #[test]
        fn a_written_http2_request_is_read_back(
            path in "(/[a-z0-9.~]{0,8}){1,4}",
            fields in fields(),
            huffman in any::<bool>(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            padding in prop::option::of(any::<u8>()),
        ) {
            let style = Style { representation: Representation::Indexed, huffman, named: true };
            let mut encoder = Encoder::default();
            let pseudo = [(":method", "GET"), (":scheme", "https"), (":path", &*path), (":authority", "A.b:1")];
            let mut block = Vec::new();
            for (name, value) in pseudo.into_iter().chain(fields.iter().map(|(n, v)| (&**n, &**v))) {
                block.extend(encoder.field(name.as_bytes(), value.as_bytes(), style));
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(block.len())).collect();
            cuts.extend([0, block.len()]);
            cuts.sort_unstable();
            let last = cuts.len() - 2;
            let mut bytes = [h2::PREFACE_HEAD, h2::PREFACE_REST, &frame(4, 0, 0, b"")].concat();
            for (i, piece) in cuts.windows(2).map(|cut| &block[cut[0]..cut[1]]).enumerate() {
                let end = if i == last { 4 } else { 0 };
                bytes.extend(match padding {
                    Some(n) if i == 0 => frame(1, end | 8, 1, &[&[n], piece, &vec![0; n.into()]].concat()),
                    _ => frame(if i == 0 { 1 } else { 9 }, end, 1, piece),
                });
            }
            let head = done(&bytes);
            check_prefixes(&bytes);
            prop_assert_eq!((head.method(), head.path(), head.host_name(), head.is_h2()), ("GET", &*path, "a.b", true));
            let read = head.fields().map(|(name, value)| (name.to_vec(), value.to_vec()));
            let written = fields.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes()));
            prop_assert_eq!(read.collect::<Vec<_>>(), written.collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_keep_the_contract(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            check_prefixes(&bytes);
        }

        #[test]
        fn text_that_looks_like_http_keeps_the_contract(bytes in "[GCO] ?[/*a:]{0,4} ?(HTTP/1.1)?(\r?\n[ \ta:]{0,3}){0,6}\r?\n?") {
            check_prefixes(bytes.as_bytes());
        }

        #[test]
        fn arbitrary_frames_keep_the_contract(
            frames in prop::collection::vec((0..11_u8, any::<u8>(), 0..4_u32, prop::collection::vec(any::<u8>(), 0..30)), 0..13),
            cut in 0..20_usize,
        ) {
            let mut bytes = [h2::PREFACE_HEAD, h2::PREFACE_REST].concat();
            for (kind, flags, stream, payload) in frames {
                bytes.extend(frame(kind, flags, stream, &payload));
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            check_prefixes(&bytes);
        }

        #[test]
        fn mutated_requests_keep_the_contract(
            mut bytes in vector(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            insert in any::<bool>(),
        ) {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                if insert { bytes.insert(at, byte) } else { bytes[at] = byte }
            }
            check_prefixes(&bytes);
        }
    }
}
