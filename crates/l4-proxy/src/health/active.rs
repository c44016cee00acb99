//! Checks that connect to a peer, send nothing, and close.

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use l4_core::prelude::*;
use l4_net::dial::{DialError, DialOptions, Target, connect};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::ActiveConfig;
use crate::source::Fixed;

const DEFAULT_INTERVAL: Duration = Duration::from_secs(30);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The active checks of one handler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Active {
    pub(crate) settings: Settings,
    pub(crate) close_if_unhealthy: bool,
}

/// What makes checks comparable: the same settings find the same, so handlers that share them share the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    port: Option<NonZeroU16>,
    interval: Duration,
    timeout: Duration,
    fall: u32,
    rise: u32,
}

impl Active {
    pub(crate) fn provision(
        config: ActiveConfig,
        cx: &mut Provision<'_>,
    ) -> Result<Self, Rejected> {
        let port = match &config.port {
            None => Ok(None),
            Some(port) => match u16::try_from(**port) {
                Ok(port) => Ok(NonZeroU16::new(port)),
                Err(_) => Err(cx.reject_help(
                    port.node(),
                    format!("{} is not a port", **port),
                    "write a number from 1 to 65535, or 0 for the port that connections use",
                )),
            },
        };
        let interval = cx.time_limit(config.interval, DEFAULT_INTERVAL);
        let timeout = cx.time_limit(config.timeout, DEFAULT_TIMEOUT);
        // As in the reference, less than one is one; more than anybody counts to is as good as never.
        let streak = |count: Option<At<i64>>| {
            count.map_or(1, |count| {
                u32::try_from((*count).max(1)).unwrap_or(u32::MAX)
            })
        };
        Ok(Self {
            settings: Settings {
                port: port?,
                interval: interval?.unwrap_or(DEFAULT_INTERVAL),
                timeout: timeout?.unwrap_or(DEFAULT_TIMEOUT),
                fall: streak(config.fall),
                rise: streak(config.rise),
            },
            close_if_unhealthy: config.close_if_unhealthy,
        })
    }
}

/// What checks with the same settings found out about a peer.
#[derive(Debug)]
pub(crate) struct Health {
    settings: Settings,
    /// Where they connect from: another address of ours may be answered otherwise.
    origin: Fixed,
    up: AtomicBool,
    found: Mutex<Found>,
}

#[derive(Debug)]
struct Found {
    streaks: Streaks,
    /// Cancelled while the peer is down; a new one when it comes up again. Whoever takes it after the peer went down
    /// learns so at once.
    down: CancellationToken,
    /// When somebody last began a check.
    begun: Option<Instant>,
    /// It has no result yet.
    under_way: bool,
}

/// A check that was begun: until this is dropped, nobody begins another.
struct UnderWay<'a>(&'a Health);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.found().under_way = false;
    }
}

/// The state of a peer and how many results in a row spoke against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Streaks {
    up: bool,
    against: u32,
}

impl Health {
    /// A peer is up until a check says otherwise.
    pub(crate) fn new(settings: Settings, origin: Fixed) -> Self {
        Self {
            settings,
            origin,
            up: AtomicBool::new(true),
            found: Mutex::new(Found {
                streaks: Streaks {
                    up: true,
                    against: 0,
                },
                down: CancellationToken::new(),
                begun: None,
                under_way: false,
            }),
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn origin(&self) -> &Fixed {
        &self.origin
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// Cancelled as soon as the peer is down.
    pub(crate) fn down(&self) -> CancellationToken {
        self.found().down.clone()
    }

    /// Begins a check if one is due at `now`: handlers with the same settings take turns, so that their common streaks
    /// grow by one in an interval. Half an interval leaves room for timers that fire late. While a check takes longer
    /// than that, none of them begins another.
    fn begin(&self, now: Instant) -> Option<UnderWay<'_>> {
        let mut found = self.found();
        let due = found
            .begun
            .is_none_or(|begun| now.duration_since(begun) >= self.settings.interval / 2);
        if found.under_way || !due {
            return None;
        }
        found.begun = Some(now);
        found.under_way = true;
        Some(UnderWay(self))
    }

    /// Enters a result; the new state if it changed.
    fn enter(&self, success: bool) -> Option<bool> {
        let mut found = self.found();
        let change = found
            .streaks
            .enter(success, self.settings.fall, self.settings.rise);
        if let Some(up) = change {
            self.up.store(up, Ordering::Release);
            if up {
                found.down = CancellationToken::new();
            } else {
                found.down.cancel();
            }
        }
        change
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streaks {
    fn enter(&mut self, success: bool, fall: u32, rise: u32) -> Option<bool> {
        if success == self.up {
            self.against = 0;
            return None;
        }
        self.against = self.against.saturating_add(1);
        if self.against < if success { rise } else { fall } {
            return None;
        }
        *self = Self {
            up: success,
            against: 0,
        };
        Some(success)
    }
}

/// Checks `peer` for as long as it is polled, one check at a time.
pub(crate) async fn check(peer: Target, health: Arc<Health>) {
    let Settings {
        port,
        interval,
        timeout,
        ..
    } = health.settings;
    // A copy: connections go on using the peer's own port.
    let mut options = DialOptions::within(Some(timeout));
    health.origin.apply(&mut options);
    let target = port.map_or_else(|| peer.clone(), |port| peer.with_port(port));
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(_under_way) = health.begin(Instant::now()) else {
            continue;
        };
        let outcome = probe(&target, &options).await;
        if let Err(error) = &outcome {
            info!(
                target: "layer4.handlers.proxy.health_checker.active",
                address = %target, ?timeout, %error, "active health check failed"
            );
        }
        match health.enter(outcome.is_ok()) {
            Some(true) => {
                info!(target: "layer4.handlers.proxy.health_checker.active", address = %peer, "host is up");
            }
            Some(false) => {
                info!(target: "layer4.handlers.proxy.health_checker.active", address = %peer, "host is down");
            }
            None => {}
        }
    }
}

async fn probe(target: &Target, options: &DialOptions) -> Result<(), DialError> {
    connect(target, options).await.map(drop)
}

#[cfg(test)]
impl Active {
    pub(crate) fn falling_after(fall: u32) -> Self {
        let settings = Settings {
            port: None,
            interval: DEFAULT_INTERVAL,
            timeout: DEFAULT_TIMEOUT,
            fall,
            rise: 1,
        };
        Self {
            settings,
            close_if_unhealthy: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        port: None,
        interval: Duration::from_secs(30),
        timeout: Duration::from_secs(5),
        fall: 3,
        rise: 2,
    };

    #[test]
    fn the_state_changes_after_a_streak_and_a_streak_begins_anew_after_each_exception() {
        let health = Health::new(SETTINGS, Fixed::default());
        let mut changes = String::new();
        for result in "..x.xx.xxxx.x..x...".chars() {
            changes.push(match health.enter(result == '.') {
                Some(true) => 'U',
                Some(false) => 'D',
                None => '-',
            });
        }
        assert_eq!(changes, "---------D----U----");
        assert!(health.is_up());
    }

    /// Row P19 of docs/defects.md.
    #[test]
    fn who_registers_after_the_peer_went_down_learns_so_too() {
        let health = Health::new(
            Settings {
                fall: 1,
                rise: 1,
                ..SETTINGS
            },
            Fixed::default(),
        );
        let early = health.down();
        assert!(!early.is_cancelled());
        health.enter(false);
        assert!(early.is_cancelled() && health.down().is_cancelled() && !health.is_up());
        health.enter(true);
        assert!(early.is_cancelled() && !health.down().is_cancelled() && health.is_up());
    }

    #[test]
    fn two_handlers_make_one_check_in_an_interval() {
        let (health, start) = (Health::new(SETTINGS, Fixed::default()), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        let begins = |millis| health.begin(at(millis)).is_some();
        assert!(begins(0));
        assert!(!begins(1));
        assert!(begins(29_990), "a timer that was late before");
        assert!(!begins(30_001));
        assert!(begins(60_000));
    }

    #[test]
    fn p23_nobody_begins_a_check_while_one_is_under_way() {
        let (health, start) = (Health::new(SETTINGS, Fixed::default()), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let slow = health.begin(at(0));
        assert!(slow.is_some());
        assert!(health.begin(at(30)).is_none() && health.begin(at(3000)).is_none());
        drop(slow);
        assert!(health.begin(at(3001)).is_some());
    }
}
