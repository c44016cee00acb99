//! Certificates that are obtained and renewed here, rather than loaded.
//!
//! Names come from `automate`; a [policy](policy) says which [`Issuer`] makes the certificate of a name and when it is
//! renewed; a task for each name does so (`maintain.rs`) and puts what it gets into a [`Slot`], from which handshakes take
//! it. Start reading at [`Issuer`].

mod internal;
pub(crate) mod maintain;
pub(crate) mod policy;
mod slot;
mod stored;
mod subject;

pub(crate) use slot::Slot;
pub use subject::Subject;

use l4_core::{BoxFuture, Kind, Registry};

use crate::keys::PrivateKey;

/// `tls.issuance`: who certifies names.
pub enum Issuers {}

impl Kind for Issuers {
    const NAMESPACE: &'static str = "tls.issuance";
    type Object = dyn Issuer;
}

/// Certifies names.
pub trait Issuer: Send + Sync {
    /// Tells its certificates from those of other issuers in storage, where it names a folder.
    fn key(&self) -> &str;

    /// Makes or obtains a certificate. Nothing is tried again here; who asks does so after a while.
    ///
    /// Dropping the future gives up; what was begun outside the process is left as it is then.
    ///
    /// # Errors
    /// Why there is none.
    fn issue<'a>(
        &'a self,
        request: &'a CertificateRequest,
    ) -> BoxFuture<'a, Result<Issued, IssueError>>;
}

/// What a certificate is wanted for.
#[derive(Debug)]
pub struct CertificateRequest {
    /// The one name of the certificate.
    pub subject: Subject,
    /// Its key, made for it.
    pub key: PrivateKey,
}

/// What an issuer gives.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The chain in PEM, leaf first.
    pub chain: String,
    /// What the issuer wants to know about the certificate later; kept beside it.
    pub data: serde_json::Value,
}

/// Why there is no certificate.
pub type IssueError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn register(reg: &mut Registry) {
    internal::register(reg);
}
