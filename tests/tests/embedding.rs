//! The programs of `examples/embed`: HTTP of their own and ssh of another server on one port.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use e2e::{eventually, loopback};

const PROGRAMS: [&str; 2] = [
    env!("CARGO_BIN_EXE_embed-axum-under-test"),
    env!("CARGO_BIN_EXE_embed-hyper-under-test"),
];

const PORT: u16 = 8022;

/// A running example. Killed when dropped.
struct Running(Child);

impl Running {
    fn start(program: &str, ip: Ipv4Addr, sshd: SocketAddr) -> Self {
        let address = SocketAddr::from((ip, PORT));
        let child = Command::new(program)
            .args([address.to_string(), sshd.to_string()])
            .spawn();
        let this = Self(child.unwrap());
        eventually("the example listens", || {
            TcpStream::connect(address).is_ok()
        });
        this
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What comes back until the server closes. A question that says so is the last thing the client sends: hyper gives up on
/// a client that ends its stream before it was answered.
fn exchange(to: SocketAddr, question: &str, last: bool) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(e2e::PATIENCE)).unwrap();
    stream.write_all(question.as_bytes()).unwrap();
    if last {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_examples_serve_http_and_hand_ssh_on() {
    for program in PROGRAMS {
        let ip = loopback();
        let sshd = TcpListener::bind((ip, 0)).unwrap();
        let running = Running::start(program, ip, sshd.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = sshd.accept().unwrap();
            let mut greeting = String::new();
            stream.read_to_string(&mut greeting).unwrap();
            write!(stream, "seen {greeting}").unwrap();
        });
        let to = SocketAddr::from((ip, PORT));
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answer = exchange(to, request, false);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("hello 127.0.0.1:"), "{answer}");
        assert_eq!(
            exchange(to, "SSH-2.0-test\r\n", true),
            "seen SSH-2.0-test\r\n"
        );
        server.join().unwrap();
        drop(running);
    }
}

#[cfg(feature = "interop")]
#[test]
fn curl_and_ssh_share_the_port_of_the_examples() {
    use e2e::backends::{Backends, MUX, Ports};

    let ports = Ports {
        http: 8080,
        https: 8443,
        ssh: 2222,
    };
    let backends = Backends::start(loopback(), ports);
    let (address, sshd) = (
        SocketAddr::from((backends.ip(), MUX)),
        SocketAddr::from((backends.ip(), ports.ssh)),
    );
    for (program, says) in PROGRAMS.into_iter().zip([" by no TLS\n", "\n"]) {
        let mut running = Running(
            Command::new(program)
                .args([address.to_string(), sshd.to_string()])
                .spawn()
                .unwrap(),
        );
        eventually("the example listens", || {
            TcpStream::connect(address).is_ok()
        });
        let hello = backends.curl("http://MUX/");
        assert!(
            hello.starts_with("hello 127.0.0.1:") && hello.ends_with(says),
            "{hello}"
        );
        // Two requests on one connection.
        let twice = backends.curl("http://MUX/ http://MUX/");
        assert_eq!(twice.matches("hello ").count(), 2);
        assert_eq!(backends.ssh("echo over ssh").unwrap(), "over ssh\n");
        let bulk = backends.ssh("head -c 20000000 /dev/zero").unwrap();
        assert_eq!(bulk.len(), 20_000_000);
        assert!(running.0.try_wait().unwrap().is_none());
    }
}

#[test]
fn the_routes_of_the_page_about_embedding_load() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/embedding.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, routes) = page.split_once("```text\n").unwrap();
    let (routes, _) = routes.split_once("```").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["example.com".to_owned()]).unwrap();
    fs::write(dir.path().join("example.pem"), made.cert.pem()).unwrap();
    fs::write(
        dir.path().join("example.key"),
        made.signing_key.serialize_pem(),
    )
    .unwrap();
    let routes = routes.replace("/etc/conncept", dir.path().to_str().unwrap());
    let mut registry = l4_embed::Registry::new();
    conncept::builtin(&mut registry);
    let loaded = l4_embed::Routes::from_json(&registry, &routes).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(loaded.warnings().len(), 0);
}

#[test]
fn the_code_of_the_page_about_embedding_is_that_of_the_examples() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let page = read("docs/embedding.md");
    let examples =
        ["axum", "hyper"].map(|name| read(&format!("examples/embed/src/bin/embed-{name}.rs")));
    let blocks: Vec<&str> = page
        .split("```rust\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 5, "{} blocks", blocks.len());
    for block in blocks {
        assert!(
            examples.iter().any(|example| example.contains(block)),
            "not in an example:\n{block}"
        );
    }
}
