//! The address of one end of a connection.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// The address of one end of a connection, with the kind of transport it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addr {
    /// TCP.
    Tcp(SocketAddr),
    /// UDP.
    Udp(SocketAddr),
    /// A Unix socket; `None` is an unnamed one. An abstract name starts with `@`.
    Unix {
        /// The path or `@name`.
        path: Option<Arc<Path>>,
        /// `unixgram` rather than a stream.
        datagram: bool,
    },
}

impl Addr {
    /// An unnamed Unix stream socket: what most clients of a Unix listener are.
    pub const UNNAMED: Self = Self::Unix {
        path: None,
        datagram: false,
    };

    /// The IP address, if there is one. An IPv4 address that arrived on a dual-stack socket is IPv4.
    pub fn ip(&self) -> Option<IpAddr> {
        self.socket().map(|socket| socket.ip().to_canonical())
    }

    /// IP address and port, as the kernel gave them.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) | Self::Udp(socket) => Some(*socket),
            Self::Unix { .. } => None,
        }
    }

    /// `tcp`, `udp`, `unix` or `unixgram`, as log fields show it.
    pub fn network(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Udp(_) => "udp",
            Self::Unix {
                datagram: false, ..
            } => "unix",
            Self::Unix { datagram: true, .. } => "unixgram",
        }
    }
}

/// `ip:port` with IPv6 in brackets, a path, or `@` for an unnamed Unix socket.
impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) | Self::Udp(socket) => {
                SocketAddr::new(socket.ip().to_canonical(), socket.port()).fmt(f)
            }
            Self::Unix {
                path: Some(path), ..
            } => path.display().fmt(f),
            Self::Unix { path: None, .. } => f.write_str("@"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_on_a_dual_stack_socket_is_ipv4() {
        let addr = Addr::Tcp("[::ffff:192.0.2.1]:5".parse().unwrap());
        assert_eq!(addr.ip(), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(addr.to_string(), "192.0.2.1:5");
    }

    #[test]
    fn unnamed_unix_socket_is_an_at_sign() {
        assert_eq!(Addr::UNNAMED.to_string(), "@");
        assert_eq!(Addr::UNNAMED.ip(), None);
    }
}
