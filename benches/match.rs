//! What it costs to decide a route: `cargo bench --package benches`.
//!
//! `match` has one route with one matcher, once for bytes that match and once for bytes, or a configuration, that do
//! not; `nothing` is what a round costs without any. `choose` has lists of 10 and of 10 000 routes of which one matches. A round is all that a connection costs whose
//! first bytes arrive at once: what was parsed in the round before is forgotten.
//!
//! Measured is the processor time of the thread, because other programs run on the machines that this is measured on.

mod processor_time;

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use l4_core::route::Routed;
use l4_core::{Connection, Registry};
use l4_testkit::{Router, received};

use processor_time::ProcessorTime;

/// A matcher set, and the file with the first bytes of a connection.
type Case = (&'static str, &'static str);

const TLS: &str = "l4-tls/testdata/curl-h2.bin";
const HTTP: &str = "l4-http/testdata/curl-get.bin";
const BROWSER: &str = "l4-http/testdata/browser-cookies.bin";
const H2: &str = "l4-http/testdata/curl-h2.bin";
const PSQL: &str = "l4-postgres/testdata/psql-disable.bin";
const SOCKS5: &str = "l4-socks/testdata/socks5-curl.bin";
/// Made here: what an OpenSSH client sends first.
const SSH: &str = "ssh";

/// Name, what matches, what does not.
const MATCHERS: &[(&str, Case, Case)] = &[
    // By the first bytes.
    ("ssh", (r#"{"ssh": {}}"#, SSH), (r#"{"ssh": {}}"#, TLS)),
    (
        "socks4",
        (r#"{"socks4": {}}"#, "l4-socks/testdata/socks4-curl.bin"),
        (r#"{"socks4": {}}"#, TLS),
    ),
    (
        "socks5",
        (r#"{"socks5": {}}"#, SOCKS5),
        (r#"{"socks5": {}}"#, TLS),
    ),
    (
        "xmpp",
        (r#"{"xmpp": {}}"#, "l4-xmpp/testdata/slixmpp.bin"),
        (r#"{"xmpp": {}}"#, TLS),
    ),
    (
        "proxy_protocol v1",
        (
            r#"{"proxy_protocol": {}}"#,
            "l4-proxy-protocol/testdata/haproxy-v1-tcp4.bin",
        ),
        (r#"{"proxy_protocol": {}}"#, TLS),
    ),
    (
        "proxy_protocol v2",
        (
            r#"{"proxy_protocol": {}}"#,
            "l4-proxy-protocol/testdata/haproxy-v2-tcp4.bin",
        ),
        (r#"{"proxy_protocol": {}}"#, HTTP),
    ),
    (
        "postgres",
        (r#"{"postgres": {}}"#, PSQL),
        (r#"{"postgres": {}}"#, TLS),
    ),
    (
        "http, other protocol",
        (r#"{"http": []}"#, HTTP),
        (r#"{"http": []}"#, TLS),
    ),
    (
        "tls, other protocol",
        (r#"{"tls": {}}"#, TLS),
        (r#"{"tls": {}}"#, HTTP),
    ),
    (
        "regexp",
        (r#"{"regexp": {"pattern": "^SSH-"}}"#, SSH),
        (r#"{"regexp": {"pattern": "^SSH-"}}"#, TLS),
    ),
    (
        "regexp not anchored",
        (
            r#"{"regexp": {"count": 64, "pattern": "[Oo]pen(SSH|BSD)"}}"#,
            SSH,
        ),
        (
            r#"{"regexp": {"count": 64, "pattern": "[Oo]pen(SSH|BSD)"}}"#,
            HTTP,
        ),
    ),
    // By what is known without bytes.
    (
        "remote_ip",
        (
            r#"{"remote_ip": {"ranges": ["192.0.2.0/24", "10.0.0.0/8"]}}"#,
            TLS,
        ),
        (
            r#"{"remote_ip": {"ranges": ["203.0.113.0/24", "10.0.0.0/8"]}}"#,
            TLS,
        ),
    ),
    (
        "local_ip",
        (r#"{"local_ip": {"ranges": ["198.51.100.1"]}}"#, TLS),
        (r#"{"local_ip": {"ranges": ["198.51.100.2"]}}"#, TLS),
    ),
    (
        "not",
        (r#"{"not": [{"ssh": {}}]}"#, TLS),
        (r#"{"not": [{"ssh": {}}]}"#, SSH),
    ),
    (
        "clock UTC",
        (
            r#"{"clock": {"after": "00:00:00", "before": "00:00:00"}}"#,
            TLS,
        ),
        (
            r#"{"clock": {"after": "12:00:00", "before": "12:00:00"}}"#,
            TLS,
        ),
    ),
    (
        "clock Europe/Vienna",
        (r#"{"clock": {"timezone": "Europe/Vienna"}}"#, TLS),
        (
            r#"{"clock": {"after": "12:00:00", "before": "12:00:00", "timezone": "Europe/Vienna"}}"#,
            TLS,
        ),
    ),
    (
        "vars",
        (r#"{"vars": {"tenant": ["shop"]}}"#, TLS),
        (r#"{"vars": {"tenant": ["other"]}}"#, TLS),
    ),
    (
        "vars_regexp",
        (
            r#"{"vars_regexp": {"tenant": {"pattern": "^(sh)op$"}}}"#,
            TLS,
        ),
        (
            r#"{"vars_regexp": {"tenant": {"pattern": "^(ot)her$"}}}"#,
            TLS,
        ),
    ),
    // By the ClientHello.
    (
        "tls sni",
        (r#"{"tls": {"sni": ["curl.example"]}}"#, TLS),
        (r#"{"tls": {"sni": ["other.example"]}}"#, TLS),
    ),
    (
        "tls sni, browser",
        (r#"{"tls": {"sni": ["chrome.example.com"]}}"#, CHROMIUM),
        (r#"{"tls": {"sni": ["other.example"]}}"#, CHROMIUM),
    ),
    (
        "tls sni_regexp",
        (
            r#"{"tls": {"sni_regexp": {"pattern": "^(\\w+)\\.example$"}}}"#,
            TLS,
        ),
        (
            r#"{"tls": {"sni_regexp": {"pattern": "^(\\w+)\\.test$"}}}"#,
            TLS,
        ),
    ),
    (
        "tls alpn",
        (r#"{"tls": {"alpn": ["h2"]}}"#, TLS),
        (r#"{"tls": {"alpn": ["acme-tls/1"]}}"#, TLS),
    ),
    (
        "tls remote_ip",
        (
            r#"{"tls": {"remote_ip": {"ranges": ["192.0.2.0/24"]}}}"#,
            TLS,
        ),
        (r#"{"tls": {"remote_ip": {"ranges": ["10.0.0.0/8"]}}}"#, TLS),
    ),
    (
        "tls local_ip",
        (
            r#"{"tls": {"local_ip": {"ranges": ["198.51.100.1"]}}}"#,
            TLS,
        ),
        (
            r#"{"tls": {"local_ip": {"ranges": ["198.51.100.2"]}}}"#,
            TLS,
        ),
    ),
    // By the first request. All but the last two are of 165 bytes with six fields.
    (
        "http host",
        (r#"{"http": [{"host": ["www.example.com"]}]}"#, REQUEST),
        (r#"{"http": [{"host": ["other.example"]}]}"#, REQUEST),
    ),
    (
        "http path",
        (r#"{"http": [{"path": ["/api/*"]}]}"#, REQUEST),
        (r#"{"http": [{"path": ["/static/*", "*.php"]}]}"#, REQUEST),
    ),
    (
        "http path_regexp",
        (
            r#"{"http": [{"path_regexp": {"pattern": "^/api/v([0-9]+)/"}}]}"#,
            REQUEST,
        ),
        (
            r#"{"http": [{"path_regexp": {"pattern": "^/static/v([0-9]+)/"}}]}"#,
            REQUEST,
        ),
    ),
    (
        "http query",
        (r#"{"http": [{"query": {"page": ["2"]}}]}"#, REQUEST),
        (r#"{"http": [{"query": {"page": ["3"]}}]}"#, REQUEST),
    ),
    (
        "http header",
        (
            r#"{"http": [{"header": {"Upgrade": ["websocket"]}}]}"#,
            REQUEST,
        ),
        (r#"{"http": [{"header": {"Upgrade": ["h2c"]}}]}"#, REQUEST),
    ),
    (
        "http header_regexp",
        (
            r#"{"http": [{"header_regexp": {"User-Agent": {"pattern": "^curl/([0-9]+)"}}}]}"#,
            REQUEST,
        ),
        (
            r#"{"http": [{"header_regexp": {"User-Agent": {"pattern": "^Wget/([0-9]+)"}}}]}"#,
            REQUEST,
        ),
    ),
    (
        "http method",
        (r#"{"http": [{"method": ["GET"]}]}"#, REQUEST),
        (r#"{"http": [{"method": ["POST"]}]}"#, REQUEST),
    ),
    (
        "http protocol",
        (r#"{"http": [{"protocol": "http/1.1"}]}"#, REQUEST),
        (r#"{"http": [{"protocol": "http/2"}]}"#, REQUEST),
    ),
    (
        "http remote_ip",
        (
            r#"{"http": [{"remote_ip": {"ranges": ["192.0.2.0/24"]}}]}"#,
            REQUEST,
        ),
        (
            r#"{"http": [{"remote_ip": {"ranges": ["10.0.0.0/8"]}}]}"#,
            REQUEST,
        ),
    ),
    (
        "http client_ip",
        (
            r#"{"http": [{"client_ip": {"ranges": ["192.0.2.0/24"]}}]}"#,
            REQUEST,
        ),
        (
            r#"{"http": [{"client_ip": {"ranges": ["10.0.0.0/8"]}}]}"#,
            REQUEST,
        ),
    ),
    (
        "http tls",
        // The clients of these rows came without TLS.
        (r#"{"http": [{"not": [{"tls": {}}]}]}"#, REQUEST),
        (r#"{"http": [{"tls": {}}]}"#, REQUEST),
    ),
    (
        "http not",
        (r#"{"http": [{"not": [{"method": ["POST"]}]}]}"#, REQUEST),
        (r#"{"http": [{"not": [{"method": ["GET"]}]}]}"#, REQUEST),
    ),
    (
        "http vars",
        (
            r#"{"http": [{"vars": {"{http.request.uri.path.0}": ["api"]}}]}"#,
            REQUEST,
        ),
        (
            r#"{"http": [{"vars": {"{http.request.uri.path.0}": ["static"]}}]}"#,
            REQUEST,
        ),
    ),
    (
        "http vars_regexp",
        (
            r#"{"http": [{"vars_regexp": {"{http.request.host}": {"pattern": "^(www)\\."}}}]}"#,
            REQUEST,
        ),
        (
            r#"{"http": [{"vars_regexp": {"{http.request.host}": {"pattern": "^(ftp)\\."}}}]}"#,
            REQUEST,
        ),
    ),
    (
        "http host, browser with 2 KiB of cookies",
        (r#"{"http": [{"host": ["www.shop.example"]}]}"#, BROWSER),
        (r#"{"http": [{"host": ["other.example"]}]}"#, BROWSER),
    ),
    (
        "http host, HTTP/2",
        (r#"{"http": [{"method": ["GET"]}]}"#, H2),
        (r#"{"http": [{"method": ["POST"]}]}"#, H2),
    ),
];

const CHROMIUM: &str = "l4-tls/testdata/chromium-grease-ech.bin";

/// Made here: a request that each of the matchers has something to look at in.
const REQUEST: &str = "request";

/// How names are made, and the set that asks for one.
type Names = (&'static str, fn(usize) -> String, fn(&str) -> String);

/// Lists whose routes differ in one name.
const LISTS: &[Names] = &[
    ("sni", plain, |name| {
        format!(r#"{{"tls": {{"sni": ["{name}"]}}}}"#)
    }),
    ("sni wildcards", wildcard, |name| {
        format!(r#"{{"tls": {{"sni": ["{name}"]}}}}"#)
    }),
    ("host", plain, |name| {
        format!(r#"{{"http": [{{"host": ["{name}"]}}]}}"#)
    }),
    ("host wildcards", wildcard, |name| {
        format!(r#"{{"http": [{{"host": ["{name}"]}}]}}"#)
    }),
];

fn plain(i: usize) -> String {
    format!("www.site{i}.example.com")
}

fn wildcard(i: usize) -> String {
    format!("*.site{i}.example.com")
}

fn register(registry: &mut Registry) {
    l4_std::register(registry);
    l4_tls::register(registry);
    l4_http::register(registry);
    l4_ssh::register(registry);
    l4_postgres::register(registry);
    l4_proxy_protocol::register(registry);
    l4_socks::register(registry);
    l4_xmpp::register(registry);
}

/// The first bytes of a connection.
fn bytes(name: &str) -> Vec<u8> {
    match name {
        SSH => b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n0123456789abcdef0123456789abcdef".to_vec(),
        REQUEST => b"GET /api/v2/items?page=2 HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: curl/8.5.0\r\n\
            Accept: */*\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\r\n"
            .to_vec(),
        file => {
            let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
            std::fs::read(crates.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
        }
    }
}

/// One walk over the list, as for a connection that has just received its first bytes.
fn decide(router: &Router, conn: &mut Connection) -> Routed {
    // Forgets what was parsed.
    conn.consume(0);
    let program = router.server().program();
    conn.with_view(|view| program.step(view, 0, false, &mut Vec::new()))
}

fn measure(
    c: &mut Criterion<ProcessorTime>,
    name: &str,
    routes: &str,
    first: &[u8],
    expected: &Routed,
) {
    let router = Router::new(register, routes);
    let mut conn = received(first);
    conn.set_var("tenant", "shop");
    assert_eq!(decide(&router, &mut conn), *expected, "{name}");
    c.bench_function(name, |b| {
        b.iter(|| decide(black_box(&router), black_box(&mut conn)))
    });
}

fn matchers(c: &mut Criterion<ProcessorTime>) {
    let everything = r#"[{"handle": [{"handler": "close"}]}]"#;
    measure(
        c,
        "match/nothing",
        everything,
        &bytes(TLS),
        &Routed::Take(0),
    );
    for (name, hit, miss) in MATCHERS {
        let route =
            |set: &str| format!(r#"[{{"match": [{set}], "handle": [{{"handler": "close"}}]}}]"#);
        for (what, (set, first), expected) in [
            ("hit", hit, Routed::Take(0)),
            ("miss", miss, Routed::Exhausted),
        ] {
            let name = format!("match/{name}/{what}");
            measure(c, &name, &route(set), &bytes(first), &expected);
        }
    }
}

fn lists(c: &mut Criterion<ProcessorTime>) {
    for (kind, name, set) in LISTS {
        for count in [10, 10_000] {
            let mut routes = String::new();
            for i in 0..count {
                let comma = if i == 0 { "[" } else { "," };
                let set = set(&name(i));
                let _ = write!(
                    routes,
                    r#"{comma}{{"match": [{set}], "handle": [{{"handler": "close"}}]}}"#
                );
            }
            routes.push(']');
            // Towards the end, where a walk over all would take longest.
            let wanted = count - 3;
            let host = plain(wanted);
            let first = if kind.starts_with("sni") {
                client_hello(&host)
            } else {
                format!("GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n")
                    .into_bytes()
            };
            let name = format!("choose/{kind}/{count}");
            measure(c, &name, &routes, &first, &Routed::Take(wanted));
        }
    }
}

/// The hello of curl, asking for another server.
fn client_hello(server_name: &str) -> Vec<u8> {
    const ASKED: &[u8] = b"curl.example";
    let mut hello = bytes(TLS);
    let at = hello
        .windows(ASKED.len())
        .position(|window| window == ASKED)
        .expect("the name is in it");
    let grown = server_name.len() - ASKED.len();
    hello.splice(at..at + ASKED.len(), server_name.bytes());
    // Every length that counts the name: of the record, the message, the extensions, the extension, its list, the name.
    let mut grow = |at: usize| {
        let length = u16::from_be_bytes([hello[at], hello[at + 1]]) + grown as u16;
        hello[at..at + 2].copy_from_slice(&length.to_be_bytes());
    };
    grow(3);
    grow(7);
    let session_id = usize::from(bytes(TLS)[43]);
    let suites_at = 44 + session_id;
    let original = bytes(TLS);
    let suites = usize::from(u16::from_be_bytes([
        original[suites_at],
        original[suites_at + 1],
    ]));
    let compression_at = suites_at + 2 + suites;
    grow(compression_at + 1 + usize::from(original[compression_at]));
    grow(at - 7);
    grow(at - 5);
    grow(at - 2);
    hello
}

fn criterion() -> Criterion<ProcessorTime> {
    Criterion::default()
        .with_measurement(ProcessorTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(60)
}

criterion_group! {
    name = benches;
    config = criterion();
    targets = matchers, lists
}
criterion_main!(benches);
