//! Clients that mean harm: bounded memory, no stall of others, no spin.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use e2e::{
    Backend, Conncept, ask, client_hello, config, connect, datagrams, drain, echo, eventually,
    exchange, loopback, pause, try_exchange,
};
use serde_json::{Value, json};

/// A server with every matcher in front, and one without.
fn target(ip: Ipv4Addr, matching_timeout: &str) -> Conncept {
    Conncept::serving(&config(json!({
        "target": {
            "listen": [format!("{ip}:443")],
            "matching_timeout": matching_timeout,
            "routes": [
                {"match": [{"tls": {"sni": ["a.example"]}}], "handle": [{"handler": "respond", "body": "tls"}]},
                {"match": [{"http": [{"path": ["/a*"], "header": {"X-A": ["*"]}}]}], "handle": [{"handler": "respond", "body": "http"}]},
                {"match": [{"ssh": {}}], "handle": [{"handler": "respond", "body": "ssh"}]},
                {"match": [{"not": [{"http": []}, {"tls": {}}]}], "handle": [{"handler": "respond", "body": "other"}]},
            ],
        },
        "bystander": echo(&format!("{ip}:7")),
    })))
}

/// How long a bystander waits for an echo over a new connection.
fn bystander(ip: Ipv4Addr) -> Duration {
    let began = Instant::now();
    assert_eq!(ask((ip, 7), b"bystander"), "bystander");
    began.elapsed()
}

/// Fails if processor time is used while nothing happens.
fn assert_idle(conncept: &Conncept) {
    let before = conncept.processor_time();
    pause(Duration::from_secs(1));
    let used = conncept.processor_time() - before;
    assert!(
        used < Duration::from_millis(200),
        "{used:?} of processor time in a second without traffic"
    );
}

#[test]
fn hostile_first_bytes_end_their_own_connection_only() {
    let ip = loopback();
    let conncept = target(ip, "300ms");
    let hello = client_hello("a.example", &["h2"]);
    let mut openings: Vec<Vec<u8>> = vec![
        vec![],
        vec![0; 70_000],
        vec![0xFF; 70_000],
        b"\n".repeat(1000),
        b"GET ".to_vec(),
        [b"GET /".as_slice(), &b"a".repeat(40_000)].concat(),
        [b"GET / HTTP/1.1\r\n".as_slice(), &b"x:y\r\n".repeat(10_000)].concat(),
        b"GET / HTTP/1.1\r\nHost: \xFF\xFE\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        // A frame that declares 16 MiB.
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &[0xFF, 0xFF, 0xFF, 1, 4, 0, 0, 0, 1],
            &[0xFF; 1000],
        ]
        .concat(),
        // A header block that never ends.
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82],
            &[0, 0, 1, 9, 0, 0, 0, 0, 1, 0x84].repeat(3000),
        ]
        .concat(),
        // Records that declare much and carry little, and little and never much.
        vec![22, 3, 1, 0xFF, 0xFF, 1],
        vec![22, 3, 1, 0, 0],
        [22, 3, 1, 0, 1, 1].repeat(5000),
        vec![22, 3, 1, 0, 4, 1, 0xFF, 0xFF, 0xFF],
        b"SSH".to_vec(),
        b"SSH-".repeat(10_000),
    ];
    // A real hello with one byte wrong, at every place.
    openings.extend((0..hello.len()).step_by(7).map(|at| {
        let mut broken = hello.clone();
        broken[at] ^= 0xFF;
        broken
    }));
    let count = openings.len();
    for opening in &openings {
        let mut stream = connect((ip, 443));
        // It may be closed while it still sends.
        let _ = stream.write_all(opening);
        drop(stream);
    }
    for opening in &openings {
        let mut stream = connect((ip, 443));
        let _ = stream.write_all(opening);
        drain(&mut stream);
    }
    assert_eq!(ask((ip, 443), &hello), "tls");
    assert_eq!(
        ask((ip, 443), b"GET /a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\n\r\n"),
        "http"
    );
    bystander(ip);
    eventually("each of them has left its record", || {
        conncept.records().len() >= 2 * count + 3
    });
    let panics = conncept
        .records()
        .iter()
        .filter(|record| record["reason"] == "panic")
        .count();
    assert_eq!(panics, 0);
    assert_idle(&conncept);
}

/// A PROXY header of version 2 that names a family without a transport, and so has no addresses: any 16 bytes of this kind
/// would do, and so do headers that are longer than they say, or shorter.
#[test]
fn r3_sixteen_bytes_that_end_the_reference_cost_one_connection() {
    let ip = loopback();
    let accepting = |rest: Value| {
        let mut handler = json!({"handler": "proxy_protocol"});
        let (into, from) = (handler.as_object_mut().unwrap(), rest.as_object().unwrap());
        into.extend(from.clone());
        json!([{"handle": [handler, {"handler": "echo"}]}])
    };
    let conncept = Conncept::serving(&config(json!({
        "use": {"listen": [format!("{ip}:1")], "routes": accepting(json!({}))},
        "ignore": {"listen": [format!("{ip}:2")], "routes": accepting(json!({"allow": ["10.0.0.0/8"]}))},
        "reject": {"listen": [format!("{ip}:3")], "routes": accepting(json!({"deny": ["127.0.0.0/8"]}))},
        "datagrams": {"listen": [format!("udp/{ip}:4")], "routes": accepting(json!({}))},
        "bystander": echo(&format!("{ip}:7")),
    })));
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let mut headers = vec![[signature.as_slice(), &[0x21, 0x40, 0, 0]].concat()];
    for family in [0x10, 0x13, 0x20, 0x01, 0x11, 0x21, 0x31] {
        for length in [[0, 0], [0, 11], [0xFF, 0xFF]] {
            headers.push([signature.as_slice(), &[0x21, family], &length, &[0; 64]].concat());
        }
    }
    headers.push(b"PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n".to_vec());
    headers.push([b"PROXY TCP4 ".as_slice(), &[b'1'; 5000]].concat());
    for header in &headers {
        for port in [1, 2, 3] {
            let mut stream = connect((ip, port));
            // It may be closed while it still sends.
            let _ = stream.write_all(header);
            assert_eq!(drain(&mut stream), b"", "{}", header.escape_ascii());
        }
        datagrams((ip, 4)).send(header).unwrap();
    }
    assert_eq!(ask((ip, 1), b"PROXY UNKNOWN\r\nstill here"), "still here");
    assert_eq!(exchange(&datagrams((ip, 4)), b"still here"), "still here");
    bystander(ip);
    eventually("each of them has left its record", || {
        conncept.records().len() >= 4 * headers.len()
    });
    let panics = conncept
        .records()
        .iter()
        .filter(|record| record["reason"] == "panic")
        .count();
    assert_eq!(panics, 0);
    assert_idle(&conncept);
}

#[test]
fn endless_garbage_is_cut_off_and_not_kept() {
    let ip = loopback();
    let conncept = target(ip, "60s");
    let before = conncept.resident_kib();
    // What could still become a request for ever, and what could still become a hello.
    let request: &[u8] = b"GET /a HTTP/1.1\r\nX-A: ";
    let hello = [
        &[22, 3, 1, 0x40, 0, 1, 0, 0x3F, 0xFC, 3, 3],
        [0x5A; 32].as_slice(),
        &[0, 0, 2, 0x13, 1, 1, 0, 0x3F, 0xD1, 0xFE, 0x0D, 0x3F, 0xCD],
    ]
    .concat();
    let mut reasons = Vec::new();
    for (opening, filler) in [(request, b'a'), (&*hello, 0xA5)].repeat(20) {
        let mut stream = connect((ip, 443));
        let from = stream.local_addr().unwrap();
        stream.write_all(opening).unwrap();
        let block = [filler; 16 * 1024];
        let mut sent = 0;
        // 64 MiB would be no end of it; the socket's buffers alone hold some.
        while sent < 64 << 20 && stream.write_all(&block).is_ok() {
            sent += block.len();
        }
        assert!(sent < 64 << 20, "everything was taken");
        reasons.push(
            conncept.record_of(from)["reason"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    assert!(
        reasons
            .iter()
            .all(|reason| reason == "match_buffer_full" || reason == "no_route"),
        "{reasons:?}"
    );
    let grown = conncept.resident_kib().saturating_sub(before);
    assert!(
        grown < 16 * 1024,
        "{grown} KiB more for connections that are gone"
    );
    bystander(ip);
}

#[test]
fn trickling_clients_are_timed_out_and_hold_up_nobody() {
    const CLIENTS: usize = 300;
    let ip = loopback();
    let conncept = target(ip, "2s");
    let before = conncept.resident_kib();
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect((ip, 443))).collect();
    let began = Instant::now();
    let flights = [
        client_hello("a.example", &[]),
        b"GET /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_vec(),
    ];
    let used_before = conncept.processor_time();
    let mut slowest = Duration::ZERO;
    for step in 0..15 {
        for (i, client) in clients.iter_mut().enumerate() {
            // Once cut off, writing fails.
            let _ = client.write_all(&flights[i % 2][step..=step]);
        }
        slowest = slowest.max(bystander(ip));
        pause(Duration::from_millis(100));
    }
    let used = conncept.processor_time() - used_before;
    let grown = conncept.resident_kib().saturating_sub(before);
    assert!(
        slowest < Duration::from_secs(1),
        "a bystander waited {slowest:?}"
    );
    assert!(
        grown < 300 * 32,
        "{grown} KiB for {CLIENTS} clients that have sent 15 bytes each"
    );
    for client in &mut clients {
        drain(client);
    }
    let lasted = began.elapsed();
    assert!(
        lasted >= Duration::from_millis(1900) && lasted < Duration::from_secs(10),
        "cut off after {lasted:?}"
    );
    eventually("all have their record", || {
        let cut = |record: &&Value| record["reason"] == "match_timeout";
        conncept.records().iter().filter(cut).count() == CLIENTS
    });
    // 300 clients with 15 bytes each, and 15 bystanders: this is what that may cost, in a build without optimisation.
    assert!(used < Duration::from_secs(3), "{used:?} of processor time");
    assert_idle(&conncept);
}

#[test]
fn idle_connections_cost_little_memory_and_no_time() {
    const CLIENTS: usize = 1000;
    let ip = loopback();
    let backend = Backend::echo();
    let conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("{ip}:80")], "routes": [{"handle": [
            {"handler": "proxy", "upstreams": [{"dial": [backend.address.to_string()]}]},
        ]}]},
    })));
    let mut clients: Vec<TcpStream> = Vec::new();
    let open = |clients: &mut Vec<TcpStream>, count: usize| {
        for _ in 0..count {
            let mut client = connect((ip, 80));
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            clients.push(client);
        }
    };
    // Buffers that are there once are not counted.
    open(&mut clients, 50);
    let before = conncept.resident_kib();
    open(&mut clients, CLIENTS);
    let grown = conncept.resident_kib().saturating_sub(before);
    println!(
        "{} bytes for an idle connection",
        grown * 1024 / CLIENTS as u64
    );
    assert!(
        grown < 8 * CLIENTS as u64,
        "{grown} KiB for {CLIENTS} idle connections"
    );
    assert_idle(&conncept);
    drop(clients);
    eventually("all have ended", || {
        conncept.records().len() == CLIENTS + 50
    });
}

#[test]
fn floods_of_datagram_senders_are_bounded_and_keep_nobody_out() {
    const SENDERS: usize = 3000;
    const EACH: usize = 20;
    let ip = loopback();
    // An upstream that never answers keeps every session until it is idle.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dial = format!("udp/{}", silent.local_addr().unwrap());
    let conncept = Conncept::serving(&config(json!({
        "flooded": {"listen": [format!("udp/{ip}:53")], "idle_timeout": "1s", "routes": [{"handle": [
            {"handler": "proxy", "upstreams": [{"dial": [dial]}]},
        ]}]},
        "bystander": echo(&format!("udp/{ip}:7")),
    })));
    let descriptors = conncept.descriptors();
    let before = conncept.resident_kib();
    let neighbour = datagrams((ip, 7));
    assert_eq!(exchange(&neighbour, b"before"), "before");
    let target: SocketAddr = (ip, 53).into();
    let mut most = 0;
    let mut slowest = Duration::ZERO;
    for round in 0..SENDERS / 500 {
        let senders: Vec<UdpSocket> = (0..500)
            .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
            .collect();
        for _ in 0..EACH {
            for sender in &senders {
                match sender.send_to(&[0xAB; 1200], target) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => panic!("{error}"),
                    _ => {}
                }
            }
        }
        let began = Instant::now();
        assert_eq!(
            exchange(&neighbour, b"during"),
            "during",
            "in round {round}"
        );
        slowest = slowest.max(began.elapsed());
        most = most.max(conncept.resident_kib());
    }
    println!(
        "{} KiB at most, neighbours waited {slowest:?} at most",
        most.saturating_sub(before)
    );
    assert!(
        slowest < Duration::from_secs(2),
        "a neighbour waited {slowest:?}"
    );
    assert!(
        most.saturating_sub(before) < 64 * 1024,
        "{most} KiB, {before} KiB before"
    );
    // All of it goes when the senders have gone.
    eventually("the sessions end", || {
        conncept.descriptors() <= descriptors + 1
    });
    assert_eq!(try_exchange(&neighbour, b"after").unwrap(), "after");
    let sessions = conncept.records().len();
    assert!(
        sessions > SENDERS / 2,
        "hardly a flood: {sessions} sessions"
    );
    assert_idle(&conncept);
}

#[test]
fn clients_that_reset_or_vanish_leave_nothing_behind() {
    let ip = loopback();
    let backend = Backend::sink();
    let conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("{ip}:80")], "routes": [{"handle": [
            {"handler": "proxy", "upstreams": [{"dial": [backend.address.to_string()]}]},
        ]}]},
        "echo": echo(&format!("{ip}:7")),
    })));
    ask((ip, 7), b"x");
    let descriptors = conncept.descriptors();
    for i in 0..400 {
        let mut stream = connect((ip, if i % 2 == 0 { 80 } else { 7 }));
        stream.write_all(b"some bytes").unwrap();
        if i % 4 < 2 {
            // Closing with unread input, or with a pending answer, is a reset.
            stream.set_nonblocking(true).unwrap();
        }
        drop(stream);
    }
    eventually("all have ended", || conncept.records().len() >= 401);
    eventually("their descriptors are closed", || {
        conncept.descriptors() <= descriptors
    });
    assert_idle(&conncept);
}
