//! PEM texts (RFC 7468): certificate chains and private keys.
//!
//! The only user of `rustls-pemfile`, which is archived (RUSTSEC-2025-0134: unmaintained, no vulnerability) and a thin
//! layer over `rustls-pki-types`. The functions here are all that would have to be rewritten.

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_pemfile::Item;

/// Why a PEM text was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PemError {
    /// A block that does not end, or is not base64.
    #[error("not valid PEM: {0}")]
    Syntax(std::io::Error),
    /// No block of the kind that was looked for.
    #[error("no certificate block found")]
    NoCertificate,
    /// No private key of a form that is known.
    #[error("no private key block found")]
    NoKey,
    /// The key has a passphrase.
    #[error("encrypted private keys are not supported; please decrypt the key first")]
    EncryptedKey,
}

/// The certificates of `text`, in order; blocks of other kinds are passed over.
///
/// # Errors
/// There is none, or a block is malformed.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut found = Vec::new();
    for item in rustls_pemfile::read_all(&mut &*text) {
        if let Item::X509Certificate(certificate) = item.map_err(PemError::Syntax)? {
            found.push(certificate);
        }
    }
    if found.is_empty() {
        return Err(PemError::NoCertificate);
    }
    Ok(found)
}

/// The first private key of `text`: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// There is none, it is encrypted, or a block before it is malformed.
pub(crate) fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    for item in rustls_pemfile::read_all(&mut &*text) {
        let key = match item {
            Ok(Item::Pkcs1Key(key)) => key.into(),
            Ok(Item::Pkcs8Key(key)) => key.into(),
            Ok(Item::Sec1Key(key)) => key.into(),
            Ok(_) => continue,
            // The headers of an encrypted block (RFC 1421) are no base64.
            Err(_) if is_encrypted(text) => return Err(PemError::EncryptedKey),
            Err(error) => return Err(PemError::Syntax(error)),
        };
        return Ok(key);
    }
    match is_encrypted(text) {
        true => Err(PemError::EncryptedKey),
        false => Err(PemError::NoKey),
    }
}

/// Either of the two ways to write an encrypted key.
fn is_encrypted(text: &[u8]) -> bool {
    [
        &b"BEGIN ENCRYPTED PRIVATE KEY"[..],
        b"Proc-Type: 4,ENCRYPTED",
    ]
    .iter()
    .any(|mark| text.windows(mark.len()).any(|part| part == *mark))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_key_is_found_behind_blocks_of_other_kinds() {
        let text = format!(
            "-----BEGIN EC PARAMETERS-----\nAAAA\n-----END EC PARAMETERS-----\n\
             -----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{KEY}"
        );
        assert!(matches!(
            private_key(text.as_bytes()),
            Ok(PrivateKeyDer::Pkcs8(_))
        ));
        assert_eq!(certificates(text.as_bytes()).unwrap().len(), 1);
    }

    /// Row D1 of docs/defects.md.
    #[test]
    fn both_kinds_of_encrypted_keys_are_named() {
        for text in [
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n\
             -----END EC PRIVATE KEY-----\n",
        ] {
            assert!(
                matches!(private_key(text.as_bytes()), Err(PemError::EncryptedKey)),
                "{text}"
            );
        }
    }

    #[test]
    fn short_and_empty_texts_hold_nothing() {
        for text in ["", "x", "ENCRYPTED"] {
            assert!(matches!(private_key(text.as_bytes()), Err(PemError::NoKey)));
            assert!(matches!(
                certificates(text.as_bytes()),
                Err(PemError::NoCertificate)
            ));
        }
        assert!(matches!(
            certificates(KEY.as_bytes()),
            Err(PemError::NoCertificate)
        ));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r"(-----(BEGIN|END) [A-Z ]{0,12}-----\n|[A-Za-z0-9+/=\n]{0,20}){0,8}") {
            let _ = certificates(text.as_bytes());
            let _ = private_key(text.as_bytes());
        }
    }
}
