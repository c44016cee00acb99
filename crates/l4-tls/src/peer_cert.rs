//! How the certificate of an upstream is verified, and what stands for itself in a trust pool.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use x509_parser::extensions::ExtendedKeyUsage;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::policy::provider;
use crate::trust_pool::Trusted;

/// Verifies the chain and the name; and takes a certificate that is itself in the pool.
///
/// A self-signed certificate as `openssl req -x509` makes it says that it is an authority, and webpki refuses one as a
/// server's. Who puts exactly this certificate into the pool means it: its validity and its name are checked.
#[derive(Debug)]
pub(crate) struct PoolVerifier {
    trusted: Arc<Trusted<Arc<WebPkiServerVerifier>>>,
    pinned: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PoolVerifier {
    pub(crate) fn new(
        trusted: Arc<Trusted<Arc<WebPkiServerVerifier>>>,
        pinned: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            trusted,
            pinned,
            algorithms: provider().signature_verification_algorithms,
        }
    }

    /// Whether `leaf` is in the pool and good for a server of this name now.
    fn is_pinned(&self, leaf: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        let named = || {
            ParsedCertificate::try_from(leaf)
                .is_ok_and(|leaf| verify_server_name(&leaf, name).is_ok())
        };
        stands_for_itself(&self.pinned, leaf, now, |usage| usage.server_auth) && named()
    }
}

/// Whether `leaf` is itself in `pool`, and valid now for what `is_for` asks.
pub(crate) fn stands_for_itself(
    pool: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    now: UnixTime,
    is_for: fn(&ExtendedKeyUsage<'_>) -> bool,
) -> bool {
    if !pool.iter().any(|known| **known == **leaf) {
        return false;
    }
    let Ok((_, parsed)) = X509Certificate::from_der(leaf) else {
        return false;
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (from, to) = (
        parsed.validity().not_before.timestamp(),
        parsed.validity().not_after.timestamp(),
    );
    // Without the extension a certificate is for every use (RFC 5280 section 4.2.1.12).
    let usable = match parsed.extended_key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.any || is_for(usage.value)),
        Err(_) => false,
    };
    usable && (from..=to).contains(&now)
}

impl ServerCertVerifier for PoolVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trusted
            .current()
            .verify(|chain| chain.verify_server_cert(leaf, intermediates, name, ocsp, now))
            .or_else(|error| match self.is_pinned(leaf, name, now) {
                true => Ok(ServerCertVerified::assertion()),
                false => Err(error),
            })
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

/// Takes any certificate, and any signature: with any certificate, a signature made with its key proves nothing, and
/// checking it would refuse the old certificates that the setting is there for.
#[derive(Debug)]
pub(crate) struct TrustAnybody;

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
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
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
