//! From where, and over which IP version, the peers of an upstream are connected to.

use std::net::SocketAddr;

use l4_core::config::Family;
use l4_core::prelude::*;
use l4_net::dial::{DialOptions, Preference, source_address};
use tracing::debug;

use crate::config::UpstreamConfig;

/// What an upstream says about it.
#[derive(Default)]
pub(crate) struct Origin {
    sources: Vec<Source>,
    preference: Option<Preference>,
}

enum Source {
    /// The same for every connection.
    Fixed(SocketAddr),
    /// Filled in for each connection.
    Dynamic(Template),
}

/// What is known without a connection: for active checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fixed {
    sources: Vec<SocketAddr>,
    preference: Option<Preference>,
}

impl Origin {
    pub(crate) fn provision(
        config: &UpstreamConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let preference = match &config.resolver_preference {
            Some(text) => preference(text, cx),
            None => Ok(None),
        };
        let sources = cx.all(&config.local_address, Source::provision);
        let (preference, sources) = (preference?, sources?);
        let origin = Self {
            sources: sources.into_iter().flatten().collect(),
            preference,
        };
        if let (Some(text), Some(preference)) = (&config.resolver_preference, preference)
            && let Some(only) = preference.only()
            && !config.local_address.is_empty()
            && !origin.sources.iter().any(|source| source.may_be(only))
        {
            let version = match only {
                Family::V6 => "IPv6",
                _ => "IPv4",
            };
            return Err(cx.reject_help(
                text.node(),
                format!(
                    "resolver_preference \"{preference}\" requires at least one {version} local_address, but all \
                     configured sources are the wrong family"
                ),
                format!("add an {version} address of this machine to \"local_address\", or leave one of the two out"),
            ));
        }
        Ok(origin)
    }

    /// How to connect on behalf of `conn`.
    pub(crate) fn apply(&self, conn: &Connection, options: &mut DialOptions) {
        options.preference = self.preference;
        options.sources = self
            .sources
            .iter()
            .filter_map(|source| source.address(conn))
            .collect();
    }

    pub(crate) fn fixed(&self) -> Fixed {
        let fixed = |source: &Source| match source {
            Source::Fixed(address) => Some(*address),
            Source::Dynamic(_) => None,
        };
        Fixed {
            sources: self.sources.iter().filter_map(fixed).collect(),
            preference: self.preference,
        }
    }
}

impl Fixed {
    pub(crate) fn apply(&self, options: &mut DialOptions) {
        options.preference = self.preference;
        options.sources.clone_from(&self.sources);
    }
}

impl Source {
    /// `None` for an entry that no connection can use: it is left out, as the reference does.
    fn provision(cx: &mut Provision<'_>, text: &At<String>) -> Result<Option<Self>, Rejected> {
        let expanded = cx.expand_known(text)?;
        let trimmed = expanded.trim();
        if trimmed.contains('{') && trimmed.contains('}') {
            return Ok(Some(Self::Dynamic(cx.template_at(trimmed, text.node())?)));
        }
        if trimmed.contains('%') && !trimmed.contains('/') {
            // Interfaces come and go.
            return Ok(Some(Self::Dynamic(Template::literal(trimmed))));
        }
        let address = source_address(trimmed);
        if address.is_none() && !trimmed.is_empty() {
            cx.warn(
                text.node(),
                format!("{trimmed:?} is never connected from: write an IP address such as \"192.0.2.1\" or \"[2001:db8::1]:5000\""),
            );
        }
        Ok(address.map(Self::Fixed))
    }

    fn address(&self, conn: &Connection) -> Option<SocketAddr> {
        match self {
            Self::Fixed(address) => Some(*address),
            Self::Dynamic(template) => {
                let text = conn.expand(template);
                let address = source_address(text.trim());
                if address.is_none() && !text.trim().is_empty() {
                    debug!(
                        target: "layer4.handlers.proxy", conn = conn.record().id(), local_address = ?text,
                        "this is no address to connect from"
                    );
                }
                address
            }
        }
    }

    fn may_be(&self, family: Family) -> bool {
        match self {
            Self::Fixed(address) => address.is_ipv6() == (family == Family::V6),
            Self::Dynamic(_) => true,
        }
    }
}

fn preference(text: &At<String>, cx: &mut Provision<'_>) -> Result<Option<Preference>, Rejected> {
    Ok(Some(match text.as_str() {
        "" => return Ok(None),
        "ipv4_only" => Preference::V4Only,
        "ipv6_only" => Preference::V6Only,
        "ipv4_first" => Preference::V4First,
        "ipv6_first" => Preference::V6First,
        other => {
            return Err(cx.reject_help(
                text.node(),
                format!(
                    "resolver_preference: unknown value {other:?}; must be one of: ipv4_only, ipv6_only, ipv4_first, \
                     ipv6_first"
                ),
                "leave it out to try the addresses of both versions",
            ));
        }
    }))
}
