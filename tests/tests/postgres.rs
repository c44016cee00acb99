//! psql through TLS that is ended here, to a PostgreSQL server that knows nothing of it. Needs Debian's `postgresql` and
//! `postgresql-client`.

#![allow(clippy::unwrap_used)]
#![cfg(feature = "interop")]

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};

use e2e::backends::{sh, succeed};
use e2e::{Conncept, config, eventually, loopback};
use serde_json::json;
use tempfile::TempDir;

/// A PostgreSQL server of the test's own. Stopped when dropped.
struct Server(Child);

impl Server {
    /// Makes a database below `dir` and serves it. PostgreSQL refuses to run as root.
    fn start(dir: &str, ip: Ipv4Addr, port: u16) -> Self {
        let (mut own, mut run) = (String::new(), Command::new("sh"));
        if succeed("id -u").trim() == "0" {
            own = "-o postgres -g postgres".to_owned();
            run = Command::new("setpriv");
            run.args([
                "--reuid=postgres",
                "--regid=postgres",
                "--clear-groups",
                "sh",
            ]);
        }
        succeed(&format!(
            "chmod 755 {dir} && install -d -m 700 {own} {dir}/data"
        ));
        let bin = "$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)";
        let script = format!(
            "cd / && {bin}/initdb --pgdata={dir}/data --username=tester --auth=trust --no-sync >/dev/null &&
             exec {bin}/postgres -D {dir}/data -p {port} -c listen_addresses={ip} -c unix_socket_directories= -c fsync=off"
        );
        let server = run
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let server = Self(server.unwrap());
        eventually("PostgreSQL serves", || {
            TcpStream::connect((ip, port)).is_ok()
                && sh(&format!(
                    "psql 'host={ip} port={port} user=tester dbname=postgres' -c ''"
                ))
                .is_ok()
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGINT ends its sessions and then itself, with all its processes.
        let _ = Command::new("kill")
            .args(["-INT", &self.0.id().to_string()])
            .status();
        let _ = self.0.wait();
    }
}

#[test]
fn psql_connects_with_every_sslmode_and_trusts_just_whom_it_should() {
    let ip = loopback();
    let files = TempDir::new().unwrap();
    let dir = files.path().to_str().unwrap();
    for name in ["authority", "stranger"] {
        succeed(&format!(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} \
             -keyout {dir}/{name}.key -out {dir}/{name}.pem"
        ));
    }
    fs::write(
        files.path().join("names"),
        "subjectAltName=DNS:db.example\n",
    )
    .unwrap();
    succeed(&format!(
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db.example \
         -keyout {dir}/server.key -out {dir}/server.csr &&
         openssl x509 -req -in {dir}/server.csr -CA {dir}/authority.pem -CAkey {dir}/authority.key -CAcreateserial \
         -days 2 -extfile {dir}/names -out {dir}/server.pem"
    ));
    let _server = Server::start(dir, ip, 15432);
    let mut config = config(
        json!({"postgres": {"listen": [format!("{ip}:5432")], "routes": [
            {"match": [{"postgres": {"tls": "enabled"}}], "handle": [
                {"handler": "postgres_tls"},
                {"handler": "tls", "connection_policies": [{"alpn": ["postgresql"], "fallback_sni": "db.example"}]},
            ]},
            {"match": [{"postgres": {}}],
             "handle": [{"handler": "proxy", "upstreams": [{"dial": [format!("{ip}:15432")]}]}]},
        ]}}),
    );
    config["apps"]["tls"] = json!({"certificates": {"load_files": [
        {"certificate": format!("{dir}/server.pem"), "key": format!("{dir}/server.key")},
    ]}});
    let _conncept = Conncept::serving(&config);
    let psql = |host: &str, mode: &str, root: &str| {
        sh(&format!(
            "PGCONNECT_TIMEOUT=10 psql --no-psqlrc -At -c '\\conninfo' -c 'select 6 * 7' \
             'host={host} hostaddr={ip} port=5432 user=tester dbname=postgres sslmode={mode} \
              sslrootcert={dir}/{root}.pem'"
        ))
    };
    for (mode, encrypted) in [
        ("disable", false),
        ("allow", false),
        ("prefer", true),
        ("require", true),
        ("verify-ca", true),
        ("verify-full", true),
    ] {
        let said =
            psql("db.example", mode, "authority").unwrap_or_else(|why| panic!("{mode}: {why}"));
        assert!(said.ends_with("42\n"), "{mode}: {said}");
        let seen = said.contains("SSL connection (protocol: TLSv1.3");
        assert_eq!(seen, encrypted, "{mode}: {said}");
    }
    // Who verifies is not fooled.
    for (host, mode, root) in [
        ("db.example", "verify-ca", "stranger"),
        ("db.example", "verify-full", "stranger"),
        ("other.example", "verify-full", "authority"),
    ] {
        let said = psql(host, mode, root);
        assert!(said.is_err(), "{host} {mode} {root}: {said:?}");
    }
    let said = psql("other.example", "verify-ca", "authority");
    assert!(said.is_ok(), "{said:?}");
    // More than one round trip in each direction, and more than one record.
    let many = succeed(&format!(
        "PGSSLMODE=require psql 'host={ip} port=5432 user=tester dbname=postgres' --no-psqlrc -At \
         -c \"select repeat('x', 100000) from generate_series(1, 20)\" | wc -c"
    ));
    assert_eq!(many.trim(), "2000020");
}
