//! The cipher suites: which come first, and how those of TLS 1.3 derive keys.

use std::sync::LazyLock;

use aws_lc_rs::hmac;
use rustls::crypto::aws_lc_rs::{ALL_CIPHER_SUITES, cipher_suite};
use rustls::crypto::hmac::{Hmac, Key, Tag};
use rustls::crypto::tls13::{Hkdf, HkdfExpander, HkdfUsingHmac, OkmBlock};
use rustls::{CipherSuite, CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};

use crate::ClientHello;

/// All there are, those of TLS 1.3 in front: AES-128-GCM, AES-256-GCM, ChaCha20-Poly1305. Then those of TLS 1.2: AES-256-GCM,
/// AES-128-GCM, ChaCha20-Poly1305.
///
/// AES-128-GCM leads TLS 1.3 as it does with the reference and in browsers: nobody breaks 128 bits, and SHA-256, which processors
/// have instructions for, goes with it. SHA-384 was 44 % of the process's instructions in a resumed
/// handshake.
pub(crate) fn all() -> &'static [SupportedCipherSuite] {
    static ALL: LazyLock<Vec<SupportedCipherSuite>> = LazyLock::new(|| {
        let tls13 = TLS13.iter().map(SupportedCipherSuite::Tls13);
        let older = ALL_CIPHER_SUITES
            .iter()
            .filter(|suite| suite.tls13().is_none());
        tls13.chain(older.copied()).collect()
    });
    &ALL
}

/// Puts those with ChaCha20-Poly1305 in front and leaves the others as they are; so it does, if the order of those of TLS 1.2 was
/// `chosen` by somebody, with these.
pub(crate) fn put_chacha_first(suites: &mut [SupportedCipherSuite], chosen: bool) {
    suites.sort_by_key(|suite| {
        let movable = suite.tls13().is_some() || !chosen;
        !(movable && CHACHA.contains(&suite.suite()))
    });
}

/// Whether AES-GCM is fast here, by instructions of the processor.
pub(crate) fn has_fast_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Whether the first suite of a client that is known here is one with ChaCha20-Poly1305: it has no instructions for AES.
pub(crate) fn prefers_chacha(hello: &ClientHello) -> bool {
    let mut known = hello.cipher_suites().iter().filter_map(|offered| {
        let mut suites = ALL_CIPHER_SUITES.iter().map(SupportedCipherSuite::suite);
        suites.find(|suite| u16::from(*suite) == *offered)
    });
    known.next().is_some_and(|first| CHACHA.contains(&first))
}

const CHACHA: [CipherSuite; 3] = [
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The library's suites of TLS 1.3 with another HKDF.
///
/// Its own extracts anew for every key that it expands from an extracted secret, and hashes the padded secret for each. With a key
/// that is kept, as below, what depends on the secret alone is hashed once.
static TLS13: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
    let suites = [
        (cipher_suite::TLS13_AES_128_GCM_SHA256, HKDF_SHA256),
        (cipher_suite::TLS13_AES_256_GCM_SHA384, HKDF_SHA384),
        (cipher_suite::TLS13_CHACHA20_POLY1305_SHA256, HKDF_SHA256),
    ];
    let suites = suites.into_iter().filter_map(|(suite, hkdf_provider)| {
        let suite = suite.tls13()?;
        Some(Tls13CipherSuite {
            common: CipherSuiteCommon {
                suite: suite.common.suite,
                hash_provider: suite.common.hash_provider,
                confidentiality_limit: suite.common.confidentiality_limit,
            },
            hkdf_provider,
            aead_alg: suite.aead_alg,
            quic: None,
        })
    });
    suites.collect()
});

const HKDF_SHA256: &dyn Hkdf = &WithKeptKeys(HkdfUsingHmac(&AwsHmac(hmac::HMAC_SHA256)));
const HKDF_SHA384: &dyn Hkdf = &WithKeptKeys(HkdfUsingHmac(&AwsHmac(hmac::HMAC_SHA384)));

/// That of rustls, but that it leaves no copies of extracted secrets in memory that was allocated: those are overwritten.
struct WithKeptKeys(HkdfUsingHmac<'static>);

impl Hkdf for WithKeptKeys {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        let HkdfUsingHmac(hmac) = self.0;
        self.extract_from_secret(salt, &[0; Tag::MAX_LEN][..hmac.hash_output_len()])
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        let HkdfUsingHmac(hmac) = self.0;
        let salt = salt.unwrap_or(&[0; Tag::MAX_LEN][..hmac.hash_output_len()]);
        let extracted = hmac.with_key(salt).sign(&[secret]);
        self.expander_for_okm(&OkmBlock::new(extracted.as_ref()))
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        self.0.expander_for_okm(okm)
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> Tag {
        self.0.hmac_sign(key, message)
    }
}

struct AwsHmac(hmac::Algorithm);

impl Hmac for AwsHmac {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(AwsKey(hmac::Key::new(self.0, key)))
    }

    fn hash_output_len(&self) -> usize {
        self.0.tag_len()
    }
}

/// Has the padded key hashed already.
struct AwsKey(hmac::Key);

impl Key for AwsKey {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(first);
        middle.iter().for_each(|part| context.update(part));
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.0.algorithm().tag_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library's own, which is tested with the vectors of RFC 5869, is the measure.
    #[test]
    fn keys_are_derived_as_the_library_derives_them() {
        assert_eq!(TLS13.len(), 3);
        for ours in TLS13.iter() {
            let same = |suite: &&SupportedCipherSuite| suite.suite() == ours.common.suite;
            let theirs = ALL_CIPHER_SUITES.iter().find(same).unwrap();
            let theirs = theirs.tls13().unwrap().hkdf_provider;
            let ours = ours.hkdf_provider;
            for salt in [None, Some(&b""[..]), Some(&[7; 32]), Some(&[8; 200])] {
                let pairs = [
                    (
                        ours.extract_from_zero_ikm(salt),
                        theirs.extract_from_zero_ikm(salt),
                    ),
                    (
                        ours.extract_from_secret(salt, b"secret"),
                        theirs.extract_from_secret(salt, b"secret"),
                    ),
                ];
                for (ours_prk, theirs_prk) in pairs {
                    assert_eq!(ours_prk.hash_len(), theirs_prk.hash_len());
                    let block = ours_prk.expand_block(&[b"a", b"", b"bc"]);
                    let expected = theirs_prk.expand_block(&[b"ab", b"c"]);
                    assert_eq!(block.as_ref(), expected.as_ref());
                    // Once more, of the same key.
                    let again = ours_prk.expand_block(&[b"abc"]);
                    assert_eq!(again.as_ref(), expected.as_ref());
                    for length in [1, 12, 32, 48, 49, 255 * ours_prk.hash_len()] {
                        let (mut a, mut b) = (vec![0; length], vec![1; length]);
                        assert!(ours_prk.expand_slice(&[b"info"], &mut a).is_ok());
                        assert!(theirs_prk.expand_slice(&[b"info"], &mut b).is_ok());
                        assert_eq!(a, b);
                    }
                    let mut long = vec![0; 255 * ours_prk.hash_len() + 1];
                    assert!(ours_prk.expand_slice(&[b"info"], &mut long).is_err());
                    let of_okm = ours.expander_for_okm(&block).expand_block(&[b"x"]);
                    let expected_okm = theirs.expander_for_okm(&block).expand_block(&[b"x"]);
                    assert_eq!(of_okm.as_ref(), expected_okm.as_ref());
                    let tag = ours.hmac_sign(&block, b"message");
                    assert_eq!(tag.as_ref(), theirs.hmac_sign(&block, b"message").as_ref());
                }
            }
        }
    }

    #[test]
    fn chacha_comes_in_front_and_the_rest_stays_in_order() {
        let names = |suites: &[SupportedCipherSuite]| -> Vec<u16> {
            suites.iter().map(|suite| suite.suite().into()).collect()
        };
        let mut suites = all().to_vec();
        assert_eq!(
            names(&suites),
            [
                0x1301, 0x1302, 0x1303, 0xC02C, 0xC02B, 0xCCA9, 0xC030, 0xC02F, 0xCCA8
            ]
        );
        put_chacha_first(&mut suites, true);
        assert_eq!(
            names(&suites),
            [
                0x1303, 0x1301, 0x1302, 0xC02C, 0xC02B, 0xCCA9, 0xC030, 0xC02F, 0xCCA8
            ]
        );
        put_chacha_first(&mut suites, false);
        assert_eq!(
            names(&suites),
            [
                0x1303, 0xCCA9, 0xCCA8, 0x1301, 0x1302, 0xC02C, 0xC02B, 0xC030, 0xC02F
            ]
        );
    }
}
