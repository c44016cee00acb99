//! Trust pools: the certificates of authorities that clients or upstreams are verified against.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use l4_core::config::{Node, Value};
use l4_core::prelude::*;
use l4_core::schema::InlineOf;
use l4_core::{AppModule, Kind, Storages};
use rustls::pki_types::CertificateDer;
use rustls::server::VerifierBuilderError;
use rustls::{CertificateError, Error, RootCertStore};
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::warn;

use crate::app::read_file;
use crate::pem;
use crate::pki::known::Certificates;
use crate::pki::{Authority, PkiApp, Tier};
use crate::storage;

/// The namespace `tls.ca_pool.source`: certificates of authorities that are trusted.
pub enum TrustPools {}

impl Kind for TrustPools {
    const NAMESPACE: &'static str = "tls.ca_pool.source";
    type Object = TrustPool;
}

/// What a provider gives.
#[derive(Debug, Default, Clone)]
pub struct TrustPool {
    fixed: Vec<CertificateDer<'static>>,
    /// Authorities of the application `pki`, whose certificates come and change while the pool is in use.
    followed: Vec<(Arc<Authority>, Tier)>,
}

impl From<Vec<CertificateDer<'static>>> for TrustPool {
    fn from(fixed: Vec<CertificateDer<'static>>) -> Self {
        Self {
            fixed,
            followed: Vec::new(),
        }
    }
}

impl TrustPool {
    /// The certificates that are always the same.
    pub(crate) fn fixed(&self) -> &[CertificateDer<'static>] {
        &self.fixed
    }

    pub(crate) fn extend(&mut self, other: impl Into<Self>) {
        let Self { fixed, followed } = other.into();
        self.fixed.extend(fixed);
        self.followed.extend(followed);
    }

    fn seen(&self) -> impl Iterator<Item = (Arc<Certificates>, Tier)> {
        self.followed
            .iter()
            .map(|(authority, tier)| (authority.known().certificates(), *tier))
    }
}

/// Verifies with the authorities of a pool, as they are when it is asked.
pub(crate) struct Trusted<V> {
    pool: TrustPool,
    /// Of the fixed ones.
    roots: RootCertStore,
    build: Build<V>,
    current: ArcSwap<Current<V>>,
}

/// Makes what verifies with some roots, of which there is one at least.
type Build<V> = fn(Arc<RootCertStore>) -> Result<V, VerifierBuilderError>;

/// What verifies until the authorities are others.
pub(crate) struct Current<V> {
    made_of: Vec<Arc<Certificates>>,
    /// `None` while nobody is trusted, because the authority has not been made yet.
    verifier: Option<V>,
}

impl<V> Trusted<V> {
    /// # Errors
    /// There are no authorities, or one of them is none. Reported at `node`.
    pub(crate) fn new(
        pool: TrustPool,
        build: Build<V>,
        node: Node,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let roots = match pool.fixed.is_empty() && !pool.followed.is_empty() {
            true => RootCertStore::empty(),
            false => root_store(pool.fixed.clone(), node, cx)?,
        };
        let current = Current::new(&pool, &roots, build)
            .map_err(|error| cx.reject(node, error.to_string()))?;
        Ok(Self {
            pool,
            roots,
            build,
            current: ArcSwap::from_pointee(current),
        })
    }

    pub(crate) fn current(&self) -> Arc<Current<V>> {
        let current = self.current.load_full();
        let same = |((seen, _), known): ((Arc<Certificates>, Tier), &Arc<Certificates>)| {
            Arc::ptr_eq(&seen, known)
        };
        if self.pool.seen().zip(&current.made_of).all(same) {
            return current;
        }
        match Current::new(&self.pool, &self.roots, self.build) {
            Ok(new) => {
                let new = Arc::new(new);
                self.current.store(new.clone());
                new
            }
            Err(error) => {
                warn!(target: "tls", %error, "the new certificates of an authority cannot be used");
                current
            }
        }
    }

    /// Takes note of what other processes have done to the authorities. Belongs before every handshake.
    pub(crate) async fn refresh(&self) {
        for (authority, _) in &self.pool.followed {
            authority.refresh().await;
        }
    }
}

impl<V> fmt::Debug for Trusted<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trusted")
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl<V> Current<V> {
    fn new(
        pool: &TrustPool,
        fixed: &RootCertStore,
        build: Build<V>,
    ) -> Result<Self, VerifierBuilderError> {
        let mut roots = fixed.clone();
        let mut made_of = Vec::new();
        for (certificates, tier) in pool.seen() {
            // What is malformed vouches for nobody; who signs with it says what is wrong.
            roots.add_parsable_certificates(certificates.of(tier).cloned());
            made_of.push(certificates);
        }
        let verifier = match roots.is_empty() {
            true => None,
            false => Some(build(Arc::new(roots))?),
        };
        Ok(Self { made_of, verifier })
    }

    pub(crate) fn verifier(&self) -> Option<&V> {
        self.verifier.as_ref()
    }

    /// As the verifier says.
    ///
    /// # Errors
    /// It refuses, or nobody is trusted.
    pub(crate) fn verify<T>(
        &self,
        verify: impl FnOnce(&V) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.verifier {
            Some(verifier) => verify(verifier),
            None => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        }
    }
}

/// Authorities given in the configuration.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InlinePoolConfig {
    /// Certificates: DER in base64.
    trusted_ca_certs: Vec<At<String>>,
}

/// Authorities in files.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FilePoolConfig {
    /// PEM files, such as `["/etc/ssl/clients.pem"]`; blocks other than certificates are passed over.
    pem_files: Vec<At<String>>,
}

/// The authorities that the system trusts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SystemPoolConfig {}

/// Authorities in storage.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StoragePoolConfig {
    /// The keys under which certificates are stored in PEM, at least one, such as `["clients/ca.pem"]`; other blocks are passed over.
    /// Default: none.
    #[serde(default)]
    pem_keys: Vec<At<String>>,
    /// Where they are, written as `storage` at the top of the file. Default: that of the configuration.
    #[serde(default)]
    #[schemars(with = "Option<InlineOf<Storages>>")]
    storage: Option<RawNode>,
}

/// Authorities of the application `pki`, as they are at any time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AuthorityPoolConfig {
    /// The ids of the authorities, at least one. Default: none. Example: `["local"]`.
    #[serde(default)]
    authority: Vec<At<String>>,
}

/// The authorities of several pools together.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct CombinedPoolConfig {
    /// The pools, at least one; all their authorities are trusted. Such as `[{"provider": "system"}, {"provider": "file", "pem_files": ["/etc/ssl/own-ca.pem"]}]`.
    /// Default: none.
    #[serde(default)]
    #[schemars(with = "Vec<InlineOf<TrustPools>>")]
    sources: Vec<RawNode>,
}

pub(crate) fn register(reg: &mut Registry) {
    const KEY: &str = "provider";
    reg.add_inline::<TrustPools, _>("inline", KEY, |config: InlinePoolConfig, cx| {
        base64_certificates(config.trusted_ca_certs, cx).map(boxed)
    });
    reg.add_inline::<TrustPools, _>("file", KEY, |config: FilePoolConfig, cx| {
        certificate_files(config.pem_files, cx).map(boxed)
    });
    reg.add_inline::<TrustPools, _>("system", KEY, |SystemPoolConfig {}, cx| {
        let node = cx.node();
        system_roots(node, cx).map(boxed)
    });
    reg.add_inline::<TrustPools, _>("storage", KEY, |config: StoragePoolConfig, cx| {
        let none = config.pem_keys.is_empty();
        let loaded = stored_certificates(config.pem_keys, config.storage, cx)?;
        if none {
            let node = cx.node();
            return Err(cx.reject_help(
                node,
                "no PEM keys specified",
                "name what is in storage in \"pem_keys\", such as [\"clients/ca.pem\"]",
            ));
        }
        Ok(boxed(loaded))
    });
    reg.add_inline::<TrustPools, _>("pki_root", KEY, |config: AuthorityPoolConfig, cx| {
        own_authorities(config.authority, Tier::Root, cx).map(Box::new)
    });
    reg.add_inline::<TrustPools, _>(
        "pki_intermediate",
        KEY,
        |config: AuthorityPoolConfig, cx| {
            own_authorities(config.authority, Tier::Intermediate, cx).map(Box::new)
        },
    );
    reg.add_inline::<TrustPools, _>("combined", KEY, |config: CombinedPoolConfig, cx| {
        if config.sources.is_empty() {
            let node = cx.node();
            return Err(cx.reject_help(
                node,
                "no sources specified for combined CA pool",
                "name the pools in \"sources\", such as [{\"provider\": \"system\"}]",
            ));
        }
        let pools = cx.all(config.sources, |cx, raw| trust_pool(&raw, cx))?;
        let mut together = TrustPool::default();
        for pool in pools {
            together.extend(pool);
        }
        Ok(Box::new(together))
    });
}

fn boxed(fixed: Vec<CertificateDer<'static>>) -> Box<TrustPool> {
    Box::new(fixed.into())
}

/// The pool that the object `raw` describes.
///
/// # Errors
/// It was refused, and the reason was reported.
pub(crate) fn trust_pool(raw: &RawNode, cx: &mut Provision<'_>) -> Result<TrustPool, Rejected> {
    let document = cx.document();
    let provider = document.member(raw.node(), "provider");
    if let Some((provider, Value::String(name))) = provider.map(|node| (node, document.value(node)))
        && name == "http"
    {
        return Err(cx.reject_help(
            provider,
            "the trust pool provider http is not in this build yet",
            "use file or inline with the certificates of the authority",
        ));
    }
    cx.inline::<TrustPools>(raw.node(), "provider")
        .map(|pool| *pool)
}

/// Authorities of the application `pki`.
fn own_authorities(
    ids: Vec<At<String>>,
    tier: Tier,
    cx: &mut Provision<'_>,
) -> Result<TrustPool, Rejected> {
    let (node, document) = (cx.node(), cx.document());
    let provider = match tier {
        Tier::Root => "pki_root",
        Tier::Intermediate => "pki_intermediate",
    };
    // Who means an authority of their own is not given one that nobody ever used.
    let apps = document.member(document.root(), "apps");
    if apps.and_then(|apps| document.member(apps, "pki")).is_none() {
        return Err(cx.reject_help(
            node,
            format!("{provider} CA pool requires that the application pki is configured"),
            "write \"pki\": {} in apps for the authority local, or configure the authorities there",
        ));
    }
    if ids.is_empty() {
        return Err(cx.reject_help(
            node,
            "no authorities specified",
            "name them in \"authority\", such as [\"local\"]",
        ));
    }
    let app = cx.app::<PkiApp>()?;
    let followed = cx.all(ids, |cx, id| {
        let Some(authority) = app.authority(&id, cx)? else {
            return Err(cx.reject_help(
                id.node(),
                format!("no certificate authority configured with id: {}", *id),
                "configure it in apps.pki.certificate_authorities, or write \"local\"",
            ));
        };
        if tier == Tier::Root && !authority.has_root() {
            return Err(cx.reject_help(
                id.node(),
                format!("CA {} has no root certificate, only an intermediate that is given", *id),
                "give its root in apps.pki.certificate_authorities, or write the provider pki_intermediate",
            ));
        }
        Ok((authority, tier))
    })?;
    Ok(TrustPool {
        fixed: Vec::new(),
        followed,
    })
}

/// Roots to verify with.
///
/// # Errors
/// There are none, or one of them is no certificate of an authority. Reported at `node`.
fn root_store(
    certificates: Vec<CertificateDer<'static>>,
    node: Node,
    cx: &mut Provision<'_>,
) -> Result<RootCertStore, Rejected> {
    if certificates.is_empty() {
        return Err(cx.reject_help(
            node,
            "the trust pool is empty, so nobody would be trusted",
            "name at least one certificate, or the provider system",
        ));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add(certificate)
            .map_err(|error| cx.reject(node, format!("parsing CA certificate: {error}")))?;
    }
    Ok(roots)
}

/// The authorities that the system trusts: where OpenSSL looks for them, or `SSL_CERT_FILE` and `SSL_CERT_DIR`.
///
/// # Errors
/// There are none. Reported at `node`.
pub(crate) fn system_roots(
    node: Node,
    cx: &mut Provision<'_>,
) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let system = cx.app::<SystemRoots>()?;
    if system.certificates.is_empty() {
        let why = match &system.error {
            Some(error) => format!("the system's trusted certificates cannot be read: {error}"),
            None => "the system has no trusted certificates".to_owned(),
        };
        return Err(cx.reject_help(
            node,
            why,
            "install them (Debian: ca-certificates), set SSL_CERT_FILE, or name the authorities to trust",
        ));
    }
    Ok(system.certificates.clone())
}

/// What the system trusts, read once for a configuration however many ask. Not registered: there is nothing to
/// configure.
struct SystemRoots {
    certificates: Vec<CertificateDer<'static>>,
    error: Option<String>,
}

impl AppModule for SystemRoots {
    const NAME: &'static str = "tls.system_roots";
    type Config = ();

    fn provision((): (), _: &mut Provision<'_>) -> Result<Self, Rejected> {
        let mut loaded = rustls_native_certs::load_native_certs();
        // Stores of systems hold certificates that no library takes any more; they are none of the user's making.
        let mut sound = RootCertStore::empty();
        loaded
            .certs
            .retain(|certificate| sound.add(certificate.clone()).is_ok());
        Ok(Self {
            certificates: loaded.certs,
            error: loaded.errors.first().map(ToString::to_string),
        })
    }
}

/// The certificates in PEM files.
pub(crate) fn certificate_files(
    files: Vec<At<String>>,
    cx: &mut Provision<'_>,
) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let loaded = cx.all(files, |cx, file| {
        let text = read_file(&file, cx)?;
        pem::certificates(&text)
            .map_err(|error| cx.reject(file.node(), format!("{}: {error}", *file)))
    })?;
    Ok(loaded.into_iter().flatten().collect())
}

/// The certificates under keys of a storage.
pub(crate) fn stored_certificates(
    keys: Vec<At<String>>,
    own: Option<RawNode>,
    cx: &mut Provision<'_>,
) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let storage = storage::of_part(own, cx)?;
    let loaded = cx.all(keys, |cx, key| {
        let expanded = cx.expand_known(&key)?;
        let text = storage.load(&expanded).map_err(|error| {
            cx.reject(
                key.node(),
                format!("error loading cert '{expanded}' from storage: {error}"),
            )
        })?;
        pem::certificates(&text).map_err(|error| {
            let file = storage.describe(&expanded);
            cx.reject(key.node(), format!("{file}: {error}"))
        })
    })?;
    Ok(loaded.into_iter().flatten().collect())
}

/// The certificates in texts: DER in base64.
pub(crate) fn base64_certificates(
    texts: Vec<At<String>>,
    cx: &mut Provision<'_>,
) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let loaded = cx.all(texts.into_iter().enumerate(), |cx, (i, text)| {
        // PEM is base64 between two lines.
        let armored = format!(
            "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
            *text
        );
        pem::certificates(armored.as_bytes()).map_err(|error| {
            cx.reject(
                text.node(),
                format!("parsing certificate at index {i}: {error}"),
            )
        })
    })?;
    Ok(loaded.into_iter().flatten().collect())
}
