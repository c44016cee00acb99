//! Client certificates: who must show one, and what it is checked against.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use l4_core::prelude::*;
use l4_core::schema::InlineOf;
use l4_core::{Kind, Storages};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::app::pem_files;
use crate::peer_cert::stands_for_itself;
use crate::pem;
use crate::policy::provider;
use crate::trust_pool::{
    Current, TrustPool, TrustPools, Trusted, base64_certificates, certificate_files,
    stored_certificates, system_roots, trust_pool,
};

/// The namespace `tls.client_auth.verifier`: further checks on the certificate of a client.
pub enum ClientVerifiers {}

impl Kind for ClientVerifiers {
    const NAMESPACE: &'static str = "tls.client_auth.verifier";
    type Object = dyn VerifyClient;
}

/// The namespace `tls.leaf_cert_loader`: certificates of single clients.
pub enum LeafLoaders {}

impl Kind for LeafLoaders {
    const NAMESPACE: &'static str = "tls.leaf_cert_loader";
    type Object = Vec<CertificateDer<'static>>;
}

/// A further check on the certificate of a client.
pub trait VerifyClient: Send + Sync + 'static {
    /// Whether it passes.
    ///
    /// # Errors
    /// Why it does not, for the log.
    fn verify(&self, leaf: &CertificateDer<'_>) -> Result<(), &'static str>;
}

/// Whether clients must show certificates, and which.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientAuthConfig {
    /// `request`: ask, accept anything or nothing. `require`: need one, check nothing. `verify_if_given`: check it if
    /// there is one. `require_and_verify`: need one and check it. Default: `require_and_verify` if certificates to
    /// trust are given, else `require`.
    #[serde(default)]
    #[schemars(extend("enum" = ["request", "require", "verify_if_given", "require_and_verify", ""]))]
    mode: Option<At<String>>,
    /// The authorities that are trusted, such as `{"provider": "file", "pem_files": ["/etc/ssl/clients.pem"]}`.
    /// Default: those of the system, in the modes that verify.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<TrustPools>>")]
    ca: Option<RawNode>,
    /// Deprecated: write `ca` with the provider `inline`. Default: none.
    #[serde(default)]
    trusted_ca_certs: Option<Vec<At<String>>>,
    /// Deprecated: write `ca` with the provider `file`. Default: none.
    #[serde(default)]
    trusted_ca_certs_pem_files: Option<Vec<At<String>>>,
    /// Deprecated: write `verifiers` with the verifier `leaf`. Default: none.
    #[serde(default)]
    trusted_leaf_certs: Option<Vec<At<String>>>,
    /// Further checks; all must pass. Only `leaf` exists: the certificate must be one of those listed. Default: none.
    #[serde(default)]
    #[schemars(with = "Option<Vec<InlineOf<ClientVerifiers>>>")]
    verifiers: Option<Vec<RawNode>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Request,
    Require,
    VerifyIfGiven,
    RequireAndVerify,
}

impl ClientAuthConfig {
    /// `None` if nothing is set, which turns it off.
    pub(crate) fn provision(
        self,
        cx: &mut Provision<'_>,
    ) -> Result<Option<Arc<ClientVerifier>>, Rejected> {
        let has = |list: &Option<Vec<At<String>>>| list.as_ref().is_some_and(|l| !l.is_empty());
        let deprecated = has(&self.trusted_ca_certs) || has(&self.trusted_ca_certs_pem_files);
        if let (Some(ca), true) = (&self.ca, deprecated) {
            return Err(cx.reject(
                ca.node(),
                "conflicting config for client authentication trust CA",
            ));
        }
        let has_leaves = has(&self.trusted_leaf_certs);
        let verifiers = self.verifiers.unwrap_or_default();
        let has_pool = self.ca.is_some() || deprecated;
        if self.mode.is_none() && !has_pool && !has_leaves && verifiers.is_empty() {
            return Ok(None);
        }
        let mode_node = self.mode.as_ref().map_or(cx.node(), At::node);
        let mode = match self.mode.as_ref().map(|mode| mode.as_str()) {
            None | Some("") if has_pool || has_leaves => Ok(Mode::RequireAndVerify),
            None | Some("") | Some("require") => Ok(Mode::Require),
            Some("request") => Ok(Mode::Request),
            Some("verify_if_given") => Ok(Mode::VerifyIfGiven),
            Some("require_and_verify") => Ok(Mode::RequireAndVerify),
            Some(other) => Err(cx.reject_help(
                mode_node,
                format!("client auth mode not recognized: {other}"),
                "valid: request, require, verify_if_given, require_and_verify",
            )),
        };
        let mut pool = TrustPool::default();
        if let Some(ca) = self.ca {
            pool.extend(trust_pool(&ca, cx)?);
        }
        pool.extend(base64_certificates(
            self.trusted_ca_certs.unwrap_or_default(),
            cx,
        )?);
        pool.extend(certificate_files(
            self.trusted_ca_certs_pem_files.unwrap_or_default(),
            cx,
        )?);
        let mut checks = cx.all(verifiers, |cx, raw| {
            cx.inline::<ClientVerifiers>(raw.node(), "verifier")
        })?;
        if let Some(leaves) = self.trusted_leaf_certs.filter(|leaves| !leaves.is_empty()) {
            if let Some(first) = leaves.first() {
                cx.warn(
                    first.node(),
                    "trusted_leaf_certs is deprecated: write verifiers with the verifier leaf",
                );
            }
            checks.push(Box::new(Leaf(base64_certificates(leaves, cx)?)));
        }
        let mode = mode?;
        let verified = matches!(mode, Mode::VerifyIfGiven | Mode::RequireAndVerify);
        if verified && !has_pool {
            pool = system_roots(mode_node, cx)?.into();
        }
        // The system's authorities are no clients' certificates.
        let pinned = match has_pool {
            true => pool.fixed().to_vec(),
            false => Vec::new(),
        };
        let chain = if verified {
            let build = |roots| {
                WebPkiClientVerifier::builder_with_provider(roots, Arc::new(provider())).build()
            };
            let trusted = Trusted::new(pool, build, mode_node, cx)?;
            Some(Chain {
                current: trusted.current(),
                trusted: Arc::new(trusted),
            })
        } else {
            None
        };
        Ok(Some(Arc::new(ClientVerifier {
            mandatory: matches!(mode, Mode::Require | Mode::RequireAndVerify),
            chain,
            pinned: pinned.into(),
            checks: checks.into(),
            algorithms: provider().signature_verification_algorithms,
        })))
    }
}

/// Checks chains.
#[derive(Clone)]
struct Chain {
    trusted: Arc<Trusted<Arc<dyn ClientCertVerifier>>>,
    /// That of the handshake: clients are told which authorities will do before their certificate is verified.
    current: Arc<Current<Arc<dyn ClientCertVerifier>>>,
}

/// What rustls asks about the certificate of a client.
#[derive(Clone)]
pub(crate) struct ClientVerifier {
    mandatory: bool,
    /// Checks the chain; without it any chain will do.
    chain: Option<Chain>,
    /// Certificates that need no other's signature: a self-signed one says that it is an authority, and webpki refuses
    /// one as a client's.
    pinned: Arc<[CertificateDer<'static>]>,
    checks: Arc<[Box<dyn VerifyClient>]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// The verifier for handshakes from now on, if that is another one.
    pub(crate) fn renewed(&self) -> Option<Self> {
        let chain = self.chain.as_ref()?;
        let current = chain.trusted.current();
        if Arc::ptr_eq(&current, &chain.current) {
            return None;
        }
        let trusted = chain.trusted.clone();
        Some(Self {
            chain: Some(Chain { trusted, current }),
            ..self.clone()
        })
    }

    /// Takes note of what other processes have done to the authorities. Belongs before every handshake.
    pub(crate) async fn refresh(&self) {
        if let Some(chain) = &self.chain {
            chain.trusted.refresh().await;
        }
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier")
            .field("mandatory", &self.mandatory)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        let chain = self.chain.as_ref();
        match chain.and_then(|chain| chain.current.verifier()) {
            Some(verifier) => verifier.root_hint_subjects(),
            None => &[],
        }
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(chain) = &self.chain {
            let verified = chain
                .current
                .verify(|chain| chain.verify_client_cert(leaf, intermediates, now));
            verified.map(drop).or_else(|error| {
                match stands_for_itself(&self.pinned, leaf, now, |usage| usage.client_auth) {
                    true => Ok(()),
                    false => Err(error),
                }
            })?;
        }
        for check in self.checks.iter() {
            check.verify(leaf).map_err(|why| {
                Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(
                    std::io::Error::other(why),
                ))))
            })?;
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The verifier `leaf`: exactly these certificates.
struct Leaf(Vec<CertificateDer<'static>>);

impl VerifyClient for Leaf {
    fn verify(&self, leaf: &CertificateDer<'_>) -> Result<(), &'static str> {
        match self.0.iter().any(|known| **known == **leaf) {
            true => Ok(()),
            false => Err("client leaf certificate failed validation"),
        }
    }
}

/// The certificate must be one of those that the loaders give.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LeafConfig {
    /// Where the certificates come from: `file`, `folder`, `pem`, `storage`.
    #[schemars(with = "Vec<InlineOf<LeafLoaders>>")]
    leaf_certs_loaders: Vec<RawNode>,
}

/// Certificates in PEM files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LeafFilesConfig {
    /// Files of certificates in PEM, one or several in each.
    files: Vec<At<String>>,
}

/// Certificates in folders.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LeafFoldersConfig {
    /// Folders that are searched, with all folders in them, for files ending in `.pem`, one certificate in each.
    folders: Vec<At<String>>,
}

/// Certificates in the configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LeafPemConfig {
    /// Certificates as PEM text.
    certificates: Vec<At<String>>,
}

/// Certificates in storage.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LeafStorageConfig {
    /// The keys under which they are stored in PEM, one or several under each, such as `["clients/one.pem"]`.
    certificates: Vec<At<String>>,
    /// Where they are, written as `storage` at the top of the file. Default: that of the configuration.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<Storages>>")]
    storage: Option<RawNode>,
}

pub(crate) fn register(reg: &mut Registry) {
    reg.add_inline::<ClientVerifiers, _>("leaf", "verifier", |config: LeafConfig, cx| {
        let loaded = cx.all(config.leaf_certs_loaders, |cx, raw| {
            cx.inline::<LeafLoaders>(raw.node(), "loader")
        })?;
        Ok(Box::new(Leaf(
            loaded.into_iter().flat_map(|l| *l).collect(),
        )))
    });
    reg.add_inline::<LeafLoaders, _>("file", "loader", |config: LeafFilesConfig, cx| {
        certificate_files(config.files, cx).map(Box::new)
    });
    reg.add_inline::<LeafLoaders, _>("folder", "loader", |config: LeafFoldersConfig, cx| {
        let loaded = cx.all(config.folders, |cx, folder| {
            let root = cx.expand_known(&folder)?;
            read_folder(Path::new(&root))
                .map_err(|error| cx.reject(folder.node(), format!("reading {root}: {error}")))
        })?;
        Ok(Box::new(loaded.into_iter().flatten().collect()))
    });
    reg.add_inline::<LeafLoaders, _>("pem", "loader", |config: LeafPemConfig, cx| {
        let loaded = cx.all(config.certificates, |cx, text| {
            let expanded = cx.expand_known(&text)?;
            pem::certificates(expanded.as_bytes())
                .map_err(|error| cx.reject(text.node(), error.to_string()))
        })?;
        Ok(Box::new(loaded.into_iter().flatten().collect()))
    });
    reg.add_inline::<LeafLoaders, _>("storage", "loader", |config: LeafStorageConfig, cx| {
        stored_certificates(config.certificates, config.storage, cx).map(Box::new)
    });
}

fn read_folder(root: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    for file in pem_files(root).map_err(|error| error.to_string())? {
        let named = |error: &dyn fmt::Display| format!("{}: {error}", file.display());
        let text = std::fs::read(&file).map_err(|error| named(&error))?;
        found.extend(pem::certificates(&text).map_err(|error| named(&error))?);
    }
    Ok(found)
}
