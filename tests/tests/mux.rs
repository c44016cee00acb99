//! The main job with real programs at both ends: curl, openssl and ssh through one port to nginx and sshd. Runs the seed
//! configurations as they are in `examples/`, with only the addresses replaced.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use e2e::backends::{Backends, MUX, Ports, sh, succeed};
use e2e::{Conncept, loopback};
use serde_json::{Value, json};

const PORTS: Ports = Ports {
    http: 8080,
    https: 8443,
    ssh: 2222,
};

fn backends() -> Backends {
    Backends::start(loopback(), PORTS)
}

#[test]
fn http_and_tls_share_a_port_and_ssh_is_refused_where_no_route_takes_it() {
    let backends = backends();
    let conncept = Conncept::serving(&backends.example("mux-http-tls.json"));
    let ip = backends.ip();
    assert_eq!(backends.curl("http://MUX/"), format!("http for {ip}"));
    assert_eq!(
        backends.curl("--http1.0 -H 'Host: old.example' http://MUX/"),
        "http for old.example"
    );
    let to = format!("--insecure --resolve a.example:{MUX}:{ip} https://a.example:{MUX}/");
    assert_eq!(backends.curl(&to), "tls for a.example");
    assert_eq!(
        backends.curl(&format!("--http1.1 --tls-max 1.2 {to}")),
        "tls for a.example"
    );
    let seen = succeed(&format!(
        "openssl s_client -connect {ip}:{MUX} -servername b.example </dev/null 2>/dev/null"
    ));
    assert!(
        seen.contains("CN = backend.example"),
        "the certificate is the backend's: {seen}"
    );
    assert!(backends.ssh("echo over ssh").is_err());
    let record = conncept.log_where("ssh's record", |line| line["reason"] == "no_route");
    assert_eq!(
        (&record["route"], &record["written"]),
        (&json!("-"), &json!(0))
    );
}

#[test]
fn http_tls_and_ssh_share_a_port() {
    let backends = backends();
    let mut config = backends.example("mux-http-tls.json");
    let ssh = json!({"match": [{"ssh": {}}], "handle": [
        {"handler": "proxy", "upstreams": [{"dial": [format!("{}:{}", backends.ip(), PORTS.ssh)]}]}
    ]});
    config["apps"]["layer4"]["servers"]["example"]["routes"]
        .as_array_mut()
        .unwrap()
        .push(ssh);
    let conncept = Conncept::serving(&config);
    assert_eq!(backends.ssh("echo over ssh").unwrap(), "over ssh\n");
    assert_eq!(
        backends.curl("http://MUX/"),
        format!("http for {}", backends.ip())
    );
    // A bulk answer, and an upload, through the relay.
    let bulk = backends
        .ssh("head -c 20000000 /dev/zero | sha256sum")
        .unwrap();
    let copied = succeed("head -c 20000000 /dev/zero | sha256sum");
    assert_eq!(bulk, copied);
    assert_eq!(
        backends.ssh("head -c 20000000 /dev/zero").unwrap().len(),
        20_000_000
    );
    let routes: Vec<Value> = conncept
        .records()
        .iter()
        .map(|record| record["route"].clone())
        .collect();
    assert!(
        routes.contains(&json!("2")) && routes.contains(&json!("0")),
        "{routes:?}"
    );
}

#[test]
fn host_or_sni_chooses() {
    let backends = backends();
    let _conncept = Conncept::serving(&backends.example("mux-http-host-or-tls-sni.json"));
    let ip = backends.ip();
    assert_eq!(
        backends.curl("-H 'Host: example.com' http://MUX/"),
        "http for example.com"
    );
    assert!(
        sh(&format!(
            "curl -s -m 5 -H 'Host: other.example' http://{ip}:{MUX}/"
        ))
        .is_err()
    );
    let tls = |name: &str| format!("--insecure --resolve {name}:{MUX}:{ip} https://{name}:{MUX}/");
    assert_eq!(backends.curl(&tls("example.net")), "tls for example.net");
    assert!(sh(&format!("curl -s -m 5 {}", tls("example.org"))).is_err());
}

#[test]
fn a_subroute_is_entered_with_the_bytes_that_chose_it() {
    let backends = backends();
    let _conncept = Conncept::serving(&backends.example("mux-http-hosts-subroute.json"));
    assert_eq!(
        backends.curl("-H 'Host: example.com' http://MUX/"),
        "http for example.com"
    );
    assert!(sh(&format!("curl -s -m 5 http://{}:{MUX}/", backends.ip())).is_err());
}
