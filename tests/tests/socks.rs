//! The handler `socks5` in the whole program: what its operator sees of it, and real clients in front of it.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};

use e2e::{Backend, Conncept, config, connect, datagrams, drain, loopback};
use serde_json::{Value, json};

fn serving(listen: &str, handler: Value) -> Conncept {
    let routes = json!([{"handle": [handler]}]);
    Conncept::serving(&config(
        json!({"socks": {"listen": [listen], "routes": routes}}),
    ))
}

#[test]
fn s7_what_clients_ask_for_is_no_error() {
    let at = format!("{}:1080", loopback());
    let conncept = serving(
        &at,
        json!({"handler": "socks5", "commands": ["ASSOCIATE"], "credentials": {"bob": "secret"}}),
    );
    let login = b"\x05\x01\x02\x01\x03bob\x06secret";
    let mut associated = connect(at.parse::<std::net::SocketAddr>().unwrap());
    associated
        .write_all(&[&login[..], b"\x05\x03\x00\x01\0\0\0\0\0\0"].concat())
        .unwrap();
    let mut answer = [0; 14];
    associated.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], *b"\x05\x02\x01\x00\x05\x00\x00\x01");
    let [.., high, low] = answer;
    let relay = (loopback_of(&at), u16::from_be_bytes([high, low]));
    let _ = datagrams(relay).send(b"no datagram of SOCKS");

    // A name that does not exist, a command that is not allowed, a wrong password, and no SOCKS at all.
    for (sent, said) in [
        (
            [&login[..], b"\x05\x01\x00\x03\x01 \0\x50"].concat(),
            &b"\x05\x02\x01\x00\x05\x02\x00\x01\0\0\0\0\0\0"[..],
        ),
        (
            b"\x05\x01\x02\x01\x03bob\x01x".to_vec(),
            b"\x05\x02\x01\x01",
        ),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), b""),
    ] {
        let mut client = connect(at.parse::<std::net::SocketAddr>().unwrap());
        client.write_all(&sent).unwrap();
        assert_eq!(drain(&mut client), said);
    }
    let peer = associated.local_addr().unwrap();
    drop(associated);
    assert_eq!(conncept.record_of(peer)["reason"], "completed");
    conncept.logged("SOCKS request refused");
    conncept.logged("SOCKS client refused");
    for line in conncept.logs() {
        let level = line["level"].as_str().unwrap().to_lowercase();
        assert!(level == "info" || level == "debug", "{line}");
    }
}

fn loopback_of(address: &str) -> std::net::IpAddr {
    address.parse::<std::net::SocketAddr>().unwrap().ip()
}

#[test]
fn the_record_of_a_connection_names_its_target() {
    let target = Backend::echo();
    let at = format!("{}:1080", loopback());
    let conncept = serving(&at, json!({"handler": "socks5"}));
    let mut client = connect(at.parse::<std::net::SocketAddr>().unwrap());
    let port = target.address.port().to_be_bytes();
    let request = [&b"\x05\x01\x00\x05\x01\x00\x03\x09127.0.0.1"[..], &port].concat();
    client.write_all(&request).unwrap();
    client.read_exact(&mut [0; 12]).unwrap();
    e2e::echoes(&mut client, b"hello");
    let peer = client.local_addr().unwrap();
    drop(client);
    let record = conncept.record_of(peer);
    assert_eq!(
        record["upstream"],
        format!("127.0.0.1:{}", target.address.port())
    );
    assert_eq!(record["reason"], "completed");
}

/// With programs of others: curl as the client, nginx as the target, ssh and microsocks as further SOCKS servers.
#[cfg(feature = "interop")]
mod interop {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
    use std::path::Path;
    use std::process::Command;

    use e2e::backends::{Backends, Ports, sh, succeed};
    use e2e::network::{apart, machine};
    use e2e::{eventually, refused};

    use super::*;

    const PORTS: Ports = Ports {
        http: 80,
        https: 443,
        ssh: 22,
    };

    fn curl(args: &str) -> Result<String, String> {
        sh(&format!(
            "curl --silent --show-error --max-time 10 --noproxy '' {args}"
        ))
    }

    fn listens(address: SocketAddr) {
        eventually("a server listens", || TcpStream::connect(address).is_ok());
    }

    #[test]
    fn curl_is_served_with_every_scheme_of_socks5_and_with_and_without_a_password() {
        let name =
            "interop::curl_is_served_with_every_scheme_of_socks5_and_with_and_without_a_password";
        if !apart(name, &[]) {
            return;
        }
        let _backends = Backends::start(Ipv4Addr::LOCALHOST, PORTS);
        let _open = serving("127.0.0.1:1080", json!({"handler": "socks5"}));
        let guarded = json!({"handler": "socks5", "credentials": {"alice": "s3cret: \u{e9}"}});
        let _guarded = serving("127.0.0.1:1081", guarded);
        for scheme in ["socks5", "socks5h"] {
            for target in ["localhost", "127.0.0.1"] {
                let through =
                    |proxy: &str| curl(&format!("--proxy '{scheme}://{proxy}' http://{target}/"));
                let served = Ok(format!("http for {target}"));
                assert_eq!(through("127.0.0.1:1080"), served);
                // One who has a password need not use it.
                assert_eq!(through("eve:x@127.0.0.1:1080"), served);
                assert_eq!(through("alice:s3cret%3A%20%C3%A9@127.0.0.1:1081"), served);
                for wrong in ["alice:s3cret@", "eve:s3cret%3A%20%C3%A9@", "alice:@", ""] {
                    let said = through(&format!("{wrong}127.0.0.1:1081")).unwrap_err();
                    assert!(said.contains("curl: (97)"), "{wrong}: {said}");
                }
            }
            let through =
                |target: &str| curl(&format!("--proxy {scheme}://127.0.0.1:1080 {target}"));
            // TLS inside, and a body that takes many reads.
            assert_eq!(
                through("--insecure https://127.0.0.1/"),
                Ok("tls for ".to_owned())
            );
            let said = through("http://127.0.0.1:9/").unwrap_err();
            assert!(said.contains("curl: (97)"), "{said}");
        }
    }

    #[test]
    fn the_example_as_it_is_serves_socks5_itself_and_passes_socks4_on() {
        let name = "interop::the_example_as_it_is_serves_socks5_itself_and_passes_socks4_on";
        if !apart(name, &["10.0.0.7/24", "10.0.1.7/24"]) {
            return;
        }
        let mut backends = Backends::start(Ipv4Addr::LOCALHOST, PORTS);
        // The upstream has an address of its own and the port of the server itself, so it is another machine. ssh is its
        // SOCKS server, which speaks version 4, too, and reaches its targets from here.
        let key = backends.path("user");
        let ssh = format!(
            "ssh -F none -N -D 10.64.0.1:1080 -i {key} -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 $(id -un)@10.64.0.2"
        );
        let dir = backends.path("");
        for mut command in machine(Path::new(&dir), "10.64.0.2", "10.64.0.1", &ssh) {
            backends.spawn(&mut command);
        }
        eventually("the other machine can be reached", || {
            sh("ip route get 10.64.0.1 | grep -q 'dev tun'").is_ok()
        });
        backends.spawn(Command::new("socat").args([
            "TCP-LISTEN:22,bind=10.64.0.2,fork,reuseaddr",
            "TCP:127.0.0.1:22",
        ]));
        listens("10.64.0.1:1080".parse().unwrap());

        let conncept = Conncept::serving_example("socks.json");
        let through = |proxy: &str| curl(&format!("--proxy {proxy}:1080 http://localhost/"));
        let served = Ok("http for localhost".to_owned());
        for scheme in ["socks5", "socks5h"] {
            let bob = format!("{scheme}://bob:qHoEtVpGRM@");
            assert_eq!(through(&format!("{bob}10.0.0.7")), served);
            assert!(through(&format!("{scheme}://bob:guess@10.0.0.7")).is_err());
            assert!(through(&format!("{scheme}://10.0.0.7")).is_err());
            // From another network nobody is served, with the password or without.
            assert!(through(&format!("{bob}10.0.1.7")).is_err());
        }
        for scheme in ["socks4", "socks4a"] {
            for address in ["10.0.0.7", "10.0.1.7", "127.0.0.1"] {
                assert_eq!(through(&format!("{scheme}://{address}")), served);
            }
        }
        let upstreams: Vec<Value> = conncept
            .records()
            .into_iter()
            .filter(|record| record["upstream"] != "-")
            .map(|record| record["upstream"].clone())
            .collect();
        assert!(
            upstreams.contains(&json!("10.64.0.1:1080")),
            "{upstreams:?}"
        );
        assert!(upstreams.contains(&json!("localhost:80")), "{upstreams:?}");
    }

    /// What a server answers to each message of a client in turn, up to the end of its stream.
    fn answers(server: SocketAddr, messages: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut client = connect(server);
        let mut answers = Vec::new();
        for message in messages {
            // A server may have closed by now.
            let _ = client.write_all(message);
            let mut buf = [0; 512];
            let n = client.read(&mut buf).unwrap_or(0);
            answers.push(buf[..n].to_vec());
        }
        answers
    }

    #[test]
    fn the_same_dialogue_has_the_same_replies_as_with_microsocks() {
        let name = "interop::the_same_dialogue_has_the_same_replies_as_with_microsocks";
        if !apart(name, &[]) {
            return;
        }
        let mut backends = Backends::start(Ipv4Addr::LOCALHOST, PORTS);
        let ours = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let theirs = |port: u16| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
        let _open = serving("127.0.0.1:1080", json!({"handler": "socks5"}));
        let guarded = json!({"handler": "socks5", "credentials": {"bob": "secret"}});
        let _guarded = serving("127.0.0.1:1081", guarded);
        let arguments = ["-i", "127.0.0.2", "-p"];
        backends.spawn(Command::new("microsocks").args(arguments).arg("1080"));
        backends.spawn(
            Command::new("microsocks")
                .args(arguments)
                .args(["1081", "-u", "bob", "-P", "secret"]),
        );
        listens(theirs(1080));
        listens(theirs(1081));

        let greeting: &[u8] = b"\x05\x01\x00";
        let login: &[u8] = b"\x05\x02\x00\x02";
        let get: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
        let dialogues: &[(u16, &[&[u8]])] = &[
            (
                1080,
                &[greeting, b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50", get],
            ),
            (
                1080,
                &[greeting, b"\x05\x01\x00\x03\x09localhost\0\x50", get],
            ),
            (
                1080,
                &[
                    b"\x05\x03\x02\x01\x00",
                    b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50",
                    get,
                ],
            ),
            // Refused, an unknown address type, an unknown command.
            (1080, &[greeting, b"\x05\x01\x00\x01\x7f\0\0\x01\0\x09"]),
            (1080, &[greeting, b"\x05\x01\x00\x05\x7f\0\0\x01\0\x50"]),
            (1080, &[greeting, b"\x05\x09\x00\x01\x7f\0\0\x01\0\x50"]),
            (1080, &[b"\x05\x01\x02"]),
            (1080, &[b"\x05\x01\x80"]),
            (
                1081,
                &[
                    login,
                    b"\x01\x03bob\x06secret",
                    b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50",
                    get,
                ],
            ),
            (1081, &[login, b"\x01\x03bob\x06Secret"]),
            (1081, &[login, b"\x01\x03eve\x06secret"]),
            (1081, &[greeting]),
        ];
        for (port, messages) in dialogues {
            let comparable = |mut answers: Vec<Vec<u8>>| {
                for answer in &mut answers {
                    match answer.as_mut_slice() {
                        // microsocks names no address in a success,
                        [5, 0, 0, 1, address @ ..] => address[..6].fill(0),
                        // and says 2 to a wrong password: any number but 0 is a failure, RFC 1929 section 2.
                        [1, status] => *status = u8::from(*status != 0),
                        _ => {}
                    }
                }
                answers
            };
            let ours = comparable(answers(ours(*port), messages));
            assert_eq!(
                ours,
                comparable(answers(theirs(*port), messages)),
                "{messages:02x?}"
            );
        }
    }

    #[test]
    fn a_socks_client_is_served_over_tls() {
        let name = "interop::a_socks_client_is_served_over_tls";
        if !apart(name, &[]) {
            return;
        }
        let mut backends = Backends::start(Ipv4Addr::LOCALHOST, PORTS);
        let (certificate, key) = (backends.path("cert.pem"), backends.path("key.pem"));
        let mut config = config(
            json!({"socks": {"listen": ["127.0.0.1:1443"], "routes": [{"handle": [
                {"handler": "tls"}, {"handler": "socks5"},
            ]}]}}),
        );
        config["apps"]["tls"] = json!({"certificates": {"load_files": [
            {"certificate": certificate, "key": key},
        ]}});
        let _conncept = Conncept::serving(&config);
        backends.spawn(Command::new("socat").args([
            "TCP-LISTEN:1080,bind=127.0.0.1,fork,reuseaddr",
            "OPENSSL:127.0.0.1:1443,verify=0,commonname=backend.example",
        ]));
        let local = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), 1080));
        eventually("socat listens", || !refused(local));
        assert_eq!(
            succeed(
                "curl --silent --max-time 10 --noproxy '' --proxy socks5h://127.0.0.1:1080 http://localhost/"
            ),
            "http for localhost"
        );
    }
}
