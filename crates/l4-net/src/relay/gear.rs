//! Which of the two engines moves the bytes of a direction.

/// Chooses the engine of one direction by what the last chunks were like.
///
/// Copying costs less for messages: one read and one write, where splicing takes two calls more. Splicing costs less
/// for bulk, where not touching the bytes outweighs the calls. Measured on loopback, the two meet at chunks of 64 KiB.
#[derive(Debug, Default)]
pub(super) struct Gear {
    splicing: bool,
    /// Chunks in a row that spoke for the other engine.
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
    /// and so many in a row decide.
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
            (Engine::Copy, false) => (n >= policy.large, policy.promote_after),
            (Engine::Splice, _) => (n < policy.small, policy.demote_after),
            // There was no pipe to be had. Trying again costs calls, so not at every chunk.
            (Engine::Copy, true) => return *self = Self::default(),
        };
        self.against = if against { self.against + 1 } else { 0 };
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
