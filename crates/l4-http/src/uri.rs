//! Request targets, RFC 9112 section 3.2, and the normal forms of paths.

use std::borrow::Cow;
use std::net::Ipv6Addr;

/// The parts of a request target, escaped as they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Parts<'a> {
    /// Host and port of an absolute or authority form, without user information.
    pub(crate) authority: Option<&'a [u8]>,
    pub(crate) path: &'a [u8],
    /// What follows the first `?`.
    pub(crate) query: Option<&'a [u8]>,
}

/// Takes a target apart that has one of the four forms. `None` if the authority or an escape in the path is malformed.
pub(crate) fn split<'a>(method: &[u8], target: &'a [u8]) -> Option<Parts<'a>> {
    if target.first() != Some(&b'/') && method == b"CONNECT" {
        let authority = is_authority(target).then_some(target)?;
        return Some(Parts {
            authority: Some(authority),
            ..Parts::default()
        });
    }
    if target == b"*" {
        return Some(Parts {
            path: target,
            ..Parts::default()
        });
    }
    let (hierarchy, query) = match target.iter().position(|&b| b == b'?') {
        Some(at) => (target.get(..at)?, target.get(at + 1..)),
        None => (target, None),
    };
    let (authority, path) = match hierarchy.first() {
        Some(b'/') => (None, hierarchy),
        _ => {
            let colon = hierarchy.iter().position(|&b| b == b':')?;
            let rest = hierarchy.get(colon + 1..)?;
            match rest.strip_prefix(b"//") {
                Some(rest) => {
                    let end = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
                    let (authority, path) = rest.split_at(end);
                    let user = authority
                        .iter()
                        .rposition(|&b| b == b'@')
                        .map_or(0, |at| at + 1);
                    let authority = authority.get(user..)?;
                    (Some(is_authority(authority).then_some(authority)?), path)
                }
                // Neither authority nor path: `mailto:somebody`.
                None if rest.first() != Some(&b'/') => (None, &[][..]),
                None => (None, rest),
            }
        }
    };
    // A broken escape is refused here once, so that nothing that reads the path has to.
    escapes_are_whole(path).then_some(())?;
    Some(Parts {
        authority,
        path,
        query,
    })
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`, as RFC 3986 section 3.2 writes them; the port may be empty.
fn is_authority(text: &[u8]) -> bool {
    let (host_is_good, port) = match text.strip_prefix(b"[") {
        Some(literal) => {
            let Some(end) = literal.iter().position(|&b| b == b']') else {
                return false;
            };
            let port = match &literal[end + 1..] {
                [] => &[],
                [b':', port @ ..] => port,
                _ => return false,
            };
            (is_ipv6(&literal[..end]), port)
        }
        None => {
            let colon = text.iter().position(|&b| b == b':');
            let (host, port) = match colon {
                Some(colon) => (&text[..colon], &text[colon + 1..]),
                None => (text, &[][..]),
            };
            (is_name(host), port)
        }
    };
    host_is_good && port.iter().all(u8::is_ascii_digit)
}

/// An IPv6 address, perhaps with a zone behind `%25` (RFC 6874).
fn is_ipv6(text: &[u8]) -> bool {
    let (address, zone) = match text.iter().position(|&b| b == b'%') {
        Some(at) => text.split_at(at),
        None => (text, &[][..]),
    };
    let address = std::str::from_utf8(address)
        .ok()
        .and_then(|text| text.parse::<Ipv6Addr>().ok());
    address.is_some() && (zone.is_empty() || zone.starts_with(b"%25")) && escapes_are_whole(zone)
}

/// Escapes in names are for octets that ASCII does not have: any other would be a second way to write a name.
fn is_name(text: &[u8]) -> bool {
    let escapes_ascii = |pair: &[u8]| matches!(pair, [b'%', b'0'..=b'7']);
    text.iter().all(|&b| is_name_byte(b) || b == b'%')
        && escapes_are_whole(text)
        && !text.windows(2).any(escapes_ascii)
}

/// An octet that may stand in an authority.
pub(crate) fn is_authority_byte(byte: u8) -> bool {
    is_name_byte(byte) || b":[]%".contains(&byte)
}

/// Unreserved and sub-delims, and octets that ASCII does not have.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"-._~!$&'()*+,;=".contains(&byte)
}

/// Whether each `%` has two hexadecimal digits behind it.
pub(crate) fn escapes_are_whole(text: &[u8]) -> bool {
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        let mut is_digit = || rest.next().is_some_and(u8::is_ascii_hexdigit);
        if *byte == b'%' && !(is_digit() && is_digit()) {
            return false;
        }
    }
    true
}

/// Replaces `%XX` by the octet. `None` if a `%` is not followed by two hexadecimal digits.
pub(crate) fn unescape(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !text.contains(&b'%') {
        return Some(Cow::Borrowed(text));
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        out.push(match first {
            b'%' => {
                let (&[high, low], after) = after.split_first_chunk()?;
                rest = after;
                hex_digit(high)? << 4 | hex_digit(low)?
            }
            other => other,
        });
    }
    Some(Cow::Owned(out))
}

pub(crate) fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// The text, with U+FFFD for each octet that is not part of a character: one for each, not one for each run, because
/// expressions and `?` count them.
pub(crate) fn to_text(octets: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(octets) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(octets.len() + 2);
    for chunk in octets.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(out)
}

/// Lower case, character by character: unlike `str::to_lowercase` without an eye for what stands around a letter, so
/// that the same letter is the same everywhere.
pub(crate) fn lower(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return match text.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(text.to_ascii_lowercase()),
            false => Cow::Borrowed(text),
        };
    }
    Cow::Owned(
        text.chars()
            .map(|c| c.to_lowercase().next().unwrap_or(c))
            .collect(),
    )
}

/// Resolves `.` and `..` and, with `merge`, makes one slash of several. A trailing slash stays. Without `merge`,
/// `..` takes back an empty segment like any other.
///
/// A path that is not rooted comes only as `*`, which stays, or empty (`CONNECT`, or `http://a` in absolute form),
/// which becomes `.` as in the reference.
pub(crate) fn clean(path: &str, merge: bool) -> Cow<'_, str> {
    let Some(rooted) = path.strip_prefix('/') else {
        return Cow::Borrowed(if path.is_empty() { "." } else { path });
    };
    if !(path.contains("/.") || merge && path.contains("//")) {
        return Cow::Borrowed(path);
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = rooted.split('/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            // The last one is only the trailing slash.
            "" if merge || segments.peek().is_none() => {}
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if kept.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    Cow::Owned(out)
}

/// The path as it would be escaped canonically, unless the way it was sent is valid too.
pub(crate) fn escaped(path: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(path)
        && path
            .iter()
            .all(|&b| is_plain(b) || b"!'()*[]%".contains(&b))
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(path.len() * 2);
    for &byte in unescape(path).unwrap_or_default().iter() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            push_escape(byte, &mut out);
        }
    }
    Cow::Owned(out)
}

/// Writes an octet as `%XX`.
pub(crate) fn push_escape(byte: u8, out: &mut String) {
    out.push('%');
    for digit in [byte >> 4, byte & 15] {
        out.extend(char::from_digit(digit.into(), 16).map(|c| c.to_ascii_uppercase()));
    }
}

/// What the reference never escapes in a path.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"$&+,-./:;=@_~".contains(&byte)
}

/// Host and port of `host[:port]`; the host without brackets. A text that is not of this form is all host.
pub(crate) fn split_host_port(text: &str) -> (&str, Option<&str>) {
    let unbracketed = || {
        let text = text.strip_prefix('[').unwrap_or(text);
        (text.strip_suffix(']').unwrap_or(text), None)
    };
    let Some((before, port)) = text.rsplit_once(':') else {
        return unbracketed();
    };
    match before.strip_prefix('[') {
        Some(literal) => match literal.strip_suffix(']') {
            Some(host) if !host.contains(['[', ']']) && !port.contains(['[', ']']) => {
                (host, Some(port))
            }
            _ => unbracketed(),
        },
        None if before.contains([':', '[', ']']) || port.contains(['[', ']']) => unbracketed(),
        None => (before, Some(port)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts<'a>(authority: Option<&'a str>, path: &'a str, query: Option<&'a str>) -> Parts<'a> {
        Parts {
            authority: authority.map(str::as_bytes),
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
        }
    }

    #[test]
    fn targets_of_every_form_are_taken_apart() {
        for (target, expected) in [
            ("/", parts(None, "/", None)),
            ("/a/b?c=d?e", parts(None, "/a/b", Some("c=d?e"))),
            ("/a?", parts(None, "/a", Some(""))),
            ("//h/a", parts(None, "//h/a", None)),
            ("/a#b", parts(None, "/a#b", None)),
            ("*", parts(None, "*", None)),
            ("http://h", parts(Some("h"), "", None)),
            ("http://h:80/a?b", parts(Some("h:80"), "/a", Some("b"))),
            ("http://u:p@h@i/a", parts(Some("i"), "/a", None)),
            ("HTTPS://[::1]:8/", parts(Some("[::1]:8"), "/", None)),
            ("http://h?b", parts(Some("h"), "", Some("b"))),
            (
                "http://[fe80::1%25en0]/",
                parts(Some("[fe80::1%25en0]"), "/", None),
            ),
            ("http://%C3%A4/", parts(Some("%C3%A4"), "/", None)),
            ("x+y-z.1:/a", parts(None, "/a", None)),
            ("mailto:a@b", parts(None, "", None)),
            ("x:", parts(None, "", None)),
            ("/%41%2f", parts(None, "/%41%2f", None)),
        ] {
            assert_eq!(split(b"GET", target.as_bytes()), Some(expected), "{target}");
        }
        for target in [
            "/%",
            "/%4",
            "/%4g",
            "/a%zz?b",
            "http://h:x/",
            "http://[::1/",
            "http://[]/",
            "http://a b/",
            "http://a%41/",
            "http://a%c/",
            "http://[::1%2]/",
            "http://[zz]/",
            "http://h:80:80/",
            "http://h<>/",
            "http://a[b]/",
        ] {
            assert_eq!(split(b"GET", target.as_bytes()), None, "{target}");
        }
        assert_eq!(
            split(b"GET", b"/a?%zz"),
            Some(parts(None, "/a", Some("%zz")))
        );
    }

    #[test]
    fn connect_names_an_authority() {
        assert_eq!(split(b"CONNECT", b"*"), Some(parts(Some("*"), "", None)));
        assert_eq!(
            split(b"CONNECT", b"h:443"),
            Some(parts(Some("h:443"), "", None))
        );
        assert_eq!(
            split(b"CONNECT", b"[::1]:443"),
            Some(parts(Some("[::1]:443"), "", None))
        );
        assert_eq!(split(b"CONNECT", b"/rpc"), Some(parts(None, "/rpc", None)));
        assert_eq!(split(b"CONNECT", b"h:https"), None);
    }

    #[test]
    fn host_and_port_part_as_in_the_reference() {
        for (text, host, port) in [
            ("a", "a", None),
            ("a:80", "a", Some("80")),
            ("a:", "a", Some("")),
            (":80", "", Some("80")),
            ("[::1]:80", "::1", Some("80")),
            ("[::1]", "::1", None),
            ("::1", "::1", None),
            ("a:b:c", "a:b:c", None),
            ("[a]b:80", "a]b:80", None),
            ("a]:80", "a]:80", None),
            ("", "", None),
        ] {
            assert_eq!(split_host_port(text), (host, port), "{text}");
        }
    }

    #[test]
    fn paths_become_clean() {
        for (path, merged, unmerged) in [
            ("", ".", "."),
            ("*", "*", "*"),
            ("/", "/", "/"),
            ("//", "/", "//"),
            ("/a/b", "/a/b", "/a/b"),
            ("/a//b/", "/a/b/", "/a//b/"),
            ("/a/./b", "/a/b", "/a/b"),
            ("/a/../b/", "/b/", "/b/"),
            ("/a//../b", "/b", "/a/b"),
            ("/../../x", "/x", "/x"),
            ("/a/..", "/", "/"),
            ("/a/.", "/a", "/a"),
            ("/.a/..b/...", "/.a/..b/...", "/.a/..b/..."),
            ("/a//", "/a/", "/a//"),
        ] {
            assert_eq!(clean(path, true), merged, "{path}");
            assert_eq!(clean(path, false), unmerged, "{path}");
        }
    }

    #[test]
    fn octets_that_are_no_text_count_one_by_one() {
        assert_eq!(to_text(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
        assert_eq!(to_text(b"\xe2\x82"), "\u{fffd}\u{fffd}");
        assert_eq!(to_text("\u{e4}".as_bytes()), "\u{e4}");
    }

    #[test]
    fn letters_are_lowered_one_by_one() {
        assert_eq!(lower("/A\u{c4}\u{130}\u{3a3}"), "/a\u{e4}i\u{3c3}");
        assert_eq!(lower("ABC"), "abc");
    }

    #[test]
    fn paths_are_escaped_unless_they_are() {
        assert_eq!(escaped(b"/a%2Fb%41"), "/a%2Fb%41");
        assert_eq!(escaped(b"/a\"b%2F"), "/a%22b/");
        assert_eq!(escaped("/\u{e4}".as_bytes()), "/%C3%A4");
    }

    proptest! {
        #[test]
        fn cleaning_twice_is_cleaning_once(path in "/[/.a]{0,12}", merge in any::<bool>()) {
            let once = clean(&path, merge).into_owned();
            prop_assert!(once.starts_with('/'));
            prop_assert!(!once.split('/').any(|s| s == "." || s == ".."));
            prop_assert!(!merge || !once.contains("//"));
            prop_assert_eq!(clean(&once, merge).into_owned(), once);
        }

        #[test]
        fn any_target_is_split_or_refused(method in "[A-Z]{1,9}", target in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = split(&method.into_bytes(), &target);
            let _ = split_host_port(&to_text(&target));
            let _ = escaped(&target);
        }
    }
}
