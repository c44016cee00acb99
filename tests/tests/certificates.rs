//! Certificates that the program makes by itself, as clients, operators and other instances see them.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2e::{Conncept, Reload, connect, eventually, loopback, run_with};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

/// The file in `examples`, on an address of the test's own.
fn example(listen: &str) -> Value {
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../examples/echo-tls-internal.json"
    );
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains("127.0.0.1:5000"));
    serde_json::from_str(&text.replace("127.0.0.1:5000", listen)).unwrap()
}

/// Where the root is that the program made.
fn root(data: &Path) -> std::path::PathBuf {
    data.join("pki/authorities/local/root.crt")
}

/// Connects as a client that trusts the root in `data`, has a line echoed, and returns the certificate of the server.
fn echo(
    address: SocketAddr,
    name: &str,
    data: &Path,
) -> Result<CertificateDer<'static>, rustls::Error> {
    echo_as(address, name, data, None)
}

/// The same, with a certificate of the client's own.
fn echo_as(
    address: SocketAddr,
    name: &str,
    data: &Path,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<CertificateDer<'static>, rustls::Error> {
    // The client has to have the root before it connects; it is made first of all.
    eventually("there is a root", || root(data).exists());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(root(data)).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = connect(address);
    while client.is_handshaking() {
        client.complete_io(&mut stream).map_err(refusal)?;
    }
    let mut stream = StreamOwned::new(client, stream);
    let mut back = [0; 9];
    // In TLS 1.3 a client learns only by reading that its certificate was refused.
    let echoed = stream.write_all(b"over TLS\n");
    let echoed = echoed.and_then(|()| stream.read_exact(&mut back));
    echoed.map_err(refusal)?;
    assert_eq!(&back, b"over TLS\n");
    Ok(stream.conn.peer_certificates().unwrap()[0]
        .clone()
        .into_owned())
}

/// What TLS says. A server that refuses what came before has not read what comes after, so a reset may overtake the alert.
fn refusal(error: std::io::Error) -> rustls::Error {
    let why = error.to_string();
    let error = error
        .into_inner()
        .and_then(|inner| inner.downcast::<rustls::Error>().ok());
    error.map_or(rustls::Error::General(why), |error| *error)
}

/// Mode of everything below a folder, by path from there.
fn modes(folder: &Path) -> BTreeMap<String, u32> {
    let mut modes = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(&inner).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::metadata(&path).unwrap();
            let name = path
                .strip_prefix(folder)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            modes.insert(name, metadata.permissions().mode() & 0o7777);
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    modes
}

#[test]
fn the_example_serves_a_verified_handshake_within_moments_of_its_start() {
    let ip = loopback();
    let address = SocketAddr::from((ip, 5000));
    let start = Instant::now();
    let conncept = Conncept::serving(&example(&address.to_string()));
    let first = echo(address, "localhost", &conncept.data()).unwrap();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(echo(address, "localhost", &conncept.data()).unwrap(), first);

    conncept.logged("certificate obtained successfully");
    conncept.logged("releasing lock");
    let locks = conncept.data().join("locks");
    eventually("locks are released", || {
        fs::read_dir(&locks).unwrap().count() == 0
    });
    let certificate = |file: &str| format!("certificates/local/localhost/localhost.{file}");
    let expected: BTreeMap<String, u32> = [
        ("certificates".to_owned(), 0o700),
        ("certificates/local".to_owned(), 0o700),
        ("certificates/local/localhost".to_owned(), 0o700),
        (certificate("crt"), 0o600),
        (certificate("json"), 0o600),
        (certificate("key"), 0o600),
        ("locks".to_owned(), 0o700),
        ("pki".to_owned(), 0o700),
        ("pki/authorities".to_owned(), 0o700),
        ("pki/authorities/local".to_owned(), 0o700),
        ("pki/authorities/local/intermediate.crt".to_owned(), 0o600),
        ("pki/authorities/local/intermediate.key".to_owned(), 0o600),
        ("pki/authorities/local/root.crt".to_owned(), 0o600),
        ("pki/authorities/local/root.key".to_owned(), 0o600),
    ]
    .into();
    assert_eq!(modes(&conncept.data()), expected);
    for file in ["root.key", "intermediate.key"] {
        let key = fs::read_to_string(conncept.data().join("pki/authorities/local").join(file));
        assert!(
            key.unwrap().starts_with("-----BEGIN EC PRIVATE KEY-----\n"),
            "{file}"
        );
    }
    let metadata = fs::read_to_string(conncept.data().join(certificate("json"))).unwrap();
    assert_eq!(
        metadata,
        "{\n\t\"sans\": [\n\t\t\"localhost\"\n\t],\n\t\"issuer_data\": null\n}"
    );
    let told = conncept.log_where("where the root is", |line| {
        line["msg"]
            .as_str()
            .unwrap()
            .starts_with("root certificate trust store installation disabled")
    });
    assert_eq!(told["path"], root(&conncept.data()).to_str().unwrap());
}

/// Lets in whose certificate an authority of its own has made, and echoes.
fn for_own_clients(listen: &str) -> Value {
    let mut config = example(listen);
    config["apps"]["pki"] = json!({});
    config["apps"]["tls"]["certificates"]["automate"] = json!(["localhost", "client.internal"]);
    let ca = json!({"provider": "pki_root", "authority": ["local"]});
    config["apps"]["layer4"]["servers"]["example"]["routes"][0]["handle"][0]["connection_policies"] =
        json!([{"alpn": [], "client_authentication": {"ca": ca}}]);
    config
}

#[test]
fn clients_of_an_authority_that_is_made_at_the_first_start_are_let_in() {
    let address = SocketAddr::from((loopback(), 5000));
    let conncept = Conncept::serving(&for_own_clients(&address.to_string()));
    let file = |extension: &str| {
        let name = format!("certificates/local/client.internal/client.internal.{extension}");
        conncept.data().join(name)
    };
    eventually("the client has a certificate", || file("json").exists());
    echo(address, "localhost", &conncept.data()).unwrap_err();
    let chain = CertificateDer::pem_file_iter(file("crt")).unwrap();
    let chain = chain.map(Result::unwrap).collect();
    let identity = (chain, PrivateKeyDer::from_pem_file(file("key")).unwrap());
    echo_as(address, "localhost", &conncept.data(), Some(identity)).unwrap();
}

/// Row D9 of docs/defects.md.
#[test]
fn validating_makes_no_certificate() {
    let home = tempfile::tempdir().unwrap();
    let config = example("127.0.0.1:5000").to_string();
    let finished = run_with(
        &["validate", "--config", "-"],
        |command| {
            command
                .env("XDG_DATA_HOME", home.path())
                .env("HOME", home.path());
        },
        config.as_bytes(),
    );
    assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

/// The example with certificates for a few seconds, kept in `data`.
fn short_lived(listen: &str, data: &Path, lifetime: &str) -> Value {
    let mut config = example(listen);
    config["storage"] = json!({"module": "file_system", "root": data});
    config["apps"]["tls"]["automation"] = json!({
        "renew_interval": "1s",
        "policies": [{"issuers": [{"module": "internal", "lifetime": lifetime}]}],
    });
    config
}

#[test]
fn certificates_are_renewed_before_they_end_and_handshakes_never_fail() {
    let (ip, data) = (loopback(), tempfile::tempdir().unwrap());
    let address = SocketAddr::from((ip, 5000));
    let _conncept = Conncept::serving(&short_lived(&address.to_string(), data.path(), "4s"));
    let mut seen: Vec<CertificateDer<'static>> = Vec::new();
    eventually("the certificate was renewed three times", || {
        // Any of them must be valid at the moment it is served.
        let served = echo(address, "localhost", data.path()).unwrap();
        if seen.last() != Some(&served) {
            seen.push(served);
        }
        seen.len() > 3
    });
}

#[test]
fn a_reload_and_a_restart_keep_the_certificate() {
    let (ip, data) = (loopback(), tempfile::tempdir().unwrap());
    let address = SocketAddr::from((ip, 5000));
    let mut config = example(&address.to_string());
    config["storage"] = json!({"module": "file_system", "root": data.path()});
    let conncept = Conncept::serving(&config);
    let first = echo(address, "localhost", data.path()).unwrap();

    config["apps"]["tls"]["certificates"]["automate"] = json!(["localhost", "db.internal"]);
    assert_eq!(conncept.reload(&config.to_string()), Reload::Done);
    // The new name is there at once, and the old one is as it was.
    let other = echo(address, "db.internal", data.path()).unwrap();
    assert_eq!(echo(address, "localhost", data.path()).unwrap(), first);

    // What is no longer configured is no longer served.
    config["apps"]["tls"]["certificates"]["automate"] = json!(["localhost"]);
    assert_eq!(conncept.reload(&config.to_string()), Reload::Done);
    let refused = echo(address, "db.internal", data.path()).unwrap_err();
    assert!(
        matches!(refused, rustls::Error::AlertReceived(_)),
        "{refused}"
    );

    drop(conncept);
    config["apps"]["tls"]["certificates"]["automate"] = json!(["localhost", "db.internal"]);
    let _conncept = Conncept::serving(&config);
    assert_eq!(echo(address, "localhost", data.path()).unwrap(), first);
    assert_eq!(echo(address, "db.internal", data.path()).unwrap(), other);
}

#[test]
fn two_instances_on_one_storage_make_one_certificate() {
    let data = tempfile::tempdir().unwrap();
    let instances: Vec<(SocketAddr, Conncept)> = (0..2)
        .map(|_| {
            let address = SocketAddr::from((loopback(), 5000));
            let mut config = example(&address.to_string());
            config["storage"] = json!({"module": "file_system", "root": data.path()});
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), config.to_string()).unwrap();
            // Not waited for, so that they start together.
            let conncept = Conncept::start(&["--config", file.path().to_str().unwrap()]);
            (address, conncept, file)
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(address, conncept, _file)| {
            conncept.logged("serving initial configuration");
            (address, conncept)
        })
        .collect();
    let served: Vec<_> = instances
        .iter()
        .map(|(address, _)| echo(*address, "localhost", data.path()).unwrap())
        .collect();
    assert_eq!(served[0], served[1]);
    let obtained = instances.iter().flat_map(|(_, conncept)| conncept.logs());
    let obtained = obtained.filter(|line| line["msg"] == "certificate obtained successfully");
    assert_eq!(obtained.count(), 1);
}

#[test]
fn an_end_leaves_no_lock_behind() {
    use e2e::Signal;

    let (ip, data) = (loopback(), tempfile::tempdir().unwrap());
    let lock = data.path().join("locks/issue_cert_localhost.lock");
    for signal in [Signal::TERM, Signal::QUIT] {
        let config = short_lived(&format!("{ip}:5000"), data.path(), "1h");
        // The folder of the certificate cannot be made, so the lock is held until another attempt.
        fs::write(data.path().join("certificates"), "in the way").unwrap();
        let mut conncept = Conncept::serving(&config);
        conncept.logged("will retry");
        assert!(lock.exists());
        conncept.signal(signal);
        conncept.wait();
        assert!(!lock.exists(), "{signal:?}");
        fs::remove_file(data.path().join("certificates")).unwrap();
    }
}
