//! TLS for Conncept: recognising a ClientHello, routing by what it says, and terminating TLS.
//!
//! The matcher `tls` and the modules of `tls.handshake_match` that it is made of, the placeholders `{l4.tls.*}`, and the
//! parser behind them: a hello is read from the unread bytes and stays there for whoever handles the connection. The
//! handler `tls` is one who does: it chooses a connection policy and a certificate by the hello, and then lets rustls
//! speak. The transport `tls` of `proxy` speaks TLS to upstreams, offering what the client offered. Certificates come
//! from the application `tls`: those in files are read when the configuration is loaded; others are made and renewed in
//! the background, signed by an authority of the application `pki`, and kept in storage.
//!
//! The feature `terminate`, on by default, is all but the first of these: without it the crate links no cryptography.
//!
//! Start reading at [`ClientHello`], then [`MatchTls`], then [`HandshakeMatch`], the trait that a further condition on
//! a hello implements; for termination at `terminate.rs`, then `certs.rs`; for upstreams at `originate.rs`; for
//! certificates that are made here at [`Issuer`], the trait of who certifies names.

#[cfg(feature = "terminate")]
mod app;
#[cfg(feature = "terminate")]
mod automate;
#[cfg(feature = "terminate")]
mod certs;
#[cfg(feature = "terminate")]
mod client_auth;
#[cfg(feature = "terminate")]
mod client_certificate;
mod client_field;
mod client_hello;
mod handshake_match;
#[cfg(feature = "terminate")]
mod info;
#[cfg(feature = "terminate")]
mod keys;
mod matcher;
#[cfg(feature = "terminate")]
mod originate;
#[cfg(feature = "terminate")]
mod peer_cert;
#[cfg(feature = "terminate")]
mod pem;
#[cfg(feature = "terminate")]
mod pki;
mod placeholders;
#[cfg(feature = "terminate")]
mod policy;
mod records;
#[cfg(feature = "terminate")]
mod route_program;
#[cfg(feature = "terminate")]
mod sessions;
#[cfg(feature = "terminate")]
mod shared;
#[cfg(feature = "terminate")]
mod storage;
#[cfg(feature = "terminate")]
mod stream;
#[cfg(feature = "terminate")]
mod suites;
#[cfg(feature = "terminate")]
mod terminate;
#[cfg(feature = "terminate")]
mod trust_pool;

#[cfg(feature = "terminate")]
pub use app::CertificateLoaders;
#[cfg(feature = "terminate")]
pub use automate::{CertificateRequest, IssueError, Issued, Issuer, Issuers, Subject};
#[cfg(feature = "terminate")]
pub use certs::{Certificate, CertificateError};
#[cfg(feature = "terminate")]
pub use client_auth::{ClientVerifiers, LeafLoaders, VerifyClient};
pub use client_hello::ClientHello;
pub use handshake_match::{HandshakeMatch, HandshakeMatchers, HandshakeScope, UNICODE};
#[cfg(feature = "terminate")]
pub use keys::{KeyError, KeyType, PrivateKey};
pub use matcher::{MatchTls, MatchTlsConfig};
#[cfg(feature = "terminate")]
pub use pem::PemError;
#[cfg(feature = "terminate")]
pub use storage::release_locks;
#[cfg(feature = "terminate")]
pub use trust_pool::{TrustPool, TrustPools};

#[cfg(feature = "terminate")]
use app::TlsApp;
use l4_core::Registry;
#[cfg(feature = "terminate")]
use pki::PkiApp;
#[cfg(feature = "terminate")]
use terminate::TlsTerminate;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchTls>();
    reg.page(include_str!("../docs/matchers/tls.md"));
    handshake_match::register(reg);
    reg.placeholders("l4.tls.", placeholders::source);
    reg.placeholders("http.request.tls.", placeholders::of_request);
    #[cfg(feature = "terminate")]
    {
        reg.handler::<TlsTerminate>();
        reg.app::<TlsApp>();
        reg.app::<PkiApp>();
        reg.page(include_str!("../docs/handlers/tls.md"));
        reg.page(include_str!("../docs/apps/tls.md"));
        reg.page(include_str!("../docs/apps/pki.md"));
        automate::register(reg);
        storage::register(reg);
        client_auth::register(reg);
        originate::register(reg);
        trust_pool::register(reg);
    }
}
