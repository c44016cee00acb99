//! A generation: everything one load of the configuration brought into being, and the connections that run under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::EndReason;

/// The connections of one load of the configuration. They finish under it after a reload; it ends them when asked to.
#[derive(Debug)]
pub struct Generation {
    id: u64,
    active: AtomicUsize,
    idle: Notify,
    cancel: CancellationToken,
    stopping: std::sync::OnceLock<EndReason>,
}

impl Generation {
    /// A new generation, numbered from 1 in this process.
    pub fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            active: AtomicUsize::new(0),
            idle: Notify::new(),
            cancel: CancellationToken::new(),
            stopping: std::sync::OnceLock::new(),
        })
    }

    /// Its number.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many connections and datagram sessions run under it.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Acquire)
    }

    /// Cancelled when its connections must end at once. Tasks that belong to the generation stop on it, too.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Why its connections are being ended.
    pub fn end_reason(&self) -> EndReason {
        self.stopping.get().copied().unwrap_or(EndReason::Shutdown)
    }

    /// Ends all connections now, for `reason`.
    pub fn end(&self, reason: EndReason) {
        let _ = self.stopping.set(reason);
        self.cancel.cancel();
    }

    /// Waits until no connection is left, but not longer than `limit`. Returns how many are.
    pub async fn drained(&self, limit: Duration) -> usize {
        let drained = async {
            loop {
                let idle = self.idle.notified();
                if self.active() == 0 {
                    return;
                }
                idle.await;
            }
        };
        let _ = tokio::time::timeout(limit, drained).await;
        self.active()
    }

    /// Counts a connection until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::AcqRel);
        Active(self.clone())
    }
}

/// One running connection of a generation.
pub(crate) struct Active(Arc<Generation>);

impl Drop for Active {
    fn drop(&mut self) {
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_the_last_connection_and_no_longer_than_told() {
        let generation = Generation::new();
        assert_eq!(generation.drained(Duration::from_secs(1)).await, 0);
        let first = generation.enter();
        let second = generation.enter();
        drop(first);
        assert_eq!(generation.drained(Duration::from_secs(1)).await, 1);
        let waiting = generation.clone();
        let waiter = tokio::spawn(async move { waiting.drained(Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(waiter.await.unwrap(), 0);
    }
}
