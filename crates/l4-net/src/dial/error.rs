//! Why a connection was not made.

use std::io;
use std::time::Duration;

use l4_core::Addr;
use l4_core::config::Family;

use super::Preference;

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name could not be looked up.
    #[error("{target}: the name cannot be resolved")]
    Lookup {
        /// What was to be connected to.
        target: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The name has no address of the wanted IP version, or none at all.
    #[error("{target}: no suitable address found{}", of_family(*family))]
    NoSuitableAddress {
        /// What was to be connected to.
        target: String,
        /// The wanted IP version.
        family: Family,
    },
    /// The name has no address of the only IP version that is allowed.
    #[error("{target}: resolver_preference {preference} but no {} records found for {host}",
        if *preference == Preference::V4Only { "A" } else { "AAAA" })]
    NoRecords {
        /// What was to be connected to.
        target: String,
        /// The name.
        host: String,
        /// What was allowed.
        preference: Preference,
    },
    /// The address itself, or its network, is of another IP version than the only one that is allowed.
    #[error("{target}: resolver_preference {preference} but destination is {is}")]
    Contradiction {
        /// What was to be connected to.
        target: String,
        /// What was allowed.
        preference: Preference,
        /// What it is.
        is: String,
    },
    /// The zone of an IPv6 address is not here.
    #[error("{target}: there is no network interface {zone:?}")]
    UnknownZone {
        /// What was to be connected to.
        target: String,
        /// The name of the interface.
        zone: String,
    },
    /// Every address refused, or could not be reached.
    #[error("connecting to {target}: {}", attempts.of(target))]
    Connect {
        /// What was to be connected to.
        target: String,
        /// What was tried.
        attempts: Attempts,
    },
    /// There was no answer in time.
    #[error("connecting to {target}: {} within {limit:?}{}",
        if *resolving { "the name was not resolved" } else { "no answer" }, attempts.before(target))]
    Timeout {
        /// What was to be connected to.
        target: String,
        /// The time there was.
        limit: Duration,
        /// Whether it was the lookup that took so long.
        resolving: bool,
        /// What had failed by then.
        attempts: Attempts,
    },
}

impl DialError {
    /// Whether nobody was asked: what was to be connected to contradicts what is allowed, and says nothing about a peer.
    pub fn is_contradiction(&self) -> bool {
        matches!(self, Self::Contradiction { .. })
    }

    /// Whether there was no answer, rather than a bad one.
    pub fn is_timeout(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Connect { attempts, .. } => attempts
                .best()
                .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut),
            _ => false,
        }
    }

    /// The system's reason that says most about the target.
    pub fn reason(&self) -> Option<&io::Error> {
        match self {
            Self::Lookup { source, .. } => Some(source),
            Self::Connect { attempts, .. } | Self::Timeout { attempts, .. } => attempts.best(),
            _ => None,
        }
    }
}

/// The addresses that were tried in vain, and what became of each.
#[derive(Debug, Default)]
pub struct Attempts(pub(super) Vec<(Addr, io::Error)>);

impl Attempts {
    /// Each address with what the system said about it, in the order in which they failed.
    pub fn iter(&self) -> impl Iterator<Item = (&Addr, &io::Error)> {
        self.0.iter().map(|(addr, error)| (addr, error))
    }

    /// A server that answered, if only to refuse, says more than a route or an IP version that is missing here.
    fn best(&self) -> Option<&io::Error> {
        self.0
            .iter()
            .map(|(_, error)| error)
            .min_by_key(|error| match error.kind() {
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => 0,
                io::ErrorKind::TimedOut => 1,
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => 2,
                io::ErrorKind::HostUnreachable => 4,
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => 5,
                _ => 3,
            })
    }

    /// The attempts as text; an address that is the whole target is not repeated.
    fn of(&self, target: &str) -> String {
        let mut text = String::new();
        for (addr, error) in &self.0 {
            if !text.is_empty() {
                text.push_str("; ");
            }
            let addr = addr.to_string();
            if !target.ends_with(&addr) {
                text.push_str(&addr);
                text.push_str(": ");
            }
            text.push_str(&error.to_string());
        }
        text
    }

    fn before(&self, target: &str) -> String {
        if self.0.is_empty() {
            String::new()
        } else {
            format!("; before that {}", self.of(target))
        }
    }
}

fn of_family(family: Family) -> &'static str {
    match family {
        Family::Any => "",
        Family::V4 => ", it has no IPv4 address",
        Family::V6 => ", it has no IPv6 address",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_that_says_most_is_given() {
        let attempt = |code| (Addr::UNNAMED, io::Error::from_raw_os_error(code));
        let best = |codes: &[i32]| {
            let attempts = Attempts(codes.iter().map(|&code| attempt(code)).collect());
            attempts.best().and_then(io::Error::raw_os_error)
        };
        assert_eq!(
            best(&[libc::ENETUNREACH, libc::ECONNREFUSED]),
            Some(libc::ECONNREFUSED)
        );
        assert_eq!(
            best(&[libc::ETIMEDOUT, libc::EHOSTUNREACH]),
            Some(libc::ETIMEDOUT)
        );
        assert_eq!(
            best(&[libc::EHOSTUNREACH, libc::ENETUNREACH]),
            Some(libc::EHOSTUNREACH)
        );
        assert_eq!(best(&[]), None);
    }
}
