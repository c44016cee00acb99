//! Lists of IP addresses and prefixes, as `remote_ip` and its kin are configured with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A set of IP addresses, written as single addresses and prefixes.
///
/// IPv4 entries contain only IPv4 peers and IPv6 entries only IPv6 peers. An IPv4 peer of a dual-stack socket
/// (`::ffff:a.b.c.d`) is IPv4. Overlapping entries are merged, so that a look-up is one binary search however the
/// list was written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IpRanges {
    v4: Box<[Range<Ipv4Addr>]>,
    v6: Box<[Range<Ipv6Addr>]>,
}

impl IpRanges {
    /// Reads a list. An entry is an address, a prefix whose host bits may be set (`10.1.2.3/8`), or the word
    /// `private_ranges`. The zone of a single IPv6 address is ignored, as peers are compared without theirs.
    ///
    /// # Errors
    /// The position of the first entry that is none of these, and a sentence about it.
    pub fn parse<'a>(items: impl IntoIterator<Item = &'a str>) -> Result<Self, (usize, String)> {
        let mut list = List::default();
        for (i, item) in items.into_iter().enumerate() {
            list.add(item).map_err(|message| (i, message))?;
        }
        Ok(list.into())
    }

    /// Reads a list and leaves out what [`parse`](Self::parse) would refuse: for files that also hold other lines.
    pub fn parse_lenient<'a>(items: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = List::default();
        for item in items {
            // The caller wants the other entries, not a report.
            let _ = list.add(item);
        }
        list.into()
    }

    /// Whether some entry contains `ip`.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => contains(&self.v4, ip),
            IpAddr::V6(ip) => contains(&self.v6, ip),
        }
    }

    /// Whether the list has no entry.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// First and last address.
type Range<A> = (A, A);

/// The entries as they were written.
#[derive(Default)]
struct List {
    v4: Vec<Range<Ipv4Addr>>,
    v6: Vec<Range<Ipv6Addr>>,
}

impl List {
    fn add(&mut self, item: &str) -> Result<(), String> {
        if item == "private_ranges" {
            for net in PRIVATE {
                self.add(net)?;
            }
            return Ok(());
        }
        match net(item)? {
            IpNet::V4(net) => self.v4.push((net.network(), net.broadcast())),
            IpNet::V6(net) => self.v6.push((net.network(), net.broadcast())),
        }
        Ok(())
    }
}

impl From<List> for IpRanges {
    fn from(list: List) -> Self {
        Self {
            v4: merged(list.v4),
            v6: merged(list.v6),
        }
    }
}

fn contains<A: Ord + Copy>(ranges: &[Range<A>], ip: A) -> bool {
    // Disjoint and ascending: only the last range that starts at or before the address can hold it.
    let after = ranges.partition_point(|(first, _)| *first <= ip);
    ranges[..after].last().is_some_and(|(_, last)| ip <= *last)
}

fn merged<A: Ord + Copy>(mut ranges: Vec<Range<A>>) -> Box<[Range<A>]> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
    ranges.into()
}

fn net(item: &str) -> Result<IpNet, String> {
    match item.rsplit_once('/') {
        Some((addr, bits)) => {
            prefix(addr, bits).map_err(|why| format!("parsing CIDR expression: '{item}': {why}"))
        }
        None => address(item)
            .map(IpNet::from)
            .map_err(|why| format!("invalid IP address: '{item}': {why}")),
    }
}

// The parser of `ipnet` lets leading zeros pass, which some systems read as octal; the one of `std` does not.
fn prefix(addr: &str, bits: &str) -> Result<IpNet, &'static str> {
    if addr.contains('%') {
        return Err("a prefix cannot have a zone");
    }
    let addr = address(addr)?;
    let decimal =
        bits.bytes().all(|b| b.is_ascii_digit()) && (bits.len() == 1 || !bits.starts_with('0'));
    let bits = if decimal { bits.parse().ok() } else { None };
    bits.ok_or("the prefix length must be a decimal number")
        .and_then(|bits| IpNet::new(addr, bits).map_err(|_| "the prefix length is too large"))
}

fn address(text: &str) -> Result<IpAddr, &'static str> {
    const NOT_ONE: &str = "expected an IPv4 or IPv6 address";
    match text.split_once('%') {
        None => text.parse().map_err(|_| NOT_ONE),
        Some((_, "")) => Err("the zone is empty"),
        Some((addr, _)) => addr.parse().map(IpAddr::V6).map_err(|_| NOT_ONE),
    }
}

const PRIVATE: [&str; 6] = [
    "192.168.0.0/16",
    "172.16.0.0/12",
    "10.0.0.0/8",
    "127.0.0.1/8",
    "fd00::/8",
    "::1",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(items: &[&str]) -> IpRanges {
        IpRanges::parse(items.iter().copied()).unwrap()
    }

    fn has(items: &[&str], ip: &str) -> bool {
        ranges(items).contains(ip.parse().unwrap())
    }

    fn refusal(item: &str) -> String {
        IpRanges::parse(["::1", item])
            .map_err(|(i, message)| (i == 1).then_some(message))
            .unwrap_err()
            .unwrap()
    }

    #[test]
    fn addresses_and_prefixes_with_host_bits_contain_what_they_name() {
        assert!(has(&["10.1.2.3/8"], "10.255.255.255"));
        assert!(!has(&["10.1.2.3/8"], "11.0.0.0"));
        assert!(has(&["192.0.2.7"], "192.0.2.7"));
        assert!(!has(&["192.0.2.7"], "192.0.2.8"));
        assert!(has(&["0.0.0.0/0"], "255.255.255.255"));
        assert!(has(&["2001:db8::/32"], "2001:db8:ffff::1"));
        assert!(!has(&["2001:db8::/32"], "2001:db9::"));
    }

    #[test]
    fn families_do_not_mix_and_mapped_peers_are_ipv4() {
        assert!(!has(&["0.0.0.0/0"], "::1"));
        assert!(!has(&["::/0"], "192.0.2.1"));
        assert!(has(&["192.0.2.0/24"], "::ffff:192.0.2.1"));
        assert!(!has(&["::ffff:192.0.2.1"], "192.0.2.1"));
    }

    /// Row M-31 of docs/defects.md.
    #[test]
    fn zone_of_an_address_is_ignored_and_of_a_prefix_refused() {
        assert!(has(&["fe80::1%eth0"], "fe80::1"));
        assert_eq!(
            refusal("fe80::%eth0/64"),
            "parsing CIDR expression: 'fe80::%eth0/64': a prefix cannot have a zone"
        );
        assert_eq!(
            refusal("fe80::1%"),
            "invalid IP address: 'fe80::1%': the zone is empty"
        );
        assert!(refusal("192.0.2.1%eth0").starts_with("invalid IP address: '192.0.2.1%eth0': "));
    }

    #[test]
    fn private_ranges_is_a_word() {
        for ip in [
            "192.168.1.1",
            "172.31.0.1",
            "10.0.0.1",
            "127.9.9.9",
            "fd12::1",
            "::1",
        ] {
            assert!(has(&["private_ranges"], ip), "{ip}");
        }
        assert!(!has(&["private_ranges"], "172.32.0.1"));
        assert!(!has(&["private_ranges"], "fe80::1"));
    }

    #[test]
    fn bad_entries_are_named_with_their_position() {
        for item in [
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "010.0.0.0/8",
            "/8",
            "::/129",
            "1.2.3.4/8/8",
        ] {
            assert!(
                refusal(item).starts_with(&format!("parsing CIDR expression: '{item}': ")),
                "{item}"
            );
        }
        for item in [
            "",
            "01.2.3.4",
            "1.2.3",
            "localhost",
            " 1.2.3.4",
            "1.2.3.4:5",
            "[::1]",
        ] {
            assert!(
                refusal(item).starts_with(&format!("invalid IP address: '{item}': ")),
                "{item}"
            );
        }
        let list = IpRanges::parse_lenient(["# comment", "192.0.2.1", "", "x"]);
        assert_eq!(list, ranges(&["192.0.2.1"]));
    }

    #[test]
    fn empty_list_contains_nothing() {
        assert!(ranges(&[]).is_empty());
        assert!(!has(&[], "192.0.2.1"));
        assert!(!ranges(&["::1"]).is_empty());
    }

    proptest! {
        /// Few distinct addresses, so that ranges touch, nest and overlap.
        #[test]
        fn a_list_contains_what_one_of_its_entries_contains(
            entries in proptest::collection::vec((0_u8..4, 0_u8..64, 24_u8..=32), 0..12),
            probe in (0_u8..4, 0_u8..64),
        ) {
            let nets: Vec<String> = entries.iter().map(|(c, d, bits)| format!("10.0.{c}.{d}/{bits}")).collect();
            let ip = IpAddr::from([10, 0, probe.0, probe.1]);
            let expected = nets.iter().any(|net| net.parse::<IpNet>().unwrap().contains(&ip));
            prop_assert_eq!(IpRanges::parse(nets.iter().map(String::as_str)).unwrap().contains(ip), expected);
        }

        #[test]
        fn any_text_is_an_entry_or_refused(text in r"[0-9a-f:./%]{0,20}") {
            let _ = IpRanges::parse([text.as_str()]);
        }
    }
}
