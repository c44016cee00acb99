//! Trust pools: the certificates of authorities that clients or upstreams are verified against.

use l4_core::config::{Node, Value};
use l4_core::prelude::*;
use l4_core::{AppModule, Kind};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use serde::Deserialize;

use crate::app::read_file;
use crate::pem;

/// The namespace `tls.ca_pool.source`: certificates of authorities that are trusted.
pub enum TrustPools {}

impl Kind for TrustPools {
    const NAMESPACE: &'static str = "tls.ca_pool.source";
    type Object = Vec<CertificateDer<'static>>;
}

/// Authorities given in the configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InlinePoolConfig {
    /// Certificates: DER in base64.
    trusted_ca_certs: Vec<At<String>>,
}

/// Authorities in files.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FilePoolConfig {
    /// PEM files, such as `["/etc/ssl/clients.pem"]`; blocks other than certificates are passed over.
    pem_files: Vec<At<String>>,
}

/// The authorities that the system trusts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SystemPoolConfig {}

/// The authorities of several pools together.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CombinedPoolConfig {
    /// The pools, such as `[{"provider": "system"}, {"provider": "file", "pem_files": ["/etc/ssl/own-ca.pem"]}]`.
    #[serde(default)]
    sources: Vec<RawNode>,
}

pub(crate) fn register(reg: &mut Registry) {
    const KEY: &str = "provider";
    reg.add_inline::<TrustPools, _>("inline", KEY, |config: InlinePoolConfig, cx| {
        base64_certificates(config.trusted_ca_certs, cx).map(Box::new)
    });
    reg.add_inline::<TrustPools, _>("file", KEY, |config: FilePoolConfig, cx| {
        certificate_files(config.pem_files, cx).map(Box::new)
    });
    reg.add_inline::<TrustPools, _>("system", KEY, |SystemPoolConfig {}, cx| {
        let node = cx.node();
        system_roots(node, cx).map(Box::new)
    });
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
        Ok(Box::new(pools.into_iter().flatten().collect()))
    });
}

/// The pool that the object `raw` describes.
///
/// # Errors
/// It was refused, and the reason was reported.
pub(crate) fn trust_pool(
    raw: &RawNode,
    cx: &mut Provision<'_>,
) -> Result<Vec<CertificateDer<'static>>, Rejected> {
    let document = cx.document();
    let provider = document.member(raw.node(), "provider");
    if let Some((provider, Value::String(name))) = provider.map(|node| (node, document.value(node)))
        && NOT_YET.contains(&name)
    {
        return Err(cx.reject_help(
            provider,
            format!("the trust pool provider {name} is not in this build yet"),
            "use file or inline with the certificates of the authority",
        ));
    }
    cx.inline::<TrustPools>(raw.node(), "provider")
        .map(|pool| *pool)
}

/// Providers that exist, but not here.
const NOT_YET: [&str; 4] = ["http", "storage", "pki_root", "pki_intermediate"];

/// Roots to verify with.
///
/// # Errors
/// There are none, or one of them is no certificate of an authority. Reported at `node`.
pub(crate) fn root_store(
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
