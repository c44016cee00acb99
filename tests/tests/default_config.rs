//! What a newcomer meets: `conncept run` without a configuration.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

use e2e::{
    Conncept, Finished, Signal, ask, client_hello, connect, drain, eventually, loopback, run,
};
use serde_json::Value;

/// The embedded configuration on an address of the test's own.
fn welcome(ip: Ipv4Addr) -> Conncept {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../bins/conncept/src/default.json"
    );
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.matches("127.0.0.1:5000").count(), 1);
    let text = text.replace("127.0.0.1", &ip.to_string());
    Conncept::serving(&serde_json::from_str(&text).unwrap())
}

#[test]
fn every_protocol_is_answered_with_a_line_that_says_what_was_seen() {
    let ip = loopback();
    let _conncept = welcome(ip);
    let ask = |bytes: &[u8]| ask((ip, 5000), bytes);

    let http = ask(b"GET /hello HTTP/1.1\r\nHost: hello.example\r\n\r\n");
    let (head, body) = http.split_once("\r\n\r\n").unwrap();
    assert_eq!(head.lines().next(), Some("HTTP/1.1 200 OK"));
    // The end of the connection ends the body, RFC 9112 section 6.3.
    assert!(
        head.contains("Connection: close") && !head.contains("Content-Length"),
        "{head}"
    );
    assert!(
        body.starts_with("Conncept saw HTTP for hello.example from 127.0.0.1:"),
        "{body}"
    );

    let tls = ask(&client_hello("hello.example", &["h2"]));
    // A fatal alert, unrecognized_name: RFC 8446 section 6 and RFC 6066 section 3.
    let line = tls
        .strip_prefix("\u{15}\u{3}\u{3}\0\u{2}\u{2}\u{70}")
        .unwrap();
    assert!(
        line.starts_with("Conncept saw TLS for hello.example from 127.0.0.1:"),
        "{line:?}"
    );

    let ssh = ask(b"SSH-2.0-OpenSSH_10.0\r\n");
    assert!(
        ssh.starts_with("Conncept saw SSH from 127.0.0.1:") && ssh.ends_with("\r\n"),
        "{ssh:?}"
    );

    let other = ask(b"hello\n");
    assert!(
        other.starts_with("Conncept saw something that is not HTTP, TLS or SSH"),
        "{other:?}"
    );

    // A client that says nothing is answered once it is clear that it waits.
    let silent = String::from_utf8(drain(&mut connect((ip, 5000)))).unwrap();
    assert!(silent.starts_with("Conncept saw something"), "{silent:?}");
}

#[test]
fn without_a_configuration_the_commands_to_try_are_printed() {
    let address: SocketAddr = ([127, 0, 0, 1], 5000).into();
    let mut conncept = Conncept::start(&[]);
    let mut status = None;
    eventually("it serves, or says that the port is taken", || {
        status = conncept.ended();
        status.is_some() || conncept.stdout().contains("Ctrl-C")
    });
    if let Some(status) = status {
        // Somebody else has the port: then that is what is said.
        assert_eq!(status.code(), Some(1));
        let said = conncept.complaints();
        assert!(said.contains("cannot listen on 127.0.0.1:5000"), "{said}");
        return;
    }
    let said = conncept.stdout();
    for command in [
        "curl http://127.0.0.1:5000/hello",
        "openssl s_client -connect 127.0.0.1:5000 -servername hello.example -debug </dev/null",
        "echo hello | nc 127.0.0.1 5000",
    ] {
        assert!(
            said.lines().any(|line| line.trim() == command),
            "{command}: {said}"
        );
    }
    assert_eq!(conncept.listening(), [address]);
    assert!(ask(address, b"hello\n").starts_with("Conncept saw something"));
    conncept.signal(Signal::USR1);
    conncept.logged("last config unknown, ignored SIGUSR1");
    conncept.signal(Signal::INT);
    assert_eq!(conncept.wait().code(), Some(0));
}

#[test]
fn the_embedded_configuration_is_valid_in_itself() {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../bins/conncept/src/default.json"
    );
    let Finished {
        code,
        stdout,
        stderr,
    } = run(&["validate", "--config", file]);
    assert_eq!(
        (code, &*stdout, &*stderr),
        (Some(0), "Valid configuration\n", "")
    );
    // A text to learn from: what it listens on and how many routes it has must be easy to find.
    let config: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(
        config["apps"]["layer4"]["servers"]["welcome"]["routes"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
}
