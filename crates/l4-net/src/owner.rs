//! Who has an address: for the message that it is taken, and for what may be opened beside.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use l4_core::Addr;

/// The process that listens on `address` or on a part or the whole of what it stands for. `None` when that cannot be
/// found out, as for processes of other users unless one is root.
pub(crate) fn of(address: &Addr) -> Option<String> {
    let (tables, address) = match address {
        Addr::Tcp(address) => (["tcp", "tcp6"], address),
        Addr::Udp(address) => (["udp", "udp6"], address),
        Addr::Unix { .. } => return None,
    };
    let sockets: Vec<String> = tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
        .flat_map(|table| sockets_at(&table, *address).collect::<Vec<_>>())
        .collect();
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse::<u32>().ok()?;
        Some((id, entry.path()))
    });
    for (id, directory) in processes {
        let Ok(descriptors) = fs::read_dir(directory.join("fd")) else {
            continue;
        };
        let mut targets = descriptors
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok());
        if targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == &**socket)) {
            if id == std::process::id() {
                return Some("this process itself".into());
            }
            let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
            return Some(format!("{} (process {id})", name.trim()));
        }
    }
    None
}

/// The addresses and ports that anybody's UDP sockets are bound to. `None` if they cannot be found out.
pub(crate) fn udp_addresses() -> Option<HashSet<(IpAddr, u16)>> {
    let mut all = HashSet::new();
    // A table comes in pieces: what others close meanwhile can hide a row, but hardly twice.
    for table in ["udp", "udp6", "udp", "udp6"] {
        match fs::read_to_string(format!("/proc/net/{table}")) {
            Ok(table) => all.extend(waiting(&table).map(|(local, _)| (local.ip(), local.port()))),
            // Without IPv6 there is no table for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "udp6" => {}
            Err(_) => return None,
        }
    }
    Some(all)
}

/// The sockets of a table below `/proc/net` that are in the way of `address`, named as in `/proc/PID/fd`.
fn sockets_at(table: &str, address: SocketAddr) -> impl Iterator<Item = String> {
    waiting(table).filter_map(move |(local, inode)| {
        let overlaps = local.ip().is_unspecified()
            || address.ip().is_unspecified()
            || local.ip().to_canonical() == address.ip().to_canonical();
        (overlaps && local.port() == address.port()).then(|| format!("socket:[{inode}]"))
    })
}

/// The addresses and numbers of the sockets of a table below `/proc/net` that wait for anybody: TCP sockets that listen, and
/// UDP sockets that are not connected.
fn waiting(table: &str) -> impl Iterator<Item = (SocketAddr, &str)> {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let (local, state) = (columns.nth(1)?, columns.nth(1)?);
        let inode = columns.nth(5)?;
        let waits = matches!(state, "0A" | "07");
        Some((parse_address(local)?, inode)).filter(|_| waits)
    })
}

/// An address as `/proc/net` writes it: words of 32 bits in the machine's byte order, in hexadecimal.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |i: usize| {
        let word = u32::from_str_radix(ip.get(8 * i..8 * (i + 1))?, 16).ok()?;
        Some(u32::from_be_bytes(word.to_ne_bytes()))
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from_bits(word(0)?).into(),
        32 => {
            let bits = (0..4).try_fold(0, |bits, i| Some(bits << 32 | u128::from(word(i)?)))?;
            Ipv6Addr::from_bits(bits).into()
        }
        _ => return None,
    };
    Some((ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        if cfg!(target_endian = "little") {
            assert_eq!(
                parse_address("0100007F:1F90"),
                Some("127.0.0.1:8080".parse().unwrap())
            );
            assert_eq!(
                parse_address("00000000000000000000000001000000:0050"),
                Some("[::1]:80".parse().unwrap())
            );
            assert_eq!(
                parse_address("B80D0120000000000000000001000000:0050"),
                Some("[2001:db8::1]:80".parse().unwrap())
            );
        }
        assert_eq!(parse_address("local_address"), None);
        assert_eq!(parse_address("01:80"), None);
        assert_eq!(parse_address("0100007é:80"), None);
    }

    #[test]
    fn addresses_of_udp_sockets_are_found_as_they_are_bound() {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|at| std::net::UdpSocket::bind(at).unwrap());
        let [four, six] = sockets
            .each_ref()
            .map(|socket| socket.local_addr().unwrap());
        let all = udp_addresses().unwrap();
        for address in [four, six] {
            assert!(all.contains(&(address.ip(), address.port())), "{address}");
        }
        for ip in ["127.0.0.2", "0.0.0.0", "::", "::ffff:127.0.0.1"] {
            let other = (ip.parse().unwrap(), four.port());
            assert!(!all.contains(&other), "{other:?}");
        }
        // A client.
        sockets[0].connect(four).unwrap();
        let all = udp_addresses().unwrap();
        assert!(!all.contains(&(four.ip(), four.port())));
    }

    #[test]
    fn our_own_sockets_are_found() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let everywhere = SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            tcp.local_addr().unwrap().port(),
        );
        for address in [
            Addr::Tcp(tcp.local_addr().unwrap()),
            Addr::Tcp(everywhere),
            Addr::Udp(udp.local_addr().unwrap()),
        ] {
            assert_eq!(
                of(&address).as_deref(),
                Some("this process itself"),
                "{address}"
            );
        }
    }
}
