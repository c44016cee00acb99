//! Every namespace is open: a crate from outside enters one module in each, and a connection uses it.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use l4_core::prelude::*;
use l4_embed::Routes;
use l4_http::request_match::{Request, RequestMatch, RequestMatchers};
use l4_proxy::policy::{INLINE_KEY, Select, SelectionPolicies};
use l4_proxy::upstream::Upstream;
use l4_tls::{
    Certificate, CertificateLoaders, CertificateRequest, ClientHello, ClientVerifiers,
    HandshakeMatch, HandshakeMatchers, HandshakeScope, IssueError, Issued, Issuer, Issuers,
    LeafLoaders, TrustPool, TrustPools, VerifyClient,
};
use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// No settings that anybody looks at.
type Nothing = serde_json::Map<String, serde_json::Value>;

/// What was used, in the order of first use.
#[derive(Clone, Default)]
struct Used(Arc<(Mutex<Vec<&'static str>>, Notify)>);

impl Used {
    fn by(&self, name: &'static str) {
        let mut names = self.0.0.lock().unwrap();
        if !names.contains(&name) {
            names.push(name);
        }
        self.0.1.notify_waiters();
    }

    async fn wait_for(&self, expected: &[&str]) {
        loop {
            let changed = self.0.1.notified();
            if expected
                .iter()
                .all(|name| self.0.0.lock().unwrap().contains(name))
            {
                return;
            }
            changed.await;
        }
    }
}

/// A module of whatever namespace: says that it was used.
#[derive(Clone)]
struct Mine(Used);

impl Matcher for Mine {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        self.0.by("matcher");
        Verdict::prefix(view.bytes(), b"GET ")
    }
}

impl AsyncHandler for Mine {
    async fn handle(&self, conn: Connection, _: Rest<'_>) -> Result<Flow> {
        self.0.by("handler");
        Ok(Flow::Next(conn))
    }
}

impl RequestMatch for Mine {
    fn matches(&self, request: &mut Request<'_, '_>) -> bool {
        self.0.by("request matcher");
        !request.is_tls()
    }
}

impl Select for Mine {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        self.0.by("selection policy");
        upstreams.iter().position(|u| u.available(conn))
    }
}

impl Preamble for Mine {
    fn bytes(&self, _: &Connection) -> Vec<u8> {
        self.0.by("preamble");
        b"preamble ".to_vec()
    }
}

impl PeerTransport for Mine {
    fn wrap<'a>(
        &'a self,
        transport: Transport,
        _: Peer<'a>,
        _: &'a Connection,
    ) -> BoxFuture<'a, io::Result<Transport>> {
        self.0.by("peer transport");
        Box::pin(async { Ok(transport) })
    }
}

#[tokio::test]
async fn a_matcher_a_handler_a_request_matcher_a_policy_a_preamble_and_a_transport_from_outside() {
    let used = Used::default();
    let mine = Mine(used.clone());
    let mut reg = Registry::new();
    l4_http::register(&mut reg);
    l4_proxy::register(&mut reg);
    macro_rules! enter {
        ($add:ident, $kind:ty, $name:literal $(, $key:expr)?) => {{
            let mine = mine.clone();
            reg.$add::<$kind, Nothing>($name $(, $key)?, move |_, _| Ok(Box::new(mine.clone())));
        }};
    }
    enter!(add, Matchers, "mine");
    enter!(add_inline, Handlers, "mine", "handler");
    enter!(add, RequestMatchers, "mine");
    enter!(add_inline, SelectionPolicies, "mine", INLINE_KEY);
    // A preamble is named by a text, which a unit cannot be read from.
    let preamble = mine.clone();
    reg.add::<Preambles, String>("mine", move |_, _| Ok(Box::new(preamble.clone())));
    enter!(add, PeerTransports, "tls");

    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let routes = format!(
        r#"[{{"match": [{{"mine": {{}}, "http": [{{"mine": {{}}}}]}}], "handle": [{{"handler": "mine"}},
            {{"handler": "proxy", "proxy_protocol": "mine", "load_balancing": {{"selection": {{"policy": "mine"}}}},
              "upstreams": [{{"dial": ["{}"], "tls": {{}}}}]}}]}}]"#,
        upstream.local_addr().unwrap()
    );
    let routes = Routes::from_json(&reg, &routes).unwrap_or_else(|errors| panic!("{errors}"));
    let routed = routes.wrap(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let to = routed.local_addr().unwrap().socket().unwrap();
    let mut client = TcpStream::connect(to).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let (mut peer, _) = upstream.accept().await.unwrap();
    let mut seen = [0; 13];
    peer.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"preamble GET ");
    let all = [
        "matcher",
        "handler",
        "request matcher",
        "selection policy",
        "preamble",
        "peer transport",
    ];
    used.wait_for(&all).await;
}

impl HandshakeMatch for Mine {
    fn matches(&self, _: &ClientHello, _: &dyn HandshakeScope, _: &mut Vec<Capture>) -> bool {
        self.0.by("handshake matcher");
        true
    }
}

impl VerifyClient for Mine {
    fn verify(&self, _: &CertificateDer<'_>) -> Result<(), &'static str> {
        self.0.by("client verifier");
        Ok(())
    }
}

impl Issuer for Mine {
    fn key(&self) -> &str {
        "mine"
    }

    fn issue<'a>(&'a self, _: &'a CertificateRequest) -> BoxFuture<'a, Result<Issued, IssueError>> {
        self.0.by("issuer");
        Box::pin(async { Err("not today".into()) })
    }
}

impl std::fmt::Debug for Mine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mine")
    }
}

impl Lease for Mine {}

impl Storage for Mine {
    fn load(&self, _: &str) -> io::Result<Vec<u8>> {
        self.0.by("storage");
        Err(io::ErrorKind::NotFound.into())
    }

    fn store(&self, _: &str, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn delete(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn lock<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Lease>>> {
        Box::pin(async { Ok(Box::new(self.clone()) as _) })
    }

    fn describe(&self, key: &str) -> String {
        key.to_owned()
    }
}

/// Made once for all who ask for it.
struct Shared(AtomicUsize);

impl AppModule for Shared {
    const NAME: &'static str = "shared";
    type Config = Nothing;

    fn provision(_: Nothing, _: &mut Provision<'_>) -> Result<Self, Rejected> {
        Ok(Self(AtomicUsize::new(0)))
    }
}

#[tokio::test]
async fn everything_that_tls_is_made_of_from_outside() {
    let used = Used::default();
    let mine = Mine(used.clone());
    let server = generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
    let client = generate_simple_self_signed(vec!["client.example".to_owned()]).unwrap();
    let shown: CertificateDer<'static> = client.cert.der().clone();
    let mut reg = Registry::new();
    l4_tls::register(&mut reg);
    reg.app::<Shared>();

    let m = mine.clone();
    reg.add::<HandshakeMatchers, Nothing>("mine", move |_, cx| {
        let before = cx.app::<Shared>()?.0.fetch_add(1, Ordering::Relaxed);
        // One of the matcher `tls`, one of the connection policy: both have the same application.
        if before == 1 {
            m.0.by("app");
        }
        Ok(Box::new(m.clone()))
    });
    let m = mine.clone();
    reg.add_inline::<ClientVerifiers, Nothing>("mine", "verifier", move |_, _| {
        Ok(Box::new(m.clone()))
    });
    let m = mine.clone();
    reg.add_inline::<Issuers, Nothing>("mine", "module", move |_, _| Ok(Box::new(m.clone())));
    let m = mine.clone();
    reg.add_inline::<Storages, Nothing>("mine", "module", move |_, _| Ok(Box::new(m.clone())));
    let (m, pool) = (used.clone(), shown.clone());
    reg.add_inline::<TrustPools, Nothing>("mine", "provider", move |_, _| {
        m.by("trust pool");
        Ok(Box::new(TrustPool::from(vec![pool.clone()])))
    });
    let (m, leaf) = (used.clone(), shown.clone());
    reg.add_inline::<LeafLoaders, Nothing>("mine", "loader", move |_, _| {
        m.by("leaf loader");
        Ok(Box::new(vec![leaf.clone()]))
    });
    let (m, pem, key) = (
        used.clone(),
        server.cert.pem(),
        server.signing_key.serialize_pem(),
    );
    reg.add::<CertificateLoaders, Nothing>("mine", move |_, cx| {
        m.by("certificate loader");
        let loaded = Certificate::load(pem.as_bytes(), key.as_bytes(), Vec::new());
        let loaded = loaded.map_err(|error| cx.reject(cx.node(), error.to_string()))?;
        Ok(Box::new(vec![loaded]))
    });
    assert_eq!(reg.conflicts(), &[] as &[String]);

    let routes = r#"{
        "storage": {"module": "mine"},
        "apps": {"shared": {}, "tls": {
            "certificates": {"mine": {}, "automate": ["b.example"]},
            "automation": {"policies": [{"issuers": [{"module": "mine"}]}]}
        }},
        "routes": [{
            "match": [{"tls": {"mine": {}}}],
            "handle": [{"handler": "tls", "connection_policies": [{
                "match": {"mine": {}},
                "client_authentication": {
                    "ca": {"provider": "mine"},
                    "verifiers": [
                        {"verifier": "mine"},
                        {"verifier": "leaf", "leaf_certs_loaders": [{"loader": "mine"}]}
                    ]
                }
            }]}]
        }]
    }"#;
    let wrong = routes.replace(
        r#""certificates": {"mine": {}"#,
        r#""certificates": {"yours": {}"#,
    );
    let refused = Routes::from_json(&reg, &wrong).err().unwrap().to_string();
    assert!(
        refused.contains("/apps/tls/certificates/yours") && refused.contains("load_files"),
        "{refused}"
    );
    let routes = Routes::from_json(&reg, routes).unwrap_or_else(|errors| panic!("{errors}"));
    let mut routed = routes.wrap(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let to = routed.local_addr().unwrap().socket().unwrap();

    let connector = connector(&server, client);
    let question = tokio::spawn(async move {
        let name = "a.example".try_into().unwrap();
        let raw = TcpStream::connect(to).await.unwrap();
        let mut stream = connector.connect(name, raw).await.unwrap();
        stream.write_all(b"question").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let (mut stream, _) = routed.accept().await.unwrap();
    assert_eq!(
        stream.tls().unwrap().client_certificate.as_deref(),
        Some(&*shown)
    );
    let mut asked = [0; 8];
    stream.read_exact(&mut asked).await.unwrap();
    assert_eq!(&asked, b"question");
    question.await.unwrap();
    let all = [
        "app",
        "handshake matcher",
        "client verifier",
        "trust pool",
        "leaf loader",
        "certificate loader",
        "issuer",
        "storage",
    ];
    used.wait_for(&all).await;
}

fn connector(
    server: &CertifiedKey<KeyPair>,
    client: CertifiedKey<KeyPair>,
) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(server.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(client.signing_key.serialize_der());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![client.cert.der().clone()], key.into())
        .unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}
