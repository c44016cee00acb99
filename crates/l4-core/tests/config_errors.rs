//! What loading says about a faulty configuration: where, what, and what would be right. All faults at once.

#![allow(clippy::unwrap_used)]

mod support;

use l4_core::Registry;
use l4_core::config::{ConfigError, Document, Errors};
use l4_core::engine::App;
use support::register;

fn registry() -> Registry {
    let mut registry = Registry::new();
    register(&mut registry);
    registry
        .absent("layer4.matchers", "wireguard", "wireguard")
        .absent("layer4.handlers", "socks5", "socks")
        // Present, so this is of no consequence.
        .absent("layer4.handlers", "echo", "nonsense");
    assert!(registry.conflicts().is_empty());
    registry
}

fn errors(json: &str) -> Vec<ConfigError> {
    let errors = match Document::parse("l4.json", json.as_bytes()) {
        Ok(document) => match App::load(&document, &registry()).app {
            Ok(_) => panic!("loads: {json}"),
            Err(errors) => errors,
        },
        Err(errors) => errors,
    };
    Errors::from(errors).into_vec()
}

fn warnings(json: &str) -> Vec<ConfigError> {
    let document = Document::parse("l4.json", json.as_bytes()).unwrap();
    let loaded = App::load(&document, &registry());
    if let Err(errors) = loaded.app {
        panic!("{}", Errors::from(errors));
    }
    loaded.warnings
}

/// A configuration with one server.
fn server(json: &str) -> String {
    format!(r#"{{"apps": {{"layer4": {{"servers": {{"a": {json}}}}}}}}}"#)
}

/// A configuration with one route.
fn route(json: &str) -> String {
    server(&format!(r#"{{"routes": [{json}]}}"#))
}

const SERVER: &str = "/apps/layer4/servers/a";
const ROUTE: &str = "/apps/layer4/servers/a/routes/0";

/// Loads `json` without its mark `«`, and expects one error there.
#[track_caller]
fn refused(json: &str, pointer: &str, message: &str, help: &str) {
    let column = json.chars().position(|c| c == '«').expect("a mark") + 1;
    let json = json.replace('«', "");
    let errors = errors(&json);
    let [error] = &errors[..] else {
        panic!("one error, got {}", Errors::from(errors))
    };
    assert_eq!(error.message(), message);
    assert_eq!(error.pointer(), pointer);
    assert_eq!(error.help_text().unwrap_or_default(), help);
    let at = error.position().unwrap();
    assert_eq!((at.line as usize, at.column as usize), (1, column));
    let rendered = error.render();
    for part in [message, help, pointer, &format!("l4.json:1:{column}")] {
        assert!(rendered.contains(part), "{part} is not in {rendered}");
    }
}

const MATCHERS: &str = "this build has: bug, clock, dns, http, ip, local_ip, not, proxy_header, regexp, remote_ip, \
                        ssh, tls, vars, vars_regexp, xmpp";
const HANDLERS: &str = "this build has: close, echo, end_tls, fail, panic, respond, sleep, subroute, take, \
                        take_proxy_header, vars";
const ADDRESS_HELP: &str =
    "write [network/]host:port, such as \":443\", \"udp/127.0.0.1:53\" or \"unix//run/x.sock\"";

#[test]
fn unknown_modules_are_named_with_the_nearest_or_how_to_build_them_in() {
    refused(
        &route(r#"{"match": [{«"shh": {}}]}"#),
        &format!("{ROUTE}/match/0/shh"),
        "unknown module: layer4.matchers.shh",
        &format!("did you mean \"ssh\"? {MATCHERS}"),
    );
    refused(
        &route(r#"{"match": [{«"zzzzzzzz": {}}]}"#),
        &format!("{ROUTE}/match/0/zzzzzzzz"),
        "unknown module: layer4.matchers.zzzzzzzz",
        MATCHERS,
    );
    refused(
        &route(r#"{"match": [{"not": [{«"shh": {}}]}]}"#),
        &format!("{ROUTE}/match/0/not/0/shh"),
        "unknown module: layer4.matchers.shh",
        &format!("did you mean \"ssh\"? {MATCHERS}"),
    );
    refused(
        &route(r#"{"handle": [{"handler": «"ecko"}]}"#),
        &format!("{ROUTE}/handle/0/handler"),
        "unknown module: layer4.handlers.ecko",
        &format!("did you mean \"echo\"? {HANDLERS}"),
    );
    refused(
        &route(r#"{"match": [{«"wireguard": {}}]}"#),
        &format!("{ROUTE}/match/0/wireguard"),
        "unknown module: layer4.matchers.wireguard",
        "this build was made without it; add it with: cargo xtask build --with wireguard",
    );
    refused(
        &route(r#"{"handle": [{"handler": «"socks5", "commands": ["CONNECT"]}]}"#),
        &format!("{ROUTE}/handle/0/handler"),
        "unknown module: layer4.handlers.socks5",
        "this build was made without it; add it with: cargo xtask build --with socks",
    );
    refused(
        r#"{"apps": {«"http": {}}}"#,
        "/apps/http",
        "unknown module: http",
        "this build has: layer4",
    );
}

#[test]
fn a_handler_without_a_name_is_refused_where_the_name_belongs() {
    let message = "module name not specified with key 'handler'";
    for (handle, pointer, help) in [
        ("«{}", "", HANDLERS),
        ("«null", "", HANDLERS),
        (r#"«"echo""#, "", HANDLERS),
        (r#"{"handler": «""}"#, "/handler", HANDLERS),
        (r#"{"handler": «7}"#, "/handler", HANDLERS),
        (r#"{"handler": «null}"#, "/handler", HANDLERS),
        (
            r#"«{"handlr": "echo"}"#,
            "",
            "did you mean \"handler\" instead of \"handlr\"?",
        ),
    ] {
        refused(
            &route(&format!(r#"{{"handle": [{handle}]}}"#)),
            &format!("{ROUTE}/handle/0{pointer}"),
            message,
            help,
        );
    }
}

#[test]
fn null_is_no_module() {
    refused(
        &route(r#"{"match": [{"ssh": «null}]}"#),
        &format!("{ROUTE}/match/0/ssh"),
        "module value cannot be null: layer4.matchers.ssh",
        "write {} (or [] for http and not) for a module without options",
    );
    refused(
        r#"{"apps": {"layer4": «null}}"#,
        "/apps/layer4",
        "module value cannot be null: layer4",
        "",
    );
}

#[test]
fn an_unknown_field_is_refused_at_every_depth() {
    for (json, pointer, field, near, help) in [
        (
            r#"{«"app": {}}"#.to_owned(),
            "/app".to_owned(),
            "app",
            " (did you mean \"apps\"?)",
            "valid fields: admin, logging, storage, apps, $schema",
        ),
        (
            r#"{"apps": {"layer4": {«"server": {}}}}"#.to_owned(),
            "/apps/layer4/server".to_owned(),
            "server",
            " (did you mean \"servers\"?)",
            "valid fields: servers, grace_period, drain_timeout",
        ),
        (
            server(r#"{«"Listen": []}"#),
            format!("{SERVER}/Listen"),
            "Listen",
            " (field names are case-sensitive, write \"listen\")",
            "valid fields: listen, routes, idle_timeout, matching_timeout",
        ),
        (
            route(r#"{«"handler": []}"#),
            format!("{ROUTE}/handler"),
            "handler",
            " (did you mean \"handle\"?)",
            "valid fields: match, handle",
        ),
        (
            route(r#"{"match": [{"remote_ip": {«"range": []}}]}"#),
            format!("{ROUTE}/match/0/remote_ip/range"),
            "range",
            " (did you mean \"ranges\"?)",
            "valid fields: ranges",
        ),
        (
            route(r#"{"handle": [{"handler": "respond", «"text": ""}]}"#),
            format!("{ROUTE}/handle/0/text"),
            "text",
            "",
            "valid fields: body",
        ),
        (
            route(r#"{"handle": [{"handler": "subroute", "routes": [{«"mach": []}]}]}"#),
            format!("{ROUTE}/handle/0/routes/0/mach"),
            "mach",
            " (did you mean \"match\"?)",
            "valid fields: match, handle",
        ),
    ] {
        refused(
            &json,
            &pointer,
            &format!("unknown field {field:?}{near}"),
            help,
        );
    }
}

#[test]
fn duplicate_keys_are_refused_with_both_places() {
    refused(
        r#"{"apps": {}, «"apps": {}}"#,
        "/apps",
        "duplicate key \"apps\", first defined at line 1, column 2",
        "remove one of the two",
    );
    let json = route(r#"{"match": [{"ssh": {}, «"ssh": {}}]}"#);
    let first = json.find("\"ssh\"").unwrap() + 1;
    refused(
        &json,
        &format!("{ROUTE}/match/0/ssh"),
        &format!("duplicate key \"ssh\", first defined at line 1, column {first}"),
        "remove one of the two",
    );
}

#[test]
fn two_servers_cannot_listen_on_one_address() {
    let two = |first: &str, second: &str| {
        format!(
            r#"{{"apps": {{"layer4": {{"servers": {{"a": {{"listen": [{first}]}}, "b": {{"listen": [«{second}]}}}}}}}}}}"#
        )
    };
    for (first, second, shown) in [
        (":443", "0.0.0.0:443", "0.0.0.0:443"),
        (":443", "[::]:443", "[::]:443"),
        ("tcp/:443", ":443", ":443"),
        (":440-450", ":443", ":443"),
        ("127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1"),
        ("udp/:53", "udp/0.0.0.0:53", "udp/0.0.0.0:53"),
        (
            "unix//run/a.sock",
            "unix//run/a.sock|0660",
            "unix//run/a.sock|0660",
        ),
    ] {
        let json = two(&format!("{first:?}"), &format!("{second:?}"));
        refused(
            &json,
            "/apps/layer4/servers/b/listen/0",
            &format!("{shown} is listened on twice"),
            "the first is /apps/layer4/servers/a/listen/0; remove one of them",
        );
    }
    for (first, second) in [
        (":443", "127.0.0.1:443"),
        (":443", "udp/:443"),
        (":443", ":444"),
        (":0", ":0"),
        ("tcp4/:443", "tcp6/:443"),
    ] {
        let json = two(&format!("{first:?}"), &format!("{second:?}")).replace('«', "");
        assert!(warnings(&json).is_empty(), "{first} {second}");
    }
}

#[test]
fn addresses_durations_and_ranges_are_refused_with_what_is_wrong() {
    for (listen, message, help) in [
        (
            "tcp/:x",
            "parsing listener address \"tcp/:x\": invalid start port: \"x\" is not a number from 0 to 65535",
            ADDRESS_HELP,
        ),
        (
            ":443-442",
            "parsing listener address \":443-442\": end port must not be less than start port, write 442-443",
            ADDRESS_HELP,
        ),
        (
            ":65536",
            "parsing listener address \":65536\": invalid start port: \"65536\" is not a number from 0 to 65535",
            ADDRESS_HELP,
        ),
        (
            "quic/:1",
            "unsupported network type: quic; the text before a slash names the network. Valid networks: tcp, tcp4, \
             tcp6, udp, udp4, udp6, unix, unixgram, unixpacket, fd, fdgram",
            "",
        ),
    ] {
        refused(
            &server(&format!(r#"{{"listen": [":1", «{listen:?}]}}"#)),
            &format!("{SERVER}/listen/1"),
            message,
            help,
        );
    }
    for (field, value, message) in [
        (
            "matching_timeout",
            r#""3x""#,
            "unknown unit \"x\" in duration \"3x\", units are ns, us, ms, s, m, h, d",
        ),
        (
            "idle_timeout",
            r#""30""#,
            "missing unit in duration \"30\", write for example \"30s\"",
        ),
        (
            "matching_timeout",
            "1.5",
            "expected a duration such as \"30s\" or an integer of nanoseconds, found the number 1.5",
        ),
    ] {
        refused(
            &server(&format!(r#"{{"{field}": «{value}}}"#)),
            &format!("{SERVER}/{field}"),
            message,
            "",
        );
    }
    for (field, value, message) in [
        ("grace_period", "-1", "-1ns is negative"),
        ("drain_timeout", "\"-1s\"", "-1s is negative"),
    ] {
        refused(
            &format!(r#"{{"apps": {{"layer4": {{"{field}": «{value}}}}}}}"#),
            &format!("/apps/layer4/{field}"),
            message,
            "write a duration such as \"5s\", or 0",
        );
    }
    for (range, message) in [
        (
            "10.0.0.0/33",
            "parsing CIDR expression: '10.0.0.0/33': the prefix length is too large",
        ),
        (
            "x",
            "invalid IP address: 'x': expected an IPv4 or IPv6 address",
        ),
    ] {
        refused(
            &route(&format!(
                r#"{{"match": [{{"remote_ip": {{"ranges": ["::1", «{range:?}]}}}}]}}"#
            )),
            &format!("{ROUTE}/match/0/remote_ip/ranges/1"),
            message,
            "write an address or a prefix, such as \"192.0.2.1\" or \"10.0.0.0/8\"",
        );
    }
    refused(
        &route(r#"{"match": [{"vars_regexp": {"a": {"pattern": «"("}}}]}"#),
        &format!("{ROUTE}/match/0/vars_regexp/a/pattern"),
        "invalid regular expression: unclosed group",
        r"close it with ), or write \( for the character",
    );
    refused(
        &route(r#"{"match": [{"vars_regexp": {"a": {"name": «"a b!", "pattern": "x"}}}]}"#),
        &format!("{ROUTE}/match/0/vars_regexp/a/name"),
        "invalid expression name \"a b!\"",
        "use letters, digits and underscores only",
    );
    let both = errors(&route(
        r#"{"match": [{"vars_regexp": {"a": {"name": "a b!", "pattern": "a**"}}}]}"#,
    ));
    let messages: Vec<&str> = both.iter().map(|error| error.message()).collect();
    assert_eq!(
        messages,
        [
            "invalid expression name \"a b!\"",
            "invalid regular expression: a repetition is repeated: **",
        ]
    );
    refused(
        &route(r#"{"match": [{"vars_regexp": {"a": «null}}]}"#),
        &format!("{ROUTE}/match/0/vars_regexp/a"),
        "missing field \"pattern\"",
        "",
    );
}

#[test]
fn wrong_shapes_are_described_in_words_of_json() {
    for (json, pointer, message) in [
        (
            server(r#"{"listen": «":1"}"#),
            "/listen",
            "expected a list, found the string \":1\"",
        ),
        (
            server(r#"{"routes": [{"match": «{"ssh": {}}}]}"#),
            "/routes/0/match",
            "expected a list, found an object",
        ),
        (
            server(r#"{"routes": [{"match": [«["ssh"]]}]}"#),
            "/routes/0/match/0",
            "expected an object, found a list",
        ),
        (
            server(r#"{"routes": [{"match": [{"vars": {"a": «"x"}}]}]}"#),
            "/routes/0/match/0/vars/a",
            "expected a list, found the string \"x\"",
        ),
    ] {
        refused(&json, &format!("{SERVER}{pointer}"), message, "");
    }
}

#[test]
fn all_faults_of_a_file_are_reported_at_once_in_its_order() {
    let json = r#"{
  "apps": {
    "layer4": {
      "grace_period": -5,
      "servers": {
        "web": {
          "listen": ["tcp/:x", ":443"],
          "matching_timeout": "3s",
          "routes": [
            {"match": [{"shh": {}, "ssh": {"version": 2}}], "handle": [{"handler": "nope"}]},
            {"handle": [
              {"handler": "subroute", "routes": [{"match": [{"ssh": null}]}]},
              {"handler": "echo", "size": 1}
            ]}
          ]
        },
        "mail": {"listen": ["quic/:25"], "idle_timeout": "1 s"}
      }
    },
    "http": {}
  }
}"#;
    let found: Vec<String> = errors(json)
        .iter()
        .map(|e| {
            format!(
                "{}:{} {}",
                e.position().unwrap().line,
                e.position().unwrap().column,
                e.message()
            )
        })
        .collect();
    let expected = [
        "4:23 -5ns is negative",
        "7:22 parsing listener address \"tcp/:x\": invalid start port: \"x\" is not a number from 0 to 65535",
        "10:25 unknown module: layer4.matchers.shh",
        "10:44 unknown field \"version\"",
        "10:84 unknown module: layer4.handlers.nope",
        "12:69 module value cannot be null: layer4.matchers.ssh",
        "13:35 unknown field \"size\"",
        "17:29 unsupported network type: quic; the text before a slash names the network. Valid networks: tcp, tcp4, tcp6, udp, udp4, udp6, unix, unixgram, unixpacket, fd, fdgram",
        "17:58 unknown unit \" s\" in duration \"1 s\", units are ns, us, ms, s, m, h, d",
        "20:5 unknown module: http",
    ];
    assert_eq!(found, expected, "{}", Errors::from(errors(json)));
}

#[test]
fn a_faulty_field_of_a_level_does_not_hide_the_faults_of_its_siblings() {
    let json = r#"{
      "adnim": {},
      "apps": {"layer4": {"grace": "1s", "servers": {"a": {
        "idle_timeout": "soon",
        "listen": [":http"],
        "routes": [{"mtach": [], "handle": [{"handler": "ehco"}]}]
      }}}}
    }"#;
    let found = errors(json);
    let found: Vec<&str> = found.iter().map(ConfigError::pointer).collect();
    let expected = [
        "/adnim",
        "/apps/layer4/grace",
        "/apps/layer4/servers/a/idle_timeout",
        "/apps/layer4/servers/a/listen/0",
        "/apps/layer4/servers/a/routes/0/mtach",
        "/apps/layer4/servers/a/routes/0/handle/0/handler",
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_loads_is_what_was_written() {
    let json = r#"{"apps": {"layer4": {
        "grace_period": "0", "drain_timeout": "1.5d",
        "servers": {"a": {
            "listen": [":440-442", "udp/127.0.0.1:53"],
            "idle_timeout": 1000000000,
            "routes": [{"match": [{"ssh": {}}]}, {}]
        }}
    }}}"#;
    let document = Document::parse("l4.json", json.as_bytes()).unwrap();
    let app = App::load(&document, &registry())
        .app
        .unwrap_or_else(|e| panic!("{}", Errors::from(e)));
    let listens: Vec<(String, &str)> = app
        .listens
        .iter()
        .map(|listen| (listen.address.to_string(), &*listen.pointer))
        .collect();
    let (range, dns) = (
        "/apps/layer4/servers/a/listen/0",
        "/apps/layer4/servers/a/listen/1",
    );
    assert_eq!(
        listens,
        [
            (":440".to_owned(), range),
            (":441".to_owned(), range),
            (":442".to_owned(), range),
            ("udp/127.0.0.1:53".to_owned(), dns),
        ]
    );
    assert_eq!(app.grace_period.as_nanos(), 0);
    assert_eq!(app.drain_timeout.map(|t| t.as_secs()), Some(36 * 3600));
    let server = &app.listens[0].server;
    assert_eq!((server.name(), server.program().len()), ("a", 2));
    assert_eq!(server.idle_timeout().as_secs(), 1);
    assert_eq!(server.program().matching_timeout().as_secs(), 3);
}

#[test]
fn nothing_configured_is_nothing_to_do() {
    for json in [
        "null",
        "{}",
        r#"{"apps": null}"#,
        r#"{"apps": {"layer4": {}}}"#,
        r#"{"apps": {"layer4": {"servers": {"a": null}}}}"#,
    ] {
        let document = Document::parse("l4.json", json.as_bytes()).unwrap();
        let app = App::load(&document, &registry())
            .app
            .unwrap_or_else(|e| panic!("{}", Errors::from(e)));
        assert!(app.listens.is_empty());
        assert_eq!((app.grace_period.as_secs(), app.drain_timeout), (5, None));
    }
}

/// Messages and pointers of the warnings.
fn warned(json: &str) -> Vec<(String, String)> {
    let warnings = warnings(json);
    warnings
        .iter()
        .map(|w| (w.pointer().to_owned(), w.message().to_owned()))
        .collect()
}

#[test]
fn routes_behind_one_that_keeps_everything_are_warned_about() {
    let echo = r#"{"handle": [{"handler": "echo"}]}"#;
    let gate = r#"{"handle": [{"handler": "vars", "x": 1}]}"#;
    let ssh = r#"{"match": [{"ssh": {}}], "handle": [{"handler": "echo"}]}"#;
    let routes = |routes: &[&str]| server(&format!(r#"{{"routes": [{}]}}"#, routes.join(",")));
    let message =
        |by: usize| format!("this route can never be reached: route {by} takes everything");
    assert_eq!(
        warned(&routes(&[ssh, echo, ssh, gate])),
        [
            (format!("{SERVER}/routes/2"), message(1)),
            (format!("{SERVER}/routes/3"), message(1)),
        ]
    );
    assert_eq!(warned(&routes(&[gate, ssh, gate, echo])), []);
    let subroute =
        format!(r#"{{"handle": [{{"handler": "subroute", "routes": [{echo}, {ssh}]}}]}}"#);
    assert_eq!(
        warned(&routes(&[&subroute])),
        [(format!("{SERVER}/routes/0/handle/0/routes/1"), message(0))]
    );
}

#[test]
fn a_catch_all_that_a_silent_client_reaches_late_is_warned_about_on_ports_where_servers_speak_first()
 {
    let listening = |address: &str, routes: &str| {
        server(&format!(
            r#"{{"listen": [{address:?}], "matching_timeout": "2s", "routes": [{routes}]}}"#
        ))
    };
    let late = r#"{"match": [{"ssh": {}}]}, {"handle": [{"handler": "echo"}]}"#;
    let gated = r#"{"handle": [{"handler": "vars", "x": 1}]}, {"match": [{"ssh": {}}]}, {"handle": [{"handler": "echo"}]}"#;
    let at_once =
        r#"{"match": [{"remote_ip": {"ranges": ["::1"]}}]}, {"handle": [{"handler": "echo"}]}"#;
    for port in [21, 25, 110, 143, 587, 3306] {
        for (routes, by) in [(late, 1), (gated, 2)] {
            assert_eq!(
                warned(&listening(&format!(":{port}"), routes)),
                [(
                    format!("{SERVER}/listen/0"),
                    format!(
                        "on port {port} the server speaks first: a client that waits for it reaches route {by} only \
                         after matching_timeout (2s)"
                    )
                )]
            );
        }
    }
    for (address, routes) in [
        (":25", at_once),
        (":25", r#"{"match": [{"ssh": {}}]}"#),
        (":443", late),
        ("udp/:25", late),
    ] {
        assert_eq!(
            warned(&listening(address, routes)),
            [],
            "{address} {routes}"
        );
    }
}

#[test]
fn a_handler_for_streams_is_refused_on_a_server_for_datagrams_only() {
    let help = "listen on an address for streams, such as \":443\", or leave the handler out";
    let message = "end_tls needs a stream, and this server listens on datagrams only";
    for (route, place) in [
        (r#"{"handle": [{"handler": «"end_tls"}]}"#, ""),
        // What a condition on bytes lets through are datagrams all the same.
        (
            r#"{"match": [{"tls": {}}], "handle": [{"handler": "vars"}, {"handler": «"end_tls"}]}"#,
            "",
        ),
        (
            r#"{"handle": [{"handler": "subroute", "routes": [{"handle": [{"handler": «"end_tls"}]}]}]}"#,
            "/routes/0/handle/0",
        ),
    ] {
        let handler = if route.contains("vars") { 1 } else { 0 };
        for listen in [
            r#""udp/:443""#,
            r#""unixgram//run/a.sock""#,
            r#""udp/:443-450", "fdgram/3""#,
        ] {
            refused(
                &server(&format!(r#"{{"listen": [{listen}], "routes": [{route}]}}"#)),
                &format!("{ROUTE}/handle/{handler}{place}/handler"),
                message,
                help,
            );
        }
        for listen in [
            "",
            r#"":443""#,
            r#""unix//run/a.sock", "unixpacket//run/b""#,
        ] {
            let json = server(&format!(r#"{{"listen": [{listen}], "routes": [{route}]}}"#));
            assert_eq!(warned(&json.replace('«', "")), [], "{listen} {route}");
        }
    }
}

#[test]
fn a_handler_for_streams_that_datagrams_reach_unasked_is_warned_about() {
    let both = |routes: &str| {
        server(&format!(
            r#"{{"listen": [":443", "udp/:443"], "routes": [{routes}]}}"#
        ))
    };
    let inside = r#"{"handler": "subroute", "routes": [{"handle": [{"handler": "end_tls"}]}]}"#;
    let message = "end_tls needs a stream, and datagrams to udp/:443 come here, too: give that address a server of its \
                   own, or this route a condition that they do not meet";
    for route in [
        r#"{"handle": [{"handler": "end_tls"}]}"#,
        // Addresses do not tell datagrams from streams.
        r#"{"match": [{"tls": {}}, {"remote_ip": {"ranges": ["::/0"]}}], "handle": [{"handler": "end_tls"}]}"#,
    ] {
        assert_eq!(
            warned(&both(route)),
            [(format!("{ROUTE}/handle/0/handler"), message.to_owned())]
        );
    }
    assert_eq!(
        warned(&both(&format!(r#"{{"handle": [{inside}]}}"#))),
        [(
            format!("{ROUTE}/handle/0/routes/0/handle/0/handler"),
            message.to_owned()
        )]
    );
    // Behind what only a stream holds.
    for handle in [r#"{"handler": "end_tls"}"#, inside] {
        let route = format!(r#"{{"match": [{{"tls": {{}}}}], "handle": [{handle}]}}"#);
        assert_eq!(warned(&both(&route)), []);
    }
    // What is behind a condition is over at the end of its route.
    let later = r#"{"match": [{"ssh": {}}], "handle": [{"handler": "vars"}]}, {"handle": [{"handler": "end_tls"}]}"#;
    assert_eq!(warned(&both(later)).len(), 1);
}

#[test]
fn other_warnings_name_their_place() {
    assert_eq!(
        warned(&route(
            r#"{"handle": [{"handler": "respond", "body": "{nope} {l4.vars.x} {env.HOME}"}]}"#
        )),
        [(
            format!("{ROUTE}/handle/0/body"),
            "unknown placeholder {nope} is always empty; write \\{ for a literal brace".to_owned()
        )]
    );
    assert_eq!(
        warned(&server(r#"{"listen": ["localhost"]}"#)),
        [(
            format!("{SERVER}/listen/0"),
            "\"localhost\" has no port: a random one will be used".to_owned()
        )]
    );
}

#[test]
fn a_name_that_is_registered_twice_is_a_conflict() {
    let mut registry = registry();
    registry.matcher::<support::Ssh>();
    let [conflict] = registry.conflicts() else {
        panic!("one conflict, got {:?}", registry.conflicts())
    };
    assert!(conflict.contains("layer4.matchers.ssh"), "{conflict}");
}
