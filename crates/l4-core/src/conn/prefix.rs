//! Unread bytes: read ahead for matching, not yet taken by anybody.

use std::collections::VecDeque;

use bytes::Bytes;

/// The unread bytes of a stream, or the unread datagrams of a session. Empty costs no allocation.
#[derive(Debug, Default, Clone)]
pub(crate) enum Prefix {
    #[default]
    Empty,
    Stream {
        bytes: Vec<u8>,
        taken: usize,
    },
    Datagrams(VecDeque<Bytes>),
}

impl Prefix {
    /// What a matcher may look at: all unread bytes of a stream, the first unread datagram of a session.
    pub(crate) fn visible(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Stream { bytes, taken } => bytes.get(*taken..).unwrap_or_default(),
            Self::Datagrams(frames) => frames.front().map(AsRef::as_ref).unwrap_or_default(),
        }
    }

    /// Nothing is unread. A datagram without bytes is something.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Stream { .. } => self.visible().is_empty(),
            Self::Datagrams(frames) => frames.is_empty(),
        }
    }

    /// What the matching limit counts: unread bytes, and for each datagram what it costs to hold, so that empty ones
    /// cannot be piled up without end.
    pub(crate) fn held(&self) -> usize {
        match self {
            Self::Datagrams(frames) => frames.iter().map(|f| f.len() + size_of::<Bytes>()).sum(),
            _ => self.visible().len(),
        }
    }

    pub(crate) fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        let frames = match self {
            Self::Datagrams(frames) => Some(frames),
            _ => None,
        };
        frames.into_iter().flatten().map(AsRef::as_ref)
    }

    /// Appends bytes of a stream. The room of bytes already taken is used again.
    pub(crate) fn extend(&mut self, more: &[u8]) {
        match self {
            Self::Stream { bytes, taken } => {
                let gone = std::mem::take(taken).min(bytes.len());
                bytes.drain(..gone);
                bytes.extend_from_slice(more);
            }
            _ => {
                *self = Self::Stream {
                    bytes: more.to_vec(),
                    taken: 0,
                }
            }
        }
    }

    /// Appends a datagram.
    pub(crate) fn push(&mut self, datagram: Bytes) {
        match self {
            Self::Datagrams(frames) => frames.push_back(datagram),
            _ => *self = Self::Datagrams(VecDeque::from([datagram])),
        }
    }

    /// Takes up to `n` bytes of a stream or of the first datagram, which then keeps its remainder. An emptied buffer
    /// is given back to the allocator.
    pub(crate) fn consume(&mut self, n: usize) {
        match self {
            Self::Empty => return,
            Self::Stream { taken, .. } => *taken = taken.saturating_add(n),
            Self::Datagrams(frames) => {
                if let Some(first) = frames.front_mut() {
                    let n = n.min(first.len());
                    let _ = first.split_to(n);
                    if first.is_empty() {
                        frames.pop_front();
                    }
                }
            }
        }
        if self.is_empty() {
            *self = Self::Empty;
        }
    }

    /// Takes the first datagram whole.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let Self::Datagrams(frames) = self else {
            return None;
        };
        let first = frames.pop_front();
        if frames.is_empty() {
            *self = Self::Empty;
        }
        first
    }

    /// All unread bytes of a stream.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self {
            Self::Stream { bytes, taken } => {
                let mut bytes = Bytes::from(bytes);
                let taken = taken.min(bytes.len());
                bytes.split_off(taken)
            }
            _ => Bytes::new(),
        }
    }

    /// All unread datagrams of a session.
    pub(crate) fn into_datagrams(self) -> VecDeque<Bytes> {
        match self {
            Self::Datagrams(frames) => frames,
            _ => VecDeque::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_taken_in_order_and_freed() {
        let mut prefix = Prefix::default();
        prefix.extend(b"hello");
        prefix.consume(2);
        assert_eq!(prefix.visible(), b"llo");
        prefix.extend(b"!");
        assert_eq!((prefix.visible(), prefix.held()), (&b"llo!"[..], 4));
        prefix.consume(9);
        assert!(matches!(prefix, Prefix::Empty));
    }

    #[test]
    fn datagrams_keep_their_cuts_and_empty_ones_count() {
        let mut prefix = Prefix::default();
        prefix.push(Bytes::new());
        prefix.push(Bytes::from_static(b"two"));
        assert!(!prefix.is_empty());
        assert_eq!(prefix.visible(), b"");
        assert_eq!(prefix.held(), 3 + 2 * size_of::<Bytes>());
        assert_eq!(prefix.pop(), Some(Bytes::new()));
        prefix.consume(1);
        assert_eq!(prefix.pop(), Some(Bytes::from_static(b"wo")));
        assert!(prefix.is_empty());
    }
}
