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
