//! Every kind of listen address, with real sockets.

#![allow(clippy::unwrap_used)]

mod support;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::time::Duration;
use std::{fs, io};

use l4_core::Addr;
use l4_net::dial::{DialOptions, Resolve, Target, connect};
use l4_net::{ConnectionLimit, ListenError, ListenerPool};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixDatagram, UnixStream};

use support::{
    app, free_port, greeting, line, listening, load, messages, pool, port, refusal, soon,
};

/// Whether a client of IPv4, and one of IPv6, can connect.
async fn reached(port: u16) -> [bool; 2] {
    let v4 = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
    let v6 = TcpStream::connect(("::1", port)).await.is_ok();
    [v4, v6]
}

#[tokio::test]
async fn all_interfaces_are_one_socket_for_both_ip_versions() {
    for everywhere in [":0", "0.0.0.0:0", "[::]:0", "tcp/:0"] {
        let (pool, addresses) = listening(&[everywhere]).await;
        assert_eq!(addresses.len(), 1);
        assert_eq!(
            addresses[0].ip(),
            Some("::".parse().unwrap()),
            "{everywhere}"
        );
        assert_eq!(reached(port(&pool)).await, [true, true], "{everywhere}");
    }
}

#[tokio::test]
async fn a_network_of_one_ip_version_leaves_the_other_alone() {
    for (listen, expected) in [
        ("tcp4/:0", [true, false]),
        ("tcp4/0.0.0.0:0", [true, false]),
        ("tcp6/:0", [false, true]),
        ("tcp6/[::]:0", [false, true]),
        ("127.0.0.1:0", [true, false]),
        ("[::ffff:127.0.0.1]:0", [true, false]),
        ("[::1]:0", [false, true]),
        ("localhost:0", [true, false]),
    ] {
        let (pool, _) = listening(&[listen]).await;
        assert_eq!(reached(port(&pool)).await, expected, "{listen}");
    }
}

#[tokio::test]
async fn both_ip_versions_can_be_two_listeners_on_one_port() {
    let (free, _) = listening(&[":0"]).await;
    let port = port(&free);
    free.close_all().await;
    let pool = pool();
    let (v4, v6) = (format!("tcp4/:{port}"), format!("tcp6/:{port}"));
    load(&pool, &[("four", &[&*v4]), ("six", &[&*v6])]).await;
    assert!(greeting(("127.0.0.1", port)).await.starts_with("four "));
    assert!(greeting(("::1", port)).await.starts_with("six "));
}

#[tokio::test]
async fn zones_are_interfaces_by_name_or_number() {
    for zone in ["lo", "1"] {
        let (pool, addresses) = listening(&[&format!("[::1%{zone}]:0")]).await;
        let Addr::Tcp(SocketAddr::V6(address)) = addresses[0] else {
            panic!("{addresses:?}")
        };
        assert!(address.ip().is_loopback());
        assert!(greeting(("::1", port(&pool))).await.starts_with("one "));
    }
    let errors = refusal(&pool(), &[("one", &["[fe80::1%nosuch0]:0"])]).await;
    assert_eq!(
        messages(&errors),
        ["cannot listen on [fe80::1%nosuch0]:0: there is no network interface \"nosuch0\""]
    );
}

/// A resolver that knows one name.
struct Only(&'static str, &'static [&'static str]);

impl Resolve for Only {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        if host != self.0 {
            return Err(io::Error::other("no such host"));
        }
        Ok(self
            .1
            .iter()
            .map(|ip| (ip.parse::<IpAddr>().unwrap(), port).into())
            .collect())
    }
}

#[tokio::test]
async fn a_name_is_bound_at_one_address_preferably_ipv4() {
    let resolver = Only("here.test", &["::1", "127.0.0.5", "127.0.0.6"]);
    let pool = pool();
    let servers: &[(&str, &[&str])] = &[
        ("any", &["here.test:0"]),
        ("six", &["tcp6/here.test:0", "udp6/here.test:0"]),
    ];
    let staged = pool.stage_with(&resolver, &app(servers)).await;
    staged
        .unwrap_or_else(|errors| panic!("{errors:?}"))
        .commit();
    let ips: Vec<_> = pool
        .addresses()
        .iter()
        .filter_map(|a| a.actual.ip())
        .collect();
    assert_eq!(
        ips,
        ["127.0.0.5", "::1", "::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
    );
}

#[tokio::test]
async fn a_name_without_a_suitable_address_is_refused() {
    let resolver = Only("here.test", &["127.0.0.5"]);
    let servers: &[(&str, &[&str])] = &[(
        "one",
        &[
            "tcp6/here.test:0",
            "gone.test:0",
            "tcp4/[::1]:0",
            "tcp6/127.0.0.1:0",
        ],
    )];
    let staged = pool().stage_with(&resolver, &app(servers)).await;
    let errors = staged.err().expect("nothing suitable");
    assert_eq!(
        messages(&errors),
        [
            "cannot listen on tcp6/here.test:0: no suitable address found: \
             here.test is not, and has not, an IPv6 address",
            "cannot listen on gone.test:0: the name gone.test cannot be resolved: no such host",
            "cannot listen on tcp4/[::1]:0: no suitable address found: \
             ::1 is not, and has not, an IPv4 address",
            "cannot listen on tcp6/127.0.0.1:0: no suitable address found: \
             127.0.0.1 is not, and has not, an IPv6 address",
        ]
    );
}

#[tokio::test]
async fn accepted_sockets_inherit_their_options_from_the_listener() {
    let (pool, _) = listening(&["127.0.0.1:0"]).await;
    let greeting = greeting(("127.0.0.1", port(&pool))).await;
    let options = "nodelay=true keepalive=true idle=15 interval=15 probes=9";
    assert!(greeting.ends_with(options), "{greeting}");
}

#[tokio::test]
async fn what_a_client_has_sent_by_then_is_there_when_it_is_accepted() {
    let pool = pool();
    let address = format!("127.0.0.1:{}", free_port());
    let staged = pool.stage(&app(&[("one", &[&address])])).await;
    // The socket listens, and nobody accepts yet.
    let mut client = TcpStream::connect(&address).await.unwrap();
    client.write_all(b"hello").await.unwrap();
    staged
        .unwrap_or_else(|errors| panic!("{errors:?}"))
        .commit();
    let mut client = BufReader::new(client);
    let mut greeting = String::new();
    soon(client.read_line(&mut greeting)).await.unwrap();
    assert!(greeting.contains(" unread=hello nodelay="), "{greeting}");
    // It is in front of what comes later.
    client.write_all(b" again").await.unwrap();
    let mut echo = [0; 11];
    soon(client.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"hello again");
}

#[tokio::test]
async fn connections_know_both_their_addresses() {
    for listen in ["127.0.0.1:0", ":0", "[::1]:0"] {
        let (pool, _) = listening(&[listen]).await;
        let ip = if listen.starts_with("[::1]") {
            "::1"
        } else {
            "127.0.0.1"
        };
        let client = soon(TcpStream::connect((ip, port(&pool)))).await.unwrap();
        let (remote, local) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let greeting = line(client).await;
        assert!(
            greeting.starts_with(&format!("one {remote} {local} ")),
            "{listen}: {greeting}"
        );
    }
}

#[tokio::test]
async fn a_range_is_one_socket_for_each_port() {
    let pool = pool();
    // Not of those that clients are given, which keep them for a minute after their ends.
    let first = 'search: {
        for first in (10_000..30_000).step_by(3) {
            let range = format!("127.0.0.1:{first}-{}", first + 2);
            if let Ok(staged) = pool.stage(&app(&[("one", &[&*range])])).await {
                staged.commit();
                break 'search first;
            }
        }
        panic!("no three free ports in a row");
    };
    let ports: Vec<_> = pool
        .addresses()
        .iter()
        .filter_map(|a| Some(a.actual.socket()?.port()))
        .collect();
    assert_eq!(ports, [first, first + 1, first + 2]);
    for port in ports {
        assert!(greeting(("127.0.0.1", port)).await.starts_with("one "));
    }
}

#[tokio::test]
async fn a_port_that_another_program_has_is_reported_with_its_owner() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (taken, taken_udp) = (other.local_addr().unwrap(), udp.local_addr().unwrap());
    let listen = [
        taken.to_string(),
        format!(":{}", taken.port()),
        format!("udp/{taken_udp}"),
        "203.0.113.77:0".to_owned(),
    ];
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    let errors = refusal(&pool(), &[("one", &listen)]).await;
    let port = taken.port();
    assert_eq!(
        messages(&errors),
        [
            format!("cannot listen on {taken}: {taken} is already in use by this process itself"),
            format!(
                "cannot listen on :{port}: [::]:{port} is already in use by this process itself"
            ),
            format!(
                "cannot listen on udp/{taken_udp}: {taken_udp} is already in use by this process itself"
            ),
            "cannot listen on 203.0.113.77:0: 203.0.113.77 is not an address of this machine"
                .to_owned(),
        ]
    );
    assert_eq!(errors[2].pointer(), "/apps/layer4/servers/one/listen/2");
}

#[tokio::test]
async fn one_socket_under_two_spellings_is_refused_with_both_places() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().display();
    let errors = refusal(
        &pool(),
        &[
            (
                "a",
                &[
                    "127.0.0.1:4999",
                    &format!("unix/{path}/s"),
                    "unix/@one",
                    "udp/127.0.0.1:4999",
                ],
            ),
            (
                "b",
                &[
                    "[::ffff:127.0.0.1]:4999",
                    &format!("unixgram/{path}/./s"),
                    "unixgram/@one",
                ],
            ),
        ],
    )
    .await;
    assert_eq!(
        messages(&errors),
        [
            "cannot listen on [::ffff:127.0.0.1]:4999: this is the same socket as \
             127.0.0.1:4999 at /apps/layer4/servers/a/listen/0; remove one of them"
                .to_owned(),
            format!(
                "cannot listen on unixgram/{path}/./s: this is the same socket as \
                 unix/{path}/s at /apps/layer4/servers/a/listen/1; remove one of them"
            ),
        ]
    );
    assert!(matches!(errors[0].reason(), ListenError::Twice { .. }));
    assert!(errors[0].related().is_some());
}

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_socket_file_has_the_mode_that_was_asked_for() {
    let directory = TempDir::new().unwrap();
    for (suffix, expected) in [
        ("", 0o200),
        ("|0660", 0o660),
        ("|777", 0o777),
        ("|0222", 0o222),
    ] {
        let path = directory.path().join(format!("s{expected:o}"));
        let (pool, _) = listening(&[&format!("unix/{}{suffix}", path.display())]).await;
        assert_eq!(mode(&path), expected, "{suffix:?}");
        let greeting = line(UnixStream::connect(&path).await.unwrap()).await;
        assert_eq!(greeting, format!("one @ {}", path.display()));
        pool.close_all().await;
        assert!(!path.exists(), "the file stays behind");
    }
}

#[tokio::test]
async fn a_stale_socket_file_is_replaced_and_anything_else_is_not() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(fs::symlink_metadata(&path).unwrap().file_type().is_socket());
    let listen = format!("unix/{}", path.display());
    let (replaced, _) = listening(&[&listen]).await;
    assert!(
        line(UnixStream::connect(&path).await.unwrap())
            .await
            .starts_with("one ")
    );
    replaced.close_all().await;

    fs::write(&path, "precious").unwrap();
    let errors = refusal(&pool(), &[("one", &[&*listen])]).await;
    assert!(
        matches!(errors[0].reason(), ListenError::NotASocketFile { .. }),
        "{errors:?}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");

    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(directory.path().join("elsewhere"), &path).unwrap();
    let errors = refusal(&pool(), &[("one", &[&*listen])]).await;
    assert!(
        matches!(errors[0].reason(), ListenError::NotASocketFile { .. }),
        "{errors:?}"
    );
    assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
}

#[tokio::test]
async fn unusable_paths_are_explained() {
    let directory = TempDir::new().unwrap();
    let base = directory.path().display();
    let long = format!("unix/{base}/{}", "x".repeat(120));
    let missing = format!("unix/{base}/missing/s");
    let is_directory = format!("unix/{base}");
    let errors = refusal(
        &pool(),
        &[(
            "one",
            &[&*long, &*missing, "unix/", "unix//", &*is_directory],
        )],
    )
    .await;
    assert_eq!(
        messages(&errors),
        [
            format!("cannot listen on {long}: a Unix socket's path has at most 107 bytes"),
            format!("cannot listen on {missing}: the directory {base}/missing does not exist"),
            "cannot listen on unix/: a Unix socket needs a path".to_owned(),
            "cannot listen on unix//: the path names a directory".to_owned(),
        ]
    );
    let errors = refusal(&pool(), &[("one", &[&*is_directory])]).await;
    assert!(
        matches!(errors[0].reason(), ListenError::NotASocketFile { .. }),
        "{errors:?}"
    );
}

#[tokio::test]
async fn a_socket_file_that_is_not_ours_any_more_is_left() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let (pool, _) = listening(&[&format!("unix/{}", path.display())]).await;
    fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    pool.close_all().await;
    assert!(path.exists());
}

#[tokio::test]
async fn abstract_names_have_no_file() {
    let name = format!("conncept-test-{}", std::process::id());
    let (pool, _) = listening(&[&format!("unix/@{name}|0777")]).await;
    assert!(!std::path::Path::new(&format!("@{name}")).exists());
    let target = Target::new(&format!("unix/@{name}").parse().unwrap()).unwrap();
    let dialled = connect(&target, &DialOptions::default()).await.unwrap();
    let l4_core::Io::Unix(socket) = dialled.io else {
        panic!("not a Unix socket")
    };
    assert_eq!(line(socket).await, format!("one @ @{name}"));
    pool.close_all().await;
    let gone = connect(&target, &DialOptions::default()).await;
    assert!(gone.is_err());
}

#[tokio::test]
async fn unixpacket_connections_carry_messages() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let listen = format!("unixpacket/{}|0600", path.display());
    let (pool, _) = listening(&[&listen]).await;
    assert_eq!(mode(&path), 0o600);
    let target = Target::new(&listen.parse().unwrap()).unwrap();
    let dialled = soon(connect(&target, &DialOptions::default()))
        .await
        .unwrap();
    let l4_core::Io::Layer(mut socket) = dialled.io else {
        panic!("not a packet socket")
    };
    let mut buffer = [0; 1000];
    let n = soon(socket.read(&mut buffer)).await.unwrap();
    assert_eq!(
        &buffer[..n],
        format!("one @ {}\n", path.display()).as_bytes()
    );
    // Two messages at once: both must come back, and not wait for a third.
    socket.write_all(b"first").await.unwrap();
    socket.write_all(b"second").await.unwrap();
    for message in [b"first".as_slice(), b"second"] {
        let n = soon(socket.read(&mut buffer)).await.unwrap();
        assert_eq!(&buffer[..n], message);
    }
    socket.shutdown().await.unwrap();
    assert_eq!(soon(socket.read(&mut buffer)).await.unwrap(), 0);
    pool.close_all().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn unixgram_peers_are_answered() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let (pool, _) = listening(&[&format!("unixgram/{}", path.display())]).await;
    assert_eq!(mode(&path), 0o200);
    let client = UnixDatagram::bind(directory.path().join("client")).unwrap();
    client.send_to(b"hello", &path).await.unwrap();
    let mut buffer = [0; 100];
    let n = soon(client.recv(&mut buffer)).await.unwrap();
    assert_eq!(&buffer[..n], b"one: hello");
    pool.close_all().await;
    assert!(!path.exists());
}

/// The answer to one datagram.
async fn ask(address: impl tokio::net::ToSocketAddrs, datagram: &[u8]) -> Option<String> {
    let address = tokio::net::lookup_host(address)
        .await
        .unwrap()
        .next()
        .unwrap();
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let client = tokio::net::UdpSocket::bind(any).await.unwrap();
    client.connect(address).await.unwrap();
    client.send(datagram).await.unwrap();
    let mut buffer = [0; 1000];
    let answer = tokio::time::timeout(Duration::from_millis(500), client.recv(&mut buffer)).await;
    let n = answer.ok()?.ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

#[tokio::test]
async fn udp_listens_on_the_ip_versions_that_were_asked_for() {
    let (yes, no) = (Some("one: ?".to_owned()), None);
    for (listen, expected) in [
        ("udp/:0", [&yes, &yes]),
        ("udp4/:0", [&yes, &no]),
        ("udp6/:0", [&no, &yes]),
        ("udp/127.0.0.1:0", [&yes, &no]),
        ("udp/localhost:0", [&yes, &no]),
    ] {
        let (pool, _) = listening(&[listen]).await;
        let port = port(&pool);
        let answers = [
            ask(("127.0.0.1", port), b"?").await,
            ask(("::1", port), b"?").await,
        ];
        assert_eq!(answers.each_ref(), expected, "{listen}");
    }
}

#[tokio::test]
async fn an_inherited_listener_is_used_and_never_closed() {
    let inherited = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = inherited.local_addr().unwrap();
    let listen = format!("fd/{}", inherited.as_raw_fd());
    let (pool, addresses) = listening(&[&listen]).await;
    assert_eq!(addresses, [Addr::Tcp(address)]);
    let first = greeting(address).await;
    assert!(
        first.contains(&format!(" {address} nodelay=true keepalive=true idle=15")),
        "{first}"
    );
    // A reload goes on with it, and so does a process that comes after.
    load(&pool, &[("two", &[&*listen])]).await;
    assert!(greeting(address).await.starts_with("two "));
    pool.close_all().await;
    let client = TcpStream::connect(address).await.unwrap();
    let (_, peer) = inherited.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
}

#[tokio::test]
async fn inherited_sockets_of_other_kinds_are_used() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_address = udp.local_addr().unwrap();
    let listen = [
        format!("fd/{}", unix.as_raw_fd()),
        format!("fdgram/{:#x}", udp.as_raw_fd()),
    ];
    let (pool, _) = listening(&[&*listen[0], &*listen[1]]).await;
    let greeting = line(UnixStream::connect(&path).await.unwrap()).await;
    assert_eq!(greeting, format!("one @ {}", path.display()));
    assert_eq!(ask(udp_address, b"!").await.as_deref(), Some("one: !"));
    pool.close_all().await;
    // Its file is not ours.
    assert!(path.exists());
}

#[tokio::test]
async fn descriptors_that_are_something_else_are_refused() {
    let file = fs::File::open("/dev/null").unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let closed = 900_000;
    let listen = [
        format!("fd/{}", file.as_raw_fd()),
        format!("fd/{}", connected.as_raw_fd()),
        format!("fd/{}", udp.as_raw_fd()),
        format!("fdgram/{}", listener.as_raw_fd()),
        format!("fd/{closed}"),
        "fd/abc".to_owned(),
    ];
    let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
    let errors = refusal(&pool(), &[("one", &listen[..5])]).await;
    let found: Vec<String> = messages(&errors)
        .iter()
        .filter_map(|message| Some(message.split_once(" is ")?.1.to_owned()))
        .collect();
    assert_eq!(
        found,
        [
            "not a socket, a listening stream socket is needed",
            "a stream socket that does not listen, a listening stream socket is needed",
            "a datagram socket (fdgram/ is for those), a listening stream socket is needed",
            "a stream socket (fd/ is for those), a datagram socket is needed",
            "not open: it was not passed to this process",
        ]
    );
    let errors = refusal(&pool(), &[("one", &["fd/abc"])]).await;
    assert!(
        messages(&errors)[0].contains("invalid file descriptor"),
        "{errors:?}"
    );
}

#[tokio::test]
async fn a_process_can_take_over_from_another_of_the_same_user() {
    // Another pool is to the kernel what another process of the same user is.
    let (first, second, port) = (pool(), pool(), free_port());
    let (tcp, udp) = (format!("127.0.0.1:{port}"), format!("udp/127.0.0.1:{port}"));
    load(&first, &[("one", &[&tcp, &udp])]).await;
    load(&second, &[("two", &[&tcp, &udp])]).await;
    first.close_all().await;
    assert!(greeting(("127.0.0.1", port)).await.starts_with("two "));
}

#[tokio::test]
async fn one_process_may_have_an_address_and_one_that_takes_it_in() {
    let port = free_port();
    let pool = pool();
    let [specific, all] = ["127.0.0.1", ""].map(|host| format!("{host}:{port}"));
    let [specific_udp, all_udp] = [&specific, &all].map(|address| format!("udp/{address}"));
    let listen: [&[&str]; 2] = [&[&specific, &specific_udp], &[&all, &all_udp]];
    // Both at once, and from one to the other and back.
    load(&pool, &[("narrow", listen[0]), ("wide", listen[1])]).await;
    assert!(greeting(("127.0.0.1", port)).await.starts_with("narrow "));
    assert!(greeting(("127.0.0.2", port)).await.starts_with("wide "));
    for _ in 0..2 {
        load(&pool, &[("narrow", listen[0])]).await;
        assert!(greeting(("127.0.0.1", port)).await.starts_with("narrow "));
        load(&pool, &[("wide", listen[1])]).await;
        // The narrow one may still be taking its last call.
        assert!(greeting(("127.0.0.2", port)).await.starts_with("wide "));
    }
}

#[tokio::test]
async fn who_is_over_the_connection_limit_is_served_when_another_ends() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("s");
    let pool = ListenerPool::new(ConnectionLimit::new(2));
    // More listeners than connections: idle ones must not use the limit up.
    let listen = [
        "127.0.0.1:0",
        "127.0.0.1:0",
        "127.0.0.1:0",
        &format!("unix/{}", path.display()),
    ];
    load(&pool, &[("one", &listen)]).await;
    let addresses: Vec<_> = pool
        .addresses()
        .iter()
        .filter_map(|listening| listening.actual.socket())
        .collect();
    let mut first = TcpStream::connect(addresses[0]).await.unwrap();
    assert!(line(&mut first).await.starts_with("one "));
    let mut second = UnixStream::connect(&path).await.unwrap();
    assert!(line(&mut second).await.starts_with("one "));
    assert_eq!(pool.limit().in_use(), 2);
    // The kernel has accepted it, we have not.
    let mut third = TcpStream::connect(addresses[2]).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), line(&mut third)).await;
    assert!(early.is_err(), "{early:?}");
    drop(first);
    assert!(line(&mut third).await.starts_with("one "));
    drop((second, third));
    soon(async {
        while pool.limit().in_use() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
