//! The head of an HTTP/1 request, RFC 9112: request line and header fields up to the empty line.
//!
//! The request line is read octet by octet so that everything that is not HTTP is refused at its first foreign octet.
//! Fields are left to `httparse`. Nothing is kept between calls: a head that arrives in pieces is read again from its
//! start, unless [`goes_on`] finds that the new piece cannot decide anything.

use httparse::{EMPTY_HEADER, Header, Status};
use l4_core::Parsed;

use crate::uri;

/// A request line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestLine<'a> {
    pub(crate) method: &'a [u8],
    /// One that [`uri::split`] takes apart.
    pub(crate) target: &'a [u8],
    /// Major and minor, one digit each.
    pub(crate) version: (u8, u8),
    /// With the line end.
    pub(crate) len: usize,
}

/// Reads the request line. Wishes are for one byte, because any next byte may be a foreign one.
pub(crate) fn request_line(bytes: &[u8]) -> Parsed<RequestLine<'_>> {
    let mut method_len = 0;
    loop {
        match bytes.get(method_len) {
            None => return Parsed::More(1),
            Some(b' ') if method_len > 0 => break,
            Some(&byte) if is_token(byte) && method_len < MAX_METHOD => method_len += 1,
            Some(_) => return Parsed::Not,
        }
    }
    let (method, rest) = bytes.split_at(method_len);
    let rest = &rest[1..];
    let target_len = match target(rest, method == b"CONNECT") {
        Parsed::Done(len) => len,
        Parsed::Not => return Parsed::Not,
        Parsed::More(n) => return Parsed::More(n),
    };
    let (target, rest) = rest.split_at(target_len);
    if uri::split(method, target).is_none() {
        return Parsed::Not;
    }
    let rest = &rest[1..];
    let version = match version(rest) {
        Parsed::Done(version) => version,
        Parsed::Not => return Parsed::Not,
        Parsed::More(n) => return Parsed::More(n),
    };
    let line_end = match rest.get(VERSION_LEN..) {
        None | Some([] | [b'\r']) => return Parsed::More(1),
        Some([b'\n', ..]) => 1,
        Some([b'\r', b'\n', ..]) => 2,
        Some(_) => return Parsed::Not,
    };
    let len = method_len + 1 + target_len + 1 + VERSION_LEN + line_end;
    Parsed::Done(RequestLine {
        method,
        target,
        version,
        len,
    })
}

/// The length of the target, once the space after it is there.
fn target(bytes: &[u8], connect: bool) -> Parsed<usize> {
    let mut form = match bytes.first() {
        None => return Parsed::More(1),
        Some(b' ') => return Parsed::Not,
        Some(b'/') => Form::Any,
        Some(_) if connect => Form::Authority,
        Some(b'*') => Form::Asterisk,
        Some(first) if first.is_ascii_alphabetic() => Form::Scheme,
        Some(_) => return Parsed::Not,
    };
    for (at, &byte) in bytes.iter().enumerate() {
        form = match (form, byte) {
            (Form::Asterisk | Form::Authority | Form::Any, b' ') => return Parsed::Done(at),
            (Form::Asterisk, b'*') if at == 0 => Form::Asterisk,
            (Form::Any, 0x21..=0x7e | 0x80..) => Form::Any,
            (Form::Authority, byte) if uri::is_authority_byte(byte) => Form::Authority,
            (Form::Scheme, b':') => Form::Any,
            (Form::Scheme, b'+' | b'-' | b'.') => Form::Scheme,
            (Form::Scheme, byte) if byte.is_ascii_alphanumeric() => Form::Scheme,
            _ => return Parsed::Not,
        };
    }
    Parsed::More(1)
}

/// What is being read of a target. All but a scheme may be followed by the space.
#[derive(Clone, Copy)]
enum Form {
    Asterisk,
    /// Of `CONNECT`.
    Authority,
    /// The beginning of an absolute URI.
    Scheme,
    /// A path and query, or what follows a scheme.
    Any,
}

/// `HTTP/` digit `.` digit.
fn version(bytes: &[u8]) -> Parsed<(u8, u8)> {
    let fits = |(at, byte): (usize, &u8)| match at {
        MAJOR | MINOR => byte.is_ascii_digit(),
        _ => b"HTTP/_._".get(at) == Some(byte),
    };
    if !bytes.iter().enumerate().take(VERSION_LEN).all(fits) {
        return Parsed::Not;
    }
    match (bytes.get(MAJOR), bytes.get(MINOR)) {
        (Some(major), Some(minor)) => Parsed::Done((major - b'0', minor - b'0')),
        _ => Parsed::More(1),
    }
}

/// Reads the fields behind the request line up to the empty line and, once all of them are there, makes of them what
/// `make` does. Malformed fields are `Not` as soon as they are seen, and so is what `make` refuses.
pub(crate) fn fields<T>(
    bytes: &[u8],
    make: &mut impl FnMut(&[Header<'_>]) -> Option<T>,
) -> Parsed<T> {
    if let Ok(parsed) = unfolded_fields(bytes, make) {
        return parsed;
    }
    // `httparse` refuses a value that goes on in the next line. RFC 9112 section 5.2 lets us join the lines, but what
    // stands before them must be in order.
    let Some(fold) = bytes.windows(2).position(is_fold) else {
        return Parsed::Not;
    };
    if unfolded_fields(&bytes[..=fold], make).is_err() {
        return Parsed::Not;
    }
    let Some(end) = end(bytes) else {
        return Parsed::More(1);
    };
    match unfolded_fields(&unfold(&bytes[..end]), make) {
        Ok(Parsed::Done(made)) => Parsed::Done(made),
        _ => Parsed::Not,
    }
}

fn unfolded_fields<T>(
    bytes: &[u8],
    make: &mut impl FnMut(&[Header<'_>]) -> Option<T>,
) -> Result<Parsed<T>, httparse::Error> {
    let finish = |status: Status<(usize, &[Header<'_>])>| match status {
        Status::Partial => Parsed::More(1),
        Status::Complete((_, fields)) => make(fields).map_or(Parsed::Not, Parsed::Done),
    };
    match httparse::parse_headers(bytes, &mut [EMPTY_HEADER; FEW_FIELDS]) {
        Err(httparse::Error::TooManyHeaders) => {
            // Room for all is made once, when all are there.
            let Some(end) = end(bytes) else {
                return Ok(Parsed::More(1));
            };
            let lines = bytes[..end].iter().filter(|&&b| b == b'\n').count();
            httparse::parse_headers(bytes, &mut vec![EMPTY_HEADER; lines]).map(finish)
        }
        status => status.map(finish),
    }
}

/// The length of the fields with the empty line, if it is there.
fn end(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    loop {
        match &bytes[line..] {
            [b'\n', ..] => return Some(line + 1),
            [b'\r', b'\n', ..] => return Some(line + 2),
            rest => line += rest.iter().position(|&b| b == b'\n')? + 1,
        }
    }
}

fn is_fold(pair: &[u8]) -> bool {
    matches!(pair, [b'\n', b' ' | b'\t'])
}

/// Whether a head of which `bytes[..seen]` were sound and not all is that still after all of `bytes`. False if it takes a
/// parse to tell: at the end of the request line, at an empty or continued line, at whatever is malformed.
pub(crate) fn goes_on(bytes: &[u8], seen: usize) -> bool {
    let (before, new) = bytes.split_at(seen.min(bytes.len()));
    let Some(line_end) = before.iter().rposition(|&b| b == b'\n') else {
        // In a target that is not of one of the rarer forms any visible octet goes on with it.
        let mut parts = before.splitn(3, |&b| b == b' ');
        let (_, target, rest) = (parts.next(), parts.next(), parts.next());
        return rest.is_none()
            && target.is_some_and(|target| target.starts_with(b"/"))
            && new.iter().all(|b| matches!(b, 0x21..=0x7e | 0x80..));
    };
    let line = before.get(line_end + 1..).unwrap_or_default();
    let mut place = match (line.first(), line.last()) {
        (None, _) => Place::Start,
        (Some(b'\r'), _) => return false,
        (_, Some(b'\r')) => Place::CarriageReturn,
        (Some(b' ' | b'\t'), _) => Place::Value,
        _ if line.contains(&b':') => Place::Value,
        _ => Place::Name,
    };
    for &byte in new {
        place = match (place, byte) {
            (Place::Start | Place::Name, byte) if is_token(byte) => Place::Name,
            (Place::Name, b':') => Place::Value,
            (Place::Value, b'\t' | b' '..=0x7e | 0x80..) => Place::Value,
            (Place::Value, b'\r') => Place::CarriageReturn,
            (Place::Value | Place::CarriageReturn, b'\n') => Place::Start,
            _ => return false,
        };
    }
    true
}

/// Where in a field line the last octet was.
#[derive(Clone, Copy)]
enum Place {
    /// Behind a line end.
    Start,
    Name,
    Value,
    CarriageReturn,
}

/// Replaces the line end and the space around it by one space wherever a value goes on in the next line.
fn unfold(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let folded = line.trim_ascii_start();
        if matches!(line.first(), Some(b' ' | b'\t')) && !out.is_empty() {
            out.truncate(out.trim_ascii_end().len());
            out.push(b' ');
            // A line of nothing but space keeps its line end.
            out.extend_from_slice(if folded.is_empty() { b"\n" } else { folded });
        } else {
            out.extend_from_slice(line);
        }
    }
    out
}

/// Whether the octet may stand in a method or field name, RFC 9110 section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
};

/// The longest registered one has 17 octets.
const MAX_METHOD: usize = 32;
const VERSION_LEN: usize = 8;
/// Where the digits of a version are.
const MAJOR: usize = 5;
const MINOR: usize = 7;

/// More than browsers send; they fit on the stack.
const FEW_FIELDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Parsed<Vec<(String, String)>> {
        let line = match request_line(head.as_bytes()) {
            Parsed::Done(line) => line,
            Parsed::Not => return Parsed::Not,
            Parsed::More(n) => return Parsed::More(n),
        };
        fields(&head.as_bytes()[line.len..], &mut |fields| {
            let pair = |f: &Header<'_>| (f.name.into(), String::from_utf8(f.value.into()).unwrap());
            Some(fields.iter().map(pair).collect())
        })
    }

    fn pairs(fields: &[(&str, &str)]) -> Parsed<Vec<(String, String)>> {
        Parsed::Done(
            fields
                .iter()
                .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    /// The request line is refused with the last octet of `head`, not before.
    fn refused_at_the_end(head: &str) {
        let (last, before) = head.as_bytes().split_last().unwrap();
        assert!(
            matches!(request_line(before), Parsed::More(_)),
            "{head:?} too early"
        );
        assert_eq!(
            request_line(head.as_bytes()),
            Parsed::Not,
            "{head:?} not at {last}"
        );
    }

    /// Row M-01 of docs/defects.md.
    #[test]
    fn everything_else_is_refused_at_its_first_foreign_octet() {
        for head in [
            "\x16",
            " ",
            "\r",
            "\n",
            "\x05",
            "\0",
            "(",
            "\u{7f}",
            "GET(",
            "GET\t",
            "GET\r",
            "GET\n",
            "GET\0",
            "EHLO a\r",
            "EHLO a ",
            "PROXY TCP4 ",
            "GET 1",
            "GET ?",
            "GET  ",
            "GET %",
            "GET *a",
            "GET **",
            "GET a/",
            "GET a_",
            "GET /\r",
            "GET /\n",
            "GET /\t",
            "GET /\x01",
            "GET /\u{7f}",
            "GET /%4 ",
            "GET /%zz ",
            "GET http://[/ ",
            "CONNECT h/",
            "CONNECT h?",
            "CONNECT h:x ",
            "CONNECT u@",
            "GET / h",
            "GET / HTTPS",
            "GET / HTTP/x",
            "GET / HTTP/11",
            "GET / HTTP/1.x",
            "GET / HTTP/1.1 ",
            "GET / HTTP/1.10",
            "GET / HTTP/1.1\r\r",
            "GET / a",
        ] {
            refused_at_the_end(head);
        }
        let method = "M".repeat(32);
        refused_at_the_end(&format!("{method}M"));
        assert!(matches!(
            request_line(format!("{method} /").as_bytes()),
            Parsed::More(_)
        ));
    }

    #[test]
    fn line_ends_may_be_bare() {
        for head in [
            "GET / HTTP/1.1\r\nA: b\r\nC:d \r\n\r\n",
            "GET / HTTP/1.1\nA: b\nC:d\t\n\nrest",
        ] {
            assert_eq!(read(head), pairs(&[("A", "b"), ("C", "d")]));
        }
        assert_eq!(read("GET / HTTP/1.0\r\n\r\n"), pairs(&[]));
        assert_eq!(read("GET / HTTP/1.0\n\n"), pairs(&[]));
    }

    /// Row M-37 of docs/defects.md.
    #[test]
    fn a_head_cut_inside_a_field_name_is_not_malformed() {
        assert_eq!(read("POST /x HTTP/1.0\r\nCon"), Parsed::More(1));
        assert_eq!(
            read("POST /x HTTP/1.0\r\nContent-Length: 3\r\n\r"),
            Parsed::More(1)
        );
    }

    #[test]
    fn malformed_fields_are_refused_before_the_head_ends() {
        for head in [
            "GET / HTTP/1.1\r\nbad line\r",
            "GET / HTTP/1.1\r\nbad ",
            "GET / HTTP/1.1\r\n:",
            "GET / HTTP/1.1\r\n ",
            "GET / HTTP/1.1\r\nA: b\0",
            "GET / HTTP/1.1\r\nA: b\rc",
            "GET / HTTP/1.1\r\nA : b",
            "GET / HTTP/1.1\r\n\rx",
        ] {
            assert_eq!(read(head), Parsed::Not, "{head:?}");
        }
    }

    #[test]
    fn folded_values_are_joined() {
        let head = "GET / HTTP/1.1\r\nA: b \r\n \t c\r\nD: e\n\tf\r\nG:\r\n h\r\nI: j\r\n \r\n\r\n";
        assert_eq!(
            read(head),
            pairs(&[("A", "b c"), ("D", "e f"), ("G", "h"), ("I", "j")])
        );
        assert!(matches!(read(&head[..head.len() - 2]), Parsed::More(1)));
        assert_eq!(
            read("GET / HTTP/1.1\r\nA: b\r\n c\r\nbad line\r\n\r\n"),
            Parsed::Not
        );
        assert_eq!(
            read("GET / HTTP/1.1\r\n A: b\r\n c\r\n\r\n"),
            Parsed::Not,
            "nothing to join it to"
        );
    }

    #[test]
    fn a_head_that_comes_octet_by_octet_is_seldom_read_again() {
        let again = |head: &str| {
            let goes_on = |seen: &usize| goes_on(&head.as_bytes()[..=*seen], *seen);
            (0..head.len()).filter(|seen| !goes_on(seen)).count()
        };
        let path = "/".repeat(8000);
        let many = "A: b\r\n".repeat(1000);
        let long = "c".repeat(8000);
        let head = format!("GET {path} HTTP/1.1\r\n{many}Long: {long}\n{many}\r\n");
        assert_eq!(
            again(&head),
            "GET /".len() + " HTTP/1.1\r\n".len() + "\r\n".len()
        );
        // Once at the beginning of each continued line.
        assert_eq!(
            again("GET / HTTP/1.1\r\nA: b\r\n c\r\n\td\r\n") - again("GET / HTTP/1.1\r\n"),
            2
        );
    }

    #[test]
    fn many_fields_get_room() {
        let many = (0..300)
            .map(|i| format!("A{i}: {i}\r\n"))
            .collect::<String>();
        let head = format!("GET / HTTP/1.1\r\n{many}");
        assert!(matches!(read(&head), Parsed::More(1)));
        let Parsed::Done(fields) = read(&format!("{head}\r\n")) else {
            panic!()
        };
        assert_eq!((fields.len(), &*fields[299].1), (300, "299"));
        assert_eq!(
            read(&format!("{head} folded\r\n\r\n")).map(|f| f[299].1.clone()),
            Parsed::Done("299 folded".into())
        );
        assert_eq!(read(&format!("{head}bad line\r\n\r\n")), Parsed::Not);
    }
}
