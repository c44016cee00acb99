//! What placeholders say about the certificate of a client; `client_field` has their names.

use data_encoding::{BASE64, HEXLOWER};
use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::Oid;
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use crate::certs::ip;
use crate::client_field::{Alternative, Attribute, ClientField, NamePart, Party};

impl ClientField {
    /// Appends what it is of the certificate `der`.
    pub(crate) fn write(&self, der: &[u8], out: &mut String) {
        match self {
            Self::Fingerprint => return sha256(der, out),
            Self::Pem => return pem(der, out),
            Self::DerBase64 => return BASE64.encode_append(der, out),
            _ => {}
        }
        // The handshake checked its signature or its key; what is malformed beyond that has no value here.
        let Ok((_, leaf)) = X509Certificate::from_der(der) else {
            return;
        };
        // The content of the bit string is what is asked for, for every kind of key: PKCS#1 for RSA (RFC 8017 A.1.1), the
        // point for EC (RFC 5480 section 2.2), the 32 bytes for Ed25519 (RFC 8410 section 4).
        let key = || &*leaf.public_key().subject_public_key.data;
        match self {
            Self::Fingerprint | Self::Pem | Self::DerBase64 => {}
            Self::PublicKey => HEXLOWER.encode_append(key(), out),
            Self::PublicKeySha256 => sha256(key(), out),
            Self::Serial => out.push_str(&leaf.tbs_certificate.serial.to_string()),
            Self::Name(Party::Subject, part) => part.write(leaf.subject(), out),
            Self::Name(Party::Issuer, part) => part.write(leaf.issuer(), out),
            Self::Alternatives(kind, index) => list(kind.of(&leaf), *index, out),
        }
    }
}

impl NamePart {
    fn write(&self, name: &X509Name<'_>, out: &mut String) {
        let all = |kind: &Attribute| {
            name.iter_by_oid(&kind.oid())
                .map(|part| part.as_str().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        };
        match self {
            Self::Whole => distinguished(name, out),
            Self::One(kind) => out.push_str(all(kind).last().map_or("", String::as_str)),
            Self::List(kind, index) => list(all(kind), *index, out),
        }
    }
}

impl Attribute {
    fn oid(&self) -> Oid<'static> {
        match self {
            Self::CommonName => oid!(2.5.4.3),
            Self::SerialNumber => oid!(2.5.4.5),
            Self::Country => oid!(2.5.4.6),
            Self::Locality => oid!(2.5.4.7),
            Self::Province => oid!(2.5.4.8),
            Self::StreetAddress => oid!(2.5.4.9),
            Self::Organization => oid!(2.5.4.10),
            Self::OrganizationalUnit => oid!(2.5.4.11),
            Self::PostalCode => oid!(2.5.4.17),
        }
    }
}

impl Alternative {
    fn of(self, leaf: &X509Certificate<'_>) -> Vec<String> {
        let extensions = leaf.extensions().iter();
        let names = extensions.filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        });
        names
            .flatten()
            .filter_map(|name| match (self, name) {
                (Self::DnsName, GeneralName::DNSName(text))
                | (Self::Email, GeneralName::RFC822Name(text))
                | (Self::Uri, GeneralName::URI(text)) => Some((*text).to_owned()),
                (Self::Ip, GeneralName::IPAddress(octets)) => ip(octets).map(|ip| ip.to_string()),
                _ => None,
            })
            .collect()
    }
}

fn list(items: Vec<String>, index: Option<usize>, out: &mut String) {
    match index {
        Some(index) => out.push_str(items.get(index).map_or("", String::as_str)),
        None => {
            out.push('[');
            out.push_str(&items.join(" "));
            out.push(']');
        }
    }
}

fn sha256(bytes: &[u8], out: &mut String) {
    let digest = TLS13_AES_128_GCM_SHA256
        .tls13()
        .map(|suite| suite.common.hash_provider.hash(bytes));
    if let Some(digest) = digest {
        HEXLOWER.encode_append(digest.as_ref(), out);
    }
}

/// RFC 7468, in lines of 64 characters.
fn pem(der: &[u8], out: &mut String) {
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    // 48 bytes are 64 characters.
    for line in der.chunks(48) {
        BASE64.encode_append(line, out);
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
}

/// As RFC 2253 writes names: the most specific part first, special characters escaped.
fn distinguished(name: &X509Name<'_>, out: &mut String) {
    let parts: Vec<_> = name.iter_attributes().collect();
    for (i, part) in parts.iter().rev().enumerate() {
        if i > 0 {
            out.push(',');
        }
        match short_name(&part.attr_type().to_id_string()) {
            Some(short) => out.push_str(short),
            None => out.push_str(&part.attr_type().to_id_string()),
        }
        out.push('=');
        escape(part.as_str().unwrap_or_default(), out);
    }
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.5" => "SERIALNUMBER",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.17" => "POSTALCODE",
        _ => return None,
    })
}

fn escape(text: &str, out: &mut String) {
    let last = text.chars().count().saturating_sub(1);
    for (i, c) in text.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (i == 0 && matches!(c, ' ' | '#'))
            || (i == last && c == ' ');
        if special {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_rfc_2253_says() {
        let escaped = |text| {
            let mut out = String::new();
            escape(text, &mut out);
            out
        };
        assert_eq!(escaped("a,b"), "a\\,b");
        assert_eq!(escaped(" # "), "\\ #\\ ");
        assert_eq!(escaped("#1"), "\\#1");
        assert_eq!(escaped(""), "");
    }

    #[test]
    fn pem_has_lines_of_64_characters_and_ends_with_one() {
        let text = |length: usize| {
            let mut out = String::new();
            pem(&vec![0; length], &mut out);
            out
        };
        for length in [1, 47, 48, 49, 96, 1000] {
            let text = text(length);
            let certificates = crate::pem::certificates(text.as_bytes()).unwrap();
            assert_eq!(certificates[0].len(), length);
            let body = text.lines().filter(|line| !line.starts_with('-'));
            let lengths: Vec<usize> = body.map(str::len).collect();
            let (last, full) = lengths.split_last().unwrap();
            assert!((1..=64).contains(last) && full.iter().all(|n| *n == 64));
            assert!(text.ends_with("-----END CERTIFICATE-----\n"));
        }
    }

    fn certificate(key: &rcgen::KeyPair) -> Vec<u8> {
        let mut params =
            rcgen::CertificateParams::new(vec!["a.example".to_owned(), "b.example".to_owned()])
                .unwrap();
        params.subject_alt_names.extend([
            rcgen::SanType::IpAddress("192.0.2.1".parse().unwrap()),
            rcgen::SanType::IpAddress("2001:db8::1".parse().unwrap()),
            rcgen::SanType::Rfc822Name("me@a.example".try_into().unwrap()),
            rcgen::SanType::URI("spiffe://a/b".try_into().unwrap()),
        ]);
        params.serial_number = Some(vec![0x01, 0, 0, 0, 0, 0, 0, 0, 0].into());
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in [
            (rcgen::DnType::OrganizationName, "Org"),
            (rcgen::DnType::OrganizationalUnitName, "Unit"),
            (rcgen::DnType::CountryName, "CH"),
            (rcgen::DnType::LocalityName, "Bern"),
            (rcgen::DnType::StateOrProvinceName, "BE"),
            (rcgen::DnType::CustomDnType(vec![2, 5, 4, 9]), "Street 1"),
            (rcgen::DnType::CustomDnType(vec![2, 5, 4, 17]), "3000"),
            (rcgen::DnType::CustomDnType(vec![2, 5, 4, 5]), "S-1"),
            (rcgen::DnType::CommonName, "me"),
        ] {
            params.distinguished_name.push(kind, text);
        }
        params.self_signed(key).unwrap().der().to_vec()
    }

    fn value(der: &[u8], name: &str) -> String {
        let mut out = String::new();
        ClientField::named(name).unwrap().write(der, &mut out);
        out
    }

    #[test]
    fn l6_the_public_key_is_readable_whatever_its_kind() {
        for (kind, length) in [
            (&rcgen::PKCS_RSA_SHA256, 270),
            (&rcgen::PKCS_ECDSA_P256_SHA256, 65),
            (&rcgen::PKCS_ED25519, 32),
        ] {
            let key = rcgen::KeyPair::generate_for(kind).unwrap();
            let der = certificate(&key);
            let raw = key.public_key_raw();
            // An RSA key of 2048 bits in PKCS#1, an uncompressed point, the bare key.
            assert_eq!(raw.len(), length);
            assert_eq!(value(&der, "public_key"), HEXLOWER.encode(raw));
            let mut digest = String::new();
            sha256(raw, &mut digest);
            assert_eq!(value(&der, "public_key_sha256"), digest);
        }
        let mut known = String::new();
        sha256(b"abc", &mut known);
        assert_eq!(
            known,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn every_part_of_a_certificate_has_its_value() {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = certificate(&key);
        for (name, expected) in [
            ("serial", "18446744073709551616"),
            ("subject.common_name", "me"),
            ("issuer.common_name", "me"),
            ("subject.serial", "S-1"),
            ("subject.organization", "[Org]"),
            ("subject.organization.0", "Org"),
            ("subject.organization.1", ""),
            ("subject.organizational_unit", "[Unit]"),
            ("issuer.country", "[CH]"),
            ("subject.locality.0", "Bern"),
            ("subject.province", "[BE]"),
            ("subject.street_address", "[Street 1]"),
            ("issuer.postal_code.0", "3000"),
            ("san.dns_names", "[a.example b.example]"),
            ("san.dns_names.1", "b.example"),
            ("san.dns_names.2", ""),
            ("san.ips", "[192.0.2.1 2001:db8::1]"),
            ("san.emails", "[me@a.example]"),
            ("san.uris.0", "spiffe://a/b"),
            ("certificate_der_base64", &BASE64.encode(&der)),
            (
                "subject",
                "CN=me,SERIALNUMBER=S-1,POSTALCODE=3000,STREET=Street 1,ST=BE,L=Bern,C=CH,OU=Unit,O=Org",
            ),
        ] {
            assert_eq!(value(&der, name), expected, "{name}");
        }
        let pem = value(&der, "certificate_pem");
        assert_eq!(
            &*crate::pem::certificates(pem.as_bytes()).unwrap()[0],
            &*der
        );
        assert_eq!(value(b"not a certificate", "subject"), "");
    }
}
