//! Clients that mean harm: bounded memory, no stall of others, no spin. And what has ended other routers, by a packet or
//! by a configuration: it ends nothing here. `cargo xtask ci` runs all of it against a release build, too.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use e2e::{
    Backend, Conncept, PATIENCE, ask, client_hello, config, connect, datagrams, drain, echo,
    echoes, eventually, exchange, loopback, pause, run, run_with, try_exchange,
};
use serde_json::{Map, Value, json};

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

/// The names of the modules of the build in this namespace.
fn modules(namespace: &str) -> Vec<String> {
    let listed = run(&["list-modules"]).stdout;
    let names = listed.lines().filter_map(|id| id.strip_prefix(namespace));
    names.map(str::to_owned).collect()
}

/// A route for every matcher of the build, each of which lets the connection go on, and an answer behind them: every
/// matcher is asked about every opening.
fn every_matcher() -> (Vec<Value>, Vec<String>) {
    let options = json!({
        "clock": {"after": "00:00:00"},
        "http": [{"host": ["nobody.example"]}, {"path_regexp": {"pattern": "nothing$"}}, {"header": {"X": ["y"]}}],
        "ip": {"ranges": ["192.0.2.0/24"]},
        "local_ip": {"ranges": ["192.0.2.0/24"]},
        "not": [{"http": []}, {"tls": {}}],
        "regexp": {"count": 300, "pattern": "^nothing$"},
        "remote_ip": {"ranges": ["192.0.2.0/24"]},
        "tls": {"sni": ["nobody.example"], "alpn": ["nothing"], "sni_regexp": {"pattern": "nothing$"}},
        "vars": {"{l4.tls.server_name}": ["nobody.example"]},
        "vars_regexp": {"{http.request.host}": {"pattern": "nothing$"}},
    });
    let names = modules("layer4.matchers.");
    let mut routes: Vec<Value> = names
        .iter()
        .map(|name| {
            let matcher = options.get(name).cloned().unwrap_or(json!({}));
            let matcher = Map::from_iter([(name.clone(), matcher)]);
            json!({"match": [matcher], "handle": [{"handler": "vars", "seen": name}]})
        })
        .collect();
    routes.push(json!({"handle": [{"handler": "respond", "body": "still here"}]}));
    (routes, names)
}

/// Single packets that end the process of other routers, which parse beyond what they have checked.
fn killers() -> Vec<(String, Vec<u8>)> {
    const PROXY_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let mut killers: Vec<(String, Vec<u8>)> = vec![
        (
            "a Winbox name that ends before it begins".to_owned(),
            [&[0x23, 0x06], [b'A'; 34].as_slice(), &[0]].concat(),
        ),
        (
            "a Winbox chunk that ends with its message".to_owned(),
            [&[0xFF, 0x06], [b'A'; 255].as_slice()].concat(),
        ),
        (
            "an RDP payload that ends with a carriage return".to_owned(),
            vec![3, 0, 0, 12, 7, 0xE0, 0, 0, 0, 0, 0, b'\r'],
        ),
        (
            "a TLS record without a message".to_owned(),
            vec![22, 0, 0, 0, 0, 0],
        ),
    ];
    // Families without a transport and transports without a family, for both commands.
    for family in [0x01, 0x02, 0x10, 0x13, 0x20, 0x23, 0x30, 0x33, 0x40, 0xFF] {
        for command in [0x20, 0x21] {
            killers.push((
                format!("PROXY v2 {command:#x} of the family {family:#x} without an address"),
                [PROXY_V2, &[command, family, 0, 0]].concat(),
            ));
        }
    }
    killers
}

fn assert_no_panic(conncept: &mut Conncept) {
    assert_eq!(conncept.ended(), None);
    assert_eq!(conncept.complaints(), "");
    let panics = conncept
        .records()
        .iter()
        .filter(|record| record["reason"] == "panic")
        .count();
    assert_eq!(panics, 0);
}

/// Row M-02 of docs/defects.md.
#[test]
fn packets_that_end_other_routers_are_answered_like_any_others() {
    let ip = loopback();
    let (routes, names) = every_matcher();
    assert!(names.len() >= 14, "{names:?}");
    let mut conncept = Conncept::serving(&config(json!({
        "target": {"listen": [format!("{ip}:1"), format!("udp/{ip}:1")], "matching_timeout": "500ms", "routes": routes},
    })));
    let killers = killers();
    for (what, packet) in &killers {
        assert_eq!(ask((ip, 1), packet), "still here", "{what}");
        assert_eq!(
            exchange(&datagrams((ip, 1)), packet),
            "still here",
            "{what}"
        );
        // In two pieces, and without an end: nobody knows whether more comes.
        let mut stream = connect((ip, 1));
        let (first, second) = packet.split_at(packet.len() - 1);
        stream.set_nodelay(true).unwrap();
        stream.write_all(first).unwrap();
        // It may have been answered already.
        let _ = stream.write_all(second);
        assert_eq!(drain(&mut stream), b"still here", "{what}");
    }
    eventually("each of them has its record", || {
        conncept.records().len() == 3 * killers.len()
    });
    assert_no_panic(&mut conncept);
    assert_idle(&conncept);
}

#[test]
fn packets_that_end_other_routers_end_their_own_connection_at_every_handler() {
    let ip = loopback();
    let backend = Backend::echo();
    let options = json!({
        "proxy": {"upstreams": [{"dial": [backend.address.to_string()]}]},
        "proxy_protocol": {"timeout": "500ms"},
        "tee": {"branch": [{"handler": "vars", "a": 1}]},
        "vars": {"a": 1},
    });
    let names = modules("layer4.handlers.");
    assert!(names.len() >= 9, "{names:?}");
    let mut servers = Map::new();
    let server = |listen: String, name: &String| {
        let mut handler = options.get(name).cloned().unwrap_or(json!({}));
        handler["handler"] = json!(name);
        json!({"listen": [listen], "routes": [
            {"handle": [handler]},
            {"match": [{"tls": {}}], "handle": [{"handler": "close"}]},
            {"handle": [{"handler": "respond", "body": "behind it"}]},
        ]})
    };
    let (mut streams, mut datagram_servers) = (Vec::new(), Vec::new());
    for (name, port) in names.iter().zip(1000..) {
        servers.insert(name.clone(), server(format!("{ip}:{port}"), name));
        streams.push(port);
        // What is for streams only is refused.
        let datagrams = server(format!("udp/{ip}:{port}"), name);
        let alone = config(json!({"a": datagrams})).to_string();
        let checked = run_with(&["validate", "--config", "-"], |_| {}, alone.as_bytes());
        if checked.code == Some(0) {
            servers.insert(format!("{name} over UDP"), datagrams);
            datagram_servers.push(port);
        } else {
            assert!(checked.stderr.contains("needs a stream"), "{checked:?}");
        }
    }
    assert!(datagram_servers.len() < streams.len(), "tls needs a stream");
    servers.insert("bystander".to_owned(), echo(&format!("{ip}:7")));
    let mut conncept = Conncept::serving(&config(Value::Object(servers)));
    let killers = killers();
    for (_, packet) in &killers {
        for port in &streams {
            let mut stream = connect((ip, *port));
            // It may be closed before this arrives.
            let _ = stream.write_all(packet);
            let _ = stream.shutdown(Shutdown::Write);
            drain(&mut stream);
        }
        for port in &datagram_servers {
            datagrams((ip, *port)).send(packet).unwrap();
        }
    }
    bystander(ip);
    eventually("each of them has its record", || {
        let over_udp = |record: &&Value| record["network"] == "udp";
        let records = conncept.records();
        let sessions = records.iter().filter(over_udp).count();
        // Sessions of echo and proxy last until they are idle.
        records.len() - sessions > killers.len() * streams.len()
            && sessions >= killers.len() * (datagram_servers.len() - 3)
    });
    assert_no_panic(&mut conncept);
}

/// Row D-10 of docs/defects.md.
#[test]
fn a_datagram_of_a_peer_without_a_name_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l4.sock");
    let mut conncept = Conncept::serving(&config(json!({
        "a": echo(&format!("unixgram/{}", path.display())),
    })));
    UnixDatagram::unbound()
        .unwrap()
        .send_to(b"from nobody", &path)
        .unwrap();
    let peer = UnixDatagram::bind(dir.path().join("peer.sock")).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.send_to(b"from somebody", &path).unwrap();
    let mut answer = [0; 64];
    let n = peer.recv(&mut answer).unwrap();
    assert_eq!(&answer[..n], b"from somebody");
    assert_no_panic(&mut conncept);
}

/// Row D-07 of docs/defects.md.
#[test]
fn a_flood_to_a_route_that_closes_stalls_no_other_peer_of_the_socket() {
    let ip = loopback();
    let mut conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("udp/{ip}:1")], "routes": [
            {"match": [{"regexp": {"count": 5, "pattern": "^close"}}], "handle": [{"handler": "close"}]},
            {"handle": [{"handler": "echo"}]},
        ]},
    })));
    let (other, mut floods) = (datagrams((ip, 1)), 0);
    for _ in 0..100 {
        let flood = datagrams((ip, 1));
        // No more than the kernel keeps for the socket: what it drops says nothing about us.
        for _ in 0..100 {
            match flood.send(b"close") {
                Ok(_) => floods += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(exchange(&other, b"still here"), "still here");
    }
    assert!(floods > 5000, "hardly a flood: {floods} datagrams");
    let closed = conncept
        .records()
        .iter()
        .filter(|record| record["reason"] == "closed")
        .count();
    assert!(closed >= 100, "{closed} sessions were closed");
    assert_no_panic(&mut conncept);
    assert_idle(&conncept);
}

/// Rows D-22, T4 and E5 of docs/defects.md.
#[test]
fn conditions_behind_throttle_and_tee_read_whole_datagrams() {
    let ip = loopback();
    let mut conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("udp/{ip}:1")], "routes": [
            {"handle": [
                {"handler": "throttle", "read_bytes_per_second": 10_000_000, "read_burst_size": 4},
                {"handler": "tee", "branch": [{"handler": "vars", "branch": true}]},
            ]},
            {"match": [{"regexp": {"count": 12, "pattern": "^more than one$"}}]},
            {"match": [{"regexp": {"count": 13, "pattern": "^more than one$"}}],
             "handle": [{"handler": "respond", "body": "recognised"}]},
            {"match": [{"tls": {}}], "handle": [{"handler": "respond", "body": "tls"}]},
            {"handle": [{"handler": "echo"}]},
        ]},
    })));
    assert_eq!(
        exchange(&datagrams((ip, 1)), b"more than one"),
        "recognised"
    );
    assert_eq!(
        exchange(&datagrams((ip, 1)), &client_hello("a.example", &[])),
        "tls"
    );
    let client = datagrams((ip, 1));
    for datagram in ["longer than the burst of four bytes", "short", ""] {
        assert_eq!(exchange(&client, datagram.as_bytes()), datagram);
    }
    assert_no_panic(&mut conncept);
}

/// Row E6 of docs/defects.md.
#[test]
fn both_chains_of_a_tee_may_set_variables_at_once() {
    let ip = loopback();
    let set = |who: &str| {
        let many = (0..200).map(|i| (format!("v{i}"), json!(who)));
        let mut vars = Map::from_iter(many);
        vars.insert("handler".to_owned(), json!("vars"));
        Value::Object(vars)
    };
    let mut conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("{ip}:1")], "routes": [{"handle": [
            {"handler": "tee", "branch": vec![set("branch"); 5]},
            set("main"), set("main"), set("main"),
            {"handler": "respond", "body": "{l4.vars.v0} {l4.vars.v199}"},
        ]}]},
    })));
    for _ in 0..100 {
        assert_eq!(ask((ip, 1), b"x"), "main main");
    }
    assert_no_panic(&mut conncept);
}

/// Row P2 of docs/defects.md.
#[test]
fn a_draw_among_upstreams_of_which_some_are_away_finds_those_that_are_not() {
    let ip = loopback();
    let backends = [Backend::echo(), Backend::echo()];
    // Bound and closed again: nobody listens there.
    let away = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
    let upstreams: Vec<Value> = [away, backends[0].address, away, backends[1].address, away]
        .iter()
        .map(|address| json!({"dial": [address.to_string()]}))
        .collect();
    let mut conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("{ip}:1")], "routes": [{"handle": [{
            "handler": "proxy",
            "upstreams": upstreams,
            "load_balancing": {
                "selection": {"policy": "random_choose", "choose": 3},
                "try_duration": "10s", "try_interval": "10ms",
            },
            "health_checks": {"passive": {"fail_duration": "1h", "max_fails": 1}},
        }]}]},
    })));
    // All of them stay open, so that every upstream has connections.
    let mut clients: Vec<TcpStream> = (0..60).map(|_| connect((ip, 1))).collect();
    for client in &mut clients {
        echoes(client, b"through");
    }
    assert_no_panic(&mut conncept);
}

/// Row V2 of docs/defects.md.
#[test]
fn variables_with_the_names_of_internals_are_only_variables() {
    let ip = loopback();
    let backend = Backend::echo();
    let mut conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("{ip}:1")], "routes": [
            {"match": [{"http": []}], "handle": [
                // One of them comes from the wire.
                {"handler": "vars", "tls_client_hellos": "x", "l4.proxy_protocol.conn": 1, "{http.request.host}": [1, 2]},
                {"handler": "proxy", "upstreams": [{"dial": [backend.address.to_string()]}]},
            ]},
        ]},
    })));
    for host in [
        "tls_client_hellos",
        "tls_connection_states",
        "l4.proxy_protocol.conn",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(ask((ip, 1), request.as_bytes()), request);
    }
    assert_no_panic(&mut conncept);
}

/// Row M-04 of docs/defects.md.
#[test]
fn placeholders_of_a_request_that_have_no_value_are_empty() {
    let ip = loopback();
    let mut conncept = Conncept::serving(&config(json!({
        "a": {"listen": [format!("{ip}:1")], "routes": [
            {"match": [{"http": [{"remote_ip": {"ranges": ["127.0.0.0/8"]}}]}], "handle": [{
                "handler": "respond",
                "body": "{http.request.local} {http.request.local.host} {http.request.local.port}|\
                         {http.shutting_down}{http.time_until_shutdown}{http.request.uuid}{http.request.body}|",
            }]},
        ]},
    })));
    assert_eq!(
        ask((ip, 1), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("{ip}:1 {ip} 1||")
    );
    assert_no_panic(&mut conncept);
}

/// Rows M-09 and D1 of docs/defects.md.
#[test]
fn configurations_that_end_other_routers_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("short.pem");
    fs::write(&key, "short").unwrap();
    let route = |route: Value| json!({"apps": {"layer4": {"servers": {"a": {"routes": [route]}}}}});
    let matcher = |matcher: Value| route(json!({"match": [matcher]}));
    let proxy = |members: Value| {
        let mut proxy = json!({"handler": "proxy", "upstreams": [{"dial": ["127.0.0.1:1"]}]});
        proxy
            .as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        route(json!({"handle": [proxy]}))
    };
    for (config, said) in [
        (
            matcher(json!({"http": [{"expression": {"expr": "true"}}]})),
            "http.matchers.expression is out of scope",
        ),
        (
            matcher(json!({"vars_regexp": {"x": null}})),
            "/vars_regexp/x",
        ),
        (matcher(json!({"tls": null})), "cannot be null"),
        (matcher(json!({"http": [null, 1]})), "/http/1"),
        (route(json!({"handle": [null]})), "/handle/0"),
        (route(json!({"handle": [{"handler": null}]})), "handler"),
        (
            proxy(json!({"health_checks": {"active": {"interval": "-1s"}}})),
            "/health_checks/active/interval",
        ),
        (
            proxy(json!({"health_checks": {"active": {"port": 70_000}}})),
            "/health_checks/active/port",
        ),
        (proxy(json!({"upstreams": [{"dial": []}]})), "/upstreams/0"),
        (proxy(json!({"upstreams": [null]})), "/upstreams/0"),
        (
            json!({"apps": {"tls": {"certificates": {"load_files": [{"certificate": key, "key": key}]}}}}),
            "/load_files/0",
        ),
        (json!({"apps": {"layer4": null}}), "cannot be null: layer4"),
    ] {
        let config = config.to_string();
        for command in ["validate", "run"] {
            let finished = run_with(&[command, "--config", "-"], |_| {}, config.as_bytes());
            assert_eq!(finished.code, Some(1), "{command} {config}: {finished:?}");
            assert!(
                finished.stderr.contains(said) && !finished.stderr.contains("panic"),
                "{command} {config}: {finished:?}"
            );
        }
    }
}
