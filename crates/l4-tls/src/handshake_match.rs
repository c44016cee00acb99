//! Conditions on a ClientHello: the modules of `tls.handshake_match`, of which the matcher `tls` and TLS connection
//! policies are made.

mod alpn;
mod ip;
mod sni;
#[cfg(feature = "regexp")]
mod sni_regexp;

use std::borrow::Cow;
use std::net::IpAddr;

use l4_core::conn::Capture;
use l4_core::{Connection, Cost, Keys, Kind, Registry, Template, View};

use crate::ClientHello;
use alpn::MatchAlpn;
use ip::{MatchLocalIp, MatchRemoteIp};
use sni::MatchSni;
#[cfg(feature = "regexp")]
use sni_regexp::MatchSniRegexp;

/// The namespace `tls.handshake_match`.
pub enum HandshakeMatchers {}

impl Kind for HandshakeMatchers {
    const NAMESPACE: &'static str = "tls.handshake_match";
    type Object = dyn HandshakeMatch;
}

/// What [`Registry::absent`] calls the names in Unicode of `sni`, in this namespace: builds may be without their tables.
pub const UNICODE: &str = "sni in Unicode";

/// A condition on a complete ClientHello and the connection it came on.
pub trait HandshakeMatch: Send + Sync + 'static {
    /// Whether it holds. What a regular expression captured goes to `captures`, which count only if every condition
    /// beside this one holds as well. Pure, and without allocation on false unless placeholders are to be filled in.
    fn matches(
        &self,
        hello: &ClientHello,
        conn: &dyn HandshakeScope,
        captures: &mut Vec<Capture>,
    ) -> bool;

    /// How expensive [`matches`](Self::matches) is; the cheap conditions are asked first.
    fn cost(&self) -> Cost {
        Cost::Meta
    }

    /// See [`Matcher::keys`](l4_core::Matcher::keys).
    fn keys(&self) -> Option<Keys> {
        None
    }
}

/// What a condition may look at beside the hello.
pub trait HandshakeScope {
    /// The effective remote IP address; `None` on a Unix socket.
    fn remote_ip(&self) -> Option<IpAddr>;

    /// The effective local IP address; `None` on a Unix socket.
    fn local_ip(&self) -> Option<IpAddr>;

    /// A template filled in for the connection.
    fn expand<'t>(&self, template: &'t Template) -> Cow<'t, str>;
}

impl HandshakeScope for View<'_> {
    fn remote_ip(&self) -> Option<IpAddr> {
        View::remote_ip(self)
    }

    fn local_ip(&self) -> Option<IpAddr> {
        View::local_ip(self)
    }

    fn expand<'t>(&self, template: &'t Template) -> Cow<'t, str> {
        View::expand(self, template)
    }
}

impl HandshakeScope for Connection {
    fn remote_ip(&self) -> Option<IpAddr> {
        self.remote().ip()
    }

    fn local_ip(&self) -> Option<IpAddr> {
        self.local().ip()
    }

    fn expand<'t>(&self, template: &'t Template) -> Cow<'t, str> {
        Self::expand(self, template)
    }
}

pub(crate) fn register(reg: &mut Registry) {
    reg.add::<HandshakeMatchers, _>("sni", |config, cx| {
        Ok(Box::new(MatchSni::provision(config, cx)?))
    });
    #[cfg(feature = "regexp")]
    reg.add::<HandshakeMatchers, _>("sni_regexp", |config, cx| {
        Ok(Box::new(MatchSniRegexp::provision(config, cx)?))
    });
    reg.add::<HandshakeMatchers, _>("alpn", |config, cx| {
        Ok(Box::new(MatchAlpn::provision(config, cx)?))
    });
    reg.add::<HandshakeMatchers, _>("remote_ip", |config, cx| {
        Ok(Box::new(MatchRemoteIp::provision(config, cx)?))
    });
    reg.add::<HandshakeMatchers, _>("local_ip", |config, cx| {
        Ok(Box::new(MatchLocalIp::provision(config, cx)?))
    });
}
