//! Where the certificate of a managed name is, for handshakes to take.

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::Certificate;
use crate::shared::Shared;

/// The current certificate of one managed name.
///
/// There is one slot in the process for a name, its issuers and its storage, which successive configurations share while
/// they have it: after a reload the same certificate is served, and who waits for the first one goes on waiting. Handshakes
/// read it without a lock.
#[derive(Debug)]
pub(crate) struct Slot {
    certificate: ArcSwapOption<Certificate>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Whether anybody ever began. What was just loaded begins in a moment.
    begun: bool,
    /// How many are at their first attempt: during a reload it can be two.
    making: usize,
}

impl Progress {
    fn promises(&self) -> bool {
        !self.begun || self.making > 0
    }
}

impl Slot {
    /// The slot of this key, which configurations that have it at the same time share.
    pub(crate) fn of(key: String) -> Arc<Self> {
        static TABLE: LazyLock<Shared<Slot>> = LazyLock::new(Shared::default);
        TABLE.of(key, Self::new)
    }

    pub(crate) fn new() -> Self {
        Self {
            certificate: ArcSwapOption::empty(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// The certificate, if there is one by now.
    pub(crate) fn certificate(&self) -> Option<Arc<Certificate>> {
        self.certificate.load_full()
    }

    /// Serves this one from now on.
    pub(crate) fn put(&self, certificate: Certificate) {
        self.certificate.store(Some(Arc::new(certificate)));
    }

    /// Whether the first certificate is being made, so that waiting for it is worth while.
    pub(crate) fn is_promised(&self) -> bool {
        self.progress.borrow().promises()
    }

    /// Waits until there is a certificate, or none is to be expected soon. Cancel safe.
    pub(crate) async fn settled(&self) {
        // The sender is part of `self`, so it is not closed.
        let _ = self
            .progress
            .subscribe()
            .wait_for(|progress| !progress.promises())
            .await;
    }

    /// Lets handshakes wait until what this returns is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Making {
        self.progress.send_modify(|progress| {
            progress.begun = true;
            progress.making += 1;
        });
        Making(self.clone())
    }
}

/// An attempt that handshakes wait for.
#[derive(Debug)]
pub(crate) struct Making(Arc<Slot>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0
            .progress
            .send_modify(|progress| progress.making = progress.making.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_share_a_slot_as_long_as_one_has_it() {
        let first = Slot::of("test: shared".to_owned());
        let second = Slot::of("test: shared".to_owned());
        assert!(Arc::ptr_eq(&first, &second));
        drop(first.begin());
        drop((first, second));
        // A new one, at which nobody has begun.
        assert!(!Slot::of("test: shared".to_owned()).progress.borrow().begun);
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_the_last_attempt_has_ended() {
        let slot = Arc::new(Slot::new());
        assert!(slot.is_promised(), "before anybody began");
        let (old, new) = (slot.begin(), slot.begin());
        drop(old);
        assert!(slot.is_promised(), "the other one is still at it");
        let waiting = {
            let slot = slot.clone();
            tokio::spawn(async move { slot.settled().await })
        };
        drop(new);
        waiting.await.unwrap();
        assert!(!slot.is_promised());
        slot.settled().await;
    }
}
