//! The transport `tls` of `proxy`: TLS towards upstreams.
//!
//! The settings of a connection are made from the configuration, which never changes, and from what the client of that
//! connection offered, if its TLS was terminated here. Nothing of one connection is kept for another: neither what was
//! adopted nor a session to resume.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use l4_core::conn::TlsInfo;
use l4_core::prelude::*;
use l4_core::schema::InlineOf;
use l4_core::upstream::{Peer, PeerTransport, PeerTransports, Unfit};
use l4_core::{BoxFuture, Transport};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion, version,
};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio_rustls::TlsConnector;
use tracing::debug;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::ClientHello;
use crate::app::{TlsApp, read_file};
use crate::certs::{CertificateError as PairError, certified_key};
use crate::info::Offered;
use crate::peer_cert::{PoolVerifier, TrustAnybody};
use crate::placeholders::version_name;
use crate::policy::{GROUPS, groups, provider};
use crate::stream::Sliced;
use crate::trust_pool::{
    TrustPool, TrustPools, Trusted, base64_certificates, certificate_files, system_roots,
    trust_pool,
};

/// How long the handshake with an upstream may take, unless configured.
pub(crate) const DEFAULT_UPSTREAM_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// TLS on connections to an upstream; `{}` verifies its certificate against the authorities of the system.
///
/// ```json
/// {"ca": {"provider": "file", "pem_files": ["/etc/ssl/internal-ca.pem"]}, "server_name": "db.internal"}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OriginateConfig {
    /// The authorities that may have signed the upstream's certificate: a pool, named under `provider`. A certificate
    /// that is itself in the pool is taken, too. Default: those that the system trusts. Example:
    /// `{"provider": "file", "pem_files": ["/etc/ssl/ca.pem"]}`.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<TrustPools>>")]
    ca: Option<RawNode>,
    /// Deprecated: write `ca` with the provider `inline`. Default: none.
    #[serde(default)]
    root_ca_pool: Option<Vec<At<String>>>,
    /// Deprecated: write `ca` with the provider `file`. Default: none.
    #[serde(default)]
    root_ca_pem_files: Option<Vec<At<String>>>,
    /// The file of our certificate chain in PEM, leaf first, for upstreams that ask for one, such as
    /// `"/etc/ssl/proxy.pem"`. Read once, at load. Default: none is shown.
    #[serde(default)]
    client_certificate_file: Option<At<String>>,
    /// The file of the key that belongs to it, in PEM, not encrypted, such as `"/etc/ssl/proxy.key"`. Default: none.
    #[serde(default)]
    client_certificate_key_file: Option<At<String>>,
    /// Instead of files: a name. Of the certificates that the application `tls` loads or makes (`automate`) for this
    /// name, one that the upstream accepts is shown. Default: none. Example: `"proxy.example.com"`.
    #[serde(default)]
    client_certificate_automate: Option<At<String>>,
    /// Takes any certificate of the upstream: whoever is in between can read and change everything. Default: `false`.
    #[serde(default)]
    insecure_skip_verify: Option<bool>,
    /// The name that is asked for and that the certificate must be for, such as `"db.internal"` or
    /// `"{l4.tls.server_name}"`. Takes placeholders, per connection. An IP
    /// address is verified but not asked for. A socket file needs one. Default: the host that is dialled.
    #[serde(default)]
    server_name: Option<At<String>>,
    /// How long the handshake may take. 0 is no limit. Default: `"10s"`.
    #[serde(default)]
    handshake_timeout: Option<At<GoDuration>>,
    /// Ports that are dialled without TLS, such as `["5222"]`. Default: none.
    #[serde(default)]
    except_ports: Option<Vec<At<String>>>,
    /// Whether the upstream may ask for a new handshake in TLS 1.2: `"never"`; `"once"` and `"freely"` are
    /// accepted with a warning and have no effect. Default: `"never"`.
    #[serde(default)]
    #[schemars(extend("enum" = ["never", "once", "freely", ""]))]
    renegotiation: Option<At<String>>,
    /// Key exchange groups, best first: `x25519mlkem768`, `x25519`, `secp256r1`, `secp384r1`. Default: those that the
    /// client offered if its TLS was ended here, else the first three.
    #[serde(default)]
    curves: Option<Vec<At<String>>>,
}

/// The transport `tls` of `proxy`.
pub(crate) struct OriginateTls {
    verifier: Arc<dyn ServerCertVerifier>,
    /// What it verifies with; `None` if it verifies nothing, so that not even the name matters to it.
    trusted: Option<Arc<Trusted<Arc<WebPkiServerVerifier>>>>,
    identity: Identity,
    server_name: Option<Template>,
    timeout: Option<Duration>,
    except_ports: Vec<u16>,
    groups: Option<Vec<&'static dyn SupportedKxGroup>>,
}

/// What is shown to an upstream that asks who we are.
enum Identity {
    None,
    Fixed(Arc<dyn ResolvesClientCert>),
    /// Looked for in each handshake.
    Named(Arc<TlsApp>, Box<str>),
}

pub(crate) fn register(reg: &mut Registry) {
    reg.add::<PeerTransports, OriginateConfig>("tls", |config, cx| {
        Ok(Box::new(OriginateTls::provision(config, cx)?))
    });
}

impl OriginateTls {
    fn provision(config: OriginateConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let insecure = config.insecure_skip_verify.unwrap_or(false);
        let verifier = verifier(
            config.ca,
            config.root_ca_pool,
            config.root_ca_pem_files,
            insecure,
            cx,
        );
        let files = (
            config.client_certificate_file,
            config.client_certificate_key_file,
        );
        let identity = Identity::provision(files, config.client_certificate_automate, cx);
        let server_name = config
            .server_name
            .filter(|name| !name.is_empty())
            .map(|name| cx.template(&name))
            .transpose();
        let timeout = cx.time_limit(config.handshake_timeout, DEFAULT_UPSTREAM_HANDSHAKE_TIMEOUT);
        let except_ports = cx.all(
            config.except_ports.unwrap_or_default(),
            |cx, port| match port.parse::<u16>() {
                Ok(number @ 1..) => Ok(number),
                _ => Err(cx.reject_help(
                    port.node(),
                    format!("{:?} is not a port", *port),
                    "write a number from 1 to 65535 as a string, such as \"5222\"",
                )),
            },
        );
        let renegotiation = renegotiation(config.renegotiation, cx);
        let groups = match config.curves.filter(|names| !names.is_empty()) {
            Some(names) => groups(Some(names), cx).map(Some),
            None => Ok(None),
        };
        renegotiation?;
        let (verifier, trusted) = verifier?;
        Ok(Self {
            verifier,
            trusted,
            identity: identity?,
            server_name: server_name?,
            timeout: timeout?,
            except_ports: except_ports?,
            groups: groups?,
        })
    }

    /// Whether connections to `peer` are made without TLS.
    fn excepts(&self, peer: Peer<'_>) -> bool {
        peer.port
            .is_some_and(|port| self.except_ports.contains(&port))
    }

    /// What is asked for and verified. Not sent if it is an IP address (RFC 6066 section 3).
    fn server_name(&self, peer: Peer<'_>, client: &Connection) -> io::Result<ServerName<'static>> {
        let configured = self.server_name.as_ref().map(|name| client.expand(name));
        let name = match configured.as_deref() {
            None | Some("") => peer.host,
            Some(name) => name,
        };
        match to_server_name(name) {
            Some(name) => Ok(name),
            // Nobody looks at it then, and an address is not sent.
            None if self.trusted.is_none() => {
                Ok(ServerName::from(IpAddr::from(Ipv4Addr::UNSPECIFIED)))
            }
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is neither a host name nor an IP address: set server_name"),
            )),
        }
    }

    /// What the handshake on behalf of `client` is made with. Made anew each time: it takes some microseconds, a
    /// thousandth of the handshake, and there is no session to resume that a cache could keep.
    fn config(
        &self,
        client: &Connection,
        identity: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Result<ClientConfig, rustls::Error> {
        let mut settings = Settings::default();
        if let Some(Offered(hello)) = client.extension() {
            let negotiated = client.extension::<TlsInfo>().map(|info| &*info.protocol);
            settings.adopt(hello, negotiated.unwrap_or_default());
        }
        if let Some(groups) = &self.groups {
            settings.groups = groups.clone();
        }
        settings.config(self.verifier.clone(), identity)
    }
}

impl PeerTransport for OriginateTls {
    fn check(&self, peer: Peer<'_>) -> Result<(), Unfit> {
        let named = self.server_name.is_some() || to_server_name(peer.host).is_some();
        if named || self.trusted.is_none() || self.excepts(peer) {
            return Ok(());
        }
        Err(Unfit {
            why: format!(
                "no certificate can be for {:?}, so every handshake would fail",
                peer.host
            ),
            remedy: "set server_name in \"tls\" to the name that the certificate is for".to_owned(),
        })
    }

    fn depends_on(&self, client: &Connection) -> bool {
        let name = self.server_name.as_ref();
        client.extension::<Offered>().is_some()
            || name.is_some_and(|name| name.constant().is_none())
    }

    fn wrap<'a>(
        &'a self,
        transport: Transport,
        peer: Peer<'a>,
        client: &'a Connection,
    ) -> BoxFuture<'a, io::Result<Transport>> {
        Box::pin(async move {
            if self.excepts(peer) {
                return Ok(transport);
            }
            let name = self.server_name(peer, client)?;
            let named = match &self.identity {
                Identity::Named(app, name) => Some(Arc::new(Named {
                    app: app.clone(),
                    name: name.clone(),
                    missed: AtomicBool::new(false),
                })),
                _ => None,
            };
            let identity = match (&named, &self.identity) {
                (Some(named), _) => Some(named.clone() as Arc<dyn ResolvesClientCert>),
                (None, Identity::Fixed(identity)) => Some(identity.clone()),
                (None, _) => None,
            };
            // Versions, suites and groups that do not go together: what the client offered is why.
            let config = self
                .config(client, identity)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            let connector = TlsConnector::from(Arc::new(config));
            let mut agreed = None;
            // Bytes are counted at the client's socket.
            let handshake = transport.layer(async |below| {
                if let Some(trusted) = &self.trusted {
                    trusted.refresh().await;
                }
                let stream = connector.connect(name, below).await?;
                let session = stream.get_ref().1;
                let version = version_name(session.protocol_version().map_or(0, u16::from));
                let protocol = session.alpn_protocol().unwrap_or_default();
                agreed = Some((version, String::from_utf8_lossy(protocol).into_owned()));
                Ok(Sliced::new(stream))
            });
            let wrapped = match self.timeout {
                Some(limit) => tokio::time::timeout(limit, handshake)
                    .await
                    .unwrap_or_else(|_| {
                        Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            format!("not complete within {limit:?}"),
                        ))
                    }),
                None => handshake.await,
            };
            if let Some(named) = named.filter(|named| named.missed.load(Ordering::Relaxed)) {
                // Which authorities the upstream accepts may depend on the name it was asked for.
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!(
                        "no client certificate found for automate name: {}",
                        named.name
                    ),
                ));
            }
            let wrapped = wrapped.map_err(explained)?;
            if let Some((version, protocol)) = agreed {
                debug!(
                    conn = client.record().id(),
                    version, protocol, "TLS to upstream"
                );
            }
            Ok(wrapped)
        })
    }
}

/// What is offered to an upstream.
struct Settings {
    alpn: Vec<Vec<u8>>,
    suites: Vec<SupportedCipherSuite>,
    groups: Vec<&'static dyn SupportedKxGroup>,
    versions: Vec<&'static SupportedProtocolVersion>,
}

impl Default for Settings {
    fn default() -> Self {
        let CryptoProvider {
            cipher_suites,
            kx_groups,
            ..
        } = provider();
        Self {
            alpn: Vec::new(),
            suites: cipher_suites,
            groups: kx_groups,
            versions: VERSIONS.to_vec(),
        }
    }
}

impl Settings {
    /// Takes over what the client offered, in its order, as far as the library can do it. A list of which nothing is
    /// left stays as it was. If a protocol was agreed on with the client, it is the only one offered.
    fn adopt(&mut self, hello: &ClientHello, negotiated: &[u8]) {
        self.alpn = match negotiated {
            [] => hello
                .alpn()
                .filter(|name| !is_grease(name))
                .map(<[u8]>::to_vec)
                .collect(),
            protocol => vec![protocol.to_vec()],
        };
        let offered = hello.versions().iter().copied();
        let known = offered.filter(|version| (SSL_3_0..=TLS_1_3).contains(version));
        if let (Some(min), Some(max)) = (known.clone().min(), known.max()) {
            let between = |version: &&SupportedProtocolVersion| {
                (min..=max).contains(&u16::from(version.version))
            };
            retain_some(&mut self.versions, VERSIONS.iter().copied().filter(between));
        }
        let can = &self.versions;
        let of_version = |suite: &&SupportedCipherSuite| {
            can.iter()
                .any(|version| version.version == suite.version().version)
        };
        let ours = self.suites.clone();
        retain_some(
            &mut self.suites,
            hello.cipher_suites().iter().filter_map(|offered| {
                let known = |suite: &&SupportedCipherSuite| u16::from(suite.suite()) == *offered;
                ours.iter().filter(of_version).find(known).copied()
            }),
        );
        // The hybrid group is for TLS 1.3 only.
        let usable = |group: &dyn SupportedKxGroup| {
            can.iter()
                .any(|version| group.usable_for_version(version.version))
        };
        retain_some(
            &mut self.groups,
            hello.groups().iter().filter_map(|offered| {
                let mut groups = GROUPS.iter().map(|(_, group)| *group);
                groups.find(|group| u16::from(group.name()) == *offered && usable(*group))
            }),
        );
    }

    /// # Errors
    /// No cipher suite goes with any version, or no group with the suites.
    fn config(
        &self,
        verifier: Arc<dyn ServerCertVerifier>,
        identity: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Result<ClientConfig, rustls::Error> {
        let provider = CryptoProvider {
            cipher_suites: self.suites.clone(),
            kx_groups: self.groups.clone(),
            ..provider()
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&self.versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        // A resumed session would carry the identity of one connection into another.
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// Replaces `list` unless nothing is in `by`; what is in it twice counts once.
fn retain_some<T: OnTheWire>(list: &mut Vec<T>, by: impl Iterator<Item = T>) {
    let mut kept: Vec<T> = Vec::new();
    for item in by {
        if kept.iter().all(|known| known.number() != item.number()) {
            kept.push(item);
        }
    }
    if !kept.is_empty() {
        *list = kept;
    }
}

/// What has a number on the wire.
trait OnTheWire {
    fn number(&self) -> u16;
}

impl OnTheWire for SupportedCipherSuite {
    fn number(&self) -> u16 {
        self.suite().into()
    }
}

impl OnTheWire for &'static dyn SupportedKxGroup {
    fn number(&self) -> u16 {
        self.name().into()
    }
}

impl OnTheWire for &'static SupportedProtocolVersion {
    fn number(&self) -> u16 {
        self.version.into()
    }
}

/// Protocol names that clients sprinkle in (RFC 8701 section 2).
fn is_grease(name: &[u8]) -> bool {
    matches!(name, [a, b] if a == b && a & 0x0F == 0x0A)
}

impl Identity {
    fn provision(
        files: (Option<At<String>>, Option<At<String>>),
        automate: Option<At<String>>,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let set = |text: Option<At<String>>| text.filter(|text| !text.is_empty());
        let automate = set(automate);
        match (set(files.0), set(files.1)) {
            (Some(certificate), None) => Err(cx.reject_help(
                certificate.node(),
                "client_certificate_file specified without client_certificate_key_file",
                "name the file of its key in client_certificate_key_file",
            )),
            (None, Some(key)) => Err(cx.reject_help(
                key.node(),
                "client_certificate_key_file specified without client_certificate_file",
                "name the file of the certificate in client_certificate_file",
            )),
            (Some(certificate), Some(key)) => {
                if let Some(name) = automate {
                    return Err(cx.reject_help(
                        name.node(),
                        "there are two client certificates: client_certificate_file and client_certificate_automate",
                        "keep one of them",
                    ));
                }
                let texts = (read_file(&certificate, cx), read_file(&key, cx));
                let (chain, private) = (texts.0?, texts.1?);
                let pair = certified_key(&chain, &private, &provider()).map_err(|error| {
                    let node = match error {
                        PairError::Key(_) | PairError::UnusableKey(_) | PairError::KeyMismatch => {
                            key.node()
                        }
                        _ => certificate.node(),
                    };
                    cx.reject(
                        node,
                        format!("loading client certificate key pair: {error}"),
                    )
                })?;
                Ok(Self::Fixed(Arc::new(SingleCertAndKey::from(pair))))
            }
            (None, None) => {
                let Some(name) = automate else {
                    return Ok(Self::None);
                };
                let expanded = cx.expand_known(&name)?.to_lowercase();
                let app = cx.app::<TlsApp>()?;
                if !app.provides(&expanded) {
                    return Err(cx.reject_help(
                        name.node(),
                        format!("managing client certificate: the application tls has none for {expanded:?}"),
                        "list the name in \"automate\" under apps.tls.certificates, or load a certificate for it there",
                    ));
                }
                Ok(Self::Named(app, expanded.into()))
            }
        }
    }
}

/// Looks for a certificate of the application `tls` in one handshake.
struct Named {
    app: Arc<TlsApp>,
    name: Box<str>,
    /// The upstream asked, and there was none that it accepts.
    missed: AtomicBool,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Named").field(&self.name).finish()
    }
}

impl ResolvesClientCert for Named {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let now = UnixTime::now();
        let mut best: Option<(bool, Arc<CertifiedKey>)> = None;
        for certificate in self.app.certificates().named(&self.name) {
            let key = &certificate.key;
            if key.key.choose_scheme(schemes).is_none() || !is_of(key, authorities) {
                continue;
            }
            // The first that is valid, else the first.
            let valid = certificate.is_valid(now);
            if best.as_ref().is_none_or(|(before, _)| valid && !before) {
                best = Some((valid, key.clone()));
            }
        }
        self.missed.store(best.is_none(), Ordering::Relaxed);
        best.map(|(_, key)| key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What the library says about a certificate is for those who know it; this is for operators.
fn explained(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::InvalidCertificate(why)) = inner else {
        return error;
    };
    let text = match why {
        // The signature is bad where an authority of this name is trusted, with another key: one that was made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no trusted authority has signed its certificate; name it in \"ca\" of \"tls\""
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name; set server_name in \"tls\""
        }
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{text} ({why})"))
}

/// Whether one of `authorities` has issued a certificate of the chain; none listed accepts all (RFC 8446 section 4.2.4).
fn is_of(key: &CertifiedKey, authorities: &[&[u8]]) -> bool {
    authorities.is_empty()
        || key.cert.iter().any(|certificate| {
            X509Certificate::from_der(certificate)
                .is_ok_and(|(_, parsed)| authorities.contains(&parsed.issuer().as_raw()))
        })
}

/// What verifies an upstream, and what it does so with.
type Verifier = (
    Arc<dyn ServerCertVerifier>,
    Option<Arc<Trusted<Arc<WebPkiServerVerifier>>>>,
);

fn verifier(
    ca: Option<RawNode>,
    inline: Option<Vec<At<String>>>,
    files: Option<Vec<At<String>>>,
    insecure: bool,
    cx: &mut Provision<'_>,
) -> Result<Verifier, Rejected> {
    let inline = inline.unwrap_or_default();
    let files = files.unwrap_or_default();
    let mut node = ca.as_ref().map(RawNode::node);
    for (list, name, provider) in [
        (&inline, "root_ca_pool", "inline"),
        (&files, "root_ca_pem_files", "file"),
    ] {
        let Some(first) = list.first() else { continue };
        if ca.is_some() {
            return Err(cx.reject_help(
                first.node(),
                "conflicting config for Root CA pool",
                format!("move what {name} lists into ca"),
            ));
        }
        node = node.or(Some(first.node()));
        cx.warn(
            first.node(),
            format!("{name} is deprecated: write ca with the provider {provider}"),
        );
    }
    let given = node.is_some();
    let node = node.unwrap_or(cx.node());
    let pool = match ca {
        Some(ca) => trust_pool(&ca, cx),
        None => {
            let inline = base64_certificates(inline, cx);
            let files = certificate_files(files, cx);
            inline.and_then(|inline| Ok(TrustPool::from([inline, files?].concat())))
        }
    }?;
    if insecure {
        if given {
            cx.warn(
                node,
                "insecure_skip_verify takes any certificate, whatever authorities are given here",
            );
        }
        return Ok((Arc::new(TrustAnybody), None));
    }
    let pool = match given {
        true => pool,
        false => system_roots(node, cx)?.into(),
    };
    // The system's authorities are no servers' certificates.
    let pinned = if given {
        pool.fixed().to_vec()
    } else {
        Vec::new()
    };
    let build =
        |roots| WebPkiServerVerifier::builder_with_provider(roots, Arc::new(provider())).build();
    let trusted = Arc::new(Trusted::new(pool, build, node, cx)?);
    let verifier = Arc::new(PoolVerifier::new(trusted.clone(), pinned));
    Ok((verifier, Some(trusted)))
}

fn renegotiation(level: Option<At<String>>, cx: &mut Provision<'_>) -> Result<(), Rejected> {
    let Some(level) = level else { return Ok(()) };
    match level.as_str() {
        "" | "never" => Ok(()),
        "once" | "freely" => {
            cx.warn(
                level.node(),
                "renegotiation is not possible in this build: an upstream that asks for it loses the connection",
            );
            Ok(())
        }
        other => Err(cx.reject_help(
            level.node(),
            format!("invalid TLS renegotiation level: {other}"),
            "valid: never, once, freely",
        )),
    }
}

/// A host name, in ASCII or not, or an IP address, with brackets and zone or without.
fn to_server_name(text: &str) -> Option<ServerName<'static>> {
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    let address = bare.split_once('%').map_or(bare, |(address, _)| address);
    if let Ok(ip) = address.parse::<IpAddr>() {
        return Some(ServerName::from(ip));
    }
    let name = match text.is_ascii() {
        true => text.to_owned(),
        false => idna::domain_to_ascii(text).ok()?,
    };
    ServerName::try_from(name).ok()
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];
const SSL_3_0: u16 = 0x0300;
const TLS_1_3: u16 = 0x0304;

#[cfg(test)]
mod tests {
    use l4_core::Fact as _;

    use super::*;

    const CHROMIUM: &[u8] = include_bytes!("../testdata/chromium-grease-ech.bin");
    const OPENSSL_TLS12: &[u8] = include_bytes!("../testdata/openssl-tls12.bin");

    fn parse(bytes: &[u8]) -> ClientHello {
        match ClientHello::parse(bytes) {
            Parsed::Done(hello) => hello,
            _ => panic!("not a hello"),
        }
    }

    /// A hello that offers these numbers and protocols.
    fn hello(versions: &[u16], suites: &[u16], groups: &[u16], alpn: &[&[u8]]) -> ClientHello {
        let vector = |size: usize, content: Vec<u8>| {
            let length = content.len().to_be_bytes();
            [&length[length.len() - size..], &content].concat()
        };
        let numbers = |list: &[u16]| {
            list.iter()
                .flat_map(|n| n.to_be_bytes())
                .collect::<Vec<_>>()
        };
        let names: Vec<u8> = alpn
            .iter()
            .flat_map(|name| vector(1, name.to_vec()))
            .collect();
        let extensions = [
            (43_u16, vector(1, numbers(versions))),
            (10, vector(2, numbers(groups))),
            (16, vector(2, names)),
        ];
        let extensions = extensions
            .into_iter()
            .filter(|(_, content)| content.len() > 2);
        let extensions: Vec<u8> = extensions
            .flat_map(|(kind, content)| [kind.to_be_bytes().to_vec(), vector(2, content)].concat())
            .collect();
        let body = [
            vec![3, 3],
            vec![0; 32],
            vec![0],
            vector(2, numbers(suites)),
            vec![1, 0],
            vector(2, extensions),
        ];
        let message = [vec![1], vector(3, body.concat())].concat();
        parse(&[vec![22, 3, 1], vector(2, message)].concat())
    }

    fn adopted(hello: &ClientHello, negotiated: &[u8]) -> Settings {
        let mut settings = Settings::default();
        settings.adopt(hello, negotiated);
        settings
    }

    fn numbers<T: OnTheWire>(list: &[T]) -> Vec<u16> {
        list.iter().map(OnTheWire::number).collect()
    }

    #[test]
    fn what_a_browser_offers_is_adopted_in_its_order_and_grease_is_not() {
        let settings = adopted(&parse(CHROMIUM), b"");
        assert_eq!(settings.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert_eq!(numbers(&settings.versions), [0x0303, 0x0304]);
        assert_eq!(numbers(&settings.groups), [0x11EC, 0x001D, 0x0017, 0x0018]);
        // Of its 15 suites, those that are not made with CBC or RSA key exchange.
        let suites = [
            0x1301, 0x1302, 0x1303, 0xC02B, 0xC02F, 0xC02C, 0xC030, 0xCCA9, 0xCCA8,
        ];
        assert_eq!(numbers(&settings.suites), suites);
    }

    #[test]
    fn versions_are_adopted_from_the_lowest_to_the_highest() {
        assert_eq!(
            numbers(&adopted(&parse(OPENSSL_TLS12), b"").versions),
            [0x0303]
        );
        for (offered, expected) in [
            (&[0x0304][..], &[0x0304][..]),
            (&[0x0304, 0x0303, 0x0302], &[0x0303, 0x0304]),
            (&[0x0304, 0x0302], &[0x0303, 0x0304]),
            (&[0x7F1C, 0x0303], &[0x0303]),
        ] {
            let settings = adopted(&hello(offered, &[0x1301, 0xC02F], &[0x1D], &[]), b"");
            assert_eq!(numbers(&settings.versions), expected, "{offered:x?}");
        }
    }

    #[test]
    fn a_list_of_which_nothing_is_left_keeps_its_default() {
        let default = Settings::default();
        let settings = adopted(
            &hello(&[0x0301, 0x7F1C], &[0x002F], &[0x0019, 0x0100], &[]),
            b"",
        );
        assert_eq!(numbers(&settings.versions), numbers(&default.versions));
        assert_eq!(numbers(&settings.suites), numbers(&default.suites));
        assert_eq!(numbers(&settings.groups), numbers(&default.groups));
        // A suite of a version that is not offered is of no use.
        let settings = adopted(&hello(&[0x0304], &[0xC02F], &[0x001D], &[]), b"");
        assert_eq!(numbers(&settings.suites), numbers(&default.suites));
    }

    #[test]
    fn what_was_agreed_on_with_the_client_is_the_only_protocol_offered() {
        let hello = hello(
            &[0x0304],
            &[0x1301],
            &[0x1D],
            &[b"\x1A\x1A", b"h2", b"imap"],
        );
        assert_eq!(adopted(&hello, b"").alpn.concat(), b"h2imap");
        assert_eq!(adopted(&hello, b"imap").alpn, [b"imap".to_vec()]);
    }

    #[test]
    fn what_goes_with_no_version_counts_as_unusable() {
        let default = Settings::default();
        let settings = adopted(&hello(&[0x0303], &[0xC02F], &[0x11EC], &[]), b"");
        assert_eq!(numbers(&settings.groups), numbers(&default.groups));
        let settings = adopted(&hello(&[0x0303], &[0xC02F], &[0x11EC, 0x0018], &[]), b"");
        assert_eq!(numbers(&settings.groups), [0x0018]);
    }

    #[test]
    fn names_and_addresses_are_told_apart() {
        for (text, expected) in [
            ("a.example", Some("a.example")),
            ("b\u{fc}cher.example", Some("xn--bcher-kva.example")),
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("fe80::1%eth0", Some("fe80::1")),
            ("/run/app.sock", None),
            ("@abstract", None),
            ("a b", None),
            ("", None),
        ] {
            let name = to_server_name(text);
            let name = name.map(|name| name.to_str().into_owned());
            assert_eq!(name.as_deref(), expected, "{text}");
        }
    }
}
