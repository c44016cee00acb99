//! `{l4.tls.server_name}` and `{l4.tls.version}`, from the hello that a matcher has parsed.

use std::fmt::Write as _;
use std::sync::Arc;

use l4_core::Placeholder;
use l4_core::placeholder::Scope;

use crate::ClientHello;

/// The placeholder `name` of `l4.tls.`.
pub(crate) fn source(name: &str) -> Option<Arc<dyn Placeholder>> {
    let write: fn(&ClientHello, &mut String) = match name {
        "server_name" => |hello, out| out.push_str(hello.server_name().unwrap_or_default()),
        "version" => |hello, out| write_version(hello.version(), out),
        _ => return None,
    };
    Some(Arc::new(move |scope: &Scope<'_>, out: &mut String| {
        if let Some(hello) = scope.known_fact::<ClientHello>() {
            write(hello, out);
        }
    }))
}

fn write_version(version: u16, out: &mut String) {
    match version {
        0x0300 => out.push_str("ssl3.0"),
        0x0301 => out.push_str("tls1.0"),
        0x0302 => out.push_str("tls1.1"),
        0x0303 => out.push_str("tls1.2"),
        0x0304 => out.push_str("tls1.3"),
        other => {
            // Writing to a string cannot fail.
            let _ = write!(out, "0x{other:04x}");
        }
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
