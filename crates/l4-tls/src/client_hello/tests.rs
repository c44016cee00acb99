use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

const OPENSSL_TLS12: &[u8] = include_bytes!("../../testdata/openssl-tls12.bin");
const OPENSSL_TLS13: &[u8] = include_bytes!("../../testdata/openssl-tls13-alpn.bin");
const OPENSSL_NO_SNI: &[u8] = include_bytes!("../../testdata/openssl-no-sni.bin");
const OPENSSL_TWO_RECORDS: &[u8] = include_bytes!("../../testdata/openssl-two-records.bin");
const CURL: &[u8] = include_bytes!("../../testdata/curl-h2.bin");
const GNUTLS: &[u8] = include_bytes!("../../testdata/gnutls.bin");
const GO: &[u8] = include_bytes!("../../testdata/go-x25519mlkem768.bin");
const CHROMIUM: &[u8] = include_bytes!("../../testdata/chromium-grease-ech.bin");

const X25519_MLKEM768: u16 = 0x11EC;

#[test]
fn hellos_of_real_clients_are_read_whole_and_not_before() {
    for (bytes, name, alpn, version) in [
        (OPENSSL_TLS12, Some("Example.COM"), &[][..], 0x0303),
        (
            OPENSSL_TLS13,
            Some("www.example.com"),
            &["h2", "http/1.1"],
            0x0304,
        ),
        (OPENSSL_NO_SNI, None, &[], 0x0304),
        (CURL, Some("curl.example"), &["h2", "http/1.1"], 0x0304),
        (GNUTLS, Some("gnutls.example"), &["h2"], 0x0304),
        (GO, Some("go.example.com"), &["h2", "http/1.1"], 0x0304),
        (
            CHROMIUM,
            Some("chrome.example.com"),
            &["h2", "http/1.1"],
            0x0304,
        ),
    ] {
        let hello = keeps_the_contract(bytes).expect("a hello");
        assert_eq!(hello.server_name(), name);
        let offered: Vec<&[u8]> = hello.alpn().collect();
        assert_eq!(
            offered,
            alpn.iter().map(|name| name.as_bytes()).collect::<Vec<_>>()
        );
        assert_eq!(hello.version(), version, "{name:?}");
        assert_eq!(hello.legacy_version(), 0x0303);
        assert!(matches!(parse(&bytes[..bytes.len() - 1]), Parsed::More(1)));
    }
}

#[test]
fn hello_over_two_records_is_read_whole() {
    let hello = keeps_the_contract(OPENSSL_TWO_RECORDS).expect("a hello");
    assert_eq!(hello.server_name(), Some("www.example.com"));
    assert_eq!(
        hello.alpn().map(<[u8]>::len).collect::<Vec<_>>(),
        [2, 8, 200]
    );
}

#[test]
fn lists_keep_the_order_of_the_client_and_lose_grease() {
    let hello = keeps_the_contract(CHROMIUM).expect("a hello");
    assert_eq!(hello.versions(), [0x0304, 0x0303]);
    assert_eq!(hello.cipher_suites().first(), Some(&0x1301));
    assert_eq!(hello.cipher_suites().len(), 15);
    assert_eq!(hello.groups(), [X25519_MLKEM768, 0x001D, 0x0017, 0x0018]);
    assert!(hello.signature_schemes().contains(&0x0804));
}

#[test]
fn protocol_name_that_looks_like_grease_is_kept() {
    // RFC 8701 reserves "zz" among others, but a list of names is not harmed by one more.
    let hello = with_extensions(&[(16, alpn_list(&["\u{1A}\u{1A}", "zz", "h2"]))]);
    let hello = keeps_the_contract(&record(&hello)).expect("a hello");
    assert_eq!(
        hello.alpn().collect::<Vec<_>>(),
        [&b"\x1A\x1A"[..], b"zz", b"h2"]
    );
}

#[test]
fn client_without_a_version_list_supports_up_to_its_legacy_version() {
    let of = |legacy: u16| {
        let mut message = with_extensions(&[]);
        message[4..6].copy_from_slice(&legacy.to_be_bytes());
        let hello = keeps_the_contract(&record(&message)).expect("a hello");
        (hello.versions().to_vec(), hello.version())
    };
    assert_eq!(of(0x0303), (vec![0x0303, 0x0302, 0x0301], 0x0303));
    assert_eq!(of(0x0301), (vec![0x0301], 0x0301));
    assert_eq!(of(0x0300), (vec![], 0x0300));
    // RFC 8446 section 4.2.1: not TLS 1.3, even if it says so.
    assert_eq!(of(0x0304).1, 0x0303);
}

/// Rows D-21 and M-15 of docs/defects.md.
#[test]
fn highest_known_version_wins_over_drafts_and_grease() {
    let of = |versions: &[u16]| {
        let list: Vec<u8> = versions.iter().flat_map(|v| v.to_be_bytes()).collect();
        let extension = (43, [&[list.len() as u8][..], &list].concat());
        keeps_the_contract(&record(&with_extensions(&[extension])))
            .expect("a hello")
            .version()
    };
    assert_eq!(of(&[0x7F1C, 0x0303, 0x0302]), 0x0303);
    assert_eq!(of(&[0xFAFA, 0x0303, 0x0304]), 0x0304);
    assert_eq!(of(&[0x7F1C]), 0x7F1C);
    assert_eq!(of(&[0xFAFA]), 0x0303);
}

#[test]
fn hello_without_extensions_is_one() {
    let message = handshake(&[&[3, 1][..], &[7; 32], &[0, 0, 2, 0, 0x2F, 1, 0]].concat());
    let hello = keeps_the_contract(&record(&message)).expect("a hello");
    assert_eq!(hello.server_name(), None);
    assert_eq!(hello.cipher_suites(), [0x002F]);
    assert_eq!(hello.version(), 0x0301);
}

#[test]
fn what_follows_the_hello_does_not_matter() {
    let hello = parse(GO);
    assert_eq!(parse(&[GO, &[23, 3, 3, 0, 1, 0]].concat()), hello);
    assert_eq!(parse(&[GO, b"garbage"].concat()), hello);
}

#[test]
fn other_protocols_are_refused_at_the_byte_that_shows_it() {
    for (what, bytes, after) in [
        ("HTTP", &b"GET / HTTP/1.1\r\n"[..], 1),
        ("SSH", b"SSH-2.0-x\r\n", 1),
        ("alert", &[21, 3, 1, 0, 2, 2, 40], 1),
        ("SSLv2 hello", &[0x80, 0x2E, 1, 3, 1, 0, 0x15], 1),
        (
            "DTLS 1.2",
            &[22, 0xFE, 0xFD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xB0],
            2,
        ),
        ("version 2", &[22, 2, 0, 0, 50], 2),
        ("empty record", &[22, 3, 1, 0, 0], 5),
        ("record over 16384", &[22, 3, 1, 0x40, 1], 5),
        ("record far over 16384", &[22, 3, 1, 0xFF, 0xFF], 4),
        ("ServerHello", &[22, 3, 3, 0, 80, 2, 0, 0, 76], 6),
        ("message over 65535", &[22, 3, 1, 2, 0, 1, 1, 0, 0], 7),
        ("message over 16384", &[22, 3, 1, 2, 0, 1, 0, 0x40, 1], 9),
        (
            "message far over 16384",
            &[22, 3, 1, 2, 0, 1, 0, 0x41, 0],
            8,
        ),
        (
            "message too short to be a hello",
            &[22, 3, 1, 2, 0, 1, 0, 0, 40],
            9,
        ),
        ("SSL 2 inside", &[22, 3, 1, 2, 0, 1, 0, 1, 0, 2], 10),
    ] {
        refused_after(what, bytes, after);
    }
}

#[test]
fn other_record_in_the_middle_is_refused_at_its_first_byte() {
    let first = record(&GO[5..105]);
    for kind in [20, 21, 23] {
        let bytes = [&first[..], &[kind, 3, 3, 0, 2, 1, 0]].concat();
        refused_after("another record type", &bytes, first.len() + 1);
    }
    let bytes = [&first[..], &[22, 3, 3, 0, 0]].concat();
    refused_after("an empty record", &bytes, bytes.len());
}

#[test]
fn length_that_contradicts_is_refused_when_it_is_read() {
    // Version and random, 34 bytes, behind record and message header.
    let start = 5 + 4 + 34;
    let hello = |rest: &[u8]| record(&handshake(&[&[3, 3][..], &[7; 32], rest].concat()));
    let pad = [0; 60];

    refused_after(
        "session id over 32",
        &hello(&[&[33][..], &pad].concat()),
        start + 1,
    );
    refused_after(
        "session id over the end",
        &hello(&[9, 1, 2, 3, 4, 5, 6, 7]),
        start + 1,
    );
    refused_after(
        "no cipher suites",
        &hello(&[&[0, 0, 0][..], &pad].concat()),
        start + 3,
    );
    refused_after(
        "odd cipher suites",
        &hello(&[&[0, 0, 3][..], &pad].concat()),
        start + 3,
    );
    refused_after(
        "cipher suites over the end",
        &hello(&[&[0, 0x10][..], &pad].concat()),
        start + 2,
    );
    let suites = [0, 0, 2, 0, 0x2F];
    let after = start + suites.len();
    refused_after(
        "no compression",
        &hello(&[&suites[..], &[0], &pad].concat()),
        after + 1,
    );
    refused_after(
        "compression over the end",
        &hello(&[&suites[..], &[9, 0]].concat()),
        after + 1,
    );
    refused_after(
        "one byte left",
        &hello(&[&suites[..], &[1, 0, 0]].concat()),
        after + 1,
    );
    let body = [&suites[..], &[1, 0]].concat();
    let after = start + body.len();
    refused_after(
        "extensions too short",
        &hello(&[&body[..], &[0, 1], &[0; 4]].concat()),
        after + 2,
    );
    refused_after(
        "extensions too long",
        &hello(&[&body[..], &[1, 0], &[0; 4]].concat()),
        after + 1,
    );
    refused_after(
        "extensions of 3 bytes",
        &hello(&[&body[..], &[0, 3, 0, 0, 0]].concat()),
        after + 2,
    );
    let truncated = [&body[..], &[0, 8, 0, 23, 0, 5, 0, 0, 0, 0]].concat();
    refused_after("extension over the end", &hello(&truncated), after + 6);
    let truncated = [&body[..], &[0, 8, 0, 23, 0, 3, 0, 0, 0, 0]].concat();
    refused_after(
        "extension that leaves one byte",
        &hello(&truncated),
        after + 6,
    );
    let sni = [&body[..], &[0, 13, 0, 0, 0, 9, 0, 7, 7, 0, 3, 1, 1, 1, 0]].concat();
    refused_after(
        "name that leaves one byte",
        &hello(&sni),
        after + 2 + 4 + 2 + 3,
    );
}

/// Row M-17 of docs/defects.md.
#[test]
fn malformed_extension_is_refused() {
    let sni = |entries: &[u8]| (0, sized(entries));
    let host = |name: &str| [&[0][..], &sized(name.as_bytes())].concat();
    for (what, extensions) in [
        ("extension twice", vec![(23, vec![]), (23, vec![])]),
        (
            "host name twice",
            vec![sni(&[host("a.example"), host("b.example")].concat())],
        ),
        (
            "SNI twice",
            vec![sni(&host("a.example")), sni(&host("a.example"))],
        ),
        ("SNI of a server", vec![(0, vec![])]),
        ("SNI without entries", vec![(0, vec![0, 0])]),
        (
            "SNI list too long",
            vec![(0, [&[0, 5][..], &host("a")].concat())],
        ),
        (
            "SNI list too short",
            vec![(0, [&[0, 3][..], &host("a")].concat())],
        ),
        (
            "host name over the end",
            vec![(0, vec![0, 4, 0, 0, 2, b'a'])],
        ),
        (
            "half an entry",
            vec![sni(&[&host("a")[..], &[1, 0]].concat())],
        ),
        ("empty host name", vec![sni(&[0, 0, 0])]),
        ("host name over 255", vec![sni(&host(&"a".repeat(256)))]),
        ("trailing dot", vec![sni(&host("a.example."))]),
        ("leading dot", vec![sni(&host(".example"))]),
        ("empty label", vec![sni(&host("a..example"))]),
        ("NUL", vec![sni(&host("a\0.example"))]),
        ("space", vec![sni(&host("a example"))]),
        ("path", vec![sni(&host("../a"))]),
        ("wildcard", vec![sni(&host("*.example"))]),
        ("not ASCII", vec![sni(&host("bücher.example"))]),
        ("ALPN of nothing", vec![(16, vec![0, 0])]),
        ("empty ALPN name", vec![(16, vec![0, 3, 0, 1, b'a'])]),
        (
            "ALPN name over the end",
            vec![(16, vec![0, 3, 3, b'a', b'a'])],
        ),
        (
            "ALPN that leaves one byte",
            vec![(16, vec![0, 3, 1, b'a', 0])],
        ),
        ("ALPN list too short", vec![(16, vec![0, 2, 1, b'a', 0])]),
        ("no versions", vec![(43, vec![0])]),
        ("odd versions", vec![(43, vec![3, 3, 4, 3])]),
        ("versions of a server", vec![(43, vec![3, 4])]),
        ("no groups", vec![(10, vec![0, 0])]),
        ("odd groups", vec![(10, vec![0, 3, 0, 29, 0])]),
        ("no signature schemes", vec![(13, vec![0, 0])]),
    ] {
        let message = with_extensions(&extensions);
        assert_eq!(keeps_the_contract(&record(&message)), None, "{what}");
    }
}

#[test]
fn host_names_that_clients_use_are_kept_as_sent() {
    let long = format!("{}example", "a.".repeat(124));
    for name in ["a", "A.Example", "_sip.x-1.example", "192.0.2.1", &long] {
        let hello = keeps_the_contract(&record(&with_sni(name))).expect("a hello");
        assert_eq!(hello.server_name(), Some(name));
        assert_eq!(hello.server_name_lower(), name.to_ascii_lowercase());
    }
}

#[test]
fn names_of_other_kinds_are_passed_over() {
    let entries = [
        &[7][..],
        &sized(b"?"),
        &[0],
        &sized(b"a.example"),
        &[9],
        &sized(b""),
    ]
    .concat();
    let hello = keeps_the_contract(&record(&with_extensions(&[(0, sized(&entries))])));
    assert_eq!(hello.expect("a hello").server_name(), Some("a.example"));
    let hello = keeps_the_contract(&record(&with_extensions(&[(0, sized(&[7, 0, 1, b'?']))])));
    assert_eq!(hello.expect("a hello").server_name_lower(), "");
}

#[test]
fn hello_of_the_greatest_size_is_read_and_one_more_byte_is_not() {
    let spare = MAX_LENGTH - (with_extensions(&[(0xFFFF, vec![])]).len() - MESSAGE_HEADER);
    let message = with_extensions(&[(0xFFFF, vec![0; spare])]);
    let bytes = fragmented(&message, &[MAX_LENGTH]);
    assert!(matches!(parse(&bytes), Parsed::Done(_)));
    assert_eq!(parse(&bytes[..bytes.len() - 1]), Parsed::More(1));
    let message = with_extensions(&[(0xFFFF, vec![0; spare + 1])]);
    assert_eq!(parse(&fragmented(&message, &[MAX_LENGTH])), Parsed::Not);
}

#[test]
fn bytes_that_cannot_decide_are_asked_for_at_once() {
    // In the random: the rest of it, and the length behind it.
    assert_eq!(parse(&GO[..5 + 4 + 2 + 10]), Parsed::More(22 + 1));
    let asked = (0..GO.len()).filter_map(|n| match parse(&GO[..n]) {
        Parsed::More(more) => Some(more),
        _ => None,
    });
    // In the post-quantum key share.
    assert!(asked.max() > Some(1216));
}

proptest! {
    #[test]
    fn fragmentation_never_shows(
        name in "[a-z0-9]{1,12}(\\.[a-z0-9]{1,12}){0,3}",
        protocols in vec("[a-z0-9/.]{1,10}", 1..4),
        sizes in vec(1_usize..60, 1..12),
    ) {
        let names: Vec<&str> = protocols.iter().map(String::as_str).collect();
        let host = sized(&[&[0][..], &sized(name.as_bytes())].concat());
        let message = with_extensions(&[(0, host), (23, vec![]), (16, alpn_list(&names))]);
        let whole = keeps_the_contract(&record(&message)).expect("a hello");
        prop_assert_eq!(whole.server_name(), Some(&*name));
        prop_assert_eq!(whole.alpn().collect::<Vec<_>>(), names.iter().map(|n| n.as_bytes()).collect::<Vec<_>>());

        let bytes = fragmented(&message, &sizes);
        prop_assert_eq!(keeps_the_contract(&bytes), Some(whole));
        prop_assert!(matches!(parse(&bytes[..bytes.len() - 1]), Parsed::More(1)));
    }

    #[test]
    fn real_hellos_survive_any_fragmentation(sizes in vec(1_usize..700, 1..8)) {
        for bytes in [OPENSSL_TLS12, GNUTLS, GO, CHROMIUM] {
            prop_assert_eq!(parse(&fragmented(&bytes[5..], &sizes)), parse(bytes));
        }
    }

    #[test]
    fn damaged_hellos_keep_the_contract(
        changes in vec((any::<Index>(), any::<u8>()), 1..5),
        sizes in vec(20_usize..400, 1..4),
    ) {
        for bytes in [OPENSSL_TLS12, OPENSSL_TLS13] {
            let mut bytes = fragmented(&bytes[5..], &sizes);
            for (at, value) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            keeps_the_contract(&bytes);
        }
    }

    #[test]
    fn any_bytes_behind_a_plausible_start_keep_the_contract(rest in vec(any::<u8>(), 0..80)) {
        keeps_the_contract(&rest);
        keeps_the_contract(&[&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 32], &[0], &rest].concat());
        keeps_the_contract(&[&GO[..5 + 4 + 34 + 1 + 32], &[0, 2, 19, 1, 1, 0, 5], &rest].concat());
    }
}

fn parse(bytes: &[u8]) -> Parsed<ClientHello> {
    ClientHello::parse(bytes)
}

/// Parses every prefix: what is decided stays, and nothing is decided before the bytes that were asked for are there.
fn keeps_the_contract(bytes: &[u8]) -> Option<ClientHello> {
    let mut asked_for = 0;
    let mut decided: Option<Parsed<ClientHello>> = None;
    for n in 0..=bytes.len() {
        match (parse(&bytes[..n]), &decided) {
            (Parsed::More(more), None) => {
                assert!(more > 0, "asks for nothing after {n} bytes");
                asked_for = asked_for.max(n + more);
            }
            (answer, None) => {
                assert!(
                    n >= asked_for,
                    "decided after {n} bytes, {asked_for} were asked for"
                );
                decided = Some(answer);
            }
            (answer, Some(first)) => assert_eq!(&answer, first, "changed after {n} bytes"),
        }
    }
    match decided {
        Some(Parsed::Done(hello)) => Some(hello),
        _ => None,
    }
}

fn refused_after(what: &str, bytes: &[u8], n: usize) {
    assert_eq!(keeps_the_contract(bytes), None, "{what}");
    assert_eq!(parse(&bytes[..n]), Parsed::Not, "{what} after {n} bytes");
    assert!(
        matches!(parse(&bytes[..n - 1]), Parsed::More(_)),
        "{what} after {} bytes",
        n - 1
    );
}

/// `content` behind its 16-bit length.
fn sized(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes(), content].concat()
}

fn alpn_list(names: &[&str]) -> Vec<u8> {
    let names: Vec<u8> = names
        .iter()
        .flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat())
        .collect();
    sized(&names)
}

fn with_sni(name: &str) -> Vec<u8> {
    let entry = [&[0][..], &sized(name.as_bytes())].concat();
    with_extensions(&[(0, sized(&entry))])
}

/// A hello message for TLS 1.2.
fn with_extensions(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let extensions: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, data)| [&kind.to_be_bytes()[..], &sized(data)].concat())
        .collect();
    let fixed = [
        &[3, 3][..],
        &[7; 32],
        &[4, 9, 9, 9, 9, 0, 4, 0x13, 1, 0, 0x2F, 1, 0],
    ]
    .concat();
    handshake(&[fixed, sized(&extensions)].concat())
}

fn handshake(body: &[u8]) -> Vec<u8> {
    [&[1], &(body.len() as u32).to_be_bytes()[1..], body].concat()
}

fn record(payload: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &sized(payload)].concat()
}

/// `message` in records of the given sizes, over and over.
fn fragmented(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let mut rest = message;
    let mut bytes = Vec::new();
    for size in sizes.iter().cycle() {
        let (fragment, tail) = rest.split_at((*size).min(rest.len()));
        bytes.extend(record(fragment));
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    bytes
}
