//! Real sockets on the loopback interface.

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use l4_core::conn::{Received, Session};
use l4_core::{Addr, Connection, Io, Record, Transport};

use super::super::group::Group;
use super::super::socket::{
    RECEIVE_BUFFER, Receiver, Udp, asking_widens, prepare, sockopt, written_to,
};
use super::super::{DatagramListener, DropReason, Limits, NewSession, Opening, Phase, Stats};
use crate::datagrams::Datagrams;
use crate::relay::{Relayed, relay};

const IDLE: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_secs(5);

/// A listener whose receive task runs in the background.
struct Running {
    addr: SocketAddr,
    stats: Arc<Stats>,
    phase: watch::Sender<Phase>,
    task: JoinHandle<io::Result<()>>,
}

impl Running {
    fn start(
        listener: DatagramListener,
        on_session: impl FnMut(Opening<'_>) + Send + 'static,
    ) -> Self {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let addr = listener.local().socket().unwrap_or(nowhere);
        let stats = listener.stats().clone();
        let (phase, follow) = watch::channel(Phase::Serve);
        let task = tokio::spawn(listener.run(follow, on_session));
        Self {
            addr,
            stats,
            phase,
            task,
        }
    }

    /// Every session is echoed to by a task of its own.
    fn echo(listener: DatagramListener) -> Self {
        Self::start(listener, |opening| {
            tokio::spawn(echo(connection(opening.accept(IDLE))));
        })
    }

    /// Sessions come out of a channel.
    fn collect(
        listener: DatagramListener,
        idle_timeout: Duration,
    ) -> (Self, mpsc::Receiver<Box<dyn Session>>) {
        let (give, take) = mpsc::channel(1000);
        let running = Self::start(listener, move |opening| {
            let Io::Datagram(session) = opening.accept(idle_timeout).io else {
                unreachable!()
            };
            give.try_send(session).expect("room for a session");
        });
        (running, take)
    }

    async fn ended(self) {
        timeout(SOON, self.task)
            .await
            .expect("the receive task ends")
            .unwrap()
            .unwrap();
    }
}

fn connection(new: NewSession) -> Connection {
    Connection::new(new.io, Arc::new(Record::new(new.remote)), Some(new.local))
}

async fn echo(mut conn: Connection) {
    let mut buf = vec![0; 65_536];
    while let Ok(Received::Data(len)) = conn.receive(&mut buf).await {
        conn.send(&buf[..len]).await.expect("a reply");
    }
}

fn udp(addr: &str) -> DatagramListener {
    DatagramListener::udp(UdpSocket::bind(addr).unwrap()).unwrap()
}

fn dual_stack() -> DatagramListener {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket
        .bind(&"[::]:0".parse::<SocketAddr>().unwrap().into())
        .unwrap();
    DatagramListener::udp(socket.into()).unwrap()
}

/// A client that takes datagrams from `server` only.
async fn client(server: SocketAddr) -> tokio::net::UdpSocket {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = tokio::net::UdpSocket::bind(any).await.unwrap();
    socket.connect(server).await.unwrap();
    socket
}

async fn reply(socket: &tokio::net::UdpSocket) -> Vec<u8> {
    let mut buf = vec![0; 65_536];
    let len = timeout(SOON, socket.recv(&mut buf))
        .await
        .expect("a reply")
        .unwrap();
    buf.truncate(len);
    buf
}

#[tokio::test]
async fn a_socket_is_not_said_to_be_closed_while_a_session_that_has_expired_still_has_it() {
    let (running, mut sessions) = Running::collect(udp("127.0.0.1:0"), Duration::from_millis(20));
    let client = client(running.addr).await;
    client.send(b"hi").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    assert_eq!(recv(&mut *session).await.unwrap(), b"hi");
    assert_eq!(recv(&mut *session).await, None);
    running.phase.send_replace(Phase::Drain);
    // The receive task looks at the phase in its next turn.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!running.task.is_finished());
    // Its handler may still answer.
    send(&mut *session, b"bye").await.unwrap();
    assert_eq!(reply(&client).await, b"bye");
    let address = running.addr;
    drop(session);
    running.ended().await;
    UdpSocket::bind(address).expect("the address is free");
}

async fn recv(session: &mut dyn Session) -> Option<Vec<u8>> {
    let datagram = timeout(SOON, poll_fn(|cx| session.poll_recv(cx))).await;
    datagram.expect("a datagram or the end").map(Into::into)
}

async fn send(session: &mut dyn Session, datagram: &[u8]) -> io::Result<()> {
    timeout(SOON, poll_fn(|cx| session.poll_send(cx, datagram)))
        .await
        .expect("sending ends")
}

/// Waits for a counter that another thread advances.
async fn eventually(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.expect("the counter gets there");
}

#[tokio::test]
async fn datagrams_of_every_size_come_back_whole() {
    let server = Running::echo(udp("127.0.0.1:0"));
    let client = client(server.addr).await;
    for len in [0, 1, 1472, 1473, 2049, 9001, 65_506, 65_507] {
        let datagram = vec![len as u8; len];
        client.send(&datagram).await.unwrap();
        assert_eq!(reply(&client).await, datagram, "{len}");
    }
    assert_eq!(server.stats.opened(), 1);
    assert_eq!((server.stats.received(), server.stats.sent()), (8, 8));
}

#[tokio::test]
async fn segments_that_the_kernel_has_merged_come_apart_again() {
    let listener = udp("127.0.0.1:0");
    let server = Running::echo(listener);
    let client = client(server.addr).await;
    let state = quinn_udp::UdpSocketState::new((&client).into()).unwrap();
    assert!(
        state.max_gso_segments() > 1,
        "this kernel has UDP segmentation"
    );
    // Forty datagrams of 1000 bytes and one of 7 in one system call.
    let bytes: Vec<u8> = (0..40_007_u32).map(|i| (i / 1000) as u8).collect();
    let transmit = quinn_udp::Transmit {
        destination: server.addr,
        ecn: None,
        contents: &bytes,
        segment_size: Some(1000),
        src_ip: None,
    };
    client.writable().await.unwrap();
    state.try_send((&client).into(), &transmit).unwrap();
    for i in 0..40 {
        assert_eq!(reply(&client).await, [i; 1000]);
    }
    assert_eq!(reply(&client).await, [40; 7]);
    assert_eq!(server.stats.received(), 41);
}

#[tokio::test]
async fn replies_leave_from_the_address_the_client_wrote_to() {
    for (listener, addresses) in [
        (
            udp("0.0.0.0:0"),
            &["127.0.0.2", "127.0.0.1", "127.0.0.3"][..],
        ),
        (dual_stack(), &["127.0.0.2", "::1", "127.0.0.1"][..]),
    ] {
        let locals = Arc::new(Mutex::new(Vec::new()));
        let seen = locals.clone();
        let server = Running::start(listener, move |opening| {
            seen.lock().unwrap().push(opening.local().clone());
            tokio::spawn(echo(connection(opening.accept(IDLE))));
        });
        for address in addresses {
            let to = SocketAddr::new(address.parse().unwrap(), server.addr.port());
            let client = client(to).await;
            client.send(b"hello").await.unwrap();
            // The socket is connected: a reply from elsewhere would not be seen.
            assert_eq!(reply(&client).await, b"hello");
            let local = locals.lock().unwrap().pop().unwrap();
            assert_eq!(local.to_string(), to.to_string());
            assert_eq!(local.ip(), Some(to.ip()));
        }
    }
}

#[test]
fn packet_information_names_the_address_on_wildcard_sockets_only() {
    let written_to = |bound: &str, dst: Option<&str>| {
        let mut meta = quinn_udp::RecvMeta::default();
        meta.dst_ip = dst.map(|ip| ip.parse().unwrap());
        meta.interface_index = Some(3);
        written_to(bound.parse().unwrap(), &meta).to_string()
    };
    assert_eq!(written_to("0.0.0.0:53", Some("192.0.2.1")), "192.0.2.1:53");
    assert_eq!(
        written_to("[::]:53", Some("2001:db8::1")),
        "[2001:db8::1]:53"
    );
    assert_eq!(written_to("[::]:53", Some("fe80::1")), "[fe80::1%3]:53");
    assert_eq!(written_to("[::]:53", None), "[::]:53");
    assert_eq!(
        written_to("192.0.2.7:53", Some("192.0.2.1")),
        "192.0.2.7:53"
    );
    assert_eq!(
        written_to("[fe80::7%2]:53", Some("fe80::7")),
        "[fe80::7%2]:53"
    );
}

#[tokio::test]
async fn a_client_has_one_session_per_address_it_writes_to() {
    let server = Running::echo(udp("0.0.0.0:0"));
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buf = [0; 100];
    for _ in 0..3 {
        for address in [[127, 0, 0, 2], [127, 0, 0, 3]] {
            let to = SocketAddr::from((address, server.addr.port()));
            client.send_to(b"x", to).await.unwrap();
            let (_, from) = timeout(SOON, client.recv_from(&mut buf))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(from, to);
        }
    }
    assert_eq!(server.stats.opened(), 2);
}

#[tokio::test]
async fn who_writes_to_a_broadcast_address_is_answered_from_a_real_one() {
    let server = Running::echo(udp("0.0.0.0:0"));
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.set_broadcast(true).unwrap();
    let to = SocketAddr::from(([127, 255, 255, 255], server.addr.port()));
    client.send_to(b"anybody", to).await.unwrap();
    let mut buf = [0; 100];
    let (len, from) = timeout(SOON, client.recv_from(&mut buf))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&buf[..len], b"anybody");
    assert_eq!(
        from,
        SocketAddr::from((Ipv4Addr::LOCALHOST, server.addr.port()))
    );
}

#[tokio::test]
async fn the_socket_fragments_and_takes_no_timestamps_as_a_plain_one() {
    for domain in [Domain::IPV4, Domain::IPV6] {
        let bound = || {
            let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
            let any = if domain == Domain::IPV4 {
                "127.0.0.1:0"
            } else {
                "[::1]:0"
            };
            socket
                .bind(&any.parse::<SocketAddr>().unwrap().into())
                .unwrap();
            UdpSocket::from(socket)
        };
        let (plain, ours) = (bound(), bound());
        prepare(&ours).unwrap();
        for (level, name) in [
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
            (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS),
        ] {
            let [plain, ours] =
                [&plain, &ours].map(|socket| sockopt::get(socket, level, name).ok());
            assert_eq!(plain, ours, "{domain:?} {level} {name}");
        }
    }
    assert!(sockopt::get(&UdpSocket::bind("127.0.0.1:0").unwrap(), -1, -1).is_err());
    assert!(sockopt::set(&UdpSocket::bind("127.0.0.1:0").unwrap(), -1, -1, 0).is_err());
}

#[tokio::test]
async fn a_datagram_that_is_too_long_is_an_error_of_its_own() {
    let (server, mut sessions) = Running::collect(udp("127.0.0.1:0"), IDLE);
    let client = client(server.addr).await;
    client.send(b"hi").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    let error = send(&mut *session, &[0; 65_508]).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    send(&mut *session, b"short").await.unwrap();
    assert_eq!(reply(&client).await, b"short");
    assert_eq!((server.stats.sent(), server.stats.unsent()), (1, 1));
}

/// Row U5 of docs/defects.md.
#[tokio::test]
async fn both_directions_keep_a_session_and_silence_ends_it() {
    let idle = Duration::from_millis(400);
    let (server, mut sessions) = Running::collect(udp("127.0.0.1:0"), idle);
    let client = client(server.addr).await;
    client.send(b"1").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    assert_eq!(recv(&mut *session).await.unwrap(), b"1");

    // Only downloads, for longer than the idle time, while the handler waits for the client.
    let mut last = Instant::now();
    for _ in 0..6 {
        let waiting = timeout(idle / 4, poll_fn(|cx| session.poll_recv(cx))).await;
        assert!(waiting.is_err(), "still open");
        send(&mut *session, b"down").await.unwrap();
        last = Instant::now();
    }
    // Only uploads.
    for _ in 0..6 {
        tokio::time::sleep(idle / 4).await;
        client.send(b"up").await.unwrap();
        last = Instant::now();
        assert_eq!(recv(&mut *session).await.unwrap(), b"up");
    }
    // Silence.
    assert_eq!(recv(&mut *session).await, None);
    let waited = last.elapsed();
    assert!(waited >= idle, "{waited:?}");
    assert_eq!((server.stats.opened(), server.stats.expired()), (1, 1));

    // The peer gets a new session while the old handler is still busy, and keeps it when the old one is through.
    client.send(b"2").await.unwrap();
    let mut second = sessions.recv().await.unwrap();
    send(&mut *session, b"goodbye").await.unwrap();
    drop(session);
    client.send(b"3").await.unwrap();
    assert_eq!(recv(&mut *second).await.unwrap(), b"2");
    assert_eq!(recv(&mut *second).await.unwrap(), b"3");
    assert_eq!(server.stats.opened(), 2);
}

#[tokio::test]
async fn a_flood_of_senders_is_bounded() {
    let listener = udp("127.0.0.1:0").with_limits(Limits {
        sessions: 50,
        ..Limits::default()
    });
    let (server, mut sessions) = Running::collect(listener, IDLE);
    let clients: Vec<_> = (0..400)
        .map(|_| UdpSocket::bind("127.0.0.1:0").unwrap())
        .collect();
    for client in &clients {
        client.send_to(b"me too", server.addr).unwrap();
        // The kernel's buffer is not what is tested.
        tokio::task::yield_now().await;
    }
    eventually(|| server.stats.received() == 400).await;
    assert_eq!((server.stats.opened(), server.stats.active()), (50, 50));
    assert_eq!(server.stats.dropped(DropReason::SessionLimit), 350);
    // As soon as one ends there is a place.
    drop(sessions.recv().await.unwrap());
    clients[399].send_to(b"again", server.addr).unwrap();
    eventually(|| server.stats.opened() == 51).await;
}

/// Rows D-07 and U4 of docs/defects.md.
#[tokio::test]
async fn a_session_that_does_not_read_stalls_nobody() {
    let (give, mut stuck) = mpsc::channel(1);
    let mut first = true;
    let server = Running::start(udp("127.0.0.1:0"), move |opening| {
        let new = opening.accept(IDLE);
        if std::mem::take(&mut first) {
            give.try_send(new).map_err(drop).unwrap();
        } else {
            tokio::spawn(echo(connection(new)));
        }
    });
    let (slow, good) = (client(server.addr).await, client(server.addr).await);
    for i in 0..2000_u32 {
        slow.send(&i.to_be_bytes()).await.unwrap();
        if i % 10 == 0 {
            good.send(b"ping").await.unwrap();
            assert_eq!(reply(&good).await, b"ping");
        }
    }
    let queue = Limits::default().queue as u32;
    eventually(|| server.stats.received() == 2200).await;
    assert_eq!(
        server.stats.dropped(DropReason::QueueFull),
        u64::from(2000 - queue)
    );
    let Io::Datagram(mut stuck) = stuck.recv().await.unwrap().io else {
        unreachable!()
    };
    for i in 0..queue {
        assert_eq!(recv(&mut *stuck).await.unwrap(), i.to_be_bytes());
    }
}

#[tokio::test]
async fn a_burst_longer_than_the_queue_reaches_a_handler_that_keeps_up() {
    let listener = udp("127.0.0.1:0").with_limits(Limits {
        queue: 40,
        ..Limits::default()
    });
    let server = Running::echo(listener);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // All of them are in the kernel's buffer before this thread comes to reading any.
    for _ in 0..150 {
        client.send_to(b"burst", server.addr).unwrap();
    }
    eventually(|| server.stats.sent() == 150).await;
    assert_eq!(server.stats.dropped(DropReason::QueueFull), 0);
}

#[tokio::test]
async fn a_socket_that_reports_icmp_errors_is_recognised() {
    let is_noisy = |socket: UdpSocket| {
        let state = prepare(&socket).unwrap();
        Udp::new(socket, state, false).unwrap().has_errors()
    };
    assert!(!is_noisy(UdpSocket::bind("127.0.0.1:0").unwrap()));
    assert!(!is_noisy(UdpSocket::bind("[::1]:0").unwrap()));
    let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    connected.connect("127.0.0.1:9").unwrap();
    assert!(is_noisy(connected));
    for (any, level, name) in [
        ("127.0.0.1:0", libc::IPPROTO_IP, libc::IP_RECVERR),
        ("[::1]:0", libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    ] {
        let socket = UdpSocket::bind(any).unwrap();
        sockopt::set(&socket, level, name, 1).unwrap();
        assert!(is_noisy(socket));
    }
}

/// Row U2 of docs/defects.md.
#[tokio::test]
async fn icmp_errors_end_neither_the_socket_nor_a_session() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // Has the kernel report ICMP errors on an unconnected socket.
    sockopt::set(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
    let (server, mut sessions) = Running::collect(DatagramListener::udp(socket).unwrap(), IDLE);
    let gone = client(server.addr).await;
    gone.send(b"and away").await.unwrap();
    let mut lost = sessions.recv().await.unwrap();
    drop(gone);

    let client = client(server.addr).await;
    client.send(b"hello").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    for i in 0..50_u8 {
        // Answered with "port unreachable", which the next system call on the socket is told, whichever it is.
        send(&mut *lost, b"anybody there?").await.unwrap();
        if i % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        send(&mut *session, &[i]).await.unwrap();
        assert_eq!(reply(&client).await, [i]);
        client.send(&[i]).await.unwrap();
    }
    assert_eq!(recv(&mut *session).await.unwrap(), b"hello");
    for i in 0..50 {
        assert_eq!(recv(&mut *session).await.unwrap(), [i]);
    }
}

#[tokio::test]
async fn a_socket_that_was_shut_down_does_not_spin() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let other = socket.try_clone().unwrap();
    let asked = socket2::SockRef::from(&socket).connect(&socket.local_addr().unwrap().into());
    asked.unwrap();
    let server = Running::echo(DatagramListener::udp(socket).unwrap());
    socket2::SockRef::from(&other)
        .shutdown(std::net::Shutdown::Both)
        .unwrap();
    let before = cpu_time();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = cpu_time() - before;
    assert!(used < Duration::from_millis(150), "{used:?}");
    server.phase.send(Phase::Stop).unwrap();
    server.ended().await;
}

/// CPU time of this thread, in the resolution of /proc, which is enough to notice a spinning one.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = [11, 12].map(|field: usize| fields[field].parse::<u64>().unwrap());
    Duration::from_millis(10 * (ticks[0] + ticks[1]))
}

#[tokio::test]
async fn draining_serves_what_is_there_and_then_ends() {
    let (server, mut sessions) = Running::collect(udp("127.0.0.1:0"), IDLE);
    let (old, new) = (client(server.addr).await, client(server.addr).await);
    old.send(b"1").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    server.phase.send(Phase::Drain).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    new.send(b"too late").await.unwrap();
    old.send(b"2").await.unwrap();
    assert_eq!(recv(&mut *session).await.unwrap(), b"1");
    assert_eq!(recv(&mut *session).await.unwrap(), b"2");
    send(&mut *session, b"3").await.unwrap();
    assert_eq!(reply(&old).await, b"3");
    assert_eq!(server.stats.dropped(DropReason::Draining), 1);

    // Another reload brings the address back, and then it goes again.
    server.phase.send(Phase::Serve).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    new.send(b"in time").await.unwrap();
    drop(sessions.recv().await.unwrap());
    server.phase.send(Phase::Drain).unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!server.task.is_finished());
    let addr = server.addr;
    drop(session);
    server.ended().await;
    UdpSocket::bind(addr).expect("the socket is closed");
}

/// Two sockets of one address, as two shards have.
fn pair(ip: Ipv4Addr) -> [DatagramListener; 2] {
    let group = Arc::<Group>::default();
    let mut address = SocketAddr::from((ip, 0));
    [false, true].map(|further| {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        address = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = DatagramListener::udp(socket.into()).unwrap();
        listener.among(group.clone(), further)
    })
}

#[tokio::test]
async fn sockets_of_one_address_are_counted_together_and_none_ends_before_the_others() {
    let [(one, mut at_one), (other, mut at_other)] =
        pair(Ipv4Addr::LOCALHOST).map(|listener| Running::collect(listener, IDLE));
    let (addr, stats) = (one.addr, one.stats.clone());
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = client(addr).await;
        client.send(b"hello").await.unwrap();
        clients.push(client);
    }
    eventually(|| stats.opened() == 40).await;
    assert!(Arc::ptr_eq(&stats, &other.stats));
    let drain = |phase| [&one, &other].map(|socket| socket.phase.send_replace(phase));
    drain(Phase::Drain);
    assert!(at_one.len() > 1 && at_other.len() > 1);
    while at_one.try_recv().is_ok() {}
    let last = at_other.recv().await.unwrap();
    while at_other.try_recv().is_ok() {}
    eventually(|| stats.active() == 1).await;
    for client in &clients {
        client.send(b"where nobody is").await.unwrap();
    }
    // By the socket that has no session left, too: all but that of the last one.
    eventually(|| stats.dropped(DropReason::Draining) == 39).await;
    // It can come back as long as the other is there.
    drain(Phase::Serve);
    for client in &clients {
        client.send(b"again").await.unwrap();
    }
    eventually(|| stats.opened() == 79).await;
    drain(Phase::Drain);
    while at_one.try_recv().is_ok() {}
    while at_other.try_recv().is_ok() {}
    eventually(|| stats.active() == 1).await;
    assert!(!one.task.is_finished() && !other.task.is_finished());
    drop(last);
    one.ended().await;
    other.ended().await;
    UdpSocket::bind(addr).expect("the sockets are closed");
}

#[tokio::test]
async fn the_copies_of_a_broadcast_are_counted_as_such() {
    let [one, _other] = pair(Ipv4Addr::UNSPECIFIED).map(Running::echo);
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.set_broadcast(true).unwrap();
    let to = SocketAddr::from(([127, 255, 255, 255], one.addr.port()));
    for sent in 1..4 {
        client.send_to(b"anybody", to).await.unwrap();
        eventually(|| one.stats.received() == 2 * sent).await;
        eventually(|| one.stats.dropped(DropReason::Copy) == sent).await;
        eventually(|| one.stats.sent() == sent).await;
    }
    assert_eq!(one.stats.opened(), 1);
}

#[tokio::test]
async fn who_stops_or_is_dropped_keeps_nobody_of_its_group() {
    let [(one, _kept), (other, mut sessions)] =
        pair(Ipv4Addr::LOCALHOST).map(|listener| Running::collect(listener, IDLE));
    let stats = other.stats.clone();
    let mut clients = Vec::new();
    for _ in 0..40 {
        let client = client(other.addr).await;
        client.send(b"hello").await.unwrap();
        clients.push(client);
    }
    eventually(|| stats.received() == 40).await;
    while sessions.try_recv().is_ok() {}
    other.phase.send(Phase::Drain).unwrap();
    // Its runtime is gone.
    one.task.abort();
    other.ended().await;
}

#[tokio::test]
async fn stopping_ends_sessions_that_can_still_reply() {
    let (server, mut sessions) = Running::collect(udp("127.0.0.1:0"), IDLE);
    let client = client(server.addr).await;
    client.send(b"request").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    let (addr, stats) = (server.addr, server.stats.clone());
    server.phase.send(Phase::Stop).unwrap();
    server.ended().await;
    assert_eq!(recv(&mut *session).await.unwrap(), b"request");
    assert_eq!(recv(&mut *session).await, None);
    send(&mut *session, b"response").await.unwrap();
    assert_eq!(reply(&client).await, b"response");
    drop(session);
    assert_eq!(stats.active(), 0);
    UdpSocket::bind(addr).expect("the socket is closed");
}

#[tokio::test]
async fn dropping_the_receive_task_ends_sessions() {
    let (server, mut sessions) = Running::collect(udp("127.0.0.1:0"), IDLE);
    client(server.addr).await.send(b"").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    assert_eq!(recv(&mut *session).await.unwrap(), b"");
    server.task.abort();
    assert_eq!(recv(&mut *session).await, None);
}

#[tokio::test]
async fn a_server_can_refuse_before_anything_is_opened() {
    let mut asked = 0;
    let server = Running::start(udp("127.0.0.1:0"), move |opening| {
        asked += 1;
        if asked == 3 {
            tokio::spawn(echo(connection(opening.accept(IDLE))));
        }
    });
    let client = client(server.addr).await;
    for sent in 1..=3 {
        client.send(b"let me in").await.unwrap();
        // One at a time: what comes together is refused together.
        eventually(|| server.stats.received() == sent).await;
    }
    assert_eq!(reply(&client).await, b"let me in");
    assert_eq!(
        (
            server.stats.opened(),
            server.stats.dropped(DropReason::Refused)
        ),
        (1, 2)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_at_once_get_their_own_answers_in_order() {
    let server = Running::echo(udp("127.0.0.1:0"));
    let clients: Vec<_> = (0..50_u32)
        .map(|me| {
            let addr = server.addr;
            tokio::spawn(async move {
                let client = client(addr).await;
                for i in 0..200_u32 {
                    let question = [me.to_be_bytes(), i.to_be_bytes()].concat();
                    client.send(&question).await.unwrap();
                    assert_eq!(reply(&client).await, question);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(server.stats.opened(), 50);
    assert_eq!(server.stats.received(), 10_000);
    // The last reply may arrive before it is counted.
    eventually(|| server.stats.sent() == 10_000).await;
}

struct Unixgram {
    dir: tempfile::TempDir,
    server: Running,
}

impl Unixgram {
    fn echo() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("server")).unwrap();
        let server = Running::echo(DatagramListener::unix(socket).unwrap());
        Self { dir, server }
    }

    fn connect(&self, socket: UnixDatagram) -> tokio::net::UnixDatagram {
        socket.connect(self.dir.path().join("server")).unwrap();
        socket.set_nonblocking(true).unwrap();
        tokio::net::UnixDatagram::from_std(socket).unwrap()
    }

    fn client(&self, name: &str) -> tokio::net::UnixDatagram {
        self.connect(UnixDatagram::bind(self.dir.path().join(name)).unwrap())
    }
}

async fn unix_reply(socket: &tokio::net::UnixDatagram) -> Vec<u8> {
    let mut buf = vec![0; 65_536];
    let len = timeout(SOON, socket.recv(&mut buf))
        .await
        .expect("a reply")
        .unwrap();
    buf.truncate(len);
    buf
}

#[tokio::test]
async fn unixgram_peers_are_answered_by_path_and_by_abstract_name() {
    let unix = Unixgram::echo();
    let name = UnixAddr::from_abstract_name(format!("conncept-test-{}", std::process::id()));
    let hidden = unix.connect(UnixDatagram::bind_addr(&name.unwrap()).unwrap());
    let visible = unix.client("client");
    for len in [0, 1, 9001, 65_535] {
        for client in [&visible, &hidden] {
            client.send(&vec![7; len]).await.unwrap();
            assert_eq!(unix_reply(client).await, vec![7; len]);
        }
    }
    assert_eq!(unix.server.stats.opened(), 2);
}

#[tokio::test]
async fn unixgram_addresses_are_named_as_in_logs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let listener = DatagramListener::unix(UnixDatagram::bind(&path).unwrap()).unwrap();
    let expected = Addr::Unix {
        path: Some(path.as_path().into()),
        datagram: true,
    };
    assert_eq!(listener.local(), &expected);
    let (give, mut take) = mpsc::channel(2);
    let _server = Running::start(listener, move |opening| {
        let remote = opening.remote().to_string();
        give.try_send((remote, opening.local().clone())).unwrap();
    });
    let hidden = SockAddr::unix("\0conncept-test-logs").unwrap();
    let client = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
    client.bind(&hidden).unwrap();
    client
        .send_to(b"x", &SockAddr::unix(&path).unwrap())
        .unwrap();
    assert_eq!(
        take.recv().await.unwrap(),
        ("@conncept-test-logs".into(), expected)
    );
}

/// Row D-10 of docs/defects.md.
#[tokio::test]
async fn an_unnamed_unixgram_peer_is_dropped_and_counted() {
    let unix = Unixgram::echo();
    let nameless = unix.connect(UnixDatagram::unbound().unwrap());
    for _ in 0..3 {
        nameless.send(b"who am I").await.unwrap();
    }
    let client = unix.client("client");
    client.send(b"hello").await.unwrap();
    assert_eq!(unix_reply(&client).await, b"hello");
    assert_eq!(unix.server.stats.dropped(DropReason::UnnamedPeer), 3);
    assert_eq!(unix.server.stats.opened(), 1);
}

#[tokio::test]
async fn a_unixgram_datagram_that_is_too_long_is_dropped_not_cut() {
    let unix = Unixgram::echo();
    let client = unix.client("client");
    client.send(&[1; 65_536]).await.unwrap();
    client.send(&[2; 100_000]).await.unwrap();
    client.send(&[3; 65_535]).await.unwrap();
    assert_eq!(unix_reply(&client).await, [3; 65_535]);
    assert_eq!(unix.server.stats.dropped(DropReason::TooLong), 2);
}

#[tokio::test]
async fn a_unixgram_peer_that_does_not_read_delays_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server");
    let listener = DatagramListener::unix(UnixDatagram::bind(&path).unwrap()).unwrap();
    let (_server, mut sessions) = Running::collect(listener, IDLE);
    let mut open = async |name| {
        let client = UnixDatagram::bind(dir.path().join(name)).unwrap();
        client.send_to(b"hi", &path).unwrap();
        client.set_nonblocking(true).unwrap();
        (
            tokio::net::UnixDatagram::from_std(client).unwrap(),
            sessions.recv().await.unwrap(),
        )
    };
    let (deaf, mut to_deaf) = open("deaf").await;
    let (good, mut to_good) = open("good").await;

    // Until the peer's queue is full and sending waits.
    let filled = timeout(Duration::from_millis(100), async {
        let mut sent = 0;
        while sent < 10_000 {
            send(&mut *to_deaf, b"listen!").await.unwrap();
            sent += 1;
        }
        sent
    });
    assert!(filled.await.is_err(), "the queue is full");
    for _ in 0..100 {
        send(&mut *to_good, b"fine").await.unwrap();
        assert_eq!(unix_reply(&good).await, b"fine");
    }
    // The peer makes room, and sending goes on.
    let waiting = tokio::spawn(async move {
        send(&mut *to_deaf, b"last").await.unwrap();
        to_deaf
    });
    assert_eq!(unix_reply(&deaf).await, b"listen!");
    let mut to_deaf = waiting.await.unwrap();
    // It stops reading for good: the datagram is given up, the session is not.
    let error = send(&mut *to_deaf, b"lost").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    while deaf.try_recv(&mut [0; 100]).is_ok() {}
    send(&mut *to_deaf, b"back").await.unwrap();
    assert_eq!(unix_reply(&deaf).await, b"back");
}

/// A listener each session of which is relayed to `upstream`, and what came of the sessions.
fn relaying(
    listener: DatagramListener,
    upstream: SocketAddr,
) -> (Running, mpsc::Receiver<(Relayed, Arc<Record>)>) {
    let (give, take) = mpsc::channel(100);
    let running = Running::start(listener, move |opening| {
        let new = opening.accept(IDLE);
        let give = give.clone();
        tokio::spawn(async move {
            let record = Arc::new(Record::new(new.remote));
            let client = Transport::new(new.io, Some(record.clone()));
            let peer = Transport::new(Io::Datagram(Box::new(connected(upstream))), None);
            let relayed = relay(client, [peer], crate::relay::Limits::default()).await;
            give.send((relayed, record)).await.unwrap();
        });
    });
    (running, take)
}

/// A listener that sends every datagram singly, as where the kernel cannot cut runs.
async fn run_singly(
    socket: UdpSocket,
    phase: watch::Receiver<Phase>,
    on_session: impl FnMut(Opening<'_>) + Send,
) {
    let state = prepare(&socket).unwrap();
    let local = Addr::Udp(socket.local_addr().unwrap());
    let mut wire = Udp::new(socket, state, false).unwrap();
    wire.singly = true;
    Receiver::new(wire, local, Limits::default(), Arc::default(), on_session)
        .run(phase)
        .await;
}

/// Sizes that go together and sizes that do not, the empty datagram among them; each begins with its number.
fn numbered() -> Vec<Vec<u8>> {
    let sizes = [&[100; 70][..], &[30, 4, 1472, 1472], &[700; 40], &[9000, 4]].concat();
    let mut all: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![7; size]).collect();
    for (number, datagram) in all.iter_mut().enumerate() {
        datagram[..4].copy_from_slice(&(number as u32).to_be_bytes());
    }
    all.insert(60, Vec::new());
    all
}

/// Receives until `count` datagrams have come.
async fn all(socket: &tokio::net::UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while got.len() < count {
        got.push(reply(socket).await);
    }
    got
}

#[tokio::test]
async fn bursts_are_relayed_both_ways_in_order_with_their_cuts_and_counted() {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (running, mut relayed) = relaying(udp("127.0.0.1:0"), server.local_addr().unwrap());
    let client = client(running.addr).await;
    let (burst, mut buf) = (numbered(), vec![0; 65_536]);
    client.send(b"hello").await.unwrap();
    let (_, peer) = timeout(SOON, server.recv_from(&mut buf))
        .await
        .unwrap()
        .unwrap();
    for _ in 0..3 {
        for datagram in &burst {
            client.send(datagram).await.unwrap();
        }
        assert_eq!(all(&server, burst.len()).await, burst);
        for datagram in &burst {
            server.send_to(datagram, peer).await.unwrap();
        }
        assert_eq!(all(&client, burst.len()).await, burst);
    }
    let bytes = 3 * burst.concat().len() as u64;
    eventually(|| running.stats.sent() == 3 * burst.len() as u64).await;
    running.phase.send(Phase::Stop).unwrap();
    let (relayed, record) = timeout(SOON, relayed.recv()).await.unwrap().unwrap();
    assert_eq!((relayed.up, relayed.down), (bytes + 5, bytes));
    assert_eq!(
        (record.bytes_read(), record.bytes_written()),
        (bytes + 5, bytes)
    );
    running.ended().await;
}

#[tokio::test]
async fn answers_arrive_in_the_same_order_where_the_kernel_cannot_cut_runs() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    let (_phase, follow) = watch::channel(Phase::Serve);
    let (give, mut take) = mpsc::channel(1);
    tokio::spawn(run_singly(socket, follow, move |opening| {
        give.try_send(opening.accept(IDLE).io)
            .map_err(drop)
            .unwrap();
    }));
    let client = client(addr).await;
    client.send(b"hello").await.unwrap();
    let Io::Datagram(mut session) = take.recv().await.unwrap() else {
        unreachable!()
    };
    let burst = numbered();
    for datagram in &burst {
        let sent = poll_fn(|cx| session.poll_send_many(cx, &[datagram, datagram])).await;
        assert_eq!(sent.unwrap(), 1);
        assert_eq!(reply(&client).await, *datagram);
    }
}

#[tokio::test]
async fn runs_of_answers_leave_from_the_address_the_client_wrote_to() {
    let (server, mut sessions) = Running::collect(udp("0.0.0.0:0"), IDLE);
    let client = client((Ipv4Addr::new(127, 0, 0, 9), server.addr.port()).into()).await;
    client.send(b"hello").await.unwrap();
    let mut session = sessions.recv().await.unwrap();
    let run: [&[u8]; 3] = [&[1; 50], &[2; 50], &[3; 5]];
    let sent = poll_fn(|cx| session.poll_send_many(cx, &run)).await;
    assert_eq!(sent.unwrap(), 3);
    // The client is connected to that address and hears no other.
    assert_eq!(all(&client, 3).await, run);
    eventually(|| server.stats.sent() == 3).await;
}

fn connected(to: SocketAddr) -> Datagrams {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_nonblocking(true).unwrap();
    Datagrams::udp(socket).unwrap()
}

#[tokio::test]
async fn a_session_that_is_only_relayed_sleeps_while_its_datagrams_pass() {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (running, mut sessions) = Running::collect(udp("127.0.0.1:0"), IDLE);
    let client = client(running.addr).await;
    client.send(b"0").await.unwrap();
    let session = sessions.recv().await.unwrap();
    let peer = connected(server.local_addr().unwrap());
    let peer = Transport::new(Io::Datagram(Box::new(peer)), None);
    let from = Transport::new(Io::Datagram(session), None);
    let mut relaying = Box::pin(relay(from, [peer], crate::relay::Limits::default()));
    let polled = poll_fn(|cx| std::task::Poll::Ready(relaying.as_mut().poll(cx))).await;
    assert!(polled.is_pending());
    assert_eq!(reply(&server).await, b"0");
    // From here on nobody polls the relay.
    for datagram in numbered() {
        client.send(&datagram).await.unwrap();
        assert_eq!(reply(&server).await, datagram);
    }
}

#[tokio::test]
async fn an_upstream_that_is_away_costs_datagrams_and_not_the_session() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    drop(server);
    let (running, _relayed) = relaying(udp("127.0.0.1:0"), address);
    let client = client(running.addr).await;
    for sent in 1..=20 {
        client.send(b"anybody there?").await.unwrap();
        eventually(|| running.stats.received() == sent).await;
    }
    let server = tokio::net::UdpSocket::bind(address).await.unwrap();
    let mut buf = [0; 100];
    let (_, peer) = loop {
        // The first may be lost to a report about those before.
        client.send(b"now?").await.unwrap();
        let waiting = timeout(Duration::from_millis(100), server.recv_from(&mut buf));
        if let Ok(received) = waiting.await {
            break received.unwrap();
        }
    };
    server.send_to(b"yes", peer).await.unwrap();
    assert_eq!(reply(&client).await, b"yes");
    assert_eq!((running.stats.opened(), running.stats.active()), (1, 1));
}

#[tokio::test]
async fn a_socket_for_one_address_is_not_told_it_with_every_datagram_and_has_room_for_bursts() {
    let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
    let plain = socket2::SockRef::from(&plain);
    plain.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
    let most = plain.recv_buffer_size().unwrap();
    for (addr, told) in [("127.0.0.1:0", 0), ("0.0.0.0:0", 1)] {
        let ours = UdpSocket::bind(addr).unwrap();
        prepare(&ours).unwrap();
        let option = sockopt::get(&ours, libc::IPPROTO_IP, libc::IP_PKTINFO);
        assert_eq!(option.unwrap(), told, "{addr}");
        let tos = sockopt::get(&ours, libc::IPPROTO_IP, libc::IP_RECVTOS);
        assert_eq!(tos.unwrap(), 0);
        let room = socket2::SockRef::from(&ours).recv_buffer_size().unwrap();
        assert_eq!(room, most, "{addr}");
    }
}

#[test]
fn a_socket_that_was_given_more_room_than_one_may_ask_for_keeps_it() {
    const KIB: usize = 1024;
    // What systemd forced to 2 MiB, where the limit is that of most distributions.
    assert!(!asking_widens(4096 * KIB, 208 * KIB));
    assert!(!asking_widens(416 * KIB, 208 * KIB));
    assert!(asking_widens(208 * KIB, 208 * KIB));
    assert!(asking_widens(416 * KIB, 16 * KIB * KIB));
    assert!(!asking_widens(8192 * KIB, 16 * KIB * KIB));
}

#[tokio::test]
async fn a_socket_with_more_room_than_ours_asks_for_keeps_it() {
    let given = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forced = 5 * RECEIVE_BUFFER as libc::c_int;
    // Only an administrator may force it; others are tested with as much as they can have.
    let _ = sockopt::set(&given, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, forced)
        .or_else(|_| sockopt::set(&given, libc::SOL_SOCKET, libc::SO_RCVBUF, forced));
    let before = socket2::SockRef::from(&given).recv_buffer_size().unwrap();
    prepare(&given).unwrap();
    let after = socket2::SockRef::from(&given).recv_buffer_size().unwrap();
    assert_eq!(after, before);
}
