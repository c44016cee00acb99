//! `{l4.tls.*}`: what a handshake agreed on, or what the hello that a matcher has parsed says.

use std::fmt::Write as _;
use std::sync::Arc;

use l4_core::Placeholder;
use l4_core::conn::TlsInfo;
use l4_core::placeholder::Scope;

use crate::ClientHello;
use crate::client_field::ClientField;

/// The placeholder `name` of `l4.tls.`, in any case.
pub(crate) fn source(name: &str) -> Option<Arc<dyn Placeholder>> {
    let name = name.to_ascii_lowercase();
    if let Some(field) = name.strip_prefix("client.") {
        return client(field);
    }
    let agreed = agreed(&name)?;
    let offered: fn(&ClientHello, &mut String) = match &*name {
        "server_name" => |hello, out| out.push_str(hello.server_name().unwrap_or_default()),
        "version" => |hello, out| write_version(hello.version(), out),
        _ => |_, _| {},
    };
    Some(Arc::new(move |scope: &Scope<'_>, out: &mut String| {
        // What was agreed on counts, whatever an outer or inner hello offered.
        if let Some(info) = scope.extension::<TlsInfo>() {
            agreed(info, out);
        } else if let Some(hello) = scope.known_fact::<ClientHello>() {
            offered(hello, out);
        }
    }))
}

/// The placeholder `name` of `http.request.tls.`, in any case: the TLS that a request came through.
pub(crate) fn of_request(name: &str) -> Option<Arc<dyn Placeholder>> {
    let name = name.to_ascii_lowercase();
    if let Some(field) = name.strip_prefix("client.") {
        return client(field);
    }
    let agreed = agreed(&name)?;
    Some(Arc::new(move |scope: &Scope<'_>, out: &mut String| {
        if let Some(info) = scope.extension::<TlsInfo>() {
            agreed(info, out);
        }
    }))
}

/// A part of the client's certificate.
fn client(field: &str) -> Option<Arc<dyn Placeholder>> {
    let field = ClientField::named(field)?;
    Some(Arc::new(move |scope: &Scope<'_>, out: &mut String| {
        let info = scope.extension::<TlsInfo>();
        if let Some(der) = info.and_then(|info| info.client_certificate.as_ref()) {
            field.write(der, out);
        }
    }))
}

/// What a handshake agreed on.
fn agreed(name: &str) -> Option<fn(&TlsInfo, &mut String)> {
    Some(match name {
        "server_name" => |info, out| out.push_str(info.server_name.as_deref().unwrap_or_default()),
        "version" => |info, out| write_version(info.version, out),
        "cipher_suite" => |info, out| out.push_str(&info.cipher_suite),
        "proto" => |info, out| out.push_str(&String::from_utf8_lossy(&info.protocol)),
        "proto_mutual" => |_, out| out.push_str("true"),
        "resumed" => |info, out| out.push_str(if info.resumed { "true" } else { "false" }),
        "ech" => |_, out| out.push_str("false"),
        _ => return None,
    })
}

fn write_version(version: u16, out: &mut String) {
    match version_name(version) {
        // Writing to a string cannot fail.
        "" => {
            let _ = write!(out, "0x{version:04x}");
        }
        name => out.push_str(name),
    }
}

/// The name of a version; empty if it has none.
pub(crate) fn version_name(version: u16) -> &'static str {
    match version {
        0x0300 => "ssl3.0",
        0x0301 => "tls1.0",
        0x0302 => "tls1.1",
        0x0303 => "tls1.2",
        0x0304 => "tls1.3",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_the_names_of_the_reference() {
        let name = |version| {
            let mut out = String::new();
            write_version(version, &mut out);
            out
        };
        assert_eq!(name(0x0300), "ssl3.0");
        assert_eq!(name(0x0301), "tls1.0");
        assert_eq!(name(0x0304), "tls1.3");
        assert_eq!(name(0x7F1C), "0x7f1c");
        assert_eq!(name(0x0005), "0x0005");
    }
}
