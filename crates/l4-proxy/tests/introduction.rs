//! What a peer learns before the payload, and which of our addresses it sees.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use l4_core::schema::Anything;
use l4_core::upstream::{Preamble, Preambles};
use l4_core::{Connection, EndReason, Registry};
use l4_testkit::{Router, connection, load, session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

/// Says who the client is in words.
struct From;

impl Preamble for From {
    fn bytes(&self, client: &Connection) -> Vec<u8> {
        format!("<{}>", client.remote()).into_bytes()
    }
}

const INTRODUCED: &[u8] = b"<192.0.2.7:40000>";

fn modules(reg: &mut Registry) {
    l4_std::register(reg);
    l4_proxy::register(reg);
    reg.add::<Preambles, Anything>("v1", |_, _| Ok(Box::new(From)));
}

fn proxy(fields: &str) -> Router {
    routes(&format!(r#"{{"handler":"proxy",{fields}}}"#))
}

fn routes(handlers: &str) -> Router {
    Router::new(modules, &format!(r#"[{{"handle":[{handlers}]}}]"#))
}

/// A server that tells each client the address it sees, and then what it sends.
async fn server(address: &str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, peer) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let seen = format!("{} ", peer.ip());
                socket.write_all(seen.as_bytes()).await.unwrap();
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn ask(router: &Router) -> String {
    String::from_utf8(router.exchange(&[b"payload"]).await.0).unwrap()
}

#[tokio::test]
async fn a_stream_begins_with_the_preamble_once() {
    let a = server("127.0.0.1:0").await;
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{a}"]}}],"proxy_protocol":"v1""#
    ));
    let (answer, record) = router.exchange(&[b"pay", b"load"]).await;
    assert_eq!(answer, b"127.0.0.1 <192.0.2.7:40000>payload");
    assert_eq!(record.bytes_read(), 7, "it is not the client's");
    let off = proxy(&format!(
        r#""upstreams":[{{"dial":["{a}"]}}],"proxy_protocol":"""#
    ));
    assert_eq!(ask(&off).await, "127.0.0.1 payload");
}

#[tokio::test]
async fn the_preamble_comes_before_what_was_read_for_matching_to_every_peer() {
    let (a, b) = (server("127.0.0.1:0").await, server("127.0.0.1:0").await);
    let router = Router::new(
        modules,
        &format!(
            r#"[{{"match":[{{"regexp":{{"pattern":"^payl","count":4}}}}],
                "handle":[{{"handler":"proxy","upstreams":[{{"dial":["{a}","{b}"]}}],"proxy_protocol":"v1"}}]}}]"#
        ),
    );
    let (answer, record) = router.exchange(&[b"payl", b"oad"]).await;
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!(
        answer.matches("<192.0.2.7:40000>payl").count(),
        2,
        "{answer}"
    );
    assert_eq!(record.bytes_read(), 7, "it is not the client's");
}

#[tokio::test]
async fn a_server_that_speaks_only_after_the_preamble_is_heard_while_the_client_is_silent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{address}"]}}],"proxy_protocol":"v1""#
    ));
    let (conn, mut client) = connection(64);
    router.serve(conn);
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut header = vec![0; INTRODUCED.len()];
    peer.read_exact(&mut header).await.unwrap();
    assert_eq!(header, INTRODUCED);
    peer.write_all(b"hello").await.unwrap();
    let mut greeting = [0; 5];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
}

#[tokio::test]
async fn every_datagram_has_the_preamble_in_front_and_answers_come_as_they_are() {
    let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = peer.local_addr().unwrap();
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["udp/{address}"]}}],"proxy_protocol":"v1""#
    ));
    let (conn, mut client) = session();
    router.serve(conn);
    let mut buf = [0; 128];
    for datagram in [&b"one"[..], b"", b"three"] {
        client.send(datagram);
        let (n, from) = peer.recv_from(&mut buf).await.unwrap();
        assert_eq!(buf[..n], [INTRODUCED, datagram].concat());
        peer.send_to(datagram, from).await.unwrap();
        assert_eq!(client.receive().await.unwrap(), datagram);
    }
}

#[tokio::test]
async fn p7_addresses_made_per_connection_are_introduced_as_their_network_wants_it() {
    let dir = std::env::temp_dir().join(format!("l4-introduction-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let to = |network: &str, address: &str| {
        routes(&format!(
            r#"{{"handler":"vars","to":"{network}/{address}"}},
               {{"handler":"proxy","proxy_protocol":"v1","upstreams":[{{"dial":["{{l4.vars.to}}"]}}]}}"#
        ))
    };
    let mut buf = [0; 128];

    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let router = to("udp", &udp.local_addr().unwrap().to_string());
    let (conn, client) = session();
    router.serve(conn);
    client.send(b"x");
    let n = udp.recv(&mut buf).await.unwrap();
    assert_eq!(buf[..n], [INTRODUCED, b"x"].concat());

    let path = dir.join("gram");
    let gram = UnixDatagram::bind(&path).unwrap();
    let router = to("unixgram", path.to_str().unwrap());
    let (conn, client) = session();
    router.serve(conn);
    for datagram in [b"x", b"y"] {
        client.send(datagram);
        let n = gram.recv(&mut buf).await.unwrap();
        assert_eq!(buf[..n], [INTRODUCED, datagram].concat());
    }

    let path = dir.join("stream");
    let stream = UnixListener::bind(&path).unwrap();
    let router = to("unix", path.to_str().unwrap());
    let asking = tokio::spawn(async move { router.exchange(&[b"x", b"y"]).await });
    let (mut peer, _) = stream.accept().await.unwrap();
    let mut received = Vec::new();
    peer.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, [INTRODUCED, b"xy"].concat());
    drop(peer);
    asking.await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Says more than the buffers of two sockets hold, so that it is noticed when a peer closes without reading.
struct Long;

const LONG: usize = 16 * 1024 * 1024;

impl Preamble for Long {
    fn bytes(&self, _: &Connection) -> Vec<u8> {
        vec![b'x'; LONG]
    }
}

#[tokio::test]
async fn p8_a_peer_that_does_not_take_the_preamble_counts_as_failed_and_everything_is_closed() {
    let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bad = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (good_address, bad_address) = (good.local_addr().unwrap(), bad.local_addr().unwrap());
    let router = Router::new(
        |reg| {
            l4_std::register(reg);
            l4_proxy::register(reg);
            reg.add::<Preambles, Anything>("v1", |_, _| Ok(Box::new(Long)));
        },
        &format!(
            r#"[{{"handle":[{{"handler":"proxy","proxy_protocol":"v1",
                "upstreams":[{{"dial":["{good_address}","{bad_address}"]}}],
                "health_checks":{{"passive":{{"fail_duration":"1m"}}}}}}]}}]"#
        ),
    );
    let taking = tokio::spawn(async move {
        let (mut peer, _) = good.accept().await.unwrap();
        let mut taken = Vec::new();
        peer.read_to_end(&mut taken).await.unwrap();
        (taken.len(), good)
    });
    let closing = tokio::spawn(async move {
        drop(bad.accept().await.unwrap());
        bad
    });
    let (answer, record) = router.exchange(&[b"payload"]).await;
    assert_eq!(answer, b"");
    assert_eq!(record.end_reason(), Some(EndReason::DialFailed));
    let (taken, _good) = taking.await.unwrap();
    assert_eq!(taken, LONG, "the peer before is closed, and got no payload");
    // Both still listen, but one is known to have failed.
    let _bad = closing.await.unwrap();
    let (_, record) = router.exchange(&[b"payload"]).await;
    assert_eq!(record.end_reason(), Some(EndReason::NoUpstream));
}

#[tokio::test]
async fn a_peer_sees_the_local_address_that_is_configured() {
    let a = server("127.0.0.1:0").await;
    let upstream = |fields: &str| {
        format!(r#"{{"handler":"proxy","upstreams":[{{"dial":["{a}"],{fields}}}]}}"#)
    };
    for (fields, seen) in [
        (r#""local_address":["127.0.0.5"]"#, "127.0.0.5"),
        (
            r#""local_address":["::1"," 127.0.0.6 ","127.0.0.7"]"#,
            "127.0.0.6",
        ),
        (r#""local_address":["192.0.2.99","127.0.0.7"]"#, "127.0.0.7"),
        (
            r#""local_address":["localhost","tcp/127.0.0.8","","127.0.0.9:0"]"#,
            "127.0.0.9",
        ),
        (r#""local_address":["::1"]"#, "127.0.0.1"),
        (r#""resolver_preference":"ipv6_first""#, "127.0.0.1"),
        (r#""resolver_preference":"""#, "127.0.0.1"),
    ] {
        let said = ask(&routes(&upstream(fields))).await;
        assert_eq!(said, format!("{seen} payload"), "{fields}");
    }
    let vars = r#"{"handler":"vars","here":"127.0.0.11","nothing":"nowhere"},"#;
    for (text, seen) in [
        ("{l4.vars.here}", "127.0.0.11"),
        ("{l4.vars.nothing}", "127.0.0.1"),
    ] {
        let router = routes(&format!(
            "{vars}{}",
            upstream(&format!(r#""local_address":["{text}"]"#))
        ));
        assert_eq!(ask(&router).await, format!("{seen} payload"));
    }
}

#[tokio::test]
async fn a_name_is_connected_to_over_the_ip_version_that_is_asked_for() {
    // `localhost` of the hosts file.
    let a = server("127.0.0.1:0").await;
    let dial = format!(r#""dial":["localhost:{}"]"#, a.port());
    for fields in [
        r#""resolver_preference":"ipv4_only""#,
        r#""local_address":["127.0.0.5","::1"]"#,
    ] {
        let router = proxy(&format!(r#""upstreams":[{{{dial},{fields}}}]"#));
        assert!(ask(&router).await.ends_with("payload"), "{fields}");
    }
    let six = server("[::1]:0").await;
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{six}"],"local_address":["127.0.0.5","::1"]}}]"#
    ));
    assert_eq!(ask(&router).await, "::1 payload");
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{six}"],"resolver_preference":"ipv4_only"}}],
           "health_checks":{{"passive":{{"fail_duration":"1m"}}}}"#
    ));
    for _ in 0..2 {
        let (_, record) = router.exchange(&[b"payload"]).await;
        let reason = record.end_reason();
        assert_eq!(
            reason,
            Some(EndReason::DialFailed),
            "a contradiction is no failure of the peer"
        );
    }
}

#[tokio::test]
async fn p20_a_check_of_a_name_that_does_not_resolve_fails() {
    // A name with an empty label: the system's resolver refuses it without asking anybody.
    for fields in [
        r#""local_address":["127.0.0.5"]"#,
        r#""resolver_preference":"ipv4_first""#,
    ] {
        let router = proxy(&format!(
            r#""upstreams":[{{"dial":["no..name:1"],{fields}}}],"health_checks":{{"active":{{}}}}"#
        ));
        let started = Instant::now();
        loop {
            let (_, record) = router.exchange(&[b"x"]).await;
            if record.end_reason() == Some(EndReason::NoUpstream) {
                break;
            }
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{:?}",
                record.end_reason()
            );
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn checks_connect_from_the_same_address_as_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _router = proxy(&format!(
        r#""upstreams":[{{"dial":["{address}"],"local_address":["127.0.0.12"]}}],"health_checks":{{"active":{{}}}}"#
    ));
    let (_, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip().to_string(), "127.0.0.12");
}

#[test]
fn bad_configurations_are_refused_where_they_are_wrong() {
    let upstream = |fields: &str| format!(r#""upstreams":[{{"dial":["a:1"],{fields}}}]"#);
    for (fields, pointer, word) in [
        (
            r#""upstreams":[{"dial":["a:1"]}],"proxy_protocol":"v3""#.to_owned(),
            "/proxy_protocol",
            r#"proxy_protocol: "v3" should be empty, or one of "v1" "v2""#,
        ),
        (
            r#""upstreams":[{"dial":["a:1"]}],"proxy_protocol":"v2""#.to_owned(),
            "/proxy_protocol",
            "unknown module: layer4.proxy.preambles.v2",
        ),
        (
            r#""upstreams":[{"dial":["a:1"]}],"proxy_protocol":2"#.to_owned(),
            "/proxy_protocol",
            "string",
        ),
        (
            r#""upstreams":[{"dial":["a:1","unix//run/x"],"local_address":["10.0.0.9"]}]"#
                .to_owned(),
            "/upstreams/0/dial/1",
            "local_address is not supported for Unix socket upstreams (unix)",
        ),
        (
            r#""upstreams":[{"dial":["unixgram//run/x"],"local_address":["10.0.0.9"]}]"#.to_owned(),
            "/upstreams/0/dial/0",
            "(unixgram)",
        ),
        (
            upstream(r#""resolver_preference":"IPv4_only""#),
            "/upstreams/0/resolver_preference",
            r#"resolver_preference: unknown value "IPv4_only"; must be one of: ipv4_only, ipv6_only, ipv4_first, ipv6_first"#,
        ),
        (
            upstream(r#""resolver_preference":"ipv6_only","local_address":["10.0.0.9"]"#),
            "/upstreams/0/resolver_preference",
            r#"resolver_preference "ipv6_only" requires at least one IPv6 local_address, but all configured sources are the wrong family"#,
        ),
        (
            upstream(r#""local_address":"10.0.0.9""#),
            "/upstreams/0/local_address",
            "list",
        ),
    ] {
        let config = format!(
            r#"{{"apps":{{"layer4":{{"servers":{{"s":{{"routes":[{{"handle":[{{"handler":"proxy",{fields}}}]}}]}}}}}}}}}}"#
        );
        let errors = load(modules, &config).app.err();
        let errors = errors.unwrap_or_else(|| panic!("{fields} was accepted"));
        let error = &errors[0];
        let place = format!("/apps/layer4/servers/s/routes/0/handle/0{pointer}");
        assert_eq!(error.pointer(), place, "{error}");
        assert!(
            error.render().contains(word),
            "{fields}: {}",
            error.render()
        );
    }
}

#[test]
fn what_loads_in_the_reference_loads_here() {
    for (fields, warnings) in [
        (
            r#""resolver_preference":"ipv6_only","local_address":["10.0.0.9","{l4.vars.six}"]"#,
            0,
        ),
        (r#""resolver_preference":"ipv6_only""#, 0),
        (
            r#""resolver_preference":"ipv4_first","local_address":["::1"]"#,
            0,
        ),
        (
            r#""local_address":["{env.NO_SUCH_VARIABLE}","fe80::1%eth7"]"#,
            0,
        ),
        (r#""local_address":["eth0","10.0.0.9"]"#, 1),
    ] {
        let config = format!(
            r#"{{"apps":{{"layer4":{{"servers":{{"s":{{"routes":[{{"handle":[
                {{"handler":"proxy","upstreams":[{{"dial":["a:1"],{fields}}}]}}]}}]}}}}}}}}}}"#
        );
        let loaded = load(modules, &config);
        assert!(loaded.app.is_ok(), "{fields}");
        assert_eq!(
            loaded.warnings.len(),
            warnings,
            "{fields}: {:?}",
            loaded.warnings
        );
    }
}
