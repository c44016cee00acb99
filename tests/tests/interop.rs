//! The embedded configuration against the programs it tells newcomers to use. Needs `curl`, `openssl`, `ssh` and `nc`.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use e2e::{Conncept, loopback};

/// The commands that `conncept run` prints, for an address of the test's own.
fn commands(ip: Ipv4Addr) -> (Conncept, Vec<String>) {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../bins/conncept/src/default.json"
    );
    let text = fs::read_to_string(file)
        .unwrap()
        .replace("127.0.0.1", &ip.to_string());
    let conncept = Conncept::serving(&serde_json::from_str(&text).unwrap());
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../bins/conncept/src/default_config.rs"
    );
    let source = fs::read_to_string(source).unwrap();
    let printed = source.lines().filter(|line| {
        line.starts_with("  curl ")
            || line.contains("openssl s_client -")
            || line.starts_with("  echo ")
    });
    let commands = printed.map(|line| {
        line.trim()
            .replace("{address_with_space}", &format!("{ip} 5000"))
            .replace("{address}", &format!("{ip}:5000"))
    });
    (conncept, commands.collect())
}

/// What a shell command prints.
fn output(command: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("{{ {command} ; }} 2>&1")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_commands_that_are_printed_show_what_they_promise() {
    let (_conncept, commands) = commands(loopback());
    let [curl, openssl, nc] = commands.as_slice() else {
        panic!("{commands:?}");
    };
    let said = output(&curl.replace("curl", "curl --silent --show-error --include"));
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{curl}: {said}");
    assert!(
        said.contains("Conncept saw HTTP for 127."),
        "{curl}: {said}"
    );

    let said = output(openssl);
    assert!(said.contains("unrecognized name"), "{openssl}: {said}");
    // The text column of the dump, put together.
    let dump = said
        .lines()
        .filter(|line| line.starts_with("00") && line.get(4..7) == Some(" - "));
    let text: String = dump.filter_map(|line| line.get(57..)).collect();
    assert!(
        text.contains("Conncept saw TLS for hello.example from 127.0.0.1:"),
        "{openssl}: {said}"
    );

    let said = output(nc);
    assert!(
        said.contains("Conncept saw something that is not HTTP, TLS or SSH"),
        "{nc}: {said}"
    );
}

#[test]
fn ssh_shows_the_line_as_a_banner() {
    let ip = loopback();
    let (_conncept, _) = commands(ip);
    let said = output(&format!(
        "ssh -v -p 5000 -o BatchMode=yes -o StrictHostKeyChecking=no {ip}"
    ));
    assert!(said.contains("Conncept saw SSH from 127.0.0.1:"), "{said}");
}

#[test]
fn a_head_request_is_answered_too() {
    let ip = loopback();
    let (_conncept, _) = commands(ip);
    let said = output(&format!(
        "curl --silent --show-error --head http://{ip}:5000/"
    ));
    assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
}

/// TLS to servers of others, with certificates of openssl's making.
mod upstream_tls {
    use std::process::Child;

    use e2e::backends::{sh, succeed};
    use e2e::eventually;
    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    /// An authority, what it signed, and the servers that use it. All end when dropped.
    struct Peers {
        ip: Ipv4Addr,
        dir: TempDir,
        processes: Vec<Child>,
    }

    impl Peers {
        /// With `ca.pem`, and pairs (`NAME.pem`, `NAME.key`) for servers `up` and `old` (expired), for a client `me`
        /// with an RSA key, and a self-signed `own`.
        fn new() -> Self {
            let peers = Self {
                ip: loopback(),
                dir: tempfile::tempdir().unwrap(),
                processes: Vec::new(),
            };
            let ec = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
            let own = "req -x509 -days 2";
            peers.openssl(&format!(
                "{own} {ec} -subj /CN=Authority -keyout ca.key -out ca.pem"
            ));
            peers.openssl(&format!(
                "{own} {ec} -subj /CN=own -addext subjectAltName=DNS:up.example -keyout own.key -out own.pem"
            ));
            for (name, kind, days, alternative) in [
                ("up", ec, 2, "DNS:up.example,DNS:front.example"),
                ("old", ec, -1, "DNS:up.example"),
                ("me", "-newkey rsa:2048 -nodes", 2, "DNS:me.example"),
            ] {
                peers.openssl(&format!(
                    "req {kind} -subj /O=Ours/CN={name} -addext subjectAltName={alternative} -keyout {name}.key \
                     -out {name}.csr"
                ));
                peers.openssl(&format!(
                    "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} \
                     -copy_extensions copy -out {name}.pem"
                ));
            }
            peers
        }

        fn openssl(&self, args: &str) -> String {
            succeed(&format!(
                "cd {} && openssl {args}",
                self.dir.path().display()
            ))
        }

        fn path(&self, name: &str) -> String {
            self.dir.path().join(name).to_str().unwrap().to_owned()
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).unwrap();
        }

        /// Runs a server in the folder and waits until it listens.
        fn run(&mut self, program: &str, args: &str, port: u16) {
            let process = Command::new(program)
                .args(args.split_whitespace())
                .current_dir(self.dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            self.processes.push(process.unwrap());
            let ip = self.ip;
            eventually(program, || e2e::try_connect((ip, port).into()).is_ok());
        }

        /// `conncept` in front of port 8443: on port 443 it ends TLS with `alpn`, on port 80 it takes plain bytes.
        fn front(&self, tls: Value, alpn: Value) -> Conncept {
            let ip = self.ip;
            let proxy = json!({"handler": "proxy",
                "upstreams": [{"dial": [format!("{ip}:8443")], "tls": tls}]});
            let policies = json!([{"alpn": alpn}]);
            Conncept::serving(&json!({"apps": {
                "tls": {"certificates": {"load_files": [
                    {"certificate": self.path("up.pem"), "key": self.path("up.key")},
                    {"certificate": self.path("me.pem"), "key": self.path("me.key")},
                ]}},
                "layer4": {"servers": {
                    "tls": {"listen": [format!("{ip}:443")], "routes": [{"handle": [
                        {"handler": "tls", "connection_policies": policies}, proxy,
                    ]}]},
                    "plain": {"listen": [format!("{ip}:80")], "routes": [{"handle": [proxy]}]},
                }},
            }}))
        }

        fn ca(&self) -> Value {
            json!({"provider": "file", "pem_files": [self.path("ca.pem")]})
        }

        /// What curl gets from the front through TLS.
        fn curl(&self, args: &str) -> Result<String, String> {
            let (ip, ca) = (self.ip, self.path("ca.pem"));
            sh(&format!(
                "curl --silent --show-error --max-time 10 --cacert {ca} {args} \
                 --resolve front.example:443:{ip} https://front.example/"
            ))
        }
    }

    impl Drop for Peers {
        fn drop(&mut self) {
            for process in &mut self.processes {
                // nginx ends its worker on SIGTERM only.
                let _ = Command::new("kill").arg(process.id().to_string()).status();
                let _ = process.wait();
            }
        }
    }

    fn nginx(peers: &mut Peers, servers: &str) {
        let dir = peers.dir.path().display().to_string();
        peers.write(
            "nginx.conf",
            &format!(
                "daemon off; pid {dir}/nginx.pid; error_log {dir}/error.log; events {{}}
                 http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
                   fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
                   {servers} }}"
            ),
        );
        peers.run(
            "nginx",
            &format!("-e {dir}/error.log -c {dir}/nginx.conf"),
            8443,
        );
    }

    #[test]
    fn nginx_that_wants_a_certificate_gets_ours_from_files_or_by_name() {
        let mut peers = Peers::new();
        let (ip, dir) = (peers.ip, peers.dir.path().display().to_string());
        nginx(
            &mut peers,
            &format!(
                "server {{ listen {ip}:8443 ssl http2; ssl_certificate {dir}/up.pem; ssl_certificate_key {dir}/up.key;
                   ssl_protocols TLSv1.2 TLSv1.3; ssl_client_certificate {dir}/ca.pem; ssl_verify_client on;
                   return 200 \"$ssl_client_s_dn $ssl_server_name $server_protocol\"; }}"
            ),
        );
        let with = |field: &str, value: Value| {
            let mut tls = json!({"ca": peers.ca(), "server_name": "up.example"});
            tls[field] = value;
            tls
        };
        let mut files = with("client_certificate_file", peers.path("me.pem").into());
        files["client_certificate_key_file"] = peers.path("me.key").into();
        for tls in [
            files,
            with("client_certificate_automate", "me.example".into()),
        ] {
            let _conncept = peers.front(tls, json!(["h2", "http/1.1"]));
            for version in [
                "--http2 --tlsv1.3",
                "--http1.1 --tls-max 1.2",
                "--http2 --tls-max 1.2",
            ] {
                let said = peers.curl(version).unwrap();
                let (name, rest) = said.split_once(' ').unwrap();
                assert_eq!(name, "CN=me,O=Ours");
                let protocol = if version.contains("http2") {
                    "HTTP/2.0"
                } else {
                    "HTTP/1.1"
                };
                assert_eq!(rest, format!("up.example {protocol}"), "{version}");
            }
        }
        let none = json!({"ca": peers.ca(), "server_name": "up.example"});
        let _conncept = peers.front(none, json!(["http/1.1"]));
        let said = peers.curl("").unwrap();
        assert!(
            said.contains("No required SSL certificate was sent"),
            "{said}"
        );
    }

    #[test]
    fn haproxy_is_offered_the_protocol_that_was_agreed_on_with_the_client() {
        let mut peers = Peers::new();
        let ip = peers.ip;
        let both = fs::read_to_string(peers.path("up.pem")).unwrap()
            + &fs::read_to_string(peers.path("up.key")).unwrap();
        peers.write("both.pem", &both);
        peers.write(
            "haproxy.cfg",
            &format!(
                "defaults\n mode http\n timeout connect 5s\n timeout client 10s\n timeout server 10s\n\
                 frontend tls\n bind {ip}:8443 ssl crt {} alpn h2,http/1.1\n http-request return status 200 \
                 content-type text/plain lf-string \"%[ssl_fc_sni] %[ssl_fc_alpn] %[ssl_fc_protocol]\"\n",
                peers.path("both.pem")
            ),
        );
        peers.run("haproxy", "-db -f haproxy.cfg", 8443);
        let tls = json!({"ca": peers.ca(), "server_name": "{l4.tls.server_name}"});
        let _conncept = peers.front(tls, json!(["h2", "http/1.1"]));
        for (version, expected) in [
            ("--http2", "front.example h2 TLSv1.3"),
            ("--http1.1", "front.example http/1.1 TLSv1.3"),
            ("--http1.1 --tls-max 1.2", "front.example http/1.1 TLSv1.2"),
            ("--no-alpn", "front.example  TLSv1.3"),
        ] {
            assert_eq!(peers.curl(version).as_deref(), Ok(expected), "{version}");
        }
    }

    #[test]
    fn openssl_is_spoken_to_and_half_close_gets_through() {
        for version in ["-tls1_2", "-tls1_3"] {
            let mut peers = Peers::new();
            let ip = peers.ip;
            let args = format!(
                "s_server -accept {ip}:8443 -cert up.pem -key up.key -rev -quiet {version}"
            );
            peers.run("openssl", &args, 8443);
            let tls = json!({"ca": peers.ca(), "server_name": "up.example"});
            let _conncept = peers.front(tls, json!([]));
            let said = e2e::ask((ip, 80), b"drawer\n");
            assert_eq!(said, "reward\n", "{version}");
        }
    }

    #[test]
    fn certificates_that_are_not_good_are_refused_with_their_reason_in_the_log() {
        let mut peers = Peers::new();
        let (ip, dir) = (peers.ip, peers.dir.path().display().to_string());
        let server = |name: &str, sni: &str| {
            format!(
                "server {{ listen {ip}:8443 ssl; server_name {sni}; ssl_certificate {dir}/{name}.pem;
                   ssl_certificate_key {dir}/{name}.key; return 200 {name}; }}"
            )
        };
        nginx(&mut peers, &server("up", "_"));
        let (ca, own) = (
            peers.ca(),
            json!({"provider": "file", "pem_files": [peers.path("own.pem")]}),
        );
        let cases = [
            ("up", json!({"ca": ca, "server_name": "up.example"}), ""),
            (
                "up",
                json!({"ca": own, "server_name": "up.example"}),
                "no trusted authority has signed its certificate",
            ),
            (
                "up",
                json!({"ca": ca, "server_name": "other.example"}),
                "set server_name",
            ),
            ("up", json!({"ca": ca}), "set server_name"),
            ("up", json!({"insecure_skip_verify": true}), ""),
            (
                "old",
                json!({"ca": ca, "server_name": "up.example"}),
                "its certificate has expired",
            ),
            ("old", json!({"insecure_skip_verify": true}), ""),
            ("own", json!({"ca": own, "server_name": "up.example"}), ""),
            (
                "own",
                json!({"ca": own, "server_name": "other.example"}),
                "certificate",
            ),
        ];
        let mut serving = "up";
        for (name, tls, reason) in cases {
            if name != serving {
                serving = name;
                // A new one on the same address: the old one is gone when its worker is.
                for process in &mut peers.processes {
                    let _ = Command::new("kill").arg(process.id().to_string()).status();
                    let _ = process.wait();
                }
                peers.processes.clear();
                eventually("nginx has ended", || e2e::refused((ip, 8443)));
                nginx(&mut peers, &server(name, "_"));
            }
            let conncept = peers.front(tls.clone(), json!(["http/1.1"]));
            let got = peers.curl("");
            if reason.is_empty() {
                assert_eq!(got.as_deref(), Ok(name), "{tls}");
                continue;
            }
            assert!(got.is_err(), "{tls}: {got:?}");
            let line = conncept.logged("handling connection");
            let said = line["error"].as_str().unwrap();
            let peer = format!("TLS with {ip}:8443: ");
            assert!(
                said.contains(&peer) && said.contains(reason),
                "{reason}: {said}"
            );
        }
    }

    #[test]
    fn l13_an_upstream_that_answers_http_1_to_a_client_of_http_2_is_named_once() {
        let mut peers = Peers::new();
        let ip = peers.ip;
        nginx(
            &mut peers,
            &format!("server {{ listen {ip}:8443; return 200 plain; }}"),
        );
        let tls = json!({"insecure_skip_verify": true, "except_ports": ["8443"]});
        let conncept = peers.front(tls, json!(["h2", "http/1.1"]));
        assert_eq!(peers.curl("--http1.1").as_deref(), Ok("plain"));
        for _ in 0..2 {
            assert!(peers.curl("--http2").is_err());
        }
        let warned = |line: &Value| {
            let text = line["msg"].as_str().unwrap_or_default();
            text.starts_with("upstream answers HTTP/1")
        };
        let line = conncept.log_where("the warning", warned);
        assert_eq!(line["level"], "warn");
        assert_eq!(line["upstream"], format!("{ip}:8443"));
        assert!(line["remedy"].as_str().unwrap().contains("alpn"), "{line}");
        eventually("three records", || conncept.records().len() == 3);
        assert_eq!(
            conncept.logs().iter().filter(|line| warned(line)).count(),
            1
        );
    }

    #[test]
    fn l6_openssl_reads_the_same_from_a_clients_certificate() {
        let peers = Peers::new();
        let ip = peers.ip;
        let names = [
            "public_key",
            "public_key_sha256",
            "fingerprint",
            "subject",
            "certificate_der_base64",
        ];
        let told: Vec<String> = names
            .iter()
            .map(|name| format!("{{l4.tls.client.{name}}}"))
            .collect();
        let _conncept = Conncept::serving(&json!({"apps": {
            "tls": {"certificates": {"load_files": [
                {"certificate": peers.path("up.pem"), "key": peers.path("up.key")},
            ]}},
            "layer4": {"servers": {"a": {"listen": [format!("{ip}:443")], "routes": [{"handle": [
                {"handler": "tls", "connection_policies": [
                    {"alpn": [], "client_authentication": {"ca": peers.ca()}},
                ]},
                {"handler": "respond", "body": told.join("\n")},
            ]}]}}},
        }}));
        let said = peers.openssl(&format!(
            "s_client -quiet -connect {ip}:443 -servername up.example -cert me.pem -key me.key -CAfile ca.pem </dev/null"
        ));
        let key = "x509 -in me.pem -noout -pubkey | openssl rsa -pubin -RSAPublicKey_out -outform DER 2>/dev/null";
        let hex = "od -An -v -tx1 | tr -d ' \\n'";
        let expected = [
            peers.openssl(&format!("{key} | {hex}")),
            peers.openssl(&format!("{key} | openssl dgst -sha256 -binary | {hex}")),
            peers.openssl(&format!(
                "x509 -in me.pem -outform DER | openssl dgst -sha256 -binary | {hex}"
            )),
            "CN=me,O=Ours".to_owned(),
            peers.openssl("x509 -in me.pem -outform DER | openssl base64 -A"),
        ];
        let told: Vec<&str> = said.lines().collect();
        for (i, expected) in expected.iter().enumerate() {
            assert_eq!(told[i], expected, "{}", names[i]);
        }
    }
}
