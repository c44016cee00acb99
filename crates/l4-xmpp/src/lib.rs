//! XMPP for Conncept: the matcher `xmpp`.
//!
//! A stream is told by its header: an XML element `stream:stream` that names one of XMPP's namespaces. Nothing behind
//! the header is looked at. Start reading at [`MatchXmpp`].

use l4_core::Registry;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchXmpp>();
    reg.page(include_str!("../docs/matchers/xmpp.md"));
}

/// Matches a connection that begins with an XMPP stream header (RFC 6120 section 4.7), of clients, servers and
/// components alike.
///
/// Direct TLS hides the header: match `tls` with the ALPN `xmpp-client` or `xmpp-server` for that. There are no
/// settings: `{"xmpp": {}}`.
pub struct MatchXmpp;

/// The matcher `xmpp` has no settings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct XmppConfig {}

impl MatcherModule for MatchXmpp {
    const NAME: &'static str = "xmpp";
    type Config = XmppConfig;

    fn provision(_: XmppConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl Matcher for MatchXmpp {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        stream_header(view.bytes())
    }
}

/// Whether `bytes` begin with a stream header: white space, an XML declaration or none, `<stream:stream`, and one of
/// the namespaces before the element ends.
///
/// RFC 6120 section 11.1 forbids comments, processing instructions and document types, so nothing else can come before
/// the element. Its name has the prefix `stream` in every implementation (section 4.8.5).
pub fn stream_header(bytes: &[u8]) -> Verdict {
    // Only these bytes are ever looked at, so that appending more changes nothing.
    let window = &bytes[..bytes.len().min(LIMIT)];
    match window_verdict(window) {
        Verdict::More(_) if window.len() == LIMIT => Verdict::No,
        verdict => verdict,
    }
}

fn window_verdict(window: &[u8]) -> Verdict {
    let mut rest = window.trim_ascii_start();
    if Verdict::prefix(rest, DECLARATION) == Verdict::Match {
        rest = match after_declaration(&rest[DECLARATION.len()..]) {
            Ok(rest) => rest.trim_ascii_start(),
            Err(undecided) => return undecided,
        };
    } else if rest.len() < DECLARATION.len() && DECLARATION.starts_with(rest) {
        return Verdict::More(1);
    }
    match Verdict::prefix(rest, ELEMENT) {
        Verdict::Match => attributes(&rest[ELEMENT.len()..]),
        undecided => undecided,
    }
}

/// What follows the XML declaration whose `<?xml` was just before `bytes`.
fn after_declaration(bytes: &[u8]) -> Result<&[u8], Verdict> {
    // Otherwise it is an instruction whose name only begins with xml.
    if !bytes.first().is_none_or(u8::is_ascii_whitespace) {
        return Err(Verdict::No);
    }
    match bytes.iter().position(|byte| !in_tag(*byte)) {
        None => Err(Verdict::More(1)),
        Some(end) if bytes[end] == b'>' && bytes[..end].ends_with(b"?") => Ok(&bytes[end + 1..]),
        Some(_) => Err(Verdict::No),
    }
}

/// Whether a namespace of XMPP is among the attributes of the stream element.
fn attributes(bytes: &[u8]) -> Verdict {
    if !bytes.first().is_none_or(u8::is_ascii_whitespace) {
        return Verdict::No;
    }
    let end = bytes.iter().position(|byte| !in_tag(*byte));
    let inside = &bytes[..end.unwrap_or(bytes.len())];
    let names = |namespace: &&[u8]| {
        inside
            .windows(namespace.len())
            .any(|text| text == *namespace)
    };
    if NAMESPACES.iter().any(names) {
        Verdict::Match
    } else if end.is_some() {
        Verdict::No
    } else {
        Verdict::More(1)
    }
}

/// Whether a byte can stand within a tag: anything but its brackets and what no XML text may hold.
fn in_tag(byte: u8) -> bool {
    !matches!(byte, b'<' | b'>') && (byte >= b' ' || byte.is_ascii_whitespace())
}

const DECLARATION: &[u8] = b"<?xml";
const ELEMENT: &[u8] = b"<stream:stream";

/// RFC 6120 section 4.8, the first of them declared by every stream.
const NAMESPACES: [&[u8]; 3] = [
    b"http://etherx.jabber.org/streams",
    b"jabber:client",
    b"jabber:server",
];

/// How many bytes are looked at. The longest part of a header are two addresses of at most 3071 bytes (RFC 7622), which
/// real ones are far from.
const LIMIT: usize = 4096;

#[cfg(test)]
mod tests {
    use l4_testkit::{check, decided_after};
    use proptest::prelude::*;

    use super::*;

    const SENDXMPP: &[u8] = include_bytes!("../testdata/sendxmpp.bin");
    const SLIXMPP: &[u8] = include_bytes!("../testdata/slixmpp.bin");
    const COMPONENT: &[u8] = include_bytes!("../testdata/slixmpp-component.bin");
    const OPENSSL: &[u8] = include_bytes!("../testdata/openssl-starttls.bin");
    const OPENSSL_SERVER: &[u8] = include_bytes!("../testdata/openssl-starttls-server.bin");

    #[test]
    fn headers_of_real_clients_match_at_the_first_namespace() {
        for (header, after) in [
            (SENDXMPP, "http://etherx.jabber.org/streams"),
            (SLIXMPP, "http://etherx.jabber.org/streams"),
            (COMPONENT, "http://etherx.jabber.org/streams"),
            (OPENSSL, "http://etherx.jabber.org/streams"),
            (OPENSSL_SERVER, "http://etherx.jabber.org/streams"),
            (
                b"<stream:stream xmlns='jabber:client' to='a'>",
                "jabber:client",
            ),
            (
                b"<stream:stream\r\nxmlns=\"jabber:server\">",
                "jabber:server",
            ),
        ] {
            check(&MatchXmpp, header, Verdict::Match);
            let text = std::str::from_utf8(header).unwrap();
            let end = text.find(after).unwrap() + after.len();
            assert_eq!(decided_after(&MatchXmpp, header), Some(end), "{text}");
        }
    }

    #[test]
    fn white_space_and_a_declaration_may_come_first() {
        for start in [
            " \t\r\n",
            "<?xml version='1.0'?>",
            "<?xml version=\"1.0\" encoding='UTF-8'?>\n",
            "\n<?xml version='1.0' ?>\r\n ",
        ] {
            check(
                &MatchXmpp,
                &[start.as_bytes(), OPENSSL].concat(),
                Verdict::Match,
            );
        }
    }

    #[test]
    fn an_opening_shorter_than_fifty_bytes_and_a_late_namespace_are_recognised() {
        check(
            &MatchXmpp,
            b"<stream:stream xmlns='jabber:client'>",
            Verdict::Match,
        );
        let late = format!(
            "<stream:stream to='{}' xmlns='jabber:client'>",
            "a".repeat(3000)
        );
        check(&MatchXmpp, late.as_bytes(), Verdict::Match);
    }

    /// Row M-35 of docs/defects.md.
    #[test]
    fn anything_else_is_refused_at_the_first_other_byte() {
        for (other, after) in [
            (
                &b"GET /jabber:client HTTP/1.1\r\nHost: jabber\r\n\r\n"[..],
                1,
            ),
            (b"\x16\x03\x01", 1),
            (b"  jabber:client", 3),
            (b"<html>", 2),
            (b"<!DOCTYPE html>", 2),
            (b"<stream xmlns='jabber:client'>", 8),
            (b"<stream:streams xmlns='jabber:client'>", 15),
            (b"<stream:stream>", 15),
            (b"<stream:stream to='a'> jabber:client", 22),
            (b"<stream:stream to='<jabber:client'>", 20),
            (b"<stream:stream to='\0", 20),
            (b"<?xml-stylesheet ?>", 6),
            (b"<?xml version='1.0'>", 20),
            (b"<?xml <stream:stream", 7),
            (b"<?xml version='1.0'?><html>", 23),
            (b"<?xml version='1.0'?><!-- jabber:client -->", 23),
            (b"<?xml version='1.0'?><?xml version='1.0'?>", 23),
        ] {
            check(&MatchXmpp, other, Verdict::No);
            assert_eq!(
                decided_after(&MatchXmpp, other),
                Some(after),
                "{}",
                other.escape_ascii()
            );
        }
    }

    #[test]
    fn too_few_bytes_leave_it_open() {
        for start in [
            &b""[..],
            b" ",
            b"<",
            b"<?xm",
            b"<?xml version='1.0'?",
            b"<?xml version='1.0'?>",
            b"<?xml version='1.0'?>\n<stre",
            b"<stream:stream",
            b"<stream:stream to='a' xmlns='jabber:clien",
        ] {
            check(&MatchXmpp, start, Verdict::More(0));
        }
    }

    #[test]
    fn nothing_holds_other_routes_up_for_more_than_four_kibibytes() {
        let namespace = b"jabber:client";
        for start in ["", "<?xml ", "<stream:stream to='"] {
            let mut bytes = vec![b' '; LIMIT - 1];
            bytes[..start.len()].copy_from_slice(start.as_bytes());
            assert_eq!(stream_header(&bytes), Verdict::More(1));
            bytes.push(b' ');
            assert_eq!(stream_header(&bytes), Verdict::No);
            bytes.extend(b"<stream:stream xmlns='jabber:client'>");
            assert_eq!(stream_header(&bytes), Verdict::No);
        }
        let mut bytes = vec![b' '; LIMIT];
        bytes[..14].copy_from_slice(ELEMENT);
        bytes[LIMIT - namespace.len()..].copy_from_slice(namespace);
        assert_eq!(stream_header(&bytes), Verdict::Match);
        assert_eq!(stream_header(&bytes[..LIMIT - 1]), Verdict::More(1));
    }

    #[test]
    fn settings_are_refused_by_name() {
        let made = |json| l4_testkit::matcher::<MatchXmpp>(register, json).err();
        assert!(made("{}").is_none());
        let errors = made(r#"{"domain": "example.com"}"#).expect("errors");
        assert_eq!(errors[0].pointer(), "/domain");
    }

    proptest! {
        #[test]
        fn any_bytes_keep_the_contract(
            header in proptest::sample::select(vec![SENDXMPP, SLIXMPP, COMPONENT, OPENSSL_SERVER]),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..3),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut bytes = header[..cut.index(header.len())].to_vec();
            for (at, byte) in changes {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            check(&MatchXmpp, &bytes, stream_header(&bytes));
        }

        #[test]
        fn pieces_in_any_order_keep_the_contract(
            pieces in proptest::collection::vec(
                proptest::sample::select(vec![
                    " ", "\n", "<?xml", "?>", " version='1.0'", "<stream:stream", " to='a'", ">", "<", "\0",
                    "jabber:", "client", "xmlns='jabber:server'",
                ]),
                0..8,
            ),
        ) {
            let bytes = pieces.concat().into_bytes();
            check(&MatchXmpp, &bytes, stream_header(&bytes));
        }
    }
}
