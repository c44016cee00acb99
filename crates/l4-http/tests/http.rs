//! `http` as a route list sees it: contract, verdicts, configuration, index and placeholders.

use l4_core::config::ConfigError;
use l4_core::{
    AsyncHandler, Connection, Flow, HandlerModule, Matcher as _, Parsed, Provision, Rejected, Rest,
    Verdict,
};
use l4_http::{HttpHead, MatchHttp, register};
use l4_testkit::{Router, check, conn_verdict, decided_after, received, verdict};
use tokio::io::AsyncWriteExt as _;

const CURL_GET: &[u8] = include_bytes!("../testdata/curl-get.bin");
const CURL_H2: &[u8] = include_bytes!("../testdata/curl-h2.bin");
const CONTINUATION: &[u8] = include_bytes!("../testdata/made-continuation.bin");

fn http(json: &str) -> MatchHttp {
    l4_testkit::matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {}", text(&errors)))
}

fn refused(json: &str) -> String {
    match l4_testkit::matcher::<MatchHttp>(register, json) {
        Ok(_) => panic!("{json} was accepted"),
        Err(errors) => text(&errors),
    }
}

fn text(errors: &[ConfigError]) -> String {
    errors.iter().map(ConfigError::render).collect()
}

fn matches(json: &str, request: &[u8]) -> bool {
    match verdict(&http(json), request) {
        Verdict::Match => true,
        Verdict::No => false,
        Verdict::More(_) => panic!("undecided"),
    }
}

/// Whether a request with the target and fields matches.
fn asks(json: &str, target: &str, fields: &str) -> bool {
    matches(
        json,
        format!("GET {target} HTTP/1.1\r\n{fields}\r\n").as_bytes(),
    )
}

#[test]
fn every_captured_request_is_http_and_known_only_when_its_head_is_there() {
    for (bytes, head) in [
        (CURL_GET, CURL_GET.len()),
        (include_bytes!("../testdata/curl-post.bin"), 159),
        (include_bytes!("../testdata/curl-absolute.bin"), 181),
        (include_bytes!("../testdata/curl-connect.bin"), 122),
        (include_bytes!("../testdata/curl-options.bin"), 83),
        (include_bytes!("../testdata/curl-upgrade-h2c.bin"), 187),
        (include_bytes!("../testdata/ab-http10.bin"), 85),
        (include_bytes!("../testdata/browser-cookies.bin"), 2715),
        (CURL_H2, 118),
        (include_bytes!("../testdata/nghttp-padding.bin"), 364),
        (CONTINUATION, CONTINUATION.len()),
    ] {
        let any = http("[]");
        check(&any, bytes, Verdict::Match);
        assert_eq!(decided_after(&any, bytes), Some(head));
    }
}

/// Rows M-01 and M-03 of docs/defects.md.
#[test]
fn first_bytes_of_other_protocols_are_answered_as_listed() {
    for (bytes, expected) in [
        (&b""[..], Verdict::More(0)),
        (b"G", Verdict::More(0)),
        (b"GE", Verdict::More(0)),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Verdict::Match),
        (b"\x16\x03\x01\x00\xF8", Verdict::No),
        (b"SSH-", Verdict::More(0)),
        (b"PROXY TCP4", Verdict::More(0)),
        // The space ends a target that is neither a path nor an absolute URI.
        (b"PROXY TCP4 ", Verdict::No),
        (b"\x05\x01\x00", Verdict::No),
        (b"\x00\x00\x00\x08\x04\xD2\x16\x2F", Verdict::No),
        (b"\x03\x00\x00\x13\x0E\xE0", Verdict::No),
        (b"EHLO a\r\n", Verdict::No),
        (b"\r\n\r\n\x00\r\nQUIT\n", Verdict::No),
        (b"GET /\r\n", Verdict::No),
    ] {
        check(&http("[]"), bytes, expected);
    }
    for (bytes, after) in [
        (&b"EHLO a\r\n"[..], 7),
        (b"SSH-2.0-OpenSSH_9.2\r\n", 20),
        (b"\x16\x03\x01", 1),
        (b"GET / HTTP/1.1\r\nbad line\r\n\r\n", 20),
    ] {
        assert_eq!(decided_after(&http("[]"), bytes), Some(after));
    }
}

#[test]
fn sets_are_alternatives_and_members_conditions() {
    let json =
        r#"[{"host": ["127.0.0.1"], "path": ["/foo/*"]}, {"method": ["POST"]}, {"host": []}]"#;
    check(&http(json), CURL_GET, Verdict::Match);
    check(
        &http(json),
        include_bytes!("../testdata/curl-post.bin"),
        Verdict::Match,
    );
    check(
        &http(json),
        include_bytes!("../testdata/ab-http10.bin"),
        Verdict::No,
    );
    assert!(asks("[{}]", "/", ""));
    assert!(asks("[null]", "/", ""));
    assert!(asks("[]", "/", ""));
}

#[test]
fn both_protocols_are_asked_the_same() {
    for request in [CURL_GET, CURL_H2] {
        for (json, expected) in [
            (r#"[{"host": ["127.0.0.1", "www.example.com"]}]"#, true),
            (r#"[{"method": ["get"]}]"#, true),
            (r#"[{"method": ["POST"]}]"#, false),
            (r#"[{"path": ["/foo/bar"]}]"#, true),
            (r#"[{"path": ["/foo"]}]"#, false),
            (r#"[{"header": {"user-agent": ["curl*"]}}]"#, true),
            (r#"[{"header": {"User-Agent": ["*wget*"]}}]"#, false),
        ] {
            check(
                &http(json),
                request,
                if expected {
                    Verdict::Match
                } else {
                    Verdict::No
                },
            );
        }
    }
    assert!(matches(
        r#"[{"host": ["www.example.com"], "header": {"cookie": ["a=1; b=2"]}}]"#,
        CONTINUATION
    ));
}

#[test]
fn hosts_are_compared_without_port_brackets_and_case() {
    for (host, names, expected) in [
        ("a.example", r#""A.Example""#, true),
        ("A.EXAMPLE:8080", r#""a.example""#, true),
        ("a.example.", r#""a.example""#, false),
        ("[::1]:80", r#""::1""#, true),
        ("[::1]", r#""::1""#, true),
        ("xn--bcher-kva.example", "\"b\u{fc}cher.example\"", true),
        (
            "xn--bcher-kva.example",
            "\"*.example\", \"B\u{dc}CHER.example\"",
            true,
        ),
        ("www.b.example", r#""*.b.example""#, true),
        ("b.example", r#""*.b.example""#, false),
        ("x.www.b.example", r#""*.b.example""#, false),
        ("x.www.b.example", r#""*.*.B.example""#, true),
        ("www.b.example", r#""www.*.example""#, true),
        ("localhost", r#""*""#, true),
        ("a.b", r#""*""#, false),
        ("ab.c", r#""a*.c""#, false),
        ("a*.c", r#""a*.c""#, true),
        ("", r#""a""#, false),
    ] {
        let json = format!(r#"[{{"host": [{names}]}}]"#);
        assert_eq!(
            asks(&json, "/", &format!("Host: {host}\r\n")),
            expected,
            "{host} {names}"
        );
    }
    assert!(!asks(r#"[{"host": ["a"]}]"#, "/", ""));
    assert!(asks(r#"[{"host": ["a"]}]"#, "http://a/", "Host: b\r\n"));
}

#[test]
fn header_rules_hold_for_every_field_and_some_line() {
    let fields = "X-A: one\r\nx-a: two\r\nEmpty:\r\nHost: h.example:1\r\nX-Bin: a\u{e4}\r\n";
    for (rules, expected) in [
        (r#""X-A": ["one"]"#, true),
        (r#""x-a": ["nope", "two"]"#, true),
        (r#""X-A": ["One"]"#, false),
        (r#""X-A": ["o*"]"#, true),
        (r#""X-A": ["*o"]"#, true),
        (r#""X-A": ["*w*"]"#, true),
        (r#""X-A": ["*x*"]"#, false),
        (r#""X-A": ["*"]"#, true),
        (r#""X-A": ["**"]"#, true),
        (r#""X-A": []"#, true),
        (r#""X-A": null"#, false),
        (r#""X-B": null"#, true),
        (r#""X-B": []"#, false),
        (r#""X-B": ["*"]"#, false),
        (r#""Empty": [""]"#, true),
        (r#""Empty": ["*"]"#, true),
        (r#""Empty": null"#, false),
        (r#""X-A": ["one"], "X-B": []"#, false),
        (r#""X-A": ["one"], "X-B": null"#, true),
        (r#""Host": ["h.example:1"]"#, true),
        (r#""host": ["h.example"]"#, false),
        (r#""Host": null"#, false),
        ("\"X-Bin\": [\"a\u{e4}\"]", true),
        ("", true),
    ] {
        assert_eq!(
            asks(&format!(r#"[{{"header": {{{rules}}}}}]"#), "/", fields),
            expected,
            "{rules}"
        );
    }
    assert!(
        asks(r#"[{"header": {"Host": null}}]"#, "/", "Host:\r\n"),
        "an empty host is none"
    );
}

/// Row M-06 of docs/defects.md.
#[test]
fn connection_placeholders_reach_into_the_request_matchers() {
    let request = b"GET /Team/b HTTP/1.1\r\nHost: one.example\r\nX-From: 192.0.2.7:40000\r\n\r\n";
    for (json, expected) in [
        (r#"[{"host": ["{l4.vars.tenant}.example"]}]"#, true),
        (r#"[{"host": ["{l4.vars.unset}.example"]}]"#, false),
        (r#"[{"host": ["{l4.vars.any}.example"]}]"#, true),
        (r#"[{"path": ["/{l4.vars.Team}/*"]}]"#, true),
        (
            r#"[{"header": {"X-From": ["{l4.conn.remote_addr}"]}}]"#,
            true,
        ),
        (r#"[{"header": {"X-From": ["{l4.vars.any}:40000"]}}]"#, true),
        (r#"[{"header": {"Host": ["{l4.http.host}"]}}]"#, true),
    ] {
        let matcher = http(json);
        let mut conn = received(request);
        conn.set_var("tenant", "ONE");
        conn.set_var("any", "*");
        conn.set_var("Team", "Team");
        let verdict = conn.with_view(|view| matcher.matches(view));
        assert_eq!(verdict, Verdict::from_bool(expected), "{json}");
    }
}

#[test]
fn the_host_placeholder_is_known_once_the_request_was_parsed() {
    let mut registry = l4_core::Registry::new();
    register(&mut registry);
    let template =
        l4_core::Template::compile("<{l4.http.host}>", registry.placeholder_table()).unwrap();
    let mut conn = received(include_bytes!("../testdata/curl-post.bin"));
    assert_eq!(conn.expand(&template), "<>");
    let verdict = conn.with_view(|view| http(r#"[{"host": ["other"]}]"#).matches(view));
    assert_eq!(verdict, Verdict::No);
    assert_eq!(conn.expand(&template), "<Api.Example.com:8080>");
    conn.consume(1);
    assert_eq!(
        conn.expand(&template),
        "<>",
        "it belonged to bytes that are gone"
    );
}

#[test]
fn a_head_is_parsed_once_for_all_matchers() {
    let mut conn = received(CURL_GET);
    let first = conn.with_view(|view| match view.fact::<HttpHead>() {
        Parsed::Done(head) => std::ptr::from_ref(head).addr(),
        _ => 0,
    });
    conn.with_view(|view| http("[]").matches(view));
    assert_eq!(
        conn.known_fact::<HttpHead>()
            .map(|head| std::ptr::from_ref(head).addr()),
        Some(first)
    );
}

/// Row D-19 of docs/defects.md.
#[tokio::test]
async fn a_request_inside_a_layer_is_another_one() {
    let outer = b"GET / HTTP/1.1\r\nHost: outer.example\r\n\r\n";
    let inner = b"GET / HTTP/1.1\r\nHost: inner.example\r\n\r\n";
    let mut conn = received(outer);
    let asks_for = |host: &str, conn: &mut Connection| {
        let matcher = http(&format!(r#"[{{"host": ["{host}.example"]}}]"#));
        conn_verdict(&matcher, conn)
    };
    assert_eq!(asks_for("outer", &mut conn), Verdict::Match);
    let (stream, mut peer) = tokio::io::duplex(1024);
    let mut conn = conn.layer(async |_| Ok(stream)).await.unwrap();
    assert!(matches!(asks_for("outer", &mut conn), Verdict::More(_)));
    peer.write_all(inner).await.unwrap();
    conn.fill().await.unwrap();
    assert_eq!(asks_for("outer", &mut conn), Verdict::No);
    assert_eq!(asks_for("inner", &mut conn), Verdict::Match);
    // And what follows a preamble that was taken away is looked at afresh.
    let mut conn = received(&[outer.as_slice(), inner].concat());
    assert_eq!(asks_for("outer", &mut conn), Verdict::Match);
    conn.consume(outer.len());
    assert_eq!(asks_for("inner", &mut conn), Verdict::Match);
    assert_eq!(asks_for("outer", &mut conn), Verdict::No);
}

#[test]
fn keys_are_those_of_all_sets_or_none() {
    let keys = |json: &str| {
        http(json).keys().map(|keys| {
            assert_eq!(keys.dimension.name(), "http.host");
            let mut keys = keys.keys;
            keys.sort();
            keys.join(" ")
        })
    };
    assert_eq!(
        keys(r#"[{"host": ["B.example", "a.example"], "path": ["/"]}]"#).unwrap(),
        "a.example b.example"
    );
    assert_eq!(
        keys(r#"[{"host": ["a"]}, {"host": ["*.b", "*"]}]"#).unwrap(),
        "* *.b a"
    );
    assert_eq!(
        keys(r#"[{"host": ["*.*.b", "a*.c"]}]"#).unwrap(),
        "*.*.b a*.c"
    );
    assert_eq!(keys(r#"[{"host": []}]"#).unwrap(), "");
    assert_eq!(keys(r#"[{"host": ["a.*.b"]}]"#), None);
    assert_eq!(keys(r#"[{"host": ["a", "{l4.vars.b}"]}]"#), None);
    assert_eq!(keys(r#"[{"host": ["a"]}, {"path": ["/"]}]"#), None);
    assert_eq!(keys("[]"), None);
    assert_eq!(keys("[{}]"), None);
}

#[tokio::test]
async fn ten_thousand_host_routes_are_told_apart() {
    let mut routes = (0..10_000)
        .map(|i| match i % 3 {
            0 => route(&format!(r#"{{"host": ["h{i}.example"]}}"#), i),
            1 => route(&format!(r#"{{"host": ["*.w{i}.example"]}}"#), i),
            _ => route(
                &format!(r#"{{"host": ["{i}.h.example", "x{i}.example"], "method": ["GET"]}}"#),
                i,
            ),
        })
        .collect::<Vec<_>>();
    routes.insert(5_000, route(r#"{"path": ["/early"]}"#, 20_000));
    routes.push(route("", 30_000));
    let router = Router::new(
        |registry| {
            register(registry);
            registry.handler::<Say>();
        },
        &format!("[{}]", routes.join(",")),
    );
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: H0.example:80\r\n\r\n", "0"),
        ("GET / HTTP/1.1\r\nHost: a.w9997.example\r\n\r\n", "9997"),
        ("GET / HTTP/1.1\r\nHost: 9998.h.example\r\n\r\n", "9998"),
        ("GET / HTTP/1.1\r\nHost: h9999.example\r\n\r\n", "9999"),
        (
            "GET /early HTTP/1.1\r\nHost: h9999.example\r\n\r\n",
            "20000",
        ),
        ("GET /early HTTP/1.1\r\nHost: h3000.example\r\n\r\n", "3000"),
        ("POST / HTTP/1.1\r\nHost: 9998.h.example\r\n\r\n", "30000"),
        ("GET / HTTP/1.1\r\nHost: unknown\r\n\r\n", "30000"),
        ("GET / HTTP/1.1\r\n\r\n", "30000"),
        ("SSH-2.0-x\r\n", "30000"),
    ] {
        for at in [0, 1, 20, request.len() - 1] {
            let (first, second) = request.as_bytes().split_at(at.min(request.len() - 1));
            let (said, _) = router.exchange(&[first, second]).await;
            assert_eq!(
                String::from_utf8(said).unwrap(),
                expected,
                "{request} cut after {at}"
            );
        }
    }
}

fn route(set: &str, number: usize) -> String {
    let set = if set.is_empty() {
        String::new()
    } else {
        format!(r#""match": [{{"http": [{set}]}}], "#)
    };
    format!(r#"{{{set}"handle": [{{"handler": "say", "text": "{number}"}}]}}"#)
}

/// Answers with a text.
struct Say(String);

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct SayConfig {
    text: String,
}

impl HandlerModule for Say {
    const NAME: &'static str = "say";
    type Config = SayConfig;

    fn provision(config: SayConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(config.text))
    }
}

impl AsyncHandler for Say {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> l4_core::Result<Flow> {
        conn.send(self.0.as_bytes()).await?;
        Ok(Flow::Done)
    }
}

#[test]
fn what_is_out_of_scope_is_refused_with_a_sentence() {
    for name in ["expression", "file", "url_pattern"] {
        let seen = refused(&format!(r#"[{{"{name}": {{}}, "method": [1]}}]"#));
        assert!(
            seen.contains(&format!("http.matchers.{name} is out of scope: ")),
            "{seen}"
        );
        assert!(
            seen.contains("expected a string"),
            "the other members are checked too: {seen}"
        );
    }
}

#[test]
fn configuration_errors_say_what_and_where() {
    for (json, parts) in [
        (
            r#"{"matchers": []}"#,
            &["expected a list of matcher sets such as", "found an object"][..],
        ),
        (r#""host""#, &["expected a list of matcher sets such as"]),
        ("[[]]", &["/0", "expected an object"]),
        (
            r#"[{"hosts": ["a"]}]"#,
            &["unknown module: http.matchers.hosts", "host"],
        ),
        (
            r#"[{"host": null}]"#,
            &["module value cannot be null: http.matchers.host"],
        ),
        (r#"[{"host": "a"}]"#, &["/0/host", "expected a list"]),
        (
            r#"[{"host": ["a", "b", "A"]}]"#,
            &["/0/host/2", "host at index 0 is repeated at index 2: A"],
        ),
        (
            "[{\"host\": [\"b\u{fc}\", \"xn--b-eha\"]}]",
            &["index 0 is repeated at index 1"],
        ),
        (
            "[{\"host\": [\"\u{ad}\u{fc}\u{202e}\"]}]",
            &["/0/host/0", "is not a host name"],
        ),
        (r#"[{"path": {"a": 1}}]"#, &["/0/path", "expected a list"]),
        (
            r#"[{"method": [1]}]"#,
            &["/0/method/0", "expected a string"],
        ),
        (
            r#"[{"header": ["a"]}]"#,
            &["/0/header", "expected an object"],
        ),
        (
            r#"[{"header": {"a": "b"}}]"#,
            &["/0/header/a", "expected a list"],
        ),
        (
            r#"[{"host": ["a", "a"], "path": [1]}]"#,
            &["is repeated", "expected a string"],
        ),
    ] {
        let seen = refused(json);
        for part in parts {
            assert!(seen.contains(part), "{json}: {part:?} not in:\n{seen}");
        }
    }
}
