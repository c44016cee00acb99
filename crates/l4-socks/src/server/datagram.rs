//! The datagrams of an association, RFC 1928 section 7, and what is remembered about them. No sockets and no clock here.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use socks5_proto::{Address, UdpHeader};

use super::dialogue::now;

/// A datagram of the client: a header that says where to, and what to send there.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Where it is to go.
    pub to: Address,
    /// What is to go there; may be empty.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// `None` if `bytes` are no datagram of the protocol, or a fragment of one: nobody sends those, and RFC 1928 lets
    /// a server drop them.
    pub fn parse(mut bytes: &'a [u8]) -> Option<Self> {
        let header = now(UdpHeader::read_from(&mut bytes))?.ok()?;
        (header.frag == 0).then_some(Self {
            to: header.address,
            payload: bytes,
        })
    }
}

/// Room for the longest header in front of an answer.
pub(super) const ROOM: usize = 2 + 1 + 1 + 16 + 2;

/// Writes the header of an answer from `source` to the end of `room`, and returns where it begins.
pub(super) fn write_header(source: SocketAddr, room: &mut [u8; ROOM]) -> usize {
    let header = UdpHeader::new(0, Address::SocketAddress(source));
    let start = ROOM.saturating_sub(header.serialized_len());
    header.write_to_buf(&mut &mut room[start..]);
    start
}

/// What was used lately: entries that nobody has asked for longer than [`IDLE`] are gone, and of more than [`MOST`] those
/// that were not asked for longest.
pub(super) struct Recent<K, V>(HashMap<K, Entry<V>>);

struct Entry<V> {
    value: V,
    used: Instant,
}

/// How many targets an association has at a time.
pub(super) const MOST: usize = 256;

/// How long a target without datagrams in either direction may still answer.
pub(super) const IDLE: Duration = Duration::from_secs(60);

impl<K: Eq + Hash + Clone, V> Recent<K, V> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// The value of `key`, which is thereby used.
    pub(super) fn get(&mut self, key: &K, now: Instant) -> Option<&mut V> {
        let entry = self.0.get_mut(key).filter(|entry| entry.is_live(now))?;
        entry.used = now;
        Some(&mut entry.value)
    }

    pub(super) fn set(&mut self, key: K, value: V, now: Instant) {
        if self.0.len() >= MOST && !self.0.contains_key(&key) {
            self.make_room(now);
        }
        self.0.insert(key, Entry { value, used: now });
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.0.remove(key).map(|entry| entry.value)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|entry| &entry.value)
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, entry| entry.is_live(now));
        if self.0.len() >= MOST {
            let oldest = self.0.iter().min_by_key(|(_, entry)| entry.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
    }
}

impl<V> Entry<V> {
    fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) < IDLE
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn targets_of_each_kind_are_read_and_the_rest_is_the_payload() {
        for (bytes, to, payload) in [
            (
                &b"\0\0\0\x01\xc0\x00\x02\x0a\x00\x35query"[..],
                "192.0.2.10:53",
                &b"query"[..],
            ),
            (b"\0\0\0\x03\x03abc\x00\x35query", "abc:53", b"query"),
            (
                b"\0\0\0\x04\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\x00\x35",
                "[2001:db8::1]:53",
                b"",
            ),
            // The reserved bytes are nobody's business.
            (b"\x07\x07\0\x01\x7f\0\0\x01\0\x01\0", "127.0.0.1:1", b"\0"),
        ] {
            let datagram = Datagram::parse(bytes).unwrap();
            assert_eq!(datagram.to.to_string(), to);
            assert_eq!(datagram.payload, payload);
        }
    }

    #[test]
    fn fragments_and_what_is_cut_short_or_of_another_kind_are_nothing() {
        let whole = b"\0\0\0\x03\x03abc\x00\x35";
        for cut in 0..whole.len() {
            assert!(Datagram::parse(&whole[..cut]).is_none(), "{cut}");
        }
        for bytes in [
            &b"\0\0\x01\x01\x7f\0\0\x01\0\x35x"[..],
            b"\0\0\x80\x01\x7f\0\0\x01\0\x35x",
            b"\0\0\0\x02\x7f\0\0\x01\0\x35x",
            b"\0\0\0\x00\x7f\0\0\x01\0\x35x",
        ] {
            assert!(Datagram::parse(bytes).is_none(), "{bytes:02x?}");
        }
    }

    #[test]
    fn the_header_of_an_answer_ends_where_the_payload_begins() {
        for source in ["192.0.2.10:53", "[2001:db8::1]:53"] {
            let source: SocketAddr = source.parse().unwrap();
            let mut room = [0xff; ROOM];
            let start = write_header(source, &mut room);
            let bytes = [&room[start..], b"answer"].concat();
            let datagram = Datagram::parse(&bytes).unwrap();
            assert_eq!(datagram.to, Address::SocketAddress(source));
            assert_eq!(datagram.payload, b"answer");
        }
    }

    #[test]
    fn use_keeps_an_entry_and_silence_ends_it() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = Recent::new();
        recent.set("a", 1, at(0));
        assert_eq!(recent.get(&"a", at(59)), Some(&mut 1));
        assert_eq!(recent.get(&"a", at(118)), Some(&mut 1));
        assert_eq!(recent.get(&"a", at(178)), None);
    }

    #[test]
    fn the_entry_that_was_not_used_longest_makes_room() {
        let start = Instant::now();
        let at = |i: usize| start + Duration::from_millis(i as u64);
        let mut recent = Recent::new();
        for i in 0..MOST {
            recent.set(i, (), at(i));
        }
        assert!(recent.get(&0, at(MOST)).is_some());
        recent.set(MOST, (), at(MOST + 1));
        assert_eq!(recent.values().count(), MOST);
        assert!(recent.get(&0, at(MOST + 1)).is_some());
        assert!(recent.get(&1, at(MOST + 1)).is_none());
        // What is over goes before what is in use.
        let late = start + IDLE + Duration::from_millis(100);
        recent.set(MOST + 1, (), late);
        assert!(recent.values().count() < MOST);
        assert!(recent.get(&0, late).is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_and_a_payload_is_what_follows_the_header(
            frag in 0_u8..2,
            kind in 0_u8..6,
            rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [&[0, 0, frag, kind][..], &rest].concat();
            if let Some(datagram) = Datagram::parse(&bytes) {
                prop_assert_eq!(frag, 0);
                prop_assert!(bytes.ends_with(datagram.payload));
                let header = bytes.len() - datagram.payload.len();
                prop_assert_eq!(UdpHeader::new(0, datagram.to).serialized_len(), header);
            }
        }
    }
}
