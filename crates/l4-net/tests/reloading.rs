//! What a reload does to listening sockets and to those who are connecting meanwhile.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use l4_net::{ConnectionLimit, ListenError, ListenerPool};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket, UnixStream};

use support::{
    app, free_port, greeting, line, listening, load, messages, pool, port, refusal, soon,
};

/// An address that nobody uses.
fn free_address() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// The kernel's numbers of the sockets that listen on `address`, which is of IPv4.
fn sockets_at(address: &str) -> Vec<String> {
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let listening = table.lines().filter_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let ours = columns[1].ends_with(&format!(":{port:04X}")) && columns[3] == "0A";
        ours.then(|| columns[9].to_owned())
    });
    listening.collect()
}

#[tokio::test]
async fn connections_go_on_under_the_server_that_took_them() {
    let address = free_address();
    let (pool, _) = listening(&[&address]).await;
    let before = sockets_at(&address);
    let mut old = TcpStream::connect(&address).await.unwrap();
    assert!(line(&mut old).await.starts_with("one "));
    load(&pool, &[("two", &["127.0.0.1:0", &*address])]).await;
    // A server of another name, listed elsewhere: the socket is the same.
    assert_eq!(before.len(), 1);
    assert_eq!(sockets_at(&address), before);
    assert!(greeting(&address).await.starts_with("two "));
    old.write_all(b"still here").await.unwrap();
    let mut echo = [0; 10];
    soon(old.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_is_lost_over_many_reloads() {
    let address = free_address();
    let (pool, _) = listening(&[&address]).await;
    load(&pool, &[("round 0", &[&*address])]).await;
    let connecting = address.clone();
    let clients = tokio::spawn(async move {
        let mut served = 0_u32;
        for _ in 0..2000 {
            let greeting = greeting(&connecting).await;
            assert!(greeting.starts_with("round "), "{greeting:?}");
            served += 1;
        }
        served
    });
    let mut rounds = 0;
    while !clients.is_finished() {
        rounds += 1;
        // The address changes hands, and other sockets come and go.
        let name = format!("round {rounds}");
        load(
            &pool,
            &[
                (&name, &[&*address, "127.0.0.1:0"]),
                ("other", &["udp/127.0.0.1:0"]),
            ],
        )
        .await;
    }
    assert_eq!(clients.await.unwrap(), 2000);
    assert!(rounds > 10, "only {rounds} reloads");
}

#[tokio::test]
async fn who_waits_in_the_queue_of_a_removed_listener_is_served() {
    let pool = ListenerPool::new(ConnectionLimit::new(1));
    load(&pool, &[("one", &["127.0.0.1:0"])]).await;
    let address = format!("127.0.0.1:{}", port(&pool));
    let mut first = TcpStream::connect(&address).await.unwrap();
    assert!(line(&mut first).await.starts_with("one "));
    // Connected as far as the kernel and the client are concerned, but not accepted.
    let mut waiting = TcpStream::connect(&address).await.unwrap();
    waiting.write_all(b"hello").await.unwrap();
    load(&pool, &[("two", &["[::1]:0"])]).await;
    drop(first);
    assert!(
        line(&mut waiting).await.starts_with("one "),
        "served under the old configuration"
    );
    soon(async { while TcpStream::connect(&address).await.is_ok() {} }).await;
}

#[tokio::test]
async fn stopping_serves_the_queue_and_closes_everything() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listen = [
        "127.0.0.1:0",
        &format!("unix/{}", path.display()),
        "udp/127.0.0.1:0",
    ];
    let (pool, addresses) = listening(&listen).await;
    let tcp = addresses[0].socket().unwrap();
    // On this thread nothing is accepted before the next await.
    let waiting: Vec<_> = (0..10)
        .map(|_| std::net::TcpStream::connect(tcp).unwrap())
        .collect();
    let unix = std::os::unix::net::UnixStream::connect(&path).unwrap();
    pool.close_all().await;
    assert!(!path.exists());
    assert!(pool.addresses().is_empty());
    assert_eq!(
        TcpStream::connect(tcp).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused
    );
    for client in waiting {
        client.set_nonblocking(true).unwrap();
        assert!(
            line(TcpStream::from_std(client).unwrap())
                .await
                .starts_with("one ")
        );
    }
    unix.set_nonblocking(true).unwrap();
    assert!(
        line(UnixStream::from_std(unix).unwrap())
            .await
            .starts_with("one ")
    );
    // A load that was under way comes to nothing.
    load(&pool, &[("late", &["127.0.0.1:0"])]).await;
    assert!(pool.addresses().is_empty());
}

#[tokio::test]
async fn dropping_the_pool_closes_everything() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listen = ["127.0.0.1:0", &format!("unix/{}", path.display())];
    let (pool, addresses) = listening(&listen).await;
    let tcp = addresses[0].socket().unwrap();
    drop(pool);
    assert!(!path.exists());
    soon(async { while TcpStream::connect(tcp).await.is_ok() {} }).await;
}

/// Row D-14 of docs/defects.md.
#[tokio::test]
async fn a_load_that_fails_changes_nothing_and_tells_everything() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let kept = free_address();
    let (pool, before) = listening(&[&kept, "udp/127.0.0.1:0"]).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let unix = format!("unix/{}", path.display());
    let errors = refusal(
        &pool,
        &[
            ("two", &[&*kept, &*unix, "127.0.0.1:0"]),
            (
                "three",
                &["fd/900000", &*taken, "unix//no/such/directory/s"],
            ),
        ],
    )
    .await;
    // The directory is missed before anything is opened, so it is reported alone.
    assert_eq!(errors.len(), 1, "{errors:?}");
    let errors = refusal(
        &pool,
        &[
            ("two", &[&*kept, &*unix]),
            ("three", &["fd/900000", "fd/900001"]),
        ],
    )
    .await;
    let pointers: Vec<_> = errors
        .iter()
        .map(|error| error.pointer().to_owned())
        .collect();
    assert_eq!(
        pointers,
        [
            "/apps/layer4/servers/three/listen/0",
            "/apps/layer4/servers/three/listen/1"
        ]
    );
    assert!(
        !path.exists(),
        "the socket file of a failed load stays behind"
    );
    let after: Vec<_> = pool.addresses().into_iter().map(|a| a.actual).collect();
    assert_eq!(before, after);
    assert!(greeting(&kept).await.starts_with("one "));
}

#[tokio::test]
async fn a_load_that_fails_takes_no_connection_from_who_listens_on_the_same_address() {
    // Another pool is to the kernel what another process of the same user is.
    let first = free_address();
    let (running, _) = listening(&[&first]).await;
    let wide = first.replace("127.0.0.1", "");
    let failing = pool();
    let missing: Vec<String> = (0..2000).map(|i| format!("fd/{}", 900_000 + i)).collect();
    let mut listen = vec![&*first, &*wide];
    listen.extend(missing.iter().map(String::as_str));
    let servers = [("two", &*listen)];
    let connecting = async {
        let mut clients = Vec::new();
        for _ in 0..20 {
            // The kernel completes it whether or not anybody accepts.
            let client = std::net::TcpStream::connect(&first).unwrap();
            client.set_nonblocking(true).unwrap();
            clients.push(TcpStream::from_std(client).unwrap());
            tokio::task::yield_now().await;
        }
        clients
    };
    let (errors, clients) = tokio::join!(refusal(&failing, &servers), connecting);
    assert_eq!(errors.len(), missing.len(), "only what cannot be had");
    for client in clients {
        assert!(line(client).await.starts_with("one "));
    }
    drop(running);
}

#[tokio::test]
async fn what_is_staged_and_not_committed_is_closed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let (pool, _) = listening(&["127.0.0.1:0"]).await;
    let unix = format!("unix/{}", path.display());
    let staged = pool
        .stage(&app(&[("two", &[&*unix])]))
        .await
        .unwrap_or_else(|e| panic!("{e:?}"));
    assert!(path.exists());
    drop(staged);
    assert!(!path.exists());
    assert_eq!(pool.addresses().len(), 1);
    assert!(
        greeting(("127.0.0.1", port(&pool)))
            .await
            .starts_with("one ")
    );
}

#[tokio::test]
async fn a_port_that_was_left_to_the_system_stays_over_a_reload() {
    let listen = ["127.0.0.1:0", "127.0.0.1:0", "udp/127.0.0.1:0"];
    let (pool, before) = listening(&listen).await;
    assert_ne!(before[0], before[1]);
    load(&pool, &[("two", &listen)]).await;
    let after: Vec<_> = pool.addresses().into_iter().map(|a| a.actual).collect();
    assert_eq!(before, after);
    // One of two goes: the other stays what it was.
    load(&pool, &[("three", &listen[..1])]).await;
    assert_eq!(pool.addresses().len(), 1);
    assert_eq!(pool.addresses()[0].actual, before[0]);
}

#[tokio::test]
async fn a_socket_file_stays_and_gets_its_new_mode() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let base = format!("unix/{}", path.display());
    let (pool, _) = listening(&[&base]).await;
    let before = fs::metadata(&path).unwrap();
    load(&pool, &[("two", &[&format!("{base}|0660")])]).await;
    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.permissions().mode() & 0o7777, 0o660);
    assert_eq!(before.ino(), after.ino());
    assert!(
        line(UnixStream::connect(&path).await.unwrap())
            .await
            .starts_with("two ")
    );
    // Reached by another way, it is the same file.
    load(
        &pool,
        &[(
            "three",
            &[&format!("unix/{}/./s", directory.path().display())],
        )],
    )
    .await;
    assert_eq!(before.ino(), fs::metadata(&path).unwrap().ino());
    assert!(
        line(UnixStream::connect(&path).await.unwrap())
            .await
            .starts_with("three ")
    );
}

#[tokio::test]
async fn a_socket_file_that_was_deleted_comes_back_with_a_reload() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listen = format!("unix/{}", path.display());
    let (pool, _) = listening(&[&listen]).await;
    fs::remove_file(&path).unwrap();
    load(&pool, &[("two", &[&*listen])]).await;
    assert!(
        line(UnixStream::connect(&path).await.unwrap())
            .await
            .starts_with("two ")
    );
}

#[tokio::test]
async fn a_socket_that_was_removed_can_come_back_at_once() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let name = format!("conncept-test-back-{}", std::process::id());
    let both = [format!("unix/{}", path.display()), format!("unix/@{name}")];
    let both = [&*both[0], &*both[1]];
    let (pool, _) = listening(&both).await;
    for _ in 0..20 {
        load(&pool, &[("none", &["127.0.0.1:0"])]).await;
        assert!(!path.exists());
        load(&pool, &[("two", &both)]).await;
        assert!(
            line(UnixStream::connect(&path).await.unwrap())
                .await
                .starts_with("two ")
        );
    }
}

#[tokio::test]
async fn a_socket_file_cannot_become_another_kind_of_socket() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let (pool, _) = listening(&[&format!("unix/{}", path.display())]).await;
    let listen = format!("unixgram/{}", path.display());
    let errors = refusal(&pool, &[("two", &[&*listen])]).await;
    assert!(
        matches!(errors[0].reason(), ListenError::OtherKind { .. }),
        "{}",
        messages(&errors)[0]
    );
    assert!(
        line(UnixStream::connect(&path).await.unwrap())
            .await
            .starts_with("one ")
    );
}

/// Sends one datagram and waits a little for the answer.
async fn ask(client: &UdpSocket, datagram: &[u8]) -> Option<String> {
    client.send(datagram).await.unwrap();
    let mut buffer = [0; 100];
    let answer = tokio::time::timeout(Duration::from_millis(300), client.recv(&mut buffer)).await;
    let n = answer.ok()?.ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

async fn udp_client(address: &str) -> UdpSocket {
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(address).await.unwrap();
    client
}

#[tokio::test]
async fn datagram_sessions_outlive_their_listener_and_new_ones_are_not_opened() {
    let (pool, addresses) = listening(&["udp/127.0.0.1:0"]).await;
    let address = addresses[0].socket().unwrap().to_string();
    let old = udp_client(&address).await;
    assert_eq!(ask(&old, b"a").await.as_deref(), Some("one: a"));
    load(&pool, &[("two", &["127.0.0.1:0"])]).await;
    assert_eq!(ask(&old, b"b").await.as_deref(), Some("one: b"));
    let new = udp_client(&address).await;
    assert_eq!(ask(&new, b"c").await, None);
}

#[tokio::test]
async fn a_datagram_listener_that_comes_back_takes_new_sessions_and_keeps_its_old_ones() {
    let address = free_address();
    let fixed = format!("udp/{address}");
    let (pool, _) = listening(&[&fixed]).await;
    let old = udp_client(&address).await;
    assert_eq!(ask(&old, b"a").await.as_deref(), Some("one: a"));
    load(&pool, &[("none", &["127.0.0.1:0"])]).await;
    // Staged and thrown away: it goes on leaving.
    drop(
        pool.stage(&app(&[("two", &[&*fixed])]))
            .await
            .unwrap_or_else(|e| panic!("{e:?}")),
    );
    assert_eq!(ask(&udp_client(&address).await, b"b").await, None);
    load(&pool, &[("two", &[&*fixed])]).await;
    assert_eq!(
        ask(&old, b"c").await.as_deref(),
        Some("one: c"),
        "the session of before"
    );
    for _ in 0..20 {
        // Were there a second socket on the port, some of these would go to it.
        assert_eq!(
            ask(&udp_client(&address).await, b"d").await.as_deref(),
            Some("two: d")
        );
    }
    assert_eq!(pool.addresses().len(), 1);
}

#[tokio::test]
async fn a_datagram_listener_without_sessions_is_gone_and_can_be_opened_again() {
    let address = free_address();
    let fixed = format!("udp/{address}");
    let (pool, _) = listening(&[&fixed]).await;
    for round in 0..50 {
        load(&pool, &[("none", &["127.0.0.1:0"])]).await;
        if round % 2 == 0 {
            // Sometimes it has had time to end, sometimes not.
            tokio::task::yield_now().await;
        }
        load(&pool, &[("two", &[&*fixed])]).await;
    }
    assert_eq!(
        ask(&udp_client(&address).await, b"!").await.as_deref(),
        Some("two: !")
    );
}

#[tokio::test]
async fn datagram_sessions_do_not_take_the_descriptors_that_connections_need() {
    let pool = ListenerPool::new(ConnectionLimit::new(2));
    load(&pool, &[("one", &["udp/127.0.0.1:0"])]).await;
    let server = ("127.0.0.1", port(&pool));
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.send_to(b"hi", server).await.unwrap();
        clients.push(client);
    }
    let mut answer = [0; 16];
    for client in &clients[..2] {
        assert_eq!(soon(client.recv(&mut answer)).await.unwrap(), 7);
    }
    let none = tokio::time::timeout(Duration::from_millis(200), clients[2].recv(&mut answer));
    assert!(none.await.is_err(), "a third session was opened");
}
