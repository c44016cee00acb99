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
    /// Cancelled with `cancel` at the latest.
    retired: CancellationToken,
    stopping: std::sync::OnceLock<EndReason>,
}

impl Generation {
    /// A new generation, numbered from 1 in this process.
    pub fn new() -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let cancel = CancellationToken::new();
        Arc::new(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            active: AtomicUsize::new(0),
            idle: Notify::new(),
            retired: cancel.child_token(),
            cancel,
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

    /// Cancelled when its connections must end at once.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Says that new connections are no longer its own: another generation took over, or the process stops.
    ///
    /// What runs in the [background](Self::background) ends; connections go on.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// Runs a task that belongs to the configuration rather than to a connection, such as a health check, until the
    /// generation is [retired](Self::retire) or its connections are ended. The task is then dropped where it waits.
    pub fn background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let retired = self.retired.clone();
        tokio::spawn(async move {
            retired.run_until_cancelled(task).await;
        });
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

    #[tokio::test]
    async fn background_tasks_end_when_the_generation_is_retired_and_when_it_ends() {
        let stops: [fn(&Generation); 2] = [Generation::retire, |generation| {
            generation.end(EndReason::Drained)
        }];
        for stop in stops {
            let generation = Generation::new();
            let (alive, dropped) = tokio::sync::oneshot::channel::<()>();
            generation.background(async move {
                let _alive = alive;
                std::future::pending().await
            });
            tokio::task::yield_now().await;
            stop(&generation);
            assert!(dropped.await.is_err());
        }
    }

    #[test]
    fn retiring_leaves_connections_alone() {
        let generation = Generation::new();
        generation.retire();
        assert!(!generation.cancelled().is_cancelled());
    }
}
