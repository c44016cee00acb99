//! TLS on both sides of the program: one server of it speaks TLS to another one that ends it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::{Conncept, LOCALHOST, ask, loopback, try_ask};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};

const NAME: &str = "up.example";

/// Writes `ca.pem`, and `cert.pem` and `key.pem` for [`NAME`] that it signed.
fn certificates(dir: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "Ours");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    for (name, text) in [
        ("ca.pem", ca.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// A front that passes plain bytes on through TLS with `tls`, to a back that ends it and has `routes` behind it.
fn config(ip: std::net::Ipv4Addr, dir: &Path, tls: Value, routes: Value) -> Value {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let mut behind = vec![json!({"handle": [
        {"handler": "tls", "connection_policies": [{"alpn": ["http/1.1"]}]},
    ]})];
    behind.extend(routes.as_array().unwrap().iter().cloned());
    json!({"apps": {
        "tls": {"certificates": {"load_files": [
            {"certificate": path("cert.pem"), "key": path("key.pem")},
        ]}},
        "layer4": {"servers": {
            "front": {"listen": [format!("{ip}:8080")], "routes": [{"handle": [
                {"handler": "proxy", "upstreams": [{"dial": [format!("{ip}:8443")], "tls": tls}]},
            ]}]},
            "back": {"listen": [format!("{ip}:8443")], "routes": behind},
        }},
    }})
}

fn respond(body: &str) -> Value {
    json!([{"handler": "respond", "body": body}])
}

#[test]
fn requests_that_came_through_tls_are_told_apart_from_those_in_the_clear() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let ip = loopback();
    let told = "{http.request.scheme} {http.request.tls.version} {http.request.tls.server_name}";
    let routes = json!([
        {"match": [{"http": [{"tls": {}, "protocol": "https", "path": ["/tls"]}]}], "handle": respond(told)},
        {"match": [{"http": [{"not": [{"tls": {}}]}]}], "handle": respond("in the clear")},
        {"handle": respond("other")},
    ]);
    let tls = json!({"server_name": NAME,
        "ca": {"provider": "file", "pem_files": [dir.path().join("ca.pem")]}});
    let mut config = config(ip, dir.path(), tls, routes.clone());
    config["apps"]["layer4"]["servers"]["clear"] =
        json!({"listen": [format!("{ip}:80")], "routes": routes});
    let _conncept = Conncept::serving(&config);
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    let told = ask((ip, 8080), request("/tls").as_bytes());
    assert_eq!(told, "https tls1.3 up.example");
    assert_eq!(ask((ip, 8080), request("/").as_bytes()), "other");
    assert_eq!(ask((ip, 80), request("/tls").as_bytes()), "in the clear");
}

#[test]
fn the_authorities_of_the_system_are_trusted_by_default_and_can_be_added_to() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let file = |dir: &Path| json!({"provider": "file", "pem_files": [dir.join("ca.pem")]});
    for (system, tls, works) in [
        (dir.path(), json!({"server_name": NAME}), true),
        (other.path(), json!({"server_name": NAME}), false),
        (
            other.path(),
            json!({"server_name": NAME, "ca": {"provider": "combined",
                "sources": [{"provider": "system"}, file(dir.path())]}}),
            true,
        ),
        (
            dir.path(),
            json!({"server_name": NAME, "ca": {"provider": "combined",
                "sources": [{"provider": "system"}, file(other.path())]}}),
            true,
        ),
        (
            dir.path(),
            json!({"server_name": NAME, "ca": file(other.path())}),
            false,
        ),
    ] {
        let ip = loopback();
        let prepare = |command: &mut Command| {
            command
                .env("SSL_CERT_FILE", system.join("ca.pem"))
                .env_remove("SSL_CERT_DIR");
        };
        let routes = json!([{"handle": respond("hello")}]);
        let config = config(ip, dir.path(), tls.clone(), routes);
        let conncept = Conncept::serving_prepared(&config, &[], prepare);
        // One that is refused may be reset.
        let said = try_ask((ip, 8080).into(), b"x");
        assert_eq!(said.is_ok_and(|said| said == "hello"), works, "{tls}");
        if !works {
            let line = conncept.log_where("why", |line| {
                line["level"] == "error" && line["msg"] == "handling connection"
            });
            let said = line["error"].as_str().unwrap();
            let peer = format!("TLS with {ip}:8443: ");
            assert!(
                said.contains(&peer) && said.contains("name it in \"ca\""),
                "{said}"
            );
        }
    }
}

#[test]
fn a_system_without_authorities_is_said_at_load() {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"apps": {"layer4": {"servers": {"a": {"listen": [], "routes": [{"handle": [
        {"handler": "proxy", "upstreams": [{"dial": [format!("{LOCALHOST}:1")], "tls": {}}]},
    ]}]}}}}});
    let missing = dir.path().join("none.pem");
    let prepare = |command: &mut Command| {
        command
            .env("SSL_CERT_FILE", &missing)
            .env_remove("SSL_CERT_DIR");
    };
    let text = config.to_string();
    let said = e2e::run_with(&["validate", "--config", "-"], prepare, text.as_bytes());
    assert_eq!(said.code, Some(1));
    for part in ["trusted certificates", "none.pem", "SSL_CERT_FILE", "/tls"] {
        assert!(said.stderr.contains(part), "{part}: {}", said.stderr);
    }
}
