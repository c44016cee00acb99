//! Certificates that are made here: what is configured, what is stored, and what clients get.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use l4_core::Registry;
use l4_core::config::Errors;
use l4_testkit::{Client, connection, load};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

fn register(reg: &mut Registry) {
    l4_std::register(reg);
    l4_tls::register(reg);
}

/// A configuration that echoes behind TLS and keeps everything in `storage`.
fn config(storage: &Path, tls: Value, pki: Value) -> Value {
    json!({
        "storage": {"module": "file_system", "root": storage},
        "apps": {
            "tls": tls,
            "pki": pki,
            "layer4": {"servers": {"a": {
                "listen": ["127.0.0.1:1"],
                "routes": [{"handle": [{"handler": "tls"}, {"handler": "echo"}]}],
            }}},
        },
    })
}

fn automate(names: &[&str]) -> Value {
    json!({"certificates": {"automate": names}})
}

/// With one policy for every name.
fn by_policy(names: &[&str], policy: Value) -> Value {
    json!({"certificates": {"automate": names}, "automation": {"policies": [policy]}})
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

    /// The chain that a client which asks for `name` gets, leaf first.
    async fn chain(&self, name: &str) -> std::io::Result<Vec<CertificateDer<'static>>> {
        let shown = Arc::<Shown>::default();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(shown.clone())
            .with_no_client_auth();
        let (conn, client_end) = connection(64 * 1024);
        tokio::spawn(self.0.listens[0].server.clone().serve(conn));
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connected: std::io::Result<TlsStream<Client>> = TlsConnector::from(Arc::new(client))
            .connect(name, client_end)
            .await;
        connected?;
        Ok(std::mem::take(&mut *shown.0.lock().unwrap()))
    }
}

impl Running {
    /// Ends, and leaves nothing in memory.
    async fn stop(self) {
        drop(self);
        l4_testkit::settle().await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.generation.retire();
    }
}

/// Accepts any chain and keeps it.
#[derive(Debug, Default)]
struct Shown(Mutex<Vec<CertificateDer<'static>>>);

impl ServerCertVerifier for Shown {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(rest);
        *self.0.lock().unwrap() = chain.map(|der| der.clone().into_owned()).collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, leaf, signature, &schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, &schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// Verifies a chain as a client that trusts the certificate in `root` does.
fn verify(chain: &[CertificateDer<'_>], root: &Path, name: &str) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(root).unwrap())
        .unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let verifier = verifier.build().unwrap();
    verifier
        .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
        .map(|_| ())
}

fn root_of(storage: &Path) -> std::path::PathBuf {
    storage.join("pki/authorities/local/root.crt")
}

#[tokio::test]
async fn names_get_certificates_that_the_root_in_storage_vouches_for() {
    let dir = TempDir::new().unwrap();
    let running = Running::new(&config(
        dir.path(),
        automate(&[
            "localhost",
            "*.db.internal",
            "Bücher.internal",
            "192.168.0.1",
        ]),
        json!({}),
    ));
    for (asked, stored) in [
        ("localhost", "localhost"),
        ("one.db.internal", "wildcard_.db.internal"),
        ("xn--bcher-kva.internal", "xn--bcher-kva.internal"),
    ] {
        let chain = running.chain(asked).await.unwrap();
        assert_eq!(chain.len(), 2, "{asked}");
        verify(&chain, &root_of(dir.path()), asked).unwrap();
        for extension in ["crt", "key", "json"] {
            let file = format!("certificates/local/{stored}/{stored}.{extension}");
            assert!(dir.path().join(&file).is_file(), "{file}");
        }
        let json = fs::read_to_string(
            dir.path()
                .join(format!("certificates/local/{stored}/{stored}.json")),
        );
        assert!(json.unwrap().ends_with("\"issuer_data\": null\n}"));
    }
    let refused = running.chain("two.one.db.internal").await.unwrap_err();
    assert!(refused.to_string().contains("InternalError"), "{refused}");
    let refused = running.chain("db.internal").await.unwrap_err();
    assert!(refused.to_string().contains("InternalError"), "{refused}");
}

#[tokio::test]
async fn every_kind_of_key_serves_handshakes() {
    for (kind, label) in [
        ("ed25519", "ED25519 PRIVATE KEY"),
        ("p256", "EC PRIVATE KEY"),
        ("p384", "EC PRIVATE KEY"),
        ("rsa2048", "RSA PRIVATE KEY"),
    ] {
        let dir = TempDir::new().unwrap();
        let tls = by_policy(&["localhost"], json!({"key_type": kind}));
        let running = Running::new(&config(dir.path(), tls, json!({})));
        let chain = running.chain("localhost").await.unwrap();
        verify(&chain, &root_of(dir.path()), "localhost").unwrap();
        let key = fs::read_to_string(
            dir.path()
                .join("certificates/local/localhost/localhost.key"),
        );
        assert!(
            key.unwrap()
                .starts_with(&format!("-----BEGIN {label}-----\n")),
            "{kind}"
        );
    }
}

#[tokio::test]
async fn what_is_in_storage_is_served_after_a_reload_and_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let config = |policy: Value| config(dir.path(), by_policy(&["localhost"], policy), json!({}));
    let first = Running::new(&config(json!({})));
    let chain = first.chain("localhost").await.unwrap();
    // A reload: both configurations are there for a moment.
    let second = Running::new(&config(json!({"key_type": "p384"})));
    assert_eq!(second.chain("localhost").await.unwrap(), chain);
    drop(first);
    assert_eq!(second.chain("localhost").await.unwrap(), chain);
    // A restart: nothing is left in memory.
    second.stop().await;
    let third = Running::new(&config(json!({})));
    assert_eq!(third.chain("localhost").await.unwrap(), chain);
}

#[tokio::test]
async fn a_certificate_that_was_deleted_or_damaged_is_made_anew() {
    let dir = TempDir::new().unwrap();
    let config = config(dir.path(), automate(&["localhost"]), json!({}));
    let chain = async || {
        let running = Running::new(&config);
        let chain = running.chain("localhost").await.unwrap();
        running.stop().await;
        chain
    };
    let mut before = chain().await;
    let file = |extension: &str| {
        dir.path().join(format!(
            "certificates/local/localhost/localhost.{extension}"
        ))
    };
    for damage in ["gone", "garbage", "another key"] {
        match damage {
            "gone" => fs::remove_file(file("json")).unwrap(),
            "garbage" => fs::write(file("crt"), "what?").unwrap(),
            _ => {
                let other = l4_tls::KeyType::P256.generate().unwrap();
                fs::write(file("key"), other.pem()).unwrap();
            }
        }
        let now = chain().await;
        assert_ne!(now[0], before[0], "{damage}");
        assert_eq!(now[1], before[1], "{damage}: the intermediate is the same");
        verify(&now, &root_of(dir.path()), "localhost").unwrap();
        before = now;
    }
}

#[tokio::test]
async fn sign_with_root_leaves_the_intermediate_out() {
    let dir = TempDir::new().unwrap();
    let issuer = json!({"module": "internal", "sign_with_root": true, "lifetime": "9999d"});
    let tls = by_policy(&["localhost"], json!({"issuers": [issuer]}));
    let running = Running::new(&config(dir.path(), tls, json!({})));
    let chain = running.chain("localhost").await.unwrap();
    let root = CertificateDer::from_pem_file(root_of(dir.path())).unwrap();
    assert_eq!(chain[1..], [root]);
    verify(&chain, &root_of(dir.path()), "localhost").unwrap();
}

#[tokio::test]
async fn a_handshake_is_refused_at_once_when_its_certificate_cannot_be_made() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "not a folder").unwrap();
    let running = Running::new(&config(&file, automate(&["localhost"]), json!({})));
    // Without the time limit of the handshake, which is far longer, this would never end.
    let refused = running.chain("localhost").await.unwrap_err();
    assert!(refused.to_string().contains("InternalError"), "{refused}");
}

/// Copies a folder with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(fs::copy(&from, &to).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_data_directory_of_caddy_is_taken_over() {
    let dir = TempDir::new().unwrap();
    let written = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/storage");
    copy(Path::new(written), dir.path());
    let names = [
        "localhost",
        "*.db.internal",
        "ed.internal",
        "rsa.internal",
        "new.internal",
    ];
    let running = Running::new(&config(dir.path(), automate(&names), json!({})));
    for (asked, stored) in [
        ("localhost", "localhost"),
        ("a.db.internal", "wildcard_.db.internal"),
        ("ed.internal", "ed.internal"),
        ("rsa.internal", "rsa.internal"),
    ] {
        let chain = running.chain(asked).await.unwrap();
        let file = format!("{written}/certificates/local/{stored}/{stored}.crt");
        let expected = CertificateDer::pem_file_iter(file).unwrap();
        assert_eq!(
            chain,
            expected.map(|der| der.unwrap()).collect::<Vec<_>>(),
            "{asked}"
        );
    }
    // The authority goes on as well.
    let chain = running.chain("new.internal").await.unwrap();
    verify(
        &chain,
        Path::new(&format!("{written}/pki/authorities/local/root.crt")),
        "new.internal",
    )
    .unwrap();
    let intermediate = format!("{written}/pki/authorities/local/intermediate.crt");
    assert_eq!(
        chain[1],
        CertificateDer::from_pem_file(intermediate).unwrap()
    );
}

/// Row D9 of docs/defects.md.
#[test]
fn loading_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let storage = dir.path().join("data");
    let config = config(&storage, automate(&["localhost"]), json!({}));
    let loaded = load(register, &config.to_string());
    assert!(
        loaded.app.is_ok() && loaded.warnings.is_empty(),
        "{:?}",
        loaded.warnings
    );
    drop(loaded);
    assert!(!storage.exists());
}

/// What loading `config` warns about.
fn warnings(config: &Value) -> Vec<String> {
    let loaded = load(register, &config.to_string());
    assert!(loaded.app.is_ok());
    loaded
        .warnings
        .iter()
        .map(|warning| warning.render())
        .collect()
}

#[tokio::test]
async fn without_any_certificate_localhost_has_one_and_other_names_are_refused() {
    for tls in [
        json!({}),
        json!({"certificates": {}}),
        json!({"certificates": {"automate": [], "load_folders": []}}),
    ] {
        let dir = TempDir::new().unwrap();
        let mut config = config(dir.path(), tls, json!({}));
        let route = config["apps"]["layer4"]["servers"]["a"]["routes"][0].clone();
        config["apps"]["layer4"]["servers"]["b"] =
            json!({"listen": ["127.0.0.1:2"], "routes": [route]});
        let warnings = warnings(&config);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for (warning, server) in warnings.iter().zip(["a", "b"]) {
            assert!(
                warning.contains(
                    "no certificate is configured: only localhost has one, from the internal authority; \
                     set apps.tls.certificates"
                ) && warning.contains(&format!("/apps/layer4/servers/{server}/routes/0/handle/0\n")),
                "{warning}"
            );
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "loading writes nothing"
        );

        let running = Running::new(&config);
        let chain = running.chain("localhost").await.unwrap();
        verify(&chain, &root_of(dir.path()), "localhost").unwrap();
        for other in ["a.localhost", "example.com", "127.0.0.1"] {
            let refused = running.chain(other).await.unwrap_err();
            assert!(refused.to_string().contains("InternalError"), "{refused}");
        }
    }
}

#[tokio::test]
async fn the_certificate_of_localhost_is_made_by_the_policy_for_it() {
    let dir = TempDir::new().unwrap();
    let issuers = json!([{"module": "internal", "ca": "own"}]);
    let tls = json!({"automation": {"policies": [{"issuers": issuers}]}});
    let pki = json!({"certificate_authorities": {"own": {}}});
    let running = Running::new(&config(dir.path(), tls, pki));
    let chain = running.chain("localhost").await.unwrap();
    let root = dir.path().join("pki/authorities/own/root.crt");
    verify(&chain, &root, "localhost").unwrap();
}

#[tokio::test]
async fn localhost_is_for_handlers_only_and_only_where_nothing_is_configured() {
    let dir = TempDir::new().unwrap();
    let mut without_handler = config(dir.path(), json!({}), json!(null));
    without_handler["apps"]
        .as_object_mut()
        .unwrap()
        .remove("pki");
    without_handler["apps"]["layer4"]["servers"]["a"]["routes"] =
        json!([{"handle": [{"handler": "echo"}]}]);
    assert_eq!(warnings(&without_handler), [""; 0]);
    Running::new(&without_handler).stop().await;

    // A folder that happens to be empty is a mistake to be told, not an invitation.
    let folder = TempDir::new().unwrap();
    let empty = config(
        dir.path(),
        json!({"certificates": {"load_folders": [folder.path()]}}),
        json!(null),
    );
    let mut empty = empty;
    empty["apps"].as_object_mut().unwrap().remove("pki");
    let warnings = warnings(&empty);
    assert!(
        warnings.len() == 1 && warnings[0].contains("every handshake will fail"),
        "{warnings:?}"
    );
    let running = Running::new(&empty);
    assert!(running.chain("localhost").await.is_err());
    running.stop().await;
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Files of an authority of somebody else's.
struct Given {
    dir: TempDir,
}

impl Given {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let given = Self { dir };
        let root =
            CertifiedIssuer::self_signed(Self::params("Given Root"), KeyPair::generate().unwrap());
        let root = root.unwrap();
        let key = KeyPair::generate().unwrap();
        let intermediate = Self::params("Given Intermediate")
            .signed_by(&key, &root)
            .unwrap();
        for (name, text) in [
            ("root.crt", root.pem()),
            ("root.key", root.key().serialize_pem()),
            ("intermediate.crt", intermediate.pem()),
            ("intermediate.key", key.serialize_pem()),
        ] {
            fs::write(given.path(name), text).unwrap();
        }
        given
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Given");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn pair(&self, name: &str) -> Value {
        let file = |extension: &str| self.path(&format!("{name}.{extension}"));
        json!({"certificate": file("crt"), "private_key": file("key")})
    }
}

#[tokio::test]
async fn an_authority_of_ones_own_signs() {
    let given = Given::new();
    for (authority, length) in [
        (json!({"root": given.pair("root")}), 2),
        (
            json!({"root": given.pair("root"), "intermediate": given.pair("intermediate")}),
            2,
        ),
        (
            json!({
                "root": {"certificate": given.path("root.crt"), "format": "pem_file"},
                "intermediate": given.pair("intermediate"),
            }),
            2,
        ),
    ] {
        let dir = TempDir::new().unwrap();
        let issuer = json!({"module": "internal", "ca": "corp"});
        let tls = by_policy(&["db.internal"], json!({"issuers": [issuer]}));
        let pki = json!({"certificate_authorities": {"corp": authority}});
        let running = Running::new(&config(dir.path(), tls, pki));
        let chain = running.chain("db.internal").await.unwrap();
        assert_eq!(chain.len(), length);
        verify(&chain, Path::new(&given.path("root.crt")), "db.internal").unwrap();
        assert!(
            dir.path()
                .join("certificates/corp/db.internal/db.internal.crt")
                .is_file()
        );
        assert!(!dir.path().join("pki/authorities/corp/root.crt").exists());
    }
}

#[tokio::test]
async fn authorities_have_the_names_and_the_storage_they_are_given() {
    let (dir, own) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let issuer = json!({"module": "internal", "ca": "Corp CA"});
    let tls = by_policy(&["db.internal"], json!({"issuers": [issuer]}));
    let pki = json!({"certificate_authorities": {"Corp CA": {
        "name": "Corp",
        "intermediate_common_name": "{pki.ca.name} signs",
        "intermediate_lifetime": "30d",
        "install_trust": false,
        "storage": {"module": "file_system", "root": own.path()},
    }}});
    let running = Running::new(&config(dir.path(), tls, pki));
    let chain = running.chain("db.internal").await.unwrap();
    let folder = own.path().join("pki/authorities/corp_ca");
    verify(&chain, &folder.join("root.crt"), "db.internal").unwrap();
    let subject = |file: &str| {
        let der = CertificateDer::from_pem_file(folder.join(file)).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        (
            certificate.subject().to_string(),
            certificate.validity().time_to_expiration().unwrap(),
        )
    };
    let (root, _) = subject("root.crt");
    assert!(
        root.starts_with("CN=Corp - 2") && root.ends_with(" ECC Root"),
        "{root}"
    );
    let (intermediate, left) = subject("intermediate.crt");
    assert_eq!(intermediate, "CN=Corp signs");
    assert!(left.whole_days() >= 29, "{left}");
    assert!(
        dir.path()
            .join("certificates/corp_ca/db.internal/db.internal.crt")
            .is_file()
    );
    assert!(!dir.path().join("pki").exists());
}

#[tokio::test]
async fn an_authority_that_is_made_has_a_name_of_its_own() {
    let dir = TempDir::new().unwrap();
    let running = Running::new(&config(dir.path(), automate(&["localhost"]), json!({})));
    running.chain("localhost").await.unwrap();
    let der = CertificateDer::from_pem_file(root_of(dir.path())).unwrap();
    let (_, root) = x509_parser::parse_x509_certificate(&der).unwrap();
    let subject = root.subject().to_string();
    assert!(
        subject.starts_with("CN=Conncept Local Authority - 2"),
        "{subject}"
    );
    let der =
        CertificateDer::from_pem_file(dir.path().join("pki/authorities/local/intermediate.crt"));
    let der = der.unwrap();
    let (_, intermediate) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(
        intermediate.subject().to_string(),
        "CN=Conncept Local Authority - ECC Intermediate"
    );
}

/// Row D10 of docs/defects.md.
#[tokio::test]
async fn a_policy_without_issuers_is_for_internal_names() {
    let dir = TempDir::new().unwrap();
    let policy = json!({"subjects": ["localhost", "www.example.com"], "key_type": "ed25519"});
    let running = Running::new(&config(
        dir.path(),
        by_policy(&["localhost"], policy.clone()),
        json!({}),
    ));
    let chain = running.chain("localhost").await.unwrap();
    verify(&chain, &root_of(dir.path()), "localhost").unwrap();
    let key = dir
        .path()
        .join("certificates/local/localhost/localhost.key");
    assert!(
        fs::read_to_string(key)
            .unwrap()
            .starts_with("-----BEGIN ED25519 PRIVATE KEY-----\n")
    );

    let public = config(
        dir.path(),
        by_policy(&["www.example.com"], policy),
        json!({}),
    );
    assert!(errors(&public).contains("which is not in this build yet"));
}

#[tokio::test]
async fn the_first_policy_for_a_name_counts() {
    let dir = TempDir::new().unwrap();
    let internal = json!([{"module": "internal"}]);
    let tls = json!({
        "certificates": {"automate": ["a.example.com", "b.example.com", "localhost"]},
        "automation": {"policies": [
            {"subjects": ["B.example.com"], "issuers": internal, "key_type": "p384"},
            {"subjects": ["*.example.com"], "issuers": internal, "key_type": "ed25519"},
        ]},
    });
    let running = Running::new(&config(dir.path(), tls, json!({})));
    // Public names too, if the policy says so; and what has no policy gets the issuer for internal names.
    let mut sizes = Vec::new();
    for (name, label) in [
        ("a.example.com", "ED25519 PRIVATE KEY"),
        ("localhost", "EC PRIVATE KEY"),
        ("b.example.com", "EC PRIVATE KEY"),
    ] {
        running.chain(name).await.unwrap();
        let key = dir
            .path()
            .join(format!("certificates/local/{name}/{name}.key"));
        let key = fs::read_to_string(key).unwrap();
        assert!(
            key.starts_with(&format!("-----BEGIN {label}-----\n")),
            "{name}"
        );
        sizes.push(key.len());
    }
    assert!(
        sizes[2] > sizes[1],
        "a P-384 key is longer than a P-256 one"
    );
}

fn errors(config: &Value) -> String {
    match load(register, &config.to_string()).app {
        Ok(_) => String::new(),
        Err(errors) => Errors::from(errors).to_string(),
    }
}

#[test]
fn what_is_wrong_with_automation_is_said_with_a_remedy() {
    let names = |names: Value| json!({"certificates": {"automate": names}});
    let policies = |policies: Value| json!({"automation": {"policies": policies}});
    let policy = |policy: Value| json!({"automation": {"policies": [policy]}});
    let issuer = |issuer: Value| json!({"automation": {"policies": [{"issuers": [issuer]}]}});
    for (tls, place, expected, remedy) in [
        (
            names(json!("localhost")),
            "/certificates/automate",
            "list",
            "",
        ),
        (names(json!([1])), "/certificates/automate/0", "string", ""),
        (
            names(json!(["a b"])),
            "/certificates/automate/0",
            "subject name does not qualify for certificate: a b",
            "write a name such as",
        ),
        (
            names(json!(["localhost", "www.example.com"])),
            "/certificates/automate/1",
            "www.example.com would get a certificate from a public authority, which is not in this build yet",
            "load a certificate for it with load_files",
        ),
        (
            json!({"certificates": {"automate": ["www.example.com"]}, "automation": {"policies": [{}]}}),
            "/certificates/automate/0",
            "which is not in this build yet",
            "\"issuers\": [{\"module\": \"internal\"}]",
        ),
        (
            json!({"automation": {"renew_interval": "x"}}),
            "/automation/renew_interval",
            "duration",
            "",
        ),
        (
            json!({"automation": {"renew_interval": "10ms"}}),
            "/automation/renew_interval",
            "10ms is too short",
            "write \"1s\"",
        ),
        (
            json!({"automation": {"renew_interval": "-1s"}}),
            "/automation/renew_interval",
            "-1s is negative",
            "write a duration",
        ),
        (
            json!({"automation": {"on_demand": {}}}),
            "/automation/on_demand",
            "on_demand is not in this build yet",
            "",
        ),
        (
            json!({"automation": {"ocsp_interval": "1h"}}),
            "/automation/ocsp_interval",
            "ocsp_interval is not in this build yet",
            "",
        ),
        (
            json!({"automation": {"renew": 1}}),
            "/automation/renew",
            "unknown field \"renew\"",
            "renew_interval",
        ),
        (json!({"automation": []}), "/automation", "object", ""),
        (
            policies(json!([{}, {}])),
            "/automation/policies/1",
            "automation policy 1 is the second policy that acts as default/catch-all, but will never be used",
            "remove it or policy 0",
        ),
        (
            policies(json!([{"subjects": ["a.b"]}, {"subjects": ["c", "A.b"]}])),
            "/automation/policies/1",
            "automation policy 1: cannot apply more than one automation policy to host: a.b (first match in policy 0)",
            "remove the name",
        ),
        (
            policy(json!({"subjects": [""]})),
            "/automation/policies/0/subjects/0",
            "\"\" is not a name",
            "write a name",
        ),
        (
            policy(json!({"subjects": "a"})),
            "/automation/policies/0/subjects",
            "list",
            "",
        ),
        (
            policy(json!({"key_type": "x"})),
            "/automation/policies/0/key_type",
            "unrecognized key type: x",
            "ed25519, p256, p384, rsa2048, rsa4096",
        ),
        (
            policy(json!({"key_type": 1})),
            "/automation/policies/0/key_type",
            "string",
            "",
        ),
        (
            policy(json!({"renewal_window_ratio": 1.5})),
            "/automation/policies/0/renewal_window_ratio",
            "1.5 is not a part of a lifetime",
            "between 0 and 1",
        ),
        (
            policy(json!({"renewal_window_ratio": -0.1})),
            "/automation/policies/0/renewal_window_ratio",
            "-0.1 is not a part",
            "between 0 and 1",
        ),
        (
            policy(json!({"renewal_window_ratio": "a"})),
            "/automation/policies/0/renewal_window_ratio",
            "number",
            "",
        ),
        (
            policy(json!({"on_demand": true})),
            "/automation/policies/0/on_demand",
            "on_demand is not in this build yet",
            "",
        ),
        (
            policy(json!({"get_certificate": []})),
            "/automation/policies/0/get_certificate",
            "get_certificate is not in this build yet",
            "",
        ),
        (
            policy(json!({"must_staple": true})),
            "/automation/policies/0/must_staple",
            "must_staple is not in this build yet",
            "",
        ),
        (
            policy(json!({"reuse_private_keys": true})),
            "/automation/policies/0/reuse_private_keys",
            "reuse_private_keys is not in this build yet",
            "",
        ),
        (
            policy(json!({"ocsp_overrides": {}})),
            "/automation/policies/0/ocsp_overrides",
            "ocsp_overrides is not in this build yet",
            "",
        ),
        (
            policy(json!({"storage": {"module": "redis"}})),
            "/automation/policies/0/storage/module",
            "unknown module: caddy.storage.redis",
            "file_system",
        ),
        (
            policy(json!({"issuer": {}})),
            "/automation/policies/0/issuer",
            "unknown field \"issuer\"",
            "issuers",
        ),
        (
            issuer(json!({"module": "acme", "email": "a@b.c"})),
            "/automation/policies/0/issuers/0/module",
            "the issuer acme is not in this build yet",
            "write \"internal\"",
        ),
        (
            issuer(json!({"module": "zerossl"})),
            "/automation/policies/0/issuers/0/module",
            "the issuer zerossl is not in this build yet",
            "load_files",
        ),
        (
            issuer(json!({"module": "intern"})),
            "/automation/policies/0/issuers/0/module",
            "unknown module: tls.issuance.intern",
            "did you mean \"internal\"?",
        ),
        (
            issuer(json!({})),
            "/automation/policies/0/issuers/0",
            "module name not specified with key 'module'",
            "internal",
        ),
        (
            issuer(json!({"module": "internal", "ca": "x"})),
            "/automation/policies/0/issuers/0/ca",
            "no certificate authority configured with id: x",
            "apps.pki",
        ),
        (
            issuer(json!({"module": "internal", "ca": 1})),
            "/automation/policies/0/issuers/0/ca",
            "string",
            "",
        ),
        (
            issuer(json!({"module": "internal", "lifetime": "1ms"})),
            "/automation/policies/0/issuers/0/lifetime",
            "1ms is too short",
            "12h",
        ),
        (
            issuer(json!({"module": "internal", "lifetime": "-1h"})),
            "/automation/policies/0/issuers/0/lifetime",
            "is negative",
            "write a duration",
        ),
        (
            issuer(json!({"module": "internal", "sign_with_root": "yes"})),
            "/automation/policies/0/issuers/0/sign_with_root",
            "true or false",
            "",
        ),
        (
            issuer(json!({"module": "internal", "key": 1})),
            "/automation/policies/0/issuers/0/key",
            "unknown field \"key\"",
            "sign_with_root",
        ),
    ] {
        let said = errors(&json!({"apps": {"tls": tls}}));
        for part in [&format!("/apps/tls{place}"), expected, remedy] {
            assert!(said.contains(part), "{tls}: {part:?} is not in {said}");
        }
    }
    let off = json!({"on_demand": false, "must_staple": false, "reuse_private_keys": false, "disable_ocsp_stapling": true});
    assert_eq!(errors(&json!({"apps": {"tls": policy(off)}})), "");
}

#[test]
fn what_is_wrong_with_authorities_is_said_with_a_remedy() {
    let given = Given::new();
    let dir = TempDir::new().unwrap();
    let long_ago = {
        let mut params = Given::params("Short");
        params.not_after = rcgen::date_time_ymd(1990, 1, 1);
        let key = KeyPair::generate().unwrap();
        fs::write(
            given.path("short.crt"),
            params.self_signed(&key).unwrap().pem(),
        )
        .unwrap();
        fs::write(given.path("short.key"), key.serialize_pem()).unwrap();
        given.pair("short")
    };
    for (authority, place, expected, remedy) in [
        (json!([]), "", "object", ""),
        (
            json!({"naem": 1}),
            "/naem",
            "unknown field \"naem\"",
            "name",
        ),
        (json!({"name": 1}), "/name", "string", ""),
        (
            json!({"intermediate_lifetime": "week"}),
            "/intermediate_lifetime",
            "duration",
            "",
        ),
        (
            json!({"intermediate_lifetime": "3600d"}),
            "/intermediate_lifetime",
            "intermediate certificate lifetime must be less than actual root certificate lifetime (",
            "shorter intermediate_lifetime",
        ),
        (
            json!({"root": long_ago}),
            "",
            "intermediate certificate lifetime must be less than actual root certificate lifetime (0s)",
            "replace the root",
        ),
        (
            json!({"maintenance_interval": "1ms"}),
            "/maintenance_interval",
            "1ms is too short",
            "write \"1s\"",
        ),
        (
            json!({"renewal_window_ratio": 2}),
            "/renewal_window_ratio",
            "2 is not a part of a lifetime",
            "0.20",
        ),
        (
            json!({"install_trust": "no"}),
            "/install_trust",
            "true or false",
            "",
        ),
        (
            json!({"root": {"certificate": "/none"}}),
            "/root/certificate",
            "reading /none: ",
            "",
        ),
        (json!({"root": {}}), "/root", "certificate", ""),
        (
            json!({"root": {"certificate": given.path("root.crt")}}),
            "/root",
            "the root has no private_key, so it cannot sign an intermediate",
            "give its private_key, or an intermediate",
        ),
        (
            json!({"root": {"certificate": given.path("root.crt"), "private_key": given.path("root.key"), "format": "der"}}),
            "/root/format",
            "unsupported format: der",
            "write \"pem_file\"",
        ),
        (
            json!({"root": {"certificate": given.path("root.crt"), "private_key": given.path("intermediate.key")}}),
            "/root/certificate",
            "private key does not match public key",
            "",
        ),
        (
            json!({"root": {"certificate": given.path("root.key"), "private_key": given.path("root.key")}}),
            "/root/certificate",
            "no certificate block found",
            "",
        ),
        (
            json!({"root": {"certificate": given.path("root.crt"), "private_key": given.path("root.crt")}}),
            "/root/private_key",
            "no private key block found",
            "",
        ),
        (
            json!({"intermediate": {"certificate": given.path("intermediate.crt")}}),
            "/intermediate/certificate",
            "the intermediate has no private_key",
            "give its private_key",
        ),
        (
            json!({"storage": {"module": "file_system", "dir": "/x"}}),
            "/storage/dir",
            "unknown field \"dir\"",
            "root",
        ),
    ] {
        let said = errors(&json!({
            "storage": {"module": "file_system", "root": dir.path()},
            "apps": {"pki": {"certificate_authorities": {"local": authority}}},
        }));
        let place = format!("/apps/pki/certificate_authorities/local{place}");
        for part in [&*place, expected, remedy] {
            assert!(
                said.contains(part),
                "{authority}: {part:?} is not in {said}"
            );
        }
    }
    for (ids, expected) in [
        (
            json!({"": {}}),
            "CA ID is required (use 'local' for the default CA)",
        ),
        (
            json!({"ü": {}}),
            "the CA ID \"ü\" gives no name for a folder",
        ),
        (json!({"a b": {}, "A_b": {}}), "has the same folder as"),
    ] {
        let said = errors(&json!({"apps": {"pki": {"certificate_authorities": ids}}}));
        assert!(said.contains(expected), "{said}");
    }
    let no_key = json!({
        "root": {"certificate": given.path("root.crt")}, "intermediate": given.pair("intermediate"),
    });
    let issuer = json!({"module": "internal", "sign_with_root": true});
    let said = errors(&json!({"apps": {
        "pki": {"certificate_authorities": {"local": no_key}},
        "tls": {"automation": {"policies": [{"issuers": [issuer]}]}},
    }}));
    assert!(
        said.contains("/apps/tls/automation/policies/0/issuers/0/sign_with_root"),
        "{said}"
    );
    assert!(
        said.contains("the root cannot sign: its private key is not given"),
        "{said}"
    );
}

#[test]
fn what_is_wrong_with_storage_is_said_even_if_nobody_uses_it() {
    for (storage, place, expected) in [
        (
            json!({"module": "none"}),
            "/storage/module",
            "unknown module: caddy.storage.none",
        ),
        (
            json!({"root": "/x"}),
            "/storage",
            "module name not specified with key 'module'",
        ),
        (
            json!({"module": "file_system", "root": 1}),
            "/storage/root",
            "string",
        ),
        (
            json!({"module": "file_system", "path": "/x"}),
            "/storage/path",
            "unknown field \"path\"",
        ),
    ] {
        let said = errors(&json!({"storage": storage}));
        assert!(said.contains(place) && said.contains(expected), "{said}");
    }
    assert_eq!(errors(&json!({"storage": {"module": "file_system"}})), "");
}

/// Row D3 of docs/defects.md.
#[test]
fn that_no_trust_store_is_touched_is_said_to_who_asks_for_it() {
    let dir = TempDir::new().unwrap();
    let warnings = |authority: Value| {
        let config = json!({
            "storage": {"module": "file_system", "root": dir.path()},
            "apps": {"pki": {"certificate_authorities": {"local": authority}}},
        });
        let warnings = load(register, &config.to_string()).warnings;
        warnings
            .iter()
            .map(|warning| warning.message().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(warnings(json!({})), [] as [&str; 0]);
    assert_eq!(warnings(json!({"install_trust": false})), [] as [&str; 0]);
    let said = warnings(json!({"install_trust": true}));
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("install_trust has no effect"), "{said:?}");
    assert!(
        said[0].contains("pki/authorities/local/root.crt"),
        "{said:?}"
    );
}
