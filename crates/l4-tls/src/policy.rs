//! Connection policies: how the TLS of a connection is to be, chosen by its ClientHello.

use std::sync::Arc;

use arc_swap::ArcSwap;
use l4_core::config::Node;
use l4_core::prelude::*;
use l4_core::schema::MapOf;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::server::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, SupportedCipherSuite, SupportedProtocolVersion, version};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::warn;

use crate::app::refuse_absent;
use crate::certs::{KeyAlgorithm, Preferences, Selection};
use crate::client_auth::{ClientAuthConfig, ClientVerifier};
use crate::sessions::{Resumption, Sessions};
use crate::{ClientHello, HandshakeMatch, HandshakeMatchers, suites};

/// The cryptography that everything here is given explicitly. Which one other crates of a program switch on does not
/// matter then.
pub(crate) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: suites::all().to_vec(),
        kx_groups: DEFAULT_GROUPS.to_vec(),
        ..aws_lc_rs::default_provider()
    }
}

/// How TLS is terminated for the connections that a policy is for.
///
/// ```json
/// {"match": {"sni": ["mail.example.com"]}, "alpn": ["imap"], "protocol_min": "tls1.3"}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyConfig {
    /// Conditions on the ClientHello, all of which must hold: `sni`, `sni_regexp`, `alpn`, `remote_ip`, `local_ip`.
    /// Default: every client.
    #[serde(default, rename = "match")]
    #[schemars(with = "Option<MapOf<HandshakeMatchers>>")]
    matchers: Option<ModuleMap>,
    /// Which of the certificates for a name are candidates. Default: all.
    #[serde(default)]
    certificate_selection: Option<SelectionConfig>,
    /// Cipher suites for TLS 1.2 by their IANA names, best first. Those of TLS 1.3 are always all on, AES-128-GCM first;
    /// ChaCha20-Poly1305 comes before it for a client that lists it first, and on a processor without instructions for AES.
    /// Default: all with AES-256-GCM, AES-128-GCM and ChaCha20-Poly1305, in this order but for such clients and processors.
    #[serde(default)]
    cipher_suites: Option<Vec<At<String>>>,
    /// Key exchange groups, best first: `x25519mlkem768`, `x25519`, `secp256r1`, `secp384r1`. Default:
    /// `x25519mlkem768`, `x25519`, `secp256r1`.
    #[serde(default)]
    curves: Option<Vec<At<String>>>,
    /// Protocols to agree on by ALPN, best first, such as `["imap"]`. A client that offers only others is refused,
    /// except that one offering `http/1.1` is let in without ALPN when `h2` is listed. `[]` agrees on none. Default:
    /// `["h2", "http/1.1"]`, and a client that offers only others is let in without ALPN.
    #[serde(default)]
    alpn: Option<Vec<At<String>>>,
    /// The lowest version. Default: `"tls1.2"`.
    #[serde(default)]
    #[schemars(extend("enum" = ["tls1.2", "tls1.3"]))]
    protocol_min: Option<At<String>>,
    /// The highest version. Default: `"tls1.3"`.
    #[serde(default)]
    #[schemars(extend("enum" = ["tls1.2", "tls1.3"]))]
    protocol_max: Option<At<String>>,
    /// Whether clients must show certificates. Default: clients are not asked.
    #[serde(default)]
    client_authentication: Option<ClientAuthConfig>,
    /// The server name that stands in for that of a client which sends none. Default: none.
    #[serde(default)]
    default_sni: Option<String>,
    /// The server name whose certificate is served if there is none for the one asked for. Default: none.
    #[serde(default)]
    fallback_sni: Option<String>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    insecure_secrets_log: Option<RawNode>,
    /// Refuses the connections that the policy is for. Default: `false`.
    #[serde(default)]
    drop: Option<bool>,
    /// Not in this version: refused with a sentence.
    #[serde(default)]
    #[schemars(with = "()")]
    handshake_context: Option<RawNode>,
}

/// Criteria for certificates; all that are given must hold.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SelectionConfig {
    /// Serial numbers in decimal; one must be the certificate's. Default: any.
    #[serde(default)]
    serial_number: Option<Vec<At<String>>>,
    /// Organizations; the subject must have one of them. Default: any.
    #[serde(default)]
    subject_organization: Option<Vec<String>>,
    /// `rsa`, `ecdsa` or `dsa`. Default: any.
    #[serde(default)]
    #[schemars(extend("examples" = ["rsa", "ecdsa", "dsa"]))]
    public_key_algorithm: Option<At<String>>,
    /// Tags of which the certificate must have one. Default: any.
    #[serde(default)]
    any_tag: Option<Vec<String>>,
    /// Tags of which the certificate must have all. Default: any.
    #[serde(default)]
    all_tags: Option<Vec<String>>,
}

/// A policy, ready for handshakes.
pub(crate) struct Policy {
    pub(crate) matchers: Vec<Box<dyn HandshakeMatch>>,
    pub(crate) preferences: Preferences,
    pub(crate) drop: bool,
    /// Whether a client that offers only other protocols is let in without one.
    pub(crate) lenient_alpn: bool,
    base: ArcSwap<Base>,
    versions: Vec<&'static SupportedProtocolVersion>,
    /// Where the same policy of the next configuration finds them.
    _sessions: Option<Arc<Sessions>>,
}

/// What handshakes are made with.
struct Base {
    /// All but the certificate. Its session tickets and cache are shared by everything made from it.
    config: ServerConfig,
    /// The same with ChaCha20-Poly1305 in front, for clients that put it there.
    chacha: ServerConfig,
    verifier: Option<Arc<ClientVerifier>>,
}

impl Policy {
    pub(crate) fn provision(
        config: PolicyConfig,
        resumption: Resumption,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let absent = cx.all(
            [
                ("insecure_secrets_log", config.insecure_secrets_log),
                ("handshake_context", config.handshake_context),
            ],
            |cx, (name, raw)| refuse_absent(cx, name, raw),
        );
        let matchers = match &config.matchers {
            Some(map) => cx.module_map::<HandshakeMatchers>(map),
            None => Ok(Vec::new()),
        };
        let selection = match config.certificate_selection {
            Some(selection) => selection.provision(cx).map(Some),
            None => Ok(None),
        };
        let versions = versions(config.protocol_min, config.protocol_max, cx);
        let chosen = config
            .cipher_suites
            .as_ref()
            .is_some_and(|names| !names.is_empty());
        let suites = cipher_suites(config.cipher_suites, cx);
        let groups = groups(config.curves, cx);
        let lenient_alpn = config.alpn.is_none();
        let alpn = match config.alpn {
            None => Ok(vec![b"h2".to_vec(), b"http/1.1".to_vec()]),
            Some(names) => cx.all(names, |cx, name| match name.len() {
                1..=255 => Ok(name.as_bytes().to_vec()),
                _ => Err(cx.reject(name.node(), "a protocol name has 1 to 255 bytes")),
            }),
        };
        let asks_clients = config.client_authentication.is_some();
        let document = cx.document();
        let members = config.matchers.iter().flat_map(ModuleMap::iter);
        let conditions: Vec<(String, String)> = members
            .map(|(name, node)| (name.to_owned(), document.canonical(node)))
            .collect();
        let verifier = match config.client_authentication {
            Some(auth) => auth.provision(cx),
            None => Ok(None),
        };
        absent?;
        let (matchers, versions, verifier) = (matchers?, versions?, verifier?);
        let (suites, groups, alpn, selection) = (suites?, groups?, alpn?, selection?);
        let names = (&config.default_sni, &config.fallback_sni);
        // A reload that changes none of this leaves the policy as it is.
        let key = format!(
            "{:?}",
            (
                conditions, &versions, &suites, &groups, &alpn, &selection, names
            )
        );
        let mut chacha_first = suites.clone();
        suites::put_chacha_first(&mut chacha_first, chosen);
        let provider = CryptoProvider {
            // Without instructions for AES there is no client for whom it would be the better choice.
            cipher_suites: match suites::has_fast_aes() {
                true => suites,
                false => chacha_first.clone(),
            },
            kx_groups: groups,
            ..provider()
        };
        let chacha = CryptoProvider {
            cipher_suites: chacha_first,
            ..provider.clone()
        };
        let node = cx.node();
        let sessions = match asks_clients {
            // A resumed session would bring the authentication of an earlier one along.
            true => Ok(None),
            false => Sessions::of(&key, resumption).map(Some),
        };
        let made = sessions.and_then(|sessions| {
            let providers = [provider.into(), chacha.into()];
            let base = Base::new(providers, &versions, verifier, sessions.as_deref(), &alpn)?;
            Ok((base, sessions))
        });
        let (base, sessions) = made.map_err(|error| cx.reject(node, error.to_string()))?;
        let mut matchers: Vec<_> = matchers.into_iter().map(|(_, member)| member).collect();
        matchers.sort_by_key(|member| member.cost());
        let lower = |name: Option<String>| name.map(|name| name.to_lowercase().into());
        Ok(Self {
            matchers,
            preferences: Preferences {
                selection,
                default_sni: lower(config.default_sni),
                fallback_sni: lower(config.fallback_sni),
            },
            drop: config.drop.unwrap_or(false),
            lenient_alpn,
            base: ArcSwap::from_pointee(base),
            versions,
            _sessions: sessions,
        })
    }

    /// What verifies clients.
    pub(crate) fn verifier(&self) -> Option<Arc<ClientVerifier>> {
        self.base.load().verifier.clone()
    }

    /// Made anew when the authorities of clients are others, which they are told before they show a certificate. Such
    /// clients resume no sessions, so nothing is lost with the old one.
    fn base(&self) -> Arc<Base> {
        let base = self.base.load_full();
        let renewed = base.verifier.as_ref().and_then(|known| known.renewed());
        let Some(verifier) = renewed.map(Arc::new) else {
            return base;
        };
        let providers = [&base.config, &base.chacha].map(|config| config.crypto_provider().clone());
        let alpn = &base.config.alpn_protocols;
        match Base::new(providers, &self.versions, Some(verifier), None, alpn) {
            Ok(base) => {
                let base = Arc::new(base);
                self.base.store(base.clone());
                base
            }
            Err(error) => {
                warn!(target: "tls", %error, "the new authorities of clients cannot be used");
                base
            }
        }
    }

    /// What the handshake with this client is made with; `None` if there is no protocol to agree on.
    ///
    /// Told apart before the handshake: rustls would find out only after it has answered, when the client is writing
    /// again and may miss the alert.
    pub(crate) fn config(
        &self,
        key: Arc<CertifiedKey>,
        hello: &ClientHello,
    ) -> Option<Arc<ServerConfig>> {
        let base = self.base();
        let ours = &base.config.alpn_protocols;
        let has = |name: &[u8]| ours.iter().any(|own| own == name);
        let disagree = !ours.is_empty() && hello.alpn().next().is_some() && !hello.alpn().any(has);
        let goes_without =
            || self.lenient_alpn || (has(b"h2") && hello.alpn().any(|name| name == b"http/1.1"));
        if disagree && !goes_without() {
            return None;
        }
        let mut config = match suites::prefers_chacha(hello) {
            true => base.chacha.clone(),
            false => base.config.clone(),
        };
        // Clients open connections side by side, and use a ticket once (RFC 8446 section C.4): they get two. One who comes with a
        // ticket gets one for it, also where it is not valid any more, which is not known yet.
        config.send_tls13_tickets = match hello.offers_session() {
            true => config.send_tls13_tickets.min(1),
            false => config.send_tls13_tickets,
        };
        config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
        if disagree {
            config.alpn_protocols.clear();
        }
        Some(Arc::new(config))
    }
}

impl Base {
    /// With the suites of the first of `providers`, and of the second for clients that prefer ChaCha20-Poly1305.
    fn new(
        providers: [Arc<CryptoProvider>; 2],
        versions: &[&'static SupportedProtocolVersion],
        verifier: Option<Arc<ClientVerifier>>,
        sessions: Option<&Sessions>,
        alpn: &[Vec<u8>],
    ) -> Result<Self, rustls::Error> {
        let make = |provider| {
            let mut config = server_config(provider, versions, verifier.clone(), sessions)?;
            config.alpn_protocols = alpn.to_vec();
            Ok::<_, rustls::Error>(config)
        };
        let [provider, chacha] = providers;
        let (config, chacha) = (make(provider)?, make(chacha)?);
        Ok(Self {
            config,
            chacha,
            verifier,
        })
    }
}

fn server_config(
    provider: Arc<CryptoProvider>,
    versions: &[&'static SupportedProtocolVersion],
    verifier: Option<Arc<ClientVerifier>>,
    sessions: Option<&Sessions>,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(NoCertificate));
    config.ignore_client_order = true;
    Sessions::enter(sessions, &mut config);
    Ok(config)
}

/// Stands where each connection puts the certificate that was chosen for it.
#[derive(Debug)]
struct NoCertificate;

impl rustls::server::ResolvesServerCert for NoCertificate {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

impl SelectionConfig {
    fn provision(self, cx: &mut Provision<'_>) -> Result<Selection, Rejected> {
        let serials = cx.all(self.serial_number.unwrap_or_default(), |cx, serial| {
            let digits = serial.trim_start_matches('0');
            match !serial.is_empty() && serial.bytes().all(|b| b.is_ascii_digit()) {
                true if digits.is_empty() => Ok("0".to_owned()),
                true => Ok(digits.to_owned()),
                false => Err(cx.reject_help(
                    serial.node(),
                    format!("{:?} is not a serial number", *serial),
                    "write it in decimal",
                )),
            }
        });
        let algorithm = match self.public_key_algorithm {
            None => Ok(None),
            Some(name) => match name.to_ascii_lowercase().as_str() {
                "" => Ok(None),
                "rsa" => Ok(Some(KeyAlgorithm::Rsa)),
                "ecdsa" => Ok(Some(KeyAlgorithm::Ecdsa)),
                "dsa" => Ok(Some(KeyAlgorithm::Dsa)),
                _ => Err(cx.reject_help(
                    name.node(),
                    format!("unrecognized public key algorithm: {}", *name),
                    "valid: rsa, ecdsa, dsa",
                )),
            },
        };
        Ok(Selection {
            serials: serials?,
            organizations: self.subject_organization.unwrap_or_default(),
            algorithm: algorithm?,
            any_tag: self.any_tag.unwrap_or_default(),
            all_tags: self.all_tags.unwrap_or_default(),
        })
    }
}

fn versions(
    min: Option<At<String>>,
    max: Option<At<String>>,
    cx: &mut Provision<'_>,
) -> Result<Vec<&'static SupportedProtocolVersion>, Rejected> {
    let mut read = |name: &Option<At<String>>, default: usize| {
        let Some(name) = name else { return Ok(default) };
        VERSIONS
            .iter()
            .position(|(known, _)| *known == name.as_str())
            .ok_or_else(|| {
                cx.reject_help(
                    name.node(),
                    format!("unsupported protocol version: {}", **name),
                    "valid: tls1.2, tls1.3",
                )
            })
    };
    let (lowest, highest) = (read(&min, 0), read(&max, VERSIONS.len() - 1));
    let (lowest, highest) = (lowest?, highest?);
    if lowest > highest {
        let node: Node = min.or(max).map_or(cx.node(), |name| name.node());
        return Err(cx.reject(
            node,
            "protocol min (tls1.3) cannot be greater than protocol max (tls1.2)",
        ));
    }
    Ok(VERSIONS
        .iter()
        .take(highest + 1)
        .skip(lowest)
        .map(|(_, version)| *version)
        .collect())
}

fn cipher_suites(
    names: Option<Vec<At<String>>>,
    cx: &mut Provision<'_>,
) -> Result<Vec<SupportedCipherSuite>, Rejected> {
    let all = suites::all();
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        return Ok(all.to_vec());
    };
    let mut suites: Vec<SupportedCipherSuite> = all
        .iter()
        .filter(|suite| suite.tls13().is_some())
        .copied()
        .collect();
    let chosen = cx.all(names, |cx, name| {
        let known = all.iter().find(|suite| iana_name(suite.suite()) == *name);
        if known.is_none() && CBC_SUITES.contains(&name.as_str()) {
            cx.warn(
                name.node(),
                format!("{} is weak and never agreed on", *name),
            );
        } else if known.is_none() {
            let names = all.iter().map(|suite| iana_name(suite.suite()));
            return Err(cx.reject_help(
                name.node(),
                format!("unsupported cipher suite: {}", *name),
                format!("valid: {}", names.collect::<Vec<_>>().join(", ")),
            ));
        }
        Ok(known.copied())
    })?;
    for suite in chosen.into_iter().flatten() {
        if !suites.contains(&suite) {
            suites.push(suite);
        }
    }
    Ok(suites)
}

/// The name by which IANA lists `suite`; the library writes those of TLS 1.3 its own way.
pub(crate) fn iana_name(suite: CipherSuite) -> String {
    suite
        .as_str()
        .map(|name| name.replacen("TLS13_", "TLS_", 1))
        .unwrap_or_default()
}

pub(crate) fn groups(
    names: Option<Vec<At<String>>>,
    cx: &mut Provision<'_>,
) -> Result<Vec<&'static dyn SupportedKxGroup>, Rejected> {
    let names = names.unwrap_or_default();
    if names.is_empty() {
        return Ok(DEFAULT_GROUPS.to_vec());
    }
    let chosen = cx.all(names, |cx, name| {
        let known = GROUPS.iter().find(|(known, _)| *known == name.as_str());
        if known.is_none() && *name == "secp521r1" {
            cx.warn(
                name.node(),
                "secp521r1 is never agreed on: this build does not have it",
            );
        } else if known.is_none() {
            let names: Vec<_> = GROUPS.iter().map(|(name, _)| *name).collect();
            return Err(cx.reject_help(
                name.node(),
                format!("unsupported curve: {}", *name),
                format!("valid: {}", names.join(", ")),
            ));
        }
        Ok(known.map(|(_, group)| *group))
    })?;
    let mut unique: Vec<&'static dyn SupportedKxGroup> = Vec::new();
    for group in chosen.into_iter().flatten() {
        if unique.iter().all(|known| known.name() != group.name()) {
            unique.push(group);
        }
    }
    if unique.is_empty() {
        let node = cx.node();
        return Err(cx.reject(node, "curves leaves no key exchange group"));
    }
    Ok(unique)
}

const VERSIONS: [(&str, &SupportedProtocolVersion); 2] =
    [("tls1.2", &version::TLS12), ("tls1.3", &version::TLS13)];

const DEFAULT_GROUPS: &[&dyn SupportedKxGroup] = &[
    aws_lc_rs::kx_group::X25519MLKEM768,
    aws_lc_rs::kx_group::X25519,
    aws_lc_rs::kx_group::SECP256R1,
];

pub(crate) const GROUPS: &[(&str, &dyn SupportedKxGroup)] = &[
    ("x25519mlkem768", aws_lc_rs::kx_group::X25519MLKEM768),
    ("x25519", aws_lc_rs::kx_group::X25519),
    ("secp256r1", aws_lc_rs::kx_group::SECP256R1),
    ("secp384r1", aws_lc_rs::kx_group::SECP384R1),
];

/// Accepted for the sake of configurations that list them; the library has none of them.
const CBC_SUITES: [&str; 4] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
];
