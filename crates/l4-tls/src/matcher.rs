//! The matcher `tls`.

use l4_core::config::ModuleMap;
use l4_core::prelude::*;
use l4_core::schema::MapOf;
use l4_core::{Cost, Keys};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{ClientHello, HandshakeMatch, HandshakeMatchers};

/// Matches a connection that begins with a TLS ClientHello for which all listed conditions hold.
///
/// The conditions are modules of `tls.handshake_match`: `sni`, `sni_regexp`, `alpn`, `remote_ip`, `local_ip`. `{}` matches
/// every hello. The hello must be complete and well-formed; what is not TLS is refused at its first byte, as a rule.
///
/// ```json
/// {"tls": {"sni": ["*.example.com"], "alpn": ["h2"]}}
/// ```
pub struct MatchTls {
    /// Sorted by cost.
    members: Vec<Box<dyn HandshakeMatch>>,
}

/// Conditions on the ClientHello, all of which must hold, such as `{"sni": ["*.example.com"]}`; `{}` is any hello.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct MatchTlsConfig(#[schemars(with = "MapOf<HandshakeMatchers>")] ModuleMap);

impl MatcherModule for MatchTls {
    const NAME: &'static str = "tls";
    type Config = MatchTlsConfig;

    fn provision(
        MatchTlsConfig(config): MatchTlsConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let named = cx.module_map::<HandshakeMatchers>(&config)?;
        let mut members: Vec<_> = named.into_iter().map(|(_, member)| member).collect();
        members.sort_by_key(|member| member.cost());
        Ok(Self { members })
    }
}

impl Matcher for MatchTls {
    fn matches(&self, view: &mut View<'_>) -> Verdict {
        let mut captures = Vec::new();
        let all = match view.fact::<ClientHello>() {
            Parsed::Done(hello) => {
                let view = &*view;
                self.members
                    .iter()
                    .all(|member| member.matches(hello, view, &mut captures))
            }
            Parsed::Not => return Verdict::No,
            Parsed::More(n) => return Verdict::More(n),
        };
        if all {
            for capture in captures {
                view.capture(capture);
            }
        }
        Verdict::from_bool(all)
    }

    fn cost(&self) -> Cost {
        self.members
            .iter()
            .map(|member| member.cost())
            .fold(Cost::Parse, Cost::max)
    }

    fn keys(&self) -> Option<Keys> {
        self.members.iter().find_map(|member| member.keys())
    }
}
