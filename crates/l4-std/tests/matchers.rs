//! The matchers that belong to no protocol: what they answer, and that none of them but `not` waits for a byte.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use l4_core::prelude::*;
use l4_core::{Addr, Io, Record};
use l4_std::matchers::{MatchLocalIp, MatchNot, MatchRemoteIp, MatchVars, MatchVarsRegexp};
use l4_testkit::{Router, check, conn_verdict, decided_after, matcher, received, verdict};
use schemars::JsonSchema;
use serde::Deserialize;

/// `SSH-`
struct Ssh;

/// No options.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Empty {}

impl MatcherModule for Ssh {
    const NAME: &'static str = "ssh";
    type Config = Empty;

    fn provision(_: Empty, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl Matcher for Ssh {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        Verdict::prefix(view.bytes(), b"SSH-")
    }
}

fn register(reg: &mut Registry) {
    l4_std::register(reg);
    reg.matcher::<Ssh>();
}

fn made<M: MatcherModule>(json: &str) -> M {
    matcher(register, json).unwrap_or_else(|errors| panic!("{json}: {errors:?}"))
}

/// What `M` says about a connection with these variables.
fn with_vars<M: MatcherModule>(json: &str, vars: &[(&str, &str)]) -> bool {
    let mut conn = received(b"");
    for (name, value) in vars {
        conn.set_var(name, value);
    }
    match conn_verdict(&made::<M>(json), &mut conn) {
        Verdict::Match => true,
        Verdict::No => false,
        Verdict::More(_) => panic!("{json} waits for bytes"),
    }
}

/// A connection between these addresses.
fn between(remote: Addr, local: Addr) -> Connection {
    let (ours, _) = tokio::io::duplex(1);
    Connection::new(
        Io::Layer(Box::new(ours)),
        Arc::new(Record::new(remote)),
        Some(local),
    )
}

fn tcp(text: &str) -> Addr {
    Addr::Tcp(text.parse().unwrap())
}

#[test]
fn addresses_are_compared_by_family_and_prefix() {
    let ranges = r#"{"ranges": ["10.1.2.3/8", "192.0.2.7", "2001:db8::/32", "fe80::1%eth0"]}"#;
    for (peer, inside) in [
        ("10.255.0.1:1", true),
        ("11.0.0.1:1", false),
        ("192.0.2.7:1", true),
        ("192.0.2.8:1", false),
        ("[::ffff:192.0.2.7]:1", true),
        ("[2001:db8:ffff::1]:1", true),
        ("[2001:db9::1]:1", false),
        ("[fe80::1%3]:1", true),
    ] {
        let other = tcp("203.0.113.200:9");
        let expected = Verdict::from_bool(inside);
        let remote = made::<MatchRemoteIp>(ranges);
        let conn = &mut between(tcp(peer), other.clone());
        assert_eq!(conn_verdict(&remote, conn), expected, "remote {peer}");
        let local = made::<MatchLocalIp>(ranges);
        let conn = &mut between(other, tcp(peer));
        assert_eq!(conn_verdict(&local, conn), expected, "local {peer}");
    }
}

#[test]
fn an_ipv6_range_for_everything_holds_no_ipv4_peer() {
    let all_v6 = made::<MatchRemoteIp>(r#"{"ranges": ["::/0"]}"#);
    let conn = &mut between(tcp("[::ffff:192.0.2.7]:1"), Addr::UNNAMED);
    assert_eq!(conn_verdict(&all_v6, conn), Verdict::No);
}

/// Row M-05 of docs/defects.md.
#[test]
fn no_range_and_no_ip_never_match() {
    for json in ["{}", r#"{"ranges": []}"#] {
        assert_eq!(verdict(&made::<MatchRemoteIp>(json), b""), Verdict::No);
    }
    let all = r#"{"ranges": ["0.0.0.0/0", "::/0"]}"#;
    let conn = &mut between(Addr::UNNAMED, Addr::UNNAMED);
    assert_eq!(conn_verdict(&made::<MatchRemoteIp>(all), conn), Verdict::No);
    assert_eq!(conn_verdict(&made::<MatchLocalIp>(all), conn), Verdict::No);
}

#[test]
fn private_ranges_is_short_for_the_private_and_loopback_ones() {
    let private = made::<MatchRemoteIp>(r#"{"ranges": ["private_ranges"]}"#);
    for (peer, inside) in [
        ("192.168.1.1:1", true),
        ("172.31.0.1:1", true),
        ("127.0.0.9:1", true),
        ("[fd00::1]:1", true),
        ("[::1]:1", true),
        ("8.8.8.8:1", false),
    ] {
        let conn = &mut between(tcp(peer), Addr::UNNAMED);
        assert_eq!(
            conn_verdict(&private, conn),
            Verdict::from_bool(inside),
            "{peer}"
        );
    }
}

#[test]
fn ranges_are_filled_in_when_loading() {
    let path = std::env::temp_dir().join(format!("l4-std-ranges-{}", std::process::id()));
    std::fs::write(&path, "192.0.2.0/24\n").unwrap();
    let json = format!(r#"{{"ranges": ["{{file.{}}}"]}}"#, path.display());
    let from_file = made::<MatchRemoteIp>(&json);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(verdict(&from_file, b""), Verdict::Match);

    let errors = matcher::<MatchRemoteIp>(register, r#"{"ranges": ["{l4.vars.x}"]}"#);
    let messages: Vec<_> = errors
        .err()
        .unwrap()
        .iter()
        .map(|e| e.message().to_owned())
        .collect();
    assert_eq!(
        messages,
        ["invalid IP address: '': expected an IPv4 or IPv6 address"]
    );
}

#[test]
fn remote_ip_has_the_name_of_the_oldest_documentation_too() {
    let not_me = made::<MatchNot>(r#"[{"ip": {"ranges": ["192.0.2.7"]}}]"#);
    assert_eq!(verdict(&not_me, b""), Verdict::No);
}

#[test]
fn not_without_sets_always_matches_and_with_an_empty_one_never() {
    for (json, expected) in [
        ("[]", Verdict::Match),
        ("[{}]", Verdict::No),
        ("[null]", Verdict::No),
        (r#"[{"ssh": {}}, {}]"#, Verdict::No),
    ] {
        assert_eq!(verdict(&made::<MatchNot>(json), b""), expected, "{json}");
    }
}

#[test]
fn not_turns_a_certain_answer_round_and_waits_otherwise() {
    let not_ssh = made::<MatchNot>(r#"[{"ssh": {}}]"#);
    check(&not_ssh, b"SSH-2.0-x", Verdict::No);
    check(&not_ssh, b"SSX", Verdict::Match);
    check(&not_ssh, b"SS", Verdict::More(0));
    assert_eq!(decided_after(&not_ssh, b"SSX-"), Some(3));
}

#[test]
fn not_several_sets_means_none_of_them() {
    let me = r#"{"remote_ip": {"ranges": ["192.0.2.7"]}}"#;
    let other = r#"{"remote_ip": {"ranges": ["192.0.2.8"]}}"#;
    for (sets, bytes, expected) in [
        // One that holds is enough, however undecided the others are.
        (format!(r#"[{{"ssh": {{}}}}, {me}]"#), "", Verdict::No),
        (format!("[{other}, {me}]"), "", Verdict::No),
        (format!("[{other}]"), "", Verdict::Match),
        (
            format!(r#"[{{"ssh": {{}}}}, {other}]"#),
            "",
            Verdict::More(1),
        ),
        (
            format!(r#"[{{"ssh": {{}}}}, {other}]"#),
            "GET",
            Verdict::Match,
        ),
        // Within a set all must hold, so one that does not decides.
        (
            r#"[{"ssh": {}, "remote_ip": {"ranges": ["192.0.2.8"]}}]"#.to_owned(),
            "",
            Verdict::Match,
        ),
        (format!(r#"[{{"not": [{me}]}}]"#), "", Verdict::Match),
    ] {
        assert_eq!(
            verdict(&made::<MatchNot>(&sets), bytes.as_bytes()),
            expected,
            "{sets} {bytes}"
        );
    }
}

#[test]
fn some_variable_with_some_listed_value_is_enough() {
    let vars = [("a", "1"), ("b", "2")];
    for (json, expected) in [
        ("{}", true),
        (r#"{"a": ["1"]}"#, true),
        (r#"{"a": ["2", "1"]}"#, true),
        (r#"{"a": ["2"]}"#, false),
        (r#"{"a": []}"#, false),
        (r#"{"a": ["2"], "b": ["2"]}"#, true),
        (r#"{"a": ["2"], "b": ["1"]}"#, false),
        (r#"{"unset": [""]}"#, true),
        (r#"{"unset": ["1"]}"#, false),
        (r#"{"A": ["1"]}"#, false),
    ] {
        assert_eq!(with_vars::<MatchVars>(json, &vars), expected, "{json}");
    }
}

#[test]
fn a_key_that_is_one_placeholder_is_its_value_and_any_other_a_name() {
    let vars = [
        ("a", "1"),
        ("{x}{y}", "odd"),
        ("p{a}", "name"),
        ("b", "{l4.vars.a}"),
    ];
    for (json, expected) in [
        (r#"{"{l4.conn.remote_addr}": ["192.0.2.7:40000"]}"#, true),
        (r#"{"{l4.vars.a}": ["1"]}"#, true),
        (r#"{"{l4.vars.unset}": [""]}"#, true),
        (r#"{"{x}{y}": ["odd"]}"#, true),
        (r#"{"p{a}": ["name"]}"#, true),
        // Listed values are filled in, found ones are not.
        (r#"{"a": ["{l4.vars.a}"]}"#, true),
        (r#"{"b": ["1"]}"#, false),
        (r#"{"b": ["\\{l4.vars.a\\}"]}"#, true),
    ] {
        assert_eq!(with_vars::<MatchVars>(json, &vars), expected, "{json}");
    }
}

#[test]
fn an_expression_is_searched_anywhere_in_the_value() {
    let vars = [
        ("a", "xyz"),
        ("b", "123"),
        ("digit", "٣"),
        ("braces", "{[}"),
    ];
    for (json, expected) in [
        ("{}", false),
        (r#"{"a": {"pattern": "y"}}"#, true),
        (r#"{"a": {"pattern": "^y"}}"#, false),
        (r#"{"a": {"pattern": "^y"}, "b": {"pattern": "2"}}"#, true),
        (r#"{"unset": {"pattern": "^$"}}"#, true),
        (r#"{"{l4.conn.remote_addr}": {"pattern": ":40000$"}}"#, true),
        // RE2, where \d is ASCII and a { that repeats nothing is the character.
        (r#"{"digit": {"pattern": "^\\d$"}}"#, false),
        (r#"{"digit": {"pattern": "^\\D$"}}"#, true),
        (r#"{"braces": {"pattern": "^{[[a-z]}$"}}"#, true),
        // Patterns are not filled in.
        (r#"{"a": {"pattern": "\\{l4\\.vars\\.a\\}"}}"#, false),
    ] {
        assert_eq!(
            with_vars::<MatchVarsRegexp>(json, &vars),
            expected,
            "{json}"
        );
    }
}

/// The answer of a list that sets `host`, matches it by `expression` and answers with `body`.
async fn captured(expression: &str, body: &str) -> String {
    let routes = format!(
        r#"[{{"handle": [{{"handler": "vars", "host": "a.example.com", "port": 25}}]}},
            {{"match": [{{"vars_regexp": {expression}}}],
              "handle": [{{"handler": "respond", "body": "{body}"}}]}},
            {{"handle": [{{"handler": "respond", "body": "none <{body}>"}}]}}]"#
    );
    let (answer, _) = Router::new(register, &routes).exchange(&[]).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn captures_are_read_by_number_name_and_expression() {
    let named = r#"{"host": {"name": "re1", "pattern": "^(?P<first>[a-z]+)\\.(?<rest>[a-z.]+)$"}}"#;
    for (body, expected) in [
        ("{l4.regexp.0}", "a.example.com"),
        ("{l4.regexp.1} {l4.regexp.2}", "a example.com"),
        ("{l4.regexp.first}-{l4.regexp.rest}", "a-example.com"),
        ("{l4.regexp.re1.0}", "a.example.com"),
        ("{l4.regexp.re1.1} {l4.regexp.re1.rest}", "a example.com"),
        (
            "<{l4.regexp.3}{l4.regexp.other.1}{l4.regexp.re1.none}>",
            "<>",
        ),
    ] {
        assert_eq!(captured(named, body).await, expected, "{body}");
    }
    let optional = r#"{"host": {"pattern": "^a(x)?"}}"#;
    assert_eq!(
        captured(optional, "<{l4.regexp.0}|{l4.regexp.1}>").await,
        "<a|>"
    );
}

#[tokio::test(start_paused = true)]
async fn the_first_key_that_matches_gives_the_captures() {
    let both = r#"{"port": {"pattern": "([0-9])"}, "host": {"pattern": "([a-z])"}}"#;
    assert_eq!(captured(both, "{l4.regexp.1}").await, "2");
    let second = r#"{"port": {"pattern": "(x)"}, "host": {"pattern": "([a-z])"}}"#;
    assert_eq!(captured(second, "{l4.regexp.1}").await, "a");
}

#[tokio::test(start_paused = true)]
async fn captures_of_a_set_that_does_not_match_are_not_kept() {
    assert_eq!(
        captured(r#"{"host": {"pattern": "(z)"}}"#, "{l4.regexp.0}").await,
        "none <>"
    );
    let routes = r#"[
        {"match": [{"vars_regexp": {"{l4.conn.remote_addr}": {"pattern": "([0-9]+)"}},
                    "remote_ip": {"ranges": ["203.0.113.1"]}},
                   {"not": [{"vars_regexp": {"{l4.conn.remote_addr}": {"pattern": "([0-9]+)"}}}]}],
         "handle": [{"handler": "close"}]},
        {"handle": [{"handler": "respond", "body": "<{l4.regexp.0}>"}]}]"#;
    let (answer, _) = Router::new(register, routes).exchange(&[]).await;
    assert_eq!(answer, b"<>");
}

#[tokio::test(start_paused = true)]
async fn captures_of_a_later_match_hide_those_of_an_earlier_one() {
    let routes = r#"[
        {"handle": [{"handler": "vars", "a": "1", "b": "2"}]},
        {"match": [{"vars_regexp": {"a": {"name": "one", "pattern": "(.)"}}}]},
        {"match": [{"vars_regexp": {"b": {"name": "two", "pattern": "(.)"}}}]},
        {"handle": [{"handler": "respond", "body": "{l4.regexp.1} {l4.regexp.one.1} {l4.regexp.two.1}"}]}]"#;
    let (answer, _) = Router::new(register, routes).exchange(&[]).await;
    assert_eq!(answer, b"2 1 2");
}

#[test]
fn none_but_not_needs_a_byte() {
    for matcher in [
        Box::new(made::<MatchRemoteIp>("{}")) as Box<dyn Matcher>,
        Box::new(made::<MatchLocalIp>("{}")),
        Box::new(made::<MatchVars>("{}")),
        Box::new(made::<MatchVarsRegexp>("{}")),
        Box::new(made::<MatchNot>("[]")),
    ] {
        assert_eq!(matcher.cost(), Cost::Meta);
    }
    assert_eq!(made::<MatchNot>(r#"[{"ssh": {}}]"#).cost(), Cost::Parse);
}

/// Row M-19 of docs/defects.md.
#[test]
fn configurations_that_cannot_work_are_refused() {
    type Errors = Option<Vec<l4_core::config::ConfigError>>;
    let first =
        |errors: Errors| errors.map(|e| (e[0].pointer().to_owned(), e[0].message().to_owned()));
    let refused = |errors: Errors, pointer: &str, message: &str| {
        assert_eq!(
            first(errors),
            Some((pointer.to_owned(), message.to_owned()))
        );
    };
    refused(
        matcher::<MatchVars>(register, r#"{"a": "1"}"#).err(),
        "/a",
        "expected a list, found the string \"1\"",
    );
    refused(
        matcher::<MatchVarsRegexp>(register, r#"{"a": {"pattern": "[z-a]"}}"#).err(),
        "/a/pattern",
        "invalid regular expression: the range z-a ends before it begins",
    );
    refused(
        matcher::<MatchNot>(register, r#"[{"nope": {}}]"#).err(),
        "/0/nope",
        "unknown module: layer4.matchers.nope",
    );
    refused(
        matcher::<MatchNot>(register, r#"[{"ssh": null}]"#).err(),
        "/0/ssh",
        "module value cannot be null: layer4.matchers.ssh",
    );
}
