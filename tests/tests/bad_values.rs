//! Values that are of the right type and still impossible, for the fields of every module, and files that are not there:
//! each is refused at load with its place, the value and what would be right.

#![allow(clippy::unwrap_used)]

use e2e::{config, run_with};
use serde_json::{Value, json};

/// A piece of configuration, what its JSON pointer ends in, and what the message says.
type Row = (Value, &'static str, &'static str);

/// Routes with one matcher set.
fn matching(set: &Value) -> Value {
    json!([{"match": [set], "handle": [{"handler": "echo"}]}])
}

/// Routes with one handler.
fn handling(handler: &Value) -> Value {
    json!([{"handle": [handler]}])
}

fn server(routes: &Value) -> Value {
    config(json!({"a": {"listen": ["127.0.0.1:1"], "routes": routes}}))
}

fn check(config: &Value, (piece, at, says): &Row) {
    let text = config.to_string();
    let finished = run_with(&["validate", "--config", "-"], |_| {}, text.as_bytes());
    let said = &finished.stderr;
    assert_eq!(finished.code, Some(1), "{piece}: {said}");
    assert!(said.contains("--> stdin:1:"), "{piece}: {said}");
    let mut places = said
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("= at: "));
    assert!(places.any(|place| place.ends_with(at)), "{piece}: {said}");
    assert!(said.contains(says), "{piece}: no {says:?} in {said}");
    assert!(!said.contains("panicked"), "{piece}: {said}");
}

#[test]
fn values_that_matchers_cannot_take() {
    let http = |set: Value| json!({"http": [set]});
    let tls = |name: &str, value: Value| json!({"tls": {name: value}});
    let rows: Vec<Row> = vec![
        (json!({"none such": {}}), "/none such", "this build has: "),
        (
            json!({"remote_ip": {"ranges": ["10.0.0.0/33"]}}),
            "/ranges/0",
            "10.0.0.0/33",
        ),
        (
            json!({"ip": {"ranges": ["localhost"]}}),
            "/ranges/0",
            "localhost",
        ),
        (
            json!({"local_ip": {"ranges": ["10.0.0"]}}),
            "/ranges/0",
            "10.0.0",
        ),
        (
            json!({"not": [{"remote_ip": {"ranges": ["::/129"]}}]}),
            "/ranges/0",
            "::/129",
        ),
        (json!({"regexp": {"pattern": "("}}), "/pattern", "("),
        (
            json!({"regexp": {"pattern": "a", "count": 1_000_000}}),
            "/count",
            "1000000",
        ),
        (
            json!({"vars_regexp": {"a": {"pattern": "(?P<"}}}),
            "/pattern",
            "(?P<",
        ),
        (
            json!({"clock": {"after": "25:00:00"}}),
            "/after",
            "25:00:00",
        ),
        (json!({"clock": {"before": "noon"}}), "/before", "noon"),
        (
            json!({"clock": {"timezone": "Mars/Olympus"}}),
            "/timezone",
            "Mars/Olympus",
        ),
        (
            json!({"socks4": {"commands": ["CONECT"]}}),
            "/commands/0",
            "CONECT",
        ),
        (
            json!({"socks4": {"networks": ["1.2.3.4/40"]}}),
            "/networks/0",
            "1.2.3.4/40",
        ),
        (json!({"socks4": {"ports": [70_000]}}), "/ports/0", "70000"),
        (json!({"postgres": {"tls": "maybe"}}), "/tls", "maybe"),
        (tls("sni_regexp", json!({"pattern": "["})), "/pattern", "["),
        (
            tls("remote_ip", json!({"ranges": ["1.2.3.4/99"]})),
            "/ranges/0",
            "1.2.3.4/99",
        ),
        (tls("local_ip", json!({"ranges": ["x"]})), "/ranges/0", "x"),
        (
            tls("none such", json!([])),
            "/none such",
            "this build has: ",
        ),
        (
            http(json!({"host": ["a.example", "A.example"]})),
            "/host/1",
            "A.example",
        ),
        (
            http(json!({"path_regexp": {"pattern": "*"}})),
            "/pattern",
            "*",
        ),
        (
            http(json!({"header_regexp": {"Host": {"pattern": ")"}}})),
            "/pattern",
            ")",
        ),
        (
            http(json!({"vars_regexp": {"a": {"pattern": "a{2,1}"}}})),
            "/pattern",
            "a{2,1}",
        ),
        (
            http(json!({"remote_ip": {"ranges": ["a/8"]}})),
            "/ranges/0",
            "a/8",
        ),
        (
            http(json!({"client_ip": {"ranges": ["fe80::/200"]}})),
            "/ranges/0",
            "fe80::/200",
        ),
        (
            http(json!({"expression": "true"})),
            "/expression",
            "out of scope",
        ),
        (http(json!({"file": {}})), "/file", "out of scope"),
    ];
    for row in rows {
        check(&server(&matching(&row.0)), &row);
    }
}

#[test]
fn values_that_handlers_cannot_take() {
    let upstream = |upstream: Value| json!({"handler": "proxy", "upstreams": [upstream]});
    let proxy = |name: &str, value: Value| json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"]}], name: value});
    let active =
        |name: &str, value: Value| proxy("health_checks", json!({"active": {name: value}}));
    let policy = |value: Value| json!({"handler": "tls", "connection_policies": [value]});
    let upstream_tls = |value: Value| upstream(json!({"dial": ["127.0.0.1:1"], "tls": value}));
    let rows: Vec<Row> = vec![
        (
            json!({"handler": "none such"}),
            "/handler",
            "this build has: ",
        ),
        (
            json!({"handler": "proxy", "upstreams": []}),
            "/upstreams",
            "no upstreams",
        ),
        (upstream(json!({"dial": []})), "/dial", "dial"),
        (
            upstream(json!({"dial": ["127.0.0.1"]})),
            "/dial/0",
            "port 0",
        ),
        (
            upstream(json!({"dial": ["127.0.0.1:70000"]})),
            "/dial/0",
            "70000",
        ),
        (
            upstream(json!({"dial": ["127.0.0.1:1-2"]})),
            "/dial/0",
            "port ranges are currently not supported",
        ),
        (
            upstream(json!({"dial": ["tpc/127.0.0.1:1"]})),
            "/dial/0",
            "did you mean tcp",
        ),
        (
            upstream(json!({"dial": ["a:1"], "max_connections": -1})),
            "/max_connections",
            "-1",
        ),
        (
            upstream(json!({"dial": ["unix//x"], "local_address": ["127.0.0.1"]})),
            "/dial/0",
            "Unix socket",
        ),
        (
            upstream(json!({"dial": ["a:1"], "resolver_preference": "ipv5_only"})),
            "/resolver_preference",
            "ipv4_only",
        ),
        (
            upstream(
                json!({"dial": ["a:1"], "resolver_preference": "ipv6_only", "local_address": ["127.0.0.1"]}),
            ),
            "/resolver_preference",
            "wrong family",
        ),
        (proxy("dial_timeout", json!("-1s")), "/dial_timeout", "-1s"),
        (
            proxy("proxy_protocol", json!("v3")),
            "/proxy_protocol",
            "v1",
        ),
        (
            proxy("load_balancing", json!({"selection": {"policy": "best"}})),
            "/policy",
            "best",
        ),
        (
            proxy(
                "load_balancing",
                json!({"selection": {"policy": "random_choose", "choose": 1}}),
            ),
            "/choose",
            "at least 2",
        ),
        (
            proxy("load_balancing", json!({"try_interval": "-1s"})),
            "/try_interval",
            "-1s",
        ),
        (active("port", json!(70_000)), "/port", "70000"),
        (active("interval", json!("-1s")), "/interval", "-1s"),
        (active("timeout", json!("-1s")), "/timeout", "-1s"),
        (
            upstream_tls(json!({"curves": ["secp256k1"]})),
            "/curves/0",
            "secp256k1",
        ),
        (
            upstream_tls(json!({"renegotiation": "often"})),
            "/renegotiation",
            "often",
        ),
        (
            upstream_tls(json!({"ca": {"provider": "file", "pem_files": ["/none/such.pem"]}})),
            "/pem_files/0",
            "/none/such.pem",
        ),
        (
            upstream_tls(json!({"ca": {"provider": "nobody"}})),
            "/provider",
            "nobody",
        ),
        (
            upstream_tls(json!({"root_ca_pool": ["!"]})),
            "/root_ca_pool/0",
            "parsing",
        ),
        (
            upstream_tls(json!({"client_certificate_file": "/none/such.pem"})),
            "/client_certificate_file",
            "client_certificate_key_file",
        ),
        (policy(json!({"curves": ["x448"]})), "/curves/0", "x448"),
        (
            policy(json!({"cipher_suites": ["TLS_RSA_WITH_RC4_128_SHA"]})),
            "/cipher_suites/0",
            "unsupported cipher suite",
        ),
        (
            policy(json!({"protocol_min": "tls1.1"})),
            "/protocol_min",
            "tls1.1",
        ),
        (
            policy(json!({"protocol_min": "tls1.3", "protocol_max": "tls1.2"})),
            "",
            "cannot be greater",
        ),
        (policy(json!({"alpn": [""]})), "/alpn/0", "1 to 255"),
        (
            policy(json!({"client_authentication": {"mode": "sometimes"}})),
            "/mode",
            "sometimes",
        ),
        (
            policy(
                json!({"client_authentication": {"verifiers": [{"verifier": "leaf", "leaf_certs_loaders": [
                {"loader": "file", "files": ["/none/such.pem"]}]}]}}),
            ),
            "/files/0",
            "/none/such.pem",
        ),
        (
            policy(
                json!({"client_authentication": {"trusted_ca_certs": ["x"], "ca": {"provider": "system"}}}),
            ),
            "/ca",
            "conflicting config",
        ),
        (
            policy(json!({"certificate_selection": {"public_key_algorithm": "dh"}})),
            "/public_key_algorithm",
            "dh",
        ),
        (
            policy(json!({"certificate_selection": {"serial_number": ["0x1"]}})),
            "/serial_number/0",
            "0x1",
        ),
        (
            json!({"handler": "throttle", "read_bytes_per_second": -1.0}),
            "/read_bytes_per_second",
            "at least 0",
        ),
        (
            json!({"handler": "throttle", "read_burst_size": -1}),
            "/read_burst_size",
            "-1",
        ),
        (
            json!({"handler": "throttle", "total_read_bytes_per_second": -2.0}),
            "/total_read_bytes_per_second",
            "at least 0",
        ),
        (
            json!({"handler": "throttle", "total_read_burst_size": -1}),
            "/total_read_burst_size",
            "-1",
        ),
        (
            json!({"handler": "tee", "branch": [{"handler": "none such"}]}),
            "/handler",
            "this build has: ",
        ),
        (
            json!({"handler": "subroute", "routes": [{"match": [{"none such": 1}]}]}),
            "/none such",
            "this build has: ",
        ),
        (
            json!({"handler": "proxy_protocol", "allow": ["10.0.0.0/40"]}),
            "/allow/0",
            "10.0.0.0/40",
        ),
        (
            json!({"handler": "proxy_protocol", "deny": ["nobody"]}),
            "/deny/0",
            "nobody",
        ),
        (
            json!({"handler": "proxy_protocol", "fallback_policy": "MAYBE"}),
            "/fallback_policy",
            "REQUIRE",
        ),
        (
            json!({"handler": "socks5", "commands": ["LISTEN"]}),
            "/commands/0",
            "CONNECT",
        ),
        (
            json!({"handler": "socks5", "bind_ip": "localhost"}),
            "/bind_ip",
            "localhost",
        ),
        (
            json!({"handler": "socks5", "timeout": "soon"}),
            "/timeout",
            "soon",
        ),
        (
            json!({"handler": "postgres_tls", "timeout": "-1s"}),
            "/timeout",
            "-1s",
        ),
    ];
    for row in rows {
        check(&server(&handling(&row.0)), &row);
    }
}

#[test]
fn values_that_applications_cannot_take() {
    let certificates = |value: Value| json!({"apps": {"tls": {"certificates": value}}});
    let automation = |value: Value| json!({"apps": {"tls": {"automation": value}}});
    let policy = |value: Value| automation(json!({"policies": [value]}));
    let authority =
        |value: Value| json!({"apps": {"pki": {"certificate_authorities": {"local": value}}}});
    let missing = json!({"certificate": "/none/such.pem", "key": "/none/such.key"});
    let rows: Vec<Row> = vec![
        (
            certificates(json!({"load_files": [missing]})),
            "/certificate",
            "/none/such.pem",
        ),
        (
            certificates(
                json!({"load_files": [{"certificate": "/dev/null", "key": "/dev/null", "format": "der"}]}),
            ),
            "/format",
            "der",
        ),
        (
            certificates(json!({"load_folders": ["/none/such"]})),
            "/load_folders/0",
            "/none/such",
        ),
        (
            certificates(json!({"load_pem": [{"certificate": "x", "key": "y"}]})),
            "/load_pem/0/certificate",
            "certificate",
        ),
        (
            certificates(json!({"automate": ["shop.example.com"]})),
            "/automate/0",
            "not in this build yet",
        ),
        (
            certificates(json!({"automate": ["a b"]})),
            "/automate/0",
            "a b",
        ),
        (
            policy(json!({"issuers": [{"module": "acme"}]})),
            "/module",
            "not in this build yet",
        ),
        (
            policy(json!({"key_type": "dsa"})),
            "/key_type",
            "unrecognized key type: dsa",
        ),
        (
            policy(json!({"renewal_window_ratio": 2})),
            "/renewal_window_ratio",
            "2",
        ),
        (
            policy(json!({"issuers": [{"module": "internal", "ca": "other"}]})),
            "/ca",
            "other",
        ),
        (
            automation(json!({"policies": [{}, {}]})),
            "/policies/1",
            "catch-all",
        ),
        (
            automation(json!({"renew_interval": "1ms"})),
            "/renew_interval",
            "1ms",
        ),
        (
            authority(json!({"intermediate_lifetime": "4000d"})),
            "/intermediate_lifetime",
            "must be less",
        ),
        (
            authority(json!({"root": {"certificate": "/none/such.crt"}})),
            "/root/certificate",
            "/none/such.crt",
        ),
        (json!({"storage": {"module": "etcd"}}), "/module", "etcd"),
    ];
    for row in rows {
        check(&row.0, &row);
    }
}

#[test]
fn values_that_servers_cannot_take() {
    let rows: Vec<Row> = vec![
        (json!({"listen": ["127.0.0.1:99999"]}), "/listen/0", "99999"),
        (json!({"listen": ["127.0.0.1:9-8"]}), "/listen/0", "9-8"),
        (
            json!({"listen": ["tpc/:1"]}),
            "/listen/0",
            "did you mean tcp",
        ),
        (
            json!({"listen": [":1"], "matching_timeout": "1 s"}),
            "/matching_timeout",
            "1 s",
        ),
        (
            json!({"listen": ["udp/:1"], "routes": [{"handle": [{"handler": "socks5"}]}]}),
            "/handle/0/handler",
            "needs a stream",
        ),
        (
            json!({"listen": ["udp/:1"], "routes": [{"handle": [{"handler": "postgres_tls"}]}]}),
            "/handle/0/handler",
            "needs a stream",
        ),
    ];
    for row in rows {
        check(&config(json!({"a": row.0})), &row);
    }
}
