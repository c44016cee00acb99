//! Which of the two engines moves the bytes of a direction.

/// Chooses the engine of one direction by what the last chunks were like.
///
/// Copying costs less for messages: one read and one write, where splicing takes two calls more. Splicing costs less
/// for bulk, where not touching the bytes outweighs the calls. Measured on loopback, the two meet at chunks of 64 KiB.
#[derive(Debug, Default)]
pub(super) struct Gear {
    splicing: bool,
    /// Chunks in a row that spoke for the other engine. While copying, twice that, less one for each chunk between them
    /// that spoke for neither.
    against: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Copy,
    Splice,
}

/// When to change the engine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    /// A copied chunk of at least this size speaks for splicing,
    pub(super) large: usize,
    /// and so many in a row decide. One of at least [`small`](Self::small) between each two does not matter.
    pub(super) promote_after: u8,
    /// A spliced chunk below this size speaks for copying,
    pub(super) small: usize,
    /// and so many in a row decide.
    pub(super) demote_after: u8,
}

impl Policy {
    /// A filled scratch buffer means that more was waiting.
    pub(super) const DEFAULT: Self = Self {
        large: super::scratch::SIZE,
        promote_after: 2,
        small: 16 * 1024,
        demote_after: 8,
    };
}

impl Gear {
    pub(super) fn splicing(&self) -> bool {
        self.splicing
    }

    /// A chunk of `n` bytes was moved.
    pub(super) fn note(&mut self, policy: &Policy, engine: Engine, n: usize) {
        let (against, enough) = match (engine, self.splicing) {
            (Engine::Copy, false) => (
                // A sender that keeps pace with us gives a filled buffer and a part of one in turns, for as long as it
                // likes: 64 KiB, 29 KiB, 64 KiB. Counting only those in a row would never find that out.
                match n {
                    n if n >= policy.large => self.against.saturating_add(2),
                    n if n >= policy.small => self.against.saturating_sub(1),
                    _ => 0,
                },
                policy.promote_after.saturating_mul(2).saturating_sub(1),
            ),
            (Engine::Splice, _) if n < policy.small => {
                (self.against.saturating_add(1), policy.demote_after)
            }
            (Engine::Splice, _) => (0, policy.demote_after),
            // There was no pipe to be had. Trying again costs calls, so not at every chunk.
            (Engine::Copy, true) => return *self = Self::default(),
        };
        self.against = against;
        if self.against >= enough {
            *self = Self {
                splicing: !self.splicing,
                against: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy::DEFAULT;

    #[test]
    fn two_filled_buffers_in_a_row_promote() {
        let mut gear = Gear::default();
        for n in [POLICY.large, 1, POLICY.large] {
            gear.note(&POLICY, Engine::Copy, n);
            assert!(!gear.splicing());
        }
        gear.note(&POLICY, Engine::Copy, POLICY.large);
        assert!(gear.splicing());
    }

    #[test]
    fn filled_buffers_in_turns_with_parts_of_one_promote() {
        let mut gear = Gear::default();
        for n in [POLICY.large, POLICY.small] {
            gear.note(&POLICY, Engine::Copy, n);
            assert!(!gear.splicing());
        }
        gear.note(&POLICY, Engine::Copy, POLICY.large);
        assert!(gear.splicing());
    }

    #[test]
    fn now_and_then_a_filled_buffer_among_messages_does_not_promote() {
        let mut gear = Gear::default();
        for n in [POLICY.large, POLICY.small, POLICY.small].repeat(100) {
            gear.note(&POLICY, Engine::Copy, n);
            assert!(!gear.splicing());
        }
        for n in [POLICY.large, POLICY.small - 1].repeat(100) {
            gear.note(&POLICY, Engine::Copy, n);
            assert!(!gear.splicing());
        }
    }

    #[test]
    fn eight_small_chunks_in_a_row_demote() {
        let mut gear = Gear {
            splicing: true,
            against: 0,
        };
        for n in [1, 1, 1, 1, 1, 1, 1, POLICY.small, 1, 1, 1, 1, 1, 1, 1] {
            gear.note(&POLICY, Engine::Splice, n);
            assert!(gear.splicing());
        }
        gear.note(&POLICY, Engine::Splice, 1);
        assert!(!gear.splicing());
    }

    #[test]
    fn without_a_pipe_bulk_is_copied_and_tries_again() {
        let mut gear = Gear {
            splicing: true,
            against: 0,
        };
        gear.note(&POLICY, Engine::Copy, POLICY.large);
        assert!(!gear.splicing());
        gear.note(&POLICY, Engine::Copy, POLICY.large);
        gear.note(&POLICY, Engine::Copy, POLICY.large);
        assert!(gear.splicing());
    }
}
