//! How connections end through every handler: the end of a stream leaves the other direction open, a reset stays a
//! reset, and an upstream that is away is an end, not silence. And datagrams stay whole. A table of chains, and a test
//! for each of these.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use e2e::{Backend, Conncept, PATIENCE, ask, connect, datagrams, drain, eventually, loopback};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Map, Value, json};

/// A chain of handlers between a client and an upstream.
struct Case {
    name: &'static str,
    chain: Vec<Value>,
    /// The client speaks TLS to it.
    tls: bool,
    /// Whether client and upstream are reached over Unix sockets rather than TCP.
    unix: (bool, bool),
}

const PLACEHOLDER: &str = "the proxy";

/// Every way to put handlers between the two, with the name of one in place of `proxy`.
fn cases(mirror: SocketAddr) -> Vec<Case> {
    let case = |name, chain: Value| Case {
        name,
        chain: chain.as_array().unwrap().clone(),
        tls: false,
        unix: (false, false),
    };
    let throttle = json!({"handler": "throttle", "read_bytes_per_second": 10_000_000});
    let tee = json!({"handler": "tee", "branch": [
        {"handler": "proxy", "upstreams": [{"dial": [mirror.to_string()]}]},
    ]});
    let over_at_once = json!({"handler": "tee", "branch": [{"handler": "vars", "a": 1}]});
    let vars = json!({"handler": "vars", "a": 1});
    let gate = json!({"handler": "subroute", "routes": [
        {"match": [{"ssh": {}}], "handle": [{"handler": "close"}]},
        {"match": [{"regexp": {"count": 1, "pattern": "."}}], "handle": [vars]},
    ]});
    let inside = json!({"handler": "subroute", "routes": [{"handle": [PLACEHOLDER]}]});
    let tls = json!({"handler": "tls", "connection_policies": [{"alpn": ["x"]}]});
    vec![
        case("proxy", json!([PLACEHOLDER])),
        Case {
            unix: (false, true),
            ..case("proxy to a Unix socket", json!([PLACEHOLDER]))
        },
        Case {
            unix: (true, false),
            ..case("proxy from a Unix socket", json!([PLACEHOLDER]))
        },
        Case {
            unix: (true, true),
            ..case(
                "throttle between Unix sockets",
                json!([throttle, PLACEHOLDER]),
            )
        },
        case("vars", json!([vars, PLACEHOLDER])),
        case("throttle", json!([throttle, PLACEHOLDER])),
        case("tee", json!([tee, PLACEHOLDER])),
        case(
            "tee whose branch has ended",
            json!([over_at_once, PLACEHOLDER]),
        ),
        case("behind a subroute", json!([gate, PLACEHOLDER])),
        case("in a subroute", json!([inside])),
        Case {
            tls: true,
            ..case("tls", json!([tls, PLACEHOLDER]))
        },
        Case {
            tls: true,
            ..case(
                "everything at once",
                json!([
                    throttle,
                    tls,
                    throttle,
                    tee,
                    vars,
                    gate,
                    over_at_once,
                    inside
                ]),
            )
        },
    ]
}

/// All cases behind one program, each with an upstream of its own.
struct Bench {
    conncept: Conncept,
    dir: tempfile::TempDir,
    ip: Ipv4Addr,
    cases: Vec<(Case, Listener)>,
    client: Arc<ClientConfig>,
    _mirror: Backend,
}

/// What accepts the connections of one case.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Bench {
    fn new() -> Self {
        let mirror = Backend::sink();
        let (ip, dir) = (loopback(), tempfile::tempdir().unwrap());
        let client = certificate(dir.path());
        let cases: Vec<(Case, Listener)> = cases(mirror.address)
            .into_iter()
            .enumerate()
            .map(|(i, case)| {
                let listener = if case.unix.1 {
                    Listener::Unix(UnixListener::bind(upstream_path(dir.path(), i)).unwrap())
                } else {
                    Listener::Tcp(TcpListener::bind((ip, 0)).unwrap())
                };
                (case, listener)
            })
            .collect();
        let servers = cases.iter().enumerate().map(|(i, (case, listener))| {
            let dial = match listener {
                Listener::Tcp(listener) => listener.local_addr().unwrap().to_string(),
                Listener::Unix(_) => format!("unix/{}", upstream_path(dir.path(), i).display()),
            };
            let listen = if case.unix.0 {
                format!("unix/{}", client_path(dir.path(), i).display())
            } else {
                format!("{ip}:{}", port(i))
            };
            (case.name.to_owned(), server(&listen, case, &dial))
        });
        let config = config(dir.path(), servers.collect());
        Self {
            conncept: Conncept::serving(&config),
            dir,
            ip,
            cases,
            client,
            _mirror: mirror,
        }
    }

    /// Runs `act` with the client's and the upstream's end of a connection that has carried a question and an answer.
    fn for_each(&self, mut act: impl FnMut(&Case, Client, TcpStream)) {
        for (i, (case, listener)) in self.cases.iter().enumerate() {
            println!("{}", case.name);
            let stream = if case.unix.0 {
                plain(UnixStream::connect(client_path(self.dir.path(), i)).unwrap())
            } else {
                connect((self.ip, port(i)))
            };
            let mut client = if case.tls {
                let name = "a.example".try_into().unwrap();
                let connection = ClientConnection::new(self.client.clone(), name).unwrap();
                Client::Tls(Box::new(StreamOwned::new(connection, stream)))
            } else {
                Client::Plain(stream)
            };
            client.send(b"question");
            let mut upstream = listener.accept();
            assert_eq!(&read_exactly(&mut upstream), b"question");
            upstream.write_all(b"answered").unwrap();
            client.expect(b"answered");
            act(case, client, upstream);
        }
    }
}

impl Listener {
    fn accept(&self) -> TcpStream {
        let mut accepted = None;
        match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true).unwrap();
                eventually("the upstream is connected to", || {
                    accepted = listener.accept().ok().map(|(stream, _)| stream);
                    accepted.is_some()
                });
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true).unwrap();
                eventually("the upstream is connected to", || {
                    accepted = listener.accept().ok().map(|(stream, _)| plain(stream));
                    accepted.is_some()
                });
            }
        }
        let stream = accepted.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// A Unix stream under the type of a TCP stream: what is done with it here is the same system calls.
fn plain(stream: UnixStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    TcpStream::from(OwnedFd::from(stream))
}

enum Client {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).unwrap(),
            Self::Tls(stream) => stream.write_all(bytes).unwrap(),
        }
    }

    fn expect(&mut self, bytes: &[u8; 8]) {
        let mut got = [0; 8];
        match self {
            Self::Plain(stream) => stream.read_exact(&mut got).unwrap(),
            Self::Tls(stream) => stream.read_exact(&mut got).unwrap(),
        }
        assert_eq!(&got, bytes);
    }

    /// Ends its stream: of TLS with a `close_notify` only, which leaves the TCP connection open (RFC 8446 section 6.1).
    fn end(&mut self) {
        match self {
            Self::Plain(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
        }
    }

    fn read_to_end(&mut self) -> std::io::Result<Vec<u8>> {
        let mut all = Vec::new();
        match self {
            Self::Plain(stream) => stream.read_to_end(&mut all),
            // An end without `close_notify` would be an error.
            Self::Tls(stream) => stream.read_to_end(&mut all),
        }?;
        Ok(all)
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

/// Closing a TCP socket that holds unread bytes resets the connection.
fn wait_for_unread(stream: &TcpStream) {
    assert_ne!(stream.peek(&mut [0]).unwrap(), 0);
}

fn read_exactly(stream: &mut TcpStream) -> [u8; 8] {
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn port(case: usize) -> u16 {
    1000 + u16::try_from(case).unwrap()
}

fn client_path(dir: &Path, case: usize) -> PathBuf {
    dir.join(format!("client-{case}.sock"))
}

fn upstream_path(dir: &Path, case: usize) -> PathBuf {
    dir.join(format!("upstream-{case}.sock"))
}

/// A server that runs the chain of a case with a proxy to `dial`.
fn server(listen: &str, case: &Case, dial: &str) -> Value {
    let proxy = json!({"handler": "proxy", "upstreams": [{"dial": [dial]}]}).to_string();
    let chain = json!(case.chain)
        .to_string()
        .replace(&json!(PLACEHOLDER).to_string(), &proxy);
    let chain: Value = serde_json::from_str(&chain).unwrap();
    json!({"listen": [listen], "routes": [{"handle": chain}]})
}

fn config(dir: &Path, servers: Map<String, Value>) -> Value {
    json!({"apps": {
        "tls": {"certificates": {"load_files": [
            {"certificate": dir.join("cert.pem"), "key": dir.join("key.pem")},
        ]}},
        "layer4": {"servers": servers},
    }})
}

/// Writes a certificate for `a.example` and returns a client that trusts it.
fn certificate(dir: &Path) -> Arc<ClientConfig> {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(made.cert.der().to_vec()))
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(client)
}

#[test]
fn the_end_of_a_client_reaches_the_upstream_and_answers_go_on() {
    let bench = Bench::new();
    bench.for_each(|case, mut client, mut upstream| {
        client.send(b"the last");
        client.end();
        let mut rest = Vec::new();
        upstream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"the last", "{}", case.name);
        // Only now: nothing of this could come if the end of the client had ended the connection.
        upstream.write_all(b"a late answer").unwrap();
        drop(upstream);
        assert_eq!(
            client.read_to_end().unwrap(),
            b"a late answer",
            "{}",
            case.name
        );
    });
    eventually("all have ended in order", || {
        let records = bench.conncept.records();
        records.len() == bench.cases.len()
            && records.iter().all(|record| record["reason"] == "completed")
    });
}

/// Row P9 of docs/defects.md.
#[test]
fn the_end_of_an_upstream_reaches_the_client_which_may_go_on_sending() {
    let bench = Bench::new();
    bench.for_each(|case, mut client, mut upstream| {
        upstream.write_all(b"the last").unwrap();
        upstream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read_to_end().unwrap(), b"the last", "{}", case.name);
        client.send(b"late one");
        assert_eq!(&read_exactly(&mut upstream), b"late one", "{}", case.name);
        client.send(b"late two");
        client.end();
        let mut rest = Vec::new();
        upstream.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"late two", "{}", case.name);
    });
    eventually("all have ended in order", || {
        let records = bench.conncept.records();
        records.len() == bench.cases.len()
            && records.iter().all(|record| record["reason"] == "completed")
    });
}

/// Row P10 of docs/defects.md.
#[test]
fn a_reset_of_the_client_is_none_of_its_ends() {
    let bench = Bench::new();
    bench.for_each(|case, client, mut upstream| {
        // An upload of which the rest will never come.
        upstream.write_all(b"never read").unwrap();
        wait_for_unread(client.socket());
        drop(client);
        let ended = upstream.read_to_end(&mut Vec::new());
        match case.unix.1 {
            // A Unix socket has no reset to pass on.
            true => drop(ended),
            false => assert_eq!(
                ended.unwrap_err().kind(),
                ErrorKind::ConnectionReset,
                "{}",
                case.name
            ),
        }
    });
    eventually("all records name the client's reset", || {
        let records = bench.conncept.records();
        records.len() == bench.cases.len()
            && records
                .iter()
                .all(|record| record["reason"] == "client_reset")
    });
}

#[test]
fn a_reset_of_the_upstream_ends_the_connection_after_what_came_before() {
    let bench = Bench::new();
    bench.for_each(|case, mut client, mut upstream| {
        upstream.write_all(b"and then").unwrap();
        client.expect(b"and then");
        client.send(b"never read");
        wait_for_unread(&upstream);
        drop(upstream);
        let ended = client.read_to_end();
        // Unix sockets have no reset to pass on.
        if !case.unix.0 {
            assert_eq!(
                ended.unwrap_err().kind(),
                ErrorKind::ConnectionReset,
                "{}",
                case.name
            );
        }
    });
    eventually("all records name the upstream's reset", || {
        let records = bench.conncept.records();
        records.len() == bench.cases.len()
            && records
                .iter()
                .all(|record| record["reason"] == "upstream_reset")
    });
}

#[test]
fn an_upstream_that_is_away_ends_the_connection() {
    let (ip, dir) = (loopback(), tempfile::tempdir().unwrap());
    let client = certificate(dir.path());
    // Bound and closed again: nobody listens there.
    let away = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap();
    let cases = cases(away);
    let servers = cases.iter().enumerate().map(|(i, case)| {
        let server = server(&format!("{ip}:{}", port(i)), case, &away.to_string());
        (case.name.to_owned(), server)
    });
    let conncept = Conncept::serving(&config(dir.path(), servers.collect()));
    for (i, case) in cases.iter().enumerate() {
        let mut stream = connect((ip, port(i)));
        let from = stream.local_addr().unwrap();
        if case.tls {
            let name = "a.example".try_into().unwrap();
            let mut tls = ClientConnection::new(client.clone(), name).unwrap();
            let mut tls = rustls::Stream::new(&mut tls, &mut stream);
            let _ = tls.write_all(b"question").and_then(|()| tls.flush());
            let _ = tls.read_to_end(&mut Vec::new());
        } else {
            let _ = stream.write_all(b"question");
        }
        assert_eq!(drain(&mut stream), b"", "{}", case.name);
        assert_eq!(
            conncept.record_of(from)["reason"],
            "dial_failed",
            "{}",
            case.name
        );
    }
}

#[test]
fn datagrams_go_through_every_handler_uncut() {
    let (ip, dir, mirror) = (loopback(), tempfile::tempdir().unwrap(), Backend::sink());
    let upstream = UdpSocket::bind((ip, 0)).unwrap();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    let dial = format!("udp/{}", upstream.local_addr().unwrap());
    certificate(dir.path());
    let mut cases = cases(mirror.address);
    // There is no DTLS, and who listens on datagrams only is told so when it loads.
    cases.retain(|case| !case.tls);
    let servers = cases.iter().enumerate().map(|(i, case)| {
        let server = server(&format!("udp/{ip}:{}", port(i)), case, &dial);
        (case.name.to_owned(), server)
    });
    let conncept = Conncept::serving(&config(dir.path(), servers.collect()));
    let mut buffer = vec![0; 65_536];
    for (i, case) in cases.iter().enumerate() {
        let client = datagrams((ip, port(i)));
        for size in [5, 0, 1, 2049, 9001, 60_000, 7] {
            let datagram: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
            client.send(&datagram).unwrap();
            let (n, from) = upstream.recv_from(&mut buffer).unwrap();
            assert!(buffer[..n] == datagram, "{}: {n} of {size}", case.name);
            upstream.send_to(&datagram, from).unwrap();
            let n = client.recv(&mut buffer).unwrap();
            assert!(buffer[..n] == datagram, "{}: {n} of {size}", case.name);
        }
    }
    assert_eq!(conncept.records().len(), 0, "a session has ended");
}

#[test]
fn handlers_that_answer_themselves_end_as_they_say() {
    let ip = loopback();
    let servers = [
        ("echo", json!({"handler": "echo"})),
        ("respond", json!({"handler": "respond", "body": "the text"})),
        ("close", json!({"handler": "close"})),
    ];
    let conncept = Conncept::serving(&e2e::config(Value::Object(
        servers
            .iter()
            .enumerate()
            .map(|(i, (name, handler))| {
                let listen = format!("{ip}:{}", port(i));
                (
                    (*name).to_owned(),
                    json!({"listen": [listen], "routes": [{"handle": [handler]}]}),
                )
            })
            .collect(),
    )));
    // A client that has ended its stream is answered all the same, whole.
    assert_eq!(ask((ip, port(0)), b"one and two"), "one and two");
    assert_eq!(ask((ip, port(1)), b"one and two"), "the text");
    let mut closed = connect((ip, port(2)));
    // It may be gone before this is sent.
    let _ = closed.write_all(b"one");
    assert_eq!(drain(&mut closed), b"");
    // A client that resets ends what runs.
    let mut client = connect((ip, port(0)));
    let from = client.local_addr().unwrap();
    client.write_all(b"comes back").unwrap();
    wait_for_unread(&client);
    drop(client);
    assert_eq!(conncept.record_of(from)["reason"], "client_reset");
}

/// Port scanners do that: some are gone before the connection is accepted, some after.
#[test]
fn a_client_that_resets_at_once_is_recorded_as_such() {
    let ip = loopback();
    let backend = Backend::echo();
    let handlers =
        json!([{"handler": "proxy", "upstreams": [{"dial": [backend.address.to_string()]}]}]);
    let conncept = Conncept::serving(&e2e::config(json!({
        "a": {"listen": [format!("{ip}:{}", port(0))], "routes": [{"handle": handlers}]},
    })));
    for _ in 0..50 {
        let client = connect((ip, port(0)));
        let from = client.local_addr().unwrap();
        let now = Some(Duration::ZERO);
        socket2::SockRef::from(&client).set_linger(now).unwrap();
        drop(client);
        assert_eq!(conncept.record_of(from)["reason"], "client_reset");
    }
}
