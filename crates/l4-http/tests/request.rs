//! The request matchers of `http`, and the placeholders that read a request.

#![allow(clippy::unwrap_used)]

use l4_core::config::{ConfigError, Document};
use l4_core::conn::TlsInfo;
use l4_core::{Addr, Connection, Matcher as _, Provision, Registry, Template, Verdict};
use l4_http::{MatchHttp, register};
use l4_testkit::{check, received, verdict};
use proptest::prelude::*;

const CURL_GET: &[u8] = include_bytes!("../testdata/curl-get.bin");
const CURL_H2: &[u8] = include_bytes!("../testdata/curl-h2.bin");
const AB_HTTP10: &[u8] = include_bytes!("../testdata/ab-http10.bin");
const BROWSER: &[u8] = include_bytes!("../testdata/browser-cookies.bin");
const GO_H2: &[u8] = include_bytes!("../testdata/go-h2.bin");

/// `http` with one set that has these members.
fn http(members: &str) -> MatchHttp {
    let json = format!("[{{{members}}}]");
    l4_testkit::matcher(register, &json)
        .unwrap_or_else(|errors| panic!("{json}: {}", text(&errors)))
}

fn refused(members: &str) -> String {
    match l4_testkit::matcher::<MatchHttp>(register, &format!("[{{{members}}}]")) {
        Ok(_) => panic!("{members} was accepted"),
        Err(errors) => text(&errors),
    }
}

/// What is said about members that load.
fn warned(members: &str) -> String {
    let mut registry = Registry::new();
    register(&mut registry);
    let document = Document::parse("test", format!(r#"{{"http": [{{{members}}}]}}"#).as_bytes());
    let document = document.unwrap();
    let node = document.member(document.root(), "http").unwrap();
    let mut cx = Provision::new(&document, &registry);
    let built = cx.module::<l4_core::registry::Matchers>("http", node);
    let report = cx.finish();
    assert!(built.is_ok(), "{members}: {}", text(&report.errors));
    text(&report.warnings)
}

fn text(errors: &[ConfigError]) -> String {
    errors.iter().map(ConfigError::render).collect()
}

/// Whether a request with the target and fields matches.
fn asks(members: &str, target: &str, fields: &str) -> bool {
    let request = format!("GET {target} HTTP/1.1\r\n{fields}\r\n");
    match verdict(&http(members), request.as_bytes()) {
        Verdict::Match => true,
        Verdict::No => false,
        Verdict::More(_) => panic!("{target} is undecided"),
    }
}

/// What a text with placeholders becomes on a connection whose request was parsed.
fn expand(conn: &mut Connection, text: &str) -> String {
    let mut registry = Registry::new();
    register(&mut registry);
    let template = Template::compile(text, registry.placeholder_table()).unwrap();
    conn.expand(&template).into_owned()
}

fn parsed(request: &[u8]) -> Connection {
    let mut conn = received(request);
    let any = l4_testkit::matcher::<MatchHttp>(register, "[]").unwrap();
    assert_eq!(conn.with_view(|view| any.matches(view)), Verdict::Match);
    conn
}

#[test]
fn every_module_keeps_the_contract_on_captured_requests() {
    for (members, requests, expected) in [
        (
            r#""path_regexp": {"pattern": "^/foo/b.r$"}"#,
            &[CURL_GET, CURL_H2][..],
            true,
        ),
        (
            r#""path_regexp": {"pattern": "^/FOO"}"#,
            &[CURL_GET, CURL_H2],
            false,
        ),
        (
            "\"path_regexp\": {\"pattern\": \"/b\u{fc}cher$\"}",
            &[BROWSER],
            true,
        ),
        (r#""query": {"aaa": ["bbb"]}"#, &[CURL_GET, CURL_H2], true),
        (
            r#""query": {"seite": ["2"], "sort": ["*"]}"#,
            &[BROWSER],
            true,
        ),
        (r#""query": {}"#, &[AB_HTTP10], true),
        (
            r#""query": {"aaa": ["bbb"]}"#,
            &[AB_HTTP10, BROWSER, GO_H2],
            false,
        ),
        (
            r#""header_regexp": {"user-agent": {"pattern": "^curl/[0-9.]+$"}}"#,
            &[CURL_GET, CURL_H2],
            true,
        ),
        (
            r#""header_regexp": {"User-Agent": {"pattern": "^curl"}}"#,
            &[AB_HTTP10, GO_H2],
            false,
        ),
        (
            r#""header_regexp": {"Cookie": {"pattern": "(^|; )k7="}}"#,
            &[BROWSER],
            true,
        ),
        (
            r#""remote_ip": {"ranges": ["192.0.2.0/24"]}"#,
            &[CURL_GET, CURL_H2],
            true,
        ),
        (
            r#""client_ip": {"ranges": ["::/0"]}"#,
            &[CURL_GET, CURL_H2],
            false,
        ),
        (
            r#""not": [{"method": ["POST"]}]"#,
            &[CURL_GET, CURL_H2],
            true,
        ),
        (
            r#""not": [{"path": ["/x"]}, {"query": {"aaa": ["*"]}}]"#,
            &[CURL_GET, CURL_H2],
            false,
        ),
        (
            r#""vars": {"{http.request.uri.path.1}": ["bar"]}"#,
            &[CURL_GET, CURL_H2],
            true,
        ),
        (
            r#""vars": {"{http.request.proto}": ["HTTP/1.0"]}"#,
            &[AB_HTTP10],
            true,
        ),
        (
            r#""vars_regexp": {"{http.request.cookie.K1}": {"pattern": "^9e37"}}"#,
            &[BROWSER],
            true,
        ),
        (
            r#""vars_regexp": {"{http.request.method}": {"pattern": "^P"}}"#,
            &[CURL_GET, BROWSER],
            false,
        ),
        (
            r#""vars": {"{http.request.method}": ["PUT"]}"#,
            &[GO_H2],
            true,
        ),
        (r#""protocol": "http/1.0""#, &[AB_HTTP10], true),
        (r#""protocol": "http/1.1""#, &[CURL_GET, BROWSER], true),
        (r#""protocol": "http/2""#, &[CURL_H2, GO_H2], true),
        (r#""protocol": "http/2+""#, &[CURL_GET, AB_HTTP10], false),
    ] {
        for request in requests {
            check(&http(members), request, Verdict::from_bool(expected));
        }
    }
}

#[test]
fn paths_are_cleaned_before_an_expression_sees_them() {
    for (pattern, target, expected) in [
        ("^/admin/", "/admin/x", true),
        ("^/admin/", "//admin//x", true),
        ("^/admin/", "/a/../admin/./x", true),
        ("^/admin/$", "/admin/", true),
        ("^/admin/", "/%61dmin/x", true),
        ("^/admin/", "/x/admin/", false),
        ("/ADMIN", "/admin", false),
        ("(?i)/ADMIN", "/admin", true),
        ("^/a//b", "/a//b", false),
        ("^.$", "*", true),
        ("^/.{2}$", "/%ff%fe", true),
        ("^/.$", "/%ff%fe", false),
        ("", "/anything", true),
    ] {
        let members = format!(r#""path_regexp": {{"pattern": "{pattern}"}}"#);
        assert_eq!(asks(&members, target, ""), expected, "{pattern} {target}");
    }
    assert!(asks(r#""path_regexp": {}"#, "/", ""));
}

#[test]
fn expressions_have_the_syntax_of_re2() {
    for (pattern, target, expected) in [
        // ASCII classes, which a digit or letter of another script is not in.
        (r"^/\\d$", "/%d9%a3", false),
        (r"^/\\D$", "/%d9%a3", true),
        (r"^/\\w", "/%c3%a9", false),
        // Not an intersection, and not a repetition.
        ("^/[a&&b]+$", "/a&b", true),
        ("^/a{,2}$", "/a{,2}", true),
        (r"^/\\Qa.b\\E$", "/a.b", true),
    ] {
        for members in [
            format!(r#""path_regexp": {{"pattern": "{pattern}"}}"#),
            format!(
                r#""vars_regexp": {{"{{http.request.uri.path}}": {{"pattern": "{pattern}"}}}}"#
            ),
        ] {
            assert_eq!(asks(&members, target, ""), expected, "{members} {target}");
        }
    }
    let fields = "X-A: \u{663}\r\n";
    let members = |class| format!(r#""header_regexp": {{"X-A": {{"pattern": "^\\{class}$"}}}}"#);
    assert!(!asks(&members("d"), "/", fields));
    assert!(asks(&members("D"), "/", fields));
}

#[test]
fn queries_match_by_every_key_and_some_value() {
    for (query, target, expected) in [
        (r#""a": ["1"]"#, "/?a=1", true),
        (r#""a": ["1"]"#, "/?b=2&a=1", true),
        (r#""a": ["1", "2"]"#, "/?a=2", true),
        (r#""a": ["2"]"#, "/?a=1&a=2", true),
        (r#""a": ["1"]"#, "/?a=2", false),
        (r#""a": ["1"]"#, "/?A=1", false),
        (r#""a": ["1"]"#, "/", false),
        (r#""a": ["1"], "b": ["2"]"#, "/?a=1", false),
        (r#""a": ["1"], "b": ["2"]"#, "/?b=2&a=1", true),
        (r#""a": ["*"]"#, "/?a", true),
        (r#""a": ["*"]"#, "/?b", false),
        (r#""a": [""]"#, "/?a", true),
        (r#""a": [""]"#, "/?a=", true),
        (r#""a": []"#, "/?a=1", false),
        (r#""a": null"#, "/?a=1", false),
        (r#""a b": ["c d"]"#, "/?a+b=c%20d", true),
        (r#""a": ["1"]"#, "/?a=1;b=2", false),
        (r#""a": ["1"]"#, "/?a=1&x=%zz", false),
        (r#""a": ["1"]"#, "/?%zz&a=1", false),
        (r#""a": ["1"]"#, "/?&&a=1&", true),
        (r#""{l4.vars.key}": ["{l4.vars.any}"]"#, "/?=1", false),
        (r#""{l4.vars.key}": ["1"]"#, "/?=1", true),
        (r#""m": ["{http.request.method}"]"#, "/?m=GET", true),
        ("", "/", true),
        ("", "/?", true),
        ("", "/?&", true),
        ("", "/?a", false),
        ("", "/?=", false),
        ("", "/?%zz", true),
    ] {
        let members = format!(r#""query": {{{query}}}"#);
        assert_eq!(asks(&members, target, ""), expected, "{query} {target}");
    }
}

#[test]
fn header_expressions_hold_for_every_field_and_some_line() {
    let fields = "X-A: one\r\nx-a: two 2\r\nHost: h.example:1\r\nX-Bin: a\u{e4}\r\n";
    for (rules, expected) in [
        (r#""X-A": {"pattern": "^one$"}"#, true),
        (r#""x-a": {"pattern": "[0-9]"}"#, true),
        (
            r#""X-A": {"pattern": "^t"}, "Host": {"pattern": ":1$"}"#,
            true,
        ),
        (r#""X-A": {"pattern": "^t"}, "X-B": {"pattern": ""}"#, false),
        (r#""X-A": {"pattern": "ONE"}"#, false),
        (r#""X-A": {"pattern": "one.*two"}"#, false),
        ("\"X-Bin\": {\"pattern\": \"^a\u{e4}$\"}", true),
        ("", true),
    ] {
        let members = format!(r#""header_regexp": {{{rules}}}"#);
        assert_eq!(asks(&members, "/", fields), expected, "{rules}");
    }
}

/// Row M-04 of docs/defects.md.
#[test]
fn addresses_are_those_of_the_connection_also_after_a_proxy_header() {
    for name in ["remote_ip", "client_ip"] {
        for (remote, ranges, expected) in [
            (
                Addr::Tcp("10.1.2.3:4".parse().unwrap()),
                r#""10.0.0.0/8""#,
                true,
            ),
            (
                Addr::Tcp("10.1.2.3:4".parse().unwrap()),
                r#""private_ranges""#,
                true,
            ),
            (
                Addr::Tcp("10.1.2.3:4".parse().unwrap()),
                r#""11.0.0.0/8", "::/0""#,
                false,
            ),
            (
                Addr::Tcp("[2001:db8::1]:4".parse().unwrap()),
                r#""2001:db8::/32""#,
                true,
            ),
            (
                Addr::Tcp("[::ffff:10.0.0.1]:4".parse().unwrap()),
                r#""10.0.0.1""#,
                true,
            ),
            (Addr::Tcp("10.1.2.3:4".parse().unwrap()), "", false),
            (Addr::UNNAMED, r#""0.0.0.0/0", "::/0""#, false),
        ] {
            let matcher = http(&format!(r#""{name}": {{"ranges": [{ranges}]}}"#));
            let mut conn = received(CURL_GET);
            conn.set_addresses(remote, Addr::UNNAMED);
            let verdict = conn.with_view(|view| matcher.matches(view));
            assert_eq!(verdict, Verdict::from_bool(expected), "{name} {ranges}");
        }
        assert!(!asks(&format!(r#""{name}": {{}}"#), "/", ""));
    }
}

#[test]
fn not_refuses_what_some_set_holds_for() {
    for (sets, expected) in [
        ("", true),
        ("{}", false),
        ("null", false),
        (r#"{"path": ["/a"]}"#, false),
        (r#"{"path": ["/b"]}"#, true),
        (r#"{"path": ["/a"], "method": ["POST"]}"#, true),
        (r#"{"path": ["/b"]}, {"method": ["GET"]}"#, false),
        (r#"{"not": [{"path": ["/a"]}]}"#, true),
    ] {
        assert_eq!(
            asks(&format!(r#""not": [{sets}]"#), "/a", ""),
            expected,
            "{sets}"
        );
    }
}

#[test]
fn vars_compare_placeholders_and_the_variables_of_the_request() {
    let fields = "Host: H.example:80\r\nX-Empty:\r\nX-Brace: {http.request.method}\r\n";
    for (vars, expected) in [
        (r#""{http.request.host}": ["a", "H.example"]"#, true),
        (r#""{http.request.host}": ["a"]"#, false),
        (
            r#""{http.request.host}": ["a"], "{http.request.method}": ["GET"]"#,
            true,
        ),
        (r#""{http.request.header.X-Empty}": [""]"#, true),
        (r#""{http.request.header.X-None}": [""]"#, true),
        (
            r#""{http.request.uri.path}": ["/{http.request.method}"]"#,
            true,
        ),
        // What a client sends is not expanded again.
        (r#""{http.request.header.X-Brace}": ["GET"]"#, false),
        (r#""client_ip": ["192.0.2.7"]"#, true),
        (r#""trusted_proxy": ["false"]"#, true),
        (r#""{http.vars.client_ip}": ["192.0.2.7"]"#, true),
        (r#""other": ["x"]"#, false),
        (r#""other": [""]"#, true),
        (r#""other": []"#, false),
        (r#""other": null"#, false),
        (r#""{l4.conn.remote_addr}": ["192.0.2.7:40000"]"#, true),
        ("", true),
    ] {
        assert_eq!(
            asks(&format!(r#""vars": {{{vars}}}"#), "/GET", fields),
            expected,
            "{vars}"
        );
    }
    for (vars, expected) in [
        (r#""{http.request.host}": {"pattern": "^H"}"#, true),
        (
            r#""{http.request.host}": {"pattern": "^x"}, "client_ip": {"pattern": "\\.7$"}"#,
            true,
        ),
        (r#""{http.request.host}": {"pattern": "^x"}"#, false),
        ("", false),
    ] {
        let members = format!(r#""vars_regexp": {{{vars}}}"#);
        assert_eq!(asks(&members, "/", fields), expected, "{vars}");
    }
}

#[test]
fn protocols_are_compared_as_documented() {
    let matches = |protocol: &str, request: &str| {
        verdict(
            &http(&format!(r#""protocol": "{protocol}""#)),
            request.as_bytes(),
        ) == Verdict::Match
    };
    for (version, protocols) in [
        ("1.0", "http http/1.0 http/1.0+"),
        ("1.1", "http http/1.0+ http/1.1 http/1.1+"),
        ("1.2", "http http/1.0+ http/1.1+"),
        ("2.0", "http http/1.0+ http/1.1+ http/2 http/2+"),
        ("3.0", "http http/1.0+ http/1.1+ http/2+ http/3 http/3+"),
        ("0.9", "http"),
    ] {
        let all = "http https grpc http/1.0 http/1.0+ http/1.1 http/1.1+ http/2 http/2+ http/3 http/3+ http/1 HTTP";
        let request = format!("GET / HTTP/{version}\r\n\r\n");
        let seen = all
            .split(' ')
            .filter(|protocol| matches(protocol, &request));
        assert_eq!(seen.collect::<Vec<_>>().join(" "), protocols, "{version}");
    }
    for (fields, expected) in [
        ("Content-Type: application/grpc\r\n", true),
        ("content-type: application/grpc+proto\r\n", true),
        (
            "Content-Type: text/plain\r\nContent-Type: application/grpc\r\n",
            false,
        ),
        ("Content-Type: Application/grpc\r\n", false),
        ("", false),
    ] {
        let request = format!("POST / HTTP/1.1\r\n{fields}\r\n");
        assert_eq!(matches("grpc", &request), expected, "{fields}");
    }
}

#[test]
fn a_request_through_terminated_tls_is_https_and_one_in_the_clear_is_not() {
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for tls in [false, true] {
        let mut conn = received(request);
        if tls {
            conn.set_extension(TlsInfo::default());
        }
        for (members, expected) in [
            (r#""protocol": "https""#, tls),
            (r#""protocol": "http""#, !tls),
            (r#""tls": {}"#, tls),
            (r#""tls": {"handshake_complete": true}"#, tls),
            (r#""tls": {"handshake_complete": false}"#, false),
            (r#""not": [{"tls": {}}]"#, !tls),
        ] {
            let matcher = http(members);
            let verdict = conn.with_view(|view| matcher.matches(view));
            assert_eq!(verdict == Verdict::Match, expected, "{members} {tls}");
        }
        let scheme = expand(&mut conn, "{http.request.scheme}");
        assert_eq!(scheme, if tls { "https" } else { "http" });
    }
}

#[test]
fn captures_stay_only_if_their_set_matches() {
    let captured = |members: &str, target: &str| {
        let matcher = http(members);
        let mut conn =
            received(format!("GET {target} HTTP/1.1\r\nUser-Agent: curl/7.88\r\n\r\n").as_bytes());
        conn.with_view(|view| matcher.matches(view));
        expand(
            &mut conn,
            "{http.regexp.0} {http.regexp.1} {http.regexp.api.version} {http.regexp.ua.1}",
        )
    };
    let path = r#""path_regexp": {"name": "api", "pattern": "^/v(?P<version>[0-9]+)(x)?"}"#;
    assert_eq!(captured(path, "/v2/things"), "/v2 2 2 ");
    assert_eq!(captured(path, "/things"), "   ");
    assert_eq!(
        captured(
            &format!(
                r#"{path}, "header_regexp": {{"User-Agent": {{"name": "ua", "pattern": "/(.*)"}}}}"#
            ),
            "/v2/"
        ),
        "/7.88 7.88 2 7.88",
        "the last one hides what has no name"
    );
    assert_eq!(
        captured(
            &format!(r#"{path}, "vars_regexp": {{"x": {{"pattern": "y"}}}}"#),
            "/v2/"
        ),
        "   "
    );
    assert_eq!(
        captured(
            r#""vars_regexp": {"{http.request.uri.path}": {"name": "ua", "pattern": "/(.)"}}"#,
            "/v"
        ),
        "/v v  v"
    );
    assert_eq!(
        captured(
            &format!(r#""not": [{{{path}, "method": ["POST"]}}]"#),
            "/v2/"
        ),
        "   ",
        "what was refused is forgotten"
    );
    assert_eq!(
        captured(
            &format!(r#"{path}}}, {{"method": ["GET"]"#).replace("/v(", "/w("),
            "/v2/"
        ),
        "   "
    );
}

/// The values are those of Caddy's replacer, whose expressions were run with Go 1.26 on these very requests.
#[test]
fn request_placeholders_have_the_values_of_the_reference() {
    let request = b"GET /Docs/b%C3%BCcher/a%20b.tar.gz?k=1&q=a+b%26&k=2&bad=%zz HTTP/1.1\r\n\
        Host: WWW.Shop.example:08443\r\nAccept: a\r\naccept: b\r\n\
        Cookie: one=1; Two=\"2 3\"; bad=\xe4; two=4\r\nCookie: three\r\n\r\n";
    let mut conn = parsed(request);
    let query = "k=1&q=a+b%26&k=2&bad=%zz";
    let escaped = "k%3D1%26q%3Da%2Bb%2526%26k%3D2%26bad%3D%25zz";
    let path = "/Docs/b%C3%BCcher/a%20b.tar.gz";
    for (name, expected) in [
        ("method", "GET"),
        ("orig_method", "GET"),
        ("scheme", "http"),
        ("proto", "HTTP/1.1"),
        ("proto_name", "HTTP/1.1"),
        ("host", "WWW.Shop.example"),
        ("port", "8443"),
        ("hostport", "WWW.Shop.example:08443"),
        ("host.labels.0", "example"),
        ("host.labels.2", "www"),
        ("host.labels.3", ""),
        ("host.labels.-1", ""),
        ("uri", &format!("{path}?{query}")),
        (
            "uri_escaped",
            &format!("%2FDocs%2Fb%25C3%25BCcher%2Fa%2520b.tar.gz%3F{escaped}"),
        ),
        ("uri.path", "/Docs/b\u{fc}cher/a b.tar.gz"),
        ("uri.path_escaped", "%2FDocs%2Fb%C3%BCcher%2Fa+b.tar.gz"),
        ("uri.path.0", "Docs"),
        ("uri.path.2", "a b.tar.gz"),
        ("uri.path.3", ""),
        ("uri.path.x", ""),
        ("uri.path.file", "a b.tar.gz"),
        ("uri.path.file.base", "a b.tar"),
        ("uri.path.file.ext", ".gz"),
        ("uri.path.dir", "/Docs/b\u{fc}cher/"),
        ("uri.query", query),
        ("uri.query_escaped", escaped),
        ("uri.prefixed_query", &format!("?{query}")),
        ("uri.query.k", "1,2"),
        ("uri.query.q", "a b&"),
        ("uri.query.bad", ""),
        ("header.Accept", "a,b"),
        ("header.X-None", ""),
        ("header.Host", ""),
        ("cookie.one", "1"),
        ("cookie.TWO", "2 3"),
        ("cookie.three", ""),
        ("cookie.bad", ""),
        ("orig_uri", &format!("{path}?{query}")),
        ("orig_uri.path", "/Docs/b\u{fc}cher/a b.tar.gz"),
        ("orig_uri.path.1", "b\u{fc}cher"),
        ("orig_uri.path.file", "a b.tar.gz"),
        ("orig_uri.path.dir", "/Docs/b\u{fc}cher/"),
        ("orig_uri.query", query),
        ("orig_uri.prefixed_query", &format!("?{query}")),
        ("remote", "192.0.2.7:40000"),
        ("remote.host", "192.0.2.7"),
        ("remote.port", "40000"),
        ("remote.host/24", "192.0.2.0/24"),
        ("remote.host/0,64", "0.0.0.0/0"),
        ("remote.host/32", "192.0.2.7/32"),
        ("remote.host/33", ""),
        ("remote.host/x", ""),
    ] {
        assert_eq!(
            expand(&mut conn, &format!("{{http.request.{name}}}")),
            expected,
            "{name}"
        );
    }
    assert_eq!(
        expand(&mut conn, "{http.vars.client_ip} {http.vars.trusted_proxy}"),
        "192.0.2.7 false"
    );
    conn.consume(1);
    assert_eq!(
        expand(&mut conn, "<{http.request.method}>"),
        "<>",
        "the request is gone"
    );
}

#[test]
fn targets_of_every_form_have_placeholders() {
    for (request, expected) in [
        (
            CURL_GET,
            "/foo/bar?aaa=bbb|/foo/bar?aaa=bbb|/foo/bar|bar|bar||127.0.0.1|18080|HTTP/1.1",
        ),
        (
            CURL_H2,
            "/foo/bar?aaa=bbb|/foo/bar?aaa=bbb|/foo/bar|bar|bar||www.example.com||HTTP/2",
        ),
        (
            include_bytes!("../testdata/curl-absolute.bin"),
            "/a/b?c|http://www.example.com:8000/a/b?c|/a/b|b|b||www.example.com|8000|HTTP/1.1",
        ),
        (
            include_bytes!("../testdata/curl-options.bin"),
            "*|*|*|*|*||127.0.0.1|18080|HTTP/1.1",
        ),
        (
            include_bytes!("../testdata/curl-connect.bin"),
            "/|www.example.com:443|||.||www.example.com|443|HTTP/1.1",
        ),
        (
            b"GET mailto:a@b?c HTTP/1.0\r\n\r\n",
            "a@b?c|mailto:a@b?c|||.||||HTTP/1.0",
        ),
        (
            b"GET /a.d/b.c/? HTTP/1.0\r\nHost: [::1]\r\n\r\n",
            "/a.d/b.c/?|/a.d/b.c/?|/a.d/b.c/||b.c||[::1]||HTTP/1.0",
        ),
        (
            b"GET // HTTP/1.0\r\nHost: [::1]:x\r\n\r\n",
            "//|//|//||/||::1|x|HTTP/1.0",
        ),
    ] {
        let names = [
            "uri",
            "orig_uri",
            "uri.path",
            "uri.path.file",
            "uri.path.file.base",
            "uri.path.file.ext",
            "host",
            "port",
            "proto_name",
        ];
        let text = names
            .map(|name| format!("{{http.request.{name}}}"))
            .join("|");
        assert_eq!(expand(&mut parsed(request), &text), expected);
    }
}

#[test]
fn addresses_have_placeholders_on_every_network() {
    let text = "{http.request.remote}|{http.request.remote.host}|{http.request.remote.port}|\
                {http.request.remote.host/24,48}|{http.request.local}|{http.request.local.host}|{http.request.local.port}";
    let tcp = |text: &str| Addr::Tcp(text.parse().unwrap());
    for (remote, local, expected) in [
        (
            tcp("[2001:db8:1:2::3]:4"),
            tcp("[::1]:443"),
            "[2001:db8:1:2::3]:4|2001:db8:1:2::3|4|2001:db8:1::/48|[::1]:443|::1|443",
        ),
        (
            tcp("[::ffff:192.0.2.9]:4"),
            tcp("198.51.100.1:443"),
            "192.0.2.9:4|192.0.2.9|4|192.0.2.0/24|198.51.100.1:443|198.51.100.1|443",
        ),
        (Addr::UNNAMED, Addr::UNNAMED, "@|@||@|@|@|"),
    ] {
        let mut conn = parsed(CURL_GET);
        conn.set_addresses(remote, local);
        assert_eq!(expand(&mut conn, text), expected);
    }
}

#[test]
fn what_has_no_value_here_is_named_when_it_loads() {
    for name in [
        "http.request.body",
        "http.request.body_base64",
        "http.request.uuid",
        "http.request.duration",
        "http.request.duration_ms",
        "http.request.tls.version",
        "http.request.uri.path.x",
        "http.shutting_down",
        "http.time_until_shutdown",
        "http.vars.other",
    ] {
        let seen = warned(&format!(r#""vars": {{"{{{name}}}": ["x"]}}"#));
        assert!(
            seen.contains(&format!("unknown placeholder {{{name}}}")),
            "{seen}"
        );
    }
    for (members, part) in [
        (r#""vars": {"other": ["x"]}"#, "write {l4.vars.other}"),
        (
            r#""vars_regexp": {"other": {"pattern": "x"}}"#,
            "write {l4.vars.other}",
        ),
        (
            r#""protocol": "http/1""#,
            "\"http/1\" is not a protocol known here and never matches",
        ),
        (
            r#""tls": {"handshake_complete": false}"#,
            "never matches: no request is read before the handshake is complete",
        ),
        (r#""query": {"a": []}"#, "an empty list never matches"),
    ] {
        assert!(
            warned(members).contains(part),
            "{members}: {}",
            warned(members)
        );
    }
    for members in [
        r#""vars": {"{http.request.uri.path}": ["/"], "client_ip": ["::1"]}"#,
        r#""protocol": "http/1.1+", "query": {"a": ["*"]}, "remote_ip": {"ranges": ["::1"]}"#,
    ] {
        assert_eq!(warned(members), "", "{members}");
    }
}

#[test]
fn configuration_errors_say_what_and_where() {
    for (members, parts) in [
        (
            r#""path_regexp": {"pattern": "a("}"#,
            &[
                "/0/path_regexp/pattern",
                "invalid regular expression: unclosed group",
            ][..],
        ),
        (
            r#""path_regexp": {"name": "a b!", "pattern": ""}"#,
            &["/0/path_regexp/name", "invalid expression name \"a b!\""],
        ),
        (r#""path_regexp": "a""#, &["/0/path_regexp", "expected"]),
        (r#""path_regexp": {"patern": "a"}"#, &["patern", "pattern"]),
        (
            r#""tls": {"handshake": true}"#,
            &["handshake", "handshake_complete"],
        ),
        (r#""tls": null"#, &["/0/tls", "module value cannot be null"]),
        (
            r#""header_regexp": {"A": {"pattern": "("}, "B": {"pattern": "["}, "C": null}"#,
            &[
                "/0/header_regexp/A/pattern",
                "/0/header_regexp/B/pattern",
                "/0/header_regexp/C",
            ],
        ),
        (
            r#""vars_regexp": {"{http.request.host}": null}"#,
            &["/0/vars_regexp/{http.request.host}"],
        ),
        (
            r#""vars": {"{http.request.host}": "a"}"#,
            &["expected a list"],
        ),
        (r#""query": {"a": "b"}"#, &["/0/query/a", "expected a list"]),
        (
            r#""remote_ip": {"ranges": ["10.0.0.0/8", "10.0.0.0/33", "x"]}"#,
            &[
                "/0/remote_ip/ranges/1",
                "/0/remote_ip/ranges/2",
                "invalid IP address: 'x'",
            ],
        ),
        (
            r#""client_ip": ["10.0.0.0/8"]"#,
            &["/0/client_ip", "expected"],
        ),
        (r#""not": {"path": ["/"]}"#, &["/0/not", "expected a list"]),
        (
            r#""not": [{"paths": ["/"]}]"#,
            &["unknown module: http.matchers.paths"],
        ),
        (
            r#""not": [{"expression": "true"}]"#,
            &["http.matchers.expression is out of scope"],
        ),
        (
            r#""protocol": ["http"]"#,
            &["/0/protocol", "expected a string"],
        ),
        (
            r#""not": null"#,
            &["module value cannot be null: http.matchers.not"],
        ),
    ] {
        let seen = refused(members);
        for part in parts {
            assert!(seen.contains(part), "{members}: {part:?} not in:\n{seen}");
        }
    }
}

proptest! {
    #[test]
    fn any_target_keeps_the_contract(target in "/[a-c/.%2fF?&=;+*]{0,24}", field in "[ -~\u{e4}]{0,12}") {
        let request = format!("GET {target} HTTP/1.1\r\nCookie: {field}\r\nHost: {field}\r\n\r\n");
        let matcher = http(
            r#""path_regexp": {"pattern": "[ab]/(c*)"}, "query": {"a": ["*"]},
               "not": [{"header_regexp": {"Cookie": {"pattern": "^b"}}}],
               "vars_regexp": {"{http.request.uri}{http.request.cookie.a}": {"pattern": ""},
                               "{http.request.uri.path.file.base}": {"pattern": "."}}"#,
        );
        // A request line or host that is malformed is `No` at once, which `check` wants to hear beforehand.
        let expected = verdict(&matcher, request.as_bytes());
        prop_assert!(!matches!(expected, Verdict::More(_)));
        check(&matcher, request.as_bytes(), expected);
        let names = ["uri", "uri_escaped", "uri.path_escaped", "uri.path.file.base", "uri.query.a", "host.labels.1", "port"];
        let mut conn = received(request.as_bytes());
        conn.with_view(|view| matcher.matches(view));
        for name in names {
            expand(&mut conn, &format!("{{http.request.{name}}}{{http.request.cookie.a}}"));
        }
    }
}
