//! What is known of an authority to those who verify what it has signed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use super::Tier;
use super::sign::Validity;

/// The certificates of an authority as they were last seen. Handshakes read them without a lock.
///
/// Successive configurations share it: an intermediate that was replaced has signed certificates which are still good, and
/// storage has only the one that replaced it.
#[derive(Debug, Default)]
pub(crate) struct Known {
    certificates: ArcSwap<Certificates>,
    /// Held while a new state is made from the old one.
    changing: Mutex<()>,
    /// When storage was last asked, or is being asked.
    pub(super) looked: tokio::sync::Mutex<Option<Instant>>,
}

/// The certificates of an authority at one time.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Certificates {
    root: Option<CertificateDer<'static>>,
    /// The current one with its chain, and those before it that have not ended yet.
    intermediates: Vec<(CertificateDer<'static>, Validity)>,
}

/// For how long what was seen counts as what there is.
pub(super) const FRESH: Duration = Duration::from_secs(1);

impl Known {
    /// As they are now. Another pointer means other certificates.
    pub(crate) fn certificates(&self) -> Arc<Certificates> {
        self.certificates.load_full()
    }

    /// Takes note of what there is at `now`: the root, and the intermediate with its chain.
    pub(super) fn see(
        &self,
        root: Option<CertificateDer<'static>>,
        intermediates: Vec<CertificateDer<'static>>,
        now: i64,
    ) {
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.certificates.load();
        let mut new = Certificates::clone(&old);
        // Nobody replaces a root but by hand, and then nothing of the old authority is to be trusted.
        if new.root != root {
            new = Certificates {
                root,
                intermediates: Vec::new(),
            };
        }
        new.intermediates
            .retain(|(_, validity)| validity.left(now) > 0.0);
        for seen in intermediates {
            let known = new.intermediates.iter().any(|(known, _)| *known == seen);
            if !known
                && let Some(validity) = Validity::of_chain(std::slice::from_ref(&seen))
                && validity.left(now) > 0.0
            {
                new.intermediates.push((seen, validity));
            }
        }
        if new != **old {
            self.certificates.store(Arc::new(new));
        }
    }
}

impl Certificates {
    /// Those that are trusted when this tier is.
    pub(crate) fn of(&self, tier: Tier) -> impl Iterator<Item = &CertificateDer<'static>> {
        let (root, intermediates) = match tier {
            Tier::Root => (self.root.as_ref(), &[][..]),
            Tier::Intermediate => (None, &*self.intermediates),
        };
        root.into_iter()
            .chain(intermediates.iter().map(|(certificate, _)| certificate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::sign;

    const NOW: i64 = 1_780_000_000;
    const DAY: i64 = 24 * 60 * 60;

    #[test]
    fn a_replaced_intermediate_is_known_until_it_ends_and_a_replaced_root_is_not() {
        let root = sign::root("Root", NOW).unwrap();
        let intermediate = |now| {
            let lifetime = Duration::from_secs(7 * 24 * 60 * 60);
            let made = sign::intermediate("Intermediate", &root, lifetime, now).unwrap();
            made.chain[0].clone()
        };
        let (first, second) = (intermediate(NOW), intermediate(NOW + 6 * DAY));
        let anchor = root.chain[0].clone();
        let known = Known::default();
        let trusted = |tier| known.certificates().of(tier).cloned().collect::<Vec<_>>();
        assert!(trusted(Tier::Root).is_empty() && trusted(Tier::Intermediate).is_empty());

        known.see(Some(anchor.clone()), vec![first.clone()], NOW);
        let before = known.certificates();
        known.see(Some(anchor.clone()), vec![first.clone()], NOW + 1);
        assert!(
            Arc::ptr_eq(&before, &known.certificates()),
            "nothing is new"
        );

        known.see(Some(anchor.clone()), vec![second.clone()], NOW + 6 * DAY);
        assert_eq!(trusted(Tier::Root), std::slice::from_ref(&anchor));
        assert_eq!(trusted(Tier::Intermediate), [first, second.clone()]);
        // By then the first has ended.
        known.see(Some(anchor.clone()), Vec::new(), NOW + 8 * DAY);
        assert_eq!(trusted(Tier::Intermediate), std::slice::from_ref(&second));
        known.see(Some(anchor), vec![second], NOW + 14 * DAY);
        assert!(
            trusted(Tier::Intermediate).is_empty(),
            "nobody has renewed it"
        );

        let other = sign::root("Root", NOW).unwrap().chain[0].clone();
        known.see(Some(other.clone()), Vec::new(), NOW + 8 * DAY);
        assert_eq!(trusted(Tier::Root), [other]);
        assert!(trusted(Tier::Intermediate).is_empty());
    }
}
