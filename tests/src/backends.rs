//! Real programs behind the one under test: nginx with an HTTP and an HTTPS port, and sshd. And the shell to reach them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::eventually;

/// Where the backends listen.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub http: u16,
    pub https: u16,
    pub ssh: u16,
}

/// nginx with an HTTP and an HTTPS port, and sshd. Ended when dropped.
pub struct Backends {
    ip: Ipv4Addr,
    ports: Ports,
    dir: TempDir,
    processes: Vec<Child>,
}

/// The port of the server in the examples.
pub const MUX: u16 = 5000;

impl Backends {
    /// Starts them on an address and waits until all of them listen. The HTTP port answers `http for HOST`, the HTTPS
    /// port `tls for SNI`.
    pub fn start(ip: Ipv4Addr, ports: Ports) -> Self {
        let mut backends = Self {
            ip,
            ports,
            dir: TempDir::new().unwrap(),
            processes: Vec::new(),
        };
        backends.nginx();
        backends.sshd();
        for port in [ports.http, ports.https, ports.ssh] {
            let address = SocketAddr::from((ip, port));
            eventually("a backend listens", || TcpStream::connect(address).is_ok());
        }
        backends
    }

    /// Where they listen.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// A file of the backends: `cert.pem` and `key.pem` of nginx, `user` of sshd, and whatever a test puts there.
    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn nginx(&mut self) {
        let (ip, dir) = (self.ip, self.dir.path().display());
        let Ports { http, https, .. } = self.ports;
        succeed(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=backend.example \
             -keyout {dir}/key.pem -out {dir}/cert.pem"
        ));
        let config = format!(
            "daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log; events {{}}
             http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
               fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
               server {{ listen {ip}:{http}; return 200 \"http for $host\"; }}
               server {{ listen {ip}:{https} ssl http2; ssl_certificate {dir}/cert.pem;
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
        let ssh = self.ports.ssh;
        for key in ["host", "user"] {
            succeed(&format!("ssh-keygen -q -t ed25519 -N '' -f {dir}/{key}"));
        }
        fs::copy(self.path("user.pub"), self.path("authorized")).unwrap();
        let config = format!(
            "ListenAddress {ip}:{ssh}\nHostKey {dir}/host\nPidFile {dir}/sshd.pid\nAuthorizedKeysFile {dir}/authorized\n\
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

    /// Starts another program, which ends with the backends.
    pub fn spawn(&mut self, command: &mut Command) {
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.processes.push(process.unwrap());
    }

    /// An example of the repository with its addresses replaced.
    pub fn example(&self, name: &str) -> Value {
        let text = fs::read_to_string(example(name))
            .unwrap()
            .replace("127.0.0.1:5000", &format!("{}:{MUX}", self.ip))
            .replace("localhost:80", &format!("{}:{}", self.ip, self.ports.http))
            .replace(
                "localhost:443",
                &format!("{}:{}", self.ip, self.ports.https),
            );
        serde_json::from_str(&text).unwrap()
    }

    /// What curl prints; `MUX` stands for the address of the multiplexer.
    pub fn curl(&self, args: &str) -> String {
        succeed(
            &format!("curl --silent --show-error --max-time 10 {args}")
                .replace("MUX", &format!("{}:{MUX}", self.ip)),
        )
    }

    /// Runs a command over ssh through the multiplexer.
    pub fn ssh(&self, command: &str) -> Result<String, String> {
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
pub fn sh(command: &str) -> Result<String, String> {
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

/// What a shell command prints, which must succeed.
pub fn succeed(command: &str) -> String {
    sh(command).unwrap_or_else(|why| panic!("{command}\n{why}"))
}

/// The file of an example of the repository.
pub fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}
