//! The main job with real programs at both ends: curl, openssl and ssh through one port to nginx and sshd. Runs the seed
//! configurations as they are in `examples/`, with only the addresses replaced.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use e2e::{Conncept, eventually, loopback};
use serde_json::{Value, json};
use tempfile::TempDir;

/// nginx with an HTTP and an HTTPS port, and sshd, on an address of the test's own.
struct Backends {
    ip: Ipv4Addr,
    dir: TempDir,
    processes: Vec<Child>,
}

const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const SSH: u16 = 2222;
const MUX: u16 = 5000;

impl Backends {
    fn start() -> Self {
        let (ip, dir) = (loopback(), TempDir::new().unwrap());
        let mut backends = Self {
            ip,
            dir,
            processes: Vec::new(),
        };
        backends.nginx();
        backends.sshd();
        for port in [HTTP, HTTPS, SSH] {
            let address = SocketAddr::from((ip, port));
            eventually("a backend listens", || TcpStream::connect(address).is_ok());
        }
        backends
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn nginx(&mut self) {
        let (ip, dir) = (self.ip, self.dir.path().display());
        succeed(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=backend.example \
             -keyout {dir}/key.pem -out {dir}/cert.pem"
        ));
        let config = format!(
            "daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log; events {{}}
             http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
               fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
               server {{ listen {ip}:{HTTP}; return 200 \"http for $host\"; }}
               server {{ listen {ip}:{HTTPS} ssl http2; ssl_certificate {dir}/cert.pem;
                 ssl_certificate_key {dir}/key.pem; return 200 \"tls for $ssl_server_name\"; }} }}"
        );
        fs::write(self.path("nginx.conf"), config).unwrap();
        self.spawn(Command::new("nginx").args([
            "-e",
            &self.path("error.log"),
            "-c",
            &self.path("nginx.conf"),
        ]));
    }

    fn sshd(&mut self) {
        let (ip, dir) = (self.ip, self.dir.path().display());
        for key in ["host", "user"] {
            succeed(&format!("ssh-keygen -q -t ed25519 -N '' -f {dir}/{key}"));
        }
        fs::copy(self.path("user.pub"), self.path("authorized")).unwrap();
        let config = format!(
            "ListenAddress {ip}:{SSH}\nHostKey {dir}/host\nPidFile {dir}/sshd.pid\nAuthorizedKeysFile {dir}/authorized\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        );
        fs::write(self.path("sshd.conf"), config).unwrap();
        // Root's sshd wants its empty folder, which Debian makes when the service is started.
        let _ = fs::create_dir_all("/run/sshd");
        self.spawn(Command::new("/usr/sbin/sshd").args([
            "-D",
            "-e",
            "-f",
            &self.path("sshd.conf"),
        ]));
    }

    fn spawn(&mut self, command: &mut Command) {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.processes.push(process.unwrap());
    }

    /// An example of the repository with its addresses replaced.
    fn example(&self, name: &str) -> Value {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(name);
        let text = fs::read_to_string(file)
            .unwrap()
            .replace("127.0.0.1:5000", &format!("{}:{MUX}", self.ip))
            .replace("localhost:80", &format!("{}:{HTTP}", self.ip))
            .replace("localhost:443", &format!("{}:{HTTPS}", self.ip));
        serde_json::from_str(&text).unwrap()
    }

    fn curl(&self, args: &str) -> String {
        succeed(
            &format!("curl --silent --show-error --max-time 10 {args}")
                .replace("MUX", &format!("{}:{MUX}", self.ip)),
        )
    }

    /// Runs a command over ssh through the multiplexer.
    fn ssh(&self, command: &str) -> Result<String, String> {
        let (ip, key) = (self.ip, self.path("user"));
        sh(&format!(
            "ssh -F none -i {key} -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
             -o LogLevel=ERROR -o ConnectTimeout=10 -p {MUX} $(id -un)@{ip} '{command}'"
        ))
    }
}

impl Drop for Backends {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // nginx ends its worker on SIGTERM only.
            let _ = Command::new("kill").arg(process.id().to_string()).status();
            let _ = process.wait();
        }
    }
}

/// Runs a shell command; its output, or what it said when it failed.
fn sh(command: &str) -> Result<String, String> {
    let output = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

fn succeed(command: &str) -> String {
    sh(command).unwrap_or_else(|why| panic!("{command}\n{why}"))
}

#[test]
fn http_and_tls_share_a_port_and_ssh_is_refused_where_no_route_takes_it() {
    let backends = Backends::start();
    let conncept = Conncept::serving(&backends.example("mux-http-tls.json"));
    let ip = backends.ip;
    assert_eq!(backends.curl("http://MUX/"), format!("http for {ip}"));
    assert_eq!(
        backends.curl("--http1.0 -H 'Host: old.example' http://MUX/"),
        "http for old.example"
    );
    let to = format!("--insecure --resolve a.example:{MUX}:{ip} https://a.example:{MUX}/");
    assert_eq!(backends.curl(&to), "tls for a.example");
    assert_eq!(
        backends.curl(&format!("--http1.1 --tls-max 1.2 {to}")),
        "tls for a.example"
    );
    let seen = succeed(&format!(
        "openssl s_client -connect {ip}:{MUX} -servername b.example </dev/null 2>/dev/null"
    ));
    assert!(
        seen.contains("CN = backend.example"),
        "the certificate is the backend's: {seen}"
    );
    assert!(backends.ssh("echo over ssh").is_err());
    let record = conncept.log_where("ssh's record", |line| line["reason"] == "no_route");
    assert_eq!(
        (&record["route"], &record["written"]),
        (&json!("-"), &json!(0))
    );
}

#[test]
fn http_tls_and_ssh_share_a_port() {
    let backends = Backends::start();
    let mut config = backends.example("mux-http-tls.json");
    let ssh = json!({"match": [{"ssh": {}}], "handle": [
        {"handler": "proxy", "upstreams": [{"dial": [format!("{}:{SSH}", backends.ip)]}]}
    ]});
    config["apps"]["layer4"]["servers"]["example"]["routes"]
        .as_array_mut()
        .unwrap()
        .push(ssh);
    let conncept = Conncept::serving(&config);
    assert_eq!(backends.ssh("echo over ssh").unwrap(), "over ssh\n");
    assert_eq!(
        backends.curl("http://MUX/"),
        format!("http for {}", backends.ip)
    );
    // A bulk answer, and an upload, through the relay.
    let bulk = backends
        .ssh("head -c 20000000 /dev/zero | sha256sum")
        .unwrap();
    let copied = succeed("head -c 20000000 /dev/zero | sha256sum");
    assert_eq!(bulk, copied);
    assert_eq!(
        backends.ssh("head -c 20000000 /dev/zero").unwrap().len(),
        20_000_000
    );
    let routes: Vec<Value> = conncept
        .records()
        .iter()
        .map(|record| record["route"].clone())
        .collect();
    assert!(
        routes.contains(&json!("2")) && routes.contains(&json!("0")),
        "{routes:?}"
    );
}

#[test]
fn host_or_sni_chooses() {
    let backends = Backends::start();
    let _conncept = Conncept::serving(&backends.example("mux-http-host-or-tls-sni.json"));
    let ip = backends.ip;
    assert_eq!(
        backends.curl("-H 'Host: example.com' http://MUX/"),
        "http for example.com"
    );
    assert!(
        sh(&format!(
            "curl -s -m 5 -H 'Host: other.example' http://{ip}:{MUX}/"
        ))
        .is_err()
    );
    let tls = |name: &str| format!("--insecure --resolve {name}:{MUX}:{ip} https://{name}:{MUX}/");
    assert_eq!(backends.curl(&tls("example.net")), "tls for example.net");
    assert!(sh(&format!("curl -s -m 5 {}", tls("example.org"))).is_err());
}

#[test]
fn a_subroute_is_entered_with_the_bytes_that_chose_it() {
    let backends = Backends::start();
    let _conncept = Conncept::serving(&backends.example("mux-http-hosts-subroute.json"));
    assert_eq!(
        backends.curl("-H 'Host: example.com' http://MUX/"),
        "http for example.com"
    );
    assert!(sh(&format!("curl -s -m 5 http://{}:{MUX}/", backends.ip)).is_err());
}
