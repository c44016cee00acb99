//! Datagrams: sessions by peer, answers from the address that was asked, bounded lives.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;

use e2e::{
    Conncept, PATIENCE, Signal, config, datagrams, echo, eventually, exchange, loopback, responder,
    try_exchange,
};
use serde_json::{Value, json};

fn proxy(listen: &str, to: &UdpSocket) -> Value {
    let dial = format!("udp/{}", to.local_addr().unwrap());
    json!({"listen": [listen], "idle_timeout": "60s", "routes": [{"handle": [
        {"handler": "proxy", "upstreams": [{"dial": [dial]}]},
    ]}]})
}

/// A datagram server that answers with the number of datagrams it got from the same peer before.
fn counting_backend() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.try_clone().unwrap();
    thread::spawn(move || {
        let mut seen = std::collections::HashMap::new();
        let mut buf = [0; 65_536];
        while let Ok((_, peer)) = server.recv_from(&mut buf) {
            let count = seen.entry(peer).or_insert(0);
            server.send_to(count.to_string().as_bytes(), peer).unwrap();
            *count += 1;
        }
    });
    socket
}

#[test]
fn every_peer_has_a_session_of_its_own() {
    let ip = loopback();
    let backend = counting_backend();
    let conncept = Conncept::serving(&config(
        json!({"a": proxy(&format!("udp/{ip}:53"), &backend)}),
    ));
    let peers: Vec<UdpSocket> = (0..8).map(|_| datagrams((ip, 53))).collect();
    for round in 0..5 {
        for peer in &peers {
            assert_eq!(exchange(peer, b"x"), round.to_string());
        }
    }
    assert_eq!(conncept.records().len(), 0, "sessions ended early");
}

#[test]
fn a_silent_session_ends_and_the_next_datagram_begins_another() {
    let ip = loopback();
    let backend = counting_backend();
    let mut server = proxy(&format!("udp/{ip}:53"), &backend);
    server["idle_timeout"] = json!("300ms");
    let conncept = Conncept::serving(&config(json!({"a": server})));
    let peer = datagrams((ip, 53));
    assert_eq!(exchange(&peer, b"x"), "0");
    assert_eq!(exchange(&peer, b"x"), "1");
    let record = conncept.record_of(peer.local_addr().unwrap());
    assert_eq!(record["network"], "udp");
    assert!(record["duration_ms"].as_f64().unwrap() >= 250.0, "{record}");
    // A new session dials anew, so the backend sees another peer.
    assert_eq!(exchange(&peer, b"x"), "0");
}

#[test]
fn answers_come_from_the_address_that_was_asked() {
    let [first, second]: [Ipv4Addr; 2] = [loopback(), loopback()];
    // One socket for all addresses of the machine, on a port of its own.
    let conncept = Conncept::serving(&config(json!({"a": echo("udp/:0")})));
    let port = conncept.listening()[0].port();
    for ip in [first, second] {
        // A connected socket takes answers from this very address only.
        assert_eq!(exchange(&datagrams((ip, port)), b"who?"), "who?");
    }
}

/// How many UDP sockets of this machine are bound to this address.
fn sockets_at(ip: Ipv4Addr, port: u16) -> usize {
    // Clients, which are connected to it, have it in the next column.
    let address = format!(" {:08X}:{port:04X} 00000000:", ip.to_bits().swap_bytes());
    let look = || {
        let table = std::fs::read_to_string("/proc/net/udp").unwrap();
        table.lines().filter(|row| row.contains(&address)).count()
    };
    // The table comes in pieces: what others open or close meanwhile can hide some, or show them twice.
    let mut seen = look();
    loop {
        let again = look();
        if again == seen {
            return seen;
        }
        seen = again;
    }
}

#[test]
fn with_shards_sessions_are_spread_over_sockets_and_go_on_over_reloads() {
    let ip = loopback();
    let backend = counting_backend();
    let echo_at = format!("udp/{ip}:7");
    let servers = |round: usize| {
        let mut servers = json!({
            "proxy": proxy(&format!("udp/{ip}:53"), &backend),
            "other": responder(&format!("{ip}:80"), &round.to_string()),
        });
        if round.is_multiple_of(2) {
            servers["echo"] = echo(&echo_at);
        }
        let mut settings = config(servers);
        settings["apps"]["layer4"]["grace_period"] = json!("100ms");
        settings
    };
    let mut conncept = Conncept::serving_with(&servers(0), &["--shards", "3"]);
    assert_eq!((sockets_at(ip, 53), sockets_at(ip, 7)), (3, 3));
    let peers: Vec<_> = (0..30).map(|_| datagrams((ip, 53))).collect();
    let leaving = datagrams((ip, 7));
    assert_eq!(exchange(&leaving, b"before"), "before");
    for round in 0..6 {
        for peer in &peers {
            // To the backend each is one peer, whatever is reloaded.
            assert_eq!(exchange(peer, b"x"), round.to_string());
        }
        // The address goes and comes back, and has a session all the time.
        assert_eq!(
            conncept.reload(&servers(round + 1).to_string()),
            e2e::Reload::Done
        );
        assert_eq!(exchange(&leaving, b"still there"), "still there");
        assert_eq!((sockets_at(ip, 53), sockets_at(ip, 7)), (3, 3));
    }
    // The tasks of all threads are counted.
    let logs = conncept.logs();
    let tasks = logs.iter().rev().find_map(|line| line["tasks"].as_u64());
    assert!(tasks > Some(30), "{tasks:?}");
    assert_eq!(conncept.records().len(), 0, "sessions ended early");
    conncept.signal(Signal::TERM);
    assert_eq!(conncept.wait().code(), Some(0));
    assert_eq!(conncept.records().len(), 31);
    assert_eq!((sockets_at(ip, 53), sockets_at(ip, 7)), (0, 0));
}

/// Rows D-06 and U1 of docs/defects.md.
#[test]
fn datagrams_keep_their_cuts_whatever_their_size() {
    let ip = loopback();
    let _conncept = Conncept::serving(&config(json!({"a": echo(&format!("udp/{ip}:7"))})));
    let peer = datagrams((ip, 7));
    let mut back = vec![0; 65_536];
    for size in [1, 2, 1472, 1473, 9000, 9001, 65_507] {
        let datagram: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        peer.send(&datagram).unwrap();
        let n = peer.recv(&mut back).unwrap();
        assert!(back[..n] == datagram, "{size} bytes sent, {n} came back");
    }
    // Several at once come back as several.
    for text in ["one", "two", "three"] {
        peer.send(text.as_bytes()).unwrap();
    }
    for text in ["one", "two", "three"] {
        let n = peer.recv(&mut back).unwrap();
        assert_eq!(&back[..n], text.as_bytes());
    }
    // An empty one is a datagram like any other.
    assert_eq!(exchange(&peer, b""), "");
    assert_eq!(exchange(&peer, b"after an empty one"), "after an empty one");
}

#[test]
fn sessions_are_routed_by_their_first_datagram() {
    let ip = loopback();
    let _conncept = Conncept::serving(&config(json!({"a": {
        "listen": [format!("udp/{ip}:53")],
        "matching_timeout": "60s",
        "routes": [
            {"match": [{"ssh": {}}], "handle": [{"handler": "respond", "body": "ssh"}]},
            {"handle": [{"handler": "respond", "body": "rest"}]},
        ],
    }})));
    assert_eq!(exchange(&datagrams((ip, 53)), b"SSH-2.0-x\r\n"), "ssh");
    assert_eq!(exchange(&datagrams((ip, 53)), b"hello"), "rest");
}

#[test]
fn stopping_lets_sessions_go_on_for_the_grace_period_and_takes_no_new_ones() {
    let ip = loopback();
    let mut settings = config(json!({"a": echo(&format!("udp/{ip}:7"))}));
    settings["apps"]["layer4"]["grace_period"] = json!("2s");
    let mut conncept = Conncept::serving(&settings);
    let peer = datagrams((ip, 7));
    assert_eq!(exchange(&peer, b"before"), "before");
    conncept.signal(Signal::TERM);
    conncept.logged("waiting for connections to end");
    assert_eq!(
        exchange(&peer, b"in the grace period"),
        "in the grace period"
    );
    let late = datagrams((ip, 7));
    late.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(try_exchange(&late, b"too late").is_err());
    assert_eq!(conncept.wait().code(), Some(0));
    assert_eq!(conncept.records()[0]["reason"], "shutdown");
}

#[test]
fn a_peer_that_cannot_be_answered_harms_nobody() {
    let ip = loopback();
    let conncept = Conncept::serving(&config(
        json!({"a": responder(&format!("udp/{ip}:53"), "here")}),
    ));
    // All at once, so that no two of them get the same port.
    let leaving: Vec<_> = (0..50).map(|_| datagrams((ip, 53))).collect();
    let peer = datagrams((ip, 53));
    for gone in leaving {
        gone.send(b"x").unwrap();
    }
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(exchange(&peer, b"x"), "here");
    eventually("all sessions have ended", || conncept.records().len() == 51);
}
