//! How many connections there may be, and how many descriptors that takes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

/// Descriptors kept for everything that is not a connection: listeners, logs, certificates, name lookups.
const RESERVED: usize = 256;

/// How many accepted stream connections the process may have at a time, over all listeners.
///
/// A listener asks before it accepts. What is over the limit therefore waits in the kernel's queue, where it costs
/// nothing here, and is served when another connection ends.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    max: usize,
    permits: Arc<Semaphore>,
    /// The limit was reached, this was logged, and there has not been much room since.
    reached: Arc<AtomicBool>,
}

impl ConnectionLimit {
    /// At most `max` connections, at least one.
    pub fn new(max: usize) -> Self {
        let max = max.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            max,
            permits: Arc::new(Semaphore::new(max)),
            reached: Arc::default(),
        }
    }

    /// As many as the descriptors of this process allow, after raising its own limit as far as it may: some are kept
    /// back, and a proxied connection takes two.
    pub fn from_system() -> Self {
        Self::new(connections_for(raise_descriptor_limit()))
    }

    /// The limit.
    pub fn max(&self) -> usize {
        self.max
    }

    /// How many connections there are.
    pub fn in_use(&self) -> usize {
        self.max.saturating_sub(self.permits.available_permits())
    }

    /// Waits until there is room for one more. Cancel safe.
    pub(crate) async fn acquire(&self) -> Permit {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            if self.reached.load(Ordering::Relaxed) && self.in_use() < self.max - self.max / 10 {
                self.reached.store(false, Ordering::Relaxed);
            }
            return Permit {
                _held: Some(permit),
            };
        }
        if !self.reached.swap(true, Ordering::Relaxed) {
            warn!(
                limit = self.max,
                "connection limit reached: new connections wait in the kernel until others end"
            );
        }
        // Never closed, so always granted.
        Permit {
            _held: self.permits.clone().acquire_owned().await.ok(),
        }
    }
}

/// The right to one connection, until dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _held: Option<OwnedSemaphorePermit>,
}

/// How many connections fit into `descriptors`.
fn connections_for(descriptors: usize) -> usize {
    // A small limit is not eaten up by the reserve.
    (descriptors - RESERVED.min(descriptors / 4)) / 2
}

/// Raises the soft limit of open descriptors to the hard limit, and returns what it is then.
///
/// Programs that use `select(2)` need the traditional 1024; this one does not, and starts none that would.
pub fn raise_descriptor_limit() -> usize {
    let raised = descriptor_limit().and_then(|mut limit| {
        if limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            set_descriptor_limit(&limit)?;
        }
        Ok(limit.rlim_cur)
    });
    let limit = raised.or_else(|error| {
        warn!(%error, "the limit of open files stays as it is");
        descriptor_limit().map(|limit| limit.rlim_cur)
    });
    // Without an answer, what every Linux system grants at least.
    usize::try_from(limit.unwrap_or(1024)).unwrap_or(usize::MAX)
}

#[allow(unsafe_code)]
fn descriptor_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live value of the type the call writes.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => Ok(limit),
        _ => Err(io::Error::last_os_error()),
    }
}

#[allow(unsafe_code)]
fn set_descriptor_limit(limit: &libc::rlimit) -> io::Result<()> {
    // SAFETY: the pointer is to a live value of the type the call reads.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn two_descriptors_for_each_connection_and_a_reserve() {
        assert_eq!(connections_for(1024), 384);
        assert_eq!(connections_for(1 << 20), (1 << 19) - 128);
        assert_eq!(connections_for(8), 3);
        assert_eq!(ConnectionLimit::new(connections_for(0)).max(), 1);
        assert_eq!(
            ConnectionLimit::new(usize::MAX).max(),
            Semaphore::MAX_PERMITS
        );
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_descriptor_limit();
        let limit = descriptor_limit().unwrap();
        assert_eq!(limit.rlim_cur, limit.rlim_max);
        assert_eq!(raised as u64, limit.rlim_cur);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_over_the_limit_waits_for_another_to_end() {
        let limit = ConnectionLimit::new(2);
        let first = limit.acquire().await;
        let second = limit.acquire().await;
        assert_eq!(limit.in_use(), 2);
        let wait = Duration::from_secs(1);
        assert!(tokio::time::timeout(wait, limit.acquire()).await.is_err());
        drop(first);
        let third = tokio::time::timeout(wait, limit.acquire()).await.unwrap();
        assert_eq!(limit.in_use(), 2);
        drop((second, third));
        assert_eq!(limit.in_use(), 0);
    }
}
