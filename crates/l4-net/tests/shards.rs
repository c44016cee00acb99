//! Datagram sessions on several runtimes: a socket for each, which to everybody else are one.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use l4_net::{ConnectionLimit, ListenError, ListenerPool};
use socket2::{Domain, Socket, Type};
use tokio::net::UdpSocket;
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use support::{BYE, WHERE, app, free_port, load, refusal, soon};

const SHARDS: usize = 3;

/// Runtimes of one thread each, and a pool that spreads over them.
struct Sharded {
    pool: ListenerPool,
    limit: ConnectionLimit,
    stop: Vec<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Sharded {
    fn new() -> Self {
        Self::limited(ConnectionLimit::new(10_000))
    }

    fn limited(limit: ConnectionLimit) -> Self {
        let (mut handles, mut stop, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..SHARDS {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            handles.push(runtime.handle().clone());
            let (tell, told) = oneshot::channel();
            stop.push(tell);
            threads.push(std::thread::spawn(move || drop(runtime.block_on(told))));
        }
        let shards = l4_net::Shards::new(handles);
        Self {
            pool: ListenerPool::spread_over(shards, limit.clone()),
            limit,
            stop,
            threads,
        }
    }

    /// One that listens on `listen`, and the address of its first socket.
    async fn listening(listen: &[&str]) -> (Self, SocketAddr) {
        let this = Self::new();
        load(&this.pool, &[("one", listen)]).await;
        let address = this.address();
        (this, address)
    }

    fn address(&self) -> SocketAddr {
        self.pool.addresses()[0].actual.socket().unwrap()
    }
}

impl Drop for Sharded {
    fn drop(&mut self) {
        self.stop.clear();
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

async fn client(server: SocketAddr) -> UdpSocket {
    let any: SocketAddr = match server.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let client = UdpSocket::bind(any).await.unwrap();
    client.connect(server).await.unwrap();
    client
}

async fn clients(server: SocketAddr, count: usize) -> Vec<UdpSocket> {
    let mut clients = Vec::new();
    for _ in 0..count {
        clients.push(client(server).await);
    }
    clients
}

async fn ask(client: &UdpSocket, datagram: &[u8]) -> String {
    client.send(datagram).await.unwrap();
    let mut buffer = [0; 100];
    let n = soon(client.recv(&mut buffer)).await.unwrap();
    String::from_utf8_lossy(&buffer[..n]).into_owned()
}

/// The kernel's numbers of the UDP sockets that are bound to `address`.
fn sockets_at(address: SocketAddr) -> HashSet<String> {
    let mut seen = sockets_seen_at(address);
    loop {
        let again = sockets_seen_at(address);
        if again == seen {
            return seen;
        }
        seen = again;
    }
}

/// Of these, those that one look shows: the table comes in pieces, and what others open meanwhile can hide some.
fn sockets_seen_at(address: SocketAddr) -> HashSet<String> {
    let (table, ip) = match address {
        SocketAddr::V4(four) => (
            "/proc/net/udp",
            format!("{:08X}", four.ip().to_bits().swap_bytes()),
        ),
        SocketAddr::V6(six) => {
            let words = six.ip().octets();
            let words = words
                .chunks(4)
                .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())));
            ("/proc/net/udp6", words.collect())
        }
    };
    let local = format!("{ip}:{:04X}", address.port());
    let table = fs::read_to_string(table).unwrap();
    let bound = table.lines().skip(1).filter_map(|row| {
        let columns: Vec<_> = row.split_whitespace().collect();
        // Clients are connected.
        let ours = columns[1] == local && columns[2].ends_with(":0000");
        ours.then(|| columns[9].to_owned())
    });
    bound.collect()
}

/// Waits for what other threads do.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
    assert!(waited.is_ok(), "not in time: {what}");
}

#[tokio::test]
async fn peers_are_spread_over_all_shards_and_each_stays_where_it_is() {
    for listen in ["udp/127.0.0.1:0", "udp/:0", "udp4/:0", "udp6/[::1]:0"] {
        let (sharded, mut address) = Sharded::listening(&[listen]).await;
        let bound = address;
        let before = sockets_at(bound);
        assert_eq!(before.len(), SHARDS, "{listen}: {before:?}");
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let clients = clients(address, 64).await;
        let mut homes = Vec::new();
        for client in &clients {
            homes.push(ask(client, WHERE).await);
        }
        let mut counts = BTreeMap::<_, usize>::new();
        for home in &homes {
            *counts.entry(home).or_default() += 1;
        }
        assert_eq!(counts.len(), SHARDS, "{listen}: {counts:?}");
        let own = format!("one: {:?}", std::thread::current().id());
        assert!(!homes.contains(&own), "the pool's own runtime is no shard");
        load(&sharded.pool, &[("two", &[listen])]).await;
        assert_eq!(sockets_at(bound), before);
        for (client, home) in clients.iter().zip(&homes) {
            assert_eq!(ask(client, WHERE).await, *home, "{listen}");
        }
        assert_eq!(sharded.limit.sessions(), 64);
        assert!(
            ask(&client(address).await, b"new")
                .await
                .starts_with("two: ")
        );
    }
}

#[tokio::test]
async fn a_port_is_still_taken_by_one_only() {
    let other =
        std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))).unwrap();
    let taken = format!("udp/{}", other.local_addr().unwrap());
    let sharded = Sharded::new();
    let errors = refusal(&sharded.pool, &[("one", &[&*taken, "udp/127.0.0.1:0"])]).await;
    assert_eq!(errors.len(), 1, "{errors:?}");
    let ListenError::InUse { owner, .. } = errors[0].reason() else {
        panic!("{errors:?}");
    };
    assert!(owner.is_some());
    drop(other);
    load(&sharded.pool, &[("one", &[&*taken])]).await;
    std::net::UdpSocket::bind(sharded.address()).unwrap_err();
}

#[tokio::test]
async fn a_group_goes_when_its_last_session_has_ended_and_not_one_socket_before() {
    let (sharded, address) = Sharded::listening(&["udp/127.0.0.1:0"]).await;
    let clients = clients(address, 64).await;
    let mut homes = HashSet::new();
    for client in &clients {
        homes.insert(ask(client, WHERE).await);
    }
    assert_eq!(homes.len(), SHARDS);
    load(&sharded.pool, &[("two", &["127.0.0.1:0"])]).await;
    let (last, others) = clients.split_first().unwrap();
    for client in others {
        client.send(BYE).await.unwrap();
    }
    eventually("all but one have ended", || sharded.limit.sessions() == 1).await;
    // A table without sessions would have ended by now, were it alone.
    for _ in 0..20 {
        assert_eq!(ask(last, b"still here?").await, "one: still here?");
        assert_eq!(sockets_at(address).len(), SHARDS);
    }
    for client in others {
        client.send(b"somebody else?").await.unwrap();
    }
    assert_eq!(ask(last, b"and now?").await, "one: and now?");
    assert_eq!(sharded.limit.sessions(), 1);
    last.send(BYE).await.unwrap();
    eventually("all sockets are closed", || sockets_at(address).is_empty()).await;
}

#[tokio::test]
async fn an_address_that_comes_back_has_all_its_sockets_and_sessions() {
    let (sharded, address) = Sharded::listening(&["udp/127.0.0.1:0"]).await;
    let before = sockets_at(address);
    let fixed = "udp/127.0.0.1:0";
    let old = clients(address, 32).await;
    for client in &old {
        assert_eq!(ask(client, b"a").await, "one: a");
    }
    for _ in 0..3 {
        load(&sharded.pool, &[("none", &["127.0.0.1:0"])]).await;
        // Staged and thrown away: it goes on leaving.
        drop(sharded.pool.stage(&app(&[("two", &[fixed])])).await);
        let early = client(address).await;
        early.send(b"b").await.unwrap();
        load(&sharded.pool, &[("two", &[fixed])]).await;
        assert_eq!(sockets_at(address), before);
    }
    assert_eq!(sharded.address(), address);
    for client in &old {
        assert_eq!(ask(client, b"c").await, "one: c", "the session of before");
    }
    for client in &clients(address, 32).await {
        assert_eq!(ask(client, b"d").await, "two: d");
    }
}

#[tokio::test]
async fn an_address_without_sessions_comes_and_goes_and_never_has_too_few_or_too_many_sockets() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let fixed = format!("udp/{address}");
    let sharded = Sharded::new();
    for round in 0..100 {
        load(&sharded.pool, &[("none", &["127.0.0.1:0"])]).await;
        match round % 3 {
            // Sometimes all of its tasks have had time to end, sometimes some, sometimes none.
            0 => eventually("it is closed", || sockets_at(address).is_empty()).await,
            1 => tokio::task::yield_now().await,
            _ => {}
        }
        load(&sharded.pool, &[("two", &[&*fixed])]).await;
        let client = client(address).await;
        assert_eq!(ask(&client, b"!").await, "two: !", "round {round}");
        client.send(BYE).await.unwrap();
    }
    for client in clients(address, 32).await {
        assert_eq!(ask(&client, b"!").await, "two: !");
    }
    eventually("what was before is closed", || {
        sockets_at(address).len() == SHARDS
    })
    .await;
}

#[tokio::test]
async fn stopping_drains_all_sockets_and_dropping_the_pool_ends_them() {
    let (sharded, address) = Sharded::listening(&["udp/127.0.0.1:0"]).await;
    let old = clients(address, 32).await;
    for client in &old {
        ask(client, b"a").await;
    }
    sharded.pool.close_all().await;
    for late in clients(address, 32).await {
        late.send(b"too late").await.unwrap();
    }
    for client in &old {
        assert_eq!(ask(client, b"b").await, "one: b");
    }
    assert_eq!(sharded.limit.sessions(), 32);
    for client in &old {
        client.send(BYE).await.unwrap();
    }
    eventually("all sockets are closed", || sockets_at(address).is_empty()).await;

    let (mut sharded, address) = Sharded::listening(&["udp/127.0.0.1:0"]).await;
    for client in &clients(address, 32).await {
        ask(client, b"a").await;
    }
    sharded.pool = support::pool();
    eventually("all sockets are closed", || sockets_at(address).is_empty()).await;
    eventually("all sessions have ended", || sharded.limit.sessions() == 0).await;
}

#[tokio::test]
async fn what_is_staged_and_not_committed_leaves_no_socket() {
    let sharded = Sharded::new();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let fixed = format!("udp/{address}");
    let staged = sharded.pool.stage(&app(&[("one", &[&*fixed])])).await;
    assert_eq!(sockets_at(address).len(), SHARDS);
    drop(staged);
    assert!(sockets_at(address).is_empty());
    refusal(&sharded.pool, &[("one", &[&*fixed, "fd/900000"])]).await;
    assert!(sockets_at(address).is_empty());
}

/// How often a client that writes to `to` is answered.
async fn answers(socket: &UdpSocket, to: SocketAddr) -> usize {
    socket.send_to(b"anybody?", to).await.unwrap();
    let mut buffer = [0; 100];
    soon(socket.recv(&mut buffer)).await.unwrap();
    let mut answers = 1;
    let pause = Duration::from_millis(30);
    while let Ok(received) = tokio::time::timeout(pause, socket.recv(&mut buffer)).await {
        received.unwrap();
        answers += 1;
    }
    answers
}

#[tokio::test]
async fn a_broadcast_is_taken_once_and_so_is_a_multicast() {
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 77, 1, 2);
    // A socket that has not joined a group gets its datagrams if any other on this machine has.
    let member = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    member
        .join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)
        .unwrap();
    let subnet = Ipv4Addr::new(127, 255, 255, 255);
    for (listen, to) in [
        ("udp/:0", &[subnet, Ipv4Addr::BROADCAST][..]),
        ("udp4/:0", &[subnet, Ipv4Addr::BROADCAST, GROUP]),
        ("udp/127.255.255.255:0", &[subnet]),
    ] {
        let (sharded, address) = Sharded::listening(&[listen]).await;
        assert_eq!(sockets_at(address).len(), SHARDS);
        let mut sessions = 0;
        for ip in to {
            let to = SocketAddr::from((*ip, address.port()));
            for _ in 0..4 {
                let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
                socket
                    .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
                    .unwrap();
                socket.set_broadcast(true).unwrap();
                socket.set_multicast_if_v4(&Ipv4Addr::LOCALHOST).unwrap();
                socket.set_nonblocking(true).unwrap();
                let socket = UdpSocket::from_std(socket.into()).unwrap();
                // The first opens a session, the second finds it.
                for _ in 0..2 {
                    assert_eq!(answers(&socket, to).await, 1, "{listen} {to}");
                }
                sessions += 1;
                assert_eq!(sharded.limit.sessions(), sessions, "{listen} {to}");
            }
        }
    }
}

/// How many of twenty clients are answered.
async fn answered(sharded: &Sharded, expected: usize) -> usize {
    let clients = clients(sharded.address(), 20).await;
    let mut answered = 0;
    for client in &clients {
        client.send(b"hi").await.unwrap();
        let mut buffer = [0; 16];
        let wait = Duration::from_millis(if answered < expected { 10_000 } else { 20 });
        let answer = tokio::time::timeout(wait, client.recv(&mut buffer)).await;
        answered += usize::from(answer.is_ok());
    }
    for client in &clients {
        client.send(BYE).await.unwrap();
    }
    answered
}

#[tokio::test]
async fn all_shards_count_towards_one_limit_of_sessions_and_so_do_their_sockets() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let fixed = format!("udp/{address}");
    // Of sixteen descriptors the second socket and the third take four; sessions get half of the rest.
    let sharded = Sharded::limited(ConnectionLimit::new(8));
    for _ in 0..3 {
        load(&sharded.pool, &[("one", &[&*fixed])]).await;
        assert_eq!(sockets_at(address).len(), SHARDS);
        assert_eq!(answered(&sharded, 6).await, 6);
        // What they took is given back when they go.
        load(&sharded.pool, &[("none", &["127.0.0.1:0"])]).await;
        eventually("all sockets are closed", || sockets_at(address).is_empty()).await;
        assert_eq!((sharded.limit.sessions(), sharded.limit.in_use()), (0, 0));
    }
}

#[tokio::test]
async fn where_descriptors_are_few_an_address_has_one_socket() {
    // Four are more than a quarter of eight.
    let sharded = Sharded::limited(ConnectionLimit::new(4));
    load(&sharded.pool, &[("one", &["udp/127.0.0.1:0"])]).await;
    assert_eq!(sockets_at(sharded.address()).len(), 1);
    assert_eq!(answered(&sharded, 4).await, 4);
}

#[tokio::test]
async fn addresses_that_take_in_one_another_have_all_their_sockets() {
    let all = SocketAddr::from(([0, 0, 0, 0], free_port()));
    let one = SocketAddr::from(([127, 0, 7, 6], all.port()));
    let listen = [format!("udp/{one}"), format!("udp4/:{}", all.port())];
    let sharded = Sharded::new();
    load(
        &sharded.pool,
        &[("one", &[&*listen[0]]), ("two", &[&*listen[1]])],
    )
    .await;
    assert_eq!(sockets_at(one).len(), SHARDS);
    assert_eq!(sockets_at(all).len(), SHARDS);
    // On the two sides of a reload.
    load(&sharded.pool, &[("one", &[&*listen[0]])]).await;
    eventually("one of them is closed", || sockets_at(all).is_empty()).await;
    load(&sharded.pool, &[("two", &[&*listen[1]])]).await;
    eventually("the other is closed", || sockets_at(one).is_empty()).await;
    assert_eq!(sockets_at(all).len(), SHARDS);
}

#[tokio::test]
async fn sockets_of_which_there_can_be_only_one_stay_where_the_pool_is() {
    let here = format!("one: {:?}", std::thread::current().id());
    let inherited = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = inherited.local_addr().unwrap();
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listen = [
        format!("fdgram/{}", inherited.as_raw_fd()),
        format!("unixgram/{}", path.display()),
    ];
    let (_sharded, _) = Sharded::listening(&[&*listen[0], &*listen[1]]).await;
    assert_eq!(sockets_at(address).len(), 1);
    for client in clients(address, 16).await {
        assert_eq!(ask(&client, WHERE).await, here);
    }
    let client = tokio::net::UnixDatagram::bind(directory.path().join("c")).unwrap();
    client.connect(&path).unwrap();
    client.send(WHERE).await.unwrap();
    let mut buffer = [0; 100];
    let n = soon(client.recv(&mut buffer)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&buffer[..n]), here);
}

#[tokio::test]
async fn no_datagram_of_a_kept_address_is_lost_over_many_reloads() {
    let (sharded, address) = Sharded::listening(&["udp/127.0.0.1:0"]).await;
    let over = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..6)
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || {
                let wait = Some(Duration::from_secs(5));
                let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                let mut buffer = [0; 32];
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    // Now and then somebody new.
                    let fresh = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                    for (socket, times) in [(&socket, 8), (&fresh, 2)] {
                        socket.connect(address).unwrap();
                        socket.set_read_timeout(wait).unwrap();
                        for _ in 0..times {
                            // A few at once, so that some wait in the socket at any time.
                            for n in 0..4_u8 {
                                socket.send(&[n]).unwrap();
                            }
                            for n in 0..4_u8 {
                                let len = socket.recv(&mut buffer).expect("an answer");
                                assert_eq!(buffer[len - 1], n);
                            }
                            asked += 4;
                        }
                    }
                    fresh.send(BYE).unwrap();
                }
                asked
            })
        })
        .collect();
    for round in 0..200 {
        let other = ["udp/127.0.0.1:0", "127.0.0.1:0"];
        load(&sharded.pool, &[("two", &other[..1 + round % 2])]).await;
        assert_eq!(sharded.address(), address);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    over.store(true, Ordering::Relaxed);
    for client in asking {
        let asked = client.join().unwrap();
        assert!(asked > 100, "{asked}");
    }
    assert_eq!(sockets_at(address).len(), SHARDS);
}

/// Another pool is to the kernel what another process of the same user is.
#[tokio::test]
async fn a_process_that_takes_over_addresses_that_take_in_one_another_has_one_socket_for_each() {
    let all = SocketAddr::from(([0, 0, 0, 0], free_port()));
    let one = SocketAddr::from(([127, 0, 7, 8], all.port()));
    let listen = [format!("udp4/:{}", all.port()), format!("udp/{one}")];
    let listen = [&*listen[0], &*listen[1]];
    let (old, _) = Sharded::listening(&listen).await;
    let new = Sharded::new();
    load(&new.pool, &[("two", &listen)]).await;
    let sockets = || (sockets_at(one).len(), sockets_at(all).len());
    assert_eq!(sockets(), (SHARDS + 1, SHARDS + 1));
    drop(old);
    eventually("the old one is gone", || sockets() == (1, 1)).await;
}

/// Another pool is to the kernel what another process of the same user is.
#[tokio::test]
async fn a_process_that_takes_over_has_one_socket_until_it_opens_the_address_anew() {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let fixed = format!("udp/{address}");
    let (old, _) = Sharded::listening(&[&*fixed]).await;
    let new = Sharded::new();
    load(&new.pool, &[("two", &[&*fixed])]).await;
    assert_eq!(sockets_at(address).len(), SHARDS + 1);
    // Some of the clients come to the new one. That the old one closes its sockets takes none of them elsewhere.
    let clients = clients(address, 64).await;
    let mut early = Vec::new();
    for client in clients {
        let home = ask(&client, WHERE).await;
        if home.starts_with("two: ") {
            early.push((client, home));
        }
    }
    assert!(!early.is_empty());
    drop(old);
    eventually("the old one is gone", || sockets_at(address).len() == 1).await;
    for (client, home) in &early {
        assert_eq!(ask(client, WHERE).await, *home);
    }
    assert_eq!(new.limit.sessions(), early.len());
    load(&new.pool, &[("none", &["127.0.0.1:0"])]).await;
    for (client, _) in &early {
        client.send(BYE).await.unwrap();
    }
    eventually("all sockets are closed", || sockets_at(address).is_empty()).await;
    load(&new.pool, &[("two", &[&*fixed])]).await;
    assert_eq!(sockets_at(address).len(), SHARDS);
}
