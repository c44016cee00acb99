//! The matcher `tls` as it is configured, on what real clients send.

use l4_core::config::{ConfigError, Document};
use l4_core::{
    Addr, Connection, Fact as _, Matcher, Parsed, Provision, Registry, Template, Verdict,
};
use l4_testkit::{check, conn_verdict, decided_after, received, verdict};
use l4_tls::{ClientHello, HandshakeMatchers, HandshakeScope, MatchTls};

const EXAMPLE_COM: &[u8] = include_bytes!("../testdata/openssl-tls12.bin");
const WWW_EXAMPLE_COM: &[u8] = include_bytes!("../testdata/openssl-tls13-alpn.bin");
const NO_SNI: &[u8] = include_bytes!("../testdata/openssl-no-sni.bin");
const TWO_RECORDS: &[u8] = include_bytes!("../testdata/openssl-two-records.bin");
const CURL: &[u8] = include_bytes!("../testdata/curl-h2.bin");
const GNUTLS: &[u8] = include_bytes!("../testdata/gnutls.bin");
const GO: &[u8] = include_bytes!("../testdata/go-x25519mlkem768.bin");
const CHROMIUM: &[u8] = include_bytes!("../testdata/chromium-grease-ech.bin");

#[test]
fn bare_tls_matches_every_client_once_its_hello_is_complete() {
    let tls = tls("{}");
    for hello in [
        EXAMPLE_COM,
        WWW_EXAMPLE_COM,
        NO_SNI,
        TWO_RECORDS,
        CURL,
        GNUTLS,
        GO,
        CHROMIUM,
    ] {
        check(&tls, hello, Verdict::Match);
        assert_eq!(decided_after(&tls, hello), Some(hello.len()));
    }
}

/// Rows M-03 and M-14 of docs/defects.md.
#[test]
fn bare_tls_refuses_what_is_not_a_hello() {
    let tls = tls("{}");
    for other in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"PROXY TCP4 ",
        &[5, 1, 0],
        &[0, 0, 0, 8, 4, 0xD2, 0x16, 0x2F],
        &[3, 0, 0, 0x13, 0x0E, 0xE0],
        &[22, 0xFE, 0xFD, 0, 0],
        &[22, 3, 3, 0, 80, 2, 0, 0, 76],
        &[22, 0, 0, 0, 0, 0],
    ] {
        check(&tls, other, Verdict::No);
    }
    check(&tls, &[], Verdict::More(0));
    check(&tls, &[22, 3, 1, 0, 0xF8], Verdict::More(0));
}

#[test]
fn sni_is_compared_without_case_and_by_whole_labels() {
    for (names, expected) in [
        (r#"["www.example.com"]"#, Verdict::Match),
        (r#"["WWW.Example.COM"]"#, Verdict::Match),
        (r#"["other.example", "www.example.com"]"#, Verdict::Match),
        (r#"["*.example.com"]"#, Verdict::Match),
        (r#"["*.*.com"]"#, Verdict::Match),
        (r#"["*.*.*"]"#, Verdict::Match),
        (r#"["www.*.com"]"#, Verdict::No),
        (r#"["*.com"]"#, Verdict::No),
        (r#"["*"]"#, Verdict::No),
        (r#"["*.*"]"#, Verdict::No),
        (r#"["*.*.*.*"]"#, Verdict::No),
        (r#"["*.www.example.com"]"#, Verdict::No),
        (r#"["ww*.example.com"]"#, Verdict::No),
        (r#"["example.com"]"#, Verdict::No),
        (r#"[""]"#, Verdict::No),
        ("[]", Verdict::No),
    ] {
        let tls = tls(&format!(r#"{{"sni": {names}}}"#));
        assert_eq!(verdict(&tls, WWW_EXAMPLE_COM), expected, "{names}");
    }
    check(
        &tls(r#"{"sni": ["example.com"]}"#),
        EXAMPLE_COM,
        Verdict::Match,
    );
}

#[test]
fn empty_name_is_a_client_without_sni() {
    check(&tls(r#"{"sni": [""]}"#), NO_SNI, Verdict::Match);
    check(&tls(r#"{"sni": ["*"]}"#), NO_SNI, Verdict::No);
    assert_eq!(
        verdict(&tls(r#"{"sni": ["*"]}"#), &hello("localhost")),
        Verdict::Match
    );
}

#[test]
fn international_names_are_found_by_their_ascii_form() {
    let bytes = hello("xn--bcher-kva.example");
    for name in [
        "bücher.example",
        "BÜCHER.example",
        "xn--bcher-kva.example",
        "*.example",
    ] {
        let tls = tls(&format!(r#"{{"sni": ["{name}"]}}"#));
        assert_eq!(verdict(&tls, &bytes), Verdict::Match, "{name}");
    }
    let tls = tls(r#"{"sni": ["*.bücher.example"]}"#);
    assert_eq!(
        verdict(&tls, &hello("a.xn--bcher-kva.example")),
        Verdict::Match
    );
}

#[test]
fn name_no_client_can_send_is_a_warning() {
    for (name, warned) in [
        ("example.com.", true),
        ("example.com:443", true),
        ("www.*.com", true),
        ("a..b", true),
        ("xn--a\u{301}\u{200D}", true),
        ("*.example.com", false),
        ("*", false),
        ("", false),
        ("_a.example", false),
        ("bücher.example", false),
    ] {
        let (made, warnings) = provision(&format!(r#"{{"sni": ["ok", "{name}"]}}"#));
        assert!(made.is_ok());
        assert_eq!(warnings.len(), usize::from(warned), "{name}");
        assert!(warnings.iter().all(|w| w.pointer() == "/sni/1"), "{name}");
    }
}

/// Row M-16 of docs/defects.md.
#[test]
fn names_may_come_from_the_connection() {
    let tls = tls(r#"{"sni": ["*.{l4.vars.domain}", "x.{l4.vars.other}"]}"#);
    assert!(tls.keys().is_none());
    let mut conn = received(WWW_EXAMPLE_COM);
    assert_eq!(conn_verdict(&tls, &mut conn), Verdict::No);
    conn.set_var("domain", "EXAMPLE.com");
    assert_eq!(conn_verdict(&tls, &mut conn), Verdict::Match);
}

#[test]
fn list_of_constant_names_is_indexed_by_them() {
    let tls = tls(
        r#"{"alpn": ["h2"], "sni": ["B.example", "*.a.example", "*.*", "*", "", "b.example"]}"#,
    );
    let mut keys = tls.keys().expect("keys");
    keys.keys.sort();
    assert_eq!(keys.dimension.name(), "tls.sni");
    assert_eq!(keys.keys, ["", "*", "*.*", "*.a.example", "b.example"]);

    let probe = |bytes: &[u8]| {
        let mut name = String::from("left over");
        (
            received(bytes).with_view(|view| keys.dimension.probe(view, &mut name)),
            name,
        )
    };
    assert_eq!(probe(EXAMPLE_COM), (Verdict::Match, "example.com".into()));
    assert_eq!(probe(NO_SNI), (Verdict::Match, String::new()));
    assert_eq!(probe(b"SSH-").0, Verdict::No);
    assert!(matches!(probe(&GO[..700]).0, Verdict::More(_)));

    assert!(self::tls(r#"{"alpn": ["h2"]}"#).keys().is_none());
    assert!(self::tls(r#"{"sni": []}"#).keys().is_none());
    assert!(
        self::tls(r#"{"sni": ["a.example", "{l4.vars.x}"]}"#)
            .keys()
            .is_none()
    );
}

#[test]
fn thousands_of_names_in_one_list_are_told_apart() {
    let names: Vec<String> = (0..3000).map(|i| format!(r#""*.h{i}.example""#)).collect();
    let tls = tls(&format!(r#"{{"sni": [{}]}}"#, names.join(",")));
    for (name, expected) in [
        ("a.h0.example", Verdict::Match),
        ("a.h2999.example", Verdict::Match),
        ("a.h3000.example", Verdict::No),
        ("h1.example", Verdict::No),
        ("b.a.h1.example", Verdict::No),
    ] {
        assert_eq!(verdict(&tls, &hello(name)), expected, "{name}");
    }
}

/// Row M-17 of docs/defects.md.
#[test]
fn sni_regexp_captures_as_sent_whatever_the_case() {
    let tls = tls(
        r#"{"sni_regexp": {"name": "host", "pattern": "^(?<first>[a-z]+)\\.(com|net)(:\\d+)?$"}}"#,
    );
    assert_eq!(tls.cost(), l4_core::Cost::Regex);
    let mut conn = received(EXAMPLE_COM);
    assert_eq!(conn_verdict(&tls, &mut conn), Verdict::Match);
    for (text, expected) in [
        ("{tls.regexp.0}", "Example.COM"),
        ("{tls.regexp.1}/{tls.regexp.2}", "Example/COM"),
        ("{tls.regexp.first}", "Example"),
        ("{tls.regexp.host.2}", "COM"),
        ("{tls.regexp.host.first}", "Example"),
        ("[{tls.regexp.3}]", "[]"),
        ("[{tls.regexp.other.1}]", "[]"),
    ] {
        assert_eq!(expand(&conn, text), expected, "{text}");
    }
}

#[test]
fn sni_regexp_searches_anywhere_and_may_tell_case_apart() {
    for (pattern, bytes, expected) in [
        ("ample", EXAMPLE_COM, Verdict::Match),
        ("^ample", EXAMPLE_COM, Verdict::No),
        ("(?-i)example", EXAMPLE_COM, Verdict::No),
        ("(?-i)Example", EXAMPLE_COM, Verdict::Match),
        ("", NO_SNI, Verdict::Match),
        ("^$", NO_SNI, Verdict::Match),
        (".", NO_SNI, Verdict::No),
        ("^www{l4.vars.x}$", WWW_EXAMPLE_COM, Verdict::No),
        ("^www{l4.vars.x}", WWW_EXAMPLE_COM, Verdict::Match),
        (r"^w\\{3\\}\\.", WWW_EXAMPLE_COM, Verdict::Match),
    ] {
        let tls = tls(&format!(r#"{{"sni_regexp": {{"pattern": "{pattern}"}}}}"#));
        assert_eq!(verdict(&tls, bytes), expected, "{pattern}");
    }
    assert_eq!(
        verdict(&tls(r#"{"sni_regexp": {}}"#), NO_SNI),
        Verdict::Match
    );
}

#[test]
fn repetition_that_is_taken_for_a_placeholder_is_a_warning() {
    for (pattern, warned) in [
        (r"^[a-z]{2,5}\\.example", true),
        (r"^[a-z]\\{2,5\\}\\.example", false),
        ("{system.os}", false),
    ] {
        let json = format!(r#"{{"sni_regexp": {{"pattern": "{pattern}"}}}}"#);
        let (made, warnings) = provision(&json);
        assert!(made.is_ok(), "{pattern}");
        assert_eq!(warnings.len(), usize::from(warned), "{pattern}");
        assert!(
            warnings
                .iter()
                .all(|w| w.pointer() == "/sni_regexp/pattern"),
            "{pattern}"
        );
    }
}

/// Row M-18 of docs/defects.md.
#[test]
fn captures_stay_only_if_every_condition_holds() {
    let tls = tls(r#"{"sni_regexp": {"pattern": "(.*)"}, "alpn": ["nope"]}"#);
    let mut conn = received(WWW_EXAMPLE_COM);
    assert_eq!(conn_verdict(&tls, &mut conn), Verdict::No);
    assert_eq!(expand(&conn, "[{tls.regexp.1}]"), "[]");
}

/// Row M-27 of docs/defects.md.
#[test]
fn alpn_matches_one_of_the_offered_protocols() {
    for (protocols, expected) in [
        (r#"["h2"]"#, Verdict::Match),
        (r#"["spdy/3", "http/1.1"]"#, Verdict::Match),
        (r#"["H2"]"#, Verdict::No),
        (r#"["h"]"#, Verdict::No),
        (r#"[""]"#, Verdict::No),
        ("[]", Verdict::No),
        (r#"["{l4.vars.protocol}"]"#, Verdict::Match),
    ] {
        let tls = tls(&format!(r#"{{"alpn": {protocols}}}"#));
        let mut conn = received(WWW_EXAMPLE_COM);
        conn.set_var("protocol", "h2");
        assert_eq!(conn_verdict(&tls, &mut conn), expected, "{protocols}");
        assert_eq!(verdict(&tls, NO_SNI), Verdict::No, "{protocols}");
    }
}

#[test]
fn addresses_are_those_of_the_connection() {
    // Test connections come from 192.0.2.7 to 198.51.100.1.
    for (condition, expected) in [
        (
            r#""remote_ip": {"ranges": ["192.0.2.0/24"]}"#,
            Verdict::Match,
        ),
        (
            r#""remote_ip": {"ranges": ["10.0.0.0/8", "::/0"]}"#,
            Verdict::No,
        ),
        (r#""remote_ip": {}"#, Verdict::Match),
        (
            r#""remote_ip": {"ranges": null, "not_ranges": []}"#,
            Verdict::Match,
        ),
        (r#""remote_ip": {"not_ranges": ["192.0.2.7"]}"#, Verdict::No),
        (
            r#""remote_ip": {"not_ranges": ["192.0.2.8"]}"#,
            Verdict::Match,
        ),
        (
            r#""remote_ip": {"ranges": ["192.0.2.0/24"], "not_ranges": ["192.0.2.7"]}"#,
            Verdict::No,
        ),
        (
            r#""remote_ip": {"ranges": ["private_ranges"]}"#,
            Verdict::No,
        ),
        (
            r#""local_ip": {"ranges": ["198.51.100.1"]}"#,
            Verdict::Match,
        ),
        (r#""local_ip": {"ranges": ["192.0.2.7"]}"#, Verdict::No),
        (r#""local_ip": {}"#, Verdict::Match),
    ] {
        let tls = tls(&format!("{{{condition}}}"));
        assert_eq!(verdict(&tls, GO), expected, "{condition}");
    }
}

#[test]
fn unix_socket_is_in_no_range_not_even_in_any() {
    for condition in [r#"{"remote_ip": {}}"#, r#"{"local_ip": {}}"#] {
        let mut conn = received(GO);
        conn.set_addresses(Addr::UNNAMED, Addr::UNNAMED);
        assert_eq!(
            conn_verdict(&tls(condition), &mut conn),
            Verdict::No,
            "{condition}"
        );
    }
}

#[test]
fn conditions_can_be_asked_about_a_connection_too() {
    let (registry, document) = (
        registry(),
        Document::parse("test", br#"["*.{l4.vars.x}"]"#).expect("JSON"),
    );
    let mut cx = Provision::new(&document, &registry);
    let sni = cx
        .module::<HandshakeMatchers>("sni", document.root())
        .expect("a condition");
    let Parsed::Done(hello) = ClientHello::parse(WWW_EXAMPLE_COM) else {
        panic!("no hello")
    };
    let mut conn = received(b"");
    assert!(!sni.matches(&hello, &conn, &mut Vec::new()));
    conn.set_var("x", "example.com");
    assert!(sni.matches(&hello, &conn, &mut Vec::new()));
    let scope: &dyn HandshakeScope = &conn;
    assert_eq!(
        scope.remote_ip(),
        Some("192.0.2.7".parse().expect("an address"))
    );
    assert_eq!(
        scope.local_ip(),
        Some("198.51.100.1".parse().expect("an address"))
    );
}

#[test]
fn placeholders_are_readable_even_if_the_conditions_fail() {
    let mut conn = received(EXAMPLE_COM);
    assert_eq!(
        expand(&conn, "[{l4.tls.server_name}{l4.tls.version}]"),
        "[]"
    );
    assert_eq!(
        conn_verdict(&tls(r#"{"alpn": ["nope"]}"#), &mut conn),
        Verdict::No
    );
    assert_eq!(
        expand(&conn, "{l4.tls.server_name} {l4.tls.version}"),
        "Example.COM tls1.2"
    );

    let mut conn = received(CHROMIUM);
    assert_eq!(conn_verdict(&tls("{}"), &mut conn), Verdict::Match);
    assert_eq!(
        expand(&conn, "{l4.tls.server_name} {l4.tls.version}"),
        "chrome.example.com tls1.3"
    );

    let mut conn = received(NO_SNI);
    assert_eq!(conn_verdict(&tls("{}"), &mut conn), Verdict::Match);
    assert_eq!(expand(&conn, "[{l4.tls.server_name}]"), "[]");
}

/// Row M-19 of docs/defects.md.
#[test]
fn bad_settings_are_refused_where_they_stand() {
    for (json, pointer, message) in [
        (
            r#"{"sni": null}"#,
            "/sni",
            "module value cannot be null: tls.handshake_match.sni",
        ),
        (
            r#"{"nope": {}}"#,
            "/nope",
            "unknown module: tls.handshake_match.nope",
        ),
        (
            r#"{"sni_regexp": {"name": "a b!", "pattern": ""}}"#,
            "/sni_regexp/name",
            "invalid expression name \"a b!\"",
        ),
        (
            r#"{"sni_regexp": {"pattern": "(a"}}"#,
            "/sni_regexp/pattern",
            "invalid regular expression: unclosed group",
        ),
        (
            r#"{"remote_ip": {"ranges": ["::1", "10.0.0.0/33"]}}"#,
            "/remote_ip/ranges/1",
            "parsing CIDR expression: '10.0.0.0/33': ",
        ),
        (
            r#"{"remote_ip": {"not_ranges": ["10.0.0.300"]}}"#,
            "/remote_ip/not_ranges/0",
            "invalid IP address: '10.0.0.300': ",
        ),
        (
            r#"{"local_ip": {"ranges": ["{env.NO_SUCH_VARIABLE}"]}}"#,
            "/local_ip/ranges/0",
            "invalid IP address: '': ",
        ),
    ] {
        let errors = provision(json).0.err().expect(json);
        assert_eq!(errors.len(), 1, "{json}");
        assert_eq!(errors[0].pointer(), pointer, "{json}");
        assert!(
            errors[0].message().starts_with(message),
            "{json}: {}",
            errors[0].message()
        );
    }
    for (json, pointer) in [
        (
            r#"{"local_ip": {"not_ranges": []}}"#,
            "/local_ip/not_ranges",
        ),
        (r#"{"sni_regexp": {"patern": ""}}"#, "/sni_regexp/patern"),
        (r#"{"sni": "example.com"}"#, "/sni"),
        (r#"{"alpn": [1]}"#, "/alpn/0"),
        (r#"[]"#, ""),
    ] {
        let errors = provision(json).0.err().expect(json);
        assert_eq!(errors[0].pointer(), pointer, "{json}");
    }
}

#[test]
fn every_fault_of_a_list_of_conditions_is_reported() {
    let json =
        r#"{"sni_regexp": {"pattern": "("}, "remote_ip": {"ranges": ["x"], "not_ranges": ["y"]}}"#;
    assert_eq!(provision(json).0.err().expect("errors").len(), 3);
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    l4_tls::register(&mut registry);
    assert!(registry.conflicts().is_empty());
    registry
}

fn tls(json: &str) -> MatchTls {
    l4_testkit::matcher(l4_tls::register, json)
        .unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
}

fn provision(json: &str) -> (Result<MatchTls, Vec<ConfigError>>, Vec<ConfigError>) {
    use l4_core::MatcherModule as _;
    let registry = registry();
    let document = Document::parse("test", json.as_bytes()).expect("JSON");
    let mut cx = Provision::new(&document, &registry);
    let made = cx
        .decode(document.root())
        .and_then(|config| MatchTls::provision(config, &mut cx));
    let report = cx.finish();
    (made.map_err(|_| report.errors), report.warnings)
}

fn expand(conn: &Connection, text: &str) -> String {
    let template = Template::compile(text, registry().placeholder_table()).expect("a template");
    conn.expand(&template).into_owned()
}

/// A hello that asks for `name`.
fn hello(name: &str) -> Vec<u8> {
    let sized = |content: &[u8]| [&(content.len() as u16).to_be_bytes(), content].concat();
    let entry = [&[0][..], &sized(name.as_bytes())].concat();
    let extension = [&[0, 0][..], &sized(&sized(&entry))].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0, 0, 2, 0x13, 1, 1, 0],
        &sized(&extension),
    ]
    .concat();
    let message = [&[1, 0][..], &sized(&body)].concat();
    [&[22, 3, 1][..], &sized(&message)].concat()
}
