//! The handler, and the limit it puts under a connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use l4_core::conn::ReadLimit;
use l4_core::prelude::*;
use l4_core::{Io, Record};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::Interest;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::debug;

use crate::limiter::Bucket;

/// The `throttle` handler.
pub struct Throttle {
    each: Option<Rate>,
    total: Option<Arc<Total>>,
    /// The most one read may take, where a burst size is given without a rate.
    cap: usize,
    latency: Option<Duration>,
}

/// Limits how fast bytes are read from clients; writing to them is not limited.
///
/// Every byte is charged once, as it is read, those that were read to find the route included. A datagram is passed whole
/// and charged whole, so a large one may be waited off afterwards. Placed before `tls` it limits ciphertext, placed after
/// it plaintext.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThrottleConfig {
    /// Bytes per second that each connection may send. Default: no limit. Example: `100000`.
    #[serde(default)]
    read_bytes_per_second: Option<At<f64>>,
    /// How many bytes of a connection may pass at once after it was quiet. Without a rate it caps a single read and
    /// nothing else. Default: what passes in one second, plus 1.
    #[serde(default)]
    read_burst_size: Option<At<i64>>,
    /// Bytes per second that all connections through this handler may send together. A reload starts counting anew.
    /// Default: no limit.
    #[serde(default)]
    total_read_bytes_per_second: Option<At<f64>>,
    /// How many bytes of all connections together may pass at once. Default: what passes in one second, plus 1.
    #[serde(default)]
    total_read_burst_size: Option<At<i64>>,
    /// How long to hold each connection, once, before the next handler gets it. Default: 0. Example: `"2s"`.
    #[serde(default)]
    latency: Option<GoDuration>,
}

#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    burst: u64,
}

/// The bucket that all connections through one handler share.
struct Total(Mutex<Shared>);

struct Shared {
    bucket: Bucket,
    /// How many connections found it empty and have had nothing since.
    waiting: usize,
}

/// The limit under one connection.
struct Limiter {
    each: Option<Bucket>,
    total: Option<Arc<Total>>,
    cap: usize,
    /// Taken from the buckets, and not yet settled.
    reserved: usize,
    /// Counted among those who wait for the shared bucket.
    waits: bool,
    /// Made at the first wait, and used again.
    sleep: Option<Pin<Box<Sleep>>>,
    asleep: bool,
    record: Arc<Record>,
}

/// A burst below what flows in while a timer is late costs part of the rate.
const TIMER_LAG: Duration = Duration::from_millis(4);

/// No sleep is longer, so that a connection that breaks meanwhile is noticed: the transport looks after each.
const LOOK_AFTER: Duration = Duration::from_millis(250);

impl HandlerModule for Throttle {
    const NAME: &'static str = "throttle";
    type Config = ThrottleConfig;

    fn provision(config: ThrottleConfig, cx: &mut Provision<'_>) -> Result<Self, Rejected> {
        let each = Allowance::provision(
            config.read_bytes_per_second,
            config.read_burst_size,
            ["read_bytes_per_second", "read_burst_size"],
            ["bytes per second", "burst size"],
            cx,
        );
        let total = Allowance::provision(
            config.total_read_bytes_per_second,
            config.total_read_burst_size,
            ["total_read_bytes_per_second", "total_read_burst_size"],
            ["total bytes per second", "total burst size"],
            cx,
        );
        let (each, total) = (each?, total?);
        let latency = config.latency.and_then(|latency| latency.positive());
        let made = Self {
            each: each.rate,
            total: total.rate.map(|rate| Arc::new(Total::new(rate))),
            cap: each.cap.min(total.cap),
            latency,
        };
        if !made.limits() && latency.is_none() {
            cx.warn(
                cx.node(),
                "throttle without a limit or latency does nothing",
            );
        }
        Ok(made)
    }
}

impl AsyncHandler for Throttle {
    async fn handle(&self, mut conn: Connection, _: Rest<'_>) -> Result<Flow> {
        if self.limits() {
            let limiter = self.limiter(conn.record().clone());
            conn.limit_reads(limiter);
        }
        if let Some(latency) = self.latency {
            hold(&conn, latency).await?;
        }
        Ok(Flow::Next(conn))
    }
}

impl Throttle {
    fn limits(&self) -> bool {
        self.each.is_some() || self.total.is_some() || self.cap < usize::MAX
    }

    fn limiter(&self, record: Arc<Record>) -> Limiter {
        Limiter {
            each: self.each.map(Rate::bucket),
            total: self.total.clone(),
            cap: self.cap,
            reserved: 0,
            waits: false,
            sleep: None,
            asleep: false,
            record,
        }
    }
}

/// Waits for `time`, or until the client resets the connection.
async fn hold(conn: &Connection, time: Duration) -> io::Result<()> {
    let time = sleep(time);
    let broken = async {
        match conn.io() {
            Io::Tcp(socket) => {
                let _ = socket.ready(Interest::ERROR).await;
                socket.take_error()
            }
            Io::Unix(socket) => {
                let _ = socket.ready(Interest::ERROR).await;
                socket.take_error()
            }
            Io::Datagram(_) | Io::Layer(_) => std::future::pending().await,
        }
    };
    tokio::pin!(time);
    // Both are cancel safe: nothing is read.
    tokio::select! {
        () = &mut time => return Ok(()),
        error = broken => if let Some(error) = error? {
            return Err(error);
        },
    }
    time.await;
    Ok(())
}

/// What one pair of fields says.
struct Allowance {
    rate: Option<Rate>,
    cap: usize,
}

impl Allowance {
    fn provision(
        rate: Option<At<f64>>,
        burst: Option<At<i64>>,
        fields: [&str; 2],
        names: [&str; 2],
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let mut rejected = None;
        if let Some(rate) = rate
            .as_ref()
            .filter(|rate| !(0.0..=f64::MAX).contains(&***rate))
        {
            let message = format!("{} must be at least 0: {:.6}", names[0], **rate);
            rejected = Some(cx.reject_help(
                rate.node(),
                message,
                "write bytes per second, or 0 for no limit",
            ));
        }
        if let Some(burst) = burst.as_ref().filter(|burst| ***burst < 0) {
            let message = format!("{} must be greater than 0: {}", names[1], **burst);
            rejected = Some(cx.reject_help(
                burst.node(),
                message,
                "write a number of bytes, or leave it out for what passes in one second",
            ));
        }
        if let Some(rejected) = rejected {
            return Err(rejected);
        }
        let per_second = rate.map_or(0.0, |rate| *rate);
        let given = burst.filter(|burst| **burst > 0);
        let at = given.as_ref().map(At::node);
        let given = given.map(|burst| burst.unsigned_abs());
        if per_second > 0.0 {
            // Saturates; the largest burst is as good as none.
            let burst = given.unwrap_or((per_second.trunc() as u64).saturating_add(1));
            if let Some(at) = at.filter(|_| (burst as f64) < per_second * TIMER_LAG.as_secs_f64()) {
                let message = format!(
                    "{} is less than what passes in {} ms: the rate will not be reached",
                    fields[1],
                    TIMER_LAG.as_millis()
                );
                cx.warn(at, message);
            }
            return Ok(Self {
                rate: Some(Rate { per_second, burst }),
                cap: usize::MAX,
            });
        }
        if let Some(at) = at {
            let message = format!(
                "{} without {} limits no rate: it only caps how much one read takes",
                fields[1], fields[0]
            );
            cx.warn(at, message);
        }
        let cap = given.and_then(|burst| usize::try_from(burst).ok());
        Ok(Self {
            rate: None,
            cap: cap.unwrap_or(usize::MAX),
        })
    }
}

impl Rate {
    fn bucket(self) -> Bucket {
        Bucket::new(self.per_second, self.burst, Instant::now().into_std())
    }
}

impl Total {
    /// The clock starts with the first connection that asks; full is full until then.
    fn new(rate: Rate) -> Self {
        Self(Mutex::new(Shared {
            bucket: Bucket::new(rate.per_second, rate.burst, std::time::Instant::now()),
            waiting: 0,
        }))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Shared) -> T) -> T {
        // What a panic left behind is a number too many or too few at worst.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Limiter {
    /// Takes from every bucket the same, or says how long to wait for the one that is empty.
    fn reserve(&mut self, wanted: usize) -> Result<usize, Duration> {
        let now = Instant::now().into_std();
        let mut n = wanted.min(self.cap);
        if let Some(each) = &mut self.each {
            n = match each.take(n, 1, now) {
                Ok(n) => n,
                Err(wait) => {
                    self.stop_waiting();
                    return Err(wait);
                }
            };
        }
        if let Some(total) = &self.total {
            let waits = self.waits;
            let taken = total.with(|shared| {
                let sharers = shared.waiting + usize::from(!waits);
                let taken = shared.bucket.take(n, sharers, now);
                match (waits, taken.is_ok()) {
                    (true, true) => shared.waiting -= 1,
                    (false, false) => shared.waiting += 1,
                    _ => {}
                }
                taken
            });
            self.waits = taken.is_err();
            if let Some(each) = &mut self.each {
                each.settle(n, *taken.as_ref().unwrap_or(&0));
            }
            n = taken?;
        }
        Ok(n)
    }

    fn stop_waiting(&mut self) {
        if let (true, Some(total)) = (std::mem::take(&mut self.waits), &self.total) {
            total.with(|shared| shared.waiting -= 1);
        }
    }

    fn settle(&mut self, used: usize) {
        let reserved = std::mem::take(&mut self.reserved);
        if let Some(each) = &mut self.each {
            each.settle(reserved, used);
        }
        if let Some(total) = &self.total {
            total.with(|shared| shared.bucket.settle(reserved, used));
        }
    }
}

impl ReadLimit for Limiter {
    fn poll_allow(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<usize> {
        if self.reserved > 0 {
            self.settle(0);
        }
        loop {
            if let (true, Some(sleep)) = (self.asleep, &mut self.sleep) {
                ready!(sleep.as_mut().poll(cx));
                self.asleep = false;
            }
            let wait = match self.reserve(wanted) {
                Ok(n) => {
                    self.reserved = n;
                    return Poll::Ready(n);
                }
                Err(wait) => wait.clamp(Duration::from_millis(1), LOOK_AFTER),
            };
            let until = Instant::now() + wait;
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(until),
                None => self.sleep = Some(Box::pin(sleep_until(until))),
            }
            self.asleep = true;
        }
    }

    fn taken(&mut self, n: usize) {
        let batch_size = self.reserved;
        self.settle(n);
        if n > 0 {
            debug!(
                target: "layer4.handlers.throttle.conn",
                conn = self.record.id(), remote = %self.record.remote(), batch_size, bytes_read = n,
                "read"
            );
        }
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.stop_waiting();
        self.settle(0);
    }
}
