//! Which of the addresses to connect to, and where from.

use std::net::{SocketAddr, SocketAddrV6};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use l4_core::config::Family;
use tracing::{debug, warn};

use super::target::{Host, Target, interface_index, is_of};
use super::{DialError, DialOptions, Preference};

/// Reads an address to connect from: `192.0.2.1`, `192.0.2.1:5000`, `2001:db8::1`, `[2001:db8::1]:5000`, the IPv6 ones also
/// with a zone. `None` if it is none, or its zone is not here.
pub fn source_address(text: &str) -> Option<SocketAddr> {
    let bare = |text: &str, port| match Host::parse(text) {
        Host::Ip(ip) => Some(SocketAddr::new(ip, port)),
        Host::Zoned(ip, zone) => {
            Some(SocketAddrV6::new(ip, port, 0, interface_index(&zone)?).into())
        }
        Host::Unspecified | Host::Name(_) => None,
    };
    bare(text, 0).or_else(|| {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => text.split_at_checked(text.find(':')?)?,
        };
        let port = match port.strip_prefix(':') {
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => port.parse().ok()?,
            None if port.is_empty() => 0,
            _ => return None,
        };
        bare(host, port).filter(|address| text.starts_with('[') == address.is_ipv6())
    })
}

/// Whether what is fixed about a target agrees with the only IP version that is allowed.
pub(super) fn agree(
    target: &Target,
    family: Family,
    host: &Host,
    preference: Preference,
) -> Result<(), DialError> {
    let Some(only) = preference.only() else {
        return Ok(());
    };
    let contradiction = |is| {
        Err(DialError::Contradiction {
            target: target.to_string(),
            preference,
            is,
        })
    };
    let number = |six| if six { "IPv6" } else { "IPv4" };
    match host.ip() {
        Some(ip) if !is_of(only, ip) => {
            contradiction(format!("{} literal ({ip})", number(ip.is_ipv6())))
        }
        None if family != Family::Any && family != only => {
            contradiction(format!("of an {} network", number(family == Family::V6)))
        }
        _ => Ok(()),
    }
}

/// Of the addresses of a name, those of the IP version to connect to. Which one that is depends on what the name has, not
/// on what answers: the preferred one, or without a preference that of the first source address.
pub(super) fn choose(
    target: &Target,
    host: &str,
    mut found: Vec<SocketAddr>,
    options: &DialOptions,
) -> Result<Vec<SocketAddr>, DialError> {
    let first = match (options.preference, options.sources.first()) {
        (Some(preference), _) => preference.first(),
        (None, Some(SocketAddr::V6(_))) => Family::V6,
        (None, _) => Family::V4,
    };
    let has_it = found.iter().any(|address| is_of(first, address.ip()));
    match options.preference {
        Some(preference) if !has_it && preference.only().is_some() => {
            return Err(DialError::NoRecords {
                target: target.to_string(),
                host: host.to_owned(),
                preference,
            });
        }
        _ => {}
    }
    if has_it {
        found.retain(|address| is_of(first, address.ip()));
    }
    Ok(found)
}

/// Where to connect from, in order; `None` leaves it to the system. The addresses are of one IP version wherever there are
/// sources to choose from.
pub(super) fn sources<'o>(
    target: &Target,
    addresses: &[SocketAddr],
    all: &'o [SocketAddr],
) -> impl Iterator<Item = Option<SocketAddr>> + use<'o> {
    let v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let fitting = move || all.iter().filter(move |source| source.is_ipv6() == v6);
    let count = fitting().count();
    if !all.is_empty() {
        let dest_family = if v6 { "ipv6" } else { "ipv4" };
        let upstream_network = if target.is_datagram() { "udp" } else { "tcp" };
        debug!(
            target: "layer4.handlers.proxy", upstream_network, count, dest_family,
            "selected local addresses"
        );
        if count == 0 && TOLD.due() {
            warn!(
                target: "layer4.handlers.proxy", upstream = %target, dest_family,
                "no local address of the upstream's IP version is configured, so the system chooses one"
            );
        }
    }
    let system = (count == 0).then_some(None);
    fitting().copied().map(Some).chain(system)
}

/// When it was last said that no source address fits. Once a minute is enough: it would be said for every connection.
struct Told(AtomicU64);

static TOLD: Told = Told(AtomicU64::new(0));

impl Told {
    fn due(&self) -> bool {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(0, |since| since.as_secs());
        let last = self.0.load(Ordering::Relaxed);
        now.saturating_sub(last) >= 60
            && self
                .0
                .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// IPv6 and IPv4 in turn, beginning with the version the resolver put first, and in its order otherwise (RFC 8305,
/// section 4).
pub(super) fn interleave(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut all: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    let Some(first) = all.first().map(SocketAddr::is_ipv6) else {
        return all;
    };
    let (mut preferred, mut other): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|address| address.is_ipv6() == first);
    let mut mixed = Vec::with_capacity(preferred.len() + other.len());
    let (mut preferred, mut other) = (preferred.drain(..), other.drain(..));
    loop {
        match (preferred.next(), other.next()) {
            (None, None) => return mixed,
            (a, b) => mixed.extend([a, b].into_iter().flatten()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn ip_versions_take_turns_beginning_with_the_resolvers_first() {
        let mixed = interleave(
            addresses(&[
                "[::1]:1",
                "[::2]:1",
                "[::3]:1",
                "1.1.1.1:1",
                "[::1]:1",
                "1.1.1.2:1",
            ])
            .into_iter(),
        );
        let expected = ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"];
        assert_eq!(mixed, addresses(&expected));
        let four_first = interleave(addresses(&["1.1.1.1:1", "[::1]:1"]).into_iter());
        assert_eq!(four_first, addresses(&["1.1.1.1:1", "[::1]:1"]));
        assert_eq!(interleave(std::iter::empty()), []);
    }

    #[test]
    fn source_addresses_are_read_with_and_without_a_port() {
        for (text, expected) in [
            ("192.0.2.1", "192.0.2.1:0"),
            ("192.0.2.1:5000", "192.0.2.1:5000"),
            ("2001:db8::1", "[2001:db8::1]:0"),
            ("[2001:db8::1]", "[2001:db8::1]:0"),
            ("[2001:db8::1]:5000", "[2001:db8::1]:5000"),
            ("::1", "[::1]:0"),
            ("[fe80::1%1]:5", "[fe80::1%1]:5"),
            ("fe80::1%lo", "[fe80::1%1]:0"),
        ] {
            let address = source_address(text).unwrap();
            assert_eq!(address.to_string(), expected, "{text}");
        }
        for bad in [
            "",
            " 192.0.2.1",
            "192.0.2.1:",
            "192.0.2.1:+5",
            "192.0.2.1:65536",
            "192.0.2",
            "[192.0.2.1]:5",
            "[::1",
            "[::1]5",
            "[::1]:",
            "tcp/192.0.2.1",
            "192.0.2.0/24",
            "localhost",
            "fe80::1%nowhere0",
        ] {
            assert_eq!(source_address(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn that_no_source_fits_is_said_once_a_minute() {
        let told = Told(AtomicU64::new(0));
        assert!(told.due());
        assert!(!told.due());
    }
}
