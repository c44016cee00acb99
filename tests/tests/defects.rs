//! What goes wrong in caddy-l4 and must not here. docs/defects.md lists all of it; most is shown beside the code it is
//! about, and here is what needs the whole program, or a feature that there is none of.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use e2e::{
    Backend, Conncept, LOCALHOST, Reload, Signal, client_hello, config, connect, drain, eventually,
    loopback, pause, refused, responder, run_with,
};
use serde_json::{Value, json};

/// How many rows each part of the list has, by what their ids begin with.
const ROWS: [(&str, usize); 13] = [
    ("D-", 24),
    ("M-", 37),
    ("G", 3),
    ("P", 27),
    ("U", 5),
    ("R", 11),
    ("L", 13),
    ("T", 5),
    ("E", 6),
    ("S", 7),
    ("Q", 1),
    ("V", 2),
    ("D", 11),
];

fn ids() -> impl Iterator<Item = String> {
    ROWS.iter().flat_map(|(prefix, count)| {
        (1..=*count).map(move |n| match prefix.ends_with('-') {
            true => format!("{prefix}{n:02}"),
            false => format!("{prefix}{n}"),
        })
    })
}

/// The comment above the test `name` and its attributes: of a function behind a test attribute, or of a line of the
/// macro `example!`.
fn told(source: &str, name: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let made = format!("example!({name}:");
    let declares = |line: &&str| {
        let function = line.strip_prefix("async ").unwrap_or(line);
        let rest = function
            .strip_prefix("fn ")
            .and_then(|function| function.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with('(')) || **line == made
    };
    let at = lines.iter().position(declares)?;
    let belongs = |line: &&&str| line.starts_with("#[") || line.starts_with("//");
    let above: Vec<&str> = lines[..at]
        .iter()
        .rev()
        .take_while(belongs)
        .copied()
        .collect();
    let is_test = |line: &&str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    (lines[at] == made || above.iter().any(is_test)).then(|| above.join("\n"))
}

/// Whether a test says that it is about the row `id`: by its name, or by its doc comment.
fn is_about(name: &str, told: &str, id: &str) -> bool {
    let mut words = told.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let prefix = id.to_lowercase() + "_";
    words.any(|word| word == id)
        || name.starts_with(&prefix)
        || name.contains(&format!("_{prefix}"))
}

#[test]
fn every_row_of_the_list_has_a_test_that_says_so() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("docs/defects.md")).unwrap();
    let mut listed = Vec::new();
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [id, _, tests] = cells[..] else {
            panic!("not three cells: {row}");
        };
        let id = id.trim_start_matches("| ");
        if id == "Id" {
            continue;
        }
        listed.push(id.to_owned());
        let mut count = 0;
        for test in tests.split('`').filter(|span| span.contains("::")) {
            let (path, name) = test.split_once("::").unwrap();
            let source = sources.entry(path.to_owned()).or_insert_with(|| {
                fs::read_to_string(root.join(path))
                    .unwrap_or_else(|error| panic!("{path}: {error}"))
            });
            match told(source, name) {
                None => wrong.push(format!("{id}: there is no test {test}")),
                Some(told) if !is_about(name, &told, id) => {
                    wrong.push(format!(
                        "{id}: neither name nor comment of {test} says {id}"
                    ));
                }
                Some(_) => {}
            }
            count += 1;
        }
        if count == 0 {
            wrong.push(format!("{id}: no test"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(listed, ids().collect::<Vec<_>>());
}

/// What the client of this number sends: its number in four bytes, over and over, each time counted.
fn pattern(client: u32, length: usize) -> Vec<u8> {
    let words = (0_u32..).flat_map(|i| client.to_be_bytes().into_iter().chain(i.to_be_bytes()));
    words.take(length).collect()
}

/// A server that reads nothing until it is let, and then slowly; it keeps what each connection brought.
struct Mirror {
    address: SocketAddr,
    go: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Mirror {
    fn new() -> Self {
        let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (go, streams) = (
            Arc::<AtomicBool>::default(),
            Arc::<Mutex<Vec<_>>>::default(),
        );
        let (goes, kept) = (go.clone(), streams.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (goes, kept) = (goes.clone(), kept.clone());
                thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    eventually("the mirror may read", || goes.load(Ordering::Relaxed));
                    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        all.extend_from_slice(&buffer[..n]);
                        pause(Duration::from_micros(300));
                    }
                    kept.lock().unwrap().push(all);
                });
            }
        });
        Self {
            address,
            go,
            streams,
        }
    }
}

/// Sends its pattern through an echo, and expects nothing but that back.
fn echoed(at: impl Into<SocketAddr>, client: u32, length: usize) {
    let mut stream = connect(at);
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let sent = pattern(client, length);
        writing.write_all(&sent[..700]).unwrap();
        writing.write_all(&sent[700..]).unwrap();
        writing.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writer.join().unwrap();
    assert!(
        back == pattern(client, length),
        "client {client} got other bytes"
    );
}

/// Row D-15 of docs/defects.md.
#[test]
fn e4_slow_branches_get_the_bytes_of_their_own_connection_while_others_come_and_go() {
    let ip = loopback();
    let (mirror, backend) = (Mirror::new(), Backend::echo());
    let to = |address: SocketAddr| json!({"handler": "proxy", "upstreams": [{"dial": [address.to_string()]}]});
    let reads = |count: usize| json!([{"regexp": {"count": count, "pattern": "(?s)^.*$"}}]);
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("{ip}:1")],
        "routes": [
            {"match": reads(1000), "handle": [{"handler": "tee", "branch": [to(mirror.address)]}]},
            {"match": reads(2000), "handle": [to(backend.address)]},
        ],
    }})));
    // More than a branch may be behind, and more than the kernel keeps for it: these wait for their branches.
    const LARGE: usize = 5_000_000;
    let waiting: Vec<_> = (0..3)
        .map(|client| thread::spawn(move || echoed((ip, 1), client, LARGE)))
        .collect();
    // These come and end meanwhile, while their branches hold everything.
    const SMALL: usize = 50_000;
    for round in 0..4 {
        let together = (3 + 15 * round..18 + 15 * round)
            .map(|client| thread::spawn(move || echoed((ip, 1), client, SMALL)));
        for client in together.collect::<Vec<_>>() {
            client.join().unwrap();
        }
    }
    assert!(waiting.iter().all(|client| !client.is_finished()));
    assert_eq!(mirror.streams.lock().unwrap().len(), 0);
    mirror.go.store(true, Ordering::Relaxed);
    for client in waiting {
        client.join().unwrap();
    }
    eventually("every branch has ended", || {
        mirror.streams.lock().unwrap().len() == 63
    });
    let mut streams = mirror.streams.lock().unwrap().split_off(0);
    streams.sort_unstable();
    for (stream, client) in streams.iter().zip(0..) {
        let length = if client < 3 { LARGE } else { SMALL };
        assert!(
            *stream == pattern(client, length),
            "the branch of client {client} got other bytes, {} in all",
            stream.len()
        );
    }
}

/// A server whose queue is full: the kernel drops what asks for a connection.
struct Silent {
    address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Silent {
    fn new() -> Self {
        let listener = TcpListener::bind((LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let patience = Duration::from_millis(300);
        let connects = || TcpStream::connect_timeout(&address, patience).ok();
        Self {
            address,
            _listener: listener,
            _waiting: std::iter::from_fn(connects).collect(),
        }
    }

    /// How many connections to it are being made.
    fn dialled(&self) -> usize {
        let port = format!(":{:04X}", self.address.port());
        let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
        let being_made = |line: &&str| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            let remote = fields.next().unwrap();
            // SYN_SENT in include/net/tcp_states.h.
            remote.ends_with(&port) && fields.next() == Some("02")
        };
        sockets.lines().filter(being_made).count()
    }
}

#[test]
fn p6_a_dial_under_way_ends_with_the_time_to_drain_and_with_the_grace_period() {
    let ip = loopback();
    let silent = Silent::new();
    let with = |server: Value| {
        let mut settings = config(json!({"a": server}));
        settings["apps"]["layer4"]["drain_timeout"] = json!("200ms");
        settings["apps"]["layer4"]["grace_period"] = json!("200ms");
        settings
    };
    let proxy = with(
        json!({"listen": [format!("{ip}:1")], "routes": [{"handle": [{
            "handler": "proxy", "dial_timeout": "1h",
            "upstreams": [{"dial": [silent.address.to_string()]}],
        }]}]}),
    );
    let mut conncept = Conncept::serving(&proxy);
    let mut client = connect((ip, 1));
    eventually("it is dialled", || silent.dialled() == 1);
    let other = with(responder(&format!("{ip}:1"), "new"));
    assert_eq!(conncept.reload(&other.to_string()), Reload::Done);
    let from = client.local_addr().unwrap();
    assert_eq!(drain(&mut client), b"");
    assert_eq!(conncept.record_of(from)["reason"], "drained");
    assert_eq!(silent.dialled(), 0);

    assert_eq!(conncept.reload(&proxy.to_string()), Reload::Done);
    let client = connect((ip, 1));
    let from = client.local_addr().unwrap();
    eventually("it is dialled again", || silent.dialled() == 1);
    conncept.signal(Signal::TERM);
    assert_eq!(conncept.wait().code(), Some(0));
    assert_eq!(conncept.record_of(from)["reason"], "shutdown");
    assert_eq!(silent.dialled(), 0);
}

#[test]
fn l10_a_hello_that_no_policy_is_for_is_logged_by_name_protocols_and_client_and_nothing_more() {
    let ip = loopback();
    let conncept = Conncept::serving_with(
        &config(
            json!({"a": {"listen": [format!("{ip}:1")], "routes": [{"handle": [
                {"handler": "tls", "connection_policies": [{"match": {"sni": ["other.example"]}}]},
                {"handler": "echo"},
            ]}]}}),
        ),
        &["--log-level", "debug"],
    );
    let long = "x".repeat(200);
    let many: Vec<String> = (0..200).map(|i| format!("p{i}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (alpn, said) in [
        (&[][..], "[]"),
        (&["h2", "http/1.1"], r#"["h2", "http/1.1"]"#),
        (&["a\n\"b\u{1b}"], r#"["a\n\"b\x1b"]"#),
        (&[long.as_str()], r#"["xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…"]"#),
        (
            &many,
            r#"["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", …]"#,
        ),
    ] {
        let mut client = connect((ip, 1));
        let from = client.local_addr().unwrap().to_string();
        client
            .write_all(&client_hello("nobody.example", alpn))
            .unwrap();
        drain(&mut client);
        let line = conncept.log_where("a refusal", |line| {
            line["msg"] == "handling connection" && line["remote"] == from.as_str()
        });
        let expected =
            format!(r#"no connection policy is for server name "nobody.example" and ALPN {said}"#);
        assert_eq!(line["error"], expected.as_str());
        assert!(line.to_string().len() < 500, "{line}");
    }
}

/// The list has rows about features that this version has none of: the matchers of M-02, M-10 to M-13, M-23 to M-29, M-32,
/// M-33 and M-35, the trust pool of L11 and D7, making certificates on demand (D2), public authorities (D4, D11) and
/// stapling (D5). Switching them on is refused with a sentence. Where one of them comes, its rows need tests of their own:
/// M-11 M-12 M-24 M-25 M-26 M-27 M-28.
#[test]
fn what_is_not_in_this_version_is_refused_with_a_sentence() {
    let matcher = |name: &str| config(json!({"a": {"routes": [{"match": [{name: {}}]}]}}));
    let tls = |app: Value| json!({"apps": {"tls": app}});
    let automation = |value: Value| tls(json!({"automation": value}));
    let policy = |value: Value| automation(json!({"policies": [value]}));
    let pool = json!({"provider": "http", "endpoints": ["a"], "tls": {"server_name": "b"}});
    let asks =
        json!({"handler": "tls", "connection_policies": [{"client_authentication": {"ca": pool}}]});
    let acme = |more: Value| {
        let mut issuer = json!({"module": "acme"});
        let members = issuer.as_object_mut().unwrap();
        members.extend(more.as_object().unwrap().clone());
        policy(json!({"issuers": [issuer]}))
    };
    let unknown = "unknown module: layer4.matchers.";
    let absent = "is not in this build yet";
    for (rows, config, at, says) in [
        (
            "M-10 M-11 M-12 M-13",
            matcher("dns"),
            "/match/0/dns",
            unknown,
        ),
        ("M-23 M-24", matcher("openvpn"), "/match/0/openvpn", unknown),
        ("M-26 M-27 M-29", matcher("quic"), "/match/0/quic", unknown),
        ("M-02 M-25", matcher("rdp"), "/match/0/rdp", unknown),
        (
            "M-32 M-33",
            matcher("remote_ip_list"),
            "/match/0/remote_ip_list",
            unknown,
        ),
        ("M-02 M-28", matcher("winbox"), "/match/0/winbox", unknown),
        ("M-35", matcher("wireguard"), "/match/0/wireguard", unknown),
        (
            "L11 D7",
            config(json!({"a": {"routes": [{"handle": [asks]}]}})),
            "/ca/provider",
            "the trust pool provider http is not in this build yet",
        ),
        (
            "D2",
            automation(json!({"on_demand": {}})),
            "/automation/on_demand",
            absent,
        ),
        (
            "D2",
            policy(json!({"on_demand": true})),
            "/policies/0/on_demand",
            absent,
        ),
        (
            "D2",
            policy(json!({"get_certificate": [{"via": "http", "url": "http://a/"}]})),
            "/policies/0/get_certificate",
            absent,
        ),
        (
            "D4",
            acme(json!({})),
            "/issuers/0/module",
            "the issuer acme is not in this build yet",
        ),
        (
            "D4",
            acme(json!({"ca": "https://a/", "test_ca": "https://b/"})),
            "/issuers/0/module",
            "the issuer acme is not in this build yet",
        ),
        (
            "D4",
            policy(json!({"issuers": [{"module": "zerossl"}]})),
            "/issuers/0/module",
            "the issuer zerossl is not in this build yet",
        ),
        (
            "D4",
            tls(json!({"certificates": {"automate": ["www.example.com"]}})),
            "/automate/0",
            "from a public authority, which is not in this build yet (acme)",
        ),
        (
            "D5",
            automation(json!({"ocsp_interval": "1h"})),
            "/automation/ocsp_interval",
            absent,
        ),
        (
            "D5",
            policy(json!({"ocsp_overrides": {"http://a/": "http://b/"}})),
            "/policies/0/ocsp_overrides",
            absent,
        ),
        (
            "D5",
            policy(json!({"must_staple": true})),
            "/policies/0/must_staple",
            absent,
        ),
        (
            "D11",
            acme(json!({"challenges": {"tls-alpn": {"alternate_port": 8443}}})),
            "/issuers/0/module",
            "the issuer acme is not in this build yet",
        ),
    ] {
        let finished = run_with(
            &["validate", "--config", "-"],
            |_| {},
            config.to_string().as_bytes(),
        );
        let said = &finished.stderr;
        assert_eq!(finished.code, Some(1), "{rows}: {config}: {said}");
        let mut places = said
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("= at: "));
        assert!(places.any(|place| place.ends_with(at)), "{rows}: {said}");
        assert!(said.contains(says), "{rows}: no {says:?} in {said}");
    }
    // Switched off it is no more than a word.
    let off = json!({"policies": [{"must_staple": false, "disable_ocsp_stapling": true}]});
    let off = automation(off).to_string();
    let finished = run_with(&["validate", "--config", "-"], |_| {}, off.as_bytes());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
}

#[test]
fn p15_p25_there_are_no_gauges_that_could_be_wrong_and_asking_for_them_is_answered() {
    let ip = loopback();
    let mut settings = config(json!({"a": responder(&format!("{ip}:1"), "here")}));
    settings["admin"] = json!({"listen": format!("{ip}:2019")});
    let text = settings.to_string();
    let finished = run_with(&["validate", "--config", "-"], |_| {}, text.as_bytes());
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains("admin is not applied by this version; the rest of the file is"),
        "{}",
        finished.stderr
    );
    let _conncept = Conncept::serving(&settings);
    assert!(
        refused((ip, 2019)),
        "there is something to read gauges from"
    );

    settings["apps"]["http"] = json!({"metrics": {}});
    let text = settings.to_string();
    let finished = run_with(&["validate", "--config", "-"], |_| {}, text.as_bytes());
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.contains("unknown module: http"),
        "{}",
        finished.stderr
    );
}
