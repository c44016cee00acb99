//! Keys that are made here: their kinds, and how they are written to storage and read back.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, EcPrivateKeyRfc5915Der, Pkcs8V1Der};
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair};
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::asn1_rs::{Any, FromDer as _, Sequence};

/// What kind of key a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum KeyType {
    Ed25519,
    #[default]
    P256,
    P384,
    Rsa2048,
    Rsa4096,
}

/// Why a key could not be made, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The cryptography failed, which it does only without memory or randomness.
    #[error("a key could not be made")]
    Generation,
    /// The text has no block that ends in `PRIVATE KEY`.
    #[error("no private key block found")]
    Absent,
    /// The key cannot be read or is of a kind that cannot sign.
    #[error("the private key cannot be used")]
    Unusable,
}

impl From<aws_lc_rs::error::Unspecified> for KeyError {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Generation
    }
}

impl KeyType {
    pub(crate) const NAMES: [(&str, Self); 5] = [
        ("ed25519", Self::Ed25519),
        ("p256", Self::P256),
        ("p384", Self::P384),
        ("rsa2048", Self::Rsa2048),
        ("rsa4096", Self::Rsa4096),
    ];

    /// A new key.
    ///
    /// # Errors
    /// See [`KeyError::Generation`].
    pub fn generate(self) -> Result<PrivateKey, KeyError> {
        match self {
            Self::P256 => ecdsa_key(&signature::ECDSA_P256_SHA256_ASN1_SIGNING),
            Self::P384 => ecdsa_key(&signature::ECDSA_P384_SHA384_ASN1_SIGNING),
            Self::Rsa2048 => rsa_key(KeySize::Rsa2048),
            Self::Rsa4096 => rsa_key(KeySize::Rsa4096),
            Self::Ed25519 => {
                let pkcs8 = Ed25519KeyPair::generate()?.to_pkcs8v1()?;
                // Not a label of any standard, but that of certmagic, which reads and writes no other.
                PrivateKey::new(pkcs8.as_ref().to_vec(), "ED25519 PRIVATE KEY")
            }
        }
    }
}

fn ecdsa_key(algorithm: &'static EcdsaSigningAlgorithm) -> Result<PrivateKey, KeyError> {
    let key = EcdsaKeyPair::generate(algorithm)?;
    let sec1: EcPrivateKeyRfc5915Der<'_> = key.private_key().as_der()?;
    PrivateKey::new(sec1.as_ref().to_vec(), "EC PRIVATE KEY")
}

fn rsa_key(size: KeySize) -> Result<PrivateKey, KeyError> {
    let pkcs8: Pkcs8V1Der<'_> = rsa::KeyPair::generate(size)?.as_der()?;
    PrivateKey::new(inside_pkcs8(pkcs8.as_ref())?, "RSA PRIVATE KEY")
}

/// What the third member of a PKCS#8 structure (RFC 5958) holds: for RSA, the key by PKCS#1.
fn inside_pkcs8(pkcs8: &[u8]) -> Result<Vec<u8>, KeyError> {
    let inside = || {
        let (_, outer) = Sequence::from_der(pkcs8).ok()?;
        let (rest, _version) = Any::from_der(&outer.content).ok()?;
        let (rest, _algorithm) = Any::from_der(rest).ok()?;
        let (_, key) = Any::from_der(rest).ok()?;
        Some(key.data.to_vec())
    };
    inside().ok_or(KeyError::Generation)
}

/// A private key that can sign certificates and requests.
pub struct PrivateKey {
    pair: KeyPair,
    pem: String,
}

/// Without the key: what is printed may end in a log.
impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").finish_non_exhaustive()
    }
}

impl PrivateKey {
    fn new(der: Vec<u8>, label: &str) -> Result<Self, KeyError> {
        let pem = encode(label, der.clone());
        Ok(Self {
            pair: pair(der)?,
            pem,
        })
    }

    /// The first key of a PEM text: PKCS#8, PKCS#1 or SEC1, whatever its label says.
    ///
    /// # Errors
    /// There is none, or it cannot sign.
    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        let der = private_key_der(text)?;
        Ok(Self {
            pair: pair(der.secret_der().to_vec())?,
            pem: String::from_utf8_lossy(text).into_owned(),
        })
    }

    /// Signs with the key.
    pub fn pair(&self) -> &KeyPair {
        &self.pair
    }

    /// As it is written to storage.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

fn pair(der: Vec<u8>) -> Result<KeyPair, KeyError> {
    let der = PrivateKeyDer::try_from(der).map_err(|_| KeyError::Unusable)?;
    KeyPair::try_from(&der).map_err(|_| KeyError::Unusable)
}

/// The first block of `text` with a label that ends in `PRIVATE KEY`. What is in it says itself what it is.
pub(crate) fn private_key_der(text: &[u8]) -> Result<PrivateKeyDer<'static>, KeyError> {
    let blocks = pem::parse_many(text).map_err(|_| KeyError::Absent)?;
    let block = blocks
        .into_iter()
        .find(|block| block.tag().ends_with("PRIVATE KEY"))
        .ok_or(KeyError::Absent)?;
    PrivateKeyDer::try_from(block.into_contents()).map_err(|_| KeyError::Unusable)
}

/// A certificate chain as it is written to storage.
pub(crate) fn chain_pem<'a>(chain: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    let blocks = chain
        .into_iter()
        .map(|der| encode("CERTIFICATE", der.to_vec()));
    blocks.collect()
}

fn encode(label: &str, content: Vec<u8>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, content), config)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::PublicKeyData as _;

    use super::*;

    #[test]
    fn every_kind_of_key_is_read_back_from_what_is_written() {
        // Making a key of RSA with 4096 bits takes half a minute without optimisation.
        let kinds = KeyType::NAMES
            .into_iter()
            .filter(|(name, _)| *name != "rsa4096");
        for (name, kind) in kinds {
            let key = kind.generate().unwrap();
            let label = match kind {
                KeyType::P256 | KeyType::P384 => "EC PRIVATE KEY",
                KeyType::Rsa2048 | KeyType::Rsa4096 => "RSA PRIVATE KEY",
                KeyType::Ed25519 => "ED25519 PRIVATE KEY",
            };
            assert!(
                key.pem().starts_with(&format!("-----BEGIN {label}-----\n")),
                "{name}"
            );
            let read = PrivateKey::from_pem(key.pem().as_bytes()).unwrap();
            assert_eq!(read.pair().der_bytes(), key.pair().der_bytes(), "{name}");
        }
    }

    #[test]
    fn nothing_of_a_key_is_printed_for_debugging() {
        let key = KeyType::P256.generate().unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKey { .. }");
    }

    #[test]
    fn the_label_of_a_key_does_not_matter() {
        for kind in [KeyType::P256, KeyType::Rsa2048, KeyType::Ed25519] {
            let key = kind.generate().unwrap();
            for label in [
                "PRIVATE KEY",
                "EC PRIVATE KEY",
                "RSA PRIVATE KEY",
                "X PRIVATE KEY",
            ] {
                let der = private_key_der(key.pem().as_bytes()).unwrap();
                let text = format!(
                    "{}{}",
                    encode("EC PARAMETERS", vec![5, 0]),
                    encode(label, der.secret_der().to_vec())
                );
                let read = PrivateKey::from_pem(text.as_bytes()).unwrap();
                assert_eq!(read.pair().der_bytes(), key.pair().der_bytes(), "{label}");
            }
        }
        let none = encode("CERTIFICATE", vec![5, 0]);
        assert!(matches!(
            PrivateKey::from_pem(none.as_bytes()),
            Err(KeyError::Absent)
        ));
        let broken = encode("EC PRIVATE KEY", vec![5, 0]);
        assert!(matches!(
            PrivateKey::from_pem(broken.as_bytes()),
            Err(KeyError::Unusable)
        ));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r"(-----(BEGIN|END) [A-Z ]{0,12}PRIVATE KEY-----\n|[A-Za-z0-9+/=\n]{0,20}){0,8}") {
            let _ = PrivateKey::from_pem(text.as_bytes());
        }
    }
}
