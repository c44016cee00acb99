//! Managed certificates in storage, in the layout of certmagic: a chain, a key and what is known about them.

use std::io;

use l4_core::Storage;
use rustls::crypto::CryptoProvider;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;

use super::{Issued, Subject};
use crate::keys::private_key_der;
use crate::storage::safe;
use crate::{Certificate, pem};

/// Where the certificate of a name is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Without the extension.
    stem: String,
}

/// What the third file says.
#[derive(Serialize)]
struct Metadata<'a> {
    sans: [&'a str; 1],
    issuer_data: &'a serde_json::Value,
}

impl Place {
    pub(super) fn new(issuer: &str, subject: &Subject) -> Self {
        let (issuer, name) = (safe(issuer), safe(subject.as_str()));
        Self {
            stem: format!("certificates/{issuer}/{name}/{name}"),
        }
    }

    fn key(&self, extension: &str) -> String {
        format!("{}.{extension}", self.stem)
    }

    /// The certificate; `None` unless all three files are there.
    ///
    /// # Errors
    /// The storage cannot be read, or what is there is no certificate for `subject`.
    pub(super) fn load(
        &self,
        subject: &Subject,
        storage: &dyn Storage,
        provider: &CryptoProvider,
    ) -> io::Result<Option<Certificate>> {
        let mut texts = Vec::new();
        for extension in ["crt", "key", "json"] {
            match storage.load(&self.key(extension)) {
                Ok(text) => texts.push(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let [chain, key, _] = texts.as_slice() else {
            return Ok(None);
        };
        let named = |extension: &str, error: &dyn std::fmt::Display| {
            let file = storage.describe(&self.key(extension));
            io::Error::other(format!("{file}: {error}"))
        };
        let chain = pem::certificates(chain).map_err(|error| named("crt", &error))?;
        let key = private_key_der(key).map_err(|error| named("key", &error))?;
        let certificate = Certificate::from_der(chain, key, Vec::new(), provider)
            .map_err(|error| named("crt", &error))?;
        if !certificate.names().any(|name| name == subject.as_str()) {
            return Err(named("crt", &"the certificate is for another name"));
        }
        Ok(Some(certificate))
    }

    /// Stores a certificate; if that fails half-way, nothing is left of it.
    pub(super) fn store(
        &self,
        subject: &Subject,
        key_pem: &str,
        issued: &Issued,
        storage: &dyn Storage,
    ) -> io::Result<()> {
        let metadata = metadata(subject, &issued.data)?;
        let files = [
            ("key", key_pem.as_bytes()),
            ("crt", issued.chain.as_bytes()),
            ("json", metadata.as_slice()),
        ];
        for (i, (extension, text)) in files.iter().enumerate() {
            if let Err(error) = storage.store(&self.key(extension), text) {
                for (extension, _) in files.iter().take(i) {
                    // The first error is the one to tell.
                    let _ = storage.delete(&self.key(extension));
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Indented by tabs, as certmagic writes it.
fn metadata(subject: &Subject, issuer_data: &serde_json::Value) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    let sans = [subject.as_str()];
    Metadata { sans, issuer_data }.serialize(&mut serializer)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_has_the_form_that_certmagic_writes() {
        let subject = Subject::parse("*.a.internal").unwrap();
        let text = metadata(&subject, &serde_json::Value::Null).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\n\t\"sans\": [\n\t\t\"*.a.internal\"\n\t],\n\t\"issuer_data\": null\n}"
        );
    }

    #[test]
    fn files_are_named_after_issuer_and_name() {
        for (name, expected) in [
            (
                "*.example.internal",
                "certificates/local/wildcard_.example.internal/wildcard_.example.internal.crt",
            ),
            (
                "192.168.0.1",
                "certificates/local/192.168.0.1/192.168.0.1.crt",
            ),
            (
                "bücher.internal",
                "certificates/local/xn--bcher-kva.internal/xn--bcher-kva.internal.crt",
            ),
        ] {
            let subject = Subject::parse(name).unwrap();
            assert_eq!(Place::new("local", &subject).key("crt"), expected);
        }
    }
}
