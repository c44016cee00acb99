//! The handler over real sockets: what a client of the router sees.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use l4_core::{Addr, Connection, EndReason, Io, Record, Registry};
use l4_testkit::{Router, connection, load};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket, UnixListener};
use tokio::task::JoinHandle;

fn modules(reg: &mut Registry) {
    l4_std::register(reg);
    l4_proxy::register(reg);
}

fn proxy(fields: &str) -> Router {
    Router::new(
        modules,
        &format!(r#"[{{"handle":[{{"handler":"proxy",{fields}}}]}}]"#),
    )
}

/// A server that greets each connection with its name and then echoes until the end.
async fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                socket.write_all(name.as_bytes()).await.unwrap();
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// An address on which nothing listens.
fn closed_port() -> Closed {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    Closed(socket)
}

/// A port on which nobody listens, and which nobody else gets: it is bound.
struct Closed(TcpSocket);

impl Closed {
    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }
}

async fn ask(router: &Router) -> String {
    String::from_utf8(router.exchange(&[b"x"]).await.0).unwrap()
}

#[tokio::test]
async fn bytes_go_through_and_the_record_says_where() {
    let a = server("a:").await;
    let router = proxy(&format!(r#""upstreams":[{{"dial":["{a}"]}}]"#));
    let (answer, record) = router.exchange(&[b"hel", b"lo"]).await;
    assert_eq!(answer, b"a:hello");
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
    assert_eq!(record.upstream().as_deref(), Some(a.to_string().as_str()));
    assert_eq!((record.bytes_read(), record.bytes_written()), (5, 7));
}

#[tokio::test]
async fn round_robin_takes_turns_beginning_with_the_second() {
    let (a, b, c) = (server("a").await, server("b").await, server("c").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{a}"]}},{{"dial":["{b}"]}},{{"dial":["{c}"]}}],
           "load_balancing":{{"selection":{{"policy":"round_robin"}}}}"#
    ));
    let mut answers = String::new();
    for _ in 0..6 {
        answers.push_str(&ask(&router).await[..1]);
    }
    assert_eq!(answers, "bcabca");
}

/// Row P1 of docs/defects.md.
#[tokio::test]
async fn first_takes_the_first_that_is_not_full() {
    let (a, b) = (server("a").await, server("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{a}"],"max_connections":1}},{{"dial":["{b}"]}}],
           "load_balancing":{{"selection":{{"policy":"first"}}}}"#
    ));
    let (conn, mut held) = connection(64);
    let (_, serving) = router.serve(conn);
    let mut name = [0; 1];
    held.read_exact(&mut name).await.unwrap();
    assert_eq!(&name, b"a");
    assert_eq!(ask(&router).await, "bx");
    drop(held);
    serving.await.unwrap();
    assert_eq!(
        ask(&router).await,
        "ax",
        "the place is given back when the connection ends"
    );
}

#[tokio::test]
async fn random_reaches_every_upstream() {
    let (a, b) = (server("a").await, server("b").await);
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{a}"]}},{{"dial":["{b}"]}}]"#
    ));
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        seen.insert(ask(&router).await);
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn every_address_of_an_upstream_is_connected_to() {
    let (a, b) = (server("a").await, server("b").await);
    let router = proxy(&format!(r#""upstreams":[{{"dial":["{a}","{b}"]}}]"#));
    let (answer, record) = router.exchange(&[b"12"]).await;
    let mut bytes = answer.clone();
    bytes.sort_unstable();
    assert_eq!(bytes, b"1122ab", "{answer:?}");
    assert_eq!(
        record.upstream().as_deref(),
        Some(format!("{a},{b}").as_str())
    );
}

/// Row P12 of docs/defects.md.
#[tokio::test]
async fn a_peer_that_breaks_off_is_left_out_and_the_others_go_on() {
    let good = server("g").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bad = listener.local_addr().unwrap();
    for dial in [[bad, good], [good, bad]] {
        let router = proxy(&format!(
            r#""upstreams":[{{"dial":["{}","{}"]}}]"#,
            dial[0], dial[1]
        ));
        let (conn, mut client) = connection(1024);
        let (record, serving) = router.serve(conn);
        let (mut broken, _) = listener.accept().await.unwrap();
        broken.write_all(b"b").await.unwrap();
        let mut names = [0; 2];
        client.read_exact(&mut names).await.unwrap();
        client.write_all(b"1").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        broken.readable().await.unwrap();
        // With an unread byte: a reset.
        drop(broken);
        for _ in 0..100 {
            client.write_all(b"2").await.unwrap();
            let mut echoed = [0];
            client.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"2");
        }
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
        serving.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::Completed));
    }
}

#[tokio::test]
async fn dial_mode_first_falls_back_to_the_next_address() {
    let (closed, b) = (closed_port(), server("b").await);
    let gone = closed.address();
    let dial = format!(r#""upstreams":[{{"dial":["{gone}","{b}"],"dial_mode":"first"}}]"#);
    assert_eq!(ask(&proxy(&dial)).await, "bx");
    let all = dial.replace("first", "all");
    assert_eq!(ask(&proxy(&all)).await, "", "all of them or none");
}

/// A client over a real socket that the router serves.
async fn over_tcp(router: &Router) -> (TcpStream, Arc<Record>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let client = client.await.unwrap();
    let (socket, remote) = listener.accept().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(remote)));
    let conn = Connection::new(Io::Tcp(socket), record, None);
    let (record, serving) = router.serve(conn);
    (client, record, serving)
}

#[tokio::test]
async fn a_client_reset_ends_the_waiting_for_an_upstream_and_its_end_alone_does_not() {
    let closed = closed_port();
    let gone = closed.address();
    let fields = |limit: &str| {
        format!(
            r#""upstreams":[{{"dial":["{gone}"]}}],
               "load_balancing":{{"try_duration":"{limit}","try_interval":"20ms"}}"#
        )
    };
    let (client, record, serving) = over_tcp(&proxy(&fields("1h"))).await;
    client.set_zero_linger().unwrap();
    drop(client);
    serving.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::ClientReset));

    let (mut client, record, serving) = over_tcp(&proxy(&fields("60ms"))).await;
    client.shutdown().await.unwrap();
    serving.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::DialFailed));
}

#[tokio::test]
async fn a_refused_connection_ends_with_its_reason() {
    let closed = closed_port();
    let gone = closed.address();
    let router = proxy(&format!(r#""upstreams":[{{"dial":["{gone}"]}}]"#));
    let (answer, record) = router.exchange(&[b"x"]).await;
    assert_eq!(answer, b"");
    assert_eq!(record.end_reason(), Some(EndReason::DialFailed));
}

#[tokio::test]
async fn a_client_that_has_spoken_in_vain_is_reset_whether_or_not_that_was_read() {
    let closed = closed_port();
    let gone = closed.address();
    let router = proxy(&format!(r#""upstreams":[{{"dial":["{gone}"]}}]"#));
    for read_ahead in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let mut client = client.await.unwrap();
        let (mut socket, remote) = listener.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        if read_ahead {
            socket.read_exact(&mut bytes).await.unwrap();
        }
        let record = Arc::new(Record::new(Addr::Tcp(remote)));
        let mut conn = Connection::new(Io::Tcp(socket), record, None);
        if read_ahead {
            conn.keep_unread(&bytes);
        }
        let (record, serving) = router.serve(conn);
        serving.await.unwrap();
        assert_eq!(record.end_reason(), Some(EndReason::DialFailed));
        let end = client.read(&mut bytes).await.unwrap_err();
        assert_eq!(
            end.kind(),
            std::io::ErrorKind::ConnectionReset,
            "{read_ahead}"
        );
    }
}

#[tokio::test]
async fn try_duration_waits_for_an_upstream_to_come_up_and_loses_nothing() {
    let closed = closed_port();
    let address = closed.address();
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{address}"]}}],"load_balancing":{{"try_duration":"10s","try_interval":"20ms"}}"#
    ));
    let (conn, mut client) = connection(64);
    let (_, serving) = router.serve(conn);
    client.write_all(b"early").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(closed);
    let listener = TcpListener::bind(address).await.unwrap();
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut early = [0; 5];
    socket.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");
    drop((client, socket));
    serving.await.unwrap();
}

#[tokio::test]
async fn unix_sockets_can_be_upstreams() {
    let path = std::env::temp_dir().join(format!("l4-proxy-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let (mut read, mut write) = socket.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["unix/{}"]}}]"#,
        path.display()
    ));
    assert_eq!(ask(&router).await, "x");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn stream_bytes_reach_a_udp_upstream_as_datagrams_and_its_answers_come_back() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["udp/{}"]}}]"#,
        server.local_addr().unwrap()
    ));
    let (conn, mut client) = connection(64);
    let (record, serving) = router.serve(conn);
    client.write_all(b"query").await.unwrap();
    let mut buf = [0; 64];
    let (n, from) = server.recv_from(&mut buf).await.unwrap();
    assert_eq!(&buf[..n], b"query");
    server.send_to(b"answer", from).await.unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    client.shutdown().await.unwrap();
    serving.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
}

/// Row U2 of docs/defects.md.
#[tokio::test]
async fn a_udp_upstream_that_is_away_for_a_moment_ends_nothing() {
    let address = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let router = proxy(&format!(r#""upstreams":[{{"dial":["udp/{address}"]}}]"#));
    let (conn, mut client) = connection(64);
    let (_, serving) = router.serve(conn);
    for _ in 0..3 {
        // Each is answered with an ICMP error, which the next operation on the socket reports.
        client.write_all(b"lost").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let server = UdpSocket::bind(address).await.unwrap();
    client.write_all(b"found").await.unwrap();
    let mut buf = [0; 64];
    let (n, from) = server.recv_from(&mut buf).await.unwrap();
    assert_eq!(&buf[..n], b"found");
    server.send_to(b"answer", from).await.unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).await.unwrap();
    drop(client);
    serving.await.unwrap();
}

#[tokio::test]
async fn placeholders_choose_the_port() {
    let a = server("a").await;
    let router = Router::new(
        modules,
        &format!(
            r#"[{{"handle":[{{"handler":"vars","port":{}}},
                {{"handler":"proxy","upstreams":[{{"dial":["127.0.0.1:{{l4.vars.port}}"]}}]}}]}}]"#,
            a.port()
        ),
    );
    assert_eq!(ask(&router).await, "ax");
}

/// Row P21 of docs/defects.md.
#[test]
fn bad_configurations_are_refused_where_they_are_wrong() {
    for (fields, pointer, word) in [
        ("", "", "no upstreams defined"),
        (r#","upstreams":[]"#, "/upstreams", "no upstreams defined"),
        (r#","upstreams":[{}]"#, "/upstreams/0", "without an address"),
        (
            r#","upstreams":[{"dial":["a"]}]"#,
            "/upstreams/0/dial/0",
            "port 0",
        ),
        (
            r#","upstreams":[{"dial":["a:1-2"]}]"#,
            "/upstreams/0/dial/0",
            "port ranges are currently not supported",
        ),
        (
            r#","upstreams":[{"dial":["tpc/a:1"]}]"#,
            "/upstreams/0/dial/0",
            "did you mean tcp",
        ),
        (
            r#","upstreams":[{"dial":["a:1"],"weigth":1}]"#,
            "/upstreams/0/weigth",
            "unknown field",
        ),
        (
            r#","upstreams":[{"dial":["a:1"],"max_connections":-1}]"#,
            "/upstreams/0/max_connections",
            "never available",
        ),
        (
            r#","upstreams":[{"dial":["a:1"]}],"load_balancing":{"selection":{"policy":"randm"}}"#,
            "/load_balancing/selection/policy",
            "unknown module: layer4.proxy.selection_policies.randm",
        ),
        (
            r#","upstreams":[{"dial":["a:1"]}],"load_balancing":{"selection":{}}"#,
            "/load_balancing/selection",
            "module name not specified with key 'policy'",
        ),
        (
            r#","upstreams":[{"dial":["a:1"]}],"idle_timeout":"-3s""#,
            "/idle_timeout",
            "negative",
        ),
    ] {
        let config = format!(
            r#"{{"apps":{{"layer4":{{"servers":{{"s":{{"routes":[{{"handle":[{{"handler":"proxy"{fields}}}]}}]}}}}}}}}}}"#
        );
        let errors = load(modules, &config)
            .app
            .err()
            .unwrap_or_else(|| panic!("{fields} was accepted"));
        let error = &errors[0];
        assert_eq!(
            error.pointer(),
            format!("/apps/layer4/servers/s/routes/0/handle/0{pointer}"),
            "{error}"
        );
        assert!(error.message().contains(word), "{fields}: {error}");
    }
}

#[test]
fn several_addresses_in_one_dial_are_worth_a_note() {
    let config = r#"{"apps":{"layer4":{"servers":{"s":{"routes":[{"handle":[
        {"handler":"proxy","upstreams":[{"dial":["a:1","b:1"]}]}]}]}}}}}"#;
    let loaded = load(modules, config);
    assert!(loaded.app.is_ok() && loaded.warnings.is_empty());
    assert!(loaded.notes[0].message().contains("every address"));
}
