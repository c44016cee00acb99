use std::fmt::{self, Write as _};

use l4_core::{Addr, Connection};

use super::Select;
use crate::upstream::Upstream;

/// `ip_hash`: a client's address decides, so that it gets the same upstream again for as long as that one is available,
/// and when one goes only its own clients move (rendezvous hashing).
pub(crate) struct IpHash;

impl Select for IpHash {
    fn select(&self, upstreams: &[Upstream], conn: &Connection) -> Option<usize> {
        let mut best: Option<(usize, u32)> = None;
        for (i, upstream) in upstreams.iter().enumerate() {
            let weight = weight(upstream.label(), conn.remote());
            if best.is_none_or(|(_, most)| weight > most) && upstream.available(conn) {
                best = Some((i, weight));
            }
        }
        best.map(|(i, _)| i)
    }
}

/// FNV-1a, 32 bits, over the upstream's addresses as written and the client's address without its port, or the path of
/// its Unix socket.
fn weight(upstream: &str, client: &Addr) -> u32 {
    let mut hash = Fnv(0x811c_9dc5);
    // Hashing never fails.
    let _ = hash.write_str(upstream);
    let _ = match client.ip() {
        Some(ip) => write!(hash, "{ip}"),
        None => write!(hash, "{client}"),
    };
    hash.0
}

struct Fnv(u32);

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAMS: [&str; 4] = [
        "10.0.0.1:80",
        "10.0.0.2:80",
        "10.0.0.3:80",
        "10.0.0.4:80,10.0.0.4:81",
    ];

    #[test]
    fn hashes_are_those_of_the_reference() {
        for (client, expected) in [
            (
                "192.0.2.7:5",
                [0x8b9d_9eaa, 0x9d51_a547, 0xa807_93b0, 0xbf7d_e931_u32],
            ),
            (
                "198.51.100.23:70",
                [0x9acd_c7cf, 0x5543_db86, 0xe9f2_eff9, 0x2a24_6e04],
            ),
            (
                "[2001:db8::1]:1",
                [0x5d76_6da7, 0x22d6_f74a, 0x0841_a789, 0x8ce6_82a8],
            ),
        ] {
            let client = Addr::Tcp(client.parse().unwrap());
            assert_eq!(
                UPSTREAMS.map(|upstream| weight(upstream, &client)),
                expected
            );
        }
    }

    #[test]
    fn a_client_is_the_same_from_every_port_and_socket_family() {
        let of = |text: &str| weight("a:1", &Addr::Tcp(text.parse().unwrap()));
        assert_eq!(of("192.0.2.7:5"), of("192.0.2.7:6"));
        assert_eq!(of("192.0.2.7:5"), of("[::ffff:192.0.2.7]:5"));
        assert_ne!(of("192.0.2.7:5"), of("192.0.2.8:5"));
    }

    #[test]
    fn a_client_without_an_ip_address_is_its_path() {
        let mut hash = Fnv(0x811c_9dc5);
        hash.write_str("a:1@").unwrap();
        assert_eq!(weight("a:1", &Addr::UNNAMED), hash.0);
    }
}
