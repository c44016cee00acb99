//! The names of placeholders for the certificate of a client. They are known to builds without TLS termination, too, in
//! which no client ever has one.

/// A part of the client's certificate, as `{l4.tls.client.NAME}` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ClientField {
    Fingerprint,
    PublicKey,
    PublicKeySha256,
    Serial,
    Pem,
    DerBase64,
    Name(Party, NamePart),
    Alternatives(Alternative, Option<usize>),
}

/// Whose name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Subject,
    Issuer,
}

/// What of a distinguished name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamePart {
    Whole,
    /// The last attribute of the kind.
    One(Attribute),
    /// All attributes of the kind, or one of them by its position.
    List(Attribute, Option<usize>),
}

/// Kinds of attributes that placeholders name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attribute {
    CommonName,
    Country,
    Locality,
    Organization,
    OrganizationalUnit,
    PostalCode,
    Province,
    SerialNumber,
    StreetAddress,
}

/// Kinds of alternative names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alternative {
    DnsName,
    Email,
    Ip,
    Uri,
}

impl ClientField {
    /// The field that `name`, in lower case, stands for; `None` if there is no such name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "fingerprint" => Self::Fingerprint,
            "public_key" => Self::PublicKey,
            "public_key_sha256" => Self::PublicKeySha256,
            "serial" => Self::Serial,
            "certificate_pem" => Self::Pem,
            "certificate_der_base64" => Self::DerBase64,
            "subject" => Self::Name(Party::Subject, NamePart::Whole),
            "issuer" => Self::Name(Party::Issuer, NamePart::Whole),
            _ => {
                let (group, rest) = name.split_once('.')?;
                match group {
                    "subject" => Self::Name(Party::Subject, NamePart::named(rest)?),
                    "issuer" => Self::Name(Party::Issuer, NamePart::named(rest)?),
                    "san" => {
                        let (kind, index) = indexed(rest)?;
                        let kind = match kind {
                            "dns_names" => Alternative::DnsName,
                            "emails" => Alternative::Email,
                            "ips" => Alternative::Ip,
                            "uris" => Alternative::Uri,
                            _ => return None,
                        };
                        Self::Alternatives(kind, index)
                    }
                    _ => return None,
                }
            }
        })
    }
}

/// The values are in `client_certificate`, which not every build has.
#[cfg(not(feature = "terminate"))]
impl ClientField {
    pub(crate) fn write(&self, _der: &[u8], _out: &mut String) {}
}

impl NamePart {
    fn named(name: &str) -> Option<Self> {
        match name {
            "common_name" => return Some(Self::One(Attribute::CommonName)),
            "serial" => return Some(Self::One(Attribute::SerialNumber)),
            _ => {}
        }
        let (kind, index) = indexed(name)?;
        let kind = match kind {
            "organization" => Attribute::Organization,
            "organizational_unit" => Attribute::OrganizationalUnit,
            "country" => Attribute::Country,
            "locality" => Attribute::Locality,
            "province" => Attribute::Province,
            "street_address" => Attribute::StreetAddress,
            "postal_code" => Attribute::PostalCode,
            _ => return None,
        };
        Some(Self::List(kind, index))
    }
}

/// A name, and the position behind its last dot if there is one. A position is digits; anything else is no name.
fn indexed(name: &str) -> Option<(&str, Option<usize>)> {
    let Some((name, index)) = name.split_once('.') else {
        return Some((name, None));
    };
    let digits = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
    // A position that no number can hold is beyond every list.
    digits.then(|| (name, Some(index.parse().unwrap_or(usize::MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_reference_are_names() {
        for name in [
            "fingerprint",
            "public_key",
            "public_key_sha256",
            "certificate_pem",
            "certificate_der_base64",
            "subject",
            "issuer.serial",
            "subject.organization",
            "subject.organization.0",
            "issuer.street_address.99999999999999999999999",
            "san.uris",
            "san.ips.3",
        ] {
            assert!(ClientField::named(name).is_some(), "{name}");
        }
        for name in [
            "",
            "subject.",
            "subject.name",
            "subject.common_name.0",
            "subject.organization.-1",
            "subject.organization.x",
            "subject.organization.",
            "subject.organization.0.0",
            "san",
            "san.dns_names.+1",
            "san.other",
            "serial.0",
            "public_key_sha1",
        ] {
            assert!(ClientField::named(name).is_none(), "{name}");
        }
    }
}
