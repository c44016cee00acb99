//! A token bucket. One token is one byte.

use std::time::{Duration, Instant};

/// Fills at a rate up to its burst size, and starts full.
///
/// It may be in debt: a datagram is passed whole, however little there is.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    level: f64,
    filled: Instant,
}

/// Who found the bucket empty sleeps until so much time's worth is in it: waking up for every byte would cost more than
/// it brings.
const QUANTUM: Duration = Duration::from_millis(10);

/// So many sleepers stretch the quantum, one each.
const STRETCH: usize = 10;

/// Longer waits than this are of no interest: whoever waits asks again before.
const LONG: Duration = Duration::from_secs(3600);

impl Bucket {
    /// A full bucket. `rate` is tokens per second and more than 0; `burst` is at least 1.
    pub fn new(rate: f64, burst: u64, now: Instant) -> Self {
        let burst = burst.max(1) as f64;
        Self {
            rate,
            burst,
            level: burst,
            filled: now,
        }
    }

    /// Takes between 1 and `wanted` tokens, or says how long to wait. `sharers` is how many want some, this one
    /// included: each gets its part, so that who asks first does not get everything.
    ///
    /// # Errors
    /// There is not even one token.
    pub fn take(&mut self, wanted: usize, sharers: usize, now: Instant) -> Result<usize, Duration> {
        self.fill(now);
        let sharers = sharers.max(1);
        if self.level < 1.0 {
            return Err(self.time_to(self.worth_waiting_for(sharers)));
        }
        let part = (self.level / sharers as f64).max(1.0);
        // Saturates; a fraction of a token stays.
        let n = (part as usize).min(wanted.max(1));
        self.level -= n as f64;
        Ok(n)
    }

    /// What was `reserved` by [`take`](Self::take) was used: all of it, less, or more.
    pub fn settle(&mut self, reserved: usize, used: usize) {
        self.level = (self.level + reserved as f64 - used as f64).min(self.burst);
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.level = (self.level + self.rate * passed.as_secs_f64()).min(self.burst);
    }

    /// Never more than half the burst size: a timer fires late, and a full bucket loses what would flow in meanwhile.
    fn worth_waiting_for(&self, sharers: usize) -> f64 {
        let quantum = self.rate * QUANTUM.as_secs_f64() * sharers.min(STRETCH) as f64;
        quantum.min(self.burst / 2.0).max(1.0)
    }

    fn time_to(&self, level: f64) -> Duration {
        Duration::try_from_secs_f64((level - self.level) / self.rate)
            .map_or(LONG, |wait| wait.min(LONG))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_starts_full_and_refills_no_further_than_its_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100.0, 50, start);
        assert_eq!(bucket.take(1000, 1, start), Ok(50));
        assert!(bucket.take(1, 1, start).is_err());
        let later = start + Duration::from_secs(60);
        assert_eq!(bucket.take(1000, 1, later), Ok(50));
    }

    #[test]
    fn what_was_reserved_and_not_read_comes_back() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100.0, 50, start);
        assert_eq!(bucket.take(40, 1, start), Ok(40));
        bucket.settle(40, 3);
        assert_eq!(bucket.take(1000, 1, start), Ok(47));
    }

    #[test]
    fn a_debt_is_waited_off_at_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100.0, 50, start);
        assert_eq!(bucket.take(1, 1, start), Ok(1));
        bucket.settle(1, 1050);
        let wait = bucket.take(1, 1, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(10_010), "to have one token");
        assert!(bucket.take(1, 1, start + wait / 2).is_err());
        assert_eq!(bucket.take(1, 1, start + wait), Ok(1));
    }

    #[test]
    fn sharers_get_a_part_each_and_never_less_than_a_token() {
        let start = Instant::now();
        let mut bucket = Bucket::new(100.0, 60, start);
        assert_eq!(bucket.take(1000, 3, start), Ok(20));
        assert_eq!(bucket.take(1000, 2, start), Ok(20));
        assert_eq!(bucket.take(1000, 90, start), Ok(1));
    }

    #[test]
    fn rates_beyond_all_bounds_neither_panic_nor_spin() {
        let start = Instant::now();
        for rate in [f64::MIN_POSITIVE, 1e-9, 1e300, f64::MAX] {
            for burst in [1, u64::MAX] {
                let mut bucket = Bucket::new(rate, burst, start);
                let n = bucket.take(usize::MAX, 1, start).unwrap();
                assert!(n >= 1);
                bucket.settle(n, usize::MAX);
                if let Err(wait) = bucket.take(1, usize::MAX, start) {
                    assert!(wait <= LONG);
                }
            }
        }
    }

    proptest! {
        /// Over any window of t seconds at most burst + rate * t bytes pass, and who waited as told gets something.
        #[test]
        fn any_window_holds_the_bound_and_no_wait_is_too_short(
            rate in 1.0f64..1e6,
            burst in 1u64..100_000,
            steps in prop::collection::vec((1usize..70_000, 0u64..20_000, 0usize..4), 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = Bucket::new(rate, burst, start);
            let mut now = start;
            let mut taken = vec![(now, 0usize)];
            for (wanted, idle_us, keep) in steps {
                now += Duration::from_micros(idle_us);
                match bucket.take(wanted, 1, now) {
                    Ok(n) => {
                        prop_assert!(n >= 1 && n <= wanted);
                        let used = n >> keep;
                        bucket.settle(n, used);
                        taken.push((now, used));
                    }
                    Err(wait) => {
                        now += wait + Duration::from_nanos(1);
                        // Nothing is lost while waiting as told.
                        let n = bucket.take(wanted, 1, now);
                        prop_assert!(n.is_ok(), "{n:?}");
                        taken.push((now, n.unwrap()));
                    }
                }
            }
            for (i, (from, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (at, n) in &taken[i..] {
                    sum += n;
                    let bound = burst as f64 + rate * (*at - *from).as_secs_f64();
                    prop_assert!(sum as f64 <= bound + 1e-3, "{sum} in {:?}", *at - *from);
                }
            }
        }
    }
}
