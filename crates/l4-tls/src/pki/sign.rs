//! Making certificates: values in, values out. Nothing here reads a clock or a file.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::automate::Subject;
use crate::keys::{KeyError, KeyType, PrivateKey};

/// From when to when something is valid, in seconds since 1970; both are within.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
}

impl Validity {
    pub(crate) fn new(not_before: i64, lifetime: Duration) -> Self {
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Self {
            not_before,
            not_after: not_before.saturating_add(lifetime),
        }
    }

    fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        }
    }

    /// That of the first certificate of a chain.
    pub(crate) fn of_chain(chain: &[CertificateDer<'_>]) -> Option<Self> {
        Some(Self::of(&parse(chain.first()?).ok()?))
    }

    /// The whole time, with its last second.
    pub(crate) fn life(self) -> f64 {
        (self.not_after as f64) + 1.0 - (self.not_before as f64)
    }

    /// What is left of it after `now`; negative when it is over.
    pub(crate) fn left(self, now: i64) -> f64 {
        (self.not_after as f64) + 1.0 - (now as f64)
    }
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// There is no key, or it is not one that can sign.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate to sign with, or the one to be made, cannot be encoded.
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
    /// The certificate to sign with is not one that can be signed with.
    #[error("{0}")]
    Unusable(&'static str),
}

/// A certificate that signs others, with its key.
#[derive(Debug)]
pub(crate) struct Signer {
    /// Its own certificate first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKey,
    pub(crate) validity: Validity,
}

impl Signer {
    /// Joins a chain with the key of its first certificate.
    pub(crate) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
    ) -> Result<Self, SignError> {
        let der = chain
            .first()
            .ok_or(SignError::Unusable("there is no certificate"))?;
        let certificate = parse(der)?;
        if certificate.public_key().raw != key.pair().subject_public_key_info() {
            return Err(SignError::Unusable("private key does not match public key"));
        }
        if !certificate.is_ca() {
            return Err(SignError::Unusable(
                "the certificate is not one of an authority",
            ));
        }
        // What is signed names its signer. An attribute that occurs twice would get lost on the way there.
        let mut kinds = Vec::new();
        for set in certificate.subject().iter() {
            let attributes: Vec<_> = set.iter().map(|attribute| attribute.attr_type()).collect();
            let [kind] = attributes[..] else {
                return Err(SignError::Unusable(MULTIPLE));
            };
            if kinds.contains(&kind) {
                return Err(SignError::Unusable(MULTIPLE));
            }
            kinds.push(kind);
        }
        let validity = Validity::of(&certificate);
        Ok(Self {
            chain,
            key,
            validity,
        })
    }

    fn sign(
        &self,
        params: &CertificateParams,
        key: &PrivateKey,
    ) -> Result<CertificateDer<'static>, SignError> {
        let der = self
            .chain
            .first()
            .ok_or(SignError::Unusable("there is no certificate"))?;
        let issuer = Issuer::from_ca_cert_der(der, self.key.pair())?;
        Ok(params.signed_by(key.pair(), &issuer)?.der().clone())
    }
}

const MULTIPLE: &str =
    "the subject of the certificate has an attribute twice, which this build cannot sign with";

/// How long a certificate is valid that nobody has given: none of its length is configurable.
pub(crate) const ROOT_LIFETIME: Duration = Duration::from_secs(3600 * 24 * 60 * 60);

/// Makes a root.
pub(crate) fn root(common_name: &str, now: i64) -> Result<Signer, SignError> {
    let key = KeyType::P256.generate()?;
    let params = authority(common_name, 1, Validity::new(now, ROOT_LIFETIME))?;
    let chain = vec![params.self_signed(key.pair())?.der().clone()];
    Signer::new(chain, key)
}

/// Makes an intermediate that `root` has signed.
pub(crate) fn intermediate(
    common_name: &str,
    root: &Signer,
    lifetime: Duration,
    now: i64,
) -> Result<Signer, SignError> {
    let key = KeyType::P256.generate()?;
    let mut params = authority(common_name, 0, Validity::new(now, lifetime))?;
    params.use_authority_key_identifier_extension = true;
    let chain = vec![root.sign(&params, &key)?];
    Signer::new(chain, key)
}

/// Makes the certificate of a server (or client) and says until when it is valid: not longer than the one it is signed
/// with.
pub(crate) fn leaf(
    subject: &Subject,
    key: &PrivateKey,
    signer: &Signer,
    lifetime: Duration,
    now: i64,
) -> Result<(CertificateDer<'static>, Validity), SignError> {
    let mut validity = Validity::new(now, lifetime);
    validity.not_after = validity.not_after.min(signer.validity.not_after);
    let mut params = CertificateParams::default();
    set_validity(&mut params, validity);
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![subject.alternative_name()?];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    // The library adds this one to certificates of authorities only. An OCTET STRING of at most 127 bytes.
    let id = params.key_identifier(key.pair());
    let length = u8::try_from(id.len()).unwrap_or_default();
    let content = [&[4, length], id.as_slice()].concat();
    params.custom_extensions = vec![CustomExtension::from_oid_content(SUBJECT_KEY_ID, content)];
    Ok((signer.sign(&params, key)?, validity))
}

/// RFC 5280 section 4.2.1.2.
const SUBJECT_KEY_ID: &[u64] = &[2, 5, 29, 14];

fn authority(
    common_name: &str,
    path_length: u8,
    validity: Validity,
) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, validity);
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // X.509 knows no year after 9999.
    let at = |seconds: i64| {
        epoch
            + Duration::from_secs(
                u64::try_from(seconds)
                    .unwrap_or_default()
                    .min(253_402_300_799),
            )
    };
    params.not_before = at(validity.not_before);
    params.not_after = at(validity.not_after);
}

/// 128 random bits.
fn serial() -> Result<rcgen::SerialNumber, SignError> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Generation)?;
    Ok(bytes.to_vec().into())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SignError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|_| SignError::Unusable("the certificate is malformed"))?;
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::{GeneralName, ParsedExtension};
    use x509_parser::oid_registry::{
        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
    };

    use super::*;

    const NOW: i64 = 1_780_000_000;
    const DAY: i64 = 24 * 60 * 60;
    const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

    fn authorities() -> (Signer, Signer) {
        let root = root("Root", NOW).unwrap();
        let intermediate = intermediate("Intermediate", &root, WEEK, NOW).unwrap();
        (root, intermediate)
    }

    fn subject_key_id(certificate: &X509Certificate<'_>) -> Vec<u8> {
        let extension = certificate
            .get_extension_unique(&OID_X509_EXT_SUBJECT_KEY_IDENTIFIER)
            .unwrap()
            .unwrap();
        assert!(!extension.critical);
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => id.0.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn authority_key_id(certificate: &X509Certificate<'_>) -> Vec<u8> {
        let extension = certificate
            .get_extension_unique(&OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER)
            .unwrap()
            .unwrap();
        match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                id.key_identifier.as_ref().unwrap().0.to_vec()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn authorities_may_sign_certificates_and_nothing_else() {
        let (root, intermediate) = authorities();
        let certificate = |signer: &Signer| signer.chain[0].clone();
        for (der, name, issuer, path_length, days) in [
            (certificate(&root), "CN=Root", "CN=Root", 1, 3600),
            (
                certificate(&intermediate),
                "CN=Intermediate",
                "CN=Root",
                0,
                7,
            ),
        ] {
            let certificate = parse(&der).unwrap();
            assert_eq!(certificate.subject().to_string(), name);
            assert_eq!(certificate.issuer().to_string(), issuer);
            assert_eq!(
                Validity::of(&certificate),
                Validity {
                    not_before: NOW,
                    not_after: NOW + days * DAY
                }
            );
            let constraints = certificate.basic_constraints().unwrap().unwrap();
            assert!(constraints.critical && constraints.value.ca);
            assert_eq!(constraints.value.path_len_constraint, Some(path_length));
            let usage = certificate.key_usage().unwrap().unwrap();
            assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
            assert!(!usage.value.digital_signature());
            assert!(certificate.extended_key_usage().unwrap().is_none());
            assert!(certificate.serial.bits() > 90, "{}", certificate.serial);
            assert_eq!(subject_key_id(&certificate).len(), 20);
        }
        let (root, intermediate) = (certificate(&root), certificate(&intermediate));
        let (root, intermediate) = (parse(&root).unwrap(), parse(&intermediate).unwrap());
        assert_eq!(authority_key_id(&intermediate), subject_key_id(&root));
    }

    #[test]
    fn a_leaf_is_for_its_one_name_only() {
        let (_, intermediate) = authorities();
        let key = KeyType::Ed25519.generate().unwrap();
        let hours = Duration::from_secs(12 * 60 * 60);
        for (name, expected) in [
            (
                "*.Bücher.internal",
                GeneralName::DNSName("*.xn--bcher-kva.internal"),
            ),
            ("192.168.0.1", GeneralName::IPAddress(&[192, 168, 0, 1])),
            ("spiffe://a/b", GeneralName::URI("spiffe://a/b")),
        ] {
            let subject = Subject::parse(name).unwrap();
            let (der, validity) = leaf(&subject, &key, &intermediate, hours, NOW).unwrap();
            assert_eq!(
                validity,
                Validity {
                    not_before: NOW,
                    not_after: NOW + DAY / 2
                }
            );
            let certificate = parse(&der).unwrap();
            assert_eq!(Validity::of(&certificate), validity);
            assert_eq!(certificate.subject().iter().count(), 0);
            let names = certificate
                .get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME)
                .unwrap()
                .unwrap();
            assert!(names.critical);
            match names.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    assert_eq!(names.general_names, [expected]);
                }
                other => panic!("{other:?}"),
            }
            let usage = certificate.key_usage().unwrap().unwrap();
            assert!(usage.critical);
            assert_eq!(usage.value.flags, 1, "digitalSignature alone");
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.server_auth && usage.client_auth && !usage.any);
            assert!(certificate.basic_constraints().unwrap().is_none());
            assert!(certificate.serial.bits() > 90, "{}", certificate.serial);
            let signer = parse(&intermediate.chain[0]).unwrap();
            assert_eq!(authority_key_id(&certificate), subject_key_id(&signer));
            assert_eq!(subject_key_id(&certificate).len(), 20);
            assert_eq!(certificate.issuer().as_raw(), signer.subject().as_raw());
        }
    }

    #[test]
    fn a_leaf_does_not_outlive_its_signer() {
        let (root, intermediate) = authorities();
        let key = KeyType::P256.generate().unwrap();
        let subject = Subject::parse("localhost").unwrap();
        let until = |signer, lifetime, now| {
            let (der, validity) = leaf(&subject, &key, signer, lifetime, now).unwrap();
            assert_eq!(Validity::of(&parse(&der).unwrap()), validity);
            validity.not_after - NOW
        };
        assert_eq!(until(&intermediate, 2 * WEEK, NOW), 7 * DAY);
        assert_eq!(until(&intermediate, WEEK, NOW + DAY), 7 * DAY);
        assert_eq!(until(&root, 2 * WEEK, NOW), 14 * DAY);
    }

    #[test]
    fn only_an_authority_with_its_own_key_signs() {
        let (root, intermediate) = authorities();
        let other = KeyType::P256.generate().unwrap();
        let message = |made: Result<Signer, SignError>| made.unwrap_err().to_string();
        assert_eq!(
            message(Signer::new(root.chain.clone(), other)),
            "private key does not match public key"
        );
        let key = KeyType::P256.generate().unwrap();
        let subject = Subject::parse("localhost").unwrap();
        let (der, _) = leaf(&subject, &key, &intermediate, WEEK, NOW).unwrap();
        assert_eq!(
            message(Signer::new(vec![der], key)),
            "the certificate is not one of an authority"
        );
        assert_eq!(
            message(Signer::new(vec![], KeyType::P256.generate().unwrap())),
            "there is no certificate"
        );
    }
}
