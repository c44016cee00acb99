//! The wrapper, seen from clients in front of it and the program behind it.

#![allow(clippy::unwrap_used)]

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use l4_core::prelude::*;
use l4_embed::{Accepted, Addr, Control, Listener, Routed, Routes, Yielded};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Takes what begins with `echo ` and gives it back; asks for five bytes of everything else.
const ECHO: &str =
    r#"{"match": [{"regexp": {"count": 5, "pattern": "echo "}}], "handle": [{"handler": "echo"}]}"#;

fn registry() -> Registry {
    let mut reg = Registry::new();
    l4_std::register(&mut reg);
    l4_proxy_protocol::register(&mut reg);
    l4_throttle::register(&mut reg);
    l4_tls::register(&mut reg);
    reg
}

fn routes(json: &str) -> Routes {
    Routes::from_json(&registry(), json).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Connections in memory, so that time can stand still.
struct Made(mpsc::Receiver<io::Result<DuplexStream>>);

impl Listener for Made {
    async fn accept(&mut self) -> io::Result<Accepted> {
        match self.0.recv().await {
            Some(made) => made.map(|stream| {
                Accepted::stream(stream, Addr::Tcp("192.0.2.1:1000".parse().unwrap()))
                    .local(Addr::Tcp("192.0.2.2:443".parse().unwrap()))
            }),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<Addr> {
        Ok(Addr::UNNAMED)
    }
}

/// Where clients of a wrapper under test come from.
struct Clients(mpsc::Sender<io::Result<DuplexStream>>);

impl Clients {
    async fn connect(&self) -> DuplexStream {
        let (client, server) = duplex(256 * 1024);
        self.0.send(Ok(server)).await.unwrap();
        client
    }
}

fn wrap(routes: Routes) -> (Clients, Routed) {
    let (send, receive) = mpsc::channel(64);
    (Clients(send), routes.wrap(Made(receive)))
}

fn wrapped(json: &str) -> (Clients, Routed) {
    wrap(routes(json))
}

async fn all(mut stream: impl tokio::io::AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

async fn next(routed: &mut Routed) -> Yielded {
    routed.accept().await.unwrap().0
}

#[tokio::test(start_paused = true)]
async fn what_no_route_takes_comes_out_with_every_byte_however_it_is_cut() {
    let (clients, mut routed) = wrapped(&format!("[{ECHO}]"));
    let sent: Vec<u8> = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
    for cut in [0, 1, 4, 5, 6, 1000, 16 * 1024, 16 * 1024 + 1, 39_999] {
        let mut client = clients.connect().await;
        client.write_all(&sent[..cut]).await.unwrap();
        // The matcher has seen all of it, and waits if it can.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        client.write_all(&sent[cut..]).await.unwrap();
        let mut stream = next(&mut routed).await;
        stream.write_all(b"answer").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(all(&mut client).await, b"answer", "cut after {cut}");
        client.shutdown().await.unwrap();
        assert!(all(stream).await == sent, "cut after {cut}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_route_takes_is_served_there_and_does_not_come_out() {
    let (clients, mut routed) = wrapped(&format!("[{ECHO}]"));
    let mut taken = clients.connect().await;
    taken.write_all(b"echo this").await.unwrap();
    let mut left = clients.connect().await;
    left.write_all(b"GET / HTTP/1.1").await.unwrap();
    left.shutdown().await.unwrap();
    assert_eq!(all(next(&mut routed).await).await, b"GET / HTTP/1.1");
    taken.shutdown().await.unwrap();
    assert_eq!(all(taken).await, b"echo this");
    let more = timeout(Duration::from_secs(60), routed.accept()).await;
    assert!(more.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_comes_out_after_the_matching_timeout_and_holds_up_nobody() {
    let (clients, mut routed) = wrapped(&format!(
        r#"{{"$schema": "s.json", "wrapper": "layer4", "matching_timeout": "2s", "routes": [{ECHO}]}}"#
    ));
    let start = Instant::now();
    let mut slow = clients.connect().await;
    slow.write_all(b"e").await.unwrap();
    let mut quick = clients.connect().await;
    quick.write_all(b"quick").await.unwrap();
    quick.shutdown().await.unwrap();
    assert_eq!(all(next(&mut routed).await).await, b"quick");
    assert_eq!(start.elapsed(), Duration::ZERO);
    let stream = next(&mut routed).await;
    assert!(start.elapsed() >= Duration::from_secs(2) && start.elapsed() < Duration::from_secs(3));
    slow.write_all(b"cho late").await.unwrap();
    slow.shutdown().await.unwrap();
    assert_eq!(all(stream).await, b"echo late");
}

#[tokio::test(start_paused = true)]
async fn a_catch_all_leaves_nothing_over_and_an_empty_list_takes_nothing() {
    let (clients, mut routed) = wrapped(r#"[{"handle": [{"handler": "echo"}]}]"#);
    let mut client = clients.connect().await;
    client.write_all(b"x").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(all(client).await, b"x");
    assert!(
        timeout(Duration::from_secs(9), routed.accept())
            .await
            .is_err()
    );

    let (clients, mut routed) = wrapped("{}");
    let _silent = clients.connect().await;
    let start = Instant::now();
    next(&mut routed).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn more_than_can_be_looked_at_comes_out_whole() {
    let (clients, mut routed) = wrapped(
        r#"[{"match": [{"not": [{"regexp": {"count": 16384, "pattern": "^a*$"}}]}], "handle": [{"handler": "close"}]}]"#,
    );
    let mut client = clients.connect().await;
    client.write_all(&[b'a'; 100_000]).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(all(next(&mut routed).await).await, [b'a'; 100_000]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_without_a_word_does_not_come_out_and_one_that_waits_for_an_answer_does()
{
    let (clients, mut routed) = wrapped(&format!("[{ECHO}]"));
    drop(clients.connect().await);
    let mut brief = clients.connect().await;
    brief.write_all(b"GET").await.unwrap();
    brief.shutdown().await.unwrap();
    let mut stream = next(&mut routed).await;
    let mut seen = Vec::new();
    stream.read_to_end(&mut seen).await.unwrap();
    assert_eq!(seen, b"GET");
    stream.write_all(b"answer").await.unwrap();
    drop(stream);
    assert_eq!(all(brief).await, b"answer");
    assert!(
        timeout(Duration::from_secs(9), routed.accept())
            .await
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_reads_stays_in_force() {
    let (clients, mut routed) = wrapped(
        r#"[{"handle": [{"handler": "throttle", "read_bytes_per_second": 1000, "read_burst_size": 1000}]}]"#,
    );
    let mut client = clients.connect().await;
    client.write_all(&[7; 5000]).await.unwrap();
    client.shutdown().await.unwrap();
    let start = Instant::now();
    assert_eq!(all(next(&mut routed).await).await, [7; 5000]);
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(3900) && took < Duration::from_secs(5),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_program_sees_the_addresses_of_an_accepted_header_and_the_variables() {
    let (clients, mut routed) = wrapped(
        r#"[{"match": [{"proxy_protocol": {}}], "handle": [
            {"handler": "vars", "from": "{l4.conn.remote_addr}"}, {"handler": "proxy_protocol"}]}]"#,
    );
    let mut client = clients.connect().await;
    client
        .write_all(b"PROXY TCP4 203.0.113.9 198.51.100.1 5000 80\r\nhello")
        .await
        .unwrap();
    client.shutdown().await.unwrap();
    let (stream, remote) = routed.accept().await.unwrap();
    assert_eq!(remote.to_string(), "203.0.113.9:5000");
    assert_eq!(stream.remote(), &remote);
    assert_eq!(stream.local().to_string(), "198.51.100.1:80");
    assert_eq!(stream.var("from"), Some("192.0.2.1:1000"));
    assert!(stream.tls().is_none());
    assert_eq!(all(stream).await, b"hello");

    let _plain = clients.connect().await;
    let (stream, remote) = routed.accept().await.unwrap();
    assert_eq!(remote.to_string(), "192.0.2.1:1000");
    assert_eq!(stream.local().to_string(), "192.0.2.2:443");
}

#[tokio::test]
async fn terminated_tls_comes_out_as_plaintext_with_what_was_agreed_on() {
    let key = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let config = serde_json::json!({
        "routes": [{"match": [{"tls": {}}], "handle": [{"handler": "tls"}]}],
        "apps": {"tls": {"certificates": {"load_pem": [
            {"certificate": key.cert.pem(), "key": key.signing_key.serialize_pem()}
        ]}}},
    });
    let (clients, mut routed) = wrapped(&config.to_string());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(key.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let raw = clients.connect().await;
    let client = tokio::spawn(async move {
        let name = "a.example".try_into().unwrap();
        let mut stream = connector.connect(name, raw).await.unwrap();
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
        all(stream).await
    });
    let mut stream = next(&mut routed).await;
    let tls = stream.tls().unwrap();
    assert_eq!(tls.server_name.as_deref(), Some("a.example"));
    assert_eq!((&*tls.protocol, tls.version), (&b"http/1.1"[..], 0x0304));
    let mut question = Vec::new();
    stream.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    stream.write_all(b"answer").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(client.await.unwrap(), b"answer");
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_listener_are_survived() {
    let (clients, mut routed) = wrapped("[]");
    let start = Instant::now();
    for _ in 0..5 {
        // EMFILE
        clients
            .0
            .send(Err(io::Error::from_raw_os_error(24)))
            .await
            .unwrap();
    }
    clients
        .0
        .send(Err(ErrorKind::ConnectionAborted.into()))
        .await
        .unwrap();
    let _client = clients.connect().await;
    next(&mut routed).await;
    // 10, 20, 40, 80 and 160 ms.
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(310) && took < Duration::from_millis(330),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_connections_are_pending_than_may_be() {
    let (clients, mut routed) = wrap(
        routes(&format!(
            r#"{{"matching_timeout": "10s", "routes": [{ECHO}]}}"#
        ))
        .max_pending(2),
    );
    let start = Instant::now();
    let _silent = [clients.connect().await, clients.connect().await];
    let mut third = clients.connect().await;
    third.write_all(b"hello").await.unwrap();
    third.shutdown().await.unwrap();
    next(&mut routed).await;
    // Until the silent ones came out there was no room for it.
    assert!(start.elapsed() >= Duration::from_secs(10));
    next(&mut routed).await;
    assert_eq!(all(next(&mut routed).await).await, b"hello");
}

/// Keeps the bytes moving, and nothing of the connection.
struct Relays;

impl HandlerModule for Relays {
    const NAME: &'static str = "relays";
    type Config = serde_json::Map<String, serde_json::Value>;

    fn provision(_: Self::Config, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Relays {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        let mut transport = conn.into_transport();
        tokio::io::copy(&mut transport, &mut tokio::io::sink()).await?;
        Ok(Flow::Done)
    }

    fn terminal(&self) -> bool {
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_relayed_connection_is_not_pending() {
    let mut reg = registry();
    reg.handler::<Relays>();
    let json = r#"[{"match": [{"regexp": {"count": 1, "pattern": "r"}}], "handle": [{"handler": "relays"}]}]"#;
    let (clients, mut routed) = wrap(Routes::from_json(&reg, json).unwrap().max_pending(1));
    let mut relayed = clients.connect().await;
    relayed.write_all(b"r").await.unwrap();
    let mut other = clients.connect().await;
    other.write_all(b"x").await.unwrap();
    let start = Instant::now();
    next(&mut routed).await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(routed.control().active(), 1);
}

#[tokio::test(start_paused = true)]
async fn routes_are_replaced_for_new_connections_and_old_ones_go_on() {
    let (clients, mut routed) = wrapped(&format!("[{ECHO}]"));
    let control = routed.control();
    let mut old = clients.connect().await;
    old.write_all(b"echo a").await.unwrap();
    let mut echoed = [0; 6];
    old.read_exact(&mut echoed).await.unwrap();
    control.replace(routes("[]"));
    let mut new = clients.connect().await;
    new.write_all(b"echo b").await.unwrap();
    new.shutdown().await.unwrap();
    assert_eq!(all(next(&mut routed).await).await, b"echo b");
    assert_eq!(control.active(), 1);
    old.write_all(b" on").await.unwrap();
    old.shutdown().await.unwrap();
    assert_eq!(all(old).await, b" on");
    assert_eq!(control.drain(Duration::from_secs(5)).await, 0);
}

/// Does nothing to connections, and runs a task beside them that holds a sender.
struct Busy;

impl Busy {
    fn register(alive: &mpsc::Sender<()>) -> Registry {
        let mut reg = registry();
        let alive = alive.clone();
        reg.add_inline::<Handlers, serde_json::Map<String, serde_json::Value>>(
            "busy",
            "handler",
            move |_, cx| {
                let alive = alive.clone();
                cx.on_start(move |generation| {
                    generation.background(async move {
                        let _ = alive.send(()).await;
                        std::future::pending().await
                    });
                });
                Ok(Box::new(Self))
            },
        );
        reg
    }
}

impl AsyncHandler for Busy {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        Ok(Flow::Next(conn))
    }
}

#[tokio::test(start_paused = true)]
async fn background_tasks_run_with_the_wrapper_and_end_with_it() {
    let (alive, mut running) = mpsc::channel(1);
    let json = r#"[{"handle": [{"handler": "busy"}]}]"#;
    let loaded = Routes::from_json(&Busy::register(&alive), json).unwrap();
    drop(alive);
    tokio::task::yield_now().await;
    assert!(running.try_recv().is_err(), "loading starts nothing");
    let (_clients, routed) = wrap(loaded);
    assert_eq!(running.recv().await, Some(()));
    drop(routed);
    assert_eq!(running.recv().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wrapper_leaves_handlers_to_their_work_until_they_are_told_to_end() {
    let (clients, routed) = wrapped(&format!("[{ECHO}]"));
    let control: Control = routed.control();
    let mut taken = clients.connect().await;
    taken.write_all(b"echo a").await.unwrap();
    let mut echoed = [0; 6];
    taken.read_exact(&mut echoed).await.unwrap();
    let mut left = clients.connect().await;
    left.write_all(b"nobody").await.unwrap();
    drop(routed);
    // Nobody is there any more who would take it.
    assert_eq!(all(left).await, b"");
    assert!(clients.0.is_closed());
    taken.write_all(b" b").await.unwrap();
    taken.read_exact(&mut echoed[..2]).await.unwrap();
    let start = Instant::now();
    assert_eq!(control.drain(Duration::from_secs(5)).await, 1);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    assert_eq!(all(taken).await, b"");
}

#[tokio::test]
async fn sockets_of_both_kinds_can_be_wrapped_and_are_closed_with_the_wrapper() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut routed = routes(&format!("[{ECHO}]")).wrap(listener);
    let address = routed.local_addr().unwrap().socket().unwrap();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let (stream, remote) = routed.accept().await.unwrap();
    assert_eq!(remote, Addr::Tcp(client.local_addr().unwrap()));
    assert_eq!(stream.local(), &Addr::Tcp(address));
    assert!(tokio::io::AsyncWrite::is_write_vectored(&stream));
    assert_eq!(all(stream).await, b"hello");
    routed.close().await;
    let refused = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let mut routed = routes("[]").wrap(UnixListener::bind(&path).unwrap());
    let mut client = UnixStream::connect(&path).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    client.shutdown().await.unwrap();
    let (stream, remote) = routed.accept().await.unwrap();
    assert_eq!(remote, Addr::UNNAMED);
    assert_eq!(all(stream).await, b"hello");
}

#[test]
fn what_is_wrong_with_routes_is_said_with_its_place() {
    for (json, place, said) in [
        (r#"[{"handle": [{"handler": "ecco"}]}]"#, "1:26", "echo"),
        (
            r#"{"routes": [], "listen": [":80"]}"#,
            "/listen",
            "give the program its listener",
        ),
        (
            r#"{"apps": {"layer4": {}}}"#,
            "/apps/layer4",
            "beside \"apps\"",
        ),
        (r#"{"wrapper": "tls"}"#, "/wrapper", "write \"layer4\""),
        (r#"{"rutes": []}"#, "/rutes", "routes"),
        ("[", "routes:1", ""),
    ] {
        let Err(errors) = Routes::from_json(&registry(), json) else {
            panic!("{json} was accepted");
        };
        let message = errors.to_string();
        assert!(
            message.contains(place) && message.contains(said),
            "{json}: {message}"
        );
    }
    let missing = Routes::from_file(&registry(), "/nonexistent/routes.json")
        .err()
        .unwrap();
    assert!(
        missing.to_string().contains("/nonexistent/routes.json"),
        "{missing}"
    );
    let twice = r#"[{"handle": [{"handler": "echo"}]}, {"handle": [{"handler": "close"}]}]"#;
    assert_eq!(routes(twice).warnings().len(), 1);
    let mut conflicting = registry();
    l4_std::register(&mut conflicting);
    assert!(Routes::from_json(&conflicting, "[]").is_err());
}
