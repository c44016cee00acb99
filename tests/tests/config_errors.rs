//! Bad configurations: each is refused with exit code 1 and a message that names place, value and remedy.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;

use e2e::{Finished, config, loopback, responder, run, run_with};
use serde_json::json;

/// A refusal that is expected.
struct Refusal<'a> {
    /// The whole configuration.
    text: &'a str,
    /// What the caret points at: a piece of the text that occurs once.
    at: &'a str,
    /// The JSON pointer.
    pointer: &'a str,
    /// What the message says, value and remedy included.
    says: &'a [&'a str],
}

impl Refusal<'_> {
    /// Runs with the configuration and checks all of that.
    fn check(&self) {
        let finished = run_with(&["run", "--config", "-"], |_| {}, self.text.as_bytes());
        let Finished {
            code,
            stdout,
            stderr,
        } = &finished;
        assert_eq!(*code, Some(1), "{}\n{stderr}", self.text);
        assert_eq!(stdout, "");
        assert_eq!(self.text.matches(self.at).count(), 1, "{:?}", self.at);
        let offset = self.text.find(self.at).unwrap();
        let before = &self.text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap().chars().count() + 1;
        let place = format!("--> stdin:{line}:{column}\n");
        assert!(stderr.contains(&place), "no {place:?} in\n{stderr}");
        let pointer = format!("= at: {}\n", self.pointer);
        assert!(stderr.contains(&pointer), "no {pointer:?} in\n{stderr}");
        for part in self.says {
            assert!(stderr.contains(part), "no {part:?} in\n{stderr}");
        }
        assert!(stderr.trim_end().ends_with("1 error"), "{stderr}");
    }
}

/// A configuration with this server.
fn with_server(server: &str) -> String {
    format!("{{\n\t\"apps\": {{\"layer4\": {{\"servers\": {{\"a\": {server}}}}}}}\n}}\n")
}

/// A configuration with this route.
fn with_route(route: &str) -> String {
    with_server(&format!(
        "{{\"listen\": [\"127.0.0.1:0\"], \"routes\": [\n{route}\n]}}"
    ))
}

#[test]
fn unknown_modules_come_with_the_known_ones() {
    Refusal {
        text: "{\"apps\": {\"http\": {}}}",
        at: "\"http\"",
        pointer: "/apps/http",
        says: &["unknown module: http", "layer4"],
    }
    .check();
    Refusal {
        text: &with_route(r#"{"match": [{"tsl": {}}], "handle": [{"handler": "echo"}]}"#),
        at: "\"tsl\"",
        pointer: "/apps/layer4/servers/a/routes/0/match/0/tsl",
        says: &[
            "unknown module: layer4.matchers.tsl",
            "did you mean \"tls\"?",
        ],
    }
    .check();
    Refusal {
        text: &with_route(r#"{"handle": [{"handler": "echo"}, {"handler": "prxy"}]}"#),
        at: "\"prxy\"",
        pointer: "/apps/layer4/servers/a/routes/0/handle/1/handler",
        says: &[
            "unknown module: layer4.handlers.prxy",
            "did you mean \"proxy\"?",
        ],
    }
    .check();
    Refusal {
        text: &with_route(r#"{"handle": [{"hander": "echo"}]}"#),
        at: "{\"hander\"",
        pointer: "/apps/layer4/servers/a/routes/0/handle/0",
        says: &["module name not specified with key 'handler'"],
    }
    .check();
}

#[test]
fn unknown_fields_come_with_the_known_ones() {
    Refusal {
        text: "{\n \"admn\": {}\n}",
        at: "\"admn\"",
        pointer: "/admn",
        says: &["unknown field", "admn", "did you mean \"admin\"?"],
    }
    .check();
    Refusal {
        text: &with_server(r#"{"listen": [], "Routes": []}"#),
        at: "\"Routes\"",
        pointer: "/apps/layer4/servers/a/Routes",
        says: &["unknown field", "Routes", "\"routes\""],
    }
    .check();
    Refusal {
        text: &with_route(r#"{"handle": [{"handler": "respond", "bdy": "x"}]}"#),
        at: "\"bdy\"",
        pointer: "/apps/layer4/servers/a/routes/0/handle/0/bdy",
        says: &["unknown field", "bdy", "\"body\""],
    }
    .check();
}

#[test]
fn addresses_are_checked_part_by_part() {
    for (address, says) in [
        ("tpc/:80", &["unsupported network type: tpc", "tcp"][..]),
        ("127.0.0.1:99999", &["invalid start port", "99999"]),
        ("127.0.0.1:http", &["invalid start port", "http"]),
        (
            "127.0.0.1:90-80",
            &["end port must not be less than start port"],
        ),
        ("unix//run/x|0477", &["0477"]),
    ] {
        let quoted = format!("\"{address}\"");
        let says = [says, &[address][..]].concat();
        Refusal {
            text: &with_server(&format!("{{\"listen\": [\":80\", {quoted}]}}")),
            at: &quoted,
            pointer: "/apps/layer4/servers/a/listen/1",
            says: &says,
        }
        .check();
    }
}

#[test]
fn durations_say_which_units_there_are() {
    for (duration, says) in [
        ("\"5\"", &["missing unit"][..]),
        ("\"5 parsecs\"", &["5 parsecs"]),
        ("\"\"", &["invalid duration"]),
        ("1.5", &["1.5"]),
        ("true", &["true"]),
    ] {
        Refusal {
            text: &with_server(&format!(
                "{{\"listen\": [\":1\"], \"matching_timeout\": {duration}}}"
            )),
            at: duration,
            pointer: "/apps/layer4/servers/a/matching_timeout",
            says,
        }
        .check();
    }
}

#[test]
fn address_ranges_are_checked() {
    for range in ["10.0.0.0/33", "10.0.0", "example.com", "10.0.0.0/08"] {
        let quoted = format!("\"{range}\"");
        Refusal {
            text: &with_route(&format!(
                r#"{{"match": [{{"remote_ip": {{"ranges": [{quoted}]}}}}], "handle": [{{"handler": "echo"}}]}}"#
            )),
            at: &quoted,
            pointer: "/apps/layer4/servers/a/routes/0/match/0/remote_ip/ranges/0",
            says: &[range],
        }
        .check();
    }
}

#[test]
fn placeholders_that_never_close_are_refused() {
    let body = format!("\"{}\"", "{".repeat(101));
    Refusal {
        text: &with_route(&format!(
            r#"{{"handle": [{{"handler": "respond", "body": {body}}}]}}"#
        )),
        at: &body,
        pointer: "/apps/layer4/servers/a/routes/0/handle/0/body",
        says: &["too many unclosed placeholders"],
    }
    .check();
}

#[test]
fn duplicate_keys_name_both_places() {
    let text = "{\n\"apps\": {},\n  \"apps\": null}";
    Refusal {
        text,
        at: "\"apps\": null",
        pointer: "/apps",
        says: &["apps", "first defined at line 2, column 1", "remove one"],
    }
    .check();
}

#[test]
fn wrong_types_say_what_is_needed() {
    for (field, value, says) in [
        ("listen", "\":80\"", &["string", "list"][..]),
        ("routes", "{}", &["object", "list"]),
        ("idle_timeout", "[]", &["list"]),
    ] {
        Refusal {
            text: &with_server(&format!("{{\"{field}\": {value}}}")),
            at: value,
            pointer: &format!("/apps/layer4/servers/a/{field}"),
            says,
        }
        .check();
    }
    Refusal {
        text: "[]",
        at: "[]",
        pointer: "/",
        says: &["object"],
    }
    .check();
}

#[test]
fn texts_that_are_not_json_are_shown_where_they_stop_being_it() {
    for text in ["", " \n\n"] {
        let finished = run_with(&["run", "--config", "-"], |_| {}, text.as_bytes());
        assert_eq!(finished.code, Some(1));
        assert!(
            finished.stderr.contains("stdin") && finished.stderr.contains("empty"),
            "{finished:?}"
        );
    }
    Refusal {
        text: "{\"apps\": {}} x",
        at: "x",
        pointer: "/",
        says: &[],
    }
    .check();
    Refusal {
        text: "{\"apps\": {},}",
        at: ",}",
        pointer: "/",
        says: &["comma"],
    }
    .check();
    Refusal {
        text: "{\n// apps\n}",
        at: "// apps",
        pointer: "/",
        says: &["comment"],
    }
    .check();
    let finished = run_with(&["run", "--config", "-"], |_| {}, b"{\"a\": \"\xC3\x28\"}");
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.contains("stdin") && finished.stderr.contains("UTF-8"),
        "{finished:?}"
    );
}

#[test]
fn files_that_cannot_be_read_are_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.json");
    let secret = dir.path().join("secret.json");
    fs::write(&secret, "{}").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let mut cases = vec![
        (missing, "does not exist"),
        (dir.path().to_owned(), "is a directory"),
    ];
    // Root may read everything.
    if fs::File::open(&secret).is_err() {
        cases.push((secret, "permission denied"));
    }
    for (path, says) in cases {
        let path = path.to_str().unwrap();
        let finished = run(&["run", "--config", path]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(
            finished.stderr.contains(path) && finished.stderr.contains(says),
            "{}",
            finished.stderr
        );
    }
}

#[test]
fn ports_in_use_are_refused_with_who_has_them() {
    let ip = loopback();
    let _tcp = TcpListener::bind((ip, 80)).unwrap();
    let _udp = UdpSocket::bind((ip, 53)).unwrap();
    for (address, kind) in [(format!("{ip}:80"), "80"), (format!("udp/{ip}:53"), "53")] {
        let quoted = format!("\"{address}\"");
        Refusal {
            text: &with_server(&format!("{{\"listen\": [{quoted}]}}")),
            at: &quoted,
            pointer: "/apps/layer4/servers/a/listen/0",
            // Cargo names the process of a test after its file.
            says: &[
                "cannot listen on",
                &address,
                kind,
                "is already in use by config_errors",
                "= help: ",
            ],
        }
        .check();
    }
    let address = format!("{}:80", Ipv4Addr::new(192, 0, 2, 1));
    Refusal {
        text: &with_server(&format!("{{\"listen\": [\"{address}\"]}}")),
        at: "\"192.0.2.1",
        pointer: "/apps/layer4/servers/a/listen/0",
        says: &["192.0.2.1 is not an address of this machine"],
    }
    .check();
}

#[test]
fn one_address_belongs_to_one_server() {
    for (first, second) in [
        ("127.0.0.1:80", "127.0.0.1:080"),
        (":80", "0.0.0.0:80"),
        ("127.0.0.1:80-90", "127.0.0.1:85"),
        ("127.0.0.1:80", "localhost:80"),
    ] {
        let text = format!(
            "{{\"apps\": {{\"layer4\": {{\"servers\": {{\n\"a\": {{\"listen\": [\"{first}\"]}},\n\"b\": {{\"listen\": [\"{second}\"]}}\n}}}}}}}}"
        );
        Refusal {
            text: &text,
            at: &format!("\"{second}\""),
            pointer: "/apps/layer4/servers/b/listen/0",
            says: &[
                "/apps/layer4/servers/a/listen/0",
                "first listened on here: stdin:2:18",
                "remove one of them",
            ],
        }
        .check();
    }
}

#[test]
fn all_errors_come_in_one_block_that_can_be_read_without_colours() {
    let text =
        config(json!({"a": responder("x/:80", "{"), "b": responder(":http", "")})).to_string();
    let finished = run_with(
        &["run", "--config", "-", "--log-level", "error"],
        |_| {},
        text.as_bytes(),
    );
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.starts_with("error: "),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.ends_with("\n\n2 errors\n"),
        "{}",
        finished.stderr
    );
    assert!(!finished.stderr.contains('\x1b'));
}
