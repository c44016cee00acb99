//! Termination of TLS by the program, against curl and openssl, which also makes the certificate.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use e2e::{Conncept, loopback};
use serde_json::json;

const NAME: &str = "shop.example";

/// Makes `cert.pem` and `key.pem` for [`NAME`] in `dir`.
fn certificate(dir: &Path) {
    let made = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=shop.example"])
        .args(["-addext", "subjectAltName=DNS:shop.example"])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// Terminates TLS, then gives HTTP to a backend and echoes the rest.
fn serve(ip: Ipv4Addr, dir: &Path) -> Conncept {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    Conncept::serving(&json!({"apps": {
        "tls": {"certificates": {"load_files": [
            {"certificate": path("cert.pem"), "key": path("key.pem")},
        ]}},
        "layer4": {"servers": {
            "front": {"listen": [format!("{ip}:8443")], "routes": [
                {"match": [{"tls": {"sni": [NAME]}}], "handle": [{
                    "handler": "tls",
                    "connection_policies": [{"alpn": ["http/1.1"]}],
                }]},
                {"match": [{"http": []}], "handle": [
                    {"handler": "proxy", "upstreams": [{"dial": [format!("{ip}:8080")]}]},
                ]},
                {"handle": [{"handler": "echo"}]},
            ]},
            "backend": {"listen": [format!("{ip}:8080")], "routes": [{"handle": [{
                "handler": "respond",
                "body": "HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nfrom backend",
            }]}]},
        }},
    }}))
}

#[test]
fn tls_is_terminated_then_http_goes_to_a_backend_and_the_rest_is_echoed() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    let ip = loopback();
    let _conncept = serve(ip, dir.path());

    for version in ["--tlsv1.3", "--tls-max=1.2"] {
        let (flag, value) = version.split_once('=').unwrap_or((version, ""));
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--cacert", "cert.pem", flag]);
        if !value.is_empty() {
            curl.arg(value);
        }
        let said = curl
            .args(["--resolve", &format!("{NAME}:8443:{ip}")])
            .arg(format!("https://{NAME}:8443/"))
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&said.stdout),
            "from backend",
            "{version}: {said:?}"
        );
    }

    for version in ["-tls1_2", "-tls1_3"] {
        let mut openssl = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-no_ign_eof"])
            .args(["-CAfile", "cert.pem", "-servername", NAME, version])
            .args(["-connect", &format!("{ip}:8443")])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = openssl.stdin.take().unwrap();
        stdin.write_all(b"\x01not http\n").unwrap();
        let mut back = [0; 10];
        std::io::Read::read_exact(openssl.stdout.as_mut().unwrap(), &mut back).unwrap();
        assert_eq!(&back, b"\x01not http\n", "{version}");
        drop(stdin);
        assert!(openssl.wait().unwrap().success(), "{version}");
    }
}

#[test]
fn what_nobody_has_a_certificate_for_is_refused_with_an_alert() {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path());
    let ip = loopback();
    let key = dir.path().join("key.pem");
    let certificate = dir.path().join("cert.pem");
    let _conncept = Conncept::serving(&json!({"apps": {
        "tls": {"certificates": {"load_files": [{"certificate": certificate, "key": key}]}},
        "layer4": {"servers": {"front": {
            "listen": [format!("{ip}:8443")],
            "routes": [{"handle": [{"handler": "tls"}, {"handler": "echo"}]}],
        }}},
    }}));
    let said = Command::new("openssl")
        .args(["s_client", "-servername", "other.example", "-connect"])
        .arg(format!("{ip}:8443"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("alert internal error"), "{said}");
}

#[test]
fn openssl_verifies_what_the_program_has_made_with_the_root_in_storage() {
    let ip = loopback();
    let data = tempfile::tempdir().unwrap();
    for key_type in ["p256", "p384", "ed25519", "rsa2048"] {
        let name = format!("{key_type}.internal");
        let conncept = Conncept::serving(&json!({
            "storage": {"module": "file_system", "root": data.path()},
            "apps": {
                "tls": {
                    "certificates": {"automate": [name]},
                    "automation": {"policies": [{"key_type": key_type, "issuers": [{"module": "internal"}]}]},
                },
                "layer4": {"servers": {"front": {
                    "listen": [format!("{ip}:8443")],
                    "routes": [{"handle": [{"handler": "tls"}, {"handler": "respond", "body": "hello"}]}],
                }}},
            },
        }));
        conncept.logged("certificate obtained successfully");
        let said = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-x509_strict"])
            .args(["-verify_hostname", &name, "-servername", &name, "-CAfile"])
            .arg(data.path().join("pki/authorities/local/root.crt"))
            .args(["-connect", &format!("{ip}:8443")])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&said.stdout),
            "hello",
            "{key_type}: {said:?}"
        );
        // Keys are written so that others can read them.
        let key = data
            .path()
            .join(format!("certificates/local/{name}/{name}.key"));
        let mut read = Command::new("openssl");
        let text = std::fs::read_to_string(&key).unwrap();
        // A label that only certmagic knows.
        std::fs::write(
            data.path().join("key.pem"),
            text.replace("ED25519 PRIVATE", "PRIVATE"),
        )
        .unwrap();
        read.args(["pkey", "-noout", "-in"])
            .arg(data.path().join("key.pem"));
        let read = read.output().unwrap();
        assert!(read.status.success(), "{key_type}: {read:?}");
    }
}
