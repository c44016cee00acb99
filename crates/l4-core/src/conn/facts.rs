//! Facts: what was parsed from the unread bytes, once per connection.

use std::any::{Any, TypeId};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::{Fact, Parsed};

/// A cache of finished parses, keyed by type. Of undecided ones only the last is remembered: in the last pass over a list
/// every route with the same matcher asks about the same bytes, and a client must not make a thousand parses of one.
///
/// Two facts fit without an allocation of the cache itself; a protocol that said `Not` never allocates.
#[derive(Default)]
pub(crate) struct Facts {
    slots: [OnceLock<Slot>; 2],
    overflow: OnceLock<Box<Self>>,
    undecided: Mutex<Option<Undecided>>,
}

/// A parse that asked for more. Bytes are only ever appended while facts are kept, so their number stands for them.
#[derive(Clone, Copy)]
struct Undecided {
    key: TypeId,
    bytes: usize,
    more: usize,
}

#[derive(Clone)]
struct Slot {
    key: TypeId,
    /// `T`, or none if the bytes are not one.
    value: Option<Arc<dyn Any + Send + Sync>>,
}

impl Facts {
    /// The fact of type `T`, parsed now if it was not before.
    pub(crate) fn get<T: Fact>(&self, bytes: &[u8]) -> Parsed<&T> {
        let key = TypeId::of::<T>();
        for slot in &self.slots {
            if slot.get().is_none() {
                let parsed = match self.undecided(key) {
                    Some(last) if last.bytes == bytes.len() => return Parsed::More(last.more),
                    Some(last) => T::parse_on(bytes, last.bytes),
                    None => T::parse(bytes),
                };
                let value: Option<Arc<dyn Any + Send + Sync>> = match parsed {
                    Parsed::Done(fact) => Some(Arc::new(fact)),
                    Parsed::Not => None,
                    Parsed::More(n) => {
                        let (bytes, more) = (bytes.len(), n.max(1));
                        *lock(&self.undecided) = Some(Undecided { key, bytes, more });
                        return Parsed::More(more);
                    }
                };
                // Cannot be taken in between: a connection has one owner.
                let _ = slot.set(Slot { key, value });
            }
            if let Some(slot) = slot.get().filter(|slot| slot.key == key) {
                return slot.fact().map_or(Parsed::Not, Parsed::Done);
            }
        }
        self.overflow.get_or_init(Box::default).get(bytes)
    }

    /// The last parse that asked for more, if it was `key`'s.
    fn undecided(&self, key: TypeId) -> Option<Undecided> {
        lock(&self.undecided).filter(|last| last.key == key)
    }

    /// The fact of type `T` if it was parsed already.
    pub(crate) fn known<T: Fact>(&self) -> Option<&T> {
        let key = TypeId::of::<T>();
        self.slots
            .iter()
            .filter_map(OnceLock::get)
            .find(|slot| slot.key == key)
            .map_or_else(|| self.overflow.get()?.known(), Slot::fact)
    }

    /// Forgets everything: the bytes changed.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Clone for Facts {
    fn clone(&self) -> Self {
        Self {
            slots: self.slots.clone(),
            overflow: self.overflow.clone(),
            undecided: Mutex::default(),
        }
    }
}

impl Slot {
    fn fact<T: Fact>(&self) -> Option<&T> {
        self.value.as_ref()?.downcast_ref()
    }
}

fn lock(undecided: &Mutex<Option<Undecided>>) -> std::sync::MutexGuard<'_, Option<Undecided>> {
    undecided.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct First<const N: u8>(u8);

    static PARSES: AtomicUsize = AtomicUsize::new(0);

    impl<const N: u8> Fact for First<N> {
        fn parse(bytes: &[u8]) -> Parsed<Self> {
            PARSES.fetch_add(1, Ordering::Relaxed);
            match bytes.first() {
                None => Parsed::More(1),
                Some(&b) if b == N => Parsed::Done(Self(b)),
                Some(_) => Parsed::Not,
            }
        }
    }

    #[test]
    fn each_fact_is_parsed_once_and_more_than_two_fit() {
        let facts = Facts::default();
        assert!(matches!(facts.get::<First<1>>(b""), Parsed::More(1)));
        for _ in 0..3 {
            assert!(matches!(
                facts.get::<First<1>>(&[1]),
                Parsed::Done(First(1))
            ));
            assert!(matches!(facts.get::<First<2>>(&[1]), Parsed::Not));
            assert!(matches!(facts.get::<First<3>>(&[1]), Parsed::Not));
            assert!(matches!(facts.get::<First<4>>(&[1]), Parsed::Not));
        }
        assert_eq!(PARSES.load(Ordering::Relaxed), 5);
        assert!(facts.known::<First<1>>().is_some());
        assert!(facts.known::<First<4>>().is_none());
    }

    #[test]
    fn the_same_undecided_bytes_are_parsed_once_however_many_routes_ask() {
        static PARSES: AtomicUsize = AtomicUsize::new(0);

        struct Late;

        impl Fact for Late {
            fn parse(bytes: &[u8]) -> Parsed<Self> {
                PARSES.fetch_add(1, Ordering::Relaxed);
                match bytes.len() {
                    3.. => Parsed::Done(Self),
                    n => Parsed::More(3 - n),
                }
            }
        }

        let mut facts = Facts::default();
        for bytes in [&b"a"[..], b"ab"] {
            for _ in 0..1000 {
                assert!(
                    matches!(facts.get::<Late>(bytes), Parsed::More(n) if n == 3 - bytes.len())
                );
            }
        }
        assert_eq!(PARSES.load(Ordering::Relaxed), 2);
        assert!(matches!(facts.get::<Late>(b"abc"), Parsed::Done(Late)));
        facts.clear();
        assert!(matches!(facts.get::<Late>(b"xy"), Parsed::More(1)));
        assert_eq!(PARSES.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_parse_goes_on_where_it_stopped_until_the_bytes_are_others() {
        /// How many bytes had been seen when it was parsed.
        struct Seen(usize);

        impl Fact for Seen {
            fn parse(bytes: &[u8]) -> Parsed<Self> {
                Self::parse_on(bytes, 0)
            }

            fn parse_on(bytes: &[u8], seen: usize) -> Parsed<Self> {
                match bytes.len() {
                    4.. => Parsed::Done(Self(seen)),
                    _ => Parsed::More(1),
                }
            }
        }

        struct Other;

        impl Fact for Other {
            fn parse(_: &[u8]) -> Parsed<Self> {
                Parsed::More(1)
            }
        }

        let mut facts = Facts::default();
        for bytes in [&b"a"[..], b"abc"] {
            assert!(matches!(facts.get::<Seen>(bytes), Parsed::More(1)));
        }
        assert!(matches!(facts.get::<Seen>(b"abcd"), Parsed::Done(Seen(3))));
        facts.clear();
        assert!(matches!(facts.get::<Seen>(b"wxyz"), Parsed::Done(Seen(0))));
        // Another fact was undecided last.
        facts.clear();
        assert!(matches!(facts.get::<Seen>(b"a"), Parsed::More(1)));
        assert!(matches!(facts.get::<Other>(b"a"), Parsed::More(1)));
        assert!(matches!(facts.get::<Seen>(b"abcd"), Parsed::Done(Seen(0))));
    }
}
