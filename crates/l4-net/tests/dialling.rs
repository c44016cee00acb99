//! Connecting to upstreams, on loopback only.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener};
use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use l4_core::config::Address;
use l4_core::{Addr, Io};
use l4_net::dial::{DialError, DialOptions, Dialled, Preference, Resolve, Target, TargetError};
use l4_net::dial::{connect, connect_with};
use socket2::{Domain, SockRef, Socket, Type};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use support::soon;

fn target(text: &str) -> Target {
    Target::new(&text.parse::<Address>().unwrap()).unwrap()
}

fn within(limit: Duration) -> DialOptions {
    DialOptions::within(Some(limit))
}

const SHORT: Duration = Duration::from_millis(600);

/// Says that every name has these addresses, and counts how often it was asked.
struct Names(Vec<SocketAddr>, Mutex<usize>);

impl Names {
    fn are(addresses: &[SocketAddr]) -> Self {
        Self(addresses.to_vec(), Mutex::default())
    }
}

impl Resolve for Names {
    async fn lookup(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        *self.1.lock().unwrap() += 1;
        Ok(self.0.clone())
    }
}

/// A resolver that must not be asked.
struct Nobody;

impl Resolve for Nobody {
    async fn lookup(&self, host: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        panic!("{host} was looked up")
    }
}

/// A resolver that never answers.
struct Silent;

impl Resolve for Silent {
    async fn lookup(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
        std::future::pending().await
    }
}

fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port on which nobody listens, and which nobody else gets: it is bound.
struct Refusing(#[allow(dead_code, reason = "kept open")] Socket, SocketAddr);

impl Refusing {
    fn new() -> Self {
        let (socket, address) = bound();
        Self(socket, address)
    }
}

fn bound() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A listener that does not answer: its queue is full, so the kernel drops what else arrives.
struct Blackhole {
    listener: Socket,
    address: SocketAddr,
    waiting: Vec<Socket>,
}

impl Blackhole {
    fn new() -> Self {
        let (listener, address) = bound();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            if client
                .connect_timeout(&address.into(), Duration::from_millis(200))
                .is_err()
            {
                return Self {
                    listener,
                    address,
                    waiting,
                };
            }
            waiting.push(client);
        }
    }

    /// Takes what waits, so that it answers when asked again: a second after the first time, which is when the
    /// kernel repeats itself.
    fn answer(&self) {
        for _ in &self.waiting {
            self.listener.accept().unwrap();
        }
    }
}

fn tcp(dialled: Dialled) -> tokio::net::TcpStream {
    match dialled.io {
        Io::Tcp(socket) => socket,
        _ => panic!("not TCP"),
    }
}

#[tokio::test]
async fn an_address_is_connected_to_without_asking_the_resolver() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let (listener, address) = listener(bind);
        for text in [address.to_string(), format!("tcp/{address}")] {
            let dialled = connect_with(&Nobody, &target(&text), &within(SHORT))
                .await
                .unwrap();
            assert_eq!(dialled.peer, Addr::Tcp(address));
            let ours = tcp(dialled).local_addr().unwrap();
            assert_eq!(listener.accept().unwrap().1, ours);
        }
    }
}

#[tokio::test]
async fn an_ipv4_address_in_ipv6_form_is_an_ipv4_address() {
    let (_listener, address) = listener("127.0.0.1:0");
    let target = target(&format!("[::ffff:127.0.0.1]:{}", address.port()));
    let dialled = connect_with(&Nobody, &target, &within(SHORT))
        .await
        .unwrap();
    assert_eq!(dialled.peer, Addr::Tcp(address));
}

#[tokio::test]
async fn a_missing_host_is_this_machine() {
    let (_listener, address) = listener("127.0.0.1:0");
    let dialled = connect(&target(&format!(":{}", address.port())), &within(SHORT))
        .await
        .unwrap();
    assert_eq!(dialled.peer, Addr::Tcp(address));
    let (_listener, address) = listener("[::1]:0");
    let target = target(&format!("tcp6/:{}", address.port()));
    assert_eq!(
        connect(&target, &within(SHORT)).await.unwrap().peer,
        Addr::Tcp(address)
    );
}

#[tokio::test]
async fn zones_are_interfaces() {
    let (_listener, address) = listener("[::1]:0");
    let known = target(&format!("[::1%lo]:{}", address.port()));
    connect(&known, &within(SHORT)).await.unwrap();
    let unknown = target("[fe80::1%nosuch0]:80");
    let error = connect(&unknown, &within(SHORT)).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "[fe80::1%nosuch0]:80: there is no network interface \"nosuch0\""
    );
}

#[tokio::test]
async fn dialled_sockets_do_not_delay() {
    let (_listener, address) = listener("127.0.0.1:0");
    let socket = tcp(connect(&target(&address.to_string()), &within(SHORT))
        .await
        .unwrap());
    let socket = SockRef::from(&socket);
    assert!(socket.tcp_nodelay().unwrap());
}

#[tokio::test]
async fn who_speaks_first_completes_the_handshake_with_the_first_bytes() {
    let (listener, address) = listener("127.0.0.1:0");
    listener.set_nonblocking(true).unwrap();
    let accepted = async || loop {
        match listener.accept() {
            Ok(accepted) => return accepted,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mut options = within(SHORT);
    let mut dial = async |speaks_first| {
        options.speaks_first = speaks_first;
        let dialled = connect(&target(&address.to_string()), &options).await;
        tcp(dialled.unwrap())
    };
    // Connections wait for being accepted in the order in which their handshakes were completed.
    let (one, two) = (dial(false).await, dial(false).await);
    for silent in [&one, &two] {
        let (_, from) = soon(accepted()).await;
        assert_eq!(from, silent.local_addr().unwrap());
    }
    let mut overtaken = 0;
    for _ in 0..5 {
        let mut speaker = dial(true).await;
        let silent = dial(false).await;
        let (first, from) = soon(accepted()).await;
        soon(speaker.write_all(b"hello")).await.unwrap();
        let (second, _) = soon(accepted()).await;
        let mut of_speaker = if from == silent.local_addr().unwrap() {
            overtaken += 1;
            second
        } else {
            first
        };
        of_speaker.set_nonblocking(false).unwrap();
        let mut bytes = [0; 5];
        of_speaker.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }
    // The kernel waits for the bytes for 40 ms or more; a busy machine may let that pass now and then.
    assert!(overtaken > 0);
}

#[tokio::test]
async fn within_this_machine_a_connection_is_there_or_refused_without_waiting() {
    let (_listener, address) = listener("127.0.0.1:0");
    let refusing = Refusing::new();
    let black_hole = Blackhole::new();
    let options = within(SHORT);
    let at_once = |address: SocketAddr| {
        let target = target(&address.to_string());
        let connecting = pin!(connect(&target, &options));
        connecting.poll(&mut Context::from_waker(Waker::noop()))
    };
    // The kernel may have other packets to see to first.
    let ever = |is: fn(Poll<Result<Dialled, DialError>>) -> bool, address| {
        (0..20).any(|_| is(at_once(address)))
    };
    assert!(ever(|dial| matches!(dial, Poll::Ready(Ok(_))), address));
    assert!(ever(|dial| matches!(dial, Poll::Ready(Err(_))), refusing.1));
    assert!(at_once(black_hole.address).is_pending());
}

#[tokio::test]
async fn a_name_is_looked_up_at_every_dial() {
    let (_listener, address) = listener("127.0.0.1:0");
    let names = Names::are(&[address]);
    for _ in 0..3 {
        connect_with(&names, &target("upstream.test:80"), &within(SHORT))
            .await
            .unwrap();
    }
    assert_eq!(*names.1.lock().unwrap(), 3);
    let (_listener, address) = listener("127.0.0.1:0");
    let real = target(&format!("localhost:{}", address.port()));
    assert_eq!(
        connect(&real, &within(SHORT)).await.unwrap().peer,
        Addr::Tcp(address)
    );
}

#[tokio::test]
async fn a_silent_address_delays_by_the_staggering_only() {
    let silent = Blackhole::new();
    let (_listener, address) = listener("127.0.0.1:0");
    let names = Names::are(&[silent.address, address]);
    let before = Instant::now();
    let options = within(Duration::from_secs(10));
    let dialled = connect_with(&names, &target("upstream.test:80"), &options)
        .await
        .unwrap();
    let took = before.elapsed();
    assert_eq!(dialled.peer, Addr::Tcp(address));
    assert!(took >= Duration::from_millis(250), "{took:?}");
    assert!(took < Duration::from_millis(900), "{took:?}");
}

#[tokio::test]
async fn an_attempt_goes_on_while_the_next_address_is_tried() {
    let (first, second) = (Blackhole::new(), Blackhole::new());
    let names = Names::are(&[first.address, second.address]);
    let target = target("upstream.test:80");
    let options = within(Duration::from_secs(10));
    let answering = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        first.answer();
    };
    let (dialled, ()) = tokio::join!(connect_with(&names, &target, &options), answering);
    assert_eq!(dialled.unwrap().peer, Addr::Tcp(first.address));
}

#[tokio::test]
async fn the_next_address_is_tried_at_once_when_one_refuses() {
    let (_listener, address) = listener("127.0.0.1:0");
    let refusing = [Refusing::new(), Refusing::new()];
    let names = Names::are(&[refusing[0].1, refusing[1].1, address]);
    let before = Instant::now();
    let dialled = connect_with(&names, &target("upstream.test:80"), &within(SHORT))
        .await
        .unwrap();
    assert_eq!(dialled.peer, Addr::Tcp(address));
    assert!(
        before.elapsed() < Duration::from_millis(200),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test]
async fn when_all_refuse_all_are_named() {
    let refusing = [Refusing::new(), Refusing::new()];
    let (one, two) = (refusing[0].1, refusing[1].1);
    let error = connect_with(
        &Names::are(&[one, two]),
        &target("upstream.test:80"),
        &within(SHORT),
    )
    .await
    .err()
    .unwrap();
    assert_eq!(
        error.to_string(),
        format!(
            "connecting to upstream.test:80: {one}: Connection refused (os error 111); \
             {two}: Connection refused (os error 111)"
        )
    );
    assert!(!error.is_timeout());
    assert_eq!(
        error.reason().unwrap().kind(),
        io::ErrorKind::ConnectionRefused
    );
    let error = connect(&target(&one.to_string()), &within(SHORT))
        .await
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        format!("connecting to {one}: Connection refused (os error 111)")
    );
}

/// Row P6 of docs/defects.md.
#[tokio::test]
async fn silence_ends_at_the_limit() {
    let silent = Blackhole::new();
    let limit = Duration::from_millis(300);
    let before = Instant::now();
    let error = connect(&target(&silent.address.to_string()), &within(limit))
        .await
        .err()
        .unwrap();
    let took = before.elapsed();
    assert!(took >= limit && took < limit * 3, "{took:?}");
    assert!(error.is_timeout());
    assert_eq!(
        error.to_string(),
        format!("connecting to {}: no answer within 300ms", silent.address)
    );

    let refusing = Refusing::new();
    let one = refusing.1;
    let names = Names::are(&[one, silent.address]);
    let error = connect_with(&names, &target("up.test:80"), &within(limit))
        .await
        .err()
        .unwrap();
    assert!(error.is_timeout());
    assert_eq!(
        error.to_string(),
        format!(
            "connecting to up.test:80: no answer within 300ms; \
             before that {one}: Connection refused (os error 111)"
        )
    );
}

#[tokio::test]
async fn a_resolver_that_does_not_answer_counts_towards_the_limit() {
    let limit = Duration::from_millis(100);
    let error = connect_with(&Silent, &target("up.test:80"), &within(limit))
        .await
        .err()
        .unwrap();
    assert!(error.is_timeout());
    assert_eq!(
        error.to_string(),
        "connecting to up.test:80: the name was not resolved within 100ms"
    );
}

#[tokio::test]
async fn a_network_of_one_ip_version_leaves_the_other_addresses_out() {
    let (_four, four) = listener("127.0.0.1:0");
    let (_six, six) = listener("[::1]:0");
    let names = Names::are(&[four, six]);
    for (text, expected) in [
        ("up.test:1", four),
        ("tcp4/up.test:1", four),
        ("tcp6/up.test:1", six),
    ] {
        let dialled = connect_with(&names, &target(text), &within(SHORT))
            .await
            .unwrap();
        assert_eq!(dialled.peer, Addr::Tcp(expected), "{text}");
    }
    let error = connect_with(
        &Names::are(&[four]),
        &target("tcp6/up.test:1"),
        &within(SHORT),
    )
    .await;
    assert_eq!(
        error.err().unwrap().to_string(),
        "tcp6/up.test:1: no suitable address found, it has no IPv6 address"
    );
    let error = connect_with(&Names::are(&[]), &target("up.test:1"), &within(SHORT)).await;
    assert!(matches!(error, Err(DialError::NoSuitableAddress { .. })));
}

#[tokio::test]
async fn ip_versions_take_turns() {
    // Three of IPv4 that are silent come before the one of IPv6 in the resolver's order, but that is the second try.
    let silent = [Blackhole::new(), Blackhole::new(), Blackhole::new()];
    let (_listener, six) = listener("[::1]:0");
    let names = Names::are(&[silent[0].address, silent[1].address, silent[2].address, six]);
    let before = Instant::now();
    let options = within(Duration::from_secs(10));
    let dialled = connect_with(&names, &target("up.test:1"), &options)
        .await
        .unwrap();
    assert_eq!(dialled.peer, Addr::Tcp(six));
    assert!(
        before.elapsed() < Duration::from_millis(500),
        "{:?}",
        before.elapsed()
    );
}

#[tokio::test]
async fn unix_sockets_are_reached_by_path_and_by_abstract_name() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    // The mode bits of a listen address do not matter here.
    for suffix in ["", "|0222"] {
        let text = format!("unix/{}{suffix}", path.display());
        let dialled = connect(&target(&text), &within(SHORT)).await.unwrap();
        assert!(matches!(dialled.io, Io::Unix(_)));
        assert_eq!(dialled.peer.to_string(), path.display().to_string());
        listener.accept().unwrap();
    }
    let name = format!("conncept-test-dial-{}", std::process::id());
    let address = UnixAddr::from_abstract_name(&name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let dialled = connect(&target(&format!("unix/@{name}")), &within(SHORT))
        .await
        .unwrap();
    assert_eq!(dialled.peer.to_string(), format!("@{name}"));
    listener.accept().unwrap();
}

#[tokio::test]
async fn a_unix_socket_that_is_not_there_is_explained() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s").display().to_string();
    let error = connect(&target(&format!("unix/{path}")), &within(SHORT))
        .await
        .err()
        .unwrap();
    assert_eq!(
        error.to_string(),
        format!("connecting to unix/{path}: No such file or directory (os error 2)")
    );
    drop(UnixListener::bind(&path).unwrap());
    let error = connect(&target(&format!("unix/{path}")), &within(SHORT))
        .await
        .err()
        .unwrap();
    assert_eq!(
        error.reason().unwrap().kind(),
        io::ErrorKind::ConnectionRefused
    );
}

#[tokio::test]
async fn a_unix_listener_whose_queue_is_full_is_waited_for() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener
        .bind(&socket2::SockAddr::unix(&path).unwrap())
        .unwrap();
    listener.listen(0).unwrap();
    let target = target(&format!("unix/{}", path.display()));
    let _first = connect(&target, &within(SHORT)).await.unwrap();
    let error = connect(&target, &within(Duration::from_millis(200)))
        .await
        .err()
        .unwrap();
    assert!(error.is_timeout(), "{error}");
    let options = within(Duration::from_secs(5));
    let waiting = connect(&target, &options);
    let accepting = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        listener.accept().unwrap();
    };
    let (dialled, ()) = tokio::join!(waiting, accepting);
    dialled.unwrap();
}

async fn exchange(dialled: Dialled, datagram: &[u8]) -> Vec<u8> {
    let Io::Datagram(mut session) = dialled.io else {
        panic!("not a datagram socket")
    };
    std::future::poll_fn(|cx| session.poll_send(cx, datagram))
        .await
        .unwrap();
    soon(std::future::poll_fn(|cx| session.poll_recv(cx)))
        .await
        .unwrap()
        .to_vec()
}

#[tokio::test]
async fn datagrams_are_exchanged_with_udp_servers() {
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        let server = UdpSocket::bind(bind).unwrap();
        let address = server.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let mut buffer = vec![0; 65_535];
            let (n, peer) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..n], peer).unwrap();
        });
        let dialled = connect_with(&Nobody, &target(&format!("udp/{address}")), &within(SHORT))
            .await
            .unwrap();
        assert_eq!(dialled.peer, Addr::Udp(address));
        let datagram = vec![7; 60_000];
        assert_eq!(exchange(dialled, &datagram).await, datagram);
        answering.join().unwrap();
    }
}

#[tokio::test]
async fn a_unixgram_server_can_answer() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let server = UnixDatagram::bind(&path).unwrap();
    let answering = std::thread::spawn(move || {
        let mut buffer = [0; 100];
        let (n, peer) = server.recv_from(&mut buffer).unwrap();
        // The client has no file, but a name.
        server.send_to_addr(&buffer[..n], &peer).unwrap();
    });
    let dialled = connect(
        &target(&format!("unixgram/{}", path.display())),
        &within(SHORT),
    )
    .await
    .unwrap();
    assert_eq!(exchange(dialled, b"hello").await, b"hello");
    answering.join().unwrap();
}

#[test]
fn what_cannot_be_dialled_is_refused_beforehand() {
    let long = format!("unix//{}", "x".repeat(120));
    for (text, expected) in [
        ("fd/3", "fd/3: fd addresses cannot be dialled"),
        (
            "http://x:80",
            "http://x:80: http: addresses cannot be dialled",
        ),
        (
            "127.0.0.1:80-81",
            "127.0.0.1:80-81: port ranges are currently not supported",
        ),
        (
            "127.0.0.1",
            "127.0.0.1:0: nothing listens on port 0, write host:port",
        ),
        ("unix/", "unix/: a Unix socket needs a path"),
        (
            "tcp4/[::1]:80",
            "tcp4/[::1]:80: not an address of network tcp4",
        ),
        (
            "udp6/127.0.0.1:80",
            "udp6/127.0.0.1:80: not an address of network udp6",
        ),
        (
            &*long,
            &format!("{long}: a Unix socket's path has at most 107 bytes"),
        ),
    ] {
        let error: TargetError = Target::new(&text.parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn targets_print_as_they_are_written() {
    for text in [
        "127.0.0.1:80",
        "[::1]:80",
        "[fe80::1%eth0]:80",
        "example.com:443",
        "tcp6/example.com:443",
        "udp/:53",
        "unix//run/x.sock",
        "unixgram/@name",
    ] {
        assert_eq!(target(text).to_string(), text);
    }
    assert!(target("udp/:53").is_datagram() && target("unixgram/@name").is_datagram());
    assert!(!target("unix//run/x.sock").is_datagram());
    assert_eq!(target("example.com:443").name(), Some("example.com"));
    assert_eq!(target("[::1]:443").name(), None);
}

/// Options with these source addresses and this preference.
fn from(sources: &[&str], preference: impl Into<Option<Preference>>) -> DialOptions {
    let mut options = within(Duration::from_secs(5));
    let read = |source: &&str| l4_net::dial::source_address(source).unwrap();
    options.sources = sources.iter().map(read).collect();
    options.preference = preference.into();
    options
}

/// A listener on the same port of 127.0.0.1 and ::1, which stand for a name with both.
fn dual_stack() -> (TcpListener, TcpListener, Names) {
    loop {
        let (four, address) = listener("127.0.0.1:0");
        let other = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, address.port()));
        if let Ok(six) = TcpListener::bind(other) {
            return (four, six, Names::are(&[other, address]));
        }
    }
}

fn name_of_both(names: &Names) -> Target {
    target(&format!("both.test:{}", names.0[0].port()))
}

#[tokio::test]
async fn a_source_address_is_what_the_peer_sees() {
    let (four, address) = listener("127.0.0.1:0");
    let options = from(&["127.0.0.5"], None);
    let dialled = connect(&target(&address.to_string()), &options).await;
    let (_, seen) = four.accept().unwrap();
    assert_eq!(seen.ip().to_string(), "127.0.0.5");
    assert_eq!(tcp(dialled.unwrap()).local_addr().unwrap(), seen);

    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = format!("udp/{}", udp.local_addr().unwrap());
    let dialled = connect(&target(&text), &options).await.unwrap();
    let Io::Datagram(session) = dialled.io else {
        panic!("no datagrams")
    };
    let ours = session.local().ip().unwrap();
    assert_eq!(ours.to_string(), "127.0.0.5");
}

#[tokio::test]
async fn a_source_port_is_bound_exactly_and_can_be_used_again() {
    let (_one, first) = listener("127.0.0.1:0");
    let (_two, second) = listener("127.0.0.1:0");
    let port = Refusing::new().1.port();
    let options = from(&[&format!("127.0.0.6:{port}")], None);
    let mut connections = Vec::new();
    for address in [first, second] {
        let dialled = connect(&target(&address.to_string()), &options).await;
        let socket = tcp(dialled.unwrap());
        assert_eq!(socket.local_addr().unwrap().port(), port);
        connections.push(socket);
    }
}

#[tokio::test]
async fn sources_of_the_destinations_ip_version_are_tried_in_order_and_the_last_error_is_told() {
    let (four, address) = listener("127.0.0.1:0");
    let to = target(&address.to_string());
    // 192.0.2.0/24 is for documentation: nobody has an address of it.
    let options = from(&["::1", "192.0.2.99", "127.0.0.7", "127.0.0.8"], None);
    connect(&to, &options).await.unwrap();
    assert_eq!(four.accept().unwrap().1.ip().to_string(), "127.0.0.7");
    let error = connect(&to, &from(&["192.0.2.99", "192.0.2.98:4000"], None)).await;
    let error = error.err().unwrap().to_string();
    assert!(error.contains("from 192.0.2.99: "), "{error}");
    assert!(error.contains("from 192.0.2.98:4000: "), "{error}");
    // Documented fall-back: none fits, so the system chooses.
    connect(&to, &from(&["::1"], None)).await.unwrap();
    assert_eq!(four.accept().unwrap().1.ip().to_string(), "127.0.0.1");
}

#[tokio::test]
async fn a_preference_chooses_among_the_addresses_of_a_name() {
    use Preference::{V4First, V4Only, V6First, V6Only};
    let (_four, _six, both) = dual_stack();
    let name = name_of_both(&both);
    for (preference, expected) in [
        (V4Only, "127.0.0.1"),
        (V4First, "127.0.0.1"),
        (V6Only, "::1"),
        (V6First, "::1"),
    ] {
        let dialled = connect_with(&both, &name, &from(&[], preference)).await;
        let peer = dialled.unwrap().peer.ip().unwrap();
        assert_eq!(peer.to_string(), expected, "{preference}");
    }
    let [six, four] = both.0[..] else {
        panic!("two addresses")
    };
    for (has, preference, expected) in [
        (six, V4First, Ok(six)),
        (four, V6First, Ok(four)),
        (
            six,
            V4Only,
            Err("resolver_preference ipv4_only but no A records found for both.test"),
        ),
        (
            four,
            V6Only,
            Err("resolver_preference ipv6_only but no AAAA records found for both.test"),
        ),
    ] {
        let dialled = connect_with(&Names::are(&[has]), &name, &from(&[], preference)).await;
        match (dialled, expected) {
            (Ok(dialled), Ok(address)) => assert_eq!(dialled.peer, Addr::Tcp(address)),
            (Err(error), Err(text)) => {
                assert!(error.to_string().contains(text), "{error}");
                assert!(!error.is_contradiction());
            }
            (dialled, _) => panic!("{preference}: {:?}", dialled.map(|dialled| dialled.peer)),
        }
    }
}

#[tokio::test]
async fn what_is_fixed_may_not_contradict_the_only_version_allowed() {
    use Preference::{V4First, V4Only, V6First, V6Only};
    for (text, preference, word) in [
        (
            "[::1]:9",
            V4Only,
            "ipv4_only but destination is IPv6 literal (::1)",
        ),
        (
            "127.0.0.1:9",
            V6Only,
            "ipv6_only but destination is IPv4 literal (127.0.0.1)",
        ),
        (
            "tcp4/a.test:9",
            V6Only,
            "ipv6_only but destination is of an IPv4 network",
        ),
        (
            "udp6/a.test:9",
            V4Only,
            "ipv4_only but destination is of an IPv6 network",
        ),
    ] {
        let dialled = connect_with(&Nobody, &target(text), &from(&[], preference)).await;
        let error = dialled.err().unwrap();
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.is_contradiction());
    }
    let (_listener, address) = listener("127.0.0.1:0");
    for preference in [V4Only, V4First, V6First] {
        let to = target(&address.to_string());
        connect(&to, &from(&[], preference)).await.unwrap();
    }
    let (_four, _six, both) = dual_stack();
    let four = target(&format!("tcp4/both.test:{}", both.0[0].port()));
    let dialled = connect_with(&both, &four, &from(&[], V6First)).await;
    let peer = dialled.unwrap().peer.ip().unwrap();
    assert!(peer.is_ipv4(), "a network counts more than a preference");
}

#[tokio::test]
async fn p22_the_first_source_address_decides_where_no_preference_is_given() {
    let (four, six, both) = dual_stack();
    let name = name_of_both(&both);
    for (sources, seen) in [
        (["::1", "127.0.0.9"], "::1"),
        (["127.0.0.9", "::1"], "127.0.0.9"),
    ] {
        connect_with(&both, &name, &from(&sources, None))
            .await
            .unwrap();
        let accepted = if seen == "::1" {
            six.accept()
        } else {
            four.accept()
        };
        assert_eq!(accepted.unwrap().1.ip().to_string(), seen);
    }
    let four_only = Names::are(&[both.0[1]]);
    connect_with(&four_only, &name, &from(&["::1", "127.0.0.9"], None))
        .await
        .unwrap();
    let seen = four.accept().unwrap().1.ip();
    assert_eq!(seen.to_string(), "127.0.0.9", "a name without IPv6");
}

#[tokio::test]
async fn this_machine_is_reached_over_the_ip_version_that_is_preferred() {
    let (_four, _six, both) = dual_stack();
    let here = target(&format!(":{}", both.0[0].port()));
    for (options, expected) in [
        (from(&[], None), "127.0.0.1"),
        (from(&[], Preference::V6First), "::1"),
        (from(&["::1"], None), "::1"),
    ] {
        let dialled = connect_with(&Nobody, &here, &options).await.unwrap();
        assert_eq!(dialled.peer.ip().unwrap().to_string(), expected);
    }
}
