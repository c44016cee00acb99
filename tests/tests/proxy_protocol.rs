//! PROXY headers through the program: what routes, policies and upstreams make of the addresses.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};

use e2e::{
    Conncept, PATIENCE, ask, config, connect, datagrams, drain, exchange, loopback, responder,
};
use serde_json::json;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 over UDP and IPv4.
fn udp_header(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, destination) else {
        panic!("not IPv4")
    };
    [
        SIGNATURE,
        &[0x21, 0x12, 0, 12],
        &source.ip().octets(),
        &destination.ip().octets(),
        &source.port().to_be_bytes(),
        &destination.port().to_be_bytes(),
    ]
    .concat()
}

#[test]
fn every_datagram_says_which_of_our_addresses_it_was_sent_to() {
    let (asked, behind) = (loopback(), loopback());
    let upstream = UdpSocket::bind((behind, 53)).unwrap();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    let conncept = Conncept::serving(&config(json!({"udp": {
        "listen": ["udp/0.0.0.0:0"],
        "routes": [{"handle": [
            {"handler": "proxy", "proxy_protocol": "v2", "upstreams": [{"dial": [format!("udp/{behind}:53")]}]},
        ]}],
    }})));
    let asked = SocketAddr::from((asked, conncept.listening()[0].port()));
    let client = datagrams(asked);
    let mut buf = [0; 1024];
    for datagram in [&b"one"[..], b"", b"three"] {
        client.send(datagram).unwrap();
        let (n, from) = upstream.recv_from(&mut buf).unwrap();
        let header = udp_header(client.local_addr().unwrap(), asked);
        assert_eq!(buf[..n], [&header, datagram].concat());
        upstream.send_to(b"answer", from).unwrap();
        let n = client.recv(&mut buf).unwrap();
        assert_eq!(&buf[..n], b"answer", "nothing is put in front of answers");
    }
}

#[test]
fn r9_datagrams_pass_two_routers_and_keep_their_client() {
    let (outer, inner) = (loopback(), loopback());
    let _conncept = Conncept::serving(&config(json!({
        "outer": {"listen": [format!("udp/{outer}:1")], "routes": [{"handle": [
            {"handler": "proxy", "proxy_protocol": "v2", "upstreams": [{"dial": [format!("udp/{inner}:2")]}]},
        ]}]},
        "inner": {"listen": [format!("udp/{inner}:2")], "routes": [{"handle": [
            {"handler": "proxy_protocol", "fallback_policy": "REQUIRE"},
            {"handler": "subroute", "routes": [
                {"match": [{"regexp": {"pattern": "^who\\?"}}],
                 "handle": [{"handler": "respond", "body": "{l4.proxy_protocol.remote_addr} {l4.proxy_protocol.local_addr}"}]},
                {"handle": [{"handler": "echo"}]},
            ]},
        ]}]},
    })));
    let client = datagrams((outer, 1));
    for datagram in ["the first", "the second", "the third"] {
        assert_eq!(exchange(&client, datagram.as_bytes()), datagram);
    }
    let client = datagrams((outer, 1));
    let expected = format!("{} {outer}:1", client.local_addr().unwrap());
    assert_eq!(exchange(&client, b"who?"), expected);
}

#[test]
fn the_client_that_a_header_names_is_the_one_that_is_routed_and_balanced() {
    let ip = loopback();
    let _conncept = Conncept::serving(&config(json!({
        "front": {"listen": [format!("{ip}:1")], "routes": [
            {"handle": [{"handler": "proxy_protocol", "allow": ["127.0.0.0/8"], "fallback_policy": "REJECT"}]},
            {"match": [{"remote_ip": {"ranges": ["203.0.113.0/24"]}}], "handle": [{"handler": "respond", "body": "blocked"}]},
            {"match": [{"local_ip": {"ranges": ["198.51.100.2"]}}], "handle": [
                {"handler": "proxy", "proxy_protocol": "v1", "upstreams": [{"dial": [format!("{ip}:3")]}]},
            ]},
            {"handle": [{"handler": "proxy",
                "load_balancing": {"selection": {"policy": "ip_hash"}},
                "upstreams": [{"dial": [format!("{ip}:4")]}, {"dial": [format!("{ip}:5")]}],
            }]},
        ]},
        "told": {"listen": [format!("{ip}:3")], "routes": [{"handle": [{"handler": "echo"}]}]},
        "one": responder(&format!("{ip}:4"), "one"),
        "two": responder(&format!("{ip}:5"), "two"),
    })));
    let from = |client: &str, to: &str| {
        ask(
            (ip, 1),
            format!("PROXY TCP4 {client} {to} 5 6\r\nx").as_bytes(),
        )
    };
    assert_eq!(from("203.0.113.9", "198.51.100.1"), "blocked");
    assert_eq!(
        from("192.0.2.1", "198.51.100.2"),
        "PROXY TCP4 192.0.2.1 198.51.100.2 5 6\r\nx",
        "the header that is sent names the client of the one that came"
    );
    let mut chosen = BTreeSet::new();
    for i in 0..64 {
        // The hash tells neighbours hardly apart.
        let client = format!("{}.{}.{i}.{}", 20 + i, 3 * i, 250 - i);
        let upstream = from(&client, "198.51.100.1");
        assert_eq!(
            from(&client, "198.51.100.1"),
            upstream,
            "the same client again"
        );
        chosen.insert(upstream);
    }
    assert_eq!(chosen.len(), 2, "{chosen:?}");
}

#[test]
fn conditions_of_tls_see_the_client_that_a_header_names() {
    let ip = loopback();
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(file("cert"), made.cert.pem()).unwrap();
    std::fs::write(file("key"), made.signing_key.serialize_pem()).unwrap();
    let mut config = config(
        json!({"tls": {"listen": [format!("{ip}:443")], "routes": [{"handle": [
            {"handler": "proxy_protocol"},
            {"handler": "subroute", "routes": [
                {"match": [{"tls": {"remote_ip": {"ranges": ["203.0.113.9"]}}}], "handle": [{"handler": "respond", "body": "seen"}]},
                {"handle": [
                    {"handler": "tls", "connection_policies": [{"match": {"remote_ip": {"ranges": ["203.0.113.8"]}}}]},
                    {"handler": "echo"},
                ]},
            ]},
        ]}]}}),
    );
    config["apps"]["tls"] = json!({"certificates": {"load_files": [{"certificate": file("cert"), "key": file("key")}]}});
    let conncept = Conncept::serving_with(&config, &["--log-level", "debug"]);
    let hello = e2e::client_hello("a.example", &[]);
    let from = |client: &str| {
        let header = format!("PROXY TCP4 {client} 198.51.100.1 5 6\r\n").into_bytes();
        let mut stream = connect((ip, 443));
        std::io::Write::write_all(&mut stream, &[&header[..], &hello].concat()).unwrap();
        std::net::TcpStream::shutdown(&stream, std::net::Shutdown::Write).unwrap();
        (drain(&mut stream), stream.local_addr().unwrap().to_string())
    };
    assert_eq!(from("203.0.113.9").0, b"seen");
    // The bytes are a hello and no handshake, so both fail; only one of them for want of a policy.
    let error = |client: &str| {
        let (_, socket) = from(client);
        let failed = conncept.log_where("the handshake failed", |line| {
            line["msg"] == "handling connection" && line["remote"] == socket
        });
        failed["error"].as_str().unwrap().to_owned()
    };
    assert!(!error("203.0.113.8").contains("no connection policy"));
    assert!(error("203.0.113.7").contains("no connection policy"));
}
