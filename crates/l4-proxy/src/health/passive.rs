//! Failures that connections met, remembered for a while.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use l4_core::prelude::*;
use tokio::time::Instant;

use crate::config::PassiveConfig;

/// How failures count against a peer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passive {
    /// How long one failure is remembered.
    pub(crate) remember: Duration,
    /// How many of them make a peer unavailable; at least 1.
    pub(crate) max_fails: usize,
}

impl Passive {
    pub(crate) fn provision(
        config: PassiveConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Option<Self>, Rejected> {
        let max_fails = match &config.max_fails {
            None => Ok(None),
            Some(count) => match usize::try_from(**count) {
                Ok(n) => Ok(Some(n).filter(|&n| n > 0)),
                Err(_) => Err(cx.reject_help(
                    count.node(),
                    format!("a peer cannot have {} failures", **count),
                    "write how many failures make a peer unavailable, such as 1",
                )),
            },
        };
        let remember = cx.time_limit(config.fail_duration, Duration::ZERO)?;
        let max_fails = max_fails?;
        if let (None, Some(_), Some(count)) = (remember, max_fails, &config.max_fails) {
            cx.warn(
                count.node(),
                "max_fails has no effect without fail_duration: no failure is remembered",
            );
        }
        Ok(remember.map(|remember| Self {
            remember,
            max_fails: max_fails.unwrap_or(1),
        }))
    }
}

/// The remembered failures of a peer: when each is forgotten, and no more of them than somebody asks for.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// No less than the number that are remembered, so that a peer without failures costs one load.
    at_most: AtomicUsize,
    ring: Mutex<Ring>,
}

/// Sorted by time. The earliest gives way when it is full, because the latest decide how long the count stays up.
#[derive(Debug, Default)]
struct Ring {
    expiries: VecDeque<Instant>,
    /// The largest `max_fails` among those who use the peer.
    capacity: usize,
}

impl Failures {
    /// Remembers a failure of `now`.
    pub(crate) fn add(&self, passive: Passive, now: Instant) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.forget(now);
        ring.capacity = ring.capacity.max(passive.max_fails);
        // A time that the clock cannot tell is as good as never; a century will do.
        let expiry = now
            .checked_add(passive.remember)
            .unwrap_or_else(|| now + Duration::from_secs(100 * 365 * 86_400));
        let i = ring.expiries.partition_point(|other| *other <= expiry);
        ring.expiries.insert(i, expiry);
        if ring.expiries.len() > ring.capacity {
            ring.expiries.pop_front();
        }
        self.at_most.store(ring.expiries.len(), Ordering::Release);
    }

    /// Whether at least `max_fails` are remembered. The clock is only asked if it matters.
    pub(crate) fn reached(&self, max_fails: usize, now: impl FnOnce() -> Instant) -> bool {
        if self.at_most.load(Ordering::Acquire) < max_fails {
            return false;
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.forget(now());
        self.at_most.store(ring.expiries.len(), Ordering::Release);
        ring.expiries.len() >= max_fails
    }
}

impl Ring {
    fn forget(&mut self, now: Instant) {
        while self.expiries.front().is_some_and(|expiry| *expiry <= now) {
            self.expiries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passive(seconds: u64, max_fails: usize) -> Passive {
        Passive {
            remember: Duration::from_secs(seconds),
            max_fails,
        }
    }

    #[test]
    fn each_failure_is_forgotten_on_its_own() {
        let (failures, start) = (Failures::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!failures.reached(1, || panic!("no failure, no clock")));
        failures.add(passive(10, 2), at(0));
        assert!(!failures.reached(2, || at(0)));
        failures.add(passive(10, 2), at(4));
        assert!(failures.reached(2, || at(9)));
        assert!(!failures.reached(2, || at(10)));
        assert!(failures.reached(1, || at(13)));
        assert!(!failures.reached(1, || at(14)));
    }

    /// Row P23 of docs/defects.md.
    #[test]
    fn a_flood_of_failures_is_remembered_in_a_few_places() {
        let (failures, start) = (Failures::default(), Instant::now());
        for i in 0..10_000 {
            failures.add(passive(3600, 3), start + Duration::from_millis(i));
        }
        assert_eq!(failures.ring.lock().unwrap().expiries.len(), 3);
        assert!(failures.reached(3, || start + Duration::from_secs(3600)));
        assert!(!failures.reached(3, || start + Duration::from_secs(3611)));
    }

    #[test]
    fn an_endless_memory_is_no_overflow() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.add(
            Passive {
                remember: Duration::MAX,
                max_fails: 1,
            },
            now,
        );
        assert!(failures.reached(1, || now + Duration::from_secs(86_400)));
    }

    proptest! {
        /// Handlers with different settings share a peer; each gets the answer of an unbounded list.
        #[test]
        fn the_ring_answers_as_a_list_of_all_failures_would(
            events in proptest::collection::vec((0u64..20, 1u64..60, 0usize..3), 1..60)
        ) {
            let (failures, start) = (Failures::default(), Instant::now());
            let limits = [1, 2, 5];
            let (mut all, mut now) = (Vec::new(), start);
            // Everybody who asks has been seen before.
            failures.add(passive(1, 5), start);
            all.push(start + Duration::from_secs(1));
            for (pause, remember, who) in events {
                now += Duration::from_secs(pause);
                failures.add(passive(remember, limits[who]), now);
                all.push(now + Duration::from_secs(remember));
                for max_fails in limits {
                    let remembered = all.iter().filter(|expiry| **expiry > now).count();
                    prop_assert_eq!(failures.reached(max_fails, || now), remembered >= max_fails);
                }
            }
        }
    }
}
