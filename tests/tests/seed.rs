//! What the project set out to do, sentence by sentence, and its example configurations exactly as they are, with real
//! clients in front and real servers behind. Each test has a network of its own, so that the ports can be those of the
//! files.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::backends::{Backends, Ports, sh, succeed};
use e2e::network::apart;
use e2e::{Conncept, config, eventually};
use serde_json::{Value, json};

const WELL_KNOWN: Ports = Ports {
    http: 80,
    https: 443,
    ssh: 22,
};

fn backends() -> Backends {
    Backends::start(Ipv4Addr::LOCALHOST, WELL_KNOWN)
}

/// A server on port 5000 with these routes.
fn server(routes: &Value) -> Value {
    config(json!({"example": {"listen": ["127.0.0.1:5000"], "routes": routes}}))
}

fn proxy(to: &str) -> Value {
    json!({"handler": "proxy", "upstreams": [{"dial": [to]}]})
}

fn curl(args: &str) -> Result<String, String> {
    sh(&format!("curl --silent --show-error --max-time 10 {args}"))
}

/// A server on port 7000 that answers a connection with the checksum of what it got, once that has ended.
fn checksums(backends: &mut Backends) {
    backends.spawn(Command::new("socat").args([
        "TCP-LISTEN:7000,bind=127.0.0.1,fork,reuseaddr",
        "EXEC:sha256sum",
    ]));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 7000));
    eventually("socat listens", || TcpStream::connect(address).is_ok());
}

/// A file of random bytes, and its checksum as `sha256sum` prints it for a stream.
fn random(backends: &Backends, size: usize) -> (String, String) {
    let file = backends.path("random");
    succeed(&format!("head -c {size} /dev/urandom > {file}"));
    let sum = succeed(&format!("sha256sum < {file}"));
    (file, sum)
}

#[test]
fn echo() {
    if !apart("echo", &[]) {
        return;
    }
    let _conncept = Conncept::serving_example("echo.json");
    assert_eq!(
        succeed("printf 'first\\nsecond\\n' | nc -N 127.0.0.1 5000"),
        "first\nsecond\n"
    );
    assert_eq!(
        succeed("head -c 3000000 /dev/zero | nc -N 127.0.0.1 5000 | sha256sum"),
        succeed("head -c 3000000 /dev/zero | sha256sum")
    );
}

#[test]
fn proxy_raw_bytes() {
    if !apart("proxy_raw_bytes", &[]) {
        return;
    }
    let mut backends = backends();
    checksums(&mut backends);
    let routes = json!([{"handle": [proxy("127.0.0.1:7000")]}]);
    let _conncept = Conncept::serving(&server(&routes));
    let (file, sum) = random(&backends, 5_000_000);
    assert_eq!(succeed(&format!("nc -N 127.0.0.1 5000 < {file}")), sum);
}

#[test]
fn terminate_tls_then_proxy() {
    if !apart("terminate_tls_then_proxy", &[]) {
        return;
    }
    let backends = backends();
    let dir = backends.path("front");
    fs::create_dir(&dir).unwrap();
    succeed(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=shop.example \
         -addext subjectAltName=DNS:shop.example -keyout {dir}/key.pem -out {dir}/cert.pem"
    ));
    let mut config = server(&json!([{"handle": [
        {"handler": "tls", "connection_policies": [{"alpn": ["http/1.1"]}]},
        proxy("localhost:80"),
    ]}]));
    config["apps"]["tls"] = json!({"certificates": {"load_files": [
        {"certificate": format!("{dir}/cert.pem"), "key": format!("{dir}/key.pem")},
    ]}});
    let _conncept = Conncept::serving(&config);
    let to = "--resolve shop.example:5000:127.0.0.1 https://shop.example:5000/";
    assert_eq!(
        curl(&format!("--cacert {dir}/cert.pem {to}")).unwrap(),
        "http for shop.example"
    );
    assert!(curl(to).is_err(), "a certificate that nobody vouches for");
}

#[test]
fn the_internal_certificate_as_it_is() {
    if !apart("the_internal_certificate_as_it_is", &[]) {
        return;
    }
    let conncept = Conncept::serving_example("echo-tls-internal.json");
    let root = conncept.data().join("pki/authorities/local/root.crt");
    eventually("there is a root", || root.exists());
    let client = format!(
        "openssl s_client -connect localhost:5000 -servername localhost -verify_hostname localhost \
         -verify_return_error -CAfile {}",
        root.display()
    );
    let seen = succeed(&format!("{client} </dev/null 2>&1"));
    assert!(seen.contains("Verify return code: 0 (ok)"), "{seen}");
    let mut client = Command::new("sh")
        .args([
            "-c",
            &format!("exec {client} -quiet -no_ign_eof 2>/dev/null"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = client.stdin.take().unwrap();
    stdin.write_all(b"over TLS\n").unwrap();
    let mut back = [0; 9];
    let stdout = client.stdout.as_mut().unwrap();
    stdout.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"over TLS\n");
    drop(stdin);
    assert!(client.wait().unwrap().success());
}

#[test]
fn tls_to_443_without_terminating_http_to_80_ssh_to_22() {
    if !apart("tls_to_443_without_terminating_http_to_80_ssh_to_22", &[]) {
        return;
    }
    let backends = backends();
    let routes = json!([
        {"match": [{"http": []}], "handle": [proxy("localhost:80")]},
        {"match": [{"tls": {}}], "handle": [proxy("localhost:443")]},
        {"match": [{"ssh": {}}], "handle": [proxy("127.0.0.1:22")]},
    ]);
    let _conncept = Conncept::serving(&server(&routes));
    http_and_tls(&backends);
    assert_eq!(backends.ssh("echo over ssh").unwrap(), "over ssh\n");
}

#[test]
fn the_multiplexer_of_http_and_tls_as_it_is() {
    if !apart("the_multiplexer_of_http_and_tls_as_it_is", &[]) {
        return;
    }
    let backends = backends();
    let _conncept = Conncept::serving_example("mux-http-tls.json");
    http_and_tls(&backends);
    assert!(backends.ssh("true").is_err(), "no route is for ssh");
}

/// HTTP is answered by the one backend, and TLS by the other with its own certificate.
fn http_and_tls(backends: &Backends) {
    assert_eq!(
        curl("http://127.0.0.1:5000/").unwrap(),
        "http for 127.0.0.1"
    );
    let authority = backends.path("cert.pem");
    let seen = succeed(&format!(
        "openssl s_client -connect 127.0.0.1:5000 -servername a.example -CAfile {authority} \
         -verify_return_error </dev/null 2>&1"
    ));
    assert!(seen.contains("Verify return code: 0 (ok)"), "{seen}");
    let to = "--insecure --resolve a.example:5000:127.0.0.1 https://a.example:5000/";
    assert_eq!(curl(to).unwrap(), "tls for a.example");
}

#[test]
fn host_or_sni_selects() {
    if !apart("host_or_sni_selects", &[]) {
        return;
    }
    let _backends = backends();
    let _conncept = Conncept::serving_example("mux-http-host-or-tls-sni.json");
    let tls = |name: &str| {
        curl(&format!(
            "--insecure --resolve {name}:5000:127.0.0.1 https://{name}:5000/"
        ))
    };
    let http = |name: &str| curl(&format!("--header 'Host: {name}' http://127.0.0.1:5000/"));
    assert_eq!(http("example.com").unwrap(), "http for example.com");
    assert!(http("example.net").is_err());
    assert_eq!(tls("example.net").unwrap(), "tls for example.net");
    assert!(tls("example.com").is_err());
}

#[test]
fn a_subroute_behind_a_host() {
    if !apart("a_subroute_behind_a_host", &[]) {
        return;
    }
    let _backends = backends();
    let _conncept = Conncept::serving_example("mux-http-hosts-subroute.json");
    let http = |name: &str| curl(&format!("--header 'Host: {name}' http://127.0.0.1:5000/"));
    assert_eq!(http("example.com").unwrap(), "http for example.com");
    assert!(http("example.net").is_err());
}

#[test]
fn block_ranges() {
    if !apart("block_ranges", &["10.0.0.7/24", "10.0.1.7/24"]) {
        return;
    }
    let _backends = backends();
    let config = config(json!({"example": {"listen": [":5000"], "routes": [
        {"match": [{"remote_ip": {"ranges": ["10.0.0.0/24"]}}], "handle": [{"handler": "close"}]},
        {"handle": [proxy("localhost:80")]},
    ]}}));
    let conncept = Conncept::serving(&config);
    let from =
        |address: &str, host: &str| curl(&format!("--interface {address} http://{host}:5000/"));
    assert_eq!(from("10.0.1.7", "10.0.1.7").unwrap(), "http for 10.0.1.7");
    assert!(from("10.0.0.7", "10.0.0.7").is_err());
    assert_eq!(
        from("127.0.0.1", "127.0.0.1").unwrap(),
        "http for 127.0.0.1"
    );
    let record = conncept.log_where("the blocked one's record", |line| {
        line["remote"]
            .as_str()
            .is_some_and(|remote| remote.starts_with("10.0.0.7:"))
            && line["logger"] == "conncept::access"
    });
    assert_eq!(record["route"], "0");
}

/// What passes is exact to 2 % in `crates/l4-throttle`; here a real client is slowed down and loses nothing.
#[test]
fn throttle() {
    const SIZE: usize = 600_000;
    const RATE: usize = 300_000;
    const BURST: usize = 60_000;
    if !apart("throttle", &[]) {
        return;
    }
    let mut backends = backends();
    checksums(&mut backends);
    let routes = json!([{"handle": [
        {"handler": "throttle", "read_bytes_per_second": RATE, "read_burst_size": BURST},
        proxy("127.0.0.1:7000"),
    ]}]);
    let _conncept = Conncept::serving(&server(&routes));
    let (file, sum) = random(&backends, SIZE);
    let started = Instant::now();
    assert_eq!(succeed(&format!("nc -N 127.0.0.1 5000 < {file}")), sum);
    let least = Duration::from_secs_f64((SIZE - BURST) as f64 / RATE as f64);
    assert!(started.elapsed() >= least, "{:?}", started.elapsed());
}
