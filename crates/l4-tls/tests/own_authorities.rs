//! Clients and upstreams whose certificates come from an authority of the application `pki`, or are verified with what is in
//! storage.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use l4_core::Registry;
use l4_core::config::Errors;
use l4_testkit::{connection, load};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

fn register(reg: &mut Registry) {
    l4_std::register(reg);
    l4_proxy::register(reg);
    l4_tls::register(reg);
}

fn config(storage: &Path, names: &[&str], handlers: Value) -> Value {
    json!({
        "storage": {"module": "file_system", "root": storage},
        "apps": {
            "tls": {"certificates": {"automate": names}},
            "pki": {},
            "layer4": {"servers": {"a": {
                "listen": ["127.0.0.1:1"], "routes": [{"handle": handlers}],
            }}},
        },
    })
}

/// Lets clients in whose certificates `provider` vouches for, and echoes.
fn by_pool(storage: &Path, names: &[&str], pool: Value) -> Value {
    let policy = json!({"alpn": [], "client_authentication": {"ca": pool}});
    let tls = json!({"handler": "tls", "connection_policies": [policy]});
    config(storage, names, json!([tls, {"handler": "echo"}]))
}

fn own(provider: &str) -> Value {
    json!({"provider": provider, "authority": ["local"]})
}

/// A configuration that runs until it is dropped.
struct Running(l4_core::engine::App);

impl Running {
    fn new(config: &Value) -> Self {
        let loaded = load(register, &config.to_string());
        let mut app = loaded
            .app
            .unwrap_or_else(|errors| panic!("{}", Errors::from(errors)));
        app.start();
        Self(app)
    }

    /// Has a byte echoed as a client that trusts the authority in `storage` and shows `identity`.
    async fn echo(&self, storage: &Path, identity: Arc<Identity>) -> io::Result<u8> {
        // The root is made first of all, but this may be sooner.
        until("there is a root", || root_of(storage).exists()).await;
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(root_of(storage)).unwrap())
            .unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(identity);
        let (conn, client_end) = connection(64 * 1024);
        tokio::spawn(self.0.listens[0].server.clone().serve(conn));
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, client_end)
            .await?;
        // In TLS 1.3 the client learns only by reading that it was refused.
        stream.write_all(b"x").await?;
        stream.read_u8().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.generation.retire();
    }
}

/// Who the client is, and which authorities the server said that it trusts.
#[derive(Debug)]
struct Identity {
    key: Option<Arc<CertifiedKey>>,
    hints: Mutex<Vec<Vec<u8>>>,
}

impl Identity {
    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Arc<Self> {
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let key = Some(Arc::new(key.unwrap()));
        let hints = Mutex::default();
        Arc::new(Self { key, hints })
    }

    fn nobody() -> Arc<Self> {
        let (key, hints) = (None, Mutex::default());
        Arc::new(Self { key, hints })
    }

    /// Of a certificate that was made in `storage` for `name`.
    async fn made(storage: &Path, name: &str) -> Arc<Self> {
        let (chain, key) = made(storage, name).await;
        Self::new(chain, key)
    }

    fn of_somebody_else() -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["client.internal".to_owned()]).unwrap();
        params
            .extended_key_usages
            .push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let certificate = params.self_signed(&key).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Self::new(vec![certificate.der().clone()], key)
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        *self.hints.lock().unwrap() = hints.iter().map(|hint| hint.to_vec()).collect();
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn root_of(storage: &Path) -> PathBuf {
    storage.join("pki/authorities/local/root.crt")
}

fn intermediate_of(storage: &Path) -> PathBuf {
    storage.join("pki/authorities/local/intermediate.crt")
}

/// The chain and the key that were made for `name`.
async fn made(
    storage: &Path,
    name: &str,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let file =
        |extension: &str| storage.join(format!("certificates/local/{name}/{name}.{extension}"));
    // Written last.
    until("there is a certificate", || file("json").exists()).await;
    let chain = CertificateDer::pem_file_iter(file("crt")).unwrap();
    let chain = chain.map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(file("key")).unwrap())
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the authority whose certificate is in `file` is the only one among `hints`.
fn names_only(hints: &[Vec<u8>], file: &Path) -> bool {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(file).unwrap())
        .unwrap();
    let subjects = roots.subjects();
    hints.len() == 1 && subjects[0].as_ref() == hints[0]
}

#[tokio::test]
async fn d8_clients_of_an_authority_are_let_in_that_did_not_exist_at_load() {
    for (provider, authority) in [
        ("pki_root", root_of as fn(&Path) -> PathBuf),
        ("pki_intermediate", intermediate_of),
    ] {
        let dir = TempDir::new().unwrap();
        let names = ["localhost", "client.internal"];
        for pool in [
            own(provider),
            json!({"provider": "combined", "sources": [own(provider)]}),
        ] {
            let config = by_pool(dir.path(), &names, pool);
            let running = Running::new(&config);
            let good = Identity::made(dir.path(), "client.internal").await;
            assert_eq!(
                running.echo(dir.path(), good.clone()).await.unwrap(),
                b'x',
                "{provider}"
            );
            let hints = good.hints.lock().unwrap().clone();
            assert!(
                names_only(&hints, &authority(dir.path())),
                "{provider}: {hints:?}"
            );
            for bad in [Identity::nobody(), Identity::of_somebody_else()] {
                assert!(running.echo(dir.path(), bad).await.is_err(), "{provider}");
            }
        }
    }
}

#[tokio::test]
async fn d8_an_intermediate_that_another_process_replaces_is_followed_and_the_old_one_is_good_to_its_end()
 {
    let dir = TempDir::new().unwrap();
    let (storage, link) = (dir.path().join("storage"), dir.path().join("link"));
    fs::create_dir(&storage).unwrap();
    // By another path it is another storage, as for another process.
    std::os::unix::fs::symlink(&storage, &link).unwrap();
    let ours = by_pool(
        &storage,
        &["localhost", "old.internal"],
        own("pki_intermediate"),
    );
    let running = Running::new(&ours);
    let old = Identity::made(&storage, "old.internal").await;
    assert_eq!(running.echo(&storage, old.clone()).await.unwrap(), b'x');

    let first = fs::read(intermediate_of(&storage)).unwrap();
    fs::remove_file(intermediate_of(&storage)).unwrap();
    let other = Running::new(&config(&link, &["new.internal"], json!([])));
    let new = Identity::made(&storage, "new.internal").await;
    assert_ne!(fs::read(intermediate_of(&storage)).unwrap(), first);
    let start = Instant::now();
    while running.echo(&storage, new.clone()).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(running.echo(&storage, old.clone()).await.unwrap(), b'x');

    // A reload keeps both.
    let reloaded = Running::new(&ours);
    drop(running);
    for identity in [&old, &new] {
        assert_eq!(
            reloaded.echo(&storage, identity.clone()).await.unwrap(),
            b'x'
        );
    }
    drop(other);
}

#[tokio::test]
async fn d8_upstreams_are_verified_with_an_authority_that_did_not_exist_at_load() {
    let dir = TempDir::new().unwrap();
    let upstream = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    let tls = json!({"ca": own("pki_root"), "server_name": "localhost"});
    let proxy = json!({"handler": "proxy", "upstreams": [
        {"dial": [address.to_string()], "tls": tls},
    ]});
    let running = Running::new(&config(dir.path(), &["localhost"], json!([proxy])));
    let good = made(dir.path(), "localhost").await;
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let bad = params.self_signed(&key).unwrap().der().clone();
    let bad = (
        vec![bad],
        PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    );
    for ((chain, key), expected) in [(good, true), (bad, false)] {
        let server = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (conn, mut client) = connection(1024);
        tokio::spawn(running.0.listens[0].server.clone().serve(conn));
        let (stream, _) = upstream.accept().await.unwrap();
        let served = async {
            let mut stream = TlsAcceptor::from(Arc::new(server)).accept(stream).await?;
            stream.write_all(b"x").await?;
            stream.shutdown().await
        };
        let received = async {
            let mut received = Vec::new();
            // One that is refused gets a reset.
            let _ = client.shutdown().await;
            let _ = client.read_to_end(&mut received).await;
            received
        };
        let (_, received) = tokio::join!(served, received);
        assert_eq!(received == b"x", expected);
    }
}

fn errors(config: &Value) -> String {
    match load(register, &config.to_string()).app {
        Ok(_) => String::new(),
        Err(errors) => Errors::from(errors).to_string(),
    }
}

#[test]
fn what_is_wrong_with_pools_of_own_authorities_and_of_storage_is_said_with_a_remedy() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("not.pem"), "nothing").unwrap();
    let said = |pool: Value| errors(&by_pool(dir.path(), &["localhost"], pool));
    let place = "/connection_policies/0/client_authentication/ca";
    for (pool, at, expected, remedy) in [
        (
            json!({"provider": "pki_root"}),
            place,
            "no authorities specified",
            "[\"local\"]",
        ),
        (
            json!({"provider": "pki_intermediate", "authority": ["other"]}),
            "/ca/authority/0",
            "no certificate authority configured with id: other",
            "apps.pki.certificate_authorities",
        ),
        (
            json!({"provider": "combined", "sources": [{"provider": "pki_root", "authority": "local"}]}),
            "/sources/0/authority",
            "expected",
            "",
        ),
        (
            json!({"provider": "storage"}),
            place,
            "no PEM keys specified",
            "pem_keys",
        ),
        (
            json!({"provider": "storage", "pem_keys": ["none.pem"]}),
            "/ca/pem_keys/0",
            "error loading cert 'none.pem' from storage: ",
            "",
        ),
        (
            json!({"provider": "storage", "pem_keys": ["not.pem"]}),
            "/ca/pem_keys/0",
            "not.pem: no certificate block found",
            "",
        ),
        (
            json!({"provider": "http", "endpoints": []}),
            "/ca/provider",
            "the trust pool provider http is not in this build yet",
            "file or inline",
        ),
    ] {
        let said = said(pool.clone());
        assert!(said.contains(&format!("{at}\n")), "{pool}: {said}");
        assert!(
            said.contains(expected) && said.contains(remedy),
            "{pool}: {said}"
        );
    }

    let mut without = by_pool(dir.path(), &["localhost"], own("pki_root"));
    without["apps"].as_object_mut().unwrap().remove("pki");
    let said = errors(&without);
    assert!(
        said.contains("pki_root CA pool requires that the application pki is configured")
            && said.contains("write \"pki\": {} in apps"),
        "{said}"
    );
}

#[test]
fn an_authority_without_a_root_is_in_no_pool_of_roots() {
    let dir = TempDir::new().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(path("ca.key"), key.serialize_pem()).unwrap();
    let given = json!({"certificate": path("ca.pem"), "private_key": path("ca.key")});
    for (provider, expected) in [("pki_root", false), ("pki_intermediate", true)] {
        let mut config = by_pool(dir.path(), &["localhost"], own(provider));
        config["apps"]["pki"] =
            json!({"certificate_authorities": {"local": {"intermediate": given}}});
        let said = errors(&config);
        assert_eq!(said.is_empty(), expected, "{said}");
        assert!(
            expected || said.contains("CA local has no root certificate"),
            "{said}"
        );
    }
}

#[tokio::test]
async fn authorities_single_clients_and_own_certificates_may_be_in_storage() {
    let dir = TempDir::new().unwrap();
    let elsewhere = TempDir::new().unwrap();
    // What somebody else has put there: here, an earlier process.
    let running = Running::new(&config(
        dir.path(),
        &["localhost", "client.internal", "other.internal"],
        json!([]),
    ));
    let one = Identity::made(dir.path(), "client.internal").await;
    let two = Identity::made(dir.path(), "other.internal").await;
    made(dir.path(), "localhost").await;
    drop(running);

    let own_storage = json!({"module": "file_system", "root": dir.path()});
    let root = json!({"provider": "storage", "pem_keys": ["pki/authorities/local/root.crt"]});
    let leaf = "certificates/local/client.internal/client.internal.crt";
    let loader = json!({"loader": "storage", "certificates": [leaf]});
    let with = |mut object: Value, storage: Option<&Value>| {
        if let Some(storage) = storage {
            object["storage"] = storage.clone();
        }
        object
    };
    for (of_configuration, storage) in [(dir.path(), None), (elsewhere.path(), Some(&own_storage))]
    {
        let verifier =
            json!({"verifier": "leaf", "leaf_certs_loaders": [with(loader.clone(), storage)]});
        let mut config = by_pool(of_configuration, &[], with(root.clone(), storage));
        let policy = &mut config["apps"]["layer4"]["servers"]["a"]["routes"][0]["handle"][0]["connection_policies"]
            [0];
        policy["client_authentication"]["verifiers"] = json!([verifier]);
        let file = |extension: &str| format!("certificates/local/localhost/localhost.{extension}");
        config["apps"]["tls"] = match storage {
            None => json!({"certificates": {"load_storage": {"pairs": [
                {"certificate": file("crt"), "key": file("key")},
            ]}}}),
            // There the storage is that of the configuration only.
            Some(_) => {
                let path = |extension| dir.path().join(file(extension));
                json!({"certificates": {"load_files": [
                    {"certificate": path("crt"), "key": path("key")},
                ]}})
            }
        };
        let running = Running::new(&config);
        assert_eq!(running.echo(dir.path(), one.clone()).await.unwrap(), b'x');
        assert!(running.echo(dir.path(), two.clone()).await.is_err());
    }
}

#[test]
fn a_certificate_that_is_not_in_storage_is_said_where_its_key_stands() {
    let dir = TempDir::new().unwrap();
    let mut config = config(dir.path(), &[], json!([]));
    for (pair, at, expected) in [
        (
            json!({"certificate": "a.crt", "key": "a.key"}),
            "/load_storage/pairs/0/certificate\n",
            "loading a.crt: ",
        ),
        (
            json!({"certificate": "a", "key": "b", "format": "der"}),
            "/load_storage/pairs/0/format\n",
            "unrecognized certificate/key encoding format: der",
        ),
    ] {
        config["apps"]["tls"] = json!({"certificates": {"load_storage": {"pairs": [pair]}}});
        let said = errors(&config);
        assert!(said.contains(at) && said.contains(expected), "{said}");
    }
}
