//! PROXY headers from and to programs of others: HAProxy, nginx with its stream module, and curl; and the example for IMAP
//! with openssl in front.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;

use e2e::backends::succeed;
use e2e::network::apart;
use e2e::{Conncept, config, connect, drain, eventually, loopback};
use serde_json::json;
use tempfile::TempDir;

/// What a shell command prints.
fn output(command: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("{{ {command} ; }} 2>&1")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Another program, ended when dropped, in a directory of its own.
struct Running {
    process: Child,
    dir: TempDir,
}

impl Running {
    fn haproxy(config: &str) -> Self {
        let defaults = "defaults\n timeout connect 10s\n timeout client 10s\n timeout server 10s\n";
        Self::with("haproxy.cfg", &format!("{defaults}{config}"), |file| {
            let mut command = Command::new("haproxy");
            command.args(["-q", "-db", "-f", file]);
            command
        })
    }

    fn nginx(config: &str) -> Self {
        let base = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
            daemon off; pid DIR/pid; error_log DIR/error.log; events {}\n";
        Self::with("nginx.conf", &format!("{base}{config}"), |file| {
            let mut command = Command::new("nginx");
            command.args(["-e", "stderr", "-c", file]);
            command
        })
    }

    /// `DIR` in the configuration stands for the directory.
    fn with(name: &str, config: &str, command: impl FnOnce(&str) -> Command) -> Self {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join(name);
        let path = dir.path().display().to_string();
        if config.contains("DIR/front.pem") {
            succeed(&format!(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=front.example \
                 -keyout {path}/key.pem -out {path}/cert.pem && cat {path}/cert.pem {path}/key.pem > {path}/front.pem"
            ));
        }
        fs::write(&file, config.replace("DIR", &path)).unwrap();
        let process = command(file.to_str().unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Self { process, dir }
    }

    /// Waits until it listens there.
    fn listening(mut self, address: (Ipv4Addr, u16)) -> Self {
        let dir = self.dir.path().to_owned();
        eventually("it listens", || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!(
                    "{status}: {}",
                    fs::read_to_string(dir.join("stderr")).unwrap()
                );
            }
            TcpStream::connect(address).is_ok()
        });
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx ends its worker on SIGTERM only.
        let _ = Command::new("kill")
            .arg(self.process.id().to_string())
            .status();
        let _ = self.process.wait();
    }
}

/// Says what the header said of a connection that the handler `proxy_protocol` accepted.
fn header_teller(ip: Ipv4Addr) -> Conncept {
    let value = |name: &str| format!("{{l4.proxy_protocol.{name}}}");
    let names = [
        "version",
        "remote_addr",
        "local_addr",
        "tlv.alpn",
        "tlv.authority",
        "tlv.ssl",
        "tlv.ssl.version",
        "tlv.ssl.cipher",
        "tlv.unique_id",
    ];
    let body = names.map(value).join("|");
    Conncept::serving(&config(json!({"teller": {
        "listen": [format!("{ip}:2000")],
        "routes": [{"handle": [
            {"handler": "proxy_protocol", "allow": ["127.0.0.0/8"], "fallback_policy": "REJECT"},
            {"handler": "respond", "body": body},
        ]}],
    }})))
}

/// What is answered to a client, and the client's own address.
fn told(address: (Ipv4Addr, u16)) -> (String, SocketAddr) {
    let mut stream = connect(address);
    let client = stream.local_addr().unwrap();
    stream.write_all(b"anything").unwrap();
    (String::from_utf8(drain(&mut stream)).unwrap(), client)
}

#[test]
fn headers_that_haproxy_sends_are_understood() {
    let ip = loopback();
    let _conncept = header_teller(ip);
    let front = |port: u16, bind: &str, server: &str| {
        format!(
            "listen a{port}\n mode tcp\n bind {ip}:{port} {bind}\n unique-id-format %[src]\n \
             server s {ip}:2000 {server}\n"
        )
    };
    let _haproxy = Running::haproxy(
        &[
            front(1001, "", "send-proxy"),
            front(1002, "", "send-proxy-v2"),
            front(1003, "", "send-proxy-v2 proxy-v2-options unique-id,crc32c"),
            front(
                1004,
                "ssl crt DIR/front.pem alpn h2",
                "send-proxy-v2-ssl-cn proxy-v2-options ssl,ssl-cipher,authority,unique-id,crc32c",
            ),
        ]
        .concat(),
    )
    .listening((ip, 1004));
    for (port, version, rest) in [
        (1001, 1, "|||||".to_owned()),
        (1002, 2, "|||||".to_owned()),
        (1003, 2, format!("|||||{}", hex(b"127.0.0.1"))),
    ] {
        let (said, client) = told((ip, port));
        assert_eq!(said, format!("{version}|{client}|{ip}:{port}|{rest}"));
    }
    let said = output(&format!(
        "printf anything | openssl s_client -quiet -connect {ip}:1004 -servername name.example -alpn h2 -tls1_3 2>/dev/null"
    ));
    let parts: Vec<&str> = said.split('|').collect();
    let [
        version,
        remote,
        local,
        alpn,
        authority,
        ssl,
        tls,
        cipher,
        id,
    ] = parts[..]
    else {
        panic!("{said:?}")
    };
    assert!(remote.starts_with("127.0.0.1:"), "{said}");
    assert_eq!((version, local), ("2", format!("{ip}:1004").as_str()));
    assert_eq!((alpn, authority), ("h2", "name.example"));
    assert_eq!((ssl, tls), ("true", "TLSv1.3"));
    assert!(cipher.starts_with("TLS_AES_"), "{said}");
    assert_eq!(id, hex(b"127.0.0.1"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server for each version of the header, in front of the address: version 1 on port 2001, version 2 on 2002.
fn senders(ip: Ipv4Addr, to: &str) -> Conncept {
    let server = |port: u16, version: &str| {
        json!({"listen": [format!("{ip}:{port}")], "routes": [{"handle": [
            {"handler": "proxy", "proxy_protocol": version, "upstreams": [{"dial": [to]}]},
        ]}]})
    };
    Conncept::serving(&config(
        json!({"v1": server(2001, "v1"), "v2": server(2002, "v2")}),
    ))
}

/// What an HTTP server behind that port says, and the address that curl had, which is behind it in the output.
fn fetched(ip: Ipv4Addr, port: u16, options: &str) -> (String, String) {
    let said = output(&format!(
        "curl --silent --show-error --max-time 10 {options} --write-out ' %{{local_ip}}:%{{local_port}}' http://{ip}:{port}/"
    ));
    let (body, client) = said.rsplit_once(' ').unwrap();
    (body.to_owned(), client.to_owned())
}

#[test]
fn haproxy_understands_the_headers_that_are_sent() {
    let ip = loopback();
    let haproxy = format!(
        "frontend reading\n mode http\n bind {ip}:1001 accept-proxy\n http-request return status 200 content-type text/plain \
         lf-string \"%[src]:%[src_port] %[dst]:%[dst_port]\"\n"
    );
    let _haproxy = Running::haproxy(&haproxy).listening((ip, 1001));
    let _conncept = senders(ip, &format!("{ip}:1001"));
    for port in [2001, 2002] {
        let (said, client) = fetched(ip, port, "");
        assert_eq!(said, format!("{client} {ip}:{port}"));
    }
}

#[test]
fn nginx_sends_headers_and_understands_those_that_are_sent() {
    let ip = loopback();
    let config = format!(
        "stream {{ server {{ listen {ip}:1001; proxy_pass {ip}:2000; proxy_protocol on; }} }}
         http {{ access_log off; client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c;
           uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
           server {{ listen {ip}:1002 proxy_protocol; return 200
             \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }} }}"
    );
    let _nginx = Running::nginx(&config).listening((ip, 1002));
    {
        let _conncept = header_teller(ip);
        let (said, client) = told((ip, 1001));
        assert_eq!(said, format!("1|{client}|{ip}:1001||||||"));
    }
    let _conncept = senders(ip, &format!("{ip}:1002"));
    for port in [2001, 2002] {
        let (said, client) = fetched(ip, port, "");
        assert_eq!(said, format!("{client} {ip}:{port}"));
    }
}

#[test]
fn a_header_from_curl_is_passed_on_to_nginx_as_the_other_version() {
    let ip = loopback();
    let config_of_nginx = format!(
        "http {{ access_log off; client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c;
           uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
           server {{ listen {ip}:1002 proxy_protocol; return 200 \"$proxy_protocol_addr:$proxy_protocol_port\"; }} }}"
    );
    let _nginx = Running::nginx(&config_of_nginx).listening((ip, 1002));
    let _conncept = Conncept::serving(&config(json!({"chain": {
        "listen": [format!("{ip}:2000")],
        "routes": [{"handle": [
            {"handler": "proxy_protocol"},
            {"handler": "proxy", "proxy_protocol": "v2", "upstreams": [
                // Not the client's: what nginx sees of the connection itself is different.
                {"dial": [format!("{ip}:1002")], "local_address": ["127.0.0.2"]},
            ]},
        ]}],
    }})));
    let (said, client) = fetched(ip, 2000, "--haproxy-protocol");
    assert_eq!(said, client);
}

/// The two servers of the example as it is: TLS in front, for which it needs no certificate, a header of version 1 between
/// them, and one of version 2 behind.
#[test]
fn the_imaps_example_tells_the_mail_server_who_the_client_is() {
    if !apart(
        "the_imaps_example_tells_the_mail_server_who_the_client_is",
        &[],
    ) {
        return;
    }
    let mail = TcpListener::bind("127.0.0.1:1143").unwrap();
    let conncept = Conncept::serving_example("imaps-proxy-protocol.json");
    let root = conncept.data().join("pki/authorities/local/root.crt");
    eventually("there is a root", || root.exists());
    let serving = thread::spawn(move || {
        let (mut peer, _) = mail.accept().unwrap();
        let mut header = [0; 28];
        peer.read_exact(&mut header).unwrap();
        peer.write_all(b"* OK ready\r\n").unwrap();
        let mut said = String::new();
        BufReader::new(&peer).read_line(&mut said).unwrap();
        peer.write_all(b"a OK done\r\n").unwrap();
        (header, said)
    });
    let said = output(&format!(
        "printf 'a LOGOUT\\r\\n' | openssl s_client -quiet -bind 127.0.0.9:40993 -connect 127.0.0.1:993 \
         -servername localhost -verify_hostname localhost -verify_return_error -CAfile {}",
        root.display()
    ));
    assert!(
        said.contains("* OK ready") && said.contains("a OK done"),
        "{said}"
    );
    let (header, command) = serving.join().unwrap();
    assert_eq!(command, "a LOGOUT\r\n");
    let (signature, rest) = header.split_at(12);
    assert_eq!(signature, b"\r\n\r\n\0\r\nQUIT\n");
    // PROXY over TCP and IPv4, 12 bytes: the client of port 993, not the server that passed it on.
    let ports = [40993_u16.to_be_bytes(), 993_u16.to_be_bytes()].concat();
    let expected = [&[0x21, 0x11, 0, 12, 127, 0, 0, 9, 127, 0, 0, 1], &ports[..]].concat();
    assert_eq!(rest, expected);

    let refused = output("openssl s_client -connect localhost:993 -servername mail.example");
    assert!(refused.contains("alert internal error"), "{refused}");
}
