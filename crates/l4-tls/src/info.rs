//! What a finished handshake agreed on.

use std::borrow::Cow;
use std::fmt::Write as _;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::CertificateDer;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::x509::X509Name;

use crate::certs::ip;
use crate::policy::iana_name;

/// What the innermost TLS session of a connection agreed on: an extension of the connection.
#[derive(Debug)]
pub struct TlsInfo {
    version: u16,
    cipher_suite: String,
    protocol: Vec<u8>,
    server_name: Option<Box<str>>,
    resumed: bool,
    client: Option<CertificateDer<'static>>,
}

impl TlsInfo {
    /// What `session` agreed on; its handshake is over.
    pub(crate) fn new(session: &ServerConnection) -> Self {
        Self {
            version: session.protocol_version().map_or(0, u16::from),
            cipher_suite: session
                .negotiated_cipher_suite()
                .map(|suite| iana_name(suite.suite()))
                .unwrap_or_default(),
            protocol: session.alpn_protocol().unwrap_or_default().to_vec(),
            server_name: session.server_name().map(Into::into),
            resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            client: session
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|leaf| leaf.clone().into_owned()),
        }
    }

    /// The version: `tls1.2` or `tls1.3`.
    pub fn version(&self) -> &'static str {
        match ProtocolVersion::from(self.version) {
            ProtocolVersion::TLSv1_3 => "tls1.3",
            ProtocolVersion::TLSv1_2 => "tls1.2",
            _ => "",
        }
    }

    /// The cipher suite by its IANA name.
    pub fn cipher_suite(&self) -> &str {
        &self.cipher_suite
    }

    /// The protocol agreed on by ALPN; empty if none was.
    pub fn protocol(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.protocol)
    }

    /// The server name that the client sent; empty if none.
    pub fn server_name(&self) -> &str {
        self.server_name.as_deref().unwrap_or_default()
    }

    /// Whether an earlier session was resumed.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// The certificate that the client showed.
    pub fn client_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.client.as_ref()
    }

    /// Appends what the placeholder `{l4.tls.client.FIELD}` stands for; nothing without a client certificate.
    pub(crate) fn write_client(&self, field: ClientField, out: &mut String) {
        let Some(der) = &self.client else { return };
        if field == ClientField::Fingerprint {
            let digest = TLS13_AES_128_GCM_SHA256
                .tls13()
                .map(|suite| suite.common.hash_provider.hash(der));
            for byte in digest.iter().flat_map(|digest| digest.as_ref()) {
                let _ = write!(out, "{byte:02x}");
            }
            return;
        }
        // The handshake checked its signature or its key; what is malformed beyond that has no value here.
        let Ok((_, leaf)) = X509Certificate::from_der(der) else {
            return;
        };
        match field {
            ClientField::Fingerprint => {}
            ClientField::Serial => out.push_str(&leaf.tbs_certificate.serial.to_string()),
            ClientField::Subject => distinguished(leaf.subject(), out),
            ClientField::Issuer => distinguished(leaf.issuer(), out),
            ClientField::SubjectCommonName => common_name(leaf.subject(), out),
            ClientField::IssuerCommonName => common_name(leaf.issuer(), out),
            ClientField::DnsNames => list(alternatives(&leaf, dns_name), out),
            ClientField::Emails => list(alternatives(&leaf, email), out),
            ClientField::Ips => list(alternatives(&leaf, ip_address), out),
            ClientField::Uris => list(alternatives(&leaf, uri), out),
        }
    }
}

/// A part of the client's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientField {
    Fingerprint,
    Serial,
    Subject,
    Issuer,
    SubjectCommonName,
    IssuerCommonName,
    DnsNames,
    Emails,
    Ips,
    Uris,
}

impl ClientField {
    /// The field that `{l4.tls.client.NAME}` stands for.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "fingerprint" => Self::Fingerprint,
            "serial" => Self::Serial,
            "subject" => Self::Subject,
            "issuer" => Self::Issuer,
            "subject.common_name" => Self::SubjectCommonName,
            "issuer.common_name" => Self::IssuerCommonName,
            "san.dns_names" => Self::DnsNames,
            "san.emails" => Self::Emails,
            "san.ips" => Self::Ips,
            "san.uris" => Self::Uris,
            _ => return None,
        })
    }
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

fn common_name(name: &X509Name<'_>, out: &mut String) {
    if let Some(part) = name.iter_common_name().last() {
        out.push_str(part.as_str().unwrap_or_default());
    }
}

fn alternatives(
    leaf: &X509Certificate<'_>,
    pick: fn(&GeneralName<'_>) -> Option<String>,
) -> Vec<String> {
    leaf.extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(pick)
        .collect()
}

fn dns_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    }
}

fn email(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::RFC822Name(name) => Some((*name).to_owned()),
        _ => None,
    }
}

fn uri(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    }
}

fn ip_address(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::IPAddress(octets) => ip(octets).map(|ip| ip.to_string()),
        _ => None,
    }
}

fn list(items: Vec<String>, out: &mut String) {
    out.push('[');
    out.push_str(&items.join(" "));
    out.push(']');
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
}
