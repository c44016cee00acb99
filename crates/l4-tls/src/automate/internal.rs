//! The issuer `internal`: an authority of the application `pki` signs.

use std::sync::Arc;
use std::time::Duration;

use l4_core::BoxFuture;
use l4_core::prelude::*;
use schemars::JsonSchema;
use serde::Deserialize;
use tracing::warn;

use super::{CertificateRequest, IssueError, Issued, Issuer, Issuers};
use crate::keys::chain_pem;
use crate::pki::sign::{self, Validity};
use crate::pki::{Authority, LOCAL, PkiApp, Tier, now};

/// Certificates from an authority of one's own. Clients have to be given its root.
///
/// ```json
/// {"module": "internal", "lifetime": "24h"}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InternalIssuerConfig {
    /// The id of an authority of the application `pki`. Default: `"local"`.
    #[serde(default)]
    ca: Option<At<String>>,
    /// How long certificates are valid, but not longer than the one they are signed with. Default: `"12h"`.
    #[serde(default)]
    lifetime: Option<At<GoDuration>>,
    /// Whether the root signs rather than the intermediate. Default: `false`.
    #[serde(default)]
    sign_with_root: Option<At<bool>>,
}

pub(super) struct InternalIssuer {
    authority: Arc<Authority>,
    lifetime: Duration,
    tier: Tier,
}

const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

impl InternalIssuer {
    pub(super) fn provision(
        config: InternalIssuerConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let lifetime_node = config.lifetime.as_ref().map(At::node);
        let lifetime = cx
            .time_limit(config.lifetime, LIFETIME)
            .map(|time| time.unwrap_or(LIFETIME));
        let id = match &config.ca {
            Some(ca) if !ca.is_empty() => ca.as_str(),
            _ => LOCAL,
        };
        let Some(authority) = cx.app::<PkiApp>()?.authority(id, cx)? else {
            let node = config.ca.as_ref().map_or(cx.node(), At::node);
            return Err(cx.reject_help(
                node,
                format!("no certificate authority configured with id: {id}"),
                "configure it in apps.pki.certificate_authorities, or write \"local\"",
            ));
        };
        let lifetime = lifetime?;
        if let Some(node) = lifetime_node.filter(|_| lifetime < Duration::from_secs(1)) {
            return Err(cx.reject_help(
                node,
                format!(
                    "{} is too short for a certificate",
                    GoDuration::from(lifetime)
                ),
                "write a lifetime such as \"12h\"",
            ));
        }
        let with_root = config
            .sign_with_root
            .as_ref()
            .filter(|with_root| ***with_root);
        if let Some(with_root) = with_root
            && !authority.root_can_sign()
        {
            return Err(cx.reject_help(
                with_root.node(),
                "the root cannot sign: its private key is not given",
                format!(
                    "give private_key in apps.pki.certificate_authorities.{id}.root, or write false"
                ),
            ));
        }
        Ok(Self {
            authority,
            lifetime,
            tier: match with_root {
                Some(_) => Tier::Root,
                None => Tier::Intermediate,
            },
        })
    }

    async fn sign(&self, request: &CertificateRequest) -> Result<Issued, IssueError> {
        let signer = self.authority.signer(self.tier).await?;
        let (subject, now) = (&request.subject, now());
        let (leaf, validity) = sign::leaf(subject, &request.key, &signer, self.lifetime, now)?;
        if validity != Validity::new(now, self.lifetime) {
            warn!(
                target: "tls.issuance.internal", identifier = subject.as_str(),
                not_after = validity.not_after,
                "cert lifetime would exceed issuer NotAfter, clamping lifetime"
            );
        }
        Ok(Issued {
            chain: chain_pem([&leaf].into_iter().chain(&signer.chain)),
            data: serde_json::Value::Null,
        })
    }
}

impl Issuer for InternalIssuer {
    fn key(&self) -> &str {
        self.authority.id()
    }

    fn issue<'a>(
        &'a self,
        request: &'a CertificateRequest,
    ) -> BoxFuture<'a, Result<Issued, IssueError>> {
        Box::pin(self.sign(request))
    }
}

pub(super) fn register(reg: &mut Registry) {
    reg.add_inline::<Issuers, InternalIssuerConfig>("internal", "module", |config, cx| {
        Ok(Box::new(InternalIssuer::provision(config, cx)?))
    });
}
