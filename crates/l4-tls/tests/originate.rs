//! TLS towards upstreams: `upstreams[].tls` of `proxy`, against rustls as the upstream.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use l4_core::config::{ConfigError, Errors};
use l4_core::{Addr, Connection, EndReason, Fact as _, Io, Parsed, Record, Registry};
use l4_testkit::{Client, connection, load};
use l4_tls::ClientHello;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// An authority for servers and clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
struct Pair {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "leaf");
    params
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = params(&[]);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair {
            der: certificate.der().clone(),
            pem: certificate.pem(),
            key,
        }
    }

    fn server(&self, names: &[&str]) -> Pair {
        self.sign(params(names))
    }

    fn client(&self, name: &str) -> Pair {
        let mut params = params(&[name]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn pool(&self) -> Value {
        json!({"provider": "inline", "trusted_ca_certs": [base64(&self.0.pem())]})
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }
}

/// PEM without its first and last line.
fn base64(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}

fn self_signed(params: CertificateParams) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Pair {
        der: certificate.der().clone(),
        pem: certificate.pem(),
        key,
    }
}

impl Pair {
    fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    fn loaded(&self) -> Value {
        json!({"certificate": self.pem, "key": self.key_pem()})
    }
}

/// What an upstream saw of one connection.
#[derive(Debug)]
struct Seen {
    hello: ClientHello,
    /// The protocol agreed on, and the certificate shown.
    agreed: Result<(Option<Vec<u8>>, Option<CertificateDer<'static>>), String>,
    /// How reading ended.
    end: Result<Vec<u8>, String>,
}

impl Seen {
    fn alpn(&self) -> Vec<String> {
        let names = self.hello.alpn();
        names
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect()
    }
}

/// A TLS server that answers each connection with what it got, once the client has ended its stream.
struct Upstream {
    address: SocketAddr,
    seen: mpsc::Receiver<Seen>,
}

struct UpstreamSetup<'a> {
    pair: &'a Pair,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'static [&'static str],
    clients: Option<Arc<RootCertStore>>,
}

impl<'a> UpstreamSetup<'a> {
    fn new(pair: &'a Pair) -> Self {
        Self {
            pair,
            versions: rustls::ALL_VERSIONS,
            alpn: &[],
            clients: None,
        }
    }

    fn config(self) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(self.versions)
            .unwrap();
        let builder = match self.clients {
            Some(roots) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(roots, provider)
                    .build()
                    .unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        let key = PrivatePkcs8KeyDer::from(self.pair.key.serialize_der());
        let mut config = builder
            .with_single_cert(vec![self.pair.der.clone()], key.into())
            .unwrap();
        config.alpn_protocols = self
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }

    async fn start(self) -> Upstream {
        let config = self.config();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (report, seen) = mpsc::channel(64);
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (config, report) = (config.clone(), report.clone());
                tokio::spawn(async move {
                    let Some(hello) = peek(&socket).await else {
                        return;
                    };
                    let (agreed, end) = answer(socket, config).await;
                    report.send(Seen { hello, agreed, end }).await.unwrap();
                });
            }
        });
        Upstream { address, seen }
    }
}

/// The hello that a client has sent, which stays to be read.
async fn peek(socket: &TcpStream) -> Option<ClientHello> {
    let mut bytes = vec![0; 16 * 1024];
    loop {
        let n = socket.peek(&mut bytes).await.unwrap();
        match ClientHello::parse(&bytes[..n]) {
            Parsed::Done(hello) => return Some(hello),
            Parsed::More(_) if n > 0 => tokio::task::yield_now().await,
            _ => return None,
        }
    }
}

type Agreed = Result<(Option<Vec<u8>>, Option<CertificateDer<'static>>), String>;

async fn answer(
    socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    config: Arc<ServerConfig>,
) -> (Agreed, Result<Vec<u8>, String>) {
    let mut stream = match TlsAcceptor::from(config).accept(socket).await {
        Ok(stream) => stream,
        Err(error) => return (Err(error.to_string()), Ok(Vec::new())),
    };
    let session = stream.get_ref().1;
    let agreed = (
        session.alpn_protocol().map(<[u8]>::to_vec),
        session.peer_certificates().map(|chain| chain[0].clone()),
    );
    let mut got = Vec::new();
    let end = match stream.read_to_end(&mut got).await {
        Ok(_) => {
            stream.write_all(&got).await.unwrap();
            stream.shutdown().await.unwrap();
            Ok(got)
        }
        Err(error) => Err(error.kind().to_string()),
    };
    (Ok(agreed), end)
}

fn register(reg: &mut Registry) {
    l4_std::register(reg);
    l4_tls::register(reg);
    l4_proxy::register(reg);
}

fn proxy(address: impl ToString, tls: Value) -> Value {
    json!({"handler": "proxy", "upstreams": [{"dial": [address.to_string()], "tls": tls}]})
}

fn config(certificates: &[&Pair], handlers: Value) -> String {
    let loaded: Vec<Value> = certificates.iter().map(|pair| pair.loaded()).collect();
    json!({"apps": {
        "tls": {"certificates": {"load_pem": loaded}},
        "layer4": {"servers": {"test": {
            "listen": ["127.0.0.1:1"], "routes": [{"handle": handlers}],
        }}},
    }})
    .to_string()
}

/// A server under test.
struct Server(Arc<l4_core::engine::Server>);

impl Server {
    fn new(certificates: &[&Pair], handlers: Value) -> Self {
        let loaded = load(register, &config(certificates, handlers));
        let app = loaded
            .app
            .unwrap_or_else(|errors| panic!("{}", Errors::from(errors)));
        Self(app.listens[0].server.clone())
    }

    fn raw(&self) -> (Client, Arc<Record>) {
        let (conn, client) = connection(64 * 1024);
        let record = conn.record().clone();
        tokio::spawn(self.0.clone().serve(conn));
        (client, record)
    }

    /// Sends `bytes`, ends, and returns what came back.
    async fn ask(&self, bytes: &[u8]) -> (Vec<u8>, Option<EndReason>) {
        let (conn, mut client) = connection(64 * 1024);
        let record = conn.record().clone();
        let serving = tokio::spawn(self.0.clone().serve(conn));
        // One that is refused does not read.
        let _ = client.write_all(bytes).await;
        let _ = client.shutdown().await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        serving.await.unwrap();
        (answer, record.end_reason())
    }

    /// The same through TLS of the client's own.
    async fn ask_by_tls(&self, client: &Arc<ClientConfig>) -> Vec<u8> {
        let mut stream = handshake(client, "front.test", self.raw().0).await;
        finish(&mut stream).await
    }
}

async fn handshake<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    client: &Arc<ClientConfig>,
    name: &'static str,
    below: S,
) -> TlsStream<S> {
    let name = ServerName::try_from(name).unwrap();
    TlsConnector::from(client.clone())
        .connect(name, below)
        .await
        .unwrap()
}

async fn finish<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(
    stream: &mut TlsStream<S>,
) -> Vec<u8> {
    stream.write_all(b"x").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A client of the server under test.
struct ClientSetup {
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: &'static [&'static str],
    provider: CryptoProvider,
}

impl Default for ClientSetup {
    fn default() -> Self {
        Self {
            versions: rustls::ALL_VERSIONS,
            alpn: &[],
            provider: aws_lc_rs::default_provider(),
        }
    }
}

impl ClientSetup {
    fn build(self) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(self.provider))
            .with_protocol_versions(self.versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        config.alpn_protocols = self
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }
}

fn client(alpn: &'static [&'static str]) -> Arc<ClientConfig> {
    let setup = ClientSetup {
        alpn,
        ..ClientSetup::default()
    };
    setup.build()
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_clients_end_reaches_the_upstream_as_such() {
    let ours = Authority::new("Ours");
    let pair = ours.server(&["up.test"]);
    for versions in [TLS12, TLS13] {
        let setup = UpstreamSetup {
            versions,
            ..UpstreamSetup::new(&pair)
        };
        let mut upstream = setup.start().await;
        let tls = json!({"ca": ours.pool(), "server_name": "up.test"});
        let server = Server::new(&[], json!([proxy(upstream.address, tls)]));
        let sent: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
        let (conn, client) = connection(64 * 1024);
        let record = conn.record().clone();
        let serving = tokio::spawn(server.0.clone().serve(conn));
        let (mut from, mut to) = tokio::io::split(client);
        let mut back = Vec::new();
        let write = async {
            to.write_all(&sent).await.unwrap();
            to.shutdown().await.unwrap();
        };
        let (_, read) = tokio::join!(write, from.read_to_end(&mut back));
        read.unwrap();
        serving.await.unwrap();
        assert_eq!(back, sent);
        assert_eq!(record.end_reason(), Some(EndReason::Completed));
        let counted = (record.bytes_read(), record.bytes_written());
        assert_eq!(counted, (300_000, 300_000));
        let seen = upstream.seen.recv().await.unwrap();
        assert_eq!(seen.end.as_deref(), Ok(&*sent));
        assert_eq!(seen.hello.server_name(), Some("up.test"));
        assert!(seen.alpn().is_empty(), "{:?}", seen.alpn());
        assert_eq!(seen.hello.versions(), [0x0304, 0x0303]);
    }
}

#[tokio::test]
async fn the_upstream_must_show_a_valid_certificate_for_the_name() {
    let (ours, foreign) = (Authority::new("Ours"), Authority::new("Foreign"));
    let named = ours.server(&["up.test"]);
    let mut expired = params(&["up.test"]);
    expired.not_before = rcgen::date_time_ymd(2000, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let expired = ours.sign(expired);
    let mut addressed = params(&[]);
    addressed.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
    let addressed = ours.sign(addressed);
    // As `openssl req -x509` makes it.
    let authority_like = |names: &[&str]| {
        let mut params = params(names);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let own = self_signed(authority_like(&["up.test"]));
    let mut old = authority_like(&["up.test"]);
    old.not_before = rcgen::date_time_ymd(2000, 1, 1);
    old.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let old = self_signed(old);
    let pool = |pair: &Pair| json!({"provider": "inline", "trusted_ca_certs": [base64(&pair.pem)]});

    let (ca, name) = (ours.pool(), "up.test");
    for (what, pair, tls, expected) in [
        ("good", &named, json!({"ca": ca, "server_name": name}), true),
        (
            "case",
            &named,
            json!({"ca": ca, "server_name": "UP.test"}),
            true,
        ),
        (
            "other authority",
            &named,
            json!({"ca": foreign.pool(), "server_name": name}),
            false,
        ),
        (
            "one of two authorities",
            &named,
            json!({"server_name": name,
                "ca": {"provider": "combined", "sources": [foreign.pool(), ca]}}),
            true,
        ),
        (
            "system",
            &named,
            json!({"ca": {"provider": "system"}, "server_name": name}),
            false,
        ),
        (
            "other name",
            &named,
            json!({"ca": ca, "server_name": "other.test"}),
            false,
        ),
        (
            "no name, only the address dialled",
            &named,
            json!({"ca": ca}),
            false,
        ),
        (
            "expired",
            &expired,
            json!({"ca": ca, "server_name": name}),
            false,
        ),
        ("address", &addressed, json!({"ca": ca}), true),
        (
            "other address",
            &addressed,
            json!({"ca": ca, "server_name": "127.0.0.2"}),
            false,
        ),
        (
            "itself trusted",
            &own,
            json!({"ca": pool(&own), "server_name": name}),
            true,
        ),
        (
            "itself trusted, other name",
            &own,
            json!({"ca": pool(&own), "server_name": "o.test"}),
            false,
        ),
        (
            "itself trusted, expired",
            &old,
            json!({"ca": pool(&old), "server_name": name}),
            false,
        ),
        (
            "another is trusted",
            &own,
            json!({"ca": pool(&old), "server_name": name}),
            false,
        ),
        (
            "anybody",
            &expired,
            json!({"insecure_skip_verify": true}),
            true,
        ),
        (
            "deprecated",
            &named,
            json!({"root_ca_pool": [base64(&ours.0.pem())], "server_name": name}),
            true,
        ),
    ] {
        let upstream = UpstreamSetup::new(pair).start().await;
        let server = Server::new(&[], json!([proxy(upstream.address, tls)]));
        let (answer, end) = server.ask(b"x").await;
        assert_eq!(answer == b"x", expected, "{what}");
        let reason = if expected {
            EndReason::Completed
        } else {
            EndReason::DialFailed
        };
        assert_eq!(end, Some(reason), "{what}");
    }
}

#[tokio::test]
async fn the_name_may_come_from_the_client_and_an_address_is_not_asked_for() {
    let ours = Authority::new("Ours");
    let front = self_signed(params(&["*.test"]));
    let mut upstream = UpstreamSetup::new(&ours.server(&["front.test", "127.0.0.1"]))
        .start()
        .await;
    for (name, sni) in [
        ("{l4.tls.server_name}", Some("front.test")),
        ("{l4.vars.none}", None),
    ] {
        let tls = json!({"ca": ours.pool(), "server_name": name});
        let handlers = json!([{"handler": "tls"}, proxy(upstream.address, tls)]);
        let server = Server::new(&[&front], handlers);
        assert_eq!(server.ask_by_tls(&client(&[])).await, b"x");
        let seen = upstream.seen.recv().await.unwrap();
        assert_eq!(seen.hello.server_name(), sni);
    }
}

#[tokio::test]
async fn p4_nothing_of_one_client_reaches_the_next() {
    let front = self_signed(params(&["front.test"]));
    let mut upstream = UpstreamSetup::new(&front).start().await;
    let policies = json!([{"alpn": ["h2", "imap"]}]);
    let handlers = json!([
        {"handler": "tls", "connection_policies": policies},
        proxy(upstream.address, json!({"insecure_skip_verify": true, "curves": ["secp256r1"]})),
    ]);
    let server = Server::new(&[&front], handlers);
    let only = |versions, alpn| {
        let setup = ClientSetup {
            versions,
            alpn,
            ..ClientSetup::default()
        };
        setup.build()
    };
    for (client, alpn, versions) in [
        (only(TLS12, &["h2"]), &["h2"][..], &[0x0303][..]),
        (only(TLS13, &[]), &[], &[0x0304]),
        (
            only(rustls::ALL_VERSIONS, &["imap"]),
            &["imap"],
            &[0x0304, 0x0303],
        ),
        (only(TLS12, &[]), &[], &[0x0303]),
    ] {
        assert_eq!(server.ask_by_tls(&client).await, b"x");
        let seen = upstream.seen.recv().await.unwrap();
        assert_eq!(seen.alpn(), alpn);
        assert_eq!(seen.hello.versions(), versions);
        assert_eq!(seen.hello.groups(), [0x0017]);
    }
}

#[tokio::test]
async fn p4_clients_that_come_together_do_not_mix() {
    let front = self_signed(params(&["front.test"]));
    let mut upstream = UpstreamSetup::new(&front).start().await;
    let policies = json!([{"alpn": ["a", "b", "c"]}]);
    let handlers = json!([
        {"handler": "tls", "connection_policies": policies},
        proxy(upstream.address, json!({"insecure_skip_verify": true})),
    ]);
    let server = Arc::new(Server::new(&[&front], handlers));
    let mut asking = Vec::new();
    for alpn in [&["a"][..], &["b"], &["c"]].repeat(8) {
        let server = server.clone();
        asking.push(tokio::spawn(async move {
            server.ask_by_tls(&client(alpn)).await
        }));
    }
    for asked in asking {
        assert_eq!(asked.await.unwrap(), b"x");
    }
    let mut offered = Vec::new();
    for _ in 0..24 {
        offered.push(upstream.seen.recv().await.unwrap().alpn().concat());
    }
    offered.sort();
    assert_eq!(
        offered.concat(),
        "a".repeat(8) + &"b".repeat(8) + &"c".repeat(8)
    );
}

#[tokio::test]
async fn suites_and_groups_of_the_client_are_offered_and_no_session_is_resumed() {
    let front = self_signed(params(&["front.test"]));
    let mut upstream = UpstreamSetup::new(&front).start().await;
    let handlers = json!([
        {"handler": "tls", "connection_policies": [{"alpn": []}]},
        proxy(upstream.address, json!({"insecure_skip_verify": true})),
    ]);
    let server = Server::new(&[&front], handlers);
    let provider = CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::SECP384R1, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let setup = ClientSetup {
        alpn: &["x", "y"],
        provider,
        ..ClientSetup::default()
    };
    let client = setup.build();
    for _ in 0..2 {
        // The server has no ALPN: what the client offers is offered on.
        assert_eq!(server.ask_by_tls(&client).await, b"x");
        let seen = upstream.seen.recv().await.unwrap();
        assert_eq!(seen.alpn(), ["x", "y"]);
        // Behind them, the value that says that renegotiation is safe (RFC 5746).
        assert_eq!(seen.hello.cipher_suites(), [0x1303, 0xC02B, 0x00FF]);
        assert_eq!(seen.hello.groups(), [0x0018, 0x001D]);
    }
}

#[tokio::test]
async fn a_client_whose_tls_was_not_terminated_is_not_adopted_from() {
    let front = self_signed(params(&["front.test"]));
    let mut upstream = UpstreamSetup::new(&front).start().await;
    let routes = json!([{
        "match": [{"tls": {}}],
        "handle": [proxy(upstream.address, json!({"insecure_skip_verify": true}))],
    }]);
    let text = json!({"apps": {"layer4": {"servers": {"test": {
        "listen": ["127.0.0.1:1"], "routes": routes,
    }}}}});
    let loaded = load(register, &text.to_string());
    let server = Server(loaded.app.ok().unwrap().listens[0].server.clone());
    let hello = include_bytes!("../testdata/curl-h2.bin");
    assert_eq!(server.ask(hello).await.0, hello);
    let seen = upstream.seen.recv().await.unwrap();
    assert!(seen.alpn().is_empty());
    assert_eq!(seen.end.as_deref(), Ok(&hello[..]));
}

#[tokio::test]
async fn p24_of_tls_in_tls_the_innermost_is_adopted() {
    let front = self_signed(params(&["front.test", "inner.test"]));
    let mut upstream = UpstreamSetup::new(&front).start().await;
    let tls = |name: &str| json!({"handler": "tls", "connection_policies": [{"alpn": [name]}]});
    let handlers = json!([
        tls("outer"),
        tls("inner"),
        proxy(
            upstream.address,
            json!({"insecure_skip_verify": true, "server_name": "{l4.tls.server_name}"})
        ),
    ]);
    let server = Server::new(&[&front], handlers);
    let outer = handshake(&client(&["outer"]), "front.test", server.raw().0).await;
    let setup = ClientSetup {
        versions: TLS12,
        alpn: &["inner"],
        ..ClientSetup::default()
    };
    let mut inner = handshake(&setup.build(), "inner.test", outer).await;
    assert_eq!(finish(&mut inner).await, b"x");
    let seen = upstream.seen.recv().await.unwrap();
    assert_eq!(seen.alpn(), ["inner"]);
    assert_eq!(seen.hello.versions(), [0x0303]);
    assert_eq!(seen.hello.server_name(), Some("inner.test"));
}

#[tokio::test]
async fn who_we_are_is_shown_from_files() {
    let ours = Authority::new("Ours");
    let (pair, me) = (ours.server(&["up.test"]), ours.client("me.test"));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("me.pem"), &me.pem).unwrap();
    std::fs::write(path("me.key"), me.key_pem()).unwrap();
    for versions in [TLS12, TLS13] {
        let setup = UpstreamSetup {
            versions,
            clients: Some(ours.roots()),
            ..UpstreamSetup::new(&pair)
        };
        let mut upstream = setup.start().await;
        let tls = json!({"ca": ours.pool(), "server_name": "up.test",
            "client_certificate_file": path("me.pem"), "client_certificate_key_file": path("me.key")});
        let server = Server::new(&[], json!([proxy(upstream.address, tls)]));
        assert_eq!(server.ask(b"x").await.0, b"x");
        let seen = upstream.seen.recv().await.unwrap();
        assert_eq!(seen.agreed.unwrap().1, Some(me.der.clone()));

        let tls = json!({"ca": ours.pool(), "server_name": "up.test"});
        let server = Server::new(&[], json!([proxy(upstream.address, tls)]));
        assert_eq!(server.ask(b"x").await.0, b"");
        assert!(upstream.seen.recv().await.unwrap().agreed.is_err());
    }
}

#[tokio::test]
async fn who_we_are_is_picked_among_loaded_certificates_by_name_and_by_what_the_upstream_accepts() {
    let (ours, foreign) = (Authority::new("Ours"), Authority::new("Foreign"));
    let pair = ours.server(&["up.test"]);
    let (good, bad) = (ours.client("me.test"), foreign.client("me.test"));
    let wild = ours.client("*.wild.test");
    let setup = UpstreamSetup {
        clients: Some(ours.roots()),
        ..UpstreamSetup::new(&pair)
    };
    let mut upstream = setup.start().await;
    let tls = |name: &str| json!({"ca": ours.pool(), "server_name": "up.test", "client_certificate_automate": name});
    for (loaded, name, shown) in [
        (&[&bad, &good][..], "Me.test", Some(&good)),
        (&[&wild], "a.wild.test", Some(&wild)),
        (&[&bad], "me.test", None),
    ] {
        let server = Server::new(loaded, json!([proxy(upstream.address, tls(name))]));
        let (answer, end) = server.ask(b"x").await;
        let seen = upstream.seen.recv().await.unwrap();
        match shown {
            Some(shown) => {
                assert_eq!(answer, b"x");
                assert_eq!(seen.agreed.unwrap().1.as_ref(), Some(&shown.der));
            }
            None => assert_eq!(end, Some(EndReason::DialFailed), "{name}"),
        }
    }
}

#[tokio::test]
async fn p5_a_handshake_that_takes_too_long_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tls = json!({"insecure_skip_verify": true, "handshake_timeout": "50ms"});
    let server = Server::new(&[], json!([proxy(address, tls)]));
    let asked = tokio::spawn(async move { server.ask(b"x").await });
    let (mut silent, _) = listener.accept().await.unwrap();
    assert_eq!(asked.await.unwrap().1, Some(EndReason::DialFailed));
    let mut hello = Vec::new();
    // Its side of the connection is closed, too.
    silent.read_to_end(&mut hello).await.unwrap();
    assert!(matches!(ClientHello::parse(&hello), Parsed::Done(_)));
}

#[tokio::test]
async fn what_is_left_of_try_duration_limits_the_handshake_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut handler = proxy(
        address,
        json!({"insecure_skip_verify": true, "handshake_timeout": 0}),
    );
    handler["load_balancing"] = json!({"try_duration": "30ms", "try_interval": "10ms"});
    let server = Server::new(&[], json!([handler]));
    let asked = tokio::spawn(async move { server.ask(b"x").await });
    let _silent = listener.accept().await.unwrap();
    assert_eq!(asked.await.unwrap().1, Some(EndReason::DialFailed));
}

#[tokio::test]
async fn p5_excepted_ports_are_dialled_without_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.unwrap();
        socket.write_all(&got).await.unwrap();
    });
    let tls = json!({"insecure_skip_verify": true, "except_ports": [address.port().to_string()]});
    let server = Server::new(&[], json!([proxy(address, tls)]));
    assert_eq!(server.ask(b"plain").await.0, b"plain");
}

#[tokio::test]
async fn a_failed_handshake_is_a_failure_of_the_peer_and_another_upstream_is_tried() {
    let ours = Authority::new("Ours");
    let good = UpstreamSetup::new(&ours.server(&["up.test"])).start().await;
    let mut bad = UpstreamSetup::new(&self_signed(params(&["up.test"])))
        .start()
        .await;
    let tls = json!({"ca": ours.pool(), "server_name": "up.test"});
    let handlers = json!([{
        "handler": "proxy",
        "upstreams": [
            {"dial": [bad.address.to_string()], "tls": tls},
            {"dial": [good.address.to_string()], "tls": tls},
        ],
        "load_balancing": {"selection": {"policy": "first"}, "try_duration": "20s", "try_interval": "1ms"},
        "health_checks": {"passive": {"fail_duration": "1m"}},
    }]);
    let server = Server::new(&[], handlers);
    for _ in 0..2 {
        assert_eq!(server.ask(b"x").await.0, b"x");
    }
    assert!(bad.seen.recv().await.unwrap().agreed.is_err());
    assert!(
        bad.seen.try_recv().is_err(),
        "the second time it is known to be bad"
    );
}

/// Has one client handshake with `server` and fail behind it; how that ended.
async fn refused(
    server: &Server,
    config: &Arc<ClientConfig>,
    name: &'static str,
) -> Option<EndReason> {
    let (client, record) = server.raw();
    let mut stream = handshake(config, name, client).await;
    let _ = stream.write_all(b"x").await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    record.end_reason()
}

#[tokio::test]
async fn a_client_whose_offer_or_name_is_refused_does_not_take_the_upstream_from_others() {
    let ours = Authority::new("Ours");
    let front = self_signed(params(&["*.test"]));
    let pair = ours.server(&["front.test"]);
    let setup = || UpstreamSetup {
        versions: TLS13,
        ..UpstreamSetup::new(&pair)
    };
    let old = ClientSetup {
        versions: TLS12,
        ..ClientSetup::default()
    };
    let old = old.build();
    for (server_name, bad, asks_for) in [
        ("front.test", &old, "front.test"),
        ("{l4.tls.server_name}", &client(&[]), "other.test"),
    ] {
        let upstream = setup().start().await;
        let tls = json!({"ca": ours.pool(), "server_name": server_name});
        let mut proxy = proxy(upstream.address, tls);
        proxy["health_checks"] = json!({"passive": {"fail_duration": "1m"}});
        let server = Server::new(&[&front], json!([{"handler": "tls"}, proxy]));
        assert_eq!(
            refused(&server, bad, asks_for).await,
            Some(EndReason::DialFailed)
        );
        assert_eq!(server.ask_by_tls(&client(&[])).await, b"x", "{server_name}");
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_handshakes_off_is_out_whatever_the_client_offered() {
    let front = self_signed(params(&["front.test"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = proxy(listener.local_addr().unwrap(), json!({}));
    proxy["upstreams"][0]["tls"]["insecure_skip_verify"] = true.into();
    proxy["health_checks"] = json!({"passive": {"fail_duration": "1m"}});
    let server = Server::new(&[&front], json!([{"handler": "tls"}, proxy]));
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await.unwrap());
        }
    });
    for reason in [EndReason::DialFailed, EndReason::NoUpstream] {
        assert_eq!(
            refused(&server, &client(&[]), "front.test").await,
            Some(reason)
        );
    }
}

#[tokio::test]
async fn a_client_reset_does_not_look_like_a_good_end_to_the_upstream() {
    let pair = self_signed(params(&["up.test"]));
    let mut upstream = UpstreamSetup::new(&pair).start().await;
    let tls = json!({"insecure_skip_verify": true});
    let server = Server::new(&[], json!([proxy(upstream.address, tls)]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (socket, remote) = listener.accept().await.unwrap();
    let record = Arc::new(Record::new(Addr::Tcp(remote)));
    let conn = Connection::new(Io::Tcp(socket), record.clone(), None);
    let serving = tokio::spawn(server.0.clone().serve(conn));
    client.write_all(b"half of it").await.unwrap();
    while record.bytes_read() < 10 {
        tokio::task::yield_now().await;
    }
    client.set_zero_linger().unwrap();
    drop(client);
    serving.await.unwrap();
    assert_eq!(record.end_reason(), Some(EndReason::ClientReset));
    let seen = upstream.seen.recv().await.unwrap();
    // Cut off without a close_notify, or reset, if the kernel had something left that nobody had read.
    assert!(seen.end.is_err(), "{:?}", seen.end);
}

#[tokio::test]
async fn socket_files_take_tls_with_a_name() {
    let ours = Authority::new("Ours");
    let pair = ours.server(&["up.test"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("up.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let config = UpstreamSetup::new(&pair).config();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            answer(socket, config.clone()).await.1.unwrap();
        }
    });
    let address = format!("unix/{}", path.display());
    for tls in [
        json!({"ca": ours.pool(), "server_name": "up.test"}),
        json!({"insecure_skip_verify": true}),
    ] {
        let server = Server::new(&[], json!([proxy(&address, tls)]));
        assert_eq!(server.ask(b"x").await.0, b"x");
    }
}

#[tokio::test]
async fn an_upstream_address_that_turns_out_to_be_for_datagrams_fails() {
    let handlers = json!([
        {"handler": "vars", "to": "udp/127.0.0.1:9"},
        proxy("{l4.vars.to}", json!({"insecure_skip_verify": true})),
    ]);
    let (_, end) = Server::new(&[], handlers).ask(b"x").await;
    assert_eq!(end, Some(EndReason::DialFailed));
}

fn loads(address: &str, tls: Value) -> (String, String) {
    let loaded = load(register, &config(&[], json!([proxy(address, tls)])));
    let said = |list: &[ConfigError]| list.iter().map(ConfigError::render).collect::<String>();
    let errors = loaded
        .app
        .err()
        .map(|errors| Errors::from(errors).to_string());
    (errors.unwrap_or_default(), said(&loaded.warnings))
}

/// Row P5 of docs/defects.md.
#[test]
fn faulty_settings_are_refused_with_what_would_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (one, two) = (self_signed(params(&["a"])), self_signed(params(&["b"])));
    std::fs::write(path("one.pem"), &one.pem).unwrap();
    std::fs::write(path("one.key"), one.key_pem()).unwrap();
    std::fs::write(path("two.key"), two.key_pem()).unwrap();
    let files = |certificate: &str, key: &str| json!({"client_certificate_file": path(certificate), "client_certificate_key_file": path(key)});
    let pool = json!({"provider": "inline", "trusted_ca_certs": [base64(&one.pem)]});
    for (tls, parts) in [
        (
            json!({"ca": {"provider": "file", "pem_files": ["/none.pem"]}}),
            &["reading /none.pem"][..],
        ),
        (
            json!({"ca": {"provider": "file", "pem_files": [path("one.key")]}}),
            &["no certificate block"],
        ),
        (
            json!({"ca": {"provider": "inline", "trusted_ca_certs": ["*"]}}),
            &["parsing certificate at index 0"],
        ),
        (
            json!({"ca": {"provider": "inline", "trusted_ca_certs": ["AAAA"]}}),
            &["parsing CA certificate"],
        ),
        (
            json!({"ca": {"provider": "inline", "trusted_ca_certs": []}}),
            &["the trust pool is empty"],
        ),
        (
            json!({"ca": {"provider": "combined"}}),
            &["no sources specified for combined CA pool"],
        ),
        (
            json!({"ca": {"provider": "combined", "sources": [{"provider": "pki_root", "authority": ["local"]}]}}),
            &["pki_root CA pool requires that the application pki is configured"],
        ),
        (
            json!({"ca": {"provider": "storage"}}),
            &["no PEM keys specified"],
        ),
        (
            json!({"ca": {"provider": "lazy"}}),
            &["unknown module: tls.ca_pool.source.lazy"],
        ),
        (
            json!({"ca": {"provider": "system", "x": 1}}),
            &["unknown field \"x\""],
        ),
        (
            json!({"ca": {}}),
            &["module name not specified with key 'provider'"],
        ),
        (
            json!({"root_ca_pool": ["AAAA"], "ca": pool}),
            &["conflicting config for Root CA pool"],
        ),
        (
            json!({"root_ca_pem_files": ["/none.pem"], "ca": pool}),
            &["conflicting config for Root CA pool"],
        ),
        (
            json!({"root_ca_pem_files": ["/none.pem"]}),
            &["reading /none.pem"],
        ),
        (
            json!({"ca": pool, "client_certificate_file": path("one.pem")}),
            &["client_certificate_file specified without client_certificate_key_file"],
        ),
        (
            json!({"ca": pool, "client_certificate_key_file": path("one.key")}),
            &["client_certificate_key_file specified without client_certificate_file"],
        ),
        (
            files("one.pem", "two.key"),
            &[
                "loading client certificate key pair",
                "private key does not match public key",
                "client_certificate_key_file",
            ],
        ),
        (files("one.pem", "none"), &["reading "]),
        (
            json!({"client_certificate_automate": "me.test"}),
            &[
                "managing client certificate",
                "\"automate\" under apps.tls.certificates",
            ],
        ),
        (
            json!({"insecure_skip_verify": 1}),
            &["insecure_skip_verify"],
        ),
        (json!({"server_name": 1}), &["server_name"]),
        (json!({"handshake_timeout": "-1s"}), &["-1s is negative"]),
        (json!({"handshake_timeout": "1"}), &["handshake_timeout"]),
        (
            json!({"except_ports": ["http"]}),
            &["\"http\" is not a port", "\"5222\""],
        ),
        (json!({"except_ports": ["0"]}), &["\"0\" is not a port"]),
        (json!({"except_ports": [5222]}), &["except_ports"]),
        (
            json!({"renegotiation": "always"}),
            &[
                "invalid TLS renegotiation level: always",
                "never, once, freely",
            ],
        ),
        (
            json!({"curves": ["x25518"]}),
            &["unsupported curve: x25518", "x25519mlkem768"],
        ),
        (
            json!({"curves": ["secp521r1"]}),
            &["curves leaves no key exchange group"],
        ),
        (
            json!({"sever_name": "a"}),
            &["unknown field \"sever_name\"", "server_name"],
        ),
        (json!("on"), &["/tls"]),
    ] {
        let (errors, _) = loads("127.0.0.1:1", tls.clone());
        for part in parts {
            assert!(errors.contains(part), "{tls}: {part}: {errors}");
        }
    }
    for (address, tls, parts) in [
        (
            "udp/127.0.0.1:1",
            json!({"insecure_skip_verify": true}),
            &["TLS needs a stream", "leave out \"tls\""][..],
        ),
        (
            "udp/{l4.vars.a}:1",
            json!({"insecure_skip_verify": true}),
            &["TLS needs a stream"],
        ),
        (
            "unix//run/a.sock",
            json!({"ca": pool}),
            &[
                "no certificate can be for \"/run/a.sock\"",
                "set server_name",
            ],
        ),
    ] {
        let (errors, _) = loads(address, tls);
        for part in parts {
            assert!(errors.contains(part), "{address}: {part}: {errors}");
        }
    }
}

/// Row D7 of docs/defects.md.
#[test]
fn what_has_no_effect_is_warned_about() {
    let one = self_signed(params(&["a"]));
    let encoded = base64(&one.pem);
    let pool = json!({"provider": "inline", "trusted_ca_certs": [encoded]});
    for (tls, part) in [
        (
            json!({"ca": pool, "renegotiation": "never", "server_name": ""}),
            "",
        ),
        (
            json!({"ca": pool, "renegotiation": "once"}),
            "renegotiation is not possible",
        ),
        (
            json!({"ca": pool, "renegotiation": "freely"}),
            "renegotiation is not possible",
        ),
        (
            json!({"ca": pool, "curves": ["x25519", "secp521r1", "x25519"]}),
            "secp521r1 is never agreed on",
        ),
        (
            json!({"root_ca_pool": [encoded]}),
            "root_ca_pool is deprecated: write ca with the provider inline",
        ),
        (
            json!({"ca": pool, "insecure_skip_verify": true}),
            "insecure_skip_verify takes any certificate",
        ),
        (
            json!({"ca": pool, "server_name": "{l4.tls.sni}"}),
            "unknown placeholder {l4.tls.sni}",
        ),
        (json!(null), ""),
    ] {
        let (errors, warnings) = loads("127.0.0.1:1", tls.clone());
        assert_eq!(errors, "", "{tls}");
        assert!(warnings.contains(part), "{tls}: {warnings}");
        assert_eq!(warnings.is_empty(), part.is_empty(), "{tls}: {warnings}");
    }
}

#[tokio::test]
async fn a_limit_of_the_upstream_is_given_back_when_the_handshake_fails() {
    let pair = self_signed(params(&["up.test"]));
    let upstream = UpstreamSetup::new(&pair).start().await;
    let mut handler = proxy(upstream.address, json!({"ca": Authority::new("A").pool()}));
    handler["upstreams"][0]["max_connections"] = json!(1);
    let server = Server::new(&[], json!([handler]));
    for _ in 0..3 {
        let asked = tokio::time::timeout(Duration::from_secs(20), server.ask(b"x"));
        assert_eq!(asked.await.unwrap().1, Some(EndReason::DialFailed));
    }
}
