//! One function for each parser that sees what strangers send, or what operators write. Each panics when the parser
//! breaks its contract: it must take any bytes, and what it has decided must stay decided when more arrive.
//!
//! The same functions are driven by libFuzzer (`fuzz_targets/`) and, on the stable toolchain, by `smoke`, which replays
//! the seeds and changes them at random.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

use l4_core::config::{Address, Document, GoDuration};
use l4_core::placeholder::{Placeholders, expand_all, expand_known};
use l4_core::{Fact, Matcher, MatcherModule, Parsed, Registry, Template, Verdict};

/// A parser under test.
pub struct Target {
    /// The name, also of the file in `fuzz_targets/` and the folder in `corpus/`.
    pub name: &'static str,
    /// Takes any bytes; panics if the contract is broken.
    pub run: fn(&[u8]),
    /// Where its seeds are: folders of test vectors, relative to the root of the checkout.
    pub seeds: &'static [&'static str],
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "client_hello", run: client_hello, seeds: &["crates/l4-tls/testdata"] },
    Target { name: "http_head", run: http_head, seeds: &["crates/l4-http/testdata"] },
    Target { name: "http_request", run: http_request, seeds: &["crates/l4-http/testdata"] },
    Target { name: "h2_hpack", run: h2_hpack, seeds: &["crates/l4-http/testdata"] },
    Target { name: "ssh", run: ssh, seeds: &["fuzz/corpus/ssh"] },
    Target { name: "postgres", run: postgres, seeds: &["crates/l4-postgres/testdata"] },
    Target { name: "proxy_protocol", run: proxy_protocol, seeds: &["crates/l4-proxy-protocol/testdata"] },
    Target { name: "proxy_header", run: proxy_header, seeds: &["crates/l4-proxy-protocol/testdata"] },
    Target { name: "proxy_tlv", run: proxy_tlv, seeds: &["crates/l4-proxy-protocol/testdata"] },
    Target { name: "socks4", run: socks4, seeds: &["crates/l4-socks/testdata"] },
    Target { name: "socks5", run: socks5, seeds: &["crates/l4-socks/testdata"] },
    Target { name: "socks5_server", run: socks5_server, seeds: &["crates/l4-socks/testdata"] },
    Target { name: "socks5_datagram", run: socks5_datagram, seeds: &["fuzz/corpus/socks5_datagram"] },
    Target { name: "xmpp", run: xmpp, seeds: &["crates/l4-xmpp/testdata"] },
    Target { name: "regexp", run: regexp, seeds: &["fuzz/corpus/regexp"] },
    Target { name: "config_json", run: config_json, seeds: &["examples", "fuzz/corpus/config_json"] },
    Target { name: "address", run: address, seeds: &["fuzz/corpus/address"] },
    Target { name: "duration", run: duration, seeds: &["fuzz/corpus/duration"] },
    Target { name: "template", run: template, seeds: &["fuzz/corpus/template"] },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The seeds of a target, with the file each is from.
pub fn seeds(root: &Path, target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut folders: Vec<PathBuf> = target.seeds.iter().map(|folder| root.join(folder)).collect();
    folders.push(root.join("fuzz/corpus").join(target.name));
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match std::fs::read(entry.path()) {
                Ok(seed) => seeds.push((entry.path(), seed)),
                Err(_) => folders.push(entry.path()),
            }
        }
    }
    seeds.sort();
    seeds.dedup();
    seeds
}

fn client_hello(data: &[u8]) {
    prefix_monotone::<l4_tls::ClientHello>(data);
}

fn http_head(data: &[u8]) {
    prefix_monotone::<l4_http::HttpHead>(data);
}

/// Everything that can be asked of a request, so that each question and placeholder sees what the head parser lets pass.
fn http_request(data: &[u8]) {
    static MATCHER: OnceLock<l4_http::MatchHttp> = OnceLock::new();
    let matcher = MATCHER.get_or_init(|| {
        let made = l4_testkit::matcher(l4_http::register, HTTP_REQUEST);
        made.expect("the configuration is one")
    });
    let whole = l4_testkit::verdict(matcher, data);
    let part = l4_testkit::verdict(matcher, &data[..data.len() / 2]);
    assert!(matches!(part, l4_core::Verdict::More(_)) || part == whole, "{part:?} became {whole:?}");
}

/// No set holds, so that every one is asked: `{}` of `vars_regexp` never matches, and is asked last for its cost.
const HTTP_REQUEST: &str = r#"[
    {"path": ["/a/*", "*.php", "/[a-z]/%2f*"], "vars_regexp": {}},
    {"query": {"a": ["*"], "{http.request.uri.query.b}": ["*"]}, "vars_regexp": {}},
    {"not": [{"query": {}}], "path_regexp": {"pattern": "^/(\\w+)/(.*)"}, "vars_regexp": {}},
    {"header_regexp": {"Host": {"pattern": "(.)$"}, "Cookie": {"pattern": "a=(.*)"}}, "vars_regexp": {}},
    {"vars": {"{http.request.uri_escaped}": ["{http.request.uri}", "{http.request.orig_uri}"],
              "{http.request.uri.path_escaped}": ["{http.request.uri.query_escaped}{http.request.port}"]},
     "vars_regexp": {}},
    {"vars_regexp": {"{http.request.uri.path.file.base}": {"pattern": "^\\z."},
                     "{http.request.uri.path.file.ext}": {"pattern": "^\\z."},
                     "{http.request.cookie.a}": {"pattern": "^\\z."},
                     "{http.request.header.cookie}": {"pattern": "^\\z."},
                     "{http.request.uri.path.1}": {"pattern": "^\\z."},
                     "{http.request.host.labels.1}": {"pattern": "^\\z."}}}
]"#;

/// Frames behind the preface, so that the fuzzer need not find it.
fn h2_hpack(data: &[u8]) {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let data = data.strip_prefix(PREFACE).unwrap_or(data);
    prefix_monotone::<l4_http::HttpHead>(&[PREFACE, data].concat());
}

fn ssh(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_ssh::MatchSsh>> = LazyLock::new(|| made(l4_ssh::register, &["{}"]));
    matchers_are_monotone(&MATCHERS, data);
}

fn postgres(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_postgres::MatchPostgres>> = LazyLock::new(|| {
        let named = r#"{"user": {"alice": ["shop"], "*": []}, "client": ["psql"]}"#;
        made(l4_postgres::register, &["{}", r#"{"tls": "enabled"}"#, r#"{"tls": "disabled"}"#, named])
    });
    matchers_are_monotone(&MATCHERS, data);
}

fn proxy_protocol(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_proxy_protocol::MatchProxyProtocol>> =
        LazyLock::new(|| made(l4_proxy_protocol::register, &["{}"]));
    matchers_are_monotone(&MATCHERS, data);
}

/// A header that is found is found whatever follows it, and lies within the bytes that are there.
fn proxy_header(data: &[u8]) {
    use l4_proxy_protocol::header::{Parsed, parse};
    let mut decided: Option<Parsed> = None;
    for n in 0..=data.len().min(8 * 1024) {
        let parsed = parse(&data[..n]);
        if let Parsed::Complete(header, length) = &parsed {
            assert!(*length <= n, "{length} of {n} bytes");
            for (kind, value) in header.tlvs.iter() {
                assert!(header.tlvs.find(kind).is_some() && value.len() < n);
            }
            if let Some(ssl) = header.tlvs.ssl() {
                let _ = (ssl.used(), ssl.verified(), ssl.find(l4_proxy_protocol::tlv::SSL_CN));
            }
        }
        match &decided {
            Some(before) => assert_eq!(before, &parsed, "the answer changed after {n} bytes"),
            None if parsed != Parsed::More => decided = Some(parsed),
            None => {}
        }
    }
}

/// A list that is taken is read back as it was.
fn proxy_tlv(data: &[u8]) {
    let from = data.first().map_or(0, |first| usize::from(*first)).min(data.len());
    if let Ok(tlvs) = l4_proxy_protocol::tlv::Tlvs::parse(data, from) {
        let mut again = Vec::new();
        for (kind, value) in tlvs.iter() {
            again.push(kind);
            again.extend(u16::try_from(value.len()).expect("its length has two bytes").to_be_bytes());
            again.extend(value);
        }
        assert_eq!(again, &data[from..]);
    }
}

fn socks4(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_socks::MatchSocks4>> = LazyLock::new(|| {
        let named = r#"{"commands": ["CONNECT"], "networks": ["192.0.2.0/24", "0.0.0.0/24"], "ports": [80, 443, 8080]}"#;
        made(l4_socks::register, &["{}", named])
    });
    matchers_are_monotone(&MATCHERS, data);
}

fn socks5(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_socks::MatchSocks5>> =
        LazyLock::new(|| made(l4_socks::register, &["{}", r#"{"auth_methods": [0, 2]}"#]));
    matchers_are_monotone(&MATCHERS, data);
}

/// A server and a client that sends all at once, or in three pieces: both must come to the same.
fn socks5_server(data: &[u8]) {
    use l4_socks::server::{Credentials, Dialogue, Rules, Turn};

    static RULES: LazyLock<[Rules; 2]> = LazyLock::new(|| {
        use socks5_proto::Command::{Associate, Bind, Connect};
        let credentials = Some(Credentials::new([("alice", "secret"), ("", "x")]));
        let guarded = Rules { credentials, commands: vec![Connect] };
        [guarded, Rules { credentials: None, commands: vec![Connect, Bind, Associate] }]
    });
    /// What was said and done, and how much was taken.
    fn talk(rules: &Rules, data: &[u8], cuts: [usize; 3]) -> (Vec<u8>, String, usize) {
        let mut dialogue = Dialogue::new(rules);
        let (mut said, mut from) = (Vec::new(), 0);
        for cut in cuts {
            while let Some(turn) = dialogue.turn(&data[from..cut.max(from)]) {
                match turn {
                    Turn::Answer { taken, answer } => {
                        said.extend(answer);
                        from += taken;
                    }
                    Turn::Request { taken, request } => return (said, format!("{request:?}"), from + taken),
                    Turn::Refuse { answer, why } => {
                        said.extend(answer);
                        return (said, why.to_string(), 0);
                    }
                }
            }
        }
        (said, String::new(), from)
    }
    let cut = data.first().map_or(0, |byte| data.len() * usize::from(*byte) / 256);
    for rules in RULES.iter() {
        let whole = talk(rules, data, [data.len(); 3]);
        assert!(whole.2 <= data.len());
        assert_eq!(whole, talk(rules, data, [cut, data.len() / 2, data.len()]), "{cut}");
        assert_eq!(whole, talk(rules, data, [data.len() / 3, data.len().saturating_sub(1), data.len()]));
    }
}

/// A payload is what follows a header, and no header is a fragment's.
fn socks5_datagram(data: &[u8]) {
    if let Some(datagram) = l4_socks::server::Datagram::parse(data) {
        assert!(data.ends_with(datagram.payload) && data[2] == 0);
        assert_eq!(data.len() - datagram.payload.len(), 3 + datagram.to.serialized_len());
    }
}

fn xmpp(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_xmpp::MatchXmpp>> = LazyLock::new(|| made(l4_xmpp::register, &["{}"]));
    matchers_are_monotone(&MATCHERS, data);
}

fn regexp(data: &[u8]) {
    static MATCHERS: LazyLock<Vec<l4_std::matchers::MatchRegexp>> = LazyLock::new(|| {
        let configs = [
            r#"{"pattern": "^SSH-|^\\x16."}"#,
            r#"{"pattern": "(?i)^(GET|POST) [^ ]", "count": 9}"#,
            r#"{"pattern": "\ufffd$", "count": 7}"#,
            r#"{"pattern": "^1603.*01$", "count": 6, "hex": true}"#,
        ];
        made(l4_std::register, &configs)
    });
    matchers_are_monotone(&MATCHERS, data);
}

/// One matcher for each configuration.
fn made<M: MatcherModule>(register: fn(&mut Registry), configs: &[&str]) -> Vec<M> {
    let one = |json: &&str| l4_testkit::matcher(register, json).expect("it is its configuration");
    configs.iter().map(one).collect()
}

/// What a matcher decides for a prefix, it must decide for the whole, and not before the bytes it asked for.
fn matchers_are_monotone(matchers: &[impl Matcher], data: &[u8]) {
    let cut = data.first().map_or(0, |byte| data.len() * usize::from(*byte) / 256);
    for matcher in matchers {
        let whole = l4_testkit::verdict(matcher, data);
        for cut in [cut, data.len() / 2, data.len().saturating_sub(1)] {
            match l4_testkit::verdict(matcher, &data[..cut]) {
                Verdict::More(n) => {
                    assert!(n > 0, "asks for nothing after {cut} bytes");
                    let decided = !matches!(whole, Verdict::More(_));
                    assert!(!decided || cut + n <= data.len(), "asked for {n} after {cut}, decided before");
                }
                decided => assert_eq!(decided, whole, "{cut} of {} bytes", data.len()),
            }
        }
    }
}

/// What a prefix decides, the whole must confirm.
fn prefix_monotone<T: Fact>(data: &[u8]) {
    let whole = outcome(T::parse(data));
    // The first byte chooses where to cut, so that the fuzzer can move it.
    let cut = data.first().map_or(0, |byte| data.len() * usize::from(*byte) / 256);
    for cut in [cut, data.len() / 2, data.len().saturating_sub(1)] {
        match outcome(T::parse(&data[..cut])) {
            Outcome::More(n) => {
                assert!(n > 0, "asks for nothing after {cut} bytes");
                let decided = !matches!(whole, Outcome::More(_));
                assert!(!decided || cut + n <= data.len(), "asked for {n} after {cut}, decided before");
                assert_eq!(outcome(T::parse_on(data, cut)), whole, "going on after {cut} of {} bytes", data.len());
            }
            decided => assert_eq!(decided, whole, "{cut} of {} bytes", data.len()),
        }
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Done,
    Not,
    More(usize),
}

fn outcome<T>(parsed: Parsed<T>) -> Outcome {
    match parsed {
        Parsed::Done(_) => Outcome::Done,
        Parsed::Not => Outcome::Not,
        Parsed::More(n) => Outcome::More(n),
    }
}

fn config_json(data: &[u8]) {
    match Document::parse("fuzz", data) {
        Ok(document) => {
            // What it writes it must read, as the same.
            let canonical = document.canonical(document.root());
            let again = Document::parse("again", canonical.as_bytes()).expect("its own text is read");
            assert_eq!(again.canonical(again.root()), canonical);
            let _ = l4_core::engine::App::load(&document, &registry());
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(|error| assert!(!error.render().is_empty()));
        }
    }
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    l4_tls::register(&mut registry);
    l4_http::register(&mut registry);
    l4_ssh::register(&mut registry);
    l4_postgres::register(&mut registry);
    l4_proxy_protocol::register(&mut registry);
    l4_socks::register(&mut registry);
    l4_xmpp::register(&mut registry);
    registry
}

fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = text.parse::<Address>() {
        let _ = (address.to_string(), address.unsupported(), address.descriptor(), address.count());
    }
}

fn duration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(duration) = text.parse::<GoDuration>() {
        assert_eq!(duration.to_string().parse(), Ok(duration), "{text:?}");
    }
}

fn template(data: &[u8]) {
    // Files and the environment are no business of a fuzzer.
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains("file.") {
        return;
    }
    let _ = (expand_all(text), expand_known(text));
    if let Ok(template) = Template::compile(text, &Placeholders::default()) {
        let _ = template.unknown();
    }
}
