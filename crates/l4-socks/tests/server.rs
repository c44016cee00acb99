//! The handler `socks5` over real sockets: what its clients and their targets see. Defects of the reference that it must
//! not have are named by their tags, S1 to S7.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "server")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use l4_core::{
    Addr, AsyncHandler, Connection, EndReason, Flow, HandlerModule, Io, Provision, Record,
    Registry, Rejected, Rest, Result, Transport,
};
use l4_testkit::{Router, connection, load, session};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long anything that should happen may take.
const PATIENCE: Duration = Duration::from_secs(20);

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn modules(reg: &mut Registry) {
    l4_socks::register(reg);
    reg.handler::<Readdress>();
    reg.handler::<Cover>();
}

/// Stands for an accepted PROXY header: the addresses of the client and of a machine in front of this one.
struct Readdress {
    remote: SocketAddr,
    local: SocketAddr,
}

#[derive(Deserialize, JsonSchema)]
struct ReaddressConfig {
    remote: SocketAddr,
    local: SocketAddr,
}

impl HandlerModule for Readdress {
    const NAME: &'static str = "readdress";
    type Config = ReaddressConfig;

    fn provision(config: ReaddressConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        let ReaddressConfig { remote, local } = config;
        Ok(Self { remote, local })
    }
}

impl AsyncHandler for Readdress {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        conn.set_addresses(Addr::Tcp(self.remote), Addr::Tcp(self.local));
        Ok(Flow::Next(conn))
    }
}

/// Stands for a layer such as TLS, which has no address of its own.
struct Cover;

#[derive(Deserialize, JsonSchema)]
struct CoverConfig {}

impl HandlerModule for Cover {
    const NAME: &'static str = "cover";
    type Config = CoverConfig;

    fn provision(_: CoverConfig, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Cover {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        Ok(Flow::Next(
            conn.layer(async |below: Transport| Ok(below)).await?,
        ))
    }
}

/// A connection that is or was served: its record, and its task.
type Served = (Arc<Record>, JoinHandle<()>);

/// A server with the handler behind others, on a TCP socket.
struct Server {
    address: SocketAddr,
    served: Arc<Mutex<Vec<Served>>>,
}

impl Server {
    async fn new(fields: &str) -> Self {
        Self::behind("", fields).await
    }

    async fn behind(before: &str, fields: &str) -> Self {
        Self::on("127.0.0.1:0", before, fields).await
    }

    async fn on(listen: &str, before: &str, fields: &str) -> Self {
        let router = router(before, fields);
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::<Mutex<Vec<_>>>::default();
        let serving = served.clone();
        tokio::spawn(async move {
            loop {
                let (socket, peer) = listener.accept().await.unwrap();
                let record = Arc::new(Record::new(Addr::Tcp(peer)));
                let conn = Connection::new(Io::Tcp(socket), record, None);
                serving.lock().unwrap().push(router.serve(conn));
            }
        });
        Self { address, served }
    }

    async fn client(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// The record of the first connection, once it has ended.
    async fn record(&self) -> Arc<Record> {
        let (record, serving) = self.served.lock().unwrap().remove(0);
        soon(serving).await.unwrap();
        record
    }
}

fn router(before: &str, fields: &str) -> Router {
    let comma = if fields.is_empty() { "" } else { "," };
    let routes = format!(r#"[{{"handle":[{before}{{"handler":"socks5"{comma}{fields}}}]}}]"#);
    Router::new(modules, &routes)
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future).await.expect("it takes too long")
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn expect(&mut self, bytes: &[u8]) {
        let mut got = vec![0; bytes.len()];
        soon(self.0.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, bytes);
    }

    /// All that comes until the server ends its stream in order.
    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        soon(self.0.read_to_end(&mut rest)).await.unwrap();
        rest
    }

    /// Sends a request without authentication and returns the code and the address of the reply.
    async fn ask(&mut self, command: u8, address: &[u8]) -> (u8, SocketAddr) {
        self.send(&[GREETING, &[5, command, 0], address].concat())
            .await;
        self.expect(&[5, 0]).await;
        self.reply().await
    }

    async fn reply(&mut self) -> (u8, SocketAddr) {
        let mut head = [0; 4];
        soon(self.0.read_exact(&mut head)).await.unwrap();
        assert_eq!((head[0], head[2]), (5, 0));
        let ip: IpAddr = match head[3] {
            1 => self.0.read_u32().await.unwrap().to_be_bytes().into(),
            4 => self.0.read_u128().await.unwrap().to_be_bytes().into(),
            other => panic!("address type {other}"),
        };
        (head[1], (ip, self.0.read_u16().await.unwrap()).into())
    }

    /// The address that datagrams go to, after ASSOCIATE without an address.
    async fn associate(&mut self) -> SocketAddr {
        let (code, relay) = self.ask(ASSOCIATE, &encoded(UNKNOWN)).await;
        assert_eq!(code, 0);
        relay
    }
}

const GREETING: &[u8] = b"\x05\x01\x00";
const CONNECT: u8 = 1;
const BIND: u8 = 2;
const ASSOCIATE: u8 = 3;
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// What a failure carries.
const NOTHING: SocketAddr = UNKNOWN;

fn encoded(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address.ip() {
        IpAddr::V4(ip) => [&[1], &ip.octets()[..], &port].concat(),
        IpAddr::V6(ip) => [&[4], &ip.octets()[..], &port].concat(),
    }
}

fn named(name: &str, port: u16) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    [&[3, length], name.as_bytes(), &port.to_be_bytes()].concat()
}

/// A datagram for the relay.
fn datagram(address: &[u8], payload: &[u8]) -> Vec<u8> {
    [&[0, 0, 0], address, payload].concat()
}

/// A target that greets, then echoes in upper case until the end.
async fn target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                socket.write_all(b"hi ").await.unwrap();
                let mut buf = [0; 1024];
                while let Ok(n @ 1..) = socket.read(&mut buf).await {
                    let answer = buf[..n].to_ascii_uppercase();
                    socket.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    address
}

/// A target that sends datagrams back in upper case.
async fn udp_target(at: &str) -> SocketAddr {
    let socket = UdpSocket::bind(at).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buf = vec![0; 65_535];
        while let Ok((n, from)) = socket.recv_from(&mut buf).await {
            let answer = buf[..n].to_ascii_uppercase();
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    address
}

async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buf = vec![0; 65_535];
    let n = soon(socket.recv(&mut buf)).await.unwrap();
    buf.truncate(n);
    buf
}

/// A socket of the client's for datagrams to `relay`.
async fn socket_to(relay: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((LOCALHOST, 0)).await.unwrap();
    socket.connect(relay).await.unwrap();
    socket
}

/// Sends to an echo target, and expects the answer with the target's address.
async fn exchange(socket: &UdpSocket, to: &[u8], target: SocketAddr, payload: &[u8]) {
    socket.send(&datagram(to, payload)).await.unwrap();
    let answer = payload.to_ascii_uppercase();
    let expected = datagram(&encoded(target), &answer);
    assert!(receive(socket).await == expected, "another answer");
}

#[tokio::test]
async fn a_client_that_sends_everything_at_once_is_connected_and_loses_no_byte() {
    let target = target().await;
    let server = Server::new(r#""credentials":{"bob":"secret"}"#).await;
    let mut client = server.client().await;
    let all = [
        b"\x05\x02\x00\x02\x01\x03bob\x06secret\x05\x01\x00",
        &*encoded(target),
        b"payload",
    ];
    client.send(&all.concat()).await;
    client.0.shutdown().await.unwrap();
    client.expect(b"\x05\x02\x01\x00").await;
    let (code, local) = client.reply().await;
    assert_eq!((code, local.ip()), (0, LOCALHOST));
    assert_eq!(client.rest().await, b"hi PAYLOAD");
    let record = server.record().await;
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
    assert_eq!(record.upstream().as_deref(), Some(&*target.to_string()));
}

#[tokio::test]
async fn the_reply_names_the_local_address_of_the_connection_to_the_target() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = encoded(listener.local_addr().unwrap());
    let server = Server::new("").await;
    let mut client = server.client().await;
    let (asked, accepted) = tokio::join!(client.ask(CONNECT, &target), listener.accept());
    assert_eq!(asked, (0, accepted.unwrap().1));
}

#[tokio::test]
async fn an_ipv6_target_is_reached_and_replied_with_its_kind_of_address() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let target = encoded(listener.local_addr().unwrap());
    let server = Server::new("").await;
    let (code, local) = server.client().await.ask(CONNECT, &target).await;
    assert_eq!((code, local.ip()), (0, Ipv6Addr::LOCALHOST.into()));
}

#[tokio::test]
async fn a_wrong_password_is_answered_though_more_was_sent_that_nobody_reads() {
    let server = Server::new(r#""credentials":{"bob":"secret"}"#).await;
    for (user, password) in [("bob", "Secret"), ("eve", "secret"), ("", "")] {
        let mut client = server.client().await;
        let login = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        let all = [
            b"\x05\x01\x02\x01",
            &*login(user),
            &*login(password),
            &[7; 3000],
        ];
        client.send(&all.concat()).await;
        assert_eq!(client.rest().await, b"\x05\x02\x01\x01");
    }
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::ClientError)
    );
}

#[tokio::test]
async fn what_is_not_socks_is_closed_without_an_answer() {
    let server = Server::new("").await;
    let mut client = server.client().await;
    client.send(b"\x04").await;
    assert_eq!(client.rest().await, b"");
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::ClientError)
    );
}

#[tokio::test]
async fn connections_that_fail_have_the_code_of_their_reason() {
    let server = Server::new("").await;
    let refused = closed_port().await;
    for (address, code) in [
        (encoded(refused), 5),
        (named("127.0.0.1", refused.port()), 5),
        // Nothing listens on port 0.
        (encoded("127.0.0.1:0".parse().unwrap()), 5),
        // No TCP to a broadcast address: the kernel says that the network is unreachable.
        (encoded("255.255.255.255:80".parse().unwrap()), 3),
        (named("no such name", 80), 4),
        (named("nul\0byte", 80), 4),
        (named("\u{e9}.invalid", 80), 4),
    ] {
        let mut client = server.client().await;
        let reply = client.ask(CONNECT, &address).await;
        assert_eq!(reply, (code, NOTHING), "{address:02x?}");
        assert_eq!(client.rest().await, b"");
    }
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::DialFailed)
    );
}

#[tokio::test]
async fn an_empty_name_is_no_way_to_this_machine() {
    let target = target().await;
    let server = Server::new("").await;
    let mut client = server.client().await;
    assert_eq!(
        client.ask(CONNECT, &named("", target.port())).await,
        (4, NOTHING)
    );
}

#[tokio::test]
async fn s1_the_sockets_own_address_is_bound_behind_a_proxy_header() {
    let target = udp_target("127.0.0.1:0").await;
    let header = r#"{"handler":"readdress","remote":"127.0.0.1:1","local":"192.0.2.1:1080"},"#;
    let server = Server::behind(header, "").await;
    let mut client = server.client().await;
    let relay = client.associate().await;
    assert_eq!(relay.ip(), LOCALHOST);
    exchange(&socket_to(relay).await, &encoded(target), target, b"x").await;
}

#[tokio::test]
async fn s1_bind_ip_is_bound_and_told() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::new(r#""bind_ip":"127.0.0.2","commands":["associate","Bind"]"#).await;
    let mut client = server.client().await;
    let relay = client.associate().await;
    assert_eq!(relay.ip(), IpAddr::from([127, 0, 0, 2]));
    // Answers come from there, too: this socket takes no others.
    exchange(&socket_to(relay).await, &encoded(target), target, b"x").await;
    let mut client = server.client().await;
    let (code, listens) = client.ask(BIND, &encoded(target)).await;
    assert_eq!((code, listens.ip()), (0, IpAddr::from([127, 0, 0, 2])));
}

#[tokio::test]
async fn bind_ip_of_the_other_ip_version_leaves_the_sockets_own_address() {
    let server = Server::new(r#""bind_ip":"2001:db8::1""#).await;
    assert_eq!(server.client().await.associate().await.ip(), LOCALHOST);
}

#[tokio::test]
async fn s1_under_a_layer_the_address_is_that_of_the_socket_below() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::behind(r#"{"handler":"cover"},"#, "").await;
    let mut client = server.client().await;
    let relay = client.associate().await;
    assert_eq!(relay.ip(), LOCALHOST);
    exchange(&socket_to(relay).await, &encoded(target), target, b"x").await;
}

#[tokio::test]
async fn s2_the_end_of_the_targets_stream_reaches_the_client_and_the_other_direction_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = encoded(listener.local_addr().unwrap());
    let server = Server::new("").await;
    let mut client = server.client().await;
    client.ask(CONNECT, &target).await;
    let (mut target, _) = listener.accept().await.unwrap();
    target.write_all(b"all there is").await.unwrap();
    target.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"all there is");
    client.send(b"thank you").await;
    client.0.shutdown().await.unwrap();
    let mut said = String::new();
    soon(target.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "thank you");
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::Completed)
    );
}

#[tokio::test]
async fn s3_datagrams_of_anyone_but_the_client_are_dropped() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::new("").await;
    let mut client = server.client().await;
    let relay = client.associate().await;
    let stranger = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    stranger
        .send_to(&datagram(&encoded(target), b"stranger"), relay)
        .await
        .unwrap();
    let socket = socket_to(relay).await;
    // Datagrams are taken in their order, so the stranger's was before this one.
    exchange(&socket, &encoded(target), target, b"client").await;
    assert!(stranger.try_recv(&mut [0; 64]).is_err());
    assert!(socket.try_recv(&mut [0; 64]).is_err());
}

#[tokio::test]
async fn s3_a_port_that_the_client_has_named_is_the_only_one() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::new("").await;
    let (right, wrong) = (
        UdpSocket::bind((LOCALHOST, 0)).await.unwrap(),
        UdpSocket::bind((LOCALHOST, 0)).await.unwrap(),
    );
    let mut client = server.client().await;
    let named = encoded(right.local_addr().unwrap());
    let (code, relay) = client.ask(ASSOCIATE, &named).await;
    assert_eq!(code, 0);
    for socket in [&right, &wrong] {
        socket.connect(relay).await.unwrap();
    }
    wrong.send(&datagram(&encoded(target), b"x")).await.unwrap();
    exchange(&right, &encoded(target), target, b"y").await;
    assert!(wrong.try_recv(&mut [0; 64]).is_err());
}

#[tokio::test]
async fn s3_strangers_cannot_answer_in_the_place_of_a_target() {
    let (target, server) = (
        UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        Server::new("").await,
    );
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    let to = encoded(target.local_addr().unwrap());
    socket.send(&datagram(&to, b"question")).await.unwrap();
    let (_, outside) = soon(target.recv_from(&mut [0; 64])).await.unwrap();
    let outside = SocketAddr::new(LOCALHOST, outside.port());
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(b"lie", outside).await.unwrap();
    target.send_to(b"truth", outside).await.unwrap();
    assert_eq!(receive(&socket).await, datagram(&to, b"truth"));
}

#[tokio::test]
async fn s4_a_command_that_is_not_allowed_is_refused_before_a_name_is_looked_up() {
    let server = Server::new(r#""commands":["ASSOCIATE"]"#).await;
    let mut client = server.client().await;
    let reply = client.ask(CONNECT, &named("no such name", 80)).await;
    assert_eq!(reply, (2, NOTHING));
    assert_eq!(server.record().await.end_reason(), Some(EndReason::Closed));
    // BIND is not among the defaults.
    let server = Server::new("").await;
    let reply = server
        .client()
        .await
        .ask(BIND, &named("no such name", 80))
        .await;
    assert_eq!(reply, (2, NOTHING));
}

#[tokio::test]
async fn s4_every_address_of_a_name_is_tried() {
    // Of the two addresses that this name may have, one is served.
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let known = tokio::net::lookup_host(("localhost", address.port())).await;
        if !known.unwrap().any(|known| known == address) {
            continue;
        }
        let server = Server::new("").await;
        let (code, local) = server
            .client()
            .await
            .ask(CONNECT, &named("localhost", address.port()))
            .await;
        assert_eq!((code, local.ip()), (0, address.ip()));
    }
}

#[tokio::test]
async fn s5_a_target_that_does_not_answer_is_given_up_as_unreachable() {
    // A full queue answers nobody.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _queued = TcpStream::connect(address).await.unwrap();
    let server = Server::new(r#""dial_timeout":"100ms""#).await;
    let mut client = server.client().await;
    assert_eq!(client.ask(CONNECT, &encoded(address)).await, (4, NOTHING));
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::DialFailed)
    );
}

#[tokio::test]
async fn s5_a_silent_connection_or_association_ends_with_an_idle_limit() {
    for (command, address) in [(CONNECT, target().await), (ASSOCIATE, UNKNOWN)] {
        let server = Server::new(r#""idle_timeout":"100ms""#).await;
        let mut client = server.client().await;
        assert_eq!(client.ask(command, &encoded(address)).await.0, 0);
        client.rest().await;
        assert_eq!(
            server.record().await.end_reason(),
            Some(EndReason::IdleTimeout)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn s5_a_client_that_does_not_say_what_it_wants_is_let_go() {
    for said in [
        &b""[..],
        b"\x05",
        b"\x05\x01\x00",
        b"\x05\x01\x00\x05\x01\x00\x03\x09abc",
    ] {
        let router = router("", "");
        let (conn, mut client) = connection(1024);
        let before = tokio::time::Instant::now();
        let (record, serving) = router.serve(conn);
        client.write_all(said).await.unwrap();
        serving.await.unwrap();
        assert_eq!(before.elapsed().as_secs(), 10);
        assert_eq!(record.end_reason(), Some(EndReason::HandshakeTimeout));
    }
}

#[tokio::test]
async fn s6_one_datagram_that_cannot_be_sent_is_one_datagram() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::new("").await;
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    for lost in [
        // Nothing listens: the kernel answers with an ICMP error.
        datagram(&encoded(closed_port().await), b"lost"),
        datagram(
            &encoded("255.255.255.255:9".parse().unwrap()),
            b"not allowed",
        ),
        datagram(&encoded("127.0.0.1:0".parse().unwrap()), b"to port 0"),
        datagram(&named("no such name", 53), b"lost"),
        datagram(&named("", 53), b"lost"),
        [&[0, 0, 1], &*encoded(target), b"a fragment"].concat(),
        b"\0\0\0\x02short".to_vec(),
        Vec::new(),
    ] {
        socket.send(&lost).await.unwrap();
        exchange(&socket, &encoded(target), target, b"next").await;
    }
}

#[tokio::test]
async fn s6_replies_name_their_real_source_for_every_kind_of_target() {
    let (four, six) = (udp_target("127.0.0.1:0").await, udp_target("[::1]:0").await);
    let server = Server::new("").await;
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    exchange(&socket, &encoded(four), four, b"four").await;
    exchange(&socket, &encoded(six), six, b"six").await;
    exchange(&socket, &named("127.0.0.1", four.port()), four, b"a text").await;
    exchange(&socket, &named("::1", six.port()), six, b"a text").await;
    let mapped = format!("[::ffff:127.0.0.1]:{}", four.port())
        .parse()
        .unwrap();
    exchange(&socket, &encoded(mapped), four, b"mapped").await;
    // As often as wanted, and all answers are whole.
    for i in 0..50 {
        exchange(
            &socket,
            &encoded(six),
            six,
            format!("answer {i}").as_bytes(),
        )
        .await;
    }
}

#[tokio::test]
async fn s6_datagrams_for_a_name_wait_for_its_address_in_order() {
    let listener = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::new("").await;
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    for i in 0..8 {
        let text = format!("{i}");
        let to = named("127.0.0.1", port);
        socket.send(&datagram(&to, text.as_bytes())).await.unwrap();
    }
    for i in 0..8 {
        let mut buf = [0; 16];
        let n = soon(listener.recv(&mut buf)).await.unwrap();
        assert_eq!(&buf[..n], format!("{i}").as_bytes());
    }
}

#[tokio::test]
async fn s6_the_longest_datagrams_pass_both_ways() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::new("").await;
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    // An IPv4 datagram holds 65 507 bytes, and a header takes 10 of them.
    exchange(&socket, &encoded(target), target, &[b'x'; 65_497]).await;
    exchange(&socket, &encoded(target), target, b"").await;
}

#[tokio::test]
async fn s6_of_more_targets_than_there_may_be_the_last_ones_answer() {
    let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let server = Server::new("").await;
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    let to = encoded(target.local_addr().unwrap());
    socket.send(&datagram(&to, b"first")).await.unwrap();
    let (_, outside) = soon(target.recv_from(&mut [0; 64])).await.unwrap();
    let outside = SocketAddr::new(LOCALHOST, outside.port());
    let mut last = None;
    for i in 0..256_u16 {
        // One at a time: a queue that overflows would be another matter.
        let [high, low] = i.to_be_bytes();
        let at = Ipv4Addr::new(127, 1, high, low.max(1));
        let other = UdpSocket::bind((at, 0)).await.unwrap();
        let address = encoded(other.local_addr().unwrap());
        socket.send(&datagram(&address, b"x")).await.unwrap();
        soon(other.recv(&mut [0; 8])).await.unwrap();
        last = Some((other, address));
    }
    let (last, address) = last.unwrap();
    target.send_to(b"too late", outside).await.unwrap();
    last.send_to(b"in time", outside).await.unwrap();
    assert_eq!(receive(&socket).await, datagram(&address, b"in time"));
}

#[tokio::test]
async fn an_association_ends_with_its_connection() {
    let target = udp_target("127.0.0.1:0").await;
    let server = Server::new("").await;
    let mut client = server.client().await;
    let socket = socket_to(client.associate().await).await;
    // What comes over the connection means nothing.
    client.send(&[7; 2000]).await;
    exchange(&socket, &encoded(target), target, b"x").await;
    drop(client);
    let record = server.record().await;
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
    // The greeting, the request, what meant nothing, and one datagram of eleven bytes; each answer in turn.
    assert_eq!(
        (record.bytes_read(), record.bytes_written()),
        (3 + 10 + 2000 + 11, 2 + 10 + 11)
    );
    // Nobody is there any more: the kernel says so with the second datagram at the latest.
    let gone = async {
        while socket.send(&datagram(&encoded(target), b"x")).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(gone).await;
}

#[tokio::test]
async fn bind_has_two_replies_and_takes_the_target_only() {
    let server = Server::new(r#""commands":["BIND"]"#).await;
    let mut client = server.client().await;
    let target: SocketAddr = "127.0.0.5:21".parse().unwrap();
    let (code, listens) = client.ask(BIND, &encoded(target)).await;
    assert_eq!((code, listens.ip()), (0, LOCALHOST));

    let mut stranger = TcpStream::connect(listens).await.unwrap();
    assert_eq!(soon(stranger.read(&mut [0; 8])).await.unwrap(), 0);

    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(target.ip(), 0)).unwrap();
    let mut connected = socket.connect(listens).await.unwrap();
    let peer = connected.local_addr().unwrap();
    assert_eq!(client.reply().await, (0, peer));

    // There is one connection, and no second one.
    assert!(TcpStream::connect(listens).await.is_err());
    connected.write_all(b"220 ready").await.unwrap();
    client.expect(b"220 ready").await;
    client.send(b"QUIT").await;
    client.0.shutdown().await.unwrap();
    let mut said = String::new();
    soon(connected.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "QUIT");
    drop(connected);
    let record = server.record().await;
    assert_eq!(record.end_reason(), Some(EndReason::Completed));
    assert_eq!(record.upstream().as_deref(), Some(&*peer.to_string()));
}

#[tokio::test]
async fn bind_without_an_address_takes_whoever_comes_first_and_a_name_stands_for_its_addresses() {
    for address in [encoded(UNKNOWN), named("127.0.0.1", 0)] {
        let server = Server::new(r#""commands":["BIND"]"#).await;
        let mut client = server.client().await;
        let (_, listens) = client.ask(BIND, &address).await;
        let connected = TcpStream::connect(listens).await.unwrap();
        assert_eq!(client.reply().await, (0, connected.local_addr().unwrap()));
    }
}

#[tokio::test]
async fn bind_waits_for_a_while_and_not_for_a_client_that_has_left() {
    let server = Server::new(r#""commands":["BIND"],"bind_timeout":"100ms""#).await;
    let mut client = server.client().await;
    assert_eq!(client.ask(BIND, &encoded(UNKNOWN)).await.0, 0);
    assert_eq!(client.reply().await, (4, NOTHING));
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::DialFailed)
    );

    let server = Server::new(r#""commands":["BIND"],"bind_timeout":0"#).await;
    let mut client = server.client().await;
    let (_, listens) = client.ask(BIND, &encoded(UNKNOWN)).await;
    drop(client);
    assert_eq!(
        server.record().await.end_reason(),
        Some(EndReason::Completed)
    );
    assert!(TcpStream::connect(listens).await.is_err());
}

#[tokio::test]
async fn bind_fails_where_no_address_of_ours_is_of_the_targets_ip_version() {
    let server = Server::new(r#""commands":["BIND"]"#).await;
    let mut client = server.client().await;
    let target = encoded("[2001:db8::1]:21".parse().unwrap());
    assert_eq!(client.ask(BIND, &target).await, (1, NOTHING));
    let mut client = server.client().await;
    assert_eq!(
        client.ask(BIND, &named("no such name", 21)).await,
        (4, NOTHING)
    );
}

#[tokio::test]
async fn on_a_unix_listener_connections_work_and_datagrams_have_no_address_to_come_from() {
    let target = target().await;
    let router = router("", "");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socks");
    let listener = UnixListener::bind(&path).unwrap();
    for (request, said) in [
        (
            [&[5, CONNECT, 0], &*encoded(target), b"x"].concat(),
            &b"hi X"[..],
        ),
        ([&[5, ASSOCIATE, 0], &*encoded(UNKNOWN)].concat(), b""),
    ] {
        let mut client = UnixStream::connect(&path).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let record = Arc::new(Record::new(Addr::UNNAMED));
        let (_, serving) = router.serve(Connection::new(Io::Unix(socket), record, None));
        client
            .write_all(&[GREETING, &*request].concat())
            .await
            .unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        soon(client.read_to_end(&mut answer)).await.unwrap();
        let (head, rest) = answer.split_at(12);
        let code = if said.is_empty() { 1 } else { 0 };
        assert_eq!(head[..4], [5, 0, 5, code]);
        assert_eq!(rest, said);
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn a_datagram_session_is_refused() {
    let (conn, peer) = session();
    let (record, serving) = router("", "").serve(conn);
    peer.send(GREETING);
    soon(serving).await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::HandlerError));
    assert!(peer.end().await.is_empty());
}

/// The errors of a configuration of the handler: where, and what.
fn refused(fields: &str) -> Vec<(String, String)> {
    let loaded = load(modules, &config(fields));
    let errors = loaded
        .app
        .err()
        .unwrap_or_else(|| panic!("{fields} is accepted"));
    let short = |pointer: &str| pointer.rsplit_once("/handle/0").unwrap().1.to_owned();
    let errors = errors.iter();
    errors
        .map(|error| (short(error.pointer()), error.message().to_owned()))
        .collect()
}

fn config(fields: &str) -> String {
    format!(
        r#"{{"apps":{{"layer4":{{"servers":{{"a":{{"listen":["127.0.0.1:1"],
            "routes":[{{"handle":[{{"handler":"socks5",{fields}}}]}}]}}}}}}}}}}"#
    )
}

#[test]
fn bad_values_are_refused_in_their_place() {
    for (fields, pointer, message) in [
        (
            r#""commands":["CONNECT","UDP"]"#,
            "/commands/1",
            r#"unknown command "UDP" has to be one of ["CONNECT", "ASSOCIATE", "BIND"]"#,
        ),
        (
            r#""bind_ip":"192.0.2.256""#,
            "/bind_ip",
            r#"invalid bind_ip "192.0.2.256""#,
        ),
        (
            r#""bind_ip":"192.0.2.1:1080""#,
            "/bind_ip",
            r#"invalid bind_ip "192.0.2.1:1080""#,
        ),
        (r#""timeout":"-1s""#, "/timeout", "-1s is negative"),
        (
            r#""dial_timeout":"-1s""#,
            "/dial_timeout",
            "-1s is negative",
        ),
        (
            r#""bind_timeout":"-1s""#,
            "/bind_timeout",
            "-1s is negative",
        ),
        (
            r#""idle_timeout":"-1s""#,
            "/idle_timeout",
            "-1s is negative",
        ),
        (
            r#""half_close_timeout":"-1s""#,
            "/half_close_timeout",
            "-1s is negative",
        ),
    ] {
        assert_eq!(refused(fields), [(pointer.to_owned(), message.to_owned())]);
    }
    for (fields, pointer) in [
        (r#""commands":"CONNECT""#, "/commands"),
        (r#""credentials":["bob"]"#, "/credentials"),
        (r#""credentials":{"bob":7}"#, "/credentials/bob"),
        (r#""bind_ip":7"#, "/bind_ip"),
        (r#""bindip":"192.0.2.1""#, "/bindip"),
    ] {
        let errors = refused(fields);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].0, pointer);
    }
    let all = refused(r#""commands":["a"],"bind_ip":"b","credentials":{"{":"{"},"timeout":"-1s""#);
    assert!(all.len() >= 3, "errors come at once: {all:?}");
}

#[test]
fn what_loads_in_the_reference_loads_here() {
    for fields in [
        r#""commands":[],"bind_ip":"","credentials":{}"#,
        r#""commands":null,"bind_ip":null,"credentials":null"#,
        r#""commands":["connect","ASSOCIATE","bInD"],"bind_ip":"0.0.0.0""#,
        r#""commands":["{env.SURELY_UNSET_HERE}CONNECT"],"bind_ip":"{env.SURELY_UNSET_HERE}""#,
        r#""credentials":{"bob":"qHoEtVpGRM"}"#,
    ] {
        let loaded = load(modules, &config(fields));
        assert!(loaded.app.is_ok(), "{fields}");
        assert!(loaded.warnings.is_empty(), "{fields}");
    }
}

#[test]
fn credentials_that_admit_nobody_are_warned_about() {
    let long = "x".repeat(256);
    for (fields, pointer) in [
        (
            r#""credentials":{"{env.SURELY_UNSET_HERE}":"a"}"#.to_owned(),
            "",
        ),
        (
            format!(r#""credentials":{{"bob":"{long}"}}"#),
            "/credentials/bob",
        ),
    ] {
        let loaded = load(modules, &config(&fields));
        assert!(loaded.app.is_ok());
        assert_eq!(loaded.warnings.len(), 1);
        let place = loaded.warnings[0].pointer();
        assert!(place.ends_with(&format!("/handle/0{pointer}")), "{place}");
    }
}

#[tokio::test]
async fn placeholders_are_filled_in_and_empty_users_are_nobody() {
    let fields = r#""credentials":{"{env.SURELY_UNSET_HERE}":"open","b{env.SURELY_UNSET_HERE}ob":"se{env.SURELY_UNSET_HERE}cret"}"#;
    let server = Server::new(fields).await;
    for (login, answer) in [
        (&b"\x01\x03bob\x06secret"[..], 0),
        (b"\x01\x00\x04open", 1),
        (b"\x01\x00\x00", 1),
    ] {
        let mut client = server.client().await;
        client.send(&[b"\x05\x01\x02", login].concat()).await;
        client.expect(&[5, 2, 1, answer]).await;
    }
    // Without anyone left, nobody is admitted rather than everybody.
    let server = Server::new(r#""credentials":{"{env.SURELY_UNSET_HERE}":""}"#).await;
    let mut client = server.client().await;
    client.send(GREETING).await;
    client.expect(&[5, 0xff]).await;
}
