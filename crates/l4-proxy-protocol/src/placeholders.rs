//! `{l4.proxy_protocol.*}`: what the last header said that was believed.

use std::fmt::Write as _;
use std::sync::Arc;

use l4_core::Placeholder;
use l4_core::placeholder::Scope;

use crate::header::{Header, Version};
use crate::tlv::{self, Ssl};

type Write = fn(&Header, &mut String);

/// The placeholder `name` of `l4.proxy_protocol.`.
pub(crate) fn source(name: &str) -> Option<Arc<dyn Placeholder>> {
    if let Some(digits) = name.strip_prefix("tlv.0x") {
        let kind = Some(digits).filter(|digits| digits.len() == 2)?;
        let kind = u8::from_str_radix(kind, 16).ok()?;
        return Some(of_header(move |header, out| {
            hex(header.tlvs.find(kind).unwrap_or_default(), out);
        }));
    }
    let write: Write = match name {
        "version" => |header, out| {
            out.push_str(match header.version {
                Version::V1 => "1",
                Version::V2 => "2",
            });
        },
        // Writing to a string cannot fail.
        "remote_addr" => |header, out| {
            let _ = header
                .addresses
                .as_ref()
                .map(|addresses| write!(out, "{}", addresses.source));
        },
        "local_addr" => |header, out| {
            let _ = header
                .addresses
                .as_ref()
                .map(|addresses| write!(out, "{}", addresses.destination));
        },
        "tlv.alpn" => |header, out| text(header.tlvs.find(tlv::ALPN), out),
        "tlv.authority" => |header, out| text(header.tlvs.find(tlv::AUTHORITY), out),
        "tlv.netns" => |header, out| text(header.tlvs.find(tlv::NETNS), out),
        "tlv.unique_id" => {
            |header, out| hex(header.tlvs.find(tlv::UNIQUE_ID).unwrap_or_default(), out)
        }
        "tlv.ssl" => |header, out| yes_or_no(header, |ssl| ssl.used(), out),
        "tlv.ssl.verified" => |header, out| yes_or_no(header, |ssl| ssl.verified(), out),
        "tlv.ssl.version" => |header, out| ssl_text(header, tlv::SSL_VERSION, out),
        "tlv.ssl.cn" => |header, out| ssl_text(header, tlv::SSL_CN, out),
        "tlv.ssl.cipher" => |header, out| ssl_text(header, tlv::SSL_CIPHER, out),
        "tlv.ssl.sig_alg" => |header, out| ssl_text(header, tlv::SSL_SIG_ALG, out),
        "tlv.ssl.key_alg" => |header, out| ssl_text(header, tlv::SSL_KEY_ALG, out),
        _ => return None,
    };
    Some(of_header(write))
}

fn of_header(write: impl Fn(&Header, &mut String) + Send + Sync + 'static) -> Arc<dyn Placeholder> {
    Arc::new(move |scope: &Scope<'_>, out: &mut String| {
        if let Some(header) = scope.extension::<Header>() {
            write(header, out);
        }
    })
}

fn text(value: Option<&[u8]>, out: &mut String) {
    out.push_str(&String::from_utf8_lossy(value.unwrap_or_default()));
}

fn ssl_text(header: &Header, kind: u8, out: &mut String) {
    text(header.tlvs.ssl().and_then(|ssl| ssl.find(kind)), out);
}

fn yes_or_no(header: &Header, question: fn(&Ssl<'_>) -> bool, out: &mut String) {
    if let Some(ssl) = header.tlvs.ssl() {
        out.push_str(if question(&ssl) { "true" } else { "false" });
    }
}

fn hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
}
