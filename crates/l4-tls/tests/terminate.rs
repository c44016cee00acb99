//! The handler `tls` and the application `tls`, against rustls as the client.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use l4_core::prelude::*;
use l4_core::{Addr, Io, Record, Registry};
use l4_testkit::{Client, connection, load, session};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme,
    SupportedCipherSuite,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A certificate in PEM with its key.
struct Pair {
    certificate: String,
    key: String,
    der: CertificateDer<'static>,
    key_der: Vec<u8>,
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
}

fn self_signed(params: CertificateParams) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Pair {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        der: certificate.der().clone(),
        key_der: key.serialize_der(),
    }
}

fn pair(names: &[&str]) -> Pair {
    self_signed(params(names))
}

impl Pair {
    fn pem(&self) -> Value {
        json!({"certificate": self.certificate, "key": self.key})
    }

    fn client_auth(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivatePkcs8KeyDer::from(self.key_der.clone());
        (vec![self.der.clone()], key.into())
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = params(&[]);
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn client(&self, name: &str) -> Pair {
        let mut params = params(&["client.example"]);
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Org, Inc");
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(1234_u64.to_be_bytes().to_vec().into());
        params
            .extended_key_usages
            .push(rcgen::ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
            key_der: key.serialize_der(),
        }
    }

    /// PEM without its first and last line.
    fn base64(&self) -> String {
        let pem = self.0.pem();
        pem.lines().filter(|line| !line.starts_with('-')).collect()
    }
}

fn register(reg: &mut Registry) {
    l4_std::register(reg);
    l4_tls::register(reg);
}

fn config(certificates: &[&Pair], handlers: Value) -> String {
    let loaded: Vec<Value> = certificates.iter().map(|pair| pair.pem()).collect();
    json!({"apps": {
        "tls": {"certificates": {"load_pem": loaded}},
        "layer4": {"servers": {"test": {
            "listen": ["127.0.0.1:1"], "routes": [{"handle": handlers}],
        }}},
    }})
    .to_string()
}

/// One server, to which any number of clients connect.
struct Server(Arc<l4_core::engine::Server>);

impl Server {
    fn new(text: &str) -> Self {
        let loaded = load(register, text);
        let app = loaded
            .app
            .unwrap_or_else(|errors| panic!("{}", l4_core::config::Errors::from(errors)));
        Self(app.listens[0].server.clone())
    }

    /// Terminates with `certificates` by `policies` and echoes.
    fn echo(certificates: &[&Pair], policies: Value) -> Self {
        Self::new(&config(
            certificates,
            json!([{"handler": "tls", "connection_policies": policies}, {"handler": "echo"}]),
        ))
    }

    /// Answers with what placeholders stand for after termination.
    fn tells(certificates: &[&Pair], policies: Value, text: &str) -> Self {
        Self::new(&config(
            certificates,
            json!([
                {"handler": "tls", "connection_policies": policies},
                {"handler": "vars", "told": text},
                {"handler": "respond", "body": "{l4.vars.told}"},
            ]),
        ))
    }

    fn raw(&self) -> Client {
        let (conn, client) = connection(64 * 1024);
        tokio::spawn(self.0.clone().serve(conn));
        client
    }

    async fn connect(
        &self,
        client: &Arc<ClientConfig>,
        name: &str,
    ) -> std::io::Result<TlsStream<Client>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(client.clone())
            .connect(name, self.raw())
            .await
    }

    /// Connects and returns all that the server says.
    async fn told(&self, client: &Arc<ClientConfig>, name: &str) -> std::io::Result<String> {
        let mut stream = self.connect(client, name).await?;
        let mut told = String::new();
        stream.read_to_string(&mut told).await?;
        Ok(told)
    }
}

/// Accepts any certificate and remembers it.
#[derive(Debug, Default)]
struct Remember(Mutex<Option<CertificateDer<'static>>>);

impl ServerCertVerifier for Remember {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.0.lock().unwrap() = Some(leaf.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

struct Setup {
    versions: &'static [&'static rustls::SupportedProtocolVersion],
    alpn: &'static [&'static str],
    sni: bool,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Best first.
    suites: &'static [SupportedCipherSuite],
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            versions: rustls::ALL_VERSIONS,
            alpn: &[],
            sni: true,
            identity: None,
            suites: aws_lc_rs::DEFAULT_CIPHER_SUITES,
        }
    }
}

impl Setup {
    fn build(self) -> (Arc<ClientConfig>, Arc<Remember>) {
        let seen = Arc::new(Remember::default());
        let provider = CryptoProvider {
            cipher_suites: self.suites.to_vec(),
            ..aws_lc_rs::default_provider()
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(seen.clone());
        let mut config = match self.identity {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        config.enable_sni = self.sni;
        (Arc::new(config), seen)
    }
}

fn client() -> Arc<ClientConfig> {
    Setup::default().build().0
}

fn alpn(names: &'static [&'static str]) -> Arc<ClientConfig> {
    let setup = Setup {
        alpn: names,
        ..Setup::default()
    };
    setup.build().0
}

const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn only(versions: &'static [&'static rustls::SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let setup = Setup {
        versions,
        ..Setup::default()
    };
    setup.build().0
}

#[tokio::test]
async fn both_versions_carry_bytes_both_ways_and_end_with_close_notify() {
    let server = Server::echo(&[&pair(&["a.test"])], json!([]));
    for (versions, expected) in [
        (TLS12, ProtocolVersion::TLSv1_2),
        (TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let mut stream = server.connect(&only(versions), "a.test").await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
        let sent: Vec<u8> = (0..200_000_u32).map(|i| i as u8).collect();
        let (mut from, mut to) = tokio::io::split(&mut stream);
        let mut back = Vec::new();
        let write = async {
            to.write_all(&sent).await.unwrap();
            // Half-close: what is still on its way back must arrive.
            to.shutdown().await.unwrap();
        };
        // Without the server's close_notify this is an error.
        let (_, read) = tokio::join!(write, from.read_to_end(&mut back));
        read.unwrap();
        assert_eq!(back, sent);
    }
}

#[tokio::test]
async fn versions_outside_the_policy_are_refused() {
    let certificate = pair(&["a.test"]);
    for (policy, refused, taken) in [
        (json!([{"protocol_min": "tls1.3"}]), TLS12, TLS13),
        (json!([{"protocol_max": "tls1.2"}]), TLS13, TLS12),
    ] {
        let server = Server::echo(&[&certificate], policy);
        let error = server.connect(&only(refused), "a.test").await.unwrap_err();
        assert!(error.to_string().contains("ProtocolVersion"), "{error}");
        server.connect(&only(taken), "a.test").await.unwrap();
    }
}

/// Row L2 of docs/defects.md.
#[tokio::test]
async fn alpn_is_agreed_on_in_the_order_of_the_server() {
    let certificate = pair(&["a.test"]);
    let default = Server::echo(&[&certificate], json!([]));
    let imap = Server::echo(&[&certificate], json!([{"alpn": ["imap", "h2"]}]));
    let none = Server::echo(&[&certificate], json!([{"alpn": []}]));
    for (server, offered, expected) in [
        (&default, &["http/1.1", "h2"][..], Some("h2")),
        (&default, &["imap"], None),
        (&default, &[], None),
        (&imap, &["h2", "imap"], Some("imap")),
        (&imap, &["http/1.1"], None),
        (&none, &["h2"], None),
    ] {
        let stream = server.connect(&alpn(offered), "a.test").await;
        let stream = stream.unwrap_or_else(|error| panic!("{offered:?}: {error}"));
        let agreed = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(
            agreed.as_deref(),
            expected.map(str::as_bytes),
            "{offered:?}"
        );
    }
    let error = imap.connect(&alpn(&["xmpp-client"]), "a.test").await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("NoApplicationProtocol"), "{error}");
}

#[tokio::test]
async fn the_certificate_is_chosen_by_server_name() {
    let [exact, wildcard, deep, fallback, address] = [
        pair(&["a.test", "b.test"]),
        pair(&["*.test"]),
        pair(&["*.*.test"]),
        pair(&["fallback.example"]),
        self_signed({
            let mut params = params(&[]);
            params.subject_alt_names = vec![SanType::IpAddress("198.51.100.1".parse().unwrap())];
            params
        }),
    ];
    let all = [&exact, &wildcard, &deep, &fallback, &address];
    let policies = json!([{"fallback_sni": "Fallback.example"}]);
    let server = Server::echo(&all, policies);
    for (name, expected) in [
        ("a.test", &exact),
        ("B.TEST", &exact),
        ("c.test", &wildcard),
        ("x.y.test", &deep),
        ("other.example", &fallback),
    ] {
        let (client, seen) = Setup::default().build();
        server.connect(&client, name).await.unwrap();
        assert_eq!(
            seen.0.lock().unwrap().as_ref(),
            Some(&expected.der),
            "{name}"
        );
    }
    let without_name = || {
        let setup = Setup {
            sni: false,
            ..Setup::default()
        };
        setup.build()
    };
    let (client, seen) = without_name();
    server.connect(&client, "a.test").await.unwrap();
    assert_eq!(seen.0.lock().unwrap().as_ref(), Some(&address.der));

    let server = Server::echo(&[&wildcard, &exact], json!([{"default_sni": "b.test"}]));
    let (client, seen) = without_name();
    server.connect(&client, "a.test").await.unwrap();
    assert_eq!(seen.0.lock().unwrap().as_ref(), Some(&exact.der));
}

#[tokio::test]
async fn of_two_certificates_for_a_name_the_valid_and_then_the_selected_one_is_served() {
    let mut expired = params(&["a.test"]);
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    expired.not_before = rcgen::date_time_ymd(2000, 1, 1);
    expired.serial_number = Some(77_u64.to_be_bytes().to_vec().into());
    let (expired, valid) = (self_signed(expired), pair(&["a.test"]));
    for (policies, expected) in [
        (json!([]), &valid),
        (
            json!([{"certificate_selection": {"serial_number": ["77"]}}]),
            &expired,
        ),
    ] {
        let server = Server::echo(&[&expired, &valid], policies);
        let (client, seen) = Setup::default().build();
        server.connect(&client, "a.test").await.unwrap();
        assert_eq!(seen.0.lock().unwrap().as_ref(), Some(&expected.der));
    }
}

#[tokio::test]
async fn the_first_policy_that_matches_counts_and_without_one_the_client_is_refused() {
    let certificate = pair(&["*.test"]);
    let server = Server::echo(
        &[&certificate],
        json!([
            {"match": {"sni": ["bad.test"]}, "drop": true},
            {"match": {"sni": ["*.test"], "remote_ip": {"ranges": ["192.0.2.0/24"]}}, "alpn": ["one"]},
            {"match": {"sni": ["two.test"]}, "alpn": ["two"]},
        ]),
    );
    let stream = server
        .connect(&alpn(&["two", "one"]), "two.test")
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"one"[..]));
    for name in ["bad.test", "other.example"] {
        let error = server
            .connect(&client(), name)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("InternalError"), "{name}: {error}");
    }
    let nothing = Server::echo(&[], json!([]));
    let error = nothing
        .connect(&client(), "a.test")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("InternalError"), "{error}");
}

/// Row L3 of docs/defects.md.
#[tokio::test]
async fn the_first_policy_that_matches_counts_however_many_there_are() {
    let certificate = pair(&["*.test"]);
    for others in [0, 29, 31, 200] {
        // The name stands literally in the last policy only, behind two that match it otherwise.
        let mut policies = vec![
            json!({"match": {"sni": ["nobody.test"]}, "alpn": ["none"]}),
            json!({"match": {"sni": ["*.test"], "alpn": ["wildcard"]}, "alpn": ["wildcard"]}),
            json!({"match": {"alpn": ["any"]}, "alpn": ["any"]}),
        ];
        policies.extend((0..others).map(|i| json!({"match": {"sni": [format!("n{i}.test")]}})));
        policies.push(json!({"match": {"sni": ["a.test"]}, "alpn": ["exact"]}));
        let server = Server::echo(&[&certificate], json!(policies));
        for (offered, expected) in [
            (&["exact", "wildcard"][..], "wildcard"),
            (&["any", "exact"], "any"),
            (&["exact"], "exact"),
        ] {
            let stream = server.connect(&alpn(offered), "a.test").await.unwrap();
            assert_eq!(
                stream.get_ref().1.alpn_protocol(),
                Some(expected.as_bytes()),
                "{offered:?} with {others} more"
            );
        }
    }
}

#[tokio::test]
async fn a_datagram_session_is_refused_and_is_no_error_of_ours() {
    let server = Server::echo(&[&pair(&["a.test"])], json!([]));
    let (conn, peer) = session();
    let record = conn.record().clone();
    peer.send(b"a hello of DTLS, say");
    server.0.clone().serve(conn).await;
    assert_eq!(record.end_reason(), Some(EndReason::ClientError));
    assert!(peer.end().await.is_empty(), "nothing is answered");
}

#[tokio::test]
async fn what_is_not_tls_gets_an_alert() {
    let server = Server::echo(&[&pair(&["a.test"])], json!([]));
    for (bytes, alert) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], 10),
        (&[22, 3, 1, 0, 5, 2, 0, 0, 1, 0], 50),
    ] {
        let mut client = server.raw();
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [21, 3, 3, 0, 2, 2, alert]);
    }
}

/// Rows D-17 and L1 of docs/defects.md.
#[tokio::test(start_paused = true)]
async fn a_client_that_stays_silent_is_let_go() {
    let text = config(
        &[&pair(&["a.test"])],
        json!([{"handler": "tls", "handshake_timeout": "2s"}, {"handler": "echo"}]),
    );
    let server = Server::new(&text);
    for first in [&[][..], &[22, 3, 1, 2, 0, 1, 0, 1, 0xFC]] {
        let start = tokio::time::Instant::now();
        let (conn, mut client) = connection(1024);
        let record = conn.record().clone();
        client.write_all(first).await.unwrap();
        server.0.clone().serve(conn).await;
        assert_eq!(start.elapsed().as_secs(), 2);
        assert_eq!(record.end_reason(), Some(EndReason::HandshakeTimeout));
    }
}

#[tokio::test]
async fn placeholders_say_what_was_agreed_on() {
    let certificate = pair(&["a.test"]);
    let text = "{l4.tls.version} {l4.tls.cipher_suite} {l4.tls.proto} {l4.tls.server_name} {l4.tls.RESUMED} \
                {l4.tls.client.subject}";
    let server = Server::tells(&[&certificate], json!([{"alpn": ["one"]}]), text);
    let setup = Setup {
        versions: TLS12,
        alpn: &["one"],
        ..Setup::default()
    };
    let told = server.told(&setup.build().0, "a.test").await.unwrap();
    assert_eq!(
        told,
        "tls1.2 TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 one a.test false "
    );
}

/// Row D-21 of docs/defects.md.
#[tokio::test]
async fn l4_placeholders_say_what_was_agreed_on_though_a_matcher_read_the_hello_before() {
    let loaded = vec![pair(&["a.test"]).pem()];
    let told = |text: &str| json!([{"handler": "vars", "told": text}, {"handler": "respond", "body": "{l4.vars.told}"}]);
    let text = json!({"apps": {
        "tls": {"certificates": {"load_pem": loaded}},
        "layer4": {"servers": {"test": {"listen": ["127.0.0.1:1"], "routes": [
            {"match": [{"tls": {"sni": ["a.test"]}}], "handle": [
                {"handler": "vars", "before": "{l4.tls.version}"},
                {"handler": "tls", "connection_policies": [{"protocol_max": "tls1.2"}]},
            ]},
            {"handle": told("{l4.vars.before} {l4.tls.version} {l4.tls.ech} {l4.tls.proto_mutual}")},
        ]}}},
    }});
    let server = Server::new(&text.to_string());
    let said = server.told(&client(), "a.test").await.unwrap();
    assert_eq!(said, "tls1.3 tls1.2 false true");
}

#[tokio::test]
async fn l8_captures_of_a_policy_and_placeholders_in_it_work() {
    let loaded = vec![pair(&["*.test"]).pem()];
    let text = json!({"apps": {
        "tls": {"certificates": {"load_pem": loaded}},
        "layer4": {"servers": {"test": {"listen": ["127.0.0.1:1"], "routes": [{"handle": [
            {"handler": "vars", "wanted": "b.test"},
            {"handler": "tls", "connection_policies": [
                {"match": {"sni_regexp": {"name": "host", "pattern": "^(a+)\\.test$"}}, "alpn": ["a"]},
                {"match": {"sni": ["{l4.vars.wanted}"]}, "alpn": ["b"]},
            ]},
            {"handler": "vars", "told": "{tls.regexp.host.1} {l4.tls.proto}"},
            {"handler": "respond", "body": "{l4.vars.told}"},
        ]}]}}},
    }});
    let server = Server::new(&text.to_string());
    for (name, expected) in [("aaa.test", "aaa a"), ("b.test", " b")] {
        let said = server.told(&alpn(&["a", "b"]), name).await.unwrap();
        assert_eq!(said, expected, "{name}");
    }
    assert!(server.told(&client(), "c.test").await.is_err());
}

#[tokio::test]
async fn the_suite_is_ours_unless_the_client_prefers_chacha() {
    use aws_lc_rs::cipher_suite::{
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    static AES: &[SupportedCipherSuite] = &[
        TLS13_AES_256_GCM_SHA384,
        TLS13_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ];
    static CHACHA: &[SupportedCipherSuite] = &[
        TLS13_CHACHA20_POLY1305_SHA256,
        TLS13_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    ];
    static BOTH: &[SupportedCipherSuite] = &[
        TLS13_AES_256_GCM_SHA384,
        TLS13_AES_128_GCM_SHA256,
        TLS13_CHACHA20_POLY1305_SHA256,
    ];
    // A client that prefers AES gets it where it is fast.
    let fast = match cfg!(target_arch = "aarch64") {
        true => ["aes", "pmull"],
        false => ["aes", "pclmulqdq"],
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let features: Vec<_> = cpuinfo.split_whitespace().collect();
    let ours = match fast.iter().all(|feature| features.contains(feature)) {
        true => "TLS_AES_128_GCM_SHA256",
        false => "TLS_CHACHA20_POLY1305_SHA256",
    };
    let old = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    let old_chacha = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    let certificate = pair(&["a.test"]);
    let told = "{l4.tls.cipher_suite}";
    let default = Server::tells(&[&certificate], json!([]), told);
    // What somebody has written down for TLS 1.2 keeps its order.
    let chosen = json!([{"cipher_suites": [old, old_chacha]}]);
    let chosen = Server::tells(&[&certificate], chosen, told);
    for (server, versions, suites, expected) in [
        (&default, TLS13, AES, "TLS_AES_128_GCM_SHA256"),
        (&default, TLS13, BOTH, ours),
        (&default, TLS13, CHACHA, "TLS_CHACHA20_POLY1305_SHA256"),
        (&default, TLS12, &AES[2..], old_chacha),
        (&default, TLS12, &AES[3..], old),
        (&default, TLS12, CHACHA, old_chacha),
        (&chosen, TLS13, CHACHA, "TLS_CHACHA20_POLY1305_SHA256"),
        (&chosen, TLS12, &CHACHA[2..], old),
    ] {
        let setup = Setup {
            versions,
            suites,
            ..Setup::default()
        };
        let agreed = server.told(&setup.build().0, "a.test").await.unwrap();
        assert_eq!(agreed, expected);
    }
}

#[tokio::test]
async fn a_new_client_gets_two_tickets_and_one_that_comes_with_a_session_gets_one() {
    let server = Server::tells(&[&pair(&["a.test"])], json!([]), "{l4.tls.resumed}");
    let client = only(TLS13);
    for (resumed, tickets) in [("false", 2), ("true", 1), ("true", 1)] {
        let mut stream = server.connect(&client, "a.test").await.unwrap();
        let mut told = String::new();
        stream.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, resumed);
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), tickets);
    }
}

/// Row L12 of docs/defects.md.
#[tokio::test]
async fn sessions_are_resumed_unless_clients_authenticate() {
    let certificate = pair(&["a.test"]);
    let told = "{l4.tls.version} {l4.tls.resumed}";
    for (versions, version) in [(TLS12, "tls1.2"), (TLS13, "tls1.3")] {
        let server = Server::tells(&[&certificate], json!([]), told);
        let client = only(versions);
        for resumed in ["false", "true"] {
            let told = server.told(&client, "a.test").await.unwrap();
            assert_eq!(told, format!("{version} {resumed}"));
        }
        let policies = json!([{"client_authentication": {"mode": "request"}}]);
        let server = Server::tells(&[&certificate], policies, told);
        let client = only(versions);
        for _ in 0..2 {
            let told = server.told(&client, "a.test").await.unwrap();
            assert_eq!(told, format!("{version} false"));
        }
    }
}

#[tokio::test]
async fn l12_sessions_survive_a_reload_that_leaves_the_policy_as_it_is() {
    let certificate = pair(&["a.test"]);
    let policy = |alpn: &str| json!([{"match": {"sni": ["a.test"]}, "alpn": [alpn]}]);
    for versions in [TLS12, TLS13] {
        let client = only(versions);
        let old = Server::tells(&[&certificate], policy("a"), "old {l4.tls.resumed}");
        assert_eq!(old.told(&client, "a.test").await.unwrap(), "old false");
        let same = Server::tells(&[&certificate], policy("a"), "same {l4.tls.resumed}");
        drop(old);
        assert_eq!(same.told(&client, "a.test").await.unwrap(), "same true");
        let other = Server::tells(&[&certificate], policy("b"), "other {l4.tls.resumed}");
        assert_eq!(other.told(&client, "a.test").await.unwrap(), "other false");
    }
}

/// Answers whether the session was resumed, with these settings of the application `tls`.
fn resuming(settings: &Value) -> Server {
    let mut text: Value = serde_json::from_str(&config(
        &[&pair(&["a.test"])],
        json!([
            {"handler": "tls"},
            {"handler": "vars", "told": "{l4.tls.resumed}"},
            {"handler": "respond", "body": "{l4.vars.told}"},
        ]),
    ))
    .unwrap();
    for (name, value) in settings.as_object().unwrap() {
        text["apps"]["tls"][name] = value.clone();
    }
    Server::new(&text.to_string())
}

#[tokio::test]
async fn sessions_are_resumed_as_the_settings_of_tickets_and_cache_say() {
    for (settings, resumed) in [
        (json!({}), "true"),
        (json!({"session_cache_size": 0}), "true"),
        (
            json!({"session_tickets": {"max_keys": 1, "rotation_interval": "1h",
                "key_source": {"provider": "standard"}}}),
            "true",
        ),
        (
            json!({"session_tickets": {"disable_rotation": true}}),
            "true",
        ),
        (json!({"session_tickets": {"disabled": true}}), "false"),
        (
            json!({"session_tickets": {"disabled": true}, "session_cache_size": 10}),
            "true",
        ),
    ] {
        for versions in [TLS12, TLS13] {
            let server = resuming(&settings);
            let client = only(versions);
            let first = server.told(&client, "a.test").await.unwrap();
            assert_eq!(first, "false", "{settings}");
            let second = server.told(&client, "a.test").await.unwrap();
            assert_eq!(second, resumed, "{settings}");
        }
    }
}

#[tokio::test]
async fn the_session_cache_holds_as_many_as_configured() {
    // Each client keeps its own sessions; the server keeps those of the last few.
    let settings = json!({"session_tickets": {"disabled": true}, "session_cache_size": 4});
    let server = resuming(&settings);
    let clients: Vec<_> = (0..8).map(|_| only(TLS12)).collect();
    for client in &clients {
        assert_eq!(server.told(client, "a.test").await.unwrap(), "false");
    }
    let mut resumed = Vec::new();
    for client in &clients {
        resumed.push(server.told(client, "a.test").await.unwrap() == "true");
    }
    assert!(!resumed[0], "the oldest gave way");
    let larger = json!({"session_tickets": {"disabled": true}, "session_cache_size": 8});
    let server = resuming(&larger);
    for expected in ["false", "true"] {
        for client in &clients {
            assert_eq!(server.told(client, "a.test").await.unwrap(), expected);
        }
    }
}

#[test]
fn settings_of_sessions_that_cannot_be_kept_are_refused_where_they_are() {
    for (settings, expected) in [
        (
            json!({"session_tickets": {"key_source": {"provider": "distributed"}}}),
            "is no source of ticket keys",
        ),
        (
            json!({"session_tickets": {"rotation_interval": "0s"}}),
            "less than a second",
        ),
        (
            json!({"session_tickets": {"max_keys": 0}}),
            "0 is out of range",
        ),
        (json!({"session_tickets": {"max_keys": 65}}), "from 1 to 64"),
        (
            json!({"session_cache_size": 1_000_001}),
            "from 0 to 1000000",
        ),
        (json!({"session_tickets": {"rotate": true}}), "rotate"),
    ] {
        let text = json!({"apps": {"tls": settings, "layer4": {}}}).to_string();
        let errors = load(register, &text).app.err().expect("refused");
        let said = l4_core::config::Errors::from(errors).to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn l9_clients_authenticate_as_the_mode_says() {
    let certificate = pair(&["a.test"]);
    let (ours, foreign) = (Authority::new("Ours"), Authority::new("Foreign"));
    let (good, bad) = (ours.client("good"), foreign.client("bad"));
    let pool = json!({"provider": "inline", "trusted_ca_certs": [ours.base64()]});
    let both = json!({"provider": "combined", "sources": [
        pool, {"provider": "inline", "trusted_ca_certs": [foreign.base64()]},
    ]});
    let leaf = json!([{"verifier": "leaf", "leaf_certs_loaders": [
        {"loader": "pem", "certificates": [bad.certificate]},
    ]}]);
    // Which of no certificate, a good one, and one of another authority are let in.
    for (auth, expected) in [
        (json!({}), [true, true, true]),
        (json!({"mode": "request"}), [true, true, true]),
        (json!({"mode": "require"}), [false, true, true]),
        (
            json!({"mode": "verify_if_given", "ca": pool}),
            [true, true, false],
        ),
        (
            json!({"mode": "require_and_verify", "ca": pool}),
            [false, true, false],
        ),
        (json!({"ca": pool}), [false, true, false]),
        (json!({"ca": both}), [false, true, true]),
        (
            json!({"trusted_ca_certs": [ours.base64()]}),
            [false, true, false],
        ),
        (
            json!({"mode": "request", "verifiers": leaf}),
            [true, false, true],
        ),
        (
            json!({"mode": "require", "verifiers": leaf}),
            [false, false, true],
        ),
    ] {
        let server = Server::echo(&[&certificate], json!([{"client_authentication": auth}]));
        for versions in [TLS12, TLS13] {
            for (who, expected) in [None, Some(&good), Some(&bad)].into_iter().zip(expected) {
                let setup = Setup {
                    versions,
                    identity: who.map(Pair::client_auth),
                    ..Setup::default()
                };
                // In TLS 1.3 the client learns only by reading that it was refused.
                let taken = async {
                    let mut stream = server.connect(&setup.build().0, "a.test").await?;
                    stream.write_all(b"x").await?;
                    stream.read_u8().await
                };
                assert_eq!(taken.await.is_ok(), expected, "{auth} {versions:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_certificate_that_is_itself_trusted_is_let_in_while_it_is_valid() {
    // As `openssl req -x509` makes them: authorities by their own account.
    let own = |year: i32| {
        let mut params = params(&["me.test"]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        self_signed(params)
    };
    let (good, old, foreign) = (own(4000), own(2001), own(4000));
    let base64 = |pair: &Pair| -> String {
        let lines = pair.certificate.lines();
        lines.filter(|line| !line.starts_with('-')).collect()
    };
    let ca = json!({"provider": "inline", "trusted_ca_certs": [base64(&good), base64(&old)]});
    let policies = json!([{"client_authentication": {"ca": ca}}]);
    let server = Server::tells(
        &[&pair(&["a.test"])],
        policies,
        "{l4.tls.client.san.dns_names}",
    );
    for (who, expected) in [(&good, true), (&old, false), (&foreign, false)] {
        let setup = Setup {
            identity: Some(who.client_auth()),
            ..Setup::default()
        };
        let told = server.told(&setup.build().0, "a.test").await;
        assert_eq!(told.is_ok_and(|told| told == "[me.test]"), expected);
    }
}

#[tokio::test]
async fn the_certificate_of_a_client_is_readable() {
    let authority = Authority::new("Ours");
    let identity = authority.client("me").client_auth();
    let text = "{l4.tls.client.serial}|{l4.tls.client.subject}|{l4.tls.client.issuer.common_name}|\
                {l4.tls.client.san.dns_names}|{l4.tls.client.fingerprint}";
    let policies = json!([{"client_authentication": {
        "ca": {"provider": "inline", "trusted_ca_certs": [authority.base64()]},
    }}]);
    let server = Server::tells(&[&pair(&["a.test"])], policies, text);
    let setup = Setup {
        identity: Some(identity),
        ..Setup::default()
    };
    let told = server.told(&setup.build().0, "a.test").await.unwrap();
    let (told, fingerprint) = told.rsplit_once('|').unwrap();
    assert_eq!(told, "1234|CN=me,O=Org\\, Inc|Ours|[client.example]");
    assert_eq!(fingerprint.len(), 64);
}

/// Breaks the connection once the client has got something and said so.
struct Break;

impl HandlerModule for Break {
    const NAME: &'static str = "break";
    type Config = HashMap<String, String>;

    fn provision(_: Self::Config, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self)
    }
}

impl AsyncHandler for Break {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        conn.send(b"half an ans").await?;
        conn.flush().await?;
        conn.receive(&mut [0; 16]).await?;
        conn.into_transport().reset_on_close();
        Ok(Flow::Done)
    }
}

#[tokio::test]
async fn a_connection_that_is_broken_off_ends_with_a_reset_and_without_close_notify() {
    let local = pair(&["test.example"]);
    let loaded = load(
        |reg| {
            register(reg);
            reg.handler::<Break>();
        },
        &config(&[&local], json!([{"handler": "tls"}, {"handler": "break"}])),
    );
    let app = loaded.app.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
    let socket = socket.await.unwrap();
    let (accepted, remote) = listener.accept().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(remote)));
    let conn = Connection::new(Io::Tcp(accepted), record, None);
    tokio::spawn(app.listens[0].server.clone().serve(conn));
    let name = ServerName::try_from("test.example").unwrap();
    let connecting = TlsConnector::from(client()).connect(name, socket);
    let mut stream = connecting.await.unwrap();
    let mut half = [0; 11];
    stream.read_exact(&mut half).await.unwrap();
    assert_eq!(&half, b"half an ans");
    stream.write_all(b"more").await.unwrap();
    // After a close_notify it would be an end, and after a FIN without one an unexpected end.
    let error = stream.read(&mut half).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn l5_tls_inside_tls_is_told_apart() {
    let (outer, inner) = (pair(&["outer.test"]), pair(&["inner.test"]));
    let text = config(
        &[&outer, &inner],
        json!([
            {"handler": "tls"},
            {"handler": "tls"},
            {"handler": "vars", "told": "{l4.tls.server_name}"},
            {"handler": "respond", "body": "{l4.vars.told}"},
        ]),
    );
    let server = Server::new(&text);
    let stream = server.connect(&client(), "outer.test").await.unwrap();
    let name = ServerName::try_from("inner.test").unwrap();
    let connector = TlsConnector::from(client());
    let mut stream = connector.connect(name, stream).await.unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    assert_eq!(told, "inner.test");
}

#[test]
fn files_and_folders_are_loaded_and_what_is_wrong_with_them_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (one, two) = (pair(&["a.test"]), pair(&["b.test"]));
    std::fs::write(path("one.crt"), &one.certificate).unwrap();
    std::fs::write(path("one.key"), &one.key).unwrap();
    std::fs::write(path("two.key"), &two.key).unwrap();
    std::fs::create_dir(path("all")).unwrap();
    std::fs::write(path("all/two.PEM"), two.key.clone() + &two.certificate).unwrap();
    std::fs::create_dir(path("broken")).unwrap();
    std::fs::write(path("broken/b.pem"), &two.certificate).unwrap();

    let errors = |tls: Value| {
        let text = json!({"apps": {"tls": tls}}).to_string();
        match load(register, &text).app {
            Ok(_) => String::new(),
            Err(errors) => l4_core::config::Errors::from(errors).to_string(),
        }
    };
    let files = |certificate: &str, key: &str| {
        let file = json!({"certificate": path(certificate), "key": path(key)});
        errors(json!({"certificates": {"load_files": [file]}}))
    };
    assert_eq!(files("one.crt", "one.key"), "");
    assert_eq!(
        errors(json!({"certificates": {"load_folders": [path("all")]}})),
        ""
    );
    for (said, expected) in [
        (
            files("one.crt", "two.key"),
            "private key does not match public key",
        ),
        (files("one.key", "one.key"), "no certificate block found"),
        (files("one.crt", "one.crt"), "no private key block found"),
        (files("none", "one.key"), "reading "),
        (
            errors(json!({"certificates": {"load_folders": [path("broken")]}})),
            "b.pem: private key: no private key block found",
        ),
        (
            errors(json!({"certificates": {"load_files": [
                {"certificate": "a", "key": "b", "format": "der"},
            ]}})),
            "unrecognized certificate/key encoding format: der",
        ),
        (
            errors(json!({"certificate": {}})),
            "unknown field \"certificate\"",
        ),
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

/// Rows L7 and D6 of docs/defects.md.
#[test]
fn faulty_policies_are_refused() {
    for (policy, expected) in [
        (json!({"curves": ["x25518"]}), "unsupported curve: x25518"),
        (
            json!({"cipher_suites": ["TLS_RSA_WITH_AES_128_GCM_SHA256"]}),
            "unsupported cipher suite: TLS_RSA_WITH_AES_128_GCM_SHA256",
        ),
        (
            json!({"protocol_min": "tls1.1"}),
            "unsupported protocol version: tls1.1",
        ),
        (
            json!({"protocol_min": "tls1.3", "protocol_max": "tls1.2"}),
            "protocol min (tls1.3) cannot be greater than protocol max (tls1.2)",
        ),
        (
            json!({"client_authentication": {"mode": "always"}}),
            "client auth mode not recognized: always",
        ),
        (
            json!({"client_authentication": {
                "ca": {"provider": "inline", "trusted_ca_certs": []}, "trusted_ca_certs": ["AAAA"],
            }}),
            "conflicting config for client authentication trust CA",
        ),
        (
            json!({"client_authentication": {
                "ca": {"provider": "inline", "trusted_ca_certs": ["*"]},
            }}),
            "parsing certificate at index 0",
        ),
        (
            json!({"client_authentication": {"ca": {"provider": "http", "endpoints": ["a"]}}}),
            "the trust pool provider http is not in this build yet",
        ),
        (
            json!({"client_authentication": {"ca": {"provider": "combined", "sources": []}}}),
            "no sources specified for combined CA pool",
        ),
        (
            json!({"client_authentication": {"ca": {"provider": "inline", "trusted_ca_certs": []}}}),
            "the trust pool is empty",
        ),
        (
            json!({"handshake_context": {}}),
            "handshake_context is not in this build yet",
        ),
        (json!({"protocol": "tls1.2"}), "unknown field \"protocol\""),
    ] {
        let text = config(
            &[],
            json!([{"handler": "tls", "connection_policies": [policy]}]),
        );
        let Err(errors) = load(register, &text).app else {
            panic!("{policy} was accepted");
        };
        let said = l4_core::config::Errors::from(errors).to_string();
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn suites_that_are_never_agreed_on_are_accepted_with_a_warning() {
    let policy = json!({"cipher_suites": [
        "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    ]});
    let handlers = json!([{"handler": "tls", "connection_policies": [policy]}]);
    let loaded = load(register, &config(&[&pair(&["a.test"])], handlers));
    assert!(loaded.app.is_ok());
    let warnings: Vec<String> = loaded.warnings.iter().map(|w| w.render()).collect();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA is weak"));
}

#[test]
fn tls_in_front_of_a_proxy_without_alpn_is_warned_about() {
    let upstreams = json!([{"dial": ["127.0.0.1:1"]}]);
    let warnings = |tls: Value| {
        let handlers = json!([tls, {"handler": "proxy", "upstreams": upstreams}]);
        let register = |reg: &mut Registry| {
            register(reg);
            l4_proxy::register(reg);
        };
        let loaded = load(register, &config(&[&pair(&["a.test"])], handlers));
        assert!(loaded.app.is_ok());
        loaded
            .warnings
            .iter()
            .map(|w| w.render())
            .collect::<String>()
    };
    let said = warnings(json!({"handler": "tls"}));
    assert!(said.contains("without alpn"), "{said}");
    let policies = json!([{"alpn": ["http/1.1"]}]);
    let said = warnings(json!({"handler": "tls", "connection_policies": policies}));
    assert_eq!(said, "");
}
