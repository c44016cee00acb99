//! Peers that neither accept nor refuse: nothing waits for them longer than somebody needs it, and nothing piles up.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use l4_core::{Addr, Connection, EndReason, Io, Record, Registry};
use l4_testkit::{Router, connection};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

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

/// A server whose queue is full: the kernel drops what asks for a connection, and the client asks again for minutes.
struct Silent {
    address: SocketAddr,
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Silent {
    async fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) =
            timeout(Duration::from_millis(200), TcpStream::connect(address)).await
        {
            waiting.push(connected.unwrap());
        }
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }

    /// How many connections to it are being made.
    fn dialled(&self) -> usize {
        let port = format!(":{:04X}", self.address.port());
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let being_made = |line: &&str| {
            let mut fields = line.split_ascii_whitespace().skip(2);
            let remote = fields.next().unwrap();
            // SYN_SENT in include/net/tcp_states.h.
            remote.ends_with(&port) && fields.next() == Some("02")
        };
        sockets.lines().filter(being_made).count()
    }

    async fn has_dialled(&self, count: usize) {
        let started = Instant::now();
        while self.dialled() != count {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{} instead of {count} connections are being made",
                self.dialled()
            );
            sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn p6_a_dial_under_way_is_given_up_when_the_configuration_ends() {
    let silent = Silent::new().await;
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"],"max_connections":1}}],"dial_timeout":"1h""#,
        silent.address
    ));
    let (conn, _client) = connection(64);
    let (record, serving) = router.serve(conn);
    silent.has_dialled(1).await;
    // What the end of `grace_period` and of `drain_timeout` does.
    router.server().generation().end(EndReason::Drained);
    serving.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::Drained));
    assert_eq!(silent.dialled(), 0);

    // The next configuration has the only place of the upstream.
    let next = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"],"max_connections":1}}],"dial_timeout":"1h""#,
        silent.address
    ));
    let (conn, _client) = connection(64);
    next.serve(conn);
    silent.has_dialled(1).await;
}

#[tokio::test]
async fn p6_a_dial_under_way_is_given_up_when_the_client_resets() {
    let silent = Silent::new().await;
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}}],"dial_timeout":"1h""#,
        silent.address
    ));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let client = client.await.unwrap();
    let (socket, remote) = listener.accept().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(remote)));
    let (record, serving) = router.serve(Connection::new(Io::Tcp(socket), record, None));
    silent.has_dialled(1).await;
    client.set_zero_linger().unwrap();
    drop(client);
    serving.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::ClientReset));
    assert_eq!(silent.dialled(), 0);
}

#[tokio::test]
async fn p6_try_duration_ends_a_dial_under_way() {
    let silent = Silent::new().await;
    let router = proxy(&format!(
        r#""upstreams":[{{"dial":["{}"]}}],"dial_timeout":"1h","load_balancing":{{"try_duration":"100ms"}}"#,
        silent.address
    ));
    let (conn, _client) = connection(64);
    let (record, serving) = router.serve(conn);
    silent.has_dialled(1).await;
    timeout(Duration::from_secs(10), serving)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::DialFailed));
    assert_eq!(silent.dialled(), 0);
}

#[tokio::test]
async fn p23_checks_that_take_longer_than_their_interval_do_not_pile_up() {
    for limit in ["1h", "25ms"] {
        let silent = Silent::new().await;
        let handler = format!(
            r#"{{"handler":"proxy","upstreams":[{{"dial":["{}"]}}],
                "health_checks":{{"active":{{"interval":"10ms","timeout":"{limit}"}}}}}}"#,
            silent.address
        );
        // Two handlers that want to know the same, beside each other.
        let router = Router::new(
            modules,
            &format!(
                r#"[{{"match":[{{"remote_ip":{{"ranges":["10.0.0.0/8"]}}}}],"handle":[{handler}]}},
                    {{"handle":[{handler}]}}]"#
            ),
        );
        silent.has_dialled(1).await;
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(300) {
            // The table is not read at one moment: one that ends and the next may both be seen, though not twice.
            let checks = silent.dialled().min(silent.dialled());
            assert!(checks <= 1, "{checks} checks at a time, limit {limit}");
            sleep(Duration::from_millis(1)).await;
        }
        router.server().generation().retire();
        silent.has_dialled(0).await;
        // And none comes later.
        sleep(Duration::from_millis(30)).await;
        assert_eq!(silent.dialled(), 0, "limit {limit}");
    }
}
