//! Certificates with their keys, and which of them a client gets.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::ClientHello;
use crate::automate::Slot;
use crate::pem::{self, PemError};
use crate::pki::sign::Validity;

/// A certificate chain with its key, and what is needed to choose it.
#[derive(Debug)]
pub struct Certificate {
    /// What the handshake needs of it.
    pub(crate) key: Arc<CertifiedKey>,
    /// Lower case, without repetition; addresses in their usual text form.
    names: Vec<Box<str>>,
    tags: Vec<Box<str>>,
    serial: String,
    organizations: Vec<Box<str>>,
    algorithm: Option<KeyAlgorithm>,
    /// Seconds since 1970.
    valid: std::ops::RangeInclusive<i64>,
}

/// What kind of key a certificate certifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyAlgorithm {
    Rsa,
    Dsa,
    Ecdsa,
}

/// Why a certificate was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Its text could not be read.
    #[error("certificate: {0}")]
    Chain(PemError),
    /// The text of its key could not be read.
    #[error("private key: {0}")]
    Key(PemError),
    /// The leaf is not an X.509 certificate.
    #[error("the certificate is malformed: {0}")]
    Malformed(String),
    /// The key is of a kind that cannot sign handshakes.
    #[error("the private key cannot be used: {0}")]
    UnusableKey(rustls::Error),
    /// The key belongs to another certificate.
    #[error("private key does not match public key")]
    KeyMismatch,
    /// Nothing could ask for it.
    #[error("certificate has no names")]
    NoNames,
}

impl Certificate {
    /// From the PEM texts of the chain, leaf first, and of its key.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        tags: Vec<Box<str>>,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        Self::new(certified_key(chain, key, provider)?, tags)
    }

    /// [`from_pem`](Self::from_pem) with the cryptography that everything else here uses: for loaders of other crates.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn load(chain: &[u8], key: &[u8], tags: Vec<Box<str>>) -> Result<Self, CertificateError> {
        Self::from_pem(chain, key, tags, &crate::policy::provider())
    }

    /// From the certificates of the chain, leaf first, and its key.
    pub(crate) fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        tags: Vec<Box<str>>,
        provider: &CryptoProvider,
    ) -> Result<Self, CertificateError> {
        Self::new(matching(chain, key, provider)?, tags)
    }

    fn new(key: CertifiedKey, tags: Vec<Box<str>>) -> Result<Self, CertificateError> {
        let malformed = |why: &dyn ToString| CertificateError::Malformed(why.to_string());
        let leaf = key.end_entity_cert().map_err(|error| malformed(&error))?;
        let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| malformed(&error))?;
        let names = names(&leaf);
        if names.is_empty() {
            return Err(CertificateError::NoNames);
        }
        Ok(Self {
            names,
            tags,
            serial: leaf.tbs_certificate.serial.to_string(),
            organizations: leaf
                .subject()
                .iter_organization()
                .filter_map(|o| o.as_str().ok().map(Into::into))
                .collect(),
            algorithm: match leaf.public_key().parsed() {
                Ok(PublicKey::RSA(_)) => Some(KeyAlgorithm::Rsa),
                Ok(PublicKey::DSA(_)) => Some(KeyAlgorithm::Dsa),
                Ok(PublicKey::EC(_)) => Some(KeyAlgorithm::Ecdsa),
                _ => None,
            },
            valid: leaf.validity().not_before.timestamp()..=leaf.validity().not_after.timestamp(),
            key: Arc::new(key),
        })
    }

    /// The names it is for, in lower case.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    pub(crate) fn validity(&self) -> Validity {
        Validity {
            not_before: *self.valid.start(),
            not_after: *self.valid.end(),
        }
    }

    /// How long it is valid after `now`; negative if it has expired.
    pub(crate) fn seconds_left(&self, now: UnixTime) -> i64 {
        self.valid.end().saturating_sub(seconds(now))
    }

    pub(crate) fn is_valid(&self, now: UnixTime) -> bool {
        self.valid.contains(&seconds(now))
    }

    /// Whether the client can verify what the key signs. A client that lists no schemes (TLS 1.2) can be anything.
    fn is_supported_by(&self, hello: &ClientHello) -> bool {
        let schemes: Vec<SignatureScheme> = hello
            .signature_schemes()
            .iter()
            .map(|scheme| SignatureScheme::from(*scheme))
            .collect();
        schemes.is_empty() || self.key.key.choose_scheme(&schemes).is_some()
    }
}

/// A chain with the key that belongs to it, from PEM texts.
///
/// # Errors
/// See [`CertificateError`].
pub(crate) fn certified_key(
    chain: &[u8],
    key: &[u8],
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let chain = pem::certificates(chain).map_err(CertificateError::Chain)?;
    let key = pem::private_key(key).map_err(CertificateError::Key)?;
    matching(chain, key, provider)
}

/// A chain with its key, if that is the key of the leaf.
fn matching(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(CertificateError::UnusableKey)?;
    let key = CertifiedKey::new(chain, key);
    match key.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(key),
        Err(rustls::Error::InconsistentKeys(_)) => Err(CertificateError::KeyMismatch),
        Err(error) => Err(CertificateError::Malformed(error.to_string())),
    }
}

fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

/// Subject common name, DNS, IP, email and URI names.
fn names(leaf: &X509Certificate<'_>) -> Vec<Box<str>> {
    let mut names: Vec<Box<str>> = Vec::new();
    let mut add = |name: &str| {
        let name = name.trim().to_lowercase();
        if !name.is_empty() && names.iter().all(|known| **known != *name) {
            names.push(name.into());
        }
    };
    for name in leaf.subject().iter_common_name() {
        add(name.as_str().unwrap_or_default());
    }
    for extension in leaf.extensions() {
        let ParsedExtension::SubjectAlternativeName(alternatives) = extension.parsed_extension()
        else {
            continue;
        };
        for name in &alternatives.general_names {
            match name {
                GeneralName::DNSName(name)
                | GeneralName::RFC822Name(name)
                | GeneralName::URI(name) => add(name),
                GeneralName::IPAddress(octets) => {
                    if let Some(ip) = ip(octets) {
                        add(&ip.to_string());
                    }
                }
                _ => {}
            }
        }
    }
    names
}

/// The address that the octets of an iPAddress name stand for.
pub(crate) fn ip(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// The certificates of a configuration, found by name.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    /// In the order they were loaded, which is the order of preference.
    loaded: Vec<Arc<Certificate>>,
    /// Those made here, which come and are renewed while this is in use. Behind the loaded ones.
    managed: Vec<Arc<Slot>>,
    by_name: HashMap<Box<str>, Named>,
}

/// What there is for a name, by place in the lists.
#[derive(Debug, Default)]
struct Named {
    loaded: Vec<usize>,
    managed: Option<usize>,
}

/// What there is for a client.
#[derive(Debug)]
pub(crate) enum Choice {
    Found(Arc<Certificate>),
    /// Nothing yet, but the certificate is being made.
    Promised(Arc<Slot>),
    Nothing,
}

/// Restricts the candidates: all criteria that are given must hold.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) serials: Vec<String>,
    pub(crate) organizations: Vec<String>,
    pub(crate) algorithm: Option<KeyAlgorithm>,
    pub(crate) any_tag: Vec<String>,
    pub(crate) all_tags: Vec<String>,
}

/// What a policy says about the choice.
#[derive(Debug, Default)]
pub(crate) struct Preferences {
    pub(crate) selection: Option<Selection>,
    /// Stands in for the name of a client that sends none.
    pub(crate) default_sni: Option<Box<str>>,
    /// Is looked up if nothing else is found.
    pub(crate) fallback_sni: Option<Box<str>>,
}

impl Certificates {
    /// Adds a certificate behind those that are there.
    pub(crate) fn add(&mut self, certificate: Certificate) {
        let index = self.loaded.len();
        for name in &certificate.names {
            self.by_name
                .entry(name.clone())
                .or_default()
                .loaded
                .push(index);
        }
        self.loaded.push(Arc::new(certificate));
    }

    /// Adds the certificate of a managed name, as it is at any time. There is one for a name.
    pub(crate) fn add_managed(&mut self, name: &str, slot: Arc<Slot>) {
        self.by_name.entry(name.into()).or_default().managed = Some(self.managed.len());
        self.managed.push(slot);
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.loaded.is_empty() && self.managed.is_empty()
    }

    /// The certificate for a client.
    ///
    /// With a server name: one that has it, else one for a pattern of it (`*.b.c`, `*.*.c`). Without: one for the local
    /// address, else one for `default_sni`. At last one for `fallback_sni`.
    pub(crate) fn choose(
        &self,
        hello: &ClientHello,
        local: Option<IpAddr>,
        preferences: &Preferences,
        now: UnixTime,
    ) -> Choice {
        let names = Names {
            asked: hello.server_name_lower(),
            local,
            default: preferences.default_sni.as_deref(),
        };
        let look_up = |name: &str| self.best(name, hello, preferences.selection.as_ref(), now);
        if let Some(found) = names.find_map(look_up) {
            return Choice::Found(found);
        }
        if !self.managed.is_empty() {
            if let Some(slot) = names.find_map(|name| self.promised(name)) {
                return Choice::Promised(slot);
            }
            // One that was promised may have come between the two questions.
            if let Some(found) = names.find_map(look_up) {
                return Choice::Found(found);
            }
        }
        let Some(fallback) = preferences.fallback_sni.as_deref() else {
            return Choice::Nothing;
        };
        let found = look_up(fallback).map(Choice::Found);
        found
            .or_else(|| self.promised(fallback).map(Choice::Promised))
            .or_else(|| look_up(fallback).map(Choice::Found))
            .unwrap_or(Choice::Nothing)
    }

    /// The slot of a managed name whose first certificate is being made.
    fn promised(&self, name: &str) -> Option<Arc<Slot>> {
        let slot = self.managed.get(self.by_name.get(name)?.managed?)?;
        (slot.certificate().is_none() && slot.is_promised()).then(|| slot.clone())
    }

    /// Those for `name`, in lower case: the ones that have it, then those for its patterns.
    pub(crate) fn named(&self, name: &str) -> impl Iterator<Item = Arc<Certificate>> {
        let names = std::iter::once(name.to_owned()).chain(patterns(name));
        let places = names.filter_map(|name| self.by_name.get(name.as_str()));
        places.flat_map(|named| {
            let loaded = named.loaded.iter().filter_map(|i| self.loaded.get(*i));
            let managed = named.managed.and_then(|i| self.managed.get(i));
            loaded
                .cloned()
                .chain(managed.and_then(|slot| slot.certificate()))
        })
    }

    /// Whether there is one for `name`, in lower case, or for a pattern of it.
    pub(crate) fn know(&self, name: &str) -> bool {
        let mut names = std::iter::once(name.to_owned()).chain(patterns(name));
        names.any(|name| self.by_name.contains_key(name.as_str()))
    }

    fn best(
        &self,
        name: &str,
        hello: &ClientHello,
        selection: Option<&Selection>,
        now: UnixTime,
    ) -> Option<Arc<Certificate>> {
        let (loaded, managed): (Vec<_>, Vec<_>) = match (self.by_name.get(name), selection) {
            (Some(named), _) => (
                named
                    .loaded
                    .iter()
                    .filter_map(|i| self.loaded.get(*i))
                    .collect(),
                named
                    .managed
                    .iter()
                    .filter_map(|i| self.managed.get(*i)?.certificate())
                    .collect(),
            ),
            (None, Some(_)) => (
                self.loaded.iter().collect(),
                self.managed
                    .iter()
                    .filter_map(|slot| slot.certificate())
                    .collect(),
            ),
            (None, None) => return None,
        };
        let candidates: Vec<_> = loaded
            .into_iter()
            .chain(&managed)
            .filter(|certificate| selection.is_none_or(|selection| selection.allows(certificate)))
            .collect();
        let mut supported = candidates
            .iter()
            .filter(|certificate| certificate.is_supported_by(hello));
        let valid = supported.clone().find(|c| c.is_valid(now));
        valid
            .or_else(|| supported.next_back())
            .or(candidates.first())
            .map(|certificate| Arc::clone(certificate))
    }
}

impl Selection {
    fn allows(&self, certificate: &Certificate) -> bool {
        let has = |tag: &String| certificate.tags.iter().any(|own| **own == **tag);
        (self.serials.is_empty() || self.serials.contains(&certificate.serial))
            && (self.organizations.is_empty()
                || certificate
                    .organizations
                    .iter()
                    .any(|own| self.organizations.iter().any(|wanted| **wanted == **own)))
            && self
                .algorithm
                .is_none_or(|algorithm| certificate.algorithm == Some(algorithm))
            && (self.any_tag.is_empty() || self.any_tag.iter().any(has))
            && self.all_tags.iter().all(has)
    }
}

/// The names under which the certificate for a client may be found.
struct Names<'a> {
    /// In lower case; empty if the client names nothing.
    asked: &'a str,
    local: Option<IpAddr>,
    default: Option<&'a str>,
}

impl Names<'_> {
    fn find_map<T>(&self, look_up: impl Fn(&str) -> Option<T>) -> Option<T> {
        match self.asked {
            "" => self
                .local
                .and_then(|ip| look_up(&ip.to_string()))
                .or_else(|| look_up(self.default?)),
            name => look_up(name).or_else(|| patterns(name).find_map(|pattern| look_up(&pattern))),
        }
    }
}

/// `*.b.c`, `*.*.c`, `*.*.*` for `a.b.c`.
pub(crate) fn patterns(name: &str) -> impl Iterator<Item = String> {
    let labels = name.split('.').count();
    (1..=labels).map(move |stars| {
        let stars = std::iter::repeat_n("*", stars);
        let kept = name.split('.').skip(stars.len());
        stars.chain(kept).collect::<Vec<_>>().join(".")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_replace_labels_from_the_left() {
        assert_eq!(
            patterns("a.b.c").collect::<Vec<_>>(),
            ["*.b.c", "*.*.c", "*.*.*"]
        );
        assert_eq!(patterns("localhost").collect::<Vec<_>>(), ["*"]);
    }
}
