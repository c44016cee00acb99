//! Routing seen from outside: real sockets, real segments, real upstreams.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use e2e::{
    Backend, Conncept, PATIENCE, ask, client_hello, config, connect, drain, echo, echoes,
    eventually, loopback, pause, responder,
};
use serde_json::{Value, json};

/// Routes by protocol to texts that name the route.
fn sorting_office(ip: Ipv4Addr) -> Value {
    let to = |text: &str| json!([{"handler": "respond", "body": text}]);
    config(json!({"a": {
        "listen": [format!("{ip}:443")],
        "matching_timeout": "60s",
        "routes": [
            {"match": [{"tls": {"sni": ["one.example"]}}], "handle": to("one")},
            {"match": [{"tls": {"sni": ["*.two.example"], "alpn": ["h2"]}}], "handle": to("two")},
            {"match": [{"tls": {}}], "handle": to("tls")},
            {"match": [{"http": [{"host": ["web.example"]}]}], "handle": to("web")},
            {"match": [{"http": []}], "handle": to("http")},
            {"match": [{"ssh": {}}], "handle": to("ssh")},
            {"handle": to("rest")},
        ],
    }}))
}

/// First flights and the routes they belong to.
fn flights() -> Vec<(Vec<u8>, &'static str)> {
    vec![
        (client_hello("one.example", &["h2"]), "one"),
        (client_hello("ONE.example", &[]), "one"),
        (client_hello("www.two.example", &["h2", "http/1.1"]), "two"),
        (client_hello("www.two.example", &["http/1.1"]), "tls"),
        (client_hello("three.example", &["h2"]), "tls"),
        (
            b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n".to_vec(),
            "web",
        ),
        (
            b"POST /x HTTP/1.0\r\nHost: other.example\r\n\r\n".to_vec(),
            "http",
        ),
        (b"SSH-2.0-x\r\n".to_vec(), "ssh"),
        (b"\0\x01\x02".to_vec(), "rest"),
        (b"hello\n".to_vec(), "rest"),
    ]
}

#[test]
fn the_first_bytes_choose_the_route() {
    let ip = loopback();
    let conncept = Conncept::serving(&sorting_office(ip));
    for (flight, route) in flights() {
        assert_eq!(
            ask((ip, 443), &flight),
            route,
            "{:?}",
            String::from_utf8_lossy(&flight)
        );
    }
    eventually("every connection leaves a record", || {
        conncept.records().len() == flights().len()
    });
}

#[test]
fn the_same_bytes_choose_the_same_route_however_they_are_cut() {
    let ip = loopback();
    let _conncept = Conncept::serving(&sorting_office(ip));
    for (flight, route) in flights() {
        // Few segments for long flights, each byte for short ones.
        for size in [1, 5, 600]
            .into_iter()
            .filter(|size| flight.len() / size < 60)
        {
            let mut stream = connect((ip, 443));
            stream.set_nodelay(true).unwrap();
            for segment in flight.chunks(size) {
                // Who has its answer need not listen to the rest.
                if stream.write_all(segment).is_err() {
                    break;
                }
                pause(Duration::from_millis(2));
            }
            assert_eq!(drain(&mut stream), route.as_bytes(), "in pieces of {size}");
        }
    }
}

#[test]
fn what_was_read_for_matching_reaches_the_upstream_once_and_in_order() {
    let ip = loopback();
    let backend = Backend::echo();
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("{ip}:443")],
        "routes": [{"match": [{"tls": {"sni": ["up.example"]}}], "handle": [
            {"handler": "proxy", "upstreams": [{"dial": [backend.address.to_string()]}]},
        ]}],
    }})));
    let mut flight = client_hello("up.example", &["h2"]);
    flight.extend((0..2_000_000_u32).map(|n| (n % 251) as u8));
    let mut stream = connect((ip, 443));
    let mut writer = stream.try_clone().unwrap();
    let sent = flight.clone();
    let writing = thread::spawn(move || {
        let (first, rest) = sent.split_at(700);
        writer.write_all(first).unwrap();
        pause(Duration::from_millis(20));
        writer.write_all(rest).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let back = drain(&mut stream);
    writing.join().unwrap();
    assert_eq!(back.len(), flight.len());
    assert!(back == flight, "bytes were changed");
    assert_eq!(
        backend.received.load(Ordering::Relaxed),
        flight.len() as u64
    );
}

#[test]
fn a_server_that_speaks_first_is_reached_after_the_matching_timeout() {
    let ip = loopback();
    let banner = Backend::banner("220 mail.example ESMTP\r\n");
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("{ip}:25")],
        "matching_timeout": "300ms",
        "routes": [
            {"match": [{"tls": {}}], "handle": [{"handler": "close"}]},
            {"handle": [{"handler": "proxy", "upstreams": [{"dial": [banner.address.to_string()]}]}]},
        ],
    }})));
    let began = Instant::now();
    let mut stream = connect((ip, 25));
    assert_eq!(drain(&mut stream), b"220 mail.example ESMTP\r\n");
    assert!(
        began.elapsed() >= Duration::from_millis(290),
        "{:?}",
        began.elapsed()
    );
    // Nothing to wait for when no route asks for bytes, and none when the client has spoken.
    assert_eq!(ask((ip, 25), b"x"), "220 mail.example ESMTP\r\n");
}

#[test]
fn half_closed_connections_go_on_in_the_other_direction() {
    let ip = loopback();
    let backend = Backend::echo();
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("{ip}:80")],
        "routes": [{"handle": [{"handler": "proxy", "upstreams": [{"dial": [backend.address.to_string()]}]}]}],
    }})));
    assert_eq!(
        ask((ip, 80), b"all of this after the end of my stream"),
        "all of this after the end of my stream"
    );
}

#[test]
fn an_upstream_that_is_away_costs_the_connection_and_nothing_else() {
    let ip = loopback();
    let nobody: SocketAddr = (ip, 9).into();
    let conncept = Conncept::serving(&config(json!({
        "away": {"listen": [format!("{ip}:80")], "routes": [{"handle": [
            {"handler": "proxy", "upstreams": [{"dial": [nobody.to_string()]}]},
        ]}]},
        "here": echo(&format!("{ip}:7")),
    })));
    let mut stream = connect((ip, 80));
    let from = stream.local_addr().unwrap();
    assert_eq!(drain(&mut stream), b"");
    assert_eq!(conncept.record_of(from)["reason"], "dial_failed");
    echoes(&mut connect((ip, 7)), b"still here");
}

#[test]
fn conditions_on_addresses_are_decided_before_the_first_byte() {
    let ip = loopback();
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("{ip}:80")],
        "matching_timeout": "1h",
        "routes": [
            {"match": [{"remote_ip": {"ranges": ["192.0.2.0/24"]}}], "handle": [{"handler": "close"}]},
            {"match": [{"not": [{"local_ip": {"ranges": [ip.to_string()]}}]}], "handle": [{"handler": "close"}]},
            {"match": [{"remote_ip": {"ranges": ["127.0.0.0/8"]}}], "handle": [
                {"handler": "subroute", "routes": [{"handle": [{"handler": "respond", "body": "{l4.conn.local_addr}"}]}]},
            ]},
        ],
    }})));
    // Not a byte is sent.
    assert_eq!(drain(&mut connect((ip, 80))), format!("{ip}:80").as_bytes());
}

#[test]
fn a_connection_that_no_route_takes_is_closed_with_the_reason_in_its_record() {
    let ip = loopback();
    let conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("{ip}:443")],
        "matching_timeout": "200ms",
        "routes": [{"match": [{"tls": {}}], "handle": [{"handler": "echo"}]}],
    }})));
    let reason_after = |act: &dyn Fn(&mut TcpStream)| {
        let mut stream = connect((ip, 443));
        let from = stream.local_addr().unwrap();
        act(&mut stream);
        drain(&mut stream);
        conncept.record_of(from)["reason"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        reason_after(&|stream| stream.write_all(b"hello").unwrap()),
        "no_route"
    );
    assert_eq!(reason_after(&|_| {}), "match_timeout");
    assert_eq!(
        reason_after(&|stream| {
            stream.write_all(&[22, 3, 1, 0]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }),
        "match_eof"
    );
}

#[test]
fn unix_sockets_are_listened_on_and_dialled() {
    let dir = tempfile::tempdir().unwrap();
    let (front, back) = (dir.path().join("front.sock"), dir.path().join("back.sock"));
    let upstream = UnixListener::bind(&back).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = upstream.accept().unwrap();
        let mut request = [0; 4];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(&request).unwrap();
    });
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("unix/{}", front.display())],
        "routes": [{"handle": [{"handler": "proxy", "upstreams": [{"dial": [format!("unix/{}", back.display())]}]}]}],
    }})));
    let mut stream = UnixStream::connect(&front).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"ping").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ping");
}

#[test]
fn servers_and_ports_of_one_configuration_are_independent() {
    let ip = loopback();
    let _conncept = Conncept::serving(&config(json!({
        "range": responder(&format!("{ip}:4000-4004"), "range {l4.conn.local_addr}"),
        "one": responder(&format!("{ip}:4005"), "one"),
        "none": {"listen": [format!("{ip}:4006")]},
    })));
    for port in 4000..=4004 {
        assert_eq!(ask((ip, port), b""), format!("range {ip}:{port}"));
    }
    assert_eq!(ask((ip, 4005), b""), "one");
    // Without routes everything is closed.
    assert_eq!(drain(&mut connect((ip, 4006))), b"");
}
