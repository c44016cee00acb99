//! What the TLS that was terminated on a connection agreed on, as plain data.

/// What the innermost TLS session of a connection agreed on: an extension of the connection, left there by whoever
/// terminated it.
///
/// Here and not with the handler, because the engine knows no TLS and the modules that ask do not know each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsInfo {
    /// The version as on the wire: `0x0303` is TLS 1.2, `0x0304` TLS 1.3.
    pub version: u16,
    /// The cipher suite by its IANA name.
    pub cipher_suite: Box<str>,
    /// The protocol agreed on by ALPN; empty if none was.
    pub protocol: Box<[u8]>,
    /// The server name that the client sent, in lower case.
    pub server_name: Option<Box<str>>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The certificate that the client showed, in DER.
    pub client_certificate: Option<Box<[u8]>>,
}
