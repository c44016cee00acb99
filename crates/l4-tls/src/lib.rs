//! TLS for Conncept: recognising a ClientHello, routing by what it says, and terminating TLS.
//!
//! The matcher `tls` and the modules of `tls.handshake_match` that it is made of, the placeholders `{l4.tls.*}`, and the
//! parser behind them: a hello is read from the unread bytes and stays there for whoever handles the connection. The
//! handler `tls` is one who does: it chooses a connection policy and a certificate by the hello, and then lets rustls
//! speak. The transport `tls` of `proxy` speaks TLS to upstreams, offering what the client offered. Certificates come
//! from the application `tls`: those in files are read when the configuration is loaded; others are made and renewed in
//! the background, signed by an authority of the application `pki`, and kept in storage.
//!
//! Start reading at [`ClientHello`], then [`MatchTls`], then [`HandshakeMatch`], the trait that a further condition on
//! a hello implements; for termination at [`TlsTerminate`], then [`Certificates`]; for upstreams at [`OriginateTls`]; for
//! certificates that are made here at [`Issuer`], the trait of who certifies names.

mod app;
mod automate;
mod certs;
mod client_auth;
mod client_certificate;
mod client_hello;
mod handshake_match;
mod info;
mod keys;
mod matcher;
mod originate;
mod peer_cert;
mod pem;
mod pki;
mod placeholders;
mod policy;
mod records;
mod route_program;
mod shared;
mod storage;
mod terminate;
mod trust_pool;

pub use app::{CertificateLoaders, TlsApp, TlsAppConfig};
pub use automate::{
    CertificateRequest, InternalIssuerConfig, IssueError, Issued, Issuer, Issuers, Subject,
};
pub use certs::{Certificate, CertificateError, Certificates};
pub use client_auth::{ClientVerifiers, LeafLoaders, VerifyClient};
pub use client_hello::ClientHello;
pub use handshake_match::{
    AlpnConfig, HandshakeMatch, HandshakeMatchers, HandshakeScope, LocalIpConfig, MatchAlpn,
    MatchLocalIp, MatchRemoteIp, MatchSni, MatchSniRegexp, RemoteIpConfig, SniConfig,
    SniRegexpConfig,
};
pub use keys::{KeyError, KeyType, PrivateKey};
pub use matcher::MatchTls;
pub use originate::{DEFAULT_UPSTREAM_HANDSHAKE_TIMEOUT, OriginateConfig, OriginateTls};
pub use pem::PemError;
pub use pki::{PkiApp, PkiConfig};
pub use policy::PolicyConfig;
pub use storage::{FileStorage, FileStorageConfig, release_locks};
pub use terminate::{DEFAULT_HANDSHAKE_TIMEOUT, TerminateConfig, TlsTerminate};
pub use trust_pool::{TrustPool, TrustPools};

use l4_core::Registry;

/// Enters the modules of this crate.
pub fn register(reg: &mut Registry) {
    reg.origin(l4_core::origin!());
    reg.matcher::<MatchTls>();
    reg.handler::<TlsTerminate>();
    reg.app::<TlsApp>();
    reg.app::<PkiApp>();
    automate::register(reg);
    storage::register(reg);
    client_auth::register(reg);
    handshake_match::register(reg);
    originate::register(reg);
    trust_pool::register(reg);
    reg.placeholders("l4.tls.", placeholders::source);
    reg.placeholders("http.request.tls.", placeholders::of_request);
}
