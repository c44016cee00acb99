//! What certificates are made for, and which of it public authorities certify.

use std::net::IpAddr;

use rcgen::SanType;

/// The one name of a managed certificate, in the form in which certificates hold it: lower case, Unicode as punycode,
/// addresses in their usual text form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject(Kind);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Kind {
    Dns(Box<str>),
    Ip(IpAddr, Box<str>),
    Uri(Box<str>),
}

impl Subject {
    /// Reads a name; `None` if no certificate can be for it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self(Kind::Ip(ip, ip.to_string().into())));
        }
        if !qualifies(text) {
            return None;
        }
        if text.contains('/') {
            return text
                .is_ascii()
                .then(|| Self(Kind::Uri(text.to_lowercase().into())));
        }
        let name = ascii_name(text)?;
        qualifies(&name).then(|| Self(Kind::Dns(name.into())))
    }

    /// The machine itself, as its programs call it (RFC 6761 section 6.3).
    pub(crate) fn localhost() -> Self {
        Self(Kind::Dns("localhost".into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Kind::Dns(name) | Kind::Ip(_, name) | Kind::Uri(name) => name,
        }
    }

    /// Whether public authorities may certify it: it is not the name of something internal, and a wildcard stands for
    /// one label in front of at least two others.
    pub fn can_be_public(&self) -> bool {
        match &self.0 {
            Kind::Ip(ip, _) => !is_internal_ip(*ip),
            Kind::Dns(name) => {
                let wildcard_is_fine = match name.strip_prefix("*.") {
                    Some(rest) => !rest.contains('*') && rest.contains('.'),
                    None => !name.contains('*'),
                };
                wildcard_is_fine && !is_internal_name(name)
            }
            Kind::Uri(_) => true,
        }
    }

    /// As the subject alternative name of a certificate.
    ///
    /// # Errors
    /// The name has characters that cannot stand there.
    pub(crate) fn alternative_name(&self) -> Result<SanType, rcgen::Error> {
        Ok(match &self.0 {
            Kind::Dns(name) => SanType::DnsName(name.to_string().try_into()?),
            Kind::Ip(ip, _) => SanType::IpAddress(*ip),
            Kind::Uri(uri) => SanType::URI(uri.to_string().try_into()?),
        })
    }
}

/// A name or a pattern for names as it is compared: lower case, Unicode as punycode.
pub(super) fn ascii_name(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase();
    if text.is_ascii() {
        return Some(text);
    }
    // Label by label: `*` and `_` are none of IDNA's business.
    let labels = text.split('.').map(|label| match label.is_ascii() {
        true => Some(label.to_owned()),
        false => idna::domain_to_ascii(label)
            .ok()
            .filter(|label| !label.is_empty()),
    });
    labels
        .collect::<Option<Vec<_>>>()
        .map(|labels| labels.join("."))
}

fn qualifies(name: &str) -> bool {
    const FORBIDDEN: &str = "()[]{}<>!@#$%^&|;'+=\"\\ \t\n\r";
    !name.is_empty()
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains(|c: char| FORBIDDEN.contains(c) || c.is_control())
        && name.split('.').enumerate().all(|(i, label)| {
            !label.is_empty() && (!label.contains('*') || (label == "*" && i == 0))
        })
}

fn is_internal_name(name: &str) -> bool {
    name == "localhost"
        || [".localhost", ".local", ".internal", ".home.arpa"]
            .iter()
            .any(|suffix| name.ends_with(suffix))
}

fn is_internal_ip(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || (a, b) == (0, 0)
        }
        IpAddr::V6(ip) => {
            let [first, ..] = ip.segments();
            // ::/7, which contains ::1; fe80::/10; fc00::/7.
            first & 0xfe00 == 0 || first & 0xffc0 == 0xfe80 || first & 0xfe00 == 0xfc00
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(text: &str) -> Subject {
        Subject::parse(text).unwrap_or_else(|| panic!("{text} is refused"))
    }

    #[test]
    fn names_are_kept_as_certificates_have_them() {
        for (text, expected) in [
            (" LocalHost ", "localhost"),
            ("*.Bücher.internal", "*.xn--bcher-kva.internal"),
            ("192.168.0.1", "192.168.0.1"),
            ("FD00:0::1", "fd00::1"),
            ("spiffe://x/y", "spiffe://x/y"),
            ("_a.example.com", "_a.example.com"),
        ] {
            assert_eq!(subject(text).as_str(), expected);
        }
    }

    #[test]
    fn what_no_certificate_can_be_for_is_refused() {
        for text in [
            "",
            " ",
            ".",
            ".a",
            "a.",
            "a..b",
            "a b",
            "a@b.example",
            "{env.X}",
            "a*.example.com",
            "a.*.example.com",
            "*.*.example.com",
            "a[0]",
            "x\u{0}y",
        ] {
            assert_eq!(Subject::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn internal_names_are_told_from_public_ones() {
        for text in [
            "localhost",
            "a.localhost",
            "printer.local",
            "db.internal",
            "*.db.internal",
            "x.home.arpa",
            "127.0.0.1",
            "0.0.1.2",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "169.254.1.1",
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "*",
            "*.com",
        ] {
            assert!(!subject(text).can_be_public(), "{text}");
        }
        for text in [
            "example.com",
            "*.example.com",
            "myhost",
            "local",
            "internal",
            "notlocalhost",
            "203.0.113.5",
            "172.32.0.1",
            "2001:db8::1",
            "a.local.example",
        ] {
            assert!(subject(text).can_be_public(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_reading_again_changes_nothing(text in "\\PC{0,20}|[a-zß*.:@/ ]{0,12}") {
            if let Some(subject) = Subject::parse(&text) {
                prop_assert_eq!(Subject::parse(subject.as_str()), Some(subject.clone()));
                prop_assert!(subject.alternative_name().is_ok());
            }
        }
    }
}
